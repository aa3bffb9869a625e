//! From a signal to its order: decide, journal the intent, place, journal the outcome.

use jiff::Timestamp;

use super::super::address::Cursor;
use super::super::alert::Reason;
use super::super::broker::{Ended, Placing};
use super::super::decide::{Circumstances, Decision, Origin, decide, made_at};
use super::super::line::{Line, Record, intent_line};
use super::super::message::SignalEvent;
use super::super::order::{Action, Order, Signal};
use super::settle::{Acted, Unsent, Wait};
use super::{Bot, Halt};
use crate::error::Error;
use crate::text::clip;

impl Bot<'_> {
    /// Handles an event. It is acknowledged only when this is done, so after a crash it comes again.
    pub(super) fn signal(&mut self, event: SignalEvent) -> Result<(), Halt> {
        let cursor = Cursor { feed_seq: event.feed_seq, event_time: event.event_time.clone() };
        let signal = match event.signal {
            Ok(signal) => signal,
            Err(why) => {
                self.unusable(Some(&cursor), &format!("event {}: {why}", event.feed_seq), &event.data)?;
                return Ok(self.moved(cursor, true)?);
            }
        };
        let origin = if event.is_update { Origin::Update } else { Origin::Insert };
        let made_at = made_at(event.event_time.as_deref(), signal.created_at.as_deref(), signal.updated_at.as_deref());
        let order = signal.order(Some(event.feed_seq), event.event_time);
        let wait = match self.act(&signal, &order, &self.circumstances(origin, made_at), Some(&cursor))? {
            Acted::Done { sync } => return Ok(self.moved(cursor, sync)?),
            Acted::Wait(wait) => Some(wait),
            Acted::Ask => None,
        };
        self.follower.disconnect();
        self.settle(wait, Unsent::Send)
    }

    pub(super) fn circumstances(&self, origin: Origin, made_at: Option<Timestamp>) -> Circumstances {
        Circumstances {
            origin,
            is_close_only: self.blocks_entries(),
            max_entry_age: self.options.max_entry_age,
            made_at,
            now: Timestamp::now(),
        }
    }

    pub(super) fn blocks_entries(&self) -> bool {
        self.state.mode.is_close_only() && !self.is_recovering
    }

    /// Decides about a signal and acts on the decision. `cursor` is where the cursor then moves; none in recovery.
    pub(super) fn act(
        &mut self,
        signal: &Signal,
        order: &Order,
        circumstances: &Circumstances,
        cursor: Option<&Cursor>,
    ) -> Result<Acted, Error> {
        let name = &order.order_ref;
        let line = match decide(self.journal.ledger(), signal, circumstances) {
            Decision::Place => return self.place(order, signal.created_at.clone(), cursor),
            Decision::PassOver => {
                log::debug!("{name} is known: placing nothing");
                if cursor.is_some() {
                    self.journal.append(&Line::new(Record::Cursor).at(cursor), false)?;
                }
                return Ok(Acted::Done { sync: false });
            }
            Decision::Conflict(difference) => {
                let message = format!(
                    "{name} is known with other facts ({difference}): was the id used again? Nothing is placed"
                );
                self.alert_about(Reason::IdReused, &message, order);
                Line::new(Record::Conflict).why(difference)
            }
            Decision::Blocked => {
                log::warn!("{name} is blocked: close-only mode");
                Line::new(Record::Blocked).why("close-only mode")
            }
            Decision::Stale(why) => {
                if signal.action == Action::Exit {
                    self.alert_about(Reason::ExitStale, &format!("the exit {name} is not placed: {why}"), order);
                } else {
                    log::warn!("{name} is stale: {why}");
                }
                Line::new(Record::Stale).why(why)
            }
        };
        self.journal.append(&line.signal(signal).at(cursor), true)?;
        Ok(Acted::Done { sync: true })
    }

    pub(super) fn place(
        &mut self,
        order: &Order,
        created_at: Option<String>,
        cursor: Option<&Cursor>,
    ) -> Result<Acted, Error> {
        let mut intent = intent_line(order, created_at);
        intent.order_id = self.broker.next_order_id(self.journal.ledger().highest_order_id);
        self.journal.append(&intent, true)?;
        match self.broker.place(order, intent.order_id) {
            Placing::Placed => {
                self.placed(order, intent.order_id, None, cursor)?;
                log::info!("{} placed: {}", order.order_ref, order.terms());
            }
            Placing::Rejected(why) => self.rejected(order, &why, cursor)?,
            Placing::Unfilled(why) => self.unfilled(order, &why, cursor)?,
            Placing::Away(why) => {
                self.journal.append(&Line::new(Record::Unsent).order_key(order).why(clip(&why)), true)?;
                return Ok(Acted::Wait(Wait::away(why)));
            }
            Placing::Unknown(why) => return self.unknown(order, &why, None),
            Placing::Broke(why) => return self.unknown(order, &why, Some(true)),
        }
        Ok(Acted::Done { sync: true })
    }

    /// Journals that the outcome is unknown. [`Bot::settle`] then asks the broker.
    fn unknown(&mut self, order: &Order, why: &str, broke: Option<bool>) -> Result<Acted, Error> {
        log::warn!("{}: {why}; asking the broker whether it has the order", order.order_ref);
        let mut line = Line::new(Record::Unknown).order_key(order).why(clip(why));
        line.broke = broke;
        self.journal.append(&line, true)?;
        Ok(Acted::Ask)
    }

    /// Records that the broker has the order. If the order has a number there, the bot follows it to its end.
    pub(super) fn placed(
        &mut self,
        order: &Order,
        order_id: Option<i64>,
        why: Option<&str>,
        cursor: Option<&Cursor>,
    ) -> Result<(), Error> {
        let mut line = Line::new(Record::Placed).order_key(order).at(cursor);
        line.order_id = order_id;
        line.why = why.map(ToOwned::to_owned);
        self.journal.append(&line, true)?;
        if let Some(order_id) = order_id {
            self.broker.follow(order_id, order);
        }
        Ok(())
    }

    pub(super) fn rejected(&mut self, order: &Order, why: &str, cursor: Option<&Cursor>) -> Result<(), Error> {
        let message = format!("{} was rejected: {why} ({})", order.order_ref, order.terms());
        self.bad_end(Reason::ExitRejected, &message, order);
        self.journal.append(&Line::new(Record::Rejected).order_key(order).why(clip(why)).at(cursor), true)
    }

    pub(super) fn unfilled(&mut self, order: &Order, why: &str, cursor: Option<&Cursor>) -> Result<(), Error> {
        let message = format!("{} ended without being filled: {why} ({})", order.order_ref, order.terms());
        self.bad_end(Reason::ExitUnfilled, &message, order);
        self.journal.append(&Line::new(Record::Unfilled).order_key(order).why(clip(why)).at(cursor), true)
    }

    /// Reports an order that was not filled. For an exit, whose position is still open, an alert; for an entry, an
    /// error line.
    fn bad_end(&mut self, exit_reason: Reason, message: &str, order: &Order) {
        match order.action {
            Action::Exit => self.alert_about(exit_reason, &format!("{message}: the position is still open"), order),
            Action::Entry => log::error!("{message}"),
        }
    }

    /// Records accepted orders that have ended since.
    pub(super) fn note_ended_orders(&mut self) -> Result<(), Error> {
        while let Some((order_id, ended)) = self.broker.next_ended() {
            let working = self.journal.ledger().working();
            let Some(intent) = working.iter().find(|intent| intent.attempt.order_id == Some(order_id)) else {
                continue;
            };
            let order = intent.order.clone();
            match ended {
                Ended::Filled(how) => {
                    log::info!("{} was filled: {how}", order.order_ref);
                    self.journal.append(&Line::new(Record::Filled).order_key(&order).why(how), true)?;
                }
                Ended::Unfilled(why) => self.unfilled(&order, &why, None)?,
                Ended::Unknown(why) => {
                    let message = format!("{} was accepted, and its state is unknown: {why}", order.order_ref);
                    match order.action {
                        Action::Exit => self.alert_about(Reason::OutcomeUnknown, &message, &order),
                        Action::Entry => log::error!("{message}"),
                    }
                }
            }
        }
        Ok(())
    }
}
