//! A tier: streams that share a clock and a head.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::client::Client;
use super::clock::DatabaseClock;
use super::lock;
use super::pool::ReplayPool;
use super::tail::Tail;
use super::window::{Earliest, Window};
use crate::db;
use crate::event::{EventTime, FeedSeq};

/// How far a tier was broadcast.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reached {
    /// The newest event that was.
    pub head: FeedSeq,
    /// Its time, where there is one.
    pub head_time: Option<EventTime>,
    /// How many events were.
    pub ordinal: u64,
}

/// Who is fed, and how far. Both change under one lock, which is what makes registering atomic.
#[derive(Debug, Default)]
pub struct Audience {
    /// The registered clients by their ids.
    pub clients: HashMap<u64, Arc<Client>>,
    /// How far they were sent everything.
    pub reached: Reached,
}

/// Streams that share a clock and a head.
#[derive(Debug)]
pub struct Tier {
    delay: Duration,
    /// The newest part of the log, up to the tier's head.
    pub tail: Mutex<Tail>,
    /// What can still be replayed.
    pub window: Window,
    /// How often the log was found to be another one than before.
    history: AtomicU64,
    /// Changed by the tier's reader, but for clients that come and go. Locked before `tail`, never after it.
    pub audience: Mutex<Audience>,
}

impl Tier {
    /// A tier that lives `delay` in the past, with nobody in it.
    pub fn new(delay: Duration, window: Duration, tail_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            delay,
            tail: Mutex::new(Tail::new(tail_bytes, FeedSeq(0), None)),
            window: Window::new(window),
            history: AtomicU64::new(0),
            audience: Mutex::default(),
        })
    }

    /// How long in the past it lives.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// The tier's clock: the database's, less the delay.
    pub fn now(&self, clock: &DatabaseClock) -> EventTime {
        clock.now().minus(self.delay)
    }

    /// The highest number that is due.
    pub fn head(&self) -> FeedSeq {
        lock(&self.tail).head()
    }

    /// Where its replay window begins. May read the log.
    ///
    /// # Errors
    /// What reading the log failed with.
    pub fn earliest(&self, clock: &DatabaseClock, pool: &ReplayPool) -> Result<Earliest, db::Error> {
        self.window.earliest(self.now(clock), self.head(), &self.tail, pool)
    }

    /// How often the log was found to be another one than before.
    pub fn history(&self) -> u64 {
        self.history.load(Ordering::Acquire)
    }

    /// The log is another one: it stands at `head`, and what was known is forgotten.
    pub fn replace_history(&self, tail: Tail) {
        let mut current = lock(&self.tail);
        self.history.fetch_add(1, Ordering::AcqRel);
        *current = tail;
        self.window.reset();
    }

    /// From now on the client is sent every batch. Everything up to the head that is returned is its own to read, everything
    /// above comes by its queue. Blocks while a batch is being sent.
    pub fn register(&self, client: &Arc<Client>) -> Reached {
        let mut audience = lock(&self.audience);
        audience.clients.insert(client.id, client.clone());
        audience.reached
    }

    /// It is sent no more. Blocks likewise.
    pub fn deregister(&self, client: &Client) {
        lock(&self.audience).clients.remove(&client.id);
    }
}
