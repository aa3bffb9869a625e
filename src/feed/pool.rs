//! The connections for replay: few, opened when first needed, each used for one piece of work at a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::db::{Connection, Error, Settings, Watch, event_log};
use crate::sync::lock;

/// Longest wait for a turn; then the work is tried again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a thread that waits for its turn checks whether to continue.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// Turns at work that only a limited number of threads may do at once.
#[derive(Debug)]
pub(super) struct Turns {
    free: Receiver<()>,
    returned: Sender<()>,
}

/// One turn. Dropping it ends it, also if the work panics.
pub(super) struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.0.returned.send(());
    }
}

impl Turns {
    pub(super) fn new(at_once: usize) -> Self {
        let (returned, free) = bounded(at_once);
        for _ in 0..at_once {
            let _ = returned.send(());
        }
        Self { free, returned }
    }

    /// Blocks until it is this thread's turn, and asks `watch` meanwhile, ten times a second, whether to continue.
    pub(super) fn wait(&self, watch: &Watch) -> Result<Turn<'_>, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.free.recv_timeout(WATCH_EVERY).is_ok() {
                return Ok(Turn(self));
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

/// At most `--replay-connections` connections. The one used last is used next: its backend has the log's pages in its
/// processor's caches, and the others need not be open.
#[derive(Debug)]
pub(crate) struct ReplayPool {
    settings: Settings,
    turns: Turns,
    /// Locked to take a connection out or to put it back, never while one is used.
    idle: Mutex<Vec<Connection>>,
    waiting: AtomicUsize,
}

impl ReplayPool {
    pub(crate) fn new(settings: Settings, connections: usize) -> Self {
        Self { settings, turns: Turns::new(connections), idle: Mutex::default(), waiting: AtomicUsize::new(0) }
    }

    pub(crate) fn size(&self) -> usize {
        self.turns.free.capacity().unwrap_or(0)
    }

    pub(crate) fn in_use(&self) -> usize {
        self.size() - self.turns.free.len()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Does one piece of work with a connection. Blocks until one is free and the work is done; meanwhile asks `watch`
    /// ten times a second whether to continue.
    ///
    /// # Errors
    /// The error of the work; [`Error::GivenUp`] if `watch` said to stop. A connection that was lost while idle is
    /// replaced once.
    pub(crate) fn with<T>(
        &self,
        watch: &Watch,
        mut work: impl FnMut(&mut Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let turn = self.turns.wait(watch);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let _turn = turn?;
        let idle = lock(&self.idle).pop();
        if let Some(mut connection) = idle {
            connection.watch(Some(watch.clone()));
            let outcome = work(&mut connection);
            let is_kept = self.keep(connection, &outcome);
            if matches!(outcome, Err(Error::TimedOut(_))) {
                // What has silenced this one, a firewall for example, has probably silenced the other idle ones too.
                lock(&self.idle).clear();
            }
            if is_kept || !outcome.as_ref().is_err_and(|error| !matches!(error, Error::TimedOut(_) | Error::GivenUp)) {
                return outcome;
            }
        }
        let mut connection =
            Connection::open(&self.settings.clone().with_watch(Some(watch.clone())), "signal-feed replay")?;
        event_log::read_by_index(&mut connection)?;
        let outcome = work(&mut connection);
        self.keep(connection, &outcome);
        outcome
    }

    /// Keeps a connection if it can still be used after work with this outcome. Returns whether it can.
    fn keep<T>(&self, mut connection: Connection, outcome: &Result<T, Error>) -> bool {
        connection.watch(None);
        let is_lost = connection.is_lost() || outcome.as_ref().is_err_and(|error| !error.is_statement_error());
        if !is_lost {
            lock(&self.idle).push(connection);
        }
        !is_lost
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_panic_returns_the_turn() {
        let turns = Turns::new(1);
        let watch: Watch = Arc::new(|| true);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _turn = turns.wait(&watch).unwrap();
            panic!("as if by a fault of its own")
        }));
        assert!(panicked.is_err());
        assert!(turns.wait(&watch).is_ok());
    }

    #[test]
    fn a_thread_that_waits_for_its_turn_gives_up_when_asked() {
        let turns = Turns::new(1);
        let go_on: Watch = Arc::new(|| true);
        let _turn = turns.wait(&go_on).unwrap();
        let give_up: Watch = Arc::new(|| false);
        assert!(matches!(turns.wait(&give_up), Err(Error::GivenUp)));
    }
}
