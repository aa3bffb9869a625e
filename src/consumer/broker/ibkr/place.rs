//! Places an order under a number of its own. Any message that names the number is the answer.

use std::time::{Duration, Instant};

use ibapi::Error as ApiError;

use super::connection::{SLICE, Trouble};
use super::heard::{DUPLICATE_ID, Heard, Refusal, Verdict};
use super::lists::{Found, Lists, Scope};
use super::request::request;
use super::{IbkrBroker, Sent};
use crate::consumer::broker::Answer;
use crate::consumer::order::Order;

/// How long to wait if the gateway has the order but has not passed it on (`PendingSubmit`): a refusal may follow.
const PENDING_PATIENCE: Duration = Duration::from_secs(2);
/// How long to look in the gateway's lists for a refused order: if they show it, the refusal does not count.
const LIST_PATIENCE: Duration = Duration::from_secs(3);
/// How long a bot that should stop still waits for the answer to an order in flight.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

impl IbkrBroker {
    pub(super) fn try_place(&mut self, order: &Order, order_id: Option<i64>) -> Answer {
        let deadline = Instant::now() + self.timeout;
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
        // Nothing more is expected about the last order, unless it is followed.
        self.heard.retain(|order_id, _| self.followed.contains_key(order_id));
        self.heard.insert(order_id, Heard::default());
        self.sent = Some(Sent { order_id, connection: connection.number, broke: false });
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
            if let Some(answer) = self.heard_answer(order, order_id, deadline, false) {
                return answer;
            }
            let heard = self.heard.entry(order_id).or_default();
            if heard.status.is_some() && heard.since.is_some_and(|since| since.elapsed() >= PENDING_PATIENCE) {
                return Answer::Has(Some(order_id));
            }
            if self.connection.as_ref().is_none_or(|connection| connection.is_lost()) {
                let why = "the connection to the gateway broke before it acknowledged the order".to_owned();
                return if heard.since.is_some() { Answer::Unknown(why) } else { Answer::Broke(why) };
            }
            if self.stop.is_asked() {
                deadline = deadline.min(*last.get_or_insert(Instant::now() + LAST_PATIENCE));
            }
            if Instant::now() >= deadline {
                return Answer::Unknown("the gateway has not acknowledged the order".to_owned());
            }
        }
    }

    /// The answer, if the gateway's messages about the order are one. For a look-up, only lists make an error final.
    pub(super) fn heard_answer(
        &mut self,
        order: &Order,
        order_id: i64,
        deadline: Instant,
        is_lookup: bool,
    ) -> Option<Answer> {
        let verdict = self.heard.get(&order_id)?.verdict();
        let Verdict::Refused(refusal) = verdict else { return verdict.answer(order_id) };
        if self.is_not_sent(&refusal) {
            return Some(Answer::NotSent(refusal.why()));
        }
        // An error that names the order without a status is a refusal, unless the lists show the order working.
        let deadline = deadline.max(Instant::now() + SLICE).min(Instant::now() + LIST_PATIENCE);
        let lists = self.lists(Scope::Own, deadline);
        match lists.map(|lists| (lists.find(&order.order_ref, Some(order_id)), lists.gap)) {
            Ok((Found::Open(found) | Found::Executed(found, _), _)) => {
                // The lists may be the only sign of its end.
                self.look_at = Some(Instant::now());
                return Some(Answer::Has(Some(if found > 0 { found } else { order_id })));
            }
            // A list that was cut short may hide it.
            Ok((Found::Nothing, Some(gap))) => return Some(Answer::Unknown(format!("{}; {gap}", refusal.why()))),
            Err(why) if is_lookup || self.is_away() || self.stop.is_asked() => {
                return Some(Answer::Unknown(format!("{}; {why}", refusal.why())));
            }
            _ => {}
        }
        let refused = if refusal.is_cancel() { Answer::Unfilled } else { Answer::Rejected };
        let answer = self.heard.entry(order_id).or_default().verdict().answer(order_id);
        Some(answer.unwrap_or_else(|| refused(refusal.why())))
    }

    /// Whether the order may be sent again, and under which condition.
    pub(super) fn is_not_sent(&mut self, refusal: &Refusal) -> bool {
        if refusal.code == DUPLICATE_ID {
            // The numbers just above may be taken too.
            self.skip = (self.skip * 2).max(1);
        }
        if refusal.is_read_only() {
            self.set_trouble(Some(Trouble { text: refusal.why(), is_read_only: true }));
        }
        refusal.is_not_sent()
    }

    pub(super) fn lists(&mut self, scope: Scope, deadline: Instant) -> Result<Lists, String> {
        let connection = self.connection.as_mut().ok_or("not connected to the gateway")?;
        let lists = Lists::read(connection, scope, deadline, &self.stop);
        // Reports about the bot's own orders came there too.
        self.hear(Duration::ZERO);
        lists
    }
}
