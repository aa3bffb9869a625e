//! A batch: several events rendered once, with the bytes that go to every socket.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::{EventTime, FeedSeq};

/// Room before the blocks for an HTTP chunk's size line: eight hexadecimal digits, CR and LF.
const CHUNK_HEAD_ROOM: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub seq: FeedSeq,
    /// When it was numbered, by the database's clock.
    pub time: EventTime,
    /// Where its block ends in the batch's bytes.
    end: u32,
}

/// Consecutive events of the log, rendered as Server-Sent Events blocks. Once finished it does not change, and every
/// client shares it.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The number of the log row before the first event.
    pub(super) prev: FeedSeq,
    /// `<hex>CRLF blocks CRLF`, right-aligned behind the unused part of [`CHUNK_HEAD_ROOM`].
    framed: Vec<u8>,
    framed_from: usize,
    /// The events, ascending.
    pub(super) entries: Vec<Entry>,
    /// The generation of the log that it was read from; see [`super::tail::Tail`].
    pub(super) generation: u64,
    finished: Instant,
}

pub(crate) type SharedBatch = Arc<Batch>;

impl Batch {
    /// Begins a batch whose first event follows the log row `prev`.
    pub(crate) fn new(prev: FeedSeq, generation: u64) -> Self {
        let framed = vec![0; CHUNK_HEAD_ROOM];
        Self { prev, framed, framed_from: 0, entries: Vec::new(), generation, finished: Instant::now() }
    }

    /// Adds the event `seq`: `write` appends its block to the bytes. If `write` fails, its bytes are removed;
    /// if it panics, the next push removes them.
    pub(crate) fn push<E>(
        &mut self,
        seq: FeedSeq,
        time: EventTime,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        // A panic in an earlier write may have left half a block: only what has an entry counts.
        let before = CHUNK_HEAD_ROOM + self.bytes();
        self.framed.truncate(before);
        if let Err(error) = write(&mut self.framed) {
            self.framed.truncate(before);
            return Err(error);
        }
        let end = u32::try_from(self.framed.len() - CHUNK_HEAD_ROOM).unwrap_or(u32::MAX);
        self.entries.push(Entry { seq, time, end });
        Ok(())
    }

    /// The finished batch, to which nothing is added any more.
    pub(crate) fn finish(mut self) -> Self {
        let mut head = [0_u8; CHUNK_HEAD_ROOM];
        let mut rest = &mut head[..];
        // A batch is smaller than 4 GiB (BATCH_BYTES and one event), so eight digits suffice.
        let _ = write!(rest, "{:x}\r\n", self.bytes());
        let length = CHUNK_HEAD_ROOM - rest.len();
        self.framed_from = CHUNK_HEAD_ROOM - length;
        self.framed[self.framed_from..CHUNK_HEAD_ROOM].copy_from_slice(&head[..length]);
        self.framed.extend_from_slice(b"\r\n");
        self.framed.shrink_to_fit();
        self.entries.shrink_to_fit();
        self.finished = Instant::now();
        self
    }

    pub(crate) fn first(&self) -> FeedSeq {
        self.entries.first().map_or(self.prev, |entry| entry.seq)
    }

    /// Whether it has the same events of the same log.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        (self.generation, self.prev, &self.entries) == (other.generation, other.prev, &other.entries)
    }

    /// The number of the last event, or of the row before the first.
    pub(crate) fn last(&self) -> FeedSeq {
        self.entries.last().map_or(self.prev, |entry| entry.seq)
    }

    /// How long ago it was finished, just before the reader broadcast it.
    pub(crate) fn age(&self) -> Duration {
        self.finished.elapsed()
    }

    /// How many bytes of blocks it has.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.last().map_or(0, |entry| entry.end as usize)
    }

    /// Bytes that this batch holds in memory, roughly.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.framed.capacity() + self.entries.capacity() * size_of::<Entry>() + size_of::<Self>()
    }

    /// The bytes of the whole batch, as one HTTP chunk or without framing.
    pub(crate) fn whole(&self, is_chunked: bool) -> &[u8] {
        if is_chunked { &self.framed[self.framed_from..] } else { self.blocks_between(self.prev, self.last()) }
    }

    /// The blocks of the events above `after` and not above `upto`, without HTTP framing.
    pub(crate) fn blocks_between(&self, after: FeedSeq, upto: FeedSeq) -> &[u8] {
        let end = |seq| self.last_through(seq).map_or(0, |entry| entry.end as usize);
        let (from, to) = (end(after), end(upto));
        &self.framed[CHUNK_HEAD_ROOM + from..CHUNK_HEAD_ROOM + to.max(from)]
    }

    /// How many events lie at or below `seq`.
    pub(crate) fn count_through(&self, seq: FeedSeq) -> usize {
        self.entries.partition_point(|entry| entry.seq <= seq)
    }

    /// The last event at or below `seq`.
    pub(crate) fn last_through(&self, seq: FeedSeq) -> Option<&Entry> {
        self.entries[..self.count_through(seq)].last()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(prev: i64, seqs: &[i64]) -> Batch {
        let mut builder = Batch::new(FeedSeq(prev), 0);
        for &seq in seqs {
            let write = |bytes: &mut Vec<u8>| {
                bytes.extend_from_slice(format!("id: {seq}\n\n").as_bytes());
                Ok::<_, ()>(())
            };
            builder.push(FeedSeq(seq), EventTime(0), write).unwrap();
        }
        builder.finish()
    }

    #[test]
    fn a_whole_batch_is_one_chunk() {
        assert_eq!(batch(4, &[5, 6]).whole(true), b"e\r\nid: 5\n\nid: 6\n\n\r\n");
    }

    #[test]
    fn a_cursor_within_a_batch_leaves_the_blocks_above_it() {
        let batch = batch(4, &[5, 7, 9]);
        let between = |after, upto| batch.blocks_between(FeedSeq(after), FeedSeq(upto));
        assert_eq!(between(4, 9), b"id: 5\n\nid: 7\n\nid: 9\n\n");
        assert_eq!(between(7, 10), b"id: 9\n\n");
        assert_eq!(between(8, 9), b"id: 9\n\n");
        assert_eq!(between(4, 7), b"id: 5\n\nid: 7\n\n");
        assert_eq!(between(5, 8), b"id: 7\n\n");
        assert_eq!(between(4, 4), b"");
        assert_eq!((batch.prev, batch.last()), (FeedSeq(4), FeedSeq(9)));
    }

    #[test]
    fn an_event_that_cannot_be_written_leaves_nothing_behind() {
        let mut builder = Batch::new(FeedSeq(0), 0);
        let outcome = builder.push(FeedSeq(1), EventTime(0), |bytes| {
            bytes.extend_from_slice(b"half");
            Err("no")
        });
        assert_eq!((outcome, builder.bytes(), builder.entries.len()), (Err("no"), 0, 0));
    }

    proptest! {
        #[test]
        fn exactly_the_events_between_two_numbers_are_written(
            gaps in prop::collection::vec(1_i64..4, 1..30),
            after in 0_i64..130,
            upto in 0_i64..130,
        ) {
            let seqs: Vec<i64> = gaps.iter().scan(4, |seq, gap| { *seq += gap; Some(*seq) }).collect();
            let batch = batch(4, &seqs);
            let expected: String =
                seqs.iter().filter(|&&seq| seq > after && seq <= upto).map(|seq| format!("id: {seq}\n\n")).collect();
            prop_assert_eq!(batch.blocks_between(FeedSeq(after), FeedSeq(upto)), expected.as_bytes());
            prop_assert_eq!(batch.whole(false), batch.blocks_between(batch.prev, batch.last()));
        }
    }
}
