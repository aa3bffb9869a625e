//! Where the replay window begins: one indexed query, run when needed and kept for a second.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Feed;
use super::head::Head;
use super::pool::Permits;
use crate::db::event_log::{self, WindowStart};
use crate::db::{self, Watch};
use crate::event::FeedSeq;
use crate::sync::lock;

/// How long an answer is used.
const KEPT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Answer {
    at: Instant,
    generation: u64,
    start: WindowStart,
}

/// The start of the replay window, for each delay as it was last read.
#[derive(Debug)]
pub struct Windows {
    /// One thread queries at a time, and the others use its answer.
    permits: Permits,
    /// Locked to copy an answer in or out, never during the query.
    by_delay: Mutex<HashMap<Duration, Answer>>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { permits: Permits::new(1), by_delay: Mutex::default() }
    }
}

impl Windows {
    fn recall(&self, delay: Duration, generation: u64) -> Option<WindowStart> {
        let answer = lock(&self.by_delay).get(&delay).copied()?;
        (answer.generation == generation && answer.at.elapsed() < KEPT).then_some(answer.start)
    }
}

impl Feed {
    /// The lowest number that a consumer of a key with this delay can still be given, the head's successor if there is
    /// none; and the number of the row before it. May read the log.
    ///
    /// # Errors
    /// The error of reading the log.
    pub fn earliest(&self, delay: Duration, head: Head, watch: &Watch) -> Result<WindowStart, db::Error> {
        if let Some(start) = self.windows.recall(delay, head.generation) {
            return Ok(start);
        }
        let _permit = self.windows.permits.wait(watch)?;
        if let Some(start) = self.windows.recall(delay, head.generation) {
            return Ok(start);
        }
        let begin = self.due(delay).minus(self.options.replay_window);
        let found = self.replay.with(watch, |connection| event_log::read_window_start(connection, begin))?;
        let start =
            found.filter(|start| start.seq <= head.seq).unwrap_or(WindowStart { seq: head.seq.next(), prev: head.seq });
        let answer = Answer { at: Instant::now(), generation: head.generation, start };
        lock(&self.windows.by_delay).insert(delay, answer);
        Ok(start)
    }

    /// The lowest number that can still be replayed without a delay, as last read; 0 if it never was. Reads nothing.
    pub fn last_earliest(&self) -> FeedSeq {
        lock(&self.windows.by_delay).get(&Duration::ZERO).map_or(FeedSeq(0), |answer| answer.start.seq)
    }
}
