//! Every row of the bot's table, played by a scripted feed.

use std::time::{Duration, Instant};

use super::feed::{Feed, row, row_of, time_of};
use super::process::{KEY, Place};
use crate::support::wait::until;

fn critical(reason: &str) -> (String, String) {
    ("CRITICAL".to_owned(), reason.to_owned())
}

#[test]
fn signals_become_orders_and_the_cursor_follows() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &[]);
    let request = feed.accept();
    assert_eq!(request.cursor(), None);
    assert!(request.line.starts_with("GET /feed HTTP/1.1"), "{}", request.line);
    assert_eq!(request.header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    assert_eq!(request.header("accept"), Some("text/event-stream"));
    assert_eq!(request.header("accept-encoding"), None);
    let mut stream = request.open();
    stream.connected(10);
    place.wait_cursor(10);
    stream.send(":ping\n");
    stream.insert(11, &row(1, "entry"));
    stream.insert(12, &row(2, "entry"));
    stream.update(13, &row(1, "exit"));
    place.wait_cursor(13);
    assert_eq!(place.paper(), ["sf-1-entry", "sf-2-entry", "sf-1-exit"]);
    drop(stream);
    // The connection is lost: the bot continues from the cursor, with the time of its event.
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(13));
    assert_eq!(request.query("cursor_time"), Some(time_of(13).as_str()));
    bot.stop();
    assert_eq!(place.alerts(), []);
    assert!(!place.read("log").contains(KEY));
    // The next start continues there too.
    let _bot = place.start(&feed.url, &[]);
    assert_eq!(feed.accept().cursor(), Some(13));
}

#[test]
fn a_fresh_bot_that_saw_no_event_reconnects_from_where_it_began() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &[]);
    drop(feed.open(41));
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(41));
    assert_eq!(request.query("cursor_time"), None);
    bot.stop();
}

#[test]
fn refusals_are_retried_and_the_key_goes_nowhere_else() {
    let (feed, other, place) = (Feed::new(), Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    feed.accept().answer("503 Service Unavailable", "Retry-After: 1\r\n", "{\"error\":\"degraded\"}");
    let refused = Instant::now();
    let request = feed.accept();
    assert!(refused.elapsed() >= Duration::from_millis(950), "Retry-After is a floor: {:?}", refused.elapsed());
    request.answer("429 Too Many Requests", "", "{\"error\":\"too_many_streams\"}");
    feed.accept().answer("500 Internal Server Error", "", "");
    feed.accept().answer("404 Not Found", "", "");
    feed.accept().answer("204 No Content", "", "");
    feed.accept().answer("302 Found", &format!("Location: {}\r\n", other.url), "");
    feed.accept().answer("301 Moved Permanently", &format!("Location: {}\r\n", other.url), "");
    feed.accept().answer("307 Temporary Redirect", &format!("Location: {}\r\n", other.url), "");
    feed.accept().answer("200 OK", "Content-Type: text/html\r\n", "id: 9\nevent: signal\ndata: {}\n\n");
    feed.accept().answer("200 OK", "Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n", "");
    drop(feed.accept());
    feed.accept().raw("nonsense\r\n\r\n");
    let mut stream = feed.open(1);
    stream.insert(2, &row(1, "entry"));
    place.wait_paper(&["sf-1-entry"]);
    assert!(other.accept_within(Duration::from_millis(50)).is_none(), "a redirect was followed");
    assert_eq!(place.alerts(), []);
    for word in ["503 (degraded)", "429 (too_many_streams)", "302, a redirect", "text/html", "gzip"] {
        assert!(place.read("log").contains(word), "{word}");
    }
}

#[test]
fn a_refused_connection_is_tried_again_with_growing_waits() {
    let place = Place::new();
    let feed = Feed::new();
    let url = feed.url.clone();
    drop(feed);
    let mut bot = place.start(&url, &["--backoff-max", "200ms"]);
    until("ten refusals", || (place.read("log").matches("trying again").count() >= 10).then_some(()));
    assert!(bot.is_running());
    bot.stop();
}

#[test]
fn silence_counts_as_death_and_a_ping_as_life() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &["--read-timeout", "400ms"]);
    let mut stream = feed.open(5);
    place.wait_cursor(5);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1200) {
        stream.send(":ping\n");
        std::thread::sleep(Duration::from_millis(100));
    }
    stream.insert(6, &row(1, "entry"));
    place.wait_paper(&["sf-1-entry"]);
    let silent = Instant::now();
    let request = feed.accept();
    assert!(silent.elapsed() >= Duration::from_millis(300), "{:?}", silent.elapsed());
    assert_eq!(request.cursor(), Some(6));
    assert!(place.read("log").contains("nothing arrived for 400ms"), "{}", place.read("log"));
}

#[test]
fn silence_before_the_response_head_counts_as_death_too() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &["--read-timeout", "200ms"]);
    let _silent = feed.accept();
    let _next = feed.accept();
}

#[test]
fn a_quarantined_event_raises_an_alert_and_the_bot_continues() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.send(
        "id: 6\nevent: system\ndata: {\"reason\":\"quarantined\",\"feed_seq\":6,\"prev_seq\":5,\"error\":\"bad\"}\n\n",
    );
    stream.insert(7, &row(1, "entry"));
    place.wait_paper(&["sf-1-entry"]);
    place.wait_alert("quarantined");
    assert_eq!(place.alerts(), [critical("quarantined")]);
    assert_eq!(place.state()["mode"], "normal");
}

#[test]
fn a_quarantined_event_can_end_entries() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &["--on-quarantined", "close-only"]);
    let mut stream = feed.open(5);
    stream.send(
        "id: 6\nevent: system\ndata: {\"reason\":\"quarantined\",\"feed_seq\":6,\"prev_seq\":5,\"error\":\"bad\"}\n\n",
    );
    stream.insert(7, &row(1, "entry"));
    stream.insert(8, &row(2, "exit"));
    place.wait_paper(&["sf-2-exit"]);
    place.wait_alert("quarantined");
    assert_eq!(place.alerts(), [critical("quarantined")]);
    assert!(place.journal_has("blocked", 1));
}

#[test]
fn unknown_messages_are_only_logged() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    for data in [
        "{\"reason\":\"degraded\"}",
        "{\"reason\":\"recovered\"}",
        "{\"reason\":\"party\",\"guests\":[1]}",
        "{}",
        "no json",
        "{\"reason\":\"closing\",\"cause\":\"shutdown\"}",
    ] {
        stream.system(data);
    }
    stream.send("event: greeting\ndata: hello\n\n");
    stream.send("data: no type\n\n");
    stream.insert(6, &row(1, "entry"));
    place.wait_paper(&["sf-1-entry"]);
    assert_eq!(place.alerts(), []);
    let log = place.read("log");
    for words in [
        "the feed is degraded: it has lost its database, and signals will come late",
        "the feed has recovered: its database is back",
        "the feed is closing this stream: shutdown",
        "an unknown message of the feed: {\"reason\":\"party\"",
        "an event of unknown type: greeting",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert!(!log.contains("{\"reason\":\"degraded\"}"), "{log}");
}

#[test]
fn after_a_hole_the_bot_reconnects_from_its_cursor_and_does_not_process_the_event() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.event(8, 7, "INSERT", &row(3, "entry"));
    stream.wait_closed();
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(5));
    let mut stream = request.open();
    stream.connected(5);
    for (seq, id) in [(6, 1), (7, 2), (8, 3)] {
        stream.insert(seq, &row(id, "entry"));
    }
    place.wait_paper(&["sf-1-entry", "sf-2-entry", "sf-3-entry"]);
    assert_eq!(place.alerts(), []);
}

#[test]
fn a_hole_before_a_quarantined_event_counts_too() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.send(
        "id: 8\nevent: system\ndata: {\"reason\":\"quarantined\",\"feed_seq\":8,\"prev_seq\":7,\"error\":\"bad\"}\n\n",
    );
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(5));
    assert_eq!(place.alerts(), []);
}

#[test]
fn a_hole_that_stays_raises_one_alert_and_nothing_is_processed() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    for round in 1..=5 {
        let mut stream = feed.open(5);
        // The newest event differs, the hole does not.
        stream.event(8 + round, 7 + round, "INSERT", &row(3, "entry"));
        stream.wait_closed();
    }
    place.wait_alert("hole");
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(5));
    assert_eq!(place.alerts(), [critical("hole")]);
    assert_eq!(place.paper(), Vec::<String>::new());
    let mut stream = request.open();
    stream.connected(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_paper(&["sf-1-entry"]);
}

#[test]
fn dropped_events_are_fetched_from_the_cursor() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    stream.system("{\"reason\":\"dropped\",\"dropped\":2,\"from\":7,\"to\":8}");
    stream.insert(9, &row(4, "entry"));
    stream.wait_closed();
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(6));
    assert_eq!(place.paper(), ["sf-1-entry"]);
    assert_eq!(place.alerts(), []);
}

#[test]
fn a_smaller_prev_seq_is_not_a_hole_and_a_repetition_is_skipped() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(50);
    stream.event(60, 44, "INSERT", &row(1, "entry"));
    stream.event(60, 44, "INSERT", &row(1, "entry"));
    stream.event(55, 44, "INSERT", &row(2, "entry"));
    stream.event(61, 60, "INSERT", &row(3, "entry"));
    place.wait_cursor(61);
    assert_eq!(place.paper(), ["sf-1-entry", "sf-3-entry"]);
    assert_eq!(place.alerts(), []);
}

#[test]
fn close_only_mode_blocks_entries_places_exits_and_survives_everything_but_recovery() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    drop(stream);
    let mut stream = feed.open(6);
    stream.system("{\"reason\":\"replay_truncated\",\"requested\":6,\"earliest\":100}");
    // The next event is taken as it comes.
    stream.event(100, 99, "INSERT", &row(7, "entry"));
    stream.event(101, 100, "UPDATE", &row(1, "exit"));
    place.wait_cursor(101);
    assert_eq!(place.paper(), ["sf-1-entry", "sf-1-exit"]);
    assert!(place.journal_has("blocked", 7));
    place.wait_alert("replay_truncated");
    assert_eq!(place.state()["missed_since"], time_of(6));
    // The notice comes again, with the other reason too: the bot enters the mode once.
    stream.system("{\"reason\":\"history_rewritten\",\"cursor\":101,\"head\":3}");
    stream.event(4, 3, "INSERT", &row(8, "entry"));
    place.wait_cursor(4);
    bot.kill();
    for how in ["kill", "stop"] {
        let bot = place.start(&feed.url, &[]);
        let request = feed.accept();
        assert_eq!(request.cursor(), Some(4));
        let mut stream = request.open();
        stream.connected(4);
        // What was blocked stays blocked.
        stream.event(4, 3, "INSERT", &row(8, "entry"));
        stream.send(":ping\n");
        place.wait_log("connected");
        assert_eq!(place.state()["mode"], "close_only");
        if how == "kill" { bot.kill() } else { bot.stop() }
    }
    assert_eq!(place.paper(), ["sf-1-entry", "sf-1-exit"]);
    assert_eq!(place.alerts(), [critical("replay_truncated")]);
}

#[test]
fn history_rewritten_to_lower_numbers_is_followed() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(1000);
    stream.system("{\"reason\":\"history_rewritten\",\"cursor\":1000,\"head\":20}");
    stream.event(21, 20, "INSERT", &row(1, "exit"));
    stream.event(22, 21, "INSERT", &row(2, "exit"));
    place.wait_cursor(22);
    assert_eq!(place.paper(), ["sf-1-exit", "sf-2-exit"]);
    place.wait_alert("history_rewritten");
    drop(stream);
    assert_eq!(feed.accept().cursor(), Some(22));
    bot.stop();
}

#[test]
fn a_repeated_replay_truncated_alerts_once() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    for _ in 0..3 {
        stream.system("{\"reason\":\"replay_truncated\",\"requested\":5,\"earliest\":100}");
        drop(stream);
        let request = feed.accept();
        assert_eq!(request.cursor(), Some(5));
        stream = request.open();
        stream.connected(5);
    }
    // No notice this time, so it is a hole.
    stream.event(101, 100, "INSERT", &row(1, "exit"));
    stream.wait_closed();
    assert_eq!(place.paper(), Vec::<String>::new());
    assert_eq!(place.alerts(), [critical("replay_truncated")]);
}

#[test]
fn a_refused_key_ends_the_bot_at_once() {
    for (status, code) in [("401 Unauthorized", "expired_key"), ("403 Forbidden", "revoked_key")] {
        let (feed, place) = (Feed::new(), Place::new());
        let mut bot = place.start(&feed.url, &[]);
        feed.accept().answer(status, "WWW-Authenticate: Bearer\r\n", &format!("{{\"error\":\"{code}\"}}"));
        assert_eq!(bot.exit_code(), Some(77));
        assert_eq!(place.alerts(), [critical("unauthorized")]);
        assert!(place.read("log").contains(code));
        assert!(feed.accept_within(Duration::from_millis(100)).is_none());
    }
}

#[test]
fn a_refusal_counts_although_its_body_does_not_end() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut bot = place.start(&feed.url, &[]);
    let _stalled =
        feed.accept().raw("HTTP/1.1 401 Unauthorized\r\nContent-Length: 500\r\n\r\n{\"error\":\"expired_key\"}");
    assert_eq!(bot.exit_code(), Some(77));
    assert_eq!(place.alerts(), [critical("unauthorized")]);
}

#[test]
fn a_401_or_403_without_a_code_of_the_feed_is_retried() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    feed.accept().answer("403 Forbidden", "Content-Type: text/html\r\n", "<html>Forbidden</html>");
    feed.accept().answer("401 Unauthorized", "WWW-Authenticate: Basic\r\n", "");
    feed.accept().answer("403 Forbidden", "", "{\"error\":\"blocked_by_policy\"}");
    feed.accept().answer("401 Unauthorized", "", "[\"expired_key\"]");
    let stalled = feed.accept().raw("HTTP/1.1 401 Unauthorized\r\nContent-Length: 500\r\n\r\n{");
    let mut stream = feed.open(5);
    drop(stalled);
    stream.insert(6, &row(1, "entry"));
    place.wait_paper(&["sf-1-entry"]);
    assert_eq!(place.alerts(), []);
}

#[test]
fn a_key_file_is_read_again_before_the_bot_gives_up() {
    let (feed, place) = (Feed::new(), Place::new());
    std::fs::write(place.path("key"), "old-key\n").unwrap();
    let mut command = place.command(&["--feed-url", &feed.url, "--feed-api-key-file", "key"]);
    let mut bot = command.env_remove("TRADER_BOT_FEED_API_KEY").spawn().unwrap();
    let request = feed.accept();
    assert_eq!(request.header("authorization"), Some("Bearer old-key"));
    std::fs::write(place.path("key"), "new-key\n").unwrap();
    request.answer("401 Unauthorized", "", "{\"error\":\"expired_key\"}");
    let request = feed.accept();
    assert_eq!(request.header("authorization"), Some("Bearer new-key"));
    assert_eq!(place.alerts(), []);
    request.answer("401 Unauthorized", "", "{\"error\":\"expired_key\"}");
    let ended = until("the end of the bot", || bot.try_wait().unwrap());
    assert_eq!(ended.code(), Some(77));
    assert_eq!(place.alerts(), [critical("unauthorized")]);
}

#[test]
fn unusable_events_raise_one_alert_each_and_are_skipped() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(0);
    stream.send("id: 1\nevent: signal\ndata: this is no json\n\n");
    stream.insert(2, "null");
    stream.insert(3, "{\"action\":\"entry\",\"symbol\":\"A\",\"side\":\"BUY\"}");
    stream.insert(4, "{\"id\":1,\"action\":\"entry\",\"side\":\"BUY\"}");
    stream.insert(5, "{\"id\":1,\"action\":\"hold\",\"symbol\":\"A\",\"side\":\"BUY\"}");
    stream.insert(6, "{\"id\":1,\"action\":\"entry\",\"symbol\":\"A\",\"side\":\"LONG\"}");
    stream.send("event: signal\nid\ndata: [\n\n");
    stream.insert(7, &row(1, "entry"));
    place.wait_paper(&["sf-1-entry"]);
    place.wait_cursor(7);
    until("seven alerts", || (place.count_alerts("unusable_event") == 7).then_some(()));
    // A restart does not bring them back.
    bot.stop();
    let _bot = place.start(&feed.url, &[]);
    assert_eq!(feed.accept().cursor(), Some(7));
    assert_eq!(place.alerts().len(), 7);
}

#[test]
fn a_broker_that_is_away_stops_consumption_and_the_cursor_stays() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    std::fs::write(place.path("trader-bot.away"), "").unwrap();
    stream.insert(7, &row(2, "entry"));
    stream.insert(8, &row(2, "exit"));
    stream.wait_closed();
    place.wait_alert("broker_away");
    assert!(feed.accept_within(Duration::from_millis(300)).is_none(), "the bot consumes without a broker");
    assert_eq!(place.cursor(), Some(6));
    bot.kill();
    // Neither does the next start.
    let _bot = place.start(&feed.url, &[]);
    assert!(feed.accept_within(Duration::from_millis(300)).is_none(), "the bot consumes without a broker");
    assert_eq!(place.paper(), ["sf-1-entry"]);
    std::fs::remove_file(place.path("trader-bot.away")).unwrap();
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(6));
    let mut stream = request.open();
    stream.connected(6);
    stream.insert(7, &row(2, "entry"));
    stream.insert(8, &row(2, "exit"));
    place.wait_paper(&["sf-1-entry", "sf-2-entry", "sf-2-exit"]);
}

#[test]
fn a_fresh_bot_keeps_its_beginning_although_the_broker_is_away() {
    let (feed, place) = (Feed::new(), Place::new());
    std::fs::write(place.path("trader-bot.away"), "").unwrap();
    let _bot = place.start(&feed.url, &[]);
    let stream = feed.open(5);
    stream.wait_closed();
    assert_eq!(place.cursor(), Some(5));
    std::fs::remove_file(place.path("trader-bot.away")).unwrap();
    assert_eq!(feed.accept().cursor(), Some(5));
}

#[test]
fn updates_place_nothing_if_the_order_is_known_or_the_row_is_older_than_the_bot() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    stream.update(7, &row(1, "entry").replace("12.50", "13.50"));
    let old = |id, action| row(id, action).replace("2099-", "2020-");
    stream.update(8, &old(2, "entry"));
    stream.update(9, &old(3, "exit"));
    // The journal knows of row 2 now, so its exit is placed.
    stream.update(10, &old(2, "exit"));
    // Created after the bot's start; only its INSERT was not seen.
    stream.update(11, &row(4, "entry"));
    place.wait_cursor(11);
    assert_eq!(place.paper(), ["sf-1-entry", "sf-2-exit", "sf-4-entry"]);
    assert!(place.journal_has("stale", 2) && place.journal_has("stale", 3));
    place.wait_alert("exit_stale");
    assert_eq!(place.alerts(), [critical("exit_stale")]);
}

#[test]
fn an_id_that_is_used_again_places_nothing_and_raises_an_alert() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    // The same instant under another offset is the same row.
    stream.insert(7, &row(1, "entry").replace("12:00:00+00:00", "14:00:00+02:00"));
    stream.insert(8, &row_of(1, "entry", "OTHER", "BUY"));
    stream.insert(9, &row_of(1, "entry", "ACME", "SELL"));
    stream.insert(10, &row(1, "entry").replace("12:00:00+00:00", "12:00:01+00:00"));
    place.wait_cursor(10);
    assert_eq!(place.paper(), ["sf-1-entry"]);
    until("three alerts", || (place.count_alerts("id_reused") == 3).then_some(()));
    assert_eq!(place.alerts().len(), 3);
}

#[test]
fn old_entries_are_stale_for_good_and_exits_never() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &["--max-entry-age", "1h"]);
    let mut stream = feed.open(5);
    // The scripted feed's event times lie in the past.
    stream.insert(6, &row(1, "entry"));
    stream.insert(7, &row(2, "exit"));
    place.wait_cursor(7);
    assert_eq!(place.paper(), ["sf-2-exit"]);
    assert!(place.journal_has("stale", 1));
    bot.stop();
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(7);
    stream.update(8, &row(1, "entry"));
    place.wait_cursor(8);
    assert_eq!(place.paper(), ["sf-2-exit"]);
}

#[test]
fn a_key_that_ends_soon_is_warned_about_once_a_day() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &[]);
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * 6)).to_string();
    let mut stream = feed.accept().open();
    stream.connected_with(5, &format!("\"{soon}\""));
    place.wait_alert("key_expires");
    stream.send(":ping\n");
    drop(stream);
    let mut stream = feed.accept().open();
    stream.connected_with(5, &format!("\"{soon}\""));
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    bot.stop();
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.accept().open();
    stream.connected_with(6, &format!("\"{soon}\""));
    stream.insert(7, &row(2, "entry"));
    place.wait_cursor(7);
    assert_eq!(place.alerts(), [("WARNING".to_owned(), "key_expires".to_owned())]);
}

#[test]
fn a_clock_that_was_set_back_does_not_silence_the_daily_warning() {
    let (feed, place) = (Feed::new(), Place::new());
    let soon = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)).to_string();
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.accept().open();
    stream.connected_with(5, &format!("\"{soon}\""));
    place.wait_alert("key_expires");
    place.wait("the time of the warning", || place.state()["key_warned_at"].is_string());
    bot.stop();
    let mut state = place.state();
    state["key_warned_at"] = "2099-01-01T00:00:00Z".into();
    std::fs::write(place.path("trader-bot.state"), state.to_string()).unwrap();
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.accept().open();
    stream.connected_with(5, &format!("\"{soon}\""));
    place.wait("a second warning", || place.count_alerts("key_expires") == 2);
}

#[test]
fn another_address_of_the_same_log_is_tried_at_once() {
    let (one, two, place) = (Feed::new(), Feed::new(), Place::new());
    let bot = place.start(&one.url, &["--feed-url", &two.url, "--backoff-min", "20s", "--backoff-max", "20s"]);
    one.accept().answer("503 Service Unavailable", "Retry-After: 600\r\n", "{}");
    let mut stream = two.open(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    bot.stop();
    let mut command = place.command(&[]);
    command.env("TRADER_BOT_FEED_URL", format!("{},{}", one.url, two.url)).env("TRADER_BOT_READ_TIMEOUT", "1s");
    let mut child = command.spawn().unwrap();
    // Silence is as good a reason as a closed or refused connection.
    let _silent = one.open(6);
    assert_eq!(two.accept().cursor(), Some(6));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_largest_block_of_a_feed_is_accepted_and_a_larger_one_is_logged() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    let note = "x".repeat((16 << 20) - 600);
    stream.insert(6, &row(1, "entry").replace("\"meta\": {}", &format!("\"meta\": \"{note}\"")));
    place.wait_cursor(6);
    assert_eq!(place.paper(), ["sf-1-entry"]);
    stream.send("data: ");
    for _ in 0..18 {
        stream.send(&"y".repeat(1 << 20));
    }
    assert_eq!(feed.accept().cursor(), Some(6));
    assert!(place.read("log").contains("one event is larger than"), "no such line");
}
