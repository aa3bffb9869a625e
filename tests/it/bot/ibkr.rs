//! `--broker ibkr:HOST:PORT` against a scripted gateway that speaks as much of the protocol as an order and its look-up
//! need (the text messages of server version 151).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use super::feed::{Feed, row};
use super::process::Place;
use crate::support::wait::until;

/// What the gateway does with the next order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Acknowledge,
    Reject,
    /// It has the order, and the connection breaks before it says so.
    TakeAndClose,
    /// The connection breaks before the gateway has read the order.
    LoseAndClose,
    /// It has the order and says nothing.
    TakeAndKeepSilent,
}

#[derive(Clone)]
struct Gateway {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    thawed: Condvar,
}

struct State {
    next: Next,
    /// Nothing is read and nothing answered.
    frozen: bool,
    /// Orders rest in the book; otherwise they are filled at once.
    rests: bool,
    orders: Vec<(String, String)>,
    connections: usize,
}

impl Gateway {
    fn start() -> Self {
        Self::start_at(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn start_at(listener: TcpListener) -> Self {
        let state = State { next: Next::Acknowledge, frozen: false, rests: false, orders: Vec::new(), connections: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), thawed: Condvar::new() });
        let gateway = Self { address: listener.local_addr().unwrap(), shared };
        let accepting = gateway.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let gateway = accepting.clone();
                std::thread::spawn(move || gateway.speak(stream));
            }
        });
        gateway
    }

    fn set_next(&self, next: Next) {
        self.shared.state.lock().unwrap().next = next;
    }

    fn freeze(&self, frozen: bool) {
        self.shared.state.lock().unwrap().frozen = frozen;
        self.shared.thawed.notify_all();
    }

    fn orders(&self) -> Vec<String> {
        self.shared.state.lock().unwrap().orders.iter().map(|(_, reference)| reference.clone()).collect()
    }

    fn connections(&self) -> usize {
        self.shared.state.lock().unwrap().connections
    }

    fn wait_until_thawed(&self) {
        let state = self.shared.state.lock().unwrap();
        drop(self.shared.thawed.wait_while(state, |state| state.frozen).unwrap());
    }

    fn speak(&self, mut stream: TcpStream) -> Option<()> {
        self.wait_until_thawed();
        let mut hello = [0; 4];
        stream.read_exact(&mut hello).ok()?;
        assert_eq!(&hello, b"API\0");
        let versions = String::from_utf8(frame(&mut stream)?).unwrap();
        assert!(versions.starts_with('v'), "{versions}");
        send(&mut stream, &["151", "20261121 12:00:00 UTC"])?;
        self.shared.state.lock().unwrap().connections += 1;
        loop {
            let bytes = frame(&mut stream)?;
            self.wait_until_thawed();
            let text = String::from_utf8(bytes).unwrap();
            let fields: Vec<&str> = text.split('\0').collect();
            match fields[0] {
                "71" => {
                    send(&mut stream, &["15", "1", "DU1"])?;
                    let next = 1 + self.shared.state.lock().unwrap().orders.len();
                    send(&mut stream, &["9", "1", &next.to_string()])?;
                }
                "3" => self.order(&mut stream, &fields)?,
                "16" => self.open_orders(&mut stream)?,
                "99" => send(&mut stream, &["102"])?,
                "7" => self.executions(&mut stream, fields[2])?,
                other => panic!("the gateway does not know message {other}"),
            }
        }
    }

    fn order(&self, stream: &mut TcpStream, fields: &[&str]) -> Option<()> {
        let id = fields[1];
        let reference = fields.iter().find(|field| field.starts_with("sf-")).expect("an order reference");
        let mut state = self.shared.state.lock().unwrap();
        let next = std::mem::replace(&mut state.next, Next::Acknowledge);
        if !matches!(next, Next::Reject | Next::LoseAndClose) {
            state.orders.push((id.to_owned(), (*reference).to_owned()));
        }
        drop(state);
        match next {
            Next::Acknowledge => {
                send(stream, &["3", id, "PendingSubmit", "0", "100", "0", "1", "0", "0", "7417", "", "0"])?;
                send(stream, &["3", id, "Submitted", "0", "100", "0", "1", "0", "0", "7417", "", "0"])
            }
            Next::Reject => send(stream, &["4", "2", id, "201", "Order rejected - reason: margin"]),
            Next::TakeAndKeepSilent => Some(()),
            Next::TakeAndClose | Next::LoseAndClose => None,
        }
    }

    fn open_orders(&self, stream: &mut TcpStream) -> Option<()> {
        for (id, reference) in self.told(true) {
            send(stream, &open_order(&id, &reference))?;
        }
        send(stream, &["53", "1"])
    }

    /// The orders, where they rest as it is asked; none otherwise.
    fn told(&self, rests: bool) -> Vec<(String, String)> {
        let state = self.shared.state.lock().unwrap();
        if state.rests == rests { state.orders.clone() } else { Vec::new() }
    }

    fn executions(&self, stream: &mut TcpStream, request: &str) -> Option<()> {
        let executions = self.told(false);
        for (id, reference) in executions {
            let contract = [id.as_str(), "1", "ACME", "STK", "", "0", "", "", "SMART", "USD", "ACME", "NMS"];
            let fill = [
                "e.1",
                "20261121 12:00:00 UTC",
                "DU1",
                "ISLAND",
                "BOT",
                "100",
                "12.5",
                "1",
                "7417",
                "0",
                "100",
                "12.5",
            ];
            let fields = [&["11", request][..], &contract, &fill, &[reference.as_str(), "", "", "", "1"]].concat();
            send(stream, &fields)?;
        }
        send(stream, &["55", "1", request])
    }
}

/// An open limit order, as server version 151 tells of it: the contract, the order, its state.
fn open_order<'a>(id: &'a str, reference: &'a str) -> Vec<&'a str> {
    let contract = ["5", id, "1", "ACME", "STK", "", "0", "", "", "SMART", "USD", "ACME", "NMS"];
    let order =
        ["BUY", "100", "LMT", "12.5", "", "DAY", "", "DU1", "", "0", reference, "7417", "1", "0", "0", "0", "", ""];
    let advisor_to_auction = ["", "", "", "", "", "", "", "", "", "0", "", "0", ""];
    let box_to_oca = ["", "", "", "", "", "", "0", "0", "0", "", "0", "", "", ""];
    let parent_to_basis = ["0", "0", "", "", "", "", "0", "", "", "", "", ""];
    let combo_to_solicited = ["", "0", "0", "0", "", "", "", "", "0", "", "", "0", "0", "", "0"];
    let what_if = ["0", "Submitted", "", "", "", "", "", "", "", "", "", "", "", "", "", ""];
    let randomize_to_adjusted = ["0", "0", "0", "None", "", "", "", "", "", "", "0"];
    let rest = ["", "", "", "", "0", "0", "0", "0"];
    [
        &contract[..],
        &order,
        &advisor_to_auction,
        &box_to_oca,
        &parent_to_basis,
        &combo_to_solicited,
        &what_if,
        &randomize_to_adjusted,
        &rest,
    ]
    .concat()
}

fn frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn send(stream: &mut TcpStream, fields: &[&str]) -> Option<()> {
    let text = fields.iter().map(|field| format!("{field}\0")).collect::<String>();
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    stream.write_all(&bytes).ok()
}

const TIMEOUT: [&str; 2] = ["--broker-timeout", "2s"];

fn options(gateway: &Gateway) -> Vec<String> {
    let broker = format!("ibkr:{}", gateway.address);
    ["--broker", &broker, TIMEOUT[0], TIMEOUT[1]].map(ToOwned::to_owned).to_vec()
}

fn start(place: &Place, feed: &Feed, gateway: &Gateway) -> super::process::Bot {
    let options = options(gateway);
    place.start(&feed.url, &options.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Serves whatever the bot asks for until its cursor stands at `last`.
fn serve_until(feed: &Feed, place: &Place, last: i64, action: &str) {
    let mut streams = Vec::new();
    place.wait(&format!("cursor {last}"), || {
        if let Some(request) = feed.accept_within(std::time::Duration::from_millis(20)) {
            let cursor = request.cursor().unwrap_or(5);
            let mut stream = request.open();
            stream.connected(cursor);
            for seq in cursor + 1..=last {
                stream.insert(seq, &row(seq - 5, action));
            }
            streams.push(stream);
        }
        place.cursor() == Some(last)
    });
}

#[test]
fn orders_are_placed_and_acknowledged_and_a_rejected_exit_is_an_alert() {
    let (feed, place, gateway) = (Feed::new(), Place::new(), Gateway::start());
    let bot = start(&place, &feed, &gateway);
    serve_until(&feed, &place, 7, "entry");
    assert_eq!(gateway.orders(), ["sf-1-entry", "sf-2-entry"]);
    assert_eq!(gateway.connections(), 1);
    bot.stop();
    gateway.set_next(Next::Reject);
    let _bot = start(&place, &feed, &gateway);
    serve_until(&feed, &place, 8, "exit");
    place.wait_alert("exit_rejected");
    assert_eq!(gateway.orders().len(), 2);
    assert!(place.read("log").contains("margin"));
}

#[test]
fn a_connection_that_breaks_before_the_acknowledgement_ends_with_the_order_placed_once() {
    for (next, rests) in [(Next::TakeAndClose, false), (Next::TakeAndClose, true), (Next::LoseAndClose, true)] {
        let (feed, place, gateway) = (Feed::new(), Place::new(), Gateway::start());
        gateway.set_next(next);
        gateway.shared.state.lock().unwrap().rests = rests;
        let _bot = start(&place, &feed, &gateway);
        serve_until(&feed, &place, 7, "exit");
        assert_eq!(gateway.orders(), ["sf-1-exit", "sf-2-exit"]);
        assert!(gateway.connections() > 1);
        let sent_again = place.read("log").contains("certainly does not have it");
        assert_eq!(sent_again, next == Next::LoseAndClose, "{}", place.read("log"));
    }
}

#[test]
fn a_frozen_gateway_ends_with_the_order_placed_once() {
    let (feed, place, gateway) = (Feed::new(), Place::new(), Gateway::start());
    let _bot = start(&place, &feed, &gateway);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "exit"));
    place.wait_cursor(6);
    gateway.freeze(true);
    stream.insert(7, &row(2, "exit"));
    place.wait_alert("outcome_unknown");
    assert_eq!(place.cursor(), Some(6));
    gateway.freeze(false);
    serve_until(&feed, &place, 7, "exit");
    assert_eq!(gateway.orders(), ["sf-1-exit", "sf-2-exit"]);
}

#[test]
fn a_bot_that_is_killed_before_the_acknowledgement_finds_its_order_at_the_gateway() {
    let (feed, place, gateway) = (Feed::new(), Place::new(), Gateway::start());
    gateway.set_next(Next::TakeAndKeepSilent);
    let bot = start(&place, &feed, &gateway);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    until("the order arrives", || (!gateway.orders().is_empty()).then_some(()));
    bot.kill();
    let _bot = start(&place, &feed, &gateway);
    serve_until(&feed, &place, 7, "entry");
    assert_eq!(gateway.orders(), ["sf-1-entry", "sf-2-entry"]);
}

#[test]
fn a_gateway_that_is_not_there_is_waited_for() {
    let (feed, place) = (Feed::new(), Place::new());
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let broker = format!("ibkr:{address}");
    let _bot = place.start(&feed.url, &["--broker", &broker]);
    let stream = feed.open(5);
    stream.wait_closed();
    place.wait_alert("broker_away");
    let gateway = Gateway::start_at(TcpListener::bind(address).unwrap());
    serve_until(&feed, &place, 6, "entry");
    assert_eq!(gateway.orders(), ["sf-1-entry"]);
}
