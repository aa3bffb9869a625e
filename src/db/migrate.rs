//! Installs, upgrades and repairs the schema (`sql/`).
//!
//! All three work the same way: take the lock on `signal`, check that every object with the feed's names is the feed's
//! own, run every file, in one transaction. Every file may run again.

use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio_postgres::error::SqlState;

use super::inspect::{self, Fault};
use super::{Connection, Error as DbError, blockers};
use crate::error::{Doing, Error};

/// The statements that make the feed's roles and their memberships; safe to run again.
pub const ROLES_SQL: &str = include_str!("../../sql/roles.sql");

/// The numbered file that makes the tables. A later release that changes a table adds a file with a new number.
const TABLES: &str = include_str!("../../sql/0005_tables.sql");
const TABLES_NAME: &str = "0005_tables";
/// Owners, rows, grants and triggers: safe to run again at any time.
const INSTALL: &str = include_str!("../../sql/install.sql");

/// The newest schema that this program knows.
pub(super) const KNOWN_VERSION: i32 = 5;
/// The migrations of earlier releases, by number, and the SHA-256 of each. [`TABLES`] moves over what they made.
const EARLIER: [&str; 4] = [
    "ac2b0b8beebd6169006dbc27d72f874ad1a8de8ca92f63ffc6467a18c6923283",
    "1f60db37805490ebe185d01b7cf63691b5df7377a560e09f6547d87a775254d0",
    "483a0126fe1c07382345aa54515ae083c9cb4a1b1c681f9fcecd20c11ac73a8c",
    "c188affc054e84652ad5f568e93a87b4c9e8616edd0d49ab5570ed9fa4944a29",
];
/// From this migration on capture must be on.
const EARLIER_CAPTURE_VERSION: i32 = 4;
/// One try for a lock: writers queue behind it for this long at most.
const LOCK_TRY: &str = "1s";
/// The pause between two tries, in which writers continue.
const LOCK_PAUSE: Duration = Duration::from_millis(500);
/// The advisory lock that allows one migrate at a time in a database: the ASCII codes of `sigfeed`.
const ADVISORY_KEY: i64 = 0x0073_6967_6665_6564;
/// Longest time for one statement: on a large log of the sequence era, building an index takes long.
const DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// Tries to make the roles: a migrate of another database of the cluster may be making them at the same moment.
const ROLES_TRIES: u32 = 5;

/// Whether an INSERT also notifies the channel `signal_inserted`. `migrate --help` shows the comments of the variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SignalInserted {
    /// Yes, unless another trigger on signal does
    Auto,
    /// Yes
    On,
    /// No
    Off,
}

impl SignalInserted {
    /// Its word on the command line and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// The options of `migrate`.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long to try for the locks before giving up. Default five minutes.
    pub lock_wait: Duration,
    /// The choice for `signal_inserted`; `None` keeps the earlier choice.
    pub signal_inserted: Option<SignalInserted>,
}

impl Options {
    /// The choice as an SQL expression: the new one, or the one in the row.
    fn choice(&self) -> String {
        self.signal_inserted.map_or("c.signal_inserted".to_owned(), |choice| format!("'{}'", choice.as_str()))
    }
}

/// Lifts the deadline of the connection's statements, and overrides settings of the database or the role that would
/// change the meaning of the schema's files and of queries on the catalog.
///
/// # Errors
/// If the database does not answer.
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

/// What is missing or wrong, one line each; empty if there is nothing to do. Changes nothing.
///
/// # Errors
/// If the database cannot be asked, or cannot be migrated at all (the text says why).
pub fn check(connection: &mut Connection, options: &Options) -> Result<Vec<String>, Error> {
    // For what comes before the tries for the lock on signal.
    connection.batch(&format!("set lock_timeout = {}", lock_timeout_ms(options))).doing("prepare the session")?;
    let findings = match look(connection, options) {
        Err(Error::Database { cause, .. }) if cause.sql_state() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            return Err(gave_up(connection, "look at the installation", options));
        }
        outcome => outcome?,
    };
    let mut lines: Vec<String> = findings.faults.into_iter().map(|fault| fault.text).collect();
    if let (Some(wanted), Some(chosen)) = (options.signal_inserted, &findings.chosen)
        && wanted.as_str() != chosen
    {
        lines.push(format!("signal_inserted is chosen as {chosen}, not {}", wanted.as_str()));
    }
    Ok(lines)
}

/// Installs, upgrades or repairs the schema. Each line for `say` reports one thing that was done or that matters.
///
/// # Errors
/// Why nothing was done.
pub fn migrate(connection: &mut Connection, options: &Options, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let until = Instant::now() + options.lock_wait;
    if !check(connection, options)?.is_empty() {
        make_roles(connection, say)?;
        lock_out_others(connection, until, options, say)?;
        let outcome = install(connection, options, until, say);
        if !connection.is_lost() {
            connection.query("select pg_advisory_unlock($1)", &[&ADVISORY_KEY]).doing("release the migration lock")?;
        }
        outcome?;
        let left = look(connection, options)?.faults;
        if !left.is_empty() {
            let texts: Vec<String> = left.into_iter().map(|fault| fault.text).collect();
            return Err(Error::Failed(format!("migrate could not repair: {}", texts.join("; "))));
        }
    } else {
        say("nothing to do");
    }
    let doing = "look at the installation";
    say(&inspect::signal_inserted_line(connection).doing(doing)?);
    for remark in inspect::remarks(connection).doing(doing)? {
        say(&format!("warning: {}", remark.text));
    }
    for text in inspect::two_phase(connection).doing(doing)? {
        say(&format!("warning: {text}"));
    }
    Ok(())
}

/// Checks, at the start of `serve`, that the schema is the one that this program knows.
///
/// # Errors
/// [`Error::Failed`] if it is absent, older or newer, with the command to run; [`Error::Database`] if the
/// query fails.
pub fn check_schema(connection: &mut Connection) -> Result<(), Error> {
    match newest(&installed(connection)?) {
        0 => Err(Error::Failed("the database has no signal-feed schema: run \"signal-feed migrate\" first".into())),
        version if version < KNOWN_VERSION => Err(Error::Failed(format!(
            "the database has signal-feed schema {version}, older than {KNOWN_VERSION}: run \"signal-feed migrate\" first"
        ))),
        version => refuse_newer(version),
    }
}

/// Number and checksum of the applied migrations, lowest first. The table is read only if its owner is
/// trusted with the feed: a view with that name could run foreign code.
fn installed(connection: &mut Connection) -> Result<Vec<(i32, String)>, Error> {
    let doing = "read the schema version";
    let is_there = connection
        .query_opt(
            "select from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
                join pg_catalog.pg_roles as r on r.oid = c.relowner
             where n.nspname = 'stock_market' and c.relname = 'signal_feed_migration' and c.relkind = 'r'
                and (r.rolsuper or r.rolname in ('signal_feed_owner', current_user))",
            &[],
        )
        .doing(doing)?;
    if is_there.is_none() {
        return Ok(Vec::new());
    }
    let rows = connection
        .query("select m.version, m.checksum from stock_market.signal_feed_migration as m order by m.version", &[])
        .doing(doing)?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn newest(applied: &[(i32, String)]) -> i32 {
    applied.last().map_or(0, |(version, _)| *version)
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
    faults: Vec<Fault>,
    /// The choice for `signal_inserted`, if the feed is installed.
    chosen: Option<String>,
    /// Whether [`TABLES`] was not applied yet.
    is_pending: bool,
}

fn look(connection: &mut Connection, options: &Options) -> Result<Findings, Error> {
    let doing = "look at the installation";
    if let Some(why) = inspect::refusal(connection).doing(doing)? {
        return Err(Error::Failed(why));
    }
    let applied = installed(connection)?;
    let newest = newest(&applied);
    refuse_newer(newest)?;
    for (version, found) in &applied {
        let index = usize::try_from(version - 1).unwrap_or(usize::MAX);
        let known = EARLIER.get(index).map_or_else(|| checksum(TABLES), |known| (*known).to_owned());
        if *found != known {
            return Err(Error::Failed(format!(
                "migration {version} was applied from another text (checksum {found}): the database was migrated by another \
                 build of signal-feed; use that one"
            )));
        }
    }
    let is_pending = newest < KNOWN_VERSION;
    let has_capture = newest >= EARLIER_CAPTURE_VERSION;
    let inserted = inspect::signal_inserted(connection, has_capture).doing(doing)?;
    let chosen = has_capture.then(|| inserted.chosen.clone());
    let on = options.signal_inserted.map_or(inserted.chosen == "on", |wanted| wanted == SignalInserted::On);
    if on && let Some(name) = inserted.other {
        return Err(Error::Failed(format!(
            "--signal-inserted on: the trigger {name} on stock_market.signal notifies that channel already; \
             drop it first, or choose auto"
        )));
    }
    let mut faults = Vec::new();
    if !is_pending {
        faults = inspect::faults(connection).doing(doing)?;
    } else {
        faults.push(Fault::new(format!("migration {TABLES_NAME} is not applied")));
        if has_capture {
            faults.append(&mut inspect::trigger_faults_before_5(connection).doing(doing)?);
        }
    }
    Ok(Findings { faults, chosen, is_pending })
}

fn checksum(sql: &str) -> String {
    Sha256::digest(sql).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes the missing roles, and makes a runner who is not a superuser a member of them.
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
                    "cannot make {}: {error}; run \"signal-feed migrate\" as a superuser or as the owner of this database; \
                     an owner without CREATEROLE needs a DBA who first runs, in this very database, the statements that \
                     \"signal-feed migrate --roles-sql\" prints",
                    missing.join(", ")
                )));
            }
            // A migrate of another database of the cluster is doing the same.
            Err(error) if attempt < ROLES_TRIES && error.is_statement_error() => thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(error).doing("make the roles"),
        }
    }
    Ok(())
}

/// PostgreSQL takes zero as no limit.
fn lock_timeout_ms(options: &Options) -> i32 {
    i32::try_from(options.lock_wait.as_millis()).unwrap_or(i32::MAX).max(1)
}

fn gave_up(connection: &mut Connection, doing: &str, options: &Options) -> Error {
    Error::Failed(format!(
        "{doing}: did not get a lock within {}: {}; use a longer --lock-wait to wait for it",
        crate::text::duration(options.lock_wait),
        blockers::of_migrate(connection)
    ))
}

/// Waits until no other migrate runs in this database.
fn lock_out_others(
    connection: &mut Connection,
    until: Instant,
    options: &Options,
    say: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let mut told = false;
    loop {
        let row = connection
            .query_one("select pg_try_advisory_lock($1)", &[&ADVISORY_KEY])
            .doing("take the migration lock")?;
        if row.get(0) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(gave_up(connection, "wait for another migrate", options));
        }
        if !told {
            told = true;
            say(&format!("waiting for another migrate: {}", blockers::of_migrate(connection)));
        }
        thread::sleep(LOCK_PAUSE);
    }
}

fn install(
    connection: &mut Connection,
    options: &Options,
    until: Instant,
    say: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    // Another migrate may have done everything while this one waited.
    let findings = look(connection, options)?;
    let rechosen = options.signal_inserted.is_some_and(|wanted| findings.chosen.as_deref() != Some(wanted.as_str()));
    if findings.faults.is_empty() && !rechosen {
        return Ok(());
    }
    let doing = if findings.is_pending { "apply migration 0005_tables" } else { "repair the installation" };
    let capture_was_off = findings.faults.iter().any(|fault| fault.capture_was_off);
    let mut event = None;
    let mut refused = None;
    in_one_transaction(connection, until, options, doing, say, |connection| {
        connection.batch(TAKE_LOCKS)?;
        connection.batch(TABLES)?;
        connection.batch(inspect::FUNCTIONS)?;
        // What was checked before may have been replaced since; from here on it cannot be. So far only definitions
        // have run.
        refused = inspect::strangers(connection)?;
        if refused.is_some() {
            return Ok(false);
        }
        connection.batch(&inspect::with_wanted(&INSTALL.replace("{choice}", &options.choice())))?;
        connection.execute(
            "insert into stock_market.signal_feed_migration (version, name, checksum) values ($1, $2, $3) on conflict do nothing",
            &[&KNOWN_VERSION, &TABLES_NAME, &checksum(TABLES)],
        )?;
        if capture_was_off {
            event = Some(connection.query_one(APPEND_CAPTURE_WAS_OFF, &[])?.get::<_, i64>(0));
            connection.batch(
                "delete from signal_feed_private.signal_feed_outbox; truncate signal_feed_private.signal_feed_first",
            )?;
        }
        Ok(true)
    })?;
    if let Some(why) = refused {
        return Err(Error::Failed(why));
    }
    for fault in &findings.faults {
        match fault.text.strip_suffix(" is not applied") {
            Some(migration) => say(&format!("applied {migration}")),
            None => say(&format!("repaired: {}", fault.text)),
        }
    }
    if let Some(feed_seq) = event {
        say(&format!(
            "capture was off: signals written meanwhile are not in the log; event {feed_seq} tells consumers so, and \
             \"signal-feed doctor\" prints a query that finds the rows"
        ));
    }
    Ok(())
}

/// Taken before any other lock that a writer could hold: every session that has written a signal holds this lock. It
/// waits for readers only if the owner of signal changes or a trigger of the sequence era is dropped.
const TAKE_LOCKS: &str = "do $lock$
declare
    signal regclass := pg_catalog.to_regclass('stock_market.signal');
begin
    if exists (select from pg_catalog.pg_trigger as t join pg_catalog.pg_proc as p on p.oid = t.tgfoid
            where t.tgrelid = signal and p.proname = 'signal_feed_append')
        or exists (select from pg_catalog.pg_class as c where c.oid = signal
            and pg_catalog.pg_get_userbyid(c.relowner) = 'signal_feed_owner')
    then
        lock table stock_market.signal in access exclusive mode;
    elsif signal is not null then
        lock table stock_market.signal in share row exclusive mode;
    end if;
    if exists (select from pg_catalog.pg_attrdef as d
        where d.adrelid = pg_catalog.to_regclass('stock_market.signal_feed_event'))
    then
        lock table stock_market.signal_feed_event in access exclusive mode;
    end if;
end $lock$";

/// The event that tells consumers that signals are missing.
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

/// Runs `work` in a transaction that waits only briefly for each lock, again and again until `until`. Rolls back if
/// `work` returns false.
fn in_one_transaction(
    connection: &mut Connection,
    until: Instant,
    options: &Options,
    doing: &str,
    say: &mut dyn FnMut(&str),
    mut work: impl FnMut(&mut Connection) -> Result<bool, DbError>,
) -> Result<(), Error> {
    let mut told = false;
    loop {
        // Every session that numbers events holds the feed's lock during its commit.
        connection
            .batch(&format!("begin; set local lock_timeout = '{LOCK_TRY}'; set local synchronous_commit = 'on'"))
            .doing(doing)?;
        let outcome =
            work(connection).and_then(|is_done| connection.batch(if is_done { "commit" } else { "rollback" }));
        match outcome {
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
                    return Err(gave_up(connection, doing, options));
                }
                if !told {
                    told = true;
                    let holders = blockers::of_migrate(connection);
                    say(&format!("waiting for a lock; writers continue between the tries: {holders}"));
                }
                thread::sleep(LOCK_PAUSE);
            }
        }
    }
}
