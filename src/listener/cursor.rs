//! Where a stream begins: what a request says of its cursor.

use crate::event::FeedSeq;
use crate::feed::stream::Asked;
use crate::http::head::Head;
use crate::http::rfc3339::WrittenTime;

/// What the request asks for: a non-empty `Last-Event-ID`, else `?cursor=`, else from now.
pub(super) fn asked(head: &Head) -> Result<Asked, &'static str> {
    let mut ids = head.fields("last-event-id");
    let from_header = match (ids.next(), ids.next()) {
        (_, Some(_)) => return Err("Last-Event-ID is given twice"),
        (None | Some(b""), None) => None,
        (Some(id), None) => {
            let id = std::str::from_utf8(id).ok().and_then(parse_cursor);
            Some(id.ok_or("Last-Event-ID must be a decimal number from 0 to 9223372036854775807")?)
        }
    };
    let from_query = match once(head, "cursor")? {
        None => None,
        Some(text) => Some(parse_cursor(&text).ok_or("cursor must be a decimal number from 0 to 9223372036854775807")?),
    };
    let time = match once(head, "cursor_time")? {
        None => None,
        Some(text) => Some(WrittenTime::parse(&text).ok_or("cursor_time must be an RFC 3339 time")?),
    };
    let cursor = from_header.or(from_query);
    // The time belongs to the cursor of the query; a header with another number is a newer place.
    let time = time.filter(|_| from_query.is_some() && cursor == from_query);
    Ok(Asked { cursor, time })
}

fn once(head: &Head, name: &'static str) -> Result<Option<String>, &'static str> {
    let mut values = head.parameters(name);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(Some(value)), None) => Ok(Some(value)),
        (Some(None), None) => Err("the query is not UTF-8"),
        (Some(_), Some(_)) => Err("cursor or cursor_time is given twice"),
    }
}

fn parse_cursor(text: &str) -> Option<FeedSeq> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok().map(FeedSeq)).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Head {
        Head::parse(text.as_bytes()).unwrap().unwrap()
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
    }

    #[test]
    fn a_cursor_that_is_none_is_refused() {
        for request in [
            "GET /feed?cursor= HTTP/1.1",
            "GET /feed?cursor HTTP/1.1",
            "GET /feed?cursor=-1 HTTP/1.1",
            "GET /feed?cursor=%2B1 HTTP/1.1",
            "GET /feed?cursor=1e3 HTTP/1.1",
            "GET /feed?cursor=9223372036854775808 HTTP/1.1",
            "GET /feed?cursor=1&cursor=1 HTTP/1.1",
            "GET /feed?cursor=1&cursor_time=now HTTP/1.1",
            "GET /feed HTTP/1.1\r\nLast-Event-ID: x",
            "GET /feed HTTP/1.1\r\nLast-Event-ID: 1\r\nLast-Event-ID: 1",
        ] {
            assert!(asked_by(request).is_err(), "{request}");
        }
    }

    #[test]
    fn a_cursor_time_counts_only_with_the_cursor_it_was_given_for() {
        let time = |request: &str| asked_by(request).unwrap().time.map(|written| written.time.to_string());
        for written in [
            "2026-11-20T12:00:00.5Z",
            "2026-11-20T14:00:00.5%2B02:00",
            "2026-11-20T14:00:00.5+02:00",
            "2026-11-20T14:00:00.5%2002:00",
            "2026-11-20%2014:00:00.5%2002:00",
            "2026-11-20T07:00:00.5-05:00",
        ] {
            let request = format!("GET /feed?cursor=5&cursor_time={written} HTTP/1.1");
            assert_eq!(time(&request).as_deref(), Some("2026-11-20T12:00:00.500000Z"), "{written}");
        }
        assert_eq!(time("GET /feed?cursor=5&cursor_time=2026-11-20T12:00:00Z HTTP/1.1\r\nLast-Event-ID: 6"), None);
        assert!(time("GET /feed?cursor=5&cursor_time=2026-11-20T12:00:00Z HTTP/1.1\r\nLast-Event-ID: 5").is_some());
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
