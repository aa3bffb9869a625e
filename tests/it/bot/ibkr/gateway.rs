//! A gateway that does what the test says.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::wire::{Fields, Proto, read, read_frame, write, write_frame};

/// The bot's client id.
pub(super) const BOT: i64 = 7417;
/// Larger than 32 bits.
const PERM_ID: i64 = 9_000_000_000;

const ORDER_STATUS: u32 = 3;
const ERROR: u32 = 4;
const OPEN_ORDER: u32 = 5;
const NEXT_VALID_ID: u32 = 9;
const EXECUTION: u32 = 11;
const MANAGED_ACCOUNTS: u32 = 15;
const OPEN_ORDER_END: u32 = 53;
const EXECUTION_END: u32 = 55;
const COMPLETED_ORDER: u32 = 101;
const COMPLETED_ORDER_END: u32 = 102;

/// What the gateway does with an order, one step after the other. Without any it takes the order and says Submitted.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Puts it into the book with this status, without a message.
    Take(&'static str),
    /// Fills this much of it, without a message.
    Fill(i64),
    /// Changes its status and reports it: status and filled.
    Status(&'static str, i64),
    /// Reports it without having it in the book.
    Say(&'static str, i64),
    /// An error that names the order.
    Error(i64, &'static str),
    Close,
}

/// An order in the book.
#[derive(Clone, Debug)]
pub(super) struct Booked {
    pub(super) id: i64,
    pub(super) client: i64,
    pub(super) reference: String,
    pub(super) symbol: String,
    pub(super) price: Option<f64>,
    pub(super) status: String,
    pub(super) filled: i64,
}

impl Booked {
    /// One of the bot's, of which the gateway has said nothing.
    pub(super) fn submitted(id: i64, reference: &str) -> Self {
        let (reference, symbol, status) = (reference.to_owned(), "ACME".to_owned(), "Submitted".to_owned());
        Self { id, client: BOT, reference, symbol, price: None, status, filled: 0 }
    }

    fn is_open(&self) -> bool {
        !matches!(self.status.as_str(), "Filled" | "Cancelled" | "Inactive" | "ApiCancelled")
    }
}

pub(super) struct State {
    /// For the next orders, in turn.
    pub(super) scripts: VecDeque<Vec<Step>>,
    /// What the gateway does with orders that have no script.
    pub(super) otherwise: Vec<Step>,
    pub(super) book: Vec<Booked>,
    /// Everything that was sent, taken or not: id and reference.
    pub(super) sent: Vec<(i64, String)>,
    /// Whether it is frozen: it reads and answers nothing.
    frozen: bool,
    /// What the gateway says is the next id.
    pub(super) next_id: i64,
    pub(super) accounts: &'static str,
    pub(super) zone: &'static str,
    /// How long it takes to answer the handshake.
    pub(super) handshake: Duration,
    /// How many connections find the client id in use.
    pub(super) in_use: u32,
    pub(super) read_only: bool,
    /// Whether it leaves lists unanswered.
    pub(super) silent_lists: bool,
    /// How long it takes to answer when asked for a list.
    pub(super) slow_lists: Duration,
    /// Rows of others, before the bot's own in the lists of all clients.
    pub(super) foreign: Vec<Proto>,
    /// Whether the list of this client's own orders has them too.
    pub(super) foreign_in_own: bool,
    /// Sets of lists that were requested: the number of requests for all open orders.
    pub(super) lists: usize,
    pub(super) connections: usize,
    stream: Option<TcpStream>,
}

#[derive(Clone)]
pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Gateway {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gateway = Self::new(listener.local_addr().unwrap());
        gateway.listen(listener);
        gateway
    }

    /// A gateway that does not listen yet.
    pub(super) fn new(address: SocketAddr) -> Self {
        let state = State {
            scripts: VecDeque::new(),
            otherwise: vec![Step::Take("Submitted"), Step::Status("PreSubmitted", 0), Step::Status("Submitted", 0)],
            book: Vec::new(),
            sent: Vec::new(),
            frozen: false,
            next_id: 1,
            accounts: "DU1",
            zone: "UTC",
            handshake: Duration::ZERO,
            in_use: 0,
            read_only: false,
            silent_lists: false,
            slow_lists: Duration::ZERO,
            foreign: Vec::new(),
            foreign_in_own: false,
            lists: 0,
            connections: 0,
            stream: None,
        };
        Self { address, shared: Arc::new((Mutex::new(state), Condvar::new())) }
    }

    pub(super) fn listen(&self, listener: TcpListener) {
        let gateway = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let gateway = gateway.clone();
                std::thread::spawn(move || gateway.speak(stream));
            }
        });
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }

    /// Scripts the next order.
    pub(super) fn script(&self, steps: &[Step]) {
        self.state().scripts.push_back(steps.to_vec());
    }

    pub(super) fn freeze(&self, frozen: bool) {
        self.state().frozen = frozen;
        self.shared.1.notify_all();
    }

    /// The references of all orders that were sent, taken or not.
    pub(super) fn sent(&self) -> Vec<String> {
        self.state().sent.iter().map(|(_, reference)| reference.clone()).collect()
    }

    /// The references in the book that are open or filled, as a person at the gateway sees them.
    pub(super) fn live(&self) -> Vec<String> {
        let state = self.state();
        let live = state.book.iter().filter(|order| order.client == BOT && (order.is_open() || order.filled > 0));
        live.map(|order| order.reference.clone()).collect()
    }

    /// Sends a message on the present connection.
    fn tell(&self, number: u32, message: &Proto) {
        let mut state = self.state();
        if let Some(stream) = &mut state.stream {
            write(stream, number, message);
        }
    }

    /// Sends a message about the gateway itself.
    pub(super) fn notice(&self, code: i64, text: &str) {
        self.tell(ERROR, &error(-1, code, text));
    }

    /// An error about the newest order.
    pub(super) fn error(&self, code: i64, text: &str) {
        let id = self.state().sent.last().unwrap().0;
        self.tell(ERROR, &error(id, code, text));
    }

    /// Changes the status of an order in the book, and tells it.
    pub(super) fn status(&self, reference: &str, status: &str, filled: i64) {
        self.set_status(reference, status, filled);
        let order = self.order(reference);
        self.tell(ORDER_STATUS, &order_status(&order));
    }

    /// Changes it without a message.
    pub(super) fn set_status(&self, reference: &str, status: &str, filled: i64) {
        let mut state = self.state();
        let order = state.book.iter_mut().rfind(|order| order.reference == reference).unwrap();
        order.status = status.to_owned();
        order.filled = filled;
    }

    pub(super) fn order(&self, reference: &str) -> Booked {
        self.state().book.iter().rfind(|order| order.reference == reference).unwrap().clone()
    }

    /// Sends an unreadable frame about one of this client's orders.
    pub(super) fn unreadable_update(&self) {
        self.tell(OPEN_ORDER, &Proto::new().int(1, 999));
    }

    /// Breaks the connection.
    pub(super) fn close(&self) {
        if let Some(stream) = self.state().stream.take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn wait_until_thawed(&self) {
        drop(self.shared.1.wait_while(self.state(), |state| state.frozen).unwrap());
    }

    fn speak(&self, mut stream: TcpStream) -> Option<()> {
        self.wait_until_thawed();
        let mut hello = [0; 4];
        std::io::Read::read_exact(&mut stream, &mut hello).ok()?;
        assert_eq!(&hello, b"API\0");
        let versions = String::from_utf8(read_frame(&mut stream)?).unwrap();
        assert!(versions.starts_with('v'), "{versions}");
        let zone = self.state().zone;
        let wait = self.state().handshake;
        std::thread::sleep(wait);
        let now = jiff::Timestamp::now().strftime("%Y%m%d %H:%M:%S");
        write_frame(&mut stream, format!("215\0{now} {zone}\0").as_bytes())?;
        loop {
            let (number, message) = read(&mut stream)?;
            self.wait_until_thawed();
            match number {
                71 => self.start_api(&mut stream, &message)?,
                3 => self.place(&mut stream, &message)?,
                5 => self.open_orders(&mut stream, false)?,
                16 => self.open_orders(&mut stream, true)?,
                99 => self.completed_orders(&mut stream)?,
                7 => self.executions(&mut stream, &message)?,
                other => panic!("the gateway does not know message {other}"),
            }
        }
    }

    fn start_api(&self, stream: &mut TcpStream, message: &Fields) -> Option<()> {
        assert_eq!(message.int(1), BOT);
        let mut state = self.state();
        if state.in_use > 0 {
            state.in_use -= 1;
            let text = "Unable to connect as the client id is already in use. Retry with a unique client id.";
            write(stream, ERROR, &error(-1, 326, text));
            return None;
        }
        state.connections += 1;
        write(stream, MANAGED_ACCOUNTS, &Proto::new().text(1, state.accounts))?;
        state.stream = Some(stream.try_clone().unwrap());
        write(stream, NEXT_VALID_ID, &Proto::new().int(1, state.next_id))
    }

    fn place(&self, stream: &mut TcpStream, message: &Fields) -> Option<()> {
        let (id, contract, order) = (message.int(1), message.message(2), message.message(3));
        let reference = order.text(28);
        assert_eq!(
            (contract.text(3), contract.text(8), contract.text(10)),
            ("STK".into(), "SMART".into(), "USD".into())
        );
        let mut state = self.state();
        state.sent.push((id, reference.clone()));
        if state.read_only {
            let text = "Error validating request.-'bW' : cause - The API interface is currently in Read-Only mode.";
            return write(stream, ERROR, &error(id, 321, text));
        }
        state.next_id = state.next_id.max(id + 1);
        let steps = state.scripts.pop_front().unwrap_or_else(|| state.otherwise.clone());
        let mut order = Booked {
            id,
            client: BOT,
            reference,
            symbol: contract.text(2),
            price: order.double(9),
            status: String::new(),
            filled: 0,
        };
        for step in steps {
            match step {
                Step::Take(status) => {
                    status.clone_into(&mut order.status);
                    state.book.push(order.clone());
                }
                Step::Fill(filled) => state.book.last_mut().unwrap().filled = filled,
                Step::Status(status, filled) => {
                    let booked = state.book.last_mut().unwrap();
                    (booked.status, booked.filled) = (status.to_owned(), filled);
                    write(stream, ORDER_STATUS, &order_status(booked))?;
                }
                Step::Say(status, filled) => {
                    (order.status, order.filled) = (status.to_owned(), filled);
                    write(stream, ORDER_STATUS, &order_status(&order))?;
                }
                Step::Error(code, text) => write(stream, ERROR, &error(id, code, text))?,
                Step::Close => {
                    state.stream = None;
                    let _ = stream.shutdown(Shutdown::Both);
                    return None;
                }
            }
        }
        Some(())
    }

    /// Whether a list is refused, or not answered at all.
    fn refuses(&self, stream: &mut TcpStream) -> Option<bool> {
        let wait = self.state().slow_lists;
        std::thread::sleep(wait);
        let state = self.state();
        if state.read_only {
            write(
                stream,
                ERROR,
                &error(
                    -1,
                    321,
                    "Error validating request.-'cb' : cause - The API interface is currently in Read-Only mode.",
                ),
            )?;
        }
        Some(state.read_only || state.silent_lists)
    }

    fn open_orders(&self, stream: &mut TcpStream, all: bool) -> Option<()> {
        if all {
            self.state().lists += 1;
        }
        if self.refuses(stream)? {
            return Some(());
        }
        let state = self.state();
        for row in state.foreign.iter().filter(|_| all || state.foreign_in_own) {
            write(stream, OPEN_ORDER, row)?;
        }
        for order in state.book.iter().filter(|order| order.is_open() && (all || order.client == BOT)) {
            write(stream, OPEN_ORDER, &open_order(order))?;
            write(stream, ORDER_STATUS, &order_status(order))?;
        }
        write(stream, OPEN_ORDER_END, &Proto::new())
    }

    fn completed_orders(&self, stream: &mut TcpStream) -> Option<()> {
        if self.refuses(stream)? {
            return Some(());
        }
        let state = self.state();
        for row in &state.foreign {
            write(stream, COMPLETED_ORDER, &Proto::new().message(1, &Proto::new()).message(2, row))?;
        }
        for order in state.book.iter().filter(|order| !order.is_open()) {
            let row = Proto::new()
                .message(1, &contract(&order.symbol))
                .message(2, &order_of(order))
                .message(3, &Proto::new().text(1, &order.status));
            write(stream, COMPLETED_ORDER, &row)?;
        }
        write(stream, COMPLETED_ORDER_END, &Proto::new())
    }

    fn executions(&self, stream: &mut TcpStream, message: &Fields) -> Option<()> {
        let request = message.int(1);
        let wait = self.state().slow_lists;
        std::thread::sleep(wait);
        let state = self.state();
        if state.silent_lists {
            return Some(());
        }
        let client = message.message(2).int(1);
        for order in state.book.iter().filter(|order| order.filled > 0 && order.client == client) {
            let execution = Proto::new()
                .int(1, order.id)
                .text(2, &format!("e.{}", order.id))
                .text(6, "BOT")
                .text(7, &order.filled.to_string())
                .double(8, 12.5)
                .int(9, PERM_ID + order.id)
                .int(10, order.client)
                .text(12, &order.filled.to_string())
                .text(14, &order.reference);
            let row = Proto::new().int(1, request).message(2, &contract(&order.symbol)).message(3, &execution);
            write(stream, EXECUTION, &row)?;
        }
        write(stream, EXECUTION_END, &Proto::new().int(1, request))
    }
}

fn error(id: i64, code: i64, text: &str) -> Proto {
    Proto::new().int(1, id).int(2, 1_764_000_000_000).int(3, code).text(4, text)
}

fn contract(symbol: &str) -> Proto {
    Proto::new().text(2, symbol).text(3, "STK").text(8, "SMART").text(10, "USD")
}

fn order_of(order: &Booked) -> Proto {
    Proto::new()
        .int(1, order.client)
        .int(2, order.id)
        .int(3, PERM_ID + order.id)
        .text(5, "BUY")
        .text(6, "100")
        .text(8, "LMT")
        .text(28, &order.reference)
        .text(115, &order.filled.to_string())
}

pub(super) fn open_order(order: &Booked) -> Proto {
    Proto::new()
        .int(1, order.id)
        .message(2, &contract(&order.symbol))
        .message(3, &order_of(order))
        .message(4, &Proto::new().text(1, &order.status))
}

fn order_status(order: &Booked) -> Proto {
    Proto::new()
        .int(1, order.id)
        .text(2, &order.status)
        .text(3, &order.filled.to_string())
        .text(4, &(100 - order.filled).to_string())
        .int(6, PERM_ID + order.id)
        .int(9, order.client)
}
