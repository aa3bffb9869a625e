//! A client's queue: what the reader has broadcast and the client has not yet taken. Of a client whose thread sleeps it has
//! the socket on loan (see `loan`), so that a small batch goes there at once and wakes nobody.
//!
//! Bounded in events and in bytes; when it is full the oldest go, and the client finds the hole by arithmetic (`prev`).
//! It is a deque with a condition variable as its bell. A channel of batches would allocate a slot for every event that
//! the queue may lag by (35 MiB for a thousand idle clients), or, with fewer slots, hold fewer events than promised when
//! each batch has one event. Nor is a channel the bell: whoever waits for one gives up its processor several times before
//! it sleeps, and among a thousand threads that costs more than the sleep.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::batch::SharedBatch;
use super::loan::{Loan, Written};
use super::lock;

/// A queue's bound in bytes, 32 MiB: two of the largest blocks. Batches are shared, so all queues together pin about that much.
const QUEUE_BYTES: usize = 32 * 1024 * 1024;
/// A deque that a burst has grown beyond this is given back when it is empty.
const KEPT_SLOTS: usize = 64;

#[derive(Debug, Default)]
struct Pending {
    batches: VecDeque<SharedBatch>,
    events: usize,
    bytes: usize,
    /// The client's socket, while its thread sleeps.
    loan: Option<Loan>,
    /// The client's thread has something to look at.
    is_rung: bool,
    /// It waits for the bell.
    is_asleep: bool,
}

/// What became of a batch that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is written to the client's socket.
    Written,
    /// It waits for the client's thread. So many events were dropped to make room.
    Queued {
        /// Events dropped.
        dropped: usize,
    },
}

/// One client's bounded queue, with the reader at one end and the client's thread at the other.
#[derive(Debug)]
pub struct Queue {
    capacity_events: usize,
    pending: Mutex<Pending>,
    bell: Condvar,
}

impl Queue {
    /// An empty queue for at most `capacity_events` events.
    pub fn new(capacity_events: usize) -> Self {
        Self { capacity_events, pending: Mutex::default(), bell: Condvar::new() }
    }

    /// Writes a batch to the socket, where that is lent and takes it; else adds it, dropping the oldest where there is no
    /// room, and rings. Never blocks.
    pub fn offer(&self, batch: &SharedBatch, now: Instant) -> Offered {
        let mut dropped = 0;
        let mut pending = lock(&self.pending);
        if pending.batches.is_empty()
            && let Some(loan) = &mut pending.loan
        {
            match loan.write(batch, now) {
                Written::Whole => return Offered::Written,
                Written::Partly => {
                    self.wake(pending);
                    return Offered::Queued { dropped };
                }
                Written::Not => {}
            }
        }
        pending.events += batch.entries().len();
        pending.bytes += batch.memory_bytes();
        pending.batches.push_back(batch.clone());
        while pending.batches.len() > 1 && (pending.events > self.capacity_events || pending.bytes > QUEUE_BYTES) {
            dropped += pending.pop().map_or(0, |oldest| oldest.entries().len());
        }
        self.wake(pending);
        Offered::Queued { dropped }
    }

    /// Wakes the client: something is to be looked at, and before it has looked nobody writes to its socket.
    pub fn ring(&self) {
        let mut pending = lock(&self.pending);
        if let Some(loan) = &mut pending.loan {
            loan.end();
        }
        self.wake(pending);
    }

    fn wake(&self, mut pending: MutexGuard<'_, Pending>) {
        // Once is enough: a system call for whoever is awake, or about to be, would cost more than the batch.
        let must_notify = pending.is_asleep && !pending.is_rung;
        pending.is_rung = true;
        drop(pending);
        if must_notify {
            self.bell.notify_one();
        }
    }

    /// Takes the oldest batches, up to about `limit_bytes` of them.
    pub fn take(&self, limit_bytes: usize, into: &mut Vec<SharedBatch>) {
        let mut pending = lock(&self.pending);
        let mut bytes = 0;
        while bytes < limit_bytes
            && let Some(batch) = pending.pop()
        {
            bytes += batch.memory_bytes();
            into.push(batch);
        }
        if pending.batches.is_empty() && pending.batches.capacity() > KEPT_SLOTS {
            pending.batches = VecDeque::new();
        }
    }

    /// How many events wait in it.
    pub fn events(&self) -> usize {
        lock(&self.pending).events
    }

    /// Empties the queue.
    pub fn clear(&self) {
        let mut pending = lock(&self.pending);
        pending.batches = VecDeque::new();
        pending.events = 0;
        pending.bytes = 0;
    }

    /// Waits until it rings, at most `patience`. A ring may stand for nothing new.
    pub fn wait(&self, patience: Duration) {
        drop(self.sleep(lock(&self.pending), patience));
    }

    /// Waits likewise, with the socket on loan, and gives it back.
    pub fn wait_lending(&self, loan: Loan, patience: Duration) -> Option<Loan> {
        let mut pending = lock(&self.pending);
        if !pending.batches.is_empty() {
            return Some(loan);
        }
        pending.loan = Some(loan);
        self.sleep(pending, patience).loan.take()
    }

    fn sleep<'a>(&self, mut pending: MutexGuard<'a, Pending>, patience: Duration) -> MutexGuard<'a, Pending> {
        pending.is_asleep = true;
        let (mut pending, _) = self
            .bell
            .wait_timeout_while(pending, patience, |pending| !pending.is_rung)
            .unwrap_or_else(PoisonError::into_inner);
        pending.is_asleep = false;
        pending.is_rung = false;
        pending
    }
}

impl Pending {
    fn pop(&mut self) -> Option<SharedBatch> {
        let batch = self.batches.pop_front()?;
        self.events -= batch.entries().len();
        self.bytes -= batch.memory_bytes();
        Some(batch)
    }
}
