//! The feed's events: signals, and messages about the stream itself.
//!
//! Nothing here fails: data that cannot be read becomes a message that says so, and unknown fields are ignored.

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::address::FeedUrl;
use super::alert::Reason;
use super::order::Order;
use super::sse::Event;
use super::stream::Cause;
use super::{clock, json};
use crate::event::WrittenTime;
use crate::text::clip;

/// 2^53: a feed's numbers stay below it.
const LEAST_IMPOSSIBLE_NUMBER: i64 = 1 << 53;

/// What happened next on the feed.
#[derive(Debug)]
pub enum FeedEvent {
    /// A stream is open: its first message.
    Connected(Connected),
    /// The next event. Acknowledge it once it is handled.
    Signal(SignalEvent),
    /// An event, or a notice of a quarantined one, whose data cannot be read; acknowledge it if it has a number.
    Unreadable {
        /// Its number, if its block has one that leaves no hole.
        feed_seq: Option<i64>,
        /// Why it cannot be read.
        why: String,
        /// The data as received.
        data: String,
    },
    /// The feed cannot deliver the next event to any client; acknowledge it.
    Quarantined {
        /// Its number.
        feed_seq: i64,
        /// The number of the event before it.
        prev_seq: Option<i64>,
        /// Why.
        error: String,
    },
    /// Events were lost for good: [`Reason::ReplayTruncated`] or [`Reason::HistoryRewritten`]. The next event begins a new
    /// chain.
    Missed(Reason),
    /// `degraded`, `recovered`, `closing`, or anything unknown: for the log.
    Notice(String),
    /// The stream ended or could not be opened; the next call tries again.
    Interrupted {
        /// The address of the feed.
        url: FeedUrl,
        /// Why.
        cause: Cause,
        /// Set if it will not get better by itself, so somebody must act. Reported once: [`Reason::Hole`] when the same
        /// events are missing for the third time, or [`Reason::BadCursor`].
        alarm: Option<Reason>,
        /// How long the next call waits before it tries again.
        wait: Duration,
    },
    /// No event for a moment; a heartbeat may have come.
    Nothing,
}

/// A row of `signal`, inserted or changed.
#[derive(Debug)]
pub struct SignalEvent {
    /// The event's number.
    pub feed_seq: i64,
    /// The number of the event before it.
    pub prev_seq: Option<i64>,
    /// Its `event_time` as received; `None` if that is not RFC 3339.
    pub event_time: Option<String>,
    /// Whether it is an `UPDATE`: the row was there before.
    pub is_update: bool,
    /// The order that its row asks for, or why the row cannot be used.
    pub order: Result<Box<Order>, String>,
    /// The whole data as received.
    pub data: String,
}

/// The first message of every stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// The identity of the log.
    pub feed_id: String,
    /// Where the stream begins.
    pub cursor: i64,
    /// Whether the key is a delayed one (`delay_seconds` above zero).
    pub has_delay: bool,
    /// When the key expires.
    pub key_expires_at: Option<String>,
}

#[derive(Deserialize)]
struct SignalData<'a> {
    feed_seq: Option<i64>,
    prev_seq: Option<i64>,
    event_time: Option<String>,
    op: Option<String>,
    #[serde(borrow)]
    signal: Option<&'a RawValue>,
}

/// `Err` if the stream is of no use after this event.
pub(super) fn read(event: Event) -> Result<FeedEvent, Cause> {
    match event.event.as_str() {
        "signal" => Ok(signal(event)),
        "system" => system(event),
        _ => Ok(FeedEvent::Notice(format!("an event of unknown type: {}", clip(&event.event)))),
    }
}

fn signal(event: Event) -> FeedEvent {
    let id = block_number(&event);
    let unreadable = |feed_seq, why| FeedEvent::Unreadable { feed_seq, why, data: event.data.clone() };
    let wire: SignalData<'_> = match json::object(&event.data) {
        Ok(wire) => wire,
        Err(error) => return unreadable(id, format!("the event's data cannot be read: {error}")),
    };
    let Some(feed_seq) = wire.feed_seq.or(id).filter(is_possible) else {
        return unreadable(None, "the event has no usable number".to_owned());
    };
    if id.is_some_and(|id| id != feed_seq) {
        return unreadable(id, format!("the event's data has the number {feed_seq}, its block has another one"));
    }
    // The bot also looks back to it, so it must be an instant too.
    let is_time = |time: &String| WrittenTime::parse(time).is_some() && clock::instant(time).is_some();
    let event_time = wire.event_time.filter(is_time);
    let row = wire.signal.ok_or_else(|| "the event has no row".to_owned());
    let order = row.and_then(|row| Order::from_row(row, Some(feed_seq), event_time.clone()));
    FeedEvent::Signal(SignalEvent {
        feed_seq,
        prev_seq: wire.prev_seq,
        event_time,
        is_update: wire.op.as_deref() == Some("UPDATE"),
        order: order.map(Box::new),
        data: event.data,
    })
}

fn block_number(event: &Event) -> Option<i64> {
    event.id.as_ref()?.parse().ok().filter(is_possible)
}

/// A feed counts from 1 and stays below 2^53. A larger number would move the cursor to where no event ever comes.
fn is_possible(number: &i64) -> bool {
    (1..LEAST_IMPOSSIBLE_NUMBER).contains(number)
}

fn system(event: Event) -> Result<FeedEvent, Cause> {
    let data = event.data.as_str();
    let Ok(object) = json::object::<Map<String, Value>>(data) else {
        return Ok(FeedEvent::Notice(format!("a system event that cannot be read: {}", clip(data))));
    };
    let text = |name: &str| object.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
    let number = |name: &str| object.get(name).and_then(Value::as_i64);
    let notice = |text: &str| FeedEvent::Notice(text.to_owned());
    Ok(match text("reason").as_deref() {
        Some("connected") => match (text("feed_id").filter(|id| !id.is_empty()), number("cursor")) {
            (Some(feed_id), Some(cursor)) if cursor >= 0 => FeedEvent::Connected(Connected {
                feed_id,
                cursor,
                has_delay: object.get("delay_seconds").and_then(Value::as_f64).is_some_and(|delay| delay > 0.0),
                key_expires_at: text("key_expires_at"),
            }),
            _ => return Err(Cause::Broke(format!("the connected block cannot be read: {}", clip(data)))),
        },
        Some("quarantined") => match number("feed_seq").or(block_number(&event)).filter(is_possible) {
            Some(feed_seq) => FeedEvent::Quarantined {
                feed_seq,
                prev_seq: number("prev_seq"),
                error: text("error").unwrap_or_else(|| "the feed names no error".to_owned()),
            },
            None => FeedEvent::Unreadable {
                feed_seq: None,
                why: "the notice of a quarantined event has no usable number".to_owned(),
                data: event.data,
            },
        },
        Some("replay_truncated") => FeedEvent::Missed(Reason::ReplayTruncated),
        Some("history_rewritten") => FeedEvent::Missed(Reason::HistoryRewritten),
        // This client stalled. The feed sends the missing events again after the cursor.
        Some("dropped") => {
            return Err(Cause::Missing(format!("the feed dropped events for this client: {}", clip(data))));
        }
        Some("degraded") => notice("the feed is degraded: it has lost its database, and signals will come late"),
        Some("recovered") => notice("the feed has recovered: its database is back"),
        Some("closing") => {
            let cause = text("cause").unwrap_or_else(|| "it names no cause".to_owned());
            notice(&format!("the feed is closing this stream: {}", clip(&cause)))
        }
        _ => notice(&format!("an unknown message of the feed: {}", clip(data))),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(event: &str, id: &str, data: &str) -> FeedEvent {
        super::read(Event { event: event.into(), data: data.into(), id: Some(id.into()) }).unwrap()
    }

    #[test]
    fn a_signal_is_read_and_unknown_fields_are_ignored() {
        let data = r#"{"feed_seq":5,"prev_seq":4,"event_time":"2026-11-20T12:00:00.123456Z","op":"UPDATE","new":1,
            "signal":{"id":1,"action":"entry","symbol":"A","side":"BUY","more":{}}}"#;
        let FeedEvent::Signal(event) = read("signal", "5", data) else { panic!("no signal") };
        assert_eq!((event.feed_seq, event.prev_seq, event.is_update), (5, Some(4), true));
        assert!(!event.order.unwrap().line("order").contains('\n'));
    }

    #[test]
    fn only_rfc_3339_is_sent_as_a_cursor_time() {
        let kept = |time: &str| {
            let data = format!(r#"{{"feed_seq":5,"prev_seq":4,"event_time":"{time}","signal":null}}"#);
            let FeedEvent::Signal(event) = read("signal", "5", &data) else { panic!("no signal") };
            event.event_time
        };
        for good in ["2026-11-20T12:00:00.123456Z", "2026-11-20T12:00:00+02:00"] {
            assert_eq!(kept(good).as_deref(), Some(good));
        }
        for bad in [
            "",
            "yesterday",
            "2026-11-20",
            "2026-11-20T12:00:00",
            "2026-11-20T12:00:00Z[UTC]",
            "2026-11-20T12:00:00+02[A]",
            "2026-11-20T12:00:00 02:00",
            "20261120T120000Z",
        ] {
            assert_eq!(kept(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_unreadable_event_keeps_its_number() {
        assert!(matches!(read("signal", "7", "not json"), FeedEvent::Unreadable { feed_seq: Some(7), .. }));
        assert!(matches!(read("signal", "", "{}"), FeedEvent::Unreadable { feed_seq: None, .. }));
        for wild in ["0", "-1", "9007199254740992", "9223372036854775807"] {
            let data = format!(r#"{{"feed_seq":{wild},"prev_seq":6,"signal":{{}}}}"#);
            assert!(matches!(read("signal", "", &data), FeedEvent::Unreadable { feed_seq: None, .. }), "{wild}");
            assert!(matches!(read("signal", wild, &data), FeedEvent::Unreadable { feed_seq: None, .. }), "{wild}");
        }
        let FeedEvent::Signal(event) = read("signal", "8", r#"{"prev_seq":7,"signal":null}"#) else {
            panic!("no signal")
        };
        assert_eq!(event.feed_seq, 8);
        assert!(event.order.is_err());
    }

    #[test]
    fn unknown_reasons_are_notices() {
        for data in ["{\"reason\":\"party\"}", "{}", "nonsense", "{\"reason\":\"closing\",\"cause\":\"max_age\"}"] {
            assert!(matches!(read("system", "", data), FeedEvent::Notice(_)), "{data}");
        }
        assert!(matches!(read("greeting", "", "x"), FeedEvent::Notice(_)));
    }

    proptest! {
        #[test]
        fn no_event_makes_it_panic(
            event in "signal|system|\\PC{0,6}",
            id in "-?[0-9]{0,20}|\\PC{0,4}",
            data in r#"\PC{0,60}|\{("(feed_seq|prev_seq|signal|op|event_time|reason|delay_seconds)":(-?[0-9]{1,20}|null|"(connected|quarantined|dropped)?"|\{\}|1e400),?){0,5}\}?"#,
        ) {
            let _ = super::read(Event { event, data, id: Some(id) });
        }
    }
}
