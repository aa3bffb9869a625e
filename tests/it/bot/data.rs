//! Data as it is in practice: backfills, times without a zone, ids written in several ways, and bodies that are not
//! streams.

use std::process::Command;

use serde_json::Value;

use super::feed::{FEED_ID, Feed, Open, row, time_of};
use super::process::Place;
use crate::support::wait::until;

fn ago(seconds: i64) -> String {
    (jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds)).to_string()
}

/// A row with this `created_at`.
fn created(id: i64, action: &str, created_at: &str) -> String {
    row(id, action).replace("2099-11-20T12:00:00+00:00", created_at)
}

/// A `signal` block with any data.
fn block(stream: &mut Open, id: &str, data: &str) {
    stream.send(&format!("id: {id}\nevent: signal\ndata: {data}\n\n"));
}

/// A journal of a bot that first started in 2020, so that nothing is from before its time.
fn begin_in_2020(place: &Place) {
    let first = "{\"record\":\"journal\",\"time\":\"2020-01-01T00:00:00Z\",\"version\":1}\n";
    std::fs::write(place.path("trader-bot.journal"), first).unwrap();
}

#[test]
fn a_backfill_is_stale_and_its_exits_raise_an_alert() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    place.wait_cursor(5);
    stream.insert(6, &created(1, "entry", "2020-01-01T00:00:00+00:00"));
    stream.insert(7, &created(2, "exit", &ago(90)));
    stream.insert(8, &created(3, "entry", &ago(20)));
    // The journal knows of row 1 now.
    stream.update(9, &created(1, "exit", "2020-01-01T00:00:00+00:00"));
    place.wait_cursor(9);
    assert_eq!(place.paper(), ["sf-3-entry", "sf-1-exit"]);
    assert!(place.journal_has("stale", 1) && place.journal_has("stale", 2));
    place.wait_alert("exit_stale");
    assert_eq!(place.alerts().len(), 1);
}

#[test]
fn a_row_of_unknown_age_is_new_in_an_insert_and_old_in_an_update() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &created(1, "entry", "2020-01-01T00:00:00"));
    stream.update(7, &created(2, "entry", "2099-01-01T00:00:00"));
    stream.insert(8, &created(3, "entry", "infinity"));
    place.wait_cursor(8);
    assert_eq!(place.paper(), ["sf-1-entry", "sf-3-entry"]);
    assert!(place.journal_has("stale", 2));
}

#[test]
fn the_age_of_an_entry_counts_from_the_older_of_its_two_times() {
    let (feed, place) = (Feed::new(), Place::new());
    begin_in_2020(&place);
    let _bot = place.start(&feed.url, &["--max-entry-age", "1h"]);
    let mut stream = feed.open(5);
    let now = ago(0);
    let event = |seq: i64, time: &str, row: &str| {
        format!(
            "{{\"feed_seq\":{seq},\"prev_seq\":{},\"event_time\":\"{time}\",\"op\":\"INSERT\",\"signal\":{row}}}",
            seq - 1
        )
    };
    // Logged now and created long ago, as in a restored table; then the reverse; then recent in both.
    block(&mut stream, "6", &event(6, &now, &created(1, "entry", &ago(7200))));
    block(&mut stream, "7", &event(7, &ago(7200), &created(2, "entry", &now)));
    block(&mut stream, "8", &event(8, &now, &created(3, "entry", &ago(60))));
    place.wait_cursor(8);
    assert_eq!(place.paper(), ["sf-3-entry"]);
    assert!(place.journal_has("stale", 1) && place.journal_has("stale", 2));
}

#[test]
fn a_row_created_before_christ_or_at_minus_infinity_is_old() {
    for time in ["-infinity", "0044-03-15T00:00:00+00:00 BC"] {
        let (feed, place) = (Feed::new(), Place::new());
        let bot = place.start(&feed.url, &[]);
        let mut stream = feed.open(5);
        stream.insert(6, &created(1, "entry", time));
        stream.insert(7, &created(2, "exit", time));
        place.wait_cursor(7);
        assert!(place.journal_has("stale", 1) && place.journal_has("stale", 2), "{time}");
        place.wait_alert("exit_stale");
        assert_eq!(place.paper(), Vec::<String>::new());
        bot.stop();
        // Of a known row: only its age counts.
        let _bot = place.start(&feed.url, &["--max-entry-age", "1h"]);
        let mut stream = feed.open(7);
        stream.insert(8, &created(2, "entry", time));
        place.wait_cursor(8);
        assert!(place.read("trader-bot.journal").contains("older than 1h"), "{time}");
    }
}

#[test]
fn a_number_is_one_id_however_it_is_written() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    for (seq, id) in [(6, "1"), (7, "1.0"), (8, "1e0"), (9, "10E-1")] {
        stream.insert(seq, &row(1, "entry").replace("\"id\": 1,", &format!("\"id\": {id},")));
    }
    stream.insert(10, &row(1, "entry").replace("\"id\": 1,", "\"id\": 2.50,"));
    place.wait_cursor(10);
    assert_eq!(place.paper(), ["sf-1-entry", "sf-2.5-entry"]);
    assert_eq!(place.alerts(), []);
    bot.stop();
    let journal = place.read("trader-bot.journal");
    let intents = journal.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let ids: Vec<String> = intents.filter_map(|line| Some(line.get("order")?["signal_id"].to_string())).collect();
    assert_eq!(ids, ["1", "2.5"]);
}

#[test]
fn an_array_is_not_an_event_and_moves_no_cursor() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    for (id, data) in [
        ("6", "[1,2]".to_owned()),
        ("7", "[9000,1,null,null,null]".to_owned()),
        ("8", format!("[8,7,\"{}\",\"INSERT\",{}]", time_of(8), row(1, "entry"))),
        ("9", format!("{{\"feed_seq\":9,\"prev_seq\":8,\"op\":\"INSERT\",\"signal\":[{}]}}", row(1, "entry"))),
    ] {
        block(&mut stream, id, &data);
    }
    stream.system(&format!("[\"connected\",\"{FEED_ID}\",1]"));
    stream.insert(10, &row(2, "entry"));
    place.wait_cursor(10);
    assert_eq!(place.paper(), ["sf-2-entry"]);
    until("four alerts", || (place.count_alerts("unusable_event") == 4).then_some(()));
    assert_eq!(place.alerts().len(), 4);
}

#[test]
fn a_number_that_leaves_a_hole_is_not_believed() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    let largest = i64::MAX;
    block(&mut stream, &largest.to_string(), "not json");
    block(&mut stream, "900", "not json either");
    // The block and its data do not agree.
    block(
        &mut stream,
        "900",
        &format!("{{\"feed_seq\":9000,\"prev_seq\":1,\"op\":\"INSERT\",\"signal\":{}}}", row(9, "entry")),
    );
    // Named by an earlier block only.
    stream.send("event: signal\ndata: without an id\n\n");
    stream.send(&format!(
        "id: {largest}\nevent: system\ndata: {{\"reason\":\"quarantined\",\"feed_seq\":{largest},\"prev_seq\":5,\"error\":\"x\"}}\n\n"
    ));
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    until("five alerts", || (place.count_alerts("unusable_event") == 5).then_some(()));
    // A notice that does not name the event before it may hide a hole.
    stream.send("id: 9\nevent: system\ndata: {\"reason\":\"quarantined\",\"feed_seq\":9,\"error\":\"x\"}\n\n");
    stream.wait_closed();
    let mut stream = feed.open(6);
    // The same unreadable events come again; each raises one alert.
    block(&mut stream, "900", "not json either");
    stream.insert(7, &row(2, "entry"));
    place.wait_cursor(7);
    bot.stop();
    assert_eq!(place.paper(), ["sf-1-entry", "sf-2-entry"]);
    assert_eq!(place.alerts().len(), 5);
}

#[test]
fn an_event_time_that_is_not_a_time_is_not_sent_as_a_cursor_time() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    let data = format!(
        "{{\"feed_seq\":6,\"prev_seq\":5,\"event_time\":\"yesterday\",\"op\":\"INSERT\",\"signal\":{}}}",
        row(1, "entry")
    );
    block(&mut stream, "6", &data);
    place.wait_cursor(6);
    drop(stream);
    let request = feed.accept();
    assert_eq!((request.cursor(), request.query("cursor_time")), (Some(6), None));
    assert_eq!(place.paper(), ["sf-1-entry"]);
}

#[test]
fn a_refused_cursor_is_tried_without_its_time_and_then_raises_one_alert() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    drop(stream);
    let refuse = |with_time: bool| {
        let request = feed.accept();
        assert_eq!((request.cursor(), request.query("cursor_time").is_some()), (Some(6), with_time));
        request.answer("400 Bad Request", "", "{\"error\":\"bad_cursor\",\"message\":\"no such time\"}");
    };
    refuse(true);
    refuse(false);
    place.wait_alert("bad_cursor");
    refuse(false);
    refuse(false);
    let mut stream = feed.open(6);
    stream.insert(7, &row(2, "entry"));
    place.wait_paper(&["sf-1-entry", "sf-2-entry"]);
    assert_eq!(place.alerts(), [("CRITICAL".to_owned(), "bad_cursor".to_owned())]);
}

#[test]
fn a_stream_without_a_readable_connected_block_places_nothing() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &["--read-timeout", "1s"]);
    for first in [
        "",
        "event: system\ndata: {\"reason\":\"connected\"}\n\n",
        "event: system\ndata: {\"reason\":\"connected\",\"feed_id\":7,\"cursor\":5}\n\n",
        "event: system\ndata: {\"reason\":\"connected\",\"feed_id\":\"x\",\"cursor\":-5}\n\n",
        "event: system\ndata: connected\n\n",
    ] {
        let mut stream = feed.accept().open();
        stream.send(first);
        stream.insert(6, &row(1, "entry"));
        stream.wait_closed();
    }
    // Heartbeats alone do not keep such a stream.
    let mut stream = feed.accept().open();
    let pings = std::thread::spawn(move || {
        while !stream.is_closed() {
            stream.send(":ping\n");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    let mut stream = feed.open(5);
    pings.join().unwrap();
    assert_eq!(place.paper(), Vec::<String>::new());
    stream.insert(6, &row(1, "entry"));
    place.wait_paper(&["sf-1-entry"]);
    assert_eq!(place.state()["feed_id"], FEED_ID);
}

#[test]
fn control_characters_in_a_row_make_it_unusable_and_reach_no_terminal() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry").replace("ACME", "AC\\u001b[2JME"));
    stream.insert(7, &row(2, "entry").replace("\"id\": 2", "\"id\": \"2\\u0007\""));
    stream.system("{\"reason\":\"party\",\"what\":\"\u{1b}[2J\"}");
    stream.send("event: \u{1b}[2Jtype\ndata: x\n\n");
    until("two alerts", || (place.count_alerts("unusable_event") == 2).then_some(()));
    drop(stream);
    let mut stream = feed.accept().open();
    stream.connected_as("\\u001b[2J", 7, 0, "null");
    assert_eq!(bot.exit_code(), Some(1));
    let log = place.read("log");
    assert!(log.contains(FEED_ID) && log.contains("\\u001b[2J"), "{log}");
    assert!(!log.contains('\u{1b}') && !place.read("alerts").contains('\u{1b}'), "{log}");
    assert_eq!(place.paper(), Vec::<String>::new());
}

#[test]
fn repeated_messages_of_a_feed_do_not_fill_the_log_and_no_line_is_long() {
    let (feed, place) = (Feed::new(), Place::new());
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    let flood = format!("event: {}\ndata: {}\n\n", "x".repeat(2000), "y".repeat(2000));
    for _ in 0..2000 {
        stream.send(&flood);
    }
    for number in 0..40 {
        stream.send(&format!("event: signal\ndata: nonsense {number}\n\n"));
    }
    stream.insert(6, &row(1, "entry").replace("\"id\": 1,", &format!("\"id\": \"{}\",", "z".repeat(1 << 20))));
    stream.insert(7, &row(2, "entry"));
    stream.system("{\"reason\":\"quarantined\",\"feed_seq\":8,\"prev_seq\":7,\"error\":\"bad\"}");
    place.wait_cursor(8);
    let log = place.read("log");
    // Repeated alerts are summarised, and they do not hide one of another kind.
    assert!(log.matches("CRITICAL unusable_event").count() < 20 && log.contains("CRITICAL quarantined"), "{log}");
    assert!(log.len() < 100_000, "{} bytes", log.len());
    assert!(log.lines().all(|line| line.len() <= 4096));
    assert!(log.contains("sf-2-entry placed: BUY 100 ACME at 12.50"), "{log}");
}

#[test]
fn no_nonsense_of_a_feed_stops_the_bot_or_places_an_order() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut bot = place.start(&feed.url, &[]);
    let deep = "[".repeat(100_000);
    let long = "9".repeat(5_000);
    let rows = ["null", "1", "\"x\"", "[]", "{}", "{\"id\":{}}", &deep, &long];
    let mut nonsense: Vec<String> = vec![
        "data\n\n".into(),
        "id: \u{0}\nevent: signal\ndata: {}\n\n".into(),
        "event: signal\nid: -1\ndata: {\"feed_seq\":-1,\"prev_seq\":-2}\n\n".into(),
        "event: system\ndata: {\"reason\":\"quarantined\"}\n\n".into(),
        "event: system\ndata: {\"reason\":\"quarantined\",\"feed_seq\":\"6\"}\n\n".into(),
        "event: system\ndata: {\"reason\":[\"dropped\"]}\n\n".into(),
        format!("event: system\ndata: {deep}\n\n"),
        format!("event: signal\nid: {long}\ndata: {{\"feed_seq\":{long}}}\n\n"),
        "event: signal\nid: 6\ndata: {\"feed_seq\":6,\"feed_seq\":7,\"prev_seq\":5}\n\n".into(),
        "retry: 99999999999999999999\n\n".into(),
    ];
    for row in rows {
        nonsense.push(format!("event: signal\ndata: {{\"op\":\"INSERT\",\"prev_seq\":5,\"signal\":{row}}}\n\n"));
        nonsense.push(format!("event: signal\ndata: {row}\n\n"));
        nonsense.push(format!("event: system\ndata: {{\"reason\":{row}}}\n\n"));
    }
    let mut stream = feed.open(5);
    for block in &nonsense {
        stream.send(block);
    }
    // A hole, so the bot reconnects after whatever it made of the nonsense.
    stream.insert(100, &row(1, "entry"));
    let request = feed.accept();
    let cursor = request.cursor().unwrap();
    let mut stream = request.open();
    stream.connected(cursor);
    stream.insert(cursor + 1, &row(2, "entry"));
    place.wait_paper(&["sf-2-entry"]);
    assert!(bot.is_running());
}

/// Runs where mounting is allowed, as below.
#[test]
fn a_full_disk_ends_the_bot_and_no_order_is_sent_that_is_not_journalled() {
    if !may_mount() {
        return;
    }
    let (feed, place) = (Feed::new(), Place::new());
    std::fs::create_dir(place.path("small")).unwrap();
    place.script("broker", "grep -o '\"order_ref\":\"[^\"]*\"' >> asked; cp small/journal journal.copy");
    let options = ["--feed-url", &feed.url, "--state-file", "small/state", "--journal", "small/journal"];
    let mut bot = mounted(
        &place,
        "mount -t tmpfs -o size=64k none small",
        &[&options[..], &["--broker", "exec:./broker"]].concat(),
    );
    let mut stream = feed.open(5);
    for id in 1..=200 {
        stream
            .insert(5 + id, &row(id, "entry").replace("\"meta\": {}", &format!("\"meta\": \"{}\"", "x".repeat(1500))));
    }
    let ended = until("the end of the bot", || bot.try_wait().unwrap());
    assert_eq!(ended.code(), Some(1), "{}", place.read("log"));
    assert!(place.read("log").contains("No space left on device"), "{}", place.read("log"));
    let (asked, journal) = (place.read("asked"), place.read("journal.copy"));
    assert!(asked.lines().count() > 5 && asked.lines().count() < 200);
    for (number, line) in asked.lines().enumerate() {
        assert_eq!(line, format!("\"order_ref\":\"sf-{}-entry\"", number + 1), "each once");
        assert!(journal.contains(line), "{line} was sent and is not in the journal");
    }
}

fn may_mount() -> bool {
    Command::new("unshare").args(["-m", "true"]).status().is_ok_and(|status| status.success())
}

/// A bot in a mount namespace of its own, after this command.
fn mounted(place: &Place, mount: &str, arguments: &[&str]) -> std::process::Child {
    let bot = place.command(arguments);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &format!("{mount} && exec \"$0\" \"$@\"")]);
    command.arg(bot.get_program()).args(bot.get_args()).current_dir(&place.dir);
    command.envs(bot.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let log = std::fs::File::create(place.path("log")).unwrap();
    command.stderr(log).spawn().unwrap()
}

/// Runs where mounting is allowed (root in a mount namespace of its own), as CI does.
#[test]
fn a_journal_that_can_be_appended_to_but_not_replaced_is_a_warning() {
    if !may_mount() {
        return;
    }
    // Mounted in place, and into a directory that is read-only.
    let in_place = "for f in journal state; do mount --bind trader-bot.$f trader-bot.$f || exit 9; done";
    let read_only = "mkdir ro && mount --bind ro ro && for f in journal state paper; do touch ro/trader-bot.$f && \
                     mount --bind trader-bot.$f ro/trader-bot.$f || exit 9; done; mount -o remount,bind,ro ro";
    for (mount, journal, state) in [
        (in_place, "trader-bot.journal", "trader-bot.state"),
        (read_only, "ro/trader-bot.journal", "ro/trader-bot.state"),
    ] {
        let (feed, place) = (Feed::new(), Place::new());
        begin_in_2020(&place);
        std::fs::write(place.path("trader-bot.state"), "").unwrap();
        std::fs::write(place.path("trader-bot.paper"), "").unwrap();
        let options = ["--feed-url", &feed.url, "--journal", journal, "--state-file", state];
        let mut child = mounted(&place, mount, &options);
        let mut stream = feed.open(5);
        stream.insert(6, &row(1, "entry"));
        place.wait_cursor(6);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(place.paper(), ["sf-1-entry"]);
        let log = place.read("log");
        assert!(log.contains("replace the state file"), "{log}");
        // The next bot continues from what was written.
        let _bot = place.start(&feed.url, &[]);
        assert_eq!(feed.accept().cursor(), Some(6));
    }
}
