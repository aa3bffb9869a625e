//! The error that ends a command or the server's start, with its exit code.

mod database;

use std::fmt;
use std::io;

use tokio_postgres::error::SqlState;

pub use database::DatabaseError;
pub(crate) use database::NEEDS_SESSIONS;

/// Why a command failed. The text is one line with the whole cause, and never holds a secret.
#[derive(Debug)]
pub enum Error {
    /// A flag, an environment variable or a value in one is wrong, or `status` reaches no server there: exit code 2.
    Usage(String),
    /// The command failed; the text gives the whole cause: exit code 1.
    Failed(String),
    /// The feed refuses the key, and will refuse it again: exit code 77 (sysexits: EX_NOPERM).
    Refused(String),
    /// A database call failed while doing something: exit code 1.
    Database {
        /// What the program was doing, as a verb phrase.
        doing: String,
        /// The call's error.
        cause: DatabaseError,
    },
}

impl Error {
    /// The process's exit code for this error (contract, section 2).
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Refused(_) => 77,
            Self::Failed(_) | Self::Database { .. } => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Failed(text) | Self::Refused(text) => f.write_str(text),
            Self::Database { doing, cause } => write!(f, "{doing}: {cause}{}", advice(cause)),
        }
    }
}

impl std::error::Error for Error {}

/// Advice, if the database's own message has none.
fn advice(cause: &DatabaseError) -> &'static str {
    match cause.sql_state().map(SqlState::code) {
        // undefined_table, invalid_schema_name (PostgreSQL documentation, appendix A).
        Some("42P01" | "3F000") => "; run \"signal-feed migrate\" first",
        // insufficient_privilege
        Some("42501") => {
            "; serve needs the role signal_feed_server, key, quarantine, prune, doctor and restored need signal_feed_admin, \
             trader-bot --recovery signal_feed_bot, and migrate a superuser or the owner with CREATEROLE"
        }
        _ => "",
    }
}

/// Adds to an error what the program was doing.
pub trait Doing<T> {
    /// Turns the call's error into an [`Error`] that begins with `doing`, a verb phrase.
    ///
    /// # Errors
    /// The error it was given, wrapped.
    fn doing(self, doing: impl Into<String>) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, DatabaseError> {
    fn doing(self, doing: impl Into<String>) -> Result<T, Error> {
        self.map_err(|cause| Error::Database { doing: doing.into(), cause })
    }
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: impl Into<String>) -> Result<T, Error> {
        self.map_err(|cause| Error::Failed(format!("{}: {cause}", doing.into())))
    }
}
