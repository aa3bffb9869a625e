//! The thread `alerts`: runs the operator's program if somebody must act.
//!
//! It owns the program's runs. It checks the feed's state once a second, receives newly quarantined events, sends
//! nothing, and ends when the server stops.

use std::path::PathBuf;
use std::time::Duration;

use crate::alert::{AlertCommand, Level};
use crate::feed::Feed;
use crate::feed::upkeep::Poisoned;

const TURN_EVERY: Duration = Duration::from_secs(1);
/// An outage shorter than this, 30 s, raises no alert: it may be a restart of the database.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(30);

/// Conditions that last: the reason and the message of the alert when one begins, and when it ends. Their order is that of
/// [`run`].
const BEGINS: [(&str, &str); 3] = [
    ("degraded", "no database connection for 30 s; open streams stay, new requests get 503; check PostgreSQL"),
    ("capture_off", "capture is off: new signals reach no bot; run \"signal-feed doctor\", then migrate"),
    ("another_cluster", "the database was restored or failed over; see \"signal-feed restored --help\""),
];
const ENDS: [Option<(&str, &str)>; 3] = [
    Some(("recovered", "connected to the database again; no stream missed anything")),
    Some(("capture_on", "capture is on again; bots missed the signals written meanwhile")),
    None,
];

pub(crate) fn run(feed: &Feed, program: PathBuf) {
    let mut command = AlertCommand::new(Some(program));
    let mut alerted = [false; 3];
    loop {
        feed.health.pause(TURN_EVERY);
        if feed.health.is_stopping() {
            return;
        }
        let outage = feed.health.outage();
        let is_degraded = if alerted[0] { outage.is_some() } else { outage >= Some(OUTAGE_PATIENCE) };
        let facts = feed.facts();
        let now = [is_degraded, facts.is_capture_off, facts.is_another_cluster];
        for (level, (reason, message)) in changes(alerted, now) {
            command.run(level, reason, message, None);
        }
        alerted = now;
        // Any number of events at once is one alert.
        if let Some(message) = quarantined_message(&feed.alerts.receiver.try_iter().collect::<Vec<_>>()) {
            command.run(Level::Critical, "quarantined", &message, None);
        }
    }
}

fn changes(before: [bool; 3], now: [bool; 3]) -> impl Iterator<Item = (Level, (&'static str, &'static str))> {
    (0..3).filter_map(move |at| match (before[at], now[at]) {
        (false, true) => Some((Level::Critical, BEGINS[at])),
        (true, false) => ENDS[at].map(|end| (Level::Warning, end)),
        _ => None,
    })
}

fn quarantined_message(quarantined: &[Poisoned]) -> Option<String> {
    let Poisoned { seq, error, .. } = quarantined.last()?;
    let which = match quarantined.len() {
        1 => format!("event {seq} cannot be delivered"),
        count => format!("{count} events cannot be delivered, the last is {seq}"),
    };
    Some(format!("{which}: {error}; see \"signal-feed quarantine list\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::FeedSeq;

    #[test]
    fn each_change_is_one_alert_and_no_change_is_none() {
        let (quiet, all) = ([false; 3], [true; 3]);
        let reasons = |before, now| changes(before, now).map(|(_, (reason, _))| reason).collect::<Vec<_>>();
        assert_eq!(reasons(quiet, all), ["degraded", "capture_off", "another_cluster"]);
        assert_eq!(reasons(all, quiet), ["recovered", "capture_on"]);
        assert!(reasons(all, all).is_empty() && reasons(quiet, quiet).is_empty());
    }

    #[test]
    fn many_quarantined_events_are_one_message() {
        let event = |seq| Poisoned { seq: FeedSeq(seq), error: "too large".to_owned(), is_new: true, is_logged: true };
        assert_eq!(quarantined_message(&[]), None);
        assert!(quarantined_message(&[event(7)]).unwrap().starts_with("event 7 cannot be delivered: too large"));
        assert!(
            quarantined_message(&[event(7), event(9)])
                .unwrap()
                .starts_with("2 events cannot be delivered, the last is 9")
        );
    }
}
