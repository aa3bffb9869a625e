//! Whether delivery works, as the threads `listen` and `reader` report it.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::Feed;
use crate::sync::lock;

/// The feed is ready only if each part was proven to work within this time, 10 s: a silent database is noticed by then.
const PROOF_LASTS: Duration = Duration::from_secs(10);

/// What delivery needs from the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Log,
    /// Notifications arrive; on a standby, it streams from a primary.
    Listen,
}

/// What is known of one part; nothing before it was tried.
#[derive(Debug, Default, PartialEq, Eq)]
struct PartState {
    /// When it was last proven to work; `None` while it does not.
    proven: Option<Instant>,
    /// Why it does not, as it was logged.
    cause: Option<String>,
}

#[derive(Debug)]
struct Inner {
    parts: [PartState; 2],
    /// Since when the feed has been live, or not.
    since: Instant,
}

impl Inner {
    fn is_live(&self) -> bool {
        self.parts.iter().all(|part| part.proven.is_some())
    }

    fn is_tried(&self) -> bool {
        !self.parts.contains(&PartState::default())
    }
}

#[derive(Debug)]
pub(crate) struct Health {
    /// Locked to read or note a report.
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Written under the lock, read without it: every stream reads it at every turn.
    epoch: AtomicU64,
    stopping: AtomicBool,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner { parts: Default::default(), since: Instant::now() }),
            changed: Condvar::new(),
            epoch: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }
}

impl Feed {
    /// Reports that a part of delivery was proven to work by something that began `at` this time.
    pub(super) fn proven(&self, part: Part, at: Instant) {
        self.report(part, PartState { proven: Some(at), cause: None });
        self.health.changed.notify_all();
    }

    /// Reports that `doing` something failed, without which a part does not work. Logs each cause once: they change while a
    /// database stops and starts again. A server that stops gives its calls up, which is no loss.
    pub(super) fn lost(&self, part: Part, doing: &str, why: &dyn Display) {
        if self.health.is_stopping() {
            return;
        }
        let cause = format!("{doing}: {why}");
        let lost = PartState { proven: None, cause: Some(cause.clone()) };
        if lock(&self.health.inner).parts[part as usize] != lost {
            log::error!("{cause}");
        }
        self.report(part, lost);
    }

    /// Notes a report. If it changes the state, every stream is woken, and writes `degraded` or `recovered`.
    fn report(&self, part: Part, known: PartState) {
        let mut inner = lock(&self.health.inner);
        let (was_live, was_tried) = (inner.is_live(), inner.is_tried());
        inner.parts[part as usize] = known;
        let (live, is_tried) = (inner.is_live(), inner.is_tried());
        if (live, is_tried) == (was_live, was_tried) {
            return;
        }
        let lasted = inner.since.elapsed().as_secs_f64();
        let changes_before = (live != was_live).then(|| {
            inner.since = Instant::now();
            self.health.epoch.fetch_add(1, Ordering::AcqRel)
        });
        drop(inner);
        match changes_before {
            None => {}
            Some(0) => log::info!("live: connected to the database (after {lasted:.1} s)"),
            Some(_) if live => log::info!("live: connected to the database (was away {lasted:.1} s)"),
            Some(_) => log::error!("degraded: lost the database connection; open streams stay, new requests wait"),
        }
        self.health.changed.notify_all();
        // What one part noticed, the reader checks for the other: a restart closes all connections.
        self.wake_reader();
        self.clients.wake_all();
    }
}

impl Health {
    /// The number of changes so far, odd while live. Comparing two values shows what happened in between.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The state in one word: `starting` until the first success, `live`, `degraded` or `stopping`.
    pub(crate) fn state(&self) -> &'static str {
        match self.epoch() {
            _ if self.is_stopping() => "stopping",
            0 => "starting",
            epoch if epoch % 2 == 1 => "live",
            _ => "degraded",
        }
    }

    /// Waits, at most `patience`, until a part was proven to work by something that began later than `then`. Returns
    /// whether it was.
    pub(super) fn wait_proven(&self, part: Part, then: Instant, patience: Duration) -> bool {
        let is_old = |inner: &mut Inner| inner.parts[part as usize].proven < Some(then);
        let waited = self.changed.wait_timeout_while(lock(&self.inner), patience, is_old);
        waited.is_ok_and(|(_, outcome)| !outcome.timed_out())
    }

    /// How long ago a part was last proven to work; `None` while it does not.
    pub(crate) fn proven_for(&self, part: Part) -> Option<Duration> {
        lock(&self.inner).parts[part as usize].proven.map(|at| at.elapsed())
    }

    /// Whether both parts were proven to work recently.
    pub(crate) fn is_ready(&self) -> bool {
        let is_fresh = |part: &PartState| part.proven.is_some_and(|at| at.elapsed() < PROOF_LASTS);
        lock(&self.inner).parts.iter().all(is_fresh) && !self.is_stopping()
    }

    /// Whether each part was tried once: before, nobody knows whether the database is there.
    pub(crate) fn is_tried(&self) -> bool {
        lock(&self.inner).is_tried()
    }

    /// How long the feed has not been live; `None` while it is.
    pub(crate) fn outage(&self) -> Option<Duration> {
        let inner = lock(&self.inner);
        self.epoch().is_multiple_of(2).then(|| inner.since.elapsed())
    }

    /// Waits for the next report, or for `patience`. Returns at once while stopping.
    pub(crate) fn wait_change(&self, patience: Duration) {
        let inner = lock(&self.inner);
        if !self.is_stopping() {
            let _unused = self.changed.wait_timeout(inner, patience);
        }
    }

    pub(crate) fn stop(&self) {
        let inner = lock(&self.inner);
        self.stopping.store(true, Ordering::Release);
        drop(inner);
        self.changed.notify_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Waits for `time`, or until the server stops.
    pub(crate) fn pause(&self, time: Duration) {
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
