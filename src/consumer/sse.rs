//! Server-Sent Events: bytes in, events out, without any input or output of its own (WHATWG HTML §9.2.5 and §9.2.6).
//!
//! Invariant: how the bytes are cut into pieces never changes the events. A block that the stream cut off is never
//! dispatched.

use std::collections::VecDeque;

/// The largest block that is accepted: the feed's limit of 16 MiB, and room for a proxy that reformats it.
pub(super) const MAX_BLOCK_BYTES: usize = 17 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// The event's type; `message` if the block named none.
    pub(super) event: String,
    /// The data, its lines joined by LF.
    pub(super) data: String,
    /// The event id, if this block set one. (An earlier block's id says nothing about this event.)
    pub(super) id: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The line that has begun and not ended.
    line: Vec<u8>,
    /// The last line ended with CR: a LF that follows belongs to it.
    after_cr: bool,
    /// No line has been seen yet, so a byte order mark may still come.
    at_start: bool,
    /// The block that has begun and not ended; each line of its data ends with LF.
    block: Event,
    ready: VecDeque<Event>,
    max_block_bytes: usize,
    too_large: bool,
}

impl Parser {
    pub(super) fn new(max_block_bytes: usize) -> Self {
        Self { max_block_bytes, at_start: true, ..Self::default() }
    }

    /// `Err` if a block is too large: the events before it are still available, and the parser cannot continue.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                self.extend_line(bytes)?;
                return Ok(());
            };
            self.extend_line(&bytes[..end])?;
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            self.end_line();
        }
        Ok(())
    }

    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn extend_line(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.too_large |= self.line.len() + self.block.data.len() + bytes.len() > self.max_block_bytes;
        if self.too_large {
            return Err(format!("one event is larger than {} MiB", self.max_block_bytes >> 20));
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        let mut bytes = line.as_slice();
        if std::mem::take(&mut self.at_start) {
            bytes = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes);
        }
        // Decoding line by line is the same as decoding the whole stream: no broken sequence spans a CR or LF.
        let text = String::from_utf8_lossy(bytes);
        if text.is_empty() {
            self.dispatch();
        } else if let Some((field, value)) = text.split_once(':') {
            self.field(field, value.strip_prefix(' ').unwrap_or(value));
        } else {
            self.field(&text, "");
        }
        // The buffer is kept: most lines are about as long as the one before.
        self.line = line;
        self.line.clear();
    }

    fn field(&mut self, field: &str, value: &str) {
        match field {
            "event" => value.clone_into(&mut self.block.event),
            "data" => {
                self.block.data.push_str(value);
                self.block.data.push('\n');
            }
            "id" if !value.contains('\0') => self.block.id = Some(value.to_owned()),
            // A comment (the empty field), `retry` (the follower has its own back-off), or an unknown field.
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        let mut block = std::mem::take(&mut self.block);
        if block.data.pop().is_none() {
            return;
        }
        if block.event.is_empty() {
            "message".clone_into(&mut block.event);
        }
        self.ready.push_back(block);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(stream: &[u8]) -> Vec<(String, String, String)> {
        let mut parser = Parser::new(MAX_BLOCK_BYTES);
        parser.push(stream).unwrap();
        drain(&mut parser)
    }

    fn drain(parser: &mut Parser) -> Vec<(String, String, String)> {
        std::iter::from_fn(|| parser.next_event())
            .map(|event| (event.event, event.data, event.id.unwrap_or_default()))
            .collect()
    }

    fn triple(event: &str, data: &str, id: &str) -> (String, String, String) {
        (event.into(), data.into(), id.into())
    }

    #[test]
    fn the_examples_of_the_standard_give_what_it_says() {
        assert_eq!(parse(b"data: YHOO\ndata: +2\ndata: 10\n\n"), [triple("message", "YHOO\n+2\n10", "")]);
        assert_eq!(
            parse(b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n"),
            [triple("message", "first event", "1"), triple("message", "second event", "")]
        );
        assert_eq!(parse(b"data\n\ndata\ndata\n\ndata:"), [triple("message", "", ""), triple("message", "\n", "")]);
        assert_eq!(parse(b"data:test\n\ndata: test\n\n"), vec![triple("message", "test", ""); 2]);
    }

    #[test]
    fn every_kind_of_line_end_ends_a_line() {
        let expected = [triple("a", "1", "7"), triple("message", "2", "")];
        for end in ["\n", "\r", "\r\n"] {
            let stream = format!("event: a{end}id: 7{end}data: 1{end}{end}data: 2{end}{end}");
            assert_eq!(parse(stream.as_bytes()), expected, "{end:?}");
        }
    }

    #[test]
    fn only_one_byte_order_mark_and_only_at_the_start_is_passed_over() {
        assert_eq!(parse(b"\xEF\xBB\xBFdata: 1\n\n"), [triple("message", "1", "")]);
        assert_eq!(parse(b"\xEF\xBB\xBF\xEF\xBB\xBFdata: 1\n\n"), []);
        assert_eq!(parse(b"data: 1\n\n\xEF\xBB\xBFdata: 2\n\n"), [triple("message", "1", "")]);
    }

    #[test]
    fn an_id_with_nul_is_ignored_and_an_id_belongs_to_its_block() {
        assert_eq!(
            parse(b"id: 4\n\nid: 5\nid: 6\0\ndata: x\n\ndata: y\n\n"),
            [triple("message", "x", "5"), triple("message", "y", "")]
        );
    }

    #[test]
    fn a_block_that_was_cut_off_is_not_dispatched_and_a_type_does_not_outlive_its_block() {
        assert_eq!(parse(b"data: whole\n\nid: 9\ndata: cut\n"), [triple("message", "whole", "")]);
        assert_eq!(parse(b"event: a\n\ndata: 1\n\n"), [triple("message", "1", "")]);
    }

    #[test]
    fn broken_utf8_becomes_replacement_characters() {
        assert_eq!(parse(b"data: a\xFFb\xE2\x82\n\n"), [triple("message", "a\u{FFFD}b\u{FFFD}", "")]);
    }

    #[test]
    fn a_block_beyond_the_limit_is_refused_and_earlier_events_are_kept() {
        let mut parser = Parser::new(64);
        let mut stream = b"data: small\n\n".to_vec();
        stream.extend(b"data: ");
        stream.extend(std::iter::repeat_n(b'x', 65));
        assert!(parser.push(&stream).is_err());
        assert_eq!(drain(&mut parser).len(), 1);
        assert!(parser.push(b"x").is_err());
        let mut parser = Parser::new(64);
        assert!(parser.push(&b"data: 0123456789\n".repeat(8)).is_err());
        let mut parser = Parser::new(64);
        assert_eq!(parser.push(&b"data: 0123456789\n\n".repeat(800)), Ok(()));
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_events(
            pieces in proptest::collection::vec(
                proptest::sample::select(vec![
                    "data: x", "data", "id: 1", "id: \0", "event: e", ":c", "\n", "\r", "\r\n", "\n\n", "\u{FEFF}",
                    "\u{20AC}", "retry: 5", " ",
                ]),
                0..60,
            ),
            cuts in proptest::collection::vec(1_usize..9, 1..80),
        ) {
            let stream = pieces.concat().into_bytes();
            let mut parser = Parser::new(MAX_BLOCK_BYTES);
            let mut rest = stream.as_slice();
            let mut sizes = cuts.iter().cycle();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                parser.push(piece).unwrap();
                rest = after;
            }
            prop_assert_eq!(drain(&mut parser), parse(&stream));
        }

        #[test]
        fn no_bytes_make_it_panic_and_any_split_agrees(stream: Vec<u8>, size in 1_usize..7) {
            let mut parser = Parser::new(MAX_BLOCK_BYTES);
            for piece in stream.chunks(size) {
                parser.push(piece).unwrap();
            }
            prop_assert_eq!(drain(&mut parser), parse(&stream));
        }
    }
}
