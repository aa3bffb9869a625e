//! Reports to the service manager, if there is one (sd_notify(3)): readiness, state, and the watchdog.
//!
//! The loop of the thread `reader` feeds the watchdog, in a database outage too. So an outage never makes systemd kill
//! the server, but a reader that hangs does.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::feed::Feed;

/// How often to report and to check the reader.
pub(crate) const TURN_EVERY: Duration = Duration::from_millis(250);

/// What the service manager that `NOTIFY_SOCKET` names was told. Without one, nothing is sent.
#[derive(Debug, Default)]
pub(crate) struct ServiceManager {
    is_ready: bool,
    status: String,
    reader_turns: u64,
}

impl ServiceManager {
    /// Reports readiness and changes of state, and feeds the watchdog if the reader has turned. Call it at least every
    /// [`TURN_EVERY`]. Ready is a server that has tried its database: one with a schema that it does not know never is.
    pub(crate) fn turn(&mut self, feed: &Feed) {
        if !self.is_ready && feed.health.is_tried() {
            tell(&[NotifyState::Ready]);
            self.is_ready = true;
        }
        let status = status(feed);
        if status != self.status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
        let turns = feed.stats.reader_turns.get();
        if turns != self.reader_turns && sd_notify::watchdog_enabled().is_some() {
            tell(&[NotifyState::Watchdog]);
            self.reader_turns = turns;
        }
    }
}

pub(crate) fn stopping(feed: &Feed) {
    let status = format!("stopping: streams {}", feed.clients.count());
    tell(&[NotifyState::Stopping, NotifyState::Status(&status)]);
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        log::warn!("tell the service manager: {error}");
    }
}

fn status(feed: &Feed) -> String {
    format!("{}: streams {}, head {}", feed.health.state(), feed.clients.count(), feed.head())
}
