//! Orders of unknown outcome: never two with one reference, never one that is silently lost.

use std::time::{Duration, Instant};

use super::World;
use super::gateway::{Booked, Step};

fn append(world: &World, line: &str) {
    let journal = world.place.path("trader-bot.journal");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(journal, format!("{text}{line}\n")).unwrap();
}

/// Long enough, and enough look-ups, for an order to be sent again, if the bot did so.
fn wait_in_vain(world: &World) {
    let lists = world.gateway.state().lists;
    let end = Instant::now() + Duration::from_secs(12);
    world.place.wait("look-ups for a while", || world.gateway.state().lists > lists + 4 && Instant::now() > end);
}

#[test]
fn an_order_that_the_gateway_has_when_the_connection_breaks_is_found() {
    for (status, filled) in [("PendingSubmit", 0), ("Submitted", 0), ("Filled", 100)] {
        let world = World::new();
        let _bot = world.start();
        world.gateway.script(&[Step::Take(status), Step::Fill(filled), Step::Close]);
        world.trade(1, "exit");
        world.trade(2, "exit");
        assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"]);
        assert!(world.gateway.state().connections > 1);
        assert!(world.place.journal_has("placed", 1));
        if filled > 0 {
            world.wait_journal("filled", 1);
        }
    }
}

#[test]
fn an_order_that_ended_while_the_connection_was_broken_is_not_placed() {
    for status in ["Inactive", "Cancelled"] {
        let world = World::new();
        let _bot = world.start();
        world.gateway.script(&[Step::Take(status), Step::Close]);
        world.trade(1, "exit");
        assert!(world.alert("exit_unfilled").contains(status));
        assert!(world.place.journal_has("unfilled", 1) && !world.place.journal_has("placed", 1));
        assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
    }
}

#[test]
fn an_order_that_was_lost_with_its_connection_is_sent_again_once_and_then_only_by_a_person() {
    let world = World::new();
    let bot = world.start();
    world.gateway.script(&[Step::Close]);
    let began = Instant::now();
    let cursor = world.send(1, "exit");
    world.send(2, "exit");
    world.wait_sent(&["sf-1-exit"]);
    world.gateway.script(&[Step::Close]);
    world.wait_sent(&["sf-1-exit", "sf-1-exit"]);
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(world.gateway.state().lists >= 2);
    // Lost again: neither this bot nor the next ones send it again, even if the lists do not show it.
    let first_id = world.gateway.state().sent[0].0;
    assert_ne!(world.gateway.state().sent[1].0, first_id);
    wait_in_vain(&world);
    bot.kill();
    let bot = world.start();
    wait_in_vain(&world);
    assert_eq!(world.gateway.sent().len(), 2);
    world.place.wait_alert("outcome_unknown");
    bot.stop();
    append(&world, r#"{"record":"unsent","time":"2026-11-20T12:00:00Z","signal_id":1,"action":"exit"}"#);
    let _bot = world.start();
    world.place.wait_cursor(cursor + 1);
    assert_eq!(world.gateway.sent()[2..], ["sf-1-exit", "sf-2-exit"]);
}

#[test]
fn silence_on_a_connection_that_stayed_up_never_permits_a_second_send() {
    let world = World::new();
    let bot = world.start();
    world.gateway.script(&[]);
    let cursor = world.send(1, "exit");
    world.send(2, "exit");
    world.place.wait_alert("outcome_unknown");
    wait_in_vain(&world);
    assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
    assert_eq!(world.place.count_alerts("outcome_unknown"), 1);
    // Neither does the next bot send it.
    bot.stop();
    let bot = world.start();
    wait_in_vain(&world);
    assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
    // A person says that it is there.
    bot.stop();
    append(&world, r#"{"record":"placed","time":"2026-11-20T12:00:00Z","signal_id":1,"action":"exit"}"#);
    let _bot = world.start();
    world.place.wait_cursor(cursor + 1);
    assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"]);
}

#[test]
fn an_order_that_was_silent_is_settled_by_a_late_answer_or_a_list() {
    // A dialog that is answered at last: by a status, an error, or only in a list.
    for answer in ["status", "error", "list", "execution"] {
        let world = World::new();
        let _bot = world.start();
        world.gateway.script(&[]);
        let cursor = world.send(1, "exit");
        world.place.wait_alert("outcome_unknown");
        let order = Booked::submitted(1, "sf-1-exit");
        match answer {
            "error" => world.gateway.error(201, "Order rejected - reason: by hand"),
            "status" => {
                world.gateway.state().book.push(order);
                world.gateway.status("sf-1-exit", "Submitted", 0);
            }
            "list" => world.gateway.state().book.push(order),
            _ => world.gateway.state().book.push(Booked { status: "Filled".into(), filled: 100, ..order }),
        }
        world.place.wait_cursor(cursor);
        assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
        assert_eq!(world.place.journal_has("rejected", 1), answer == "error");
    }
}

#[test]
fn a_silent_order_whose_connection_breaks_at_last_is_sent_again_once() {
    let world = World::new();
    let _bot = world.start();
    world.gateway.script(&[]);
    let cursor = world.send(1, "exit");
    world.place.wait_alert("outcome_unknown");
    assert_eq!(world.gateway.sent().len(), 1);
    world.gateway.close();
    world.place.wait_cursor(cursor);
    assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-1-exit"]);
}

#[test]
fn lists_that_are_not_answered_prove_nothing() {
    let world = World::new();
    let _bot = world.start();
    world.gateway.state().silent_lists = true;
    world.gateway.script(&[Step::Close]);
    let cursor = world.send(1, "exit");
    world.place.wait_alert("outcome_unknown");
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
    world.gateway.state().book.push(Booked::submitted(1, "sf-1-exit"));
    world.gateway.state().silent_lists = false;
    world.place.wait_cursor(cursor);
    assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
}

#[test]
fn an_order_that_was_answered_before_the_connection_broke_is_never_sent_again() {
    let world = World::new();
    let _bot = world.start();
    world.gateway.script(&[Step::Say("PendingSubmit", 0), Step::Close]);
    world.send(1, "exit");
    world.place.wait_alert("outcome_unknown");
    wait_in_vain(&world);
    assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
}

#[test]
fn a_frozen_gateway_ends_with_the_order_placed_once() {
    let world = World::new();
    let _bot = world.start();
    world.trade(1, "exit");
    world.gateway.freeze(true);
    let cursor = world.send(2, "exit");
    world.place.wait_alert("outcome_unknown");
    assert_eq!(world.place.cursor(), Some(cursor - 1));
    world.gateway.freeze(false);
    world.place.wait_cursor(cursor);
    assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"]);
}

#[test]
fn a_bot_that_is_killed_or_stopped_before_the_answer_finds_its_order() {
    for signal in ["KILL", "TERM"] {
        let world = World::new();
        let mut bot = world.start();
        world.gateway.script(&[Step::Take("Submitted")]);
        let cursor = world.send(1, "exit");
        world.wait_sent(&["sf-1-exit"]);
        let began = Instant::now();
        bot.signal(signal);
        let code = bot.exit_code();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(code, (signal == "TERM").then_some(0));
        assert_eq!(world.place.alerts(), []);
        let _bot = world.start();
        world.place.wait_cursor(cursor);
        world.trade(2, "exit");
        assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"]);
    }
}

#[test]
fn a_stopped_bot_ends_within_five_seconds_during_any_wait() {
    for what in ["handshake", "lists", "answer"] {
        let world = World::new();
        let bot = world.start();
        world.trade(1, "exit");
        match what {
            "handshake" => {
                world.gateway.state().handshake = Duration::from_secs(60);
                world.gateway.close();
            }
            "lists" => {
                world.gateway.state().silent_lists = true;
                world.gateway.close();
            }
            _ => {
                world.gateway.script(&[]);
                world.send(2, "exit");
                world.wait_sent(&["sf-1-exit", "sf-2-exit"]);
            }
        }
        std::thread::sleep(Duration::from_millis(700));
        let began = Instant::now();
        bot.stop();
        assert!(began.elapsed() < Duration::from_secs(5), "{what}: {:?}", began.elapsed());
    }
}

#[test]
fn orders_survive_kills_and_lost_connections_at_any_moment_each_placed_once() {
    let world = World::new();
    world.gateway.state().otherwise = vec![Step::Take("Submitted"), Step::Status("Submitted", 0)];
    let mut last = 0;
    for id in 1..=40 {
        last = world.send(id, if id % 2 == 0 { "exit" } else { "entry" });
    }
    let mut bot = Some(world.start());
    for round in 0_u64..60 {
        if world.place.cursor() == Some(last) {
            break;
        }
        // Only the moment is left to chance.
        std::thread::sleep(Duration::from_millis(20 + round * 137 % 400));
        if round % 3 == 0 {
            world.gateway.close();
        } else {
            bot.take().unwrap().kill();
            bot = Some(world.start());
        }
    }
    crate::support::wait::until_within(Duration::from_secs(120), "all orders", || {
        (world.place.cursor() == Some(last)).then_some(())
    });
    let mut live = world.gateway.live();
    live.sort();
    live.dedup();
    assert_eq!(live.len(), 40);
    assert_eq!(world.gateway.live().len(), 40, "{:?}", world.gateway.live());
}

#[test]
fn a_late_error_ends_an_order_of_unknown_outcome_only_if_the_lists_agree() {
    let world = World::new();
    let _bot = world.start();
    world.gateway.script(&[]);
    let cursor = world.send(1, "exit");
    world.place.wait_alert("outcome_unknown");
    world.gateway.state().book.push(Booked::submitted(1, "sf-1-exit"));
    world.gateway.state().silent_lists = true;
    world.gateway.error(10311, "a remark about the order");
    // Longer than the bot waits for lists.
    std::thread::sleep(Duration::from_secs(8));
    assert!(!world.place.journal_has("rejected", 1));
    world.gateway.state().silent_lists = false;
    world.place.wait_cursor(cursor);
    assert!(world.place.journal_has("placed", 1) && !world.place.journal_has("rejected", 1));
}

#[test]
fn a_late_status_and_then_an_error_of_an_unsent_order_are_settled_by_the_lists() {
    let world = World::new();
    let _bot = world.start();
    world.gateway.script(&[]);
    let cursor = world.send(1, "exit");
    world.place.wait_alert("outcome_unknown");
    {
        let mut state = world.gateway.state();
        state.book.push(Booked::submitted(1, "sf-1-exit"));
        state.silent_lists = true;
    }
    // Both arrive while the bot asks for lists.
    world.gateway.status("sf-1-exit", "Submitted", 0);
    world.gateway.error(504, "Not connected");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
    world.gateway.state().silent_lists = false;
    world.place.wait_cursor(cursor);
    world.trade(2, "exit");
    assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"]);
    assert!(world.place.journal_has("placed", 1));
}
