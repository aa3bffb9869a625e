//! After a restore or a failover: letting the numbers jump over what the lost future may have used.

use super::{Connection, Error};

/// Skips `skip` numbers, records the range as history and the present cluster as the right one.
///
/// Returns the first and the last number that was skipped.
///
/// # Errors
/// Where the database refuses (no right, nothing to skip, beyond 2^63) or is lost.
pub fn skip(connection: &mut Connection, skip: i64) -> Result<(i64, i64), Error> {
    let row = connection
        .query_one("select r.from_seq, r.to_seq from stock_market.signal_feed_restored($1) as r", &[&skip])?;
    Ok((row.get(0), row.get(1)))
}

/// Records the present cluster and timeline as the ones the log lives on: nothing was lost.
///
/// # Errors
/// Where the database refuses or is lost.
pub fn nothing_lost(connection: &mut Connection) -> Result<(), Error> {
    connection.query("select stock_market.signal_feed_nothing_lost()", &[])?;
    Ok(())
}
