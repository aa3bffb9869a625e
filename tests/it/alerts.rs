//! `serve --alert-command`: what the operator's program gets; nothing waits for it.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::database::Database;
use crate::support::directory::Directory;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::wait::{until, until_within};

/// An alert program, and what it got.
struct Alerts {
    directory: Directory,
}

impl Alerts {
    /// A program that runs these shell commands.
    fn running(commands: impl Fn(&Directory) -> String) -> Self {
        let directory = Directory::new();
        let program = directory.file("alert");
        std::fs::write(&program, format!("#!/bin/sh\n{}\n", commands(&directory))).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory }
    }

    /// A program that keeps its input and its environment.
    fn kept() -> Self {
        Self::running(|directory| {
            format!("env >> {}\ncat >> {}", directory.file("environment"), directory.file("lines"))
        })
    }

    fn program(&self) -> String {
        self.directory.file("alert")
    }

    fn all(&self) -> Vec<Value> {
        let lines = std::fs::read_to_string(self.directory.file("lines")).unwrap_or_default();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for an alert; long enough for an outage of 30 s.
    fn wait(&self, reason: &str) -> Value {
        let found = || self.all().into_iter().find(|alert| alert["reason"] == reason);
        until_within(Duration::from_secs(90), &format!("the alert {reason}"), found)
    }
}

#[test]
fn alert_command_gets_each_alert_once_and_none_of_the_servers_secrets() {
    let database = Database::migrated();
    let alerts = Alerts::kept();
    let server = Server::ready(&database, &["--alert-command", &alerts.program(), "--ops-listen", "127.0.0.1:0"]);
    database.insert(1);
    database.log_row(2, "now()", "null");
    let quarantined = alerts.wait("quarantined");
    assert_eq!(quarantined["level"], "CRITICAL");
    assert!(quarantined["message"].as_str().unwrap().contains("event 2 cannot be delivered"), "{quarantined}");
    assert!(quarantined["time"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    assert!(quarantined.get("signal_id").is_none());

    database.sql("alter table stock_market.signal disable trigger all");
    assert_eq!(alerts.wait("capture_off")["level"], "CRITICAL");
    signal_feed(&database.url, &["migrate"]).ok();
    assert_eq!(alerts.wait("capture_on")["level"], "WARNING");

    database.sql("update stock_market.signal_feed_cluster set system_identifier = '1'");
    alerts.wait("another_cluster");
    signal_feed(&database.url, &["restored", "--nothing-lost"]).ok();

    let lost = Instant::now();
    database.lock_out();
    let degraded = alerts.wait("degraded");
    assert!(lost.elapsed() >= Duration::from_secs(29), "after {:?}", lost.elapsed());
    assert_eq!(degraded["level"], "CRITICAL");
    database.let_in();
    assert_eq!(alerts.wait("recovered")["level"], "WARNING");

    server.stop();
    let all = alerts.all();
    let reasons: Vec<&str> = all.iter().map(|alert| alert["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons[..2], ["quarantined", "capture_off"]);
    assert_eq!(reasons[4..], ["another_cluster", "degraded", "recovered"]);
    // The event that migrate appended, and capture_on, in either order.
    let missed = all[2..4].iter().find(|alert| alert["reason"] == "quarantined").unwrap();
    assert!(missed["message"].as_str().unwrap().contains("event 3 cannot be delivered: capture was off"), "{missed}");
    let environment = std::fs::read_to_string(alerts.directory.file("environment")).unwrap();
    assert!(!environment.contains("postgres"), "{environment}");
    assert!(!environment.contains("SIGNAL_FEED_"), "{environment}");
}

#[test]
fn alert_command_that_hangs_or_is_missing_delays_nobody() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let hanging = Alerts::running(|directory| {
        format!("echo $$ >> {}\nexec sleep 600 > /dev/null 2>&1", directory.file("started"))
    });
    let server = Server::ready(&database, &["--alert-command", &hanging.program()]);
    let mut stream = server.stream(&key);
    stream.connected();
    database.log_row(1, "now()", "null");
    stream.system("quarantined");
    let started = hanging.directory.file("started");
    until("the program runs", || {
        std::fs::read_to_string(&started).is_ok_and(|text| text.ends_with('\n')).then_some(())
    });
    database.insert(20);
    stream.signals(20);
    let stopping = Instant::now();
    drop(stream);
    server.stop();
    assert!(stopping.elapsed() < Duration::from_secs(5), "{:?}", stopping.elapsed());
    let pid: i32 = std::fs::read_to_string(&started).unwrap().lines().next().unwrap().parse().unwrap();
    let _ = rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL);

    let server = Server::ready(&database, &["--alert-command", "/nowhere/alert"]);
    database.log_row(22, "now()", "null");
    server.wait_log(&["ERROR", "start --alert-command /nowhere/alert: No such file"]);
}

#[test]
fn an_event_quarantined_before_a_restart_raises_no_error_and_no_alert_again() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &[]);
    database.log_row(1, "now()", "null");
    server.wait_log(&["ERROR", "event 1 is quarantined"]);
    until("it is recorded", || {
        (signal_feed(&database.url, &["quarantine", "list", "--json"]).ok().len() > 3).then_some(())
    });
    server.stop();
    let alerts = Alerts::kept();
    let server = Server::ready(&database, &["--alert-command", &alerts.program()]);
    let mut stream = server.stream_from(&key, 0);
    stream.connected();
    stream.system("quarantined");
    server.wait_log(&["INFO", "event 1 is still quarantined"]);
    database.log_row(2, "now()", "null");
    alerts.wait("quarantined");
    assert_eq!(alerts.all().len(), 1, "{:?}", alerts.all());
    assert!(!server.log().iter().any(|line| line.contains("ERROR") && line.contains("event 1 ")), "{:?}", server.log());
}
