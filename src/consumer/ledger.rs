//! The contents of the journal: the known orders and how they ended, the cursor, the mode. Built from its lines in
//! order.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::address::Cursor;
use super::broker::Attempt;
use super::line::{Line, Record, VERSION, intent_line};
use super::order::{Action, Order, OrderKey, Signal};
use super::state::Mode;
use super::{clock, json};

/// What is known about one (id, action). It never leaves the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) symbol: String,
    pub(super) side: String,
    pub(super) created_at: Option<String>,
    pub(super) outcome: Record,
}

impl Known {
    /// How a signal with the same id and action differs. If it does, the id was used again.
    pub(super) fn conflict(&self, signal: &Signal) -> Option<String> {
        let mut differences = Vec::new();
        if self.symbol != signal.symbol {
            differences.push(format!("symbol {} instead of {}", signal.symbol, self.symbol));
        }
        if self.side != signal.side {
            differences.push(format!("side {} instead of {}", signal.side, self.side));
        }
        if let (Some(known), Some(new)) = (&self.created_at, &signal.created_at)
            && !clock::same_instant(known, new)
        {
            differences.push(format!("created_at {new} instead of {known}"));
        }
        (!differences.is_empty()).then(|| differences.join(", "))
    }
}

/// An order whose outcome is unknown, or that the broker has accepted and not ended yet.
#[derive(Debug, Clone)]
pub(super) struct OpenIntent {
    pub(super) order: Order,
    pub(super) created_at: Option<String>,
    /// Whether the broker certainly does not have it.
    pub(super) unsent: bool,
    /// The last attempt to place it.
    pub(super) attempt: Attempt,
}

/// The contents of the journal.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    /// When the bot first started.
    pub(super) started_at: Timestamp,
    pub(super) feed_id: Option<String>,
    pub(super) cursor: Option<Cursor>,
    pub(super) mode: Mode,
    /// The newest event time in any line.
    pub(super) last_event_time: Option<String>,
    known: BTreeMap<String, [Option<Known>; 2]>,
    open: Vec<OpenIntent>,
    /// Orders that the broker has accepted under a number, and that have not ended.
    working: Vec<OpenIntent>,
    /// The highest number that any order was sent under.
    pub(super) highest_order_id: i64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            started_at: Timestamp::now(),
            feed_id: None,
            cursor: None,
            mode: Mode::Normal,
            last_event_time: None,
            known: BTreeMap::new(),
            open: Vec::new(),
            working: Vec::new(),
            highest_order_id: 0,
        }
    }
}

impl Ledger {
    pub(super) fn known(&self, key: &OrderKey) -> Option<&Known> {
        self.known.get(&key.id)?[key.action as usize].as_ref()
    }

    /// Whether an entry or an exit with this id is known.
    pub(super) fn knows_id(&self, id: &str) -> bool {
        self.known.contains_key(id)
    }

    /// The orders whose outcome is unknown.
    pub(super) fn open(&self) -> impl Iterator<Item = &OpenIntent> {
        self.open.iter()
    }

    /// The order to settle first: unknown outcomes come before orders that certainly were not sent.
    pub(super) fn first_open(&self) -> Option<&OpenIntent> {
        self.open.iter().find(|intent| !intent.unsent).or(self.open.first())
    }

    /// The orders to follow at the broker.
    pub(super) fn working(&self) -> &[OpenIntent] {
        &self.working
    }

    /// Applies the next line.
    pub(super) fn apply(&mut self, line: &Line) -> Result<(), String> {
        self.highest_order_id = self.highest_order_id.max(line.order_id.unwrap_or_default());
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
                let key = line.key().ok_or("an outcome has no signal id and action")?;
                if let Some(intent) = self.open.iter_mut().find(|intent| intent.order.key() == key) {
                    intent.unsent = line.record == Record::Unsent;
                    intent.attempt.broke = line.broke == Some(true);
                    intent.attempt.resent |= line.resent == Some(true);
                }
            }
            Record::Placed => self.apply_placed(line)?,
            Record::Filled | Record::Unfilled => {
                let key = line.key().ok_or("an outcome has no signal id and action")?;
                self.working.retain(|intent| intent.order.key() != key);
                self.apply_outcome(line, line.record)?;
            }
            Record::Rejected => self.apply_outcome(line, line.record)?,
            Record::Blocked | Record::Stale => self.apply_outcome(line, line.record)?,
            Record::Known => self.apply_outcome(line, line.outcome.unwrap_or(Record::Placed))?,
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
        let raw = line.order.as_ref().ok_or("an intent has no order")?;
        let order: Order = json::object(raw.get()).map_err(|error| format!("an intent's order: {error}"))?;
        let key = order.key();
        let known = Known {
            symbol: order.symbol.clone(),
            side: order.side.clone(),
            created_at: line.created_at.clone(),
            outcome: Record::Intent,
        };
        self.set(&key, known);
        let tried_at = clock::instant(&line.time).ok_or("an intent has no usable time")?;
        // Without a later line about it, that bot and its connection have ended.
        let mut attempt = Attempt { tried_at, order_id: line.order_id, broke: true, resent: line.resent == Some(true) };
        match self.open.iter_mut().find(|intent| intent.order.key() == key) {
            // Sent once more, because the broker certainly did not have it.
            Some(intent) => {
                attempt.resent |= intent.attempt.resent;
                (intent.unsent, intent.attempt) = (false, attempt);
            }
            None => {
                let created_at = line.created_at.clone();
                self.open.push(OpenIntent { order, created_at, unsent: false, attempt });
            }
        }
        Ok(())
    }

    fn apply_placed(&mut self, line: &Line) -> Result<(), String> {
        let key = line.key().ok_or("an outcome has no signal id and action")?;
        let intent = self.open.iter().find(|intent| intent.order.key() == key);
        if let (Some(intent), Some(order_id)) = (intent, line.order_id) {
            let attempt = Attempt { order_id: Some(order_id), ..intent.attempt };
            self.working.push(OpenIntent { attempt, ..intent.clone() });
        }
        self.apply_outcome(line, Record::Placed)
    }

    fn apply_outcome(&mut self, line: &Line, outcome: Record) -> Result<(), String> {
        let key = line.key().ok_or("an outcome has no signal id and action")?;
        self.open.retain(|intent| intent.order.key() != key);
        let known = match self.known(&key) {
            Some(known) => Known { outcome, ..known.clone() },
            None => Known {
                symbol: line.symbol.clone().unwrap_or_default(),
                side: line.side.clone().unwrap_or_default(),
                created_at: line.created_at.clone(),
                outcome,
            },
        };
        self.set(&key, known);
        Ok(())
    }

    fn set(&mut self, key: &OrderKey, known: Known) {
        self.known.entry(key.id.clone()).or_default()[key.action as usize] = Some(known);
    }

    /// The fewest lines with the same meaning.
    pub(super) fn summary(&self) -> Vec<Line> {
        let mut first = Line::new(Record::Journal);
        first.version = Some(VERSION);
        first.time = clock::text(self.started_at);
        first.event_time.clone_from(&self.last_event_time);
        first.order_id = (self.highest_order_id > 0).then_some(self.highest_order_id);
        let mut lines = vec![first];
        if self.feed_id.is_some() {
            let mut bound = Line::new(Record::Bound);
            bound.feed_id.clone_from(&self.feed_id);
            lines.push(bound);
        }
        for (id, actions) in &self.known {
            for (action, known) in [Action::Entry, Action::Exit].into_iter().zip(actions) {
                let closed = known.as_ref().filter(|known| known.outcome != Record::Intent);
                lines.extend(closed.map(|known| shrunk(id, action, known)));
            }
        }
        for intent in &self.working {
            lines.push(intent.line());
            let mut placed = Line::new(Record::Placed).order_key(&intent.order);
            placed.order_id = intent.attempt.order_id;
            lines.push(placed);
        }
        for intent in &self.open {
            lines.push(intent.line());
            if intent.unsent || !intent.attempt.broke {
                let record = if intent.unsent { Record::Unsent } else { Record::Unknown };
                lines.push(Line::new(record).order_key(&intent.order));
            }
        }
        if self.mode.is_close_only() {
            let mut mode = Line::new(Record::Mode);
            mode.mode = Some(self.mode.clone());
            lines.push(mode);
        }
        if self.cursor.is_some() {
            lines.push(Line::new(Record::Cursor).at(self.cursor.as_ref()));
        }
        lines
    }
}

impl OpenIntent {
    /// The intent as it was written, with what later lines added.
    fn line(&self) -> Line {
        let mut line = intent_line(&self.order, self.created_at.clone());
        line.time = clock::text(self.attempt.tried_at);
        line.order_id = self.attempt.order_id;
        line.resent = self.attempt.resent.then_some(true);
        line
    }
}

fn shrunk(id: &str, action: Action, known: &Known) -> Line {
    let mut line = Line::new(Record::Known);
    line.signal_id = serde_json::value::to_raw_value(id).ok();
    line.action = Some(action);
    line.symbol = Some(known.symbol.clone());
    line.side = Some(known.side.clone());
    line.created_at.clone_from(&known.created_at);
    line.outcome = Some(known.outcome);
    line
}
