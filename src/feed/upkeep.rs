//! The thread `upkeep`: whatever `serve` writes, and the watch over capture and over which cluster it is.
//!
//! It owns one connection, which may be missing: then records wait, bounded, and are in the log line all the same. On a
//! standby nothing can be written: records are counted there, and quarantined events wait for a promotion. It receives
//! records over a bounded channel, sends nothing, and ends when the server stops.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::Feed;
use crate::db::cluster::{self, Cluster};
use crate::db::{self, Connection, Settings};
use crate::event::FeedSeq;

/// Records that wait to be written; one more is only in the log line.
pub const RECORD_SLOTS: usize = 1024;
/// Quarantined events that wait while the database does not take them.
const UNWRITTEN_EVENTS: usize = 10_000;
/// How often uses of keys are written.
const USES_EVERY: Duration = Duration::from_secs(10);
/// How often there is a look at what is to be written.
const TURN_EVERY: Duration = Duration::from_secs(1);

/// How often it is checked that capture is on. Noticed within ten seconds is what is promised, the look itself included.
const CAPTURE_EVERY: Duration = Duration::from_secs(8);

/// What is to be written.
#[derive(Debug)]
pub enum Record {
    /// An event cannot be delivered.
    Quarantined(FeedSeq, String),
    /// A key was used.
    KeyUsed(i64),
    /// Nothing: the server ends, and the thread is to notice.
    Stop,
}

#[derive(Debug, Default)]
struct Unwritten {
    quarantined: BTreeMap<FeedSeq, Quarantined>,
    used: BTreeSet<i64>,
}

#[derive(Debug)]
struct Quarantined {
    error: String,
    is_announced: bool,
}

/// The thread `upkeep`: runs until the server stops, and writes what is left.
pub fn run(feed: &Feed, settings: &Settings, records: &Receiver<Record>) {
    let mut connection: Option<Connection> = None;
    let mut unwritten = Unwritten::default();
    let mut uses_due = Instant::now();
    let mut capture_due = Instant::now();
    let mut cluster = None;
    let mut failing = false;
    let mut turn = Instant::now() + TURN_EVERY;
    loop {
        let stopping = feed.health.is_stopping();
        // By the clock and not when it has become quiet, which on a busy server it never does.
        match if stopping { records.try_recv().ok() } else { records.recv_deadline(turn).ok() } {
            Some(record) => {
                unwritten.add(record);
                continue;
            }
            None => turn = Instant::now() + TURN_EVERY,
        }
        if feed.health.outage().is_some() && !stopping {
            continue;
        }
        if !stopping && Instant::now() >= capture_due {
            capture_due = Instant::now() + CAPTURE_EVERY;
            let checked = check_capture(feed, &mut connection, settings)
                .and_then(|()| check_cluster(feed, &mut connection, settings, &mut cluster));
            if let Err(error) = checked {
                log::debug!("check the installation: {error}");
                connection = None;
            }
        }
        let with_uses = stopping || Instant::now() >= uses_due;
        if !unwritten.quarantined.is_empty() || (with_uses && !unwritten.used.is_empty()) {
            match write(feed, &mut connection, settings, &mut unwritten, with_uses) {
                Ok(()) => failing = false,
                Err(error) => {
                    if !failing {
                        log::warn!("record what happened: {error}");
                    }
                    failing = true;
                    connection = None;
                }
            }
            if with_uses {
                uses_due = Instant::now() + USES_EVERY;
            }
        }
        if stopping {
            return;
        }
    }
}

impl Unwritten {
    fn add(&mut self, record: Record) {
        match record {
            Record::Quarantined(seq, error) if self.quarantined.len() < UNWRITTEN_EVENTS => {
                self.quarantined.insert(seq, Quarantined { error, is_announced: false });
            }
            // It is found again when it is next read after a restart.
            Record::Quarantined(seq, error) => {
                log::error!("event {seq} is quarantined, too many to record: {error}");
            }
            Record::KeyUsed(id) => {
                self.used.insert(id);
            }
            Record::Stop => {}
        }
    }
}

fn write(
    feed: &Feed,
    connection: &mut Option<Connection>,
    settings: &Settings,
    unwritten: &mut Unwritten,
    with_uses: bool,
) -> Result<(), db::Error> {
    let connection = connected(connection, settings)?;
    let announced = announce(feed, connection, &mut unwritten.quarantined)?;
    if db::standby::is_standby(connection)? {
        // The quarantined wait for a promotion. A use would then be recorded with a time that is not its own.
        feed.stats.unrecorded_quarantined.inc_by(announced);
        feed.stats.unrecorded_key_uses.inc_by(unwritten.used.len() as u64);
        unwritten.used.clear();
        return Ok(());
    }
    while let Some((seq, quarantined)) = unwritten.quarantined.first_key_value() {
        db::quarantine::record(connection, *seq, &quarantined.error)?;
        unwritten.quarantined.pop_first();
    }
    if with_uses {
        let ids: Vec<i64> = unwritten.used.iter().copied().collect();
        db::keys::record_use(connection, &ids)?;
        unwritten.used.clear();
    }
    Ok(())
}

/// Logs and alerts to what is newly quarantined, and drops what is recorded already: that is known since an earlier run.
/// Returns how many are new.
fn announce(
    feed: &Feed,
    connection: &mut Connection,
    quarantined: &mut BTreeMap<FeedSeq, Quarantined>,
) -> Result<u64, db::Error> {
    let unannounced: Vec<FeedSeq> =
        quarantined.iter().filter(|(_, event)| !event.is_announced).map(|(seq, _)| *seq).collect();
    if unannounced.is_empty() {
        return Ok(0);
    }
    let recorded = db::quarantine::recorded(connection, &unannounced)?;
    let mut announced = 0;
    for seq in unannounced {
        let Some(event) = quarantined.get_mut(&seq) else { continue };
        if recorded.contains(&seq) {
            log::info!("event {seq} is still quarantined: {}", event.error);
            quarantined.remove(&seq);
            continue;
        }
        log::error!("event {seq} is quarantined: {}", event.error);
        event.is_announced = true;
        announced += 1;
        // Where nobody reads it, or too much waits, the log line is what there is.
        let _ = feed.alerts.try_send((seq, event.error.clone()));
    }
    Ok(announced)
}

/// Whether what is written to `signal` reaches the log: nobody else would notice that it does not.
fn check_capture(feed: &Feed, connection: &mut Option<Connection>, settings: &Settings) -> Result<(), db::Error> {
    let connection = connected(connection, settings)?;
    feed.unsettled_events.store(db::quarantine::count_unsettled(connection)?, Ordering::Relaxed);
    let fault = db::capture::capture_fault(connection)?;
    let was_on = feed.capture_on.swap(fault.is_none(), Ordering::Relaxed);
    match fault {
        Some(fault) => log::error!(
            "capture is off: {fault}; signals are written that nobody will see: run \"signal-feed migrate\""
        ),
        None if !was_on => log::warn!("capture is on again"),
        None => {}
    }
    Ok(())
}

/// Whether the database is the one that it was: a restore, or a failover that lost something, gives numbers out again.
/// Not asked of a standby: its primary is where that is put right.
fn check_cluster(
    feed: &Feed,
    connection: &mut Option<Connection>,
    settings: &Settings,
    known: &mut Option<Cluster>,
) -> Result<(), db::Error> {
    let connection = connected(connection, settings)?;
    if db::standby::is_standby(connection)? {
        feed.another_cluster.store(false, Ordering::Relaxed);
        return Ok(());
    }
    let cluster = cluster::compare(connection)?;
    feed.another_cluster.store(matches!(cluster, Cluster::Changed(_)), Ordering::Relaxed);
    if let (Cluster::Changed(how), true) = (&cluster, known.as_ref() != Some(&cluster)) {
        log::warn!(
            "{how}; run \"signal-feed restored\", or \"signal-feed restored --nothing-lost\" where surely nothing is"
        );
    }
    *known = Some(cluster);
    Ok(())
}

fn connected<'a>(connection: &'a mut Option<Connection>, settings: &Settings) -> Result<&'a mut Connection, db::Error> {
    match connection {
        Some(connection) => Ok(connection),
        none => Ok(none.insert(Connection::open(settings, "signal-feed upkeep")?)),
    }
}
