//! State file and journal: torn, lost, locked, bound to one log.

use std::fs;

use super::feed::{Feed, row};
use super::process::{Place, references};

/// A place whose bot has placed the entry of row 1, with cursor 6, in close-only mode or not.
fn worked(feed: &Feed, close_only: bool) -> Place {
    let place = Place::new();
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    if close_only {
        stream.system("{\"reason\":\"history_rewritten\",\"cursor\":5,\"head\":5}");
    }
    stream.insert(6, &row(1, if close_only { "exit" } else { "entry" }));
    place.wait_cursor(6);
    bot.stop();
    place
}

#[test]
fn a_lost_or_torn_state_file_is_made_from_the_journal() {
    for state in [None, Some(""), Some("{\"cursor\":6,\"mo"), Some("\0\0\0\0")] {
        let feed = Feed::new();
        let place = worked(&feed, true);
        match state {
            None => fs::remove_file(place.path("trader-bot.state")).unwrap(),
            Some(torn) => fs::write(place.path("trader-bot.state"), torn).unwrap(),
        }
        let _bot = place.start(&feed.url, &[]);
        let request = feed.accept();
        assert_eq!(request.cursor(), Some(6));
        let mut stream = request.open();
        stream.connected(6);
        stream.insert(6, &row(1, "exit"));
        stream.insert(7, &row(2, "entry"));
        stream.insert(8, &row(3, "exit"));
        place.wait_cursor(8);
        assert_eq!(place.paper(), ["sf-1-exit", "sf-3-exit"], "the mode was forgotten");
    }
}

#[test]
fn an_older_state_file_repeats_events_and_no_order() {
    let feed = Feed::new();
    let place = worked(&feed, false);
    let old = place.read("trader-bot.state").replace("\"cursor\":6", "\"cursor\":5");
    fs::write(place.path("trader-bot.state"), old).unwrap();
    let _bot = place.start(&feed.url, &[]);
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(5));
    let mut stream = request.open();
    stream.connected(5);
    stream.insert(6, &row(1, "entry"));
    stream.insert(7, &row(2, "entry"));
    place.wait_cursor(7);
    assert_eq!(place.paper(), ["sf-1-entry", "sf-2-entry"]);
}

#[test]
fn a_cursor_of_the_log_before_a_restore_does_not_win() {
    let feed = Feed::new();
    let place = worked(&feed, true);
    // As after a kill between the journal's line of event 6 and the state file.
    let old = place.read("trader-bot.state").replace("\"cursor\":6", "\"cursor\":1000");
    fs::write(place.path("trader-bot.state"), old).unwrap();
    let _bot = place.start(&feed.url, &[]);
    assert_eq!(feed.accept().cursor(), Some(6));
}

#[test]
fn a_bot_that_ends_while_it_enters_close_only_mode_has_raised_the_alert() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    place.wait_cursor(5);
    fs::create_dir(place.path("trader-bot.state.tmp")).unwrap();
    stream.system("{\"reason\":\"history_rewritten\",\"cursor\":5,\"head\":5}");
    assert_eq!(bot.exit_code(), Some(1));
    place.wait_alert("history_rewritten");
}

#[test]
fn a_lost_journal_beside_a_state_file_ends_the_bot() {
    for how in ["removed", "emptied", "torn in its first line"] {
        let feed = Feed::new();
        let place = worked(&feed, false);
        let journal = place.path("trader-bot.journal");
        match how {
            "removed" => fs::remove_file(&journal).unwrap(),
            "emptied" => fs::write(&journal, "").unwrap(),
            _ => fs::write(&journal, "{\"record\":\"jou").unwrap(),
        }
        let mut bot = place.start(&feed.url, &[]);
        assert_eq!(bot.exit_code(), Some(1), "{how}");
        let log = place.read("log");
        assert!(log.contains("trader-bot.journal") && log.contains("is lost"), "{log}");
    }
}

#[test]
fn an_older_journal_beside_the_state_file_ends_the_bot_and_nothing_is_placed_again() {
    for how in ["before some orders", "its first line only", "a state file of an older version"] {
        let feed = Feed::new();
        let place = worked(&feed, false);
        let journal = place.path("trader-bot.journal");
        let mut older = place.read("trader-bot.journal");
        let bot = place.start(&feed.url, &[]);
        let mut stream = feed.open(6);
        stream.insert(7, &row(2, "entry"));
        stream.insert(8, &row(3, "exit"));
        place.wait_cursor(8);
        bot.stop();
        if how == "its first line only" {
            older.truncate(older.find('\n').unwrap() + 1);
        }
        if how == "a state file of an older version" {
            let mut state = place.state();
            assert_eq!(state.as_object_mut().unwrap().remove("orders").unwrap(), 3);
            fs::write(place.path("trader-bot.state"), state.to_string()).unwrap();
            let _bot = place.start(&feed.url, &[]);
            assert_eq!(feed.accept().cursor(), Some(8));
            continue;
        }
        fs::write(&journal, older).unwrap();
        let mut bot = place.start(&feed.url, &[]);
        assert_eq!(bot.exit_code(), Some(1), "{how}");
        let log = place.read("log");
        assert!(log.contains("the journal is older than the state file"), "{log}");
        assert_eq!(place.paper().len(), 3);
    }
}

#[test]
fn close_only_mode_wins_if_state_file_and_journal_differ() {
    let (feed, place) = (Feed::new(), Place::new());
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    let older = place.read("trader-bot.journal");
    stream.system("{\"reason\":\"replay_truncated\",\"cursor\":6,\"head\":6}");
    place.wait_alert("replay_truncated");
    place.wait("close-only mode", || place.state()["mode"] == "close_only");
    bot.stop();
    fs::write(place.path("trader-bot.journal"), older).unwrap();
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(6);
    stream.insert(7, &row(2, "entry"));
    stream.insert(8, &row(3, "exit"));
    place.wait_cursor(8);
    bot.stop();
    assert!(place.journal_has("blocked", 2));
    // The journal alone suffices again.
    fs::remove_file(place.path("trader-bot.state")).unwrap();
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(8);
    stream.insert(9, &row(4, "entry"));
    place.wait_cursor(9);
    assert_eq!(place.paper(), ["sf-1-entry", "sf-3-exit"]);
}

#[test]
fn empty_files_made_for_a_bind_mount_are_a_new_start() {
    let (feed, place) = (Feed::new(), Place::new());
    fs::write(place.path("trader-bot.state"), "").unwrap();
    fs::write(place.path("trader-bot.journal"), "").unwrap();
    let _bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    place.wait_cursor(6);
    assert_eq!(place.paper(), ["sf-1-entry"]);
}

#[test]
fn a_second_bot_on_the_same_journal_or_state_file_is_refused() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut first = place.start(&feed.url, &[]);
    let _stream = feed.open(5);
    place.wait_cursor(5);
    std::os::unix::fs::symlink(place.path("trader-bot.journal"), place.path("alias")).unwrap();
    // Like a bind mount in another container: the same file under another name.
    fs::hard_link(place.path("trader-bot.journal"), place.path("hard-link")).unwrap();
    for files in [
        ["--state-file", "trader-bot.state", "--journal", "trader-bot.journal"],
        ["--state-file", "other.state", "--journal", "trader-bot.journal"],
        ["--state-file", "other.state", "--journal", "alias"],
        ["--state-file", "other.state", "--journal", "hard-link"],
        ["--state-file", "trader-bot.state", "--journal", "other.journal"],
    ] {
        let mut second = place.start(&feed.url, &files);
        assert_eq!(second.exit_code(), Some(1), "{files:?}");
    }
    let mut same = place.start(&feed.url, &["--state-file", "alias", "--journal", "trader-bot.journal"]);
    assert_eq!(same.exit_code(), Some(2), "one file for both");
    assert_eq!(place.read("log").matches("another trader-bot is running").count(), 5, "{}", place.read("log"));
    assert!(first.is_running());
}

#[test]
fn another_log_is_refused_and_both_are_named() {
    let feed = Feed::new();
    let place = worked(&feed, false);
    let mut bot = place.start(&feed.url, &[]);
    let other = "99999999-2222-3333-4444-555555555555";
    let mut stream = feed.accept().open();
    stream.system(&format!("{{\"reason\":\"connected\",\"feed_id\":\"{other}\",\"cursor\":6}}"));
    stream.insert(7, &row(2, "entry"));
    assert_eq!(bot.exit_code(), Some(1));
    let log = place.read("log");
    assert!(log.contains(other) && log.contains(super::feed::FEED_ID), "{log}");
    assert_eq!(place.paper(), ["sf-1-entry"]);
}

#[test]
fn the_last_line_of_a_bot_is_not_long_either() {
    let feed = Feed::new();
    let place = worked(&feed, false);
    let mut bot = place.start(&feed.url, &[]);
    let mut stream = feed.accept().open();
    stream.system(&format!("{{\"reason\":\"connected\",\"feed_id\":\"{}\",\"cursor\":6}}", "x".repeat(100_000)));
    assert_eq!(bot.exit_code(), Some(1));
    let log = place.read("log");
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.len() <= 4096, "{} bytes", last.len());
}

#[test]
fn files_that_cannot_be_written_end_the_bot_before_any_order() {
    for files in [
        ["--state-file", "trader-bot.state", "--journal", "/dev/full"],
        ["--state-file", "no/such/directory/state", "--journal", "trader-bot.journal"],
        ["--state-file", "a-directory", "--journal", "trader-bot.journal"],
        ["--state-file", "trader-bot.state", "--journal", "a-directory"],
    ] {
        let (feed, place) = (Feed::new(), Place::new());
        fs::create_dir(place.path("a-directory")).unwrap();
        let mut bot = place.start(&feed.url, &files);
        assert_eq!(bot.exit_code(), Some(1), "{files:?}");
        let log = place.read("log");
        assert!(log.lines().last().is_some_and(|line| line.starts_with("error: ")), "{log}");
        assert_eq!(references(&place.path("trader-bot.paper")), Vec::<String>::new());
    }
}

#[test]
fn a_state_file_that_becomes_unwritable_ends_the_bot_and_the_order_is_not_repeated() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut bot = place.start(&feed.url, &[]);
    let mut stream = feed.open(5);
    place.wait_cursor(5);
    // A directory now has the name of the temporary state file.
    fs::create_dir(place.path("trader-bot.state.tmp")).unwrap();
    stream.insert(6, &row(1, "entry"));
    stream.insert(7, &row(2, "entry"));
    assert_eq!(bot.exit_code(), Some(1));
    assert_eq!(place.paper(), ["sf-1-entry"]);
    fs::remove_dir(place.path("trader-bot.state.tmp")).unwrap();
    let _bot = place.start(&feed.url, &[]);
    let request = feed.accept();
    let mut stream = request.open();
    stream.connected(5);
    stream.insert(6, &row(1, "entry"));
    stream.insert(7, &row(2, "entry"));
    place.wait_paper(&["sf-1-entry", "sf-2-entry"]);
}

#[test]
fn a_line_written_by_hand_settles_an_unknown_outcome() {
    let (feed, place) = (Feed::new(), Place::new());
    place.script("broker", "echo asked >> asked; exit 1");
    let bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "exit"));
    place.wait_alert("outcome_unknown");
    bot.stop();
    let line = "{\"record\":\"placed\",\"time\":\"2026-11-20T12:00:00Z\",\"signal_id\":1,\"action\":\"exit\"}\n";
    let journal = place.read("trader-bot.journal") + line;
    fs::write(place.path("trader-bot.journal"), journal).unwrap();
    fs::remove_file(place.path("asked")).unwrap();
    let _bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let request = feed.accept();
    let mut stream = request.open();
    stream.connected(5);
    stream.insert(6, &row(1, "exit"));
    place.wait_cursor(6);
    assert!(!place.path("asked").exists());
}
