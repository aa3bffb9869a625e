//! Follows a feed: opens streams, proves that nothing is missing between events, and comes back after every interruption.
//!
//! The cursor moves only by [`Follower::acknowledge`]. Whatever interrupts, the stream goes on after the acknowledged
//! event, so that an event that was taken and not acknowledged comes again.

use std::fmt;
use std::time::{Duration, Instant};

use super::backoff::Backoff;
use super::message::{Connected, Message, Missed, Quarantined, SignalEvent};
use super::stop::Stop;
use super::stream::{ApiKey, Client, Cursor, FeedUrl, Stream, TURN, Trouble};

/// A stream this old has lasted: the back-off begins anew after it. (Where `backoff_max` is shorter, that.)
const LASTED: Duration = Duration::from_secs(10);

/// Where a feed is and how patient to be with it.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// The feed's addresses, tried in turn; all stream the same log.
    pub urls: Vec<FeedUrl>,
    /// The API key.
    pub key: ApiKey,
    /// Longest silence before a connection counts as dead. The feed sends a heartbeat every 15 s.
    pub read_timeout: Duration,
    /// Limit of the first wait after a failure.
    pub backoff_min: Duration,
    /// Limit of every wait.
    pub backoff_max: Duration,
}

impl FollowOptions {
    /// The defaults of `trader-bot`: 35 s of silence, back-off from 1 s to 60 s.
    pub fn new(urls: Vec<FeedUrl>, key: ApiKey) -> Self {
        Self {
            urls,
            key,
            read_timeout: Duration::from_secs(35),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
        }
    }
}

/// What a consumer has to know next.
#[derive(Debug)]
pub enum Happening {
    /// A stream is open.
    Connected(Connected),
    /// The next event; acknowledge it once it is dealt with.
    Signal(SignalEvent),
    /// The next event, whose data cannot be read; acknowledge it where it has a number.
    Unreadable {
        /// Its number, where the event's id tells it.
        feed_seq: Option<i64>,
        /// What is wrong with it.
        why: String,
        /// The data as it came.
        data: String,
    },
    /// The next event cannot be delivered to anybody; acknowledge it.
    Quarantined(Quarantined),
    /// Events were lost for good. The next event begins a new chain.
    Missed(Missed),
    /// A message to be told, no more.
    Notice(String),
    /// The stream ended or could not be opened; the next call tries again, after the wait told here.
    Interrupted(Interruption),
    /// No event for a moment; a heartbeat may have come.
    Nothing,
}

/// An interruption of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interruption {
    /// The address that was tried.
    pub url: FeedUrl,
    /// Why.
    pub cause: Cause,
    /// How often events after this same cursor have been missing, or too large, in a row; 0 for other causes.
    pub same_hole: u32,
    /// How long the next call waits before it tries again.
    pub wait: Duration,
}

/// Why a stream is not gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The connection, or the feed's answer.
    Trouble(Trouble),
    /// The feed dropped events for this client; the cursor brings them.
    Dropped(String),
    /// An event's predecessor lies beyond the cursor: something between is missing.
    Hole {
        /// The last acknowledged event.
        cursor: i64,
        /// What the event at hand says came before it.
        prev_seq: i64,
        /// The event at hand.
        feed_seq: i64,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trouble(trouble) => trouble.fmt(f),
            Self::Dropped(data) => write!(f, "the feed dropped events for this client: {data}"),
            Self::Hole { cursor, prev_seq, feed_seq } => {
                write!(f, "something is missing: event {feed_seq} follows {prev_seq}, but the cursor is {cursor}")
            }
        }
    }
}

/// Why following ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// [`Stop`] was asked.
    Stopped,
    /// The key is not accepted (401 or 403): trying again is of no use.
    Unauthorized {
        /// The address that said so.
        url: FeedUrl,
        /// The feed's answer.
        answer: Trouble,
    },
}

/// Follows one feed. It owns no thread; its calls block.
#[derive(Debug)]
pub struct Follower {
    client: Client,
    stop: Stop,
    places: Vec<Place>,
    /// The place that is streaming, or is tried next.
    at: usize,
    /// Places tried in vain since the last wait.
    tried: usize,
    backoff: Backoff,
    lasted: Duration,
    stream: Option<Stream>,
    try_at: Instant,
    cursor: Option<Cursor>,
    new_chain: bool,
    same_hole: u32,
}

#[derive(Debug)]
struct Place {
    url: FeedUrl,
    /// A `Retry-After` forbids to try before.
    not_before: Instant,
}

enum Order {
    Next,
    Repetition,
    Hole(i64),
}

impl Follower {
    /// Follows from after `cursor`, or from now. Nothing is opened before the first [`next_happening`](Self::next_happening).
    pub fn new(options: &FollowOptions, cursor: Option<Cursor>, stop: Stop) -> Self {
        let now = Instant::now();
        let place = |url: &FeedUrl| Place { url: url.clone(), not_before: now };
        Self {
            client: Client::new(options, stop.clone()),
            stop,
            places: options.urls.iter().map(place).collect(),
            at: 0,
            tried: 0,
            backoff: Backoff::new(options.backoff_min, options.backoff_max),
            lasted: LASTED.min(options.backoff_max),
            stream: None,
            try_at: now,
            cursor,
            new_chain: false,
            same_hole: 0,
        }
    }

    /// What happens next. Blocks for a moment; where nothing happens, it says so.
    ///
    /// # Errors
    /// [`End`], for good.
    pub fn next_happening(&mut self) -> Result<Happening, End> {
        loop {
            let got = match &mut self.stream {
                Some(stream) => stream.next_event(),
                None if self.try_at > Instant::now() => {
                    let wait = self.try_at.saturating_duration_since(Instant::now());
                    if !self.stop.sleep(wait.min(TURN)) {
                        return Err(End::Stopped);
                    }
                    return Ok(Happening::Nothing);
                }
                None => match self.open() {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(trouble) => Err(trouble),
                },
            };
            match got {
                Ok(None) => return Ok(Happening::Nothing),
                Ok(Some(event)) => {
                    if let Some(happening) = self.judge(Message::from_event(event)) {
                        return Ok(happening);
                    }
                }
                Err(Trouble::Stopped) => return Err(End::Stopped),
                Err(answer @ Trouble::Unauthorized { .. }) => {
                    return Err(End::Unauthorized { url: self.places[self.at].url.clone(), answer });
                }
                Err(trouble) => return Ok(self.interrupt(Cause::Trouble(trouble))),
            }
        }
    }

    /// Moves the cursor to an event that is dealt with.
    pub fn acknowledge(&mut self, cursor: Cursor) {
        self.cursor = Some(cursor);
        self.new_chain = false;
        self.same_hole = 0;
    }

    /// Closes the stream; the next call opens one from the cursor.
    pub fn disconnect(&mut self) {
        self.stream = None;
        self.new_chain = false;
    }

    /// The last acknowledged event, or where the first stream began.
    pub fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    fn open(&mut self) -> Result<Stream, Trouble> {
        self.new_chain = false;
        self.client.open(&self.places[self.at].url, self.cursor.as_ref())
    }

    fn judge(&mut self, message: Message) -> Option<Happening> {
        match message {
            Message::Connected(connected) => {
                if self.cursor.is_none() {
                    self.cursor = connected.cursor.map(|feed_seq| Cursor { feed_seq, event_time: None });
                }
                Some(Happening::Connected(connected))
            }
            Message::Signal(event) => self.in_order(event.feed_seq, event.prev_seq, |_| Some(Happening::Signal(event))),
            Message::Quarantined(event) => {
                self.in_order(event.feed_seq, event.prev_seq, |_| Some(Happening::Quarantined(event)))
            }
            Message::Unreadable { feed_seq: Some(number), why, data } => {
                self.in_order(number, None, |_| Some(Happening::Unreadable { feed_seq: Some(number), why, data }))
            }
            Message::Unreadable { feed_seq, why, data } => Some(Happening::Unreadable { feed_seq, why, data }),
            Message::Missed(missed) => {
                self.new_chain = true;
                Some(Happening::Missed(missed))
            }
            Message::Dropped(data) => Some(self.interrupt(Cause::Dropped(data))),
            Message::Notice(notice) => Some(Happening::Notice(notice)),
        }
    }

    fn in_order(
        &mut self,
        feed_seq: i64,
        prev_seq: Option<i64>,
        next: impl FnOnce(&mut Self) -> Option<Happening>,
    ) -> Option<Happening> {
        match self.order(feed_seq, prev_seq) {
            Order::Next => next(self),
            Order::Repetition => {
                log::debug!("passed over event {feed_seq}: a repetition");
                None
            }
            Order::Hole(prev_seq) => {
                let cursor = self.cursor.as_ref().map_or(0, |cursor| cursor.feed_seq);
                Some(self.interrupt(Cause::Hole { cursor, prev_seq, feed_seq }))
            }
        }
    }

    fn order(&self, feed_seq: i64, prev_seq: Option<i64>) -> Order {
        let Some(cursor) = self.cursor.as_ref().filter(|_| !self.new_chain) else {
            return Order::Next;
        };
        match prev_seq {
            _ if feed_seq <= cursor.feed_seq => Order::Repetition,
            Some(prev_seq) if prev_seq > cursor.feed_seq => Order::Hole(prev_seq),
            _ => Order::Next,
        }
    }

    fn interrupt(&mut self, cause: Cause) -> Happening {
        let lasted = self.stream.take().is_some_and(|stream| stream.age() >= self.lasted);
        if lasted {
            self.backoff.reset();
            self.tried = 0;
        }
        let same_hole = match &cause {
            Cause::Trouble(Trouble::TooLarge(_)) | Cause::Dropped(_) | Cause::Hole { .. } => {
                self.same_hole += 1;
                self.same_hole
            }
            Cause::Trouble(_) => 0,
        };
        let now = Instant::now();
        if let Cause::Trouble(Trouble::Status { retry_after: Some(floor), .. }) = &cause {
            self.places[self.at].not_before = now + *floor;
        }
        let url = self.places[self.at].url.clone();
        self.tried += 1;
        // Another address is tried at once; only when all have failed there is a wait.
        let mut try_at = now;
        if self.tried >= self.places.len() {
            self.tried = 0;
            try_at += self.backoff.next_wait();
        }
        let count = self.places.len();
        let in_turn = (1..=count).map(|step| (self.at + step) % count);
        // The first in turn that may be tried then; where none may, the one that may first.
        self.at = in_turn.min_by_key(|&at| self.places[at].not_before.max(try_at)).unwrap_or(self.at);
        self.try_at = try_at.max(self.places[self.at].not_before);
        Happening::Interrupted(Interruption { url, cause, same_hole, wait: self.try_at.duration_since(now) })
    }
}
