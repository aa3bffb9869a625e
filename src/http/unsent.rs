//! How much of what was written has not yet left a socket for good.
#![allow(
    unsafe_code,
    reason = "no safe wrapper exists for SIOCOUTQ, and without it a slow link cannot be told from a client that stands still"
)]

use std::io;
use std::net::TcpStream;

use rustix::ioctl::{Getter, ioctl};

/// `TIOCOUTQ`, which for sockets is `SIOCOUTQ` (tcp(7)).
const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;

/// The bytes that were written and not yet acknowledged by the other side (tcp(7), SIOCOUTQ).
///
/// # Errors
/// What the system said.
pub(super) fn unsent_bytes(stream: &TcpStream) -> io::Result<u64> {
    // SAFETY: SIOCOUTQ writes one int, as the getter's type says, and has no other effect.
    let bytes = unsafe { ioctl(stream, Getter::<SIOCOUTQ, i32>::new())? };
    Ok(u64::try_from(bytes).unwrap_or(0))
}
