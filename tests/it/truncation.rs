//! The replay window: a client gets a notice exactly if it missed something.

use serde_json::json;

use crate::support::database::Database;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::sse::{Request, Stream};
use crate::support::wait::until;

/// An hour: long enough that no test moves its edge by being slow.
const WINDOW: &[&str] = &["--replay-window", "1h"];

/// A log of these numbers, each with its age in minutes.
fn log_of(rows: &[(i64, i64)]) -> Database {
    let database = Database::migrated();
    for (seq, age) in rows {
        database.log_row(*seq, &format!("clock_timestamp() - interval '{age} minutes'"), "'{\"symbol\": \"S\"}'");
    }
    database
}

/// What a cursor is told after `connected`: the notice's `earliest`, where there is one, and then these numbers with
/// their `prev_seq`, and nothing more before an event that is inserted now.
fn check(database: &Database, server: &Server, key: &str, cursor: i64, notice: Option<i64>, events: &[(i64, i64)]) {
    let context = format!("cursor {cursor}");
    let mut stream = server.stream_from(key, cursor);
    let connected = stream.connected();
    assert_eq!((connected.id, connected.number("cursor")), (Some(cursor), cursor), "{context}");
    if let Some(earliest) = notice {
        let truncated = stream.system("replay_truncated");
        assert_eq!(truncated.data, json!({"reason": "replay_truncated", "requested": cursor, "earliest": earliest}));
        assert_eq!(truncated.id, None, "{context}");
        assert_eq!(connected.number("earliest"), earliest, "{context}");
        assert_eq!(stream.cursor, Some(cursor), "{context}: it is told again if it loses the connection now");
    }
    for (prev, seq) in events {
        let signal = stream.signal();
        assert_eq!((signal.prev_seq(), signal.feed_seq()), (Some(*prev), Some(*seq)), "{context}");
    }
    let prev = database.head();
    database.insert(1);
    let live = stream.signal();
    assert_eq!((live.prev_seq(), live.feed_seq()), (Some(prev), Some(prev + 1)), "{context}");
}

#[test]
fn the_edge_of_the_window_is_exact() {
    let rows = [(1, 200), (2, 150), (3, 70), (4, 50), (5, 10)];
    for (cursor, notice, from) in
        [(0, Some(4), 4), (1, Some(4), 4), (2, Some(4), 4), (3, None, 4), (4, None, 5), (5, None, 6)]
    {
        let database = log_of(&rows);
        let key = database.mint("bot");
        let server = Server::ready(&database, WINDOW);
        let events: Vec<(i64, i64)> = (from..=5).map(|seq| (seq - 1, seq)).collect();
        check(&database, &server, &key, cursor, notice, &events);
        if notice.is_some() {
            server.wait_log(&["truncated", "bot"]);
        }
    }
}

#[test]
fn a_quiet_week_is_no_loss() {
    let database = log_of(&[(1, 20_000), (2, 19_000), (3, 18_000)]);
    let key = database.mint("bot");
    let server = Server::ready(&database, WINDOW);
    let connected = server.stream_from(&key, 3).connected();
    assert_eq!((connected.number("head"), connected.number("earliest")), (3, 4));
    check(&database, &server, &key, 3, None, &[]);
}

#[test]
fn an_empty_window_tells_who_missed_something_and_begins_behind_the_head() {
    for cursor in [0, 1, 2] {
        let database = log_of(&[(1, 20_000), (2, 19_000), (3, 18_000)]);
        let key = database.mint("bot");
        let server = Server::ready(&database, WINDOW);
        check(&database, &server, &key, cursor, Some(4), &[]);
    }
}

#[test]
fn an_empty_log_truncates_nothing() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, WINDOW);
    let connected = server.stream_from(&key, 0).connected();
    assert_eq!((connected.number("head"), connected.number("earliest")), (0, 1));
    check(&database, &server, &key, 0, None, &[]);
}

#[test]
fn a_cursor_in_an_old_hole_misses_what_its_row_would_miss() {
    // Rows 3 and 10 with a hole between, the window begins at 10 or before.
    for (rows, cursor, notice, events) in [
        (&[(1, 200), (3, 100), (10, 50), (11, 10)][..], 5, None, &[(3, 10), (10, 11)][..]),
        (&[(1, 200), (3, 100), (10, 50), (11, 10)], 9, None, &[(3, 10), (10, 11)]),
        (&[(1, 200), (3, 100), (10, 50), (11, 10)], 2, Some(10), &[(3, 10), (10, 11)]),
        (&[(1, 200), (3, 100), (10, 90), (11, 10)], 5, Some(11), &[(10, 11)]),
        (&[(1, 200), (3, 100), (10, 90), (11, 10)], 10, None, &[(10, 11)]),
        (&[(5, 10), (6, 10)], 0, None, &[(0, 5), (5, 6)]),
        (&[(5, 10), (6, 10)], 3, None, &[(0, 5), (5, 6)]),
    ] {
        let database = log_of(rows);
        let key = database.mint("bot");
        let server = Server::ready(&database, WINDOW);
        check(&database, &server, &key, cursor, notice, events);
    }
}

#[test]
fn a_row_with_a_time_out_of_order_does_not_hide_those_after_it() {
    // The clock stepped back between 2 and 3: every row after the first one in the window is in it.
    let database = log_of(&[(1, 100), (2, 50), (3, 70), (4, 40)]);
    let key = database.mint("bot");
    let server = Server::ready(&database, WINDOW);
    check(&database, &server, &key, 1, None, &[(1, 2), (2, 3), (3, 4)]);
}

#[test]
fn an_unusable_time_does_not_begin_the_window() {
    let database = log_of(&[(1, 100)]);
    database.log_row(2, "'infinity'", "'{\"symbol\": \"S\"}'");
    database.log_row(3, "clock_timestamp() - interval '10 minutes'", "'{\"symbol\": \"S\"}'");
    let key = database.mint("bot");
    let server = Server::ready(&database, WINDOW);
    let mut stream = server.stream_from(&key, 1);
    stream.connected();
    let truncated = stream.system("replay_truncated");
    assert_eq!(truncated.number("earliest"), 3);
    assert_eq!(stream.signal().prev_seq(), Some(2));
}

#[test]
fn after_a_prune_replay_is_truncated_and_the_last_pruned_number_stays_the_predecessor() {
    let database = log_of(&[(1, 300), (2, 290), (3, 280), (4, 30), (5, 20)]);
    let key = database.mint("bot");
    let said = signal_feed(&database.url, &["prune", "--older-than", "2h", "--replay-window", "1h"]).ok();
    assert_eq!(database.number("select pruned_through from stock_market.signal_feed_pruned"), 3, "{said}");
    assert_eq!(database.number("select min(feed_seq) from stock_market.signal_feed_event"), 4);
    // A window that is wider than what prune has left.
    let server = Server::ready(&database, &["--replay-window", "100h"]);
    let mut behind = server.stream_from(&key, 3);
    behind.connected();
    assert_eq!(behind.signals(2)[0].prev_seq(), Some(3));
    for cursor in [0, 2] {
        let mut stream = server.stream_from(&key, cursor);
        assert_eq!(stream.connected().number("earliest"), 4);
        let truncated = stream.system("replay_truncated");
        assert_eq!((truncated.number("requested"), truncated.number("earliest")), (cursor, 4));
        let signals = stream.signals(2);
        assert_eq!((signals[0].prev_seq(), signals[0].feed_seq()), (Some(3), Some(4)));
    }
}

#[test]
fn a_log_that_prune_has_emptied_still_knows_its_head() {
    let rows = [(1, 500), (2, 400), (3, 300)];
    for (cursor, notice) in [(0, Some(4)), (2, Some(4)), (3, None)] {
        let database = log_of(&rows);
        let key = database.mint("bot");
        database.prune_through(3);
        let server = Server::ready(&database, WINDOW);
        let connected = server.stream(&key).connected();
        assert_eq!((connected.id, connected.number("head"), connected.number("earliest")), (Some(3), 3, 4));
        check(&database, &server, &key, cursor, notice, &[]);
    }
}

#[test]
fn a_prune_under_the_running_server_is_noticed() {
    let database = Database::migrated();
    // More than memory holds, so that the replay reads the log.
    database.log_rows(
        "select i, clock_timestamp() - interval '5 hours' + i * interval '1 ms', 'INSERT', '{\"symbol\": \"S\"}' \
         from generate_series(1, 15000) as i",
    );
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    let mut stream = server.stream_from(&key, 0);
    assert_eq!(stream.connected().number("earliest"), 1);
    stream.signals(15_000);
    database.prune_through(14_000);
    let mut early = until("the prune is known", || {
        let mut stream = server.stream_from(&key, 5);
        (stream.connected().number("earliest") == 14_001).then_some(stream)
    });
    assert_eq!(early.system("replay_truncated").number("earliest"), 14_001);
    assert_eq!(early.signals(1_000)[0].prev_seq(), Some(14_000));
    // Before the window is known, no client misses anything without a notice.
    database.prune_through(15_000);
    let mut stream = server.stream_from(&key, 14_500);
    stream.connected();
    database.insert(1);
    let mut told = false;
    let mut cursor = 14_500;
    loop {
        let block = stream.block();
        match block.reason() {
            Some("replay_truncated") => told = true,
            Some(other) => panic!("{other}"),
            None => {
                assert!(told || block.prev_seq() == Some(cursor), "missed in silence: {block:?} after {cursor}");
                cursor = block.feed_seq().unwrap();
                if cursor == 15_001 {
                    break;
                }
            }
        }
    }
}

#[test]
fn an_old_log_asked_for_from_its_beginning_is_truncated_and_streamed_to_its_end() {
    let database = Database::migrated();
    database.log_rows(
        "select i * 3, clock_timestamp() - interval '90 minutes' + i * interval '100 ms', 'INSERT', '{\"symbol\": \"S\"}' \
         from generate_series(1, 54000) as i",
    );
    let key = database.mint("bot");
    let server = Server::ready(&database, WINDOW);
    for _ in 0..2 {
        let mut stream = Request::feed_at("/feed?cursor=0", &key).open(server.address());
        stream.connected();
        let earliest = stream.system("replay_truncated").number("earliest");
        // Half an hour at ten a second lies before the window.
        assert!((54_000..56_000).contains(&earliest), "{earliest}");
        let signals = stream.signals(usize::try_from((162_000 - earliest) / 3 + 1).unwrap());
        assert_eq!((signals[0].prev_seq(), signals[0].feed_seq()), (Some(earliest - 3), Some(earliest)));
        assert_eq!(signals.last().unwrap().feed_seq(), Some(162_000));
    }
}

#[test]
fn the_window_moves_on_while_the_server_runs() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--replay-window", "2s"]);
    database.insert(3);
    let mut stream: Stream = server.stream_from(&key, 0);
    assert_eq!(stream.connected().number("earliest"), 1);
    stream.signals(3);
    let mut late = until("the window has moved on", || {
        let mut stream = server.stream_from(&key, 0);
        (stream.connected().number("earliest") == 4).then_some(stream)
    });
    assert_eq!(late.system("replay_truncated").number("earliest"), 4);
    database.insert(1);
    assert_eq!(late.signal().prev_seq(), Some(3));
}
