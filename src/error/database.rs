//! The errors of database calls.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tokio_postgres::error::SqlState;

use crate::text::{duration, one_line};

/// How PostgreSQL must be reached. Said wherever a fault shows that it is not.
pub(crate) const NEEDS_SESSIONS: &str = "connect to PostgreSQL directly, or through a proxy that pools sessions: a PgBouncer in \
                                  transaction mode loses LISTEN and prepared statements";

/// Why a database call failed. Only after [`DatabaseError::Postgres`] with an SQLSTATE can the connection be used
/// again.
#[derive(Debug)]
pub enum DatabaseError {
    /// No server can be reached: what is wrong with the connection string (only the offending part is named, never a
    /// secret), or each attempt and why it failed.
    Unreachable(String),
    /// The database has no feed, not all of it yet, or something in its place: what is missing or wrong.
    Incomplete(String),
    /// The call was not answered in time; whether it took effect is unknown.
    TimedOut(Duration),
    /// The caller gave the call up; see [`Connection::watch`](crate::db::Connection::watch).
    GivenUp,
    /// An earlier call lost this connection.
    Closed,
    /// The server's error, or the connection's.
    Postgres(tokio_postgres::Error),
}

impl DatabaseError {
    /// The server's error code, if the server answered with one.
    pub fn sql_state(&self) -> Option<&SqlState> {
        match self {
            Self::Postgres(error) => error.code(),
            _ => None,
        }
    }

    /// Whether only the statement failed and the connection is still usable: the server's answer did not end the
    /// session.
    pub fn is_statement_error(&self) -> bool {
        match self {
            Self::Postgres(error) => error.as_db_error().is_some_and(|db| !matches!(db.severity(), "FATAL" | "PANIC")),
            _ => false,
        }
    }

    /// Whether the data that was read is at fault, so that a retry would fail too.
    ///
    /// Never so for the classes of connection (08), prepared statement (26), concurrency (40), missing objects and rights
    /// (42), resources (53), operator (57) and system (58): PostgreSQL documentation, appendix A.
    pub fn is_fault_of_data(&self) -> bool {
        let is_elsewhere = |class: &str| matches!(class, "08" | "26" | "40" | "42" | "53" | "57" | "58");
        self.is_statement_error() && self.sql_state().is_some_and(|state| !is_elsewhere(&state.code()[..2]))
    }

    /// Whether the answer came from another session than the one that prepared the statement, or from one in which somebody
    /// else prepared statements. PostgreSQL itself never does that to a connection, a proxy that pools transactions does.
    fn is_of_another_session(&self) -> bool {
        self.sql_state()
            .is_some_and(|state| [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT].contains(state))
    }
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(text) | Self::Incomplete(text) => f.write_str(text),
            Self::TimedOut(after) => write!(f, "no answer from PostgreSQL within {}", duration(*after)),
            Self::GivenUp => f.write_str("the call was given up"),
            Self::Closed => f.write_str("the connection was lost in an earlier call"),
            Self::Postgres(error) => match error.as_db_error() {
                // Without the server's text: it names another statement each time.
                Some(db) if self.is_of_another_session() => {
                    write!(f, "another session answered (SQLSTATE {}): {NEEDS_SESSIONS}", db.code().code())
                }
                // The driver's own text is only "db error".
                Some(db) => {
                    write!(f, "{} (SQLSTATE {})", one_line(db.message()), db.code().code())?;
                    if let Some(detail) = db.detail() {
                        write!(f, ": {}", one_line(detail))?;
                    }
                    if let Some(hint) = db.hint() {
                        write!(f, "; {}", one_line(hint))?;
                    }
                    Ok(())
                }
                None => {
                    let mut text = error.to_string();
                    for cause in std::iter::successors(error.source(), |&cause| cause.source()) {
                        let cause = one_line(&cause.to_string());
                        // Some errors already end with their cause.
                        if !text.contains(&cause) {
                            text.push_str(&format!(": {cause}"));
                        }
                    }
                    f.write_str(&text)
                }
            },
        }
    }
}

impl std::error::Error for DatabaseError {}
