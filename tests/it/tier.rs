//! Keys with a delay: they get events late, and nothing they try reveals anything fresher.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::cluster::Cluster as _;
use crate::support::database::Database;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::sse::{Item, Request};
use crate::support::wait::{PATIENCE, until};

/// An SQL expression: so many seconds ago.
fn ago(seconds: i64) -> String {
    format!("clock_timestamp() - interval '{seconds} seconds'")
}

#[test]
fn a_delayed_key_sees_each_event_when_it_is_due_and_not_before() {
    let database = Database::migrated();
    let (late, live) = (database.mint_with("late", &["--delay", "2s"]), database.mint("live"));
    let server = Server::ready(&database, &[]);
    let mut late = server.stream(&late);
    let connected = late.connected();
    assert_eq!((connected.number("delay_seconds"), connected.number("head")), (2, 0));
    let mut live = server.stream(&live);
    live.connected();
    for _ in 0..3 {
        database.insert(2);
        let fresh = live.signals(2);
        let due = late.signals(2);
        let too_early = database.number(&format!(
            "select count(*) from stock_market.signal_feed_event \
             where feed_seq = {} and event_time + interval '2 seconds' > clock_timestamp()",
            due[0].number("feed_seq")
        ));
        assert_eq!(too_early, 0);
        assert_eq!(
            fresh.iter().map(|one| &one.data).collect::<Vec<_>>(),
            due.iter().map(|one| &one.data).collect::<Vec<_>>()
        );
    }
}

#[test]
fn what_a_delayed_key_can_replay_does_not_depend_on_an_event_that_is_not_due() {
    let database = Database::migrated();
    let key = database.mint_with("late", &["--delay", "1h"]);
    // The first was written under a wrong clock. Both are due: the second is, and everything before it.
    database.log_row(1, "clock_timestamp() + interval '5 days'", "'{\"symbol\": \"S\"}'");
    database.log_row(2, "clock_timestamp() - interval '4 days'", "'{\"symbol\": \"S\"}'");
    for is_fresh in [false, true] {
        if is_fresh {
            database.insert(1);
        }
        // A new server has not read the window yet.
        let server = Server::ready(&database, &[]);
        let mut stream = server.stream_from(&key, 0);
        let connected = stream.connected();
        assert_eq!((connected.number("head"), connected.number("earliest")), (2, 1), "{is_fresh}");
        assert_eq!(stream.signals(2)[1].feed_seq(), Some(2), "{is_fresh}");
    }
}

#[test]
fn a_delayed_stream_that_waits_for_its_head_gets_heartbeats_and_no_block_before_connected() {
    let database = Database::migrated();
    let key = database.mint_with("late", &["--delay", "1h"]);
    database.log_row(1, &ago(7200), "'{\"symbol\": \"S\"}'");
    // More than the server reads at its start, none of it due.
    database.insert(10_001);
    for stops in [false, true] {
        let server = Server::ready(&database, &["--heartbeat", "500ms"]);
        let mut blocker = database.connect();
        blocker.batch_execute("begin; lock table stock_market.signal_feed_event in access exclusive mode").unwrap();
        let mut stream = server.stream_from(&key, 0);
        for _ in 0..3 {
            assert_eq!(stream.try_item(PATIENCE), Ok(Item::Ping));
        }
        if stops {
            server.signal(Signal::TERM);
            let (blocks, _) = stream.rest(PATIENCE);
            assert_eq!(blocks, []);
            continue;
        }
        blocker.batch_execute("rollback").unwrap();
        assert_eq!(stream.connected().number("head"), 1);
        assert_eq!(stream.signal().feed_seq(), Some(1));
    }
}

#[test]
fn a_delay_of_less_than_a_second_is_shown() {
    let database = Database::migrated();
    let key = database.mint_with("late", &["--delay", "250ms"]);
    let server = Server::ready(&database, &["--ops-listen", "127.0.0.1:0"]);
    let mut stream = server.stream(&key);
    let listed: Value = serde_json::from_str(&signal_feed(&database.url, &["key", "list", "--json"]).ok()).unwrap();
    for told in [&stream.connected().data, &server.status()["clients"][0], &listed[0]] {
        assert_eq!(told["delay_seconds"], Value::from(0.25), "{told}");
    }
    let metrics =
        String::from_utf8(Request::get("/metrics").host("localhost").send(server.ops_address()).body).unwrap();
    assert!(metrics.contains("signal_feed_clients{delay_seconds=\"0.25\"} 1\n"), "{metrics}");
}

#[test]
fn a_delayed_key_replays_and_begins_in_its_own_past() {
    let database = Database::migrated();
    for (seq, seconds) in [(1, 7200), (2, 3700), (3, 3650), (4, 1800), (5, 1)] {
        database.log_row(seq, &ago(seconds), "'{}'");
    }
    let key = database.mint_with("late", &["--delay", "1h"]);
    let server = Server::ready(&database, &["--replay-window", "61m"]);
    // Its window reaches from two hours and a minute ago to one hour ago.
    let mut replay = server.stream_from(&key, 0);
    let connected = replay.connected();
    assert_eq!((connected.number("head"), connected.number("earliest")), (3, 1));
    let numbers: Vec<_> = replay.signals(3).iter().map(|signal| signal.number("feed_seq")).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let now = server.stream(&key).connected();
    assert_eq!((now.id, now.number("cursor")), (Some(3), 3));
    // And truncates by its own clock.
    let server = Server::ready(&database, &["--replay-window", "30m"]);
    let mut truncated = server.stream_from(&key, 0);
    assert_eq!(truncated.connected().number("earliest"), 2);
    assert_eq!(truncated.system("replay_truncated").number("earliest"), 2);
    assert_eq!(truncated.signal().prev_seq(), Some(1));
}

#[test]
fn a_delayed_key_gets_the_same_answer_for_events_that_are_not_due_as_for_missing_ones() {
    let database = Database::migrated();
    database.log_row(1, &ago(7200), "'{}'");
    database.log_row(2, &ago(7100), "'{}'");
    database.insert(10);
    let fresh = database.head();
    let key = database.mint_with("late", &["--delay", "1h"]);
    let server = Server::ready(&database, &[]);
    let time = database
        .connect()
        .query_one("select to_json(event_time)#>>'{}' from stock_market.signal_feed_event where feed_seq = 5", &[])
        .unwrap()
        .get::<_, String>(0);
    let mut answers = Vec::new();
    // The newest number, one with its true time, one with a wrong time, one that nobody has.
    for target in [
        format!("/feed?cursor={fresh}"),
        format!("/feed?cursor=5&cursor_time={}", time.replace('+', "%2B")),
        "/feed?cursor=5&cursor_time=2020-01-01T00:00:00Z".to_owned(),
        "/feed?cursor=999999".to_owned(),
    ] {
        let mut stream = Request::feed_at(&target, &key).open(server.address());
        let connected = stream.connected();
        assert_eq!((connected.number("head"), connected.number("earliest")), (2, 1), "{target}");
        answers.push(stream);
    }
    for stream in &mut answers {
        assert_eq!(stream.system("history_rewritten").number("head"), 2);
    }
}

#[test]
fn one_row_with_a_wrong_time_neither_delays_a_delayed_key_nor_is_seen_early() {
    let database = Database::migrated();
    database.log_row(1, &ago(7200), "'{}'");
    database.log_row(2, "timestamptz '2099-01-01 00:00:00+00'", "'{}'");
    database.log_row(3, &ago(7000), "'{}'");
    database.log_row(4, "timestamptz 'infinity'", "'{}'");
    let key = database.mint_with("late", &["--delay", "1h"]);
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream_from(&key, 0);
    assert_eq!(stream.connected().number("head"), 3);
    assert_eq!(stream.signals(3).len(), 3);
    // Row 4 is never due by its own time: it comes with the next one that is due.
    database.log_row(5, &ago(3599), "'{}'");
    assert_eq!(stream.system("quarantined").feed_seq(), Some(4));
    assert_eq!(stream.signal().prev_seq(), Some(4));
}

#[test]
fn a_delayed_stream_is_told_of_an_outage_and_misses_nothing() {
    let cluster = signal_feed::demo::postgres::PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    let key = database.mint_with("late", &["--delay", "1s"]);
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    database.insert(3);
    cluster.stop(true);
    let mut blocks = Vec::new();
    let mut take_until = |stream: &mut crate::support::sse::Stream, reason: &str| {
        until(reason, || {
            let block = stream.block();
            let found = block.reason() == Some(reason);
            blocks.push(block);
            found.then_some(())
        });
    };
    take_until(&mut stream, "degraded");
    cluster.start_again();
    take_until(&mut stream, "recovered");
    database.insert(2);
    let mut seqs: Vec<i64> = blocks.iter().filter_map(|block| block.feed_seq()).collect();
    while seqs.len() < 5 {
        seqs.push(stream.signal().number("feed_seq"));
    }
    assert_eq!(seqs, [1, 2, 3, 4, 5]);
}

#[test]
fn many_delays_share_the_replay_connections() {
    let database = Database::migrated();
    let server = Server::ready(&database, &["--replay-connections", "1"]);
    let threads = server.threads();
    let mut streams = Vec::new();
    for minutes in 1..=20 {
        let key = database.mint_with(&format!("late {minutes}"), &["--delay", &format!("{minutes}m")]);
        let mut stream = server.stream(&key);
        stream.connected();
        streams.push(stream);
    }
    let sessions = "select count(*) from pg_stat_activity \
                    where datname = current_database() and application_name like 'signal-feed%'";
    assert_eq!(database.number(&format!("{sessions} and application_name = 'signal-feed replay'")), 1);
    assert!(database.number(sessions) < 10, "{} sessions", database.number(sessions));
    // At most one for each stream and one for each delay.
    assert!(server.threads() <= threads + 20 + 20, "{} threads, {threads} before", server.threads());
    database.insert(5);
    let live = database.mint("live");
    let mut live = server.stream_from(&live, 0);
    live.connected();
    live.signals(5);
    drop(streams);
    assert_eq!(server.stop().iter().filter(|line| line.contains("ERROR")).count(), 0);
}

#[test]
fn a_delay_is_listed_and_carried_over_by_a_rotation() {
    let database = Database::migrated();
    database.mint_with("late", &["--delay", "15m"]);
    let list: serde_json::Value =
        serde_json::from_str(&crate::support::program::signal_feed(&database.url, &["key", "list", "--json"]).ok())
            .unwrap();
    assert_eq!(list[0]["delay_seconds"], 900);
    let rotated = crate::support::program::signal_feed(&database.url, &["key", "rotate", "late"]).ok();
    let server = Server::ready(&database, &[]);
    let connected = server.stream(rotated.trim()).connected();
    assert_eq!(connected.number("delay_seconds"), i64::try_from(Duration::from_secs(900).as_secs()).unwrap());
}
