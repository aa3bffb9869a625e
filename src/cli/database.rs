//! Which database a command works on.

use std::path::PathBuf;

use crate::config::database_settings;
use crate::db::{Connection, Settings};
use crate::error::{Doing, Error};

/// The options of every command that needs the database.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DatabaseArgs {
    /// Connection string (postgres:// or key=value); DATABASE_URL works too
    #[arg(
        long,
        value_name = "URL",
        env = "SIGNAL_FEED_DATABASE_URL",
        hide_env_values = true,
        help_heading = "Database"
    )]
    pub database_url: Option<String>,
    /// File with the connection string, for those who keep secrets out of the environment
    #[arg(long, value_name = "FILE", env = "SIGNAL_FEED_DATABASE_URL_FILE", help_heading = "Database")]
    pub database_url_file: Option<PathBuf>,
}

impl DatabaseArgs {
    /// Where to connect: `--database-url`, else `--database-url-file`, else `DATABASE_URL`.
    ///
    /// # Errors
    /// Where there is none, or it cannot be read; the text names the offending part only, never the whole string.
    pub fn settings(&self) -> Result<Settings, Error> {
        let settings = database_settings(self.database_url.as_deref(), self.database_url_file.as_deref())?;
        settings
            .ok_or_else(|| Error::Usage("no database: give --database-url, --database-url-file or DATABASE_URL".into()))
    }

    /// Connects, for a command.
    ///
    /// # Errors
    /// As [`settings`](Self::settings), and whatever connecting fails with.
    pub fn connect(&self) -> Result<Connection, Error> {
        Connection::open(&self.settings()?, "signal-feed").doing("connect to the database")
    }
}
