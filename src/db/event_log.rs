//! Reads the log: pages of rows, its state, its head for delayed keys, and the start of the replay window.

use tokio_postgres::types::{FromSql, Type};

use super::{Connection, Error};
use crate::event::{EventTime, FeedSeq, LARGEST_BLOCK_BYTES, LogRow, too_large};

/// A row whose value is larger than this, 16 KiB, as it is stored or as text, is read by a statement of its own. So the
/// first statement of a page never returns more than this for each of its rows, however well the values are compressed.
const LARGE_ROW_BYTES: i32 = 16 * 1024;

/// The state of the log in one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogState {
    /// The highest number that the log ever held; 0 if it never held any.
    pub head: FeedSeq,
    /// The time of the row with that number, if the log still has it.
    pub head_time: Option<EventTime>,
    /// The highest number that prune has removed; 0 for none.
    pub pruned_through: FeedSeq,
    pub counter: FeedSeq,
    pub now: EventTime,
    pub is_standby: bool,
    /// The time of the row that was asked for, if the log has it.
    pub known_time: Option<EventTime>,
}

/// Text as the server sent it, UTF-8 or not.
struct RawText<'a>(&'a [u8]);

impl<'a> FromSql<'a> for RawText<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT
    }
}

/// Makes a connection read the log only by its indexes: the planner's statistics of a log that grows and is pruned
/// mislead.
pub(crate) fn read_by_index(connection: &mut Connection) -> Result<(), Error> {
    connection.batch("set enable_seqscan = off; set enable_bitmapscan = off; set max_parallel_workers_per_gather = 0")
}

/// Reads the state of the log, and the time of the row `known`: if it changed, the log was replaced.
///
/// # Errors
/// See [`Error`]; [`Error::Incomplete`] while a restore has yet to add the primary key, which it does after the rows.
pub(crate) fn read_state(connection: &mut Connection, known: FeedSeq) -> Result<LogState, Error> {
    let row = connection.query_one(
        "select coalesce(top.feed_seq, 0), top.event_time, pruned.pruned_through, \
                (select value from stock_market.signal_feed_counter order by value desc limit 1), clock_timestamp(), \
                (select event_time from stock_market.signal_feed_event where feed_seq = $1), \
                pg_catalog.pg_is_in_recovery(), \
                exists (select from pg_catalog.pg_constraint \
                        where conrelid = 'stock_market.signal_feed_event'::pg_catalog.regclass and contype = 'p') \
         from (select max(pruned_through) as pruned_through from stock_market.signal_feed_pruned) as pruned \
         left join lateral (select feed_seq, event_time from stock_market.signal_feed_event \
                            where feed_seq > pruned.pruned_through order by feed_seq desc limit 1) as top on true",
        &[&known.0],
    )?;
    if !row.try_get(7)? {
        return Err(Error::Incomplete("the log has no primary key yet: a restore is not complete".into()));
    }
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

/// Finds where the newest `events` rows begin, fewer if they take more than `bytes` as they are stored: the number
/// before the first of them. A row that is stored in more than 2,000 bytes counts sixteen times, because it may be
/// compressed (PostgreSQL documentation, 65.2).
pub(crate) fn read_recent_start(
    connection: &mut Connection,
    events: i64,
    bytes: i64,
) -> Result<Option<FeedSeq>, Error> {
    let row = connection.query_one(
        "select min(recent.feed_seq) - 1 \
         from (select feed_seq, \
                      sum(pg_column_size(signal) * case when pg_column_size(signal) > 2000 then 16 else 1 end) \
                          over (order by feed_seq desc) as bytes \
               from stock_market.signal_feed_event order by feed_seq desc limit $1) as recent \
         where recent.bytes <= $2",
        &[&events, &bytes],
    )?;
    Ok(row.try_get::<_, Option<i64>>(0)?.map(FeedSeq))
}

/// Reads the time of one row; `None` if the log does not have it, or prune counts it as gone.
pub(crate) fn read_time(connection: &mut Connection, seq: FeedSeq) -> Result<Option<EventTime>, Error> {
    let rows = connection.query(
        "select event_time from stock_market.signal_feed_event \
         where feed_seq = $1 and feed_seq > (select max(pruned_through) from stock_market.signal_feed_pruned)",
        &[&seq.0],
    )?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    /// The rows above this number.
    pub after: FeedSeq,
    /// And not above this one.
    pub upto: FeedSeq,
    /// For a delayed key: the row `upto` must have a usable time that is not later than this.
    pub due: EventTime,
}

impl Range {
    pub(crate) fn after(after: FeedSeq) -> Self {
        Self { after, upto: FeedSeq(i64::MAX), due: EventTime(i64::MAX) }
    }
}

/// Rows of the log, read in one snapshot.
#[derive(Debug)]
pub(crate) struct Page {
    pub rows: Vec<LogRow>,
    /// Whether the log may have more rows in the range.
    pub is_full: bool,
    /// The number of the log row before the first row, pruned rows included; 0 if there is none.
    pub prev: FeedSeq,
    /// The highest number that prune has removed; 0 for none.
    pub pruned_through: FeedSeq,
    /// The time of the row with the number after which the page was read, if the log has it.
    pub time_after: Option<EventTime>,
    /// Whether the log has the last row of the range, with a usable time that is not later than [`Range::due`].
    pub is_due: bool,
}

/// Reads at most `most_rows` rows of a range, and stops when their text passes `most_bytes`; one row may pass it alone.
/// If `most_rows` is 1 and the row cannot be read, the reason becomes its poison.
///
/// # Errors
/// See [`Error`]. If it [is a fault of the data](Error::is_fault_of_data), one row of the page causes it: read fewer
/// rows. A single row whose signal cannot be read is no error; one whose other columns cannot be read is.
pub(crate) fn read_page(
    connection: &mut Connection,
    range: Range,
    most_rows: i64,
    most_bytes: usize,
) -> Result<Page, Error> {
    match read_rows(connection, range, most_rows, most_bytes, None) {
        Err(error) if most_rows == 1 && error.is_fault_of_data() => {
            let sql_state = error.sql_state().map_or("unknown", |state| state.code());
            read_rows(connection, range, most_rows, most_bytes, Some(sql_state))
        }
        outcome => outcome,
    }
}

/// `unreadable` is the SQLSTATE of an earlier try: then it reads only the numbers and times.
fn read_rows(
    connection: &mut Connection,
    range: Range,
    most_rows: i64,
    most_bytes: usize,
    unreadable: Option<&str>,
) -> Result<Page, Error> {
    // The first row describes the log, so that an empty page does too. A row without a signal may have a recorded
    // reason (`capture was off`), which consumers get.
    let found = connection.query(
        "with pruned as materialized \
             (select coalesce(max(pruned_through), 0) as through from stock_market.signal_feed_pruned) \
         select greatest((select max(feed_seq) from stock_market.signal_feed_event where feed_seq <= $1), \
                         (select through from pruned)), \
                (select event_time from stock_market.signal_feed_event where feed_seq = $1), \
                (select through::text from pruned), null, \
                (select event_time <= $3 and event_time >= '0001-01-01 00:00:00+00' \
                 from stock_market.signal_feed_event where feed_seq = $2), null \
         union all \
         select feed_seq, event_time, op, case when octet_length(text) <= $5 then text end, is_null, \
                case when is_null then (select error from stock_market.signal_feed_quarantine as q \
                                        where q.feed_seq = page.feed_seq) end \
         from (select feed_seq, event_time, case when $6 then op end as op, $6 and signal is null as is_null, \
                      case when $6 and pg_column_size(signal) <= $5 then signal::text end as text \
               from stock_market.signal_feed_event \
               where feed_seq > greatest($1, (select through from pruned)) and feed_seq <= $2 \
               order by feed_seq limit $4) as page",
        &[&range.after.0, &range.upto.0, &range.due, &most_rows, &LARGE_ROW_BYTES, &unreadable.is_none()],
    )?;
    let first = found.first().ok_or(Error::Closed)?;
    let pruned_through: &str = first.try_get(2)?;
    let mut page = Page {
        rows: Vec::with_capacity(found.len() - 1),
        is_full: i64::try_from(found.len() - 1) == Ok(most_rows),
        prev: FeedSeq(first.try_get(0)?),
        pruned_through: FeedSeq(pruned_through.parse().unwrap_or(0)),
        time_after: first.try_get(1)?,
        is_due: first.try_get::<_, Option<bool>>(4)?.unwrap_or(false),
    };
    let mut bytes = 0;
    for row in &found[1..] {
        if bytes >= most_bytes && !page.rows.is_empty() {
            page.is_full = true;
            break;
        }
        let (seq, time) = (FeedSeq(row.try_get(0)?), row.try_get(1)?);
        let text: Option<RawText<'_>> = row.try_get(3)?;
        let signal = match (unreadable, text) {
            (Some(sql_state), _) => Err(format!("the row cannot be read (SQLSTATE {sql_state})")),
            (None, Some(text)) => Ok(text.0.to_vec()),
            (None, None) if row.try_get(4)? => {
                let recorded: Option<String> = row.try_get(5)?;
                Err(recorded.unwrap_or_else(|| "the row could not be converted to JSON".to_owned()))
            }
            (None, None) => match read_large_row(connection, seq, time)? {
                Some(signal) => signal,
                // Removed or replaced since the first statement: the next page will show it.
                None => {
                    page.is_full = true;
                    break;
                }
            },
        };
        bytes += signal.as_ref().map_or(0, Vec::len);
        let op: Option<RawText<'_>> = row.try_get(2)?;
        let op = op.map_or(String::new(), |op| String::from_utf8_lossy(op.0).into_owned());
        page.rows.push(LogRow { seq, time, op, signal });
    }
    Ok(page)
}

/// Reads the signal of a row that is still there with this time.
fn read_large_row(
    connection: &mut Connection,
    seq: FeedSeq,
    time: EventTime,
) -> Result<Option<Result<Vec<u8>, String>>, Error> {
    let limit = i64::try_from(LARGEST_BLOCK_BYTES).unwrap_or(i64::MAX);
    let rows = connection.query(
        "select octet_length(rendered.signal)::bigint, \
                case when octet_length(rendered.signal) <= $2::bigint then rendered.signal end \
         from (select signal::text as signal from stock_market.signal_feed_event \
               where feed_seq = $1 and event_time = $3 offset 0) as rendered",
        &[&seq.0, &limit, &time],
    )?;
    let Some(row) = rows.first() else { return Ok(None) };
    let text: Option<RawText<'_>> = row.try_get(1)?;
    Ok(Some(match text {
        Some(text) => Ok(text.0.to_vec()),
        None => Err(too_large(row.try_get::<_, i64>(0)?)),
    }))
}

/// Whether a number is one that `restored` skipped: only a lost event can have had it.
pub(crate) fn is_skipped(connection: &mut Connection, seq: FeedSeq) -> Result<bool, Error> {
    let query = "select exists (select from stock_market.signal_feed_skipped where $1 between from_seq and to_seq)";
    Ok(connection.query_one(query, &[&seq.0])?.try_get(0)?)
}

/// The head of a delayed key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DueHead {
    /// The highest number with a usable time that is due, or that prune has removed; 0 for none.
    pub seq: FeedSeq,
    pub time: Option<EventTime>,
    /// The earliest time that is not due yet, if there is one.
    pub next_due: Option<EventTime>,
}

/// Reads the head at the time `due`. Looks at the newest thousand rows that are due and at the row `known`: a row with
/// an older time and a higher number than all of those exists only if the clock was set back.
pub(crate) fn read_due_head(connection: &mut Connection, due: EventTime, known: FeedSeq) -> Result<DueHead, Error> {
    let row = connection.query_one(
        "with newest as materialized \
             ((select feed_seq, event_time from stock_market.signal_feed_event \
               where event_time <= $1 and event_time >= '0001-01-01 00:00:00+00' order by event_time desc limit 1000) \
              union all \
              (select feed_seq, event_time from stock_market.signal_feed_event \
               where feed_seq = $2 and event_time <= $1 and event_time >= '0001-01-01 00:00:00+00')) \
         select pruned.through, top.feed_seq, top.event_time, \
                (select event_time from stock_market.signal_feed_event \
                 where event_time > $1 and event_time < '10000-01-01 00:00:00+00' order by event_time limit 1) \
         from (select coalesce(max(pruned_through), 0) as through from stock_market.signal_feed_pruned) as pruned \
         left join lateral (select feed_seq, event_time from newest where feed_seq > pruned.through \
                            order by feed_seq desc limit 1) as top on true",
        &[&due, &known.0],
    )?;
    let pruned_through = FeedSeq(row.try_get(0)?);
    let (seq, time) = match row.try_get::<_, Option<i64>>(1)? {
        Some(seq) => (FeedSeq(seq), row.try_get(2)?),
        None => (pruned_through, None),
    };
    Ok(DueHead { seq, time, next_due: row.try_get(3)? })
}

/// The row at which the replay window begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowStart {
    pub seq: FeedSeq,
    /// The number of the log row before it, pruned rows included; 0 if there is none.
    pub prev: FeedSeq,
}

/// Finds the row with the earliest usable time from `begin` on and no number above `head`; of rows with equal times the
/// one with the lowest number. `None` if there is no such row.
///
/// Times later than `due` are looked for only in the newest thousand rows up to `head`: rows above it, which have such
/// times, must not cost anything. Only a clock that was set back gives one to a row below.
///
/// A commit of many rows gives all of them one time, and the index does not order those by number. So the query takes
/// the lowest number of a hundred of them, and then looks from the last row before `begin` on for a lower one.
pub(crate) fn read_window_start(
    connection: &mut Connection,
    begin: EventTime,
    due: EventTime,
    head: FeedSeq,
) -> Result<Option<WindowStart>, Error> {
    let rows = connection.query(
        "with pruned as materialized \
             (select coalesce(max(pruned_through), 0) as through from stock_market.signal_feed_pruned), \
         first as materialized \
             (select coalesce( \
                 (select event_time from stock_market.signal_feed_event \
                  where event_time >= $1 and event_time <= $3 and event_time < '10000-01-01 00:00:00+00' \
                    and feed_seq > (select through from pruned) and feed_seq <= $2 order by event_time limit 1), \
                 (select min(event_time) from (select event_time from stock_market.signal_feed_event \
                     where feed_seq > (select through from pruned) and feed_seq <= $2 \
                     order by feed_seq desc limit 1000) as newest \
                  where event_time > $3 and event_time < '10000-01-01 00:00:00+00')) as event_time), \
         lowest as materialized \
             (select min(feed_seq) as seq from (select feed_seq from stock_market.signal_feed_event \
              where event_time = (select event_time from first) and feed_seq > (select through from pruned) \
                and feed_seq <= $2 order by event_time limit 100) as equal), \
         before as materialized \
             (select greatest(max(feed_seq), (select through from pruned)) as seq \
              from (select feed_seq from stock_market.signal_feed_event \
                    where event_time < $1 order by event_time desc limit 100) as older), \
         start as materialized \
             (select coalesce((select feed_seq from stock_market.signal_feed_event \
                               where feed_seq > before.seq and feed_seq < lowest.seq \
                                 and event_time is not distinct from (select event_time from first) \
                               order by feed_seq limit 1), lowest.seq) as seq from lowest, before) \
         select start.seq, greatest((select max(feed_seq) from stock_market.signal_feed_event where feed_seq < start.seq), \
                                    (select through from pruned)) \
         from start where start.seq is not null",
        &[&begin, &head.0, &due],
    )?;
    rows.first()
        .map(|row| Ok(WindowStart { seq: FeedSeq(row.try_get(0)?), prev: FeedSeq(row.try_get(1)?) }))
        .transpose()
}

/// The events that a client lost because its queue overflowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overflow {
    pub events: i64,
    pub from: FeedSeq,
    pub to: FeedSeq,
}

/// Which events above `cursor` do not fit into a queue for the newest `capacity` events up to `head`; `None` if all do.
pub(crate) fn read_overflow(
    connection: &mut Connection,
    cursor: FeedSeq,
    head: FeedSeq,
    capacity: i64,
) -> Result<Option<Overflow>, Error> {
    let row = connection.query_one(
        "select count(*), min(feed_seq), max(feed_seq) from stock_market.signal_feed_event \
         where feed_seq > $1 and feed_seq <= (select feed_seq from stock_market.signal_feed_event \
                                              where feed_seq > $1 and feed_seq <= $2 \
                                              order by feed_seq desc offset $3 limit 1)",
        &[&cursor.0, &head.0, &capacity],
    )?;
    let Some(from) = row.try_get::<_, Option<i64>>(1)? else { return Ok(None) };
    Ok(Some(Overflow { events: row.try_get(0)?, from: FeedSeq(from), to: FeedSeq(row.try_get(2)?) }))
}

pub(crate) fn read_feed_id(connection: &mut Connection) -> Result<String, Error> {
    Ok(connection.query_one("select feed_id::text from stock_market.signal_feed_identity", &[])?.try_get(0)?)
}
