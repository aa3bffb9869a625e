//! The thread `listen`: turns notifications into wake-ups, and proves that news arrive.
//!
//! It owns the LISTEN connection, which never sits in a transaction, and a second one that notifies it at intervals: only
//! a notification of another session that arrives proves that others would. (One's own comes back with the answer, also
//! through a proxy that pools transactions and loses all others.) It sends at most one wake-up at a time to `reader`, and
//! rings `keys`. A hot standby refuses LISTEN: there `reader` and `keys` poll, and what this thread proves is that the
//! standby hears from its primary. It ends when the server stops.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::Feed;
use super::health::Part;
use crate::db::standby::{Receiver, Standby, Trouble};
use crate::db::{self, Connection, Settings};
use crate::event::EventTime;

/// How often it is notified for a probe.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long a probe may take to come back.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// How often a standby is asked whether it hears from its primary.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// A primary that was heard again after a silence is taken for one that is idle at times, for so long.
const IDLENESS_LASTS: Duration = Duration::from_secs(600);
/// How often it looks whether the server stops.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Waits between attempts to connect: the first, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// The thread `listen`: runs until the server stops.
pub fn run(feed: &Feed, settings: &Settings, reader: &Sender<()>) {
    let mut retry = FIRST_RETRY;
    let mut idleness = Idleness::default();
    while !feed.health.is_stopping() {
        let Err(ended) = hear(feed, settings, reader, &mut retry, &mut idleness) else { return };
        match ended {
            Ended::Promoted => {
                log::warn!("the standby was promoted: it is listened to from now on");
                continue;
            }
            // A standby has cancelled a query for what it had to replay: nothing is lost.
            Ended::Database(error) if error.is_conflict() => {
                log::debug!("watch the standby: {error}");
                feed.stats.replay_conflicts.inc();
                feed.health.pause(FIRST_RETRY);
                continue;
            }
            error if retry == FIRST_RETRY => log::error!("listen for notifications: {error}"),
            _ => {}
        }
        feed.health.lost(Part::Listen);
        feed.health.pause(retry);
        retry = (retry * 2).min(LONGEST_RETRY);
    }
}

/// Why listening ended.
#[derive(Debug)]
enum Ended {
    Database(db::Error),
    ProbeLost,
    /// The standby that was watched takes notifications now.
    Promoted,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Database(error) => error.fmt(f),
            Self::Promoted => f.write_str("the standby was promoted"),
            Self::ProbeLost => write!(
                f,
                "a notification from one session did not reach another within {}: PostgreSQL must be reached directly or \
                 through a proxy that pools sessions (a PgBouncer in transaction mode loses LISTEN)",
                crate::text::duration(PROBE_PATIENCE)
            ),
        }
    }
}

impl From<db::Error> for Ended {
    fn from(error: db::Error) -> Self {
        Self::Database(error)
    }
}

fn hear(
    feed: &Feed,
    settings: &Settings,
    reader: &Sender<()>,
    retry: &mut Duration,
    idleness: &mut Idleness,
) -> Result<(), Ended> {
    let mut connection = Connection::open(settings, "signal-feed listen")?;
    let is_standby = db::standby::is_standby(&mut connection)?;
    feed.replication.set_deaf(is_standby);
    if is_standby {
        return watch(feed, &mut connection, retry, idleness);
    }
    listen(feed, settings, connection, reader, retry)
}

/// Whether a primary is one that falls silent because it has nothing to say: that is known once it was heard again after
/// such a silence. Until then silence is taken for what it may be, the worst.
#[derive(Debug, Default)]
struct Idleness {
    heard: Option<EventTime>,
    last: Option<Instant>,
}

impl Idleness {
    fn seen(&mut self, standby: &Standby, now: Instant) -> bool {
        if let Receiver::Streaming(Some(heard)) = standby.receiver {
            if self.heard.is_some_and(|before| heard.received.since(before) > db::standby::SILENCE) {
                self.last = Some(now);
            }
            self.heard = Some(heard.received);
        }
        self.last.is_some_and(|last| now.duration_since(last) < IDLENESS_LASTS)
    }
}

/// Asks a standby whether it hears from its primary, until it is one itself.
fn watch(feed: &Feed, connection: &mut Connection, retry: &mut Duration, idleness: &mut Idleness) -> Result<(), Ended> {
    let mut told: Option<Trouble> = None;
    let mut is_first = true;
    while !feed.health.is_stopping() {
        let asked = Instant::now();
        let reading = db::standby::read(connection)?;
        let Some(standby) = reading.standby else { return Err(Ended::Promoted) };
        *retry = FIRST_RETRY;
        let is_first = std::mem::take(&mut is_first);
        if is_first && standby.receiver == Receiver::Streaming(None) {
            log::warn!(
                "it cannot be seen when the standby last heard from its primary, so that silence is not noticed and no key \
                 is ever called unknown: grant pg_read_all_stats to signal_feed_owner, on the primary"
            );
        } else if is_first && standby.is_slow_to_notice() {
            log::warn!(
                "the standby's wal_receiver_timeout is {}: an idle primary cannot be told from a silent one within 10 s; \
                 set it to 8s there",
                crate::text::duration(standby.receiver_timeout)
            );
        }
        feed.replication.observe(&reading, asked);
        match standby.trouble(reading.now, idleness.seen(&standby, asked)) {
            None => {
                told = None;
                feed.health.proven(Part::Listen);
            }
            Some(trouble) => {
                if told.is_none() {
                    log::error!("hear from the primary: {trouble}");
                }
                told = Some(trouble);
                feed.health.lost(Part::Listen);
            }
        }
        feed.health.pause(WATCH_EVERY);
    }
    Ok(())
}

fn listen(
    feed: &Feed,
    settings: &Settings,
    mut connection: Connection,
    reader: &Sender<()>,
    retry: &mut Duration,
) -> Result<(), Ended> {
    let probe_channel = format!("signal_feed_probe_{:016x}", super::random_u64());
    connection.batch(&format!("listen signal_feed; listen signal_feed_key; listen {probe_channel}"))?;
    let mut prober = Connection::open(settings, "signal-feed probe")?;
    let mut probe_sent: Option<Instant> = None;
    let mut next_probe = Instant::now();
    while !feed.health.is_stopping() {
        if probe_sent.is_none() && Instant::now() >= next_probe {
            probe_sent = Some(Instant::now());
            prober.batch(&format!("notify {probe_channel}"))?;
        }
        if probe_sent.is_some_and(|sent| sent.elapsed() > PROBE_PATIENCE) {
            return Err(Ended::ProbeLost);
        }
        let Some(notification) = connection.wait_notification(LOOK_EVERY)? else { continue };
        match notification.channel.as_str() {
            "signal_feed" => {
                let _ = reader.try_send(());
            }
            "signal_feed_key" => feed.keys.ring(),
            _ => {
                if let Some(sent) = probe_sent.take() {
                    feed.stats.listen_probe.set(sent.elapsed().as_secs_f64());
                }
                next_probe = Instant::now() + PROBE_EVERY;
                *retry = FIRST_RETRY;
                feed.health.proven(Part::Listen);
            }
        }
    }
    Ok(())
}
