//! Installs, upgrades and repairs the schema (`sql/`).
//!
//! All three work the same way: take the lock on `signal`, check that every object with the feed's names is the feed's
//! own, run every file, in one transaction. Every file may run again.

use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use sha2::{Digest, Sha256};
use tokio_postgres::error::SqlState;

use super::inspect::{self, Fault};
use super::{Connection, Error as DbError, blockers};
use crate::error::{Doing, Error};

/// The statements that make the feed's roles and their memberships; safe to run again.
pub(crate) const ROLES_SQL: &str = include_str!("../../sql/roles.sql");

/// The numbered file that makes the tables. A later release that changes a table adds a file with a new number.
const TABLES: &str = include_str!("../../sql/0005_tables.sql");
const TABLES_NAME: &str = "0005_tables";
/// How the fault ends that says so of a migration.
const NOT_APPLIED: &str = " is not applied";
const TAKE_LOCKS: &str = include_str!("../../sql/take_locks.sql");
/// Owners, rows, grants and triggers: safe to run again at any time.
const INSTALL: &str = include_str!("../../sql/install.sql");
const CAPTURE_WAS_OFF: &str = include_str!("../../sql/capture_was_off.sql");

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SignalInserted {
    /// Yes, unless another trigger on signal does
    Auto,
    /// Yes
    On,
    /// No
    Off,
}

impl Options {
    /// The new choice for `signal_inserted`: its word on the command line and in the database.
    fn new_choice(&self) -> Option<String> {
        Some(self.signal_inserted?.to_possible_value()?.get_name().to_owned())
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// How long to try for the locks before giving up. Default five minutes.
    pub lock_wait: Duration,
    /// The choice for `signal_inserted`; `None` keeps the earlier choice.
    pub signal_inserted: Option<SignalInserted>,
}

/// Lifts the deadline of the connection's statements.
pub(crate) fn allow_long_statements(connection: &mut Connection) -> Result<(), Error> {
    connection.batch("set statement_timeout = 0").doing("prepare the session")?;
    connection.set_deadline(DEADLINE);
    Ok(())
}

/// What is missing or wrong, one line each; empty if there is nothing to do. Changes nothing.
///
/// # Errors
/// If the database cannot be asked, or cannot be migrated at all (the text says why).
pub(crate) fn check(connection: &mut Connection, options: &Options) -> Result<Vec<String>, Error> {
    // For what comes before the tries for the lock on signal.
    connection.batch(&format!("set lock_timeout = {}", lock_timeout_ms(options))).doing("prepare the session")?;
    match look(connection, options) {
        Err(Error::Database { cause, .. }) if cause.sql_state() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            Err(gave_up(connection, "look at the installation", options))
        }
        faults => Ok(faults?.into_iter().map(|fault| fault.text).collect()),
    }
}

/// Installs, upgrades or repairs the schema. Each line for `say` reports one thing that was done or that matters.
pub(crate) fn migrate(connection: &mut Connection, options: &Options, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let until = Instant::now() + options.lock_wait;
    if check(connection, options)?.is_empty() {
        say("nothing to do");
    } else {
        Migration { connection: &mut *connection, options, until, say: &mut *say }.run()?;
    }
    let doing = "look at the installation";
    say(&inspect::signal_inserted(connection, true).doing(doing)?.text);
    for text in inspect::warnings(connection).doing(doing)? {
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
        _ => Ok(()),
    }
}

/// Number and checksum of the applied migrations, lowest first; a newer schema is an error. The table is read only if its
/// owner is trusted with the feed: a view with that name could run foreign code.
fn installed(connection: &mut Connection) -> Result<Vec<(i32, String)>, Error> {
    let doing = "read the schema version";
    let is_there = connection
        .query(
            "select from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
                join pg_catalog.pg_roles as r on r.oid = c.relowner
             where n.nspname = 'stock_market' and c.relname = 'signal_feed_migration' and c.relkind = 'r'
                and (r.rolsuper or r.rolname in ('signal_feed_owner', current_user))",
            &[],
        )
        .doing(doing)?;
    if is_there.is_empty() {
        return Ok(Vec::new());
    }
    let rows = connection
        .query("select m.version, m.checksum from stock_market.signal_feed_migration as m order by m.version", &[])
        .doing(doing)?;
    let applied: Vec<(i32, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    match newest(&applied) {
        version if version > KNOWN_VERSION => Err(Error::Failed(format!(
            "the database has signal-feed schema {version}, newer than {KNOWN_VERSION}, the newest that this program knows: \
             install the signal-feed release that migrated it"
        ))),
        _ => Ok(applied),
    }
}

fn newest(applied: &[(i32, String)]) -> i32 {
    applied.last().map_or(0, |(version, _)| *version)
}

/// What migrate would do. A migration that is not applied comes first.
fn look(connection: &mut Connection, options: &Options) -> Result<Vec<Fault>, Error> {
    let doing = "look at the installation";
    if let Some(why) = inspect::refusal(connection).doing(doing)? {
        return Err(Error::Failed(why));
    }
    let applied = installed(connection)?;
    let newest = newest(&applied);
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
    let has_capture = newest >= EARLIER_CAPTURE_VERSION;
    let inserted = inspect::signal_inserted(connection, has_capture).doing(doing)?;
    let chosen = options.new_choice().unwrap_or_else(|| inserted.chosen.clone());
    if let ("on", Some(name)) = (chosen.as_str(), &inserted.other) {
        return Err(Error::Failed(format!(
            "--signal-inserted on: the trigger {name} on stock_market.signal notifies that channel already; \
             drop it first, or choose auto"
        )));
    }
    let mut faults = Vec::new();
    if newest < KNOWN_VERSION {
        faults.push(Fault::new(format!("migration {TABLES_NAME}{NOT_APPLIED}")));
        if has_capture {
            faults.append(&mut inspect::trigger_faults_before_5(connection).doing(doing)?);
        }
    } else {
        faults = inspect::faults(connection).doing(doing)?;
    }
    if has_capture && chosen != inserted.chosen {
        faults.push(Fault::new(format!("signal_inserted was chosen as {}, not as {chosen}", inserted.chosen)));
    }
    Ok(faults)
}

fn checksum(sql: &str) -> String {
    Sha256::digest(sql).iter().map(|byte| format!("{byte:02x}")).collect()
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

/// One run of `migrate` that has something to do.
struct Migration<'a> {
    connection: &'a mut Connection,
    options: &'a Options,
    until: Instant,
    say: &'a mut dyn FnMut(&str),
}

impl Migration<'_> {
    fn run(&mut self) -> Result<(), Error> {
        self.make_roles()?;
        self.until_locked("wait for another migrate", |connection| {
            let row = connection.query_one("select pg_try_advisory_lock($1)", &[&ADVISORY_KEY])?;
            Ok(row.get::<_, bool>(0).then_some(()))
        })?;
        let installed = self.install();
        // Behind a pooler the session outlives this program.
        let _ = self.connection.query("select pg_advisory_unlock($1)", &[&ADVISORY_KEY]);
        installed?;
        let left = look(self.connection, self.options)?;
        if left.is_empty() {
            return Ok(());
        }
        let texts: Vec<String> = left.into_iter().map(|fault| fault.text).collect();
        Err(Error::Failed(format!("migrate could not repair: {}", texts.join("; "))))
    }

    /// Makes the missing roles, and makes a runner who is not a superuser a member of them.
    fn make_roles(&mut self) -> Result<(), Error> {
        let mut is_made = false;
        for attempt in 1.. {
            let missing = inspect::missing_roles(self.connection).doing("look at the roles")?;
            if missing.is_empty() {
                break;
            }
            if is_made {
                return Err(Error::Failed(format!(
                    "cannot use {}: the role that runs migrate must inherit the feed's roles (alter role … inherit; from \
                     PostgreSQL 16 on also grant … with inherit true)",
                    missing.join(", ")
                )));
            }
            match self.connection.batch(ROLES_SQL) {
                Ok(()) => {
                    is_made = true;
                    (self.say)("made the roles and their memberships");
                }
                Err(error) if error.sql_state() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                    return Err(Error::Failed(format!(
                        "cannot make {}: {error}; run \"signal-feed migrate\" as a superuser or as the owner of this \
                         database; an owner without CREATEROLE needs a DBA who first runs, in this very database, the \
                         statements that \"signal-feed migrate --roles-sql\" prints",
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

    fn install(&mut self) -> Result<(), Error> {
        // Another migrate may have done everything while this one waited.
        let faults = look(self.connection, self.options)?;
        let Some(first) = faults.first() else { return Ok(()) };
        let migration = first.text.strip_suffix(NOT_APPLIED);
        let doing = migration.map_or("repair the installation".to_owned(), |migration| format!("apply {migration}"));
        let capture_was_off = faults.iter().any(|fault| fault.capture_was_off);
        // As SQL: the new choice, or the one in the row.
        let choice = self.options.new_choice().map_or("c.signal_inserted".to_owned(), |word| format!("'{word}'"));
        let event = self.until_locked(&doing, |connection| {
            // Every session that numbers events holds the feed's lock during its commit.
            let begin = format!("begin; set local lock_timeout = '{LOCK_TRY}'; set local synchronous_commit = 'on'");
            connection.batch(&begin)?;
            let outcome = apply(connection, &choice, capture_was_off);
            if !connection.is_lost() {
                connection.batch(if outcome.is_ok() { "commit" } else { "rollback" })?;
            }
            outcome.map(Some)
        })?;
        for fault in &faults {
            match fault.text.strip_suffix(NOT_APPLIED) {
                Some(migration) => (self.say)(&format!("applied {migration}")),
                None => (self.say)(&format!("repaired: {}", fault.text)),
            }
        }
        if let Some(feed_seq) = event {
            (self.say)(&format!(
                "capture was off: signals written meanwhile are not in the log; event {feed_seq} tells consumers so, and \
                 \"signal-feed doctor\" prints a query that finds the rows"
            ));
        }
        Ok(())
    }

    /// Repeats an attempt that waits only briefly for its locks until it gets them. `None` means that it did not.
    fn until_locked<T>(
        &mut self,
        doing: &str,
        mut attempt: impl FnMut(&mut Connection) -> Result<Option<T>, DbError>,
    ) -> Result<T, Error> {
        let mut told = false;
        loop {
            let is_locked = |state| matches!(state, &SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED);
            match attempt(self.connection) {
                Ok(Some(done)) => return Ok(done),
                Err(error) if !error.sql_state().is_some_and(is_locked) => return Err(error).doing(doing),
                Ok(None) | Err(_) => {}
            }
            if Instant::now() >= self.until {
                return Err(gave_up(self.connection, doing, self.options));
            }
            if !told {
                told = true;
                let holders = blockers::of_migrate(self.connection);
                (self.say)(&format!("waiting for a lock; writers continue between the tries: {holders}"));
            }
            thread::sleep(LOCK_PAUSE);
        }
    }
}

/// Runs every file, in the present transaction. Returns the number of the event that tells consumers of missing
/// signals, if there is one.
fn apply(connection: &mut Connection, choice: &str, capture_was_off: bool) -> Result<Option<i64>, DbError> {
    connection.batch(TAKE_LOCKS)?;
    connection.batch(TABLES)?;
    connection.batch(inspect::FUNCTIONS)?;
    // What was checked before may have been replaced since; from here on it cannot be. So far only definitions have run.
    if let Some(why) = inspect::strangers(connection)? {
        return Err(DbError::Incomplete(why));
    }
    connection.batch(&inspect::with_wanted(&INSTALL.replace("{choice}", choice)))?;
    connection.execute(
        "insert into stock_market.signal_feed_migration (version, name, checksum) values ($1, $2, $3) on conflict do nothing",
        &[&KNOWN_VERSION, &TABLES_NAME, &checksum(TABLES)],
    )?;
    if !capture_was_off {
        return Ok(None);
    }
    let event = connection.query_one(CAPTURE_WAS_OFF, &[])?.get(0);
    connection
        .batch("delete from signal_feed_private.signal_feed_outbox; truncate signal_feed_private.signal_feed_first")?;
    Ok(Some(event))
}
