//! The head of the log as a key sees it: the newest event, or, for a delayed key, the newest one that is old enough.

use std::time::Duration;

use super::Feed;
use crate::db::event_log;
use crate::db::{Error, Watch};
use crate::event::{EventTime, FeedSeq};
use crate::sync::lock;

/// The highest number that a stream may be sent.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// The number.
    pub seq: FeedSeq,
    /// The time of its event, if the log has it.
    pub time: Option<EventTime>,
    /// The generation of the log that this was found in.
    pub generation: u64,
    /// Events up to this time were due when this was found: the database's time less the delay.
    pub due: EventTime,
    /// For a delayed key: the time of the event that is due next, if one is known.
    pub next_due: Option<EventTime>,
}

impl Feed {
    /// The head for keys with this delay, if memory gives it. Without a delay it always does.
    pub fn recall_head(&self, delay: Duration) -> Option<Head> {
        let read = self.delayed_heads.get(delay);
        let due = self.due(delay);
        let tail = lock(&self.tail);
        let generation = tail.generation();
        let head = |(seq, time), next_due| Head { seq, time, generation, due, next_due };
        if delay.is_zero() {
            return Some(head((tail.head(), tail.head_time()), None));
        }
        let (newest, next) = tail.due(due);
        if let Some((seq, time)) = newest {
            return Some(head((seq, Some(time)), next));
        }
        // Everything in the tail is too new. The last reading is valid until the next event is due.
        let read = read.filter(|read| read.generation == generation)?;
        let holds = match read.next_due {
            Some(next) => due < next,
            None => tail.covers(read.seq),
        };
        let next_due = read.next_due.into_iter().chain(next).min();
        holds.then(|| head((read.seq, read.time), next_due))
    }

    /// Reads the head for keys with this delay, at least the row `known` if that is due. If `known` is 0, another
    /// thread's answer is good enough.
    ///
    /// # Errors
    /// What reading the log failed with.
    pub(super) fn read_head(&self, delay: Duration, known: FeedSeq, watch: &Watch) -> Result<Head, Error> {
        let _permit = self.delayed_heads.turn(watch)?;
        if let (FeedSeq(0), Some(head)) = (known, self.recall_head(delay)) {
            return Ok(head);
        }
        let (generation, due) = (lock(&self.tail).generation(), self.due(delay));
        let read = self.replay.with(watch, |connection| event_log::read_due_head(connection, due, known))?;
        let head = Head { seq: read.seq, time: read.time, generation, due, next_due: read.next_due };
        self.delayed_heads.set(delay, Some(head));
        Ok(head)
    }

    /// Forgets the head for keys with this delay: the log that it belongs to was replaced.
    pub(super) fn forget_head(&self, delay: Duration) {
        self.delayed_heads.set(delay, None);
    }

    /// Events are due for keys with this delay if they are not later than this: the database's time less the delay.
    pub(super) fn due(&self, delay: Duration) -> EventTime {
        self.clock.now().minus(delay)
    }
}
