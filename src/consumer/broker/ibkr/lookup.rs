//! Looks up an order whose outcome is unknown.
//!
//! Silence on a connection that stayed up never permits a second send: the gateway may hold the order in a dialog. Only
//! if the connection broke before any answer do the lists decide: two sets of them, on a new connection.

use std::time::Instant;

use jiff::Timestamp;
use jiff::tz::Offset;

use super::IbkrBroker;
use super::lists::{Found, Scope};
use super::own::{LOOK_APART, OwnOrder, Refusal};
use crate::consumer::broker::{Answer, Attempt};
use crate::consumer::order::Order;

impl IbkrBroker {
    pub(super) fn try_lookup(&mut self, order: &Order, attempt: &Attempt) -> Answer {
        let deadline = Instant::now() + self.timeout;
        let ready = self.ready(self.timeout);
        // Any message about the order is an answer, even a late one.
        if let Some(answer) = attempt.order_id.and_then(|order_id| self.heard_answer(order_id)) {
            return answer;
        }
        let silent_on = attempt.order_id.and_then(|order_id| self.orders.get(&order_id)?.silent_on());
        // The bot itself never closes a connection that a silent order was sent on.
        let broke = attempt.broke || silent_on.is_some_and(|number| self.connection_number() != Some(number));
        let unknown = |why: &str| if broke { Answer::Broke(why.to_owned()) } else { Answer::Unknown(why.to_owned()) };
        if let Err(why) = ready {
            return if broke && !attempt.broke { Answer::Broke(why) } else { Answer::Away(why) };
        }
        let lists = match self.lists(Scope::All, deadline) {
            Ok(lists) => lists,
            Err(why) => {
                self.missing = None;
                self.leave_unless_silent();
                let is_away = self.connection.is_some() && self.is_away();
                return if is_away { Answer::Away(why) } else { unknown(&why) };
            }
        };
        // They also show how followed orders ended meanwhile, which must not wait until this one is settled.
        if self.connection.as_ref().is_some_and(|connection| !connection.has_late_list) {
            self.look_at_each(&lists);
        }
        let refusal = attempt.order_id.and_then(|order_id| self.orders.get(&order_id)?.refusal.clone());
        match lists.find(&order.order_ref, attempt.order_id) {
            Found::Open(order_id) | Found::Executed(order_id, _) => return Answer::Has(order_id),
            Found::Dead(how) => {
                return match refusal {
                    Some(refusal) => refusal.answer(format!("{} ({how})", refusal.why())),
                    None => Answer::Unfilled(how),
                };
            }
            Found::Nothing => {}
        }
        let why = refusal.as_ref().map(Refusal::why);
        let why = why.into_iter().chain(lists.gap.clone()).collect::<Vec<_>>().join("; ");
        let own = attempt.order_id.and_then(|order_id| self.orders.get_mut(&order_id));
        let is_gone = own.is_some_and(OwnOrder::is_gone);
        let is_not_sent = refusal.as_ref().is_some_and(Refusal::is_not_sent);
        // A list that stays cut short holds up other orders for only so long: then the error counts. But it never permits
        // a second send.
        if lists.gap.is_some() && (refusal.is_none() || is_not_sent || !is_gone) {
            return unknown(&why);
        }
        if is_not_sent && !is_gone {
            return unknown(&format!("{why}; looking again, because the gateway spoke about the order before"));
        }
        if !broke && refusal.is_none() {
            return unknown(
                "the gateway says nothing about the order, and its lists do not show it; a dialog may hold it. Look there, \
                 then settle the order with a line in the journal",
            );
        }
        if self.connection.as_ref().is_some_and(|connection| connection.has_late_list) {
            self.leave_unless_silent();
            return unknown("a late answer of the gateway may have been taken for another one");
        }
        if let Some(refusal) = refusal {
            return refusal.answer_without_order(why);
        }
        if attempt.resent {
            return unknown("it was already sent again once and was lost again; settle it with a line in the journal");
        }
        let offset = self.connection.as_ref().and_then(|connection| connection.client.connection_time());
        if !is_same_day(offset.map(|time| time.offset().whole_seconds()), attempt.tried_at, Timestamp::now()) {
            return unknown(
                "the gateway's lists do not show it, but it was sent on another day (or the gateway's time zone is unknown), \
                 and they are of today only; settle it with a line in the journal",
            );
        }
        if self.is_lost(&order.order_ref) {
            return Answer::Lost;
        }
        unknown(&format!("the gateway's lists do not show it; looking again after {} s", LOOK_APART.as_secs()))
    }

    /// Notes that the lists do not show an order. True if an earlier set on this connection did not show it either:
    /// before that, it may still be on its way.
    fn is_lost(&mut self, reference: &str) -> bool {
        let number = self.connection_number().unwrap_or_default();
        match &self.missing {
            Some((missing, on, since)) if missing == reference && *on == number => since.elapsed() >= LOOK_APART,
            _ => {
                self.missing = Some((reference.to_owned(), number, Instant::now()));
                false
            }
        }
    }

    fn connection_number(&self) -> Option<u64> {
        self.connection.as_ref().map(|connection| connection.number)
    }

    /// Closes a connection whose answers cannot be trusted any more. It keeps one whose trouble is known, and one that
    /// a silent order was sent on: if that breaks later, it means something.
    pub(super) fn leave_unless_silent(&mut self) {
        let holds_silent = self.orders.values().find_map(OwnOrder::silent_on);
        if !self.is_away() && holds_silent != self.connection_number() {
            log::warn!("the gateway does not answer: reconnecting");
            self.connection = None;
        }
    }
}

/// Whether both instants are on one day in the gateway's time zone. If that is unknown, only within a quarter of an
/// hour: in every zone midnight is at the beginning of one.
fn is_same_day(offset_seconds: Option<i32>, one: Timestamp, other: Timestamp) -> bool {
    let quarter = |instant: Timestamp| instant.as_second().div_euclid(900);
    match offset_seconds.and_then(|seconds| Offset::from_seconds(seconds).ok()) {
        Some(offset) => offset.to_datetime(one).date() == offset.to_datetime(other).date(),
        None => quarter(one) == quarter(other),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_time_zone_costs_only_the_certainty_of_the_same_day() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (one, other) = (at("2026-11-20T23:50:00Z"), at("2026-11-21T00:05:00Z"));
        assert!(!is_same_day(Some(0), one, other));
        assert!(is_same_day(Some(3600), one, other));
        assert!(!is_same_day(None, one, other));
        assert!(is_same_day(None, other, at("2026-11-21T00:14:59Z")));
        assert!(!is_same_day(None, at("2026-11-20T12:14:59Z"), at("2026-11-20T12:15:00Z")));
    }
}
