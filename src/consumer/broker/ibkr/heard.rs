//! The gateway's messages about one order, and what they mean.

use std::time::{Duration, Instant};

use ibapi::Notice;
use ibapi::orders::{OrderStatusKind, OrderUpdate};

use super::connection::{Update, is_read_only};
use crate::consumer::broker::Answer;

/// The reason of an end comes in a separate message, shortly before or after it.
const REASON_PATIENCE: Duration = Duration::from_millis(500);
/// Messages about an order that are not refusals: a remark (399), held while shares are located (404), and its time in
/// force taken from a preset (10349). So is every warning (2100 to 2199), and a message without a code.
const MERE_NOTICES: [i32; 4] = [0, 399, 404, 10349];
const WARNINGS: std::ops::RangeInclusive<i32> = 2100..=2199;
/// The order was cancelled.
const CANCELLED: i32 = 202;
/// Nothing was sent to IB: the order's number is taken (103), or the gateway is not connected (502, 504).
pub(super) const DUPLICATE_ID: i32 = 103;
const NOT_SENT: [i32; 3] = [DUPLICATE_ID, 502, 504];

/// An error that names an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: i32,
    text: String,
}

impl Refusal {
    /// Code and text, as they go into journal, log and alert.
    pub(super) fn why(&self) -> String {
        format!("{}: {}", self.code, self.text)
    }

    /// Whether it says that the order was cancelled.
    pub(super) fn is_cancel(&self) -> bool {
        self.code == CANCELLED
    }

    /// Whether the gateway certainly did not take the order, and would take it at another time.
    pub(super) fn is_not_sent(&self) -> bool {
        NOT_SENT.contains(&self.code) || self.is_read_only()
    }

    pub(super) fn is_read_only(&self) -> bool {
        is_read_only(self.code, &self.text)
    }
}

/// What the messages mean.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// Not decided.
    Open,
    /// It is in the market, or on its way there.
    Working,
    Filled,
    /// It ended before it was filled.
    Ended {
        status: String,
        filled: f64,
        refusal: Option<Refusal>,
    },
    /// An error, and no status that contradicts it.
    Refused(Refusal),
}

impl Verdict {
    /// What it means for the order. `None` if it is open, or refused by an error that the lists may contradict.
    pub(super) fn answer(self, order_id: i64) -> Option<Answer> {
        match self {
            Self::Working | Self::Filled => Some(Answer::Has(Some(order_id))),
            // A partial fill is not the end: `follow` waits for that.
            Self::Ended { filled, .. } if filled > 0.0 => Some(Answer::Has(Some(order_id))),
            Self::Ended { status, filled, refusal } => {
                let why = end_text(&status, filled, refusal.as_ref());
                let is_refused = refusal.is_some_and(|refusal| !refusal.is_cancel());
                Some(if is_refused { Answer::Rejected(why) } else { Answer::Unfilled(why) })
            }
            Self::Refused(_) | Self::Open => None,
        }
    }
}

/// All messages about one order.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) status: Option<OrderStatusKind>,
    filled: f64,
    remaining: Option<f64>,
    pub(super) refusal: Option<Refusal>,
    /// When the gateway first said anything.
    pub(super) since: Option<Instant>,
    ended: Option<Instant>,
}

impl Heard {
    /// Which order an update is about.
    pub(super) fn order_id(update: &Update) -> Option<i64> {
        let order_id = match update {
            Update::Notice(notice) => notice.request_id?,
            Update::Data(OrderUpdate::OrderStatus(status)) => status.order_id,
            Update::Data(OrderUpdate::OpenOrder(open)) => open.order_id,
            Update::Data(OrderUpdate::ExecutionData(data)) => data.execution.order_id,
            Update::Data(OrderUpdate::OrderBound(_) | OrderUpdate::CommissionReport(_)) => return None,
        };
        Some(i64::from(order_id))
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
        let order_id = notice.request_id.unwrap_or_default();
        log::log!(level, "the gateway says about order {order_id}: {}", refusal.why());
        if !is_mere {
            self.refusal = Some(refusal);
        }
    }

    pub(super) fn verdict(&self) -> Verdict {
        let has_fill = self.filled > 0.0;
        match &self.status {
            Some(OrderStatusKind::Filled) => return Verdict::Filled,
            _ if has_fill && self.remaining == Some(0.0) => return Verdict::Filled,
            Some(status) if status.is_terminal() => {
                let waited = self.ended.is_some_and(|ended| ended.elapsed() >= REASON_PATIENCE);
                if self.refusal.is_none() && !waited {
                    return Verdict::Open;
                }
                let refusal = self.refusal.clone();
                return Verdict::Ended { status: status.as_str().to_owned(), filled: self.filled, refusal };
            }
            _ => {}
        }
        if let Some(refusal) = &self.refusal {
            return Verdict::Refused(refusal.clone());
        }
        let is_working = matches!(self.status, Some(OrderStatusKind::PreSubmitted | OrderStatusKind::Submitted));
        if is_working || has_fill { Verdict::Working } else { Verdict::Open }
    }
}

/// The text of an end for journal and alert: the reason first, if there is one.
pub(super) fn end_text(status: &str, filled: f64, refusal: Option<&Refusal>) -> String {
    let filled = if filled > 0.0 { format!("{filled} were filled") } else { "nothing was filled".to_owned() };
    match refusal {
        Some(refusal) => format!("{} ({status}, {filled})", refusal.why()),
        None => format!("{status}, {filled}"),
    }
}
