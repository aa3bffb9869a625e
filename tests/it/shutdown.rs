//! How the server ends and the next one takes over: no client loses or repeats anything.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::database::{Database, insert_signals};
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::sse::{Connection, Ending, Request, Stream};
use crate::support::wait::{PATIENCE, until};

#[test]
fn sigterm_closes_the_listener_and_sends_closing_to_every_stream() {
    for signal in [Signal::TERM, Signal::INT] {
        let database = Database::migrated();
        let keys: Vec<String> = (0..20).map(|i| database.mint(&format!("bot {i}"))).collect();
        let mut server = Server::ready(&database, &[]);
        let address = server.address();
        let mut streams: Vec<Stream> = (0..300).map(|i| server.stream(&keys[i % 20])).collect();
        for stream in &mut streams {
            stream.connected();
        }
        let idle = Connection::connect(address, None);
        let asked = Instant::now();
        server.signal(signal);
        until("the listener is closed", || TcpStream::connect(address).is_err().then_some(()));
        for stream in &mut streams {
            stream.closing("shutdown");
        }
        drop(idle);
        drop(streams);
        assert_eq!(server.wait_end(PATIENCE).code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    }
}

#[test]
fn the_process_ends_as_soon_as_every_last_block_is_written() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let end = || {
        let mut server = Server::ready(&database, &["--shutdown-grace", "20s"]);
        let mut stream = server.stream(&key);
        stream.connected();
        // A client that never sends a request does not delay it, nor one that does not close its side.
        let _idle = Connection::connect(server.address(), None);
        let asked = Instant::now();
        server.signal(Signal::TERM);
        assert_eq!(server.wait_end(PATIENCE).code(), Some(0));
        let took = asked.elapsed();
        stream.closing("shutdown");
        took
    };
    // A busy machine can delay some of them.
    let took: Vec<Duration> = (0..5).map(|_| end()).collect();
    assert!(took.iter().any(|took| *took < Duration::from_millis(400)), "{took:?}");
}

#[test]
fn a_stalled_client_delays_the_shutdown_by_the_grace_at_most() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let mut server = Server::ready(&database, &["--shutdown-grace", "1s", "--write-timeout", "60s"]);
    let mut stalled = Request::feed(&key).receive_buffer(2048).open(server.address());
    let mut healthy = server.stream(&key);
    stalled.connected();
    healthy.connected();
    database.sql(
        "insert into stock_market.signal (symbol, action, side, meta) \
         select 'S' || i, 'entry', 'BUY', jsonb_build_object('filler', repeat(md5(i::text), 320)) \
         from generate_series(1, 200) as i",
    );
    healthy.signals(200);
    let asked = Instant::now();
    server.signal(Signal::TERM);
    healthy.closing("shutdown");
    assert_eq!(server.wait_end(PATIENCE).code(), Some(0));
    let took = asked.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn events_on_their_way_at_sigterm_come_before_closing_or_after_the_restart() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let mut server = Server::ready(&database, &[]);
    let mut cursor = 0;
    let mut client = database.connect();
    let mut stream = server.stream(&key);
    stream.connected();
    for round in 0..6 {
        client.batch_execute(&insert_signals(700)).unwrap();
        let head = database.head();
        let mut told = false;
        let (blocks, ending) = std::thread::scope(|scope| {
            let reading = scope.spawn(|| stream.rest(PATIENCE));
            if round % 2 == 0 {
                server.stop();
            } else {
                server.kill();
            }
            reading.join().unwrap()
        });
        server = Server::ready(&database, &[]);
        for block in blocks {
            assert!(!told, "after closing: {block:?}");
            match block.reason() {
                Some("closing") => told = true,
                Some(other) => panic!("{other}"),
                None => {
                    assert_eq!(block.prev_seq(), Some(cursor));
                    cursor = block.feed_seq().unwrap();
                }
            }
        }
        assert_eq!((told, ending == Ending::Whole), (round % 2 == 0, round % 2 == 0));
        stream = server.stream_from(&key, cursor);
        stream.connected();
        while cursor < head {
            let signal = stream.signal();
            assert_eq!(signal.prev_seq(), Some(cursor));
            cursor = signal.feed_seq().unwrap();
        }
    }
}

#[test]
fn what_is_left_to_record_at_the_end_is_recorded_also_if_its_connection_was_lost() {
    let database = Database::migrated();
    let (first, second) = (database.mint("first"), database.mint("second"));
    let mut server = Server::ready(&database, &[]);
    let _first = server.stream(&first);
    let used = "select count(last_used_at) from stock_market.signal_feed_api_key";
    until("the first use is recorded, and the next ten seconds later", || (database.number(used) == 1).then_some(()));
    server.stream(&second).connected();
    database.sql(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'signal-feed upkeep' \
                  and datname = current_database()",
    );
    server.signal(Signal::TERM);
    assert_eq!(server.wait_end(PATIENCE).code(), Some(0));
    assert_eq!(database.number(used), 2, "{:?}", server.log());
}

#[test]
fn a_stream_at_its_maximum_age_ends_and_the_next_continues_it() {
    let database = Database::migrated();
    let keys = [database.mint("one"), database.mint("two")];
    let server = Server::ready(&database, &["--max-stream-age", "2s"]);
    let began = Instant::now();
    let mut streams: Vec<Stream> = (0..20).map(|i| server.stream(&keys[i % 2])).collect();
    let mut ends: Vec<Duration> = Vec::new();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = streams
            .iter_mut()
            .map(|stream| {
                scope.spawn(move || {
                    stream.connected();
                    stream.closing("max_age");
                    began.elapsed()
                })
            })
            .collect();
        ends.extend(waiting.into_iter().map(|thread| thread.join().unwrap()));
    });
    ends.sort_unstable();
    assert!(ends[0] >= Duration::from_millis(1_500) && ends[19] < Duration::from_secs(10), "{ends:?}");
    assert!(ends[19] - ends[0] > Duration::from_millis(50), "not all at once: {ends:?}");
}

#[test]
fn a_port_that_is_taken_is_an_error_with_the_address() {
    let database = Database::migrated();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = signal_feed(&database.url, &["serve", "--listen", &address]).failed(1);
    let error = said.lines().last().unwrap();
    assert!(error.contains(&address) && error.contains("in use"), "{said}");
    assert!(!said.contains("listening"), "{said}");
}

/// A server on a socket that was passed to it as a service manager does.
fn with_socket(database: &Database, listener: &TcpListener, options: &[&str]) -> Server {
    let serve = Server::command(&database.url, "127.0.0.1:1");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 </dev/null", "sh"]);
    command.arg(serve.get_program()).args(serve.get_args()).args(options);
    command.env_clear().envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(OwnedFd::from(listener.try_clone().unwrap()));
    Server::spawn(command)
}

#[test]
fn a_passed_socket_stays_open_from_one_server_to_the_next() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = with_socket(&database, &listener, &[]);
    assert_eq!(server.address(), address);
    server.wait_ready();
    let mut streams: Vec<Stream> = (0..10).map(|_| Request::feed(&key).open(address)).collect();
    for stream in &mut streams {
        stream.connected();
    }
    database.insert(2);
    for stream in &mut streams {
        stream.signals(2);
    }
    server.stop();
    for stream in &mut streams {
        stream.closing("shutdown");
    }
    // No server runs, and no client is refused: a client that connects now waits for the next server.
    let waiting: Vec<Connection> =
        streams.iter().map(|stream| Request::feed(&key).last_event_id(stream.cursor.unwrap()).post(address)).collect();
    database.insert(3);
    let server = with_socket(&database, &listener, &[]);
    for connection in waiting {
        let mut stream = connection.stream(PATIENCE);
        stream.connected();
        let signals = stream.signals(3);
        assert_eq!((signals[0].prev_seq(), signals[2].feed_seq()), (Some(2), Some(5)));
    }
    server.stop();
}

#[test]
fn a_second_server_on_the_same_socket_loses_no_client() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut servers = vec![with_socket(&database, &listener, &[])];
    let mut cursor = 0;
    for round in 0..5 {
        servers.push(with_socket(&database, &listener, &[]));
        let mut stream = Request::feed(&key).last_event_id(cursor).open(address);
        stream.connected();
        database.insert(5);
        for signal in stream.signals(5) {
            assert_eq!(signal.prev_seq(), Some(cursor));
            cursor = signal.feed_seq().unwrap();
        }
        servers.remove(0).stop();
        assert_eq!(cursor, 5 * (round + 1));
    }
}
