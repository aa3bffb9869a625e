//! The broker: where orders go. Three questions, and answers that never pretend to know more than they do.

mod exec;
#[cfg(feature = "ibkr")]
mod ibkr;
mod paper;

pub use exec::ExecBroker;
#[cfg(feature = "ibkr")]
pub use ibkr::IbkrBroker;
pub use paper::PaperBroker;

use jiff::Timestamp;

use super::order::Order;

/// What became of an order that was to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placing {
    /// The broker has it.
    Placed,
    /// The broker refused it for good.
    Rejected(String),
    /// The broker is away, and surely nothing was sent.
    Away(String),
    /// Nobody knows: it has to be looked up.
    Unknown(String),
}

/// Whether the broker has an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// It has.
    Has,
    /// It surely has not, and nothing is on its way.
    HasNot,
    /// The broker is away.
    Away(String),
    /// It gave no answer that tells.
    Unknown(String),
}

/// A broker. Its calls block, each for a time that the implementation bounds.
pub trait Broker {
    /// Whether orders can be placed now.
    ///
    /// # Errors
    /// Why not.
    fn connected(&mut self) -> Result<(), String>;

    /// Places an order. The caller sees to it that no order comes twice.
    fn place(&mut self, order: &Order) -> Placing;

    /// Says whether the broker has the order with this `order_ref`, which was last tried at `tried_at`.
    fn lookup(&mut self, order: &Order, tried_at: Timestamp) -> Lookup;
}
