//! What `doctor` looks at: the whole installation, each part with what to do about it.

use std::thread;
use std::time::Duration;

use super::cluster::{self, Cluster};
use super::{Connection, Error, capture, inspect, migrate, standby};

/// The newest events whose times are looked at.
const TIMES_LOOKED_AT: i64 = 10_000;
/// How far an event may lie ahead of the database's clock before that clock is said to have jumped back.
const CLOCK_SLACK: &str = "1 second";
/// From this age a session that holds back vacuum is a fault and not only named.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How long one transaction may hold the feed's lock: a commit of some hundred thousand rows.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// The share of PostgreSQL's notification queue from which commits are in danger.
const QUEUE_LIMIT: f64 = 0.25;
/// How long a notification to oneself may take.
const LISTEN_PATIENCE: Duration = Duration::from_secs(5);

/// The outcome of one check.
#[derive(Debug, Clone)]
pub struct Check {
    /// Its name, for scripts.
    pub check: &'static str,
    /// Whether all is well.
    pub ok: bool,
    /// What was found.
    pub message: String,
    /// What to do, where something is wrong.
    pub fix: Option<String>,
}

/// The outcome of a check before it has its name.
struct Verdict {
    ok: bool,
    message: String,
    fix: Option<String>,
}

fn well(message: impl Into<String>) -> Verdict {
    Verdict { ok: true, message: message.into(), fix: None }
}

fn wrong(message: impl Into<String>, fix: impl Into<String>) -> Verdict {
    Verdict { ok: false, message: message.into(), fix: Some(fix.into()) }
}

type Examiner = fn(&mut Connection) -> Result<Verdict, Error>;

/// Those that write or lock nothing and mean something on a hot standby too.
const EVERYWHERE: [(&str, Examiner); 8] = [
    ("triggers", triggers),
    ("immutability", immutability),
    ("owners", owners),
    ("privileges", privileges),
    ("log", log),
    ("clock", clock),
    ("fsync", fsync),
    ("snapshots", snapshots),
];

/// Those that only a primary can be asked.
const ON_PRIMARY: [(&str, Examiner); 6] = [
    ("cluster", cluster),
    ("installation", installation),
    ("outbox", outbox),
    ("listen", listen),
    ("notify_queue", notify_queue),
    ("lock", lock),
];

/// Those that only a hot standby can be asked. What writes there, or is recorded there, its primary is asked.
const ON_STANDBY: [(&str, Examiner); 1] = [("standby", replication)];

/// Runs every check, in order. What cannot be asked is a failed check, never an error of the whole.
pub fn examine(connection: &mut Connection) -> Vec<Check> {
    let mut checks = Vec::new();
    let schema = match migrate::check_schema(connection) {
        Ok(()) => well(format!("schema {}", migrate::known_version())),
        Err(crate::error::Error::Failed(text)) => {
            // It ends with the command that helps.
            let (what, help) = text.rsplit_once(": ").unwrap_or((&text, MIGRATE));
            wrong(what, help)
        }
        Err(error) => wrong(error.to_string(), "run doctor as a member of signal_feed_admin, in the feed's database"),
    };
    let usable = schema.ok;
    checks.push(named("schema", schema));
    if !usable {
        return checks;
    }
    let further: &[(&str, Examiner)] =
        if standby::is_standby(connection).unwrap_or_default() { &ON_STANDBY } else { &ON_PRIMARY };
    for (check, examiner) in EVERYWHERE.iter().chain(further) {
        let verdict = examiner(connection).unwrap_or_else(|error| {
            wrong(
                format!("cannot be asked: {error}"),
                "run doctor as a member of signal_feed_admin; where a right is missing, run \"signal-feed migrate\"",
            )
        });
        checks.push(named(check, verdict));
    }
    checks
}

fn named(check: &'static str, verdict: Verdict) -> Check {
    Check { check, ok: verdict.ok, message: verdict.message, fix: verdict.fix }
}

const MIGRATE: &str = "run \"signal-feed migrate\"";

fn triggers(connection: &mut Connection) -> Result<Verdict, Error> {
    let faults: Vec<String> = capture::trigger_faults(connection)?
        .into_iter()
        .filter(|fault| fault.captures)
        .map(|fault| fault.text)
        .collect();
    Ok(if faults.is_empty() {
        well("every write of signal is captured and numbered")
    } else {
        wrong(
            format!("capture is off: {}", faults.join("; ")),
            "run \"signal-feed migrate\": it puts capture on and tells the consumers that they have missed something",
        )
    })
}

fn immutability(connection: &mut Connection) -> Result<Verdict, Error> {
    let faults: Vec<String> = capture::trigger_faults(connection)?
        .into_iter()
        .filter(|fault| !fault.captures)
        .map(|fault| fault.text)
        .collect();
    Ok(if faults.is_empty() {
        well("the log refuses every change")
    } else {
        wrong(format!("the log can be changed: {}", faults.join("; ")), MIGRATE)
    })
}

fn owners(connection: &mut Connection) -> Result<Verdict, Error> {
    let faults = inspect::ownership(connection)?;
    Ok(if faults.is_empty() {
        well("tables and functions belong to the feed's own roles")
    } else {
        wrong(faults.join("; "), MIGRATE)
    })
}

fn privileges(connection: &mut Connection) -> Result<Verdict, Error> {
    let grants = inspect::grants(connection)?;
    if !grants.missing.is_empty() {
        return Ok(wrong(grants.missing.join("; "), MIGRATE));
    }
    let dangerous: Vec<String> =
        grants.strange.iter().filter(|(_, dangerous)| *dangerous).map(|(text, _)| text.clone()).collect();
    if !dangerous.is_empty() {
        return Ok(wrong(dangerous.join("; "), "revoke it, unless you know why it is there"));
    }
    let logins = inspect::logins_with_power(connection)?;
    let mut message = "every role has its rights and no more".to_owned();
    if !logins.is_empty() {
        message = format!("{message}; may act as the feed's owner: {}", logins.join(", "));
    }
    for (text, _) in grants.strange {
        message = format!("{message}; {text}");
    }
    Ok(well(message))
}

/// Everything else that migrate would put right.
fn installation(connection: &mut Connection) -> Result<Verdict, Error> {
    if let Some(why) = inspect::refusal(connection)? {
        return Ok(wrong(why, "put that right; until then migrate refuses this database"));
    }
    let faults: Vec<String> = inspect::faults(connection)?.into_iter().map(|fault| fault.text).collect();
    if !faults.is_empty() {
        return Ok(wrong(faults.join("; "), MIGRATE));
    }
    Ok(well(inspect::remarks(connection)?.join("; ")))
}

fn log(connection: &mut Connection) -> Result<Verdict, Error> {
    for table in ["signal_feed_identity", "signal_feed_pruned"] {
        if connection.query_opt(&format!("select from stock_market.{table}"), &[])?.is_none() {
            return Ok(wrong(format!("the table stock_market.{table} has no row"), MIGRATE));
        }
    }
    // One statement, so one snapshot: the counter and the log change in one commit.
    let row = connection.query_one(
        "with base as (
            select greatest(coalesce(i.counter_start, 0), p.pruned_through) as start,
                coalesce(i.counter_start, 0) as counter_start, p.pruned_through
            from stock_market.signal_feed_identity as i cross join stock_market.signal_feed_pruned as p
        ), events as (
            select count(*) as rows, max(e.feed_seq) as last from stock_market.signal_feed_event as e
            where e.feed_seq > (select b.start from base as b)
        ), skipped as (
            select coalesce(max(s.to_seq), 0) as last, coalesce(sum(case
                    when s.to_seq > b.start and s.to_seq <= coalesce((select e.last from events as e), 0)
                    then s.to_seq - greatest(s.from_seq, b.start + 1) + 1 end), 0)::bigint as numbers
            from base as b left join stock_market.signal_feed_skipped as s on true
        )
        select b.start, e.rows, coalesce(e.last, b.start), s.numbers,
            greatest(
                coalesce((select max(l.feed_seq) from stock_market.signal_feed_event as l), 0),
                b.pruned_through, b.counter_start, s.last),
            (select c.value from stock_market.signal_feed_counter as c order by c.value desc limit 1),
            (select count(*) from stock_market.signal_feed_counter)
        from base as b cross join events as e cross join skipped as s",
        &[],
    )?;
    let (start, rows, last, skipped): (i64, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
    let (should, value, counters): (i64, Option<i64>, i64) = (row.get(4), row.get(5), row.get(6));
    let Some(value) = value else {
        return Ok(wrong("the counter has no row: signals cannot be written", MIGRATE));
    };
    let restored = "was the log restored, or changed by hand? run \"signal-feed restored\", which lets the numbers go on above every number in doubt";
    if counters != 1 {
        return Ok(wrong(
            format!("the counter has {counters} rows, of which {value} is the highest"),
            format!("as a superuser: delete from stock_market.signal_feed_counter where value < {value}"),
        ));
    }
    if value < should {
        return Ok(wrong(
            format!("the counter stands at {value}, behind {should}: signals cannot be written"),
            restored,
        ));
    }
    if value > should {
        return Ok(wrong(format!("the counter stands at {value}, ahead of {should}: events were lost"), restored));
    }
    if rows + skipped != last - start {
        let hole = connection.query_opt(
            "select h.feed_seq, h.before from (
                select e.feed_seq, coalesce(lag(e.feed_seq) over (order by e.feed_seq), $1) as before
                from stock_market.signal_feed_event as e where e.feed_seq > $1) as h
            where h.feed_seq <> h.before + 1
                and not exists (select from stock_market.signal_feed_skipped as s
                    where s.from_seq <= h.before + 1 and s.to_seq >= h.feed_seq - 1)
            order by h.feed_seq limit 1",
            &[&start],
        )?;
        let place = hole.map_or_else(
            || format!("{rows} events from {} to {last}", start + 1),
            |row| format!("numbers {} to {} are missing", row.get::<_, i64>(1) + 1, row.get::<_, i64>(0) - 1),
        );
        return Ok(wrong(
            format!("the log has a hole after the counter's start: {place}"),
            "somebody deleted events by hand, or the log was damaged; consumers that have not had them are not told: \
             let such bots start with --recovery once; this goes away when prune has removed the log up to there",
        ));
    }
    Ok(well(format!("{rows} events without a hole from {} on; the counter stands at {value}", start + 1)))
}

fn clock(connection: &mut Connection) -> Result<Verdict, Error> {
    let ahead = connection.query_opt(
        &format!(
            "select e.feed_seq, e.event_time::text from stock_market.signal_feed_event as e
                where e.event_time > clock_timestamp() + interval '{CLOCK_SLACK}' and e.event_time < '10000-01-01 00:00:00+00'
                order by e.event_time desc limit 1"
        ),
        &[],
    )?;
    if let Some(row) = ahead {
        return Ok(wrong(
            format!(
                "event {} has the time {}, which is still to come: the clock jumped back",
                row.get::<_, i64>(0),
                row.get::<_, String>(1)
            ),
            "see to the clock (NTP); until it has caught up, replay windows and delayed keys are off by the difference",
        ));
    }
    let back = connection.query_opt(
        "select t.feed_seq, (t.before - t.event_time)::text from (
            select e.feed_seq, e.event_time, lag(e.event_time) over (order by e.feed_seq) as before
            from (select l.feed_seq, l.event_time from stock_market.signal_feed_event as l
                order by l.feed_seq desc limit $1) as e
            where e.event_time < '10000-01-01 00:00:00+00' and e.event_time >= '0001-01-01 00:00:00+00') as t
        where t.event_time < t.before order by t.feed_seq desc limit 1",
        &[&TIMES_LOOKED_AT],
    )?;
    Ok(back.map_or_else(
        || well("times rise along the log, and none is still to come"),
        |row| {
            wrong(
                format!("the clock jumped back by {} before event {}", row.get::<_, String>(1), row.get::<_, i64>(0)),
                "see to the clock (NTP: slew, never step); this goes away as the log moves on",
            )
        },
    ))
}

fn fsync(connection: &mut Connection) -> Result<Verdict, Error> {
    let row = connection
        .query_one("select current_setting('fsync')::boolean, current_setting('full_page_writes')::boolean", &[])?;
    Ok(if !row.get::<_, bool>(0) {
        wrong(
            "fsync is off: a crash of the machine can lose events that were delivered, and give their numbers to others",
            "set fsync = on in postgresql.conf and reload",
        )
    } else if !row.get::<_, bool>(1) {
        wrong(
            "full_page_writes is off: a crash of the machine can damage the log",
            "set full_page_writes = on in postgresql.conf and reload, unless the file system never tears a page",
        )
    } else {
        well("fsync and full_page_writes are on")
    })
}

/// Who keeps vacuum from cleaning up: named always, a fault where it lasts.
fn snapshots(connection: &mut Connection) -> Result<Verdict, Error> {
    let rows = connection.query(
        "select h.who, extract(epoch from h.age)::float8, h.fix from (
            select pg_catalog.format('session %s of %s (%s, %s)', a.pid, coalesce(a.usename, '?'),
                    coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, '?')) as who,
                clock_timestamp() - coalesce(a.xact_start, clock_timestamp()) as age,
                pg_catalog.format('end its transaction, or: select pg_terminate_backend(%s)', a.pid) as fix
            from pg_catalog.pg_stat_activity as a
            where a.pid <> pg_backend_pid() and a.datname = current_database() and a.backend_type = 'client backend'
                -- A transaction that has written holds vacuum back as a snapshot does.
                and (a.backend_xmin is not null or a.backend_xid is not null)
            union all
            select pg_catalog.format('replication slot %s (%s)', s.slot_name,
                    case when s.active then 'active' else 'nobody reads it' end),
                case when s.active then interval '0' else interval '1 day' end,
                pg_catalog.format('if nobody needs it: select pg_drop_replication_slot(%L)', s.slot_name)
            from pg_catalog.pg_replication_slots as s where s.xmin is not null
            union all
            select pg_catalog.format('prepared transaction %L of %s', p.gid, p.owner), clock_timestamp() - p.prepared,
                pg_catalog.format('commit prepared or rollback prepared %L', p.gid)
            from pg_catalog.pg_prepared_xacts as p where p.database = current_database()
            union all
            select pg_catalog.format('standby %s (hot_standby_feedback)', coalesce(nullif(r.application_name, ''), r.client_addr::text)),
                interval '0', 'end the long query there'
            from pg_catalog.pg_stat_replication as r where r.backend_xmin is not null
        ) as h order by h.age desc limit 5",
        &[],
    )?;
    let unseen = unseen(connection)?;
    let Some(oldest) = rows.first() else {
        return Ok(well(format!("nobody is seen to hold an old snapshot{unseen}")));
    };
    let names: Vec<String> = rows
        .iter()
        .map(|row| {
            let seconds: f64 = row.get(1);
            let age = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
            format!("{} for {}", row.get::<_, String>(0), crate::text::duration(Duration::from_secs(age.as_secs())))
        })
        .collect();
    let message = format!("held back by {}{unseen}", names.join(", "));
    if oldest.get::<_, f64>(1) < SNAPSHOT_PATIENCE.as_secs_f64() {
        return Ok(well(message));
    }
    Ok(wrong(message, oldest.get::<_, String>(2)))
}

/// What is to be added where PostgreSQL hides from this login what other sessions do.
fn unseen(connection: &mut Connection) -> Result<&'static str, Error> {
    let sees: bool = connection.query_one("select pg_catalog.pg_has_role('pg_read_all_stats', 'usage')", &[])?.get(0);
    Ok(if sees { "" } else { "; other roles' sessions cannot be seen: grant pg_monitor to signal_feed_admin" })
}

fn cluster(connection: &mut Connection) -> Result<Verdict, Error> {
    let fix = "if anything may be lost: \"signal-feed restored\"; if surely nothing is: \"signal-feed restored --nothing-lost\"";
    Ok(match cluster::compare(connection)? {
        Cluster::Unrecorded => wrong("the cluster was never recorded", MIGRATE),
        Cluster::Changed(how) => wrong(how, fix),
        Cluster::Same(which) => well(which),
    })
}

/// That this is a standby, how far behind, and whether it hears from its primary.
fn replication(connection: &mut Connection) -> Result<Verdict, Error> {
    let reading = standby::read(connection)?;
    let Some(standby) = reading.standby else { return Ok(well("a primary, since a moment ago")) };
    if let Some(trouble) = standby.trouble(reading.now, true) {
        return Ok(wrong(
            format!("a hot standby: {trouble}"),
            "see that the primary runs and that the standby reaches it (primary_conninfo, the standby's log); a feed here is degraded until then",
        ));
    }
    let age = standby.replayed_commit.map_or_else(
        || "no commit replayed since it started".to_owned(),
        |at| {
            let age = Duration::from_millis(u64::try_from(reading.now.since(at).as_millis()).unwrap_or(u64::MAX));
            format!("the last commit that it replayed is {} old", crate::text::duration(age))
        },
    );
    let lag = if standby.is_caught_up() { "it has replayed all that it knows of" } else { "it is behind" };
    let mut message = format!("a hot standby, which streams; {lag}; {age}");
    if standby.receiver == standby::Receiver::Streaming(None) {
        message.push_str(
            "; it cannot be seen when its primary was last heard: grant pg_read_all_stats to signal_feed_owner, on the primary",
        );
    } else if standby.is_slow_to_notice() {
        message.push_str(
            "; set wal_receiver_timeout = 8s here: an idle primary cannot be told from a silent one within 10 s",
        );
    }
    Ok(well(message))
}

fn outbox(connection: &mut Connection) -> Result<Verdict, Error> {
    Ok(if capture::has_leftovers(connection)? {
        wrong("the outbox holds events that were committed and never numbered", MIGRATE)
    } else {
        well("nothing is left in the outbox")
    })
}

fn listen(connection: &mut Connection) -> Result<Verdict, Error> {
    let pid: i32 = connection.query_one("select pg_backend_pid()", &[])?.get(0);
    let channel = format!("signal_feed_doctor_{pid}");
    connection.batch(&format!("listen {channel}"))?;
    connection.batch(&format!("notify {channel}"))?;
    let came = connection.wait_notification(LISTEN_PATIENCE)?.is_some();
    connection.batch(&format!("unlisten {channel}"))?;
    Ok(if came {
        well("a notification to oneself comes back")
    } else {
        wrong(
            format!("a notification to oneself did not come back in {}", crate::text::duration(LISTEN_PATIENCE)),
            "connect to PostgreSQL itself: a pooler in transaction mode (PgBouncer) swallows notifications",
        )
    })
}

fn notify_queue(connection: &mut Connection) -> Result<Verdict, Error> {
    let usage: f64 = connection.query_one("select pg_catalog.pg_notification_queue_usage()", &[])?.get(0);
    let holder = connection.query_opt(
        "select pg_catalog.format('session %s of %s (%s, %s, since %s)', a.pid, coalesce(a.usename, '?'),
                coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, '?'), a.xact_start)
            from pg_catalog.pg_stat_activity as a
            where a.backend_type = 'client backend' and a.pid <> pg_backend_pid() and a.xact_start is not null
            order by a.xact_start limit 1",
        &[],
    )?;
    let share = format!("the notification queue is {:.1} % full", usage * 100.0);
    if usage < QUEUE_LIMIT {
        return Ok(well(share));
    }
    let who = holder.map_or_else(
        || "no open transaction is to be seen".to_owned(),
        |row| format!("the oldest open transaction is {}", row.get::<_, String>(0)),
    );
    let unseen = unseen(connection)?;
    Ok(wrong(
        format!("{share}; {who}{unseen}"),
        "end the session that LISTENs and sits in an old transaction: when the queue is full every notifying commit fails",
    ))
}

/// Who sits on the feed's lock: named, and a fault where it is not just a commit.
fn lock(connection: &mut Connection) -> Result<Verdict, Error> {
    let mut seen = lock_holders(connection)?;
    if !seen.is_empty() {
        thread::sleep(LOCK_PATIENCE);
        let now = lock_holders(connection)?;
        seen.retain(|(who, pid, start)| {
            let _ = who;
            now.iter().any(|(_, other, other_start)| pid == other && start == other_start)
        });
    }
    Ok(match seen.first() {
        None => well("nobody sits on the feed's lock"),
        Some((who, pid, _)) => wrong(
            format!("{who} holds the feed's lock: every commit of a signal waits for it"),
            format!(
                "end its transaction, or: select pg_terminate_backend({pid}); give the screener an idle_in_transaction_session_timeout"
            ),
        ),
    })
}

fn lock_holders(connection: &mut Connection) -> Result<Vec<(String, i32, String)>, Error> {
    let rows = connection.query(
        "select pg_catalog.format('session %s of %s (%s, %s)', l.pid, coalesce(a.usename, '?'),
                coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, '?')),
            coalesce(l.pid, 0), coalesce(a.xact_start::text, '')
            from pg_catalog.pg_locks as l left join pg_catalog.pg_stat_activity as a on a.pid = l.pid
            where l.granted and l.locktype = 'relation'
                and l.mode not in ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
                and l.relation = 'stock_market.signal_feed_lock'::regclass
                and l.database = (select d.oid from pg_catalog.pg_database as d where d.datname = current_database())",
        &[],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}
