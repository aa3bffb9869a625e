//! The newest part of the log, kept in memory: it serves reconnects without touching the database.

use std::collections::VecDeque;

use super::batch::SharedBatch;
use crate::event::{EventTime, FeedSeq};

/// Consecutive batches up to the head, bounded in bytes.
#[derive(Debug)]
pub struct Tail {
    batches: VecDeque<SharedBatch>,
    bytes: usize,
    capacity_bytes: usize,
    head: FeedSeq,
    head_time: Option<EventTime>,
}

/// What the tail has above a cursor.
#[derive(Debug)]
pub enum TailRead {
    /// Some batches, the first reaching above the cursor.
    Batches(Vec<SharedBatch>),
    /// Nothing: the cursor is at the head, or ahead of it.
    AtHead,
    /// The tail begins later: the log has what is missing.
    TooOld,
}

impl Tail {
    /// An empty tail whose batches may take `capacity_bytes`, behind a log that stands at `head`.
    pub fn new(capacity_bytes: usize, head: FeedSeq, head_time: Option<EventTime>) -> Self {
        Self { batches: VecDeque::new(), bytes: 0, capacity_bytes, head, head_time }
    }

    /// The number of the newest event, or where the log stood when the tail began.
    pub fn head(&self) -> FeedSeq {
        self.head
    }

    /// The time of the newest event, where there is one.
    pub fn head_time(&self) -> Option<EventTime> {
        self.head_time
    }

    /// Adds the newest batch. The newest always stays, however large.
    pub fn push(&mut self, batch: SharedBatch) {
        self.head = batch.last();
        self.head_time = batch.entries().last().map(|entry| entry.time);
        self.bytes += batch.memory_bytes();
        self.batches.push_back(batch);
        while self.bytes > self.capacity_bytes && self.batches.len() > 1 {
            if let Some(oldest) = self.batches.pop_front() {
                self.bytes -= oldest.memory_bytes();
            }
        }
    }

    /// The batches above a cursor, up to about `limit_bytes` of them.
    pub fn after(&self, cursor: FeedSeq, limit_bytes: usize) -> TailRead {
        if cursor >= self.head {
            return TailRead::AtHead;
        }
        if !self.covers(cursor) {
            return TailRead::TooOld;
        }
        let from = self.batches.partition_point(|batch| batch.last() <= cursor);
        let mut taken = Vec::new();
        let mut bytes = 0;
        for batch in self.batches.range(from..) {
            if bytes > limit_bytes {
                break;
            }
            bytes += batch.memory_bytes();
            taken.push(batch.clone());
        }
        TailRead::Batches(taken)
    }

    /// Whether everything above the cursor is here.
    pub fn covers(&self, cursor: FeedSeq) -> bool {
        match self.batches.front() {
            Some(oldest) => cursor >= oldest.prev(),
            None => cursor >= self.head,
        }
    }

    /// The number of the first event above the cursor, where the tail has it.
    pub fn first_after(&self, cursor: FeedSeq) -> Option<FeedSeq> {
        if !self.covers(cursor) {
            return None;
        }
        let from = self.batches.partition_point(|batch| batch.last() <= cursor);
        self.batches.get(from)?.entries().iter().map(|entry| entry.seq).find(|&seq| seq > cursor)
    }

    /// The time of an event, where the tail has it.
    pub fn time_of(&self, seq: FeedSeq) -> Option<EventTime> {
        if seq == self.head {
            return self.head_time;
        }
        let batch = self.batches.get(self.batches.partition_point(|batch| batch.last() < seq))?;
        let at = batch.entries().binary_search_by_key(&seq, |entry| entry.seq).ok()?;
        Some(batch.entries()[at].time)
    }

    /// How many events lie above a cursor; where the tail begins later, as many as there are numbers.
    pub fn count_after(&self, cursor: FeedSeq) -> u64 {
        if !self.covers(cursor) {
            return u64::try_from(self.head.0.saturating_sub(cursor.0)).unwrap_or(0);
        }
        let from = self.batches.partition_point(|batch| batch.last() <= cursor);
        self.batches.range(from..).map(|batch| batch.count_after(cursor) as u64).sum()
    }

    /// Number and time of the events above a cursor, at most `limit`; `None` where the tail begins later.
    pub fn times_after(&self, cursor: FeedSeq, limit: usize) -> Option<Vec<(FeedSeq, EventTime)>> {
        if !self.covers(cursor) {
            return None;
        }
        let from = self.batches.partition_point(|batch| batch.last() <= cursor);
        let entries = self.batches.range(from..).flat_map(|batch| batch.entries());
        Some(entries.filter(|entry| entry.seq > cursor).take(limit).map(|entry| (entry.seq, entry.time)).collect())
    }
}
