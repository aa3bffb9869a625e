//! The connections for replay: few, opened when first needed, each used for one piece of work at a time.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::db::{Connection, Error, Settings, Watch, event_log};
use crate::sync::lock;

/// Longest wait for a connection; then the work is tried again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a thread that waits for a connection checks whether to continue.
const WATCH_EVERY: Duration = Duration::from_millis(100);

/// Permits for work that only a limited number of threads may do at once.
#[derive(Debug)]
struct Permits {
    returned: Sender<()>,
    free: Receiver<()>,
}

/// One permit. Dropping it returns it, also if the work panics.
pub(super) struct Permit<'a>(&'a Permits);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let _ = self.0.returned.send(());
    }
}

impl Permits {
    fn new(count: usize) -> Self {
        let (returned, free) = bounded(count);
        for _ in 0..count {
            let _ = returned.send(());
        }
        Self { returned, free }
    }

    /// Blocks until one is free, and asks `watch` meanwhile, ten times a second, whether to continue.
    fn wait(&self, watch: &Watch) -> Result<Permit<'_>, Error> {
        let until = Instant::now() + PATIENCE;
        loop {
            if self.free.recv_timeout(WATCH_EVERY).is_ok() {
                return Ok(Permit(self));
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

/// What the log answered for keys of each delay. One thread queries at a time, and the others use its answer.
#[derive(Debug)]
pub(super) struct Answers<T> {
    permits: Permits,
    /// Locked to copy an answer in or out, never during the query.
    by_delay: Mutex<HashMap<Duration, T>>,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self { permits: Permits::new(1), by_delay: Mutex::default() }
    }
}

impl<T: Copy> Answers<T> {
    pub(super) fn get(&self, delay: Duration) -> Option<T> {
        lock(&self.by_delay).get(&delay).copied()
    }

    pub(super) fn set(&self, delay: Duration, answer: Option<T>) {
        let mut by_delay = lock(&self.by_delay);
        match answer {
            Some(answer) => by_delay.insert(delay, answer),
            None => by_delay.remove(&delay),
        };
    }

    /// Blocks until no other thread queries, and meanwhile asks `watch` whether to continue.
    pub(super) fn turn(&self, watch: &Watch) -> Result<Permit<'_>, Error> {
        self.permits.wait(watch)
    }
}

/// At most `--replay-connections` connections. The one used last is used next: its backend has the log's pages in its
/// processor's caches.
#[derive(Debug)]
pub struct ReplayPool {
    settings: Settings,
    permits: Permits,
    /// Locked to take a connection out or to put it back, never while one is used.
    idle: Mutex<Vec<Connection>>,
    size: usize,
    waiting: AtomicUsize,
}

impl ReplayPool {
    /// A pool of at most `connections` connections. None of them is open yet.
    pub fn new(settings: Settings, connections: usize) -> Self {
        let permits = Permits::new(connections);
        Self { settings, permits, idle: Mutex::default(), size: connections, waiting: AtomicUsize::new(0) }
    }

    /// The most connections it may have.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.size.saturating_sub(self.permits.free.len())
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
        let permit = self.permits.wait(watch);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let _permit = permit?;
        let idle = lock(&self.idle).pop();
        if let Some(connection) = idle {
            match self.attempt(connection, watch, &mut work) {
                (Err(error), is_lost) if is_lost && !matches!(error, Error::TimedOut(_) | Error::GivenUp) => {}
                (outcome, _) => return outcome,
            }
        }
        let mut connection =
            Connection::open(&self.settings.clone().with_watch(Some(watch.clone())), "signal-feed replay")?;
        event_log::read_by_index(&mut connection)?;
        self.attempt(connection, watch, &mut work).0
    }

    /// Does the work, and keeps the connection if it can still be used. Says whether it was lost.
    fn attempt<T>(
        &self,
        mut connection: Connection,
        watch: &Watch,
        work: &mut impl FnMut(&mut Connection) -> Result<T, Error>,
    ) -> (Result<T, Error>, bool) {
        connection.watch(Some(watch.clone()));
        let outcome = work(&mut connection);
        connection.watch(None);
        let is_lost = connection.is_lost() || outcome.as_ref().is_err_and(|error| !error.is_statement_error());
        if !is_lost {
            lock(&self.idle).push(connection);
        }
        (outcome, is_lost)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_panic_returns_the_permit() {
        let permits = Permits::new(1);
        let watch: Watch = Arc::new(|| true);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _permit = permits.wait(&watch).unwrap();
            panic!("as if by a fault of its own")
        }));
        assert!(panicked.is_err());
        assert!(permits.wait(&watch).is_ok());
    }

    #[test]
    fn a_thread_that_waits_for_a_permit_gives_up_when_asked() {
        let permits = Permits::new(1);
        let go_on: Watch = Arc::new(|| true);
        let _permit = permits.wait(&go_on).unwrap();
        let give_up: Watch = Arc::new(|| false);
        assert!(matches!(permits.wait(&give_up), Err(Error::GivenUp)));
    }
}
