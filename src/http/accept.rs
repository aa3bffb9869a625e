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
pub(crate) fn bind(address: SocketAddr, all: &[SocketAddr]) -> Result<TcpListener, Error> {
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

/// Accepts connections and serves each with `handler`, on its own thread, until `stop` is readable or closed at its
/// other end. Then it closes the listening sockets. `errors` counts connections that could not be accepted.
pub(crate) fn run(
    listeners: Vec<TcpListener>,
    stop: OwnedFd,
    connections: &Arc<Connections>,
    errors: &IntCounter,
    handler: impl Fn(&HttpConnection) + Clone + Send + 'static,
) {
    for listener in &listeners {
        if let Err(error) = listener.set_nonblocking(true) {
            log::error!("set up the listening socket: {error}");
        }
    }
    while !wait(&listeners, &stop) {
        for listener in &listeners {
            while let Some(accepted) = accept(listener).transpose() {
                if let Err(error) = accepted.and_then(|accepted| serve(accepted, connections, &handler)) {
                    errors.inc();
                    log::error!(target: LIMITED, "accept a connection: {error}");
                    std::thread::sleep(ERROR_PAUSE);
                    break;
                }
            }
        }
    }
}

/// Waits for a connection. Returns whether the server stops instead.
fn wait(listeners: &[TcpListener], stop: &OwnedFd) -> bool {
    let mut watched: Vec<PollFd<'_>> = vec![PollFd::new(stop, PollFlags::IN)];
    watched.extend(listeners.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
    poll(&mut watched, None).is_ok() && !watched[0].revents().is_empty()
}

/// The next connection; `None` if none waits, or if it is gone already. What waits behind that one, the next poll finds.
fn accept(listener: &TcpListener) -> io::Result<Option<(TcpStream, SocketAddr)>> {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    match listener.accept() {
        Err(error) if matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted) => Ok(None),
        accepted => accepted.map(Some),
    }
}

/// Starts the thread of a connection, unless there are too many.
fn serve(
    (stream, address): (TcpStream, SocketAddr),
    connections: &Arc<Connections>,
    handler: &(impl Fn(&HttpConnection) + Clone + Send + 'static),
) -> io::Result<()> {
    if let Err(error) = prepare(&stream) {
        log::debug!("set up the connection from {address}: {error}");
        return Ok(());
    }
    let Some(connection) = connections.add(stream, address) else { return Ok(()) };
    let handler = handler.clone();
    let serve = move || handler(&connection);
    std::thread::Builder::new().name("client".into()).stack_size(STACK_BYTES).spawn(serve)?;
    Ok(())
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
