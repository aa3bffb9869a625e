//! A feed on a hot standby: it polls, writes nothing, waits for what is not replayed yet, and becomes a primary's feed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use signal_feed::demo::postgres::PrivatePostgres;

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
        // Also when the work panics: the scope would wait for ever.
        let _over = Over(&over);
        work()
    })
}

#[test]
fn a_feed_on_a_standby_delivers_what_its_primary_commits_and_asks_little_when_nothing_does() {
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
    let doctor = doctor(&standby, &database);
    assert!(doctor.contains("a hot standby, which streams; it has replayed all"), "{doctor}");
    let is_asked = |check: &str| doctor.lines().any(|line| line.split_whitespace().nth(1) == Some(check));
    assert!(is_asked("standby") && !is_asked("listen") && !is_asked("cluster"), "{doctor}");
    // Quiet: the polls have grown rare. (The statistics themselves are some transactions.)
    let transactions = || {
        let query = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
        standby.number(&database, query)
    };
    let idle = "select (clock_timestamp() - pg_last_xact_replay_timestamp() > interval '6 seconds')::int::bigint";
    until("nothing has been committed for a while", || (standby.number(&database, idle) == 1).then_some(()));
    let (before, began) = (transactions(), Instant::now());
    until("some seconds have gone by", || (began.elapsed() > Duration::from_secs(4)).then_some(()));
    let asked = transactions() - before;
    let a_second = asked as f64 / began.elapsed().as_secs_f64();
    assert!(asked > 0 && a_second < 20.0, "{a_second} transactions a second");
    // And what comes then comes soon.
    database.insert(1);
    stream.signal();
}

#[test]
fn an_idle_primary_is_not_a_silent_one() {
    let (primary, database) = primary();
    let key = database.mint("bot");
    let standby = Standby::start(&primary, &[]);
    let server = on_standby(&standby, &database, &["--heartbeat", "1s"]);
    let mut stream = open(&server, &key);
    database.insert(1);
    stream.signal();
    // Nobody writes anything, and there is no feed on the primary, whose probes would.
    let idle = "select (clock_timestamp() - pg_last_xact_replay_timestamp() > interval '12 seconds')::int::bigint";
    until("nothing has been committed for 12 s", || (standby.number(&database, idle) == 1).then_some(()));
    assert!(server.is_ready());
    database.insert(1);
    // A word of an outage would come first.
    stream.signal();
    assert!(!server.stop().iter().any(|line| line.contains("degraded")));
}

#[test]
fn with_default_settings_the_first_silence_degrades_and_an_idle_primary_is_known_from_then_on() {
    let (primary, database) = primary();
    let key = database.mint("bot");
    let standby = Standby::start(&primary, &[("wal_receiver_timeout", "60s")]);
    let server = on_standby(&standby, &database, &[]);
    let mut stream = open(&server, &key);
    database.insert(1);
    stream.signal();
    let frozen = Frozen::new(&primary);
    let degraded = stream.next_block(PATIENCE);
    drop(frozen);
    assert_eq!(degraded.unwrap().reason(), Some("degraded"));
    database.insert(1);
    let mut seen = [stream.block().reason().map(str::to_owned), stream.block().reason().map(str::to_owned)];
    seen.sort();
    assert_eq!(seen, [None, Some("recovered".to_owned())]);
    let idle = "select (clock_timestamp() - pg_last_xact_replay_timestamp() > interval '13 seconds')::int::bigint";
    until("nothing has been committed for 13 s", || (standby.number(&database, idle) == 1).then_some(()));
    assert!(server.is_ready());
    database.insert(1);
    stream.signal();
}

#[test]
fn a_feed_on_the_primary_keeps_a_standby_with_default_settings_informed() {
    let (primary, database) = primary();
    let standby = Standby::start(&primary, &[("wal_receiver_timeout", "60s")]);
    let _on_primary = Server::ready(&database, &[]);
    let server = on_standby(&standby, &database, &[]);
    server.wait_log(&["WARN", "wal_receiver_timeout", "8s"]);
    assert!(doctor(&standby, &database).contains("set wal_receiver_timeout = 8s"));
    // Nobody else writes: its probes alone prove up to when the standby is complete.
    wrong_key_is_refused(&server);
    // Where it cannot be seen when the primary was last heard, events come all the same, and nothing final is said.
    let key = database.mint("bot");
    database.sql("revoke pg_read_all_stats from signal_feed_owner");
    standby.wait_replayed(&database);
    let blind = on_standby(&standby, &database, &["--degraded-hold", "1s"]);
    blind.wait_log(&["WARN", "grant pg_read_all_stats to signal_feed_owner"]);
    assert!(doctor(&standby, &database).contains("grant pg_read_all_stats"));
    assert_eq!(Request::feed("sf_wrong").send(blind.address()).refusal(), (503, "degraded".into()));
    let mut stream = open(&blind, &key);
    database.insert(1);
    stream.signal();
}

/// A wrong key is told so as soon as that is proven, and before that nothing that is final.
fn wrong_key_is_refused(server: &Server) {
    until("a wrong key is known to be wrong", || {
        let refusal = Request::feed("sf_wrong").send(server.address()).refusal();
        assert!(refusal == (401, "unknown_key".into()) || refusal == (503, "degraded".into()), "{refusal:?}");
        (refusal.0 == 401).then_some(())
    });
}

/// What doctor says of a standby that is well.
fn doctor(standby: &Standby, database: &Database) -> String {
    signal_feed(&standby.url(database), &["doctor"]).ok()
}

#[test]
fn a_primary_that_is_silent_or_gone_degrades_the_feed_on_its_standby() {
    let (mut primary, database) = primary();
    let key = database.mint("bot");
    let standby = Standby::start(&primary, &[]);
    let server = on_standby(&standby, &database, &["--degraded-hold", "1s"]);
    let mut stream = open(&server, &key);
    database.insert(1);
    stream.signal();
    let began = Instant::now();
    let frozen = Frozen::new(&primary);
    let degraded = stream.next_block(PATIENCE);
    let noticed = began.elapsed();
    let refused = [Request::feed(&key), Request::feed("sf_wrong")].map(|request| request.send(server.address()));
    let (ready, healthy) = (server.is_ready(), Request::get("/healthz").send(server.address()).status);
    drop(frozen);
    assert_eq!(degraded.unwrap().reason(), Some("degraded"));
    assert!(noticed < Duration::from_secs(12), "{noticed:?}");
    assert_eq!(refused.map(|answer| answer.refusal()), [(503, "degraded".into()), (503, "degraded".into())]);
    assert_eq!((ready, healthy), (false, 200));
    server.wait_log(&["ERROR", "hear from the primary", "WAL receiver"]);
    stream.system("recovered");
    database.insert(1);
    stream.signal();
    let stopped = Instant::now();
    primary.stop(false).unwrap();
    stream.system("degraded");
    assert!(stopped.elapsed() < Duration::from_secs(8), "{:?}", stopped.elapsed());
    let doctor = signal_feed(&standby.url(&database), &["doctor"]).failed(1);
    assert!(doctor.contains("standby"), "{doctor}");
    primary.start_again().unwrap();
    stream.system("recovered");
    database.insert(1);
    stream.signal();
}

#[test]
fn a_key_that_is_not_replayed_yet_is_never_called_unknown() {
    let (primary, database) = primary();
    let old = database.mint("old");
    let standby = Standby::start(&primary, &[]);
    let server = on_standby(&standby, &database, &["--degraded-hold", "6s"]);
    // An idle primary proves it by its answers alone, of which one comes every 4 s: within a hold.
    wrong_key_is_refused(&server);
    let mut stream = open(&server, &old);
    standby.sql(&database, "select pg_wal_replay_pause()");
    until("replay is paused", || {
        let query = "select (pg_get_wal_replay_pause_state() = 'paused')::int::bigint";
        (standby.number(&database, query) == 1).then_some(())
    });
    let new = database.mint("new");
    let asked = Instant::now();
    let answer = Request::feed(&new).send(server.address());
    assert!(asked.elapsed() > Duration::from_millis(5_900), "held for {:?}", asked.elapsed());
    assert_eq!(answer.refusal(), (503, "degraded".into()));
    assert!(answer.field("Retry-After").is_some());
    // A client that has left is not held on for.
    let held = Request::feed(&new).post(server.address());
    // It is the same for one whom nobody knows, and with a primary that goes on: nothing of it is replayed.
    meanwhile(|| database.insert(1), || assert_eq!(Request::feed("sf_wrong").send(server.address()).refusal().0, 503));
    // Known keys and open streams are as ever, and the operator is told how far behind it is.
    let mut known = open(&server, &old);
    let lag = || server.status()["standby_lag_seconds"].as_f64().unwrap();
    until("it is known to be behind", || (lag() > 1.0).then_some(()));
    assert!(signal_feed(&standby.url(&database), &["doctor"]).ok().contains("it is behind"));
    let late = Request::feed(&new).post(server.address());
    standby.sql(&database, "select pg_wal_replay_resume()");
    late.stream(PATIENCE).connected();
    drop(held);
    assert_eq!(known.signal().feed_seq(), Some(1));
    stream.signal();
    until("it is not behind any more", || (lag() == 0.0).then_some(()));
    // With commits to be replayed, a wrong key is known as such soon.
    meanwhile(|| database.insert(1), || wrong_key_is_refused(&server));
    // A revocation reaches it as replication does.
    let mut revoked = open(&server, &new);
    let revoke = Instant::now();
    signal_feed(&database.url, &["key", "revoke", "new"]).ok();
    loop {
        let block = revoked.block();
        if block.reason() == Some("closing") {
            assert_eq!(block.data["cause"], "key_revoked");
            break;
        }
    }
    assert!(revoke.elapsed() < Duration::from_secs(3), "{:?}", revoke.elapsed());
    assert_eq!(Request::feed(&new).send(server.address()).refusal(), (403, "revoked_key".into()));
}

#[test]
fn a_cursor_ahead_of_a_standby_waits_and_one_from_another_history_does_not() {
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
    // For far longer than a primary gives it.
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
    // Capture is looked at there too, by its triggers.
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
    for figure in ["signal_feed_unrecorded_quarantined_events_total 1\n", "signal_feed_unrecorded_key_uses_total 1\n"] {
        until(&format!("{figure:?} is told"), || {
            let metrics = Request::get("/metrics").host("localhost").send(server.ops_address()).body;
            String::from_utf8(metrics).unwrap().contains(figure).then_some(())
        });
    }
    assert_eq!(server.status()["role"], "standby");
    standby.wait_replayed(&database);
    primary.stop(false).unwrap();
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
    // What nobody can have seen is told now.
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
fn a_feed_that_lands_on_a_standby_waits_for_what_it_has_seen_already() {
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
    // Here event 5 is not replayed yet, and neither who has it nor who asks for it is told of another history.
    let mut back = server.stream_from(&key, 5);
    back.connected();
    let mut older = server.stream_from(&key, 1);
    older.connected();
    assert_eq!(older.signals(4)[3].feed_seq(), Some(5), "from memory");
    admin.batch_execute(&format!("alter database {name} allow_connections true")).unwrap();
    database.insert(1);
    standby.sql(&database, "select pg_wal_replay_resume()");
    for stream in [&mut stream, &mut back, &mut older] {
        // Its sessions were ended one by one: it may have said more than once that the database was away.
        let is_notice = |block: &Block| matches!(block.reason(), Some("degraded" | "recovered"));
        let signal = std::iter::repeat_with(|| stream.block()).find(|block| !is_notice(block)).unwrap();
        assert_eq!((signal.prev_seq(), signal.feed_seq()), (Some(5), Some(6)));
    }
}

#[test]
fn what_a_standby_cancels_for_its_replay_is_tried_again_and_is_nobodys_fault() {
    let (primary, database) = primary();
    let key = database.mint("bot");
    // Nothing that is to be replayed waits for a query.
    let settings = [("max_standby_streaming_delay", "0"), ("hot_standby_feedback", "off")];
    let standby = Standby::start(&primary, &settings);
    let server = on_standby(&standby, &database, &["--log-level", "debug"]);
    let mut live = open(&server, &key);
    // A lock that nobody can share is replayed too: whoever reads the log at that moment is cancelled.
    let lock = "begin; lock table stock_market.signal_feed_event in access exclusive mode; commit; ";
    let locks = format!("{}; {lock}", insert_signals(1)).repeat(20);
    let mut seen = 0;
    meanwhile(
        || database.sql(&locks),
        || {
            until("the reader's own queries were cancelled", || {
                seen += live.signals(10).len();
                let is_it = |line: &&String| line.contains("read the log: ") && line.contains("conflict with recovery");
                (server.log().iter().filter(is_it).count() >= 2).then_some(())
            });
        },
    );
    live.signals(usize::try_from(database.head()).unwrap() - seen);
    let log = server.stop();
    for word in ["quarantined", "degraded"] {
        assert!(!log.iter().any(|line| line.contains(word)), "{word}: {log:?}");
    }
}
