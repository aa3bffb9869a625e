//! `--recovery`: reads what was missed from the database and places it; then the stream continues from the snapshot.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::super::address::Cursor;
use super::super::alert::Reason;
use super::super::clock;
use super::super::decide::{Entries, Origin, decide};
use super::super::follow::{FeedEvent, Follower};
use super::super::journal::Journal;
use super::super::ledger::Ledger;
use super::super::line::{Line, Mode, Record};
use super::super::message::Connected;
use super::super::order::{Action, Order};
use super::super::recovery::{Recovery, Snapshot, read_snapshot};
use super::super::state::StateFile;
use super::{Bot, BotOptions, Halt, find_files};
use crate::error::Error;

impl Bot<'_> {
    /// Catches up and leaves close-only mode. It can be repeated: an order that the journal knows is not placed again.
    pub(super) fn recover(&mut self, recovery: &Recovery) -> Result<(), Halt> {
        // Unknown outcomes are looked up before anything else, even if the feed or the database is away.
        self.keeps_unsent = true;
        self.settle(None)?;
        let connected = self.read_connected()?;
        if connected.has_delay {
            return Err(Error::Failed("recovery is for keys without a delay, and this key has one".to_owned()).into());
        }
        self.bind(&connected.feed_id)?;
        let stop = self.stop.clone();
        let database = recovery.database.clone().with_watch(Some(Arc::new(move || !stop.is_asked())));
        let recovery = Recovery { database, ..*recovery };
        let snapshot = match read_snapshot(&recovery, missed_since(&self.journal.ledger).as_deref()) {
            Err(_) if self.stop.is_asked() => return Err(Halt::Stopped),
            snapshot => snapshot?,
        };
        require_same_log(&self.journal.ledger, &snapshot)?;
        let plan = RecoveryPlan::new(self.options, &self.journal.ledger, &snapshot);
        log::info!("recovery begins: {plan}");
        (self.is_recovering, self.keeps_unsent) = (true, false);
        self.settle(None)?;
        for row in &snapshot.rows {
            let wait = match read_row(row) {
                Ok(order) => self.act(&order, Origin::Recovery, None)?,
                Err(why) => {
                    self.unusable(None, &format!("a row that recovery found: {why}"), row)?;
                    None
                }
            };
            self.settle(wait)?;
        }
        let cursor = Cursor { feed_seq: snapshot.cursor, event_time: None };
        self.append(&Line { mode: Some(Mode::Normal), ..Line::new(Record::Mode).at(Some(&cursor)) })?;
        self.is_recovering = false;
        self.follower.acknowledge(cursor);
        let was_placed = |order: &&Order| {
            let known = self.journal.ledger.known(order);
            known.is_some_and(|known| matches!(known.outcome, Record::Placed | Record::Filled))
        };
        let placed = plan.orders.iter().filter(was_placed).count();
        let (planned, cursor) = (plan.orders.len(), snapshot.cursor);
        log::info!("recovery ends: placed {placed} of {planned} orders; the stream continues after {cursor}");
        Ok(())
    }

    fn read_connected(&mut self) -> Result<Connected, Halt> {
        let mut follower = Follower::new(&self.options.follow, None, self.stop.clone());
        loop {
            match follower.next_event().map_err(|end| self.halt(end))? {
                FeedEvent::Connected(connected) => return Ok(connected),
                FeedEvent::Interrupted { url, cause, alarm, wait } => self.interrupted(&url, &cause, alarm, wait),
                _ => {}
            }
        }
    }
}

/// What a run with `--recovery` would place, one line each. Reads the database and the bot's files, and changes
/// nothing.
pub(crate) fn dry_run(options: &BotOptions, recovery: &Recovery) -> Result<Vec<String>, Error> {
    let (state, journal) = find_files(options)?;
    let read = || {
        let mut ledger = Journal::look(&journal, &state)?;
        StateFile::load(state.clone(), &mut ledger).map(|_| ledger)
    };
    // A running bot may have written both files between the two reads.
    let ledger = read().or_else(|_| read())?;
    let snapshot = read_snapshot(recovery, missed_since(&ledger).as_deref())?;
    require_same_log(&ledger, &snapshot)?;
    let plan = RecoveryPlan::new(options, &ledger, &snapshot);
    let waiting = ledger.open().map(|intent| format!("{}, waits in the journal", describe(&intent.order, plan.now)));
    let missed = plan.orders.iter().map(|order| describe(order, plan.now));
    let refused = plan
        .refused
        .iter()
        .map(|(order, difference)| format!("{} is refused, {}: {difference}", order.order_ref, Reason::IdReused));
    // First what recovery would place, in its order.
    let mut lines: Vec<String> = waiting.chain(missed).chain(refused).collect();
    lines.push(format!("recovery would find: {plan}"));
    Ok(lines)
}

/// The time from which events may be missing. The cursor jumps to the snapshot, so a bot that was away for longer than
/// the look-back looks back to its last event.
fn missed_since(ledger: &Ledger) -> Option<String> {
    let since = match &ledger.mode {
        Mode::CloseOnly { missed_since, .. } => Some(missed_since.clone()),
        Mode::Normal => ledger.last_event_time.clone(),
    };
    since.filter(|time| clock::instant(time).is_some())
}

fn require_same_log(ledger: &Ledger, snapshot: &Snapshot) -> Result<(), Error> {
    match &ledger.feed_id {
        Some(bound) if *bound != snapshot.feed_id => Err(Error::Failed(format!(
            "feed, state file and journal belong to the log {bound}, but the database holds the log {}",
            snapshot.feed_id
        ))),
        _ => Ok(()),
    }
}

fn read_row(row: &str) -> Result<Order, String> {
    Order::from_row(serde_json::from_str(row).map_err(|error| error.to_string())?, None, None)
}

struct RecoveryPlan {
    now: Timestamp,
    orders: Vec<Order>,
    /// With a known id and action and other facts, and what differs.
    refused: Vec<(Order, String)>,
    waiting: usize,
    stale: usize,
    unusable: usize,
}

impl RecoveryPlan {
    fn new(options: &BotOptions, ledger: &Ledger, snapshot: &Snapshot) -> Self {
        let (now, waiting) = (Timestamp::now(), ledger.open().count());
        let mut plan = Self { now, orders: Vec::new(), refused: Vec::new(), waiting, stale: 0, unusable: 0 };
        // Two rows may have the same id: `signal` need not have a primary key.
        let mut ledger = ledger.clone();
        let entries = Entries { are_blocked: false, max_age: options.max_entry_age };
        for row in &snapshot.rows {
            let Ok(order) = read_row(row) else {
                plan.unusable += 1;
                continue;
            };
            let decision = decide(&ledger, &order, Origin::Recovery, entries);
            if matches!(decision, Ok(()) | Err((Record::Stale, _))) {
                // It fails only for lines without an id and an action.
                let _ = ledger.apply(&Line::new(Record::Stale).facts(&order));
            }
            match decision {
                Ok(()) => plan.orders.push(order),
                Err((Record::Conflict, difference)) => plan.refused.push((order, difference)),
                Err((record, _)) => plan.stale += usize::from(record == Record::Stale),
            }
        }
        plan
    }
}

impl fmt::Display for RecoveryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exits = self.orders.iter().filter(|order| order.action == Action::Exit).count();
        let (orders, entries) = (self.orders.len(), self.orders.len() - exits);
        write!(f, "{orders} orders to place ({entries} entries, {exits} exits")?;
        if let Some(oldest) = self.orders.iter().filter_map(Order::made_at).min() {
            write!(f, ", the oldest {} old", age(oldest, self.now))?;
        }
        let (waiting, stale, refused, unusable) = (self.waiting, self.stale, self.refused.len(), self.unusable);
        write!(
            f,
            "), {waiting} waiting in the journal, {stale} too old, {refused} with an id used again, {unusable} unusable rows"
        )
    }
}

fn describe(order: &Order, now: Timestamp) -> String {
    let age = order.made_at().map(|made_at| format!("{} old", age(made_at, now)));
    format!("{} {}, {}", order.order_ref, order.terms(), age.as_deref().unwrap_or("of unknown age"))
}

fn age(made_at: Timestamp, now: Timestamp) -> String {
    let seconds = u64::try_from(now.duration_since(made_at).as_secs()).unwrap_or(0);
    crate::text::duration(std::time::Duration::from_secs(seconds))
}
