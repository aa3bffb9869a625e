//! One client's stream, on the client's own thread: replay and live events in one loop.
//!
//! The stream is on the list of clients before it reads anything. So every new batch reaches its channel or its socket,
//! or stays in the tail if the channel was full. The loop looks for what follows its position, first in the tail, then
//! in the log. At the head it waits on its channel. It does not write a batch that does not follow the position, but
//! looks again. Only the predecessor's number, which every batch carries, proves that nothing is missing.

mod attend;
mod begin;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::json;

use super::Feed;
use super::batch::SharedBatch;
use super::client::{Client, Full};
use super::head::Head;
use super::pages::{self, PageReader};
use super::reason::End;
use super::writer::Position;
use crate::db::event_log::{self, Overflow, Range, WindowStart};
use crate::db::{self, Watch};
use crate::event::{FeedSeq, WrittenTime};
use crate::sync::lock;
use crate::text::word;

/// How much is taken from the tail at once, 256 KiB.
const WRITE_BYTES: usize = 256 * 1024;
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Shortest and longest sleep of a delayed stream. Events that become due within the shortest go out together; events
/// that arrive with a time in the past go out after the longest.
const DELAYED_SLEEP: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Where to begin; `None` means now.
    pub cursor: Option<FeedSeq>,
    /// The time that the consumer saw for the event at the cursor.
    pub time: Option<WrittenTime>,
}

/// Why a stream left its loop.
enum Leave {
    /// Between two blocks: more can be written.
    Between(End),
    /// Within a block, or the connection is broken: nothing more can be written.
    Within(End),
}

impl From<Errno> for Leave {
    fn from(_: Errno) -> Self {
        Self::Within(End::ClientGone)
    }
}

type Step<T = ()> = Result<T, Leave>;

/// Admits a stream and runs it to its end: writes the response's `head`, and then blocks. Returns why it ended.
///
/// # Errors
/// The limit that is reached; nothing was written then.
pub(crate) fn serve(feed: &Arc<Feed>, client: Client, head: Vec<u8>, asked: Asked) -> Result<End, Full> {
    let client = Arc::new(client);
    feed.clients.add(feed, &client)?;
    let mut admitted = Admitted { feed, client: &client, end: End::Panicked };
    // The server may have begun to stop before the stream was on the list: then nothing else would end the stream.
    if feed.health.is_stopping() {
        admitted.end = End::Shutdown;
        return Ok(End::Shutdown);
    }
    // The key may have ended after it was checked, and the next refresh may be some time away.
    feed.keys.tell(&client, feed.now());
    feed.key_used(&client);
    let after = asked.cursor.map_or("from now".to_owned(), |cursor| format!("after event {cursor}"));
    log::info!("stream begins: {client}, {after}");
    feed.stats.answered("200");
    lock(&client.writer).push_raw(head);
    let (watched_feed, watched_client) = (feed.clone(), client.clone());
    let stream = Stream {
        feed,
        client: &client,
        asked,
        delay: client.key.delay,
        watch: Arc::new(move || attend::attend(&watched_feed, &watched_client).is_ok()),
        pages: PageReader::default(),
        is_stalled: false,
        was_overflowed: true,
    };
    admitted.end = stream.run();
    Ok(admitted.end)
}

/// Takes a stream off the list when it ends, also when its thread panics.
struct Admitted<'a> {
    feed: &'a Feed,
    client: &'a Arc<Client>,
    end: End,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let Self { feed, client, end } = self;
        feed.clients.remove(client);
        // A key's last use is the end of its last stream, not its beginning.
        feed.key_used(client);
        feed.stats.ended(*end);
        let (cursor, delivered, dropped) = {
            let writer = lock(&client.writer);
            (writer.position.cursor, writer.delivered, writer.dropped)
        };
        let end = word(end);
        log::info!("stream ended: {end}: {client}, at event {cursor}, {delivered} delivered, {dropped} dropped");
    }
}

struct Stream<'a> {
    feed: &'a Feed,
    client: &'a Client,
    asked: Asked,
    delay: Duration,
    /// Called while the database works for this stream: writes heartbeats, and cancels the work if the stream ends.
    watch: Watch,
    pages: PageReader,
    /// The client took nothing for a second since the stream last checked its queue for an overflow.
    is_stalled: bool,
    /// At the last check more events waited than the queue holds. An overflow while the client took bytes is no loss:
    /// the stream catches up from the log.
    was_overflowed: bool,
}

// Functions that an idle stream does not run are `inline(never)`. Otherwise their variables would take a page, 4 KiB, of
// every stream's stack.
impl Stream<'_> {
    fn run(mut self) -> End {
        let Err(stop) = self.begin().and_then(|()| self.follow());
        match stop {
            Leave::Within(end) => end,
            Leave::Between(end) => {
                // The stream ends whether or not the client takes its last block.
                let _ = self.close(end);
                end
            }
        }
    }

    fn close(&mut self, end: End) -> Step {
        if end.is_told() {
            // Also for an end that came from here, so that a blocked write gives up.
            self.client.end(end);
            // `connected` is always the first block.
            if lock(&self.client.writer).is_connected {
                self.push(&json!({"reason": "closing", "cause": end}));
            }
        }
        lock(&self.client.writer).push_end();
        self.flush()
    }

    fn is_delayed(&self) -> bool {
        !self.delay.is_zero()
    }

    fn follow(&mut self) -> Step<std::convert::Infallible> {
        loop {
            self.attend()?;
            self.flush()?;
            let position = lock(&self.client.writer).position;
            let head = self.head()?;
            let (generation, read) = {
                let tail = lock(&self.feed.tail);
                (tail.generation, tail.read(position.cursor, head.seq, WRITE_BYTES))
            };
            if position.generation != generation {
                self.check_generation(position, generation)?;
                continue;
            }
            self.end_if_overflowed(position, head)?;
            match read {
                _ if head.generation != generation => {}
                None => self.write_page(position, head)?,
                Some(batches) if batches.is_empty() => self.wait(position, head)?,
                Some(batches) => {
                    let mut writer = lock(&self.client.writer);
                    for batch in batches {
                        writer.push_batch(batch, head.seq);
                    }
                }
            }
        }
    }

    fn push(&self, message: &serde_json::Value) {
        lock(&self.client.writer).push_notice(message);
    }

    fn set_position(&self, position: Position) {
        lock(&self.client.writer).position = position;
    }

    #[inline(never)]
    fn write_page(&mut self, position: Position, head: Head) -> Step {
        let range = Range { after: position.cursor, upto: head.seq, due: head.due };
        let (feed, mut pages) = (self.feed, self.pages);
        // Rendered in the same turn at a connection: so few large rows are in memory at once.
        let read = self.query(|connection| {
            let mut page = pages.read(connection, range)?;
            let poisoned = |row: &_, poison: &_| feed.quarantine(row, poison, false);
            let rows = std::mem::take(&mut page.rows);
            let batches = pages::render(rows, page.prev, position.generation, poisoned);
            let batches: Vec<SharedBatch> = batches.map(|batch| feed.shared(batch)).collect();
            Ok((page, batches))
        });
        self.pages = pages;
        let (page, batches) = read?;
        if self.is_delayed() && !page.is_due && head.time.is_some() {
            // The log no longer has this head: the log was replaced, or the head was pruned.
            self.feed.forget_head(self.delay);
            if page.pruned_through < head.seq {
                return self.pause(LOOK_AGAIN);
            }
        }
        let is_gone = page.pruned_through > position.cursor;
        if !is_gone && position.time.is_some() && page.time_after != position.time {
            return self.rewritten(position.cursor);
        }
        let Some(first) = batches.first() else {
            if page.pruned_through < head.seq {
                // The log was replaced, which the reader will notice, or a standby has yet to receive this part.
                return self.pause(LOOK_AGAIN);
            }
            let earliest = WindowStart { seq: head.seq.next(), prev: head.seq };
            self.truncated(position.cursor, earliest, position.generation);
            return Ok(());
        };
        if is_gone {
            let earliest = WindowStart { seq: first.first(), prev: page.prev };
            self.truncated(position.cursor, earliest, position.generation);
        }
        for batch in batches {
            lock(&self.client.writer).push_batch(batch, head.seq);
            self.attend()?;
            self.flush()?;
        }
        Ok(())
    }

    /// Waits at the head for a batch, or until something else is due.
    fn wait(&mut self, position: Position, head: Head) -> Step {
        let options = &self.feed.options;
        let (silent, unanswered) = {
            let mut writer = lock(&self.client.writer);
            (writer.silent_for(), writer.unanswered_for().unwrap_or_default())
        };
        if unanswered >= options.write_timeout {
            return Err(Leave::Within(End::WriteTimeout));
        }
        let mut patience = options.heartbeat.saturating_sub(silent).min(options.write_timeout - unanswered);
        if let Some(at) = self.client.ends_at {
            patience = patience.min(at.saturating_duration_since(Instant::now()));
        }
        if let Some(at) = self.client.expires_at() {
            patience = patience.min(at.since(self.feed.now()));
        }
        if self.is_delayed() {
            let (least, longest) = DELAYED_SLEEP;
            let next = head.next_due.map_or(longest, |next| next.since(self.feed.due(self.delay)));
            patience = patience.min(next.max(least).min(longest).min(self.delay.max(least)));
        }
        // Rounded up: a thread that wakes too early would only wait again.
        let until = Instant::now() + patience + Duration::from_millis(1);
        while let Some(batch) = self.client.wait(until.saturating_duration_since(Instant::now())) {
            // The stream may have read it from the tail, or the reader may have written it, before.
            if batch.last() <= position.cursor && batch.generation == position.generation {
                continue;
            }
            if !self.is_delayed() {
                lock(&self.client.writer).push_batch(batch.clone(), batch.last());
                self.flush()?;
                self.feed.stats.broadcast_to_written.observe(batch.age().as_secs_f64());
            }
            break;
        }
        Ok(())
    }

    /// Ends the stream if its queue overflowed while the client was stalled.
    #[inline(never)]
    fn end_if_overflowed(&mut self, position: Position, head: Head) -> Step {
        let capacity = i64::try_from(self.feed.options.queue_capacity).unwrap_or(i64::MAX);
        // There cannot be more events than numbers.
        let is_overflowed = head.seq.0.saturating_sub(position.cursor.0) > capacity;
        let was_overflowed = std::mem::replace(&mut self.was_overflowed, is_overflowed);
        if !std::mem::take(&mut self.is_stalled) || !is_overflowed || was_overflowed {
            return Ok(());
        }
        let read = |connection: &mut _| event_log::read_overflow(connection, position.cursor, head.seq, capacity);
        let Some(lost) = self.query(read)? else { return Ok(()) };
        let (Overflow { events, from, to }, client) = (lost, self.client);
        log::warn!(
            "dropped {events} events ({from} to {to}): {client} took nothing for a second, its queue overflowed"
        );
        let count = u64::try_from(events).unwrap_or(0);
        self.feed.stats.dropped.inc_by(count);
        self.push(&json!({"reason": "dropped", "dropped": events, "from": from, "to": to}));
        lock(&self.client.writer).dropped += count;
        Err(Leave::Between(End::Dropped))
    }

    /// Tells the stream that events after `requested` lie before the replay window, and continues from `earliest`.
    #[inline(never)]
    fn truncated(&self, requested: FeedSeq, earliest: WindowStart, generation: u64) {
        let (client, WindowStart { seq, prev }) = (self.client, earliest);
        log::warn!("replay truncated: {client} asked for events after {requested}, replay begins at {seq}");
        self.feed.stats.truncated.inc();
        self.push(&json!({"reason": "replay_truncated", "requested": requested, "earliest": seq}));
        self.set_position(Position { cursor: prev, time: None, generation });
    }

    /// Tells the stream that the log does not have its cursor, and continues from the head.
    #[inline(never)]
    fn rewritten(&mut self, cursor: FeedSeq) -> Step {
        let head = self.head()?;
        self.feed.stats.rewritten.inc();
        let (client, from) = (self.client, head.seq);
        log::warn!("history rewritten: {client}: cursor {cursor} is not in this log; continuing from {from}");
        self.push(&json!({"reason": "history_rewritten", "cursor": cursor, "head": head.seq}));
        self.set_position(head.position());
        Ok(())
    }

    /// Handles a log that was replaced under the running server: continues if the new log has the last event as sent.
    #[inline(never)]
    fn check_generation(&mut self, position: Position, generation: u64) -> Step {
        let cursor = position.cursor;
        let now = self.query(|connection| event_log::read_time(connection, cursor))?;
        let is_same = match position.time {
            Some(time) => now == Some(time),
            None => cursor <= self.head()?.seq || (!self.is_delayed() && cursor <= self.feed.facts().counter),
        };
        if !is_same {
            return self.rewritten(cursor);
        }
        self.set_position(Position { generation, ..position });
        Ok(())
    }

    fn head(&mut self) -> Step<Head> {
        match self.feed.recall_head(self.delay) {
            Some(head) => Ok(head),
            None => self.read_head(FeedSeq(0)),
        }
    }

    /// Reads the head of a delayed key, at least the row `known` if that is due.
    #[inline(never)]
    fn read_head(&mut self, known: FeedSeq) -> Step<Head> {
        self.until_done(|stream| stream.feed.read_head(stream.delay, known, &stream.watch))
    }

    /// Does some work with a replay connection; retries until it succeeds.
    fn query<T>(&mut self, mut work: impl FnMut(&mut db::Connection) -> Result<T, db::Error>) -> Step<T> {
        self.until_done(|stream| stream.feed.replay.with(&stream.watch, &mut work))
    }

    fn until_done<T>(&mut self, mut work: impl FnMut(&Self) -> Result<T, db::Error>) -> Step<T> {
        loop {
            match work(self) {
                Ok(value) => return Ok(value),
                Err(error) => self.retry_later(&error)?,
            }
        }
    }
}
