//! The reasons of the bot's alerts.

use std::fmt;

use serde::Serialize;

use crate::text::word;

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
        f.write_str(&word(self))
    }
}
