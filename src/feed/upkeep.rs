//! The thread `upkeep`: what `serve` refreshes or writes at intervals. It refreshes the keys, records poisoned events
//! and uses of keys, and checks that capture is on and that the database is still the same cluster.
//!
//! It owns one connection. While that is lost, poisoned events wait. On a standby it writes nothing: they wait for a
//! promotion. It receives requests for a refresh, ends the streams whose key has ended, and ends when the server stops.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Feed, keys};
use crate::db::{self, Connection, Settings, doctor};
use crate::error::Error;
use crate::event::FeedSeq;
use crate::sync::lock;

/// Least time between the beginnings of two refreshes of the keys.
const REFRESH_DISTANCE: Duration = Duration::from_millis(100);
/// The keys are refreshed at least this often, even if nothing asks for it.
const REFRESH_EVERY: Duration = Duration::from_secs(5);
/// The same on a standby, which sends no notification when a key is revoked.
const STANDBY_REFRESH_EVERY: Duration = Duration::from_millis(400);
const REFRESH_RETRY: Duration = Duration::from_millis(500);
/// How often poisoned events are written, and uses of keys.
const WRITE_EVERY: Duration = Duration::from_secs(1);
const USES_EVERY: Duration = Duration::from_secs(10);
/// How often it checks that capture is on. A fault must be reported within ten seconds, the check included.
const CHECK_EVERY: Duration = Duration::from_secs(8);
/// The most quarantined events that wait for the thread that alerts.
pub(crate) const ALERT_SLOTS: usize = 1024;
/// Longest wait for a lock: a lock on one table of the feed must not delay the refresh of the keys.
const LOCK_TIMEOUT: &str = "set lock_timeout = '250ms'";

#[derive(Debug, Clone)]
pub(crate) struct Poisoned {
    pub seq: FeedSeq,
    pub error: String,
    /// Whether it was written while the server ran.
    pub is_new: bool,
    pub is_logged: bool,
}

struct Upkeep<'a> {
    feed: &'a Feed,
    settings: Settings,
    connection: Option<Connection>,
    /// When the keys are next read, and the earliest time that a request for it can change this to.
    refresh_due: Instant,
    refresh_soonest: Instant,
    /// What was logged when each kind of work last failed.
    causes: HashMap<&'static str, String>,
}

/// The thread `upkeep`: runs until the server stops, and writes what is left.
pub(crate) fn run(feed: &Feed, settings: Settings) {
    let now = Instant::now();
    let mut upkeep =
        Upkeep { feed, settings, connection: None, refresh_due: now, refresh_soonest: now, causes: HashMap::new() };
    let (mut write_due, mut uses_due, mut check_due) = (now + WRITE_EVERY, now, now);
    while !feed.health.is_stopping() {
        let now = Instant::now();
        // The keys come first, and again between any two other pieces of work.
        if upkeep.refresh_due <= now {
            upkeep.refresh_keys();
        } else if feed.health.outage().is_none() && check_due <= now {
            check_due = now + CHECK_EVERY;
            upkeep.check();
        } else if feed.health.outage().is_none() && write_due <= now {
            write_due = now + WRITE_EVERY;
            upkeep.write_poisoned();
            if uses_due <= now {
                uses_due = now + USES_EVERY;
                upkeep.write_uses();
            }
        } else {
            let until = upkeep.refresh_due.min(now + WRITE_EVERY);
            if feed.keys.wakes.receiver.recv_deadline(until).is_ok() {
                upkeep.refresh_due = upkeep.refresh_due.min(upkeep.refresh_soonest);
            }
        }
    }
    if feed.health.outage().is_none() {
        // The last calls are made although the server stops.
        upkeep.settings = upkeep.settings.with_watch(None);
        upkeep.connection.iter_mut().for_each(|connection| connection.watch(None));
        // Twice, because the connection may have been lost unnoticed.
        for _ in 0..2 {
            upkeep.write_poisoned();
            upkeep.write_uses();
        }
    }
}

impl Upkeep<'_> {
    fn connect(&mut self) -> Result<Connection, db::Error> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        let mut connection = Connection::open(&self.settings, "signal-feed upkeep")?;
        connection.batch(LOCK_TIMEOUT)?;
        Ok(connection)
    }

    /// Does some work with the connection, and keeps it if it can still be used. Logs each cause of a failure once.
    fn with(&mut self, doing: &'static str, work: impl FnOnce(&mut Self, &mut Connection) -> Result<(), db::Error>) {
        let outcome = self.connect().and_then(|mut connection| {
            let outcome = work(self, &mut connection);
            if !connection.is_lost() {
                self.connection = Some(connection);
            }
            outcome
        });
        match outcome {
            Ok(()) => drop(self.causes.remove(doing)),
            // The server stops.
            Err(db::Error::GivenUp) => {}
            Err(cause) => {
                let text = Error::Database { doing: doing.into(), cause }.to_string();
                if self.causes.insert(doing, text.clone()).as_ref() != Some(&text) {
                    log::warn!("{text}");
                }
            }
        }
    }

    fn refresh_keys(&mut self) {
        let began = Instant::now();
        self.refresh_due = began + REFRESH_RETRY;
        self.refresh_soonest = self.refresh_due;
        self.with("read the keys", |upkeep, connection| {
            let is_standby = keys::refresh(upkeep.feed, connection)?;
            upkeep.refresh_due = began + if is_standby { STANDBY_REFRESH_EVERY } else { REFRESH_EVERY };
            upkeep.refresh_soonest = began + REFRESH_DISTANCE;
            Ok(())
        });
    }

    /// Checks the installation: nothing else would notice that signals do not reach the log, or that numbers may be
    /// given out twice.
    fn check(&mut self) {
        self.with("check the installation", |upkeep, connection| {
            upkeep.check_capture(connection)?;
            upkeep.check_cluster(connection)
        });
    }

    fn check_capture(&self, connection: &mut Connection) -> Result<(), db::Error> {
        let unsettled = db::quarantine::count_unsettled(connection)?;
        let fault = doctor::capture_fault(connection)?;
        let was_off = {
            let mut facts = lock(&self.feed.facts);
            facts.unsettled_events = unsettled;
            std::mem::replace(&mut facts.is_capture_off, fault.is_some())
        };
        match fault {
            Some(fault) => {
                log::error!("capture is off: {fault}; new signals reach no bot: run \"signal-feed migrate\"")
            }
            None if was_off => log::warn!("capture is on again"),
            None => {}
        }
        Ok(())
    }

    /// After a restore, or a failover that lost something, numbers are given out again. A standby is not checked: an
    /// operator acknowledges that on its primary.
    fn check_cluster(&self, connection: &mut Connection) -> Result<(), db::Error> {
        if self.feed.is_standby() {
            lock(&self.feed.facts).is_another_cluster = false;
            return Ok(());
        }
        let cluster = doctor::cluster(connection)?;
        let was_another = std::mem::replace(&mut lock(&self.feed.facts).is_another_cluster, !cluster.ok);
        if !cluster.ok && !was_another {
            log::warn!("{}; {}", cluster.message, cluster.fix.as_deref().unwrap_or_default());
        }
        Ok(())
    }

    /// Logs and records the poisoned events that were read. On a standby they are only logged, and wait for a promotion.
    fn write_poisoned(&mut self) {
        let is_standby = self.feed.is_standby();
        let is_due = |event: &&Poisoned| !(is_standby && event.is_logged);
        let mut due: Vec<Poisoned> = lock(&self.feed.poisoned).values().flatten().filter(is_due).cloned().collect();
        if due.is_empty() {
            return;
        }
        self.with("record poisoned events", |upkeep, connection| {
            let seqs: Vec<FeedSeq> = due.iter().map(|event| event.seq).collect();
            let recorded = db::quarantine::recorded(connection, &seqs)?;
            for event in due.iter_mut().filter(|event| !event.is_logged) {
                upkeep.announce(event, recorded.contains(&event.seq));
                event.is_logged = true;
                upkeep.feed.note_poisoned(event.seq, Some(event.clone()));
            }
            if is_standby {
                return Ok(());
            }
            let errors: Vec<&str> = due.iter().map(|event| event.error.as_str()).collect();
            db::quarantine::record(connection, &seqs, &errors)?;
            seqs.iter().for_each(|seq| upkeep.feed.note_poisoned(*seq, None));
            Ok(())
        });
    }

    /// Logs a poisoned event and alerts to it, unless an earlier run did. A new one can be recorded too: `migrate` records
    /// the event that says that capture was off.
    fn announce(&self, event: &Poisoned, is_recorded: bool) {
        let Poisoned { seq, error, is_new, .. } = event;
        if is_recorded && !is_new {
            log::info!("event {seq} is still quarantined: {error}");
            return;
        }
        log::error!("event {seq} is quarantined: {error}");
        // If the channel is full or unread, there is still the log line.
        let _ = self.feed.alerts.sender.try_send(event.clone());
    }

    fn write_uses(&mut self) {
        if self.feed.is_standby() {
            // After a promotion they would be recorded with a wrong time.
            lock(&self.feed.used_keys).clear();
        }
        let used: Vec<i64> = lock(&self.feed.used_keys).iter().copied().collect();
        if used.is_empty() {
            return;
        }
        self.with("record uses of keys", |upkeep, connection| {
            db::keys::record_use(connection, &used)?;
            lock(&upkeep.feed.used_keys).retain(|id| !used.contains(id));
            Ok(())
        });
    }
}
