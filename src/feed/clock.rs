//! The database's clock, known between two looks at it.

use std::sync::Mutex;
use std::time::Instant;

use super::lock;
use crate::event::EventTime;

/// The database's clock as it was last read, carried on by this machine's monotonic one.
#[derive(Debug)]
pub struct DatabaseClock {
    read: Mutex<(EventTime, Instant)>,
}

impl Default for DatabaseClock {
    /// Until it is first read, a time so early that no key has ended and no event is due.
    fn default() -> Self {
        Self { read: Mutex::new((EventTime(i64::MIN / 2), Instant::now())) }
    }
}

impl DatabaseClock {
    /// Takes over a reading that was asked for at `asked` and has just arrived. Its error is less than the time between.
    pub fn set(&self, time: EventTime, asked: Instant) {
        *lock(&self.read) = (time, asked);
    }

    /// The database's time now.
    pub fn now(&self) -> EventTime {
        let (time, at) = *lock(&self.read);
        time.plus(at.elapsed())
    }
}
