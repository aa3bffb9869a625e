//! Every answer but the stream: its status, code and header fields, and the order in which a request can fail.

use std::io::Write;
use std::time::{Duration, Instant};

use crate::support::database::Database;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::sse::{Answer, Connection, Request, Stream};
use crate::support::wait::{PATIENCE, until};

/// Sends these bytes and reads the answer.
fn raw(server: &Server, bytes: &str) -> Answer {
    let mut connection = Connection::connect(server.address(), None);
    connection.socket.write_all(bytes.as_bytes()).unwrap();
    connection.answer(PATIENCE)
}

#[test]
fn unknown_paths_and_methods_get_404_and_405_without_a_key() {
    let database = Database::migrated();
    let server = Server::ready(&database, &[]);
    for path in ["/nothing", "/feed/", "/feedx", "/FEED", "/metrics", "/status", "//feed"] {
        for method in ["GET", "POST", "PUT"] {
            assert_eq!(
                Request::new(method, path).send(server.address()).refusal(),
                (404, "not_found".into()),
                "{path}"
            );
        }
    }
    for (path, allow) in [
        ("/feed", "GET"),
        ("/", "GET, HEAD"),
        ("/session", "POST, DELETE"),
        ("/healthz", "GET, HEAD"),
        ("/readyz", "GET, HEAD"),
    ] {
        for method in ["PUT", "OPTIONS", "PATCH", "BREW"] {
            let answer = Request::new(method, path).send(server.address());
            assert_eq!(answer.refusal(), (405, "method_not_allowed".into()), "{method} {path}");
            assert_eq!(answer.field("Allow"), Some(allow), "{method} {path}");
        }
    }
}

#[test]
fn invalid_cursors_and_times_are_bad_cursors() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    for query in [
        "cursor=",
        "cursor",
        "cursor=-1",
        "cursor=%2B1",
        "cursor=+1",
        "cursor=1.0",
        "cursor=1e3",
        "cursor=0x10",
        "cursor=%20",
        "cursor=9223372036854775808",
        "cursor=99999999999999999999999999",
        "cursor=1&cursor=1",
        "cursor=%ff",
        "cursor=1&cursor_time=yesterday",
        "cursor=1&cursor_time=",
        "cursor=1&cursor_time=2026-11-20",
        "cursor=1&cursor_time=2026-13-20T12:00:00Z",
        "cursor=1&cursor_time=2026-11-20T12:00:00",
        "cursor=1&cursor_time=2026-11-20T12:00Z",
        "cursor=1&cursor_time=2026-11-20T120000Z",
        "cursor=1&cursor_time=2026-11-20T12:00:00%2B0200",
        "cursor=1&cursor_time=2026-11-20T12:00:00Z[UTC]",
        "cursor_time=nonsense",
        "lastEventId=",
        "lastEventId=x",
        "last-event-id=-1",
        "LAST_EVENT_ID=1.0",
        "lastEventId=1&lasteventid=1",
        "cursor=1&lastEventId=x",
    ] {
        let answer = Request::feed_at(&format!("/feed?{query}"), &key).send(server.address());
        assert_eq!(answer.refusal(), (400, "bad_cursor".into()), "{query}");
    }
    for id in ["x", "-1", "1 2", "9223372036854775808", "1.5"] {
        let answer = Request::feed(&key).field("Last-Event-ID", id).send(server.address());
        assert_eq!(answer.refusal(), (400, "bad_cursor".into()), "{id}");
    }
    let twice = Request::feed(&key).last_event_id(1).last_event_id(1).send(server.address());
    assert_eq!(twice.refusal(), (400, "bad_cursor".into()));
    // The largest that there can be is no error of form.
    Request::feed_at("/feed?cursor=9223372036854775807", &key).open(server.address()).connected();
}

#[test]
fn unreadable_requests_get_400_and_other_versions_505() {
    let database = Database::migrated();
    let server = Server::ready(&database, &[]);
    for bytes in [
        "GET /feed HTTP/1.1\r\nno colon\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHost: a\0b\r\n\r\n",
        "GET /healthz HTTP/1.1\rHost: a\r\n\r\n",
        "GET /healthz\r\n\r\n",
        "\u{1}\u{2}\u{3}\r\n\r\n",
        "GET\r\n\r\n",
    ] {
        assert_eq!(raw(&server, bytes).refusal(), (400, "bad_request".into()), "{bytes:?}");
    }
    // 404, 405 and a bad cursor come before a bad head or after it, in the order of the contract.
    for (request, status) in
        [("GET /nothing", 404), ("PUT /feed", 405), ("GET /feed?cursor=x", 400), ("GET /healthz", 400)]
    {
        for fields in [
            "",
            "Host:\r\n",
            "Host: a/b\r\n",
            "Host: a\r\nHost: a\r\n",
            "Host: a\r\nContent-Length: -1\r\n",
            "Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
            "Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let answer = raw(&server, &format!("{request} HTTP/1.1\r\n{fields}\r\n"));
            assert_eq!(answer.status, status, "{request} {fields:?}");
            assert!(status != 400 || answer.code() == "bad_request", "{request} {fields:?}");
        }
    }
    assert_eq!(raw(&server, "GET /healthz HTTP/1.0\r\n\r\n").status, 200);
    for bytes in [
        "GET /feed HTTP/2.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/0.9\r\n\r\n",
        "GET / HTTP/3\r\n\r\n",
    ] {
        assert_eq!(raw(&server, bytes).refusal(), (505, "http_version".into()), "{bytes:?}");
    }
}

#[test]
fn a_later_http_1_is_answered_as_1_1() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    for minor in 2..=9 {
        assert_eq!(
            raw(&server, &format!("GET /healthz HTTP/1.{minor}\r\nHost: feed\r\n\r\n")).status,
            200,
            "1.{minor}"
        );
        let slow = format!("\r\nGET /feed HTTP/1.{minor}\nHost: feed\nX-API-Key: {key}\n\n");
        let mut connection = Connection::connect(server.address(), None);
        for byte in slow.as_bytes().chunks(7) {
            connection.socket.write_all(byte).unwrap();
        }
        connection.stream(PATIENCE).connected();
    }
    assert_eq!(raw(&server, "GET /healthz HTTP/1.12\r\n\r\n").status, 400);
}

#[test]
fn large_heads_get_431_and_late_ones_408() {
    let database = Database::migrated();
    let server = Server::ready(&database, &[]);
    // 16 KiB with its blank line is just within.
    let fitting = format!("GET /healthz HTTP/1.1\r\nHost: feed\r\nX-Filler: {}\r\n\r\n", "x".repeat(16 * 1024 - 49));
    assert_eq!(fitting.len(), 16 * 1024);
    assert_eq!(raw(&server, &fitting).status, 200);
    let larger = fitting.replacen("X-Filler: x", "X-Filler: xx", 1);
    assert_eq!(raw(&server, &larger).refusal(), (431, "head_too_large".into()));
    let endless = format!("GET /healthz HTTP/1.1\r\nX-Filler: {}", "x".repeat(40_000));
    assert_eq!(raw(&server, &endless).refusal(), (431, "head_too_large".into()));
    let began = Instant::now();
    let mut late = Connection::connect(server.address(), None);
    late.socket.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
    assert_eq!(late.answer(PATIENCE).refusal(), (408, "request_timeout".into()));
    let took = began.elapsed();
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(14), "{took:?}");
}

#[test]
fn a_refused_key_gets_the_reason() {
    let database = Database::migrated();
    let live = database.mint("live");
    let expired = database.mint_with("expired", &["--expires-in", "1ms"]);
    let revoked = database.mint("revoked");
    signal_feed(&database.url, &["key", "revoke", "revoked"]).ok();
    let server = Server::ready(&database, &[]);
    let unknown = format!("sf_{}", "A".repeat(43));
    let with_key = |name: &str, value: &str| Request::get("/feed").field(name, value).send(server.address());
    for (answer, status, code) in [
        (Request::get("/feed").send(server.address()), 401, "missing_key"),
        (with_key("Authorization", "Basic abc"), 401, "missing_key"),
        (with_key("Authorization", "Bearer"), 401, "unknown_key"),
        (with_key("Authorization", &format!("Bearer {unknown}")), 401, "unknown_key"),
        (with_key("X-API-Key", &unknown), 401, "unknown_key"),
        (with_key("Cookie", "signal_feed_session=nonsense"), 401, "unknown_key"),
        (with_key("Authorization", &format!("Bearer {expired}")), 401, "expired_key"),
        (with_key("X-API-Key", &expired), 401, "expired_key"),
        (with_key("Authorization", &format!("Bearer {revoked}")), 403, "revoked_key"),
        (with_key("X-API-Key", &revoked), 403, "revoked_key"),
        // A key in the URL is none.
        (Request::get(&format!("/feed?key={live}&api_key={live}")).send(server.address()), 401, "missing_key"),
    ] {
        assert_eq!(answer.refusal(), (status, code.into()));
        let challenge = answer.field("WWW-Authenticate");
        assert_eq!(challenge, (status == 401).then_some("Bearer"), "{code}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("sf_"));
    }
    // The first one present decides; later ones are ignored.
    let both = |first: &str, second: &str| Request::feed(first).field("X-API-Key", second);
    assert_eq!(both(&unknown, &live).send(server.address()).refusal(), (401, "unknown_key".into()));
    both(&live, &unknown).open(server.address()).connected();
    for scheme in ["Bearer", "bearer", "BEARER"] {
        Request::get("/feed").field("Authorization", &format!("{scheme} {live}")).open(server.address()).connected();
    }
    Request::get("/feed").field("x-api-key", &live).open(server.address()).connected();
}

#[test]
fn a_request_with_several_faults_gets_the_first_answer_in_order() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--max-clients", "1", "--max-clients-per-key", "1"]);
    let mut stream = server.stream(&key);
    stream.connected();
    let other = database.mint("other");
    // 505 before 431.
    let large = format!("GET /nothing HTTP/2.0\r\nX-Filler: {}\r\n\r\n", "x".repeat(17_000));
    assert_eq!(raw(&server, &large).status, 505);
    // 431 before 404.
    assert_eq!(raw(&server, &large.replace("HTTP/2.0", "HTTP/1.1")).status, 431);
    for (method, target, fields, expected) in [
        ("PUT", "/nothing?cursor=x", "", 404),
        ("PUT", "/feed?cursor=x", "", 405),
        ("GET", "/feed?cursor=x", "", 400),
        ("GET", "/feed?cursor=x", "Host: feed\r\n", 400),
        ("GET", "/feed", "Host: feed\r\n", 401),
    ] {
        let answer = raw(&server, &format!("{method} {target} HTTP/1.1\r\n{fields}\r\n"));
        assert_eq!(answer.status, expected, "{method} {target}");
    }
    // 401 and 403 before 429 and 503, and 429 before 503.
    assert_eq!(Request::feed("sf_wrong").send(server.address()).refusal(), (401, "unknown_key".into()));
    assert_eq!(Request::feed(&key).send(server.address()).refusal(), (429, "too_many_streams".into()));
    assert_eq!(Request::feed(&other).send(server.address()).refusal(), (503, "at_capacity".into()));
    signal_feed(&database.url, &["key", "revoke", "other"]).ok();
    until("the revocation is known", || {
        (Request::feed(&other).send(server.address()).refusal() == (403, "revoked_key".into())).then_some(())
    });
}

#[test]
fn the_stream_limit_counts_by_key_name_across_a_rotation() {
    let database = Database::migrated();
    let old = database.mint("bot");
    let new = signal_feed(&database.url, &["key", "rotate", "bot"]).ok().trim_end().to_owned();
    let other = database.mint("other");
    let server = Server::ready(&database, &["--max-clients-per-key", "3"]);
    let mut streams: Vec<Stream> = [&old, &new, &old].into_iter().map(|key| server.stream(key)).collect();
    for stream in &mut streams {
        stream.connected();
    }
    for key in [&old, &new] {
        let answer = Request::feed(key).send(server.address());
        assert_eq!(answer.refusal(), (429, "too_many_streams".into()));
        let after: u64 = answer.field("Retry-After").unwrap().parse().unwrap();
        assert!(after > 0);
    }
    server.stream(&other).connected();
    // A disconnected client makes room at once, although the feed is quiet.
    drop(streams.pop());
    server.stream(&new).connected();
    // Also one that had sent more than its request, which stays unread.
    let mut noisy = server.stream(&new);
    noisy.connected();
    let mut socket = noisy.socket();
    socket.write_all(b"more").unwrap();
    drop(noisy);
    server.stream(&new).connected();
}

#[test]
fn a_full_server_answers_503_with_a_jittered_wait() {
    let database = Database::migrated();
    let keys = [database.mint("one"), database.mint("two")];
    let server = Server::ready(&database, &["--max-clients", "4"]);
    let mut streams: Vec<Stream> = (0..4).map(|i| server.stream(&keys[i % 2])).collect();
    for stream in &mut streams {
        stream.connected();
    }
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..12 {
        let answer = Request::feed(&keys[0]).send(server.address());
        assert_eq!(answer.refusal(), (503, "at_capacity".into()));
        waits.insert(answer.field("Retry-After").unwrap().parse::<u64>().unwrap());
    }
    assert!(waits.len() > 1 && !waits.contains(&0), "{waits:?}");
    // No stream was disturbed, and a client that disconnects makes room at once.
    database.insert(1);
    for stream in &mut streams {
        stream.signal();
    }
    drop(streams.pop());
    server.stream(&keys[1]).connected();
}

#[test]
fn health_and_the_watch_page_need_no_key() {
    let database = Database::migrated();
    let server = Server::ready(&database, &[]);
    assert_eq!(Request::get("/healthz").send(server.address()).status, 200);
    assert_eq!(Request::get("/readyz").send(server.address()).status, 200);
    let page = Request::get("/").send(server.address());
    assert_eq!(page.status, 200);
    assert!(page.field("Content-Type").unwrap().starts_with("text/html"));
    assert_eq!(Request::get("/").http_10().send(server.address()).status, 200);
    let head = Request::new("HEAD", "/").send(server.address());
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.field("Content-Length"), page.field("Content-Length"));
    assert_eq!(Request::new("HEAD", "/feed").send(server.address()).status, 405);
    assert_eq!(raw(&server, "GET http://feed.example/healthz HTTP/1.1\r\nHost: feed.example\r\n\r\n").status, 200);
}

#[test]
fn a_wrong_option_is_usage_and_names_option_value_and_what_is_allowed() {
    let database = Database::empty();
    for (arguments, words) in [
        (&["serve", "--heartbeat", "soon"][..], &["--heartbeat", "soon", "15s"][..]),
        (&["serve", "--heartbeat", "0s"], &["--heartbeat", "0s", "above zero"]),
        (&["serve", "--listen", "nowhere"], &["--listen", "nowhere"]),
        (&["serve", "--max-clients", "0"], &["--max-clients", "0", "from 1"]),
        (&["serve", "--max-stream-age", "never"], &["--max-stream-age", "never", "off"]),
        (&["serve", "--nonsense"], &["--nonsense"]),
        (&["key", "mint"], &["--name"]),
        (&["key", "mint", "--name", ""], &["--name"]),
        (&["key", "mint", "--name", "bot\u{202e}1"], &["--name", "invisible"]),
        (&["key", "mint", "--name", "x", "--expires-in", "0s"], &["--expires-in", "0s"]),
    ] {
        let outcome = signal_feed(&database.url, arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{arguments:?}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{}", outcome.stderr);
        for word in words {
            assert!(outcome.stderr.contains(word), "{arguments:?}: {}", outcome.stderr);
        }
    }
}

#[test]
fn serve_refuses_a_database_without_the_schema_and_names_the_command() {
    let database = Database::empty();
    let outcome = signal_feed(&database.url, &["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(outcome.stderr.lines().last().unwrap().contains("migrate"), "{}", outcome.stderr);
}
