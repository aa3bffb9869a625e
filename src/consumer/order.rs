//! What is placed: an order, made of a row of `signal`, and the key under which it is placed at most once.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Open a position.
    Entry,
    /// Close one: the more important of the two.
    Exit,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Entry => "entry",
            Self::Exit => "exit",
        })
    }
}

/// An order's key: it is placed at most once per signal id and action.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OrderKey {
    /// The id's text: a string's content, a number's digits.
    pub id: String,
    /// Entry or exit.
    pub action: Action,
}

/// One order as the broker gets it; on one line it is what an `exec:` program reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// `sf-<signal_id>-<action>`, everything but letters, digits, `.`, `_`, `-` percent-encoded.
    pub order_ref: String,
    /// The row's `id` as it was written.
    pub signal_id: Box<RawValue>,
    /// Entry or exit.
    pub action: Action,
    /// What to trade.
    pub symbol: String,
    /// `BUY` or `SELL`.
    pub side: String,
    /// As it was written, every digit kept; null where the row has none.
    pub quantity: Box<RawValue>,
    /// As it was written, every digit kept; null where the row has none.
    pub price: Box<RawValue>,
    /// The event's number; null in an order from recovery.
    pub feed_seq: Option<i64>,
    /// The event's time; null in an order from recovery.
    pub event_time: Option<String>,
    /// The whole row.
    pub signal: Box<RawValue>,
}

/// What an `exec:` program is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Place it.
    Order,
    /// Say whether the broker has it.
    Lookup,
}

impl Order {
    /// The key of this order.
    pub fn key(&self) -> OrderKey {
        OrderKey { id: id_text(&self.signal_id).unwrap_or_default(), action: self.action }
    }

    /// The one line of JSON, without its line end.
    pub fn line(&self, request: Request) -> String {
        let kind = match request {
            Request::Order => "order",
            Request::Lookup => "lookup",
        };
        let order = serde_json::to_string(self).unwrap_or_default();
        format!("{{\"type\":\"{kind}\",{}", order.strip_prefix('{').unwrap_or_default())
    }
}

/// A row of `signal` that a bot can act on.
#[derive(Debug, Clone)]
pub struct Signal {
    /// The row's `id` as it was written: a number or a text.
    pub id: Box<RawValue>,
    /// Its text.
    pub id_text: String,
    /// Entry or exit.
    pub action: Action,
    /// What to trade.
    pub symbol: String,
    /// `BUY` or `SELL`.
    pub side: String,
    quantity: Option<Box<RawValue>>,
    price: Option<Box<RawValue>>,
    /// When the row was made, as it was written.
    pub created_at: Option<String>,
    /// When the row was last changed, as it was written.
    pub updated_at: Option<String>,
    /// The whole row.
    pub row: Box<RawValue>,
}

/// The columns that matter here, each as it was written.
#[derive(Deserialize)]
struct Columns<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    action: Option<&'a RawValue>,
    #[serde(borrow, default)]
    symbol: Option<&'a RawValue>,
    #[serde(borrow, default)]
    side: Option<&'a RawValue>,
    #[serde(borrow, default)]
    quantity: Option<&'a RawValue>,
    #[serde(borrow, default)]
    price: Option<&'a RawValue>,
    #[serde(borrow, default)]
    created_at: Option<&'a RawValue>,
    #[serde(borrow, default)]
    updated_at: Option<&'a RawValue>,
}

impl Signal {
    /// Reads a row.
    ///
    /// # Errors
    /// What of it cannot be used, and why.
    pub fn from_row(row: &RawValue) -> Result<Self, String> {
        if !row.get().starts_with('{') {
            return Err("the row is no JSON object".to_owned());
        }
        let columns: Columns<'_> =
            serde_json::from_str(row.get()).map_err(|error| format!("the row cannot be read: {error}"))?;
        let id = columns.id.ok_or("the row has no id")?;
        let id_text = id_text(id).ok_or("the row's id is neither a number nor a text")?;
        let action = match string(columns.action).as_deref() {
            Some("entry") => Action::Entry,
            Some("exit") => Action::Exit,
            _ => return Err("the row's action is neither entry nor exit".to_owned()),
        };
        let symbol =
            string(columns.symbol).filter(|symbol| !symbol.trim().is_empty()).ok_or("the row has no symbol")?;
        let side = string(columns.side)
            .filter(|side| side == "BUY" || side == "SELL")
            .ok_or("the row's side is neither BUY nor SELL")?;
        Ok(Self {
            id: id.to_owned(),
            id_text,
            action,
            symbol,
            side,
            quantity: columns.quantity.map(ToOwned::to_owned),
            price: columns.price.map(ToOwned::to_owned),
            created_at: string(columns.created_at),
            updated_at: string(columns.updated_at),
            row: on_one_line(row),
        })
    }

    /// The key of the order that this row asks for.
    pub fn key(&self) -> OrderKey {
        OrderKey { id: self.id_text.clone(), action: self.action }
    }

    /// The order that this row asks for; both arguments are `None` in recovery.
    pub fn order(&self, feed_seq: Option<i64>, event_time: Option<String>) -> Order {
        let or_null = |value: &Option<Box<RawValue>>| value.clone().unwrap_or_else(|| RawValue::NULL.to_owned());
        Order {
            order_ref: order_ref(&self.id_text, self.action),
            signal_id: self.id.clone(),
            action: self.action,
            symbol: self.symbol.clone(),
            side: self.side.clone(),
            quantity: or_null(&self.quantity),
            price: or_null(&self.price),
            feed_seq,
            event_time,
            signal: self.row.clone(),
        }
    }
}

/// `sf-<signal_id>-<action>`, everything but letters, digits, `.`, `_`, `-` percent-encoded.
pub fn order_ref(id: &str, action: Action) -> String {
    format!("sf-{}-{action}", percent_encoded(id, b"._-"))
}

/// Percent-encodes every byte but ASCII letters, digits and those of `kept`.
pub(super) fn percent_encoded(text: &str, kept: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// A string's content or a number's digits; nothing else is an id, an empty string neither.
pub(super) fn id_text(raw: &RawValue) -> Option<String> {
    match raw.get().as_bytes().first()? {
        b'"' => serde_json::from_str(raw.get()).ok().filter(|text: &String| !text.is_empty()),
        b'-' | b'0'..=b'9' => Some(raw.get().to_owned()),
        _ => None,
    }
}

/// Outside of strings, where JSON allows none, a line end is only white space.
fn on_one_line(row: &RawValue) -> Box<RawValue> {
    if row.get().contains(['\n', '\r']) {
        RawValue::from_string(row.get().replace(['\n', '\r'], " ")).unwrap_or_else(|_| row.to_owned())
    } else {
        row.to_owned()
    }
}

fn string(raw: Option<&RawValue>) -> Option<String> {
    serde_json::from_str(raw?.get()).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]
mod tests {
    use super::*;

    fn signal(row: &str) -> Result<Signal, String> {
        Signal::from_row(&RawValue::from_string(row.to_owned()).unwrap())
    }

    #[test]
    fn the_order_keeps_every_digit_and_names_its_kind() {
        let row =
            r#"{"id":7,"action":"exit","symbol":"A","side":"SELL","quantity":0.10000000000000000000001,"price":1.50}"#;
        let line = signal(row).unwrap().order(Some(9), Some("t".into())).line(Request::Order);
        assert!(line.starts_with(r#"{"type":"order","order_ref":"sf-7-exit","signal_id":7,"action":"exit""#), "{line}");
        assert!(line.contains(r#""quantity":0.10000000000000000000001,"price":1.50,"feed_seq":9"#), "{line}");
        assert!(line.ends_with(&format!("\"signal\":{row}}}")), "{line}");
        assert!(!line.contains('\n'));
        let again: Order = serde_json::from_str(&line).unwrap();
        assert_eq!(again.line(Request::Order), line);
        assert_eq!(again.key(), OrderKey { id: "7".into(), action: Action::Exit });
    }

    #[test]
    fn an_order_reference_holds_only_harmless_characters_and_different_ids_stay_different() {
        assert_eq!(order_ref("a b/ü%", Action::Entry), "sf-a%20b%2F%C3%BC%25-entry");
        assert_eq!(order_ref("6f2c-1.x_y", Action::Exit), "sf-6f2c-1.x_y-exit");
    }

    #[test]
    fn a_row_without_what_an_order_needs_says_what_is_missing() {
        for (row, word) in [
            (r"[]", "object"),
            (r"null", "object"),
            (r#"{"action":"exit","symbol":"A","side":"BUY"}"#, "no id"),
            (r#"{"id":null,"action":"exit","symbol":"A","side":"BUY"}"#, "no id"),
            (r#"{"id":true,"action":"exit","symbol":"A","side":"BUY"}"#, "neither a number"),
            (r#"{"id":"","action":"exit","symbol":"A","side":"BUY"}"#, "neither a number"),
            (r#"{"id":1,"action":"hold","symbol":"A","side":"BUY"}"#, "action"),
            (r#"{"id":1,"action":"exit","symbol":"","side":"BUY"}"#, "symbol"),
            (r#"{"id":1,"action":"exit","symbol":"A","side":"buy"}"#, "side"),
        ] {
            assert!(signal(row).is_err_and(|why| why.contains(word)), "{row}");
        }
    }
}
