//! The threads `replay-…`: read the next page of the log while a stream writes the one before.
//!
//! They own nothing but the request at hand, and borrow a replay connection for as long as its page is being read. Streams
//! ask without waiting: where all of them are busy the database is too, and the stream reads its next page when it gets
//! there. So a stream holds two pages at the most, and a page that was read ahead may be thrown away at any time. They end
//! when the server stops.

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::Feed;
use super::pages::PageReader;
use crate::db::event_log::Page;
use crate::event::FeedSeq;

/// A page to be read.
#[derive(Debug)]
pub struct Request {
    pages: PageReader,
    after: FeedSeq,
    upto: FeedSeq,
    reply: Sender<(PageReader, Page)>,
}

/// Where streams ask for pages.
#[derive(Debug)]
pub struct Readers {
    requests: Sender<Request>,
}

/// A page that is being read, or was.
#[derive(Debug)]
pub struct Ahead {
    after: FeedSeq,
    history: u64,
    page: Receiver<(PageReader, Page)>,
}

impl Readers {
    /// For as many threads, and the end of the channel that they share. No request waits for a busy thread.
    pub fn new() -> (Self, Receiver<Request>) {
        let (requests, inlet) = bounded(0);
        (Self { requests }, inlet)
    }

    /// Has the page above `after` and not above `upto` read; `None` where nobody is free to do it. Never blocks.
    pub fn ask(&self, pages: PageReader, after: FeedSeq, upto: FeedSeq, history: u64) -> Option<Ahead> {
        let (reply, page) = bounded(1);
        self.requests.try_send(Request { pages, after, upto, reply }).ok()?;
        Some(Ahead { after, history, page })
    }
}

impl Ahead {
    /// The page, where it is the one above `after` in this history of the log and could be read. Blocks while it is being
    /// read, as long as reading it oneself would.
    pub fn wait(self, after: FeedSeq, history: u64) -> Option<(PageReader, Page)> {
        if (self.after, self.history) != (after, history) {
            return None;
        }
        self.page.recv().ok()
    }
}

/// One of the threads: runs until the server stops.
pub fn run(feed: &Feed, requests: &Receiver<Request>) {
    let (wake, woken) = bounded(1);
    feed.health.wake_on_change(wake);
    while !feed.health.is_stopping() {
        select! {
            recv(requests) -> request => {
                let Ok(Request { mut pages, after, upto, reply }) = request else { return };
                // Where it cannot be read, the reply is dropped: the stream reads it itself, and meets the error there.
                if let Ok(page) = feed.replay.with(|connection| pages.read(connection, after, upto)) {
                    let _ = reply.send((pages, page));
                }
            }
            recv(woken) -> _ => {}
        }
    }
}
