//! The live path, in the order of an event's way: `listen` → `reader` (`pages`, `render`, `batch`) → `tail` and the
//! channels of the `client`s → `stream`, which writes with its `writer` to one client's socket. Beside it what they
//! share: `head`, `window`, `pool`, `health`, `clock`, `standby`, `keys`, `upkeep`, `stats`.

pub mod batch;
pub mod client;
pub mod clock;
pub mod head;
pub mod health;
pub mod keys;
pub mod listen;
pub mod pages;
pub mod pool;
pub mod reader;
pub mod reason;
pub mod render;
pub mod standby;
pub mod stats;
pub mod stream;
pub mod tail;
pub mod threads;
pub mod upkeep;
pub mod window;
pub mod writer;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Timestamp;

use self::client::{Client, Clients};
use self::clock::DatabaseClock;
use self::head::Head;
use self::health::Health;
use self::keys::KeyRing;
use self::pool::{Answers, ReplayPool};
use self::standby::{Replication, Role};
use self::stats::Stats;
use self::tail::Tail;
use self::upkeep::Record;
use self::window::Answer;
use crate::config::ServeOptions;
use crate::db::Settings;
use crate::db::event_log::LogState;
use crate::event::{EventTime, FeedSeq, LogRow, Poison};
use crate::sync::lock;

/// How many quarantined numbers are remembered, so that each is logged once.
const REMEMBERED_POISON: usize = 10_000;

/// What all threads of the server share.
#[derive(Debug)]
pub struct Feed {
    /// Its options.
    pub options: ServeOptions,
    /// The database's clock.
    pub clock: DatabaseClock,
    /// Whether delivery works.
    pub health: Health,
    /// Whether the database is a primary or a standby.
    pub replication: Replication,
    /// API keys.
    pub keys: KeyRing,
    /// All streams.
    pub clients: Clients,
    /// The newest part of the log. Locked to read or add batches, never during a write or a query.
    pub tail: Mutex<Tail>,
    /// The heads of delayed keys that memory alone could not tell.
    delayed_heads: Answers<Head>,
    /// Where the replay window begins.
    windows: Answers<Answer>,
    /// Connections for replay.
    pub replay: ReplayPool,
    /// Counters and histograms.
    pub stats: Stats,
    /// When the server started, by this machine's clock.
    pub started_at: Timestamp,
    started: Instant,
    capture_on: AtomicBool,
    another_cluster: AtomicBool,
    unsettled_events: AtomicU64,
    feed_id: Mutex<String>,
    /// The counter's value, and the ranges that `restored` skipped (both ends included), as last read.
    counter: AtomicI64,
    /// The log's highest number, as last read.
    log_head: AtomicI64,
    skipped: Mutex<Vec<(FeedSeq, FeedSeq)>>,
    /// When the newest read of the log began that found the tail's newest event in it, by [`age`](Self::age). Locked to
    /// copy it.
    tail_proven: Mutex<Duration>,
    /// Notified when that changes.
    tail_proven_again: Condvar,
    fatal: Sender<String>,
    /// Wakes the reader.
    wake: Sender<()>,
    records: Sender<Record>,
    /// Newly quarantined events, for the thread that alerts the operator.
    alerts: Sender<(FeedSeq, String)>,
    poisoned: Mutex<BTreeSet<FeedSeq>>,
}

/// The receiving ends of the feed's channels, for the threads that own them.
#[derive(Debug)]
pub struct Inlets {
    /// For `reader`: there may be something new.
    pub woken: Receiver<()>,
    /// For `upkeep`: records to write.
    pub records: Receiver<Record>,
    /// For `alerts`: newly quarantined events. It may remain unread.
    pub alerts: Receiver<(FeedSeq, String)>,
}

impl Feed {
    /// A feed that has not started.
    pub fn new(options: ServeOptions, settings: &Settings, fatal: Sender<String>) -> (Self, Inlets) {
        let (wake, woken) = bounded(1);
        let (records_sender, records) = bounded(upkeep::RECORD_SLOTS);
        let (alerts_sender, alerts) = bounded(upkeep::RECORD_SLOTS);
        let feed = Self {
            clock: DatabaseClock::default(),
            health: Health::default(),
            replication: Replication::default(),
            keys: KeyRing::default(),
            clients: Clients::default(),
            tail: Mutex::new(Tail::new(0, FeedSeq(0), None)),
            delayed_heads: Answers::default(),
            windows: Answers::default(),
            replay: ReplayPool::new(settings.clone(), options.replay_connections),
            stats: Stats::default(),
            started_at: Timestamp::now(),
            started: Instant::now(),
            capture_on: AtomicBool::new(true),
            another_cluster: AtomicBool::new(false),
            unsettled_events: AtomicU64::new(0),
            feed_id: Mutex::default(),
            counter: AtomicI64::new(0),
            log_head: AtomicI64::new(0),
            skipped: Mutex::default(),
            tail_proven: Mutex::default(),
            tail_proven_again: Condvar::new(),
            fatal,
            wake,
            records: records_sender,
            alerts: alerts_sender,
            poisoned: Mutex::default(),
            options,
        };
        feed.health.wake_on_change(feed.wake.clone());
        (feed, Inlets { woken, records, alerts })
    }

    /// The identity of the log.
    pub fn feed_id(&self) -> String {
        lock(&self.feed_id).clone()
    }

    fn set_feed_id(&self, id: &str) {
        id.clone_into(&mut lock(&self.feed_id));
    }

    /// The role of the database that the log is read from. It can change while the feed runs.
    pub fn role(&self) -> Role {
        self.replication.role()
    }

    /// How far the database is behind its primary; `None` if it is a primary.
    pub fn standby_lag(&self) -> Option<Duration> {
        self.replication.lag()
    }

    /// The last number that was allocated, as last read.
    pub fn counter(&self) -> FeedSeq {
        FeedSeq(self.counter.load(Ordering::Relaxed))
    }

    /// Whether a number lies in a range that `restored` skipped: only a lost event can have had it.
    pub fn is_skipped(&self, seq: FeedSeq) -> bool {
        lock(&self.skipped).iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }

    fn set_log_facts(&self, state: &LogState, skipped: Vec<(FeedSeq, FeedSeq)>) {
        self.counter.store(state.counter.0, Ordering::Relaxed);
        self.log_head.store(state.head.0, Ordering::Relaxed);
        *lock(&self.skipped) = skipped;
    }

    /// How long the server has run.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether writes to `signal` reach the log, as last checked.
    pub fn capture_on(&self) -> bool {
        self.capture_on.load(Ordering::Relaxed)
    }

    /// Whether the cluster or its timeline differs from the recorded one, as last checked.
    pub fn is_another_cluster(&self) -> bool {
        self.another_cluster.load(Ordering::Relaxed)
    }

    /// How many quarantined events are not settled, as last checked.
    pub fn unsettled_events(&self) -> u64 {
        self.unsettled_events.load(Ordering::Relaxed)
    }

    /// Whether the counter is not behind the log, as last read. If it were, commits of signals would fail.
    pub fn is_counter_ok(&self) -> bool {
        self.counter.load(Ordering::Relaxed) >= self.log_head.load(Ordering::Relaxed)
    }

    /// The time of the newest event; `None` before the first one, and if it has no usable time.
    pub fn last_event_at(&self) -> Option<EventTime> {
        lock(&self.tail).head_time().filter(|time| time.is_usable())
    }

    /// How many numbers of the log, as last read, have not been broadcast yet.
    pub fn log_lag_events(&self) -> u64 {
        let ahead = self.log_head.load(Ordering::Relaxed).saturating_sub(self.head().0);
        u64::try_from(ahead).unwrap_or(0)
    }

    /// The highest number that was broadcast.
    pub fn head(&self) -> FeedSeq {
        lock(&self.tail).head()
    }

    /// How many events a client has still to get.
    pub fn lag_events(&self, client: &Client) -> u64 {
        let Some(head) = self.recall_head(client.key.delay) else { return 0 };
        lock(&self.tail).count_between(client.cursor(), head.seq)
    }

    /// How many of them its queue holds, which has room for `--queue-capacity` events.
    pub fn queued_events(&self, client: &Client) -> u64 {
        self.lag_events(client).min(self.options.queue_capacity as u64)
    }

    /// Ends the server with an error that it cannot repair itself.
    pub fn fail(&self, why: impl Into<String>) {
        let _ = self.fatal.try_send(why.into());
    }

    /// Notes that a read of the log that began then, by [`age`](Self::age), found the tail's newest event in it.
    fn set_tail_proven(&self, began: Duration) {
        *lock(&self.tail_proven) = began;
        self.tail_proven_again.notify_all();
    }

    /// Waits, at most `patience`, until the tail was found to be the log's by a read that began later than `then`: nothing
    /// in it is of a log that was replaced before. Returns whether it was.
    fn wait_tail_proven(&self, then: Duration, patience: Duration) -> bool {
        let proven = lock(&self.tail_proven);
        let waited = self.tail_proven_again.wait_timeout_while(proven, patience, |proven| *proven < then);
        waited.is_ok_and(|(_, outcome)| !outcome.timed_out())
    }

    /// Asks the reader to look at the log; returns at once.
    pub fn wake_reader(&self) {
        let _ = self.wake.try_send(());
    }

    /// Tells every thread that the server ends.
    pub fn stop(&self) {
        self.health.stop();
        self.keys.ask_refresh();
    }

    /// Counts a row that cannot be delivered, once; `upkeep` logs and records it. `is_new`: it was written while the
    /// server ran.
    pub fn quarantine(&self, row: &LogRow, poison: &Poison, is_new: bool) {
        let mut poisoned = lock(&self.poisoned);
        if !poisoned.insert(row.seq) {
            return;
        }
        if poisoned.len() > REMEMBERED_POISON {
            poisoned.pop_first();
        }
        drop(poisoned);
        self.stats.quarantined.inc();
        if self.records.try_send(Record::Quarantined { seq: row.seq, error: poison.to_string(), is_new }).is_err() {
            // Too many at once: this one is recorded when it is next read.
            lock(&self.poisoned).remove(&row.seq);
        }
    }

    /// Records that a key was used.
    pub fn key_used(&self, client: &Client) {
        let _ = self.records.try_send(Record::KeyUsed(client.key.id));
    }
}

/// Seconds as they are shown everywhere: whole ones as an integer, others with their fraction.
pub fn seconds(duration: Duration) -> serde_json::Value {
    if duration.subsec_nanos() == 0 { duration.as_secs().into() } else { duration.as_secs_f64().into() }
}
