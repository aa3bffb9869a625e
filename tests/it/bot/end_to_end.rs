//! The real bot, the real feed, the real database.

use std::time::Duration;

use super::process::Place;
use super::real::Market;
use crate::support::wait::until;

#[test]
fn every_signal_becomes_one_order_while_server_and_bot_are_killed_and_recovered() {
    const SIGNALS: usize = 1500;
    let (place, market) = (Place::new(), Market::new());
    let key = market.run(&["key", "mint", "--name", "bot"]);
    std::fs::write(place.path("key"), &key).unwrap();
    let mut server = market.serve(&place);
    let (address, url) = (server.address.clone(), server.url());
    let options = ["--feed-api-key-file", "key", "--log-level", "info"];
    let first = place.start(&url, &options);
    until(&format!("a cursor; {} {}", place.read("log"), place.read("server.log")), || place.cursor());
    let writer_url = market.database.url.clone();
    let writer = std::thread::spawn(move || {
        let mut client = postgres::Client::connect(&writer_url, postgres::NoTls).unwrap();
        for number in 0..SIGNALS / 3 {
            let sql = "insert into stock_market.signal (symbol, action, side) \
                       select 'S' || $1::int8 || '-' || n, 'entry', 'BUY' from generate_series(1, 3) n";
            client.execute(sql, &[&i64::try_from(number).unwrap()]).unwrap();
            if number % 50 == 0 {
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    });
    let placed = |at_least: usize| {
        until(&format!("{at_least} orders, not {}; {}", place.paper().len(), place.read("log")), || {
            (place.paper().len() >= at_least).then_some(())
        });
    };
    placed(100);
    first.kill();
    let second = place.start(&url, &options);
    placed(300);
    server.kill();
    let _server = market.serve_at(&place, &address);
    placed(600);
    second.kill();
    let bot_url = market.bot_url();
    let recovery = [&options[..], &["--recovery", "--database-url", &bot_url]].concat();
    let third = place.start(&url, &recovery);
    writer.join().unwrap();
    placed(SIGNALS);
    let last = market.counter();
    place.wait_cursor(last);
    third.stop();
    let mut all = place.paper();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), SIGNALS);
    assert_eq!(place.paper().len(), SIGNALS);
    assert_eq!(place.alerts(), []);
    assert!(!place.read("log").contains(&key));
}

#[test]
fn a_key_that_is_revoked_ends_the_bot_with_77() {
    let (place, market) = (Place::new(), Market::new());
    let key = market.run(&["key", "mint", "--name", "bot", "--expires-in", "24h"]);
    std::fs::write(place.path("key"), &key).unwrap();
    let server = market.serve(&place);
    let mut bot = place.start(&server.url(), &["--feed-api-key-file", "key"]);
    place.wait_alert("key_expires");
    market.run(&["key", "revoke", "bot"]);
    assert_eq!(bot.exit_code(), Some(77));
    place.wait_alert("unauthorized");
    assert!(place.read("log").contains("403 (revoked_key)"), "{}", place.read("log"));
}

#[test]
fn a_database_outage_costs_the_bot_nothing() {
    let (place, market) = (Place::new(), Market::new());
    let key = market.run(&["key", "mint", "--name", "bot"]);
    std::fs::write(place.path("key"), &key).unwrap();
    let server = market.serve(&place);
    let _bot = place.start(&server.url(), &["--feed-api-key-file", "key"]);
    until("a cursor", || place.cursor());
    let one = market.signal("ONE", "entry", 0);
    place.wait_paper(&[&format!("sf-{one}-entry")]);
    market.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() \
                    and pid <> pg_backend_pid()",
    );
    let two = market.signal("TWO", "exit", 0);
    place.wait_paper(&[&format!("sf-{one}-entry"), &format!("sf-{two}-exit")]);
    assert_eq!(place.alerts(), []);
}

#[test]
fn a_bot_with_two_feeds_continues_at_the_other_when_one_dies() {
    let (place, market) = (Place::new(), Market::new());
    let key = market.run(&["key", "mint", "--name", "bot"]);
    std::fs::write(place.path("key"), &key).unwrap();
    let mut one = market.serve(&place);
    let two = market.serve(&place);
    let (first, second) = (one.url(), two.url());
    let _bot = place.start(&first, &["--feed-url", &second, "--feed-api-key-file", "key"]);
    until("a cursor", || place.cursor());
    let before = market.signal("BEFORE", "entry", 0);
    place.wait_paper(&[&format!("sf-{before}-entry")]);
    one.kill();
    let after = market.signal("AFTER", "entry", 0);
    place.wait_paper(&[&format!("sf-{before}-entry"), &format!("sf-{after}-entry")]);
    assert_eq!(place.alerts(), []);
}
