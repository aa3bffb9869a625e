//! Events that cannot be delivered: each is isolated, recorded and announced, and all others are delivered.

use serde_json::Value;

use crate::support::database::Database;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::sse::{Block, Stream};
use crate::support::wait::{PATIENCE, until};

/// Reads `count` events of either kind, each of which must follow the one before it.
fn events(stream: &mut Stream, count: usize) -> Vec<Block> {
    let mut cursor = stream.cursor;
    (0..count)
        .map(|_| {
            let block = stream.next_block(4 * PATIENCE).unwrap();
            assert!(block.event == "signal" || block.reason() == Some("quarantined"), "{block:?}");
            assert_eq!((block.prev_seq(), block.id), (cursor, block.feed_seq()), "{:?}", block.reason());
            cursor = block.feed_seq();
            block
        })
        .collect()
}

/// The events that were announced as quarantined, with the error.
fn quarantined(events: &[Block]) -> Vec<(i64, String)> {
    let poisoned = events.iter().filter(|block| block.reason() == Some("quarantined"));
    poisoned.map(|block| (block.feed_seq().unwrap(), block.data["error"].as_str().unwrap().to_owned())).collect()
}

fn listed(database: &Database) -> Vec<(i64, String)> {
    let list: Vec<Value> =
        serde_json::from_str(&signal_feed(&database.url, &["quarantine", "list", "--json"]).ok()).unwrap();
    list.iter()
        .map(|one| {
            assert_eq!(one.as_object().unwrap().keys().collect::<Vec<_>>(), ["feed_seq", "error", "quarantined_at"]);
            assert!(one["quarantined_at"].is_string());
            (one["feed_seq"].as_i64().unwrap(), one["error"].as_str().unwrap().to_owned())
        })
        .collect()
}

/// Brings these rows (time and row, SQL expressions) between sound ones before clients live, behind it and over a
/// restart, and expects those numbers to be quarantined, for the same reason everywhere.
fn isolates(database: &Database, rows: &[(&str, &str)], expected: &[i64]) -> Vec<Block> {
    let key = database.mint("bot");
    let server = Server::ready(database, &[]);
    let mut live = server.stream(&key);
    live.connected();
    database.insert(2);
    for (at, (time, row)) in rows.iter().enumerate() {
        database.log_row(3 + at as i64, time, row);
    }
    database.insert(2);
    let count = rows.len() + 4;
    let seen = events(&mut live, count);
    let poisoned = quarantined(&seen);
    assert_eq!(poisoned.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), expected);
    assert!(poisoned.iter().all(|(_, error)| !error.is_empty()));
    for seq in expected {
        server.wait_log(&["ERROR", "quarantined", &seq.to_string()]);
    }
    until("the record is written", || (listed(database) == poisoned).then_some(()));
    let human = signal_feed(&database.url, &["quarantine", "list"]).ok();
    assert!(poisoned.iter().all(|(seq, error)| human.contains(&seq.to_string()) && human.contains(error)), "{human}");
    let mut replayed = server.stream_from(&key, 0);
    replayed.connected();
    assert_eq!(events(&mut replayed, count), seen);
    server.stop();
    let server = Server::ready(database, &[]);
    let mut replayed = server.stream_from(&key, 0);
    replayed.connected();
    assert_eq!(events(&mut replayed, count), seen);
    assert_eq!(listed(database), poisoned, "recorded once");
    seen
}

const NOW: &str = "clock_timestamp()";

#[test]
fn a_row_that_could_not_become_json_is_quarantined() {
    let database = Database::migrated();
    isolates(&database, &[(NOW, "null"), (NOW, "'{\"symbol\": \"S\"}'"), (NOW, "null")], &[3, 5]);
}

#[test]
fn a_time_that_no_client_could_read_is_quarantined() {
    let database = Database::migrated();
    let row = "'{\"symbol\": \"S\"}'";
    let seen = isolates(
        &database,
        &[
            ("'infinity'", row),
            ("'-infinity'", row),
            ("'10000-01-01 00:00:00Z'", row),
            ("'9999-12-31 23:59:59.999999Z'", row),
            ("'0001-01-01 00:00:00Z BC'", row),
            ("'294276-12-31 23:59:59Z'", row),
        ],
        &[3, 4, 5, 7, 8],
    );
    assert_eq!(seen[5].data["event_time"], "9999-12-31T23:59:59.999999Z");
}

#[test]
fn a_block_of_sixteen_mebibytes_is_delivered_and_a_larger_one_is_not() {
    let database = Database::migrated();
    let row = |bytes: usize| format!("jsonb_build_object('f', repeat('x', {bytes}))");
    // `{"f": ""}` and what stands round it in the block.
    let around = {
        let sample = "id: 3\nevent: signal\ndata: {\"feed_seq\":3,\"prev_seq\":2,\"event_time\":\"2026-11-20T12:00:00.123456Z\",\
                      \"op\":\"INSERT\",\"signal\":{\"f\": \"\"}}\n\n";
        sample.len()
    };
    let most = 16 * 1024 * 1024 - around;
    let seen = isolates(&database, &[(NOW, &row(most)), (NOW, &row(most + 1)), (NOW, &row(50_000_000))], &[4, 5]);
    assert_eq!(seen[2].text.len(), 16 * 1024 * 1024);
}

#[test]
fn numbers_keep_every_digit_and_text_every_character() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    let digits = "1234567890".repeat(100);
    database.sql(&format!(
        "insert into stock_market.signal (symbol, action, side, quantity, price, strategy) \
         values (E'a\\u2028b\\u2029c\\u0085d\\r\\n\\te\\\\\\\"fäöü€😀', 'entry', 'BUY', 0.{digits}, {digits}, ''), \
                ('NaN', 'exit', 'SELL', 'NaN', 1.10, 'x')"
    ));
    let signals = stream.signals(2);
    assert!(signals[0].text.contains(&format!("\"price\": {digits},")), "{}", signals[0].text);
    assert!(signals[0].text.contains(&format!("\"quantity\": 0.{digits},")));
    assert_eq!(signals[0].symbol(), "a\u{2028}b\u{2029}c\u{85}d\r\n\te\\\"fäöü€😀");
    for raw in ['\u{2028}', '\u{2029}', '\u{85}', '\r'] {
        assert!(!signals[0].text.contains(raw));
    }
    assert!(signals[0].text.contains("äöü€😀"));
    assert_eq!(signals[1].data["signal"]["quantity"], "NaN");
    assert!(signals[1].text.contains("\"price\": 1.10,"));
}

#[test]
fn a_row_of_fifty_megabytes_does_not_delay_other_events() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    database.sql(
        "insert into stock_market.signal (symbol, action, side, meta) \
         select 'S' || i, 'entry', 'BUY', jsonb_build_object('f', repeat('x', case when i = 50 then 50000000 else 10 end)) \
         from generate_series(1, 100) as i",
    );
    let seen = events(&mut stream, 100);
    assert_eq!(quarantined(&seen).iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [50]);
}

#[test]
fn a_damaged_row_is_found_and_the_rest_of_its_page_is_delivered() {
    let database = Database::migrated();
    let key = database.mint("bot");
    // Stored out of line, in chunks of which one is lost.
    database.log_rows(
        "select i, clock_timestamp(), 'INSERT', jsonb_build_object('symbol', 'S' || i, 'f', \
            (select string_agg(md5((i * 1000 + j)::text), '') from generate_series(1, case when i % 100 = 0 then 400 else 2 end) as j)) \
         from generate_series(1, 1000) as i",
    );
    let toast: String = database
        .connect()
        .query_one(
            "select reltoastrelid::regclass::text from pg_class where oid = 'stock_market.signal_feed_event'::regclass",
            &[],
        )
        .unwrap()
        .get(0);
    // As after a disk fault: PostgreSQL itself allows no change of that table.
    database.sql("create extension pg_surgery");
    database.sql(&format!(
        "do $$ declare chunks tid[] := array(select ctid from {toast} where chunk_seq = 1 order by chunk_id limit 3); \
         begin perform heap_force_kill('{toast}', chunks); end $$"
    ));
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream_from(&key, 0);
    stream.connected();
    let seen = events(&mut stream, 1_000);
    let poisoned = quarantined(&seen);
    assert_eq!(poisoned.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [100, 200, 300], "{poisoned:?}");
    until("the record is written", || (listed(&database) == poisoned).then_some(()));
    // Live events continue.
    database.insert(1);
    assert_eq!(stream.signal().prev_seq(), Some(1_000));
}

#[test]
fn text_that_is_not_in_the_connections_encoding_is_quarantined() {
    let database = Database::empty_of("encoding 'SQL_ASCII' locale 'C' template template0");
    database.migrate();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    let mut client = database.connect();
    client.batch_execute("set client_encoding = 'SQL_ASCII'").unwrap();
    database.insert(1);
    client
        .batch_execute(
            "insert into stock_market.signal (symbol, action, side) values (E'bad \\xff\\xfe', 'entry', 'BUY'), ('good', 'exit', 'SELL')",
        )
        .unwrap();
    let seen = events(&mut stream, 3);
    assert_eq!(quarantined(&seen).iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [2]);
    assert_eq!(seen[2].symbol(), "good");
    until("the record is written", || (listed(&database).len() == 1).then_some(()));
}

#[test]
fn a_json_column_with_a_zero_character_is_quarantined_and_the_write_succeeds() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    database.sql("alter table stock_market.signal add column raw json");
    database.sql(
        "insert into stock_market.signal (symbol, action, side, raw) \
         values ('a', 'entry', 'BUY', '{}'), ('b', 'entry', 'BUY', '\"\\u0000\"'), ('c', 'entry', 'BUY', '{}')",
    );
    let seen = events(&mut stream, 3);
    assert_eq!(quarantined(&seen).iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [2]);
    assert_eq!((seen[0].symbol(), seen[2].symbol()), ("a", "c"));
}

#[test]
fn many_poisoned_events_at_once_stop_no_stream() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    database.log_rows(
        "select i, clock_timestamp(), 'INSERT', case when i % 2 = 0 then '{\"symbol\": \"S\"}'::jsonb end from generate_series(1, 3000) as i",
    );
    assert_eq!(quarantined(&events(&mut stream, 3_000)).len(), 1_500);
    database.insert(1);
    assert_eq!(stream.signal().prev_seq(), Some(3_000));
    until("all are recorded, or found again", || {
        drop(server.stream(&key).connected());
        (listed(&database).len() >= 1_024).then_some(())
    });
}
