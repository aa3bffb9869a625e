//! API keys and sessions: minting, ending, rotating, as operators and as streams see it.

use std::time::{Duration, Instant};

use serde_json::Value;
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::Database;
use crate::support::program::{command, signal_feed};
use crate::support::server::Server;
use crate::support::sse::{Answer, Request};
use crate::support::wait::{PATIENCE, until};

fn list(database: &Database) -> Vec<Value> {
    serde_json::from_str(&signal_feed(&database.url, &["key", "list", "--json"]).ok()).unwrap()
}

fn key_command(database: &Database, arguments: &[&str]) -> String {
    signal_feed(&database.url, &[&["key"], arguments].concat()).ok().trim_end().to_owned()
}

/// The error of a command whose output device is full.
fn on_a_full_disk(database: &Database, arguments: &[&str]) -> String {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = command(&database.url).args(arguments).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_new_key_is_alone_on_one_line_and_never_seen_again() {
    let database = Database::migrated();
    let said = signal_feed(&database.url, &["key", "mint", "--name", "bot", "--expires-in", "90d"]);
    let out = said.ok();
    let key = out.trim_end_matches('\n');
    assert_eq!(out, format!("{key}\n"));
    let random = key.strip_prefix("sf_").unwrap();
    assert_eq!(random.len(), 43);
    assert!(random.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'), "{key}");
    assert_ne!(key, database.mint("other"));
    let hash: String = database
        .connect()
        .query_one("select encode(key_sha256, 'hex') from stock_market.signal_feed_api_key where name = 'bot'", &[])
        .unwrap()
        .get(0);
    let database_text: String = database
        .connect()
        .query_one("select string_agg(k::text, ' ') from stock_market.signal_feed_api_key as k", &[])
        .unwrap()
        .get(0);
    assert!(!database_text.contains(random));
    for listing in [key_command(&database, &["list"]), key_command(&database, &["list", "--json"])] {
        assert!(!listing.contains(random) && !listing.contains(&hash), "{listing}");
    }
}

#[test]
fn a_key_that_could_not_be_shown_is_a_failure_that_names_it() {
    let database = Database::migrated();
    for arguments in [&["key", "mint", "--name", "bot"][..], &["key", "rotate", "bot"]] {
        let said = on_a_full_disk(&database, arguments);
        assert!(said.contains("\"bot\"") && said.contains("No space left"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_listing_that_cannot_be_written_is_a_failure() {
    let database = Database::migrated();
    database.mint("bot");
    for arguments in [
        &["key", "list"][..],
        &["key", "list", "--json"],
        &["quarantine", "list"],
        &["doctor", "--json"],
        &["migrate", "--check"],
        &["migrate", "--roles-sql"],
    ] {
        let said = on_a_full_disk(&database, arguments);
        assert!(said.starts_with("error: write to standard output: No space left"), "{arguments:?}: {said}");
    }
}

#[test]
fn a_listing_shows_live_expired_and_revoked_keys() {
    let database = Database::migrated();
    database.mint_with("live", &["--expires-in", "1h"]);
    database.mint_with("expired", &["--expires-in", "1ms"]);
    database.mint("revoked");
    key_command(&database, &["revoke", "revoked"]);
    let keys = list(&database);
    let names = ["name", "state", "created_at", "expires_at", "revoked_at", "delay_seconds", "last_used_at"];
    for key in &keys {
        assert_eq!(key.as_object().unwrap().keys().collect::<Vec<_>>(), names);
        assert_eq!((&key["delay_seconds"], &key["last_used_at"]), (&Value::from(0), &Value::Null));
    }
    let states: Vec<(&str, &str)> =
        keys.iter().map(|key| (key["name"].as_str().unwrap(), key["state"].as_str().unwrap())).collect();
    assert_eq!(states, [("live", "live"), ("expired", "expired"), ("revoked", "revoked")]);
    assert!(keys[0]["expires_at"].is_string() && keys[0]["revoked_at"].is_null());
    assert!(keys[2]["expires_at"].is_null() && keys[2]["revoked_at"].is_string());
    for state in ["live", "expired", "revoked"] {
        assert!(key_command(&database, &["list"]).contains(state));
    }
}

#[test]
fn a_key_whose_commit_was_not_answered_may_be_live_and_the_command_says_so() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    database.mint("old");
    let mut session = database.connect();
    session.batch_execute("set synchronous_commit = local").unwrap();
    for (arguments, name) in [(&["mint", "--name", "new"][..], "new"), (&["rotate", "old"], "old")] {
        session.batch_execute("alter system set synchronous_standby_names = 'absent'").unwrap();
        session.batch_execute("select pg_reload_conf()").unwrap();
        let outcome = signal_feed(&database.url, &[&["key"], arguments].concat());
        // Before anything can fail, because the test's end waits for a commit too.
        session.batch_execute("alter system reset synchronous_standby_names").unwrap();
        session.batch_execute("select pg_reload_conf()").unwrap();
        let said = outcome.failed(1);
        for word in ["no answer", "may be live", "key list", "key revoke", "key rotate"] {
            assert!(said.contains(word), "{arguments:?}: {said:?} lacks {word:?}");
        }
        let live = list(&database).iter().filter(|key| key["name"] == name && key["state"] == "live").count();
        assert_eq!(live, if name == "old" { 2 } else { 1 }, "{name}");
    }
}

#[test]
fn a_second_live_key_of_a_name_is_refused_and_one_after_the_end_of_the_first_is_not() {
    let database = Database::migrated();
    database.mint("bot");
    let said = signal_feed(&database.url, &["key", "mint", "--name", "bot"]).failed(1);
    assert!(said.contains("bot") && said.trim_end().lines().count() == 1, "{said}");
    key_command(&database, &["revoke", "bot"]);
    database.mint_with("bot", &["--expires-in", "1ms"]);
    database.mint_with("bot", &["--expires-in", "100y"]);
    for arguments in [["revoke", "nobody"], ["rotate", "nobody"]] {
        let said = signal_feed(&database.url, &[&["key"][..], &arguments].concat()).failed(1);
        assert!(said.contains("nobody"), "{said}");
    }
}

#[test]
fn a_key_minted_a_moment_ago_is_never_unknown() {
    let database = Database::migrated();
    let server = Server::ready(&database, &[]);
    // Meanwhile wrong keys keep the server busy.
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(Request::feed("sf_wrong").send(server.address()).status, 401);
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for i in 0..40 {
                let key = database.mint(&format!("bot {i}"));
                server.stream(&key).connected();
            }
        }));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome.unwrap();
    });
}

#[test]
fn revocation_ends_live_streams_within_a_second() {
    let database = Database::migrated();
    let (key, other) = (database.mint("bot"), database.mint("other"));
    let server = Server::ready(&database, &[]);
    let mut streams: Vec<_> = (0..5).map(|_| server.stream(&key)).collect();
    let mut untouched = server.stream(&other);
    for stream in streams.iter_mut().chain([&mut untouched]) {
        stream.connected();
    }
    database.sql("update stock_market.signal_feed_api_key set revoked_at = clock_timestamp() where name = 'bot'");
    let revoked = Instant::now();
    for stream in &mut streams {
        stream.closing("key_revoked");
    }
    assert!(revoked.elapsed() < Duration::from_secs(1), "{:?}", revoked.elapsed());
    assert_eq!(Request::feed(&key).send(server.address()).refusal(), (403, "revoked_key".into()));
    database.insert(1);
    untouched.signal();
}

#[test]
fn the_command_revoke_ends_both_lives_of_a_rotated_key() {
    let database = Database::migrated();
    let old = database.mint("bot");
    let new = key_command(&database, &["rotate", "bot"]);
    let server = Server::ready(&database, &[]);
    let mut streams = [server.stream(&old), server.stream(&new)];
    for stream in &mut streams {
        stream.connected();
    }
    key_command(&database, &["revoke", "bot"]);
    for stream in &mut streams {
        stream.closing("key_revoked");
    }
}

#[test]
fn a_stream_ends_within_a_second_of_its_keys_expiry() {
    let database = Database::migrated();
    let key = database.mint_with("bot", &["--expires-in", "2s"]);
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&key);
    let ends: String = stream.connected().data["key_expires_at"].as_str().unwrap().into();
    stream.closing("key_expired");
    let late = database
        .connect()
        .query_one("select extract(epoch from clock_timestamp() - $1::text::timestamptz)::float8", &[&ends])
        .unwrap()
        .get::<_, f64>(0);
    assert!((0.0..1.0).contains(&late), "{late} s after {ends}");
    assert_eq!(Request::feed(&key).send(server.address()).refusal(), (401, "expired_key".into()));
}

#[test]
fn a_stalled_client_is_cut_off_when_its_key_ends() {
    let database = Database::migrated();
    let revoked = database.mint("revoked");
    let expiring = database.mint("expiring");
    let server = Server::ready(&database, &["--write-timeout", "60s"]);
    let stalled: Vec<_> = [&revoked, &expiring]
        .into_iter()
        .map(|key| {
            let mut stream = Request::feed(key).receive_buffer(4096).open(server.address());
            stream.connected();
            stream
        })
        .collect();
    database.sql(
        "insert into stock_market.signal (symbol, action, side, meta) \
         select 'S' || i, 'entry', 'BUY', jsonb_build_object('filler', repeat('x', 10000)) from generate_series(1, 500) as i",
    );
    until("both stand still", || {
        let unread = stalled.iter().all(|stream| {
            let mut bytes = [0; 4096];
            stream.socket().peek(&mut bytes).unwrap_or(0) > 1000
        });
        unread.then_some(())
    });
    key_command(&database, &["revoke", "revoked"]);
    let began = Instant::now();
    server.wait_log(&["stream ended", "key_revoked"]);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // It ends when both are seen to be stalled.
    key_command(&database, &["rotate", "expiring", "--overlap", "2s"]);
    let began = Instant::now();
    server.wait_log(&["stream ended", "key_expired"]);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn a_rotation_overlaps_without_a_refused_request() {
    let database = Database::migrated();
    let old = database.mint_with("bot", &["--expires-in", "30d"]);
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream(&old);
    stream.connected();
    let new = key_command(&database, &["rotate", "bot", "--overlap", "10s"]);
    server.stream(&new).connected();
    server.stream(&old).connected();
    // The old key's stream learns its new expiry, and keeps it.
    stream.closing("key_expired");
    assert_eq!(Request::feed(&old).send(server.address()).refusal(), (401, "expired_key".into()));
    server.stream(&new).connected();
    let keys = list(&database);
    let days = |key: &Value| {
        database.number(&format!(
            "select round(extract(epoch from '{}'::timestamptz - now()) / 86400)::bigint",
            key["expires_at"].as_str().unwrap()
        ))
    };
    assert_eq!((keys.len(), days(&keys[0]), days(&keys[1])), (2, 0, 30), "{keys:?}");
    // An overlap never extends a key's life.
    database.mint_with("short", &["--expires-in", "1h"]);
    let before = list(&database)[2]["expires_at"].clone();
    key_command(&database, &["rotate", "short", "--overlap", "24h"]);
    assert_eq!(list(&database)[2]["expires_at"], before);
}

#[test]
fn the_last_use_of_a_key_is_recorded() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    server.stream(&key).connected();
    server.stop();
    assert!(list(&database)[0]["last_used_at"].is_string());
}

fn session(server: &Server, key: &str) -> Answer {
    Request::new("POST", "/session").key(key).send(server.address())
}

/// The cookie's value, after its attributes were checked.
fn cookie(answer: &Answer) -> String {
    assert_eq!((answer.status, answer.body.len()), (204, 0), "{answer:?}");
    let set = answer.field("Set-Cookie").unwrap();
    let (pair, attributes) = set.split_once(';').unwrap();
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=604800"] {
        assert!(attributes.split(';').any(|known| known.trim() == attribute), "{set}");
    }
    assert!(!attributes.contains("Secure"), "{set}");
    pair.strip_prefix("signal_feed_session=").unwrap().to_owned()
}

fn with_cookie(token: &str) -> Request {
    Request::get("/feed").field("Cookie", &format!("a=b; signal_feed_session={token}; c=d"))
}

#[test]
fn a_session_cookie_opens_the_feed_and_outlives_the_server() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let token = cookie(&session(&server, &key));
    assert!(!token.contains(&key[3..]) && !key.contains(&token));
    with_cookie(&token).open(server.address()).connected();
    server.stop();
    let server = Server::ready(&database, &[]);
    let mut stream = with_cookie(&token).last_event_id(0).open(server.address());
    stream.connected();
    database.insert(1);
    stream.signal();
    let cleared = Request::new("DELETE", "/session").send(server.address());
    assert_eq!(cleared.status, 204);
    let set = cleared.field("Set-Cookie").unwrap();
    assert!(set.starts_with("signal_feed_session=;") && set.contains("Max-Age=0"), "{set}");
}

#[test]
fn only_a_valid_key_makes_a_session() {
    let database = Database::migrated();
    let expired = database.mint_with("expired", &["--expires-in", "1ms"]);
    let server = Server::ready(&database, &[]);
    assert_eq!(Request::new("POST", "/session").send(server.address()).refusal(), (401, "missing_key".into()));
    assert_eq!(session(&server, "sf_wrong").refusal(), (401, "unknown_key".into()));
    let with_header = |key: &str| Request::new("POST", "/session").field("X-API-Key", key);
    cookie(&with_header(&database.mint("header")).send(server.address()));
    assert_eq!(with_header("sf_wrong").send(server.address()).refusal(), (401, "unknown_key".into()));
    // A cookie does not make another one.
    let token = cookie(&session(&server, &database.mint("cookie")));
    let from_cookie = Request::new("POST", "/session")
        .field("Cookie", &format!("signal_feed_session={token}"))
        .send(server.address());
    assert_eq!(from_cookie.refusal(), (401, "missing_key".into()));
    assert_eq!(session(&server, &expired).refusal(), (401, "expired_key".into()));
    // A key minted a moment ago is valid.
    cookie(&session(&server, &database.mint("new")));
}

#[test]
fn a_session_ends_with_its_key() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let token = cookie(&session(&server, &key));
    let mut stream = with_cookie(&token).open(server.address());
    stream.connected();
    key_command(&database, &["revoke", "bot"]);
    stream.closing("key_revoked");
    assert_eq!(with_cookie(&token).send(server.address()).refusal(), (403, "revoked_key".into()));
    let short = database.mint_with("short", &["--expires-in", "3s"]);
    let token = cookie(&session(&server, &short));
    let mut stream = with_cookie(&token).open(server.address());
    stream.connected();
    assert_eq!(stream.next_block(PATIENCE).unwrap().data["cause"], "key_expired");
    assert_eq!(with_cookie(&token).send(server.address()).refusal(), (401, "expired_key".into()));
}

#[test]
fn a_session_does_not_pass_to_the_key_that_gets_its_keys_number_by_a_restore() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let token = cookie(&session(&server, &key));
    with_cookie(&token).open(server.address()).connected();
    database.sql(
        "update stock_market.signal_feed_api_key set name = 'other', key_sha256 = decode(repeat('00', 32), 'hex') \
         where name = 'bot'",
    );
    until("the session is unknown", || {
        (with_cookie(&token).try_open(server.address()).err() == Some(Some(401))).then_some(())
    });
}

#[test]
fn forged_sessions_are_unknown() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let token = cookie(&session(&server, &key));
    for forged in ["", "x", &token[1..], &token[..token.len() - 1], &format!("{token}A"), &"A".repeat(token.len())] {
        assert_eq!(with_cookie(forged).send(server.address()).refusal(), (401, "unknown_key".into()), "{forged:?}");
    }
    for at in [0, 12, 20, token.len() / 2, token.len() - 2] {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert_eq!(with_cookie(&changed).send(server.address()).refusal(), (401, "unknown_key".into()), "{at}");
    }
    // The cookie is not the key, and the key is not the cookie.
    assert_eq!(Request::feed(&token).send(server.address()).refusal(), (401, "unknown_key".into()));
    assert_eq!(with_cookie(&key).send(server.address()).refusal(), (401, "unknown_key".into()));
    // A key in a header decides, not the cookie.
    let both = with_cookie(&token).key("sf_wrong").send(server.address());
    assert_eq!(both.refusal(), (401, "unknown_key".into()));
}
