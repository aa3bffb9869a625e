//! Accepted orders are followed to their end.

use super::World;
use super::gateway::Step;

#[test]
fn an_accepted_exit_that_ends_without_a_fill_is_an_alert_and_journalled() {
    for (status, error) in [
        ("Inactive", Some((201, "Order rejected - reason: margin"))),
        ("Inactive", None),
        ("Cancelled", Some((202, "Order Canceled - reason: by hand"))),
        ("Cancelled", None),
        ("ApiCancelled", None),
    ] {
        let world = World::new();
        let _bot = world.start();
        world.trade(1, "exit");
        if let Some((code, text)) = error {
            world.gateway.error(code, text);
        }
        world.gateway.status("sf-1-exit", status, 0);
        let message = world.alert("exit_unfilled");
        let expected = error.map_or(status.to_owned(), |(code, text)| format!("{code}: {text}"));
        assert!(message.contains("sf-1-exit") && message.contains(&expected), "{message}");
        world.wait_journal("unfilled", 1);
        // The next order goes out.
        world.trade(2, "exit");
        assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"]);
    }
}

#[test]
fn an_error_alone_ends_an_accepted_order_unless_the_lists_show_it() {
    let world = World::new();
    let _bot = world.start();
    world.trade(1, "exit");
    world.gateway.error(10_148, "OrderId 1 that needs to be cancelled cannot be cancelled, state: Submitted.");
    world.trade(2, "exit");
    world.gateway.set_status("sf-2-exit", "Inactive", 0);
    world.gateway.error(201, "Order rejected - reason: margin");
    let message = world.alert("exit_unfilled");
    assert!(message.contains("sf-2-exit") && message.contains("201: Order rejected"), "{message}");
    world.wait_journal("unfilled", 2);
    assert!(!world.place.journal_has("unfilled", 1));
}

#[test]
fn a_final_answer_is_reported_at_once() {
    for steps in [
        vec![Step::Take("Inactive"), Step::Status("Inactive", 0)],
        vec![Step::Take("Cancelled"), Step::Status("Cancelled", 0), Step::Error(202, "Order Canceled - reason:")],
        vec![Step::Error(202, "Order Canceled - reason:")],
    ] {
        let world = World::new();
        let _bot = world.start();
        world.gateway.script(&steps);
        world.trade(1, "exit");
        world.alert("exit_unfilled");
        world.wait_journal("unfilled", 1);
        world.trade(2, "exit");
    }
}

#[test]
fn a_rejection_that_comes_with_a_status_has_its_reason() {
    for steps in [
        [Step::Take("Inactive"), Step::Status("Inactive", 0), Step::Error(201, "Order rejected - reason: margin")],
        [Step::Error(201, "Order rejected - reason: margin"), Step::Take("Inactive"), Step::Status("Inactive", 0)],
    ] {
        let world = World::new();
        let _bot = world.start();
        world.gateway.script(&steps);
        world.trade(1, "exit");
        assert!(world.alert("exit_rejected").contains("201: Order rejected - reason: margin"));
    }
}

#[test]
fn a_filled_order_is_finished_and_an_entry_that_ends_unfilled_is_an_error_line() {
    let world = World::new();
    let bot = world.start();
    world.trade(1, "exit");
    world.trade(2, "exit");
    world.trade(3, "entry");
    world.gateway.status("sf-1-exit", "Filled", 100);
    world.gateway.status("sf-2-exit", "Submitted", 100);
    world.gateway.status("sf-3-entry", "Cancelled", 0);
    world.wait_journal("filled", 1);
    world.wait_journal("filled", 2);
    world.wait_journal("unfilled", 3);
    assert_eq!(world.place.alerts(), []);
    assert!(world.place.read("log").contains("[ERROR] sf-3-entry ended without being filled"));
    bot.stop();
}

#[test]
fn an_exit_that_is_cancelled_half_filled_is_an_alert() {
    let world = World::new();
    let _bot = world.start();
    world.gateway.script(&[Step::Take("Cancelled"), Step::Status("Cancelled", 40)]);
    world.trade(1, "exit");
    assert!(world.place.journal_has("placed", 1));
    assert!(world.alert("exit_unfilled").contains("40 were filled"));
}

#[test]
fn what_happened_to_an_order_while_the_bot_was_away_is_found_in_the_lists() {
    let world = World::new();
    let bot = world.start();
    for id in 1..=4 {
        world.trade(id, "exit");
    }
    bot.kill();
    world.gateway.set_status("sf-1-exit", "Cancelled", 0);
    world.gateway.set_status("sf-2-exit", "Filled", 100);
    let bot = world.start();
    assert!(world.alert("exit_unfilled").contains("sf-1-exit"));
    world.wait_journal("filled", 2);
    // The same after a connection that was lost, also with a journal that the bot reads anew.
    world.gateway.set_status("sf-3-exit", "Inactive", 0);
    world.gateway.close();
    world.wait_journal("unfilled", 3);
    bot.stop();
    let _bot = world.start();
    world.gateway.status("sf-4-exit", "Filled", 100);
    world.place.wait("the end of 4", || {
        // The status may have come before the bot was connected.
        world.place.journal_has("filled", 4)
    });
    assert_eq!(world.place.count_alerts("exit_unfilled"), 2);
    assert_eq!(world.gateway.sent().len(), 4);
}

#[test]
fn an_accepted_exit_that_vanished_during_an_outage_is_an_alert() {
    let world = World::new();
    let _bot = world.start();
    world.trade(1, "exit");
    world.trade(2, "exit");
    world.gateway.notice(1100, "Connectivity between IBKR and Trader Workstation has been lost.");
    world.place.wait_alert("broker_away");
    world.gateway.state().book.retain(|order| order.id != 1);
    world.gateway.notice(1101, "Connectivity between IBKR and TWS has been restored - data lost.");
    assert!(world.alert("exit_unfilled").contains("sf-1-exit"));
    world.trade(3, "exit");
    assert!(!world.place.journal_has("unfilled", 2));
}

#[test]
fn an_accepted_exit_that_vanished_is_an_alert_although_the_gateway_reconnects_all_the_time() {
    let world = World::new();
    let _bot = world.start();
    world.trade(1, "exit");
    world.gateway.state().book.clear();
    world.gateway.close();
    let mut last = 1;
    world.place.wait("an alert", || {
        let connections = world.gateway.state().connections;
        // The bot looks once over each connection, and never twice.
        if connections > last && world.gateway.state().lists >= connections - 1 {
            last = connections;
            std::thread::sleep(std::time::Duration::from_secs(2));
            world.gateway.close();
        }
        world.place.count_alerts("exit_unfilled") > 0
    });
    assert!(last > 2, "{last} connections");
    assert!(world.alert("exit_unfilled").contains("do not show it"));
    world.wait_journal("unfilled", 1);
}

#[test]
fn an_accepted_exit_that_the_lists_do_not_show_around_an_outage_is_followed_on() {
    let world = World::new();
    let _bot = world.start();
    world.trade(1, "exit");
    // A gateway that starts shows no order for some seconds, and this one starts twice.
    let book = std::mem::take(&mut world.gateway.state().book);
    let lists = world.gateway.state().lists;
    world.gateway.close();
    world.place.wait("a look", || world.gateway.state().lists > lists);
    world.gateway.state().in_use = u32::MAX;
    world.gateway.close();
    // Longer than two looks are apart.
    std::thread::sleep(std::time::Duration::from_secs(12));
    let lists = world.gateway.state().lists;
    world.gateway.state().in_use = 0;
    world.place.wait("one more look", || world.gateway.state().lists > lists);
    world.gateway.state().book = book;
    let lists = world.gateway.state().lists;
    world.place.wait("a look that finds it", || world.gateway.state().lists > lists);
    world.gateway.status("sf-1-exit", "Filled", 100);
    world.wait_journal("filled", 1);
    assert_eq!(world.place.count_alerts("exit_unfilled"), 0, "{}", world.place.read("log"));
}

#[test]
fn an_accepted_exit_that_ended_during_a_reconnect_is_an_alert_while_another_order_waits_for_a_person() {
    let world = World::new();
    let _bot = world.start();
    world.trade(1, "exit");
    world.gateway.script(&[Step::Say("PendingSubmit", 0), Step::Close]);
    world.send(2, "exit");
    world.gateway.set_status("sf-1-exit", "Cancelled", 0);
    assert!(world.alert("exit_unfilled").contains("sf-1-exit"));
}

#[test]
fn an_error_about_an_accepted_exit_is_an_alert_while_another_order_waits_for_a_person() {
    let world = World::new();
    let _bot = world.start();
    world.trade(1, "exit");
    // The gateway took the second and says nothing.
    world.gateway.script(&[]);
    world.send(2, "exit");
    world.place.wait_alert("outcome_unknown");
    world.gateway.set_status("sf-1-exit", "Inactive", 0);
    // The gateway names the order that was sent last.
    let last = world.gateway.state().sent.pop().unwrap();
    world.gateway.error(201, "Order rejected - reason: margin");
    world.gateway.state().sent.push(last);
    assert!(world.alert("exit_unfilled").contains("sf-1-exit"));
}

#[test]
fn an_accepted_exit_whose_state_the_gateway_does_not_tell_is_one_alert() {
    let world = World::new();
    let _bot = world.start_with_timeout("1s");
    world.trade(1, "exit");
    world.gateway.state().silent_lists = true;
    world.gateway.close();
    assert!(world.alert("outcome_unknown").contains("sf-1-exit"));
    // The bot leaves a gateway that does not answer: here for the second time.
    world.place.wait("more connections", || world.gateway.state().connections > 3);
    world.gateway.state().silent_lists = false;
    world.trade(2, "exit");
    assert_eq!(world.place.count_alerts("outcome_unknown"), 1);
    assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"]);
}

#[test]
fn an_error_about_an_accepted_exit_is_an_alert_although_the_lists_cannot_be_read() {
    let world = World::new();
    let _bot = world.start_with_timeout("1s");
    world.trade(1, "exit");
    world.gateway.state().read_only = true;
    world.gateway.error(201, "Order rejected - reason: margin");
    assert!(world.alert("outcome_unknown").contains("201: Order rejected - reason: margin"));
    world.gateway.set_status("sf-1-exit", "Inactive", 0);
    world.gateway.state().read_only = false;
    assert!(world.alert("exit_unfilled").contains("sf-1-exit"));
}
