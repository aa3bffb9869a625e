//! From a write of `signal` to the log: what is captured, in which order, and what nobody can do to it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, NoTls};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use signal_feed::db::Connection;
use signal_feed::db::capture::capture_fault;
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::Database;
use crate::support::wait::{PATIENCE, until};

const SIGNAL: &str = "insert into stock_market.signal (symbol, action, side) values ('A', 'entry', 'BUY')";

fn count(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap().get(0)
}

/// The log as `number op symbol`, one a line.
fn log(client: &mut Client) -> Vec<String> {
    client
        .query("select format('%s %s %s', feed_seq, op, signal ->> 'symbol') from stock_market.signal_feed_event order by feed_seq", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// The invariants of the log that hold at any moment, in any snapshot.
fn assert_whole(client: &mut Client) {
    let row = client
        .query_one(
            "select count(*), coalesce(max(feed_seq), 0), coalesce(min(feed_seq), 1),
                (select value from stock_market.signal_feed_counter),
                (select count(*) from (select event_time < lag(event_time) over (order by feed_seq) as back
                    from stock_market.signal_feed_event) as t where back)
            from stock_market.signal_feed_event",
            &[],
        )
        .unwrap();
    let [rows, last, first, counter, back] = [0, 1, 2, 3, 4].map(|column| row.get::<_, i64>(column));
    assert_eq!((rows, first, counter, back), (last, 1, last, 0));
}

/// A login of the test's own with rights on `signal` alone, in a database of its own.
struct Screener {
    database: Database,
    name: String,
}

impl Screener {
    fn new(setup: &str) -> Self {
        let database = Database::empty();
        let name = format!("{}_screener", database.name);
        let mut client = database.connect();
        client
            .batch_execute(&format!(
                "create role {name} login; create schema stock_market; grant usage on schema stock_market to {name}"
            ))
            .unwrap();
        client.batch_execute(&setup.replace("SCREENER", &name)).unwrap();
        database.migrate();
        client
            .batch_execute(&format!("grant select, insert, update, delete on stock_market.signal to {name}"))
            .unwrap();
        Self { database, name }
    }

    fn connect(&self) -> Client {
        Client::connect(&self.database.url_as(&self.name), NoTls).unwrap()
    }
}

impl Drop for Screener {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.database.url, NoTls) {
            let _ = client.batch_execute(&format!("drop owned by {0} cascade; drop role {0}", self.name));
        }
    }
}

#[test]
fn inserts_and_meaningful_updates_are_events_and_nothing_else_is() {
    let database = Database::migrated();
    let mut client = database.connect();
    client
        .batch_execute(&format!(
            "{SIGNAL};
            update stock_market.signal set price = 1.0;
            update stock_market.signal set price = 1.00;
            update stock_market.signal set price = price;
            update stock_market.signal set updated_at = now() + interval '1 day';
            delete from stock_market.signal"
        ))
        .unwrap();
    // 1.0 and 1.00 are logged differently, so that is a change.
    assert_eq!(log(&mut client), ["1 INSERT A", "2 UPDATE A", "3 UPDATE A"]);
    assert_whole(&mut client);
}

#[test]
fn what_is_rolled_back_consumes_no_number() {
    let database = Database::migrated();
    let mut client = database.connect();
    let insert = |symbol: &str| SIGNAL.replace("'A'", &format!("'{symbol}'"));
    client.batch_execute(&format!("begin; {}; rollback", insert("gone"))).unwrap();
    client
        .batch_execute(&format!(
            "begin; savepoint s; {}; rollback to s; {}; savepoint t; {}; rollback to t; {}; commit",
            insert("gone"),
            insert("a"),
            insert("gone"),
            insert("b")
        ))
        .unwrap();
    client
        .batch_execute(&format!(
            "begin; {}; savepoint s; set constraints all immediate; rollback to s; {}; commit",
            insert("c"),
            insert("d")
        ))
        .unwrap();
    client.batch_execute(&format!("begin; savepoint s; {}; set constraints all immediate; set constraints all immediate; rollback to s; {}; commit", insert("gone"), insert("e"))).unwrap();
    client
        .batch_execute("insert into stock_market.signal (symbol, action, side) values ('x', 'wrong', 'BUY')")
        .unwrap_err();
    client.batch_execute(&format!("begin; {}; select 1 / 0", insert("gone"))).unwrap_err();
    client.batch_execute("rollback").unwrap();
    assert_eq!(log(&mut client), ["1 INSERT a", "2 INSERT b", "3 INSERT c", "4 INSERT d", "5 INSERT e"]);
    assert_whole(&mut client);
}

#[test]
fn every_way_to_write_is_captured_in_the_order_of_the_writes() {
    let database = Database::migrated();
    let mut client = database.connect();
    client
        .batch_execute(
            "insert into stock_market.signal (id, symbol, action, side) values (1, 'a', 'entry', 'BUY'), (2, 'b', 'entry', 'BUY');
            insert into stock_market.signal (id, symbol, action, side) values (1, 'a', 'entry', 'BUY')
                on conflict (id) do update set symbol = 'a2';
            insert into stock_market.signal (id, symbol, action, side) values (1, 'a', 'entry', 'BUY') on conflict do nothing;
            set session_replication_role = replica;
            insert into stock_market.signal (id, symbol, action, side) values (3, 'replica', 'entry', 'BUY');
            set session_replication_role = default;",
        )
        .unwrap();
    let mut copy = client.copy_in("copy stock_market.signal (id, symbol, action, side) from stdin").unwrap();
    std::io::Write::write_all(&mut copy, b"4\tcopied\tentry\tBUY\n").unwrap();
    copy.finish().unwrap();
    let version: i32 = client.query_one("select current_setting('server_version_num')::integer", &[]).unwrap().get(0);
    if version >= 150_000 {
        client
            .batch_execute(
                "merge into stock_market.signal as s using (values (4), (5)) as v (id) on v.id = s.id
                when matched then update set symbol = 'merged'
                when not matched then insert (id, symbol, action, side) values (v.id, 'new', 'entry', 'BUY')",
            )
            .unwrap();
        assert_eq!(log(&mut client)[5..], ["6 UPDATE merged", "7 INSERT new"]);
    }
    assert_eq!(
        log(&mut client)[..5],
        ["1 INSERT a", "2 INSERT b", "3 UPDATE a2", "4 INSERT replica", "5 INSERT copied"]
    );
    assert_whole(&mut client);
}

#[test]
fn an_update_made_by_another_trigger_comes_after_the_insert_that_caused_it() {
    let database = Database::migrated();
    let mut client = database.connect();
    client
        .batch_execute(
            "create function public.again() returns trigger language plpgsql as $$ begin
                update stock_market.signal set symbol = 'second' where id = new.id; return null; end $$;
            create trigger \"AAA\" after insert on stock_market.signal for each row execute function public.again()",
        )
        .unwrap();
    client.batch_execute(SIGNAL).unwrap();
    assert_eq!(log(&mut client), ["1 INSERT A", "2 UPDATE second"]);
}

#[test]
fn one_notification_a_transaction_with_the_highest_number_and_the_whole_row_on_the_other_channel() {
    let database = Database::migrated();
    let mut listener = database.connect();
    listener.batch_execute("listen signal_feed; listen signal_inserted").unwrap();
    let mut client = database.connect();
    client
        .batch_execute(&format!("begin; {SIGNAL}; {SIGNAL}; update stock_market.signal set price = 7; commit"))
        .unwrap();
    client.batch_execute(&format!("{}; select 1", SIGNAL.replace("'A'", "repeat('ä', 5000)"))).unwrap();
    // Eight thousand bytes are too many, one less is not.
    let sized = |symbol: usize| {
        format!(
            "insert into stock_market.signal (symbol, action, side, created_at, updated_at)
            values (repeat('x', {symbol}), 'entry', 'BUY', '2026-01-01', '2026-01-01')"
        )
    };
    let row = "select octet_length(signal::text) from stock_market.signal_feed_event order by feed_seq desc limit 1";
    client.batch_execute(&sized(7000)).unwrap();
    let bytes: i32 = client.query_one(row, &[]).unwrap().get(0);
    let fill = 7000 + 7999 - usize::try_from(bytes).unwrap();
    client.batch_execute(&sized(fill)).unwrap();
    client.batch_execute(&sized(fill + 1)).unwrap();
    let mut heard: Vec<(String, String)> = Vec::new();
    let mut notifications = listener.notifications();
    let mut arrivals = notifications.timeout_iter(PATIENCE);
    while heard.iter().filter(|(channel, _)| channel == "signal_feed").count() < 5 {
        let one = arrivals.next().unwrap().unwrap();
        heard.push((one.channel().to_owned(), one.payload().to_owned()));
    }
    let numbers: Vec<&str> =
        heard.iter().filter(|(channel, _)| channel == "signal_feed").map(|(_, payload)| payload.as_str()).collect();
    assert_eq!(numbers, ["4", "5", "6", "7", "8"]);
    let rows: Vec<&str> =
        heard.iter().filter(|(channel, _)| channel == "signal_inserted").map(|(_, payload)| payload.as_str()).collect();
    assert_eq!(rows.len(), 6);
    assert!(rows[0].contains("\"symbol\": \"A\"") && rows[0].contains("\"price\": null"), "{}", rows[0]);
    assert_eq!(rows[2], "{\"id\": 3, \"oversize\": true}");
    assert_eq!(rows[4].len(), 7999);
    assert_eq!(rows[5], "{\"id\": 6, \"oversize\": true}");
}

#[test]
fn set_constraints_prepared_transactions_and_strict_isolation_keep_the_log_whole() {
    let cluster = PrivatePostgres::start(&[("max_prepared_transactions", "5")]).unwrap();
    let database = Database::empty_in(&cluster);
    database.migrate();
    let mut client = database.connect();
    client.batch_execute(&format!("begin; set constraints all immediate; {SIGNAL}; {SIGNAL}; commit")).unwrap();
    client.batch_execute(&format!("begin; {SIGNAL}; set constraints all immediate; {SIGNAL}; commit")).unwrap();
    client
        .batch_execute(&format!(
            "begin; {SIGNAL}; set constraints all immediate; set constraints all immediate; {SIGNAL}; commit"
        ))
        .unwrap();
    assert_eq!(log(&mut client).len(), 6);
    let refused = client.batch_execute(&format!("begin; {SIGNAL}; prepare transaction 'p'")).unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("PREPARE"), "{refused:?}");
    client.batch_execute("rollback").unwrap();
    // A serialisation failure at commit is possible, a gap or a duplicate never.
    for level in ["repeatable read", "serializable"] {
        let mut strict = database.connect();
        strict.batch_execute(&format!("begin isolation level {level}; {SIGNAL}")).unwrap();
        client.batch_execute(SIGNAL).unwrap();
        let failed = strict.batch_execute("commit").unwrap_err();
        assert_eq!(failed.code().unwrap().code(), "40001");
        strict.batch_execute(&format!("begin isolation level {level}; {SIGNAL}; commit")).unwrap();
    }
    assert_eq!(log(&mut client).len(), 10);
    assert_whole(&mut client);
    assert_eq!(
        count(
            &mut client,
            "select (select count(*) from stock_market.signal_feed_outbox) + (select count(*) from stock_market.signal_feed_first)"
        ),
        0
    );
}

#[test]
fn the_feeds_lock_is_taken_after_every_deferred_constraint_of_the_transactions_statements() {
    let database = Database::migrated();
    let mut client = database.connect();
    // A deferred trigger of the screener's own says whether the lock was already held when it ran.
    client
        .batch_execute(
            "create table public.seen (held boolean);
            create function public.look() returns trigger language plpgsql as $$ begin
                insert into public.seen select exists (select from pg_locks
                    where relation = 'stock_market.signal_feed_lock'::regclass and pid = pg_backend_pid());
                return null; end $$;
            create constraint trigger zzz after insert on stock_market.signal deferrable initially deferred
                for each row execute function public.look()",
        )
        .unwrap();
    client.batch_execute(&format!("begin; {SIGNAL}; {SIGNAL}; commit")).unwrap();
    client
        .batch_execute(&format!(
            "begin; set constraints all immediate; {SIGNAL}; set constraints all deferred; {SIGNAL}; commit"
        ))
        .unwrap();
    assert_eq!(count(&mut client, "select count(*) from public.seen where held"), 0);
    assert_eq!(count(&mut client, "select count(*) from public.seen"), 4);
}

#[test]
fn a_deferred_trigger_that_writes_signals_after_the_numbering_starts_a_second_round() {
    let database = Database::migrated();
    let mut client = database.connect();
    client
        .batch_execute(
            "create table public.step (n int);
            create function public.step() returns trigger language plpgsql as $$ begin
                insert into stock_market.signal (symbol, action, side) values ('late' || new.n, 'entry', 'BUY');
                insert into stock_market.signal (symbol, action, side) values ('twin' || new.n, 'entry', 'BUY');
                if new.n < 5 then insert into public.step values (new.n + 1); end if;
                return null; end $$;
            create constraint trigger step after insert on public.step deferrable initially deferred
                for each row execute function public.step()",
        )
        .unwrap();
    client.batch_execute(&format!("begin; {SIGNAL}; insert into public.step values (1); commit")).unwrap();
    let events = log(&mut client);
    assert_eq!(
        events,
        [
            "1 INSERT A",
            "2 INSERT late1",
            "3 INSERT twin1",
            "4 INSERT late2",
            "5 INSERT twin2",
            "6 INSERT late3",
            "7 INSERT twin3",
            "8 INSERT late4",
            "9 INSERT twin4",
            "10 INSERT late5",
            "11 INSERT twin5"
        ]
    );
    assert_whole(&mut client);
    assert_eq!(
        count(
            &mut client,
            "select (select count(*) from stock_market.signal_feed_outbox) + (select count(*) from stock_market.signal_feed_first)"
        ),
        0
    );
}

#[test]
fn an_open_transaction_that_wrote_a_signal_delays_nobody() {
    let database = Database::migrated();
    let mut open = database.connect();
    open.batch_execute(&format!("begin; {SIGNAL}; set constraints all immediate; {SIGNAL}")).unwrap();
    let mut client = database.connect();
    client.batch_execute("set lock_timeout = '1s'").unwrap();
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let began = Instant::now();
            client.batch_execute(SIGNAL).unwrap();
            began.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[25] < Duration::from_millis(50), "{times:?}");
    open.batch_execute("commit").unwrap();
    assert_eq!(log(&mut client).len(), 52);
    assert_whole(&mut client);
}

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
fn rows_are_compared_and_logged_under_the_feeds_settings_and_not_the_writers() {
    let database = Database::empty();
    let mut client = database.connect();
    client
        .batch_execute(
            "create schema stock_market;
            create table stock_market.signal (f float8, t timestamptz, d date, i interval, b bytea, m money)",
        )
        .unwrap();
    database.migrate();
    client
        .batch_execute(
            "set extra_float_digits = -10; set timezone = 'Asia/Tokyo'; set datestyle = 'German'; set intervalstyle = 'sql_standard';
            set bytea_output = 'escape';
            insert into stock_market.signal values (0.12345678901, '2026-01-02 03:04:05+00', '2026-01-02', '1 day 2 hours', '\\x00', '1');
            update stock_market.signal set f = 0.12345678902",
        )
        .unwrap();
    let last: String = client
        .query_one("select signal::text from stock_market.signal_feed_event where feed_seq = 2", &[])
        .unwrap()
        .get(0);
    assert_eq!(
        last,
        r#"{"b": "\\x00", "d": "2026-01-02", "f": 0.12345678902, "i": "1 day 02:00:00", "m": "$1.00", "t": "2026-01-02T03:04:05+00:00"}"#
    );
}

#[test]
fn the_log_is_immutable_for_its_owner_and_for_superusers() {
    let database = Database::migrated();
    let mut client = database.connect();
    client.batch_execute(&format!("{SIGNAL}; {SIGNAL}")).unwrap();
    for role in ["postgres", "signal_feed_owner"] {
        client.batch_execute(&format!("set role {role}")).unwrap();
        for statement in [
            "update stock_market.signal_feed_event set op = op",
            "update stock_market.signal_feed_event set op = 'INSERT' where false",
            "delete from stock_market.signal_feed_event",
            "delete from stock_market.signal_feed_event where feed_seq = 1",
            "truncate stock_market.signal_feed_event",
            "set session_replication_role = replica; delete from stock_market.signal_feed_event",
            "insert into stock_market.signal_feed_event values (1, now(), 'UPDATE', '1') on conflict (feed_seq) do update set signal = '1'",
        ] {
            if role != "postgres" && statement.starts_with("set session") {
                continue;
            }
            let refused = client.batch_execute(statement).unwrap_err();
            let text = refused.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default();
            assert!(text.contains("the log is append-only"), "{statement}: {refused:?}");
            let _ = client.batch_execute("reset session_replication_role");
        }
        client.batch_execute("reset role").unwrap();
    }
    assert_eq!(log(&mut client).len(), 2);
}

#[test]
fn a_missing_counter_row_refuses_the_write_and_migrate_puts_it_back() {
    let database = Database::migrated();
    let mut client = database.connect();
    client.batch_execute(SIGNAL).unwrap();
    client.batch_execute("delete from stock_market.signal_feed_counter").unwrap();
    let refused = client.batch_execute(SIGNAL).unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("counter"), "{refused:?}");
    let mut connection = Connection::open(&database.url.parse().unwrap(), "test").unwrap();
    assert!(capture_fault(&mut connection).unwrap().unwrap().contains("counter"));
    database.migrate();
    client.batch_execute(SIGNAL).unwrap();
    assert_whole(&mut client);
}

#[test]
fn a_screener_needs_only_its_rights_on_signal_and_has_no_others() {
    let screener = Screener::new("");
    let mut client = screener.connect();
    client.batch_execute(SIGNAL).unwrap();
    client.batch_execute("update stock_market.signal set price = 2").unwrap();
    for statement in [
        "select * from stock_market.signal_feed_event",
        "insert into stock_market.signal_feed_event values (99, now(), 'INSERT', '{}')",
        "select * from stock_market.signal_feed_outbox",
        "insert into stock_market.signal_feed_outbox (xact, op, signal) values (pg_current_xact_id(), 'INSERT', '{}')",
        "update stock_market.signal_feed_counter set value = 5",
        "select * from stock_market.signal_feed_api_key",
        "select * from stock_market.signal_feed_session_secret",
        "begin; lock table stock_market.signal_feed_lock in access share mode",
        "begin; lock table stock_market.signal_feed_event in access share mode",
        "select stock_market.signal_feed_render(row(1))",
        "select stock_market.signal_feed_prune_to(1)",
        "select stock_market.signal_feed_restored(1)",
        "select nextval('stock_market.signal_feed_outbox_seq_seq')",
        "create table stock_market.mine (id int)",
        "set role signal_feed_owner",
        "alter table stock_market.signal disable trigger all",
    ] {
        let refused = client.batch_execute(statement).unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{statement}: {refused:?}");
        client.batch_execute("rollback").unwrap();
    }
    // Hanging the feed's functions on a table of one's own.
    let mut superuser = screener.database.connect();
    superuser.batch_execute(&format!("create schema own authorization {}", screener.name)).unwrap();
    client.batch_execute("create table own.mine (xact xid8, seq bigint, first boolean)").unwrap();
    for function in ["capture", "gather", "number", "refuse", "touch", "key_changed"] {
        let refused = client
            .batch_execute(&format!(
                "create trigger t after insert on own.mine for each row execute function stock_market.signal_feed_{function}()"
            ))
            .unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{function}: {refused:?}");
    }
    assert_eq!(log(&mut superuser), ["1 INSERT A", "2 UPDATE A"]);
}

#[test]
fn the_servers_role_can_do_what_serve_needs_and_nothing_else() {
    let screener = Screener::new("");
    let mut superuser = screener.database.connect();
    superuser
        .batch_execute(&format!(
            "revoke all on stock_market.signal from {0}; grant signal_feed_server to {0}",
            screener.name
        ))
        .unwrap();
    superuser.batch_execute(SIGNAL).unwrap();
    let mut client = screener.connect();
    for statement in [
        "select * from stock_market.signal_feed_event, stock_market.signal_feed_counter, stock_market.signal_feed_pruned,
            stock_market.signal_feed_identity, stock_market.signal_feed_skipped, stock_market.signal_feed_cluster,
            stock_market.signal_feed_migration, stock_market.signal_feed_session_secret, stock_market.signal_feed_cluster_now()",
        "insert into stock_market.signal_feed_quarantine (feed_seq, error) values (1, 'x') on conflict do nothing",
        "select * from stock_market.signal_feed_quarantine",
        "update stock_market.signal_feed_api_key set last_used_at = now() where id = 1",
        "listen signal_feed",
    ] {
        client.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    let mut connection = Connection::open(&screener.database.url_as(&screener.name).parse().unwrap(), "test").unwrap();
    assert_eq!(capture_fault(&mut connection).unwrap(), None);
    signal_feed::db::migrate::check_schema(&mut connection).unwrap();
    for statement in [
        "insert into stock_market.signal_feed_api_key (name, key_sha256) values ('x', sha256(''))",
        "update stock_market.signal_feed_api_key set revoked_at = null",
        "delete from stock_market.signal_feed_api_key",
        "select * from stock_market.signal",
        SIGNAL,
        "delete from stock_market.signal_feed_event",
        "update stock_market.signal_feed_pruned set pruned_through = 1",
        "delete from stock_market.signal_feed_quarantine",
        "select stock_market.signal_feed_prune_to(1)",
        "select stock_market.signal_feed_restored(1)",
        "update stock_market.signal_feed_counter set value = 1",
        "begin; lock table stock_market.signal_feed_lock in exclusive mode",
    ] {
        let refused = client.batch_execute(statement).unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{statement}: {refused:?}");
        client.batch_execute("rollback").unwrap();
    }
}

#[test]
fn the_admins_role_manages_keys_and_cannot_touch_the_log_above_what_is_pruned() {
    let screener = Screener::new("");
    let mut superuser = screener.database.connect();
    superuser
        .batch_execute(&format!(
            "revoke all on stock_market.signal from {0}; grant signal_feed_admin to {0}",
            screener.name
        ))
        .unwrap();
    superuser.batch_execute(SIGNAL).unwrap();
    let mut client = screener.connect();
    client
        .batch_execute(
            "begin; lock table stock_market.signal_feed_api_key in share row exclusive mode;
            insert into stock_market.signal_feed_api_key (name, key_sha256) values ('x', sha256('')); commit;
            select * from stock_market.signal_feed_quarantine",
        )
        .unwrap();
    let refused = client.batch_execute("delete from stock_market.signal_feed_event").unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("append-only"));
    let refused = client.batch_execute("select stock_market.signal_feed_prune_to(1)").unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("younger than an hour"));
    client.batch_execute("select stock_market.signal_feed_prune_to(7)").unwrap_err();
    for statement in [
        "update stock_market.signal_feed_pruned set pruned_through = 1",
        "insert into stock_market.signal_feed_event values (99, now(), 'INSERT', '{}')",
        "select * from stock_market.signal_feed_session_secret",
        "update stock_market.signal_feed_counter set value = 1",
        "update stock_market.signal_feed_event set op = op",
        "truncate stock_market.signal_feed_event",
    ] {
        let refused = client.batch_execute(statement).unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{statement}: {refused:?}");
        client.batch_execute("rollback").unwrap();
    }
}

#[test]
fn a_key_that_is_added_or_changed_is_told_and_its_last_use_is_not() {
    let database = Database::migrated();
    let mut listener = database.connect();
    listener.batch_execute("listen signal_feed_key").unwrap();
    let mut client = database.connect();
    client
        .batch_execute(
            "insert into stock_market.signal_feed_api_key (name, key_sha256) values ('x', sha256(''));
            update stock_market.signal_feed_api_key set last_used_at = now()",
        )
        .unwrap();
    client.batch_execute("update stock_market.signal_feed_api_key set revoked_at = now()").unwrap();
    client.batch_execute("update stock_market.signal_feed_api_key set last_used_at = now()").unwrap();
    client.batch_execute("delete from stock_market.signal_feed_api_key").unwrap();
    client.batch_execute("notify signal_feed_key, 'end'").unwrap();
    let mut heard = Vec::new();
    let mut notifications = listener.notifications();
    let mut arrivals = notifications.timeout_iter(PATIENCE);
    while heard.last().map(String::as_str) != Some("end") {
        heard.push(arrivals.next().unwrap().unwrap().payload().to_owned());
    }
    assert_eq!(heard, ["", "", "", "end"]);
}

#[test]
fn a_cast_to_json_runs_without_any_right_and_forges_nothing() {
    let screener = Screener::new(
        "create type public.mood as enum ('fine');
        create schema evil authorization SCREENER;
        alter type public.mood owner to SCREENER;
        create table stock_market.signal (id int, mood public.mood)",
    );
    let mut superuser = screener.database.connect();
    let mut client = screener.connect();
    client
        .batch_execute(
            "create function evil.cast(public.mood) returns json language plpgsql as $$
            declare attempt text; said text := current_user;
            begin
                foreach attempt in array array[
                    'insert into stock_market.signal_feed_outbox (xact, op, signal) values (pg_current_xact_id(), ''INSERT'', ''{}'')',
                    'insert into stock_market.signal_feed_event values (99, now(), ''INSERT'', ''{}'')',
                    'update stock_market.signal_feed_counter set value = 50',
                    'lock table stock_market.signal_feed_lock in exclusive mode',
                    'set role signal_feed_owner', 'reset role', 'create table stock_market.x (i int)',
                    'alter role signal_feed_render superuser'] loop
                    begin
                        execute attempt;
                        said := said || ' DID ' || attempt;
                    exception when others then null;
                    end;
                end loop;
                return to_json(said);
            end $$;
            create cast (public.mood as json) with function evil.cast(public.mood);
            insert into stock_market.signal values (1, 'fine')",
        )
        .unwrap();
    let row: String =
        superuser.query_one("select signal ->> 'mood' from stock_market.signal_feed_event", &[]).unwrap().get(0);
    assert_eq!(row, "signal_feed_render");
    assert_eq!(count(&mut superuser, "select count(*) from stock_market.signal_feed_event"), 1);
}

#[test]
fn settings_search_paths_temporary_objects_and_operators_of_the_writer_change_nothing() {
    let screener = Screener::new("create schema evil authorization SCREENER");
    let mut client = screener.connect();
    client
        .batch_execute(
            "create function evil.boom(bigint, bigint) returns boolean language plpgsql as $$ begin raise exception 'boom'; end $$;
            create operator evil.= (leftarg = bigint, rightarg = bigint, function = evil.boom);
            create operator evil.+ (leftarg = bigint, rightarg = bigint, function = evil.boom);
            create function evil.to_jsonb(anyelement) returns jsonb language sql as 'select ''{}''::jsonb';
            create function evil.pg_notify(text, text) returns void language sql as '';
            create function evil.clock_timestamp() returns timestamptz language sql as 'select ''epoch''::timestamptz';
            create temp table signal_feed_event (feed_seq bigint); create temp table signal_feed_counter (value bigint);
            set search_path = evil, pg_temp, pg_catalog, stock_market;
            set enable_indexscan = off; set enable_bitmapscan = off; set enable_indexonlyscan = off; set work_mem = 64;
            set plan_cache_mode = force_custom_plan; set standard_conforming_strings = off; set synchronous_commit = off;
            set check_function_bodies = off; set transform_null_equals = on; set quote_all_identifiers = on;
            set default_transaction_deferrable = on; set row_security = off; set lc_monetary = 'C'; set client_encoding = 'LATIN1'",
        )
        .unwrap();
    for _ in 0..7 {
        client.batch_execute(SIGNAL).unwrap();
    }
    let mut superuser = screener.database.connect();
    assert_whole(&mut superuser);
    assert_eq!(log(&mut superuser).len(), 7);
    assert_eq!(
        count(
            &mut superuser,
            "select count(*) from stock_market.signal_feed_event where event_time > now() - interval '1 hour'"
        ),
        7
    );
}

#[test]
fn opposite_orders_deferred_foreign_keys_and_ddl_fail_no_more_than_without_the_feed() {
    let database = Database::migrated();
    let mut client = database.connect();
    client
        .batch_execute(&format!(
            "begin; {SIGNAL}; alter table stock_market.signal alter column strategy set default 'x'; {SIGNAL}; commit;
            begin; {SIGNAL}; truncate stock_market.signal; commit"
        ))
        .unwrap();
    client
        .batch_execute(
            "create table public.parent (id int primary key); insert into public.parent values (1), (2);
            alter table stock_market.signal add column parent int references public.parent deferrable initially deferred",
        )
        .unwrap();
    let insert = |parent: i32| {
        format!("insert into stock_market.signal (symbol, action, side, parent) values ('P', 'entry', 'BUY', {parent})")
    };
    let failures = AtomicI64::new(0);
    thread::scope(|scope| {
        for worker in 0..4 {
            let (database, failures) = (&database, &failures);
            scope.spawn(move || {
                let mut client = database.connect();
                for _ in 0..50 {
                    let (a, b) = if worker % 2 == 0 { (1, 2) } else { (2, 1) };
                    let sql = format!("begin; {}; {}; commit", insert(a), insert(b));
                    if client.batch_execute(&sql).is_err() {
                        failures.fetch_add(1, Ordering::Relaxed);
                        let _ = client.batch_execute("rollback");
                    }
                }
            });
        }
    });
    assert_eq!(failures.load(Ordering::Relaxed), 0);
    assert_eq!(log(&mut client).len(), 403);
    assert_whole(&mut client);
}

/// One step of a writer's transaction.
#[derive(Debug, Clone)]
enum Step {
    Insert(u8),
    Update,
    NoOp,
    Delete,
    Savepoint(Vec<Step>, bool),
    Failing,
    Immediate,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let leaf = prop_oneof![
        4 => (1..4_u8).prop_map(Step::Insert),
        3 => Just(Step::Update),
        1 => Just(Step::NoOp),
        1 => Just(Step::Delete),
        1 => Just(Step::Failing),
        1 => Just(Step::Immediate),
    ];
    prop::collection::vec(
        leaf.prop_recursive(2, 8, 4, |inner| {
            (prop::collection::vec(inner, 1..4), any::<bool>()).prop_map(|(steps, keep)| Step::Savepoint(steps, keep))
        }),
        1..6,
    )
}

/// Runs the steps and returns how many events they should make if the transaction commits.
fn take(client: &mut Client, steps: &[Step], tag: &str, mine: i32) -> Result<i64, postgres::Error> {
    let mut events = 0;
    for step in steps {
        match step {
            Step::Insert(rows) => {
                client.batch_execute(&format!(
                    "insert into stock_market.signal (symbol, action, side, quantity)
                    select '{tag}', 'entry', 'BUY', {mine} from generate_series(1, {rows})"
                ))?;
                events += i64::from(*rows);
            }
            Step::Update => {
                let changed = client.execute(
                    &format!(
                        "update stock_market.signal set price = coalesce(price, 0) + 1
                        where id in (select id from stock_market.signal where quantity = {mine} order by id desc limit 2)"
                    ),
                    &[],
                )?;
                events += i64::try_from(changed).unwrap();
            }
            Step::NoOp => client.batch_execute(&format!("update stock_market.signal set price = price where quantity = {mine}"))?,
            Step::Delete => client.batch_execute(&format!(
                "delete from stock_market.signal where id = (select min(id) from stock_market.signal where quantity = {mine})"
            ))?,
            Step::Savepoint(inner, keep) => {
                client.batch_execute("savepoint s")?;
                let inner = take(client, inner, tag, mine)?;
                if *keep {
                    client.batch_execute("release s")?;
                    events += inner;
                } else {
                    client.batch_execute("rollback to s; release s")?;
                }
            }
            Step::Failing => {
                client.batch_execute("savepoint f")?;
                let _ = client.batch_execute(
                    "insert into stock_market.signal (symbol, action, side) values ('x', 'entry', 'BUY'), ('x', 'wrong', 'BUY')",
                );
                client.batch_execute("rollback to f; release f")?;
            }
            Step::Immediate => client.batch_execute("set constraints all immediate")?,
        }
    }
    Ok(events)
}

#[test]
fn random_interleavings_keep_the_log_whole_for_a_reader_who_polls() {
    let database = Database::migrated();
    database.connect().batch_execute("create index on stock_market.signal (quantity)").unwrap();
    let mut runner = TestRunner::new(Config { cases: 1, failure_persistence: None, ..Config::default() });
    let workers = 4;
    for round in 0..12 {
        let plans: Vec<Vec<(Vec<Step>, bool, u8)>> = (0..workers)
            .map(|_| {
                prop::collection::vec((steps(), prop::bool::weighted(0.75), 0..6_u8), 6)
                    .new_tree(&mut runner)
                    .unwrap()
                    .current()
            })
            .collect();
        let before = count(&mut database.connect(), "select value from stock_market.signal_feed_counter");
        let done = AtomicBool::new(false);
        let expected: i64 = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                // Whoever sees n sees every event below n, in every snapshot.
                let mut client = database.connect();
                let mut head = before;
                loop {
                    let last = done.load(Ordering::Acquire);
                    let rows = client
                        .query(
                            "select feed_seq from stock_market.signal_feed_event where feed_seq > $1 order by feed_seq",
                            &[&head],
                        )
                        .unwrap();
                    for row in rows {
                        assert_eq!(row.get::<_, i64>(0), head + 1);
                        head += 1;
                    }
                    if last {
                        return head;
                    }
                }
            });
            let writers: Vec<_> = plans
                .iter()
                .enumerate()
                .map(|(worker, plan)| {
                    let database = &database;
                    scope.spawn(move || {
                        let mut client = database.connect();
                        let mut events = 0;
                        for (number, (steps, commit, flavour)) in plan.iter().enumerate() {
                            let tag = format!("{round}-{worker}-{number}");
                            let level = match flavour {
                                0 => "isolation level repeatable read",
                                1 => "isolation level serializable",
                                _ => "",
                            };
                            let sync = if *flavour == 2 { "set local synchronous_commit = off" } else { "select 1" };
                            loop {
                                let outcome = client
                                    .batch_execute(&format!("begin {level}; {sync}"))
                                    .and_then(|()| take(&mut client, steps, &tag, i32::try_from(worker).unwrap()))
                                    .and_then(|made| {
                                        client.batch_execute(if *commit { "commit" } else { "rollback" }).map(|()| made)
                                    });
                                match outcome {
                                    Ok(made) => {
                                        events += if *commit { made } else { 0 };
                                        break;
                                    }
                                    Err(error) => {
                                        // Only the strict levels may have to try again.
                                        assert_eq!(error.code().map(|code| code.code()), Some("40001"), "{error:?}");
                                        assert!(*flavour < 2);
                                        client.batch_execute("rollback").unwrap();
                                    }
                                }
                            }
                        }
                        events
                    })
                })
                .collect();
            let expected = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
            done.store(true, Ordering::Release);
            let head = reader.join().unwrap();
            assert_eq!(head, before + expected, "{plans:?}");
            expected
        });
        assert!(expected >= 0);
    }
    let mut client = database.connect();
    assert_whole(&mut client);
    assert_eq!(
        count(
            &mut client,
            "select (select count(*) from stock_market.signal_feed_outbox) + (select count(*) from stock_market.signal_feed_first)"
        ),
        0
    );
}

#[test]
fn a_number_that_was_seen_survives_kill_9_also_where_the_writer_commits_asynchronously() {
    let mut cluster =
        PrivatePostgres::start(&[("fsync", "on"), ("wal_writer_delay", "10s"), ("restart_after_crash", "off")])
            .unwrap();
    let database = Database::empty_in(&cluster);
    database.migrate();
    for _ in 0..3 {
        let stop = AtomicBool::new(false);
        let (mut seen, written) = thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|_| {
                    let (database, stop) = (&database, &stop);
                    scope.spawn(move || {
                        let mut client = database.connect();
                        let mut written = 0_i64;
                        while !stop.load(Ordering::Relaxed) {
                            if client.batch_execute(&format!("set synchronous_commit = off; {SIGNAL}")).is_err() {
                                break;
                            }
                            written += 1;
                        }
                        written
                    })
                })
                .collect();
            let mut reader = database.connect();
            let first = count(&mut reader, "select count(*) from stock_market.signal_feed_event");
            let mut seen: Vec<(i64, String)> = Vec::new();
            until("some hundred events were seen", || {
                seen = reader
                    .query(
                        "select feed_seq, signal ->> 'id' from stock_market.signal_feed_event order by feed_seq",
                        &[],
                    )
                    .unwrap()
                    .iter()
                    .map(|row| (row.get(0), row.get(1)))
                    .collect();
                (i64::try_from(seen.len()).unwrap() > first + 300).then_some(())
            });
            // The server's processes die at once, without a word to each other.
            kill_all(&cluster);
            stop.store(true, Ordering::Relaxed);
            let written: i64 = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
            (seen, written)
        });
        cluster.start_again().unwrap();
        let mut client = database.connect();
        let rows: Vec<(i64, String)> = client
            .query("select feed_seq, signal ->> 'id' from stock_market.signal_feed_event order by feed_seq", &[])
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        assert!(rows.len() >= seen.len(), "{} < {}", rows.len(), seen.len());
        seen.truncate(rows.len());
        assert_eq!(rows[..seen.len()], seen[..]);
        assert!(i64::try_from(rows.len()).unwrap() >= written);
        assert_whole(&mut client);
        assert_eq!(
            count(
                &mut client,
                "select (select count(*) from stock_market.signal_feed_outbox) + (select count(*) from stock_market.signal_feed_first)"
            ),
            0
        );
    }
}

/// SIGKILL to the postmaster and to every process that it started.
fn kill_all(cluster: &PrivatePostgres) {
    let parent = cluster.pid().to_string();
    cluster.signal("STOP").unwrap();
    let mut victims = vec![parent.clone()];
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some((_, rest)) = stat.rsplit_once(')')
            && rest.split_whitespace().nth(1) == Some(parent.as_str())
        {
            victims.push(entry.file_name().into_string().unwrap());
        }
    }
    let status = std::process::Command::new("kill").arg("-KILL").args(&victims).status().unwrap();
    assert!(status.success());
    until("the server is gone", || {
        victims
            .iter()
            .all(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
                    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
                })
            })
            .then_some(())
    });
}

#[test]
fn constraints_made_immediate_at_any_moment_keep_the_order_of_the_writes() {
    let database = Database::migrated();
    let mut client = database.connect();
    let now = "set constraints all immediate";
    let mut number = 0;
    let mut expected = Vec::new();
    // Every place for up to three of them among four writes.
    for places in 0..5_usize.pow(3) {
        let mut sql = String::from("begin;");
        for write in 0..5 {
            for place in [places % 5, places / 5 % 5, places / 25] {
                if place == write {
                    sql += &format!("{now};");
                }
            }
            if write < 4 {
                number += 1;
                expected.push(format!("{number} INSERT w{number}"));
                sql += &format!("{};", SIGNAL.replace("'A'", &format!("'w{number}'")));
            }
        }
        client.batch_execute(&(sql + "commit")).unwrap();
    }
    assert_eq!(log(&mut client), expected);
    assert_whole(&mut client);
}
