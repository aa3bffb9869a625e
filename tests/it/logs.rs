//! The log for the operator: one line per occurrence, levels for journald, and floods in few lines.

use std::process::Command;

use crate::support::cluster::Cluster as _;
use crate::support::database::Database;
use crate::support::program::{self, signal_feed};
use crate::support::server::Server;
use crate::support::sse::{Connection, Request};
use crate::support::wait::{PATIENCE, until};

/// What a flood may leave in the log: its first lines and a summary for each ten seconds of the test.
const FEW: usize = 16;

/// The same command with standard error as the journal's stream, as systemd starts it.
fn journalled(command: &Command) -> Command {
    let mut wrapped = Command::new("/bin/sh");
    wrapped.args(["-c", "JOURNAL_STREAM=$(/usr/bin/stat -L -c %d:%i /proc/self/fd/2) exec \"$@\"", "sh"]);
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    wrapped
}

fn lines_with(server: &Server, words: &str) -> Vec<String> {
    server.log().into_iter().filter(|line| line.contains(words)).collect()
}

/// How many occurrences a flood's lines report: one per line, and the number in each summary.
fn told(lines: &[String]) -> usize {
    let count = |line: &String| match line.split_once("… and ") {
        Some((_, rest)) => rest.split_once(" more like it in 10 s, the last: ").unwrap().0.parse().unwrap(),
        None => 1,
    };
    lines.iter().map(count).sum()
}

#[test]
fn an_occurrence_is_one_line_with_the_reason_the_numbers_and_the_keys_name_and_never_the_key() {
    let database = Database::migrated();
    let key = database.mint("bot 7");
    let revoked = database.mint("late bot");
    signal_feed(&database.url, &["key", "revoke", "late bot"]).ok();
    let server = Server::ready(&database, &["--max-clients-per-key", "1", "--log-level", "debug"]);
    let mut stream = server.stream_from(&key, 0);
    stream.connected();
    server.wait_log(&["[INFO] stream begins: key \"bot 7\" from 127.0.0.1:", "after event 0"]);
    assert_eq!(Request::feed(&key).send(server.address()).status, 429);
    server.wait_log(&["[WARN] refused: too_many_streams: key \"bot 7\" from 127.0.0.1:"]);
    assert_eq!(Request::feed(&revoked).send(server.address()).status, 403);
    server.wait_log(&["[WARN] refused: revoked_key: key \"late bot\" from 127.0.0.1:"]);
    assert_eq!(Request::feed("sf_wrong").send(server.address()).status, 401);
    server.wait_log(&["[WARN] refused: unknown_key: 127.0.0.1:"]);
    assert_eq!(Request::get("/feed?cursor=-1").key(&key).send(server.address()).status, 400);
    server.wait_log(&["[INFO] refused: bad_cursor: key \"bot 7\" from 127.0.0.1:"]);
    database.insert(3);
    stream.signals(3);
    signal_feed(&database.url, &["key", "revoke", "bot 7"]).ok();
    stream.closing("key_revoked");
    let words = "[INFO] stream ended: key_revoked: key \"bot 7\" from 127.0.0.1:";
    server.wait_log(&[words, "at event 3, 3 delivered, 0 dropped"]);
    for line in server.stop() {
        for secret in [&key, &revoked, "sf_wrong"] {
            assert!(!line.contains(secret), "{line}");
        }
        // 2026-11-28T12:00:00.123Z [
        let (time, _) = line.split_once(" [").unwrap_or_else(|| panic!("no time or level: {line}"));
        assert!(time.len() == 24 && time.starts_with("20") && time.ends_with('Z') && &time[19..20] == ".", "{line}");
    }
}

#[test]
fn a_flood_of_refusals_is_a_few_lines_and_hides_no_other_kind() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--max-clients-per-key", "1"]);
    let mut stream = server.stream(&key);
    stream.connected();
    let address = server.address();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for i in 0..50 {
                    assert_eq!(Request::feed(&format!("sf_{thread}_{i}")).send(address).status, 401);
                }
            });
        }
    });
    assert_eq!(Request::feed(&key).send(address).status, 429);
    server.wait_log(&["refused: too_many_streams: key \"bot\""]);
    until("a summary tells of the others", || (told(&lines_with(&server, "unknown_key")) == 400).then_some(()));
    let lines = lines_with(&server, "unknown_key");
    assert!(lines.len() <= FEW && lines.iter().all(|line| line.contains("[WARN]")), "{lines:?}");
}

#[test]
fn a_server_without_descriptors_does_not_fill_the_log() {
    let database = Database::migrated();
    let serve = Server::command(&database.url, "127.0.0.1:0");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -n 48; exec \"$@\"", "sh"]);
    command.arg(serve.get_program()).args(serve.get_args());
    command.env_clear().envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let server = Server::spawn(command);
    server.wait_ready();
    let address = server.address();
    // A refused client comes again until the flood has been summarised.
    let mut crowd: Vec<Connection> = (0..60).map(|_| Connection::connect(address, None)).collect();
    let summary = until("a summary of the errors", || {
        crowd.rotate_left(1);
        *crowd.last_mut().unwrap() = Connection::connect(address, None);
        lines_with(&server, "more like it").into_iter().find(|line| line.contains("accept a connection"))
    });
    assert!(summary.contains("[ERROR] … and "), "{summary}");
    let lines = lines_with(&server, "accept a connection");
    assert!(lines.len() <= FEW && told(&lines) > lines.len(), "{lines:?}");
}

#[test]
fn an_outage_with_everybody_at_the_door_is_a_few_lines() {
    let cluster = signal_feed::demo::postgres::PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--degraded-hold", "0s"]);
    // Now the server knows the key.
    server.stream(&key).connected();
    let before = server.log().len();
    cluster.stop(true);
    until("the outage is noticed", || (!server.is_ready()).then_some(()));
    for _ in 0..300 {
        assert_eq!(Request::feed(&key).send(server.address()).refusal(), (503, "degraded".into()));
    }
    let refused = || lines_with(&server, "refused: degraded: key \"bot\"");
    until("a summary tells of the others", || (told(&refused()) == 300).then_some(()));
    let others = server.log().len() - before - refused().len();
    assert!(refused().len() <= FEW && others < 20, "{:?}", server.log());
}

#[test]
fn every_stream_and_every_quarantined_event_has_its_line() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--max-clients-per-key", "20"]);
    let streams: Vec<_> = (0..20).map(|_| server.stream(&key)).collect();
    until("each stream has begun", || (lines_with(&server, "stream begins: ").len() == 20).then_some(()));
    drop(streams);
    database.log_rows("select i, now(), 'INSERT', null from generate_series(1, 200) as i");
    until("each event has its line", || (lines_with(&server, "is quarantined: ").len() == 200).then_some(()));
    until("all are listed", || {
        let listed = signal_feed(&database.url, &["quarantine", "list", "--json"]).ok();
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
        (listed.len() == 200).then_some(())
    });
    until("each stream has ended", || (lines_with(&server, "stream ended: ").len() == 20).then_some(()));
}

#[test]
fn suppressed_lines_are_summarised_at_the_end() {
    let database = Database::migrated();
    let server = Server::ready(&database, &[]);
    for _ in 0..40 {
        assert_eq!(Request::feed("sf_wrong").send(server.address()).status, 401);
    }
    let refused: Vec<String> = server.stop().into_iter().filter(|line| line.contains("unknown_key")).collect();
    assert!(refused.len() <= FEW, "{refused:?}");
    assert_eq!(told(&refused), 40);
}

#[test]
fn under_journald_each_line_begins_with_its_level_and_has_no_time_of_its_own() {
    let database = Database::migrated();
    let mut serve = Server::command(&database.url, "127.0.0.1:0");
    serve.args(["--max-clients", "1000000"]);
    let server = Server::spawn(journalled(&serve));
    server.wait_ready();
    assert_eq!(Request::feed("sf_wrong").send(server.address()).status, 401);
    server.wait_log(&["<4>refused: unknown_key"]);
    server.wait_log(&["<4>--max-clients 1000000 needs"]);
    database.sql("alter table stock_market.signal disable trigger all");
    server.wait_log(&["<3>capture is off: "]);
    let address = server.address().to_string();
    let log = server.stop();
    assert!(log.contains(&format!("<6>listening on {address}")), "{log:?}");
    for line in log {
        assert!(["<3>", "<4>", "<6>"].iter().any(|level| line.starts_with(level)), "{line}");
    }
    // Why it ended, too.
    let empty = Database::empty();
    let serve = Server::command(&empty.url, "127.0.0.1:0");
    let ended = journalled(&serve).output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.lines().last().unwrap().starts_with("<3>error: "), "{said}");
}

#[test]
fn another_stream_than_the_journals_gets_plain_lines() {
    let database = Database::migrated();
    let mut serve = Server::command(&database.url, "127.0.0.1:0");
    // The journal was the standard error of the process that started it, and is not its own.
    serve.env("JOURNAL_STREAM", "1:2");
    let server = Server::spawn(serve);
    server.wait_log(&["Z [INFO] listening on"]);
}

#[test]
fn a_critical_alert_of_the_bot_is_critical_for_journald() {
    let database = Database::migrated();
    let server = Server::ready(&database, &[]);
    let dir = std::env::temp_dir().join(format!("signal-feed-logs-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut bot = Command::new(env!("CARGO_BIN_EXE_trader-bot"));
    bot.env_clear().env("TRADER_BOT_FEED_API_KEY", "sf_wrong");
    bot.args(["--feed-url", &format!("http://{}/feed", server.address())]);
    let ended = journalled(&bot).current_dir(&dir).output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(ended.status.code(), Some(77));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.lines().any(|line| line.starts_with("<2>CRITICAL unauthorized: ")), "{said}");
    assert!(said.lines().all(|line| line.starts_with('<') && !line.contains("sf_wrong")), "{said}");
}

#[test]
fn the_level_decides_what_is_logged() {
    let database = Database::migrated();
    for (level, expected) in [
        ("off", &[][..]),
        ("error", &[]),
        ("warn", &["[WARN]"]),
        ("info", &["[WARN]", "[INFO]"]),
        ("trace", &["[WARN]", "[INFO]"]),
    ] {
        let mut command = program::command(&database.url);
        // Normally a test finds the server's address in the log; here it sets the address.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        command.args(["serve", "--listen", &address.to_string(), "--log-level", level]);
        let server = Server::spawn_unheard(command);
        until("the server listens", || std::net::TcpStream::connect(address).ok());
        Request::feed("sf_wrong").post(address).try_answer(PATIENCE);
        let log = server.stop();
        for word in ["[ERROR]", "[WARN]", "[INFO]", "[DEBUG]"] {
            let is_there = log.iter().any(|line| line.contains(word));
            assert_eq!(is_there, expected.contains(&word), "{level}: {log:?}");
        }
    }
}
