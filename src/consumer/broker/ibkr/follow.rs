//! Follows accepted orders to their end: the gateway reports it, or the lists show it if a report may have been missed.

use std::time::{Duration, Instant};

use super::IbkrBroker;
use super::heard::{Verdict, end_text};
use super::lists::{Found, Lists, Scope};
use super::lookup::LOOK_APART;
use crate::consumer::broker::Ended;

/// An accepted order.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) reference: String,
    pub(super) quantity: f64,
    /// The bot was told that its state is unknown.
    pub(super) is_unknown: bool,
    /// Since when the lists do not show it.
    pub(super) missing_since: Option<Instant>,
}

impl IbkrBroker {
    /// Records the ends of followed orders that the gateway reported.
    pub(super) fn judge_followed(&mut self) {
        let followed: Vec<(i64, f64)> = self.followed.iter().map(|(id, order)| (*id, order.quantity)).collect();
        for (order_id, quantity) in followed {
            match self.heard.get(&order_id).map_or(Verdict::Open, |heard| heard.verdict()) {
                Verdict::Ended { status, filled, refusal } if filled < quantity => {
                    self.end(order_id, Ended::Unfilled(end_text(&status, filled, refusal.as_ref())));
                }
                Verdict::Filled | Verdict::Ended { .. } => {
                    self.end(order_id, Ended::Filled("the gateway says so".to_owned()));
                }
                // `hear` has had the lists looked at, which show whether that was its end.
                Verdict::Refused(_) | Verdict::Open | Verdict::Working => {}
            }
        }
    }

    fn end(&mut self, order_id: i64, how: Ended) {
        self.followed.remove(&order_id);
        self.heard.remove(&order_id);
        self.ended.push_back((order_id, how));
    }

    /// Looks up all followed orders if a report about them may have been missed.
    pub(super) fn look_at_followed(&mut self) -> Result<(), String> {
        let Some(connection) = self.connection.as_mut() else { return Ok(()) };
        if std::mem::take(&mut connection.has_gap) {
            self.look_at = Some(Instant::now());
        }
        if self.followed.is_empty() {
            self.look_at = None;
        }
        if self.look_at.is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        let lists = match self.lists(Scope::All, Instant::now() + self.timeout) {
            Ok(lists) => lists,
            Err(why) => {
                self.unknown_without_lists(&why);
                self.leave_unless_silent();
                return Err(why);
            }
        };
        self.look_at = None;
        self.judge_followed();
        let ids: Vec<i64> = self.followed.keys().copied().collect();
        for order_id in ids {
            self.look_at_one(order_id, &lists);
        }
        // An unreadable frame also ends the stream of updates while lists are read.
        if let Some(connection) = self.connection.as_mut().filter(|connection| connection.has_gap) {
            connection.has_gap = false;
            self.look_again(LOOK_APART);
        }
        Ok(())
    }

    /// Reports orders whose state only the lists could show. A gateway that is known to be away is not silent: it says
    /// so, and the bot waits for it. But an error about an order is never left unsaid.
    fn unknown_without_lists(&mut self, why: &str) {
        let is_silent = !self.is_away() && !self.stop.is_asked();
        let ids: Vec<i64> = self.followed.keys().copied().collect();
        for order_id in ids {
            match self.heard.get(&order_id).and_then(|heard| heard.refusal.as_ref()) {
                Some(refusal) => self.unknown(order_id, format!("{}; {why}", refusal.why())),
                None if is_silent => self.unknown(order_id, why.to_owned()),
                None => {}
            }
        }
    }

    /// Reports an order as unknown, once until a list shows it open.
    fn unknown(&mut self, order_id: i64, why: String) {
        let Some(followed) = self.followed.get_mut(&order_id) else { return };
        if !std::mem::replace(&mut followed.is_unknown, true) {
            self.ended.push_back((order_id, Ended::Unknown(why)));
        }
    }

    fn look_at_one(&mut self, order_id: i64, lists: &Lists) {
        let Some(followed) = self.followed.get_mut(&order_id) else { return };
        let heard = self.heard.entry(order_id).or_default();
        let found = lists.find(&followed.reference, Some(order_id));
        let executed = match &found {
            Found::Open(_) => {
                (followed.is_unknown, followed.missing_since) = (false, None);
                heard.refusal = None;
                return;
            }
            Found::Executed(_, quantity) if *quantity >= followed.quantity => {
                return self.end(order_id, Ended::Filled("the gateway's lists say so".to_owned()));
            }
            Found::Dead(how) => {
                let why = heard.refusal.as_ref().map_or(String::new(), |refusal| format!("{}; ", refusal.why()));
                let how = Ended::Unfilled(format!("{why}{how}"));
                return self.end(order_id, how);
            }
            Found::Executed(_, quantity) => *quantity,
            Found::Nothing => 0.0,
        };
        let refusal = heard.refusal.as_ref().filter(|refusal| !refusal.is_not_sent());
        // A list that was cut short may hide it.
        if let Some(gap) = &lists.gap {
            let why = refusal.map_or(gap.clone(), |refusal| format!("{}; {gap}", refusal.why()));
            self.unknown(order_id, why);
            return self.look_again(LOOK_APART);
        }
        if let Some(refusal) = refusal {
            let why = end_text("not in the gateway's lists", executed, Some(refusal));
            return self.end(order_id, Ended::Unfilled(why));
        }
        if followed.missing_since.get_or_insert_with(Instant::now).elapsed() >= LOOK_APART {
            let why =
                "the gateway's lists of open orders, completed orders and today's executions do not show it any more";
            return self.end(order_id, Ended::Unfilled(end_text(why, executed, None)));
        }
        self.look_again(LOOK_APART);
    }

    /// Looks up the followed orders after `wait`, or earlier if that was planned.
    fn look_again(&mut self, wait: Duration) {
        let at = Instant::now() + wait;
        self.look_at = Some(self.look_at.map_or(at, |planned| planned.min(at)));
    }
}
