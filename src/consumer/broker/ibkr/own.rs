//! One of the bot's own orders: the gateway's messages about it, and what they mean.

use std::time::{Duration, Instant};

use ibapi::Notice;
use ibapi::orders::{OrderStatusKind, OrderUpdate};

use super::connection::{Update, is_read_only};
use super::request::number;
use crate::consumer::broker::{Answer, Ended};
use crate::consumer::order::Order;

/// An order is gone if sets of lists this far apart do not show it.
pub(super) const LOOK_APART: Duration = Duration::from_secs(10);
/// The reason of an end comes in a separate message, shortly before or after it.
const REASON_PATIENCE: Duration = Duration::from_millis(500);
/// Messages about an order that are not refusals: a remark (399), held while shares are located (404), and its time in
/// force taken from a preset (10349). So is every warning (2100 to 2199), and a message without a code.
const MERE_NOTICES: [i32; 4] = [0, 399, 404, 10349];
const WARNINGS: std::ops::RangeInclusive<i32> = 2100..=2199;
const CANCELLED: i32 = 202;
/// Nothing was sent to IB: the order's number is taken (103), or the gateway is not connected (502, 504).
const NOT_SENT: [i32; 3] = [103, 502, 504];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    code: i32,
    text: String,
}

impl Refusal {
    /// Code and text, as they go into journal, log and alert.
    pub(super) fn why(&self) -> String {
        format!("{}: {}", self.code, self.text)
    }

    /// What it means for an order that was not filled.
    pub(super) fn answer(&self, why: String) -> Answer {
        if self.code == CANCELLED { Answer::Unfilled(why) } else { Answer::Rejected(why) }
    }

    /// What it means for an order that the lists do not show.
    pub(super) fn answer_without_order(&self, why: String) -> Answer {
        if self.is_not_sent() { Answer::NotSent(why) } else { self.answer(why) }
    }

    /// Whether it says that the gateway did not take the order, and would take it at another time.
    pub(super) fn is_not_sent(&self) -> bool {
        NOT_SENT.contains(&self.code) || self.is_read_only()
    }

    pub(super) fn is_read_only(&self) -> bool {
        is_read_only(self.code, &self.text)
    }
}

/// An order that was sent, or that the gateway has accepted.
#[derive(Debug, Default)]
pub(super) struct OwnOrder {
    pub(super) reference: String,
    pub(super) quantity: f64,
    /// The number of the connection that it was sent over; `None` if a former process sent it.
    pub(super) sent_over: Option<u64>,
    /// The gateway has accepted it: it is followed to its end.
    pub(super) is_followed: bool,
    /// The bot was told that its state is unknown.
    pub(super) is_unknown: bool,
    /// Since when the lists do not show it, and how many sets of them in a row.
    pub(super) missing: Option<(Instant, u32)>,
    /// When the gateway first said anything.
    pub(super) since: Option<Instant>,
    pub(super) status: Option<OrderStatusKind>,
    filled: f64,
    remaining: Option<f64>,
    pub(super) refusal: Option<Refusal>,
    ended: Option<Instant>,
}

impl OwnOrder {
    pub(super) fn new(order: &Order, sent_over: Option<u64>) -> Self {
        let quantity = number(&order.quantity).unwrap_or_default();
        Self { reference: order.order_ref.clone(), quantity, sent_over, ..Self::default() }
    }

    /// Notes that one more set of lists does not show it. Whether it is gone by that: a gateway that has just started shows
    /// none of its orders for some seconds.
    pub(super) fn is_gone(&mut self) -> bool {
        let (since, sets) = self.missing.get_or_insert_with(|| (Instant::now(), 0));
        *sets += 1;
        *sets > 2 && since.elapsed() >= LOOK_APART
    }

    /// The connection over which it was sent, if the gateway has said nothing about it.
    pub(super) fn silent_on(&self) -> Option<u64> {
        self.sent_over.filter(|_| self.since.is_none() && !self.is_followed)
    }

    /// Whether a status or a fill showed that the gateway has, or had, the order.
    pub(super) fn is_seen(&self) -> bool {
        self.status.is_some() || self.filled > 0.0
    }

    pub(super) fn take(&mut self, update: &Update) {
        self.since.get_or_insert_with(Instant::now);
        match update {
            Update::Notice(notice) => self.take_notice(notice),
            Update::Data(OrderUpdate::OrderStatus(status)) => {
                self.remaining = Some(status.remaining);
                self.take_status(&status.status, status.filled);
            }
            Update::Data(OrderUpdate::OpenOrder(open)) => {
                self.take_status(&open.order_state.status, open.order.filled_quantity);
            }
            Update::Data(OrderUpdate::ExecutionData(data)) => {
                self.filled = self.filled.max(data.execution.cumulative_quantity);
            }
            Update::Data(OrderUpdate::OrderBound(_) | OrderUpdate::CommissionReport(_)) => {}
        }
    }

    fn take_status(&mut self, status: &OrderStatusKind, filled: f64) {
        self.filled = self.filled.max(filled);
        if self.status != Some(OrderStatusKind::Filled) {
            self.status = Some(status.clone());
        }
        match status {
            // This outweighs an earlier error.
            OrderStatusKind::PreSubmitted | OrderStatusKind::Submitted => (self.ended, self.refusal) = (None, None),
            status if status.is_terminal() => {
                self.ended.get_or_insert_with(Instant::now);
            }
            _ => self.ended = None,
        }
    }

    fn take_notice(&mut self, notice: &Notice) {
        let text = format!("{} {}", notice.message, notice.advanced_order_reject_json).trim().to_owned();
        let refusal = Refusal { code: notice.code, text };
        let is_mere = MERE_NOTICES.contains(&notice.code) || WARNINGS.contains(&notice.code);
        let level = if is_mere { log::Level::Info } else { log::Level::Warn };
        log::log!(level, "the gateway says about {}: {}", self.reference, refusal.why());
        if !is_mere {
            // An error is news about an order whose state is unknown.
            self.is_unknown &= self.refusal.as_ref() == Some(&refusal);
            self.refusal = Some(refusal);
        }
    }

    /// How it ended, if the messages say so.
    pub(super) fn end(&self) -> Option<Ended> {
        let is_terminal = self.status.as_ref().is_some_and(OrderStatusKind::is_terminal);
        let is_explained = self.refusal.is_some() || self.ended.is_some_and(|ended| ended.elapsed() >= REASON_PATIENCE);
        let has_nothing_left = self.filled > 0.0 && self.remaining == Some(0.0);
        let is_over = is_terminal && is_explained;
        if self.status == Some(OrderStatusKind::Filled)
            || has_nothing_left
            || (is_over && self.filled > 0.0 && self.filled >= self.quantity)
        {
            return Some(Ended::Filled("the gateway says so".to_owned()));
        }
        let status = self.status.as_ref().filter(|_| is_over)?;
        Some(Ended::Unfilled(end_text(status.as_str(), self.filled, self.refusal.as_ref())))
    }

    /// What the messages mean for an order that was sent. `None` if they decide nothing yet, or if they are an error
    /// that the lists may contradict.
    pub(super) fn answer(&self, order_id: i64) -> Option<Answer> {
        let is_working = matches!(self.status, Some(OrderStatusKind::PreSubmitted | OrderStatusKind::Submitted));
        match self.end() {
            Some(Ended::Unfilled(why)) if self.filled == 0.0 => {
                Some(self.refusal.as_ref().map_or(Answer::Unfilled(why.clone()), |refusal| refusal.answer(why)))
            }
            // A partial fill is not the end: `follow` waits for that.
            Some(_) => Some(Answer::Has(Some(order_id))),
            None if self.refusal.is_some() => None,
            None => (is_working || self.filled > 0.0).then_some(Answer::Has(Some(order_id))),
        }
    }
}

pub(super) fn order_id_of(update: &Update) -> Option<i64> {
    let order_id = match update {
        Update::Notice(notice) => notice.request_id?,
        Update::Data(OrderUpdate::OrderStatus(status)) => status.order_id,
        Update::Data(OrderUpdate::OpenOrder(open)) => open.order_id,
        Update::Data(OrderUpdate::ExecutionData(data)) => data.execution.order_id,
        Update::Data(OrderUpdate::OrderBound(_) | OrderUpdate::CommissionReport(_)) => return None,
    };
    Some(i64::from(order_id))
}

/// The text of an end for journal and alert: the reason first, if there is one.
pub(super) fn end_text(status: &str, filled: f64, refusal: Option<&Refusal>) -> String {
    let filled = if filled > 0.0 { format!("{filled} were filled") } else { "nothing was filled".to_owned() };
    match refusal {
        Some(refusal) => format!("{} ({status}, {filled})", refusal.why()),
        None => format!("{status}, {filled}"),
    }
}
