//! The journal's lines: what each records, and its fields.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::address::Cursor;
use super::clock;
use super::order::{Action, Order, id_text};

/// The version of the format, in the first line.
pub(super) const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// The first line: when the bot first started.
    #[default]
    Journal,
    /// The log that everything here belongs to.
    Bound,
    /// The cursor moved, and nothing else happened.
    Cursor,
    /// An order is about to be placed.
    Intent,
    /// The broker has it.
    Placed,
    /// The broker refused it for good.
    Rejected,
    /// A placed order was filled.
    Filled,
    /// A placed order ended unfilled or partly filled.
    Unfilled,
    /// The broker certainly does not have it: it is placed as soon as the broker is back.
    Unsent,
    /// It is unknown whether the broker has it: the bot will ask.
    Unknown,
    /// An entry in close-only mode: never placed.
    Blocked,
    /// Too old, or from before the bot's time: never placed.
    Stale,
    /// A known id and action with another symbol, side or creation time: nothing was placed.
    Conflict,
    /// An event that the bot cannot use.
    Unusable,
    /// An event that the feed cannot deliver to any client.
    Quarantined,
    Mode,
    /// An old order, in a journal whose old lines a former version shortened.
    Known,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub(super) enum Mode {
    /// Entries and exits are placed.
    #[default]
    Normal,
    /// Something was missed: exits are placed, entries are not, until a run with `--recovery` has succeeded.
    CloseOnly {
        reason: String,
        since: String,
        /// The time of the last event before that: what the bot missed is not older.
        missed_since: String,
    },
}

impl Mode {
    pub(super) fn is_close_only(&self) -> bool {
        matches!(self, Self::CloseOnly { .. })
    }
}

/// One line of the journal. Its fields depend on the record.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) record: Record,
    pub(super) time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<u32>,
    /// In the last line about an event: the cursor moves here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) feed_seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) event_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signal_id: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) action: Option<Action>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) symbol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) side: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) created_at: Option<String>,
    /// How an old order ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<Record>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) feed_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mode: Option<Mode>,
    /// Only in the first intent of an order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) order: Option<Box<RawValue>>,
    /// The order's number at a broker that numbers its orders.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) order_id: Option<i64>,
    /// The connection broke before the broker said anything about the order.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) broke: bool,
    /// The order is sent again because the broker's lists did not show it. That happens at most once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) resent: bool,
}

impl Line {
    pub(super) fn new(record: Record) -> Self {
        Self { record, time: clock::now_text(), ..Self::default() }
    }

    pub(super) fn at(self, cursor: Option<&Cursor>) -> Self {
        let event_time = cursor.and_then(|cursor| cursor.event_time.clone());
        Self { feed_seq: cursor.map(|cursor| cursor.feed_seq), event_time, ..self }
    }

    pub(super) fn why(self, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..self }
    }

    /// An outcome needs only the order's key: the intent has the rest.
    pub(super) fn order_key(self, order: &Order) -> Self {
        Self { signal_id: Some(order.signal_id.clone()), action: Some(order.action), ..self }
    }

    /// For an order that is not placed: what tells it from another one with its key.
    pub(super) fn facts(self, order: &Order) -> Self {
        let (symbol, side) = (Some(order.symbol.clone()), Some(order.side.clone()));
        Self { symbol, side, created_at: order.created_at.clone(), ..self.order_key(order) }
    }

    pub(super) fn key(&self) -> Option<(String, Action)> {
        Some((id_text(self.signal_id.as_ref()?)?, self.action?))
    }
}

/// The line that comes before an order is placed.
pub(super) fn intent_line(order: &Order) -> Line {
    let line = RawValue::from_string(order.line("order")).ok();
    Line { created_at: order.created_at.clone(), order: line, ..Line::new(Record::Intent) }
}
