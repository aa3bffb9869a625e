//! What is known of each stream, and the list of all of them with its limits.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::lock;
use super::queue::Queue;
use super::reason::End;
use super::stats::Stats;
use crate::db::keys::Key;
use crate::event::{EventTime, FeedSeq};
use crate::http::outlet;

/// No expiry, in [`Client::expires_at`].
const NEVER: i64 = i64::MAX;

/// One stream: shared by its own thread, the reader that feeds it, and whoever looks at it.
#[derive(Debug)]
pub struct Client {
    /// Counts up from the start of the server.
    pub id: u64,
    /// The key that opened it.
    pub key: Arc<Key>,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Its thread's, which alone keeps it open.
    socket: Weak<TcpStream>,
    /// When it was admitted, by the database's clock.
    pub since: EventTime,
    /// What the reader has sent and the client not yet taken.
    pub queue: Queue,
    cursor: AtomicI64,
    delivered: AtomicU64,
    dropped: AtomicU64,
    expires_at: AtomicI64,
    end: AtomicU8,
}

impl Client {
    /// The last number that was written to its socket.
    pub fn cursor(&self) -> FeedSeq {
        FeedSeq(self.cursor.load(Ordering::Relaxed))
    }

    /// Notes that everything up to `cursor` was written to its socket, or is not to be.
    pub fn stands_at(&self, cursor: FeedSeq) {
        self.cursor.store(cursor.0, Ordering::Relaxed);
    }

    /// Notes so many events, up to `cursor`, that were written to its socket.
    pub fn delivered(&self, cursor: FeedSeq, events: usize, stats: &Stats) {
        self.stands_at(cursor);
        self.delivered.fetch_add(events as u64, Ordering::Relaxed);
        stats.deliveries.inc_by(events as u64);
    }

    /// How many events were written to its socket.
    pub fn delivered_events(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Notes that its queue dropped events.
    pub fn dropped(&self, events: usize) {
        self.dropped.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// How many events its queue has dropped.
    pub fn dropped_events(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Asks its thread to end; the first reason stays.
    pub fn end(&self, reason: End) {
        let _ = self.end.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Relaxed);
        self.queue.ring();
    }

    /// Why it is to end, where somebody asked.
    pub fn ending(&self) -> Option<End> {
        End::from_number(self.end.load(Ordering::Acquire))
    }

    /// Whether the other side has closed the connection, as far as can be seen without waiting.
    fn has_left(&self) -> bool {
        self.socket.upgrade().is_none_or(|socket| outlet::is_closed(&socket))
    }

    /// Notes when its key ends by itself, which can change (`key rotate`).
    pub fn set_expiry(&self, expires_at: Option<EventTime>) {
        let new = expires_at.map_or(NEVER, |at| at.0);
        if self.expires_at.swap(new, Ordering::AcqRel) != new {
            self.queue.ring();
        }
    }

    /// When its key ends by itself.
    pub fn expires_at(&self) -> Option<EventTime> {
        match self.expires_at.load(Ordering::Acquire) {
            NEVER => None,
            micros => Some(EventTime(micros)),
        }
    }
}

/// Why a stream is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Its key has as many as `--max-clients-per-key` allows.
    Key,
    /// There are as many as `--max-clients` allows.
    Server,
}

/// Whether these are as many as there may be. Who has left does not count: its thread would notice only when it next writes,
/// and a bot that reconnects must not be refused for the sake of its own dead streams.
fn is_full<'a>(clients: impl Iterator<Item = &'a Arc<Client>> + Clone, most: usize) -> bool {
    if clients.clone().count() < most {
        return false;
    }
    let (left, here): (Vec<_>, Vec<_>) = clients.partition(|client| client.has_left());
    for client in left {
        client.end(End::ClientGone);
    }
    here.len() >= most
}

/// All streams.
#[derive(Debug, Default)]
pub struct Clients {
    list: Mutex<HashMap<u64, Arc<Client>>>,
    last_id: AtomicU64,
    count: AtomicUsize,
}

/// How many streams there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// In all.
    pub clients: usize,
    /// Of one key's name.
    pub clients_per_key: usize,
    /// Events that a queue may hold.
    pub queue_events: usize,
}

impl Clients {
    /// Adds a stream of a key, unless a limit is reached.
    ///
    /// # Errors
    /// The limit that is reached; the key's own comes first.
    pub fn admit(
        &self,
        key: Arc<Key>,
        address: SocketAddr,
        socket: &Arc<TcpStream>,
        since: EventTime,
        limits: Limits,
    ) -> Result<Arc<Client>, Full> {
        let mut list = lock(&self.list);
        // By name: both lives of a rotated key count together.
        if is_full(list.values().filter(|client| client.key.name == key.name), limits.clients_per_key) {
            return Err(Full::Key);
        }
        if is_full(list.values(), limits.clients) {
            return Err(Full::Server);
        }
        let client = Arc::new(Client {
            id: self.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            expires_at: AtomicI64::new(key.expires_at.map_or(NEVER, |at| at.0)),
            key,
            address,
            socket: Arc::downgrade(socket),
            since,
            queue: Queue::new(limits.queue_events),
            cursor: AtomicI64::new(0),
            delivered: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            end: AtomicU8::new(0),
        });
        list.insert(client.id, client.clone());
        self.count.store(list.len(), Ordering::Relaxed);
        Ok(client)
    }

    /// Takes a stream off the list.
    pub fn leave(&self, client: &Client) {
        let mut list = lock(&self.list);
        list.remove(&client.id);
        self.count.store(list.len(), Ordering::Relaxed);
    }

    /// All streams now.
    pub fn all(&self) -> Vec<Arc<Client>> {
        lock(&self.list).values().cloned().collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
