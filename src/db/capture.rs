//! Whether writes to `signal` reach the log: checked while the feed runs.

use super::{Connection, Error, inspect};

/// Why writes to `signal` do not reach the log, or why the log can be changed; `None` if capture is on.
///
/// Only reads, so it works on a hot standby too. There it checks the triggers alone: the outbox is not replicated, and
/// only the primary knows the counter's row at the time of a write.
///
/// # Errors
/// If the queries fail.
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
