//! The shared parts of both command lines: values, usage errors, exit codes, the database's connection string.

use std::any::TypeId;
use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgAction, FromArgMatches};
use crossbeam_channel::Sender;
use log::LevelFilter;

use crate::db::{Connection, Settings};
use crate::error::{Doing, Error};
use crate::{logging, text};

/// The longest duration that is accepted: `100y`, of 365.25 days each. Much longer ones overflow PostgreSQL's timestamps.
const LONGEST: Duration = Duration::from_secs(100 * 36525 * 24 * 36);

/// Reads a duration as people write it: `500ms`, `15s`, `5m`, `72h`, `7d`, also `1h 30m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text.trim())
        .map_err(|_| "expected a duration such as 500ms, 15s, 5m, 72h or 30d".to_owned())?;
    if duration > LONGEST {
        return Err("expected at most 100 years".to_owned());
    }
    Ok(duration)
}

/// Like [`parse_duration`], for a duration that may not be zero.
pub(crate) fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("expected a duration above zero".to_owned()),
        duration => Ok(duration),
    }
}

pub(crate) fn parse_log_level(text: &str) -> Result<LevelFilter, String> {
    text.trim().parse().map_err(|_| "expected off, error, warn, info, debug or trace".to_owned())
}

pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|_| "expected an IP address with a port such as 127.0.0.1:8080 or [::]:8080".to_owned())
}

/// A reader of whole numbers in a range. It says what is allowed if the text is none.
pub(crate) fn parse_number<N>(range: RangeInclusive<N>) -> impl Fn(&str) -> Result<N, String> + Clone
where
    N: FromStr + PartialOrd + Display + Clone,
{
    move |text| {
        let number = text.trim().parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("expected a number from {} to {}", range.start(), range.end()))
    }
}

/// An option that always has a value, which may be `off`. (Clap takes a plain `Option` for one that can be left out.)
pub(crate) type OrOff<T> = Option<T>;

/// A reader of the word `off`, which is `None`, or of a value.
pub(crate) fn or_off<T>(
    parse: impl Fn(&str) -> Result<T, String> + Clone,
) -> impl Fn(&str) -> Result<OrOff<T>, String> + Clone {
    move |text| match text.trim() {
        "off" => Ok(None),
        text => parse(text).map(Some).map_err(|error| format!("{error}, or off")),
    }
}

/// The options that name the database.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DatabaseArgs {
    /// Connection string (postgres:// or key=value); DATABASE_URL works too
    #[arg(long, value_name = "URL", hide_env_values = true, help_heading = "Database", global = true)]
    database_url: Option<String>,
    /// File with the connection string; keeps the password out of the environment
    #[arg(long, value_name = "FILE", help_heading = "Database", global = true)]
    database_url_file: Option<PathBuf>,
}

impl DatabaseArgs {
    /// The connection string: `--database-url`, else the contents of `--database-url-file`, else `DATABASE_URL`,
    /// which counts as not given if it is empty.
    ///
    /// # Errors
    /// If it cannot be read or used; the text names its source and the offending part, never a secret.
    pub(crate) fn given(&self) -> Result<Option<Settings>, Error> {
        let variable = std::env::var("DATABASE_URL").unwrap_or_default();
        let (source, settings) = match (&self.database_url, &self.database_url_file) {
            (Some(url), _) => ("--database-url".to_owned(), url.parse()),
            (_, Some(file)) => {
                let source = format!("--database-url-file {}", file.display());
                let text = fs::read_to_string(file).doing(format!("read {source}"))?;
                (source, Settings::from_file(file, &text))
            }
            _ if !variable.trim().is_empty() => ("DATABASE_URL".to_owned(), variable.parse()),
            _ => return Ok(None),
        };
        settings.map(Some).map_err(|error| Error::Usage(format!("{source}: {error}")))
    }

    /// The connection string, for a command that needs one.
    pub(crate) fn settings(&self) -> Result<Settings, Error> {
        self.given()?
            .ok_or_else(|| Error::Usage("no database: give --database-url, --database-url-file or DATABASE_URL".into()))
    }

    pub(crate) fn connect(&self) -> Result<Connection, Error> {
        Connection::open(&self.settings()?, "signal-feed").doing("connect to the database")
    }
}

/// Reads the value of a flag's variable.
fn parse_yes(text: &str) -> Result<bool, String> {
    match text.trim().to_lowercase().as_str() {
        "1" | "y" | "yes" | "t" | "true" | "on" => Ok(true),
        "0" | "n" | "no" | "f" | "false" | "off" => Ok(false),
        _ => Err("expected yes or no".to_owned()),
    }
}

/// A program's command line with what holds for every option of it. `prefix` and the option's name are its environment
/// variable. The value of an option may begin with a hyphen: `-1s` is then a wrong value and not an unknown option. (This
/// excludes options that take any text: there a missing value is the likelier mistake.) The variable of a flag may be
/// `1` or `yes`. A flag wins over the environment: with the flag `--key-file`, the variable of `--key` does not count, nor
/// does that of any option that the flag excludes. An empty variable counts as not given, and so does a flag's that says
/// no, so that an environment file can list them all.
pub(crate) fn with_rules(command: clap::Command, prefix: &str) -> clap::Command {
    let is_given = |name: &str| {
        let flag = format!("--{name}");
        std::env::args_os().any(|given| given.to_string_lossy().split('=').next() == Some(&flag))
    };
    let declared = command.clone();
    let command = command.mut_args(|argument| {
        let Some(name) = argument.get_long() else { return argument };
        let variable = format!("{prefix}{}", name.replace('-', "_").to_uppercase());
        let kind = argument.get_value_parser().type_id();
        let is_text = kind == TypeId::of::<String>() || kind == TypeId::of::<PathBuf>();
        let is_flag = matches!(argument.get_action(), ArgAction::SetTrue);
        let says_nothing = std::env::var_os(&variable).is_some_and(|value| {
            let value = value.to_string_lossy();
            value.trim().is_empty() || is_flag && parse_yes(&value) == Ok(false)
        });
        let is_beaten = is_given(&format!("{name}-file"))
            || declared.get_arg_conflicts_with(&argument).iter().any(|rival| rival.get_long().is_some_and(is_given));
        let argument = if says_nothing || is_beaten { argument } else { argument.env(variable) };
        match argument.get_action() {
            _ if is_flag => argument.value_parser(parse_yes),
            action if action.takes_values() && !is_text => argument.allow_hyphen_values(true),
            _ => argument,
        }
    });
    command.mut_subcommands(|command| with_rules(command, prefix))
}

/// Calls `handle` at SIGTERM and SIGINT, on a thread of its own.
///
/// # Errors
/// If the system refuses, or at a second call.
pub(crate) fn on_signal(handle: impl FnMut() + Send + 'static) -> Result<(), Error> {
    ctrlc::set_handler(handle).map_err(|error| Error::Failed(format!("handle SIGTERM and SIGINT: {error}")))
}

/// Like [`on_signal`]: sends a message.
pub(crate) fn send_on_signal(asked: Sender<()>) -> Result<(), Error> {
    on_signal(move || {
        let _ = asked.try_send(());
    })
}

/// Prints one line of a command's result, with control characters made visible. A closed pipe
/// (`| head`) is no error.
///
/// # Errors
/// If it cannot be written: a listing that was cut short must not look complete.
pub(crate) fn output(line: impl Display) -> Result<(), Error> {
    match writeln!(std::io::stdout(), "{}", text::visible(&line.to_string())) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.doing("write to standard output"),
    }
}

/// Parses a program's command line, runs it, and says how the process ends.
pub(crate) fn main<T: FromArgMatches>(command: clap::Command, run: impl FnOnce(T) -> Result<(), Error>) -> ExitCode {
    let outcome = match command.try_get_matches().and_then(|matches| T::from_arg_matches(&matches)) {
        Ok(parsed) => run(parsed),
        Err(error) if !error.use_stderr() => {
            // Help and version; a closed pipe is a normal end.
            let _ = error.print();
            Ok(())
        }
        Err(error) => Err(usage(&error)),
    };
    logging::finish();
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let line = text::without_secrets(&text::one_line(&error.to_string()));
    let line = text::cut(line, logging::MOST_TEXT_BYTES);
    let _ = writeln!(std::io::stderr(), "{}error: {line}", logging::prefix(log::Level::Error));
    ExitCode::from(error.exit_code())
}

/// The first paragraph of clap's message on one line: it names the option, the value and what is allowed.
fn usage(error: &clap::Error) -> Error {
    let hint = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return Error::Usage("no command given; see --help".into());
        }
        ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand => "; see --help",
        _ => "",
    };
    let text = error.render().to_string();
    // A value may hold an empty line, so that alone does not end the paragraph.
    let end = ["\n\n  tip:", "\n\nUsage:", "\n\nFor more"].iter().filter_map(|next| text.find(next)).min();
    let line = text::one_line(&text[..end.unwrap_or(text.len())]);
    Error::Usage(format!("{}{hint}", line.strip_prefix("error: ").unwrap_or(&line)))
}
