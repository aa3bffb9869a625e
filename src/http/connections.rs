//! All open connections, and who has to go when there are too many.

use std::collections::{BTreeSet, HashMap};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::sync::lock;

/// Connections beyond `--max-clients`: those that are still sending their request, or getting a short answer.
pub const BESIDE_CLIENTS: usize = 512;
/// Strangers, 256: connections without a complete head after a second, or held without a known key. One more, and the oldest goes.
pub const STRANGERS: usize = 256;

#[derive(Debug, Default)]
struct Open {
    sockets: HashMap<u64, Arc<TcpStream>>,
    /// Without a complete head. Ids ascend with age.
    headless: BTreeSet<u64>,
    strangers: BTreeSet<u64>,
    /// The server ends: whoever was accepted at the last moment gets no place any more.
    is_closed: bool,
}

/// All open connections of a listener.
#[derive(Debug)]
pub struct Connections {
    most: usize,
    last_id: AtomicU64,
    open: Mutex<Open>,
    left: Condvar,
}

/// One connection's place; dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    id: u64,
    connections: Arc<Connections>,
}

impl Connections {
    /// Room for so many connections.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, last_id: AtomicU64::new(0), open: Mutex::default(), left: Condvar::new() })
    }

    /// Gives a new connection a place; where there is none, at the cost of the oldest connection without a complete head.
    /// `None` where nobody can go. The second value says whether somebody went.
    pub fn enter(self: &Arc<Self>, socket: &Arc<TcpStream>) -> Option<(Place, bool)> {
        let mut open = lock(&self.open);
        let mut evicted = false;
        if open.is_closed {
            return None;
        }
        if open.sockets.len() >= self.most {
            let oldest = open.headless.pop_first()?;
            open.close(oldest);
            // Its place is free once its thread has noticed, which is at once: so much above the limit is allowed.
            open.sockets.remove(&oldest);
            evicted = true;
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        open.sockets.insert(id, socket.clone());
        open.headless.insert(id);
        drop(open);
        Some((Place { id, connections: self.clone() }, evicted))
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        lock(&self.open).sockets.len()
    }

    /// Closes every connection without a complete head, and gives no place any more: the server ends.
    pub fn close_headless(&self) {
        let mut open = lock(&self.open);
        open.is_closed = true;
        for id in &open.headless {
            open.close(*id);
        }
    }

    /// Whether the server ends.
    pub fn is_closed(&self) -> bool {
        lock(&self.open).is_closed
    }

    /// Waits until none is open, at most `patience`.
    pub fn wait_empty(&self, patience: Duration) {
        let open = lock(&self.open);
        let _unused = self.left.wait_timeout_while(open, patience, |open| !open.sockets.is_empty());
    }
}

impl Open {
    fn close(&self, id: u64) {
        if let Some(socket) = self.sockets.get(&id) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Place {
    /// The head is complete: nobody is evicted for room any more but strangers.
    pub fn head_complete(&self) {
        let mut open = lock(&self.connections.open);
        open.headless.remove(&self.id);
        open.strangers.remove(&self.id);
    }

    /// Counts it among the strangers. Returns whether the oldest of them had to go.
    pub fn is_stranger(&self) -> bool {
        let mut open = lock(&self.connections.open);
        open.strangers.insert(self.id);
        if open.strangers.len() <= STRANGERS {
            return false;
        }
        if let Some(oldest) = open.strangers.pop_first() {
            open.close(oldest);
        }
        true
    }

    /// It is known by now.
    pub fn is_known(&self) {
        lock(&self.connections.open).strangers.remove(&self.id);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.connections.open);
        open.sockets.remove(&self.id);
        open.headless.remove(&self.id);
        open.strangers.remove(&self.id);
        if open.sockets.is_empty() {
            self.connections.left.notify_all();
        }
    }
}
