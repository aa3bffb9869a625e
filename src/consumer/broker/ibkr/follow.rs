//! Follows accepted orders to their end: the gateway reports it, or the lists show it if a report may have been missed.

use std::time::{Duration, Instant};

use super::IbkrBroker;
use super::lists::{Found, Lists, Scope};
use super::own::{LOOK_APART, OwnOrder, Refusal, end_text};
use crate::consumer::broker::Ended;

impl IbkrBroker {
    /// Records the ends of followed orders that the gateway reported.
    pub(super) fn judge_followed(&mut self) {
        let ended: Vec<_> = self.followed().filter_map(|(order_id, order)| Some((order_id, order.end()?))).collect();
        for (order_id, how) in ended {
            self.end(order_id, how);
        }
    }

    fn followed(&self) -> impl Iterator<Item = (i64, &OwnOrder)> {
        self.orders.iter().filter(|(_, order)| order.is_followed).map(|(order_id, order)| (*order_id, order))
    }

    fn end(&mut self, order_id: i64, how: Ended) {
        self.orders.remove(&order_id);
        self.ended.push_back((order_id, how));
    }

    /// Looks up all followed orders if a report about them may have been missed.
    pub(super) fn look_at_followed(&mut self) -> Result<(), String> {
        let look_at =
            self.connection.as_mut().and_then(|connection| connection.look_at.take_if(|at| *at <= Instant::now()));
        if look_at.is_none() || self.followed().next().is_none() {
            return Ok(());
        }
        let lists = match self.lists(Scope::All, Instant::now() + self.timeout) {
            Ok(lists) => lists,
            Err(why) => {
                self.look_again(Duration::ZERO);
                self.unknown_without_lists(&why);
                self.leave_unless_silent();
                return Err(why);
            }
        };
        // An unreadable frame also ends the stream of updates while lists are read.
        if self.connection.as_mut().and_then(|connection| connection.look_at.take()).is_some() {
            self.look_again(LOOK_APART);
        }
        self.look_at_each(&lists);
        Ok(())
    }

    /// Judges all followed orders by a set of lists.
    pub(super) fn look_at_each(&mut self, lists: &Lists) {
        self.judge_followed();
        let ids: Vec<i64> = self.followed().map(|(order_id, _)| order_id).collect();
        for order_id in ids {
            self.look_at_one(order_id, lists);
        }
    }

    /// Reports orders whose state only the lists could show. A gateway that is known to be away is not silent: it says
    /// so, and the bot waits for it. But an error about an order is never left unsaid.
    fn unknown_without_lists(&mut self, why: &str) {
        let is_silent = !self.is_away() && !self.stop.is_asked();
        let orders = self.followed().map(|(order_id, order)| (order_id, order.refusal.as_ref().map(Refusal::why)));
        let unknown: Vec<_> = orders.filter(|(_, refusal)| is_silent || refusal.is_some()).collect();
        for (order_id, refusal) in unknown {
            self.unknown(order_id, refusal, why);
        }
    }

    /// Reports an order as unknown, once until a list shows it open.
    fn unknown(&mut self, order_id: i64, refusal: Option<String>, why: &str) {
        let Some(order) = self.orders.get_mut(&order_id) else { return };
        if !std::mem::replace(&mut order.is_unknown, true) {
            let why = refusal.map_or(why.to_owned(), |refusal| format!("{refusal}; {why}"));
            self.ended.push_back((order_id, Ended::Unknown(why)));
        }
    }

    fn look_at_one(&mut self, order_id: i64, lists: &Lists) {
        let Some(order) = self.orders.get_mut(&order_id) else { return };
        let refusal = order.refusal.clone();
        let executed = match lists.find(&order.reference, Some(order_id)) {
            Found::Open(_) => {
                (order.is_unknown, order.missing, order.refusal) = (false, None, None);
                return;
            }
            Found::Executed(_, quantity) if quantity >= order.quantity => {
                return self.end(order_id, Ended::Filled("the gateway's lists say so".to_owned()));
            }
            Found::Dead(how) => {
                let why = refusal.map_or(String::new(), |refusal| format!("{}; ", refusal.why()));
                return self.end(order_id, Ended::Unfilled(format!("{why}{how}")));
            }
            Found::Executed(_, quantity) => quantity,
            Found::Nothing => 0.0,
        };
        let refusal = refusal.filter(|refusal| !refusal.is_not_sent());
        // A list that was cut short may hide it.
        if let Some(gap) = &lists.gap {
            self.unknown(order_id, refusal.as_ref().map(Refusal::why), gap);
            return self.look_again(LOOK_APART);
        }
        if !order.is_gone() && refusal.is_none() {
            return self.look_again(LOOK_APART);
        }
        let why = "the gateway's lists of open orders, completed orders and today's executions do not show it";
        self.end(order_id, Ended::Unfilled(end_text(why, executed, refusal.as_ref())));
    }

    pub(super) fn look_again(&mut self, wait: Duration) {
        if let Some(connection) = &mut self.connection {
            connection.look_after(wait);
        }
    }
}
