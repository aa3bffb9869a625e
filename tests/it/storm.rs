//! Many clients that come at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::database::Database;
use crate::support::server::Server;

/// How many clients come at once: within the descriptors that a test process has by default.
const CLIENTS: usize = 300;

#[test]
fn a_reconnect_storm_within_recent_events_costs_the_database_next_to_nothing() {
    let database = Database::migrated();
    let keys: Vec<String> = (0..20).map(|key| database.mint(&format!("bot {key}"))).collect();
    database.insert(10_000);
    // A restart: nothing is in memory but what was read at the start.
    let server = Server::ready(&database, &[]);
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (keys, server, served) = (&keys, &server, &served);
            scope.spawn(move || {
                // The first clients begin anywhere in the tail, the others near its end: few read 10,000 events.
                let cursor = i64::try_from(if client < 10 { client * 1_000 } else { 9_600 + client }).unwrap();
                let mut stream = server.stream_from(&keys[client % keys.len()], cursor);
                stream.connected();
                let signals = stream.signals(usize::try_from(10_000 - cursor).unwrap());
                assert_eq!(signals.last().unwrap().number("feed_seq"), 10_000);
                served.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(served.into_inner(), CLIENTS);
    // Reads from memory need no replay connection: the only one was opened for the window's beginning.
    let replay = "select count(*) from pg_stat_activity \
                  where datname = current_database() and application_name = 'signal-feed replay'";
    assert!(database.number(replay) <= 1, "{} replay connections", database.number(replay));
}
