//! An order, made from a row of `signal`, and the key under which it is placed at most once.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{clock, json};
use crate::text::word;

/// Characters other than letters and digits that an order's reference keeps.
const KEPT_IN_REFERENCES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');
/// A number with more digits than this is not an id. (The widest `double precision` has 341.)
const MOST_ID_DIGITS: usize = 400;

/// What a signal wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Open a position.
    Entry,
    /// Close a position.
    Exit,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&word(self))
    }
}

/// One order, made from a row of `signal`. As one line of JSON, it is the input of an `exec:` program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// See [`order_ref`]. An order is placed at most once per reference, that is per signal id and action.
    pub order_ref: String,
    /// The row's `id`, a number in its canonical text.
    pub signal_id: Box<RawValue>,
    /// Entry or exit.
    pub action: Action,
    /// What to trade.
    pub symbol: String,
    /// `BUY` or `SELL`.
    pub side: String,
    /// As it was written, every digit kept; null if the row has none.
    pub quantity: Box<RawValue>,
    /// As it was written, every digit kept; null if the row has none.
    pub price: Box<RawValue>,
    /// The event's number; null in an order from recovery.
    pub feed_seq: Option<i64>,
    /// The event's time; null in an order from recovery.
    pub event_time: Option<String>,
    /// The whole row.
    pub signal: Box<RawValue>,
    /// The row's `created_at`, as it was written. It is not a part of the line.
    #[serde(skip)]
    pub created_at: Option<String>,
}

impl Order {
    /// Makes the order of a row; `feed_seq` and `event_time` are `None` in recovery.
    ///
    /// # Errors
    /// Which part of the row cannot be used, and why.
    pub fn from_row(row: &RawValue, feed_seq: Option<i64>, event_time: Option<String>) -> Result<Self, String> {
        // First: each column becomes part of a line too.
        let row = on_one_line(row);
        let columns = columns(&row).map_err(|error| format!("the row cannot be read: {error}"))?;
        let raw = |name| columns.get(name).copied().filter(|value: &&RawValue| value.get() != "null");
        let text = |name| raw(name).and_then(string);
        let or_null = |name| raw(name).unwrap_or(RawValue::NULL).to_owned();
        let (signal_id, id_text) = usable_id(raw("id").ok_or("the row has no id")?)?;
        let action = match text("action").as_deref() {
            Some("entry") => Action::Entry,
            Some("exit") => Action::Exit,
            _ => return Err("the row's action is neither entry nor exit".to_owned()),
        };
        let symbol = text("symbol").filter(|symbol| !symbol.trim().is_empty()).ok_or("the row has no symbol")?;
        if symbol.contains(char::is_control) {
            return Err("the row's symbol holds control characters".to_owned());
        }
        let side = text("side").filter(|side| side == "BUY" || side == "SELL");
        Ok(Self {
            order_ref: order_ref(&id_text, action),
            signal_id,
            action,
            symbol,
            side: side.ok_or("the row's side is neither BUY nor SELL")?,
            quantity: or_null("quantity"),
            price: or_null("price"),
            feed_seq,
            event_time,
            created_at: text("created_at"),
            signal: row,
        })
    }

    /// What its age is counted from: the older of its event's time and its row's creation, else the row's last change.
    pub(super) fn made_at(&self) -> Option<Timestamp> {
        let instant = |text: &String| clock::instant(text);
        let times = [&self.event_time, &self.created_at];
        let first = times.into_iter().flatten().filter_map(instant).min();
        first.or_else(|| instant(&string(columns(&self.signal).ok()?.get("updated_at")?)?))
    }

    /// A short description: `BUY 100 ACME at 12.50`.
    pub fn terms(&self) -> String {
        let Self { side, quantity, symbol, price, .. } = self;
        match price.get() {
            "null" => format!("{side} {quantity} {symbol} without a price"),
            price => format!("{side} {quantity} {symbol} at {price}"),
        }
    }

    /// The one line of JSON, without its line end. Its `type` says what a program should do with it: `order`, to place it,
    /// or `lookup`, to say whether the broker has it.
    pub fn line(&self, kind: &str) -> String {
        let order = serde_json::to_string(self).unwrap_or_default();
        format!("{{\"type\":\"{kind}\",{}", order.strip_prefix('{').unwrap_or_default())
    }
}

/// `sf-<signal_id>-<action>`, other characters than letters, digits, `.`, `_`, `-` percent-encoded.
pub fn order_ref(id: &str, action: Action) -> String {
    format!("sf-{}-{action}", utf8_percent_encode(id, KEPT_IN_REFERENCES))
}

/// The text of an id: a string's content, or a number's canonical text. Nothing else is an id.
pub(super) fn id_text(raw: &RawValue) -> Option<String> {
    match raw.get().as_bytes().first()? {
        b'"' => string(raw),
        b'-' | b'0'..=b'9' => canonical_number(raw.get()),
        _ => None,
    }
}

fn usable_id(raw: &RawValue) -> Result<(Box<RawValue>, String), String> {
    let text = id_text(raw).ok_or("the row's id is neither a text nor a number of at most 400 digits")?;
    if text.trim().is_empty() {
        return Err("the row's id is empty".to_owned());
    }
    if text.contains(char::is_control) {
        return Err("the row's id holds control characters".to_owned());
    }
    let is_text = raw.get().starts_with('"');
    let id = if is_text { Ok(raw.to_owned()) } else { RawValue::from_string(text.clone()) };
    Ok((id.map_err(|error| format!("the row's id cannot be read: {error}"))?, text))
}

/// The canonical text of a number: no exponent, no trailing zeros after the point, no point if it
/// is whole. PostgreSQL writes one `double precision` as `1e+21` here and as 22 digits there. `None` if it is too long.
fn canonical_number(json: &str) -> Option<String> {
    let (sign, unsigned) = json.strip_prefix('-').map_or(("", json), |rest| ("-", rest));
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_start_matches('0');
    if significant.is_empty() {
        return Some("0".to_owned());
    }
    // The position of the point, counted from the first significant digit.
    let leading_zeros = digits.len() - significant.len();
    let point = i64::try_from(whole.len()).ok()? - i64::try_from(leading_zeros).ok()? + exponent.parse::<i64>().ok()?;
    let significant = significant.trim_end_matches('0');
    if significant.len() > MOST_ID_DIGITS || point.unsigned_abs() > MOST_ID_DIGITS as u64 {
        return None;
    }
    let (before, zeros) = (usize::try_from(point).unwrap_or(0), usize::try_from(-point).unwrap_or(0));
    Some(match significant.split_at_checked(before) {
        Some((_, "")) | None => format!("{sign}{significant:0<before$}"),
        Some(("", fraction)) => format!("{sign}0.{}{fraction}", "0".repeat(zeros)),
        Some((whole, fraction)) => format!("{sign}{whole}.{fraction}"),
    })
}

/// Replaces line ends by spaces: JSON allows them only between tokens.
fn on_one_line(row: &RawValue) -> Box<RawValue> {
    RawValue::from_string(row.get().replace(['\n', '\r'], " ")).unwrap_or_else(|_| row.to_owned())
}

pub(super) fn columns(row: &RawValue) -> Result<BTreeMap<String, &RawValue>, String> {
    json::object(row.get())
}

fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]
mod tests {
    use super::*;

    fn order(row: &str) -> Result<Order, String> {
        Order::from_row(&RawValue::from_string(row.to_owned()).unwrap(), Some(9), Some("t".into()))
    }

    #[test]
    fn the_order_keeps_every_digit_and_names_its_kind() {
        let row =
            r#"{"id":7,"action":"exit","symbol":"A","side":"SELL","quantity":0.10000000000000000000001,"price":1.50}"#;
        let line = order(row).unwrap().line("order");
        assert!(line.starts_with(r#"{"type":"order","order_ref":"sf-7-exit","signal_id":7,"action":"exit""#), "{line}");
        assert!(line.contains(r#""quantity":0.10000000000000000000001,"price":1.50,"feed_seq":9"#), "{line}");
        assert!(line.ends_with(&format!("\"signal\":{row}}}")), "{line}");
        assert!(!line.contains('\n'));
        let again: Order = serde_json::from_str(&line).unwrap();
        assert_eq!(again.line("order"), line);
        assert_eq!(again.order_ref, order_ref("7", Action::Exit));
    }

    #[test]
    fn an_order_is_one_line_however_its_row_is_written() {
        let row =
            "{\"id\":7,\"action\":\"exit\",\r\n\"symbol\":\"A\",\"side\":\"SELL\",\"quantity\":[1,\n2],\"price\":{\n}}";
        let order = order(row).unwrap();
        assert_eq!((order.quantity.get(), order.price.get()), ("[1, 2]", "{ }"));
        assert!(!order.line("order").contains(['\n', '\r']));
    }

    #[test]
    fn an_order_reference_holds_only_harmless_characters_and_different_ids_stay_different() {
        assert_eq!(order_ref("a b/ü%", Action::Entry), "sf-a%20b%2F%C3%BC%25-entry");
        assert_eq!(order_ref("6f2c-1.x_y", Action::Exit), "sf-6f2c-1.x_y-exit");
    }

    #[test]
    fn a_number_has_one_text_however_it_is_written() {
        for (canonical, written) in [
            ("1", vec!["1", "1.0", "1e0", "1.00E+00", "10e-1", "0.1e1", "100e-2"]),
            ("1200", vec!["1200", "1.2e3", "1200.000", "12e2"]),
            ("0", vec!["0", "-0", "0.0", "-0.0e5", "0e999999999999999999"]),
            ("-1.5", vec!["-1.5", "-1.50", "-15e-1", "-0.15E1"]),
            ("0.0012", vec!["0.0012", "1.2e-3", "0.00120"]),
            ("1000000000000000000000", vec!["1e21", "1e+21", "1000000000000000000000"]),
            ("12345678901234567890123", vec!["12345678901234567890123", "12345678901234567890123.0"]),
        ] {
            for text in written {
                assert_eq!(canonical_number(text).as_deref(), Some(canonical), "{text}");
            }
        }
        assert_eq!(canonical_number("1e401"), None);
        assert_eq!(canonical_number("1e-9999999999999999999999"), None);
        let row = r#"{"id":1.0,"action":"exit","symbol":"A","side":"BUY"}"#;
        let order = order(row).unwrap();
        assert_eq!((order.signal_id.get(), order.order_ref.as_str()), ("1", "sf-1-exit"));
    }

    #[test]
    fn a_row_without_what_an_order_needs_says_what_is_missing() {
        for (row, word) in [
            (r#"[1,"exit","A","BUY"]"#, "object"),
            (r"null", "object"),
            (r#"{"action":"exit","symbol":"A","side":"BUY"}"#, "no id"),
            (r#"{"id":null,"action":"exit","symbol":"A","side":"BUY"}"#, "no id"),
            (r#"{"id":true,"action":"exit","symbol":"A","side":"BUY"}"#, "neither a text"),
            (r#"{"id":"","action":"exit","symbol":"A","side":"BUY"}"#, "empty"),
            (r#"{"id":"a\u0007","action":"exit","symbol":"A","side":"BUY"}"#, "control"),
            (r#"{"id":1,"action":"exit","symbol":"A\u001b[2J","side":"BUY"}"#, "control"),
            (r#"{"id":1e999,"action":"exit","symbol":"A","side":"BUY"}"#, "at most 400 digits"),
            (r#"{"id":1,"action":"hold","symbol":"A","side":"BUY"}"#, "action"),
            (r#"{"id":1,"action":"exit","symbol":"","side":"BUY"}"#, "symbol"),
            (r#"{"id":1,"action":"exit","symbol":"A","side":"buy"}"#, "side"),
        ] {
            assert!(order(row).is_err_and(|why| why.contains(word)), "{row}");
        }
    }
}
