//! Installs, upgrades and repairs the schema: the numbered files of `sql/`, and a look at whether all is as they say.
//!
//! Every file may run again. So a repair is: take the lock on `signal`, run them all, in one transaction.

use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio_postgres::error::SqlState;

use super::{Connection, Error as DbError, inspect};
use crate::error::{Doing, Error};

/// The statements that make the feed's roles and their memberships; safe to run again.
pub const ROLES_SQL: &str = include_str!("../../sql/roles.sql");

/// One numbered file of the schema.
pub(super) struct File {
    version: i32,
    name: &'static str,
    pub(super) sql: &'static str,
}

pub(super) const FILES: [File; 4] = [
    File { version: 1, name: "0001_foundation", sql: include_str!("../../sql/0001_foundation.sql") },
    File { version: 2, name: "0002_keys", sql: include_str!("../../sql/0002_keys.sql") },
    File { version: 3, name: "0003_functions", sql: include_str!("../../sql/0003_functions.sql") },
    File { version: 4, name: "0004_log", sql: include_str!("../../sql/0004_log.sql") },
];

/// The newest schema that this program knows.
const KNOWN_VERSION: i32 = FILES[FILES.len() - 1].version;
/// From here on the capture is in place, and being off is a fault.
const CAPTURE_VERSION: i32 = 4;
/// One try for a lock: writers queue behind it at most that long.
const LOCK_TRY: &str = "1s";
/// Between two tries writers go on.
const LOCK_PAUSE: Duration = Duration::from_millis(500);
/// The advisory lock that lets one migrate at a time into a database: the ASCII codes of `sigfeed`.
const ADVISORY_KEY: i64 = 0x0073_6967_6665_6564;
/// Longest time for one statement: on a large log of the sequence era an index is made.
const DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// Two databases of one cluster can meet while they make the roles; then one tries again.
const ROLES_TRIES: u32 = 5;

/// Whether an INSERT also notifies the channel `signal_inserted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignalInserted {
    /// Unless another trigger on `signal` does.
    Auto,
    /// Yes; refused beside another trigger that does.
    On,
    /// No.
    Off,
}

impl SignalInserted {
    /// As it is written on the command line and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// How to migrate.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long to try for the locks before giving up. Default five minutes.
    pub lock_wait: Duration,
    /// What the operator now chooses for `signal_inserted`; `None` keeps what was chosen before.
    pub signal_inserted: Option<SignalInserted>,
}

/// Lifts the deadline of the connection's statements, and takes back what the defaults of a database or a role would make
/// of the schema's files and of what the catalog is asked.
///
/// # Errors
/// Where the database does not answer.
pub fn allow_long_statements(connection: &mut Connection) -> Result<(), Error> {
    connection
        .batch(
            "set statement_timeout = 0; set standard_conforming_strings = on; set quote_all_identifiers = off;
             set default_transaction_isolation = 'read committed'; set default_transaction_read_only = off",
        )
        .doing("prepare the session")?;
    connection.set_deadline(DEADLINE);
    Ok(())
}

/// What is missing or not as it should be, a line each; empty where there is nothing to do. Changes nothing.
///
/// # Errors
/// Where the database cannot be asked, or cannot be migrated at all (the text says why).
pub fn check(connection: &mut Connection, options: &Options) -> Result<Vec<String>, Error> {
    let findings = look(connection, options)?;
    let mut lines: Vec<String> = findings.faults.into_iter().map(|fault| fault.text).collect();
    if let (Some(wanted), Some(chosen)) = (options.signal_inserted, &findings.chosen)
        && wanted.as_str() != chosen
    {
        lines.push(format!("signal_inserted is chosen as {chosen}, not {}", wanted.as_str()));
    }
    Ok(lines)
}

/// Installs, upgrades or repairs the schema. Each line that `say` gets tells one thing that was done or should be known.
///
/// # Errors
/// Whatever kept it from being done; then nothing of the step it names is done.
pub fn migrate(connection: &mut Connection, options: &Options, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let until = Instant::now() + options.lock_wait;
    if !check(connection, options)?.is_empty() {
        make_roles(connection, say)?;
        lock_out_others(connection, until, options)?;
        let outcome = put_right(connection, options, until, say);
        if !connection.is_lost() {
            connection.query("select pg_advisory_unlock($1)", &[&ADVISORY_KEY]).doing("release the migration lock")?;
        }
        outcome?;
        let left = look(connection, options)?.faults;
        if !left.is_empty() {
            let texts: Vec<String> = left.into_iter().map(|fault| fault.text).collect();
            return Err(Error::Failed(format!("migrate could not put right: {}", texts.join("; "))));
        }
    } else {
        say("nothing to do");
    }
    for line in inspect::remarks(connection).doing("look at the installation")? {
        say(&line);
    }
    Ok(())
}

/// What `serve` asks at its start: whether the schema is the one that this program knows.
///
/// # Errors
/// [`Error::Failed`] where it is absent, older or newer, with the command that helps; [`Error::Database`] where the
/// database could not be asked.
pub fn check_schema(connection: &mut Connection) -> Result<(), Error> {
    match installed(connection)?.last().map(|applied| applied.version) {
        None => Err(Error::Failed("the database has no signal-feed schema: run \"signal-feed migrate\" first".into())),
        Some(version) if version < KNOWN_VERSION => Err(Error::Failed(format!(
            "the database has signal-feed schema {version}, older than {KNOWN_VERSION}: run \"signal-feed migrate\" first"
        ))),
        Some(version) => refuse_newer(version),
    }
}

/// The newest schema that this program knows.
pub fn known_version() -> i32 {
    KNOWN_VERSION
}

struct Applied {
    version: i32,
    checksum: String,
}

/// What was applied, lowest first.
fn installed(connection: &mut Connection) -> Result<Vec<Applied>, Error> {
    let doing = "read the schema version";
    if connection
        .query_opt(
            "select from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
             where n.nspname = 'stock_market' and c.relname = 'signal_feed_migration'",
            &[],
        )
        .doing(doing)?
        .is_none()
    {
        return Ok(Vec::new());
    }
    let rows = connection
        .query("select m.version, m.checksum from stock_market.signal_feed_migration as m order by m.version", &[])
        .doing(doing)?;
    Ok(rows.iter().map(|row| Applied { version: row.get(0), checksum: row.get(1) }).collect())
}

fn refuse_newer(version: i32) -> Result<(), Error> {
    if version <= KNOWN_VERSION {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "the database has signal-feed schema {version}, newer than {KNOWN_VERSION}, the newest that this program knows: \
         install the signal-feed release that migrated it"
    )))
}

struct Findings {
    faults: Vec<inspect::Fault>,
    /// What was chosen for `signal_inserted`, where anything is installed.
    chosen: Option<String>,
    /// The files that were not applied yet.
    pending: Vec<&'static File>,
}

fn look(connection: &mut Connection, options: &Options) -> Result<Findings, Error> {
    let doing = "look at the installation";
    if let Some(why) = inspect::refusal(connection).doing(doing)? {
        return Err(Error::Failed(why));
    }
    let applied = installed(connection)?;
    let newest = applied.last().map_or(0, |applied| applied.version);
    refuse_newer(newest)?;
    let mut pending = Vec::new();
    for file in &FILES {
        match applied.iter().find(|applied| applied.version == file.version) {
            None => pending.push(file),
            Some(applied) if applied.checksum != checksum(file) => {
                return Err(Error::Failed(format!(
                    "migration {} was applied from another text (checksum {}): the database was migrated by another \
                     build of signal-feed; use that one",
                    file.name, applied.checksum
                )));
            }
            Some(_) => {}
        }
    }
    let mut faults: Vec<inspect::Fault> =
        pending.iter().map(|file| inspect::Fault::new(format!("migration {} is not applied", file.name))).collect();
    let mut chosen = None;
    let others = inspect::other_notifier(connection).doing(doing)?;
    if newest >= CAPTURE_VERSION {
        faults.append(&mut inspect::faults(connection).doing(doing)?);
        chosen = connection
            .query_opt("select c.signal_inserted from stock_market.signal_feed_choice as c", &[])
            .doing(doing)?
            .map(|row| row.get(0));
    }
    let on = options.signal_inserted.map_or(chosen.as_deref() == Some("on"), |wanted| wanted == SignalInserted::On);
    if on && let Some(name) = others {
        return Err(Error::Failed(format!(
            "--signal-inserted on: the trigger {name} on stock_market.signal notifies that channel already; \
             drop it first, or choose auto"
        )));
    }
    Ok(Findings { faults, chosen, pending })
}

fn checksum(file: &File) -> String {
    Sha256::digest(file.sql).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the roles where one is missing, and hands the runner their memberships where it is no superuser.
fn make_roles(connection: &mut Connection, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
    for attempt in 1.. {
        let missing = inspect::missing_roles(connection).doing("look at the roles")?;
        if missing.is_empty() {
            return Ok(());
        }
        match connection.batch(ROLES_SQL) {
            Ok(()) => say("made the roles and their memberships"),
            Err(error) if error.sql_state() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                return Err(Error::Failed(format!(
                    "cannot make {}: {error}; let a superuser or a role with CREATEROLE run the statements that \
                     \"signal-feed migrate --roles-sql\" prints",
                    missing.join(", ")
                )));
            }
            // Another database of the cluster does the same at this moment.
            Err(error) if attempt < ROLES_TRIES && error.is_statement_error() => thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(error).doing("make the roles"),
        }
    }
    Ok(())
}

fn lock_out_others(connection: &mut Connection, until: Instant, options: &Options) -> Result<(), Error> {
    loop {
        let row = connection
            .query_one("select pg_try_advisory_lock($1)", &[&ADVISORY_KEY])
            .doing("take the migration lock")?;
        if row.get(0) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Error::Failed(format!(
                "take the migration lock: another session held it for {}",
                crate::text::duration(options.lock_wait)
            )));
        }
        thread::sleep(LOCK_PAUSE);
    }
}

fn put_right(
    connection: &mut Connection,
    options: &Options,
    until: Instant,
    say: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    // Another migrate may have done it all while this one waited.
    let findings = look(connection, options)?;
    if findings.pending.is_empty() {
        let rechosen =
            options.signal_inserted.is_some_and(|wanted| findings.chosen.as_deref() != Some(wanted.as_str()));
        if findings.faults.is_empty() && !rechosen {
            return Ok(());
        }
        let mut event = None;
        in_one_transaction(connection, until, options, "repair the installation", say, |connection| {
            connection.batch(TAKE_SIGNAL_LOCK)?;
            for file in &FILES {
                connection.batch(file.sql)?;
                if file.version == 1 {
                    choose(connection, options)?;
                }
            }
            if findings.faults.iter().any(|fault| fault.capture_was_off) {
                event = Some(connection.query_one(APPEND_CAPTURE_WAS_OFF, &[])?.get::<_, i64>(0));
                connection
                    .batch("delete from stock_market.signal_feed_outbox; truncate stock_market.signal_feed_first")?;
            }
            Ok(())
        })?;
        for fault in &findings.faults {
            say(&format!("put right: {}", fault.text));
        }
        if let Some(feed_seq) = event {
            say(&format!(
                "capture was off: signals written meanwhile are not in the log; event {feed_seq} tells the consumers"
            ));
        }
        return Ok(());
    }
    for file in findings.pending {
        in_one_transaction(connection, until, options, &format!("apply migration {}", file.name), say, |connection| {
            if file.version == CAPTURE_VERSION {
                choose(connection, options)?;
            }
            connection.batch(file.sql)?;
            connection.execute(
                "insert into stock_market.signal_feed_migration (version, name, checksum) values ($1, $2, $3)",
                &[&file.version, &file.name, &checksum(file)],
            )?;
            Ok(())
        })?;
        say(&format!("applied {}", file.name));
    }
    Ok(())
}

/// Before anything else that a writer could hold: whoever has written a signal has this lock too.
const TAKE_SIGNAL_LOCK: &str = "do $lock$ begin
    if to_regclass('stock_market.signal') is not null then
        lock table stock_market.signal in share row exclusive mode;
    end if;
end $lock$";

/// The in-band sign that something is missing.
const APPEND_CAPTURE_WAS_OFF: &str = "
    with counted as (
        update stock_market.signal_feed_counter as c set value = c.value + 1
        where c.value = (select l.value from stock_market.signal_feed_counter as l order by l.value desc limit 1)
        returning c.value
    ), appended as (
        insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal)
        select c.value, clock_timestamp(), 'INSERT', null from counted as c
    ), quarantined as (
        insert into stock_market.signal_feed_quarantine (feed_seq, error)
        select c.value, 'capture was off' from counted as c
    )
    select c.value, pg_notify('signal_feed', c.value::text) from counted as c";

fn choose(connection: &mut Connection, options: &Options) -> Result<(), DbError> {
    if let Some(wanted) = options.signal_inserted {
        connection.execute(
            "update stock_market.signal_feed_choice as c set signal_inserted = $1 where c.signal_inserted <> $1",
            &[&wanted.as_str()],
        )?;
    }
    Ok(())
}

/// Runs `work` in a transaction that waits only briefly for each lock, again and again until `until`.
fn in_one_transaction(
    connection: &mut Connection,
    until: Instant,
    options: &Options,
    doing: &str,
    say: &mut dyn FnMut(&str),
    mut work: impl FnMut(&mut Connection) -> Result<(), DbError>,
) -> Result<(), Error> {
    let mut told = false;
    loop {
        // The feed's lock is taken by whoever numbers events, for the length of a commit.
        connection
            .batch(&format!("begin; set local lock_timeout = '{LOCK_TRY}'; set local synchronous_commit = 'on'"))
            .doing(doing)?;
        match work(connection).and_then(|()| connection.batch("commit")) {
            Ok(()) => return Ok(()),
            Err(error) => {
                if !connection.is_lost() {
                    connection.batch("rollback").doing(doing)?;
                }
                let locked =
                    matches!(error.sql_state(), Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED));
                if !locked {
                    return Err(error).doing(doing);
                }
                if Instant::now() >= until {
                    return Err(Error::Failed(format!(
                        "{doing}: a lock could not be had for {}: {error}; look in pg_stat_activity for old transactions, \
                         or give --lock-wait more",
                        crate::text::duration(options.lock_wait)
                    )));
                }
                if !told {
                    told = true;
                    say("waiting for a lock; writers go on between the tries");
                }
                thread::sleep(LOCK_PAUSE);
            }
        }
    }
}
