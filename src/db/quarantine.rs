//! The table of events that cannot be delivered.

use std::collections::BTreeSet;

use super::{Connection, Error};
use crate::event::{EventTime, FeedSeq};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quarantined {
    pub seq: FeedSeq,
    pub error: String,
    /// When the server found it.
    pub at: EventTime,
    pub is_settled: bool,
}

/// Records events, each with its error, unless they are recorded already.
pub(crate) fn record(connection: &mut Connection, seqs: &[FeedSeq], errors: &[&str]) -> Result<(), Error> {
    let seqs: Vec<i64> = seqs.iter().map(|seq| seq.0).collect();
    connection.execute(
        "insert into stock_market.signal_feed_quarantine (feed_seq, error) \
         select * from unnest($1::bigint[], $2::text[]) on conflict do nothing",
        &[&seqs, &errors],
    )?;
    Ok(())
}

/// Which of these events are recorded already.
pub(crate) fn recorded(connection: &mut Connection, seqs: &[FeedSeq]) -> Result<BTreeSet<FeedSeq>, Error> {
    let seqs: Vec<i64> = seqs.iter().map(|seq| seq.0).collect();
    let rows = connection
        .query("select feed_seq from stock_market.signal_feed_quarantine where feed_seq = any($1)", &[&seqs])?;
    rows.iter().map(|row| Ok(FeedSeq(row.try_get(0)?))).collect()
}

pub(crate) fn count_unsettled(connection: &mut Connection) -> Result<u64, Error> {
    let query = "select count(*) from stock_market.signal_feed_quarantine where settled_at is null";
    let count: i64 = connection.query_one(query, &[])?.try_get(0)?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Reads all quarantined events, ascending.
pub(crate) fn read_all(connection: &mut Connection) -> Result<Vec<Quarantined>, Error> {
    let rows = connection.query(
        "select feed_seq, error, quarantined_at, settled_at is not null from stock_market.signal_feed_quarantine order by feed_seq",
        &[],
    )?;
    let read = |row: &tokio_postgres::Row| {
        Ok(Quarantined {
            seq: FeedSeq(row.try_get(0)?),
            error: row.try_get(1)?,
            at: row.try_get(2)?,
            is_settled: row.try_get(3)?,
        })
    };
    rows.iter().map(read).collect()
}

/// Marks an event as dealt with. Returns whether it is quarantined at all; to settle it again changes nothing.
pub(crate) fn settle(connection: &mut Connection, seq: FeedSeq) -> Result<bool, Error> {
    let settled = connection.execute(
        "update stock_market.signal_feed_quarantine set settled_at = coalesce(settled_at, clock_timestamp()) where feed_seq = $1",
        &[&seq.0],
    )?;
    Ok(settled > 0)
}
