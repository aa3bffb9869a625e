//! What the system knows about a connection: how much the other side has taken, and whether it has closed.
#![allow(
    unsafe_code,
    reason = "no safe wrapper exists for SIOCOUTQ, and without it a slow link cannot be told from a stalled client"
)]

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Getter, ioctl};

/// `TIOCOUTQ`, which for sockets is `SIOCOUTQ` (tcp(7)).
const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;

/// The bytes that were written and not yet acknowledged by the other side (tcp(7), SIOCOUTQ).
pub(crate) fn unsent_bytes(stream: &TcpStream) -> io::Result<u64> {
    // SAFETY: SIOCOUTQ writes one int, as the getter's type says, and has no other effect.
    let bytes = unsafe { ioctl(stream, Getter::<SIOCOUTQ, i32>::new())? };
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Whether the other side has closed the connection, or its half of it, as far as the system knows. Does not block.
pub(crate) fn is_closed(stream: &TcpStream) -> bool {
    // Reading would not show it: unread bytes that the client sent after its request come first.
    let mut watched = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut watched, Some(&Timespec::default())).is_ok() && !watched[0].revents().is_empty()
}

/// Waits until the socket takes bytes again, at most `patience`. The kernel reports this only when a third of the send
/// buffer is free.
pub(crate) fn wait_writable(stream: &TcpStream, patience: Duration) {
    let patience = Timespec::try_from(patience).unwrap_or_default();
    // The next write reports any error.
    let _ = poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&patience));
}
