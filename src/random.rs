//! Random numbers for jitter and for unique names. Not for secrets.

use std::time::Duration;

/// A random number.
pub fn random_u64() -> u64 {
    // Poor randomness is good enough for jitter.
    getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()))
}

/// A random duration from `least` to `most`, in whole milliseconds.
pub fn random_between(least: Duration, most: Duration) -> Duration {
    let span = u64::try_from(most.saturating_sub(least).as_millis()).unwrap_or(u64::MAX);
    least + Duration::from_millis(random_u64() % span.saturating_add(1))
}
