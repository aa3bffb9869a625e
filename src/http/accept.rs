//! The threads `accept` and `ops`: each accepts connections and starts a thread for every one.
//!
//! A thread owns its listening sockets. It waits for all of them at once, and for a pipe whose other end is closed when
//! the server stops: `shutdown` on an inherited socket would close the port for the next process too. After an error
//! (for example: no descriptors left) it logs, pauses and continues.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::connections::{Connections, HttpConnection};
use crate::error::{Doing, Error};
use crate::logging::LIMITED;

/// Connections that the kernel queues for us: after a restart of the feed all its clients reconnect at once.
const BACKLOG: i32 = 4096;
/// The stack of a connection's thread. A replay's database call needs most of it.
const STACK_BYTES: usize = 512 * 1024;
/// The kernel's memory that a stalled client may hold, 64 KiB (the kernel doubles it).
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Pause after an error of accept: the next attempt would fail at once, too.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Binds `address`, one of `all` that the program listens at. `[::]` takes IPv4 too, unless another address of `all`
/// takes IPv4 at the same port.
///
/// # Errors
/// Why it cannot be bound.
pub fn bind(address: SocketAddr, all: &[SocketAddr]) -> Result<TcpListener, Error> {
    let is_ipv4_elsewhere = all.iter().any(|other| other.is_ipv4() && other.port() == address.port());
    let attempt = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(address.ip().is_unspecified() && is_ipv4_elsewhere)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    attempt().doing(format!("listen on {address}"))
}

/// What accepts, and what it hands connections to.
pub struct Acceptor<'a, H> {
    /// The sockets.
    pub listeners: Vec<TcpListener>,
    /// Readable, or closed at the other end, when the server stops.
    pub stop: OwnedFd,
    /// All open connections.
    pub connections: Arc<Connections>,
    /// Counts connections that could not be accepted.
    pub errors: &'a IntCounter,
    /// Serves one connection, on its own thread.
    pub handler: H,
}

impl<H> Acceptor<'_, H>
where
    H: Fn(&HttpConnection) + Clone + Send + 'static,
{
    /// Runs until the server stops, then closes the listening sockets.
    pub fn run(self) {
        for listener in &self.listeners {
            if let Err(error) = listener.set_nonblocking(true) {
                log::error!("set up the listening socket: {error}");
            }
        }
        while !self.wait() {
            for listener in &self.listeners {
                self.accept_all(listener);
            }
        }
    }

    /// Waits for a connection. Returns whether the server stops instead.
    fn wait(&self) -> bool {
        let mut watched: Vec<PollFd<'_>> = vec![PollFd::new(&self.stop, PollFlags::IN)];
        watched.extend(self.listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
        match poll(&mut watched, None) {
            Ok(_) => !watched[0].revents().is_empty(),
            Err(_) => false,
        }
    }

    fn accept_all(&self, listener: &TcpListener) {
        loop {
            match listener.accept() {
                Ok((stream, address)) => self.hand_on(stream, address),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        self.errors.inc();
                        log::error!(target: LIMITED, "accept a connection: {error}");
                        std::thread::sleep(ERROR_PAUSE);
                        return;
                    }
                },
            }
        }
    }

    fn hand_on(&self, stream: TcpStream, address: SocketAddr) {
        if let Err(error) = prepare(&stream) {
            log::debug!("set up the connection from {address}: {error}");
            return;
        }
        let Some(connection) = self.connections.add(stream, address) else { return };
        let handler = self.handler.clone();
        let serve = move || handler(&connection);
        let thread = std::thread::Builder::new().name("client".into()).stack_size(STACK_BYTES).spawn(serve);
        if let Err(error) = thread {
            self.errors.inc();
            log::error!(target: LIMITED, "start a thread for the connection from {address}: {error}");
            std::thread::sleep(ERROR_PAUSE);
        }
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));
    // No TCP_USER_TIMEOUT: the kernel lets it run on while a small window keeps opening (what counts is whether the
    // whole first buffer fits), and would cut off a slow client. The stream watches what is acknowledged, see
    // `feed::writer`.
    socket.set_tcp_keepalive(&keepalive.with_retries(3))
}
