//! The thread `reader`: the only reader of new log rows.
//!
//! It owns one connection, and alone changes the tail. `listen` wakes it, and it looks at the log at least every
//! `--poll-interval`; on a hot standby, where no notification comes, far more often. It renders each new event once, adds
//! it to the tail, and offers it to every stream without ever waiting for one. It ends when the server stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;

use super::Feed;
use super::batch::{Batch, SharedBatch};
use super::health::Part;
use super::pages::{self, PageReader};
use super::tail::Tail;
use crate::db::event_log::{self, LogState, Range};
use crate::db::{self, Connection, Settings, migrate};
use crate::error::Error;
use crate::sync::lock;

/// The log is read this often however long `--poll-interval` is: it proves that the database is there.
const LONGEST_POLL: Duration = Duration::from_secs(2);
/// How often the log of a standby is checked and read.
const STANDBY_POLL: Duration = Duration::from_millis(50);
const RETRY_EVERY: Duration = Duration::from_millis(250);
/// What is read into the tail at the start: at most this many events, and this many bytes as stored (4 MiB).
const START_EVENTS: i64 = 10_000;
const START_BYTES: i64 = 4 * 1024 * 1024;

pub(crate) struct Reader<'a> {
    feed: &'a Feed,
    settings: &'a Settings,
    pages: PageReader,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(feed: &'a Feed, settings: &'a Settings) -> Self {
        Self { feed, settings, pages: PageReader::default() }
    }

    pub(crate) fn run(mut self) {
        let poll = self.feed.options.poll_interval.min(LONGEST_POLL);
        let mut connection = None;
        let mut next_check = Instant::now();
        while !self.feed.health.is_stopping() {
            self.feed.stats.reader_turns.inc();
            let is_woken = self.feed.wakes.receiver.recv_deadline(next_check).is_ok();
            let is_check_due = !is_woken || Instant::now() >= next_check;
            // While the database is away only the timer counts: no notification can come.
            if connection.is_none() && !is_check_due {
                continue;
            }
            let wait = match self.look(&mut connection, is_check_due) {
                Ok(()) if !is_check_due => continue,
                Ok(()) if self.feed.is_standby() => STANDBY_POLL,
                Ok(()) => poll,
                Err(error) => {
                    connection = None;
                    self.feed.lost(Part::Log, "read the log", &error);
                    RETRY_EVERY
                }
            };
            next_check = Instant::now() + wait;
        }
    }

    /// Connects if necessary, checks (if due) that the log is still the same, and broadcasts new events.
    fn look(&mut self, connection: &mut Option<Connection>, is_check_due: bool) -> Result<(), db::Error> {
        let is_new = connection.is_none();
        if is_new {
            *connection = Some(self.connect()?);
        }
        let connection = connection.as_mut().ok_or(db::Error::Closed)?;
        if is_new || is_check_due {
            self.check(connection, is_new)?;
        }
        self.broadcast_new(connection)
    }

    /// Connects to the database. A start ends here if the schema is not the one that this program knows, or is not for this
    /// role to use. Once the feed has run, that is a restore that is not complete yet.
    fn connect(&self) -> Result<Connection, db::Error> {
        let mut connection = Connection::open(self.settings, "signal-feed reader")?;
        if let Err(error) = migrate::check_schema(&mut connection) {
            let text = error.to_string();
            let cause = match error {
                Error::Database { cause, .. } => cause,
                _ => db::Error::Incomplete(text.clone()),
            };
            let is_denied = cause.sql_state() == Some(&SqlState::INSUFFICIENT_PRIVILEGE);
            if self.feed.facts().feed_id.is_empty() && (is_denied || matches!(cause, db::Error::Incomplete(_))) {
                self.feed.fail(text);
            }
            return Err(cause);
        }
        event_log::read_by_index(&mut connection)?;
        Ok(connection)
    }

    /// Checks whether the log is still the one in the tail. If not, or if there is none yet, a new generation begins:
    /// first its tail is read as a whole, so a failure leaves everything as it was.
    fn check(&mut self, connection: &mut Connection, is_new: bool) -> Result<(), db::Error> {
        let (generation, head, head_time) = {
            let tail = lock(&self.feed.tail);
            (tail.generation, tail.head, tail.head_time)
        };
        let state = event_log::read_state(connection, head)?;
        self.feed.set_clock(state.now);
        let was_standby = {
            let mut facts = lock(&self.feed.facts);
            (facts.counter, facts.log_head, facts.pruned_through) = (state.counter, state.head, state.pruned_through);
            std::mem::replace(&mut facts.is_standby, state.is_standby)
        };
        match (was_standby, state.is_standby) {
            (false, true) => log::info!("the database is a hot standby: the feed polls it and records nothing"),
            (true, false) => {
                log::warn!("the database is a primary now: a standby was promoted, or the feed switched hosts")
            }
            _ => {}
        }
        let known = self.feed.facts().feed_id;
        let feed_id = if is_new { event_log::read_feed_id(connection)? } else { known.clone() };
        // Until the first tail is complete.
        let is_first = known.is_empty();
        let is_replaced = (!is_first && known != feed_id)
            || (state.head < head && !state.is_standby)
            // A standby may still receive what another database had: its log is shorter, not another.
            || (state.head >= head && head > state.pruned_through && head_time.is_some() && state.known_time != head_time);
        if !is_first && !is_replaced {
            return Ok(());
        }
        let tail = self.read_tail(connection, &state, generation + 1)?;
        if is_replaced {
            let new = state.head;
            log::error!("the log was replaced under the running server: event {head} is gone, the new head is {new}");
        }
        lock(&self.feed.facts).feed_id = feed_id;
        *lock(&self.feed.tail) = tail;
        self.feed.clients.wake_all();
        Ok(())
    }

    fn read_tail(&mut self, connection: &mut Connection, state: &LogState, generation: u64) -> Result<Tail, db::Error> {
        // If every row was pruned, the head is a number without a row.
        let empty = || Tail::new(generation, state.head, state.head_time);
        let start = event_log::read_recent_start(connection, START_EVENTS, START_BYTES)?;
        let mut after = start.unwrap_or(state.head).max(state.pruned_through);
        let mut tail = empty();
        let mut prev = None;
        while after < state.head {
            self.feed.stats.reader_turns.inc();
            let range = Range { upto: state.head, ..Range::after(after) };
            let page = self.pages.read(connection, range)?;
            let Some(last) = page.rows.last().map(|row| row.seq) else { return Ok(empty()) };
            let poisoned = |row: &_, poison: &_| self.feed.quarantine(row, poison, false);
            for batch in pages::render(page.rows, prev.unwrap_or(page.prev), generation, poisoned) {
                tail.push(Arc::new(batch));
            }
            after = last;
            prev = Some(last);
        }
        Ok(tail)
    }

    fn broadcast_new(&mut self, connection: &mut Connection) -> Result<(), db::Error> {
        loop {
            self.feed.stats.reader_turns.inc();
            let began = Instant::now();
            let (generation, head, head_time) = {
                let tail = lock(&self.feed.tail);
                (tail.generation, tail.head, tail.head_time)
            };
            let page = self.pages.read(connection, Range::after(head))?;
            let is_replaced = head > page.pruned_through && head_time.is_some() && page.time_after != head_time;
            if is_replaced {
                self.check(connection, false)?;
            }
            let prev = head.max(page.pruned_through);
            let feed = self.feed;
            let rows = if is_replaced { Vec::new() } else { page.rows };
            let is_last = rows.is_empty() || !page.is_full;
            for batch in pages::render(rows, prev, generation, |row, poison| feed.quarantine(row, poison, true)) {
                self.broadcast(batch);
            }
            // After the page: what an outage held up comes before `recovered`, if it is one page.
            self.feed.proven(Part::Log, began);
            if is_last || self.feed.health.is_stopping() {
                return Ok(());
            }
        }
    }

    /// Adds a batch to the tail, and then offers it to every stream.
    fn broadcast(&mut self, batch: Batch) {
        let stats = &self.feed.stats;
        let now = self.feed.now();
        let latency = stats.commit_to_broadcast.local();
        for entry in batch.entries.iter().filter(|entry| entry.time.is_usable()) {
            latency.observe(now.since(entry.time).as_secs_f64());
        }
        let batch: SharedBatch = Arc::new(batch);
        lock(&self.feed.tail).push(batch.clone());
        stats.events.inc_by(batch.entries.len() as u64);
        // After the tail: a stream that is not on this list has yet to read the tail.
        let clients = self.feed.clients.all();
        let now = Instant::now();
        let written = stats.broadcast_to_written.local();
        for client in clients.iter().filter(|client| client.key.delay.is_zero()) {
            if client.offer(&batch, now, stats) {
                written.observe(batch.age().as_secs_f64());
            }
        }
    }
}
