//! Whether delivery works, as the threads `listen` and `reader` report it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::sync::lock;

/// The feed is ready only if each part was proven to work within this time, 10 s: a silent database is noticed by then.
const PROOF_LASTS: Duration = Duration::from_secs(10);

/// What delivery needs from the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The log can be read.
    Log,
    /// Notifications arrive; on a standby, it streams from a primary.
    Listen,
}

/// What the feed reports about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No attempt at the database has succeeded yet.
    Starting,
    /// Events are delivered.
    Live,
    /// The database was lost.
    Degraded,
}

#[derive(Debug)]
struct Inner {
    log_proven: Option<Instant>,
    listen_proven: Option<Instant>,
    log_up: bool,
    listen_up: bool,
    /// Whether an attempt has ended, successful or not.
    log_tried: bool,
    listen_tried: bool,
    since: Instant,
}

/// The state of delivery, shared by all threads.
#[derive(Debug)]
pub struct Health {
    inner: Mutex<Inner>,
    changed: Condvar,
    wakes: Mutex<Vec<Sender<()>>>,
    /// Written under the lock, read without it: every stream reads it at every turn.
    epoch: AtomicU64,
    stopping: AtomicBool,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                log_proven: None,
                listen_proven: None,
                log_up: false,
                listen_up: false,
                log_tried: false,
                listen_tried: false,
                since: Instant::now(),
            }),
            changed: Condvar::new(),
            wakes: Mutex::new(Vec::new()),
            epoch: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }
}

impl Health {
    /// From now on, sends to `wake` at every change of state, if `wake` has room.
    pub fn wake_on_change(&self, wake: Sender<()>) {
        lock(&self.wakes).push(wake);
    }

    /// Reports that a part has just been proven to work.
    pub fn proven(&self, part: Part) {
        self.report(part, true);
    }

    /// Reports that a part was lost.
    pub fn lost(&self, part: Part) {
        self.report(part, false);
    }

    fn report(&self, part: Part, up: bool) {
        let mut inner = lock(&self.inner);
        let was_live = inner.log_up && inner.listen_up;
        let proof = up.then(Instant::now);
        match part {
            Part::Log => (inner.log_tried, inner.log_up, inner.log_proven) = (true, up, proof),
            Part::Listen => (inner.listen_tried, inner.listen_up, inner.listen_proven) = (true, up, proof),
        }
        self.changed.notify_all();
        let live = inner.log_up && inner.listen_up;
        if live == was_live {
            return;
        }
        let changes_before = self.epoch.fetch_add(1, Ordering::AcqRel);
        let lasted = inner.since.elapsed();
        inner.since = Instant::now();
        drop(inner);
        if live && changes_before == 0 {
            log::info!("live: connected to the database (after {:.1} s)", lasted.as_secs_f64());
        } else if live {
            log::info!("live: connected to the database (was away {:.1} s)", lasted.as_secs_f64());
        } else {
            log::error!("degraded: lost the database connection; open streams stay, new requests wait");
        }
        self.changed.notify_all();
        for wake in lock(&self.wakes).iter() {
            let _ = wake.try_send(());
        }
    }

    /// The number of changes so far, odd while live. Comparing two values shows what happened in between.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The present state.
    pub fn state(&self) -> State {
        match self.epoch() {
            0 => State::Starting,
            epoch if epoch % 2 == 1 => State::Live,
            _ => State::Degraded,
        }
    }

    /// Whether a part works, and how long ago that was last proven.
    pub fn part(&self, part: Part) -> (bool, Option<Duration>) {
        let inner = lock(&self.inner);
        let (up, proven) = match part {
            Part::Log => (inner.log_up, inner.log_proven),
            Part::Listen => (inner.listen_up, inner.listen_proven),
        };
        (up, proven.map(|at| at.elapsed()))
    }

    /// Whether both parts were proven to work recently.
    pub fn is_ready(&self) -> bool {
        let inner = lock(&self.inner);
        let fresh = |proof: Option<Instant>| proof.is_some_and(|at| at.elapsed() < PROOF_LASTS);
        inner.log_up && inner.listen_up && fresh(inner.log_proven) && fresh(inner.listen_proven) && !self.is_stopping()
    }

    /// How long the feed has not been live; `None` while it is.
    pub fn outage(&self) -> Option<Duration> {
        let inner = lock(&self.inner);
        self.epoch().is_multiple_of(2).then(|| inner.since.elapsed())
    }

    /// Waits until each part was tried once, at most `patience`.
    pub fn wait_tried(&self, patience: Duration) {
        let inner = lock(&self.inner);
        let _unused =
            self.changed.wait_timeout_while(inner, patience, |inner| !(inner.log_tried && inner.listen_tried));
    }

    /// Waits for the next change of state, or for `patience`. Returns at once while stopping.
    pub fn wait_change(&self, patience: Duration) {
        let inner = lock(&self.inner);
        if !self.is_stopping() {
            let _unused = self.changed.wait_timeout(inner, patience);
        }
    }

    /// Stops the server: wakes every thread that waits here.
    pub fn stop(&self) {
        let inner = lock(&self.inner);
        self.stopping.store(true, Ordering::Release);
        drop(inner);
        self.changed.notify_all();
        for wake in lock(&self.wakes).iter() {
            let _ = wake.try_send(());
        }
    }

    /// Whether the server stops.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

impl Health {
    /// Waits for `time`, or until the server stops.
    pub fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut inner = lock(&self.inner);
        while !self.is_stopping() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}
