//! Capped exponential back-off with full jitter: each wait is random between nothing and a limit that doubles.

use std::time::Duration;

use crate::random::random_between;

#[derive(Debug, Clone)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// The first wait is at most `min`. The limit doubles with each failure, up to `max`.
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min: min.min(max), max, failures: 0 }
    }

    /// The wait after one more failure.
    pub(super) fn next_wait(&mut self) -> Duration {
        let limit = self.limit();
        self.failures = self.failures.saturating_add(1);
        random_between(Duration::ZERO, limit)
    }

    /// Starts again from the minimum, after the work succeeded for long enough.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    fn limit(&self) -> Duration {
        // 2^31 times the minimum exceeds every maximum.
        self.min.saturating_mul(1 << self.failures.min(31)).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_doubles_up_to_the_cap_and_every_wait_lies_below_it() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        for limit in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(backoff.limit(), Duration::from_secs(limit));
            assert!(backoff.next_wait() <= Duration::from_secs(limit));
        }
        for _ in 0..100 {
            assert!(backoff.next_wait() <= Duration::from_secs(60));
        }
        backoff.reset();
        assert_eq!(backoff.limit(), Duration::from_secs(1));
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let mut backoff = Backoff::new(Duration::from_secs(60), Duration::from_secs(60));
        let waits: Vec<Duration> = (0..200).map(|_| backoff.next_wait()).collect();
        assert!(waits.iter().any(|wait| wait.as_secs() < 15));
        assert!(waits.iter().any(|wait| wait.as_secs() >= 45));
    }
}
