//! The connections for replay: few, opened when first needed, each used for one piece of work at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::db::{Connection, Error, Settings, Watch, event_log};

/// Longest wait for a connection; then the work is tried again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a thread that waits for a connection checks whether to continue.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// At most `--replay-connections` connections.
#[derive(Debug)]
pub struct ReplayPool {
    settings: Settings,
    /// The connections that nobody uses; `None` for one that is not open.
    free: Receiver<Option<Connection>>,
    returned: Sender<Option<Connection>>,
    waiting: AtomicUsize,
}

/// The right to use one connection. Dropping it returns both, also if the work panics.
struct Turn<'a> {
    pool: &'a ReplayPool,
    connection: Option<Connection>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.pool.returned.send(self.connection.take());
    }
}

impl Turn<'_> {
    /// Does the work, and keeps the connection if it can still be used.
    fn attempt<T>(
        &mut self,
        mut connection: Connection,
        watch: &Watch,
        work: &mut impl FnMut(&mut Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        connection.watch(Some(watch.clone()));
        let outcome = work(&mut connection);
        connection.watch(None);
        let is_lost = connection.is_lost() || outcome.as_ref().is_err_and(|error| !error.is_statement_error());
        self.connection = (!is_lost).then_some(connection);
        outcome
    }
}

impl ReplayPool {
    /// A pool of at most `connections` connections. None of them is open yet.
    pub fn new(settings: Settings, connections: usize) -> Self {
        let (returned, free) = bounded(connections);
        for _ in 0..connections {
            let _ = returned.send(None);
        }
        Self { settings, free, returned, waiting: AtomicUsize::new(0) }
    }

    /// The most connections it may have.
    pub fn size(&self) -> usize {
        self.free.capacity().unwrap_or(0)
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.size() - self.free.len()
    }

    /// How many threads wait for one.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Does one piece of work with a connection. Blocks until one is free and the work is done; meanwhile asks `watch`
    /// ten times a second whether to continue.
    ///
    /// # Errors
    /// The error of the work; [`Error::GivenUp`] if `watch` said to stop. A connection that was lost while idle is
    /// replaced once.
    pub fn with<T>(
        &self,
        watch: &Watch,
        mut work: impl FnMut(&mut Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let turn = self.wait(watch);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let mut turn = turn?;
        if let Some(idle) = turn.connection.take() {
            match turn.attempt(idle, watch, &mut work) {
                Err(error) if turn.connection.is_none() && !matches!(error, Error::TimedOut(_) | Error::GivenUp) => {}
                outcome => return outcome,
            }
        }
        let mut connection =
            Connection::open(&self.settings.clone().with_watch(Some(watch.clone())), "signal-feed replay")?;
        event_log::read_by_index(&mut connection)?;
        turn.attempt(connection, watch, &mut work)
    }

    fn wait(&self, watch: &Watch) -> Result<Turn<'_>, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(connection) = self.free.recv_timeout(WATCH_EVERY) {
                return Ok(Turn { pool: self, connection });
            }
            if !watch() {
                return Err(Error::GivenUp);
            }
            if Instant::now() >= until {
                return Err(Error::TimedOut(PATIENCE));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::*;

    fn pool() -> ReplayPool {
        ReplayPool::new("postgres://nobody@localhost/none".parse().unwrap(), 1)
    }

    #[test]
    fn a_panic_returns_the_turn() {
        let pool = pool();
        let watch: Watch = Arc::new(|| true);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _turn = pool.wait(&watch).unwrap();
            panic!("as if by a fault of its own")
        }));
        assert!(panicked.is_err());
        assert!(pool.wait(&watch).is_ok());
    }

    #[test]
    fn a_thread_that_waits_for_a_connection_gives_up_when_asked() {
        let pool = pool();
        let go_on: Watch = Arc::new(|| true);
        let _turn = pool.wait(&go_on).unwrap();
        let give_up: Watch = Arc::new(|| false);
        assert!(matches!(pool.wait(&give_up), Err(Error::GivenUp)));
    }
}
