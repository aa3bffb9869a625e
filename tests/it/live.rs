//! The live path under stress: large rows, long logs, replaced logs, clocks that jump, databases that are slow or
//! locked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::database::{Database, insert_signals};
use crate::support::server::Server;
use crate::support::sse::{Item, Request, Stream};
use crate::support::wait::{PATIENCE, until};

const OPS: &[&str] = &["--ops-listen", "127.0.0.1:0"];

/// One of the server's metrics.
fn metric(server: &Server, name: &str) -> f64 {
    let answer = Request::get("/metrics").host("localhost").send(server.ops_address());
    let text = String::from_utf8(answer.body).unwrap();
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// The server's peak memory, in MiB.
fn peak_mib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// How many rows and index entries of the log the sessions that have ended have read.
const ROWS_READ: &str = "select coalesce(sum(idx_tup_read), 0)::bigint + coalesce((select sum(seq_tup_read) \
    from pg_stat_user_tables where relname = 'signal_feed_event'), 0)::bigint \
    from pg_stat_user_indexes where relname = 'signal_feed_event'";

/// The same once the server's sessions have ended too.
fn rows_read(server: Server, database: &Database) -> i64 {
    server.stop();
    until("the sessions have ended", || {
        let sessions = "select count(*) from pg_stat_activity \
                        where datname = current_database() and application_name like 'signal-feed%'";
        (database.number(sessions) == 0).then(|| database.number(ROWS_READ))
    })
}

/// Replaces this database's clock. `timeofday()` still returns the true time.
pub(crate) fn fake_clock(database: &Database, body: &str) {
    database.sql(&format!(
        "set allow_system_table_mods = on; \
         update pg_catalog.pg_proc set proname = 'true_clock' where proname = 'clock_timestamp'; \
         create function pg_catalog.clock_timestamp() returns timestamptz language plpgsql volatile \
         as 'begin {body} end'"
    ));
}

#[test]
fn a_long_log_before_the_window_is_not_read() {
    let database = Database::migrated();
    database.log_rows(
        "select i, clock_timestamp() - interval '100 hours', 'INSERT', '{\"symbol\": \"S\"}' \
         from generate_series(1, 200000) as i",
    );
    database.sql("analyze stock_market.signal_feed_event");
    let (key, late) = (database.mint("bot"), database.mint_with("late", &["--delay", "1h"]));
    let server = Server::ready(&database, &[]);
    let before = database.number(ROWS_READ);
    for key in [&key, &late] {
        let connected = server.stream(key).connected();
        assert_eq!((connected.number("head"), connected.number("earliest")), (200_000, 200_001));
        let mut old = server.stream_from(key, 5);
        assert_eq!(old.connected().number("earliest"), 200_001);
        old.system("replay_truncated");
    }
    let rows = rows_read(server, &database) - before;
    assert!(rows < 60_000, "{rows} rows and index entries were read");
}

#[test]
fn what_is_not_due_is_not_read_to_find_where_a_delayed_keys_replay_begins() {
    let database = Database::migrated();
    database.log_row(1, "clock_timestamp() - interval '100 hours'", "'{\"symbol\": \"S\"}'");
    database.log_rows(
        "select i, clock_timestamp() - interval '10 minutes', 'INSERT', '{\"symbol\": \"S\"}' \
         from generate_series(2, 200000) as i",
    );
    database.sql("analyze stock_market.signal_feed_event");
    let late = database.mint_with("late", &["--delay", "1h"]);
    let server = Server::ready(&database, &[]);
    let before = database.number(ROWS_READ);
    let mut stream = server.stream_from(&late, 0);
    let connected = stream.connected();
    assert_eq!((connected.number("head"), connected.number("earliest")), (1, 2));
    stream.system("replay_truncated");
    let rows = rows_read(server, &database) - before;
    assert!(rows < 60_000, "{rows} rows and index entries were read");
}

#[test]
fn the_window_begins_at_the_lowest_of_equal_times_also_within_a_large_commit() {
    let database = Database::migrated();
    database.log_rows(
        "select i, clock_timestamp() - interval '5 hours', 'INSERT', '{}' from generate_series(1, 3000) as i",
    );
    // One commit has one time.
    database.log_rows(
        "select i, at, 'INSERT', '{}' from generate_series(3001, 6000) as i, \
         (select clock_timestamp() - interval '30 minutes' as at) as t",
    );
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--replay-window", "1h"]);
    let mut stream = server.stream_from(&key, 0);
    assert_eq!(stream.connected().number("earliest"), 3001);
    assert_eq!(stream.system("replay_truncated").number("earliest"), 3001);
    assert_eq!(stream.signals(3000)[0].prev_seq(), Some(3000));
}

#[test]
fn large_rows_cost_memory_for_one_of_them_and_not_for_a_page_of_them() {
    let database = Database::migrated();
    let key = database.mint("bot");
    // Rows of 5 MB that are stored compressed.
    let large = "insert into stock_market.signal (symbol, action, side, meta) \
                 select 'S', 'entry', 'BUY', jsonb_build_object('filler', repeat(md5(i::text), 163840)) \
                 from generate_series(1, 40) as i";
    database.sql(large);
    let server = Server::ready(&database, &[]);
    let mut replay = server.stream_from(&key, 0);
    replay.connected();
    replay.signals(40);
    drop(replay);
    let mut live = server.stream(&key);
    live.connected();
    database.sql(large);
    live.signals(40);
    // All of them together are 400 MB.
    let peak = peak_mib(&server);
    assert!(peak < 200, "{peak} MiB");
}

#[test]
fn small_rows_between_large_ones_are_not_read_again_for_each_of_them() {
    let database = Database::migrated();
    let key = database.mint("bot");
    // Every fifth has 1.2 MB, which PostgreSQL stores in 14 kB.
    database.sql(
        "insert into stock_market.signal (symbol, action, side, meta) \
         select 'S', 'entry', 'BUY', case when i % 5 = 0 then jsonb_build_object('filler', repeat('0123456789abcdef', 75000)) \
                                          else '{}' end \
         from generate_series(1, 200) as i",
    );
    let server = Server::start(&database, &[]);
    until("the server has read its tail", || server.log().iter().any(|line| line.contains("live")).then_some(()));
    let mut stream = server.stream_from(&key, 0);
    stream.connected();
    stream.signals(200);
    let rows = rows_read(server, &database);
    assert!(rows < 4_000, "{rows} rows and index entries were read");
}

#[test]
fn a_large_row_is_in_memory_once_however_many_clients_stall_on_it() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let row = "insert into stock_market.signal (symbol, action, side, meta) \
               select 'S', 'entry', 'BUY', jsonb_build_object('filler', repeat(md5('x'), 480000))";
    // Behind one of 15 MB so many events that it is not in memory after the start.
    database.sql(&format!("{}; {row}", insert_signals(3)));
    database.insert(20_000);
    let server = Server::ready(&database, &["--max-clients-per-key", "100", "--ops-listen", "127.0.0.1:0"]);
    let stalled: Vec<Stream> =
        (0..24).map(|_| Request::feed(&key).receive_buffer(4096).last_event_id(0).open(server.address())).collect();
    until("each stands before the large row", || {
        let status = server.status();
        let clients = status["clients"].as_array().unwrap();
        let stands = |client: &serde_json::Value| client["cursor"].as_i64() == Some(3);
        let is_read = status["replay"]["in_use"] == 0 && status["replay"]["waiting"] == 0;
        (is_read && clients.len() == stalled.len() && clients.iter().all(stands)).then_some(())
    });
    // Four at a time read it, and each reading costs a few times its size.
    let peak = peak_mib(&server);
    assert!(peak < 350, "{peak} MiB");
    drop(stalled);
}

#[test]
fn a_new_stream_does_not_wait_for_idle_connections_that_died_silently() {
    let database = Database::migrated();
    database.insert(5);
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--replay-window", "1h", "--heartbeat", "30s"]);
    let replays = "select pid from pg_stat_activity where application_name = 'signal-feed replay' and datname = current_database()";
    let idle = until("a connection for replay", || {
        server.stream_from(&key, 0).connected();
        let rows = database.connect().query(replays, &[]).unwrap();
        (!rows.is_empty()).then(|| rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>())
    });
    let signal = |signal| {
        idle.iter().for_each(|pid| {
            let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(*pid).unwrap(), signal);
        });
    };
    signal(Signal::STOP);
    // What was read of the window counts for a second.
    std::thread::sleep(Duration::from_millis(1100));
    let began = Instant::now();
    let mut stream = server.stream_from(&key, 0);
    stream.connected();
    let waited = began.elapsed();
    let signals = stream.signals(5);
    signal(Signal::CONT);
    assert!(waited < Duration::from_secs(4), "{waited:?}");
    assert_eq!(signals[0].prev_seq(), Some(0));
}

#[test]
fn a_failed_first_read_does_not_make_old_keys_new() {
    let database = Database::migrated();
    database.insert(500);
    database.log_row(501, "clock_timestamp()", "null");
    let key = database.mint("bot");
    // To read that row's reason the server needs this table.
    let mut blocker = database.connect();
    blocker.batch_execute("begin; lock table stock_market.signal_feed_quarantine in access exclusive mode").unwrap();
    let server = Server::start(&database, OPS);
    server.wait_log(&["read the log"]);
    blocker.batch_execute("rollback").unwrap();
    server.wait_ready();
    let mut stream = server.stream_from(&key, 498);
    stream.connected();
    assert_eq!(stream.signals(2)[0].prev_seq(), Some(498));
    stream.system("quarantined");
    assert_eq!(metric(&server, "signal_feed_events_total"), 0.0, "nothing was broadcast as new");
}

#[test]
fn a_commit_larger_than_the_queue_is_not_counted_as_dropped() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--ops-listen", "127.0.0.1:0", "--queue-capacity", "100"]);
    let mut stream = server.stream(&key);
    stream.connected();
    std::thread::scope(|scope| {
        scope.spawn(|| database.insert(5_000));
        stream.signals(5_000);
    });
    assert_eq!(metric(&server, "signal_feed_dropped_events_total"), 0.0);
    assert_eq!(server.status()["clients"][0]["dropped"], 0);
    assert!(!server.log().iter().any(|line| line.contains("dropped ")));
}

#[test]
fn a_clock_that_leaps_forward_and_back_leaves_nothing_behind() {
    let database = Database::migrated();
    database.log_rows(
        "select i, clock_timestamp() - interval '1 hour', 'INSERT', '{\"symbol\": \"S\"}' from generate_series(1, 10) as i",
    );
    let key = database.mint("bot");
    database.sql("create table public.leap (by interval not null)");
    fake_clock(&database, "return timeofday()::timestamptz + (select coalesce(max(by), ''0'') from public.leap);");
    let server = Server::ready(&database, &["--replay-window", "3h"]);
    assert_eq!(server.stream_from(&key, 0).connected().number("earliest"), 1);
    let earliest = |wanted: i64| {
        until("the leap is noticed", || {
            (server.stream_from(&key, 0).connected().number("earliest") == wanted).then_some(())
        });
    };
    database.sql("insert into public.leap values ('5 hours')");
    earliest(11);
    database.sql("delete from public.leap");
    earliest(1);
    let mut stream = server.stream_from(&key, 0);
    stream.connected();
    stream.signals(10);
}

#[test]
fn nothing_goes_out_early_to_a_delayed_key_however_slowly_the_database_answers() {
    let database = Database::migrated();
    let late = database.mint_with("late", &["--delay", "3s"]);
    // Every second answer takes a second and a half, and tells the time at its end.
    database.sql("create sequence public.turn; grant usage on sequence public.turn to public");
    fake_clock(
        &database,
        "if nextval(''public.turn'') % 2 = 0 then perform pg_sleep(1.5); end if; return timeofday()::timestamptz;",
    );
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&late);
    stream.connected();
    for _ in 0..5 {
        database.insert(1);
        let seq = stream.signal().number("feed_seq");
        let early = database.number(&format!(
            "select count(*) from stock_market.signal_feed_event \
             where feed_seq = {seq} and event_time + interval '3 seconds' > timeofday()::timestamptz"
        ));
        assert_eq!(early, 0, "event {seq}");
    }
}

#[test]
fn rows_that_replace_others_after_a_restore_reach_a_delayed_key_when_due() {
    let database = Database::migrated();
    let late = database.mint_with("late", &["--delay", "4s"]);
    let server = Server::ready(&database, OPS);
    let mut stream = server.stream(&late);
    stream.connected();
    // Due in two seconds.
    database.log_rows(
        "select i, clock_timestamp() - interval '2 seconds', 'INSERT', '{\"symbol\": \"old\"}' \
         from generate_series(1, 3) as i",
    );
    until("they are in memory", || (server.status()["head"] == 3).then_some(()));
    // The same numbers, due two seconds later.
    database.sql(
        "begin; alter table stock_market.signal_feed_event disable trigger user; \
         delete from stock_market.signal_feed_event; \
         insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal) \
         select i, clock_timestamp(), 'INSERT', '{\"symbol\": \"restored\"}' from generate_series(1, 3) as i; \
         alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_row; \
         alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_statement; \
         notify signal_feed, '1'; commit",
    );
    let signal = stream.signal();
    let early = database.number(
        "select count(*) from stock_market.signal_feed_event \
         where feed_seq = 1 and event_time + interval '4 seconds' > clock_timestamp()",
    );
    assert_eq!((signal.symbol(), early), ("restored", 0));
}

/// A stream that waits for a page of the log, which is locked until the returned session ends.
fn waiting(database: &Database, server: &Server, key: &str) -> (Stream, postgres::Client) {
    let mut stream = Request::feed(key).receive_buffer(2048).last_event_id(0).open(server.address());
    stream.connected();
    let mut blocker = database.connect();
    blocker.batch_execute("begin; lock table stock_market.signal_feed_event in access exclusive mode").unwrap();
    (stream, blocker)
}

/// Reads on until the stream is silent, and returns the first block after the events.
fn block_after_events(stream: &mut Stream) -> (bool, Option<crate::support::sse::Block>) {
    let mut pinged = false;
    let end = Instant::now() + PATIENCE;
    loop {
        match stream.try_item(end.saturating_duration_since(Instant::now())) {
            Ok(Item::Ping) => pinged = true,
            Ok(Item::Block(block)) if block.event == "signal" || block.reason() == Some("degraded") => {}
            Ok(Item::Block(block)) => return (pinged, Some(block)),
            Err(_) => return (pinged, None),
        }
    }
}

/// A log of so many rows of about a kilobyte: more than the tail holds.
fn long_log(database: &Database) {
    database.log_rows(
        "select i, clock_timestamp(), 'INSERT', jsonb_build_object('symbol', 'S', 'filler', \
         (select string_agg(md5((i * j)::text), '') from generate_series(1, 30) as j)) from generate_series(1, 30000) as i",
    );
}

#[test]
fn a_stream_that_waits_for_the_database_pings_and_ends_with_its_key() {
    let database = Database::migrated();
    long_log(&database);
    let key = database.mint_with("bot", &["--expires-in", "12s"]);
    let minted = Instant::now();
    let server = Server::ready(&database, &["--heartbeat", "1s"]);
    let (mut stream, _blocker) = waiting(&database, &server, &key);
    let (pinged, closing) = block_after_events(&mut stream);
    assert_eq!(closing.unwrap().data["cause"], "key_expired");
    assert!(pinged, "its heartbeat goes on");
    assert!(minted.elapsed() < Duration::from_secs(15), "{:?}", minted.elapsed());
}

#[test]
fn sigterm_sends_closing_to_streams_that_wait_for_the_database() {
    let database = Database::migrated();
    long_log(&database);
    let key = database.mint("bot");
    // More streams than replay connections.
    let mut server = Server::ready(&database, &["--heartbeat", "1s", "--replay-connections", "2"]);
    let mut streams: Vec<Stream> = (0..7)
        .map(|_| {
            let mut stream = Request::feed(&key).receive_buffer(2048).last_event_id(0).open(server.address());
            stream.connected();
            stream
        })
        .collect();
    let (stream, _blocker) = waiting(&database, &server, &key);
    streams.push(stream);
    std::thread::scope(|scope| {
        let readers: Vec<_> = streams.iter_mut().map(|stream| scope.spawn(|| block_after_events(stream))).collect();
        server.wait_log(&["degraded"]);
        server.signal(Signal::TERM);
        for reader in readers {
            assert_eq!(reader.join().unwrap().1.unwrap().data["cause"], "shutdown");
        }
    });
    assert_eq!(server.wait_end(PATIENCE).code(), Some(0));
}

#[test]
fn connected_is_the_first_block_also_if_the_database_does_not_answer() {
    let database = Database::migrated();
    database.insert(3);
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--heartbeat", "1s"]);
    let mut blocker = database.connect();
    blocker.batch_execute("begin; lock table stock_market.signal_feed_event in access exclusive mode").unwrap();
    let mut stream = Request::feed(&key).open(server.address());
    let first = stream.try_item(PATIENCE).unwrap();
    assert!(matches!(&first, Item::Block(block) if block.reason() == Some("connected")), "{first:?}");
    assert!(matches!(stream.try_item(PATIENCE).unwrap(), Item::Ping), "then its heartbeat");
    blocker.batch_execute("rollback").unwrap();
    database.insert(1);
    until("the event", || (stream.block().feed_seq() == Some(4)).then_some(()));
}

#[test]
fn disconnected_clients_leave_the_status_within_three_seconds() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, OPS);
    let mut streams: Vec<Stream> = (0..5).map(|_| server.stream(&key)).collect();
    for stream in &mut streams {
        stream.connected();
    }
    assert_eq!(server.status()["clients"].as_array().unwrap().len(), 5);
    drop(streams);
    let left = Instant::now();
    until("they are not listed", || server.status()["clients"].as_array().unwrap().is_empty().then_some(()));
    assert!(left.elapsed() < Duration::from_secs(3), "{:?}", left.elapsed());
    assert_eq!(metric(&server, "signal_feed_clients"), 0.0);
    until("their threads are free", || (server.client_threads() == 0).then_some(()));
}

#[test]
fn streams_that_come_and_go_while_the_log_is_replaced_cause_no_hang() {
    let database = Database::migrated();
    database.insert(20);
    let (key, late) = (database.mint("bot"), database.mint_with("late", &["--delay", "1s"]));
    let mut server = Server::ready(&database, &[]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for key in [&key, &late, &key, &late] {
            let (server, is_over) = (&server, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    for cursor in [0, 5, 15] {
                        server.stream_from(key, cursor).connected();
                    }
                }
            });
        }
        for round in 0..12 {
            database.sql(&format!(
                "begin; alter table stock_market.signal_feed_event disable trigger user; \
                 delete from stock_market.signal_feed_event; \
                 insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal) \
                 select i, clock_timestamp() - interval '{round} minutes', 'INSERT', '{{\"symbol\": \"S\"}}' \
                 from generate_series(1, {}) as i; \
                 alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_row; \
                 alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_statement; \
                 notify signal_feed, '1'; commit",
                20 + round % 3
            ));
            database.sql(&insert_signals(2));
            std::thread::sleep(Duration::from_millis(300));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let mut fresh = server.stream(&key);
    fresh.connected();
    let mut delayed = server.stream(&late);
    delayed.connected();
    database.insert(1);
    fresh.signal();
    until("the delayed stream goes on", || (delayed.block().event == "signal").then_some(()));
    server.signal(Signal::TERM);
    assert_eq!(server.wait_end(Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn maintenance_and_changes_of_the_tables_interrupt_no_stream() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    for change in [
        "vacuum full stock_market.signal_feed_event",
        "cluster stock_market.signal_feed_event using signal_feed_event_pkey",
        "reindex table stock_market.signal_feed_event",
        "vacuum full pg_class",
        "begin; alter table stock_market.signal rename to away; alter table stock_market.away rename to signal; commit",
        "alter table stock_market.signal add column more int",
        "alter table stock_market.signal drop column more",
        "alter table stock_market.signal alter column symbol type varchar(300)",
        "truncate stock_market.signal",
    ] {
        database.insert(3);
        database.sql(change);
        database.insert(3);
        let signals = stream.signals(6);
        assert_eq!(signals.last().unwrap().feed_seq(), Some(database.head()), "{change}");
    }
}
