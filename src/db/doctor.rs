//! The checks of `doctor`. Most are one query of `sql/doctor.sql`; each says what it found and what to do.
//!
//! It never waits long: every statement has a lock time-out and a time-out, and all checks together have a deadline.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::blockers::{self, Blocker};
use super::{Connection, Error, Settings, inspect, migrate, standby};
use crate::error::Error as CommandError;

const CHECKS: &str = include_str!("../../sql/doctor.sql");
const CLUSTER: &str = include_str!("../../sql/cluster.sql");
/// Rows of open transactions are not visible, and a commit normally leaves none.
const UNNUMBERED: &str = "
    select 'the counter has no row: signals cannot be written'
    where not exists (select from stock_market.signal_feed_counter)
    union all
    select 'the outbox holds events that were committed and never numbered'
    where exists (select from signal_feed_private.signal_feed_first)
        or exists (select from signal_feed_private.signal_feed_outbox)";

/// What to do where even the first query of a session waits.
const NO_QUERY: &str = "somebody may have locked a catalog of PostgreSQL, and then no query can name that session: on the \
    database's machine, as its administrator, find the process that is \"idle in transaction\" (ps -ef) and end it (pg_ctl kill TERM PID)";
/// Longest time for all checks together, except a last wait for a notification.
const PATIENCE: Duration = Duration::from_secs(16);
const STATEMENT_PATIENCE: Duration = Duration::from_secs(6);
const LOCK_WAIT: &str = "500ms";
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a session may hold a lock before `doctor` names it: a commit of some hundred thousand rows takes that long.
const HOLD_PATIENCE: Duration = Duration::from_secs(1);
/// How long a notification from one session to another may take.
const LISTEN_PATIENCE: Duration = Duration::from_secs(3);
/// How many of the newest numbers are checked if there is no time for the whole log.
const NEWEST: &str = "1000000";

#[derive(Debug, Clone)]
pub(crate) struct Verdict {
    pub ok: bool,
    pub message: String,
    /// What to do, if there is something to do.
    pub fix: Option<String>,
}

fn well(message: impl Into<String>) -> Verdict {
    Verdict { ok: true, message: message.into(), fix: None }
}

fn wrong(message: impl Into<String>, fix: impl Into<String>) -> Verdict {
    Verdict { ok: false, message: message.into(), fix: Some(fix.into()) }
}

/// Connects with time-outs for every statement, and reads the name of the database.
fn open(settings: &Settings) -> Result<(Connection, String), Error> {
    let mut connection = Connection::open(settings, "signal-feed doctor")?;
    connection.set_deadline(STATEMENT_PATIENCE + Duration::from_secs(1));
    let timeout = STATEMENT_PATIENCE.as_millis();
    connection.batch(&format!("set lock_timeout = '{LOCK_WAIT}'; set statement_timeout = {timeout}"))?;
    let database = connection.query_one("select current_database()::text", &[])?.get(0);
    Ok((connection, database))
}

/// Whether a call waited too long: for a lock, by PostgreSQL's time-out, or by ours.
fn is_timeout(error: &Error) -> bool {
    let states = [SqlState::QUERY_CANCELED, SqlState::LOCK_NOT_AVAILABLE];
    matches!(error, Error::TimedOut(_) | Error::GivenUp)
        || error.sql_state().is_some_and(|state| states.contains(state))
}

/// Runs every check, in order, and returns each with its name, which scripts rely on. A check that cannot run has
/// failed; it does not stop the others.
///
/// # Errors
/// If it cannot connect.
pub(crate) fn examine(settings: &Settings) -> Result<Vec<(&'static str, Verdict)>, Error> {
    let until = Instant::now() + PATIENCE;
    let in_time = Arc::new(move || Instant::now() < until);
    let settings = settings.clone().with_deadline(CONNECT_PATIENCE).with_watch(Some(in_time));
    let (connection, database) = match open(&settings) {
        Err(error) if is_timeout(&error) => {
            return Ok(vec![("connection", wrong(format!("cannot run any query in time: {error}"), NO_QUERY))]);
        }
        outcome => outcome?,
    };
    let migrate = format!(
        "run \"signal-feed migrate\" as a superuser or the owner of the database, for example: sudo -u postgres signal-feed \
         migrate --database-url 'postgresql:///{database}?host=/var/run/postgresql'"
    );
    let mut doctor = Doctor { connection, until, migrate, checks: Vec::new() };
    // What somebody put in the place of the feed's own objects would run with the rights of this login.
    match inspect::strangers(&mut doctor.connection) {
        Ok(None) => doctor.check("schema", schema),
        Ok(Some(_)) | Err(_) => doctor.check("installation", installation),
    }
    let usable = doctor.checks.iter().all(|(_, verdict)| verdict.ok);
    doctor.check("lock", lock);
    if usable {
        doctor.check_all(&settings);
    }
    Ok(doctor.checks)
}

struct Doctor {
    connection: Connection,
    until: Instant,
    /// How to run migrate.
    migrate: String,
    checks: Vec<(&'static str, Verdict)>,
}

impl Doctor {
    fn check_all(&mut self, settings: &Settings) {
        let is_standby = standby::is_standby(&mut self.connection).unwrap_or_default();
        let (everywhere, on_primary) = CHECKS.split_once("\n-- on a primary\n").unwrap_or((CHECKS, ""));
        self.check_queries(everywhere);
        if is_standby {
            self.check("standby", replication);
            return;
        }
        self.check_queries(on_primary);
        self.check("cluster", cluster);
        self.check("installation", installation);
        self.check("listen", |connection| listen(connection, settings));
    }

    /// Every check of a part of `doctor.sql`.
    fn check_queries(&mut self, part: &'static str) {
        for (name, sql) in part.split("\n-- check ").skip(1).filter_map(|text| text.split_once('\n')) {
            self.check(name, |connection| match query(connection, &sql.replace("{newest}", "9223372036854775807")) {
                Err(error) if sql.contains("{newest}") && error.sql_state() == Some(&SqlState::QUERY_CANCELED) => {
                    let mut verdict = query(connection, &sql.replace("{newest}", NEWEST))?;
                    verdict.message.push_str(&format!("; there was time to check only the newest {NEWEST} numbers"));
                    Ok(verdict)
                }
                outcome => outcome,
            });
        }
    }

    fn check(&mut self, name: &'static str, examiner: impl FnOnce(&mut Connection) -> Result<Verdict, Error>) {
        let outcome = if Instant::now() < self.until { examiner(&mut self.connection) } else { Err(Error::GivenUp) };
        let mut verdict = outcome.unwrap_or_else(|error| self.unasked(&error));
        verdict.fix = verdict.fix.map(|fix| fix.replace("{migrate}", &self.migrate));
        self.checks.push((name, verdict));
    }

    /// A check that could not run, with the sessions that may be the cause.
    fn unasked(&mut self, error: &Error) -> Verdict {
        if matches!(error, Error::GivenUp) {
            let fix = "the other checks may show what makes the database slow";
            return wrong("not checked: doctor ran out of time", fix);
        }
        let message = format!("cannot be checked: {error}");
        let is_absent =
            [Some(&SqlState::UNDEFINED_TABLE), Some(&SqlState::UNDEFINED_FUNCTION)].contains(&error.sql_state());
        if is_absent || matches!(error, Error::Incomplete(_)) {
            return wrong(message, "{migrate}");
        }
        match blockers::read(&mut self.connection, false) {
            Ok(found) if !found.is_empty() => named(&message, &found),
            _ => wrong(
                message,
                "run doctor as a member of signal_feed_admin, in the feed's database; if a right is missing, {migrate}",
            ),
        }
    }
}

/// Why writes to `signal` do not reach the log, or why the log can be changed; `None` if capture is on.
///
/// Only reads, so it works on a hot standby too. There it checks the triggers alone: the outbox is not replicated, and
/// only the primary knows the counter's row at the time of a write.
///
/// # Errors
/// If the queries fail.
pub fn capture_fault(connection: &mut Connection) -> Result<Option<String>, Error> {
    let faults = inspect::trigger_faults(connection)?.into_iter().filter(|fault| fault.check != "installation");
    let mut texts: Vec<String> = faults.map(|fault| fault.text).collect();
    if !standby::is_standby(connection)? {
        texts.extend(inspect::texts(connection, UNNUMBERED)?);
    }
    Ok(Some(texts.join("; ")).filter(|text| !text.is_empty()))
}

/// Whether the log is in the cluster, the timeline and the database that were recorded.
///
/// # Errors
/// See [`Error`]; [`Error::Incomplete`] if none were recorded, or if somebody may have replaced the function that is asked.
pub(crate) fn cluster(connection: &mut Connection) -> Result<Verdict, Error> {
    if let Some(strangers) = inspect::strangers(connection)? {
        return Err(Error::Incomplete(strangers));
    }
    let row = connection.query(CLUSTER, &[])?.pop().ok_or_else(|| {
        let text =
            "the table stock_market.signal_feed_cluster has no row; \"signal-feed migrate\" records this cluster";
        Error::Incomplete(text.into())
    })?;
    verdict(&row)
}

fn query(connection: &mut Connection, sql: &str) -> Result<Verdict, Error> {
    let faults = inspect::catalog_faults();
    let sql = sql.replace("{faults}", &faults).replace("{remarks}", &inspect::with_wanted(inspect::REMARKS));
    let parameters: &[&(dyn ToSql + Sync)] = if sql.contains("$1") { &[&inspect::FUNCTIONS] } else { &[] };
    verdict(&connection.query_one(&sql, parameters)?)
}

fn verdict(row: &Row) -> Result<Verdict, Error> {
    Ok(Verdict { ok: row.try_get(0)?, message: row.try_get(1)?, fix: row.try_get(2)? })
}

fn schema(connection: &mut Connection) -> Result<Verdict, Error> {
    match migrate::check_schema(connection) {
        Ok(()) => Ok(well(format!("schema {}", migrate::KNOWN_VERSION))),
        Err(CommandError::Database { cause, .. }) => Err(cause),
        Err(error) => Ok(wrong(error.to_string(), "{migrate}")),
    }
}

/// Everything else that migrate would repair.
fn installation(connection: &mut Connection) -> Result<Verdict, Error> {
    if let Some(why) = inspect::refusal(connection)? {
        return Ok(wrong(why, "correct that; until then migrate refuses this database"));
    }
    let two_phase = inspect::two_phase(connection)?;
    if !two_phase.is_empty() {
        return Ok(wrong(two_phase.join("; "), "as the owner of the subscription"));
    }
    let faults: Vec<String> = inspect::faults(connection)?.into_iter().map(|fault| fault.text).collect();
    if !faults.is_empty() {
        return Ok(wrong(faults.join("; "), "{migrate}"));
    }
    Ok(well(inspect::signal_inserted(connection, true)?.text))
}

/// Whether this standby hears from its primary, and how far it is behind.
fn replication(connection: &mut Connection) -> Result<Verdict, Error> {
    let reading = standby::read(connection)?;
    let Some(standby) = reading.standby else { return Ok(well("a primary: just promoted")) };
    if !standby.is_streaming {
        return Ok(wrong(
            "a hot standby that does not stream from a primary",
            "check that the primary runs and that the standby reaches it (primary_conninfo, the standby's log); a feed here is degraded until then",
        ));
    }
    let message = format!("a hot standby that streams from its primary, {} behind", crate::text::duration(standby.lag));
    Ok(well(message))
}

/// Whether a notification from one session reaches another: a pooler in transaction mode loses it.
fn listen(connection: &mut Connection, settings: &Settings) -> Result<Verdict, Error> {
    let channel = format!("signal_feed_doctor_{:016x}", crate::random::random_u64());
    connection.batch(&format!("listen {channel}"))?;
    Connection::open(settings, "signal-feed doctor")?.batch(&format!("notify {channel}"))?;
    let came = connection.wait_notification(LISTEN_PATIENCE)?.is_some();
    Ok(if came {
        well("a notification reaches another session")
    } else {
        wrong(
            format!("a notification did not reach another session in {}", crate::text::duration(LISTEN_PATIENCE)),
            "connect to PostgreSQL itself: a pooler in transaction mode (PgBouncer) loses notifications",
        )
    })
}

/// Names the sessions that hold a lock that others wait for. It is a fault if that lasts longer than a commit.
fn lock(connection: &mut Connection) -> Result<Verdict, Error> {
    let mut found = blockers::read(connection, false)?;
    if !found.is_empty() {
        thread::sleep(HOLD_PATIENCE);
        let now = blockers::read(connection, false)?;
        found.retain(|one| now.iter().any(|other| other.id == one.id));
    }
    Ok(if found.is_empty() {
        well("no session holds the feed's lock or blocks a table of the feed")
    } else {
        named("writers, the server or administrators wait", &found)
    })
}

fn named(what: &str, found: &[Blocker]) -> Verdict {
    let holds: Vec<&str> = found.iter().map(|one| one.what.as_str()).collect();
    let mut fixes: Vec<&str> = found.iter().map(|one| one.fix.as_str()).collect();
    fixes.dedup();
    wrong(
        format!("{what}: {}", holds.join("; ")),
        format!("{}; give the screener an idle_in_transaction_session_timeout", fixes.join("; ")),
    )
}
