//! The database's clock, estimated between two readings.

use std::sync::Mutex;
use std::time::Instant;

use crate::event::EventTime;
use crate::sync::lock;

/// The database's clock as it was last read, carried on by this machine's monotonic clock. It is never ahead of the
/// database's: a reading counts from when its answer arrived.
#[derive(Debug)]
pub struct DatabaseClock {
    /// Locked to copy a reading in or out.
    read: Mutex<(EventTime, Instant)>,
}

impl Default for DatabaseClock {
    /// Until it is first read, a time so early that no key has expired and no event is due.
    fn default() -> Self {
        Self { read: Mutex::new((EventTime(i64::MIN / 2), Instant::now())) }
    }
}

impl DatabaseClock {
    /// Sets the clock to a reading whose answer has just arrived.
    pub fn set(&self, time: EventTime) {
        *lock(&self.read) = (time, Instant::now());
    }

    /// The database's time now, or a little earlier.
    pub fn now(&self) -> EventTime {
        let (time, at) = *lock(&self.read);
        time.plus(at.elapsed())
    }
}
