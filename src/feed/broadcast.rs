//! The reader's hands: the clients of one tier, and sending them what is new.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use super::batch::{Batch, SharedBatch};
use super::client::Client;
use super::lock;
use super::queue::Offered;
use super::stats::Stats;
use super::tail::Tail;
use super::tier::{Control, Registered, Tier};
use crate::event::{EventTime, FeedSeq};

/// Owned by the reader of a tier, and so the one place where the head moves and clients come and go.
#[derive(Debug)]
pub struct Broadcaster {
    tier: Arc<Tier>,
    clients: HashMap<u64, Arc<Client>>,
    head: FeedSeq,
    head_time: Option<EventTime>,
    ordinal: u64,
}

impl Broadcaster {
    /// For a tier without clients, at the beginning of an unknown log.
    pub fn new(tier: Arc<Tier>) -> Self {
        Self { tier, clients: HashMap::new(), head: FeedSeq(0), head_time: None, ordinal: 0 }
    }

    /// The newest number that was broadcast.
    pub fn head(&self) -> FeedSeq {
        self.head
    }

    /// Its time, where the log had it.
    pub fn head_time(&self) -> Option<EventTime> {
        self.head_time
    }

    /// How many events were broadcast.
    pub fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// Answers one request of a client's thread.
    pub fn answer(&mut self, request: Control) {
        match request {
            Control::Register(client, reply) => {
                self.clients.insert(client.id, client);
                let (head, head_time, ordinal) = (self.head, self.head_time, self.ordinal);
                // Whoever asked may have ended meanwhile; it then deregisters.
                let _: Result<(), _> = Sender::try_send(&reply, Registered { head, head_time, ordinal });
            }
            Control::Deregister(id) => {
                self.clients.remove(&id);
            }
        }
    }

    /// Sends batches to every client, and keeps them in the tail.
    pub fn publish(&mut self, batches: Vec<Batch>, stats: &Stats) {
        for batch in batches {
            let batch: SharedBatch = Arc::new(batch);
            self.head = batch.last();
            self.head_time = batch.entries().last().map(|entry| entry.time);
            self.ordinal += batch.entries().len() as u64;
            // The tail first: a client that finds a hole in its queue looks there.
            lock(&self.tier.tail).push(batch.clone());
            // A delayed tier broadcasts the same events again.
            if self.tier.delay().is_zero() {
                stats.events.inc_by(batch.entries().len() as u64);
            }
            let now = Instant::now();
            let written = stats.broadcast_to_written.local();
            for client in self.clients.values() {
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
        self.head = tail.head();
        self.head_time = tail.head_time();
        self.tier.replace_history(tail);
        for (_, client) in self.clients.drain() {
            client.queue.clear();
            client.queue.ring();
        }
    }

    /// Wakes every client, to look at what has changed.
    pub fn ring_all(&self) {
        for client in self.clients.values() {
            client.queue.ring();
        }
    }
}
