//! Hostile or broken clients harm no other client, and the server gives back what they took.

use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::{Connection, Request, Stream};
use crate::support::wait::{PATIENCE, until};

struct Feed {
    database: Database,
    server: Server,
    key: String,
    /// A client with an open stream, which must not notice anything.
    witness: Stream,
}

impl Feed {
    fn start(options: &[&str]) -> Self {
        let database = Database::migrated();
        let server = Server::ready(&database, options);
        Self::with(database, server)
    }

    fn with(database: Database, server: Server) -> Self {
        let key = database.mint("bot");
        // The connection for replay is made at first need.
        server.stream_from(&key, 0).connected();
        let mut witness = server.stream(&key);
        witness.connected();
        let mut feed = Self { database, server, key, witness };
        feed.gives_back();
        feed
    }

    /// The witness, and a new client, soon get what is written now.
    fn serves(&mut self) {
        let began = Instant::now();
        self.database.insert(2);
        self.witness.signals(2);
        let head = self.database.head();
        let mut newcomer = self.server.stream_from(&self.key, head - 1);
        newcomer.connected();
        newcomer.signal();
        // `client_gone` is noticed at the next write or ping.
        drop(newcomer);
        self.database.insert(1);
        self.witness.signals(1);
        assert!(began.elapsed() < Duration::from_secs(3), "served after {:?}", began.elapsed());
    }

    /// Threads and sockets are those of the witness.
    fn gives_back(&mut self) {
        until("threads and sockets are given back", || {
            // Writes, so that streams notice that their client has disconnected.
            self.database.insert(1);
            self.witness.signals(1);
            // The witness, and the listening socket.
            ((self.server.client_threads(), self.server.tcp_sockets()) == (1, 2)).then_some(())
        });
        self.serves();
    }

    fn connect(&self) -> Connection {
        Connection::connect(self.server.address(), None)
    }

    fn send(&self, bytes: &[u8]) -> Connection {
        let mut connection = self.connect();
        // The server may have closed it already.
        let _ = connection.socket.write_all(bytes);
        connection
    }
}

#[test]
fn invalid_and_endless_lengths_harm_nobody() {
    let mut feed = Feed::start(&["--heartbeat", "500ms"]);
    for length in ["99999999999999", "18446744073709551616", "-1", "-99999999999999", "1e9", "0x10", "", "5, 5"] {
        for method in ["GET", "POST"] {
            for path in ["/feed", "/session", "/healthz", "/"] {
                let text = format!("{method} {path} HTTP/1.1\r\nHost: feed\r\nContent-Length: {length}\r\n\r\nbody");
                let mut connection = feed.send(text.as_bytes());
                assert!(connection.ends_within(PATIENCE), "{text:?}");
                let answer = String::from_utf8_lossy(connection.all()).into_owned();
                assert!(answer.starts_with("HTTP/1.1 "), "{text:?}: {answer:?}");
            }
        }
    }
    let mut chunked =
        feed.send(b"POST /session HTTP/1.1\r\nHost: feed\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n");
    assert!(chunked.ends_within(PATIENCE));
    feed.serves();
    feed.gives_back();
}

#[test]
fn bytes_that_are_not_http_1_are_refused_and_leave_nothing_behind() {
    let mut feed = Feed::start(&["--heartbeat", "500ms"]);
    for bytes in [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"GET /feed HTTP/2.0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: feed\r\n\r\n",
        b"GET /feed?cursor=%ff%fe%00 HTTP/1.1\r\nHost: feed\r\n\r\n",
        b"GET /feed HTTP/1.1\r\nHost: feed\r\nAuthorization: Bearer \xff\xfe\r\n\r\n",
        b"GET /feed HTTP/1.1\r\nHost: feed\r\nLast-Event-ID: \xff\r\n\r\n",
        b"GET /feed HTTP/1.1\nHost: x\n\n",
    ] {
        let connections: Vec<Connection> = (0..20).map(|_| feed.send(bytes)).collect();
        for mut connection in connections {
            assert!(connection.ends_within(PATIENCE), "{:?}", String::from_utf8_lossy(bytes));
            let answer = String::from_utf8_lossy(connection.all()).into_owned();
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 "), "{answer:?}");
            assert!(!answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        }
    }
    feed.gives_back();
}

#[test]
fn endless_and_dripping_heads_are_cut_off() {
    let mut feed = Feed::start(&["--heartbeat", "500ms"]);
    let began = Instant::now();
    let mut dripping: Vec<Connection> = (0..50).map(|_| feed.send(b"GET /feed HTTP/1.1\r\n")).collect();
    let mut endless: Vec<Connection> = (0..20).map(|_| feed.send(b"GET /feed HTTP/1.1\r\nX: ")).collect();
    for connection in &mut endless {
        let filler = [b'x'; 8 * 1024];
        // It is refused on the way.
        for _ in 0..100 {
            if connection.socket.write_all(&filler).is_err() {
                break;
            }
        }
        assert!(connection.ends_within(PATIENCE));
    }
    let mut open = dripping.len();
    while open > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "{open} dripping heads are still open");
        for connection in &mut dripping {
            let _ = connection.socket.write_all(b"X");
        }
        feed.serves();
        open = dripping.iter_mut().map(|one| usize::from(!one.ends_within(Duration::from_millis(1)))).sum();
    }
    assert!(began.elapsed() > Duration::from_secs(9));
    feed.gives_back();
}

#[test]
fn a_client_that_keeps_sending_after_its_answer_is_soon_disconnected() {
    let mut feed = Feed::start(&["--heartbeat", "500ms"]);
    let mut connections: Vec<Connection> = (0..50).map(|_| feed.send(b"GET /nothing HTTP/1.1\r\n\r\n")).collect();
    let began = Instant::now();
    while feed.server.client_threads() > 2 {
        for connection in &mut connections {
            let _ = connection.socket.write_all(b"x");
        }
        assert!(began.elapsed() < Duration::from_secs(4), "{} are still listened to", feed.server.client_threads());
        // How fast the bytes drip.
        std::thread::sleep(Duration::from_millis(300));
    }
    drop(connections);
    feed.gives_back();
}

#[test]
fn pipelined_requests_get_one_answer() {
    let mut feed = Feed::start(&["--heartbeat", "500ms"]);
    let mut connection = feed.send("GET /healthz HTTP/1.1\r\nHost: feed\r\n\r\n".repeat(100).as_bytes());
    assert!(connection.ends_within(PATIENCE));
    let answers = String::from_utf8_lossy(connection.all()).into_owned();
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{answers}");
    let request = format!("GET /feed HTTP/1.1\r\nHost: feed\r\nAuthorization: Bearer {}\r\n\r\n", feed.key);
    let mut stream = feed.send(request.repeat(50).as_bytes()).stream(PATIENCE);
    stream.connected();
    feed.database.insert(1);
    stream.signal();
    feed.witness.signal();
    drop(stream);
    feed.gives_back();
}

#[test]
fn thousands_of_idle_connections_keep_no_client_out() {
    let mut feed = Feed::start(&["--heartbeat", "500ms", "--max-clients", "64"]);
    let mut idle: Vec<Connection> = Vec::new();
    for _ in 0..6 {
        idle.extend((0..500).map(|_| feed.connect()));
        feed.serves();
    }
    // A second later they are unauthenticated, and limited.
    until("the unauthenticated connections are few", || (feed.server.client_threads() < 300).then_some(()));
    feed.serves();
    drop(idle);
    feed.gives_back();
}

#[test]
fn three_hundred_bots_that_connect_at_once_are_all_served() {
    let mut feed = Feed::start(&["--heartbeat", "500ms", "--max-clients-per-key", "300"]);
    // Memory does not know this key yet.
    let key = feed.database.mint("new");
    let request = format!("GET /feed HTTP/1.1\r\nHost: feed\r\nX-API-Key: {key}\r\n\r\n");
    let mut connections: Vec<Connection> = (0..300).map(|_| feed.connect()).collect();
    for connection in &mut connections {
        connection.socket.write_all(request.as_bytes()).unwrap();
    }
    let mut streams: Vec<Stream> = connections.into_iter().map(|connection| connection.stream(PATIENCE)).collect();
    for stream in &mut streams {
        stream.connected();
    }
    drop(streams);
    feed.gives_back();
}

#[test]
fn a_half_closed_request_is_answered() {
    let mut feed = Feed::start(&["--heartbeat", "500ms"]);
    for (bytes, status) in [("GET /healthz HTTP/1.0\r\n\r\n", 200), ("GET /feed HTTP/1.0\r\n\r\n", 401)] {
        let connection = feed.send(bytes.as_bytes());
        connection.socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(connection.answer(PATIENCE).status, status, "{bytes}");
    }
    feed.gives_back();
}

#[test]
fn a_full_server_closes_idle_connections_and_keeps_those_that_ask() {
    let mut feed = Feed::start(&["--heartbeat", "500ms", "--max-clients", "8"]);
    // 8 streams and 512 other connections may be open.
    let idle: Vec<Connection> = (0..600).map(|_| feed.connect()).collect();
    feed.server.wait_log(&["connection limit reached: closed the oldest idle connection to accept"]);
    feed.serves();
    drop(idle);
    feed.gives_back();
}

#[test]
fn thousands_of_connections_that_open_and_close_leave_nothing_behind() {
    let mut feed = Feed::start(&["--heartbeat", "500ms"]);
    for round in 0..3_000 {
        let mut connection = feed.connect();
        if round % 3 == 1 {
            let _ = connection.socket.write_all(b"GET /fe");
        } else if round % 3 == 2 {
            // A reset instead of a normal end.
            let _ = connection.socket.write_all(b"GET /nothing HTTP/1.1\r\n\r\n");
            socket2::SockRef::from(&connection.socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    feed.gives_back();
}

#[test]
fn a_server_without_free_descriptors_continues_and_recovers() {
    let database = Database::migrated();
    let serve = Server::command(&database.url, "127.0.0.1:0");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -n 64; exec \"$@\"", "sh"]);
    command.arg(serve.get_program()).args(serve.get_args()).args(["--heartbeat", "500ms"]);
    command.env_clear().envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let server = Server::spawn(command);
    server.wait_ready();
    let mut feed = Feed::with(database, server);
    let crowd: Vec<Connection> = (0..300).map(|_| feed.connect()).collect();
    feed.server.wait_log(&["accept a connection"]);
    // The open stream continues.
    feed.database.insert(2);
    feed.witness.signals(2);
    drop(crowd);
    until("it serves again", || {
        let answer = Request::get("/healthz").post(feed.server.address()).try_answer(PATIENCE);
        answer.is_some_and(|answer| answer.status == 200).then_some(())
    });
    feed.gives_back();
    let complaints = feed.server.log().iter().filter(|line| line.contains("accept a connection")).count();
    assert!(complaints < 20, "{complaints} log lines");
}

#[test]
fn header_fields_are_limited_by_their_size_not_by_their_number() {
    let mut feed = Feed::start(&["--heartbeat", "500ms"]);
    let answer = |count: usize| {
        let fields = "A:\r\n".repeat(count);
        feed.send(format!("GET /healthz HTTP/1.1\r\nHost: feed\r\n{fields}\r\n").as_bytes()).answer(PATIENCE)
    };
    // Any number of them is fine within 16 KiB.
    for count in [0, 1, 129, 1_000, 4_000] {
        assert_eq!(answer(count).status, 200, "{count}");
    }
    for count in [4_096, 20_000] {
        assert_eq!(answer(count).refusal(), (431, "head_too_large".into()), "{count}");
    }
    feed.gives_back();
}

#[test]
fn a_flood_of_wrong_keys_costs_a_handful_of_queries_and_delays_nobody() {
    let mut feed = Feed::start(&["--heartbeat", "500ms"]);
    let reads = "select coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0)::bigint from pg_stat_user_tables where relname = 'signal_feed_api_key'";
    feed.database.sql("select pg_stat_reset()");
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let address = feed.server.address();
            scope.spawn(move || {
                for i in 0..50 {
                    let answer = Request::feed(&format!("sf_{thread}_{i}")).send(address);
                    assert_eq!(answer.refusal(), (401, "unknown_key".into()));
                }
            });
        }
        feed.serves();
    });
    let seconds = began.elapsed().as_secs_f64();
    // The server's sessions report what they did at intervals.
    let most = 40 + (seconds * 30.0) as i64;
    let scans = feed.database.number(reads);
    assert!(scans < most, "{scans} reads of the key table in {seconds} s for 400 requests");
    feed.gives_back();
}

#[test]
fn a_body_that_never_arrives_delays_nothing() {
    let mut feed = Feed::start(&["--heartbeat", "500ms"]);
    let request = format!(
        "POST /session HTTP/1.1\r\nHost: feed\r\nAuthorization: Bearer {}\r\nContent-Length: 1000\r\n\r\n",
        feed.key
    );
    let mut connections: Vec<Connection> = (0..20).map(|_| feed.send(request.as_bytes())).collect();
    for connection in &mut connections {
        let mut first = [0; 12];
        connection.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.socket.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 204");
    }
    drop(connections);
    feed.gives_back();
}
