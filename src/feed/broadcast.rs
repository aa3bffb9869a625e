//! The reader's hands: sending the clients of one tier what is new.

use std::sync::Arc;
use std::time::Instant;

use super::batch::{Batch, SharedBatch};
use super::lock;
use super::queue::Offered;
use super::stats::Stats;
use super::tail::Tail;
use super::tier::{Reached, Tier};
use crate::event::{EventTime, FeedSeq};

/// Owned by the reader of a tier, and so the one place where the head moves.
#[derive(Debug)]
pub struct Broadcaster {
    tier: Arc<Tier>,
}

impl Broadcaster {
    /// For a tier at the beginning of an unknown log.
    pub fn new(tier: Arc<Tier>) -> Self {
        Self { tier }
    }

    fn reached(&self) -> Reached {
        lock(&self.tier.audience).reached
    }

    /// The newest number that was broadcast.
    pub fn head(&self) -> FeedSeq {
        self.reached().head
    }

    /// Its time, where the log had it.
    pub fn head_time(&self) -> Option<EventTime> {
        self.reached().head_time
    }

    /// How many events were broadcast.
    pub fn ordinal(&self) -> u64 {
        self.reached().ordinal
    }

    /// Sends batches to every client, and keeps them in the tail.
    pub fn publish(&mut self, batches: Vec<Batch>, stats: &Stats) {
        for batch in batches {
            let batch: SharedBatch = Arc::new(batch);
            let mut audience = lock(&self.tier.audience);
            audience.reached = Reached {
                head: batch.last(),
                head_time: batch.entries().last().map(|entry| entry.time),
                ordinal: audience.reached.ordinal + batch.entries().len() as u64,
            };
            // The tail first: a client that finds a hole in its queue looks there.
            lock(&self.tier.tail).push(batch.clone());
            // A delayed tier broadcasts the same events again.
            if self.tier.delay().is_zero() {
                stats.events.inc_by(batch.entries().len() as u64);
            }
            let now = Instant::now();
            let written = stats.broadcast_to_written.local();
            for client in audience.clients.values() {
                match client.queue.offer(&batch, now) {
                    Offered::Written => {
                        client.delivered(batch.last(), batch.entries().len(), stats);
                        written.observe(batch.age().as_secs_f64());
                    }
                    Offered::Queued { dropped: 0 } => {}
                    Offered::Queued { dropped } => {
                        client.dropped(dropped);
                        stats.dropped.inc_by(dropped as u64);
                    }
                }
            }
        }
    }

    /// Begins anew with another log: every client is taken off, and finds out for itself where it belongs.
    pub fn replace_history(&mut self, tail: Tail) {
        let mut audience = lock(&self.tier.audience);
        audience.reached.head = tail.head();
        audience.reached.head_time = tail.head_time();
        self.tier.replace_history(tail);
        for (_, client) in audience.clients.drain() {
            client.queue.clear();
            client.queue.ring();
        }
    }

    /// Wakes every client, to look at what has changed.
    pub fn ring_all(&self) {
        for client in lock(&self.tier.audience).clients.values() {
            client.queue.ring();
        }
    }
}
