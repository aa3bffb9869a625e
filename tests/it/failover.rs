//! A primary that is lost, and its standby in its place: the feed follows its connection string.

use rustix::process::Signal;
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::cluster::Cluster as _;
use crate::support::database::{Database, insert_signals};
use crate::support::server::Server;
use crate::support::sse::Request;
use crate::support::standby::Standby;

/// A primary and its standby, a key, and a feed that knows both hosts and wants the primary.
fn pair() -> (PrivatePostgres, Database, String, Standby, Server) {
    let primary = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&primary);
    let key = database.mint("bot");
    let standby = Standby::start(&primary, &[]);
    let server = Server::spawn(Server::command(&standby.both(&database, "read-write"), "127.0.0.1:0"));
    server.wait_ready();
    (primary, database, key, standby, server)
}

#[test]
fn open_streams_follow_a_failover_to_another_host_and_miss_nothing() {
    let (primary, database, key, standby, server) = pair();
    let mut stream = server.stream(&key);
    stream.connected();
    database.insert(3);
    let last = stream.signals(3)[2].feed_seq();
    standby.wait_replayed(&database);
    primary.stop(false);
    stream.system("degraded");
    standby.promote();
    stream.system("recovered");
    standby.sql(&database, &insert_signals(2));
    assert_eq!(stream.signals(2)[0].prev_seq(), last);
    // Nothing was lost, but that is not known yet: the feed warns the operator.
    server.wait_log(&["WARN", "timeline", "restored --nothing-lost"]);
}

#[test]
fn a_failover_that_lost_events_sends_history_rewritten() {
    let (primary, database, key, standby, server) = pair();
    let mut open = server.stream(&key);
    open.connected();
    database.insert(3);
    open.signals(3);
    let mut behind = server.stream_from(&key, 2);
    behind.connected();
    assert_eq!(behind.signal().feed_seq(), Some(3));
    drop(behind);
    standby.wait_replayed(&database);
    // The tail that is lost: delivered, and never replicated.
    standby.stop();
    database.insert(2);
    let lost = open.signals(2);
    let lost_time = lost[1].data["event_time"].as_str().unwrap().to_owned();
    primary.stop(false);
    open.system("degraded");
    // The same numbers are given again before the feed looks.
    server.signal(Signal::STOP);
    standby.start_again();
    standby.promote();
    standby.sql(&database, &insert_signals(4));
    server.signal(Signal::CONT);
    let mut told = false;
    let mut recovered = false;
    while !told {
        let block = open.block();
        match block.reason() {
            Some("recovered") => recovered = true,
            Some("history_rewritten") => {
                assert_eq!((block.number("cursor"), block.id), (5, None));
                told = true;
            }
            other => panic!("{other:?}: {block:?}"),
        }
    }
    assert!(recovered || open.system("recovered").id.is_none());
    standby.sql(&database, &insert_signals(1));
    assert_eq!(open.signal().feed_seq(), Some(8));
    // A client that reconnects with number and time from the lost future, and one that has only the number.
    let target = format!("/feed?cursor=5&cursor_time={lost_time}");
    let mut back = Request::feed_at(&target, &key).open(server.address());
    back.connected();
    assert_eq!(back.system("history_rewritten").number("cursor"), 5);
    let mut before = server.stream_from(&key, 3);
    before.connected();
    assert_eq!(before.signals(5)[0].prev_seq(), Some(3), "what was never lost goes on without a word");
}
