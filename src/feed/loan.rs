//! A stream's socket, lent to the reader while the stream's own thread sleeps.
//!
//! Waking a thread for a small batch costs several times what writing it costs. So a stream that has written everything
//! lends its socket before it sleeps: the reader writes the next batches itself, as long as the kernel takes them at once,
//! and wakes the thread only with what it did not take. The thread stays the stream's: it does everything else, and whatever
//! may wait.
//!
//! * One at a time writes to a socket. The loan lies in the client's queue, under its lock: the reader writes while it is
//!   there, the thread after it has taken it back.
//! * Order: the reader writes only where the queue is empty and the batch follows without a hole. Once something waits,
//!   be it a rest of a batch, everything waits, until the thread has taken the loan back.
//! * The reader never waits for a client. What it writes is small: large batches are left to the threads, which write
//!   them side by side on all processors.
//! * Whatever else is to be done for a stream comes first: who rings its bell, and the time at which something is due,
//!   end the loan.

use std::time::Instant;

use super::batch::SharedBatch;
use super::place::Place;
use crate::http::outlet::Lent;

/// The largest batch that the reader writes itself, 8 KiB. Beyond it copying costs more than waking a thread.
const LARGEST_WRITE_BYTES: usize = 8 * 1024;

/// A socket in the reader's hands, and what it has made of it.
#[derive(Debug)]
pub struct Loan {
    outlet: Lent,
    place: Place,
    /// The stream has something else to do then; `None` for never.
    until: Option<Instant>,
    is_over: bool,
    rest: Option<(SharedBatch, usize)>,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// All of it is written.
    Whole,
    /// Some of it is; the rest lies in the loan, for the thread.
    Partly,
    /// Nothing.
    Not,
}

impl Loan {
    /// Lends the socket of a stream that stands at this place and has nothing else to do before `until`.
    pub fn new(outlet: Lent, place: Place, until: Option<Instant>) -> Self {
        Self { outlet, place, until, is_over: false, rest: None }
    }

    /// The thread is asked for: nothing more is written without it.
    pub fn end(&mut self) {
        self.is_over = true;
    }

    /// Writes a batch at the time `now`, where that is what comes next. Never blocks.
    pub fn write(&mut self, batch: &SharedBatch, now: Instant) -> Written {
        let follows = batch.prev() <= self.place.cursor && self.place.cursor < batch.first();
        if self.is_over || !follows || self.until.is_some_and(|until| until <= now) {
            return Written::Not;
        }
        let bytes = batch.whole(self.outlet.is_chunked());
        if bytes.len() > LARGEST_WRITE_BYTES {
            return Written::Not;
        }
        match self.outlet.write(bytes, now) {
            0 => Written::Not,
            count if count < bytes.len() => {
                self.is_over = true;
                self.rest = Some((batch.clone(), count));
                Written::Partly
            }
            _ => {
                self.place = Place::after(batch);
                Written::Whole
            }
        }
    }

    /// What was made of the socket, for whom it belongs to.
    pub fn outlet(&self) -> &Lent {
        &self.outlet
    }

    /// Where the stream stands by now.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The batch of which only a part is written, and how many bytes that part has. It must be finished first.
    pub fn rest(&self) -> Option<(&SharedBatch, &[u8])> {
        let (batch, written) = self.rest.as_ref()?;
        Some((batch, &batch.whole(self.outlet.is_chunked())[*written..]))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::batch::BatchBuilder;
    use super::*;
    use crate::event::{EventTime, FeedSeq};
    use crate::http::outlet::Outlet;

    fn connection() -> (Arc<TcpStream>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Arc::new(listener.accept().unwrap().0), client)
    }

    /// One event whose block has so many bytes.
    fn batch(prev: i64, seq: i64, bytes: usize) -> SharedBatch {
        let mut builder = BatchBuilder::new(FeedSeq(prev), 0);
        let write = |into: &mut Vec<u8>| {
            into.resize(into.len() + bytes, b'0' + u8::try_from(seq % 10).unwrap());
            Ok::<_, ()>(())
        };
        builder.push(FeedSeq(seq), EventTime(0), write).unwrap();
        Arc::new(builder.finish())
    }

    fn loan(socket: &Arc<TcpStream>, until: Option<Instant>) -> Loan {
        let sent = &prometheus::IntCounter::new("sent", "bytes").unwrap();
        let outlet = Outlet::new(socket, false, Duration::from_secs(1), sent);
        Loan::new(outlet.lend(), Place::after(&batch(0, 1, 1)), until)
    }

    #[test]
    fn the_reader_writes_what_comes_next_and_nothing_else() {
        let (socket, mut client) = connection();
        let now = Instant::now();
        let mut lent = loan(&socket, Some(now + Duration::from_secs(1)));
        for (batch, why) in [
            (batch(2, 3, 5), "a hole"),
            (batch(0, 1, 5), "it was written before"),
            (batch(1, 2, LARGEST_WRITE_BYTES + 1), "too large"),
        ] {
            assert_eq!(lent.write(&batch, now), Written::Not, "{why}");
        }
        assert_eq!(lent.write(&batch(1, 2, 3), now), Written::Whole);
        assert_eq!(lent.write(&batch(2, 3, 3), now), Written::Whole);
        assert_eq!(lent.place().cursor, FeedSeq(3));
        assert_eq!(lent.write(&batch(3, 4, 3), now + Duration::from_secs(1)), Written::Not, "something is due");
        lent.end();
        assert_eq!(lent.write(&batch(3, 4, 3), now), Written::Not, "the thread was asked for");
        drop((lent, socket));
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "222333");
    }

    #[test]
    fn what_a_full_socket_does_not_take_is_the_rest_and_nothing_overtakes_it() {
        let (socket, mut client) = connection();
        let mut lent = loan(&socket, None);
        let now = Instant::now();
        let mut seq = 1;
        let outcome = loop {
            // A number of bytes that no buffer is a multiple of.
            match lent.write(&batch(seq, seq + 1, 7_919), now) {
                Written::Whole => seq += 1,
                other => break other,
            }
        };
        assert_eq!(lent.place().cursor, FeedSeq(seq));
        let (unfinished, rest) = lent.rest().map(|(batch, rest)| (batch.last().0, rest.to_vec())).unwrap_or_default();
        match outcome {
            Written::Partly => assert!(unfinished == seq + 1 && !rest.is_empty() && rest.len() < 7_919),
            _ => assert!(rest.is_empty()),
        }
        // Room alone does not help: the thread has to finish what was begun.
        client.read_exact(&mut vec![0; 64 * 1024]).unwrap();
        if outcome == Written::Partly {
            assert_eq!(lent.write(&batch(seq, seq + 1, 3), now), Written::Not);
        }
    }
}
