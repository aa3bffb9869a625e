//! The main job: a committed row reaches every stream, once, in order, with exactly the bytes of the contract.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::database::{Database, insert_signals};
use crate::support::outside::free_address;
use crate::support::server::Server;
use crate::support::sse::{Ending, Item, Request, Stream};
use crate::support::wait::{PATIENCE, until};

#[test]
fn a_stream_begins_with_a_connected_block_that_says_where_it_stands() {
    let database = Database::migrated();
    database.insert(3);
    let key = database.mint("bot");
    let server = Server::start(&database, &["--heartbeat", "7s"]);
    let feed_id: String = database
        .connect()
        .query_one("select feed_id::text from stock_market.signal_feed_identity", &[])
        .unwrap()
        .get(0);
    let connected = server.stream(&key).connected();
    let retry = connected.retry.unwrap();
    assert!((2000..=5000).contains(&retry), "{retry}");
    let expected = format!(
        "id: 3\nevent: system\nretry: {retry}\ndata: {{\"reason\":\"connected\",\"feed_id\":\"{feed_id}\",\"cursor\":3,\
         \"head\":3,\"earliest\":1,\"delay_seconds\":0,\"heartbeat_seconds\":7,\"key_expires_at\":null}}\n\n"
    );
    assert_eq!(connected.text, expected);
    // The wait before a reconnect is jittered.
    let retries: BTreeSet<u64> = (0..8).map(|_| server.stream(&key).connected().retry.unwrap()).collect();
    assert!(retries.len() > 1, "{retries:?}");
}

#[test]
fn a_signal_is_exactly_these_bytes() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::start(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    database.sql(
        "insert into stock_market.signal (symbol, action, side, quantity, price) \
         values ('Ä\"\\', 'entry', 'BUY', 1.500, 0.10000000000000000000000000000001)",
    );
    database.sql("update stock_market.signal set price = 2.50");
    let mut log = database.connect();
    for op in ["INSERT", "UPDATE"] {
        let signal = stream.signal();
        let seq = signal.feed_seq().unwrap();
        let row = log
            .query_one(
                "select to_char(event_time at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), op, signal::text \
                 from stock_market.signal_feed_event where feed_seq = $1",
                &[&seq],
            )
            .unwrap();
        let (time, logged_op, row): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        assert_eq!(logged_op, op);
        assert_eq!(
            signal.text,
            format!(
                "id: {seq}\nevent: signal\ndata: {{\"feed_seq\":{seq},\"prev_seq\":{},\"event_time\":\"{time}\",\"op\":\"{op}\",\
                 \"signal\":{row}}}\n\n",
                seq - 1
            )
        );
    }
}

#[test]
fn the_head_of_a_stream_is_that_of_the_contract() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::start(&database, &[]);
    let mut stream = server.stream(&key);
    let mut lines: Vec<&str> = stream.head.split_terminator("\r\n").filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.remove(0), "HTTP/1.1 200 OK");
    lines.retain(|line| !line.starts_with("Date: ") && !line.starts_with("X-Content-Type-Options: "));
    lines.sort_unstable();
    let expected = [
        "Cache-Control: no-cache, no-transform",
        "Connection: close",
        "Content-Type: text/event-stream",
        "Transfer-Encoding: chunked",
        "X-Accel-Buffering: no",
    ];
    assert_eq!(lines, expected);
    stream.connected();
}

#[test]
fn every_event_comes_in_order_and_names_the_one_before() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::start(&database, &[]);
    let mut streams: Vec<Stream> = (0..5).map(|_| server.stream(&key)).collect();
    for stream in &mut streams {
        assert_eq!(stream.connected().id, Some(0));
    }
    for count in [1, 5, 1, 40] {
        database.insert(count);
    }
    for stream in &mut streams {
        let signals = stream.signals(47);
        assert_eq!((signals[0].prev_seq(), signals[0].feed_seq()), (Some(0), Some(1)));
        assert_eq!(signals[46].feed_seq(), Some(47));
    }
}

#[test]
fn a_fresh_consumer_begins_now_and_reconnects_from_where_it_began() {
    let database = Database::migrated();
    database.insert(10);
    let key = database.mint("bot");
    let server = Server::start(&database, &[]);
    let mut fresh = server.stream(&key);
    let began = fresh.connected();
    assert_eq!((began.id, began.number("cursor"), began.number("head")), (Some(10), 10, 10));
    drop(fresh);
    database.insert(2);
    let mut again = server.stream_from(&key, began.id.unwrap());
    assert_eq!(again.connected().number("cursor"), 10);
    assert_eq!(again.signals(2)[0].feed_seq(), Some(11));
}

#[test]
fn a_cursor_gets_exactly_what_follows_it() {
    let database = Database::migrated();
    database.insert(30);
    let key = database.mint("bot");
    let server = Server::start(&database, &[]);
    for cursor in [0, 1, 17, 29, 30] {
        for request in [
            Request::feed_at(&format!("/feed?cursor={cursor}"), &key),
            Request::feed(&key).last_event_id(cursor),
            Request::feed_at("/feed?cursor=3", &key).last_event_id(cursor),
            Request::feed_at(&format!("/feed?cursor={cursor}"), &key).field("Last-Event-ID", ""),
        ] {
            let mut stream = request.open(server.address());
            let connected = stream.connected();
            assert_eq!((connected.id, connected.number("cursor")), (Some(cursor), cursor), "{request:?}");
            assert_eq!((connected.number("head"), connected.number("earliest")), (30, 1));
            let signals = stream.signals(usize::try_from(30 - cursor).unwrap());
            if let Some(first) = signals.first() {
                assert_eq!((first.prev_seq(), first.feed_seq()), (Some(cursor), Some(cursor + 1)));
            }
        }
    }
    // Streams at the head wait only for new events.
    let mut stream = server.stream_from(&key, 30);
    stream.connected();
    database.insert(1);
    assert_eq!((stream.signal().feed_seq(), stream.cursor), (Some(31), Some(31)));
}

#[test]
fn the_cursor_of_an_eventsource_polyfill_counts() {
    let database = Database::migrated();
    database.insert(9);
    let key = database.mint("bot");
    let server = Server::start(&database, &[]);
    for (query, cursor) in [
        ("lastEventId=4", 4),
        ("last-event-id=4", 4),
        ("LAST_EVENT_ID=4", 4),
        ("&lastEventId=4", 4),
        ("lastEventId=4&cursor=6", 6),
    ] {
        let mut stream = Request::feed_at(&format!("/feed?{query}"), &key).open(server.address());
        assert_eq!(stream.connected().number("cursor"), cursor, "{query}");
        assert_eq!(stream.signal().prev_seq(), Some(cursor), "{query}");
        let mut stream = Request::feed_at(&format!("/feed?{query}"), &key).last_event_id(7).open(server.address());
        assert_eq!(stream.connected().number("cursor"), 7, "{query}");
    }
}

#[test]
fn an_ipv4_and_an_ipv6_address_may_share_a_port() {
    let database = Database::migrated();
    for addresses in
        [&["0.0.0.0", "[::]"][..], &["[::]", "0.0.0.0"], &["127.0.0.1", "[::]"], &["[::1]", "127.0.0.1"], &["[::]"]]
    {
        let port = free_address().port();
        let mut command = Server::command(&database.url, &format!("{}:{port}", addresses[0]));
        for address in &addresses[1..] {
            command.args(["--listen", &format!("{address}:{port}")]);
        }
        let server = Server::spawn(command);
        for loopback in ["127.0.0.1", "[::1]"] {
            let address = format!("{loopback}:{port}").parse().unwrap();
            assert_eq!(Request::get("/healthz").send(address).status, 200, "{addresses:?} {loopback}");
        }
        server.stop();
    }
}

#[test]
fn a_replay_from_the_log_is_the_same_as_from_memory() {
    let database = Database::migrated();
    // More than memory is filled with at the start.
    database.insert(12_000);
    let key = database.mint("bot");
    let server = Server::start(&database, &[]);
    let mut from_log = server.stream_from(&key, 0);
    let mut from_memory = server.stream_from(&key, 11_000);
    from_log.connected();
    from_memory.connected();
    let all = from_log.signals(12_000);
    assert_eq!(all[0].prev_seq(), Some(0));
    assert_eq!(from_memory.signals(1_000), all[11_000..]);
}

#[test]
fn http_10_gets_the_stream_without_chunks() {
    let database = Database::migrated();
    database.insert(2);
    let key = database.mint("bot");
    let server = Server::start(&database, &["--heartbeat", "200ms"]);
    let mut stream = Request::feed_at("/feed?cursor=0", &key).http_10().open(server.address());
    assert!(!stream.head.contains("Transfer-Encoding"), "{}", stream.head);
    stream.connected();
    stream.signals(2);
    assert_eq!(stream.try_item(PATIENCE), Ok(Item::Ping));
    database.insert(1);
    assert_eq!(stream.signal().feed_seq(), Some(3));
    server.stop();
    stream.closing("shutdown");
}

#[test]
fn silence_is_broken_by_a_ping_that_is_one_line() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::start(&database, &["--heartbeat", "300ms"]);
    let mut stream = server.stream(&key);
    stream.connected();
    let began = Instant::now();
    for _ in 0..4 {
        // The client that reads knows nothing but `:ping` and one line end.
        assert_eq!(stream.try_item(PATIENCE), Ok(Item::Ping));
    }
    assert!(began.elapsed() >= Duration::from_millis(1_100), "{:?}", began.elapsed());
}

#[test]
fn a_stream_that_is_busy_gets_no_pings() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::start(&database, &["--heartbeat", "2s"]);
    let mut stream = server.stream(&key);
    stream.connected();
    let mut client = database.connect();
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        client.batch_execute(&insert_signals(1)).unwrap();
        match stream.try_item(PATIENCE) {
            Ok(Item::Block(block)) => assert_eq!(block.event, "signal"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn head_is_refused_on_the_stream_alone() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let answer = Request::new("HEAD", "/feed").key(&key).send(server.address());
    assert_eq!((answer.status, answer.field("Allow"), answer.body.len()), (405, Some("GET"), 0));
    for path in ["/", "/healthz", "/readyz"] {
        let head = Request::new("HEAD", path).send(server.address());
        let get = Request::get(path).send(server.address());
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        assert_eq!(head.field("Content-Length"), Some(get.body.len().to_string().as_str()), "{path}");
        assert_eq!(head.field("Content-Type"), get.field("Content-Type"), "{path}");
    }
}

#[test]
fn one_commit_of_many_rows_reaches_a_reading_client_whole_on_its_one_connection() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    stream.connected();
    let mut expected = 0;
    for count in [3_000, 20_000] {
        std::thread::scope(|scope| {
            scope.spawn(|| database.insert(count));
            let signals = stream.signals(count);
            assert_eq!(signals[0].prev_seq(), Some(expected));
            let symbols: Vec<String> = (1..=count).map(|i| format!("S{i}")).collect();
            assert!(signals.iter().map(|signal| signal.symbol()).eq(symbols.iter()), "in the order of the writes");
        });
        expected += count as i64;
    }
}

/// Ends the writers even if the test fails.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client that reconnects with its last id whenever its stream ends, and proves that it missed and repeated nothing.
struct Follower {
    key: String,
    cursor: i64,
    seen: i64,
}

impl Follower {
    /// Takes signals until the cursor is `goal` or the stream ends; or, with `most`, until it took so many.
    fn follow(&mut self, stream: &mut Stream, goal: i64, most: usize) {
        let mut taken = 0;
        while self.cursor < goal && taken < most {
            let Some(block) = stream.next_block(PATIENCE) else { return };
            match block.reason() {
                Some("connected") => assert_eq!(block.number("cursor"), self.cursor),
                Some("closing") => {}
                Some(other) => panic!("{other}: {block:?}"),
                None => {
                    assert_eq!(block.prev_seq(), Some(self.cursor), "a hole or a repetition: {block:?}");
                    self.cursor = block.feed_seq().unwrap();
                    self.seen += 1;
                    taken += 1;
                }
            }
        }
    }
}

#[test]
fn a_client_that_reconnects_hundreds_of_times_sees_every_event_once_in_order() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let done_at_end = SetAtEnd(&done);
        for writer in 0..2 {
            let (database, done) = (&database, &done);
            scope.spawn(move || {
                let mut client = database.connect();
                let mut step = writer;
                while !done.load(Ordering::Relaxed) {
                    client.batch_execute(&insert_signals(1 + step % 7)).unwrap();
                    step += 1;
                }
            });
        }
        let mut follower = Follower { key, cursor: 0, seen: 0 };
        let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
        for _ in 0..300 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut stream = until("a place for the reconnecting client", || {
                let connection = Request::feed(&follower.key).last_event_id(follower.cursor).post(server.address());
                Some(connection.stream(PATIENCE))
            });
            follower.follow(&mut stream, i64::MAX, (random >> 60) as usize);
        }
        drop(done_at_end);
        let mut last = server.stream_from(&follower.key, follower.cursor);
        database.insert(1);
        follower.follow(&mut last, until("the last write", || Some(database.head())), usize::MAX);
        assert_eq!(follower.seen, follower.cursor);
        assert!(follower.seen > 300, "only {} events", follower.seen);
    });
    server.stop();
}

#[test]
fn three_hundred_streams_of_twenty_keys_lose_and_repeat_nothing_over_a_restart() {
    let database = Database::migrated();
    let keys: Vec<String> = (0..20).map(|i| database.mint(&format!("bot {i}"))).collect();
    let mut server = Server::ready(&database, &[]);
    let mut followers: Vec<Follower> =
        (0..300).map(|i| Follower { key: keys[i % 20].clone(), cursor: 0, seen: 0 }).collect();
    let connect = |server: &Server, followers: &[Follower]| -> Vec<Stream> {
        let began = Instant::now();
        let connections: Vec<_> = followers
            .iter()
            .map(|follower| Request::feed(&follower.key).last_event_id(follower.cursor).post(server.address()))
            .collect();
        let streams: Vec<Stream> = connections.into_iter().map(|connection| connection.stream(PATIENCE)).collect();
        assert!(began.elapsed() < Duration::from_secs(3), "all served after {:?}", began.elapsed());
        streams
    };
    let mut goal = 0;
    let mut streams = connect(&server, &followers);
    for round in 0..3 {
        goal += 50;
        database.insert(50);
        for (stream, follower) in streams.iter_mut().zip(&mut followers) {
            follower.follow(stream, goal, usize::MAX);
        }
        // Some end normally, some by a crash, with events in flight.
        std::thread::scope(|scope| {
            scope.spawn(|| database.insert(500));
            goal += 500;
            if round == 1 {
                std::mem::replace(&mut server, Server::start(&database, &[])).kill();
            } else {
                std::mem::replace(&mut server, Server::start(&database, &[])).stop();
            }
        });
        for (stream, follower) in streams.iter_mut().zip(&mut followers) {
            follower.follow(stream, i64::MAX, usize::MAX);
            assert!(round == 1 || stream.ending() == Some(Ending::Whole));
        }
        server.wait_ready();
        streams = connect(&server, &followers);
        for (stream, follower) in streams.iter_mut().zip(&mut followers) {
            follower.follow(stream, goal, usize::MAX);
            assert_eq!(follower.seen, goal);
        }
    }
}

#[test]
fn a_stream_costs_one_thread_and_one_descriptor_and_gives_them_back() {
    let database = Database::migrated();
    let keys: Vec<String> = (0..8).map(|i| database.mint(&format!("bot {i}"))).collect();
    let server = Server::ready(&database, &["--heartbeat", "500ms"]);
    // The thread of the last /readyz request may still run for a moment.
    let others = until("nobody is served", || (server.client_threads() == 0).then(|| server.threads()));
    let mut streams: Vec<Stream> = (0..100).map(|i| server.stream(&keys[i % 8])).collect();
    for stream in &mut streams {
        stream.connected();
    }
    // The one socket more is the listening one.
    assert_eq!((server.client_threads(), server.tcp_sockets()), (100, 101));
    database.insert(3);
    for stream in &mut streams {
        stream.signals(3);
    }
    assert_eq!((server.client_threads(), server.tcp_sockets()), (100, 101));
    assert_eq!(server.threads(), others + 100);
    // What is no socket of a client is the database's and the process's own.
    assert!(server.descriptors() < 101 + 40, "{} descriptors", server.descriptors());
    drop(streams);
    until("threads and sockets are given back", || {
        ((server.client_threads(), server.tcp_sockets()) == (0, 1)).then_some(())
    });
}

#[test]
fn an_event_comes_with_its_notification_and_not_with_the_next_look_at_the_log() {
    let database = Database::migrated();
    let key = database.mint("bot");
    // Each is committed when the one before has arrived: without notifications, each would take the whole interval.
    let server = Server::ready(&database, &["--poll-interval", "2s"]);
    let mut stream = server.stream(&key);
    stream.connected();
    let mut client = database.connect();
    let mut took: Vec<Duration> = (0..50)
        .map(|_| {
            client.batch_execute(&insert_signals(1)).unwrap();
            let committed = Instant::now();
            stream.signal();
            committed.elapsed()
        })
        .collect();
    took.sort_unstable();
    assert!(took[25] < Duration::from_secs(1), "{took:?}");
}

#[test]
fn the_next_poll_finds_an_event_whose_notification_was_lost() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--poll-interval", "300ms"]);
    let mut stream = server.stream(&key);
    stream.connected();
    database.sql(
        "begin; update stock_market.signal_feed_counter set value = value + 1; \
         insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal) \
         values (1, clock_timestamp(), 'INSERT', '{\"symbol\": \"quiet\"}'); commit",
    );
    assert_eq!(stream.signal().symbol(), "quiet");
}

#[test]
fn a_storm_of_reconnects_within_recent_events_costs_a_handful_of_queries() {
    let database = Database::migrated();
    let keys: Vec<String> = (0..40).map(|i| database.mint(&format!("bot {i}"))).collect();
    database.insert(10_000);
    let server = Server::ready(&database, &[]);
    let began = Instant::now();
    let connections: Vec<_> = (0..600)
        .map(|i| Request::feed(&keys[i % 40]).last_event_id(10_000 - i as i64 / 6).post(server.address()))
        .collect();
    let mut streams: Vec<Stream> = connections.into_iter().map(|connection| connection.stream(PATIENCE)).collect();
    for (i, stream) in streams.iter_mut().enumerate() {
        stream.connected();
        stream.signals(i / 6);
    }
    database.insert(1);
    for stream in &mut streams {
        stream.signal();
    }
    drop(streams);
    server.stop();
    // The server's sessions have ended, and said what they did.
    let seconds = began.elapsed().as_secs();
    let queries = database.number("select xact_commit from pg_stat_database where datname = current_database()");
    assert!(queries < 300 + 20 * seconds as i64, "{queries} transactions in {seconds} s");
}
