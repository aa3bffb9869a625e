//! The bot's alerts: a log line each, and a run of the operator's program.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::order::Order;
pub(super) use crate::alert::Level;
use crate::alert::{About, AlertCommand};
use crate::logging::LIMITED;

/// The reason of an alert, the same word in the log line and in the program's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reason {
    ReplayTruncated,
    HistoryRewritten,
    Quarantined,
    UnusableEvent,
    Hole,
    BadCursor,
    Unauthorized,
    ExitRejected,
    ExitUnfilled,
    ExitStale,
    IdReused,
    OutcomeUnknown,
    SendingFails,
    BrokerAway,
    KeyExpires,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = serde_json::to_string(self).unwrap_or_default();
        f.write_str(word.trim_matches('"'))
    }
}

/// Raises alerts.
#[derive(Debug)]
pub(super) struct Alerts(AlertCommand);

impl Alerts {
    pub(super) fn new(program: Option<PathBuf>) -> Self {
        Self(AlertCommand::new(program))
    }

    /// Writes the log line and starts the program. Does not wait for it.
    ///
    /// The log summarises repeated lines. Lines of different reasons or about different orders are no repetition.
    pub(super) fn raise(&mut self, level: Level, reason: Reason, message: &str, order: Option<&Order>) {
        let target = format!("{LIMITED}::{reason} {}", order.map_or("", |order| &order.order_ref));
        match level {
            Level::Critical => log::error!(target: &target, "CRITICAL {reason}: {message}"),
            Level::Warning => log::warn!(target: &target, "{reason}: {message}"),
        }
        let about = order.map(|order| About { signal_id: &order.signal_id, order_ref: &order.order_ref });
        self.0.run(level, &reason.to_string(), message, about.as_ref());
    }

    /// Waits briefly for programs that still run.
    pub(super) fn finish(&mut self) {
        self.0.finish();
    }
}
