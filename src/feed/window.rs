//! The replay window: what a consumer can still be given.
//!
//! It begins at the lowest number whose usable time lies in it. Time only goes on, so rows once found outside stay outside:
//! the search goes on from there, and costs a query for some thousands of rows that the window has left.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::lock;
use super::pool::ReplayPool;
use super::tail::Tail;
use crate::db::{self, event_log};
use crate::event::{EventTime, FeedSeq};

/// How many rows a look into the log reads ahead (number and time only, 16 bytes each).
const LOOK_AHEAD_ROWS: i64 = 50_000;
/// How many rows a look into the tail takes over.
const LOOK_AHEAD_EVENTS: usize = 1_000;

/// Where the window begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Earliest {
    /// The lowest number that a consumer can still be given; the head's successor where there is none.
    pub seq: FeedSeq,
    /// The number of the last row before it, pruned ones included; 0 where there was none.
    pub prev: FeedSeq,
}

#[derive(Debug, Default)]
struct Search {
    /// No row at or below it lies in the window.
    floor: FeedSeq,
    /// The rows that follow the floor.
    ahead: VecDeque<(FeedSeq, EventTime)>,
}

/// The replay window of a tier.
#[derive(Debug)]
pub struct Window {
    length: Duration,
    search: Mutex<Search>,
    /// As it was last found.
    begins: AtomicI64,
}

impl Window {
    /// A window of this length.
    pub fn new(length: Duration) -> Self {
        Self { length, search: Mutex::default(), begins: AtomicI64::new(0) }
    }

    /// Where the window began when that was last asked; 0 where it never was. Asks nobody.
    pub fn last_known(&self) -> FeedSeq {
        FeedSeq(self.begins.load(Ordering::Relaxed))
    }

    /// Where the window begins, for a tier whose clock shows `now` and whose head is `head`. May read the log.
    ///
    /// # Errors
    /// What reading the log failed with.
    pub fn earliest(
        &self,
        now: EventTime,
        head: FeedSeq,
        tail: &Mutex<Tail>,
        pool: &ReplayPool,
    ) -> Result<Earliest, db::Error> {
        let begins = now.minus(self.length);
        let mut search = lock(&self.search);
        let earliest = 'found: loop {
            while let Some(&(seq, time)) = search.ahead.front() {
                if seq > head {
                    break 'found Earliest { seq: head.next(), prev: head };
                }
                if time.is_usable() && time >= begins {
                    break 'found Earliest { seq, prev: search.floor };
                }
                search.floor = seq;
                search.ahead.pop_front();
            }
            if search.floor >= head {
                break Earliest { seq: head.next(), prev: head };
            }
            let floor = search.floor;
            let known = lock(tail).times_after(floor, LOOK_AHEAD_EVENTS);
            let rows = match known {
                Some(rows) => rows,
                None => pool.with(|connection| event_log::read_times(connection, floor, LOOK_AHEAD_ROWS))?,
            };
            if rows.is_empty() {
                break Earliest { seq: head.next(), prev: head };
            }
            search.ahead.extend(rows);
        };
        self.begins.store(earliest.seq.0, Ordering::Relaxed);
        Ok(earliest)
    }

    /// Says that prune has removed everything up to a number.
    pub fn pruned(&self, through: FeedSeq) {
        let mut search = lock(&self.search);
        while search.ahead.front().is_some_and(|&(seq, _)| seq <= through) {
            search.ahead.pop_front();
        }
        search.floor = search.floor.max(through);
    }

    /// Begins anew: the log is another one.
    pub fn reset(&self) {
        *lock(&self.search) = Search::default();
    }
}
