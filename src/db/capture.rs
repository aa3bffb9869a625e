//! Whether what is written to `signal` reaches the log: looked at while the feed runs.

use super::{Connection, Error};

/// A trigger that the feed stands on.
struct Trigger {
    table: &'static str,
    name: &'static str,
    function: &'static str,
    /// The bits of `pg_trigger.tgtype`: 1 row, 2 before, 4 insert, 8 delete, 16 update, 32 truncate.
    kind: i16,
    deferred: bool,
}

/// As `sql/0004_log.sql` makes them.
const TRIGGERS: [Trigger; 5] = [
    Trigger {
        table: "signal",
        name: "!signal_feed_capture",
        function: "signal_feed_capture",
        kind: 21,
        deferred: false,
    },
    Trigger {
        table: "signal_feed_first",
        name: "signal_feed_gather",
        function: "signal_feed_gather",
        kind: 21,
        deferred: true,
    },
    Trigger {
        table: "signal_feed_first",
        name: "signal_feed_number",
        function: "signal_feed_number",
        kind: 9,
        deferred: true,
    },
    Trigger {
        table: "signal_feed_event",
        name: "signal_feed_refuse_row",
        function: "signal_feed_refuse",
        kind: 27,
        deferred: false,
    },
    Trigger {
        table: "signal_feed_event",
        name: "signal_feed_refuse_statement",
        function: "signal_feed_refuse",
        kind: 50,
        deferred: false,
    },
];

/// One trigger that is not as it should be.
pub(super) struct TriggerFault {
    pub(super) text: String,
    /// It captures or numbers: without it signals do not reach the log. The others guard the log.
    pub(super) captures: bool,
}

/// Every trigger of the feed, on the table and on each of its partitions, that is missing, another or not ENABLE ALWAYS.
pub(super) fn trigger_faults(connection: &mut Connection) -> Result<Vec<TriggerFault>, Error> {
    let tables = TRIGGERS.map(|trigger| trigger.table);
    let names = TRIGGERS.map(|trigger| trigger.name);
    let functions = TRIGGERS.map(|trigger| trigger.function);
    let kinds = TRIGGERS.map(|trigger| trigger.kind);
    let deferred = TRIGGERS.map(|trigger| trigger.deferred);
    let rows = connection.query(
        "select s.tab <> 'signal_feed_event', s.verdict from (
            select w.tab, w.nth, case
                when c.oid is null then pg_catalog.format('the table stock_market.%s is missing', w.tab)
                when t.oid is null then pg_catalog.format('the trigger %I on %s is missing', w.name, part.relid::regclass)
                when p.proname <> w.func or n.nspname <> 'stock_market' or not p.prosecdef
                    or t.tgtype <> w.kind or t.tgdeferrable <> w.deferred or t.tginitdeferred <> w.deferred
                    or t.tgqual is not null or (t.tgattr::text <> '') <> (w.kind = 21 and w.deferred)
                    then pg_catalog.format('the trigger %I on %s is not the feed''s own', w.name, part.relid::regclass)
                when t.tgenabled = 'D'
                    then pg_catalog.format('the trigger %I on %s is disabled', w.name, part.relid::regclass)
                when t.tgenabled <> 'A'
                    then pg_catalog.format('the trigger %I on %s is not ENABLE ALWAYS', w.name, part.relid::regclass)
                end as verdict
            from unnest($1::text[], $2::text[], $3::text[], $4::int2[], $5::bool[])
                with ordinality as w (tab, name, func, kind, deferred, nth)
            left join pg_catalog.pg_namespace as s on s.nspname = 'stock_market'
            left join pg_catalog.pg_class as c on c.relnamespace = s.oid and c.relname = w.tab
            left join lateral (
                select c.oid as relid union select r.relid from pg_catalog.pg_partition_tree(c.oid) as r
            ) as part on true
            left join pg_catalog.pg_trigger as t on t.tgrelid = part.relid and t.tgname = w.name
            left join pg_catalog.pg_proc as p on p.oid = t.tgfoid
            left join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
        ) as s
        where s.verdict is not null order by s.nth, s.verdict",
        &[&tables.as_slice(), &names.as_slice(), &functions.as_slice(), &kinds.as_slice(), &deferred.as_slice()],
    )?;
    Ok(rows.iter().map(|row| TriggerFault { captures: row.get(0), text: row.get(1) }).collect())
}

/// Rows that a commit left in the outbox: they were captured and never numbered. Not to be asked on a standby.
pub(super) fn has_leftovers(connection: &mut Connection) -> Result<bool, Error> {
    // Rows of open transactions are not visible here, and a commit leaves none.
    Ok(connection.query_one("select exists (select from stock_market.signal_feed_first) or exists (select from stock_market.signal_feed_outbox)", &[])?.get(0))
}

/// What keeps signals from reaching the log, or the log from being immutable; `None` where capture is on.
///
/// Reads only, so it works on a hot standby too. There the triggers alone are looked at: the outbox is not replicated, and
/// what the counter's row is when a signal is written, only the primary knows.
///
/// # Errors
/// Where the database cannot be asked.
pub fn capture_fault(connection: &mut Connection) -> Result<Option<String>, Error> {
    let mut faults: Vec<String> = trigger_faults(connection)?.into_iter().map(|fault| fault.text).collect();
    let row = connection.query_one(
        "select exists (select from stock_market.signal_feed_counter), pg_catalog.pg_is_in_recovery()",
        &[],
    )?;
    let is_primary = !row.get::<_, bool>(1);
    if is_primary && !row.get::<_, bool>(0) {
        faults.push("the counter has no row: signals cannot be written".into());
    }
    if is_primary && has_leftovers(connection)? {
        faults.push("the outbox holds events that were committed and never numbered".into());
    }
    Ok(if faults.is_empty() { None } else { Some(faults.join("; ")) })
}
