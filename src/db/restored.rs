//! After a restore or a failover: numbering continues above the numbers that lost events may have had.

use super::{Connection, Error};

/// Skips `skip` numbers, and records the range as history and the present cluster and database as the log's own.
///
/// Returns the first and the last number that was skipped.
///
/// # Errors
/// If the database refuses (no right, nothing to skip, beyond 2^53) or is lost.
pub(crate) fn skip(connection: &mut Connection, skip: i64) -> Result<(i64, i64), Error> {
    let row = connection
        .query_one("select r.from_seq, r.to_seq from stock_market.signal_feed_restored($1::bigint) as r", &[&skip])?;
    Ok((row.get(0), row.get(1)))
}

/// Records the present cluster, timeline and database as the log's own: nothing was lost.
pub(crate) fn nothing_lost(connection: &mut Connection) -> Result<(), Error> {
    connection.query("select stock_market.signal_feed_nothing_lost()", &[])?;
    Ok(())
}
