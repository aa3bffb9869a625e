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
use crate::sync::lock;

const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// How often it checks whether a standby streams from its primary.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How often it checks whether the server stops.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const RETRY_EVERY: Duration = Duration::from_millis(250);

pub(crate) fn run(feed: &Feed, settings: &Settings) {
    while !feed.health.is_stopping() {
        let Err(error) = hear(feed, settings) else { continue };
        feed.lost(Part::Listen, "listen for notifications", &error);
        feed.health.pause(RETRY_EVERY);
    }
}

/// Listens until the server stops or, on a standby, watches it until it is a primary.
fn hear(feed: &Feed, settings: &Settings) -> Result<(), db::Error> {
    let mut connection = Connection::open(settings, "signal-feed listen")?;
    if db::standby::is_standby(&mut connection)? {
        watch(feed, &mut connection)
    } else {
        listen(feed, settings, connection)
    }
}

fn watch(feed: &Feed, connection: &mut Connection) -> Result<(), db::Error> {
    while !feed.health.is_stopping() {
        let Some(standby) = db::standby::read(connection)?.standby else {
            log::warn!("the standby was promoted to primary: listening for its notifications now");
            return Ok(());
        };
        if !standby.is_streaming {
            let why = "the standby does not stream from a primary: see pg_stat_wal_receiver there";
            return Err(db::Error::Unreachable(why.into()));
        }
        lock(&feed.facts).standby_lag = standby.lag;
        feed.proven(Part::Listen, Instant::now());
        feed.health.pause(WATCH_EVERY);
    }
    Ok(())
}

fn listen(feed: &Feed, settings: &Settings, mut connection: Connection) -> Result<(), db::Error> {
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
            let patience = crate::text::duration(PROBE_PATIENCE);
            let needs = db::NEEDS_SESSIONS;
            let why = format!("a notification from one session did not reach another within {patience}: {needs}");
            return Err(db::Error::Unreachable(why));
        }
        let Some(notification) = connection.wait_notification(LOOK_EVERY)? else { continue };
        match notification.channel() {
            "signal_feed" => feed.wake_reader(),
            "signal_feed_key" => feed.keys.ask_refresh(),
            _ => {
                if let Some(sent) = probe_sent.take() {
                    feed.stats.listen_probe.set(sent.elapsed().as_secs_f64());
                }
                next_probe = Instant::now() + PROBE_EVERY;
                feed.proven(Part::Listen, Instant::now());
            }
        }
    }
    Ok(())
}
