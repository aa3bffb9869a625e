//! A blocking PostgreSQL connection whose every call has a deadline.
//!
//! The blocking `postgres` crate has no such deadline: with it a query on a stopped backend hangs for ever. So this
//! wraps `tokio-postgres` on a current-thread runtime of its own. A call that misses its deadline closes the
//! connection.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Notification, Row, Statement};

use super::Error;
use super::connection_string::Target;
use super::dial::{self, Driver};
use crate::sync::lock;

/// The most notifications that wait; beyond that the oldest is dropped. They only wake the reader, so none is needed.
const NOTIFICATIONS_KEPT: usize = 1024;

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
    /// The connection string in use and its meaning, shared by all clones of the settings.
    current: Arc<Mutex<(String, Arc<Target>)>>,
    /// Longest time for connecting, handshake included, and for each statement. Default 10 s.
    pub deadline: Duration,
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
        dial::connector(&target).map_err(Error::Unreachable)?;
        let current = Arc::new(Mutex::new((text.trim().to_owned(), Arc::new(target))));
        Ok(Self { file: None, current, deadline: Duration::from_secs(10), watch: None })
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

    /// What the file says now, if it differs from the connection string that failed. It may be empty while somebody writes
    /// it.
    fn read_again(&self, failed: &Arc<Target>) -> Option<Arc<Target>> {
        let text = std::fs::read_to_string(self.file.as_ref()?).ok().filter(|text| !text.trim().is_empty())?;
        let mut current = lock(&self.current);
        if text.trim() != current.0 {
            match text.trim().parse::<Target>() {
                Ok(target) => *current = (text.trim().to_owned(), Arc::new(target)),
                Err(error) => {
                    log::warn!(
                        "cannot use the new connection string in the database URL file; keeping the old one: {error}"
                    )
                }
            }
        }
        (!Arc::ptr_eq(&current.1, failed)).then(|| current.1.clone())
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
    wire: Wire,
    deadline: Duration,
    watch: Option<Watch>,
    lost: bool,
}

/// What moves the session's bytes.
struct Wire {
    /// `None` only during drop.
    runtime: Option<Runtime>,
    driver: Driver,
    notifications: VecDeque<Notification>,
    ended: Option<Error>,
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
        let wire = Wire { runtime: Some(runtime), driver, notifications: VecDeque::new(), ended: None };
        let mut connection = Self { client, statements: HashMap::new(), wire, deadline, watch, lost: false };
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
        self.run(async |client, statements| {
            let statement = prepared(client, statements, sql).await?;
            client.query(&statement, parameters).await
        })
    }

    /// Like [`query`](Self::query), for a statement that returns exactly one row.
    ///
    /// # Errors
    /// See [`Error`]; also if the number of rows is not one.
    pub fn query_one(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        self.run(async |client, statements| {
            let statement = prepared(client, statements, sql).await?;
            client.query_one(&statement, parameters).await
        })
    }

    /// Runs one statement, prepared once per connection, and returns how many rows it changed.
    pub fn execute(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.run(async |client, statements| {
            let statement = prepared(client, statements, sql).await?;
            client.execute(&statement, parameters).await
        })
    }

    /// Waits for a notification, at most `patience`; `None` if none came. Returns at once if one has already come.
    ///
    /// # Errors
    /// [`Error::Closed`] or the connection's own error if it ends meanwhile.
    pub fn wait_notification(&mut self, patience: Duration) -> Result<Option<Notification>, Error> {
        if self.wire.notifications.is_empty() && self.is_lost() {
            return Err(Error::Closed);
        }
        let arrival =
            |_: &mut Context<'_>, arrived: &mut VecDeque<_>| arrived.pop_front().map_or(Poll::Pending, Poll::Ready);
        match self.wire.drive(patience, None, arrival) {
            Ok(notification) => Ok(Some(notification)),
            Err(Error::TimedOut(_)) => Ok(None),
            Err(error) => {
                self.lost = true;
                Err(error)
            }
        }
    }

    /// Runs one operation to its end or the deadline. If that loses the connection, it is marked as lost.
    fn run<T>(
        &mut self,
        operation: impl AsyncFnOnce(&Client, &mut HashMap<String, Statement>) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, Error> {
        if self.is_lost() {
            return Err(Error::Closed);
        }
        let mut operation = pin!(operation(&self.client, &mut self.statements));
        let outcome = self.wire.drive(self.deadline, self.watch.as_ref(), |cx, _| operation.as_mut().poll(cx));
        let ended = self.wire.ended.take();
        self.lost = outcome.is_err() || ended.is_some();
        outcome?.map_err(|error| {
            let error = Error::from(error);
            // The driver's error says why the connection ended; the operation's says only that it did.
            if error.is_statement_error() { error } else { ended.unwrap_or(error) }
        })
    }
}

impl Wire {
    /// Moves bytes until `work` is done, at most for `limit`, and asks `watch` meanwhile whether to continue.
    fn drive<T>(
        &mut self,
        limit: Duration,
        watch: Option<&Watch>,
        mut work: impl FnMut(&mut Context<'_>, &mut VecDeque<Notification>) -> Poll<T>,
    ) -> Result<T, Error> {
        let Self { runtime, driver, notifications, ended } = self;
        let done = pin!(poll_fn(|cx| {
            // The driver first: it moves the bytes that the work waits for.
            while ended.is_none() {
                match driver.poll_message(cx) {
                    Poll::Ready(Some(Ok(message))) => keep(notifications, message),
                    Poll::Ready(Some(Err(error))) => *ended = Some(error.into()),
                    Poll::Ready(None) => *ended = Some(Error::Closed),
                    Poll::Pending => break,
                }
            }
            match work(cx, notifications) {
                Poll::Ready(output) => Poll::Ready(Ok(output)),
                // If the driver has ended, the work cannot complete.
                Poll::Pending => ended.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error))),
            }
        }));
        runtime.as_ref().ok_or(Error::Closed)?.block_on(watched(done, limit, watch))?
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A name look-up may still hang in the runtime's helper thread: never wait for it.
            runtime.shutdown_background();
        }
    }
}

/// Connects. If that fails and the file of the connection string has changed, tries once more with its new text.
async fn dial(settings: &Settings, name: &str) -> Result<(Client, Driver), Error> {
    let until = Instant::now() + settings.deadline;
    let target = lock(&settings.current).1.clone();
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
        if let Ok(output) = tokio::time::timeout(slice, future.as_mut()).await {
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

async fn prepared(
    client: &Client,
    statements: &mut HashMap<String, Statement>,
    sql: &str,
) -> Result<Statement, tokio_postgres::Error> {
    if let Some(statement) = statements.get(sql) {
        return Ok(statement.clone());
    }
    let statement = client.prepare(sql).await?;
    statements.insert(sql.to_owned(), statement.clone());
    Ok(statement)
}

fn keep(notifications: &mut VecDeque<Notification>, message: AsyncMessage) {
    match message {
        AsyncMessage::Notification(notification) => {
            if notifications.len() == NOTIFICATIONS_KEPT {
                notifications.pop_front();
            }
            notifications.push_back(notification);
        }
        AsyncMessage::Notice(notice) => log::debug!("PostgreSQL: {}", notice.message()),
        _ => {}
    }
}
