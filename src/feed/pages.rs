//! Reading the log page by page, with a page's size found by trying: a row that cannot be read is cornered by halving.

use super::batch::{Batch, BatchBuilder};
use super::render;
use crate::db::event_log::{self, Page};
use crate::db::{Connection, Error};
use crate::event::FeedSeq;
use crate::event::{LogRow, Poison};

/// The most rows of a page.
const PAGE_ROWS: i64 = 2_000;
/// The rows of a first page, of whose rows' size nothing is known yet.
const FIRST_PAGE_ROWS: i64 = 256;
/// A page that was larger than this, 4 MiB, is followed by a smaller one.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// The most events of a batch. It is what a client writes at once and what a queue drops at once.
const BATCH_EVENTS: usize = 256;
/// A batch that has grown to this size, 128 KiB, is complete.
const BATCH_BYTES: usize = 128 * 1024;

/// Reads pages, and remembers how large they may be.
#[derive(Debug, Clone, Copy)]
pub struct PageReader {
    rows: i64,
}

impl Default for PageReader {
    fn default() -> Self {
        Self { rows: FIRST_PAGE_ROWS }
    }
}

impl PageReader {
    /// Reads the next rows above `after` and not above `upto`. Rows that cannot be read come as poison.
    ///
    /// # Errors
    /// See [`Error`]: whatever is not the fault of a single row.
    pub fn read(&mut self, connection: &mut Connection, after: FeedSeq, upto: FeedSeq) -> Result<Page, Error> {
        loop {
            let outcome = match self.rows {
                1 => event_log::read_single(connection, after, upto),
                rows => event_log::read_page(connection, after, upto, rows),
            };
            match outcome {
                Ok(page) => {
                    let bytes: usize = page.rows.iter().map(|row| row.signal.as_ref().map_or(0, Vec::len)).sum();
                    self.rows = if bytes > PAGE_BYTES { self.rows / 2 } else { self.rows * 2 }.clamp(1, PAGE_ROWS);
                    return Ok(page);
                }
                Err(error) if error.is_fault_of_data() && self.rows > 1 => self.rows /= 2,
                Err(error) => {
                    // Too much for the deadline, perhaps: the next connection begins with less.
                    self.rows = (self.rows / 4).max(1);
                    return Err(error);
                }
            }
        }
    }
}

/// Renders rows that follow the log row `prev` into batches of at most `most_events`, and hands on what is poisoned.
pub fn render(
    rows: &[LogRow],
    prev: FeedSeq,
    ordinal: u64,
    most_events: usize,
    mut poisoned: impl FnMut(&LogRow, &Poison),
) -> Vec<Batch> {
    let most_events = most_events.clamp(1, BATCH_EVENTS);
    let mut batches = Vec::new();
    let mut ordinal = ordinal;
    let mut builder = BatchBuilder::new(prev, ordinal);
    for row in rows {
        if builder.len() >= most_events || builder.bytes() >= BATCH_BYTES {
            ordinal += builder.len() as u64;
            let next = BatchBuilder::new(builder.last(), ordinal);
            batches.push(std::mem::replace(&mut builder, next).finish());
        }
        if let Some(poison) = render::push_row(&mut builder, row) {
            poisoned(row, &poison);
        }
    }
    if !builder.is_empty() {
        batches.push(builder.finish());
    }
    batches
}
