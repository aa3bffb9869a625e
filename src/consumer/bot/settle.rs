//! Settles orders with the broker: before the bot sends or consumes anything, no order is open and the broker is there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::super::alert::Reason;
use super::super::backoff::Backoff;
use super::super::broker::Answer;
use super::super::decide::admit;
use super::super::ledger::{OpenIntent, key_of};
use super::super::line::Record;
use super::super::order::Order;
use super::{Bot, Halt};
use crate::error::Error;
use crate::logging::LIMITED;

/// Longest wait before the bot asks a broker that is away again, even if the feed's back-off is longer.
const BROKER_BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What the bot waits for, and why.
pub(super) type Wait = (Reason, String);

impl Bot<'_> {
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
                if !self.stop.sleep(backoff.next_wait()) {
                    return Err(Halt::Stopped);
                }
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
            self.alert_about(reason, &format!("{what} and sends nothing else: {why}"), &intent.order);
        } else {
            let message = format!("the broker is away; the bot waits and consumes nothing: {why}");
            self.alert(reason, &message);
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
}
