//! A stream's way out: blocks into chunks into the socket, with an eye on whether the client takes them.

use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;

use super::unsent::unsent_bytes;

/// A blocked write is looked at this often.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A client that takes nothing for this long stands still; before that it is merely slow.
const STANDS_STILL_AFTER: Duration = Duration::from_secs(1);

/// Why nothing more can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocked {
    /// The connection is closed or broken.
    Gone,
    /// The client took nothing for `--write-timeout`.
    TimedOut,
    /// Somebody asked for the end while a write was stuck.
    Asked,
}

/// A stream's socket.
#[derive(Debug)]
pub struct Outlet<'a> {
    stream: &'a Arc<TcpStream>,
    is_chunked: bool,
    write_timeout: Duration,
    last_write: Instant,
    stood_still: bool,
    bytes: u64,
    /// Every stream's bytes, for the metrics.
    sent: &'a IntCounter,
    acknowledged: u64,
    /// Since when what is on its way stands still; `None` where nothing was on its way at the last look.
    outstanding_since: Option<Instant>,
}

impl<'a> Outlet<'a> {
    /// Writes to this socket, whose send time-out must be [`LOOK_EVERY`], and adds what it has written to `sent`.
    pub fn new(stream: &'a Arc<TcpStream>, is_chunked: bool, write_timeout: Duration, sent: &'a IntCounter) -> Self {
        Self {
            stream,
            is_chunked,
            write_timeout,
            last_write: Instant::now(),
            stood_still: false,
            bytes: 0,
            sent,
            acknowledged: 0,
            outstanding_since: None,
        }
    }

    /// Whether blocks are framed as chunks (HTTP/1.1), and a batch can be written as it is.
    pub fn is_chunked(&self) -> bool {
        self.is_chunked
    }

    /// How long nothing was written.
    pub fn silent_for(&self) -> Duration {
        self.last_write.elapsed()
    }

    /// Looks at what the client has acknowledged: a peer that has fallen silent takes nothing, though no write is stuck
    /// while the send buffer has room. Returns how long that may go on; `None` where nothing is on its way.
    ///
    /// # Errors
    /// [`Blocked::TimedOut`] where the client took nothing for `--write-timeout`.
    pub fn look(&mut self) -> Result<Option<Duration>, Blocked> {
        let unsent = unsent_bytes(self.stream).unwrap_or(0);
        if unsent == 0 {
            (self.acknowledged, self.outstanding_since) = (self.bytes, None);
            return Ok(None);
        }
        let acknowledged = self.bytes.saturating_sub(unsent);
        let since = self.outstanding_since.filter(|_| acknowledged == self.acknowledged).unwrap_or_else(Instant::now);
        (self.acknowledged, self.outstanding_since) = (acknowledged, Some(since));
        match self.write_timeout.saturating_sub(since.elapsed()) {
            Duration::ZERO => Err(Blocked::TimedOut),
            left => Ok(Some(left)),
        }
    }

    /// Whether the client took nothing for a second or longer since this was last forgotten.
    pub fn stood_still(&self) -> bool {
        self.stood_still
    }

    /// The client has everything: what was before does not count against it.
    pub fn forget_standstill(&mut self) {
        self.stood_still = false;
    }

    /// Writes complete blocks as one chunk.
    ///
    /// # Errors
    /// Why it cannot be written. Part of it may have been.
    pub fn write_blocks(&mut self, blocks: &[u8], asked_to_end: impl Fn() -> bool) -> Result<(), Blocked> {
        if !self.is_chunked {
            return self.write(&mut [IoSlice::new(blocks)], asked_to_end);
        }
        let size = format!("{:x}\r\n", blocks.len());
        self.write(&mut [IoSlice::new(size.as_bytes()), IoSlice::new(blocks), IoSlice::new(b"\r\n")], asked_to_end)
    }

    /// Ends the body.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn finish(&mut self, asked_to_end: impl Fn() -> bool) -> Result<(), Blocked> {
        if self.is_chunked { self.write(&mut [IoSlice::new(b"0\r\n\r\n")], asked_to_end) } else { Ok(()) }
    }

    /// Writes everything, several pieces with one system call. Blocks while the client takes some of it.
    ///
    /// # Errors
    /// Why it cannot be written. Part of it may have been.
    pub fn write(&mut self, mut pieces: &mut [IoSlice<'_>], asked_to_end: impl Fn() -> bool) -> Result<(), Blocked> {
        let mut stream = self.stream.as_ref();
        let mut stuck: Option<Stuck> = None;
        while !pieces.is_empty() {
            match stream.write_vectored(pieces) {
                Ok(0) => return Err(Blocked::Gone),
                Ok(count) => {
                    self.bytes += count as u64;
                    self.sent.inc_by(count as u64);
                    IoSlice::advance_slices(&mut pieces, count);
                    if let Some(stuck) = &mut stuck {
                        stuck.moved();
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        let still = stuck.get_or_insert_with(|| Stuck::new(LOOK_EVERY)).look(self.stream);
                        if still >= STANDS_STILL_AFTER {
                            self.stood_still = true;
                        }
                        if still >= self.write_timeout {
                            return Err(Blocked::TimedOut);
                        }
                        if asked_to_end() {
                            return Err(Blocked::Asked);
                        }
                    }
                    _ => return Err(Blocked::Gone),
                },
            }
        }
        self.last_write = Instant::now();
        Ok(())
    }

    /// Whether the other side has closed the connection, as far as can be seen without waiting.
    pub fn is_closed(&self) -> bool {
        is_closed(self.stream)
    }

    /// The socket for somebody who never waits. Until it is [taken back](Self::take_back) nobody else writes.
    pub fn lend(&self) -> Lent {
        Lent {
            stream: self.stream.clone(),
            is_chunked: self.is_chunked,
            bytes: 0,
            sent: self.sent.clone(),
            written: None,
        }
    }

    /// What was written meanwhile counts as written here.
    pub fn take_back(&mut self, lent: &Lent) {
        self.bytes += lent.bytes;
        if let Some((first, last)) = lent.written {
            self.last_write = last;
            // Nothing was on its way at the last look: what was written first has been waiting the longest.
            self.outstanding_since.get_or_insert(first);
        }
    }
}

/// A stream's socket in other hands: they write what the kernel takes at once, and no more.
#[derive(Debug)]
pub struct Lent {
    stream: Arc<TcpStream>,
    is_chunked: bool,
    bytes: u64,
    sent: IntCounter,
    /// When something was written for the first and for the last time.
    written: Option<(Instant, Instant)>,
}

impl Lent {
    /// Whether blocks are framed as chunks.
    pub fn is_chunked(&self) -> bool {
        self.is_chunked
    }

    /// Writes at the time `now` as much as the kernel takes without waiting, and says how much that was: nothing also where
    /// the connection is broken, which the next write that may wait finds out.
    pub fn write(&mut self, bytes: &[u8], now: Instant) -> usize {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let Ok(count) = rustix::net::send(&self.stream, bytes, flags) else { return 0 };
        self.bytes += count as u64;
        self.sent.inc_by(count as u64);
        self.written = Some((self.written.map_or(now, |(first, _)| first), now));
        count
    }
}

/// Whether the other side has closed the connection, or its half of it, as far as can be seen without waiting.
pub fn is_closed(stream: &TcpStream) -> bool {
    // Not a read that only looks: what the client sent after its request, and nobody reads, stands before the end.
    let mut watched = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut watched, Some(&Timespec::default())).is_ok() && !watched[0].revents().is_empty()
}

/// How long a blocked write has stood still, judged by the bytes that leave the socket: the kernel reports room to a writer
/// only when a third of the send buffer is free, and a slow link would look like a dead one.
#[derive(Debug)]
struct Stuck {
    since: Instant,
    unsent: Option<u64>,
}

impl Stuck {
    /// A write that has been blocked for `already`.
    fn new(already: Duration) -> Self {
        let now = Instant::now();
        Self { since: now.checked_sub(already).unwrap_or(now), unsent: None }
    }

    fn moved(&mut self) {
        self.since = Instant::now();
        self.unsent = None;
    }

    fn look(&mut self, stream: &TcpStream) -> Duration {
        let unsent = unsent_bytes(stream).ok();
        match (self.unsent, unsent) {
            (Some(before), Some(now)) if now < before => self.since = Instant::now(),
            _ => {}
        }
        self.unsent = unsent;
        self.since.elapsed()
    }
}
