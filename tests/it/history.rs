//! A cursor from another log: the log was restored from backup, skipped numbers, or was replaced under the running
//! server.

use std::time::{Duration, Instant};

use serde_json::json;
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{Request, Stream};
use crate::support::wait::until;

/// A log of so many events, a key, and a server that has read it.
fn serving(events: usize, options: &[&str]) -> (Database, String, Server) {
    let database = Database::migrated();
    database.insert(events);
    let key = database.mint("bot");
    let server = Server::ready(&database, options);
    (database, key, server)
}

/// The next block must be `history_rewritten` with these figures; then events come from the new head on.
fn rewritten(stream: &mut Stream, database: &Database, cursor: i64, head: i64) {
    let notice = stream.system("history_rewritten");
    assert_eq!(notice.data, json!({"reason": "history_rewritten", "cursor": cursor, "head": head}));
    assert_eq!(notice.id, None);
    let last = database.number("select coalesce(max(feed_seq), 0) from stock_market.signal_feed_event");
    database.insert(1);
    let signal = stream.signal();
    assert_eq!(signal.prev_seq(), Some(last));
}

#[test]
fn a_cursor_ahead_of_the_log_gets_history_rewritten_after_a_grace() {
    let (database, key, server) = serving(5, &["--heartbeat", "1s"]);
    for request in [
        Request::feed(&key).last_event_id(20),
        Request::feed_at("/feed?cursor=20", &key),
        Request::feed_at("/feed?cursor=20&cursor_time=2026-01-01T00:00:00Z", &key),
    ] {
        let head = database.head();
        let began = Instant::now();
        let mut stream = request.open(server.address());
        let connected = stream.connected();
        assert_eq!((connected.number("cursor"), connected.number("head")), (20, head));
        assert!(began.elapsed() < Duration::from_secs(3), "connected comes at once");
        rewritten(&mut stream, &database, 20, head);
        let took = began.elapsed();
        assert!(took > Duration::from_millis(4_500) && took < Duration::from_secs(8), "{took:?}");
        server.wait_log(&["history rewritten", "bot", "20"]);
    }
}

#[test]
fn a_cursor_that_the_log_reaches_within_the_grace_was_only_ahead_of_this_server() {
    let (database, key, server) = serving(5, &[]);
    let mut stream = server.stream_from(&key, 7);
    stream.connected();
    database.insert(4);
    let signals = stream.signals(2);
    assert_eq!((signals[0].prev_seq(), signals[1].feed_seq()), (Some(7), Some(9)));
}

#[test]
fn a_cursor_between_head_and_counter_counts_as_the_head() {
    let database = Database::migrated();
    database.insert(5);
    database.sql("update stock_market.signal_feed_counter set value = 10");
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    for cursor in [5, 6, 10] {
        let mut stream = server.stream_from(&key, cursor);
        let connected = stream.connected();
        assert_eq!((connected.number("cursor"), connected.number("head")), (cursor, 5));
        let head = database.head();
        database.insert(1);
        let signal = stream.signal();
        assert_eq!((signal.prev_seq(), signal.feed_seq()), (Some(if head == 10 { 5 } else { head }), Some(head + 1)));
        // The log as it was.
        database.sql(
            "alter table stock_market.signal_feed_event disable trigger user; \
             delete from stock_market.signal_feed_event where feed_seq > 5; \
             alter table stock_market.signal_feed_event enable trigger user; \
             update stock_market.signal_feed_counter set value = 10",
        );
        until("the server has seen it", || (server.stream(&key).connected().number("head") == 5).then_some(()));
    }
    let mut ahead = server.stream_from(&key, 11);
    ahead.connected();
    rewritten(&mut ahead, &database, 11, 5);
}

#[test]
fn a_cursor_time_is_checked_as_an_instant_where_it_belongs_to_the_cursor_in_use() {
    let (database, key, server) = serving(3, &[]);
    let time = |format: &str, zone: &str| -> String {
        let query = format!(
            "select to_char(event_time at time zone '{zone}', '{format}') from stock_market.signal_feed_event where feed_seq = 2"
        );
        database.connect().query_one(&query, &[]).unwrap().get(0)
    };
    let utc = time("YYYY-MM-DD\"T\"HH24:MI:SS.US", "UTC");
    // A POSIX zone of minus two hours lies two hours east.
    let east = time("YYYY-MM-DD\"T\"HH24:MI:SS.US", "<+02>-02");
    let same = |target: String, last_event_id: Option<i64>| {
        let mut request = Request::feed_at(&target, &key);
        if let Some(cursor) = last_event_id {
            request = request.last_event_id(cursor);
        }
        let mut stream = request.open(server.address());
        stream.connected();
        (stream.block(), stream)
    };
    for written in [
        format!("{utc}Z"),
        format!("{utc}z"),
        format!("{utc}%2B00:00"),
        format!("{utc}000Z"),
        format!("{east}%2B02:00"),
        format!("{east} 02:00").replace(' ', "%20"),
        format!("{east}+02:00"),
        format!("{utc}0000000000000Z"),
    ] {
        let (block, _stream) = same(format!("/feed?cursor=2&cursor_time={written}"), None);
        assert_eq!(block.feed_seq(), Some(3), "{written}");
    }
    let wrong = "2020-01-01T00:00:00Z";
    // Without a cursor, or with another one in use, it only has to be a time.
    let (block, _stream) = same(format!("/feed?cursor=2&cursor_time={wrong}"), Some(1));
    assert_eq!(block.feed_seq(), Some(2));
    let mut from_now = Request::feed_at(&format!("/feed?cursor_time={wrong}"), &key).open(server.address());
    from_now.connected();
    drop(from_now);
    for (target, header) in [
        (format!("/feed?cursor=2&cursor_time={wrong}"), None),
        (format!("/feed?cursor=2&cursor_time={utc}%2B02:00"), None),
        // Finer than the log's own times.
        (format!("/feed?cursor=2&cursor_time={utc}0000000001Z"), None),
        // The header may say the same number.
        (format!("/feed?cursor=2&cursor_time={wrong}"), Some(2)),
    ] {
        let head = database.head();
        let (block, mut stream) = same(target, header);
        assert_eq!(block.data, json!({"reason": "history_rewritten", "cursor": 2, "head": head}));
        database.insert(1);
        assert_eq!(stream.signal().feed_seq(), Some(head + 1));
    }
    // If the log no longer has that event, the time is not checked.
    database.prune_through(2);
    until("the prune is known", || (server.stream(&key).connected().number("earliest") == 3).then_some(()));
    let server = Server::ready(&database, &[]);
    let mut stream = Request::feed_at(&format!("/feed?cursor=2&cursor_time={wrong}"), &key).open(server.address());
    stream.connected();
    assert_eq!(stream.signal().prev_seq(), Some(2));
}

#[test]
fn a_cursor_time_of_the_first_and_the_last_day_is_taken_as_it_was_given() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let times = ["0001-01-01T00:00:00.000000Z", "9999-12-30T22:00:01.000000Z", "9999-12-31T23:59:59.999999Z"];
    for (seq, time) in (1..).zip(times) {
        database.log_row(seq, &format!("'{time}'"), "'{\"symbol\": \"S\"}'");
    }
    let server = Server::ready(&database, &[]);
    for (cursor, time) in (1..).zip(times) {
        let target = format!("/feed?cursor={cursor}&cursor_time={time}");
        let mut stream = Request::feed_at(&target, &key).open(server.address());
        stream.connected();
        let head = database.head();
        database.insert(1);
        let next = stream.signals(usize::try_from(head - cursor).unwrap() + 1);
        assert_eq!(next[0].prev_seq(), Some(cursor), "{time}");
    }
}

#[test]
fn a_cursor_in_a_skipped_range_gets_history_rewritten_at_once() {
    let database = Database::migrated();
    database.insert(5);
    let key = database.mint("bot");
    crate::support::program::signal_feed(&database.url, &["restored", "--skip", "1000"]).ok();
    let (from, to): (i64, i64) = {
        let row =
            database.connect().query_one("select from_seq, to_seq from stock_market.signal_feed_skipped", &[]).unwrap();
        (row.get(0), row.get(1))
    };
    assert_eq!((from, to), (6, 1005));
    let server = Server::ready(&database, &[]);
    for cursor in [from, from + 500, to] {
        let head = database.number("select max(feed_seq) from stock_market.signal_feed_event");
        let began = Instant::now();
        let mut stream = server.stream_from(&key, cursor);
        stream.connected();
        rewritten(&mut stream, &database, cursor, head);
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
    // Numbers continue above the range, and a cursor before it missed nothing.
    let mut stream = server.stream_from(&key, 5);
    stream.connected();
    let signals = stream.signals(3);
    assert_eq!((signals[0].prev_seq(), signals[0].feed_seq()), (Some(5), Some(1006)));
}

#[test]
fn a_range_that_is_skipped_under_a_running_server_counts_before_the_servers_next_check() {
    let database = Database::migrated();
    database.insert(3);
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--poll-interval", "2s"]);
    // One waits ahead of the log when the range is skipped, one comes right after the event that follows it.
    let mut early = server.stream_from(&key, 50);
    early.connected();
    crate::support::program::signal_feed(&database.url, &["restored", "--skip", "100"]).ok();
    database.insert(1);
    let mut late = server.stream_from(&key, 53);
    late.connected();
    for (stream, cursor) in [(&mut early, 50), (&mut late, 53)] {
        assert_eq!(stream.system("history_rewritten").number("cursor"), cursor);
    }
}

#[test]
fn a_cursor_time_is_not_checked_against_a_row_that_prune_has_removed() {
    let database = Database::migrated();
    database.log_rows(
        "select i, clock_timestamp() - interval '10 days', 'INSERT', '{\"symbol\": \"S\"}' from generate_series(1, 6) as i",
    );
    database.insert(1);
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--ops-listen", "127.0.0.1:0"]);
    database.prune_through(6);
    until("the server knows", || (server.status()["earliest"] == 7).then_some(()));
    let mut stream = until("the memory of the row does not count", || {
        let mut stream =
            Request::feed_at("/feed?cursor=6&cursor_time=2020-01-01T00:00:00Z", &key).open(server.address());
        stream.connected();
        (stream.block().feed_seq() == Some(7)).then_some(stream)
    });
    database.insert(1);
    assert_eq!(stream.signal().prev_seq(), Some(7));
}

/// Replaces the log by these numbers, as a restore under a running server does, and notifies.
pub(crate) fn replace_log(database: &Database, last: i64, counter: i64) {
    replace_log_silently(database, last, counter);
    database.sql("notify signal_feed, '1'");
}

fn replace_log_silently(database: &Database, last: i64, counter: i64) {
    database.sql(&format!(
        "begin; \
         alter table stock_market.signal_feed_event disable trigger user; \
         delete from stock_market.signal_feed_event; \
         insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal) \
         select i, clock_timestamp() - interval '10 minutes' + i * interval '1 s', 'INSERT', '{{\"symbol\": \"restored\"}}' \
         from generate_series(1, {last}) as i; \
         alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_row; \
         alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_statement; \
         update stock_market.signal_feed_counter set value = {counter}; commit"
    ));
}

#[test]
fn a_restore_under_the_running_server_sends_history_rewritten_to_every_open_stream() {
    // The restored log is shorter than, as long as, and longer than the one in memory.
    for last in [3, 10, 25] {
        let (database, key, server) = serving(10, &[]);
        let mut at_head = server.stream(&key);
        let mut replaying = server.stream_from(&key, 4);
        at_head.connected();
        replaying.connected();
        replaying.signals(6);
        replace_log(&database, last, last);
        for stream in [&mut at_head, &mut replaying] {
            let notice = stream.system("history_rewritten");
            assert_eq!((notice.number("cursor"), notice.number("head")), (10, last), "restored to {last}");
        }
        database.insert(1);
        for stream in [&mut at_head, &mut replaying] {
            let signal = stream.signal();
            assert_eq!((signal.prev_seq(), signal.feed_seq()), (Some(last), Some(last + 1)));
            assert_eq!(signal.symbol(), "S1");
        }
        server.wait_log(&["ERROR", "replaced"]);
        // Events of the old log in memory are never sent.
        let mut fresh = server.stream_from(&key, 0);
        fresh.connected();
        let signals = fresh.signals(usize::try_from(last + 1).unwrap());
        assert!(signals[..usize::try_from(last).unwrap()].iter().all(|signal| signal.symbol() == "restored"));
    }
}

#[test]
fn a_stream_that_begins_after_a_restore_gets_nothing_that_memory_held_of_the_old_log() {
    for last in [20, 12] {
        // The longest interval at which the log is read without a notification is 2 s.
        let (database, key, server) = serving(13, &["--poll-interval", "10s", "--ops-listen", "127.0.0.1:0"]);
        replace_log_silently(&database, last, last);
        // A read that is more recent suffices for streams that begin.
        let age = || server.status()["database"]["log_read_age_seconds"].as_f64().unwrap();
        until("the last read is a little old", || (age() > 0.05).then_some(()));
        let mut stream = server.stream_from(&key, 10);
        stream.connected();
        let signals = stream.signals(usize::try_from(last - 10).unwrap());
        assert!(signals.iter().all(|signal| signal.symbol() == "restored"), "restored to {last}: {signals:?}");
    }
}

#[test]
fn a_cursor_that_both_logs_share_continues_normally() {
    let (database, key, server) = serving(10, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    database.sql(
        "begin; \
         alter table stock_market.signal_feed_event disable trigger user; \
         delete from stock_market.signal_feed_event where feed_seq > 7; \
         alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_row; \
         alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_statement; \
         update stock_market.signal_feed_counter set value = 7; commit",
    );
    rewritten(&mut stream, &database, 10, 7);
    let mut common = server.stream_from(&key, 6);
    common.connected();
    let signals = common.signals(2);
    assert_eq!((signals[0].prev_seq(), signals[0].feed_seq(), signals[1].feed_seq()), (Some(6), Some(7), Some(8)));
}

#[test]
fn a_database_dropped_and_restored_under_the_same_name_is_noticed() {
    let (database, key, server) = serving(10, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    database.restore(|restored| {
        replace_log(restored, 12, 12);
        restored.sql("update stock_market.signal_feed_identity set feed_id = gen_random_uuid()");
    });
    loop {
        let block = stream.block();
        match block.reason() {
            Some("degraded" | "recovered") => {}
            Some("history_rewritten") => {
                assert_eq!((block.number("cursor"), block.number("head")), (10, 12));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    server.wait_ready();
    let id: String = database
        .connect()
        .query_one("select feed_id::text from stock_market.signal_feed_identity", &[])
        .unwrap()
        .get(0);
    assert_eq!(server.stream(&key).connected().data["feed_id"], id);
}

#[test]
fn a_restore_is_an_outage_until_it_is_complete_and_ends_neither_server_nor_streams() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    database.insert(10);
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    let run = |program: &str, arguments: &[&str]| {
        let output = cluster.command(cluster.programs().join(program)).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let file = cluster.dir().join("dump");
    let file = file.to_str().unwrap();
    run("pg_dump", &["--format=custom", "--file", file, &database.url]);
    let mut admin = postgres::Client::connect(&cluster.url("postgres"), postgres::NoTls).unwrap();
    admin.batch_execute(&format!("drop database {} with (force)", database.name)).unwrap();
    admin.batch_execute(&format!("create database {}", database.name)).unwrap();
    server.wait_log(&["the database has no signal-feed schema"]);
    let restore =
        |section: &str| run("pg_restore", &["--exit-on-error", "--section", section, "--dbname", &database.url, file]);
    restore("pre-data");
    std::thread::scope(|scope| {
        // The rows of tables that come before the keys are there, the keys are not.
        let mut blocker = database.connect();
        blocker.batch_execute("begin; lock table stock_market.signal_feed_api_key in share mode").unwrap();
        let data = scope.spawn(|| restore("data"));
        server.wait_log(&["the keys have no primary key yet"]);
        blocker.batch_execute("rollback").unwrap();
        data.join().unwrap();
    });
    server.wait_log(&["the log has no primary key yet"]);
    restore("post-data");
    database.insert(1);
    loop {
        let block = stream.block();
        match block.reason() {
            Some("degraded" | "recovered") => {}
            None => {
                assert_eq!((block.prev_seq(), block.feed_seq()), (Some(10), Some(11)));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    server.wait_ready();
    server.stop();
}
