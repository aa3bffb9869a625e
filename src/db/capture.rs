//! Whether writes to `signal` reach the log: checked while the feed runs.

use super::{Connection, Error, inspect, standby};

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
    if !standby::is_standby(connection)? {
        // Rows of open transactions are not visible here, and a commit normally leaves none.
        let row = connection.query_one(
            "select exists (select from stock_market.signal_feed_counter),
                exists (select from signal_feed_private.signal_feed_first)
                or exists (select from signal_feed_private.signal_feed_outbox)",
            &[],
        )?;
        if !row.get::<_, bool>(0) {
            faults.push("the counter has no row: signals cannot be written".into());
        }
        if row.get(1) {
            faults.push("the outbox holds events that were committed and never numbered".into());
        }
    }
    Ok(if faults.is_empty() { None } else { Some(faults.join("; ")) })
}
