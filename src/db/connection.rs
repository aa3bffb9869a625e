//! A blocking PostgreSQL connection whose every call has a deadline.
//!
//! The blocking `postgres` crate has no such deadline: with it a query on a stopped backend hangs for ever. So this
//! wraps `tokio-postgres` on a current-thread runtime of its own. A call that misses its deadline closes the
//! connection.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Notification, Row, Statement};

use super::Error;
use super::connection_string::Target;
use super::dial::{self, Driver};
use super::tls;
use crate::sync::lock;

/// Settings of every session. Time-outs set for the role or database are meant for other clients: they would end a
/// session that waits for notifications. Older versions of PostgreSQL do not have all four. A search_path set for the
/// role or database could put foreign operators before PostgreSQL's; the next four settings could change the meaning of
/// statements or forbid them. JIT is off because compiling one of these queries takes longer than running it.
const SESSION: &str = "set search_path = pg_catalog, pg_temp; set standard_conforming_strings = on; \
    set quote_all_identifiers = off; set default_transaction_isolation = 'read committed'; \
    set default_transaction_read_only = off; set timezone = 'UTC'; set jit = off";
/// The time-outs. (A statement of its own: the settings above count from the next transaction on.)
const NO_TIMEOUTS: &str = "select pg_catalog.set_config(name, '0', false) from pg_catalog.pg_settings where name in \
    ('idle_session_timeout', 'idle_in_transaction_session_timeout', 'lock_timeout', 'transaction_timeout')";

/// How often a waiting call asks its [`Watch`].
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// Says whether a waiting call should continue. It must not block.
pub type Watch = Arc<dyn Fn() -> bool + Send + Sync>;

/// Where and how to connect.
#[derive(Clone)]
pub struct Settings {
    /// The file that the connection string came from, if any: it can be read again.
    file: Option<PathBuf>,
    /// What the connection string means now, shared by all clones of the settings.
    target: Arc<Mutex<Target>>,
    /// Longest time for connecting, handshake included, and for each statement. Default 10 s.
    deadline: Duration,
    /// Asked by every connection while it is opened, and by its calls until it is given another watch.
    watch: Option<Watch>,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl FromStr for Settings {
    type Err = Error;

    /// Reads a connection string as libpq does: a `postgres://` URL or `key=value` pairs (PostgreSQL documentation,
    /// 34.1.1). Settings that can never work are an error here, not at the first connection; so is a root certificate
    /// that cannot be read. `PG…` variables and password files are not read.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.trim().is_empty() {
            return Err(Error::Unreachable("it is empty; expected postgres://… or key=value".to_owned()));
        }
        let target = text.trim().parse().map_err(Error::Unreachable)?;
        tls::connector(&target).map_err(Error::Unreachable)?;
        let target = Arc::new(Mutex::new(target));
        Ok(Self { file: None, target, deadline: Duration::from_secs(10), watch: None })
    }
}

impl Settings {
    /// Like [`from_str`](Self::from_str), for the text of a file. If a connection attempt fails, the file is read
    /// again, because its password may have changed. A pipe can be read only once.
    ///
    /// # Errors
    /// As [`from_str`](Self::from_str).
    pub fn from_file(path: &Path, text: &str) -> Result<Self, Error> {
        Ok(Self { file: path.is_file().then(|| path.to_owned()), ..text.parse()? })
    }

    /// The same database with another deadline for every call.
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same database with another [`Watch`] for every connection, or none.
    pub fn with_watch(mut self, watch: Option<Watch>) -> Self {
        self.watch = watch;
        self
    }

    /// What the file says now, if it differs from what failed. The file may be empty while somebody writes it.
    fn read_again(&self, failed: &Target) -> Option<Target> {
        let text = std::fs::read_to_string(self.file.as_ref()?).ok().filter(|text| !text.trim().is_empty())?;
        match text.trim().parse::<Target>() {
            Ok(target) if target != *failed => {
                lock(&self.target).clone_from(&target);
                Some(target)
            }
            Ok(_) => None,
            Err(error) => {
                log::warn!("cannot use the new text of the database URL file; keeping the old one: {error}");
                None
            }
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("is_lost", &self.is_lost()).finish_non_exhaustive()
    }
}

/// A connection to PostgreSQL. Every call blocks, at most for its deadline.
pub struct Connection {
    client: Client,
    statements: HashMap<String, Statement>,
    /// Runs [`drive`] while a call waits, and only then. `None` only during drop.
    runtime: Option<Runtime>,
    /// The notifications that came, and at the end why the session ended. It needs no bound: it grows only while a call
    /// waits.
    received: UnboundedReceiver<Result<Notification, Error>>,
    deadline: Duration,
    watch: Option<Watch>,
    lost: bool,
}

impl Connection {
    /// Connects, and sets `statement_timeout` to the deadline, so that the server also ends a call that is given up
    /// here.
    ///
    /// The hosts are tried in turn, each within its share of the deadline. `name` is the `application_name`, by
    /// which a DBA sees in `pg_stat_activity` what this connection is for, unless the connection string has one.
    ///
    /// # Errors
    /// The server's error, or [`Error::Unreachable`] with each attempt; [`Error::GivenUp`] if the settings' watch says so.
    pub fn open(settings: &Settings, name: &str) -> Result<Self, Error> {
        let watch = settings.watch.clone();
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| Error::Unreachable(format!("set up a connection: {error}")))?;
        let deadline = settings.deadline;
        let (client, driver) = match runtime.block_on(async {
            let dialled = pin!(dial(settings, name));
            // `dial` keeps the deadline itself, with a better message.
            watched(dialled, deadline * 2, watch.as_ref()).await?
        }) {
            Ok(pair) => pair,
            Err(error) => {
                // A name look-up may still hang in a thread of the runtime.
                runtime.shutdown_background();
                return Err(error);
            }
        };
        let (sender, received) = unbounded_channel();
        runtime.spawn(drive(driver, sender));
        let (statements, runtime) = (HashMap::new(), Some(runtime));
        let mut connection = Self { client, statements, runtime, received, deadline, watch, lost: false };
        connection.batch(&format!("set statement_timeout = {}; {SESSION}", deadline.as_millis()))?;
        connection.batch(NO_TIMEOUTS)?;
        Ok(connection)
    }

    /// Whether an earlier call lost this connection: it is of no further use.
    pub fn is_lost(&self) -> bool {
        self.lost || self.client.is_closed()
    }

    /// Sets another deadline for the calls that follow; the server's `statement_timeout` stays as it is.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// From now on every call asks `watch`, ten times a second, whether to continue. A call that is given up fails with
    /// [`Error::GivenUp`] and loses the connection. `None` removes the watch.
    pub fn watch(&mut self, watch: Option<Watch>) {
        self.watch = watch;
    }

    /// Runs statements without parameters, several separated by semicolons.
    pub fn batch(&mut self, sql: &str) -> Result<(), Error> {
        self.run(async |client, _| client.batch_execute(sql).await)
    }

    /// Runs one statement, prepared once per connection, and returns its rows.
    pub fn query(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.run_prepared(sql, async |client, statement| client.query(statement, parameters).await)
    }

    /// Like [`query`](Self::query), for a statement that returns exactly one row.
    ///
    /// # Errors
    /// See [`Error`]; also if the number of rows is not one.
    pub fn query_one(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        self.run_prepared(sql, async |client, statement| client.query_one(statement, parameters).await)
    }

    /// Runs one statement, prepared once per connection, and returns how many rows it changed.
    pub fn execute(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.run_prepared(sql, async |client, statement| client.execute(statement, parameters).await)
    }

    /// Waits for a notification, at most `patience`; `None` if none came. Returns at once if one has already come.
    ///
    /// # Errors
    /// [`Error::Closed`] or the connection's own error if it ends meanwhile.
    pub fn wait_notification(&mut self, patience: Duration) -> Result<Option<Notification>, Error> {
        if self.lost {
            return Err(Error::Closed);
        }
        let runtime = self.runtime.as_ref().ok_or(Error::Closed)?;
        match runtime.block_on(async { timeout(patience, self.received.recv()).await }) {
            Ok(received) => received.unwrap_or(Err(Error::Closed)).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Runs one operation with a statement that is prepared when it is first needed.
    fn run_prepared<T>(
        &mut self,
        sql: &str,
        operation: impl AsyncFnOnce(&Client, &Statement) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Error> {
        self.run(async |client, statements| {
            if !statements.contains_key(sql) {
                statements.insert(sql.to_owned(), client.prepare(sql).await?);
            }
            operation(client, &statements[sql]).await
        })
    }

    /// Runs one operation to its end or the deadline. Any error but that of a statement loses the connection.
    fn run<T>(
        &mut self,
        operation: impl AsyncFnOnce(&Client, &mut HashMap<String, Statement>) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Error> {
        if self.is_lost() {
            return Err(Error::Closed);
        }
        let runtime = self.runtime.as_ref().ok_or(Error::Closed)?;
        let operation = pin!(async {
            // So that the driver first reads what has come meanwhile, such as why the server ended the session.
            yield_now().await;
            operation(&self.client, &mut self.statements).await
        });
        let error = match runtime.block_on(watched(operation, self.deadline, self.watch.as_ref())) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => Error::from(error),
            Err(error) => error,
        };
        if error.is_statement_error() {
            return Err(error);
        }
        self.lost = true;
        // If the server did not say why, the driver does.
        let mut received = std::iter::from_fn(|| self.received.try_recv().ok());
        let why = received.find_map(Result::err).filter(|_| error.sql_state().is_none());
        Err(why.unwrap_or(error))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A name look-up may still hang in the runtime's helper thread: never wait for it.
            runtime.shutdown_background();
        }
    }
}

/// Moves the session's bytes until it ends. Sends every notification, and at last why the session ended.
async fn drive(mut driver: Driver, sender: UnboundedSender<Result<Notification, Error>>) {
    let why = loop {
        match poll_fn(|cx| driver.poll_message(cx)).await {
            Some(Ok(AsyncMessage::Notification(notification))) => drop(sender.send(Ok(notification))),
            Some(Ok(AsyncMessage::Notice(notice))) => log::debug!("PostgreSQL: {}", notice.message()),
            Some(Ok(_)) => {}
            Some(Err(error)) => break Error::from(error),
            None => break Error::Closed,
        }
    };
    // Before the driver goes, which ends the operation that waits.
    let _ = sender.send(Err(why));
}

/// Connects. If that fails and the file of the connection string has changed, tries once more with its new text.
async fn dial(settings: &Settings, name: &str) -> Result<(Client, Driver), Error> {
    let until = Instant::now() + settings.deadline;
    let target = lock(&settings.target).clone();
    match dial::dial(&target, name, settings.deadline).await {
        Err(error) => match settings.read_again(&target) {
            Some(target) => dial::dial(&target, name, until.saturating_duration_since(Instant::now())).await,
            None => Err(error),
        },
        session => session,
    }
}

/// Waits for a future, at most for `deadline`, and asks `watch` meanwhile whether to continue.
async fn watched<F: Future>(
    mut future: std::pin::Pin<&mut F>,
    deadline: Duration,
    watch: Option<&Watch>,
) -> Result<F::Output, Error> {
    let began = Instant::now();
    loop {
        let left = deadline.saturating_sub(began.elapsed());
        let slice = if watch.is_some() { left.min(WATCH_EVERY) } else { left };
        if let Ok(output) = timeout(slice, future.as_mut()).await {
            return Ok(output);
        }
        if began.elapsed() >= deadline {
            return Err(Error::TimedOut(deadline));
        }
        if watch.is_some_and(|watch| !watch()) {
            return Err(Error::GivenUp);
        }
    }
}
