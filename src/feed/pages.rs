//! Reading the log page by page. If a page cannot be read, halving it finds the row at fault.

use super::batch::Batch;
use super::render;
use crate::db::event_log::{self, Page, Range};
use crate::db::{Connection, Error};
use crate::event::{FeedSeq, LogRow};

const PAGE_ROWS: i64 = 2_000;
/// The rows of a first page: the size of its rows is not known yet.
const FIRST_PAGE_ROWS: i64 = 256;
/// A page ends when the text of its rows passes this, 1 MiB. One row may pass it alone.
const PAGE_BYTES: usize = 1024 * 1024;
const BATCH_EVENTS: usize = 256;
/// A batch that has grown to this size, 128 KiB, is complete. A larger one is shared by the streams that replay it.
pub(super) const BATCH_BYTES: usize = 128 * 1024;

/// Reads pages, and remembers how many rows they may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageReader {
    rows: i64,
}

impl Default for PageReader {
    fn default() -> Self {
        Self { rows: FIRST_PAGE_ROWS }
    }
}

impl PageReader {
    /// Reads the next rows of a range. Rows that cannot be read come as poison.
    pub(crate) fn read(&mut self, connection: &mut Connection, range: Range) -> Result<Page, Error> {
        loop {
            match event_log::read_page(connection, range, self.rows, PAGE_BYTES) {
                Ok(page) => {
                    let bytes: usize = page.rows.iter().map(|row| row.signal.as_ref().map_or(0, Vec::len)).sum();
                    self.rows = if bytes > PAGE_BYTES { self.rows / 2 } else { self.rows * 2 }.clamp(1, PAGE_ROWS);
                    return Ok(page);
                }
                Err(error) if error.is_fault_of_data() && self.rows > 1 => self.rows /= 2,
                Err(error) => {
                    // The page may have been too large for the deadline: the next connection begins with a smaller one.
                    self.rows = (self.rows / 4).max(1);
                    return Err(error);
                }
            }
        }
    }
}

/// Renders rows that follow the log row `prev` into batches, one at a time, and reports poisoned rows.
pub(crate) fn render(
    rows: Vec<LogRow>,
    prev: FeedSeq,
    generation: u64,
    mut poisoned: impl FnMut(&LogRow, &str),
) -> impl Iterator<Item = Batch> {
    let mut rows = rows.into_iter().peekable();
    let is_large = |row: &LogRow| row.signal.as_ref().is_ok_and(|signal| signal.len() > BATCH_BYTES);
    let mut prev = prev;
    std::iter::from_fn(move || {
        let mut builder = Batch::new(prev, generation);
        while builder.entries.len() < BATCH_EVENTS && builder.bytes() < BATCH_BYTES {
            // A large event has a batch of its own, which streams can share as a whole.
            let Some(row) = rows.next_if(|row| builder.entries.is_empty() || !is_large(row)) else { break };
            if let Some(poison) = render::push_row(&mut builder, &row) {
                poisoned(&row, &poison);
            }
        }
        prev = builder.last();
        (!builder.entries.is_empty()).then(|| builder.finish())
    })
}
