//! Where a stream stands in the log: what its own thread and the reader, to whom it lends its socket, both go by.

use super::batch::SharedBatch;
use crate::event::{EventTime, FeedSeq};

/// Where a stream stands.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Everything up to here was sent, or is not to be.
    pub cursor: FeedSeq,
    /// The time of the event with that number, where it is known: it tells whether the log is still the same.
    pub time: Option<EventTime>,
    /// The number of the last log row at or below the cursor, where it is known.
    pub row: Option<FeedSeq>,
    /// Events broadcast up to the cursor, as the reader counts them; for counting what was dropped.
    pub ordinal: u64,
}

impl Place {
    /// Behind a cursor of which nothing else is known.
    pub fn at(cursor: FeedSeq) -> Self {
        Self { cursor, time: None, row: None, ordinal: 0 }
    }

    /// Behind the last event of a batch.
    pub fn after(batch: &SharedBatch) -> Self {
        Self {
            cursor: batch.last(),
            time: batch.entries().last().map(|entry| entry.time),
            row: Some(batch.last()),
            ordinal: batch.ordinal() + batch.entries().len() as u64,
        }
    }
}
