//! The connections for replay: few, made when first needed, lent out for one page at a time.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::lock;
use crate::db::{Connection, Error, Settings};

/// Longest wait for a connection; then the page is tried again.
const PATIENCE: Duration = Duration::from_secs(10);

/// At most `--replay-connections` connections. Who waits longest is served first, and with the connection that was used
/// last: its backend has the log's pages, and what it knows of the tables, in its processor's caches.
#[derive(Debug)]
pub struct ReplayPool {
    settings: Settings,
    /// Leaves to use a connection, which may have to be made.
    returned: Sender<()>,
    free: Receiver<()>,
    idle: Mutex<Vec<Connection>>,
    size: usize,
    waiting: AtomicUsize,
}

impl ReplayPool {
    /// A pool of at most `connections` connections, none of them made yet.
    pub fn new(settings: Settings, connections: usize) -> Self {
        let (returned, free) = bounded(connections);
        for _ in 0..connections {
            let _ = returned.send(());
        }
        Self { settings, returned, free, idle: Mutex::default(), size: connections, waiting: AtomicUsize::new(0) }
    }

    /// How many connections it may have.
    pub fn size(&self) -> usize {
        self.size
    }

    /// How many are lent out.
    pub fn in_use(&self) -> usize {
        self.size.saturating_sub(self.free.len())
    }

    /// How many threads wait for one, or have just been given one.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Lends a connection for one piece of work. Blocks until one is free, and while the work is done: never while a socket blocks.
    ///
    /// # Errors
    /// What the work failed with; a connection that was lost while it lay idle is replaced once.
    pub fn with<T>(&self, mut work: impl FnMut(&mut Connection) -> Result<T, Error>) -> Result<T, Error> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let lent = self.free.recv_timeout(PATIENCE);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if lent.is_err() {
            return Err(Error::TimedOut(PATIENCE));
        }
        let mut slot = lock(&self.idle).pop();
        let was_idle = slot.is_some();
        let mut outcome = self.attempt(&mut slot, &mut work);
        if was_idle && slot.is_none() && !matches!(outcome, Ok(_) | Err(Error::TimedOut(_))) {
            outcome = self.attempt(&mut slot, &mut work);
        }
        if let Some(connection) = slot {
            lock(&self.idle).push(connection);
        }
        let _ = self.returned.send(());
        outcome
    }

    fn attempt<T>(
        &self,
        slot: &mut Option<Connection>,
        work: &mut impl FnMut(&mut Connection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => Connection::open(&self.settings, "signal-feed replay")?,
        };
        let outcome = work(&mut connection);
        let usable = match &outcome {
            Ok(_) => true,
            Err(error) => error.is_statement_error(),
        };
        if usable && !connection.is_lost() {
            *slot = Some(connection);
        }
        outcome
    }
}
