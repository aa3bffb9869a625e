//! Whether what is written to `signal` reaches the log: asked while the feed runs.

use super::{Connection, Error, inspect};

/// What keeps signals from reaching the log, or the log from being immutable; `None` where capture is on.
///
/// Reads only, so it works on a hot standby too. There it looks at the triggers alone: the outbox is not replicated, and
/// only the primary knows what the counter's row is when a signal is written.
///
/// # Errors
/// Where the database cannot be asked.
pub fn capture_fault(connection: &mut Connection) -> Result<Option<String>, Error> {
    let mut faults: Vec<String> = inspect::trigger_faults(connection)?
        .into_iter()
        .filter(|fault| fault.check == "triggers" || fault.check == "immutability")
        .map(|fault| fault.text)
        .collect();
    let row = connection.query_one(
        "select exists (select from stock_market.signal_feed_counter), pg_catalog.pg_is_in_recovery()",
        &[],
    )?;
    let is_primary = !row.get::<_, bool>(1);
    if is_primary && !row.get::<_, bool>(0) {
        faults.push("the counter has no row: signals cannot be written".into());
    }
    if is_primary && inspect::has_leftovers(connection)? {
        faults.push("the outbox holds events that were committed and never numbered".into());
    }
    Ok(if faults.is_empty() { None } else { Some(faults.join("; ")) })
}
