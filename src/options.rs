//! The shared parts of both command lines: values, usage errors, exit codes, the database's connection string.

use std::any::TypeId;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches};
use log::LevelFilter;

use crate::db::Settings;
use crate::error::{Doing, Error};
use crate::{logging, text};

/// The longest duration that is accepted: a hundred years. Much longer ones overflow PostgreSQL's timestamps.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Reads a duration as people write it: `500ms`, `15s`, `5m`, `72h`, `7d`, also `1h 30m`.
///
/// # Errors
/// A text saying what is allowed, if it is not a duration or longer than a hundred years.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text.trim())
        .map_err(|_| "expected a duration such as 500ms, 15s, 5m, 72h or 30d".to_owned())?;
    if duration > LONGEST {
        return Err("expected at most 100 years".to_owned());
    }
    Ok(duration)
}

/// Like [`parse_duration`], for a duration that may not be zero.
///
/// # Errors
/// As [`parse_duration`], and for zero.
pub(crate) fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("expected a duration above zero".to_owned()),
        duration => Ok(duration),
    }
}

/// Reads the lowest level that is logged.
///
/// # Errors
/// A text saying what is allowed.
pub(crate) fn parse_log_level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| "expected off, error, warn, info, debug or trace".to_owned())
}

/// Reads an address with its port.
///
/// # Errors
/// A text saying what is allowed.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|_| "expected an IP address with a port such as 127.0.0.1:8080 or [::]:8080".to_owned())
}

/// Reads a whole number that may not be smaller than `least`.
///
/// # Errors
/// A text saying what is allowed.
pub(crate) fn parse_number_from(least: i64, text: &str) -> Result<i64, String> {
    let number = text.parse().ok().filter(|number| *number >= least);
    number.ok_or_else(|| format!("expected a number from {least} to {}", i64::MAX))
}

/// The connection string: `--database-url`, else the contents of `--database-url-file`, else `DATABASE_URL`. An empty
/// value counts as not given, so that an environment file can list every variable.
///
/// # Errors
/// If the file cannot be read, or the connection string cannot be used; the text names its source and the
/// offending part, never a secret. `None` if nothing is given.
pub(crate) fn database_settings(url: Option<&str>, file: Option<&Path>) -> Result<Option<Settings>, Error> {
    let variable = std::env::var("DATABASE_URL").unwrap_or_default();
    let (source, text) = match (url, file) {
        (Some(url), _) if !url.trim().is_empty() => ("--database-url".to_owned(), url.to_owned()),
        (_, Some(file)) if !file.as_os_str().is_empty() => {
            let source = format!("--database-url-file {}", file.display());
            let text = fs::read_to_string(file).doing(format!("read {source}"))?;
            let settings =
                Settings::from_file(file, &text).map_err(|error| Error::Usage(format!("{source}: {error}")))?;
            return Ok(Some(settings));
        }
        _ if !variable.trim().is_empty() => ("DATABASE_URL".to_owned(), variable),
        _ => return Ok(None),
    };
    let settings = text.trim().parse().map_err(|error| Error::Usage(format!("{source}: {error}")))?;
    Ok(Some(settings))
}

/// Whether `--database-url-file` is a flag and `--database-url` is not: a flag wins over the environment.
pub(crate) fn file_wins(matches: &ArgMatches) -> bool {
    let is_flag = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
    is_flag("database_url_file") && !is_flag("database_url")
}

/// The same command, more lenient with values. The value of an option may begin with a hyphen: `-1s` is then a wrong
/// value and not an unknown option. (This excludes options that take any text: there a missing value is the likelier
/// mistake.) The variable of a flag may be `1` or `yes`.
pub(crate) fn with_lenient_values(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|argument| {
        let kind = argument.get_value_parser().type_id();
        let is_text = kind == TypeId::of::<String>() || kind == TypeId::of::<PathBuf>();
        match argument.get_action() {
            ArgAction::SetTrue => argument.value_parser(BoolishValueParser::new()),
            action if action.takes_values() && !argument.is_positional() && !is_text => {
                argument.allow_hyphen_values(true)
            }
            _ => argument,
        }
    });
    command.mut_subcommands(with_lenient_values)
}

/// The first paragraph of clap's message on one line: it names the option, the value and what is allowed.
pub(crate) fn usage(error: &clap::Error) -> Error {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Error::Usage("no command given; see --help".into());
    }
    let hint = match error.kind() {
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => "; see --help",
        _ => "",
    };
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Usage(format!("{}{hint}", line.strip_prefix("error: ").unwrap_or(&line)))
}

pub(crate) fn finish(outcome: Result<(), Error>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = text::one_line(&error.to_string());
            let _ = writeln!(std::io::stderr(), "{}error: {line}", logging::prefix(log::Level::Error));
            ExitCode::from(error.exit_code())
        }
    }
}
