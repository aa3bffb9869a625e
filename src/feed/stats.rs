//! What the feed counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::reason::End;

/// A number that only grows, from the start of the server.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it.
    pub fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    /// Its value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events read from the log and broadcast.
    pub events: Counter,
    /// Events written to sockets, one for each client.
    pub deliveries: Counter,
    /// Bytes written to sockets.
    pub bytes: Counter,
    /// Events dropped from clients' queues.
    pub dropped: Counter,
    /// Streams that were told `replay_truncated`.
    pub truncated: Counter,
    /// Streams that were told `history_rewritten`.
    pub rewritten: Counter,
    /// Events quarantined.
    pub quarantined: Counter,
    /// Times that a stream was brought up to date from the log or from memory.
    pub catch_ups: Counter,
    /// Pages read from the log for them.
    pub replay_pages: Counter,
    /// Connections closed to make room.
    pub evicted: Counter,
    /// Turns of the reader's loop: the proof that it lives, whatever it finds.
    pub reader_turns: Counter,
    ends: [Counter; End::ALL.len()],
}

impl Stats {
    /// How many streams ended for a reason.
    pub fn ends(&self, end: End) -> &Counter {
        &self.ends[end as usize - 1]
    }
}
