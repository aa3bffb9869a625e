//! One client's stream, on the client's own thread: replay and live events in one loop.
//!
//! The stream is on the list of clients before it reads anything. So every new batch reaches its channel or its socket,
//! or stays in the tail if the channel was full. The loop looks for what follows its position, first in the tail, then
//! in the log. At the head it waits on its channel. It does not write a batch that does not follow the position, but
//! looks again. Only the predecessor's number, which every batch carries, proves that nothing is missing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{Client, Full, Limits, Opening};
use super::head::Head;
use super::pages::{self, PageReader};
use super::reason::End;
use super::standby::Role;
use super::tail::TailRead;
use super::writer::{Broken, Position};
use super::{Feed, seconds};
use crate::db::event_log::{self, Range, WindowStart};
use crate::db::{self, Watch};
use crate::event::{FeedSeq, WrittenTime};
use crate::random::random_between;
use crate::sync::lock;

use crate::http::socket;

/// How much is taken from the tail at once, 256 KiB.
const WRITE_BYTES: usize = 256 * 1024;
/// How long a cursor may be ahead of a primary's log before `history_rewritten`: another feed may have read further.
const AHEAD_GRACE: Duration = Duration::from_secs(5);
/// The wait before a retry.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often a thread with a blocked write checks for other work.
const WRITE_LOOK_EVERY: Duration = Duration::from_millis(250);
/// A client that takes nothing for this long is stalled; before that it is slow.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// How long after the end of its key a stream gives up a blocked write.
const BLOCKED_AT_END: Duration = Duration::from_millis(500);
/// Bounds of `retry:`, the time that a client waits before it reconnects.
const RETRY: (Duration, Duration) = (Duration::from_millis(2000), Duration::from_millis(5000));
/// Shortest and longest sleep of a delayed stream. Events that become due within the shortest go out together; events
/// that arrive with a time in the past go out after the longest.
const DELAYED_SLEEP: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// What the request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Where to begin; `None` means now.
    pub cursor: Option<FeedSeq>,
    /// The time that the consumer saw for the event at the cursor.
    pub time: Option<WrittenTime>,
}

/// Admits a stream and runs it to its end: writes the response's `head`, and then blocks. Returns why it ended.
///
/// # Errors
/// The limit that is reached; nothing was written then.
pub fn serve(feed: &Arc<Feed>, opening: Opening, head: Vec<u8>, asked: Asked) -> Result<End, Full> {
    let options = &feed.options;
    let limits = Limits { clients: options.max_clients, clients_per_key: options.max_clients_per_key };
    let age = options.max_stream_age.map(|most| random_between(most * 4 / 5, most));
    let ends_at = age.and_then(|age| Instant::now().checked_add(age));
    let client = feed.clients.admit(opening, limits, feed.clock.now(), ends_at, feed.health.epoch(), &feed.stats)?;
    let admitted = Admitted { feed, client: &client };
    // The server may have begun to stop before the stream was on the list: then nothing else would end the stream.
    if feed.health.is_stopping() {
        return Ok(End::Shutdown);
    }
    // The key may have ended after it was checked, and the next refresh may be some time away.
    feed.keys.tell(&client, feed.clock.now());
    feed.key_used(&client);
    let after = asked.cursor.map_or("from now".to_owned(), |cursor| format!("after event {cursor}"));
    log::info!("stream begins: key {:?} from {}, {after}", client.key.name, client.address);
    feed.stats.answered("200");
    lock(&client.writer).push_raw(head);
    let end = Stream::new(feed, &client, asked).run();
    admitted.finish(end);
    Ok(end)
}

/// Takes a stream off the list when it ends, also when its thread panics.
struct Admitted<'a> {
    feed: &'a Feed,
    client: &'a Arc<Client>,
}

impl Admitted<'_> {
    fn finish(self, end: End) {
        self.leave(end);
        std::mem::forget(self);
    }

    fn leave(&self, end: End) {
        self.feed.clients.leave(self.client);
        // A key's last use is the end of its last stream, not its beginning.
        self.feed.key_used(self.client);
        self.feed.stats.ended(end);
        log::info!(
            "stream ended: {}: key {:?} from {}, at event {}, {} delivered, {} dropped",
            end.name(),
            self.client.key.name,
            self.client.address,
            self.client.cursor(),
            self.client.delivered_events(),
            self.client.dropped_events(),
        );
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.leave(if std::thread::panicking() { End::Panicked } else { End::Shutdown });
    }
}

/// Why a stream left its loop.
enum Stop {
    /// Between two blocks: more can be written.
    Between(End),
    /// Within a block, or the connection is broken: nothing more can be written.
    Within(End),
}

impl From<Broken> for Stop {
    fn from(_: Broken) -> Self {
        Self::Within(End::ClientGone)
    }
}

type Step<T = ()> = Result<T, Stop>;

struct Stream<'a> {
    feed: &'a Arc<Feed>,
    client: &'a Arc<Client>,
    asked: Asked,
    delay: Duration,
    /// Called while the database works for this stream: writes heartbeats, and cancels the work if the stream ends.
    watch: Watch,
    pages: PageReader,
    /// The client took nothing for a second since the stream last checked its queue for an overflow.
    is_stalled: bool,
    /// The stream is reading the log to catch up.
    is_replaying: bool,
    /// At the last check more events waited than the queue holds. An overflow while the client took bytes is no loss:
    /// the stream catches up from the log.
    was_overflowed: bool,
}

impl<'a> Stream<'a> {
    fn new(feed: &'a Arc<Feed>, client: &'a Arc<Client>, asked: Asked) -> Self {
        let (watched_feed, watched_client) = (feed.clone(), client.clone());
        Self {
            feed,
            client,
            asked,
            delay: client.key.delay,
            watch: Arc::new(move || {
                attend(&watched_feed, &watched_client).is_ok() && !is_connected_overdue(&watched_feed, &watched_client)
            }),
            pages: PageReader::default(),
            is_stalled: false,
            is_replaying: false,
            was_overflowed: true,
        }
    }

    fn run(mut self) -> End {
        let Err(stop) = self.begin().and_then(|()| self.follow());
        match stop {
            Stop::Within(end) => end,
            Stop::Between(end) => {
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
            self.connect_at_end();
            push_system(self.client, &serde_json::json!({"reason": "closing", "cause": end.name()}));
        }
        lock(&self.client.writer).push_end();
        self.flush()
    }

    fn is_delayed(&self) -> bool {
        !self.delay.is_zero()
    }

    // Start.

    fn begin(&mut self) -> Step {
        match self.asked.cursor {
            None => self.begin_now(),
            Some(cursor) => self.begin_at(cursor),
        }
    }

    fn begin_now(&mut self) -> Step {
        let head = self.head()?;
        let earliest = self.earliest_at_once(head)?;
        // Read the head again: it may have moved.
        let head = self.head()?;
        let position = Position { cursor: head.seq, time: head.time, generation: head.generation };
        self.client.set_cursor(head.seq);
        self.connected(head.seq, head.seq, earliest);
        lock(&self.client.writer).set_position(position);
        Ok(())
    }

    fn begin_at(&mut self, cursor: FeedSeq) -> Step {
        self.client.set_cursor(cursor);
        let head = self.head()?;
        let earliest = self.earliest_at_once(head)?;
        self.connected(cursor, head.seq, earliest);
        self.flush()?;
        // A delayed key must not learn anything that depends on numbers above its head.
        let is_skipped = || self.feed.is_skipped(cursor);
        if (!self.is_delayed() && is_skipped()) || !self.is_in_log(cursor)? || self.feed.is_skipped(cursor) {
            return self.rewritten(cursor);
        }
        let position = self.find(cursor)?;
        if let (Some(asked), Some(known)) = (self.asked.time, position.time)
            && !asked.is(known)
        {
            return self.rewritten(cursor);
        }
        self.feed.stats.catch_ups.inc();
        let earliest = self.earliest()?;
        if earliest.prev > cursor {
            self.truncated(cursor, earliest, position.generation);
        } else {
            lock(&self.client.writer).set_position(position);
        }
        Ok(())
    }

    /// Whether the cursor is not ahead of the log; waits a little if it is.
    fn is_in_log(&mut self, cursor: FeedSeq) -> Step<bool> {
        let mut until = Instant::now() + AHEAD_GRACE;
        loop {
            // A standby may still receive the event: only a primary can say that a number does not exist.
            if self.feed.role() == Role::Standby {
                until = Instant::now() + AHEAD_GRACE;
            }
            if cursor <= self.head()?.seq || (self.is_delayed() && cursor <= self.read_head(cursor)?.seq) {
                return Ok(true);
            }
            // A cursor between the head and the counter counts as the head.
            if !self.is_delayed() && cursor <= self.feed.counter() {
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
            (tail.generation(), tail.time_of(cursor), cursor >= tail.head())
        };
        let time = if known.is_some() || is_in_tail {
            known
        } else {
            self.query(|connection| event_log::read_time(connection, cursor))?
        };
        Ok(Position { cursor, time, generation })
    }

    // Main loop.

    fn follow(&mut self) -> Step<std::convert::Infallible> {
        loop {
            self.attend()?;
            self.flush()?;
            let position = self.position();
            let head = self.head()?;
            self.end_if_overflowed(position, head)?;
            let (generation, read) = {
                let tail = lock(&self.feed.tail);
                (tail.generation(), tail.read(position.cursor, head.seq, WRITE_BYTES))
            };
            if position.generation != generation {
                self.check_generation(position, generation)?;
                continue;
            }
            match read {
                _ if head.generation != generation => {}
                TailRead::Batches(batches) => {
                    let mut writer = lock(&self.client.writer);
                    for batch in batches {
                        writer.push_batch(batch, head.seq);
                    }
                }
                TailRead::TooOld => self.write_page(position, head)?,
                TailRead::AtHead => {
                    self.is_replaying = false;
                    self.wait(position, head)?;
                }
            }
        }
    }

    fn position(&self) -> Position {
        lock(&self.client.writer).position().unwrap_or(Position {
            cursor: self.client.cursor(),
            time: None,
            generation: 0,
        })
    }

    /// Reads one page of the log and writes it.
    fn write_page(&mut self, position: Position, head: Head) -> Step {
        if !std::mem::replace(&mut self.is_replaying, true) {
            self.feed.stats.catch_ups.inc();
        }
        let range = Range { after: position.cursor, upto: head.seq, due: head.due };
        let mut pages = self.pages;
        let page = self.query(|connection| pages.read(connection, range));
        self.pages = pages;
        let page = page?;
        self.feed.stats.replay_pages.inc();
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
        let Some(first) = page.rows.first() else {
            if page.pruned_through < head.seq {
                // The log was replaced, which the reader will notice, or a standby has yet to receive this part.
                return self.pause(LOOK_AGAIN);
            }
            let earliest = WindowStart { seq: head.seq.next(), prev: head.seq };
            self.truncated(position.cursor, earliest, position.generation);
            return Ok(());
        };
        if is_gone {
            let earliest = WindowStart { seq: first.seq, prev: page.prev };
            self.truncated(position.cursor, earliest, position.generation);
        }
        let poisoned = |row: &_, poison: &_| self.feed.quarantine(row, poison, false);
        for batch in pages::render(page.rows, page.prev, position.generation, poisoned) {
            lock(&self.client.writer).push_batch(Arc::new(batch), head.seq);
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
            return Err(Stop::Within(End::WriteTimeout));
        }
        let mut patience = options.heartbeat.saturating_sub(silent).min(options.write_timeout - unanswered);
        if let Some(at) = self.client.ends_at {
            patience = patience.min(at.saturating_duration_since(Instant::now()));
        }
        if let Some(at) = self.client.expires_at() {
            patience = patience.min(at.since(self.feed.clock.now()));
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
            if batch.last() <= position.cursor && batch.generation() == position.generation {
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
        log::warn!(
            "dropped {} events ({} to {}): key {:?} from {} took nothing for a second and its queue overflowed",
            lost.events,
            lost.from,
            lost.to,
            self.client.key.name,
            self.client.address
        );
        let events = u64::try_from(lost.events).unwrap_or(0);
        self.client.dropped(events);
        self.feed.stats.dropped.inc_by(events);
        let (dropped, from, to) = (lost.events, lost.from, lost.to);
        push_system(self.client, &serde_json::json!({"reason": "dropped", "dropped": dropped, "from": from, "to": to}));
        Err(Stop::Between(End::Dropped))
    }

    /// Handles a log that was replaced under the running server: continues if the new log has the last event as sent.
    fn check_generation(&mut self, position: Position, generation: u64) -> Step {
        let cursor = position.cursor;
        let now = self.query(|connection| event_log::read_time(connection, cursor))?;
        let is_same = match position.time {
            Some(time) => now == Some(time),
            None => cursor <= self.head()?.seq || (!self.is_delayed() && cursor <= self.feed.counter()),
        };
        if !is_same {
            return self.rewritten(cursor);
        }
        lock(&self.client.writer).set_position(Position { generation, ..position });
        Ok(())
    }

    // Notices to the client.

    fn connected(&self, cursor: FeedSeq, head: FeedSeq, earliest: FeedSeq) {
        let message = serde_json::json!({
            "reason": "connected",
            "feed_id": self.feed.feed_id(),
            "cursor": cursor,
            "head": head,
            "earliest": earliest,
            "delay_seconds": seconds(self.delay),
            "heartbeat_seconds": seconds(self.feed.options.heartbeat),
            "key_expires_at": self.client.expires_at().map(|at| at.to_string()),
        });
        let retry = random_between(RETRY.0, RETRY.1).as_millis();
        let block = format!("id: {cursor}\nevent: system\nretry: {retry}\ndata: {message}\n\n");
        lock(&self.client.writer).push_connected(block.as_bytes());
    }

    /// Writes `connected` now, if the stream ends before it was written and its head is known.
    fn connect_at_end(&self) {
        if lock(&self.client.writer).is_connected() {
            return;
        }
        if let Some(head) = self.feed.recall_head(self.delay) {
            let cursor = self.asked.cursor.unwrap_or(head.seq);
            self.connected(cursor, head.seq, cursor.min(head.seq).next());
        }
    }

    fn truncated(&self, requested: FeedSeq, earliest: WindowStart, generation: u64) {
        log::warn!(
            "replay truncated: key {:?} from {} asked for events after {requested}, replay begins at {}",
            self.client.key.name,
            self.client.address,
            earliest.seq
        );
        self.feed.stats.truncated.inc();
        push_system(
            self.client,
            &serde_json::json!({"reason": "replay_truncated", "requested": requested, "earliest": earliest.seq}),
        );
        let position = Position { cursor: earliest.prev, time: None, generation };
        lock(&self.client.writer).set_position(position);
    }

    fn rewritten(&mut self, cursor: FeedSeq) -> Step {
        let head = self.head()?;
        self.feed.stats.rewritten.inc();
        log::warn!(
            "history rewritten: key {:?} from {}: cursor {cursor} is not in this log; continuing from {}",
            self.client.key.name,
            self.client.address,
            head.seq
        );
        push_system(
            self.client,
            &serde_json::json!({"reason": "history_rewritten", "cursor": cursor, "head": head.seq}),
        );
        self.client.set_cursor(head.seq);
        let position = Position { cursor: head.seq, time: head.time, generation: head.generation };
        lock(&self.client.writer).set_position(position);
        Ok(())
    }

    // Reading the log.

    /// The highest number that this stream may be sent.
    fn head(&mut self) -> Step<Head> {
        match self.feed.recall_head(self.delay) {
            Some(head) => Ok(head),
            None => self.read_head(FeedSeq(0)),
        }
    }

    /// Reads the head of a delayed key, at least the row `known` if that is due.
    fn read_head(&mut self, known: FeedSeq) -> Step<Head> {
        self.until_done(|stream| stream.feed.read_head(stream.delay, known, &stream.watch))
    }

    fn earliest(&mut self) -> Step<WindowStart> {
        loop {
            let head = self.head()?;
            match self.feed.earliest(self.delay, head, &self.watch) {
                Ok(earliest) => return Ok(earliest),
                Err(error) => self.retry_later(&error)?,
            }
        }
    }

    /// Where the replay window begins. If the database does not answer within a heartbeat, a number that promises
    /// nothing.
    fn earliest_at_once(&mut self, head: Head) -> Step<FeedSeq> {
        loop {
            match self.feed.earliest(self.delay, head, &self.watch) {
                Ok(earliest) => return Ok(earliest.seq),
                Err(_) if is_connected_overdue(self.feed, self.client) => {
                    return Ok(self.asked.cursor.unwrap_or(head.seq).min(head.seq).next());
                }
                Err(error) => self.retry_later(&error)?,
            }
        }
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

    fn retry_later(&mut self, error: &db::Error) -> Step {
        self.attend()?;
        log::debug!("replay for key {:?}: {error}", self.client.key.name);
        if error.is_conflict() {
            self.feed.stats.replay_conflicts.inc();
        }
        self.pause(LOOK_AGAIN)
    }

    // Waiting.

    fn attend(&self) -> Step {
        attend(self.feed, self.client)
    }

    fn pause(&mut self, time: Duration) -> Step {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            // A batch taken off the channel here is still in the tail.
            self.client.wait(left);
            self.attend()?;
        }
        Ok(())
    }

    /// Writes everything that is pending. Blocks until the client has taken it.
    fn flush(&mut self) -> Step {
        let mut ended_at: Option<Instant> = None;
        loop {
            let written = self.client.write_pending(&self.feed.stats)?;
            if !written.is_blocked {
                return Ok(());
            }
            let still = lock(&self.client.writer).unanswered_for().unwrap_or_default();
            self.is_stalled |= still >= STALLED_AFTER;
            if still >= self.feed.options.write_timeout {
                return Err(Stop::Within(End::WriteTimeout));
            }
            let end = end(self.feed, self.client);
            let is_for_key = matches!(end, Some(End::KeyRevoked | End::KeyExpired));
            let is_overdue = is_for_key && ended_at.get_or_insert_with(Instant::now).elapsed() >= BLOCKED_AT_END;
            if let Some(end) = end.filter(|end| is_overdue || *end == End::ClientGone) {
                return Err(Stop::Within(end));
            }
            socket::wait_writable(&self.client.socket, WRITE_LOOK_EVERY);
        }
    }
}

fn push_system(client: &Client, message: &serde_json::Value) {
    lock(&client.writer).push_blocks(format!("event: system\ndata: {message}\n\n").as_bytes());
}

/// Whether the block `connected` must go out without waiting any longer: nothing may be written before it, and a
/// heartbeat is due.
fn is_connected_overdue(feed: &Feed, client: &Client) -> bool {
    let writer = lock(&client.writer);
    !writer.is_connected() && writer.silent_for() >= feed.options.heartbeat
}

/// Why the stream should end, if it should.
fn end(feed: &Feed, client: &Client) -> Option<End> {
    if let Some(end) = client.ending() {
        return Some(end);
    }
    if feed.health.is_stopping() {
        return Some(End::Shutdown);
    }
    if client.expires_at().is_some_and(|at| at <= feed.clock.now()) {
        return Some(End::KeyExpired);
    }
    client.ends_at.is_some_and(|at| at <= Instant::now()).then_some(End::MaxAge)
}

/// Handles requests to end, changes of the database's health, and the heartbeat. Does not block. It must be called
/// during every wait of a stream.
fn attend(feed: &Feed, client: &Client) -> Step {
    match end(feed, client) {
        Some(end @ End::ClientGone) => return Err(Stop::Within(end)),
        Some(end) => return Err(Stop::Between(end)),
        None => {}
    }
    if !lock(&client.writer).is_connected() {
        client.write_pending(&feed.stats)?;
        return Ok(());
    }
    while let Some(epoch) = client.next_epoch(feed.health.epoch()) {
        let reason = if epoch.is_multiple_of(2) { "degraded" } else { "recovered" };
        push_system(client, &serde_json::json!({"reason": reason}));
    }
    let is_heartbeat_due = {
        let writer = lock(&client.writer);
        writer.is_idle() && writer.silent_for() >= feed.options.heartbeat
    };
    if is_heartbeat_due {
        if socket::is_closed(&client.socket) {
            return Err(Stop::Within(End::ClientGone));
        }
        // No blank line: several clients turn one into an empty event.
        lock(&client.writer).push_blocks(b":ping\n");
    }
    client.write_pending(&feed.stats)?;
    Ok(())
}
