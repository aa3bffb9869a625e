//! The newest part of the log in memory. Every stream reads it first, so most replays need no query.

use std::collections::VecDeque;

use super::batch::{Batch, SharedBatch};
use crate::event::{EventTime, FeedSeq};

/// The most memory for the tail's batches, 16 MiB: tens of thousands of usual events. The newest batch always stays.
const TAIL_BYTES: usize = 16 * 1024 * 1024;

/// Consecutive batches up to the head of the log.
///
/// Its `generation` counts how often the log was replaced (a restore). A generation's tail
/// replaces the one before as a whole, so its head, its times and its batches always belong together.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(super) generation: u64,
    /// The number of the newest event, or the head of the log when the tail was made.
    pub(super) head: FeedSeq,
    /// The time of the event with that number, if the log has it.
    pub(super) head_time: Option<EventTime>,
    batches: VecDeque<SharedBatch>,
    bytes: usize,
    /// The events such that every later event has a later time. Numbers and times both ascend.
    due: VecDeque<(FeedSeq, EventTime)>,
}

impl Tail {
    /// An empty tail behind a log whose highest number is `head`.
    pub(crate) fn new(generation: u64, head: FeedSeq, head_time: Option<EventTime>) -> Self {
        Self { generation, head, head_time, batches: VecDeque::new(), bytes: 0, due: VecDeque::new() }
    }

    /// Adds the newest batch, and drops the oldest ones that do not fit any more.
    pub(crate) fn push(&mut self, batch: SharedBatch) {
        self.head = batch.last();
        self.head_time = batch.entries.last().map(|entry| entry.time);
        for entry in batch.entries.iter().filter(|entry| entry.time.is_usable()) {
            while self.due.back().is_some_and(|&(_, time)| time >= entry.time) {
                self.due.pop_back();
            }
            self.due.push_back((entry.seq, entry.time));
        }
        self.bytes += batch.memory_bytes();
        self.batches.push_back(batch);
        while self.bytes > TAIL_BYTES && self.batches.len() > 1 {
            let Some(oldest) = self.batches.pop_front() else { return };
            self.bytes -= oldest.memory_bytes();
            while self.due.front().is_some_and(|&(seq, _)| seq <= oldest.last()) {
                self.due.pop_front();
            }
        }
    }

    /// The batches above a cursor, up to about `limit_bytes` of them, none of which begins above `upto`. They are none if
    /// the cursor is there or beyond. `None` if the tail begins later: the log has what is missing.
    pub(crate) fn read(&self, cursor: FeedSeq, upto: FeedSeq, limit_bytes: usize) -> Option<Vec<SharedBatch>> {
        if cursor >= upto {
            return Some(Vec::new());
        }
        if !self.covers(cursor) {
            return None;
        }
        let mut bytes = 0;
        let fits = |batch: &&SharedBatch| {
            let is_room = bytes <= limit_bytes;
            bytes += batch.memory_bytes();
            is_room && batch.first() <= upto
        };
        Some(self.batches_above(cursor).take_while(fits).cloned().collect())
    }

    /// Whether everything above the cursor is here.
    pub(crate) fn covers(&self, cursor: FeedSeq) -> bool {
        cursor >= self.batches.front().map_or(self.head, |oldest| oldest.prev)
    }

    pub(crate) fn time_of(&self, seq: FeedSeq) -> Option<EventTime> {
        if seq == self.head {
            return self.head_time;
        }
        let batch = self.batches.get(self.batches.partition_point(|batch| batch.last() < seq))?;
        let at = batch.entries.binary_search_by_key(&seq, |entry| entry.seq).ok()?;
        Some(batch.entries[at].time)
    }

    /// How many events lie above a cursor and not above `upto`. If the tail begins later, how many numbers do.
    pub(crate) fn count_between(&self, cursor: FeedSeq, upto: FeedSeq) -> u64 {
        if cursor >= upto {
            return 0;
        }
        if !self.covers(cursor) {
            return u64::try_from(upto.0.saturating_sub(cursor.0)).unwrap_or(0);
        }
        let count = |batch: &SharedBatch| batch.count_through(upto) - batch.count_through(cursor);
        self.batches_above(cursor).map(|batch| count(batch) as u64).sum()
    }

    /// For a delayed key: the newest event whose time is not later than `due`, if it is here, and the time at which the
    /// next one is due, if that is here.
    pub(crate) fn due(&self, due: EventTime) -> (Option<(FeedSeq, EventTime)>, Option<EventTime>) {
        let next = self.due.partition_point(|&(_, time)| time <= due);
        let newest = next.checked_sub(1).and_then(|newest| self.due.get(newest)).copied();
        (newest, self.due.get(next).map(|&(_, time)| time))
    }

    /// The latest usable time of an event that is here.
    pub(crate) fn newest_time(&self) -> Option<EventTime> {
        self.due.back().map(|&(_, time)| time)
    }

    fn batches_above(&self, cursor: FeedSeq) -> impl Iterator<Item = &SharedBatch> {
        self.batches.range(self.batches.partition_point(|batch: &SharedBatch| Batch::last(batch) <= cursor)..)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn tail(times: &[i64], events_in_a_batch: usize) -> Tail {
        let mut tail = Tail::new(1, FeedSeq(0), None);
        let mut seq = 0;
        for times in times.chunks(events_in_a_batch) {
            let mut builder = Batch::new(FeedSeq(seq), 1);
            for &time in times {
                seq += 1;
                builder.push(FeedSeq(seq), EventTime(time), |_| Ok::<_, ()>(())).unwrap();
            }
            tail.push(Arc::new(builder.finish()));
        }
        tail
    }

    proptest! {
        #[test]
        fn the_newest_event_that_is_due_has_the_highest_number_whatever_the_clock_did(
            times in prop::collection::vec(0_i64..50, 0..60),
            events_in_a_batch in 1_usize..5,
            due in 0_i64..50,
        ) {
            let (newest, next) = tail(&times, events_in_a_batch).due(EventTime(due));
            let expected = times.iter().rposition(|&time| time <= due);
            prop_assert_eq!(newest.map(|(seq, _)| seq.0), expected.map(|at| at as i64 + 1));
            // Nothing above it becomes due before `next`.
            let above = &times[expected.map_or(0, |at| at + 1)..];
            prop_assert_eq!(next.map(|time| time.0), above.iter().copied().min());
        }

        #[test]
        fn what_is_read_reaches_from_the_cursor_to_the_limit_without_a_hole(
            events in 1_usize..40,
            events_in_a_batch in 1_usize..5,
            cursor in 0_i64..45,
            upto in 0_i64..45,
        ) {
            let tail = tail(&vec![0; events], events_in_a_batch);
            let read = tail.read(FeedSeq(cursor), FeedSeq(upto.min(events as i64)), usize::MAX);
            let batches = read.expect("nothing was dropped");
            prop_assert_eq!(batches.is_empty(), cursor >= upto.min(events as i64));
            if let (Some(first), Some(last)) = (batches.first(), batches.last()) {
                prop_assert!(first.prev.0 <= cursor && cursor < first.last().0);
                prop_assert!(batches.windows(2).all(|two| two[1].prev == two[0].last()));
                prop_assert!(last.last().0 >= upto.min(events as i64));
            }
            let expected = (upto.min(events as i64) - cursor).max(0);
            prop_assert_eq!(tail.count_between(FeedSeq(cursor), FeedSeq(upto.min(events as i64))), expected as u64);
        }
    }
}
