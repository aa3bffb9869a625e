//! Places an order under a number of its own. Any message that names the number is the answer.

use std::time::{Duration, Instant};

use ibapi::Error as ApiError;

use super::IbkrBroker;
use super::connection::{SLICE, Trouble};
use super::lists::{Found, ListReader, Lists, Scope};
use super::own::{OwnOrder, Refusal};
use super::request::request;
use crate::consumer::broker::Answer;
use crate::consumer::order::Order;

/// How long to wait if the gateway has the order but has not passed it on (`PendingSubmit`): a refusal may follow.
const PENDING_PATIENCE: Duration = Duration::from_secs(2);
/// How long to look in the gateway's lists for a refused order: if they show it, the refusal does not count.
const LIST_PATIENCE: Duration = Duration::from_secs(10);
/// How long a bot that should stop still waits for the answer to an order in flight.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

impl IbkrBroker {
    pub(super) fn try_place(&mut self, order: &Order, order_id: Option<i64>) -> Answer {
        let deadline = Instant::now() + self.timeout;
        self.hear(Duration::ZERO);
        let Some(connection) = self.connection.as_mut().filter(|connection| !connection.is_lost()) else {
            return Answer::NotSent("not connected to the gateway".to_owned());
        };
        let (contract, asked) = match request(order, connection.client.handshake_managed_accounts()) {
            Ok(both) => both,
            Err(why) => return Answer::Rejected(why),
        };
        let Some((order_id, number)) = order_id.and_then(|id| Some((id, i32::try_from(id).ok()?))) else {
            return Answer::NotSent("the gateway has not said which order ids are free".to_owned());
        };
        // Only now the gateway may say that it has an order after all, which an error called not sent.
        let earlier = self.orders.iter().find(|(_, own)| own.reference == order.order_ref && own.is_seen());
        if let Some(answer @ Answer::Has(_)) = earlier.and_then(|(earlier_id, own)| own.answer(*earlier_id)) {
            return answer;
        }
        // Nothing more is expected about the last order, unless it is followed.
        self.orders.retain(|_, order| order.is_followed);
        self.orders.insert(order_id, OwnOrder::new(order, Some(connection.number)));
        match connection.client.submit_order(number, &contract, &asked) {
            Ok(()) => {}
            // The client looks at its connection before it writes.
            Err(error @ (ApiError::ConnectionReset | ApiError::ConnectionFailed | ApiError::Shutdown)) => {
                return Answer::NotSent(format!("send the order: {error}"));
            }
            Err(error @ ApiError::OrderIdInRequestRange { .. }) => return Answer::NotSent(error.to_string()),
            Err(error @ ApiError::Io(_)) => return Answer::Broke(format!("send the order: {error}")),
            Err(error) => return Answer::Rejected(error.to_string()),
        }
        self.wait_for_answer(order, order_id, deadline)
    }

    fn wait_for_answer(&mut self, order: &Order, order_id: i64, mut deadline: Instant) -> Answer {
        let mut last = None;
        loop {
            self.hear(SLICE);
            if let Some(answer) = self.heard_answer(order_id) {
                return answer;
            }
            let sent = self.orders.entry(order_id).or_default();
            if let Some(refusal) = sent.refusal.clone() {
                return self.answer_by_lists(order, order_id, &refusal, deadline);
            }
            if sent.status.is_some() && sent.since.is_some_and(|since| since.elapsed() >= PENDING_PATIENCE) {
                return Answer::Has(Some(order_id));
            }
            if self.connection.as_ref().is_none_or(|connection| connection.is_lost()) {
                let why = "the connection to the gateway broke before it acknowledged the order".to_owned();
                return if sent.since.is_some() { Answer::Unknown(why) } else { Answer::Broke(why) };
            }
            if self.stop.is_asked() {
                deadline = deadline.min(*last.get_or_insert(Instant::now() + LAST_PATIENCE));
            }
            if Instant::now() >= deadline {
                return Answer::Unknown("the gateway has not acknowledged the order".to_owned());
            }
        }
    }

    /// The answer, if the gateway's messages about the order are one. After a status or a fill, an error that says "not
    /// sent" is none: the lists decide. (A read-only gateway refuses lists too.)
    pub(super) fn heard_answer(&mut self, order_id: i64) -> Option<Answer> {
        let heard = self.orders.get(&order_id)?;
        let answer = heard.answer(order_id);
        let is_unsent = |refusal: &Refusal| refusal.is_read_only() || (refusal.is_not_sent() && !heard.is_seen());
        let Some(refusal) = heard.refusal.clone().filter(|refusal| answer.is_none() && is_unsent(refusal)) else {
            return answer;
        };
        if refusal.is_read_only() {
            self.set_trouble(Some(Trouble { text: refusal.why(), is_read_only: true }));
        }
        Some(Answer::NotSent(refusal.why()))
    }

    /// The answer to an order that an error names. It is refused, unless the lists show it working or may hide it.
    fn answer_by_lists(&mut self, order: &Order, order_id: i64, refusal: &Refusal, deadline: Instant) -> Answer {
        let deadline = deadline.max(Instant::now() + SLICE).min(Instant::now() + LIST_PATIENCE);
        let lists = self.lists(Scope::Own, deadline);
        let why = refusal.why();
        match lists.map(|lists| (lists.find(&order.order_ref, Some(order_id)), lists.gap)) {
            Ok((Found::Open(found) | Found::Executed(found, _), _)) => Answer::Has(found),
            Ok((Found::Nothing, Some(gap))) => Answer::Unknown(format!("{why}; {gap}")),
            Err(silence) if self.is_away() || self.stop.is_asked() || refusal.is_not_sent() => {
                Answer::Unknown(format!("{why}; {silence}"))
            }
            // A status may have come meanwhile.
            _ => self.heard_answer(order_id).unwrap_or_else(|| refusal.answer_without_order(why)),
        }
    }

    pub(super) fn lists(&mut self, scope: Scope, deadline: Instant) -> Result<Lists, String> {
        let connection = self.connection.as_mut().ok_or("not connected to the gateway")?;
        let lists = ListReader { connection, deadline, stop: &self.stop }.read(scope);
        // Reports about the bot's own orders came there too.
        self.hear(Duration::ZERO);
        lists
    }
}
