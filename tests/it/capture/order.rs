//! Which events a transaction makes, in which order, and its notifications.

use postgres::fallible_iterator::FallibleIterator;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::wait::PATIENCE;

use super::{SIGNAL, assert_nothing_left, assert_whole, count, log, migrated};

#[test]
fn inserts_and_meaningful_updates_are_events_and_nothing_else_is() {
    let (_database, mut client) = migrated();
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
    let (_database, mut client) = migrated();
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
    let (_database, mut client) = migrated();
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
    let (_database, mut client) = migrated();
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
fn a_deferred_trigger_that_writes_signals_after_the_numbering_starts_a_second_round() {
    let (_database, mut client) = migrated();
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
    assert_nothing_left(&mut client);
}

#[test]
fn constraints_made_immediate_at_any_moment_keep_the_order_of_the_writes() {
    let (_database, mut client) = migrated();
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

#[test]
fn one_notification_a_transaction_with_the_highest_number_and_the_whole_row_on_the_other_channel() {
    let (database, mut client) = migrated();
    let mut listener = database.connect();
    listener.batch_execute("listen signal_feed; listen signal_inserted").unwrap();
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

/// What a transaction, or a deferred trigger of it, does next. As JSON it is played by the function below.
#[derive(Debug, Clone)]
enum Move {
    /// Writes a signal, whose symbol tells its place in the order of all writes.
    Write,
    /// Issues a SET CONSTRAINTS.
    Set(&'static str),
    /// Queues a deferred trigger that makes these moves.
    Later(Vec<Move>),
    /// Makes these moves in a savepoint, which is then rolled back or not.
    Savepoint(Vec<Move>, bool),
}

impl Move {
    fn json(moves: &[Self]) -> String {
        let texts: Vec<String> = moves
            .iter()
            .map(|one| match one {
                Self::Write => "[\"write\"]".to_owned(),
                Self::Set(what) => format!("[\"set\", \"{what}\"]"),
                Self::Later(inner) => format!("[\"later\", {}]", Self::json(inner)),
                Self::Savepoint(inner, keep) => format!("[\"savepoint\", {}, {keep}]", Self::json(inner)),
            })
            .collect();
        format!("[{}]", texts.join(", "))
    }
}

const PLAYER: &str = "
    create sequence public.nth;
    create table public.later (moves jsonb);
    create function public.play(moves jsonb) returns void language plpgsql as $$
    declare one jsonb;
    begin
        for one in select value from jsonb_array_elements(moves) loop
            case one ->> 0
                when 'write' then
                    insert into stock_market.signal (symbol, action, side) values (nextval('public.nth'), 'entry', 'BUY');
                when 'set' then execute 'set constraints ' || (one ->> 1);
                when 'later' then insert into public.later values (one -> 1);
                when 'savepoint' then
                    begin
                        perform public.play(one -> 1);
                        if not (one ->> 2)::boolean then raise exception 'undone'; end if;
                    exception when raise_exception then null;
                    end;
            end case;
        end loop;
    end $$;
    create function public.play_later() returns trigger language plpgsql as $$
    begin perform public.play(new.moves); return null; end $$;
    create constraint trigger play after insert on public.later deferrable initially deferred
        for each row execute function public.play_later()";

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let leaf = prop_oneof![
        6 => Just(Move::Write),
        3 => Just(Move::Set("all immediate")),
        1 => Just(Move::Set("all deferred")),
        1 => Just(Move::Set("signal_feed_private.signal_feed_gather immediate")),
        1 => Just(Move::Set("signal_feed_private.signal_feed_number immediate")),
    ];
    let one = leaf.prop_recursive(4, 24, 5, |inner| {
        let some = prop::collection::vec(inner, 1..5);
        prop_oneof![
            3 => some.clone().prop_map(Move::Later),
            1 => (some, any::<bool>()).prop_map(|(moves, keep)| Move::Savepoint(moves, keep)),
        ]
    });
    prop::collection::vec(one, 1..7)
}

#[test]
fn deferred_triggers_of_deferred_triggers_and_set_constraints_anywhere_keep_the_order_of_the_writes() {
    let (_database, client) = migrated();
    let client = std::cell::RefCell::new(client);
    client.borrow_mut().batch_execute(PLAYER).unwrap();
    let mut runner = TestRunner::new(Config { cases: 500, failure_persistence: None, ..Config::default() });
    let played = runner.run(&moves(), |moves| {
        let client = &mut client.borrow_mut();
        client.batch_execute("truncate stock_market.signal; begin").unwrap();
        let before = count(client, "select value from stock_market.signal_feed_counter");
        for one in &moves {
            // Each a statement of its own, as a client makes it.
            client.batch_execute(&format!("select public.play('{}')", Move::json(std::slice::from_ref(one)))).unwrap();
        }
        client.batch_execute("commit").unwrap();
        let written = "select coalesce(string_agg(symbol, ' ' order by symbol::int), '') from stock_market.signal";
        let logged = "select coalesce(string_agg(signal ->> 'symbol', ' ' order by feed_seq), '')
            from stock_market.signal_feed_event where feed_seq > $1";
        let written: String = client.query_one(written, &[]).unwrap().get(0);
        let logged: String = client.query_one(logged, &[&before]).unwrap().get(0);
        prop_assert_eq!(logged, written);
        Ok(())
    });
    played.unwrap();
    let client = &mut client.borrow_mut();
    assert!(count(client, "select value from stock_market.signal_feed_counter") > 500);
    assert_whole(client);
    assert_nothing_left(client);
}
