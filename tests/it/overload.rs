//! Clients that are slower than the feed: a stalled one learns what it missed, a slow one notices nothing, and no other
//! client waits for either.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::history::replace_log;
use crate::support::database::{Database, insert_signals};
use crate::support::server::Server;
use crate::support::sse::{Block, Ending, Request, Stream};
use crate::support::wait::{PATIENCE, until};

/// One statement that inserts `count` signals of about ten kilobytes.
fn insert_large(count: usize) -> String {
    insert_of(count, 10)
}

/// One statement that inserts `count` signals of about so many kilobytes.
fn insert_of(count: usize, kilobytes: usize) -> String {
    format!(
        "insert into stock_market.signal (symbol, action, side, meta) \
         select 'S' || i, 'entry', 'BUY', jsonb_build_object('filler', repeat(md5(i::text), 32 * {kilobytes})) \
         from generate_series(1, {count}) as i"
    )
}

/// A stream whose client has room for a few kilobytes and takes nothing after the first block.
fn stalled(server: &Server, key: &str) -> Stream {
    let mut stream = Request::feed(key).receive_buffer(2048).open(server.address());
    stream.connected();
    stream
}

/// Reads to the end: signals one after the other, then `dropped`, then nothing. Gives the cursor and the notice.
fn read_to_dropped(stream: &mut Stream, mut cursor: i64) -> (i64, Block) {
    loop {
        let block = stream.block();
        match block.reason() {
            None => {
                assert_eq!(block.prev_seq(), Some(cursor), "nothing newer comes before the hole");
                cursor = block.feed_seq().unwrap();
            }
            Some("dropped") => {
                assert_eq!(block.id, None);
                stream.ends();
                return (cursor, block);
            }
            Some(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_stalled_client_gets_dropped_and_then_exactly_the_missing_events() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--queue-capacity", "50"]);
    let mut slow = stalled(&server, &key);
    let mut healthy = server.stream(&key);
    healthy.connected();
    let mut client = database.connect();
    let mut total = 0;
    // Well over a second, with far more than socket and queue hold.
    let end = Instant::now() + Duration::from_millis(2_500);
    while Instant::now() < end || total < 400 {
        client.batch_execute(&insert_large(10)).unwrap();
        healthy.signals(10);
        total += 10;
    }
    let (cursor, dropped) = read_to_dropped(&mut slow, 0);
    let (from, to) = (dropped.number("from"), dropped.number("to"));
    assert_eq!(from, cursor + 1, "{dropped:?}");
    assert_eq!(dropped.number("dropped"), to - from + 1, "{dropped:?}");
    assert!(to < total && to >= total - 60, "{dropped:?} of {total}");
    assert_eq!(slow.cursor, Some(cursor), "the cursor of a standard client stands before the hole");
    // It reconnects as every standard client does, and gets exactly the missing events.
    let mut again = server.stream_from(&key, cursor);
    again.connected();
    let rest = again.signals(usize::try_from(total - cursor).unwrap());
    assert_eq!((rest[0].prev_seq(), rest.last().unwrap().feed_seq()), (Some(cursor), Some(total)));
    server.wait_log(&["dropped", &format!("{from}"), &format!("{to}"), "bot"]);
}

#[test]
fn a_stalled_client_whose_log_is_replaced_is_told_that_and_not_of_dropped_events() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--queue-capacity", "50"]);
    let mut slow = stalled(&server, &key);
    // Less than the queue holds, and more than the socket.
    database.sql(&insert_large(40));
    // Nothing shows from outside that it counts as stalled, after a second.
    std::thread::sleep(Duration::from_millis(2_500));
    // The restored log is so long that its numbers alone look like an overflow.
    replace_log(&database, 500, 500);
    server.wait_log(&["ERROR", "replaced"]);
    let mut cursor = 0;
    let notice = loop {
        let block = slow.block();
        if block.reason().is_some() {
            break block;
        }
        assert_eq!(block.prev_seq(), Some(cursor));
        cursor = block.feed_seq().unwrap();
    };
    assert_eq!(notice.data, json!({"reason": "history_rewritten", "cursor": cursor, "head": 500}));
    assert!(cursor < 40, "the client was not stalled");
    database.insert(1);
    assert_eq!(slow.signal().prev_seq(), Some(500));
}

#[test]
fn a_client_that_keeps_taking_bytes_slowly_notices_nothing() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--queue-capacity", "20", "--write-timeout", "5s"]);
    let mut slow = Request::feed(&key).receive_buffer(16 * 1024).open(server.address());
    slow.connected();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = database.connect();
            for _ in 0..20 {
                client.batch_execute(&insert_large(20)).unwrap();
            }
        });
        // 4 MB at about a megabyte a second.
        for event in 1..=400 {
            let signal = slow.signal();
            assert_eq!((signal.prev_seq(), signal.feed_seq()), (Some(event - 1), Some(event)));
            std::thread::sleep(Duration::from_millis(8));
        }
    });
    assert_eq!(slow.ending(), None);
    assert!(!server.log().iter().any(|line| line.contains("dropped ")));
}

#[test]
fn a_link_of_a_few_kilobytes_a_second_counts_as_slow_and_not_as_stalled() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--queue-capacity", "5", "--write-timeout", "2s"]);
    let slow = Request::feed(&key).receive_buffer(4096).open(server.address());
    let mut client = database.connect();
    client.batch_execute(&insert_large(30)).unwrap();
    // A kilobyte at a time, ten times a second, for longer than the write time-out.
    let mut bytes = [0; 1024];
    let end = Instant::now() + Duration::from_secs(6);
    slow.socket().set_read_timeout(Some(PATIENCE)).unwrap();
    while Instant::now() < end {
        let count = slow.socket().read(&mut bytes).unwrap();
        assert!(count > 0, "the connection ended: {:?}", server.log());
        client.batch_execute(&insert_signals(1)).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!server.log().iter().any(|line| line.contains("stream ended") || line.contains("dropped ")));
}

#[test]
fn a_client_that_takes_nothing_is_cut_off_after_the_write_timeout() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--write-timeout", "2s"]);
    let mut slow = stalled(&server, &key);
    database.sql(&insert_large(200));
    let began = Instant::now();
    server.wait_log(&["stream ended", "bot"]);
    let took = began.elapsed();
    assert!(took > Duration::from_millis(1_500) && took < Duration::from_secs(5), "{took:?}");
    until("its thread is free", || (server.client_threads() == 0).then_some(()));
    // The events it took are complete; the rest of the chunk never comes.
    let (_, ending) = slow.rest(PATIENCE);
    assert_eq!(ending, Ending::Cut);
}

#[test]
fn a_stopped_client_loses_its_stream_and_misses_nothing_when_it_continues() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--write-timeout", "2s"]);
    let mut curl = Command::new("curl")
        .args([
            "-sN",
            "-H",
            &format!("Authorization: Bearer {key}"),
            &format!("http://{}/feed?cursor=0", server.address()),
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = curl.stdout.take().unwrap();
    let mut first = [0; 4];
    out.read_exact(&mut first).unwrap();
    let kill = |signal: &str| Command::new("kill").args([signal, &curl.id().to_string()]).status().unwrap();
    kill("-STOP");
    // More than the kernel buffers for an unread socket.
    for _ in 0..4 {
        database.sql(&insert_large(1_000));
    }
    server.wait_log(&["stream ended", "bot"]);
    until("its thread is free", || (server.client_threads() == 0).then_some(()));
    kill("-CONT");
    let mut text = String::from_utf8(first.to_vec()).unwrap();
    out.read_to_string(&mut text).unwrap();
    curl.wait().unwrap();
    let whole = &text[..text.rfind("\n\n").unwrap() + 2];
    let ids: Vec<i64> =
        whole.lines().filter_map(|line| line.strip_prefix("id: ")).map(|id| id.parse().unwrap()).collect();
    assert!(ids.iter().copied().eq(0..ids.len() as i64), "in order and without a hole up to where it broke off");
    let mut again = server.stream_from(&key, *ids.last().unwrap());
    again.connected();
    assert_eq!(again.signals(4_000 - ids.len() + 1).last().unwrap().feed_seq(), Some(4_000));
}

#[test]
fn stalled_clients_delay_nobody() {
    let database = Database::migrated();
    let keys: Vec<String> = (0..4).map(|i| database.mint(&format!("bot {i}"))).collect();
    let server = Server::ready(&database, &["--queue-capacity", "20"]);
    let mut healthy: Vec<Stream> = (0..20).map(|i| server.stream(&keys[i % 4])).collect();
    for stream in &mut healthy {
        stream.connected();
    }
    let mut client = database.connect();
    let mut measure = |healthy: &mut Vec<Stream>, statement: &str, count: usize| -> Duration {
        let mut took: Vec<Duration> = (0..60)
            .map(|_| {
                client.batch_execute(statement).unwrap();
                let committed = Instant::now();
                for stream in healthy.iter_mut() {
                    stream.signals(count);
                }
                committed.elapsed()
            })
            .collect();
        took.sort_unstable();
        took[59]
    };
    let _stalled: Vec<Stream> = (0..10).map(|i| stalled(&server, &keys[i % 4])).collect();
    // They fill up and stall.
    measure(&mut healthy, &insert_large(3), 3);
    let longest = measure(&mut healthy, &insert_large(3), 3);
    // A thread that waited for a stalled client would wait until that is cut off, after 20 s.
    assert!(longest < Duration::from_secs(10), "{longest:?}");
}

#[test]
fn a_burst_beyond_the_queue_disturbs_no_client_that_reads() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--queue-capacity", "1"]);
    let mut streams: Vec<Stream> = (0..6).map(|_| server.stream(&key)).collect();
    for stream in &mut streams {
        stream.connected();
    }
    for _ in 0..3 {
        database.insert(2_000);
    }
    std::thread::scope(|scope| {
        for stream in &mut streams {
            scope.spawn(move || {
                let signals = stream.signals(6_000);
                assert_eq!(signals[0].prev_seq(), Some(0));
            });
        }
    });
}

#[test]
fn a_stalled_peer_is_cut_off_even_if_no_write_is_blocked() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--write-timeout", "2s"]);
    // More than the client has room for, and less than the server's own buffer: no write blocks. The stream's thread
    // writes the large ones, the reader the small one.
    for (ended, statement) in [(1, insert_large(4)), (2, insert_of(1, 6))] {
        let _slow = stalled(&server, &key);
        database.sql(&statement);
        let began = Instant::now();
        until("it is cut off", || {
            let log = server.log();
            let cut_off = log.iter().filter(|line| line.contains("stream ended") && line.contains("write_timeout"));
            (cut_off.count() == ended).then_some(())
        });
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    }
}

#[test]
fn small_events_wake_no_thread_of_a_stream_that_takes_them() {
    let database = Database::migrated();
    let keys: Vec<String> = (0..4).map(|i| database.mint(&format!("bot {i}"))).collect();
    let server = Server::ready(&database, &[]);
    let mut streams: Vec<Stream> = (0..40).map(|i| server.stream(&keys[i % 4])).collect();
    for stream in &mut streams {
        stream.connected();
    }
    database.insert(1);
    for stream in &mut streams {
        stream.signals(1);
    }
    let before = server.client_thread_switches();
    for _ in 0..25 {
        database.insert(1);
        for stream in &mut streams {
            stream.signals(1);
        }
    }
    let switches = server.client_thread_switches() - before;
    assert!(switches < 200, "{switches} wake-ups for 1,000 deliveries");
}

#[test]
fn a_small_event_that_a_full_socket_takes_in_part_arrives_whole() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    for is_chunked in [true, false] {
        let first = database.head();
        let mut request = Request::feed(&key).receive_buffer(2048);
        if !is_chunked {
            request = request.http_10();
        }
        let mut slow = request.open(server.address());
        slow.connected();
        let mut healthy = server.stream(&key);
        healthy.connected();
        let mut client = database.connect();
        // One commit each, and more than its socket takes.
        for _ in 0..150 {
            client.batch_execute(&insert_of(1, 5)).unwrap();
            healthy.signals(1);
        }
        let signals = slow.signals(150);
        assert_eq!((signals[0].prev_seq(), signals[149].feed_seq()), (Some(first), Some(first + 150)));
    }
}
