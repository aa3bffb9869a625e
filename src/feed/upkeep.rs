//! The thread `upkeep`: what `serve` refreshes or writes at intervals. It refreshes the keys, records poisoned events
//! and uses of keys, and checks that capture is on and that the database is still the same cluster.
//!
//! It owns one connection. While that is lost, a bounded number of records waits; the log lines are written anyway. On
//! a standby it writes nothing: poisoned events wait for a promotion. It receives records and requests for a refresh
//! over bounded channels, ends the streams whose key has ended, and ends when the server stops.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use super::{Feed, keys};
use crate::db::cluster::{self, Cluster};
use crate::db::{self, Connection, Settings};
use crate::event::FeedSeq;

/// The most records that wait to be written; further ones are only in the log.
pub const RECORD_SLOTS: usize = 1024;
/// The most poisoned events that wait while the database is away.
const UNWRITTEN_EVENTS: usize = 10_000;
/// How often poisoned events are written, and uses of keys.
const QUARANTINED_EVERY: Duration = Duration::from_secs(1);
const USES_EVERY: Duration = Duration::from_secs(10);
/// How often it checks that capture is on. A fault must be reported within ten seconds, the check included.
const CHECK_EVERY: Duration = Duration::from_secs(8);
/// Longest wait for a lock: a lock on one table of the feed must not delay the refresh of the keys.
const LOCK_TIMEOUT: &str = "set lock_timeout = '250ms'";

/// A record to write.
#[derive(Debug)]
pub enum Record {
    /// An event cannot be delivered.
    Quarantined {
        /// Its number.
        seq: FeedSeq,
        /// Why.
        error: String,
        /// Whether it was written while the server ran.
        is_new: bool,
    },
    /// A key was used.
    KeyUsed(i64),
}

/// The thread's own state.
struct Upkeep<'a> {
    feed: &'a Feed,
    settings: Settings,
    connection: Option<Connection>,
    unwritten: Unwritten,
    cluster: Option<Cluster>,
    is_failing: bool,
}

/// The thread `upkeep`: runs until the server stops, and writes what is left.
pub fn run(feed: &Feed, settings: Settings, records: &Receiver<Record>) {
    let mut upkeep =
        Upkeep { feed, settings, connection: None, unwritten: Unwritten::default(), cluster: None, is_failing: false };
    let mut keys = keys::Schedule::new();
    let now = Instant::now();
    let (mut quarantined_due, mut uses_due, mut check_due) = (now + QUARANTINED_EVERY, now, now);
    while !feed.health.is_stopping() {
        let now = Instant::now();
        // The keys come first, and again between any two other pieces of work.
        if keys.due() <= now {
            upkeep.connection = keys.refresh(feed, || upkeep.take_connection()).ok();
        } else if feed.health.outage().is_none() && check_due <= now {
            check_due = now + CHECK_EVERY;
            upkeep.check();
        } else if feed.health.outage().is_none() && quarantined_due <= now {
            quarantined_due = now + QUARANTINED_EVERY;
            let with_uses = uses_due <= now;
            if with_uses {
                uses_due = now + USES_EVERY;
            }
            upkeep.write(with_uses);
        } else {
            let until = keys.due().min(now + QUARANTINED_EVERY);
            select! {
                recv(feed.keys.woken) -> _ => keys.ask(),
                recv(records) -> record => upkeep.unwritten.extend(record),
                default(until.saturating_duration_since(now)) => {}
            }
        }
    }
    upkeep.unwritten.extend(records.try_iter());
    if feed.health.outage().is_none() {
        // The last calls are made although the server stops.
        upkeep.settings = upkeep.settings.with_watch(None);
        upkeep.connection.iter_mut().for_each(|connection| connection.watch(None));
        upkeep.write(true);
    }
}

impl Upkeep<'_> {
    fn take_connection(&mut self) -> Result<Connection, db::Error> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        let mut connection = Connection::open(&self.settings, "signal-feed upkeep")?;
        connection.batch(LOCK_TIMEOUT)?;
        Ok(connection)
    }

    /// Does some work with the connection, and keeps it if it can still be used.
    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Self, &mut Connection) -> Result<T, db::Error>,
    ) -> Result<T, db::Error> {
        let mut connection = self.take_connection()?;
        let outcome = work(self, &mut connection);
        if !connection.is_lost() {
            self.connection = Some(connection);
        }
        outcome
    }

    /// Checks the installation: nothing else would notice that signals do not reach the log, or that numbers may be
    /// given out twice.
    fn check(&mut self) {
        let checked = self.with(|upkeep, connection| {
            upkeep.check_capture(connection)?;
            upkeep.check_cluster(connection)
        });
        if let Err(error) = checked {
            log::debug!("check the installation: {error}");
        }
    }

    fn check_capture(&self, connection: &mut Connection) -> Result<(), db::Error> {
        self.feed.unsettled_events.store(db::quarantine::count_unsettled(connection)?, Ordering::Relaxed);
        let fault = db::capture::capture_fault(connection)?;
        let was_on = self.feed.capture_on.swap(fault.is_none(), Ordering::Relaxed);
        match fault {
            Some(fault) => {
                log::error!("capture is off: {fault}; new signals reach no bot: run \"signal-feed migrate\"")
            }
            None if !was_on => log::warn!("capture is on again"),
            None => {}
        }
        Ok(())
    }

    /// After a restore, or a failover that lost something, numbers are given out again. A standby is not checked: an
    /// operator acknowledges that on its primary.
    fn check_cluster(&mut self, connection: &mut Connection) -> Result<(), db::Error> {
        if db::standby::is_standby(connection)? {
            self.feed.another_cluster.store(false, Ordering::Relaxed);
            return Ok(());
        }
        let cluster = cluster::compare(connection)?;
        self.feed.another_cluster.store(matches!(cluster, Cluster::Changed(_)), Ordering::Relaxed);
        if let (Cluster::Changed(how), true) = (&cluster, self.cluster.as_ref() != Some(&cluster)) {
            log::warn!(
                "{how}; run \"signal-feed restored\", or \"signal-feed restored --nothing-lost\" if nothing is lost"
            );
        }
        self.cluster = Some(cluster);
        Ok(())
    }

    /// Writes the waiting records: poisoned events, and uses of keys if they are due.
    fn write(&mut self, with_uses: bool) {
        if self.unwritten.quarantined.is_empty() && (!with_uses || self.unwritten.used.is_empty()) {
            return;
        }
        let feed = self.feed;
        let outcome = self.with(|upkeep, connection| upkeep.unwritten.write(feed, connection, with_uses));
        if let (Err(error), false) = (&outcome, self.is_failing) {
            log::warn!("record poisoned events and uses of keys: {error}");
        }
        self.is_failing = outcome.is_err();
    }
}

/// The records that are not written yet.
#[derive(Debug, Default)]
struct Unwritten {
    quarantined: BTreeMap<FeedSeq, Quarantined>,
    used: BTreeSet<i64>,
}

#[derive(Debug)]
struct Quarantined {
    error: String,
    is_new: bool,
    is_announced: bool,
}

impl Unwritten {
    fn extend(&mut self, records: impl IntoIterator<Item = Record>) {
        for record in records {
            match record {
                Record::Quarantined { seq, error, is_new } if self.quarantined.len() < UNWRITTEN_EVENTS => {
                    self.quarantined.insert(seq, Quarantined { error, is_new, is_announced: false });
                }
                // It is found again when it is read after a restart.
                Record::Quarantined { seq, error, .. } => {
                    log::error!("event {seq} is quarantined but not recorded, because too many wait: {error}");
                }
                Record::KeyUsed(id) => {
                    self.used.insert(id);
                }
            }
        }
    }

    fn write(&mut self, feed: &Feed, connection: &mut Connection, with_uses: bool) -> Result<(), db::Error> {
        self.announce(feed, connection)?;
        if db::standby::is_standby(connection)? {
            // Poisoned events wait for a promotion. Uses of keys do not: they would be recorded with a wrong time.
            self.used.clear();
            return Ok(());
        }
        while let Some((seq, quarantined)) = self.quarantined.first_key_value() {
            db::quarantine::record(connection, *seq, &quarantined.error)?;
            self.quarantined.pop_first();
        }
        if with_uses {
            let ids: Vec<i64> = self.used.iter().copied().collect();
            db::keys::record_use(connection, &ids)?;
            self.used.clear();
        }
        Ok(())
    }

    /// Logs newly quarantined events and alerts to them, and drops those that an earlier run recorded. A new one can be
    /// recorded too: `migrate` records the event that says that capture was off.
    fn announce(&mut self, feed: &Feed, connection: &mut Connection) -> Result<(), db::Error> {
        let unannounced: Vec<FeedSeq> =
            self.quarantined.iter().filter(|(_, event)| !event.is_announced).map(|(seq, _)| *seq).collect();
        if unannounced.is_empty() {
            return Ok(());
        }
        let recorded = db::quarantine::recorded(connection, &unannounced)?;
        for seq in unannounced {
            let Some(event) = self.quarantined.get_mut(&seq) else { continue };
            if recorded.contains(&seq) && !event.is_new {
                log::info!("event {seq} is still quarantined: {}", event.error);
                self.quarantined.remove(&seq);
                continue;
            }
            log::error!("event {seq} is quarantined: {}", event.error);
            event.is_announced = true;
            // If the channel is full or unread, there is still the log line.
            let _ = feed.alerts.try_send((seq, event.error.clone()));
        }
        Ok(())
    }
}
