//! The database options of commands.

use std::path::PathBuf;

use clap::{ArgMatches, FromArgMatches};

use crate::db::{Connection, Settings};
use crate::error::{Doing, Error};
use crate::options::{database_settings, file_wins};

/// The options of every command that needs the database, as they were given.
#[derive(Debug, Clone, Default, clap::Args)]
struct Given {
    /// Connection string (postgres:// or key=value); DATABASE_URL works too
    #[arg(long, value_name = "URL", hide_env_values = true, help_heading = "Database")]
    database_url: Option<String>,
    /// File with the connection string; keeps the password out of the environment
    #[arg(long, value_name = "FILE", help_heading = "Database")]
    database_url_file: Option<PathBuf>,
}

/// The options of every command that needs the database.
#[derive(Debug, Clone, Default)]
pub struct DatabaseArgs(Given);

impl clap::Args for DatabaseArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        Given::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Given::augment_args_for_update(command)
    }
}

impl FromArgMatches for DatabaseArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Given::from_arg_matches(matches)?;
        given.database_url = given.database_url.filter(|_| !file_wins(matches));
        Ok(Self(given))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl DatabaseArgs {
    /// The connection string: `--database-url`, else `--database-url-file`, else `DATABASE_URL`.
    ///
    /// # Errors
    /// If there is none, or it cannot be read; the text names only the offending part, never the whole string.
    pub fn settings(&self) -> Result<Settings, Error> {
        let settings = database_settings(self.0.database_url.as_deref(), self.0.database_url_file.as_deref())?;
        settings
            .ok_or_else(|| Error::Usage("no database: give --database-url, --database-url-file or DATABASE_URL".into()))
    }

    /// Connects, for a command.
    ///
    /// # Errors
    /// As [`settings`](Self::settings), and if connecting fails.
    pub fn connect(&self) -> Result<Connection, Error> {
        Connection::open(&self.settings()?, "signal-feed").doing("connect to the database")
    }
}
