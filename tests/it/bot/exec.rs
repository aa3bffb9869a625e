//! `--broker exec:PROGRAM`: the meaning of each exit code; no order is ever sent twice.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::feed::{Feed, row, time_of};
use super::process::Place;
use crate::support::wait::until;

/// Keeps what it is asked in `asked`, one line each; sends by a line in `broker`.
const ASKED: &str = "cat > line; cat line >> asked; ref=$(sed 's/.*\"order_ref\":\"\\([^\"]*\\)\".*/\\1/' line)\n";

fn asked(place: &Place) -> Vec<(String, String)> {
    let text = place.read("asked");
    let values = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let word = |value: &Value, name: &str| value[name].as_str().unwrap().to_owned();
    values.map(|value| (word(&value, "type"), word(&value, "order_ref"))).collect()
}

fn order(name: &str) -> (String, String) {
    ("order".to_owned(), name.to_owned())
}

fn lookup(name: &str) -> (String, String) {
    ("lookup".to_owned(), name.to_owned())
}

fn wait_asked(place: &Place, expected: &[(String, String)]) {
    until(&format!("{expected:?}, not {:?}; log: {}", asked(place), place.read("log")), || {
        (asked(place) == expected).then_some(())
    });
}

#[test]
fn the_program_gets_the_order_on_one_line_and_none_of_the_bots_secrets() {
    let (feed, place) = (Feed::new(), Place::new());
    place.script("broker", &format!("{ASKED}env > environment; exit 0"));
    let mut command = place.command(&["--feed-url", &feed.url, "--broker", "exec:./broker"]);
    command.env("DATABASE_URL", "postgres://secret").env("SIGNAL_FEED_X", "secret").env("KEPT", "yes");
    let mut child = command.spawn().unwrap();
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    let line: Value = serde_json::from_str(&place.read("asked")).unwrap();
    let expected = serde_json::json!({
        "type": "order", "order_ref": "sf-1-entry", "signal_id": 1, "action": "entry", "symbol": "ACME", "side": "BUY",
        "quantity": 100, "price": 12.50, "feed_seq": 6, "event_time": time_of(6),
        "signal": serde_json::from_str::<Value>(&row(1, "entry")).unwrap(),
    });
    assert_eq!(line, expected);
    let environment = place.read("environment");
    assert!(environment.contains("KEPT=yes") && environment.contains("PATH="));
    for name in ["TRADER_BOT_", "SIGNAL_FEED_", "DATABASE_URL"] {
        assert!(!environment.contains(name), "{environment}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_rejected_exit_is_an_alert_a_rejected_entry_an_error_line_and_neither_comes_again() {
    let (feed, place) = (Feed::new(), Place::new());
    place.script("broker", &format!("{ASKED}echo trace >&2; echo '460: no permission' >&2; exit 65"));
    let _bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    stream.insert(7, &row(1, "exit"));
    stream.update(8, &row(1, "exit"));
    place.wait_cursor(8);
    assert_eq!(asked(&place), [order("sf-1-entry"), order("sf-1-exit")]);
    place.wait_alert("exit_rejected");
    assert_eq!(place.alerts().len(), 1);
    assert!(place.read("log").contains("[ERROR] sf-1-entry was rejected"), "{}", place.read("log"));
    assert!(place.journal_has("rejected", 1));
    // The reason is the last line of the program's standard error.
    let reason = "broker: 460: no permission";
    assert!(place.read("trader-bot.journal").matches(reason).count() == 2, "{}", place.read("trader-bot.journal"));
    assert!(place.read("alerts").contains(reason), "{}", place.read("alerts"));
    assert!(place.read("log").contains(reason) && place.read("log").contains("broker: trace"), "{}", place.read("log"));
    let alert: Value = serde_json::from_str(place.read("alerts").lines().next().unwrap()).unwrap();
    let keys: Vec<&String> = alert.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["level", "reason", "message", "time", "signal_id", "order_ref"]);
}

#[test]
fn a_program_that_reports_the_broker_away_gets_the_order_again() {
    let (feed, place) = (Feed::new(), Place::new());
    place.script("broker", &format!("{ASKED}[ -e away ] && exit 75; exit 0"));
    std::fs::write(place.path("away"), "").unwrap();
    let _bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    stream.wait_closed();
    until("three tries", || (asked(&place).len() >= 3).then_some(()));
    assert_eq!(place.cursor(), Some(5));
    assert_eq!(place.alerts(), [("WARNING".to_owned(), "broker_away".to_owned())]);
    std::fs::remove_file(place.path("away")).unwrap();
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(5));
    let mut stream = request.open();
    stream.connected(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    let asked = asked(&place);
    assert!(asked.iter().all(|question| *question == order("sf-1-entry")), "{asked:?}");
}

#[test]
fn a_program_that_cannot_be_started_counts_as_away() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "exit"));
    place.wait_alert("broker_away");
    place.script("broker", &format!("{ASKED}exit 0"));
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "exit"));
    place.wait_cursor(6);
    assert_eq!(asked(&place), [order("sf-1-exit")]);
}

#[test]
fn an_unknown_outcome_is_looked_up_and_nothing_else_is_sent_meanwhile() {
    for how in ["exit 1", "kill -9 $$", "exit 66"] {
        let (feed, place) = (Feed::new(), Place::new());
        // The order arrives at the broker, and the program breaks; the look-up fails twice.
        let text = format!(
            "{ASKED}if grep -q '\"type\":\"order\"' line; then echo $ref >> broker.book; {how}; fi\n\
             [ $(grep -c lookup asked) -lt 3 ] && exit 1; grep -qx $ref broker.book && exit 0; exit 66"
        );
        place.script("broker", &text);
        let _bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
        let mut stream = feed.open(5);
        stream.insert(6, &row(1, "exit"));
        stream.insert(7, &row(2, "entry"));
        wait_asked(&place, &[order("sf-1-exit"), lookup("sf-1-exit"), lookup("sf-1-exit"), lookup("sf-1-exit")]);
        place.wait_alert("outcome_unknown");
        let request = feed.accept();
        assert_eq!(request.cursor(), Some(5));
        let mut stream = request.open();
        stream.connected(5);
        stream.insert(6, &row(1, "exit"));
        place.wait_cursor(6);
        assert_eq!(place.read("broker.book"), "sf-1-exit\n", "{how}");
        assert_eq!(place.alerts(), [("CRITICAL".to_owned(), "outcome_unknown".to_owned())]);
    }
}

#[test]
fn an_order_that_the_broker_does_not_have_is_sent_again() {
    let (feed, place) = (Feed::new(), Place::new());
    let text = format!(
        "{ASKED}grep -q lookup line && exit 66\n[ $(grep -c '\"type\":\"order\"' asked) -lt 4 ] && exit 1; exit 0"
    );
    place.script("broker", &text);
    let _bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "exit"));
    place.wait_alert("sending_fails");
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "exit"));
    place.wait_cursor(6);
    let (order, lookup) = (order("sf-1-exit"), lookup("sf-1-exit"));
    let expected = [&order, &lookup, &order, &lookup, &order, &lookup, &order].map(Clone::clone);
    assert_eq!(asked(&place), expected);
    assert_eq!(place.alerts().len(), 1);
}

/// Whether a process runs; a zombie does not.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn on_the_time_out_the_whole_process_group_is_killed_before_the_order_is_looked_up() {
    let (feed, place) = (Feed::new(), Place::new());
    // The child would send the order a second later.
    let text = format!(
        "{ASKED}grep -q lookup line && {{ [ -e broker.book ] && exit 0; exit 66; }}\n\
         [ -e hung ] && {{ echo $ref >> broker.book; exit 0; }}\n\
         touch hung; (sleep 1; echo late >> broker.book) & echo $! > child; wait; exit 0"
    );
    place.script("broker", &text);
    let _bot = place.start(&feed.url, &["--broker", "exec:./broker", "--broker-timeout", "300ms"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "exit"));
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "exit"));
    place.wait_cursor(6);
    // Killed, or else at its own end a second later. (One that was never begun has left no number.)
    until("the child is gone", || (!is_running(place.read("child").trim())).then_some(()));
    assert_eq!(place.read("broker.book"), "sf-1-exit\n");
    assert!(place.read("log").contains("did not end within 300ms"), "{}", place.read("log"));
}

#[test]
fn a_program_that_outlived_a_killed_bot_is_waited_for_before_its_order_is_looked_up() {
    let (feed, place) = (Feed::new(), Place::new());
    let text = format!(
        "{ASKED}grep -q lookup line && {{ grep -qx $ref broker.book && exit 0; exit 66; }}\n\
         touch begun; while [ ! -e go ]; do sleep 0.01; done; echo $ref >> broker.book; exit 0"
    );
    place.script("broker", &text);
    let bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    until("the program runs", || place.path("begun").exists().then_some(()));
    bot.kill();
    let bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let waits = "waiting for the program that the previous bot left running for sf-1-entry";
    place.wait_log(waits);
    assert_eq!(asked(&place), [order("sf-1-entry")]);
    // SIGTERM ends the wait, and the next bot waits again.
    let began = Instant::now();
    bot.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let _bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    until("the next bot waits", || (place.read("log").matches(waits).count() == 2).then_some(()));
    std::fs::write(place.path("go"), "").unwrap();
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(5));
    let mut stream = request.open();
    stream.connected(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    assert_eq!(place.read("broker.book"), "sf-1-entry\n");
    assert_eq!(asked(&place), [order("sf-1-entry"), lookup("sf-1-entry")]);
}

#[test]
fn an_unsent_intent_is_placed_at_the_next_start_before_streaming() {
    let (feed, place) = (Feed::new(), Place::new());
    place.script("broker", &format!("{ASKED}exit 75"));
    let bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    until("a try", || (!asked(&place).is_empty()).then_some(()));
    bot.stop();
    let tries = asked(&place).len();
    place.script("broker", &format!("{ASKED}exit 0"));
    let _bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let request = feed.accept();
    assert_eq!(asked(&place).len(), tries + 1);
    // Whether or not its event comes again, it is placed once.
    let mut stream = request.open();
    stream.connected(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    assert_eq!(asked(&place).len(), tries + 1);
}

#[test]
fn sigterm_finishes_the_order_in_hand() {
    let (feed, place) = (Feed::new(), Place::new());
    place.script("broker", &format!("{ASKED}touch begun; while [ ! -e go ]; do sleep 0.01; done; exit 0"));
    let mut bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    stream.insert(7, &row(2, "entry"));
    until("the program runs", || place.path("begun").exists().then_some(()));
    bot.signal("TERM");
    assert!(bot.is_running());
    std::fs::write(place.path("go"), "").unwrap();
    assert_eq!(bot.exit_code(), Some(0));
    assert_eq!(place.cursor(), Some(6));
    assert_eq!(asked(&place), [order("sf-1-entry")]);
}

#[test]
fn an_order_larger_than_a_pipe_reaches_a_program_and_a_program_need_not_read_it() {
    let (feed, place) = (Feed::new(), Place::new());
    place.script("broker", "grep -c . > lines; exit 0");
    let bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let large = row(1, "entry").replace("\"meta\": {}", &format!("\"meta\": \"{}\"", "x".repeat(1 << 20)));
    let mut stream = feed.open(5);
    stream.insert(6, &large);
    place.wait_cursor(6);
    assert_eq!(place.read("lines").trim(), "1");
    bot.stop();
    place.script("broker", "exit 0");
    let _bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(6);
    stream.insert(7, &large.replace("\"id\": 1", "\"id\": 2"));
    place.wait_cursor(7);
}

#[test]
fn a_helper_that_a_program_left_running_does_not_delay_the_next_bot_and_lives_on() {
    let (feed, place) = (Feed::new(), Place::new());
    place.script("broker", &format!("{ASKED}[ -e helper ] || {{ sleep 60 2>&- >&- <&- & echo $! > helper; }}; exit 0"));
    let bot = place.start(&feed.url, &["--broker", "exec:./broker", "--broker-timeout", "2s"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    bot.stop();
    let helper = place.read("helper").trim().to_owned();
    let bot = place.start(&feed.url, &["--broker", "exec:./broker", "--broker-timeout", "2s"]);
    let mut stream = feed.open(6);
    stream.insert(7, &row(2, "entry"));
    place.wait_cursor(7);
    bot.stop();
    let lives = is_running(&helper);
    let _ = std::process::Command::new("kill").arg(&helper).status();
    assert!(lives, "the helper was killed");
    assert!(!place.read("log").contains("waiting for the program"), "{}", place.read("log"));
}

#[test]
fn an_outage_of_the_broker_writes_the_order_once() {
    let (feed, place) = (Feed::new(), Place::new());
    place.script("broker", &format!("{ASKED}[ -e away ] && exit 75; exit 0"));
    std::fs::write(place.path("away"), "").unwrap();
    let bot = place.start(&feed.url, &["--broker", "exec:./broker", "--backoff-min", "1ms", "--backoff-max", "1ms"]);
    let large = row(1, "entry").replace("\"meta\": {}", &format!("\"meta\": \"{}\"", "x".repeat(10_000)));
    let mut stream = feed.open(5);
    stream.insert(6, &large);
    let tries = || place.read("trader-bot.journal").matches("\"intent\"").count();
    place.wait("tries", || tries() > 250);
    bot.kill();
    let journal = place.read("trader-bot.journal");
    assert_eq!(journal.matches("xxxxxxxxxx\"").count(), 1);
    assert!(journal.len() < 100_000, "{} bytes", journal.len());
    std::fs::remove_file(place.path("away")).unwrap();
    let bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let request = feed.accept();
    let told: Value = serde_json::from_str(&place.read("line")).unwrap();
    assert_eq!(told["order_ref"], "sf-1-entry");
    assert_eq!(told["signal"], serde_json::from_str::<Value>(&large).unwrap());
    // It is closed now, and the short lines do not open it again.
    let tried = asked(&place).len();
    bot.stop();
    drop(request);
    let _bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &large);
    place.wait_cursor(6);
    assert_eq!(asked(&place).len(), tried);
}
