//! Other people's orders at the same gateway, readable or not.

use super::World;
use super::gateway::{Booked, Step, open_order};
use super::wire::Proto;

/// Rows that the library cannot read, and one that it can.
fn rows() -> Vec<Proto> {
    let contract = Proto::new().text(2, "ES").text(3, "FUT");
    let order = |action: &str, quantity: &str| {
        Proto::new().int(1, 3).int(2, 77).int(3, i64::MAX).text(5, action).text(6, quantity).text(28, "theirs")
    };
    let state = Proto::new().text(1, "Submitted");
    let row = |contract: &Proto, order: &Proto| {
        Proto::new().int(1, 77).message(2, contract).message(3, order).message(4, &state)
    };
    let mut cut_off = row(&contract, &order("BUY", "1"));
    cut_off.0.truncate(cut_off.0.len() - 3);
    vec![
        row(&contract, &order("BUY", "1")),
        row(&contract, &order("", "1")),
        row(&contract, &order("HOLD", "1")),
        row(&contract, &order("BUY", "many")),
        row(&contract.clone().text(6, "NEITHER"), &order("BUY", "1")),
        row(&contract.clone().bytes(11, &[0xff, 0xfe]), &order("BUY", "1")),
        Proto::new().int(1, 77).message(3, &order("BUY", "1")),
        cut_off,
    ]
}

#[test]
fn a_foreign_order_that_cannot_be_read_hides_nothing_and_blocks_nothing() {
    for (number, foreign) in rows().into_iter().enumerate() {
        let world = World::new();
        world.gateway.state().foreign = vec![foreign];
        let _bot = world.start();
        // Taken without a message: only the lists show it.
        world.gateway.script(&[Step::Take("Submitted"), Step::Close]);
        world.trade(1, "exit");
        world.gateway.set_status("sf-1-exit", "Filled", 100);
        world.gateway.close();
        world.wait_journal("filled", 1);
        world.trade(2, "exit");
        assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"], "row {number}");
    }
}

#[test]
fn a_foreign_order_that_cannot_be_read_does_not_keep_a_lost_one_from_being_sent_again() {
    let world = World::new();
    world.gateway.state().foreign = rows();
    let _bot = world.start();
    world.gateway.script(&[Step::Close]);
    let cursor = world.send(1, "exit");
    world.place.wait_cursor(cursor);
    assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-1-exit"]);
    assert_eq!(world.gateway.live(), ["sf-1-exit"]);
}

/// The bot's own lists have a row that cannot be read.
fn cut_own_lists(world: &World) {
    let mut state = world.gateway.state();
    state.foreign = vec![rows()[1].clone()];
    state.foreign_in_own = true;
}

#[test]
fn an_own_order_that_cannot_be_read_proves_nothing() {
    let world = World::new();
    cut_own_lists(&world);
    let _bot = world.start();
    world.gateway.script(&[Step::Close]);
    let cursor = world.send(1, "exit");
    world.place.wait_alert("outcome_unknown");
    std::thread::sleep(std::time::Duration::from_secs(12));
    assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
    world.gateway.state().book.push(Booked::submitted(1, "sf-1-exit"));
    world.gateway.state().foreign.clear();
    world.place.wait_cursor(cursor);
    assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
}

#[test]
fn an_error_about_an_order_is_not_final_while_the_bots_own_list_cannot_be_read() {
    let error = Step::Error(10_311, "a remark about the order");
    // The answer itself, or a late one to an order of unknown outcome.
    for steps in [vec![error], vec![]] {
        let world = World::new();
        cut_own_lists(&world);
        let _bot = world.start();
        world.gateway.script(&steps);
        let cursor = world.send(1, "exit");
        if steps.is_empty() {
            world.place.wait_alert("outcome_unknown");
            world.gateway.error(10_311, "a remark about the order");
        }
        world.place.wait_alert("outcome_unknown");
        world.place.wait_log("10311: a remark about the order");
        let lists = world.gateway.state().lists;
        world.place.wait("one more look-up", || world.gateway.state().lists > lists);
        assert!(!world.place.journal_has("rejected", 1), "{}", world.place.read("log"));
        world.gateway.state().book.push(Booked::submitted(1, "sf-1-exit"));
        world.gateway.state().foreign.clear();
        world.place.wait_cursor(cursor);
        assert!(world.place.journal_has("placed", 1) && !world.place.journal_has("rejected", 1));
        assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
    }
}

#[test]
fn an_error_about_an_order_is_final_if_the_bots_own_list_stays_unreadable_and_delays_the_next_order_only_so_long() {
    let world = World::new();
    cut_own_lists(&world);
    let _bot = world.start();
    world.gateway.script(&[Step::Error(200, "No security definition has been found for the request")]);
    world.send(1, "exit");
    assert!(world.alert("outcome_unknown").contains("200: No security definition"));
    world.trade(2, "exit");
    let text = world.alert("exit_rejected");
    assert!(text.contains("200: No security definition") && text.contains("cannot be read"), "{text}");
    assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"]);
}

#[test]
fn an_error_about_a_followed_order_is_an_alert_also_if_its_state_was_unknown_before() {
    let world = World::new();
    let _bot = world.start();
    world.trade(1, "exit");
    cut_own_lists(&world);
    world.gateway.state().book.clear();
    world.gateway.close();
    world.place.wait_alert("outcome_unknown");
    world.gateway.error(201, "Order rejected - reason: margin");
    world.place.wait("an alert with the error", || world.place.read("alerts").contains("201: Order rejected"));
}

#[test]
fn an_error_about_a_followed_order_is_not_final_while_the_bots_own_list_cannot_be_read() {
    let world = World::new();
    let _bot = world.start();
    world.trade(1, "exit");
    cut_own_lists(&world);
    // The row that the bot needs comes after the one that it cannot read.
    let order = world.gateway.state().book.remove(0);
    world.gateway.error(10_148, "OrderId 1 that needs to be cancelled cannot be cancelled, state: Submitted.");
    assert!(world.alert("outcome_unknown").contains("10148: OrderId 1"));
    let lists = world.gateway.state().lists;
    // The bot goes on looking, and not all the time.
    world.place.wait("one more look", || world.gateway.state().lists > lists);
    assert!(!world.place.journal_has("unfilled", 1));
    world.gateway.state().foreign.clear();
    world.gateway.state().book.push(Booked { status: "Inactive".into(), ..order });
    assert!(world.alert("exit_unfilled").contains("10148: OrderId 1"));
    assert_eq!(world.place.count_alerts("outcome_unknown"), 1);
    assert!(world.gateway.state().lists < lists + 6, "{} lists", world.gateway.state().lists - lists);
}

#[test]
fn an_update_that_cannot_be_read_hides_no_end() {
    let world = World::new();
    let _bot = world.start();
    world.trade(1, "exit");
    world.gateway.unreadable_update();
    world.trade(2, "exit");
    world.gateway.status("sf-1-exit", "Inactive", 0);
    assert!(world.alert("exit_unfilled").contains("sf-1-exit"));
    world.trade(3, "exit");
    assert_eq!(world.gateway.state().connections, 1);
}

#[test]
fn an_order_of_another_client_with_the_same_number_is_not_the_bots() {
    let world = World::new();
    let theirs = Booked {
        id: 1,
        client: 3,
        reference: "theirs".into(),
        symbol: "ES".into(),
        price: None,
        status: "Inactive".into(),
        filled: 0,
    };
    world.gateway.state().foreign = vec![open_order(&theirs)];
    world.gateway.state().book.push(theirs);
    let _bot = world.start();
    world.trade(1, "exit");
    world.gateway.close();
    world.trade(2, "exit");
    assert_eq!(world.place.alerts(), []);
    assert!(!world.place.journal_has("unfilled", 1));
}
