//! Decides what to do with a signal: place an order, or not and why. A pure function, like the table in the README.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::clock;
use super::ledger::Ledger;
use super::order::{Action, Order};

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

/// Which entries are placed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entries {
    /// Close-only mode: none.
    pub(super) are_blocked: bool,
    /// None older than this.
    pub(super) max_age: Option<Duration>,
}

pub(super) fn decide(ledger: &Ledger, order: &Order, origin: Origin, entries: Entries) -> Decision {
    let key = order.key();
    if let Some(known) = ledger.known(&key) {
        return known.conflict(order).map_or(Decision::PassOver, Decision::Conflict);
    }
    if !ledger.knows_id(&key.id) && predates(order, origin, ledger.started_at) {
        return Decision::Stale("created more than a minute before the bot first started".to_owned());
    }
    refuse_entry(order, entries).unwrap_or(Decision::Place)
}

/// Why an entry is not placed. An entry of unknown age counts as too old. Exits are always placed.
pub(super) fn refuse_entry(order: &Order, entries: Entries) -> Option<Decision> {
    if order.action == Action::Exit {
        return None;
    }
    if entries.are_blocked {
        return Some(Decision::Blocked);
    }
    let limit = entries.max_age?;
    let is_younger = order.made_at().is_some_and(|made_at| {
        Duration::try_from(Timestamp::now().duration_since(made_at)).unwrap_or_default() <= limit
    });
    (!is_younger).then(|| Decision::Stale(format!("older than {}", crate::text::duration(limit))))
}

/// Whether a row is from before the bot's first start: a backfill, or a row moved between partitions. A row
/// without a usable `created_at` is taken for new when it is inserted, and for old when it is updated.
fn predates(order: &Order, origin: Origin, started_at: Timestamp) -> bool {
    if origin == Origin::Recovery {
        return false;
    }
    match order.created_at.as_deref().and_then(clock::instant) {
        Some(created_at) => started_at.duration_since(created_at) > START_TOLERANCE,
        None => origin == Origin::Update,
    }
}
