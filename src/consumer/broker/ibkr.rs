//! Interactive Brokers: TWS or IB Gateway, through the `ibapi` crate's blocking client.
//!
//! The order's reference (`orderRef`) is how an order is found again. One connection is kept as long as every answer came
//! in time; after anything else it is left behind and a new one is made, so that no late answer is taken for another's.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ibapi::Error as ApiError;
use ibapi::client::blocking::Client;
use ibapi::contracts::Contract;
use ibapi::messages::Notice;
use ibapi::orders::{Action as ApiAction, ExecutionFilter, Executions, Order as ApiOrder, Orders, PlaceOrder};
use jiff::Timestamp;
use jiff::tz::Offset;
use serde_json::value::RawValue;

use super::{Attempt, Broker, Lookup, Placing};
use crate::consumer::order::Order;

/// The bot's number among the gateway's clients.
const CLIENT_ID: i32 = 7417;
/// An order is surely not there when two complete look-ups, so far apart, do not find it: what an earlier connection sent
/// may lie unread in a gateway that was frozen.
const LOOKUP_GRACE: Duration = Duration::from_secs(3);
/// The gateway refuses the order for good: no such security, price or size out of bounds, rejected, not available, invalid.
const REJECTIONS: [i32; 8] = [110, 200, 201, 203, 321, 382, 383, 434];
/// The order was cancelled, so it had been placed.
const CANCELLED: i32 = 202;

/// Orders go to TWS or IB Gateway.
pub struct IbkrBroker {
    address: String,
    timeout: Duration,
    client: Option<Client>,
    /// The client keeps what concerns an order that it has sent from every other question: it answers no look-up.
    has_sent: bool,
}

enum Found {
    Yes,
    No,
}

impl IbkrBroker {
    /// A broker at `HOST:PORT`, which has `timeout` for a connection, an order, a look-up. Nothing is connected yet.
    pub fn new(address: &str, timeout: Duration) -> Self {
        Self { address: address.to_owned(), timeout, client: None, has_sent: false }
    }

    fn client(&mut self) -> Result<&Client, String> {
        if self.client.as_ref().is_some_and(|client| !client.is_connected()) {
            self.leave();
        }
        if self.client.is_none() {
            self.client = Some(self.connect()?);
            self.has_sent = false;
        }
        self.client.as_ref().ok_or_else(|| "no connection".to_owned())
    }

    /// Connecting has no time-out of its own, so a thread does it, and is left behind where it takes too long.
    fn connect(&self) -> Result<Client, String> {
        let (sender, receiver) = mpsc::channel();
        let address = self.address.clone();
        let connect = move || {
            // Nobody receives it any more: the client is dropped, which disconnects it.
            let _ = sender.send(Client::connect(&address, CLIENT_ID));
        };
        let started = thread::Builder::new().name("ibkr-connect".into()).spawn(connect);
        started.map_err(|error| format!("start a thread: {error}"))?;
        match receiver.recv_timeout(self.timeout) {
            Ok(Ok(client)) => Ok(client),
            Ok(Err(error)) => Err(format!("connect to {}: {error}", self.address)),
            Err(_) => Err(format!("connect to {}: no answer in time", self.address)),
        }
    }

    /// Disconnecting waits for the client's own thread, which may be waiting to reconnect.
    fn leave(&mut self) {
        if let Some(client) = self.client.take() {
            let _ = thread::Builder::new().name("ibkr-leave".into()).spawn(move || drop(client));
        }
    }

    fn try_place(&mut self, order: &Order) -> Placing {
        let (contract, request) = match request(order) {
            Ok(both) => both,
            Err(why) => return Placing::Rejected(why),
        };
        let deadline = Instant::now() + self.timeout;
        let client = match self.client() {
            Ok(client) => client,
            Err(why) => return Placing::Away(why),
        };
        let order_id = client.next_order_id();
        let sent = client.place_order(order_id, &contract, &request);
        self.has_sent = true;
        let answers = match sent {
            Ok(answers) => answers,
            Err(error) => return Placing::Unknown(format!("send the order: {error}")),
        };
        while let Some(answer) = answers.next_timeout(deadline.saturating_duration_since(Instant::now())) {
            let verdict = match answer {
                PlaceOrder::OrderStatus(status) => by_status(&status.status),
                PlaceOrder::OpenOrder(open) => by_status(&open.order_state.status),
                PlaceOrder::ExecutionData(_) => Some(Placing::Placed),
                PlaceOrder::Message(notice) => by_notice(&notice),
                PlaceOrder::CommissionReport(_) => None,
            };
            if let Some(verdict) = verdict {
                return verdict;
            }
        }
        match answers.error() {
            Some(ApiError::Message(code, text)) if REJECTIONS.contains(&code) => {
                Placing::Rejected(format!("{code}: {text}"))
            }
            Some(error) => Placing::Unknown(format!("wait for the order's acknowledgement: {error}")),
            None => Placing::Unknown("no acknowledgement of the order in time".to_owned()),
        }
    }

    fn try_lookup(&mut self, order: &Order, tried_at: Timestamp) -> Result<Lookup, String> {
        let name = &order.order_ref;
        for round in 0..2 {
            if round > 0 {
                thread::sleep(LOOKUP_GRACE);
            }
            let deadline = Instant::now() + self.timeout;
            let client = self.client()?;
            if let Found::Yes = look_through(client, name, deadline)? {
                return Ok(Lookup::Has(None));
            }
            // A connection that was lost meanwhile may have ended an answer early.
            if !client.is_connected() {
                return Err("the connection was lost during the look-up".to_owned());
            }
        }
        let client = self.client()?;
        let offset = client.connection_time().map_or(0, |time| time.offset().whole_seconds());
        Ok(if same_day(offset, tried_at, Timestamp::now()) {
            Lookup::HasNot
        } else {
            Lookup::Unknown("it was tried on another day, and the gateway tells of today's orders only".to_owned())
        })
    }
}

impl Broker for IbkrBroker {
    fn connected(&mut self) -> Result<(), String> {
        self.client().map(|_| ())
    }

    fn place(&mut self, order: &Order, _: Option<i64>) -> Placing {
        let placing = self.try_place(order);
        if matches!(placing, Placing::Unknown(_)) {
            self.leave();
        }
        placing
    }

    fn lookup(&mut self, order: &Order, attempt: &Attempt) -> Lookup {
        if self.has_sent {
            self.leave();
        }
        if let Err(why) = self.client() {
            return Lookup::Away(why);
        }
        self.try_lookup(order, attempt.tried_at).unwrap_or_else(|why| {
            self.leave();
            Lookup::Unknown(why)
        })
    }
}

/// A stock, in US dollars, by the smart router: a limit order where the row has a price, else a market order.
fn request(order: &Order) -> Result<(Contract, ApiOrder), String> {
    let quantity = number(&order.quantity).filter(|quantity| *quantity > 0.0);
    let quantity = quantity.ok_or_else(|| format!("its quantity is {}", order.quantity))?;
    let mut request = ApiOrder {
        action: if order.side == "BUY" { ApiAction::Buy } else { ApiAction::Sell },
        total_quantity: quantity,
        order_type: "MKT".to_owned(),
        order_ref: order.order_ref.clone(),
        transmit: true,
        ..ApiOrder::default()
    };
    if order.price.get() != "null" {
        let price = number(&order.price).ok_or_else(|| format!("its price is {}", order.price))?;
        request.order_type = "LMT".to_owned();
        request.limit_price = Some(price);
    }
    Ok((Contract::stock(order.symbol.as_str()).build(), request))
}

fn number(raw: &RawValue) -> Option<f64> {
    let number: f64 = raw.get().trim_matches('"').parse().ok()?;
    number.is_finite().then_some(number)
}

/// What a status tells of an order that was just sent (TWS API, order statuses); none where it is only on its way.
fn by_status(status: &str) -> Option<Placing> {
    match status {
        "PreSubmitted" | "Submitted" | "Filled" | "PendingCancel" | "Cancelled" | "ApiCancelled" => {
            Some(Placing::Placed)
        }
        // The reason comes as a message of its own.
        _ => None,
    }
}

fn by_notice(notice: &Notice) -> Option<Placing> {
    match notice.code {
        CANCELLED => Some(Placing::Placed),
        code if REJECTIONS.contains(&code) => Some(Placing::Rejected(format!("{code}: {}", notice.message))),
        _ => None,
    }
}

/// Open orders of all clients, today's completed orders, and executions.
fn look_through(client: &Client, name: &str, deadline: Instant) -> Result<Found, String> {
    let failed = |error: ApiError| format!("ask the gateway: {error}");
    let is_it = |answer: &Orders| matches!(answer, Orders::OrderData(data) if data.order.order_ref == name);
    let open = client.all_open_orders().map_err(failed)?;
    if let Found::Yes = search(deadline, |patience| open.next_timeout(patience), || open.error(), is_it)? {
        return Ok(Found::Yes);
    }
    let completed = client.completed_orders(false).map_err(failed)?;
    if let Found::Yes = search(deadline, |patience| completed.next_timeout(patience), || completed.error(), is_it)? {
        return Ok(Found::Yes);
    }
    let is_it = |answer: &Executions| matches!(answer, Executions::ExecutionData(data) if data.execution.order_reference == name);
    let executions = client.executions(ExecutionFilter::default()).map_err(failed)?;
    search(deadline, |patience| executions.next_timeout(patience), || executions.error(), is_it)
}

/// Reads a whole answer; one that does not end in time tells nothing.
fn search<T>(
    deadline: Instant,
    next: impl Fn(Duration) -> Option<T>,
    error: impl Fn() -> Option<ApiError>,
    is_it: impl Fn(&T) -> bool,
) -> Result<Found, String> {
    while let Some(answer) = next(deadline.saturating_duration_since(Instant::now())) {
        if is_it(&answer) {
            return Ok(Found::Yes);
        }
    }
    match error() {
        Some(error) => Err(format!("ask the gateway: {error}")),
        None if Instant::now() >= deadline => Err("the gateway gave no answer in time".to_owned()),
        None => Ok(Found::No),
    }
}

fn same_day(offset_seconds: i32, one: Timestamp, other: Timestamp) -> bool {
    let Ok(offset) = Offset::from_seconds(offset_seconds) else { return false };
    offset.to_datetime(one).date() == offset.to_datetime(other).date()
}
