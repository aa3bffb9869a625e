//! Placing orders: what is sent, what counts as an answer, and what an error means.

use std::time::{Duration, Instant};

use super::World;
use super::gateway::Step;

#[test]
fn orders_are_placed_under_rising_ids_over_one_connection() {
    let world = World::new();
    let _bot = world.start();
    let row = "{\"id\": 1, \"symbol\": \" BRK B \", \"side\": \"SELL\", \"price\": 12.50, \"action\": \"entry\", \
               \"quantity\": 100, \"currency\": \"USD\", \"created_at\": \"2099-11-20T12:00:00+00:00\"}";
    world.place.wait_cursor(world.send_row(row.to_owned()));
    world.trade(2, "exit");
    assert_eq!(world.gateway.state().sent, [(1, "sf-1-entry".to_owned()), (2, "sf-2-exit".to_owned())]);
    let order = world.gateway.order("sf-1-entry");
    assert_eq!((order.symbol.as_str(), order.price), ("BRK B", Some(12.5)));
    assert_eq!(world.gateway.state().connections, 1);
    assert_eq!(world.place.alerts(), []);
}

#[test]
fn every_error_that_names_the_order_rejects_it_with_code_and_text_and_delays_no_other() {
    let world = World::new();
    let _bot = world.start();
    world.trade(99, "entry");
    let codes = [460, 109, 388, 435, 10243, 10318, 201, 321, 110, 99_999];
    for (id, code) in (1..).zip(codes) {
        world.gateway.script(&[Step::Error(code, "the gateway's own words")]);
        world.send(id, "exit");
    }
    let began = Instant::now();
    world.trade(100, "exit");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    world.place.wait("an alert for each", || world.place.count_alerts("exit_rejected") == codes.len());
    let (alerts, journal) = (world.place.read("alerts"), world.place.read("trader-bot.journal"));
    for code in codes {
        assert!(alerts.contains(&format!("{code}: the gateway's own words")), "{alerts}");
        assert!(journal.contains(&format!("{code}: the gateway's own words")), "{journal}");
    }
    // Each exactly once.
    assert_eq!(world.gateway.sent().len(), codes.len() + 2);
    assert_eq!(world.gateway.live(), ["sf-99-entry", "sf-100-exit"]);
}

#[test]
fn a_rejected_entry_is_an_error_line() {
    let world = World::new();
    let _bot = world.start();
    world.gateway.script(&[Step::Error(201, "Order rejected - reason: margin")]);
    world.trade(1, "entry");
    assert!(world.place.read("log").contains("[ERROR] sf-1-entry was rejected: 201: Order rejected - reason: margin"));
    assert_eq!(world.place.alerts(), []);
    assert!(world.place.journal_has("rejected", 1));
}

#[test]
fn a_notice_that_names_the_order_is_no_rejection() {
    let world = World::new();
    let _bot = world.start();
    for (id, code) in (1..).zip([399, 404, 10349, 2109, 2137]) {
        let accepted = [Step::Take("Submitted"), Step::Error(code, "a remark"), Step::Status("Submitted", 0)];
        world.gateway.script(&accepted);
        world.trade(id, "exit");
        assert!(world.place.journal_has("placed", id), "{code}");
    }
    assert_eq!(world.gateway.live().len(), 5);
    assert_eq!(world.place.alerts(), []);
}

#[test]
fn an_error_about_an_order_that_the_lists_show_is_no_rejection() {
    let world = World::new();
    let _bot = world.start();
    let error = Step::Error(10_999, "a code of tomorrow");
    for (id, steps) in (1..).zip([
        vec![Step::Take("Submitted"), error.clone()],
        vec![Step::Take("PendingSubmit"), error.clone()],
        vec![Step::Take("Filled"), Step::Fill(100), error.clone()],
        vec![error.clone(), Step::Say("Submitted", 0)],
    ]) {
        world.gateway.script(&steps);
        world.trade(id, "exit");
        assert!(world.place.journal_has("placed", id), "{steps:?}");
    }
    assert_eq!(world.place.count_alerts("exit_rejected"), 0);
}

#[test]
fn an_order_that_is_certainly_not_sent_is_tried_again() {
    let world = World::new();
    let _bot = world.start();
    world.gateway.script(&[Step::Error(504, "Not connected")]);
    world.gateway.script(&[Step::Error(103, "Duplicate order id")]);
    world.gateway.script(&[Step::Error(103, "Duplicate order id")]);
    world.trade(1, "exit");
    world.trade(2, "exit");
    assert_eq!(world.gateway.live(), ["sf-1-exit", "sf-2-exit"]);
    assert_eq!(world.gateway.sent().len(), 5);
    let mut ids: Vec<i64> = world.gateway.state().sent.iter().map(|(id, _)| *id).collect();
    assert!(ids.is_sorted(), "{ids:?}");
    ids.dedup();
    assert_eq!(ids.len(), 5);
    assert_eq!(world.place.count_alerts("exit_rejected"), 0);
}

#[test]
fn an_order_that_the_gateway_spoke_about_is_not_sent_again_after_an_error_unless_the_lists_lack_it() {
    let world = World::new();
    let _bot = world.start();
    let not_sent =
        [Step::Error(103, "Duplicate order id"), Step::Error(502, "No connection"), Step::Error(504, "Not connected")];
    let mut id = 0;
    for error in not_sent {
        for heard in ["PendingSubmit", "PreSubmitted", "Submitted", "Filled"] {
            id += 1;
            let filled = if heard == "Filled" { 100 } else { 0 };
            world.gateway.script(&[Step::Take(heard), Step::Status(heard, filled), error.clone()]);
            world.trade(id, "exit");
            assert!(world.place.journal_has("placed", id), "{heard}, {error:?}");
        }
    }
    let expected: Vec<String> = (1..=id).map(|id| format!("sf-{id}-exit")).collect();
    assert_eq!(world.gateway.sent(), expected);
    // Neither the book nor the executions have it.
    world.gateway.script(&[Step::Say("PendingSubmit", 0), Step::Error(504, "Not connected")]);
    world.trade(id + 1, "exit");
    assert_eq!(world.gateway.sent().len(), expected.len() + 2);
    assert_eq!(world.gateway.live().len(), expected.len() + 1);
    assert_eq!(world.place.alerts(), [("WARNING".to_owned(), "broker_away".to_owned())]);
}

#[test]
fn a_status_that_comes_after_the_error_keeps_the_order_from_being_sent_again() {
    let world = World::new();
    let _bot = world.place.start(
        &world.url,
        &["--broker", &format!("ibkr:{}", world.gateway.address), "--backoff-min", "2s", "--backoff-max", "2s"],
    );
    world.gateway.script(&[Step::Take("Submitted"), Step::Error(502, "No connection")]);
    let cursor = world.send(1, "exit");
    world.wait_journal("unsent", 1);
    world.gateway.status("sf-1-exit", "Submitted", 0);
    world.place.wait_cursor(cursor);
    world.trade(2, "exit");
    assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"]);
}

#[test]
fn slow_lists_show_that_an_order_works_after_an_error() {
    let world = World::new();
    let _bot = world.start_with_timeout("30s");
    world.gateway.state().slow_lists = Duration::from_secs(2);
    world.gateway.script(&[Step::Take("Submitted"), Step::Error(10_999, "a code of tomorrow")]);
    world.trade(1, "exit");
    assert!(world.place.journal_has("placed", 1));
    assert_eq!(world.place.alerts(), []);
}

#[test]
fn an_order_id_is_never_used_twice_whatever_the_gateway_says_is_next() {
    let world = World::new();
    world.gateway.state().next_id = 40;
    let bot = world.start();
    world.trade(1, "entry");
    bot.kill();
    world.gateway.state().next_id = 1;
    let bot = world.start();
    world.trade(2, "entry");
    world.gateway.close();
    world.gateway.state().next_id = 7;
    world.trade(3, "entry");
    world.trade(4, "entry");
    bot.stop();
    world.gateway.state().next_id = 41;
    let _bot = world.start();
    world.trade(5, "exit");
    let ids: Vec<i64> = world.gateway.state().sent.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, (40..40 + i64::try_from(ids.len()).unwrap()).collect::<Vec<_>>());
}

#[test]
fn a_row_that_asks_for_something_else_than_the_bot_sends_is_rejected() {
    let world = World::new();
    let _bot = world.start();
    let rows = [
        ("\"currency\": \"EUR\"", "currency"),
        ("\"exchange\": \"IBIS\"", "exchange"),
        ("\"sec_type\": \"OPT\"", "sec_type"),
        ("\"account\": \"DU9\"", "account"),
        ("\"price\": 0", "price is 0"),
        ("\"price\": -1", "price is -1"),
    ];
    for (id, (column, _)) in (1..).zip(rows) {
        let row = format!(
            "{{\"id\": {id}, \"symbol\": \"SAP\", \"side\": \"SELL\", \"action\": \"exit\", \"quantity\": 100, {column}, \
             \"created_at\": \"2099-11-20T12:00:00+00:00\"}}"
        );
        world.send_row(row);
    }
    world.trade(7, "exit");
    world.place.wait("an alert for each", || world.place.count_alerts("exit_rejected") == rows.len());
    let journal = world.place.read("trader-bot.journal");
    for (_, word) in rows {
        assert!(journal.lines().any(|line| line.contains("rejected") && line.contains(word)), "{word}: {journal}");
    }
    assert_eq!(world.gateway.sent(), ["sf-7-exit"]);
}

#[test]
fn an_order_that_stays_pending_is_placed_and_followed() {
    let world = World::new();
    let _bot = world.start();
    world.gateway.script(&[Step::Take("PendingSubmit"), Step::Status("PendingSubmit", 0)]);
    world.trade(1, "exit");
    assert!(world.place.journal_has("placed", 1));
    world.trade(2, "exit");
    world.gateway.set_status("sf-1-exit", "Inactive", 0);
    world.gateway.state().sent.pop();
    world.gateway.error(201, "Order rejected - reason: margin");
    assert!(world.alert("exit_unfilled").contains("201: Order rejected"));
}
