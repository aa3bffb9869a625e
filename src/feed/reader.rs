//! The thread `reader`: the only reader of new log rows.
//!
//! It owns one connection and the head. It is woken by `listen` and by a change of health, and looks at the log at least
//! every `--poll-interval` without being asked. Where no notification can come, on a hot standby, it glances at the log far
//! more often while news come. It sends batches into the clients' queues and never waits for a client. It ends when the
//! server stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::broadcast::Broadcaster;
use super::health::Part;
use super::pages::{self, PageReader};
use super::standby::Role;
use super::tail::Tail;
use super::{Feed, LIVE_TAIL_BYTES};
use crate::db::event_log::{self, LogState};
use crate::db::{self, Connection, Settings, migrate};
use crate::error::Error;
use crate::event::LogRow;
use crate::event::{EventTime, FeedSeq};

/// The log is looked at this often however long `--poll-interval` is: it proves that the database is there.
const LONGEST_POLL: Duration = Duration::from_secs(2);
/// The least wait between two glances at the log of a standby.
const SHORTEST_GLANCE: Duration = Duration::from_millis(10);
/// The next glance comes after this part of the time for which nothing new has been found: so nothing is found later than
/// by a quarter of that time, and a quiet log costs next to nothing.
const GLANCE_PART: u32 = 4;
/// For so long, 5 s, conflicts with what a standby replays are only tried again; then the log counts as lost.
const CONFLICT_PATIENCE: Duration = Duration::from_secs(5);
/// The wait before it is tried again.
const CONFLICT_RETRY: Duration = Duration::from_millis(20);
/// Waits between attempts to connect: the first, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(1);
/// How much of the log is read into memory at the start: at most so many events, and so many bytes as they are stored.
const PREFILL_EVENTS: i64 = 10_000;
const PREFILL_BYTES: i64 = 4 * 1024 * 1024;

/// What the thread owns.
pub struct Reader<'a> {
    feed: &'a Feed,
    settings: &'a Settings,
    wake: Receiver<()>,
    broadcaster: Broadcaster,
    pages: PageReader,
    connection: Option<Connection>,
    /// What is known of the log: it is another one where this changes.
    feed_id: Option<String>,
    told_epoch: u64,
}

/// What a look at the log found.
enum Look {
    /// The same log as before, perhaps with more rows.
    Same,
    /// Another one: rows that were read before are not in it.
    Another,
}

/// Why a look at the log failed.
struct Failure {
    error: db::Error,
    /// The database had accepted the session.
    in_session: bool,
}

impl<'a> Reader<'a> {
    /// A reader that has not connected yet.
    pub fn new(feed: &'a Feed, settings: &'a Settings, wake: Receiver<()>) -> Self {
        Self {
            feed,
            settings,
            wake,
            broadcaster: Broadcaster::new(Arc::clone(&feed.live)),
            pages: PageReader::default(),
            connection: None,
            feed_id: None,
            told_epoch: 0,
        }
    }

    /// The thread `reader`: runs until the server stops.
    pub fn run(mut self) {
        let poll = self.feed.options.poll_interval.min(LONGEST_POLL);
        let mut retry = FIRST_RETRY;
        let mut next_look = Instant::now();
        let mut next_glance = next_look;
        let mut last_news = next_look;
        let mut conflicts_from: Option<Instant> = None;
        while !self.feed.health.is_stopping() {
            self.feed.stats.reader_turns.inc();
            let mut woken = self.wake.recv_deadline(next_glance.min(next_look)).is_ok();
            self.tell_of_health();
            if self.feed.health.is_stopping() {
                break;
            }
            let due = Instant::now() >= next_look;
            woken |= Instant::now() >= next_glance;
            // While the database is away, only the retry timer counts: notifications cannot come.
            if !due && (!woken || self.connection.is_none()) {
                continue;
            }
            let before = self.broadcaster.head();
            match self.look(due) {
                Ok(()) => {
                    retry = FIRST_RETRY;
                    conflicts_from = None;
                    let now = Instant::now();
                    if due {
                        next_look = now + poll;
                    }
                    if self.broadcaster.head() != before {
                        last_news = now;
                    }
                    next_glance = match self.feed.replication.must_poll() {
                        true => now + ((now - last_news) / GLANCE_PART).max(SHORTEST_GLANCE).min(poll),
                        false => next_look,
                    };
                }
                // Nothing is lost, and another session is as good.
                Err(Failure { error, in_session })
                    if self.is_replay_conflict(&error, in_session)
                        && conflicts_from.get_or_insert_with(Instant::now).elapsed() < CONFLICT_PATIENCE =>
                {
                    log::debug!("read the log: {error}");
                    self.feed.stats.replay_conflicts.inc();
                    next_look = Instant::now() + CONFLICT_RETRY;
                    next_glance = next_look;
                }
                Err(Failure { error, .. }) => {
                    if self.connection.take().is_some() || retry == FIRST_RETRY {
                        log::warn!("read the log: {error}");
                    }
                    self.feed.health.lost(Part::Log);
                    next_look = Instant::now() + retry;
                    next_glance = next_look;
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
            }
            self.tell_of_health();
        }
        self.broadcaster.ring_all();
    }

    /// Whether a standby has cancelled a query, or ended the session, for what it had to replay. Of a session that ends the
    /// reason does not always arrive; a server that is really going accepts no other.
    fn is_replay_conflict(&self, error: &db::Error, in_session: bool) -> bool {
        let is_unexplained = match error {
            db::Error::Closed | db::Error::Postgres(_) => !error.is_statement_error(),
            _ => false,
        };
        error.is_conflict() || (in_session && is_unexplained && self.feed.role() == Role::Standby)
    }

    /// Connects where that is needed, checks where that is due that the log is still the same, and broadcasts what is new.
    fn look(&mut self, check: bool) -> Result<(), Failure> {
        let (mut connection, is_new) = match self.connection.take() {
            Some(connection) => (connection, false),
            None => (self.connect().map_err(|error| Failure { error, in_session: false })?, true),
        };
        self.look_with(&mut connection, is_new, check).map_err(|error| Failure { error, in_session: true })?;
        self.connection = Some(connection);
        self.feed.health.proven(Part::Log);
        Ok(())
    }

    /// Connects to the database, which may have another schema than when the server began.
    fn connect(&self) -> Result<Connection, db::Error> {
        let mut connection = Connection::open(self.settings, "signal-feed reader")?;
        match migrate::check_schema(&mut connection) {
            Ok(()) => Ok(connection),
            Err(Error::Database { cause, .. }) => Err(cause),
            Err(error) => {
                self.feed.fail(error.to_string());
                Err(db::Error::Settings(error.to_string()))
            }
        }
    }

    fn look_with(&mut self, connection: &mut Connection, is_new: bool, check: bool) -> Result<(), db::Error> {
        if is_new || check {
            let found = self.check(connection, is_new)?;
            if matches!(found, Look::Another) {
                return Ok(());
            }
        }
        self.broadcast_new(connection)
    }

    /// Whether the log is still the one that was read before; where it is not, or nothing was read yet, takes up its present state.
    fn check(&mut self, connection: &mut Connection, is_new: bool) -> Result<Look, db::Error> {
        let asked = Instant::now();
        let head = self.broadcaster.head();
        let state = event_log::read_state(connection, head)?;
        self.feed.clock.set(state.now, asked);
        self.feed.replication.found(if state.is_standby { Role::Standby } else { Role::Primary });
        self.feed.set_log_facts(&state, event_log::read_skipped(connection)?);
        self.feed.live.window.pruned(state.pruned_through);
        let first = self.feed_id.is_none();
        let mut another = first || self.is_another(&state);
        if is_new {
            let feed_id = event_log::read_feed_id(connection)?;
            another |= self.feed_id.as_ref() != Some(&feed_id);
            self.feed.set_feed_id(&feed_id);
            self.feed_id = Some(feed_id);
        }
        if !another {
            return Ok(Look::Same);
        }
        if !first {
            log::error!(
                "the log was replaced under the running server: event {head} is not in it any more; \
                 every stream is checked, and goes on from the new head {} where its last event is gone",
                state.head
            );
        }
        let tail = self.recent(connection, &state)?;
        self.broadcaster.replace_history(tail);
        Ok(Look::Another)
    }

    fn is_another(&self, state: &LogState) -> bool {
        let head = self.broadcaster.head();
        if state.head < head {
            // A standby has yet to replay what another database, which it follows, had: its log is shorter, not another.
            return !state.is_standby;
        }
        match self.broadcaster.head_time() {
            Some(time) if head > state.pruned_through => state.known_time != Some(time),
            _ => false,
        }
    }

    /// The newest part of the log, for the tail.
    fn recent(&mut self, connection: &mut Connection, state: &LogState) -> Result<Tail, db::Error> {
        let start = event_log::read_recent_start(connection, PREFILL_EVENTS, PREFILL_BYTES)?;
        let start = start.unwrap_or(state.head).max(state.pruned_through).min(state.head);
        let mut prev = event_log::read_place(connection, start)?.row_at_or_below;
        let mut tail = Tail::new(LIVE_TAIL_BYTES, prev, event_log::read_time(connection, prev)?);
        while prev < state.head {
            self.feed.stats.reader_turns.inc();
            let page = self.pages.read(connection, prev, state.head)?;
            let Some(last) = page.rows.last().map(|row| row.seq) else { break };
            for batch in self.render(&page.rows, prev) {
                tail.push(Arc::new(batch));
            }
            prev = last;
        }
        // Where every row was pruned, the head is a number without a row.
        if tail.head() < state.head {
            return Ok(Tail::new(LIVE_TAIL_BYTES, state.head, state.head_time));
        }
        Ok(tail)
    }

    fn broadcast_new(&mut self, connection: &mut Connection) -> Result<(), db::Error> {
        loop {
            self.feed.stats.reader_turns.inc();
            let head = self.broadcaster.head();
            let page = self.pages.read(connection, head, FeedSeq(i64::MAX))?;
            if page.rows.is_empty() {
                return Ok(());
            }
            if !self.is_anchored(page.pruned_through, page.anchor) {
                // The next look finds out what has become of the log.
                return self.check(connection, false).map(|_| ());
            }
            let batches = self.render(&page.rows, head.max(page.pruned_through));
            self.measure(&batches);
            self.broadcaster.publish(batches, &self.feed.stats);
            if !page.full || self.feed.health.is_stopping() {
                return Ok(());
            }
        }
    }

    fn measure(&self, batches: &[super::batch::Batch]) {
        let now = self.feed.clock.now();
        let latency = self.feed.stats.commit_to_broadcast.local();
        for entry in batches.iter().flat_map(|batch| batch.entries()).filter(|entry| entry.time.is_usable()) {
            latency.observe(now.since(entry.time).as_secs_f64());
        }
    }

    fn is_anchored(&self, pruned_through: FeedSeq, anchor: Option<EventTime>) -> bool {
        match self.broadcaster.head_time() {
            Some(time) if self.broadcaster.head() > pruned_through => anchor == Some(time),
            _ => true,
        }
    }

    fn render(&self, rows: &[LogRow], prev: FeedSeq) -> Vec<super::batch::Batch> {
        let most = self.feed.options.queue_capacity;
        pages::render(rows, prev, self.broadcaster.ordinal(), most, |row, poison| self.feed.quarantine(row, poison))
    }

    /// Open streams are told of an outage and of its end: each client looks for itself when it is rung.
    fn tell_of_health(&mut self) {
        let epoch = self.feed.health.epoch();
        if epoch != self.told_epoch {
            self.told_epoch = epoch;
            self.broadcaster.ring_all();
        }
    }
}
