//! Any shape of `signal`, and any content of its rows.

use postgres::fallible_iterator::FallibleIterator;
use signal_feed::db::Connection;
use signal_feed::db::doctor::capture_fault;

use crate::support::database::Database;
use crate::support::wait::PATIENCE;

use super::{assert_whole, log};

#[test]
fn any_shape_of_table_is_captured() {
    for (table, write, expected) in [
        ("create table stock_market.signal ()", "insert into stock_market.signal default values", "{}"),
        (
            "create table stock_market.signal (old int, new int, op text, feed_seq int, signal text, tg_op int)",
            "insert into stock_market.signal values (1, 2, 'x', 3, 's', 4); update stock_market.signal set old = 2",
            r#"{"op": "x", "new": 2, "old": 2, "tg_op": 4, "signal": "s", "feed_seq": 3}"#,
        ),
        (
            "create table stock_market.signal (j json, x xml, p point)",
            "insert into stock_market.signal values ('{\"a\" : 1}', '<a/>', '(1,2)');
             update stock_market.signal set p = p, j = '{\"a\":  1}'; update stock_market.signal set p = '(3,4)'",
            r#"{"j": {"a": 1}, "p": "(3,4)", "x": "<a/>"}"#,
        ),
        (
            "create table stock_market.signal (a int, \"Mixed Case\" int generated always as (a * 2) stored)",
            "insert into stock_market.signal values (1); update stock_market.signal set a = 4",
            r#"{"a": 4, "Mixed Case": 8}"#,
        ),
        (
            "create table stock_market.signal (k int, v text) partition by list (k);
             create table stock_market.one partition of stock_market.signal for values in (1);
             create table stock_market.two (v text, k int);
             alter table stock_market.signal attach partition stock_market.two for values in (2)",
            "insert into stock_market.signal values (1, 'a'); update stock_market.signal set v = 'b';
             update stock_market.signal set k = 2",
            r#"{"k": 2, "v": "b"}"#,
        ),
        (
            "create table stock_market.signal (id int, t text)",
            "insert into stock_market.signal values (1, 'a'); alter table stock_market.signal add column n numeric;
             update stock_market.signal set n = 1.10; alter table stock_market.signal drop column t;
             update stock_market.signal set n = 1.100; alter table stock_market.signal alter column id type text;
             update stock_market.signal set id = 'z'",
            r#"{"n": 1.100, "id": "z"}"#,
        ),
    ] {
        let database = Database::empty();
        let mut client = database.connect();
        client.batch_execute(&format!("create schema stock_market; {table}")).unwrap();
        database.migrate();
        for statement in write.split(';') {
            client.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
        let last: Option<String> = client
            .query_one("select signal::text from stock_market.signal_feed_event order by feed_seq desc limit 1", &[])
            .unwrap()
            .get(0);
        assert_eq!(last.as_deref(), Some(expected), "{table}");
        assert_whole(&mut client);
    }
}

#[test]
fn partitions_made_later_are_captured_and_one_that_is_switched_off_is_found() {
    let database = Database::empty();
    let mut client = database.connect();
    client
        .batch_execute("create schema stock_market; create table stock_market.signal (k int) partition by list (k)")
        .unwrap();
    database.migrate();
    client
        .batch_execute(
            "create table stock_market.late partition of stock_market.signal for values in (1);
            create table stock_market.later (k int);
            alter table stock_market.signal attach partition stock_market.later for values in (2);
            insert into stock_market.signal values (1), (2);
            set session_replication_role = replica; insert into stock_market.signal values (1), (2)",
        )
        .unwrap();
    assert_eq!(log(&mut client).len(), 4);
    let mut connection = Connection::open(&database.url.parse().unwrap(), "test").unwrap();
    assert_eq!(capture_fault(&mut connection).unwrap(), None);
    client.batch_execute("alter table stock_market.late disable trigger \"!signal_feed_capture\"").unwrap();
    assert!(capture_fault(&mut connection).unwrap().unwrap().contains("stock_market.late"));
    assert!(database.migrate().contains("capture was off"));
    assert_eq!(capture_fault(&mut connection).unwrap(), None);
}

#[test]
fn a_partition_that_is_a_foreign_table_does_no_harm() {
    let database = Database::empty();
    let mut client = database.connect();
    client
        .batch_execute(
            "create foreign data wrapper nobody; create server nowhere foreign data wrapper nobody;
            create schema stock_market; create table stock_market.signal (k int) partition by list (k);
            create table stock_market.near partition of stock_market.signal for values in (1);
            create foreign table stock_market.far partition of stock_market.signal for values in (2) server nowhere",
        )
        .unwrap();
    database.migrate();
    client.batch_execute("insert into stock_market.signal values (1)").unwrap();
    assert_eq!(log(&mut client).len(), 1);
    assert!(database.migrate().contains("nothing to do"));
}

#[test]
fn a_row_that_cannot_become_jsonb_is_logged_without_its_content_and_never_fails_the_write() {
    let database = Database::empty();
    let mut client = database.connect();
    client
        .batch_execute(
            "create schema stock_market; create table stock_market.signal (id int, j json, updated_at timestamptz)",
        )
        .unwrap();
    database.migrate();
    let mut listener = database.connect();
    listener.batch_execute("listen signal_inserted").unwrap();
    client
        .batch_execute(
            "insert into stock_market.signal values (1, '{\"a\": \"\\u0000\"}');
            update stock_market.signal set id = id;
            update stock_market.signal set updated_at = now();
            update stock_market.signal set id = 2;
            update stock_market.signal set j = '1';
            update stock_market.signal set j = '\"\\u0000\"'",
        )
        .unwrap();
    let rows: Vec<Option<String>> = client
        .query("select signal::text from stock_market.signal_feed_event order by feed_seq", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(rows.len(), 4, "{rows:?}");
    assert_eq!((rows[0].as_ref(), rows[1].as_ref(), rows[3].as_ref()), (None, None, None));
    let heard = listener.notifications().timeout_iter(PATIENCE).next().unwrap().unwrap();
    assert_eq!(heard.payload(), "{\"oversize\": true}");
}

#[test]
fn a_row_whose_text_is_huge_can_be_written_and_is_logged_without_its_content() {
    let database = Database::empty();
    let mut client = database.connect();
    client
        .batch_execute("create schema stock_market; create table stock_market.signal (id int, j jsonb, updated_at int)")
        .unwrap();
    database.migrate();
    let mut listener = database.connect();
    listener.batch_execute("listen signal_inserted").unwrap();
    // A number has 131,072 digits: 67 MB, 268 MB and 2 GB of text. PostgreSQL allows 1 GB.
    client
        .batch_execute(
            "create function pg_temp.numbers(doublings int) returns jsonb language plpgsql as $$
            declare
                numbers jsonb := jsonb_build_array(1e131071);
            begin
                for i in 1..doublings loop numbers := numbers || numbers; end loop;
                return numbers;
            end $$;
            insert into stock_market.signal values (1, pg_temp.numbers(9)), (2, pg_temp.numbers(11)), (3, pg_temp.numbers(14));
            update stock_market.signal set j = j || '[]', updated_at = 1 where id < 3;
            update stock_market.signal set j = jsonb_set(j, '{0}', '2e131071') where id = 2;
            update stock_market.signal set j = '0' where id = 2",
        )
        .unwrap();
    let logged = "select string_agg(op || ' ' || coalesce(signal ->> 'id', '-'), ', ' order by feed_seq)
        from stock_market.signal_feed_event";
    let logged: String = client.query_one(logged, &[]).unwrap().get(0);
    assert_eq!(logged, "INSERT 1, INSERT -, INSERT -, UPDATE -, UPDATE 2");
    let mut heard = listener.notifications();
    let mut heard = heard.timeout_iter(PATIENCE);
    for expected in [r#"{"id": 1, "oversize": true}"#, r#"{"oversize": true}"#] {
        assert_eq!(heard.next().unwrap().unwrap().payload(), expected);
    }
}

#[test]
fn rows_are_compared_and_logged_under_the_feeds_settings_and_not_the_writers() {
    let database = Database::empty();
    let mut client = database.connect();
    client
        .batch_execute(
            "create schema stock_market;
            create table stock_market.signal
                (f float8, t timestamptz, d daterange, i interval, b bytea, m money, c regclass, id int)",
        )
        .unwrap();
    database.migrate();
    // Each alone, beside those that render alike.
    for setting in [
        "timezone = 'UTC'",
        "timezone = 'Etc/UTC'",
        "timezone = 'Asia/Tokyo'",
        "timezone = 'Europe/London'",
        "datestyle = 'ISO, DMY'",
        "datestyle = 'German'",
        "intervalstyle = 'sql_standard'",
        "extra_float_digits = -10",
        "extra_float_digits = 0",
        "extra_float_digits = 3",
        "bytea_output = 'escape'",
        "lc_monetary = 'C'",
        "lc_monetary = 'de_DE.UTF-8'",
        "quote_all_identifiers = on",
    ] {
        client
            .batch_execute(&format!(
                "begin; set local timezone = 'UTC'; set local {setting};
                insert into stock_market.signal values (0.12345678901, '2026-07-02 03:04:05+00', '[2026-01-02,2026-02-01)',
                    '1 day 2 hours', '\\x00', (-1234.5)::numeric::money, 'stock_market.signal', 1);
                update stock_market.signal set f = 0.12345678902; update stock_market.signal set f = f;
                delete from stock_market.signal; commit"
            ))
            .unwrap();
        let rows: Vec<String> = client
            .query("select signal::text from stock_market.signal_feed_event order by feed_seq desc limit 2", &[])
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect();
        let as_logged = r#"{"b": "\\x00", "c": "stock_market.signal", "d": "[2026-01-02,2026-02-01)", "f": 0.12345678902, "i": "1 day 02:00:00", "m": "-$1,234.50", "t": "2026-07-02T03:04:05+00:00", "id": 1}"#;
        assert_eq!(rows, [as_logged, &as_logged.replace("902,", "901,")], "{setting}");
    }
}
