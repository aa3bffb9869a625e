//! From a signal to its order: decide, journal the intent, place, journal the outcome.

use super::super::address::Cursor;
use super::super::alert::Reason;
use super::super::broker::{Answer, Ended};
use super::super::decide::{Entries, Origin, decide};
use super::super::ledger::OpenIntent;
use super::super::line::{Line, Record, intent_line};
use super::super::message::SignalEvent;
use super::super::order::{Action, Order};
use super::settle::Wait;
use super::{Bot, Halt};
use crate::error::Error;
use crate::text::clip;

impl Bot<'_> {
    /// Handles an event. It is acknowledged only when this is done, so after a crash it comes again.
    pub(super) fn signal(&mut self, event: SignalEvent) -> Result<(), Halt> {
        let cursor = Cursor { feed_seq: event.feed_seq, event_time: event.event_time };
        let order = match event.order {
            Ok(order) => order,
            Err(why) => {
                self.unusable(Some(&cursor), &format!("event {}: {why}", event.feed_seq), &event.data)?;
                return Ok(self.moved(true)?);
            }
        };
        let origin = if event.is_update { Origin::Update } else { Origin::Insert };
        let is_new = self.journal.ledger.known(&order).is_none();
        let wait = self.act(&order, origin, Some(&cursor))?;
        if self.journal.ledger.first_open().is_none() {
            return Ok(self.moved(is_new)?);
        }
        self.follower.disconnect();
        self.settle(wait)
    }

    pub(super) fn entries(&self) -> Entries {
        let are_blocked = self.journal.ledger.mode.is_close_only() && !self.is_recovering;
        Entries { are_blocked, max_age: self.options.max_entry_age }
    }

    /// Decides about an order and acts on the decision. `cursor` is where the cursor then moves; none in recovery. Returns
    /// as [`place`](Self::place) does.
    pub(super) fn act(
        &mut self,
        order: &Order,
        origin: Origin,
        cursor: Option<&Cursor>,
    ) -> Result<Option<Wait>, Error> {
        match decide(&self.journal.ledger, order, origin, self.entries()) {
            Ok(()) => return self.place(order, cursor),
            Err((Record::Cursor, why)) => {
                log::debug!("{} is {why}: placing nothing", order.order_ref);
                if cursor.is_some() {
                    self.journal.append(&Line::new(Record::Cursor).at(cursor), false)?;
                }
            }
            Err((record, why)) => self.refuse(order, record, &why, cursor)?,
        }
        Ok(None)
    }

    /// Reports and journals an order that is never placed.
    pub(super) fn refuse(
        &mut self,
        order: &Order,
        record: Record,
        why: &str,
        cursor: Option<&Cursor>,
    ) -> Result<(), Error> {
        let name = &order.order_ref;
        match (record, order.action) {
            (Record::Conflict, _) => {
                let message =
                    format!("{name} is known with other facts ({why}): was the id used again? Nothing is placed");
                self.alert_about(Reason::IdReused, &message, order);
            }
            (_, Action::Exit) => {
                self.alert_about(Reason::ExitStale, &format!("the exit {name} is not placed: {why}"), order);
            }
            (Record::Blocked, _) => log::warn!("{name} is blocked: {why}"),
            _ => log::warn!("{name} is stale: {why}"),
        }
        self.journal.append(&Line::new(record).facts(order).why(why).at(cursor), true)
    }

    /// Places an order. If it is open after that, returns what to wait for first: nothing if the bot must ask the broker
    /// whether it has the order.
    pub(super) fn place(&mut self, order: &Order, cursor: Option<&Cursor>) -> Result<Option<Wait>, Error> {
        let mut intent = intent_line(order);
        intent.order_id = self.broker.next_order_id(self.journal.ledger.highest_order_id);
        self.journal.append(&intent, true)?;
        let answer = self.broker.place(order, intent.order_id);
        let wait = match &answer {
            Answer::NotSent(why) | Answer::Away(why) => Some((Reason::BrokerAway, why.clone())),
            _ => None,
        };
        self.take_answer(order, answer, cursor)?;
        Ok(wait)
    }

    /// Journals what the broker says about an order. If its outcome is unknown, [`Bot::settle`] asks again.
    pub(super) fn take_answer(&mut self, order: &Order, answer: Answer, cursor: Option<&Cursor>) -> Result<(), Error> {
        let name = &order.order_ref;
        let line = |record| Line::new(record).order_key(order);
        let line = match answer {
            Answer::Has(order_id) => {
                self.journal.append(&Line { order_id, ..line(Record::Placed).at(cursor) }, true)?;
                log::info!("{name} placed: {}", order.terms());
                // An order with a number is followed to its end.
                order_id.into_iter().for_each(|order_id| self.broker.follow(order_id, order));
                return Ok(());
            }
            Answer::Rejected(why) => return self.ended(order, Record::Rejected, &why, cursor),
            Answer::Unfilled(why) => return self.ended(order, Record::Unfilled, &why, cursor),
            Answer::NotSent(why) => line(Record::Unsent).why(clip(&why)),
            Answer::Lost => {
                log::warn!(
                    "{name}: the connection broke, and the broker's lists do not show it: sending it again, once"
                );
                Line { resent: true, ..line(Record::Unsent).why("not in the broker's lists") }
            }
            Answer::Unknown(ref why) | Answer::Away(ref why) | Answer::Broke(ref why) => {
                log::warn!("{name}: {why}; asking the broker whether it has the order");
                let broke = matches!(answer, Answer::Broke(_));
                Line { broke, ..line(Record::Unknown).why(clip(why)) }
            }
        };
        self.journal.append(&line, true)
    }

    /// Reports and journals an order that was not filled.
    fn ended(&mut self, order: &Order, record: Record, why: &str, cursor: Option<&Cursor>) -> Result<(), Error> {
        let (reason, how) = match record {
            Record::Rejected => (Reason::ExitRejected, "was rejected"),
            _ => (Reason::ExitUnfilled, "ended without being filled"),
        };
        let message = format!("{} {how}: {why} ({})", order.order_ref, order.terms());
        self.report(reason, &message, "the position is still open", order);
        self.journal.append(&Line::new(record).order_key(order).why(clip(why)).at(cursor), true)
    }

    /// For an exit an alert, with its consequence; for an entry an error line.
    fn report(&mut self, reason: Reason, message: &str, consequence: &str, order: &Order) {
        match order.action {
            Action::Exit => self.alert_about(reason, &format!("{message}: {consequence}"), order),
            Action::Entry => log::error!("{message}"),
        }
    }

    pub(super) fn note_ended_orders(&mut self) -> Result<(), Error> {
        while let Some((order_id, ended)) = self.broker.next_ended() {
            let is_it = |intent: &&OpenIntent| intent.attempt.order_id == Some(order_id);
            let found = self.journal.ledger.working().find(is_it).map(|intent| intent.order.clone());
            let Some(order) = found else { continue };
            match ended {
                Ended::Filled(how) => {
                    log::info!("{} was filled: {how}", order.order_ref);
                    self.journal.append(&Line::new(Record::Filled).order_key(&order).why(how), true)?;
                }
                Ended::Unfilled(why) => self.ended(&order, Record::Unfilled, &why, None)?,
                Ended::Unknown(why) => {
                    let message = format!("{} was accepted, and its state is unknown: {why}", order.order_ref);
                    self.report(Reason::OutcomeUnknown, &message, "look at the broker", &order);
                }
            }
        }
        Ok(())
    }
}
