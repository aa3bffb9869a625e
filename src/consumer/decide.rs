//! Decides what to do with a signal: place an order, or not and why. A pure function, like the table in the README.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::clock;
use super::ledger::Ledger;
use super::order::{Action, Signal};

/// A row created earlier than this before the bot's first start is from before its time. Clocks differ a little.
const START_TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

/// What to do with a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Place an order.
    Place,
    /// Its (id, action) is known: place nothing.
    PassOver,
    /// Its (id, action) is known with other facts: place nothing, raise an alert.
    Conflict(String),
    /// An entry in close-only mode: never place it.
    Blocked,
    /// Never place it, for this reason.
    Stale(String),
}

/// Where a signal comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// An event of the stream.
    Insert,
    /// An event of the stream: the row was there before.
    Update,
    /// A row that `--recovery` found.
    Recovery,
}

/// What else a decision depends on.
#[derive(Debug, Clone)]
pub(super) struct Circumstances {
    pub(super) origin: Origin,
    /// Whether entries are blocked.
    pub(super) is_close_only: bool,
    /// Entries older than this are stale.
    pub(super) max_entry_age: Option<Duration>,
    /// What the age is counted from, if known.
    pub(super) made_at: Option<Timestamp>,
    pub(super) now: Timestamp,
}

pub(super) fn decide(ledger: &Ledger, signal: &Signal, circumstances: &Circumstances) -> Decision {
    if let Some(known) = ledger.known(&signal.key()) {
        return known.conflict(signal).map_or(Decision::PassOver, Decision::Conflict);
    }
    if !ledger.knows_id(&signal.id_text) && predates(signal, circumstances.origin, ledger.started_at) {
        return Decision::Stale("created more than a minute before the bot first started".to_owned());
    }
    if signal.action == Action::Exit {
        return Decision::Place;
    }
    if circumstances.is_close_only {
        return Decision::Blocked;
    }
    match circumstances.max_entry_age {
        Some(limit) if !is_younger(circumstances, limit) => {
            Decision::Stale(format!("older than {}", crate::text::duration(limit)))
        }
        _ => Decision::Place,
    }
}

/// Whether a row is from before the bot's first start: a backfill, or a row moved between partitions. A row
/// without a usable `created_at` is taken for new when it is inserted, and for old when it is updated.
fn predates(signal: &Signal, origin: Origin, started_at: Timestamp) -> bool {
    if origin == Origin::Recovery {
        return false;
    }
    match signal.created_at.as_deref().and_then(clock::instant) {
        Some(created_at) => started_at.duration_since(created_at) > START_TOLERANCE,
        None => origin == Origin::Update,
    }
}

/// What the age of a signal is counted from: the older of its event's time and its row's creation, else its last
/// change.
pub(super) fn made_at(
    event_time: Option<&str>,
    created_at: Option<&str>,
    updated_at: Option<&str>,
) -> Option<Timestamp> {
    let instant = |text: Option<&str>| text.and_then(clock::instant);
    match (instant(event_time), instant(created_at)) {
        (Some(logged), Some(created)) => Some(logged.min(created)),
        (logged, created) => logged.or(created).or_else(|| instant(updated_at)),
    }
}

/// An entry of unknown age counts as too old.
pub(super) fn is_younger(circumstances: &Circumstances, limit: Duration) -> bool {
    circumstances.made_at.is_some_and(|made_at| {
        Duration::try_from(circumstances.now.duration_since(made_at)).unwrap_or_default() <= limit
    })
}
