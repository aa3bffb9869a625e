//! A request to stop, set by a signal handler and checked by every wait.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Shared by the thread that follows a feed and the threads that may end it. Clones share one state.
#[derive(Clone, Default)]
pub struct Stop(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopped: bool,
    interrupts: Vec<Box<dyn FnOnce() + Send>>,
}

impl Stop {
    /// A stop that is not requested yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests the stop: ends every [`sleep`](Self::sleep) and every blocking read of a feed. Doing so again changes
    /// nothing.
    pub fn ask(&self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stopped = true;
        let interrupts = std::mem::take(&mut state.interrupts);
        drop(state);
        self.0.changed.notify_all();
        for interrupt in interrupts {
            interrupt();
        }
    }

    /// Whether the stop was requested.
    pub fn is_asked(&self) -> bool {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).stopped
    }

    /// Waits for `duration`. Returns false if the stop was requested meanwhile.
    pub fn sleep(&self, duration: Duration) -> bool {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.changed.wait_timeout_while(state, duration, |state| !state.stopped);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stopped
    }

    /// Runs `interrupt` when the stop is requested, or at once if it already was.
    pub(super) fn on_ask(&self, interrupt: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            drop(state);
            interrupt();
        } else {
            state.interrupts.push(Box::new(interrupt));
        }
    }
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stop").field(&self.is_asked()).finish()
    }
}
