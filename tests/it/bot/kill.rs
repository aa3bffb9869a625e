//! kill -9 at any moment of a stream of thousands of events: in the end each order exactly once.

use std::time::{Duration, Instant};

use super::feed::{Feed, Request, row};
use super::process::Place;

/// Sends everything after the cursor, as a feed does, until the connection breaks or all is sent.
fn serve(request: Request, events: i64) {
    let from = request.cursor().unwrap_or(0);
    let mut stream = request.open();
    stream.connected(from);
    for seq in from + 1..=events {
        // Entries and exits of the same rows, the latter as updates.
        let id = (seq + 1) / 2;
        if seq % 2 == 1 { stream.insert(seq, &row(id, "entry")) } else { stream.update(seq, &row(id, "exit")) }
    }
    stream.wait_closed();
}

/// Starts and kills bots until the cursor is at the last event. Returns the number of kills.
fn kill_until_done(place: &Place, events: i64, options: &[&str], longest_life: Duration) -> u32 {
    let feed = Feed::new();
    let url = feed.url.clone();
    let serve_all = move || {
        // Half a minute without a request: the test is over.
        while let Some(request) = feed.accept_within(Duration::from_secs(30)) {
            std::thread::spawn(move || {
                // A bot that is killed while it connects sends half a request.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| serve(request, events)));
            });
        }
    };
    std::thread::spawn(serve_all);
    let end = Instant::now() + Duration::from_secs(900);
    let longest = u64::try_from(longest_life.as_millis()).unwrap();
    let mut kills = 0;
    while place.cursor() != Some(events) {
        assert!(Instant::now() < end, "{:?} of {events} after {kills} kills; {}", place.cursor(), place.read("log"));
        let bot = place.start(&url, options);
        // Only the moment of the kill is left to chance.
        std::thread::sleep(Duration::from_millis(10 + u64::from(kills) * 7919 % longest));
        bot.kill();
        kills += 1;
    }
    kills
}

fn assert_each_once(mut placed: Vec<String>, events: i64, kills: u32) {
    let expected = usize::try_from(events).unwrap();
    assert_eq!(placed.len(), expected, "after {kills} kills");
    placed.sort();
    placed.dedup();
    assert_eq!(placed.len(), expected, "after {kills} kills");
    assert!(kills > 10, "only {kills} kills");
}

#[test]
fn each_order_is_placed_exactly_once_however_often_the_bot_is_killed() {
    const EVENTS: i64 = 1000;
    let place = Place::new();
    let kills = kill_until_done(&place, EVENTS, &["--log-level", "warn"], Duration::from_millis(250));
    assert_each_once(place.paper(), EVENTS, kills);
    assert_eq!(place.alerts(), []);
}

#[test]
fn a_program_gets_each_order_exactly_once_however_often_the_bot_is_killed() {
    const EVENTS: i64 = 200;
    let place = Place::new();
    // The order is at the broker some time after the program began, so that kills come before, between and after.
    place.script(
        "broker",
        "read -r line || exit 1\n\
         ref=${line#*'\"order_ref\":\"'}; ref=${ref%%'\"'*}\n\
         case $line in *'\"type\":\"lookup\"'*) grep -qx \"$ref\" book && exit 0; exit 66;; esac\n\
         sleep 0.01; echo \"$ref\" >> book; sleep 0.01; exit 0",
    );
    let options = ["--log-level", "warn", "--broker", "exec:./broker"];
    let kills = kill_until_done(&place, EVENTS, &options, Duration::from_millis(400));
    assert_each_once(place.read("book").lines().map(ToOwned::to_owned).collect(), EVENTS, kills);
}
