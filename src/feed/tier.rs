//! A tier: streams that share a clock and a head.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};

use super::client::Client;
use super::clock::DatabaseClock;
use super::lock;
use super::pool::ReplayPool;
use super::tail::Tail;
use super::window::{Earliest, Window};
use crate::db;
use crate::event::{EventTime, FeedSeq};

/// Requests that wait for a tier's reader. It takes them between two pages; who sends blocks meanwhile.
const CONTROL_SLOTS: usize = 256;

/// Who waits for a reader looks this often whether the server ends.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What a client's thread asks of the reader of its tier.
#[derive(Debug)]
pub enum Control {
    /// From now on, send it every batch; say where the tier stands.
    Register(Arc<Client>, Sender<Registered>),
    /// Send it no more.
    Deregister(u64),
}

/// The moment of registration: everything up to `head` is the client's own to read, everything above comes by its queue.
#[derive(Debug, Clone, Copy)]
pub struct Registered {
    /// The newest event that was broadcast before.
    pub head: FeedSeq,
    /// Its time, where there is one.
    pub head_time: Option<EventTime>,
    /// How many events had been broadcast before.
    pub ordinal: u64,
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
    control: Sender<Control>,
}

impl Tier {
    /// A tier that lives `delay` in the past, and the other end of its control channel, for its reader.
    pub fn new(delay: Duration, window: Duration, tail_bytes: usize) -> (Arc<Self>, Receiver<Control>) {
        let (control, requests) = bounded(CONTROL_SLOTS);
        let tier = Self {
            delay,
            tail: Mutex::new(Tail::new(tail_bytes, FeedSeq(0), None)),
            window: Window::new(window),
            history: AtomicU64::new(0),
            control,
        };
        (Arc::new(tier), requests)
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

    /// Asks the reader to send every batch from now on. Blocks until it answers; `None` when it has ended, or the server does.
    ///
    /// Not by the end of the channel alone: a request that is sent at the very moment in which the reader goes stays in the
    /// channel, and its reply is neither given nor dropped.
    pub fn register(&self, client: &Arc<Client>, is_stopping: impl Fn() -> bool) -> Option<Registered> {
        let (reply, answer) = bounded(1);
        let mut request = Control::Register(client.clone(), reply);
        loop {
            match self.control.send_timeout(request, LOOK_EVERY) {
                Ok(()) => break,
                Err(SendTimeoutError::Timeout(back)) if !is_stopping() => request = back,
                Err(_) => return None,
            }
        }
        loop {
            match answer.recv_timeout(LOOK_EVERY) {
                Ok(registered) => return Some(registered),
                Err(RecvTimeoutError::Timeout) if !is_stopping() => {}
                Err(_) => return None,
            }
        }
    }

    /// Asks the reader to send no more. Blocks while its requests are many and it is at work; gives up when the server ends.
    pub fn deregister(&self, client: &Client, is_stopping: impl Fn() -> bool) {
        let mut request = Control::Deregister(client.id);
        while let Err(SendTimeoutError::Timeout(back)) = self.control.send_timeout(request, LOOK_EVERY) {
            if is_stopping() {
                return;
            }
            request = back;
        }
    }
}
