//! The two ends of the log as a key sees them. The head is the newest event, or, for a delayed key, the newest one that
//! is old enough. The other end is where the replay window begins: one indexed query, kept for a second.

use std::time::{Duration, Instant};

use super::Feed;
use super::writer::Position;
use crate::db::event_log::{self, WindowStart};
use crate::db::{Error, Watch};
use crate::event::{EventTime, FeedSeq};
use crate::sync::lock;

const WINDOW_KEPT: Duration = Duration::from_secs(1);

/// The highest number that a stream may be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub seq: FeedSeq,
    /// The time of its event, if the log has it.
    pub time: Option<EventTime>,
    pub generation: u64,
    /// Events up to this time were due when this was found: the database's time less the delay.
    pub due: EventTime,
    /// For a delayed key: the time of the event that is due next, if one is known.
    pub next_due: Option<EventTime>,
}

impl Head {
    /// The position of a stream that has everything up to here.
    pub(super) fn position(self) -> Position {
        Position { cursor: self.seq, time: self.time, generation: self.generation }
    }
}

/// Where the replay window began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    read_at: Instant,
    generation: u64,
    start: WindowStart,
}

impl Feed {
    /// The head for keys with this delay, if memory gives it. Without a delay it always does.
    pub(crate) fn recall_head(&self, delay: Duration) -> Option<Head> {
        let read = lock(&self.delayed_heads).get(&delay).copied();
        let due = self.due(delay);
        let tail = lock(&self.tail);
        let generation = tail.generation;
        let head = |(seq, time), next_due| Head { seq, time, generation, due, next_due };
        if delay.is_zero() {
            return Some(head((tail.head, tail.head_time), None));
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
    pub(super) fn read_head(&self, delay: Duration, known: FeedSeq, watch: &Watch) -> Result<Head, Error> {
        let _turn = self.asking.wait(watch)?;
        if let (FeedSeq(0), Some(head)) = (known, self.recall_head(delay)) {
            return Ok(head);
        }
        self.replay.with(watch, |connection| {
            let (generation, due) = (lock(&self.tail).generation, self.due(delay));
            let read = event_log::read_due_head(connection, due, known)?;
            let head = Head { seq: read.seq, time: read.time, generation, due, next_due: read.next_due };
            lock(&self.delayed_heads).insert(delay, head);
            Ok(head)
        })
    }

    /// Forgets the head for keys with this delay: the log that it belongs to was replaced.
    pub(super) fn forget_head(&self, delay: Duration) {
        lock(&self.delayed_heads).remove(&delay);
    }

    /// The lowest number that a consumer of a key with this delay can still be given, the head's successor if there is
    /// none; and the number of the row before it. May read the log.
    pub(crate) fn earliest(&self, delay: Duration, head: Head, watch: &Watch) -> Result<WindowStart, Error> {
        let recall = || {
            let is_fresh =
                |known: &Window| known.generation == head.generation && known.read_at.elapsed() < WINDOW_KEPT;
            lock(&self.windows).get(&delay).copied().filter(is_fresh).map(|known| known.start)
        };
        if let Some(start) = recall() {
            return Ok(start);
        }
        let _turn = self.asking.wait(watch)?;
        if let Some(start) = recall() {
            return Ok(start);
        }
        self.replay.with(watch, |connection| {
            let begin = self.due(delay).minus(self.options.replay_window);
            let due = if delay.is_zero() { EventTime(i64::MAX) } else { head.due };
            let found = event_log::read_window_start(connection, begin, due, head.seq)?;
            let start = found.unwrap_or(WindowStart { seq: head.seq.next(), prev: head.seq });
            let window = Window { read_at: Instant::now(), generation: head.generation, start };
            lock(&self.windows).insert(delay, window);
            Ok(start)
        })
    }

    /// The lowest number that can still be replayed without a delay, as last read; 0 if it never was. Reads nothing.
    pub(crate) fn last_earliest(&self) -> FeedSeq {
        lock(&self.windows).get(&Duration::ZERO).map_or(FeedSeq(0), |known| known.start.seq)
    }

    /// Events are due for keys with this delay if they are not later than this: the database's time less the delay.
    pub(super) fn due(&self, delay: Duration) -> EventTime {
        self.now().minus(delay)
    }
}
