//! A database that the release before the private schema migrated (its migrations 1 to 4, as they were) is moved over.

use sha2::{Digest, Sha256};

use crate::support::database::Database;
use crate::support::program::signal_feed;

const ROLES: &str = include_str!("../../sql/roles.sql");
const FILES: [(&str, &str); 4] = [
    ("0001_foundation", include_str!("migrated_by_d94901f/0001_foundation.sql")),
    ("0002_keys", include_str!("migrated_by_d94901f/0002_keys.sql")),
    ("0003_functions", include_str!("migrated_by_d94901f/0003_functions.sql")),
    ("0004_log", include_str!("migrated_by_d94901f/0004_log.sql")),
];
const SIGNAL: &str = "insert into stock_market.signal (symbol, action, side) values ('A', 'entry', 'BUY')";

/// A database as that release left it, with three events and a key.
fn earlier() -> Database {
    let database = Database::empty();
    database.sql(ROLES);
    for (index, (name, sql)) in FILES.iter().enumerate() {
        let checksum: String = Sha256::digest(sql).iter().map(|byte| format!("{byte:02x}")).collect();
        database.sql(&format!(
            "begin; {sql}; insert into stock_market.signal_feed_migration (version, name, checksum)
             values ({}, '{name}', '{checksum}'); commit",
            index + 1
        ));
    }
    database.sql(&format!(
        "{SIGNAL}; {SIGNAL}; update stock_market.signal set price = 2 where id = 1;
         insert into stock_market.signal_feed_api_key (name, key_sha256, delay) values ('bot', sha256('k'), '15 min');
         insert into stock_market.signal_feed_quarantine (feed_seq, error) values (2, 'x')"
    ));
    database
}

fn text(database: &Database, query: &str) -> String {
    database.connect().query_one(query, &[]).unwrap().get(0)
}

#[test]
fn an_earlier_installation_keeps_its_events_keys_numbers_identity_and_secret() {
    let database = earlier();
    let log = "select string_agg(e::text, ';' order by feed_seq) from stock_market.signal_feed_event as e";
    let keys = "select string_agg(k::text, ';') from stock_market.signal_feed_api_key as k";
    let identity = "select i::text from stock_market.signal_feed_identity as i";
    let before = [log, keys, identity].map(|query| text(&database, query));
    let secret = text(&database, "select s::text from stock_market.signal_feed_session_secret as s");
    assert!(signal_feed(&database.url, &["serve"]).failed(1).contains("older than 5"));
    let said = database.migrate();
    assert!(said.contains("applied migration 0005_tables") && !said.contains("capture was off"), "{said}");
    assert_eq!([log, keys, identity].map(|query| text(&database, query)), before);
    assert_eq!(text(&database, "select s::text from signal_feed_private.signal_feed_session_secret as s"), secret);
    database.sql(SIGNAL);
    assert_eq!(database.head(), 4);
    assert_eq!(database.number("select max(feed_seq) from stock_market.signal_feed_event"), 4);
    assert!(database.migrate().contains("nothing to do"));
    let owner = "select relowner::regrole::text from pg_class where oid = 'stock_market.signal'::regclass";
    assert_eq!(text(&database, owner), "signal_feed_signal");
    let doctor: serde_json::Value =
        serde_json::from_str(&signal_feed(&database.url, &["doctor", "--json"]).stdout).unwrap();
    for check in doctor.as_array().unwrap() {
        // The tests' own PostgreSQL runs without fsync.
        assert!(check["ok"] == true || check["check"] == "fsync", "{check}");
    }
}

#[test]
fn capture_that_was_off_in_an_earlier_installation_leaves_one_event() {
    for harm in [
        "alter table stock_market.signal disable trigger \"!signal_feed_capture\"",
        "drop trigger signal_feed_number on stock_market.signal_feed_first",
    ] {
        let database = earlier();
        database.sql(harm);
        assert!(database.migrate().contains("capture was off"), "{harm}");
        assert_eq!(
            text(&database, "select q.error from stock_market.signal_feed_quarantine as q where feed_seq = 4"),
            "capture was off"
        );
        database.sql(SIGNAL);
        assert_eq!(database.head(), 5);
    }
}

#[test]
fn another_text_of_an_earlier_migration_is_refused() {
    let database = earlier();
    database.sql("update stock_market.signal_feed_migration set checksum = 'x' where version = 3");
    assert!(signal_feed(&database.url, &["migrate"]).failed(1).contains("migration 3 was applied from another text"));
}

#[test]
fn times_of_the_sequence_era_out_of_order_are_no_fault_of_the_clock() {
    let database = Database::empty();
    database.sql(crate::migrate::SEQUENCE_ERA);
    database.sql(
        "insert into stock_market.signal (symbol) values ('a'), ('b');
         update stock_market.signal_feed_event set event_time = now() - interval '1 day' where feed_seq = 2;
         update stock_market.signal_feed_event set event_time = now() + interval '1 day' where feed_seq = 1",
    );
    database.migrate();
    let said = signal_feed(&database.url, &["doctor"]).stdout;
    assert!(said.contains("times ascend along the log"), "{said}");
}
