//! A request to stop, set by a signal handler and checked by every wait.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::sync::lock;

/// Shared by the thread that follows a feed and the threads that may end it. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// A stop that is not requested yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests the stop, which ends every [`sleep`](Self::sleep). Doing so again changes nothing.
    pub fn ask(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Whether the stop was requested.
    pub fn is_asked(&self) -> bool {
        *lock(&self.0.0)
    }

    /// Waits for `duration`. Returns false if the stop was requested meanwhile.
    pub fn sleep(&self, duration: Duration) -> bool {
        let waited = self.0.1.wait_timeout_while(lock(&self.0.0), duration, |is_asked| !*is_asked);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
