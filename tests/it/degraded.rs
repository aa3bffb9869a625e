//! The database away, stuck, or back: what streams, new requests and `/readyz` see of it. Each test has a cluster of
//! its own.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::cluster::Cluster as _;
use crate::support::database::{Database, Frozen, insert_signals};
use crate::support::server::Server;
use crate::support::sse::{Connection, Request, Stream};
use crate::support::wait::{PATIENCE, until};

struct Feed {
    database: Database,
    cluster: PrivatePostgres,
    key: String,
    server: Server,
}

impl Feed {
    fn start(options: &[&str]) -> Self {
        let cluster = PrivatePostgres::start(&[]).unwrap();
        let database = Database::migrated_in(&cluster);
        let key = database.mint("bot");
        let server = Server::ready(&database, options);
        Self { database, cluster, key, server }
    }

    fn stream(&self) -> Stream {
        let mut stream = self.server.stream(&self.key);
        stream.connected();
        stream
    }
}

#[test]
fn clients_are_told_of_a_database_restart_and_miss_nothing() {
    let feed = Feed::start(&[]);
    let mut stream = feed.stream();
    feed.database.insert(3);
    stream.signals(3);
    for fast in [true, false] {
        let stopped = Instant::now();
        feed.cluster.stop(fast);
        stream.system("degraded");
        assert!(stopped.elapsed() < Duration::from_secs(2), "noticed after {:?}", stopped.elapsed());
        assert!(!feed.server.is_ready());
        assert_eq!(Request::get("/healthz").send(feed.server.address()).status, 200);
        feed.cluster.start_again();
        feed.database.insert(2);
        // An event written before the server was back may come before or after `recovered`: nothing is missed.
        let mut seen = Vec::new();
        let mut recovered = false;
        while seen.len() < 2 || !recovered {
            let block = stream.block();
            match block.reason() {
                Some("recovered") => recovered = true,
                None => seen.push(block.prev_seq().unwrap()),
                Some(other) => panic!("{other}"),
            }
        }
        let head = feed.database.head();
        assert_eq!(seen, [head - 2, head - 1]);
        feed.server.wait_ready();
    }
    let log = feed.server.stop();
    assert!(log.iter().any(|line| line.contains("degraded")) && log.iter().any(|line| line.contains("live")));
}

#[test]
fn a_database_that_is_frozen_is_noticed_within_ten_seconds() {
    let feed = Feed::start(&["--heartbeat", "1s"]);
    let mut stream = feed.stream();
    let began = Instant::now();
    let frozen = Frozen::new(&feed.cluster);
    let degraded = stream.next_block(PATIENCE);
    let noticed = began.elapsed();
    let ready = feed.server.is_ready();
    let refused = Request::feed(&feed.key).send(feed.server.address());
    drop(frozen);
    assert_eq!(degraded.unwrap().reason(), Some("degraded"));
    assert!(noticed < Duration::from_secs(10), "{noticed:?}");
    assert!(!ready);
    assert_eq!(refused.refusal(), (503, "degraded".into()));
    stream.system("recovered");
    feed.database.insert(1);
    stream.signal();
}

#[test]
fn a_single_frozen_session_is_noticed_whichever_it_is() {
    let feed = Feed::start(&[]);
    let mut stream = feed.stream();
    for session in ["signal-feed listen", "signal-feed reader"] {
        let pid = until("the session is there", || {
            let mut client = feed.database.connect();
            let query = "select pid from pg_stat_activity where application_name = $1";
            client.query_opt(query, &[&session]).unwrap().map(|row| row.get::<_, i32>(0))
        });
        let kill = |signal: &str| {
            std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
        };
        kill("-STOP");
        let frozen = Instant::now();
        let degraded = stream.next_block(PATIENCE);
        let noticed = frozen.elapsed();
        kill("-CONT");
        assert_eq!(degraded.unwrap().reason(), Some("degraded"), "{session}");
        assert!(noticed < Duration::from_secs(10), "{session}: {noticed:?}");
        stream.system("recovered");
        feed.database.insert(1);
        stream.signal();
    }
}

#[test]
fn terminated_sessions_cost_a_notice_and_no_event() {
    let feed = Feed::start(&[]);
    let mut stream = feed.stream();
    let mut seen = 0;
    for _ in 0..3 {
        feed.database
            .sql("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'signal-feed%'");
        feed.database.insert(2);
        let mut back = false;
        let mut new = 0;
        while new < 2 || !back {
            let block = stream.block();
            match block.reason() {
                // The sessions do not end all at once: the notice can come more than once.
                Some("degraded") => back = false,
                Some("recovered") => back = true,
                None => {
                    assert_eq!(block.prev_seq(), Some(seen));
                    seen = block.feed_seq().unwrap();
                    new += 1;
                }
                Some(other) => panic!("{other}"),
            }
        }
        feed.server.wait_ready();
    }
}

#[test]
fn connections_that_are_refused_for_being_too_many_are_an_outage_like_any_other() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    database.sql("create role feed login in role signal_feed_server");
    let key = database.mint("bot");
    let server = Server::spawn(Server::command(&database.url_as("feed"), "127.0.0.1:0"));
    server.wait_ready();
    let mut stream = server.stream(&key);
    stream.connected();
    // SQLSTATE 53300, as `max_connections` says it too, but for this role alone.
    database.sql(
        "alter role feed connection limit 0; \
         select pg_terminate_backend(pid) from pg_stat_activity where usename = 'feed'",
    );
    stream.system("degraded");
    server.wait_log(&["too many connections"]);
    database.insert(2);
    database.sql("alter role feed connection limit -1");
    let (mut recovered, mut seen) = (false, 0);
    while !recovered || seen < 2 {
        let block = stream.block();
        match block.reason() {
            Some(reason) => recovered = reason == "recovered",
            None => seen += 1,
        }
    }
    assert_eq!(seen, 2);
    assert_eq!(server.log().iter().filter(|line| line.contains("quarantined")).count(), 0);
}

#[test]
fn a_request_is_held_through_a_short_outage_and_then_served() {
    let feed = Feed::start(&["--degraded-hold", "30s"]);
    feed.database.insert(2);
    feed.cluster.stop(true);
    until("the outage is noticed", || (!feed.server.is_ready()).then_some(()));
    let address = feed.server.address();
    let mut held = Request::feed(&feed.key).last_event_id(0).post(address);
    let mut unknown = Request::feed("sf_wrong").post(address);
    let mut session = Request::new("POST", "/session").key("sf_wrong").post(address);
    // Errors of form are answered at once, and so is a session for a key that is known.
    assert_eq!(Request::get("/feed?cursor=x").send(address).status, 400);
    assert_eq!(Request::get("/nothing").send(address).status, 404);
    assert_eq!(Request::new("POST", "/feed").send(address).status, 405);
    assert_eq!(Request::new("POST", "/session").key(&feed.key).send(address).status, 204);
    for connection in [&mut held, &mut unknown, &mut session] {
        assert!(!connection.ends_within(Duration::from_millis(300)));
        assert!(connection.all().is_empty(), "answered during the hold");
    }
    feed.cluster.start_again();
    let mut stream = held.stream(PATIENCE);
    stream.connected();
    stream.signals(2);
    assert_eq!(unknown.answer(PATIENCE).refusal(), (401, "unknown_key".into()));
    assert_eq!(session.answer(PATIENCE).refusal(), (401, "unknown_key".into()));
}

#[test]
fn after_the_hold_every_request_gets_503_and_none_401() {
    let feed = Feed::start(&["--degraded-hold", "2s"]);
    feed.database.sql("update stock_market.signal_feed_api_key set last_used_at = null");
    let began = Instant::now();
    feed.cluster.stop(true);
    until("the outage is noticed", || (!feed.server.is_ready()).then_some(()));
    let address = feed.server.address();
    let requests = [
        Request::feed(&feed.key),
        Request::feed("sf_wrong"),
        Request::get("/feed"),
        Request::get("/feed").field("Cookie", "signal_feed_session=nonsense"),
        Request::new("POST", "/session").key("sf_wrong"),
    ];
    for round in 0..2 {
        let connections: Vec<Connection> = requests.iter().map(|request| request.post(address)).collect();
        let mut waits = std::collections::BTreeSet::new();
        for connection in connections {
            let answer = connection.answer(PATIENCE);
            assert_eq!(answer.refusal(), (503, "degraded".into()));
            waits.insert(answer.field("Retry-After").unwrap().parse::<u64>().unwrap());
        }
        assert!(!waits.contains(&0), "{waits:?}");
        let elapsed = began.elapsed();
        assert!(elapsed > Duration::from_millis(1_900), "round {round}: {elapsed:?}");
        // The hold counts from the outage: a later request gets its answer at once.
        assert!(elapsed < Duration::from_secs(6), "round {round}: {elapsed:?}");
    }
}

#[test]
fn a_server_without_its_database_starts_holds_and_recovers_by_itself() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    let key = database.mint("bot");
    database.insert(2);
    cluster.stop(true);
    let server = Server::start(&database, &["--degraded-hold", "60s"]);
    assert!(!server.is_ready());
    let held = Request::feed(&key).last_event_id(0).post(server.address());
    cluster.start_again();
    let mut stream = held.stream(PATIENCE);
    stream.connected();
    stream.signals(2);
    database.insert(1);
    stream.signal();
}

#[test]
fn a_server_started_without_its_database_answers_503_after_the_hold() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    let key = database.mint("bot");
    cluster.stop(true);
    let server = Server::start(&database, &["--degraded-hold", "1s"]);
    assert_eq!(Request::feed(&key).send(server.address()).refusal(), (503, "degraded".into()));
    assert_eq!(Request::get("/healthz").send(server.address()).status, 200);
    server.stop();
}

#[test]
fn a_server_that_starts_while_postgresql_is_silent_answers_at_once_and_ends_at_once() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    let key = database.mint("bot");
    let _frozen = Frozen::new(&cluster);
    let mut server = Server::start(&database, &["--degraded-hold", "60s"]);
    let began = Instant::now();
    let mut held = Request::feed(&key).post(server.address());
    assert_eq!(Request::get("/healthz").send(server.address()).status, 200);
    assert!(!server.is_ready());
    server.signal(Signal::TERM);
    assert_eq!(server.wait_end(PATIENCE).code(), Some(0));
    // A call to the database is given up after 5 s.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(held.ends_within(PATIENCE) && held.all().is_empty(), "held to the end");
}

#[test]
fn a_healthy_server_never_answers_503_while_it_starts() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    let key = database.mint("bot");
    for _ in 0..10 {
        let server = Server::start(&database, &["--degraded-hold", "0s"]);
        Request::feed(&key).open(server.address()).connected();
        server.stop();
    }
}

#[test]
fn held_requests_end_at_sigterm_and_when_their_client_disconnects() {
    let feed = Feed::start(&["--degraded-hold", "60s"]);
    feed.cluster.stop(true);
    until("the outage is noticed", || (!feed.server.is_ready()).then_some(()));
    let address = feed.server.address();
    let mut held: Vec<Connection> =
        (0..20).map(|i| Request::feed(if i % 2 == 0 { &feed.key } else { "sf_wrong" }).post(address)).collect();
    until("all are held", || (feed.server.client_threads() == 20).then_some(()));
    held.truncate(5);
    until("those that left are gone", || (feed.server.client_threads() == 5).then_some(()));
    let mut server = feed.server;
    let asked = Instant::now();
    server.signal(Signal::TERM);
    for mut connection in held {
        assert!(connection.ends_within(PATIENCE));
        assert!(connection.all().is_empty(), "a status during the stop");
    }
    assert_eq!(server.wait_end(PATIENCE).code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
}

#[test]
fn held_requests_with_unknown_keys_are_limited_and_displace_no_known_key() {
    let feed = Feed::start(&["--degraded-hold", "60s"]);
    feed.cluster.stop(true);
    until("the outage is noticed", || (!feed.server.is_ready()).then_some(()));
    let address = feed.server.address();
    let known = Request::feed(&feed.key).post(address);
    let mut unknown: Vec<Connection> = (0..300).map(|_| Request::feed("sf_wrong").post(address)).collect();
    // 256 may wait; the oldest of the others are closed.
    until("the oldest unauthenticated connections are closed", || {
        let gone = unknown.iter_mut().map(|one| usize::from(one.ends_within(Duration::from_millis(1)))).sum::<usize>();
        (gone == 44).then_some(())
    });
    assert!(unknown[0].ends_within(Duration::ZERO) && !unknown[299].ends_within(Duration::from_millis(1)));
    feed.server.wait_log(&["more than 256 unauthenticated connections: closed the oldest to keep"]);
    feed.cluster.start_again();
    known.stream(PATIENCE).connected();
}

#[test]
fn three_hundred_held_requests_with_a_known_key_are_all_served_in_the_end() {
    let feed = Feed::start(&["--degraded-hold", "60s", "--max-clients-per-key", "300", "--max-clients", "300"]);
    feed.cluster.stop(true);
    until("the outage is noticed", || (!feed.server.is_ready()).then_some(()));
    let address = feed.server.address();
    let held: Vec<Connection> = (0..300).map(|_| Request::feed(&feed.key).last_event_id(0).post(address)).collect();
    // Unauthenticated connections do not count against --max-clients.
    let _unknown: Vec<Connection> = (0..250).map(|_| Request::feed("sf_wrong").post(address)).collect();
    until("all are held", || (feed.server.client_threads() == 550).then_some(()));
    feed.cluster.start_again();
    for connection in held {
        connection.stream(PATIENCE).connected();
    }
}

#[test]
fn limits_are_judged_when_the_hold_ends() {
    let feed = Feed::start(&["--degraded-hold", "60s", "--max-clients-per-key", "2"]);
    feed.cluster.stop(true);
    until("the outage is noticed", || (!feed.server.is_ready()).then_some(()));
    let held: Vec<Connection> =
        (0..5).map(|_| Request::feed(&feed.key).last_event_id(0).post(feed.server.address())).collect();
    until("all are held", || (feed.server.client_threads() == 5).then_some(()));
    feed.cluster.start_again();
    let mut open = Vec::new();
    let mut refused = 0;
    for mut connection in held {
        let head = connection.head(PATIENCE).unwrap();
        match &head[9..12] {
            "200" => open.push(connection),
            status => {
                assert_eq!(status, "429");
                refused += 1;
            }
        }
    }
    assert_eq!((open.len(), refused), (2, 3));
}

#[test]
fn a_key_that_cannot_be_looked_up_is_pending_and_its_connection_unauthenticated() {
    // Longer than a busy machine needs for 300 connections: afterwards each would get 503.
    let feed = Feed::start(&["--degraded-hold", "2m"]);
    let address = feed.server.address();
    let mut locker = feed.database.connect();
    let mut lock = locker.transaction().unwrap();
    lock.batch_execute("lock table stock_market.signal_feed_api_key in access exclusive mode").unwrap();
    let mut unknown: Vec<Connection> = (0..300).map(|_| Request::feed("sf_wrong").post(address)).collect();
    // A known key needs no look-up, and the limit closes the oldest of the others.
    let mut stream = feed.stream();
    until("the oldest unauthenticated connections are closed", || {
        let gone = unknown.iter_mut().filter_map(|one| one.ends_within(Duration::from_millis(1)).then_some(())).count();
        (gone == 44).then_some(())
    });
    assert!(unknown.iter().all(|one| one.all().is_empty()), "answered from stale knowledge");
    let last = unknown.pop().unwrap();
    drop(unknown);
    until("those whose client has left are gone", || (feed.server.client_threads() == 2).then_some(()));
    lock.rollback().unwrap();
    assert_eq!(last.answer(PATIENCE).refusal(), (401, "unknown_key".into()));
    feed.database.insert(1);
    stream.signal();
}

#[test]
fn the_listening_session_holds_no_transaction_open() {
    let feed = Feed::start(&[]);
    let _stream = feed.stream();
    let mut client = feed.database.connect();
    for _ in 0..50 {
        feed.database.insert(1);
        // For the moment in which it takes a notification from the queue, PostgreSQL itself gives it a snapshot.
        until("the listening session holds nothing", || {
            let held: i64 = client
                .query_one(
                    "select count(*) from pg_stat_activity where application_name = 'signal-feed listen' \
                     and (backend_xmin is not null or state like '%in transaction%')",
                    &[],
                )
                .unwrap()
                .get(0);
            (held == 0).then_some(())
        });
    }
}

#[test]
fn no_event_is_lost_or_repeated_while_the_database_crashes_again_and_again() {
    let feed = Feed::start(&[]);
    let mut stream = feed.stream();
    let mut cursor = 0;
    for round in 0..4 {
        let mut client = feed.database.connect();
        for _ in 0..20 {
            client.batch_execute(&insert_signals(3)).unwrap();
        }
        feed.cluster.stop(round % 2 == 0);
        feed.cluster.start_again();
        feed.database.insert(1);
        let head = feed.database.head();
        while cursor < head {
            let block = stream.block();
            match block.reason() {
                Some("degraded" | "recovered") => {}
                Some(other) => panic!("{other}"),
                None => {
                    assert_eq!(block.prev_seq(), Some(cursor));
                    cursor = block.feed_seq().unwrap();
                }
            }
        }
    }
}
