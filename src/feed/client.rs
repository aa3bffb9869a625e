//! What is known of each stream, and the list of all of them with its limits.
//!
//! A stream is subscribed while it is on the list, which is before it reads anything: every batch that the reader adds
//! to the tail afterwards is offered to it.

use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::Feed;
use super::batch::SharedBatch;
use super::reason::End;
use super::stats::Stats;
use super::writer::SseWriter;
use crate::db::keys::Key;
use crate::event::EventTime;
use crate::http::socket;
use crate::random::random_between;
use crate::sync::lock;

/// The batches that wait in a stream's channel. If there are more, the stream reads the tail.
const CHANNEL_SLOTS: usize = 32;
/// A larger batch, 256 KiB, is not put into channels: the stream takes it from the tail. So all channels together keep
/// no more than 8 MiB in memory.
const LARGEST_OFFERED_BYTES: usize = 256 * 1024;

/// One stream, shared by its own thread, the reader, and the threads that list streams.
#[derive(Debug)]
pub(crate) struct Client {
    pub key: Arc<Key>,
    pub address: SocketAddr,
    /// When it began, by the database's clock.
    pub since: EventTime,
    /// The same by this machine's clock.
    pub began: Instant,
    /// When it ends because of its age; `None` for never.
    pub ends_at: Option<Instant>,
    /// Its socket, for looking at its state. Only `writer` writes to it.
    pub socket: Arc<TcpStream>,
    /// Locked for one write, which does not block, or to look at its figures. The reader only tries this lock.
    pub writer: Mutex<SseWriter>,
    /// New batches; `None` asks the thread to check what has changed.
    sender: Sender<Option<SharedBatch>>,
    /// Both ends are here, because the reader drops the oldest batch of a full channel.
    receiver: Receiver<Option<SharedBatch>>,
    /// When its key expires. Locked to copy it in or out.
    expires_at: Mutex<Option<EventTime>>,
    end: OnceLock<End>,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {:?} from {}", self.key.name, self.address)
    }
}

impl Client {
    /// A stream that has not begun, with blocks framed as chunks (HTTP/1.1) or not.
    pub(crate) fn new(
        feed: &Feed,
        key: Arc<Key>,
        address: SocketAddr,
        socket: Arc<TcpStream>,
        is_chunked: bool,
    ) -> Self {
        let (sender, receiver) = bounded(CHANNEL_SLOTS);
        let age = feed.options.max_stream_age.map(|most| random_between(most * 4 / 5, most));
        Self {
            expires_at: Mutex::new(key.expires_at),
            key,
            address,
            since: feed.now(),
            began: Instant::now(),
            ends_at: age.and_then(|age| Instant::now().checked_add(age)),
            writer: Mutex::new(SseWriter::new(socket.clone(), is_chunked, feed.health.epoch())),
            socket,
            sender,
            receiver,
            end: OnceLock::new(),
        }
    }

    /// For the reader: writes a new batch directly if it is small and nothing else is pending, else passes it to the
    /// stream's thread. Returns whether it was written. Does not block.
    pub(crate) fn offer(&self, batch: &SharedBatch, now: Instant, stats: &Stats) -> bool {
        let is_written = self.writer.try_lock().is_ok_and(|mut writer| writer.write_direct(batch, now, stats));
        if !is_written {
            let mut message = (batch.memory_bytes() <= LARGEST_OFFERED_BYTES).then(|| batch.clone());
            while let Err(TrySendError::Full(back)) = self.sender.try_send(message) {
                let _ = self.receiver.try_recv();
                message = back;
            }
        }
        is_written
    }

    /// Asks its thread to check what has changed. Does not block.
    pub(crate) fn wake(&self) {
        // If the channel is full, the thread wakes anyway.
        let _ = self.sender.try_send(None);
    }

    /// For its thread: waits for a batch, at most `patience`. `None` means that something else may have changed.
    pub(crate) fn wait(&self, patience: Duration) -> Option<SharedBatch> {
        self.receiver.recv_timeout(patience).ok().flatten()
    }

    /// Asks its thread to end. The first reason is kept.
    pub(crate) fn end(&self, reason: End) {
        let _ = self.end.set(reason);
        self.wake();
    }

    pub(crate) fn ending(&self) -> Option<End> {
        self.end.get().copied()
    }

    /// Records when its key expires, which can change (`key rotate`).
    pub(crate) fn set_expiry(&self, expires_at: Option<EventTime>) {
        if std::mem::replace(&mut *lock(&self.expires_at), expires_at) != expires_at {
            self.wake();
        }
    }

    pub(crate) fn expires_at(&self) -> Option<EventTime> {
        *lock(&self.expires_at)
    }
}

/// Why a stream is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// Its key already has `--max-clients-per-key` streams.
    Key,
    /// There are already `--max-clients` streams.
    Server,
}

/// All streams, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// Locked to change or share the list. Sockets are checked under it, which does not block.
    list: Mutex<Arc<Vec<Arc<Client>>>>,
}

/// The streams whose client has not disconnected. The others are asked to end: their threads would notice only when
/// they next write, and a bot's dead streams must not keep it from reconnecting.
fn present<'a>(clients: impl Iterator<Item = &'a Arc<Client>>) -> Vec<Arc<Client>> {
    let (gone, present): (Vec<_>, Vec<_>) = clients.cloned().partition(|client| socket::is_closed(&client.socket));
    for client in gone {
        client.end(End::ClientGone);
    }
    present
}

fn is_full<'a>(clients: impl Iterator<Item = &'a Arc<Client>> + Clone, most: usize) -> bool {
    clients.clone().count() >= most && present(clients).len() >= most
}

impl Clients {
    /// Adds a stream, unless a limit is reached: the key's own is checked first.
    pub(super) fn add(&self, feed: &Feed, client: &Arc<Client>) -> Result<(), Full> {
        let mut list = lock(&self.list);
        // By name: the old and the new key of a rotation count together.
        let of_key = list.iter().filter(|other| other.key.name == client.key.name);
        if is_full(of_key, feed.options.max_clients_per_key) {
            return Err(Full::Key);
        }
        if is_full(list.iter(), feed.options.max_clients) {
            return Err(Full::Server);
        }
        // This copies the list only if somebody is going through it.
        Arc::make_mut(&mut list).push(client.clone());
        Ok(())
    }

    pub(super) fn remove(&self, client: &Arc<Client>) {
        let mut list = lock(&self.list);
        if let Some(at) = list.iter().position(|other| Arc::ptr_eq(other, client)) {
            Arc::make_mut(&mut list).remove(at);
        }
    }

    pub(crate) fn all(&self) -> Arc<Vec<Arc<Client>>> {
        lock(&self.list).clone()
    }

    /// All streams whose client has not disconnected, as far as the system knows.
    pub(crate) fn present(&self) -> Vec<Arc<Client>> {
        present(self.all().iter())
    }

    pub(crate) fn wake_all(&self) {
        self.all().iter().for_each(|client| client.wake());
    }

    pub(crate) fn count(&self) -> usize {
        lock(&self.list).len()
    }
}
