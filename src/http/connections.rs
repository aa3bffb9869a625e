//! All open connections of a listener, and which of them is closed when there are too many.

use std::collections::{BTreeSet, HashMap};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use prometheus::IntCounter;

use crate::logging::LIMITED;
use crate::sync::lock;

/// Connections beyond `--max-clients`: the unauthenticated ones, and those that send a request or get a short answer.
pub const BESIDE_CLIENTS: usize = 512;
/// Unauthenticated connections: those without a complete head after a second, and those held without a known key.
const MOST_UNAUTHENTICATED: usize = 256;

/// All open connections of a listener.
#[derive(Debug)]
pub struct Connections {
    limit: usize,
    /// Counts connections that were closed because there were too many.
    evicted: IntCounter,
    last_id: AtomicU64,
    /// Held for a few map operations and for closing a socket, which does not block.
    open: Mutex<Open>,
    closed_one: Condvar,
}

/// Newer connections have higher ids.
#[derive(Debug, Default)]
struct Open {
    sockets: HashMap<u64, Arc<TcpStream>>,
    /// Those that have no complete head yet, and the unauthenticated ones.
    idle: BTreeSet<u64>,
    unauthenticated: BTreeSet<u64>,
    is_stopped: bool,
}

/// An accepted connection. Dropping it makes room for another one.
#[derive(Debug)]
pub struct HttpConnection {
    /// Its socket.
    pub socket: Arc<TcpStream>,
    /// The address at the other end: the client's, or a proxy's.
    pub peer: SocketAddr,
    id: u64,
    all: Arc<Connections>,
}

impl Connections {
    /// Room for `limit` connections. `evicted` counts those that are closed because there are too many.
    pub fn new(limit: usize, evicted: IntCounter) -> Arc<Self> {
        Arc::new(Self {
            limit,
            evicted,
            last_id: AtomicU64::new(0),
            open: Mutex::default(),
            closed_one: Condvar::new(),
        })
    }

    /// Adds a connection. If there are too many, the oldest idle one is closed. `None` if there is none, or after
    /// [`stop`](Self::stop).
    pub fn add(self: &Arc<Self>, socket: TcpStream, peer: SocketAddr) -> Option<HttpConnection> {
        let socket = Arc::new(socket);
        let mut open = lock(&self.open);
        if open.is_stopped {
            return None;
        }
        // The thread of a closed connection notices it at once: the limit is exceeded only for a moment.
        let is_full = open.sockets.len() >= self.limit;
        let has_room = !is_full || open.close_first(|open| &open.idle);
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        if has_room {
            open.sockets.insert(id, socket.clone());
            open.idle.insert(id);
        }
        drop(open);
        if is_full {
            self.evicted.inc();
            if has_room {
                log::warn!(target: LIMITED, "connection limit reached: closed the oldest idle connection to accept {peer}");
            } else {
                log::warn!(target: LIMITED, "connection limit reached: rejected {peer}");
            }
        }
        has_room.then(|| HttpConnection { socket, peer, id, all: self.clone() })
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        lock(&self.open).sockets.len()
    }

    /// Accepts no more connections, and closes the idle ones: the server will not answer them.
    pub fn stop(&self) {
        let mut open = lock(&self.open);
        open.is_stopped = true;
        for id in &open.idle {
            if let Some(socket) = open.sockets.get(id) {
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Waits until none is open, at most `patience`.
    pub fn wait_empty(&self, patience: Duration) {
        let open = lock(&self.open);
        let _unused = self.closed_one.wait_timeout_while(open, patience, |open| !open.sockets.is_empty());
    }
}

impl Open {
    /// Closes the oldest of a set. Returns whether there was one.
    fn close_first(&mut self, set: impl Fn(&Self) -> &BTreeSet<u64>) -> bool {
        let Some(id) = set(self).first().copied() else { return false };
        if let Some(socket) = self.remove(id) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        true
    }

    fn remove(&mut self, id: u64) -> Option<Arc<TcpStream>> {
        self.set_busy(id);
        self.sockets.remove(&id)
    }

    fn set_busy(&mut self, id: u64) {
        self.idle.remove(&id);
        self.unauthenticated.remove(&id);
    }
}

impl HttpConnection {
    /// Counts it among the unauthenticated connections. If there are too many, the oldest of them is closed.
    pub fn set_unauthenticated(&self) {
        let mut open = lock(&self.all.open);
        // This connection may have been closed too.
        if !open.sockets.contains_key(&self.id) {
            return;
        }
        open.idle.insert(self.id);
        open.unauthenticated.insert(self.id);
        if open.unauthenticated.len() > MOST_UNAUTHENTICATED {
            open.close_first(|open| &open.unauthenticated);
            drop(open);
            self.all.evicted.inc();
            log::warn!(
                target: LIMITED,
                "more than {MOST_UNAUTHENTICATED} unauthenticated connections: closed the oldest to keep {}",
                self.peer
            );
        }
    }

    /// Its head is complete, or its key is known: it is not closed to make room for others.
    pub fn set_busy(&self) {
        lock(&self.all.open).set_busy(self.id);
    }
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        let mut open = lock(&self.all.open);
        open.remove(self.id);
        if open.sockets.is_empty() {
            self.all.closed_one.notify_all();
        }
    }
}
