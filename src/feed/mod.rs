//! The live path, in the order of an event's way: `listen` → `reader` (`pages`, `render`, `batch`) → `tail` and the
//! channels of the `client`s → `stream`, which writes with its `writer` to one client's socket. Beside it what they
//! share: `head`, `pool`, `health`, `clock`, `keys`, `upkeep`, `stats`.

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
pub mod stats;
pub mod stream;
pub mod tail;
pub mod upkeep;
pub mod writer;

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Timestamp;

use self::client::{Client, Clients};
use self::clock::DatabaseClock;
use self::head::{Head, Window};
use self::health::Health;
use self::keys::KeyRing;
use self::pool::ReplayPool;
use self::stats::Stats;
use self::tail::Tail;
use self::upkeep::Poisoned;
use crate::config::ServeOptions;
use crate::db::Settings;
use crate::event::{EventTime, FeedSeq, LogRow, Poison};
use crate::sync::lock;

/// How many quarantined numbers are remembered, so that each is logged once.
const REMEMBERED_POISON: usize = 10_000;

/// What all threads of the server share.
#[derive(Debug)]
pub struct Feed {
    pub(crate) options: ServeOptions,
    pub(crate) clock: DatabaseClock,
    pub(crate) health: Health,
    pub(crate) keys: KeyRing,
    pub(crate) clients: Clients,
    /// The newest part of the log. Locked to read or add batches, never during a write or a query.
    tail: Mutex<Tail>,
    /// The heads of delayed keys that memory alone could not tell, by delay. Locked to copy one in or out.
    delayed_heads: Mutex<HashMap<Duration, Head>>,
    /// Where the replay window begins, by delay. Locked to copy one in or out.
    windows: Mutex<HashMap<Duration, Window>>,
    pub(crate) replay: ReplayPool,
    pub(crate) stats: Stats,
    /// When the server started, by this machine's clock.
    pub(crate) started_at: Timestamp,
    /// Locked to read or note facts.
    facts: Mutex<Facts>,
    fatal: Sender<String>,
    /// Wakes the reader.
    wake: Sender<()>,
    /// Quarantined events, for `upkeep` to record.
    records: Sender<Poisoned>,
    /// The ids of keys that were used and not recorded yet. Locked to add, list or remove ids.
    used_keys: Mutex<BTreeSet<i64>>,
    /// Newly quarantined events, for the thread that alerts the operator.
    alerts: Sender<(FeedSeq, String)>,
    /// Locked to note one number.
    poisoned: Mutex<BTreeSet<FeedSeq>>,
}

/// What the database was last found to be and to hold.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The identity of the log.
    pub feed_id: String,
    /// The last number that was allocated.
    pub counter: FeedSeq,
    /// The log's highest number.
    pub log_head: FeedSeq,
    /// The ranges of numbers that `restored` skipped, both ends included: only a lost event can have had one of them.
    pub skipped: Vec<(FeedSeq, FeedSeq)>,
    /// Whether it is a hot standby, which can change while the feed runs.
    pub is_standby: bool,
    /// How far a standby is behind its primary, zero if it has replayed all that it received.
    pub standby_lag: Duration,
    /// Whether writes to `signal` do not reach the log.
    pub is_capture_off: bool,
    /// Whether the cluster or its timeline differs from the recorded one.
    pub is_another_cluster: bool,
    /// How many quarantined events are not settled.
    pub unsettled_events: u64,
}

/// The receiving ends of the feed's channels, for the threads that own them.
#[derive(Debug)]
pub struct Inlets {
    /// For `reader`: there may be something new.
    pub woken: Receiver<()>,
    /// For `upkeep`: quarantined events to record.
    pub records: Receiver<Poisoned>,
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
            keys: KeyRing::default(),
            clients: Clients::default(),
            tail: Mutex::new(Tail::new(0, FeedSeq(0), None)),
            delayed_heads: Mutex::default(),
            windows: Mutex::default(),
            replay: ReplayPool::new(settings.clone(), options.replay_connections),
            stats: Stats::default(),
            started_at: Timestamp::now(),
            facts: Mutex::default(),
            fatal,
            wake,
            records: records_sender,
            used_keys: Mutex::default(),
            alerts: alerts_sender,
            poisoned: Mutex::default(),
            options,
        };
        (feed, Inlets { woken, records, alerts })
    }

    /// What the database was last found to be and to hold.
    pub fn facts(&self) -> Facts {
        lock(&self.facts).clone()
    }

    /// Whether the database that the log is read from is a hot standby.
    ///
    /// A hot standby sends no notifications, so `reader` and `upkeep` poll; nothing is recorded; a cursor that the log has
    /// not reached waits; a missing key is never called unknown, because the primary may have it; and the feed is degraded
    /// while the standby does not stream from a primary.
    pub fn is_standby(&self) -> bool {
        lock(&self.facts).is_standby
    }

    /// Whether a number lies in a range that `restored` skipped.
    fn is_skipped(&self, seq: FeedSeq) -> bool {
        lock(&self.facts).skipped.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }

    /// The time of the newest event; `None` before the first one, and if it has no usable time.
    pub fn last_event_at(&self) -> Option<EventTime> {
        lock(&self.tail).head_time.filter(|time| time.is_usable())
    }

    /// How many numbers of the log, as last read, have not been broadcast yet.
    pub fn log_lag_events(&self) -> u64 {
        let log_head = lock(&self.facts).log_head;
        u64::try_from(log_head.0.saturating_sub(self.head().0)).unwrap_or(0)
    }

    /// The highest number that was broadcast.
    pub fn head(&self) -> FeedSeq {
        lock(&self.tail).head
    }

    /// How many events a client has still to get.
    pub fn lag_events(&self, client: &Client) -> u64 {
        let Some(head) = self.recall_head(client.key.delay) else { return 0 };
        let cursor = lock(&client.writer).position.cursor;
        lock(&self.tail).count_between(cursor, head.seq)
    }

    /// How many of them its queue holds, which has room for `--queue-capacity` events.
    pub fn queued_events(&self, client: &Client) -> u64 {
        self.lag_events(client).min(self.options.queue_capacity as u64)
    }

    /// Ends the server with an error that it cannot repair itself.
    pub fn fail(&self, why: impl Into<String>) {
        let _ = self.fatal.try_send(why.into());
    }

    /// Asks the reader to look at the log; returns at once.
    pub fn wake_reader(&self) {
        let _ = self.wake.try_send(());
    }

    /// Tells every thread that the server ends.
    pub fn stop(&self) {
        self.health.stop();
        self.wake_reader();
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
        let event = Poisoned { seq: row.seq, error: poison.to_string(), is_new };
        if self.records.try_send(event).is_err() {
            // Too many at once: this one is recorded when it is next read.
            lock(&self.poisoned).remove(&row.seq);
        }
    }

    /// Records that a key was used.
    pub fn key_used(&self, client: &Client) {
        lock(&self.used_keys).insert(client.key.id);
    }
}

/// Seconds as they are shown everywhere: whole ones as an integer, others with their fraction.
pub fn seconds(duration: Duration) -> serde_json::Value {
    if duration.subsec_nanos() == 0 { duration.as_secs().into() } else { duration.as_secs_f64().into() }
}
