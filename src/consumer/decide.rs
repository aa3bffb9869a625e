//! Decides what to do with a signal: place an order, or not and why. A pure function, like the table in the README.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::clock;
use super::ledger::Ledger;
use super::line::Record;
use super::order::{Action, Order};

/// A row created earlier than this before the bot's first start is from before its time. Clocks differ a little.
const START_TOLERANCE: SignedDuration = SignedDuration::from_mins(1);

/// Why an order is not placed: the journal's word for it, and a text. [`Record::Cursor`] if nothing is to be recorded but
/// the cursor, because the order is known.
pub(super) type NotPlaced = (Record, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Insert,
    Update,
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

pub(super) fn decide(ledger: &Ledger, order: &Order, origin: Origin, entries: Entries) -> Result<(), NotPlaced> {
    if let Some(known) = ledger.known(order) {
        let conflict = known.conflict(order).map(|difference| (Record::Conflict, difference));
        return Err(conflict.unwrap_or((Record::Cursor, "known".to_owned())));
    }
    if !ledger.knows_id(order) && predates(order, origin, ledger.started_at) {
        return Err((Record::Stale, "created more than a minute before the bot first started".to_owned()));
    }
    admit(order, entries)
}

/// Whether entries like this one are placed. An entry of unknown age counts as too old. Exits are always placed.
pub(super) fn admit(order: &Order, entries: Entries) -> Result<(), NotPlaced> {
    if order.action == Action::Exit {
        return Ok(());
    }
    if entries.are_blocked {
        return Err((Record::Blocked, "close-only mode".to_owned()));
    }
    let Some(limit) = entries.max_age else { return Ok(()) };
    let is_younger = order.made_at().is_some_and(|made_at| {
        Duration::try_from(Timestamp::now().duration_since(made_at)).unwrap_or_default() <= limit
    });
    if is_younger { Ok(()) } else { Err((Record::Stale, format!("older than {}", crate::text::duration(limit)))) }
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
