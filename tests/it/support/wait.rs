//! Waiting for a condition with a deadline, never for a fixed time.

use std::time::{Duration, Instant};

/// Longest wait for something that should happen soon; generous, because test machines are noisy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Calls `look` until it returns something; panics with `what` after [`PATIENCE`].
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

/// The same with another patience, for example if many programs have to start first.
pub fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {patience:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
