//! A feed on a hot standby: it polls, writes nothing, waits for events that are not replayed yet, and follows a
//! promotion.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::cluster::Cluster as _;
use crate::support::database::{Database, Frozen, insert_signals};
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::sse::{Block, Request, Stream};
use crate::support::standby::Standby;
use crate::support::wait::{PATIENCE, until};

/// A primary with the feed installed, and a login that has the server's rights and no more.
fn primary() -> (PrivatePostgres, Database) {
    let primary = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&primary);
    database.sql("create role feed login in role signal_feed_server");
    (primary, database)
}

fn as_feed(url: &str) -> String {
    url.replace("user=postgres", "user=feed")
}

/// A feed on the standby.
fn on_standby(standby: &Standby, database: &Database, options: &[&str]) -> Server {
    let mut command = Server::command(&as_feed(&standby.url(database)), "127.0.0.1:0");
    command.args(["--ops-listen", "127.0.0.1:0"]).args(options);
    let server = Server::spawn(command);
    server.wait_ready();
    server
}

fn open(server: &Server, key: &str) -> Stream {
    let mut stream = server.stream(key);
    stream.connected();
    stream
}

/// Does something again and again while `work` runs.
fn meanwhile<T>(again: impl Fn() + Sync, work: impl FnOnce() -> T) -> T {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                again();
            }
        });
        // Also if the work panics: otherwise the scope would wait for ever.
        let _over = Over(&over);
        work()
    })
}

#[test]
fn a_feed_on_a_standby_delivers_what_its_primary_commits() {
    let (primary, database) = primary();
    let key = database.mint("bot");
    let late = database.mint_with("late", &["--delay", "1s"]);
    let standby = Standby::start(&primary, &[]);
    let server = on_standby(&standby, &database, &[]);
    server.wait_log(&["INFO", "hot standby"]);
    let mut stream = open(&server, &key);
    let mut delayed = open(&server, &late);
    for _ in 0..20 {
        database.insert(1);
    }
    assert_eq!(stream.signals(20)[0].prev_seq(), Some(0));
    assert_eq!(delayed.signals(20)[0].prev_seq(), Some(0));
    let doctor = signal_feed(&standby.url(&database), &["doctor"]).ok();
    assert!(doctor.contains("a hot standby that streams from its primary"), "{doctor}");
    let is_asked = |check: &str| doctor.lines().any(|line| line.split_whitespace().nth(1) == Some(check));
    assert!(is_asked("standby") && !is_asked("listen") && !is_asked("cluster"), "{doctor}");
}

#[test]
fn a_feed_is_degraded_while_its_standby_does_not_stream() {
    let (primary, database) = primary();
    let key = database.mint("bot");
    let standby = Standby::start(&primary, &[]);
    let server = on_standby(&standby, &database, &["--degraded-hold", "1s"]);
    let mut stream = open(&server, &key);
    database.insert(1);
    stream.signal();
    // The WAL receiver gives a silent primary up after wal_receiver_timeout.
    let frozen = Frozen::new(&primary);
    let degraded = stream.next_block(PATIENCE);
    let refused = [Request::feed(&key), Request::feed("sf_wrong")].map(|request| request.send(server.address()));
    let (ready, healthy) = (server.is_ready(), Request::get("/healthz").send(server.address()).status);
    drop(frozen);
    assert_eq!(degraded.unwrap().reason(), Some("degraded"));
    assert_eq!(refused.map(|answer| answer.refusal()), [(503, "degraded".into()), (503, "degraded".into())]);
    assert_eq!((ready, healthy), (false, 200));
    server.wait_log(&["ERROR", "the standby does not stream from a primary"]);
    stream.system("recovered");
    database.insert(1);
    stream.signal();
    primary.stop(false);
    stream.system("degraded");
    let doctor = signal_feed(&standby.url(&database), &["doctor"]).failed(1);
    assert!(doctor.contains("standby"), "{doctor}");
    primary.start_again();
    stream.system("recovered");
    database.insert(1);
    stream.signal();
}

#[test]
fn a_key_that_a_standby_does_not_know_is_never_called_unknown() {
    let (primary, database) = primary();
    let old = database.mint("old");
    let standby = Standby::start(&primary, &[]);
    let server = on_standby(&standby, &database, &[]);
    let answer = Request::feed("sf_wrong").send(server.address());
    assert_eq!(answer.refusal(), (503, "degraded".into()));
    assert!(answer.field("Retry-After").is_some());
    standby.sql(&database, "select pg_wal_replay_pause()");
    until("replay is paused", || {
        let query = "select (pg_get_wal_replay_pause_state() = 'paused')::int::bigint";
        (standby.number(&database, query) == 1).then_some(())
    });
    let new = database.mint("new");
    database.insert(1);
    let held = Request::feed(&new).last_event_id(0).post(server.address());
    // A known key still opens the feed, and the operator sees the lag.
    let mut known = open(&server, &old);
    let lag = || server.status()["standby_lag_seconds"].as_f64().unwrap();
    until("the lag is seen", || (lag() > 1.0).then_some(()));
    standby.sql(&database, "select pg_wal_replay_resume()");
    let mut revoked = held.stream(PATIENCE);
    revoked.connected();
    revoked.signal();
    known.signal();
    until("the lag is gone", || (lag() == 0.0).then_some(()));
    signal_feed(&database.url, &["key", "revoke", "new"]).ok();
    revoked.closing("key_revoked");
    assert_eq!(Request::feed(&new).send(server.address()).refusal(), (403, "revoked_key".into()));
}

#[test]
fn a_cursor_ahead_of_a_standby_waits_and_one_from_another_log_does_not() {
    let (primary, database) = primary();
    let key = database.mint("bot");
    let late = database.mint_with("late", &["--delay", "1s"]);
    database.insert(3);
    let standby = Standby::start(&primary, &[]);
    let server = on_standby(&standby, &database, &["--heartbeat", "1s"]);
    let mut ahead = server.stream_from(&key, 10);
    let connected = ahead.connected();
    assert_eq!((connected.number("cursor"), connected.number("head")), (10, 3));
    let mut late = server.stream_from(&late, 10);
    late.connected();
    let target = "/feed?cursor=2&cursor_time=2020-01-01T00:00:00Z";
    let mut other = Request::feed_at(target, &key).open(server.address());
    other.connected();
    assert_eq!(other.system("history_rewritten").number("cursor"), 2);
    // For far longer than a primary would wait.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(8) {
        assert!(matches!(ahead.try_item(PATIENCE), Ok(crate::support::sse::Item::Ping)));
        assert!(matches!(late.try_item(PATIENCE), Ok(crate::support::sse::Item::Ping)));
    }
    // What it gets then is what follows its cursor.
    database.insert(9);
    for stream in [&mut ahead, &mut late] {
        let signals = stream.signals(2);
        assert_eq!((signals[0].prev_seq(), signals[1].feed_seq()), (Some(10), Some(12)));
    }
    // A range that can never come.
    signal_feed(&database.url, &["restored", "--skip", "100"]).ok();
    standby.wait_replayed(&database);
    let skipped = until("the range is known", || {
        let asked = Instant::now();
        let mut stream = server.stream_from(&key, 50);
        stream.connected();
        (stream.block().reason() == Some("history_rewritten")).then(|| asked.elapsed())
    });
    assert!(skipped < Duration::from_secs(4), "{skipped:?}");
    // Capture is checked there too, by its triggers.
    database.sql("alter table stock_market.signal disable trigger \"!signal_feed_capture\"");
    server.wait_log(&["ERROR", "capture is off", "disabled"]);
}

#[test]
fn a_promoted_standby_is_a_primary_to_the_same_server() {
    let (primary, database) = primary();
    let key = database.mint("bot");
    let standby = Standby::start(&primary, &[]);
    let server = on_standby(&standby, &database, &[]);
    let mut stream = open(&server, &key);
    database.insert(1);
    database.log_row(2, "now()", "null");
    stream.signal();
    stream.system("quarantined");
    let mut ahead = server.stream_from(&key, 100);
    ahead.connected();
    server.wait_log(&["ERROR", "event 2 is quarantined"]);
    let recorded = "select count(*) from stock_market.signal_feed_quarantine";
    let used = "select count(*) from stock_market.signal_feed_api_key where last_used_at is not null";
    assert_eq!((standby.number(&database, recorded), standby.number(&database, used)), (0, 0));
    assert_eq!(server.status()["role"], "standby");
    standby.wait_replayed(&database);
    primary.stop(false);
    stream.system("degraded");
    standby.promote();
    stream.system("recovered");
    standby.sql(&database, &insert_signals(2));
    assert_eq!(stream.signals(2)[0].prev_seq(), Some(2));
    let listening =
        "select count(*) from pg_stat_activity where application_name = 'signal-feed listen' and query like 'listen %'";
    until("notifications are listened to", || (standby.number(&database, listening) == 1).then_some(()));
    until("what waited is recorded", || (standby.number(&database, recorded) == 1).then_some(()));
    open(&server, &key);
    until("a use is recorded", || (standby.number(&database, used) == 1).then_some(()));
    // A number that never existed gets history_rewritten now.
    for reason in ["degraded", "recovered"] {
        ahead.system(reason);
    }
    assert_eq!(ahead.system("history_rewritten").number("cursor"), 100);
    server.wait_log(&["WARN", "primary now"]);
    let status = server.status();
    assert_eq!((&status["role"], &status["standby_lag_seconds"]), (&"primary".into(), &serde_json::Value::Null));
    server.wait_log(&["WARN", "timeline", "restored --nothing-lost"]);
}

#[test]
fn a_feed_that_moves_to_a_standby_waits_for_events_that_it_has_already_seen() {
    let (primary, database) = primary();
    let key = database.mint("bot");
    let standby = Standby::start(&primary, &[]);
    let server = Server::spawn(Server::command(&standby.both(&database, "any"), "127.0.0.1:0"));
    server.wait_ready();
    let mut stream = open(&server, &key);
    database.insert(3);
    stream.signals(3);
    standby.wait_replayed(&database);
    standby.sql(&database, "select pg_wal_replay_pause()");
    database.insert(2);
    stream.signals(2);
    // The primary takes no connections any more, which its standby has not replayed.
    let mut admin = Client::connect(&primary.url("postgres"), NoTls).unwrap();
    let name = &database.name;
    admin.batch_execute(&format!("alter database {name} allow_connections false")).unwrap();
    let throw_out = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = $1";
    admin.query(throw_out, &[&name.as_str()]).unwrap();
    server.wait_log(&["INFO", "hot standby"]);
    // Event 5 is not replayed here yet, and no client that has it or asks for it gets history_rewritten.
    let mut back = server.stream_from(&key, 5);
    back.connected();
    let mut older = server.stream_from(&key, 1);
    older.connected();
    assert_eq!(older.signals(4)[3].feed_seq(), Some(5), "from memory");
    admin.batch_execute(&format!("alter database {name} allow_connections true")).unwrap();
    database.insert(1);
    standby.sql(&database, "select pg_wal_replay_resume()");
    for stream in [&mut stream, &mut back, &mut older] {
        // Its sessions ended one by one: it may have reported more than one outage.
        let is_notice = |block: &Block| matches!(block.reason(), Some("degraded" | "recovered"));
        let signal = std::iter::repeat_with(|| stream.block()).find(|block| !is_notice(block)).unwrap();
        assert_eq!((signal.prev_seq(), signal.feed_seq()), (Some(5), Some(6)));
    }
}

#[test]
fn queries_that_a_standby_cancels_for_its_replay_cost_no_event() {
    let (primary, database) = primary();
    let key = database.mint("bot");
    // Nothing that is to be replayed waits for a query.
    let settings = [("max_standby_streaming_delay", "0"), ("hot_standby_feedback", "off")];
    let standby = Standby::start(&primary, &settings);
    let server = on_standby(&standby, &database, &[]);
    let mut live = open(&server, &key);
    // An exclusive lock is replayed too: it cancels queries that read the log at that moment.
    let lock = "begin; lock table stock_market.signal_feed_event in access exclusive mode; commit; ";
    let locks = format!("{}; {lock}", insert_signals(1)).repeat(20);
    let mut seen = 0;
    // Each conflict costs a notice of the feed's health at most.
    let mut read_to = |last: i64| {
        while seen < last {
            let block = live.block();
            match block.reason() {
                Some(reason) => assert!(["degraded", "recovered"].contains(&reason), "{block:?}"),
                None => {
                    assert_eq!(block.prev_seq(), Some(seen));
                    seen = block.feed_seq().unwrap();
                }
            }
        }
    };
    meanwhile(
        || database.sql(&locks),
        || {
            until("the reader's own queries were cancelled", || {
                read_to(database.head() - 20);
                let is_it = |line: &&String| line.contains("read the log: ") && line.contains("conflict with recovery");
                (server.log().iter().filter(is_it).count() >= 2).then_some(())
            });
        },
    );
    read_to(database.head());
    assert!(!server.stop().iter().any(|line| line.contains("quarantined")));
}
