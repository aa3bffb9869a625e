//! The database options of commands.

use std::path::PathBuf;

use crate::db::{Connection, Settings};
use crate::error::{Doing, Error};
use crate::options::database_settings;

/// The options of every command that needs the database.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct DatabaseArgs {
    /// Connection string (postgres:// or key=value); DATABASE_URL works too
    #[arg(long, value_name = "URL", hide_env_values = true, help_heading = "Database")]
    database_url: Option<String>,
    /// File with the connection string; keeps the password out of the environment
    #[arg(long, value_name = "FILE", help_heading = "Database")]
    database_url_file: Option<PathBuf>,
}

impl DatabaseArgs {
    /// The connection string: `--database-url`, else `--database-url-file`, else `DATABASE_URL`.
    ///
    /// # Errors
    /// If there is none, or it cannot be read; the text names only the offending part, never the whole string.
    pub fn settings(&self) -> Result<Settings, Error> {
        database_settings(self.database_url.as_deref(), self.database_url_file.as_deref())?
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
