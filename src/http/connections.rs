//! All open connections of a listener, and which of them is closed when there are too many.

use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use prometheus::IntCounter;

use crate::logging::LIMITED;
use crate::sync::lock;

/// Connections beyond `--max-clients`: the unauthenticated ones, and those that send a request or get a short answer.
pub(crate) const BESIDE_CLIENTS: usize = 512;
/// Unauthenticated connections: those without a complete head after a second, and those held without a known key.
const MOST_UNAUTHENTICATED: usize = 256;

/// All open connections of a listener.
#[derive(Debug)]
pub(crate) struct Connections {
    limit: usize,
    /// Counts connections that were closed because there were too many.
    evicted: IntCounter,
    /// Held to go through the connections and to close a socket, which does not block.
    open: Mutex<Open>,
    closed_one: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    /// By id. Newer connections have higher ids.
    sockets: BTreeMap<u64, (Arc<TcpStream>, Standing)>,
    last_id: u64,
    is_stopped: bool,
}

/// Whether a connection may be closed to make room for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It may: its head is not complete.
    Idle,
    /// It may, and there is a limit for these alone.
    Unauthenticated,
    /// It may not: its head is complete, or its key is known.
    Busy,
}

/// An accepted connection. Dropping it makes room for another one.
#[derive(Debug)]
pub(crate) struct HttpConnection {
    pub socket: Arc<TcpStream>,
    /// The address at the other end: the client's, or a proxy's.
    pub peer: SocketAddr,
    id: u64,
    all: Arc<Connections>,
}

impl Connections {
    /// Room for `limit` connections. `evicted` counts those that are closed because there are too many.
    pub(crate) fn new(limit: usize, evicted: IntCounter) -> Arc<Self> {
        Arc::new(Self { limit, evicted, open: Mutex::default(), closed_one: Condvar::new() })
    }

    /// Adds a connection. If there are too many, the oldest idle one is closed. `None` if there is none, or after
    /// [`stop`](Self::stop).
    pub(crate) fn add(self: &Arc<Self>, socket: TcpStream, peer: SocketAddr) -> Option<HttpConnection> {
        let socket = Arc::new(socket);
        let mut open = lock(&self.open);
        if open.is_stopped {
            return None;
        }
        // The thread of a closed connection notices it at once: the limit is exceeded only for a moment.
        let is_full = open.sockets.len() >= self.limit;
        let has_room = !is_full || open.close_oldest(|standing| standing != Standing::Busy);
        open.last_id += 1;
        let id = open.last_id;
        if has_room {
            open.sockets.insert(id, (socket.clone(), Standing::Idle));
        }
        drop(open);
        if is_full {
            self.evicted.inc();
            let how = if has_room { "closed the oldest idle connection to accept" } else { "rejected" };
            log::warn!(target: LIMITED, "connection limit reached: {how} {peer}");
        }
        has_room.then(|| HttpConnection { socket, peer, id, all: self.clone() })
    }

    /// Accepts no more connections, and closes the idle ones: the server will not answer them.
    pub(crate) fn stop(&self) {
        let mut open = lock(&self.open);
        open.is_stopped = true;
        for (socket, _) in open.sockets.values().filter(|(_, standing)| *standing != Standing::Busy) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Waits until none is open, at most `patience`. Returns how many still are.
    pub(crate) fn wait_empty(&self, patience: Duration) -> usize {
        let is_open = |open: &mut Open| !open.sockets.is_empty();
        let waited = self.closed_one.wait_timeout_while(lock(&self.open), patience, is_open);
        waited.map_or(0, |(open, _)| open.sockets.len())
    }
}

impl Open {
    /// Closes the oldest connection that is meant. Returns whether there was one.
    fn close_oldest(&mut self, is_meant: impl Fn(Standing) -> bool) -> bool {
        let oldest = self.sockets.iter().find(|(_, (_, standing))| is_meant(*standing)).map(|(id, _)| *id);
        let Some((socket, _)) = oldest.and_then(|id| self.sockets.remove(&id)) else { return false };
        let _ = socket.shutdown(Shutdown::Both);
        true
    }
}

impl HttpConnection {
    /// Counts it among the unauthenticated connections. If there are too many, the oldest of them is closed.
    pub(crate) fn set_unauthenticated(&self) {
        let mut open = lock(&self.all.open);
        // This connection may have been closed too.
        let Some((_, standing)) = open.sockets.get_mut(&self.id) else { return };
        *standing = Standing::Unauthenticated;
        let is_unauthenticated = |standing| standing == Standing::Unauthenticated;
        if open.sockets.values().filter(|(_, standing)| is_unauthenticated(*standing)).count() > MOST_UNAUTHENTICATED {
            open.close_oldest(is_unauthenticated);
            drop(open);
            self.all.evicted.inc();
            let (most, peer) = (MOST_UNAUTHENTICATED, self.peer);
            log::warn!(target: LIMITED, "more than {most} unauthenticated connections: closed the oldest to keep {peer}");
        }
    }

    /// Its head is complete, or its key is known: it is not closed to make room for others.
    pub(crate) fn set_busy(&self) {
        if let Some((_, standing)) = lock(&self.all.open).sockets.get_mut(&self.id) {
            *standing = Standing::Busy;
        }
    }
}

impl Drop for HttpConnection {
    fn drop(&mut self) {
        let mut open = lock(&self.all.open);
        open.sockets.remove(&self.id);
        if open.sockets.is_empty() {
            self.all.closed_one.notify_all();
        }
    }
}
