//! The live path, in the order of an event's way: `listen` → `reader` (`pages`, `render`, `batch`) → `tail` and the
//! channels of the `client`s → `stream`, which writes with its `writer` to one client's socket. Beside it what they
//! share: `head`, `pool`, `health`, `keys`, `upkeep`, `stats`.

pub(crate) mod batch;
pub(crate) mod client;
pub(crate) mod head;
pub(crate) mod health;
pub(crate) mod keys;
pub(crate) mod listen;
pub(crate) mod pages;
pub(crate) mod pool;
pub(crate) mod reader;
pub(crate) mod reason;
pub(crate) mod render;
pub(crate) mod stats;
pub(crate) mod stream;
pub(crate) mod tail;
pub(crate) mod upkeep;
pub(crate) mod writer;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Timestamp;

use self::batch::{Batch, SharedBatch};
use self::client::{Client, Clients};
use self::head::{Head, Window};
use self::health::Health;
use self::keys::KeyRing;
use self::pool::{ReplayPool, Turns};
use self::stats::Stats;
use self::tail::Tail;
use self::upkeep::Poisoned;
use crate::config::ServeOptions;
use crate::db::Settings;
use crate::event::{EventTime, FeedSeq, LogRow};
use crate::logging::LIMITED;
use crate::sync::lock;

/// How many quarantined events are remembered, so that each is logged and recorded once.
const REMEMBERED_POISON: usize = 10_000;

/// What all threads of the server share.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) options: ServeOptions,
    /// The database's clock as it was last read, and when that answer arrived. Locked to copy it in or out.
    clock: Mutex<(EventTime, Instant)>,
    pub(crate) health: Health,
    pub(crate) keys: KeyRing,
    pub(crate) clients: Clients,
    /// The newest part of the log. Locked to read or add batches, never during a write or a query.
    tail: Mutex<Tail>,
    /// Large batches that streams hold. Locked to find or add one.
    large: Mutex<Vec<Weak<Batch>>>,
    /// The heads of delayed keys that memory alone could not tell, by delay. Locked to copy one in or out.
    delayed_heads: Mutex<HashMap<Duration, Head>>,
    /// Where the replay window begins, by delay. Locked to copy one in or out.
    windows: Mutex<HashMap<Duration, Window>>,
    /// One thread at a time reads a head or a window's start. The others wait, and use its answer.
    asking: Turns,
    pub(crate) replay: ReplayPool,
    pub(crate) stats: Stats,
    /// When the server started, by this machine's clock.
    pub(crate) started_at: Timestamp,
    /// Locked to read or note facts.
    facts: Mutex<Facts>,
    fatal: Sender<String>,
    /// Wakes `reader`: there may be something new.
    wakes: Channel<()>,
    /// The quarantined events that were read: what `upkeep` has to record, and `None` once it has. Locked to copy them or
    /// change one.
    poisoned: Mutex<BTreeMap<FeedSeq, Option<Poisoned>>>,
    /// Newly quarantined events, for the thread that alerts the operator. Without one they remain unread.
    pub(crate) alerts: Channel<Poisoned>,
    /// The ids of keys that were used and not recorded yet. Locked to add, list or remove ids.
    used_keys: Mutex<BTreeSet<i64>>,
}

/// A bounded channel: any thread sends, one thread receives.
#[derive(Debug)]
pub(crate) struct Channel<T> {
    pub(crate) sender: Sender<T>,
    pub(crate) receiver: Receiver<T>,
}

impl<T> Channel<T> {
    fn bounded(slots: usize) -> Self {
        let (sender, receiver) = bounded(slots);
        Self { sender, receiver }
    }
}

/// What the database was last found to be and to hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub feed_id: String,
    /// The last number that was allocated.
    pub counter: FeedSeq,
    pub log_head: FeedSeq,
    /// The highest number that prune has removed.
    pub pruned_through: FeedSeq,
    /// Whether it is a hot standby, which can change while the feed runs.
    pub is_standby: bool,
    /// How far a standby is behind its primary, zero if it has replayed all that it received.
    pub standby_lag: Duration,
    /// Whether writes to `signal` do not reach the log.
    pub is_capture_off: bool,
    /// Whether the cluster or its timeline differs from the recorded one.
    pub is_another_cluster: bool,
    pub unsettled_events: u64,
}

impl Feed {
    pub(crate) fn new(options: ServeOptions, settings: &Settings, fatal: Sender<String>) -> Self {
        Self {
            // Until it is first read, so early that no key has expired and no event is due.
            clock: Mutex::new((EventTime(i64::MIN / 2), Instant::now())),
            health: Health::default(),
            keys: KeyRing::default(),
            clients: Clients::default(),
            tail: Mutex::new(Tail::new(0, FeedSeq(0), None)),
            large: Mutex::default(),
            delayed_heads: Mutex::default(),
            windows: Mutex::default(),
            asking: Turns::new(1),
            replay: ReplayPool::new(settings.clone(), options.replay_connections),
            stats: Stats::default(),
            started_at: Timestamp::now(),
            facts: Mutex::default(),
            fatal,
            wakes: Channel::bounded(1),
            poisoned: Mutex::default(),
            used_keys: Mutex::default(),
            alerts: Channel::bounded(upkeep::ALERT_SLOTS),
            options,
        }
    }

    /// Sets the database's clock to a reading whose answer has just arrived.
    fn set_clock(&self, time: EventTime) {
        *lock(&self.clock) = (time, Instant::now());
    }

    /// The database's time, carried on by this machine's monotonic clock. It is never ahead of the database's: a reading
    /// counts from when its answer arrived.
    pub(crate) fn now(&self) -> EventTime {
        let (time, at) = *lock(&self.clock);
        time.plus(at.elapsed())
    }

    pub(crate) fn facts(&self) -> Facts {
        lock(&self.facts).clone()
    }

    /// Whether the database that the log is read from is a hot standby.
    ///
    /// A hot standby sends no notifications, so `reader` and `upkeep` poll; nothing is recorded; a cursor that the log has
    /// not reached waits; a missing key is never called unknown, because the primary may have it; and the feed is degraded
    /// while the standby does not stream from a primary.
    pub(crate) fn is_standby(&self) -> bool {
        lock(&self.facts).is_standby
    }

    /// The time of the newest event with a usable one, as far as memory knows.
    pub(crate) fn last_event_at(&self) -> Option<EventTime> {
        let tail = lock(&self.tail);
        tail.head_time.filter(|time| time.is_usable()).or(tail.newest_time())
    }

    /// How many numbers of the log, as last read, have not been broadcast yet.
    pub(crate) fn log_lag_events(&self) -> u64 {
        let log_head = lock(&self.facts).log_head;
        u64::try_from(log_head.0.saturating_sub(self.head().0)).unwrap_or(0)
    }

    /// The highest number that was broadcast.
    pub(crate) fn head(&self) -> FeedSeq {
        lock(&self.tail).head
    }

    pub(crate) fn lag_events(&self, client: &Client) -> u64 {
        let Some(head) = self.recall_head(client.key.delay) else { return 0 };
        let cursor = lock(&client.writer).position.cursor;
        lock(&self.tail).count_between(cursor, head.seq)
    }

    /// Ends the server with an error that it cannot repair itself.
    pub(crate) fn fail(&self, why: impl Into<String>) {
        let _ = self.fatal.try_send(why.into());
    }

    /// Asks the reader to look at the log; returns at once.
    pub(crate) fn wake_reader(&self) {
        let _ = self.wakes.sender.try_send(());
    }

    pub(crate) fn stop(&self) {
        self.health.stop();
        self.wake_reader();
        self.keys.ask_refresh();
    }

    /// The batch, or the same one if another stream holds it: however many clients stall on a large event, it is in
    /// memory once.
    fn shared(&self, batch: Batch) -> SharedBatch {
        let batch = Arc::new(batch);
        if batch.bytes() > pages::BATCH_BYTES {
            let mut large = lock(&self.large);
            large.retain(|held| held.strong_count() > 0);
            if let Some(same) = large.iter().filter_map(Weak::upgrade).find(|held| batch.is_same(held)) {
                return same;
            }
            large.push(Arc::downgrade(&batch));
        }
        batch
    }

    /// Counts a row that cannot be delivered, once; `upkeep` logs and records it. `is_new`: it was written while the
    /// server ran.
    pub(crate) fn quarantine(&self, row: &LogRow, error: &str, is_new: bool) {
        let mut poisoned = lock(&self.poisoned);
        if poisoned.contains_key(&row.seq) {
            return;
        }
        if poisoned.len() >= REMEMBERED_POISON {
            poisoned.retain(|_, event| event.is_some());
        }
        let has_room = poisoned.len() < REMEMBERED_POISON;
        if has_room {
            poisoned
                .insert(row.seq, Some(Poisoned { seq: row.seq, error: error.to_owned(), is_new, is_logged: false }));
        }
        drop(poisoned);
        self.stats.quarantined.inc();
        if !has_room {
            // It is found again when it is next read.
            log::error!(target: LIMITED, "event {} is quarantined, but too many wait to be recorded: {error}", row.seq);
        }
    }

    /// Changes what `upkeep` has to do about a quarantined event, unless that was forgotten.
    fn note_poisoned(&self, seq: FeedSeq, event: Option<Poisoned>) {
        if let Some(known) = lock(&self.poisoned).get_mut(&seq) {
            *known = event;
        }
    }

    pub(crate) fn key_used(&self, client: &Client) {
        lock(&self.used_keys).insert(client.key.id);
    }
}

/// Seconds as they are shown everywhere: whole ones as an integer, others with their fraction.
pub(crate) fn seconds(duration: Duration) -> serde_json::Value {
    if duration.subsec_nanos() == 0 { duration.as_secs().into() } else { duration.as_secs_f64().into() }
}
