//! The broker: where orders go. If an implementation does not know an answer, it says so.

mod exec;
#[cfg(feature = "ibkr")]
mod ibkr;
mod paper;

pub(crate) use exec::ExecBroker;
#[cfg(feature = "ibkr")]
pub(crate) use ibkr::IbkrBroker;
pub(crate) use paper::PaperBroker;

use jiff::Timestamp;

use super::order::Order;

/// What the broker says about an order, when it gets it or when it is asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "ibkr"), allow(dead_code, reason = "only Interactive Brokers answers some of these"))]
pub(crate) enum Answer {
    /// The broker has it, under this number if it numbers its orders.
    Has(Option<i64>),
    /// The broker refused it for good.
    Rejected(String),
    /// The broker took it, and it ended without a fill.
    Unfilled(String),
    /// The broker certainly does not have it, and nothing is on its way.
    NotSent(String),
    /// After [`Answer::Broke`] the broker's lists did not show it: it may be sent again, once.
    Lost,
    /// The broker is away and cannot be asked.
    Away(String),
    /// Unknown: the bot must look it up.
    Unknown(String),
    /// Unknown, because the connection broke before the broker said anything about the order.
    Broke(String),
}

/// One attempt to place an order, from the journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    #[cfg_attr(not(feature = "ibkr"), allow(dead_code, reason = "only Interactive Brokers looks at it"))]
    pub tried_at: Timestamp,
    /// The number that the order was sent under.
    pub order_id: Option<i64>,
    /// The connection broke before the broker said anything about the order.
    pub broke: bool,
    /// It is the second attempt, after [`Answer::Lost`]: there is no third.
    pub resent: bool,
}

/// What became of an order that the broker had accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "ibkr"), allow(dead_code, reason = "only Interactive Brokers answers some of these"))]
pub(crate) enum Ended {
    Filled(String),
    /// It was not filled, or only in part.
    Unfilled(String),
    /// It may have ended: the broker does not say. The order is still followed.
    Unknown(String),
}

/// A broker. Its calls block, each for a time that the implementation bounds.
pub(crate) trait Broker {
    /// `Err` says why no order can be placed now.
    fn connected(&mut self) -> Result<(), String>;

    /// A number for the next order, above `used`. `None` if the broker needs none or is away.
    fn next_order_id(&mut self, used: i64) -> Option<i64> {
        let _ = used;
        None
    }

    /// Places an order under that number. The caller makes sure that no order is placed twice.
    fn place(&mut self, order: &Order, order_id: Option<i64>) -> Answer;

    /// Says whether the broker has the order with this `order_ref`.
    fn lookup(&mut self, order: &Order, attempt: &Attempt) -> Answer;

    /// Follows an order that the broker has accepted under this number, until its end.
    fn follow(&mut self, order_id: i64, order: &Order) {
        let _ = (order_id, order);
    }

    /// The next followed order that has ended, or whose state became unknown. Does not block.
    fn next_ended(&mut self) -> Option<(i64, Ended)> {
        None
    }
}
