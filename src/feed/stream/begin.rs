//! How a stream begins: `connected`, and whether the log still has what its cursor stands for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{LOOK_AGAIN, Position, Step, Stream};
use crate::db::event_log::{self, WindowStart};
use crate::db::{self, Watch};
use crate::event::FeedSeq;
use crate::feed::health::Part;
use crate::feed::seconds;
use crate::random::random_between;
use crate::sync::lock;

/// How long a cursor may be ahead of a primary's log before `history_rewritten`: another feed may have read further.
const AHEAD_GRACE: Duration = Duration::from_secs(5);
/// If the log was read this recently, 50 ms, a stream that begins does not wait for another read: streams that begin cost
/// at most twenty reads a second, however many they are. A log that is replaced within this time is noticed as it is under
/// a stream that began earlier.
const READ_SUFFICES: Duration = Duration::from_millis(50);
/// How long a slow database may keep the block `connected` back.
const CONNECTED_PATIENCE: Duration = Duration::from_secs(1);
/// Bounds of `retry:`, the time that a client waits before it reconnects.
const RETRY: (Duration, Duration) = (Duration::from_millis(2000), Duration::from_millis(5000));

impl Stream<'_> {
    /// Tells the stream `connected`, and finds its position.
    pub(super) fn begin(&mut self) -> Step {
        let Some(cursor) = self.asked.cursor else {
            let earliest = self.earliest()?.seq;
            let head = self.head()?;
            self.connected(head.seq, head.seq, earliest);
            self.set_position(head.position());
            return Ok(());
        };
        lock(&self.client.writer).position.cursor = cursor;
        let earliest = self.earliest()?.seq;
        let head = self.head()?;
        self.connected(cursor, head.seq, earliest);
        if cursor < head.seq {
            self.prove_tail()?;
        } else {
            self.flush()?;
        }
        if !self.is_in_log(cursor)? {
            return self.rewritten(cursor);
        }
        let position = self.find(cursor)?;
        let is_lost = match (position.time, self.asked.time) {
            (Some(known), asked) => asked.is_some_and(|asked| !asked.is(known)),
            // Asked only now: for a delayed key a range counts once the key's head is beyond it.
            (None, _) => cursor > FeedSeq(0) && self.query(|connection| event_log::is_skipped(connection, cursor))?,
        };
        if is_lost {
            return self.rewritten(cursor);
        }
        let earliest = self.earliest()?;
        if earliest.prev > cursor {
            self.truncated(cursor, earliest, position.generation);
        } else {
            self.set_position(position);
        }
        Ok(())
    }

    fn connected(&self, cursor: FeedSeq, head: FeedSeq, earliest: FeedSeq) {
        let message = json!({
            "reason": "connected",
            "feed_id": self.feed.facts().feed_id,
            "cursor": cursor,
            "head": head,
            "earliest": earliest,
            "delay_seconds": seconds(self.delay),
            "heartbeat_seconds": seconds(self.feed.options.heartbeat),
            "key_expires_at": self.client.expires_at().map(|at| at.to_string()),
        });
        let retry = random_between(RETRY.0, RETRY.1).as_millis();
        let block = format!("id: {cursor}\nevent: system\nretry: {retry}\ndata: {message}\n\n");
        let mut writer = lock(&self.client.writer);
        writer.is_connected = true;
        writer.push_blocks(block.as_bytes());
    }

    /// Waits until the reader has read the log once more, unless it just has. Then it knows whether the log was replaced:
    /// nothing that memory holds of an older log is sent.
    fn prove_tail(&mut self) -> Step {
        if self.feed.health.proven_for(Part::Log).is_some_and(|age| age < READ_SUFFICES) {
            return Ok(());
        }
        self.flush()?;
        let began = Instant::now();
        self.feed.wake_reader();
        while !self.feed.health.wait_proven(Part::Log, began, LOOK_AGAIN) {
            self.attend()?;
        }
        Ok(())
    }

    /// Whether the cursor is not ahead of the log; waits a little if it is.
    fn is_in_log(&mut self, cursor: FeedSeq) -> Step<bool> {
        let mut until = Instant::now() + AHEAD_GRACE;
        loop {
            // A standby may still receive the event: only a primary can say that a number does not exist.
            if self.feed.is_standby() {
                until = Instant::now() + AHEAD_GRACE;
            }
            if cursor <= self.head()?.seq {
                return Ok(true);
            }
            // A cursor between the head and the counter counts as the head.
            let last = if self.is_delayed() { self.read_head(cursor)?.seq } else { self.feed.facts().counter };
            if cursor <= last {
                return Ok(true);
            }
            if Instant::now() >= until && self.feed.health.outage().is_none() {
                return Ok(false);
            }
            self.pause(LOOK_AGAIN)?;
        }
    }

    /// The position at a cursor, with the time of its event if the log has it.
    fn find(&mut self, cursor: FeedSeq) -> Step<Position> {
        let (generation, known, is_in_tail) = {
            let tail = lock(&self.feed.tail);
            (tail.generation, tail.time_of(cursor), cursor >= tail.head)
        };
        // What prune has removed may still be in the tail.
        let known = known.filter(|_| cursor > lock(&self.feed.facts).pruned_through);
        let time = if known.is_some() || is_in_tail {
            known
        } else {
            self.query(|connection| event_log::read_time(connection, cursor))?
        };
        Ok(Position { cursor, time, generation })
    }

    /// Where the replay window begins. If the database does not answer in time for `connected`, a number that promises
    /// nothing.
    fn earliest(&mut self) -> Step<WindowStart> {
        let (watch, began) = (self.watch.clone(), self.client.began);
        let is_connected = lock(&self.client.writer).is_connected;
        let patience = CONNECTED_PATIENCE.min(self.feed.options.heartbeat);
        let is_overdue = move || !is_connected && began.elapsed() >= patience;
        let watch: Watch = Arc::new(move || !is_overdue() && watch());
        loop {
            let head = self.head()?;
            match self.feed.earliest(self.delay, head, &watch) {
                Ok(earliest) => return Ok(earliest),
                // Also if the stream ends: `connected` comes first.
                Err(error) if is_overdue() || (!is_connected && matches!(error, db::Error::GivenUp)) => {
                    let prev = self.asked.cursor.unwrap_or(head.seq).min(head.seq);
                    return Ok(WindowStart { seq: prev.next(), prev });
                }
                Err(error) => self.retry_later(&error)?,
            }
        }
    }
}
