//! From a log row to the bytes of its block (WHATWG HTML §9.2.6 is what reads them).

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::batch::Batch;
use crate::event::{FeedSeq, LARGEST_BLOCK_BYTES, LogRow, too_large};

/// Adds one row to a batch: its event, or the notice that it is quarantined. Returns why it is quarantined.
pub(crate) fn push_row(batch: &mut Batch, row: &LogRow) -> Option<String> {
    push_written_by(batch, row, write_signal)
}

fn push_written_by(
    batch: &mut Batch,
    row: &LogRow,
    write: impl FnOnce(&mut Vec<u8>, FeedSeq, &LogRow) -> Result<(), String>,
) -> Option<String> {
    let prev = batch.last();
    let rendered = catch_unwind(AssertUnwindSafe(|| batch.push(row.seq, row.time, |bytes| write(bytes, prev, row))));
    let poison = match rendered {
        Ok(Ok(())) => return None,
        Ok(Err(poison)) => poison,
        Err(_) => "the row cannot be rendered".to_owned(),
    };
    let notice = serde_json::json!({
        "reason": "quarantined", "feed_seq": row.seq, "prev_seq": prev, "error": poison,
    });
    let _ = batch.push(row.seq, row.time, |bytes| {
        let _ = write!(bytes, "id: {}\nevent: system\ndata: {notice}\n\n", row.seq);
        Ok::<_, String>(())
    });
    Some(poison)
}

fn write_signal(bytes: &mut Vec<u8>, prev: FeedSeq, row: &LogRow) -> Result<(), String> {
    let signal = row.signal.as_ref().map_err(String::clone)?;
    if !row.time.is_usable() {
        return Err("event_time is not a time between the years 1 and 9999".to_owned());
    }
    let from = bytes.len();
    bytes.reserve(signal.len() + 160);
    let _ = write!(
        bytes,
        "id: {seq}\nevent: signal\ndata: {{\"feed_seq\":{seq},\"prev_seq\":{prev},\"event_time\":\"{time}\",\"op\":",
        seq = row.seq,
        time = row.time,
    );
    write_op(bytes, &row.op)?;
    bytes.extend_from_slice(b",\"signal\":");
    write_json_in_one_line(bytes, signal)?;
    bytes.extend_from_slice(b"}\n\n");
    if bytes.len() - from > LARGEST_BLOCK_BYTES {
        return Err(too_large(signal.len()));
    }
    Ok(())
}

/// Writes the operation as a JSON string: a log of the sequence era may hold any text.
fn write_op(bytes: &mut Vec<u8>, op: &str) -> Result<(), String> {
    match op {
        "INSERT" => bytes.extend_from_slice(b"\"INSERT\""),
        "UPDATE" => bytes.extend_from_slice(b"\"UPDATE\""),
        other => write_json_in_one_line(bytes, serde_json::Value::from(other).to_string().as_bytes())?,
    }
    Ok(())
}

/// Copies JSON text, with the three characters escaped that some clients take for line ends. (PostgreSQL escapes CR and
/// LF itself.)
fn write_json_in_one_line(bytes: &mut Vec<u8>, json: &[u8]) -> Result<(), String> {
    if json.is_ascii() {
        bytes.extend_from_slice(json);
        return Ok(());
    }
    let text = std::str::from_utf8(json).map_err(|_| "the row's text is not valid UTF-8")?;
    let mut copied = 0;
    for (at, found) in text.match_indices(['\u{85}', '\u{2028}', '\u{2029}']) {
        bytes.extend_from_slice(&json[copied..at]);
        let escaped: &[u8] = match found {
            "\u{85}" => b"\\u0085",
            "\u{2028}" => b"\\u2028",
            _ => b"\\u2029",
        };
        bytes.extend_from_slice(escaped);
        copied = at + found.len();
    }
    bytes.extend_from_slice(&json[copied..]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventTime;

    fn row(signal: Result<Vec<u8>, String>) -> LogRow {
        LogRow { seq: FeedSeq(7), time: EventTime(0), op: "INSERT".into(), signal }
    }

    fn rendered(row: &LogRow) -> (String, Option<String>) {
        let mut batch = Batch::new(FeedSeq(5), 0);
        let poison = push_row(&mut batch, row);
        (String::from_utf8(batch.finish().whole(false).to_vec()).unwrap(), poison)
    }

    #[test]
    fn an_operation_of_the_sequence_era_breaks_no_block_whatever_it_says() {
        let op = "up\"\n\nid: 9\r\u{2028}\\";
        let (block, poison) = rendered(&LogRow { op: op.into(), ..row(Ok(b"{}".to_vec())) });
        assert_eq!(poison, None);
        let data = block.strip_prefix("id: 7\nevent: signal\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!data.contains(['\n', '\r', '\u{2028}']), "{data:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(data).unwrap()["op"], op);
    }

    #[test]
    fn a_row_is_sent_as_postgresql_prints_it() {
        let (block, poison) = rendered(&row(Ok(br#"{"id": 1, "price": 1.50}"#.to_vec())));
        assert_eq!(
            block,
            "id: 7\nevent: signal\ndata: {\"feed_seq\":7,\"prev_seq\":5,\"event_time\":\"2000-01-01T00:00:00.000000Z\",\
             \"op\":\"INSERT\",\"signal\":{\"id\": 1, \"price\": 1.50}}\n\n"
        );
        assert_eq!(poison, None);
    }

    #[test]
    fn characters_that_some_clients_take_for_line_ends_are_escaped() {
        let (block, _) = rendered(&row(Ok("\"é\u{85}x\u{2028}\u{2029}ü\"".as_bytes().to_vec())));
        assert!(block.contains(r#""signal":"é\u0085x\u2028\u2029ü"}"#), "{block}");
    }

    #[test]
    fn a_panic_while_an_event_is_rendered_is_its_poison_and_leaves_nothing_else() {
        let mut batch = Batch::new(FeedSeq(5), 0);
        let poison = push_written_by(&mut batch, &row(Ok(b"{}".to_vec())), |bytes, _, _| {
            bytes.extend_from_slice(b"half a block");
            panic!("as if by a fault of its own")
        });
        assert_eq!(poison, Some("the row cannot be rendered".to_owned()));
        let block = String::from_utf8(batch.finish().whole(false).to_vec()).unwrap();
        assert!(block.starts_with("id: 7\nevent: system\n") && block.ends_with("}\n\n"), "{block}");
    }

    #[test]
    fn an_event_that_cannot_be_delivered_leaves_a_notice_with_its_number() {
        let large = vec![b'1'; LARGEST_BLOCK_BYTES];
        for (signal, why) in [
            (Err("no row".to_owned()), "no row".to_owned()),
            (Ok(b"\"\xff\"".to_vec()), "the row's text is not valid UTF-8".to_owned()),
            (Ok(large), too_large(LARGEST_BLOCK_BYTES)),
        ] {
            let (block, poison) = rendered(&row(signal));
            assert!(block.starts_with("id: 7\nevent: system\ndata: {"), "{block}");
            assert!(block.contains(r#""reason":"quarantined""#) && block.contains(r#""prev_seq":5"#), "{block}");
            assert_eq!(poison, Some(why));
        }
    }
}
