//! What one stream is written with: its socket, its position in the log, and what the socket has not taken yet.
//!
//! Every write happens here, and none of them blocks. A stream's own thread waits, without the lock, until the socket
//! takes the rest. The reader writes small batches to streams that have nothing else to write, because waking a thread
//! costs several times what writing a small batch costs.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::batch::{Batch, SharedBatch};
use super::stats::Stats;
use crate::event::{EventTime, FeedSeq};
use crate::http::socket::unsent_bytes;

/// The largest batch that the reader writes directly, 8 KiB. Beyond it copying costs more than waking a thread.
const LARGEST_DIRECT_BYTES: usize = 8 * 1024;

/// No [generation](super::tail::Tail): the cursor was not checked yet, and no batch follows it.
const UNCHECKED: u64 = 0;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Everything up to here was written or is to be skipped.
    pub cursor: FeedSeq,
    /// The time of the event with that number, if known: it shows whether the log is still the same.
    pub time: Option<EventTime>,
    /// The generation of the log in which the cursor was checked; see [`super::tail::Tail`].
    pub generation: u64,
}

#[derive(Debug)]
enum Bytes {
    Batch(SharedBatch),
    Own(Vec<u8>),
}

#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    written: usize,
    /// The position once it is written, and how many events it has.
    then: Option<(Position, usize)>,
}

impl Piece {
    fn left(&self, is_chunked: bool) -> &[u8] {
        let bytes = match &self.bytes {
            Bytes::Batch(batch) => batch.whole(is_chunked),
            Bytes::Own(bytes) => bytes,
        };
        &bytes[self.written..]
    }
}

#[derive(Debug)]
pub(crate) struct SseWriter {
    pub position: Position,
    pub delivered: u64,
    /// How many lost events the client has been told of.
    pub dropped: u64,
    /// Whether the block `connected` was added, the first block of every stream.
    pub is_connected: bool,
    /// The epoch of the [`Health`](super::health::Health) that the client was last told of.
    pub told_epoch: u64,
    socket: Arc<TcpStream>,
    is_chunked: bool,
    pending: VecDeque<Piece>,
    is_finished: bool,
    last_write: Instant,
    bytes: u64,
    acknowledged: u64,
    /// Since when the client has acknowledged none of the bytes in flight; `None` if none were in flight.
    unanswered_since: Option<Instant>,
}

impl SseWriter {
    pub(crate) fn new(socket: Arc<TcpStream>, is_chunked: bool, told_epoch: u64) -> Self {
        Self {
            position: Position { cursor: FeedSeq(0), time: None, generation: UNCHECKED },
            delivered: 0,
            dropped: 0,
            is_connected: false,
            told_epoch,
            socket,
            is_chunked,
            pending: VecDeque::new(),
            is_finished: false,
            last_write: Instant::now(),
            bytes: 0,
            acknowledged: 0,
            unanswered_since: None,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    pub(crate) fn silent_for(&self) -> Duration {
        self.last_write.elapsed()
    }

    pub(crate) fn push_raw(&mut self, bytes: Vec<u8>) {
        self.pending.push_back(Piece { bytes: Bytes::Own(bytes), written: 0, then: None });
    }

    /// Adds complete blocks, as one chunk.
    pub(crate) fn push_blocks(&mut self, blocks: &[u8]) {
        let bytes = self.framed(blocks);
        self.push_raw(bytes);
    }

    /// Adds the events of a batch that lie above the position and not above `upto`. Adds nothing if there are none, or
    /// if the batch leaves a hole or is of another log.
    pub(crate) fn push_batch(&mut self, batch: SharedBatch, upto: FeedSeq) {
        let position = self.pending_position();
        if batch.generation != position.generation || batch.prev > position.cursor {
            return;
        }
        let events = batch.count_through(upto).saturating_sub(batch.count_through(position.cursor));
        let Some(last) = batch.last_through(upto).filter(|_| events > 0) else { return };
        let then = Position { cursor: last.seq, time: Some(last.time), ..position };
        let bytes = if events == batch.entries.len() {
            Bytes::Batch(batch)
        } else {
            Bytes::Own(self.framed(batch.blocks_between(position.cursor, upto)))
        };
        self.pending.push_back(Piece { bytes, written: 0, then: Some((then, events)) });
    }

    /// Adds a block about the stream itself. It has no id: a client that reconnects gets what matters of it again.
    pub(crate) fn push_notice(&mut self, message: &serde_json::Value) {
        self.push_blocks(format!("event: system\ndata: {message}\n\n").as_bytes());
    }

    /// Adds the end of the body. Nothing may be added after it.
    pub(crate) fn push_end(&mut self) {
        if self.is_chunked && !self.is_finished {
            self.push_raw(b"0\r\n\r\n".to_vec());
        }
        self.is_finished = true;
    }

    fn framed(&self, blocks: &[u8]) -> Vec<u8> {
        if !self.is_chunked {
            return blocks.to_vec();
        }
        let mut bytes = format!("{:x}\r\n", blocks.len()).into_bytes();
        bytes.reserve_exact(blocks.len() + 2);
        bytes.extend_from_slice(blocks);
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    fn pending_position(&self) -> Position {
        self.pending.iter().rev().find_map(|piece| piece.then).map_or(self.position, |(position, _)| position)
    }

    /// Forgets pending events of another generation of the log: they must not be sent any more, except what the client
    /// has a part of.
    pub(crate) fn forget_others(&mut self, generation: u64) {
        let is_of_it = |piece: &Piece| piece.then.is_none_or(|(position, _)| position.generation == generation);
        self.pending.retain(|piece| piece.written > 0 || is_of_it(piece));
    }

    /// Writes as much of the pending bytes as the socket takes. Returns whether that is all of them.
    pub(crate) fn write_pending(&mut self, stats: &Stats) -> Result<bool, Errno> {
        while !self.pending.is_empty() {
            let slices: Vec<_> = self.pending.iter().map(|piece| IoSlice::new(piece.left(self.is_chunked))).collect();
            let sent = sendmsg(
                &self.socket,
                &slices,
                &mut SendAncillaryBuffer::default(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(count) => self.take_written(count, Instant::now(), stats),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Removes `count` bytes from the pending ones, because they were written.
    fn take_written(&mut self, mut count: usize, now: Instant, stats: &Stats) {
        self.bytes += count as u64;
        stats.bytes.inc_by(count as u64);
        self.last_write = now;
        while let Some(piece) = self.pending.front_mut() {
            let left = piece.left(self.is_chunked).len();
            if count < left {
                piece.written += count;
                break;
            }
            count -= left;
            if let Some((position, events)) = piece.then {
                self.position = position;
                self.delivered += events as u64;
                stats.deliveries.inc_by(events as u64);
            }
            self.pending.pop_front();
        }
    }

    /// For the reader: writes a batch if it is small, comes next, and nothing else is pending. Returns whether all of it
    /// is written. What the socket does not take is pending.
    pub(crate) fn write_direct(&mut self, batch: &SharedBatch, now: Instant, stats: &Stats) -> bool {
        let bytes = batch.whole(self.is_chunked);
        let is_next = follows(batch, self.position) && self.pending.is_empty() && !self.is_finished;
        if !is_next || bytes.len() > LARGEST_DIRECT_BYTES {
            return false;
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // If the connection is broken, the stream's own thread finds out by its next write.
        let count = rustix::net::send(&self.socket, bytes, flags).unwrap_or(0);
        if count == 0 {
            return false;
        }
        self.unanswered_since.get_or_insert(now);
        self.push_batch(batch.clone(), batch.last());
        self.take_written(count, now, stats);
        self.pending.is_empty()
    }

    /// How long the client has acknowledged none of the bytes in flight; `None` if none are. This tells a slow link
    /// from a stalled peer, because the kernel reports room to a writer only when a third of the send buffer is free.
    /// It also finds a client that has fallen silent while the buffer still has room.
    pub(crate) fn unanswered_for(&mut self) -> Option<Duration> {
        let unsent = unsent_bytes(&self.socket).unwrap_or(0);
        let acknowledged = self.bytes.saturating_sub(unsent);
        if unsent == 0 {
            (self.acknowledged, self.unanswered_since) = (acknowledged, None);
            return None;
        }
        let since = self.unanswered_since.filter(|_| acknowledged == self.acknowledged).unwrap_or_else(Instant::now);
        (self.acknowledged, self.unanswered_since) = (acknowledged, Some(since));
        Some(since.elapsed())
    }
}

fn follows(batch: &Batch, position: Position) -> bool {
    batch.generation == position.generation && batch.prev <= position.cursor && position.cursor < batch.first()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;

    fn writer() -> (SseWriter, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = Arc::new(listener.accept().unwrap().0);
        let mut writer = SseWriter::new(socket, false, 0);
        writer.position = Position { cursor: FeedSeq(1), time: None, generation: 1 };
        (writer, client)
    }

    /// One event whose block has this many bytes.
    fn batch(prev: i64, seq: i64, bytes: usize) -> SharedBatch {
        let mut builder = Batch::new(FeedSeq(prev), 1);
        let write = |into: &mut Vec<u8>| {
            into.resize(into.len() + bytes, b'0' + u8::try_from(seq % 10).unwrap());
            Ok::<_, ()>(())
        };
        builder.push(FeedSeq(seq), EventTime(0), write).unwrap();
        Arc::new(builder.finish())
    }

    #[test]
    fn the_reader_writes_what_comes_next_and_nothing_else() {
        let (mut writer, mut client) = writer();
        let (now, stats) = (Instant::now(), Stats::default());
        for (batch, why) in [
            (batch(2, 3, 5), "a hole"),
            (batch(0, 1, 5), "it was written before"),
            (batch(1, 2, LARGEST_DIRECT_BYTES + 1), "too large"),
        ] {
            assert!(!writer.write_direct(&batch, now, &stats), "{why}");
        }
        assert!(writer.write_direct(&batch(1, 2, 3), now, &stats));
        assert!(writer.write_direct(&batch(2, 3, 3), now, &stats));
        writer.push_blocks(b"!");
        assert!(!writer.write_direct(&batch(3, 4, 3), now, &stats), "something is pending");
        writer.write_pending(&stats).unwrap();
        writer.position.generation = 2;
        assert!(!writer.write_direct(&batch(3, 4, 3), now, &stats), "another log");
        drop(writer);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "222333!");
    }

    #[test]
    fn what_a_full_socket_does_not_take_is_written_next_and_nothing_overtakes_it() {
        let (mut writer, mut client) = writer();
        let (now, stats) = (Instant::now(), Stats::default());
        let mut seq = 1;
        let mut expected = String::new();
        // A number of bytes that no buffer is a multiple of.
        while writer.write_direct(&batch(seq, seq + 1, 7_919), now, &stats) {
            seq += 1;
            expected += &((seq % 10).to_string()).repeat(7_919);
        }
        assert_eq!(writer.position.cursor, FeedSeq(seq));
        let was_begun = !writer.is_idle();
        client.read_exact(&mut vec![0; 64 * 1024]).unwrap();
        if was_begun {
            assert!(!writer.write_direct(&batch(seq, seq + 1, 3), now, &stats));
        }
        let reader = std::thread::spawn(move || {
            let mut rest = String::new();
            client.read_to_string(&mut rest).unwrap();
            rest
        });
        while !writer.write_pending(&stats).unwrap() {}
        if was_begun {
            assert_eq!(writer.position.cursor, FeedSeq(seq + 1));
            expected += &(((seq + 1) % 10).to_string()).repeat(7_919);
        }
        drop(writer);
        assert_eq!(reader.join().unwrap(), expected[64 * 1024..]);
    }
}
