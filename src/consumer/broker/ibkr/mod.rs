//! Interactive Brokers: TWS or IB Gateway, through the blocking client of the crate `ibapi`.
//!
//! An order is found again by its reference (`orderRef`); on a connection its number names it. The gateway's own
//! words decide: an error that names the order refuses it, a status accepts it, silence proves nothing.

mod connection;
mod follow;
mod lists;
mod lookup;
mod own;
mod place;
mod request;

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use self::connection::{GatewayConnection, Trouble};
use self::lists::Scope;
use self::own::{OwnOrder, order_id_of};
use super::{Answer, Attempt, Broker, Ended};
use crate::consumer::order::Order;
use crate::consumer::stop::Stop;

/// How long an event waits for a connection that was just lost, or for a list of a gateway that was read-only, before the
/// broker counts as away.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(crate) struct IbkrBroker {
    timeout: Duration,
    stop: Stop,
    address: String,
    /// A connection that is being made.
    attempt: Option<Receiver<Result<GatewayConnection, String>>>,
    /// How many connections were begun.
    begun: u64,
    connection: Option<GatewayConnection>,
    /// The last order that was sent, and those that are followed, by their numbers.
    orders: BTreeMap<i64, OwnOrder>,
    ended: VecDeque<(i64, Ended)>,
    /// The order of unknown outcome that the lists do not show: on which connection, and since when.
    missing: Option<(String, u64, Instant)>,
}

impl IbkrBroker {
    /// A broker at `HOST:PORT`, which has `timeout` for a connection, an order, a look-up. Nothing is connected yet.
    /// Asking `stop` ends every wait within seconds.
    pub(crate) fn new(address: &str, timeout: Duration, stop: Stop) -> Self {
        Self { timeout, stop, address: address.to_owned(), ..Self::default() }
    }

    /// Connects if there is no connection, waiting up to `patience`, and handles what has arrived. `Err` says why no
    /// order can be sent.
    fn ready(&mut self, patience: Duration) -> Result<(), String> {
        self.hear(Duration::ZERO);
        if self.connection.is_none() {
            self.connection = Some(self.connect(patience)?);
            self.hear(Duration::ZERO);
        }
        match self.connection.as_ref().and_then(|connection| connection.trouble.clone()) {
            None => Ok(()),
            Some(trouble) if trouble.is_read_only => self.probe(trouble),
            Some(trouble) => Err(trouble.text),
        }
    }

    /// Requests a list from a gateway that was read-only: it refuses lists as long as it is.
    fn probe(&mut self, trouble: Trouble) -> Result<(), String> {
        self.set_trouble(None);
        if self.lists(Scope::Own, Instant::now() + RECONNECT_PATIENCE.min(self.timeout)).is_ok() {
            log::info!("the gateway is not read-only any more");
            return Ok(());
        }
        let why = trouble.text.clone();
        // The gateway may have reported a worse one meanwhile.
        if !self.is_away() {
            self.set_trouble(Some(trouble));
        }
        Err(why)
    }

    fn set_trouble(&mut self, trouble: Option<Trouble>) {
        if let Some(connection) = &mut self.connection {
            connection.trouble = trouble;
        }
    }

    /// Whether the gateway is away, as far as it says so itself.
    fn is_away(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| connection.trouble.is_some())
    }

    /// Handles the gateway's messages, waiting up to `patience` for one about an order. Drops a lost connection.
    fn hear(&mut self, patience: Duration) {
        let Some(connection) = &mut self.connection else { return };
        for update in connection.updates(patience) {
            let Some(order) = order_id_of(&update).and_then(|order_id| self.orders.get_mut(&order_id)) else {
                continue;
            };
            order.take(&update);
            // The lists show whether an error was the end of an accepted order.
            if order.is_followed && order.refusal.is_some() {
                connection.look_after(Duration::ZERO);
            }
        }
        if connection.is_lost() {
            log::warn!("the connection to the gateway was lost");
            self.connection = None;
        }
        self.judge_followed();
    }
}

impl Broker for IbkrBroker {
    fn connected(&mut self) -> Result<(), String> {
        self.ready(RECONNECT_PATIENCE.min(self.timeout))?;
        self.look_at_followed()
    }

    fn next_order_id(&mut self, used: i64) -> Option<i64> {
        let connection = self.connection.as_ref()?;
        Some(i64::from(connection.client.next_order_id()).max(used + 1))
    }

    fn place(&mut self, order: &Order, order_id: Option<i64>) -> Answer {
        self.try_place(order, order_id)
    }

    fn lookup(&mut self, order: &Order, attempt: &Attempt) -> Answer {
        self.try_lookup(order, attempt)
    }

    fn follow(&mut self, order_id: i64, order: &Order) {
        let own = self.orders.entry(order_id).or_insert_with(|| OwnOrder::new(order, None));
        own.is_followed = true;
        // An order that only the lists showed may have ended long ago, and only they may show that.
        if own.status.is_none() || own.refusal.is_some() {
            self.look_again(Duration::ZERO);
        }
    }

    fn next_ended(&mut self) -> Option<(i64, Ended)> {
        self.hear(Duration::ZERO);
        self.ended.pop_front()
    }
}
