//! Removes events from the old end of the log, in batches that take no lock a writer could need.

use std::time::Duration;

use super::{Connection, Error, keys};

/// Rows deleted in one transaction: some 50 ms of work.
const BATCH_ROWS: i64 = 5000;
/// Prune never removes an event younger than this.
const LEAST_AGE: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PrunePlan {
    /// Events older than this are removed: as asked for, or longer if clients may replay further back.
    pub older_than: Duration,
    /// The number of the last event to remove; `None` if there is none.
    pub through: Option<i64>,
    /// How many events to remove, the rest of an interrupted prune included.
    pub events: i64,
}

/// Finds what a prune of everything older than `older_than` would remove. Changes nothing.
pub(crate) fn plan(
    connection: &mut Connection,
    older_than: Duration,
    replay_window: Duration,
) -> Result<PrunePlan, Error> {
    let longest =
        "select coalesce(extract(epoch from max(delay)), 0)::float8 from stock_market.signal_feed_api_key where";
    let delay = connection.query_one(&format!("{longest} {}", keys::LIVE), &[])?.get(0);
    let longest_delay = Duration::try_from_secs_f64(delay).unwrap_or(LEAST_AGE);
    let older_than = older_than.max(LEAST_AGE).max(replay_window.max(LEAST_AGE) + longest_delay);
    // The first row that is still too young ends it. A row with an unusable time is as old as the one before it.
    let row = connection.query_one(
        "with young as (
            select e.feed_seq from stock_market.signal_feed_event as e
            where e.event_time > clock_timestamp() - make_interval(secs => $1)
                and e.event_time < '10000-01-01 00:00:00+00'
            order by e.feed_seq limit 1
        ), last as (
            select e.feed_seq from stock_market.signal_feed_event as e
            where not exists (select from young as y) or e.feed_seq < (select y.feed_seq from young as y)
            order by e.feed_seq desc limit 1
        )
        select (select l.feed_seq from last as l),
            (select count(*) from stock_market.signal_feed_event as e where e.feed_seq <= greatest(
                (select l.feed_seq from last as l),
                (select p.pruned_through from stock_market.signal_feed_pruned as p)))",
        &[&older_than.as_secs_f64()],
    )?;
    Ok(PrunePlan { older_than, through: row.get(0), events: row.get(1) })
}

/// Carries out the plan: raises `pruned_through`, then deletes, batch by batch. Returns how many events it removed;
/// `so_far` gets that number after each batch.
///
/// # Errors
/// If the database refuses or is lost; the next prune then removes the rest.
pub(crate) fn run(connection: &mut Connection, plan: &PrunePlan, so_far: &mut dyn FnMut(u64)) -> Result<u64, Error> {
    if let Some(through) = plan.through {
        connection.query("select stock_market.signal_feed_prune_to($1::bigint)", &[&through])?;
    }
    let mut removed = 0;
    // Where the last batch ended: the dead rows below it need not be read again.
    let mut after = -1_i64;
    loop {
        let row = connection.query_one(
            "with doomed as (
                select e.feed_seq from stock_market.signal_feed_event as e
                where e.feed_seq > $1
                    and e.feed_seq <= (select p.pruned_through from stock_market.signal_feed_pruned as p)
                order by e.feed_seq limit $2
            ), gone as (
                delete from stock_market.signal_feed_event as e
                where e.feed_seq in (select d.feed_seq from doomed as d) returning e.feed_seq
            )
            select (select max(d.feed_seq) from doomed as d), (select count(*) from gone)",
            &[&after, &BATCH_ROWS],
        )?;
        let Some(last) = row.get::<_, Option<i64>>(0) else {
            return Ok(removed);
        };
        after = last;
        removed += u64::try_from(row.get::<_, i64>(1)).unwrap_or_default();
        so_far(removed);
    }
}
