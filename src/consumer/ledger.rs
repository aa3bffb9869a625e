//! The contents of the journal: the known orders and how they ended, the cursor, the mode. Built from its lines in
//! order.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::address::Cursor;
use super::broker::Attempt;
use super::line::{Line, Mode, Record};
use super::order::{Action, Order, id_text};
use super::{clock, json};

/// What all lines about an order have in common: its id, in canonical text, and its action. (The order's reference may
/// differ: a former version wrote ids there as the row had them.)
pub(super) type OrderKey = (String, Action);

pub(super) fn key_of(order: &Order) -> OrderKey {
    (id_text(&order.signal_id).unwrap_or_default(), order.action)
}

/// What is known about one (id, action). It never leaves the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownOrder {
    pub(super) symbol: String,
    pub(super) side: String,
    pub(super) created_at: Option<String>,
    pub(super) outcome: Record,
}

impl KnownOrder {
    /// How an order with the same id and action differs. If it does, the id was used again.
    pub(super) fn conflict(&self, order: &Order) -> Option<String> {
        let mut differences = Vec::new();
        for (column, known, new) in [("symbol", &self.symbol, &order.symbol), ("side", &self.side, &order.side)] {
            if known != new {
                differences.push(format!("{column} {new} instead of {known}"));
            }
        }
        if let (Some(known), Some(new)) = (&self.created_at, &order.created_at)
            && !clock::same_instant(known, new)
        {
            differences.push(format!("created_at {new} instead of {known}"));
        }
        (!differences.is_empty()).then(|| differences.join(", "))
    }
}

/// An order that has not ended, as far as the bot knows.
#[derive(Debug, Clone)]
pub(super) struct OpenIntent {
    pub(super) order: Order,
    /// [`Record::Unknown`], [`Record::Unsent`], or [`Record::Placed`]: it works at the broker under a number.
    pub(super) stage: Record,
    pub(super) attempt: Attempt,
}

impl OpenIntent {
    /// Sent once more, because the broker certainly did not have it.
    fn send_again(&mut self, attempt: Attempt) {
        let resent = attempt.resent || self.attempt.resent;
        (self.stage, self.attempt) = (Record::Unknown, Attempt { resent, ..attempt });
    }
}

#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    pub(super) started_at: Timestamp,
    pub(super) feed_id: Option<String>,
    pub(super) cursor: Option<Cursor>,
    pub(super) mode: Mode,
    /// The newest event time in any line.
    pub(super) last_event_time: Option<String>,
    known: BTreeMap<OrderKey, KnownOrder>,
    intents: Vec<OpenIntent>,
    /// The highest number that any order was sent under.
    pub(super) highest_order_id: i64,
}

impl Ledger {
    pub(super) fn known(&self, order: &Order) -> Option<&KnownOrder> {
        self.known.get(&key_of(order))
    }

    /// How many orders are known. It never falls.
    pub(super) fn count(&self) -> usize {
        self.known.len()
    }

    /// Whether an entry or an exit with this order's id is known.
    pub(super) fn knows_id(&self, order: &Order) -> bool {
        let (id, _) = key_of(order);
        [Action::Entry, Action::Exit].into_iter().any(|action| self.known.contains_key(&(id.clone(), action)))
    }

    /// The orders to settle before anything else is sent.
    pub(super) fn open(&self) -> impl Iterator<Item = &OpenIntent> {
        self.intents.iter().filter(|intent| intent.stage != Record::Placed)
    }

    /// The order to settle first: unknown outcomes come before orders that certainly were not sent.
    pub(super) fn first_open(&self) -> Option<&OpenIntent> {
        self.open().find(|intent| intent.stage == Record::Unknown).or(self.open().next())
    }

    /// The orders to follow at the broker.
    pub(super) fn working(&self) -> impl Iterator<Item = &OpenIntent> {
        self.intents.iter().filter(|intent| intent.stage == Record::Placed)
    }

    /// The order with this key, unless it has ended.
    fn intent(&mut self, key: &OrderKey) -> Option<&mut OpenIntent> {
        self.intents.iter_mut().find(|intent| key_of(&intent.order) == *key)
    }

    pub(super) fn apply(&mut self, line: &Line) -> Result<(), String> {
        self.highest_order_id = self.highest_order_id.max(line.order_id.unwrap_or_default());
        let key = || line.key().ok_or("an outcome has no signal id and action");
        match line.record {
            Record::Journal => {
                self.started_at = clock::instant(&line.time).ok_or("the first line has no usable time")?;
                self.last_event_time.clone_from(&line.event_time);
                return Ok(());
            }
            Record::Bound => self.feed_id.clone_from(&line.feed_id),
            Record::Mode => self.mode = line.mode.clone().ok_or("a line of the mode has none")?,
            Record::Intent => return self.apply_intent(line),
            Record::Unsent | Record::Unknown => {
                let key = key()?;
                if let Some(intent) = self.intent(&key).filter(|intent| intent.stage != Record::Placed) {
                    intent.stage = line.record;
                    intent.attempt.broke = line.broke;
                    intent.attempt.resent |= line.resent;
                }
            }
            Record::Placed
            | Record::Filled
            | Record::Unfilled
            | Record::Rejected
            | Record::Blocked
            | Record::Stale
            | Record::Known => self.apply_outcome(line, key()?),
            Record::Cursor | Record::Conflict | Record::Unusable | Record::Quarantined => {}
        }
        if let Some(feed_seq) = line.feed_seq {
            self.cursor = Some(Cursor { feed_seq, event_time: line.event_time.clone() });
            if line.event_time.is_some() {
                self.last_event_time.clone_from(&line.event_time);
            }
        }
        Ok(())
    }

    fn apply_intent(&mut self, line: &Line) -> Result<(), String> {
        let tried_at = clock::instant(&line.time).ok_or("an intent has no usable time")?;
        // Without a later line about it, that bot and its connection have ended.
        let attempt = Attempt { tried_at, order_id: line.order_id, broke: true, resent: line.resent };
        let Some(raw) = &line.order else {
            let open = line.key().and_then(|key| self.intent(&key));
            open.ok_or("an intent has no order")?.send_again(attempt);
            return Ok(());
        };
        let mut order: Order = json::object(raw.get()).map_err(|error| format!("an intent's order: {error}"))?;
        order.created_at.clone_from(&line.created_at);
        let known = KnownOrder {
            symbol: order.symbol.clone(),
            side: order.side.clone(),
            created_at: order.created_at.clone(),
            outcome: Record::Intent,
        };
        let key = key_of(&order);
        self.known.insert(key.clone(), known);
        match self.intent(&key) {
            Some(intent) => intent.send_again(attempt),
            None => self.intents.push(OpenIntent { order, stage: Record::Unknown, attempt }),
        }
        Ok(())
    }

    fn apply_outcome(&mut self, line: &Line, key: OrderKey) {
        let outcome = if line.record == Record::Known { line.outcome.unwrap_or(Record::Placed) } else { line.record };
        let is_placed = line.record == Record::Placed;
        match self.intent(&key) {
            Some(intent) if is_placed && line.order_id.is_some() => {
                (intent.stage, intent.attempt.order_id) = (Record::Placed, line.order_id);
            }
            // A person's line about an order that is followed changes nothing: the bot must still learn how it ends.
            Some(intent) if is_placed && intent.stage == Record::Placed => {}
            // An accepted order without a number cannot be followed.
            _ => self.intents.retain(|intent| key_of(&intent.order) != key),
        }
        let known = self.known.entry(key).or_insert_with(|| KnownOrder {
            symbol: line.symbol.clone().unwrap_or_default(),
            side: line.side.clone().unwrap_or_default(),
            created_at: line.created_at.clone(),
            outcome,
        });
        known.outcome = outcome;
    }
}
