//! What the service manager is told (sd_notify(3)), where there is one: that the server is ready, what its state is, and that
//! it lives.
//!
//! It lives while the loop of the thread `reader` turns, whatever it finds there: an outage of the database is no reason to
//! be killed, a reader that hangs for good is.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::feed::Feed;
use crate::feed::health::State;

/// How often the service manager is told, and the reader looked at, when nothing happens.
pub(crate) const TURN_EVERY: Duration = Duration::from_secs(1);

/// The service manager, which may be missing: then nothing is told.
#[derive(Debug, Default)]
pub(crate) struct ServiceManager {
    is_told: bool,
    has_watchdog: bool,
    status: String,
    reader_turns: u64,
}

impl ServiceManager {
    /// The one that `NOTIFY_SOCKET` and `WATCHDOG_USEC` tell of.
    pub(crate) fn from_env() -> Self {
        Self {
            is_told: std::env::var_os("NOTIFY_SOCKET").is_some(),
            has_watchdog: sd_notify::watchdog_enabled().is_some(),
            ..Self::default()
        }
    }

    /// Says that connections are accepted.
    pub(crate) fn ready(&mut self, feed: &Feed) {
        self.tell(&[NotifyState::Ready]);
        self.turn(feed);
    }

    /// Says what has changed, and that the reader has turned where it has. To be called at least every [`TURN_EVERY`].
    pub(crate) fn turn(&mut self, feed: &Feed) {
        let status = status(feed);
        if status != self.status {
            self.tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
        let turns = feed.stats.reader_turns.get();
        if self.has_watchdog && turns != self.reader_turns {
            self.tell(&[NotifyState::Watchdog]);
            self.reader_turns = turns;
        }
    }

    /// Says that the server ends.
    pub(crate) fn stopping(&mut self, feed: &Feed) {
        let status = format!("stopping: streams {}", feed.clients.count());
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&status)]);
    }

    fn tell(&mut self, what: &[NotifyState<'_>]) {
        if !self.is_told {
            return;
        }
        if let Err(error) = sd_notify::notify(what) {
            log::warn!("tell the service manager: {error}");
        }
    }
}

fn status(feed: &Feed) -> String {
    let figures = format!("streams {}, head {}", feed.clients.count(), feed.live.head());
    let outage = feed.health.outage().unwrap_or_default().as_secs();
    match feed.health.state() {
        State::Starting => format!("starting: no answer from the database for {outage} s; {figures}"),
        State::Live => format!("live: {figures}"),
        State::Degraded => format!("degraded: the database is away for {outage} s; {figures}"),
    }
}
