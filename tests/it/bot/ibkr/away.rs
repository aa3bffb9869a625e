//! The broker is away: the alert says why, the bot consumes nothing, and nothing is lost.

use std::net::TcpListener;
use std::time::Duration;

use super::World;
use super::gateway::{Gateway, Step};

#[test]
fn lost_connectivity_is_waited_for_and_named() {
    for (lost, back) in [(1100, 1101), (1100, 1102), (2110, 1102)] {
        let world = World::new();
        let _bot = world.start();
        world.trade(1, "exit");
        world.gateway.notice(lost, "Connectivity between the gateway and the server is broken.");
        assert!(world.alert("broker_away").contains(&format!("{lost}: Connectivity between the gateway")));
        let cursor = world.send(2, "exit");
        world.send(3, "entry");
        std::thread::sleep(Duration::from_millis(600));
        assert_eq!(world.gateway.sent(), ["sf-1-exit"]);
        assert_eq!(world.place.cursor(), Some(cursor - 1));
        world.gateway.notice(back, "Connectivity has been restored.");
        world.place.wait_cursor(cursor + 1);
        assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit", "sf-3-entry"]);
    }
}

#[test]
fn a_read_only_gateway_is_waited_for_and_named() {
    let world = World::new();
    world.gateway.state().read_only = true;
    let _bot = world.start();
    world.send(1, "entry");
    let cursor = world.send(2, "exit");
    let message = world.alert("broker_away");
    assert!(message.contains("321") && message.contains("Read-Only mode"), "{message}");
    world.place.wait("more than one probe", || world.gateway.state().connections > 0);
    std::thread::sleep(Duration::from_secs(1));
    assert!(!world.place.journal_has("rejected", 1));
    world.gateway.state().read_only = false;
    world.place.wait_cursor(cursor);
    assert_eq!(world.gateway.live(), ["sf-1-entry", "sf-2-exit"]);
    assert_eq!(world.place.count_alerts("exit_rejected"), 0);
}

#[test]
fn a_gateway_that_became_read_only_keeps_an_unknown_order_waiting() {
    let world = World::new();
    let bot = world.start();
    world.trade(1, "exit");
    world.gateway.script(&[Step::Take("Submitted")]);
    let cursor = world.send(2, "exit");
    world.wait_sent(&["sf-1-exit", "sf-2-exit"]);
    bot.kill();
    world.gateway.state().read_only = true;
    let _bot = world.start_with_timeout("1s");
    assert!(world.alert("broker_away").contains("Read-Only mode"));
    // After twice the broker's time-out the order that nobody can look up is an alert.
    assert!(world.alert("outcome_unknown").contains("sf-2-exit"));
    world.gateway.state().read_only = false;
    world.place.wait_cursor(cursor);
    world.trade(3, "exit");
    assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit", "sf-3-exit"]);
    let alerts = [("WARNING", "broker_away"), ("CRITICAL", "outcome_unknown")];
    assert_eq!(world.place.alerts(), alerts.map(|(level, reason)| (level.to_owned(), reason.to_owned())));
}

#[test]
fn a_client_id_in_use_is_waited_for_and_named_without_a_critical_alert() {
    let world = World::new();
    let bot = world.start();
    world.gateway.script(&[Step::Take("Submitted")]);
    let cursor = world.send(1, "exit");
    world.wait_sent(&["sf-1-exit"]);
    bot.kill();
    // A gateway holds a dead bot's client id for a while.
    world.gateway.state().in_use = 5;
    let _bot = world.start();
    world.place.wait_cursor(cursor);
    world.trade(2, "exit");
    let message = world.alert("broker_away");
    assert!(message.contains("326") && message.contains("client id"), "{message}");
    assert_eq!(world.place.alerts(), [("WARNING".to_owned(), "broker_away".to_owned())]);
    assert_eq!(world.gateway.sent(), ["sf-1-exit", "sf-2-exit"]);
    assert!(world.place.read("log").contains("already in use"));
}

#[test]
fn a_gateway_that_is_not_there_is_waited_for_and_each_new_reason_is_logged() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let gateway = Gateway::new(address);
    let world = World::with(gateway.clone());
    let _bot = world.start();
    let cursor = world.send(1, "entry");
    world.place.wait_alert("broker_away");
    assert!(world.place.read("log").contains("refused"));
    gateway.state().in_use = 2;
    gateway.listen(TcpListener::bind(address).unwrap());
    world.place.wait_cursor(cursor);
    world.place.wait_log("still waiting for the broker: connect to");
    assert_eq!(world.place.count_alerts("broker_away"), 1);
    assert_eq!(gateway.sent(), ["sf-1-entry"]);
}

#[test]
fn a_slow_handshake_and_a_strange_time_zone_are_no_obstacle() {
    for zone in ["JST", "HKT", "IST", "KST", "AEDT", "NZDT", "BST", "CEST", "GMT+01:00", "Mitteleuropäische Zeit", ""]
    {
        let world = World::new();
        world.gateway.state().zone = zone;
        if zone.is_empty() {
            // Longer than the broker's time-out.
            world.gateway.state().handshake = Duration::from_secs(5);
        }
        let _bot = world.start();
        world.trade(1, "exit");
        assert_eq!(world.gateway.sent(), ["sf-1-exit"], "{zone}");
        world.gateway.close();
        world.trade(2, "exit");
        assert_eq!(world.gateway.state().connections, 2, "{zone}");
    }
}

#[test]
fn warnings_of_the_library_are_in_the_log() {
    let world = World::new();
    world.gateway.state().zone = "JST";
    let _bot = world.start();
    world.trade(1, "exit");
    let log = world.place.read("log");
    assert!(log.lines().any(|line| line.contains("[WARN]") && line.contains("JST")), "{log}");
}
