//! Reading the log: pages of rows, where it stands, what lies before a cursor.

use std::borrow::Cow;

use tokio_postgres::types::{FromSql, Type};

use super::{Connection, Error};
use crate::event::{EventTime, FeedSeq, LARGEST_BLOCK_BYTES, LogRow, Poison};

/// A row whose stored value is larger is read alone, 16 KiB: compressed values grow, and a page must not.
const LARGE_ROW_BYTES: i32 = 16 * 1024;

/// Where the log stands, read in one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogState {
    /// The highest number the log ever held; 0 for a log that never held any.
    pub head: FeedSeq,
    /// The time of the row with that number, where the log still has it.
    pub head_time: Option<EventTime>,
    /// The highest number that prune has removed; 0 for none.
    pub pruned_through: FeedSeq,
    /// The last number allocated.
    pub counter: FeedSeq,
    /// The database's clock.
    pub now: EventTime,
    /// Whether the database is a hot standby.
    pub is_standby: bool,
    /// The time of the row that was asked for, where the log has it.
    pub known_time: Option<EventTime>,
}

/// What the log says of a cursor, read in one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CursorPlace {
    /// The number of the last row at or below the cursor, pruned ones included; 0 where there is none.
    pub row_at_or_below: FeedSeq,
    /// The time of the row with the cursor's very number, where the log has it.
    pub time: Option<EventTime>,
    /// The end of the skipped range that the cursor lies in (`signal-feed restored`).
    pub skipped_to: Option<FeedSeq>,
    /// Whether prune has removed everything up to the cursor.
    pub is_pruned: bool,
}

/// Text as the server sent it, whether or not it is UTF-8.
struct RawText<'a>(&'a [u8]);

impl<'a> FromSql<'a> for RawText<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT
    }
}

/// Reads where the log stands, and the time of the row `known`, whose absence or change tells of another history.
///
/// # Errors
/// See [`Error`].
pub fn read_state(connection: &mut Connection, known: FeedSeq) -> Result<LogState, Error> {
    let row = connection.query_one(
        "select coalesce(top.feed_seq, 0), top.event_time, pruned.pruned_through, \
                (select value from stock_market.signal_feed_counter order by value desc limit 1), clock_timestamp(), \
                (select event_time from stock_market.signal_feed_event where feed_seq = $1), \
                pg_catalog.pg_is_in_recovery() \
         from (select max(pruned_through) as pruned_through from stock_market.signal_feed_pruned) as pruned \
         left join lateral (select feed_seq, event_time from stock_market.signal_feed_event \
                            where feed_seq > pruned.pruned_through order by feed_seq desc limit 1) as top on true",
        &[&known.0],
    )?;
    let pruned_through = FeedSeq(row.try_get::<_, Option<i64>>(2)?.unwrap_or(0));
    Ok(LogState {
        head: FeedSeq(row.try_get(0)?).max(pruned_through),
        head_time: row.try_get(1)?,
        pruned_through,
        counter: FeedSeq(row.try_get::<_, Option<i64>>(3)?.unwrap_or(0)),
        now: row.try_get(4)?,
        known_time: row.try_get(5)?,
        is_standby: row.try_get(6)?,
    })
}

/// Finds where the newest `events` rows begin, fewer where they hold more than `bytes`: the number before the first of them.
///
/// # Errors
/// See [`Error`].
pub fn read_recent_start(connection: &mut Connection, events: i64, bytes: i64) -> Result<Option<FeedSeq>, Error> {
    let row = connection.query_one(
        "select min(recent.feed_seq) - 1 \
         from (select feed_seq, sum(pg_column_size(signal)) over (order by feed_seq desc) as bytes \
               from stock_market.signal_feed_event order by feed_seq desc limit $1) as recent \
         where recent.bytes <= $2",
        &[&events, &bytes],
    )?;
    Ok(row.try_get::<_, Option<i64>>(0)?.map(FeedSeq))
}

/// Reads the database's clock.
///
/// # Errors
/// See [`Error`].
pub fn read_clock(connection: &mut Connection) -> Result<EventTime, Error> {
    Ok(connection.query_one("select clock_timestamp()", &[])?.try_get(0)?)
}

/// Reads the time of one row; `None` where the log does not have it.
///
/// # Errors
/// See [`Error`].
pub fn read_time(connection: &mut Connection, seq: FeedSeq) -> Result<Option<EventTime>, Error> {
    let row =
        connection.query_opt("select event_time from stock_market.signal_feed_event where feed_seq = $1", &[&seq.0])?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// Reads what the log says of a cursor.
///
/// # Errors
/// See [`Error`].
pub fn read_place(connection: &mut Connection, cursor: FeedSeq) -> Result<CursorPlace, Error> {
    let row = connection.query_one(
        "select greatest( \
                    (select max(feed_seq) from stock_market.signal_feed_event where feed_seq <= $1), \
                    (select least(max(pruned_through), $1) from stock_market.signal_feed_pruned), 0), \
                (select event_time from stock_market.signal_feed_event \
                 where feed_seq = $1 and feed_seq > (select max(pruned_through) from stock_market.signal_feed_pruned)), \
                (select max(to_seq) from stock_market.signal_feed_skipped where $1 between from_seq and to_seq), \
                coalesce((select max(pruned_through) >= $1 from stock_market.signal_feed_pruned), false)",
        &[&cursor.0],
    )?;
    Ok(CursorPlace {
        row_at_or_below: FeedSeq(row.try_get(0)?),
        time: row.try_get(1)?,
        skipped_to: row.try_get::<_, Option<i64>>(2)?.map(FeedSeq),
        is_pruned: row.try_get(3)?,
    })
}

/// Rows of the log above a cursor.
#[derive(Debug)]
pub struct Page {
    /// The rows, ascending.
    pub rows: Vec<LogRow>,
    /// Whether the log may have more rows above the last.
    pub full: bool,
    /// The highest number that prune has removed; meaningless where there are no rows.
    pub pruned_through: FeedSeq,
    /// The time of the row that the page was read after, where the log has it; meaningless where there are no rows.
    pub anchor: Option<EventTime>,
}

impl Page {
    fn empty() -> Self {
        Self { rows: Vec::new(), full: false, pruned_through: FeedSeq(0), anchor: None }
    }
}

/// Reads at most `limit` rows above `after` and not above `upto`. Rows that prune counts as gone are not read.
///
/// # Errors
/// See [`Error`]. Where it [is a fault of the data](Error::is_fault_of_data), one row of the page is to blame: read fewer at a time.
pub fn read_page(connection: &mut Connection, after: FeedSeq, upto: FeedSeq, limit: i64) -> Result<Page, Error> {
    let found = connection.query(
        "select feed_seq, event_time, op, \
                case when pg_column_size(signal) <= $4 then signal::text end, signal is null, \
                (select max(pruned_through) from stock_market.signal_feed_pruned), \
                (select event_time from stock_market.signal_feed_event where feed_seq = $1) \
         from stock_market.signal_feed_event \
         where feed_seq > greatest($1, (select max(pruned_through) from stock_market.signal_feed_pruned)) \
           and feed_seq <= $2 \
         order by feed_seq limit $3",
        &[&after.0, &upto.0, &limit, &LARGE_ROW_BYTES],
    )?;
    let mut page = Page::empty();
    let mut rows = Vec::with_capacity(found.len());
    for row in &found {
        let seq = FeedSeq(row.try_get(0)?);
        let text: Option<RawText<'_>> = row.try_get(3)?;
        let signal = match text {
            Some(text) => Ok(text.0.to_vec()),
            None if row.try_get(4)? => Err(Poison::NullSignal),
            None => read_large_row(connection, seq)?,
        };
        rows.push(LogRow { seq, time: row.try_get(1)?, op: operation(row.try_get(2)?), signal });
    }
    if let Some(any) = found.last() {
        page.pruned_through = FeedSeq(any.try_get::<_, Option<i64>>(5)?.unwrap_or(0));
        page.anchor = any.try_get(6)?;
    }
    recall_quarantine(connection, &mut rows)?;
    page.full = i64::try_from(rows.len()) == Ok(limit);
    page.rows = rows;
    Ok(page)
}

/// Without an allocation for the two that there are; a log of the sequence era may say anything.
fn operation(op: RawText<'_>) -> Cow<'static, str> {
    match op.0 {
        b"INSERT" => Cow::Borrowed("INSERT"),
        b"UPDATE" => Cow::Borrowed("UPDATE"),
        other => Cow::Owned(String::from_utf8_lossy(other).into_owned()),
    }
}

/// Reads one row by itself; whatever of it cannot be read is its poison.
///
/// # Errors
/// See [`Error`]: the connection's faults, and those of the data that are not the row's own.
pub fn read_single(connection: &mut Connection, after: FeedSeq, upto: FeedSeq) -> Result<Page, Error> {
    let error = match read_page(connection, after, upto, 1) {
        Err(error) if error.is_fault_of_data() => error,
        outcome => return outcome,
    };
    let sql_state = error.sql_state().map_or("unknown", |state| state.code()).to_owned();
    // Everything but the row itself must be readable, or it is not this event's fault.
    let found = connection.query_opt(
        "select feed_seq, event_time, (select max(pruned_through) from stock_market.signal_feed_pruned), \
                (select event_time from stock_market.signal_feed_event where feed_seq = $1) \
         from stock_market.signal_feed_event \
         where feed_seq > greatest($1, (select max(pruned_through) from stock_market.signal_feed_pruned)) \
           and feed_seq <= $2 \
         order by feed_seq limit 1",
        &[&after.0, &upto.0],
    )?;
    let Some(row) = found else { return Ok(Page::empty()) };
    let poisoned = LogRow {
        seq: FeedSeq(row.try_get(0)?),
        time: row.try_get(1)?,
        op: Cow::Borrowed(""),
        signal: Err(Poison::Unreadable { sql_state }),
    };
    Ok(Page {
        rows: vec![poisoned],
        full: true,
        pruned_through: FeedSeq(row.try_get::<_, Option<i64>>(2)?.unwrap_or(0)),
        anchor: row.try_get(3)?,
    })
}

fn read_large_row(connection: &mut Connection, seq: FeedSeq) -> Result<Result<Vec<u8>, Poison>, Error> {
    let limit = i64::try_from(LARGEST_BLOCK_BYTES).unwrap_or(i64::MAX);
    let row = connection.query_opt(
        "select octet_length(rendered.signal)::bigint, \
                case when octet_length(rendered.signal) <= $2::bigint then rendered.signal end \
         from (select signal::text as signal from stock_market.signal_feed_event where feed_seq = $1 offset 0) as rendered",
        &[&seq.0, &limit],
    )?;
    // Pruned since the page was read: its number is still part of the page's chain.
    let Some(row) = row else { return Ok(Err(Poison::Recorded("the row was removed by prune".into()))) };
    let text: Option<RawText<'_>> = row.try_get(1)?;
    Ok(match text {
        Some(text) => Ok(text.0.to_vec()),
        None => Err(Poison::TooLarge { bytes: u64::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0) }),
    })
}

/// Rows without a signal may have a reason on record (`capture was off`), which consumers are told.
fn recall_quarantine(connection: &mut Connection, rows: &mut [LogRow]) -> Result<(), Error> {
    let without: Vec<i64> =
        rows.iter().filter(|row| row.signal == Err(Poison::NullSignal)).map(|row| row.seq.0).collect();
    if without.is_empty() {
        return Ok(());
    }
    for known in connection.query(
        "select feed_seq, error from stock_market.signal_feed_quarantine where feed_seq = any($1)",
        &[&without],
    )? {
        let seq = FeedSeq(known.try_get(0)?);
        if let Some(row) = rows.iter_mut().find(|row| row.seq == seq) {
            row.signal = Err(Poison::Recorded(known.try_get(1)?));
        }
    }
    Ok(())
}

/// Reads number and time of at most `limit` rows above `after`, ascending.
///
/// # Errors
/// See [`Error`].
pub fn read_times(connection: &mut Connection, after: FeedSeq, limit: i64) -> Result<Vec<(FeedSeq, EventTime)>, Error> {
    let rows = connection.query(
        "select feed_seq, event_time from stock_market.signal_feed_event \
         where feed_seq > greatest($1, (select max(pruned_through) from stock_market.signal_feed_pruned)) \
         order by feed_seq limit $2",
        &[&after.0, &limit],
    )?;
    rows.iter().map(|row| Ok((FeedSeq(row.try_get(0)?), row.try_get(1)?))).collect()
}

/// Reads the ranges of numbers that `restored` skipped, both ends included.
///
/// # Errors
/// See [`Error`].
pub fn read_skipped(connection: &mut Connection) -> Result<Vec<(FeedSeq, FeedSeq)>, Error> {
    let rows = connection.query("select from_seq, to_seq from stock_market.signal_feed_skipped", &[])?;
    rows.iter().map(|row| Ok((FeedSeq(row.try_get(0)?), FeedSeq(row.try_get(1)?)))).collect()
}

/// Reads the head of a delayed tier: the highest number whose usable time is not later than `due`, or that prune has
/// removed, and its time where the log has it. Reads back over the rows of the delay.
///
/// # Errors
/// See [`Error`].
pub fn read_due_head(connection: &mut Connection, due: EventTime) -> Result<(FeedSeq, Option<EventTime>), Error> {
    let row = connection.query_one(
        "select pruned.pruned_through, top.feed_seq, top.event_time \
         from (select max(pruned_through) as pruned_through from stock_market.signal_feed_pruned) as pruned \
         left join lateral (select feed_seq, event_time from stock_market.signal_feed_event \
                            where feed_seq > pruned.pruned_through and event_time <= $1 \
                              and event_time >= timestamptz '0001-01-01 00:00:00+00' \
                            order by feed_seq desc limit 1) as top on true",
        &[&due],
    )?;
    let pruned_through = FeedSeq(row.try_get::<_, Option<i64>>(0)?.unwrap_or(0));
    match row.try_get::<_, Option<i64>>(1)? {
        Some(seq) => Ok((FeedSeq(seq), row.try_get(2)?)),
        None => Ok((pruned_through, None)),
    }
}

/// Reads this log's identity.
///
/// # Errors
/// See [`Error`].
pub fn read_feed_id(connection: &mut Connection) -> Result<String, Error> {
    Ok(connection.query_one("select feed_id::text from stock_market.signal_feed_identity", &[])?.try_get(0)?)
}
