//! kill -9 at any moment of a stream of thousands of events: in the end each order exactly once.

use std::time::{Duration, Instant};

use super::feed::{Feed, Request, row};
use super::process::Place;

const EVENTS: i64 = 4000;

/// Sends everything after the cursor, as a feed does, until the connection breaks or all is sent.
fn serve(request: Request) {
    let from = request.cursor().unwrap_or(0);
    let mut stream = request.open();
    stream.connected(from);
    for seq in from + 1..=EVENTS {
        // Entries and exits of the same rows, the latter as updates.
        let id = (seq + 1) / 2;
        if seq % 2 == 1 { stream.insert(seq, &row(id, "entry")) } else { stream.update(seq, &row(id, "exit")) }
    }
    stream.wait_closed();
}

fn until_all_is_placed(broker: &[&str], book: impl Fn(&Place) -> usize, place: &Place, longest_life_ms: u64) -> u32 {
    let feed = std::sync::Arc::new(Feed::new());
    let server = {
        let feed = std::sync::Arc::clone(&feed);
        move || {
            while let Some(request) = feed.accept_within(Duration::from_secs(5)) {
                std::thread::spawn(move || {
                    // A bot that is killed while it connects sends half a request.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| serve(request)));
                });
            }
        }
    };
    std::thread::spawn(server);
    let end = Instant::now() + Duration::from_secs(180);
    let mut kills = 0;
    let mut arguments = vec!["--log-level", "warn"];
    arguments.extend(broker);
    let mut lives = (1_u64..).map(|n| n * 7919 % longest_life_ms);
    while place.cursor() != Some(EVENTS) {
        assert!(Instant::now() < end, "{} of {EVENTS} after {kills} kills; {}", book(place), place.read("log"));
        let bot = place.start(&feed.url, &arguments);
        std::thread::sleep(Duration::from_millis(10 + lives.next().unwrap()));
        bot.kill();
        kills += 1;
    }
    kills
}

#[test]
fn each_order_is_placed_exactly_once_however_often_the_bot_is_killed() {
    let place = Place::new();
    let kills = until_all_is_placed(&[], |place| place.paper().len(), &place, 150);
    let mut placed = place.paper();
    assert_eq!(placed.len(), usize::try_from(EVENTS).unwrap(), "after {kills} kills");
    placed.sort();
    placed.dedup();
    assert_eq!(placed.len(), usize::try_from(EVENTS).unwrap(), "after {kills} kills");
    assert!(kills > 10, "only {kills} kills");
    assert_eq!(place.alerts(), []);
}
