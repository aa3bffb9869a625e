//! The bot's alerts: a log line each, and a run of the operator's program.

use std::fmt;

use serde::Serialize;

use super::order::Order;
pub(super) use crate::alert::AlertCommand;
use crate::alert::{About, Level};
use crate::logging::LIMITED;

/// The reason of an alert, the same word in the feed's message, the log line and the program's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "README.md says what happens for each word")]
pub enum Reason {
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

/// Writes the log line of an alert and starts the operator's program. Does not wait for it.
///
/// The log summarises repeated lines. Lines of different reasons or about different orders are no repetition.
pub(super) fn raise(command: &mut AlertCommand, reason: Reason, message: &str, order: Option<&Order>) {
    let target = format!("{LIMITED}::{reason} {}", order.map_or("", |order| &order.order_ref));
    let level = match reason {
        Reason::BrokerAway | Reason::KeyExpires => Level::Warning,
        _ => Level::Critical,
    };
    match level {
        Level::Critical => log::error!(target: &target, "CRITICAL {reason}: {message}"),
        Level::Warning => log::warn!(target: &target, "{reason}: {message}"),
    }
    let about = order.map(|order| About { signal_id: &order.signal_id, order_ref: &order.order_ref });
    command.run(level, &reason.to_string(), message, about);
}
