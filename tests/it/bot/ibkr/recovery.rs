//! `--recovery` at a gateway, with the real feed and the real database.

use super::super::process::Place;
use super::super::real::Market;
use super::gateway::Gateway;

#[test]
fn a_recovery_that_is_killed_again_and_again_sends_each_missed_order_once_and_follows_it() {
    let (place, market, gateway) = (Place::new(), Market::new(), Gateway::start());
    std::fs::write(place.path("key"), market.run(&["key", "mint", "--name", "bot"])).unwrap();
    let server = market.serve(&place);
    // The oldest first: an exit, an entry, an exit and so on.
    let actions = ["exit", "entry"].into_iter().cycle().take(12);
    let missed: Vec<String> = actions
        .enumerate()
        .map(|(at, action)| format!("sf-{}-{action}", market.signal("ACME", action, 60 - i64::try_from(at).unwrap())))
        .collect();
    let (broker, database) = (format!("ibkr:{}", gateway.address), market.bot_url());
    let options = [
        "--feed-api-key-file",
        "key",
        "--broker",
        &broker,
        "--recovery",
        "--database-url",
        &database,
        "--broker-timeout",
        "3s",
    ];
    // Each life ends as soon as the gateway has got one more order: the bot cannot have heard of it yet, or just has.
    for orders in 1..=4 {
        let bot = place.start(&server.url(), &options);
        place.wait(&format!("{orders} orders at the gateway"), || gateway.sent().len() >= orders);
        bot.kill();
    }
    let _bot = place.start(&server.url(), &options);
    place.wait_cursor(market.counter());
    assert_eq!(gateway.sent(), missed);
    assert_eq!(gateway.live(), missed);
    assert_eq!(place.state()["mode"], "normal");
    // A bot that was killed between its journal and its socket asks for ten seconds before it sends the order again.
    assert!(place.alerts().iter().all(|(_, reason)| reason == "outcome_unknown"), "{:?}", place.alerts());
    gateway.status(&missed[0], "Cancelled", 0);
    place.wait_alert("exit_unfilled");
    gateway.status(&missed[11], "Filled", 1);
    let last = missed[11].split('-').nth(1).unwrap().parse().unwrap();
    place.wait("the last order's fill", || place.journal_has("filled", last));
}
