//! Where a stream begins: the cursor in a request.

use crate::event::{FeedSeq, WrittenTime};
use crate::feed::stream::Asked;
use crate::http::head::RequestHead;

/// What EventSource polyfills call the last event's id, in any letter case: they cannot set headers.
const POLYFILL_NAMES: [&str; 3] = ["lastEventId", "last-event-id", "last_event_id"];

/// The cursor that a request gives: a non-empty `Last-Event-ID`, else `?cursor=`, else `?lastEventId=`, else none,
/// which means from now. The header wins because `EventSource` repeats its URL when it reconnects.
pub(super) fn asked(head: &RequestHead) -> Result<Asked, &'static str> {
    const NOT_A_CURSOR: &str = "a cursor must be a decimal number from 0 to 9223372036854775807";
    let (mut header, mut cursor, mut polyfill, mut time) = (None, None, None, None);
    let ids = head.fields("last-event-id").map(|id| std::str::from_utf8(id).map_err(|_| NOT_A_CURSOR));
    for id in ids {
        set_once(&mut header, id?.to_owned())?;
    }
    for (name, value) in head.parameters() {
        let place = match &*name {
            "cursor" => &mut cursor,
            "cursor_time" => &mut time,
            name if POLYFILL_NAMES.iter().any(|known| known.eq_ignore_ascii_case(name)) => &mut polyfill,
            _ => continue,
        };
        set_once(place, value.ok_or("the query is not UTF-8")?.into_owned())?;
    }
    let parse = |text: Option<String>| text.map(|text| parse_cursor(&text).ok_or(NOT_A_CURSOR)).transpose();
    let (header, cursor, polyfill) = (parse(header.filter(|id| !id.is_empty()))?, parse(cursor)?, parse(polyfill)?);
    let time = time.map(|text| WrittenTime::parse(&text).ok_or("cursor_time must be an RFC 3339 time")).transpose()?;
    let used = header.or(cursor).or(polyfill);
    // The time belongs to the cursor of `?cursor=`. A header with another number is newer.
    Ok(Asked { cursor: used, time: time.filter(|_| cursor.is_some() && used == cursor) })
}

fn set_once(place: &mut Option<String>, value: String) -> Result<(), &'static str> {
    if place.replace(value).is_some() { Err("the cursor or cursor_time is given twice") } else { Ok(()) }
}

fn parse_cursor(text: &str) -> Option<FeedSeq> {
    let is_decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_decimal.then(|| text.parse().ok().map(FeedSeq)).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> RequestHead {
        RequestHead::parse(text.as_bytes()).unwrap().unwrap()
    }

    fn asked_by(request: &str) -> Result<Asked, &'static str> {
        asked(&head(&format!("{request}\r\n\r\n")))
    }

    #[test]
    fn a_cursor_comes_from_the_header_then_from_the_query() {
        let cursor = |request: &str| asked_by(request).unwrap().cursor.map(|cursor| cursor.0);
        assert_eq!(cursor("GET /feed HTTP/1.1"), None);
        assert_eq!(cursor("GET /feed?cursor=5 HTTP/1.1"), Some(5));
        assert_eq!(cursor("GET /feed?cursor=5 HTTP/1.1\r\nLast-Event-ID: 7"), Some(7));
        assert_eq!(cursor("GET /feed?cursor=5 HTTP/1.1\r\nLast-Event-ID:"), Some(5));
        assert_eq!(cursor("GET /feed?cursor=9223372036854775807 HTTP/1.1"), Some(i64::MAX));
        for name in ["lastEventId", "lasteventid", "last-event-id", "Last-Event-ID", "last_event_id", "LAST_EVENT_ID"] {
            assert_eq!(cursor(&format!("GET /feed?a=b&&{name}=9 HTTP/1.1")), Some(9), "{name}");
            assert_eq!(cursor(&format!("GET /feed?{name}=9&cursor=5 HTTP/1.1")), Some(5), "{name}");
            assert_eq!(cursor(&format!("GET /feed?{name}=9 HTTP/1.1\r\nLast-Event-ID: 7")), Some(7), "{name}");
            assert_eq!(cursor(&format!("GET /feed?{name}=9 HTTP/1.1\r\nLast-Event-ID:")), Some(9), "{name}");
        }
    }

    #[test]
    fn an_invalid_cursor_is_refused() {
        for request in [
            "GET /feed?cursor= HTTP/1.1",
            "GET /feed?cursor HTTP/1.1",
            "GET /feed?cursor=-1 HTTP/1.1",
            "GET /feed?cursor=%2B1 HTTP/1.1",
            "GET /feed?cursor=1e3 HTTP/1.1",
            "GET /feed?cursor=9223372036854775808 HTTP/1.1",
            "GET /feed?cursor=1&cursor=1 HTTP/1.1",
            "GET /feed?cursor=1&cursor_time=now HTTP/1.1",
            "GET /feed?cursor_time=now HTTP/1.1",
            "GET /feed?cursor=%ff HTTP/1.1",
            "GET /feed?lastEventId= HTTP/1.1",
            "GET /feed?lastEventId=x HTTP/1.1",
            "GET /feed?lastEventId=1&last-event-id=1 HTTP/1.1",
            "GET /feed?cursor=x HTTP/1.1\r\nLast-Event-ID: 7",
            "GET /feed HTTP/1.1\r\nLast-Event-ID:\r\nLast-Event-ID: 1",
            "GET /feed HTTP/1.1\r\nLast-Event-ID: x",
            "GET /feed HTTP/1.1\r\nLast-Event-ID: 1\r\nLast-Event-ID: 1",
        ] {
            assert!(asked_by(request).is_err(), "{request}");
        }
    }

    #[test]
    fn a_cursor_time_counts_only_with_the_cursor_it_was_given_for() {
        let time = |request: &str| asked_by(request).unwrap().time;
        let noon = WrittenTime::parse("2026-11-20T12:00:00.500000Z");
        for written in [
            "2026-11-20T12:00:00.5Z",
            "2026-11-20T14:00:00.5%2B02:00",
            "2026-11-20T14:00:00.5+02:00",
            "2026-11-20T14:00:00.5%2002:00",
            "2026-11-20%2014:00:00.5%2002:00",
            "2026-11-20T07:00:00.5-05:00",
        ] {
            let request = format!("GET /feed?cursor=5&cursor_time={written} HTTP/1.1");
            assert_eq!(time(&request), noon, "{written}");
        }
        assert_eq!(time("GET /feed?cursor=5&cursor_time=2026-11-20T12:00:00Z HTTP/1.1\r\nLast-Event-ID: 6"), None);
        assert!(time("GET /feed?cursor=5&cursor_time=2026-11-20T12:00:00Z HTTP/1.1\r\nLast-Event-ID: 5").is_some());
        assert_eq!(time("GET /feed?lastEventId=5&cursor_time=2026-11-20T12:00:00Z HTTP/1.1"), None);
        assert_eq!(time("GET /feed?cursor_time=2026-11-20T12:00:00Z HTTP/1.1"), None);
    }

    proptest! {
        #[test]
        fn a_cursor_is_digits_up_to_the_largest_number_and_nothing_else(text in "[0-9]{0,24}|\\PC{0,8}|[+ -]?[0-9]{1,20}") {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let value = text.trim_start_matches('0').parse::<u128>().unwrap_or(0);
            let expected = (digits && value <= i64::MAX as u128).then(|| i64::try_from(value).unwrap());
            prop_assert_eq!(parse_cursor(&text).map(|cursor| cursor.0), expected);
        }

    }
}
