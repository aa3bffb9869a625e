//! The thread `listen`: turns notifications into wake-ups, and proves that notifications arrive.
//!
//! It owns the LISTEN connection, which never stays in a transaction, and a second one that notifies it at intervals.
//! Only a notification from another session proves that notifications arrive. (A session's own comes back with the
//! answer, even through a pooler in transaction mode, which loses all others.) It sends at most one wake-up at a time
//! to `reader`, and asks for a refresh of the keys. A hot standby refuses LISTEN: there `reader` and `upkeep` poll, and
//! this thread checks that the standby hears from its primary. It ends when the server stops.

use std::time::{Duration, Instant};

use super::Feed;
use super::health::Part;
use crate::db::{self, Connection, Settings};

/// How often it sends a probe.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long a probe may take to arrive.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// How often it checks whether a standby streams from its primary.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How often it checks whether the server stops.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Waits between attempts to connect: the first, and the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// The thread `listen`: runs until the server stops.
pub fn run(feed: &Feed, settings: &Settings) {
    let mut retry = FIRST_RETRY;
    while !feed.health.is_stopping() {
        let Err(ended) = hear(feed, settings, &mut retry) else { return };
        match ended {
            Ended::Promoted => log::warn!("the standby was promoted to primary: listening for its notifications now"),
            // A standby cancels queries that conflict with replay: nothing is lost.
            Ended::Database(error) if error.is_conflict() => {
                log::debug!("watch the standby: {error}");
                feed.stats.replay_conflicts.inc();
                feed.health.pause(FIRST_RETRY);
            }
            why => {
                feed.health.lost(Part::Listen, "listen for notifications", &why);
                feed.health.pause(retry);
                retry = (retry * 2).min(LONGEST_RETRY);
            }
        }
    }
}

/// Why listening ended.
#[derive(Debug)]
enum Ended {
    Database(db::Error),
    ProbeLost,
    /// The WAL receiver of the standby does not stream.
    NotStreaming,
    /// The standby is a primary now.
    Promoted,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Database(error) => error.fmt(f),
            Self::NotStreaming => {
                f.write_str("the standby does not stream from a primary: see pg_stat_wal_receiver there")
            }
            Self::Promoted => f.write_str("the standby was promoted"),
            Self::ProbeLost => write!(
                f,
                "a notification from one session did not reach another within {}: {}",
                crate::text::duration(PROBE_PATIENCE),
                db::NEEDS_SESSIONS
            ),
        }
    }
}

impl From<db::Error> for Ended {
    fn from(error: db::Error) -> Self {
        Self::Database(error)
    }
}

fn hear(feed: &Feed, settings: &Settings, retry: &mut Duration) -> Result<(), Ended> {
    let mut connection = Connection::open(settings, "signal-feed listen")?;
    if db::standby::is_standby(&mut connection)? {
        return watch(feed, &mut connection, retry);
    }
    listen(feed, settings, connection, retry)
}

/// Checks that a standby streams from a primary, until it is one itself.
fn watch(feed: &Feed, connection: &mut Connection, retry: &mut Duration) -> Result<(), Ended> {
    while !feed.health.is_stopping() {
        let Some(standby) = db::standby::read(connection)?.standby else { return Err(Ended::Promoted) };
        if !standby.is_streaming {
            return Err(Ended::NotStreaming);
        }
        *retry = FIRST_RETRY;
        feed.replication.set_lag(standby.lag);
        feed.health.proven(Part::Listen);
        feed.health.pause(WATCH_EVERY);
    }
    Ok(())
}

fn listen(feed: &Feed, settings: &Settings, mut connection: Connection, retry: &mut Duration) -> Result<(), Ended> {
    let probe_channel = format!("signal_feed_probe_{:016x}", crate::random::random_u64());
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
            "signal_feed" => feed.wake_reader(),
            "signal_feed_key" => feed.keys.ask_refresh(),
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
