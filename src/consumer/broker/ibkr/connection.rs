//! The connection to the gateway, and whether orders can go over it.
//!
//! A lost connection is never repaired: the next one is a new client without any state of the old one.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use ibapi::client::blocking::{Client, NoticeStream, Subscription};
use ibapi::orders::OrderUpdate;
use ibapi::subscriptions::SubscriptionItem;
use ibapi::{Error as ApiError, Notice};

use super::IbkrBroker;

/// The bot's number among the gateway's clients.
pub(super) const CLIENT_ID: i32 = 7417;
/// How often a wait checks the stop flag.
pub(super) const SLICE: Duration = Duration::from_millis(50);

/// The gateway has lost IB's servers (1100 and 2110), or has them back (1101 and 1102).
const LOST: [i32; 2] = [1100, 2110];
const REGAINED: [i32; 2] = [1101, 1102];
/// The gateway refuses orders and lists while its Read-Only setting is on. Other errors share this code.
const READ_ONLY: i32 = 321;

pub(super) fn is_read_only(code: i32, text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    code == READ_ONLY && (text.contains("read-only") || text.contains("read only"))
}

/// Why no order can go over a connection that is up.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) text: String,
    /// Then it lasts until the gateway answers a list, otherwise until the gateway says that it is over.
    pub(super) is_read_only: bool,
}

pub(super) struct GatewayConnection {
    pub(super) client: Client,
    notices: NoticeStream,
    /// Updates about this client's orders. `None` if it has ended: then the connection counts as lost.
    updates: Option<Subscription<OrderUpdate>>,
    /// Which connection of this bot it is.
    pub(super) number: u64,
    pub(super) trouble: Option<Trouble>,
    /// When to look up the followed orders, because an update about them may have been missed.
    pub(super) look_at: Option<Instant>,
    /// A list did not come in time. Its late answer would end the next list, which would then prove nothing.
    pub(super) has_late_list: bool,
    /// The last list was cut short by a row that cannot be read.
    pub(super) has_cut_list: bool,
}

/// What the gateway says about one of this client's orders.
pub(super) type Update = SubscriptionItem<OrderUpdate>;

impl GatewayConnection {
    pub(super) fn is_lost(&self) -> bool {
        self.updates.is_none() || !self.client.is_connected()
    }

    /// Has the followed orders looked up after `wait`, or earlier if that was planned.
    pub(super) fn look_after(&mut self, wait: Duration) {
        let at = Instant::now() + wait;
        self.look_at = Some(self.look_at.map_or(at, |planned| planned.min(at)));
    }

    /// Updates about orders; waits up to `patience` for the first. Handles notices about the connection.
    pub(super) fn updates(&mut self, patience: Duration) -> Vec<Update> {
        let mut updates = Vec::new();
        let deadline = Instant::now() + patience;
        loop {
            self.take_notices();
            let Some(stream) = &self.updates else { break };
            let left = deadline.saturating_duration_since(Instant::now());
            let next =
                if updates.is_empty() && !left.is_zero() { stream.next_timeout(left) } else { stream.try_next() };
            match next {
                None => break,
                Some(Ok(update)) => updates.push(update),
                Some(Err(error)) => self.reopen_updates(&error),
            }
        }
        updates
    }

    /// Handles a frame that cannot be read, which ends the stream. It may be another client's.
    fn reopen_updates(&mut self, error: &ApiError) {
        let is_over = self.is_lost() || is_end(error);
        // The client has one such stream at a time.
        self.updates = None;
        self.look_after(Duration::ZERO);
        if !is_over {
            log::warn!("cannot read an order update from the gateway: {error}");
            let stream = self.client.order_update_stream();
            self.updates = stream.inspect_err(|error| log::warn!("follow the orders at the gateway: {error}")).ok();
        }
    }

    pub(super) fn take_notices(&mut self) {
        while let Some(notice) = self.notices.try_next() {
            let Notice { code, message, .. } = &notice;
            let (text, is_read_only) = (format!("{code}: {message}"), is_read_only(*code, message));
            let (is_lost, is_regained) = (LOST.contains(code), REGAINED.contains(code));
            let is_good = is_regained || (notice.is_informational() && !is_lost);
            if !is_read_only || self.trouble.is_none() {
                let level = if is_good { log::Level::Info } else { log::Level::Warn };
                log::log!(level, "the gateway says {text}");
            }
            if is_regained {
                self.trouble = None;
                self.look_after(Duration::ZERO);
            } else if is_lost || is_read_only {
                self.trouble = Some(Trouble { text, is_read_only });
            }
        }
    }
}

/// Whether this error means that the connection is lost.
pub(super) fn is_end(error: &ApiError) -> bool {
    error.is_connection_lost() || matches!(error, ApiError::Shutdown | ApiError::ConnectionFailed | ApiError::Io(_))
}

impl IbkrBroker {
    /// Waits up to `patience` for a connection; the attempt continues after that. One attempt at a time: it cannot be
    /// cancelled (it takes 30 s if the gateway is silent), and a second one would find the client id in use.
    pub(super) fn connect(&mut self, patience: Duration) -> Result<GatewayConnection, String> {
        let deadline = Instant::now() + patience;
        let failed = |why: &str| format!("connect to {}: {why}", self.address);
        let attempt = match self.attempt.take() {
            Some(attempt) => attempt,
            None => {
                self.begun += 1;
                dial(self.address.clone(), self.begun).map_err(|error| format!("start a thread: {error}"))?
            }
        };
        loop {
            match attempt.recv_timeout(SLICE) {
                Ok(dialled) => {
                    let connection = dialled.map_err(|why| failed(&why))?;
                    log::info!("connected to the gateway at {}", self.address);
                    return Ok(connection);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline && !self.stop.is_asked() => {}
                Err(RecvTimeoutError::Timeout) => {
                    let why = failed("the gateway has not answered yet");
                    self.attempt = Some(attempt);
                    return Err(why);
                }
                Err(RecvTimeoutError::Disconnected) => return Err(failed("failed")),
            }
        }
    }
}

fn dial(address: String, number: u64) -> std::io::Result<Receiver<Result<GatewayConnection, String>>> {
    let (sender, receiver) = mpsc::channel();
    let connect = move || {
        let builder = Client::builder().address(address).client_id(CLIENT_ID).max_reconnect_attempts(0);
        let dialled = builder.connect_with_notice_stream().and_then(|(client, notices)| {
            Ok(GatewayConnection {
                updates: Some(client.order_update_stream()?),
                client,
                notices,
                number,
                trouble: None,
                look_at: Some(Instant::now()),
                has_late_list: false,
                has_cut_list: false,
            })
        });
        let dialled = dialled.map_err(|error| match error {
            ApiError::ClientIdInUse { client_id } => {
                format!("326: the client id {client_id} is already in use by another connection to the gateway")
            }
            error => error.to_string(),
        });
        // If nothing waits for it any more, dropping the client disconnects it.
        let _ = sender.send(dialled);
    };
    thread::Builder::new().name("ibkr-connect".into()).spawn(connect)?;
    Ok(receiver)
}
