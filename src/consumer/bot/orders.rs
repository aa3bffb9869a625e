//! The way of an order: decide, journal the intent, place, journal the outcome, settle what is open, note its end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::super::address::Cursor;
use super::super::alert::Reason;
use super::super::backoff::Backoff;
use super::super::broker::{Answer, Ended};
use super::super::decide::{Entries, Origin, admit, decide};
use super::super::ledger::{OpenIntent, key_of};
use super::super::line::{Line, Record, intent_line};
use super::super::message::SignalEvent;
use super::super::order::{Action, Order};
use super::{Bot, Halt};
use crate::error::Error;
use crate::logging::LIMITED;
use crate::text::clip;

/// Longest wait before the bot asks a broker that is away again, even if the feed's back-off is longer.
const BROKER_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What the bot waits for, and why.
type Wait = (Reason, String);

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

    fn entries(&self) -> Entries {
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
    fn refuse(&mut self, order: &Order, record: Record, why: &str, cursor: Option<&Cursor>) -> Result<(), Error> {
        let name = &order.order_ref;
        match (record, order.action) {
            (Record::Conflict, _) => {
                let message =
                    format!("{name} is known with other facts ({why}): was the id used again? Nothing is placed");
                self.alert(Reason::IdReused, &message, Some(order));
            }
            (_, Action::Exit) => {
                self.alert(Reason::ExitStale, &format!("the exit {name} is not placed: {why}"), Some(order));
            }
            (Record::Blocked, _) => log::warn!("{name} is blocked: {why}"),
            _ => log::warn!("{name} is stale: {why}"),
        }
        self.journal.append(&Line::new(record).facts(order).why(why).at(cursor), true)
    }

    /// Places an order. If it is open after that, returns what to wait for first: nothing if the bot must ask the broker
    /// whether it has the order.
    fn place(&mut self, order: &Order, cursor: Option<&Cursor>) -> Result<Option<Wait>, Error> {
        // An order that is sent again is in the journal already.
        let is_known = self.journal.ledger.known(order).is_some();
        let mut intent = if is_known { Line::new(Record::Intent).order_key(order) } else { intent_line(order) };
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

    /// Journals what the broker says about an order. If its outcome is unknown, [`settle`](Self::settle) asks again.
    fn take_answer(&mut self, order: &Order, answer: Answer, cursor: Option<&Cursor>) -> Result<(), Error> {
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
                log::warn!("{name}: the connection broke, and no list of the broker shows it: sending it again, once");
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

    /// Returns once the broker is there and no order is open, except unsent ones before a recovery.
    ///
    /// An episode of waiting raises one alert for each reason to wait. If the text of a reason changes, it is logged
    /// again.
    pub(super) fn settle(&mut self, mut wait: Option<Wait>) -> Result<(), Halt> {
        let max = self.options.follow.backoff_max.min(BROKER_BACKOFF_MAX);
        let mut backoff = Backoff::new(self.options.follow.backoff_min, max);
        let mut told: HashMap<Reason, String> = HashMap::new();
        let mut sent_again = false;
        let began = Instant::now();
        loop {
            if self.stop.is_asked() {
                return Err(Halt::Stopped);
            }
            if let Some((reason, why)) = wait.take() {
                match told.insert(reason, why.clone()) {
                    None => self.tell_of_waiting(reason, &why),
                    Some(last) if last == why => {}
                    Some(_) => log::warn!(target: LIMITED, "{reason}: still waiting for the broker: {why}"),
                }
                self.stop.sleep(backoff.next_wait());
                continue;
            }
            self.note_ended_orders()?;
            let open = self.journal.ledger.first_open().cloned();
            wait = match open {
                // The look-up itself shows whether the broker is there.
                Some(intent) if intent.stage == Record::Unknown => {
                    match self.ask(&intent)? {
                        // After a while an unknown order is worse than a broker that is away.
                        Some(wait) if began.elapsed() >= self.options.away_patience => {
                            Some((Reason::OutcomeUnknown, wait.1))
                        }
                        Some(wait) => Some(wait),
                        // A program may fail like this every time: from the second time on the bot waits, with one alert.
                        None if sent_again && self.is_unsent(&intent.order) => {
                            let why = "it was sent more than once, and the broker does not have it".to_owned();
                            Some((Reason::SendingFails, why))
                        }
                        None => None,
                    }
                }
                open => match (self.broker.connected(), open) {
                    (Err(why), _) => Some((Reason::BrokerAway, why)),
                    (Ok(()), Some(intent)) if !self.keeps_unsent => {
                        sent_again = true;
                        self.send_again(&intent)?
                    }
                    (Ok(()), _) => {
                        if !told.is_empty() {
                            log::info!("the broker is back, and every order's outcome is known");
                        }
                        return Ok(());
                    }
                },
            };
        }
    }

    fn tell_of_waiting(&mut self, reason: Reason, why: &str) {
        if matches!(reason, Reason::OutcomeUnknown | Reason::SendingFails)
            && let Some(intent) = self.journal.ledger.first_open().cloned()
        {
            let name = &intent.order.order_ref;
            let what = match reason {
                Reason::SendingFails => format!("{name} cannot be placed; the bot keeps trying"),
                _ => format!("it is unknown whether the broker has {name}; the bot keeps asking"),
            };
            self.alert(reason, &format!("{what} and sends nothing else: {why}"), Some(&intent.order));
        } else {
            let message = format!("the broker is away; the bot waits and consumes nothing: {why}");
            self.alert(reason, &message, None);
        }
    }

    /// `Some` if there is still no answer.
    fn ask(&mut self, intent: &OpenIntent) -> Result<Option<Wait>, Error> {
        let answer = self.broker.lookup(&intent.order, &intent.attempt);
        let wait = match &answer {
            Answer::Away(why) => Some((Reason::BrokerAway, why.clone())),
            Answer::Unknown(why) | Answer::Broke(why) => Some((Reason::OutcomeUnknown, why.clone())),
            _ => None,
        };
        let is_news = wait.is_none() || (matches!(answer, Answer::Broke(_)) && !intent.attempt.broke);
        if is_news {
            self.take_answer(&intent.order, answer, None)?;
        }
        Ok(wait)
    }

    fn send_again(&mut self, intent: &OpenIntent) -> Result<Option<Wait>, Error> {
        let order = &intent.order;
        if let Err((record, why)) = admit(order, self.entries()) {
            self.refuse(order, record, &why, None)?;
            return Ok(None);
        }
        self.place(order, None)
    }

    fn is_unsent(&self, order: &Order) -> bool {
        let first = self.journal.ledger.first_open();
        first.is_some_and(|first| first.stage == Record::Unsent && key_of(&first.order) == key_of(order))
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
            Action::Exit => self.alert(reason, &format!("{message}: {consequence}"), Some(order)),
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
