//! `--broker ibkr:HOST:PORT` against a scripted gateway that speaks the protobuf messages of the TWS API.

mod away;
mod following;
mod foreign;
mod gateway;
mod lost;
mod placing;
mod recovery;
mod wire;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::gateway::Gateway;
use super::feed::{Feed, row};
use super::process::{Bot, Place};

/// The cursor of a bot that has seen no event.
const BEGINNING: i64 = 5;

/// A feed with events, a gateway, and the place where bots run.
struct World {
    place: Place,
    gateway: Gateway,
    url: String,
    rows: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn new() -> Self {
        Self::with(Gateway::start())
    }

    fn with(gateway: Gateway) -> Self {
        let (feed, rows) = (Feed::new(), Arc::new(Mutex::new(Vec::<String>::new())));
        let (url, served) = (feed.url.clone(), Arc::downgrade(&rows));
        std::thread::spawn(move || {
            while served.strong_count() > 0 {
                let Some(request) = feed.accept_within(Duration::from_millis(100)) else { continue };
                let served = served.clone();
                std::thread::spawn(move || {
                    let mut cursor = request.cursor().unwrap_or(BEGINNING);
                    let mut stream = request.open();
                    stream.connected(cursor);
                    while let Some(rows) = served.upgrade() {
                        let rows = rows.lock().unwrap().clone();
                        for row in rows.iter().skip(usize::try_from(cursor - BEGINNING).unwrap()) {
                            cursor += 1;
                            stream.insert(cursor, row);
                        }
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
            }
        });
        Self { place: Place::new(), gateway, url, rows }
    }

    fn start(&self) -> Bot {
        self.start_with_timeout("3s")
    }

    fn start_with_timeout(&self, timeout: &str) -> Bot {
        let broker = format!("ibkr:{}", self.gateway.address);
        self.place.start(&self.url, &["--broker", &broker, "--broker-timeout", timeout])
    }

    /// The next event; returns the cursor of a bot that has handled it.
    fn send(&self, id: i64, action: &str) -> i64 {
        self.send_row(row(id, action))
    }

    fn send_row(&self, row: String) -> i64 {
        let mut rows = self.rows.lock().unwrap();
        rows.push(row);
        BEGINNING + i64::try_from(rows.len()).unwrap()
    }

    /// Sends an order and waits until it is handled.
    fn trade(&self, id: i64, action: &str) {
        let cursor = self.send(id, action);
        self.place.wait_cursor(cursor);
    }

    fn wait_sent(&self, references: &[&str]) {
        self.place.wait(&format!("{references:?} at the gateway"), || self.gateway.sent() == references);
    }

    /// The message of the only alert for this reason.
    fn alert(&self, reason: &str) -> String {
        self.place.wait_alert(reason);
        let text = self.place.read("alerts");
        let alerts: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let alerts: Vec<_> = alerts.iter().filter(|alert| alert["reason"] == reason).collect();
        assert_eq!(alerts.len(), 1, "{text}");
        alerts[0]["message"].as_str().unwrap().to_owned()
    }

    /// Waits for a line of the journal.
    fn wait_journal(&self, record: &str, id: i64) {
        self.place.wait(&format!("{record} of {id}"), || self.place.journal_has(record, id));
    }
}
