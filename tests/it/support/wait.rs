//! Waiting for a condition with a deadline, never for a fixed time.

use std::time::{Duration, Instant};

/// Longest wait for anything that should happen soon; generous, since the machines are noisy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks until `look` gives something; panics with `what` after [`PATIENCE`].
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
