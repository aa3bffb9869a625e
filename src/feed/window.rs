//! Where the replay window begins: one indexed query, run when needed and kept for a second.

use std::time::{Duration, Instant};

use super::Feed;
use super::head::Head;
use crate::db::event_log::{self, WindowStart};
use crate::db::{self, Watch};
use crate::event::FeedSeq;

/// How long an answer is used.
const KEPT: Duration = Duration::from_secs(1);

/// Where the window began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    at: Instant,
    generation: u64,
    start: WindowStart,
}

impl Feed {
    /// The lowest number that a consumer of a key with this delay can still be given, the head's successor if there is
    /// none; and the number of the row before it. May read the log.
    ///
    /// # Errors
    /// The error of reading the log.
    pub fn earliest(&self, delay: Duration, head: Head, watch: &Watch) -> Result<WindowStart, db::Error> {
        let recall = || {
            let is_fresh = |answer: &Answer| answer.generation == head.generation && answer.at.elapsed() < KEPT;
            self.windows.get(delay).filter(is_fresh).map(|answer| answer.start)
        };
        if let Some(start) = recall() {
            return Ok(start);
        }
        let _turn = self.windows.turn(watch)?;
        if let Some(start) = recall() {
            return Ok(start);
        }
        let begin = self.due(delay).minus(self.options.replay_window);
        let found = self.replay.with(watch, |connection| event_log::read_window_start(connection, begin))?;
        let start =
            found.filter(|start| start.seq <= head.seq).unwrap_or(WindowStart { seq: head.seq.next(), prev: head.seq });
        let answer = Answer { at: Instant::now(), generation: head.generation, start };
        self.windows.set(delay, Some(answer));
        Ok(start)
    }

    /// The lowest number that can still be replayed without a delay, as last read; 0 if it never was. Reads nothing.
    pub fn last_earliest(&self) -> FeedSeq {
        self.windows.get(Duration::ZERO).map_or(FeedSeq(0), |answer| answer.start.seq)
    }
}
