//! One client's stream: replay, hand-over, then queue → socket. Runs on the client's own thread and ends with it.
//!
//! A stream is always in one of two modes. Catching up, it reads above its cursor, from memory where it can and else page
//! by page from the log, until it stands at the head and registers with its tier. Live, it writes what its queue holds.
//! A hole in the queue (`prev` above the cursor) leads back to catching up, or to the end for a client that stood still.
//! While it sleeps, the reader writes to its socket (see `loan`); it wakes for whatever the reader cannot do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ahead::Ahead;
use super::batch::SharedBatch;
use super::client::Client;
use super::loan::Loan;
use super::pages::{self, PageReader};
use super::place::Place;
use super::reason::End;
use super::standby::Role;
use super::tail::TailRead;
use super::tier::{Reached, Tier};
use super::window::Earliest;
use super::{Feed, delayed, lock, random_between, seconds};
use crate::db::{self, event_log};
use crate::event::{FeedSeq, WrittenTime};
use crate::http::outlet::{Blocked, Outlet};

/// How much is written at once, and so how long an end or a notice may wait for a slow client.
const WRITE_BYTES: usize = 256 * 1024;
/// How long a cursor that is ahead of a primary's log may be so before it is said: another feed may have seen more.
const AHEAD_GRACE: Duration = Duration::from_secs(5);
/// How often it is looked at meanwhile, and how long a failed look into the database is followed by the next.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Bounds of `retry:`, by which a client waits before it reconnects.
const RETRY: (Duration, Duration) = (Duration::from_millis(2000), Duration::from_millis(5000));
/// A key's end is acted upon within a second also where a write is stuck.
const STUCK_AT_END: Duration = Duration::from_millis(500);

/// What the request asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Where to begin; `None` for now.
    pub cursor: Option<FeedSeq>,
    /// The time that the consumer saw for the event at the cursor.
    pub time: Option<WrittenTime>,
}

/// One client's stream.
pub struct Stream<'a, 'o> {
    feed: &'a Arc<Feed>,
    client: &'a Arc<Client>,
    tier: Arc<Tier>,
    outlet: &'a mut Outlet<'o>,
    at: Place,
    history: u64,
    told_epoch: u64,
    ends_at: Option<Instant>,
    pages: PageReader,
    /// The next page, where it is being read already.
    ahead: Option<Ahead>,
}

/// Why a stream left its loop.
enum Stop {
    /// In order, between two blocks: more can be written.
    Between(End),
    /// Within a block, or with the connection broken: nothing more can be written.
    Within(Blocked),
}

impl From<Blocked> for Stop {
    fn from(blocked: Blocked) -> Self {
        Self::Within(blocked)
    }
}

type Step<T = ()> = Result<T, Stop>;

impl<'a, 'o> Stream<'a, 'o> {
    /// A stream that has not begun. The response's head is written already.
    pub fn new(feed: &'a Arc<Feed>, client: &'a Arc<Client>, outlet: &'a mut Outlet<'o>) -> Self {
        let age = feed.options.max_stream_age.map(|most| random_between(most * 4 / 5, most));
        Self {
            feed,
            client,
            tier: feed.live.clone(),
            outlet,
            at: Place::at(FeedSeq(0)),
            history: feed.live.history(),
            told_epoch: feed.health.epoch(),
            ends_at: age.and_then(|age| Instant::now().checked_add(age)),
            pages: PageReader::default(),
            ahead: None,
        }
    }

    /// Streams until something ends it, and says what. Blocks for as long as that takes.
    pub fn run(mut self, asked: Asked) -> End {
        let Err(stop) = self.stream(asked);
        match stop {
            Stop::Within(Blocked::Gone) => End::ClientGone,
            Stop::Within(Blocked::TimedOut) => End::WriteTimeout,
            Stop::Within(Blocked::Asked) => self.client.ending().unwrap_or(End::KeyRevoked),
            Stop::Between(end) => {
                // Whether or not the client still takes it, the stream ends.
                let _ = self.close(end);
                end
            }
        }
    }

    fn close(&mut self, end: End) -> Step {
        if end.is_told() {
            // So that a stuck write is given up for a key's end that nobody asked for too.
            self.client.end(end);
            self.system(&serde_json::json!({"reason": "closing", "cause": end.name()}))?;
        }
        let asked = self.stuck_end();
        Ok(self.outlet.finish(asked)?)
    }

    fn stream(&mut self, asked: Asked) -> Step<std::convert::Infallible> {
        self.enter_tier()?;
        match asked.cursor {
            None => self.begin_now()?,
            Some(cursor) => self.begin_at(cursor, asked.time)?,
        }
        loop {
            self.live()?;
            self.feed.stats.catch_ups.inc();
            self.catch_up()?;
        }
    }

    /// Finds the tier of the stream's key, which a delayed key may be the first to need.
    fn enter_tier(&mut self) -> Step {
        let delay = self.client.key.delay;
        if delay.is_zero() {
            return Ok(());
        }
        loop {
            match delayed::tier(self.feed, delay) {
                Ok(tier) => {
                    self.history = tier.history();
                    self.tier = tier;
                    return Ok(());
                }
                Err(error) => self.retry_later(&error)?,
            }
        }
    }

    /// A fresh consumer: registers first, so that its cursor is the head at that moment.
    fn begin_now(&mut self) -> Step {
        self.register();
        let cursor = self.at.cursor;
        self.connected(cursor)
    }

    fn begin_at(&mut self, cursor: FeedSeq, time: Option<WrittenTime>) -> Step {
        self.at = Place::at(cursor);
        self.client.stands_at(cursor);
        self.connected(cursor)?;
        // Nothing that a delayed key is told may depend on what its tier has not reached.
        let is_skipped = |stream: &Self| stream.feed.is_skipped(cursor);
        if (self.is_live_tier() && is_skipped(self)) || !self.is_in_log(cursor)? || is_skipped(self) {
            return self.rewritten();
        }
        self.find_place(cursor)?;
        if let (Some(asked), Some(known)) = (time, self.at.time)
            && !asked.is(known)
        {
            return self.rewritten();
        }
        let earliest = self.earliest()?;
        if earliest.prev > cursor {
            self.truncated(earliest)?;
        }
        self.feed.stats.catch_ups.inc();
        self.catch_up()
    }

    /// Whether the cursor is not ahead of the log; waits a little where it is.
    fn is_in_log(&mut self, cursor: FeedSeq) -> Step<bool> {
        let mut until = Instant::now() + AHEAD_GRACE;
        loop {
            // What a standby has not got may be on its way, however long that takes: only a primary knows that it is not.
            if self.feed.role() == Role::Standby {
                until = Instant::now() + AHEAD_GRACE;
            }
            let head = self.tier.head();
            if cursor <= head {
                return Ok(true);
            }
            // Between the head and the counter it counts as the head.
            if self.is_live_tier() && cursor <= self.feed.counter() {
                return Ok(true);
            }
            if Instant::now() >= until && self.feed.health.outage().is_none() {
                return Ok(false);
            }
            self.pause(LOOK_AGAIN)?;
        }
    }

    /// Finds the last row at or below the cursor, and the time of the cursor's own.
    fn find_place(&mut self, cursor: FeedSeq) -> Step<FeedSeq> {
        {
            let tail = lock(&self.tier.tail);
            if cursor >= tail.head() {
                self.at.time = tail.time_of(cursor);
                self.at.row = Some(tail.head());
                return Ok(tail.head());
            }
            if tail.covers(cursor)
                && let Some(time) = tail.time_of(cursor)
            {
                self.at.time = Some(time);
                self.at.row = Some(cursor);
                return Ok(cursor);
            }
        }
        let place = self.query(|connection| event_log::read_place(connection, cursor))?;
        self.at.time = place.time;
        self.at.row = Some(place.row_at_or_below);
        Ok(place.row_at_or_below)
    }

    fn is_live_tier(&self) -> bool {
        self.tier.delay().is_zero()
    }

    fn earliest(&mut self) -> Step<Earliest> {
        loop {
            match self.tier.earliest(&self.feed.clock, &self.feed.replay) {
                Ok(earliest) => return Ok(earliest),
                Err(error) => self.retry_later(&error)?,
            }
        }
    }

    /// Registers with the tier: from now on everything above the head comes by the queue.
    fn register(&mut self) {
        self.history = self.tier.history();
        let Reached { head, head_time, ordinal } = self.tier.register(self.client);
        self.at = Place { cursor: head, time: head_time, row: Some(head), ordinal };
        self.client.stands_at(head);
    }

    /// Reads everything above the cursor, and registers when it stands at the head.
    fn catch_up(&mut self) -> Step {
        let mut registered = false;
        loop {
            self.attend()?;
            // Under one lock: a tail of another log must not be read with a cursor of this one.
            let (history, read) = {
                let tail = lock(&self.tier.tail);
                (self.tier.history(), tail.after(self.at.cursor, WRITE_BYTES))
            };
            if self.history != history {
                registered = false;
                self.check_history()?;
                continue;
            }
            match read {
                TailRead::Batches(batches) => self.write_batches(&batches)?,
                TailRead::TooOld => self.write_page()?,
                TailRead::AtHead if registered => {
                    self.ahead = None;
                    self.outlet.forget_standstill();
                    return Ok(());
                }
                TailRead::AtHead => {
                    let cursor = self.at;
                    self.register();
                    registered = true;
                    if cursor.cursor < self.at.cursor {
                        // Something came between: it is in the tail, and not in the queue.
                        self.at = cursor;
                    } else if cursor.cursor > self.at.cursor {
                        self.at.cursor = cursor.cursor;
                        self.client.stands_at(cursor.cursor);
                    }
                }
            }
        }
    }

    /// Reads one page of the log and writes it.
    fn write_page(&mut self) -> Step {
        let (after, upto) = (self.at.cursor, self.tier.head());
        let row = match self.at.row {
            Some(row) => row,
            None => self.find_place(after)?,
        };
        let ahead = self.ahead.take().and_then(|ahead| ahead.wait(after, self.history));
        let page = match ahead {
            Some((pages, page)) => {
                self.pages = pages;
                page
            }
            None => {
                let mut pages = self.pages;
                let page = self.query(|connection| pages.read(connection, after, upto));
                self.pages = pages;
                page?
            }
        };
        self.feed.stats.replay_pages.inc();
        let Some(first) = page.rows.first() else {
            // Everything up to the tier's head was pruned, or the log is another one: the reader finds out which. Or this is
            // a standby that has yet to replay what another database had.
            let place = self.query(|connection| event_log::read_place(connection, upto))?;
            if place.is_pruned {
                self.truncated(Earliest { seq: upto.next(), prev: place.row_at_or_below })?;
            } else {
                self.pause(LOOK_AGAIN)?;
            }
            return Ok(());
        };
        if after > page.pruned_through && self.at.time.is_some() && page.anchor != self.at.time {
            return self.rewritten();
        }
        if page.pruned_through > after {
            self.truncated(Earliest { seq: first.seq, prev: page.pruned_through })?;
        }
        if page.full
            && let Some(last) = page.rows.last()
            && !lock(&self.tier.tail).covers(last.seq)
        {
            self.ahead = self.feed.ahead.ask(self.pages, last.seq, self.tier.head(), self.history);
        }
        let prev = row.max(page.pruned_through);
        let batches = pages::render(&page.rows, prev, 0, usize::MAX, |row, poison| self.feed.quarantine(row, poison));
        drop(page);
        for batch in batches {
            self.attend()?;
            self.write_batches(&[Arc::new(batch)])?;
        }
        Ok(())
    }

    /// Writes what the queue holds until there is a hole in it.
    fn live(&mut self) -> Step {
        let mut batches: Vec<SharedBatch> = Vec::new();
        loop {
            self.attend()?;
            if self.history != self.tier.history() {
                return Ok(());
            }
            self.client.queue.take(WRITE_BYTES, &mut batches);
            // What was broadcast while this stream was still catching up was read from the tail already.
            batches.retain(|batch| batch.last() > self.at.cursor);
            let Some(first) = batches.first() else {
                self.outlet.forget_standstill();
                self.wait()?;
                continue;
            };
            // What lies before the first hole is written; the hole itself may be at the very beginning.
            let whole = match first.prev() > self.at.cursor {
                true => 0,
                false => 1 + batches.windows(2).take_while(|pair| pair[1].prev() == pair[0].last()).count(),
            };
            self.write_batches(&batches[..whole])?;
            if let Some(newest) = batches[..whole].last() {
                self.feed.stats.broadcast_to_written.observe(newest.age().as_secs_f64());
            }
            if let Some(beyond) = batches.get(whole) {
                if self.outlet.stood_still() {
                    return self.dropped(beyond);
                }
                self.leave_queue();
                return Ok(());
            }
            batches.clear();
        }
    }

    /// Asks for no more batches, and forgets those that wait.
    fn leave_queue(&self) {
        self.tier.deregister(self.client);
        self.client.queue.clear();
    }

    fn write_batches(&mut self, batches: &[SharedBatch]) -> Step {
        let mut events = 0;
        let mut cursor = self.at.cursor;
        let mut slices = Vec::with_capacity(batches.len());
        for batch in batches {
            // Only the first can begin below the cursor, and only a whole batch is framed already.
            let count = batch.count_after(cursor);
            events += count;
            if count < batch.entries().len() || !self.outlet.is_chunked() {
                let blocks = batch.blocks_after(cursor);
                if !blocks.is_empty() {
                    self.write_pieces(&mut slices)?;
                    self.write_blocks(blocks)?;
                }
            } else {
                slices.push(std::io::IoSlice::new(batch.as_chunk()));
            }
            cursor = batch.last();
        }
        self.write_pieces(&mut slices)?;
        if let Some(last) = batches.last() {
            self.at = Place::after(last);
            self.client.delivered(self.at.cursor, events, &self.feed.stats);
        }
        Ok(())
    }

    fn write_pieces(&mut self, slices: &mut Vec<std::io::IoSlice<'_>>) -> Step {
        if !slices.is_empty() {
            let asked = self.stuck_end();
            self.outlet.write(slices, asked)?;
            slices.clear();
        }
        Ok(())
    }

    fn write_blocks(&mut self, blocks: &[u8]) -> Step {
        let asked = self.stuck_end();
        Ok(self.outlet.write_blocks(blocks, asked)?)
    }

    /// Whether a stuck write is to be given up because the stream's key has ended.
    fn stuck_end(&self) -> impl Fn() -> bool + use<'a, 'o> {
        let (feed, client) = (self.feed, self.client);
        let asked_at = std::cell::Cell::new(None::<Instant>);
        move || {
            // Nobody else watches the time while the write is stuck.
            if client.expires_at().is_some_and(|at| at <= feed.clock.now()) {
                client.end(End::KeyExpired);
            }
            match client.ending() {
                Some(End::KeyRevoked | End::KeyExpired) => {
                    let since = asked_at.get().unwrap_or_else(Instant::now);
                    asked_at.set(Some(since));
                    since.elapsed() >= STUCK_AT_END
                }
                _ => false,
            }
        }
    }

    /// Ends that were asked for or are due, notices of the database's health, and the heartbeat.
    fn attend(&mut self) -> Step {
        if let Some(end) = self.client.ending() {
            return Err(Stop::Between(end));
        }
        if self.feed.health.is_stopping() {
            return Err(Stop::Between(End::Shutdown));
        }
        if self.client.expires_at().is_some_and(|at| at <= self.feed.clock.now()) {
            return Err(Stop::Between(End::KeyExpired));
        }
        if self.ends_at.is_some_and(|at| at <= Instant::now()) {
            return Err(Stop::Between(End::MaxAge));
        }
        let epoch = self.feed.health.epoch();
        // Two changes bring back the same state: the client is told of both, of older ones not.
        self.told_epoch = self.told_epoch.max(epoch.saturating_sub(2));
        while self.told_epoch < epoch {
            self.told_epoch += 1;
            let reason = if self.told_epoch.is_multiple_of(2) { "degraded" } else { "recovered" };
            self.system(&serde_json::json!({"reason": reason}))?;
        }
        if self.outlet.silent_for() >= self.feed.options.heartbeat {
            if self.outlet.is_closed() {
                return Err(Stop::Between(End::ClientGone));
            }
            // No blank line: several clients turn one into an empty event.
            self.write_blocks(b":ping\n")?;
        }
        Ok(())
    }

    /// Waits for the queue to ring, at most until the next thing is due. Meanwhile the reader writes, where it can.
    fn wait(&mut self) -> Step {
        let now = Instant::now();
        let key_ends = self.client.expires_at().and_then(|at| now.checked_add(at.since(self.feed.clock.now())));
        let until = self.ends_at.into_iter().chain(key_ends).min();
        let mut patience = self.feed.options.heartbeat.saturating_sub(self.outlet.silent_for());
        // Also where nothing is on its way: what the reader writes from now on is looked at in time.
        patience = patience.min(self.outlet.look()?.unwrap_or(self.feed.options.write_timeout));
        if let Some(until) = until {
            patience = patience.min(until.saturating_duration_since(now));
        }
        let loan = Loan::new(self.outlet.lend(), self.at, until);
        // A little later than due rather than a little before: who wakes too early waits again for nothing.
        let Some(loan) = self.client.queue.wait_lending(loan, patience + Duration::from_millis(1)) else {
            return Ok(());
        };
        self.at = loan.place();
        self.outlet.take_back(loan.outlet());
        if let Some((batch, rest)) = loan.rest() {
            let asked = self.stuck_end();
            self.outlet.write(&mut [std::io::IoSlice::new(rest)], asked)?;
            self.at = Place::after(batch);
            self.client.delivered(self.at.cursor, batch.entries().len(), &self.feed.stats);
            self.feed.stats.broadcast_to_written.observe(batch.age().as_secs_f64());
        }
        Ok(())
    }

    fn pause(&mut self, time: Duration) -> Step {
        self.client.queue.wait(time);
        self.attend()
    }

    /// Reads from the database by a replay connection; tries again, with the stream kept alive, until that works.
    fn query<T>(&mut self, mut work: impl FnMut(&mut db::Connection) -> Result<T, db::Error>) -> Step<T> {
        loop {
            match self.feed.replay.with(&mut work) {
                Ok(value) => return Ok(value),
                Err(error) => self.retry_later(&error)?,
            }
        }
    }

    fn retry_later(&mut self, error: &db::Error) -> Step {
        log::debug!("replay for key {:?}: {error}", self.client.key.name);
        if error.is_conflict() {
            self.feed.stats.replay_conflicts.inc();
        }
        let until = Instant::now() + LOOK_AGAIN;
        while Instant::now() < until {
            self.pause(until.saturating_duration_since(Instant::now()))?;
        }
        Ok(())
    }

    /// The log was replaced under the running server: goes on where the last event is in the new one, as it was sent.
    fn check_history(&mut self) -> Step {
        self.history = self.tier.history();
        let Place { cursor, time, .. } = self.at;
        let now = self.query(|connection| event_log::read_time(connection, cursor))?;
        let is_same = match time {
            Some(time) => now == Some(time),
            None => cursor <= self.tier.head() || (self.is_live_tier() && cursor <= self.feed.counter()),
        };
        if is_same {
            self.at.row = None;
            return Ok(());
        }
        self.rewritten()
    }

    fn connected(&mut self, cursor: FeedSeq) -> Step {
        let earliest = self.earliest()?.seq;
        let message = serde_json::json!({
            "reason": "connected",
            "feed_id": self.feed.feed_id(),
            "cursor": cursor,
            "head": self.tier.head(),
            "earliest": earliest,
            "delay_seconds": seconds(self.tier.delay()),
            "heartbeat_seconds": seconds(self.feed.options.heartbeat),
            "key_expires_at": self.client.expires_at().map(|at| at.to_string()),
        });
        let retry = random_between(RETRY.0, RETRY.1).as_millis();
        let block = format!("id: {cursor}\nevent: system\nretry: {retry}\ndata: {message}\n\n");
        self.write_blocks(block.as_bytes())
    }

    fn truncated(&mut self, earliest: Earliest) -> Step {
        let requested = self.at.cursor;
        log::warn!(
            "replay truncated: key {:?} from {} asked for what follows {requested}, the log begins at {}",
            self.client.key.name,
            self.client.address,
            earliest.seq
        );
        self.feed.stats.truncated.inc();
        self.at = Place { cursor: earliest.prev, time: None, row: Some(earliest.prev), ordinal: self.at.ordinal };
        self.system(
            &serde_json::json!({"reason": "replay_truncated", "requested": requested, "earliest": earliest.seq}),
        )
    }

    fn rewritten(&mut self) -> Step {
        let cursor = self.at.cursor;
        self.feed.stats.rewritten.inc();
        self.leave_queue();
        self.register();
        log::warn!(
            "history rewritten: key {:?} from {} stood at {cursor}, which is not in this log; it goes on from {}",
            self.client.key.name,
            self.client.address,
            self.at.cursor
        );
        let head = self.at.cursor;
        self.system(&serde_json::json!({"reason": "history_rewritten", "cursor": cursor, "head": head}))
    }

    fn dropped(&mut self, next: &SharedBatch) -> Step {
        let from = lock(&self.tier.tail).first_after(self.at.cursor).unwrap_or(self.at.cursor.next());
        let to = next.prev();
        let dropped = next.ordinal().saturating_sub(self.at.ordinal);
        log::warn!(
            "dropped {dropped} events ({from} to {to}): key {:?} from {} took nothing for a second and its queue overflowed",
            self.client.key.name,
            self.client.address
        );
        self.system(&serde_json::json!({"reason": "dropped", "dropped": dropped, "from": from, "to": to}))?;
        Err(Stop::Between(End::Dropped))
    }

    fn system(&mut self, message: &serde_json::Value) -> Step {
        self.write_blocks(format!("event: system\ndata: {message}\n\n").as_bytes())
    }
}

impl Drop for Stream<'_, '_> {
    fn drop(&mut self) {
        self.tier.deregister(self.client);
    }
}
