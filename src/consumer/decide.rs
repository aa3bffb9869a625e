//! What a signal is worth: to be placed, or why not. Pure, so that the table of the README can be read off it.

use std::time::Duration;

use jiff::Timestamp;

use super::clock;
use super::ledger::Ledger;
use super::order::{Action, Signal};

/// What is done with a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// An order is placed.
    Place,
    /// Its (id, action) is known: nothing is placed.
    PassOver,
    /// Its (id, action) is known for something else: nothing is placed.
    Conflict(String),
    /// An entry in close-only mode: never placed.
    Blocked,
    /// Never placed, for this reason.
    Stale(String),
}

/// What a decision rests on beside journal and signal.
#[derive(Debug, Clone)]
pub(super) struct Circumstances {
    /// The event is an UPDATE: the row may be older than the bot.
    pub(super) is_update: bool,
    /// Entries are not placed.
    pub(super) is_close_only: bool,
    /// Entries older than this are stale.
    pub(super) max_entry_age: Option<Duration>,
    /// What the age is counted from, where it is known.
    pub(super) made_at: Option<Timestamp>,
    pub(super) now: Timestamp,
}

pub(super) fn decide(ledger: &Ledger, signal: &Signal, circumstances: &Circumstances) -> Decision {
    if let Some(known) = ledger.known(&signal.key()) {
        return known.conflict(signal).map_or(Decision::PassOver, Decision::Conflict);
    }
    if circumstances.is_update && !ledger.knows_id(&signal.id_text) && !made_since(signal, ledger.started_at) {
        return Decision::Stale("an UPDATE of a row from before the bot first started".to_owned());
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

/// Where the row does not tell when it was made, it counts as older.
fn made_since(signal: &Signal, started_at: Timestamp) -> bool {
    signal.created_at.as_deref().and_then(clock::instant).is_some_and(|created_at| created_at >= started_at)
}

/// An entry whose age nobody knows is not younger than anything.
pub(super) fn is_younger(circumstances: &Circumstances, limit: Duration) -> bool {
    circumstances.made_at.is_some_and(|made_at| {
        Duration::try_from(circumstances.now.duration_since(made_at)).unwrap_or_default() <= limit
    })
}
