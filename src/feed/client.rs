//! What is known of each stream, and the list of all of them with its limits.
//!
//! A stream is subscribed while it is on the list, which is before it reads anything: every batch that the reader adds
//! to the tail afterwards is offered to it.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::Feed;
use super::batch::SharedBatch;
use super::reason::End;
use super::stats::Stats;
use super::writer::{Broken, Direct, SseWriter, Written};
use crate::db::keys::Key;
use crate::event::{EventTime, FeedSeq};
use crate::http::socket;
use crate::sync::lock;

/// The batches that wait in a stream's channel. If there are more, the stream reads the tail.
const CHANNEL_SLOTS: usize = 32;
/// A larger batch, 256 KiB, is not put into channels: the stream takes it from the tail. So all channels together keep
/// no more than 8 MiB in memory.
const LARGEST_OFFERED_BYTES: usize = 256 * 1024;
/// No expiry, in [`Client::expires_at`].
const NEVER: i64 = i64::MAX;

/// One stream, shared by its own thread, the reader, and the threads that list streams.
#[derive(Debug)]
pub struct Client {
    /// Counts up from the start of the server.
    pub id: u64,
    /// The key that opened it.
    pub key: Arc<Key>,
    /// Where it comes from.
    pub address: SocketAddr,
    /// When it was admitted, by the database's clock.
    pub since: EventTime,
    /// When it ends because of its age; `None` for never.
    pub ends_at: Option<Instant>,
    /// Its socket, for looking at its state. Only `writer` writes to it.
    pub socket: Arc<TcpStream>,
    /// Locked for one write, which does not block. Only the stream's own thread waits for this lock; the reader tries
    /// it.
    pub writer: Mutex<SseWriter>,
    /// New batches; `None` asks the thread to check what has changed.
    sender: Sender<Option<SharedBatch>>,
    /// Both ends are here, because the reader drops the oldest batch of a full channel.
    receiver: Receiver<Option<SharedBatch>>,
    cursor: AtomicI64,
    delivered: AtomicU64,
    dropped: AtomicU64,
    expires_at: AtomicI64,
    end: AtomicU8,
    told_epoch: AtomicU64,
}

impl Client {
    /// The last number that was written to its socket.
    pub fn cursor(&self) -> FeedSeq {
        FeedSeq(self.cursor.load(Ordering::Relaxed))
    }

    /// Records that everything up to `cursor` was written or is to be skipped.
    pub fn set_cursor(&self, cursor: FeedSeq) {
        self.cursor.store(cursor.0, Ordering::Relaxed);
    }

    /// How many events were written to its socket.
    pub fn delivered_events(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// How many lost events the client has been told of.
    pub fn dropped_events(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Adds to the lost events that the client has been told of.
    pub fn dropped(&self, events: u64) {
        self.dropped.fetch_add(events, Ordering::Relaxed);
    }

    /// Writes as much of the pending bytes as the socket takes. Does not block.
    ///
    /// # Errors
    /// If the connection is broken.
    pub fn write_pending(&self, stats: &Stats) -> Result<Written, Broken> {
        let mut writer = lock(&self.writer);
        let written = writer.write_pending()?;
        if let Some(position) = writer.position() {
            self.delivered(position.cursor, written.events, stats);
        }
        Ok(written)
    }

    /// The caller must hold the writer's lock: otherwise an older cursor could overwrite a newer one.
    fn delivered(&self, cursor: FeedSeq, events: usize, stats: &Stats) {
        self.set_cursor(cursor);
        if events > 0 {
            self.delivered.fetch_add(events as u64, Ordering::Relaxed);
            stats.deliveries.inc_by(events as u64);
        }
    }

    /// For the reader: writes a new batch directly if it is small and nothing else is pending, else passes it to the
    /// stream's thread. Returns whether it was written. Does not block.
    pub fn offer(&self, batch: &SharedBatch, now: Instant, stats: &Stats) -> bool {
        let mut direct = Direct::Not;
        if let Ok(mut writer) = self.writer.try_lock() {
            direct = writer.write_direct(batch, now);
            if direct == Direct::Written {
                self.delivered(batch.last(), batch.entries().len(), stats);
            }
        }
        match direct {
            Direct::Written => {}
            Direct::Not if batch.memory_bytes() <= LARGEST_OFFERED_BYTES => self.send(Some(batch.clone())),
            Direct::Partly | Direct::Not => self.wake(),
        }
        direct == Direct::Written
    }

    fn send(&self, mut message: Option<SharedBatch>) {
        while let Err(TrySendError::Full(back)) = self.sender.try_send(message) {
            let _ = self.receiver.try_recv();
            message = back;
        }
    }

    /// Asks its thread to check what has changed. Does not block.
    pub fn wake(&self) {
        // If the channel is full, the thread wakes anyway.
        let _ = self.sender.try_send(None);
    }

    /// For its thread: waits for a batch, at most `patience`. `None` means that something else may have changed.
    pub fn wait(&self, patience: Duration) -> Option<SharedBatch> {
        self.receiver.recv_timeout(patience).ok().flatten()
    }

    /// Asks its thread to end. The first reason is kept.
    pub fn end(&self, reason: End) {
        let _ = self.end.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Relaxed);
        self.wake();
    }

    /// Why it should end, if it should.
    pub fn ending(&self) -> Option<End> {
        End::from_number(self.end.load(Ordering::Acquire))
    }

    /// The next health epoch, up to `epoch`, that the client was not told of. Two changes restore the same state,
    /// so the client hears of the last two at most.
    pub fn next_epoch(&self, epoch: u64) -> Option<u64> {
        let told = self.told_epoch.load(Ordering::Relaxed).max(epoch.saturating_sub(2));
        if told >= epoch {
            return None;
        }
        self.told_epoch.store(told + 1, Ordering::Relaxed);
        Some(told + 1)
    }

    /// Records when its key expires, which can change (`key rotate`).
    pub fn set_expiry(&self, expires_at: Option<EventTime>) {
        let new = expires_at.map_or(NEVER, |at| at.0);
        if self.expires_at.swap(new, Ordering::AcqRel) != new {
            self.wake();
        }
    }

    /// When its key expires.
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
    /// Its key already has `--max-clients-per-key` streams.
    Key,
    /// There are already `--max-clients` streams.
    Server,
}

/// A stream that asks to be admitted.
#[derive(Debug)]
pub struct Opening {
    /// The key that opens it.
    pub key: Arc<Key>,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Writes to its socket.
    pub socket: Arc<TcpStream>,
    /// Whether blocks are framed as chunks (HTTP/1.1).
    pub is_chunked: bool,
}

#[derive(Debug, Default)]
struct List {
    by_id: HashMap<u64, Arc<Client>>,
    /// Changes whenever the list does.
    version: u64,
    last_id: u64,
}

/// All streams.
#[derive(Debug, Default)]
pub struct Clients {
    /// Locked to change or copy the list. Sockets are checked under it, which does not block.
    list: Mutex<List>,
    count: AtomicUsize,
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
    /// Adds a stream, unless a limit is reached.
    ///
    /// # Errors
    /// The limit that is reached; the key's own limit is checked first.
    pub fn admit(&self, feed: &Feed, opening: Opening, ends_at: Option<Instant>) -> Result<Arc<Client>, Full> {
        let Opening { key, address, socket, is_chunked } = opening;
        let (sender, receiver) = bounded(CHANNEL_SLOTS);
        let (since, bytes) = (feed.clock.now(), feed.stats.bytes.clone());
        let mut list = lock(&self.list);
        // By name: the old and the new key of a rotation count together.
        let of_key = list.by_id.values().filter(|client| client.key.name == key.name);
        if is_full(of_key, feed.options.max_clients_per_key) {
            return Err(Full::Key);
        }
        if is_full(list.by_id.values(), feed.options.max_clients) {
            return Err(Full::Server);
        }
        list.last_id += 1;
        let client = Arc::new(Client {
            id: list.last_id,
            expires_at: AtomicI64::new(key.expires_at.map_or(NEVER, |at| at.0)),
            key,
            address,
            since,
            ends_at,
            writer: Mutex::new(SseWriter::new(socket.clone(), is_chunked, bytes)),
            socket,
            sender,
            receiver,
            cursor: AtomicI64::new(0),
            delivered: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            end: AtomicU8::new(0),
            told_epoch: AtomicU64::new(feed.health.epoch()),
        });
        list.by_id.insert(client.id, client.clone());
        self.changed(list);
        Ok(client)
    }

    /// Takes a stream off the list.
    pub fn leave(&self, client: &Client) {
        let mut list = lock(&self.list);
        list.by_id.remove(&client.id);
        self.changed(list);
    }

    fn changed(&self, mut list: std::sync::MutexGuard<'_, List>) {
        list.version += 1;
        self.count.store(list.by_id.len(), Ordering::Relaxed);
    }

    /// All streams now.
    pub fn all(&self) -> Vec<Arc<Client>> {
        lock(&self.list).by_id.values().cloned().collect()
    }

    /// All streams whose client has not disconnected, as far as the system knows.
    pub fn present(&self) -> Vec<Arc<Client>> {
        present(self.all().iter())
    }

    /// Copies the list to `copy` if its version is not `version`.
    pub fn refresh(&self, copy: &mut Vec<Arc<Client>>, version: &mut u64) {
        let list = lock(&self.list);
        if *version != list.version {
            copy.clear();
            copy.extend(list.by_id.values().cloned());
            *version = list.version;
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
