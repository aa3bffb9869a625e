//! Follows a feed: opens streams, proves that nothing is missing between events, and reconnects after every
//! interruption.
//!
//! The cursor moves only by [`Follower::acknowledge`]. After any interruption the stream continues after the
//! acknowledged event, so an event that was taken and not acknowledged comes again.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::address::{ApiKey, Cursor, FeedUrl};
use super::backoff::Backoff;
use super::message::{Connected, Message, Missed, Quarantined, SignalEvent};
use super::stop::Stop;
use super::stream::{Client, Stream, StreamError, TURN};

/// After a stream this old the back-off starts again from its minimum. (If `backoff_max` is shorter, that counts.)
const LASTED: Duration = Duration::from_secs(10);
/// The same hole this many times in a row raises an alert.
const HOLES_TO_ALERT: u32 = 3;

/// Where the feed is, and its time-outs.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// The feed's addresses, tried in turn; all stream the same log.
    pub urls: Vec<FeedUrl>,
    /// The API key.
    pub key: ApiKey,
    /// The file with the key, read again when the feed refuses the key.
    pub key_file: Option<PathBuf>,
    /// Longest silence before a connection counts as dead. The feed sends a heartbeat every 15 s.
    pub read_timeout: Duration,
    /// Longest first wait after a failure.
    pub backoff_min: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
}

impl FollowOptions {
    /// The defaults of `trader-bot`: 35 s of silence, back-off from 1 s to 60 s.
    pub fn new(urls: Vec<FeedUrl>, key: ApiKey) -> Self {
        Self {
            urls,
            key,
            key_file: None,
            read_timeout: Duration::from_secs(35),
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
        }
    }
}

/// What happened next on the feed.
#[derive(Debug)]
pub enum FeedEvent {
    /// A stream is open.
    Connected(Connected),
    /// The next event. Acknowledge it once it is handled.
    Signal(SignalEvent),
    /// An event whose data cannot be read; acknowledge it if it has a number.
    Unreadable {
        /// Its number, if its block has one that leaves no hole.
        feed_seq: Option<i64>,
        /// Why it cannot be read.
        why: String,
        /// The data as received.
        data: String,
    },
    /// The feed cannot deliver the next event to any client; acknowledge it.
    Quarantined(Quarantined),
    /// Events were lost for good. The next event begins a new chain.
    Missed(Missed),
    /// A message to log.
    Notice(String),
    /// The stream ended or could not be opened; the next call tries again, after this wait.
    Interrupted(Interruption),
    /// No event for a moment; a heartbeat may have come.
    Nothing,
}

/// An interruption of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interruption {
    /// The address of the feed.
    pub url: FeedUrl,
    /// Why.
    pub cause: Cause,
    /// Set if it will not get better by itself, so somebody must act. Reported once.
    pub alarm: Option<Alarm>,
    /// How long the next call waits before it tries again.
    pub wait: Duration,
}

/// A fault that retrying does not cure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alarm {
    /// The same events are missing for the third time.
    Hole,
    /// The feed refuses the cursor, even without its `cursor_time`.
    BadCursor,
}

/// Why a stream ended or did not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The connection failed, or the feed refused the request.
    Stream(StreamError),
    /// The feed dropped events for this client; it sends them again after the cursor.
    Dropped(String),
    /// The stream did not begin with a `connected` block that can be read.
    NotConnected(String),
    /// An event's predecessor lies beyond the cursor, so events in between are missing.
    Hole {
        /// The last acknowledged event.
        cursor: i64,
        /// The `prev_seq` of the event received.
        prev_seq: i64,
        /// The event received.
        feed_seq: i64,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(error) => error.fmt(f),
            Self::Dropped(data) => write!(f, "the feed dropped events for this client: {data}"),
            Self::NotConnected(what) => write!(f, "the stream did not begin with a readable connected block: {what}"),
            Self::Hole { cursor, prev_seq, feed_seq } => {
                write!(f, "events are missing: event {feed_seq} follows {prev_seq}, but the cursor is {cursor}")
            }
        }
    }
}

/// Why following ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// [`Stop`] was requested.
    Stopped,
    /// The feed refuses the key (401 or 403), and will refuse it again.
    Unauthorized {
        /// The address of the feed.
        url: FeedUrl,
        /// The feed's answer.
        answer: StreamError,
    },
}

/// Follows one feed. It owns no thread; its calls block.
#[derive(Debug)]
pub struct Follower {
    client: Client,
    key_file: Option<PathBuf>,
    read_timeout: Duration,
    stop: Stop,
    endpoints: Vec<Endpoint>,
    /// The endpoint in use, or to try next.
    at: usize,
    /// Endpoints that failed since the last wait.
    tried: usize,
    backoff: Backoff,
    lasted: Duration,
    stream: Option<Stream>,
    /// Whether the stream's `connected` has come.
    is_connected: bool,
    try_at: Instant,
    cursor: Option<Cursor>,
    /// The feed reported lost events: the next event begins a new chain.
    new_chain: bool,
    /// How often in a row events after this cursor were missing.
    same_hole: u32,
    /// Whether the caller already knows that the feed refuses this cursor.
    cursor_is_refused: bool,
}

#[derive(Debug)]
struct Endpoint {
    url: FeedUrl,
    /// `Retry-After`: do not try before.
    not_before: Instant,
}

enum Order {
    Next,
    Repetition,
    Hole(i64),
}

impl Follower {
    /// Follows the feed after `cursor`, or from now. Nothing is opened before the first
    /// [`next_event`](Self::next_event).
    pub fn new(options: &FollowOptions, cursor: Option<Cursor>, stop: Stop) -> Self {
        let now = Instant::now();
        let endpoint = |url: &FeedUrl| Endpoint { url: url.clone(), not_before: now };
        Self {
            client: Client::new(&options.urls, &options.key, options.read_timeout, stop.clone()),
            key_file: options.key_file.clone(),
            read_timeout: options.read_timeout,
            stop,
            endpoints: options.urls.iter().map(endpoint).collect(),
            at: 0,
            tried: 0,
            backoff: Backoff::new(options.backoff_min, options.backoff_max),
            lasted: LASTED.min(options.backoff_max),
            stream: None,
            is_connected: false,
            try_at: now,
            cursor,
            new_chain: false,
            same_hole: 0,
            cursor_is_refused: false,
        }
    }

    /// Waits briefly for what happens next, and returns [`FeedEvent::Nothing`] if nothing does.
    ///
    /// # Errors
    /// [`End`], for good.
    pub fn next_event(&mut self) -> Result<FeedEvent, End> {
        loop {
            let got = match &mut self.stream {
                Some(stream) => stream.next_event(),
                None if self.try_at > Instant::now() => {
                    let wait = self.try_at.saturating_duration_since(Instant::now());
                    if !self.stop.sleep(wait.min(TURN)) {
                        return Err(End::Stopped);
                    }
                    return Ok(FeedEvent::Nothing);
                }
                None => match self.open() {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match got {
                Ok(None)
                    if !self.is_connected && self.stream.as_ref().is_some_and(|s| s.age() >= self.read_timeout) =>
                {
                    return Ok(self.interrupt(Cause::NotConnected("none has come".to_owned())));
                }
                Ok(None) => return Ok(FeedEvent::Nothing),
                Ok(Some(event)) => {
                    if let Some(event) = self.judge(Message::from_event(event)) {
                        return Ok(event);
                    }
                }
                Err(StreamError::Stopped) => return Err(End::Stopped),
                Err(StreamError::Unauthorized { .. }) if self.has_another_key() => self.stream = None,
                Err(answer @ StreamError::Unauthorized { .. }) => {
                    return Err(End::Unauthorized { url: self.endpoints[self.at].url.clone(), answer });
                }
                Err(error) => return Ok(self.interrupt(Cause::Stream(error))),
            }
        }
    }

    /// Moves the cursor to an event that was handled.
    pub fn acknowledge(&mut self, cursor: Cursor) {
        self.cursor = Some(cursor);
        self.new_chain = false;
        self.same_hole = 0;
        self.cursor_is_refused = false;
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

    /// Reads the key file again: an operator may have replaced the key.
    fn has_another_key(&mut self) -> bool {
        let Some(file) = &self.key_file else { return false };
        match ApiKey::from_file(file) {
            Ok(key) => {
                let differs = self.client.change_key(key);
                if differs {
                    log::warn!("the feed refused the key; {} holds a new one: trying it", file.display());
                }
                differs
            }
            Err(error) => {
                log::error!("{error}");
                false
            }
        }
    }

    fn open(&mut self) -> Result<Stream, StreamError> {
        self.new_chain = false;
        self.is_connected = false;
        self.client.open(&self.endpoints[self.at].url, self.cursor.as_ref())
    }

    fn judge(&mut self, message: Message) -> Option<FeedEvent> {
        match message {
            Message::Connected(connected) => {
                self.is_connected = true;
                if self.cursor.is_none() {
                    self.cursor = Some(Cursor { feed_seq: connected.cursor, event_time: None });
                }
                Some(FeedEvent::Connected(connected))
            }
            Message::UnreadableConnected(data) => Some(self.interrupt(Cause::NotConnected(data))),
            Message::Notice(notice) => Some(FeedEvent::Notice(notice)),
            _ if !self.is_connected => Some(self.interrupt(Cause::NotConnected("an event came first".to_owned()))),
            Message::Signal(event) => match self.order(event.feed_seq, event.prev_seq) {
                Order::Next => Some(FeedEvent::Signal(event)),
                other => self.pass_over(event.feed_seq, &other),
            },
            Message::Quarantined(event) => match self.order(event.feed_seq, event.prev_seq) {
                Order::Next => Some(FeedEvent::Quarantined(event)),
                other => self.pass_over(event.feed_seq, &other),
            },
            Message::Unreadable { feed_seq, why, data } => match feed_seq.map(|number| self.order(number, None)) {
                Some(Order::Repetition) => None,
                // In a new chain it is unknown whether the number leaves a hole.
                Some(Order::Next) if !self.new_chain => Some(FeedEvent::Unreadable { feed_seq, why, data }),
                _ => Some(FeedEvent::Unreadable { feed_seq: None, why, data }),
            },
            Message::Missed(missed) => {
                self.new_chain = true;
                Some(FeedEvent::Missed(missed))
            }
            Message::Dropped(data) => Some(self.interrupt(Cause::Dropped(data))),
        }
    }

    fn pass_over(&mut self, feed_seq: i64, order: &Order) -> Option<FeedEvent> {
        match (order, &self.cursor) {
            (Order::Hole(prev_seq), Some(cursor)) => {
                let cause = Cause::Hole { cursor: cursor.feed_seq, prev_seq: *prev_seq, feed_seq };
                Some(self.interrupt(cause))
            }
            _ => {
                log::debug!("skipped event {feed_seq}: a repetition");
                None
            }
        }
    }

    /// How an event follows the cursor. Without `prev_seq` it must be the very next number.
    fn order(&self, feed_seq: i64, prev_seq: Option<i64>) -> Order {
        let Some(cursor) = self.cursor.as_ref().filter(|_| !self.new_chain) else {
            return Order::Next;
        };
        match prev_seq.unwrap_or(feed_seq - 1) {
            _ if feed_seq <= cursor.feed_seq => Order::Repetition,
            prev_seq if prev_seq > cursor.feed_seq => Order::Hole(prev_seq),
            _ => Order::Next,
        }
    }

    /// Whether somebody must act on this interruption. A refused cursor is tried once more without its time.
    fn alarm(&mut self, cause: &Cause) -> Option<Alarm> {
        match cause {
            Cause::Stream(StreamError::TooLarge(_)) | Cause::Dropped(_) | Cause::Hole { .. } => {
                self.same_hole += 1;
                (self.same_hole == HOLES_TO_ALERT).then_some(Alarm::Hole)
            }
            Cause::Stream(StreamError::Status { status: 400, code: Some(code), .. }) if code == "bad_cursor" => {
                let had_time = self.cursor.as_mut().is_some_and(|cursor| cursor.event_time.take().is_some());
                let is_new = !had_time && !std::mem::replace(&mut self.cursor_is_refused, true);
                is_new.then_some(Alarm::BadCursor)
            }
            _ => None,
        }
    }

    fn interrupt(&mut self, cause: Cause) -> FeedEvent {
        let lasted = self.stream.take().is_some_and(|stream| stream.age() >= self.lasted);
        if lasted {
            self.backoff.reset();
            self.tried = 0;
        }
        let alarm = self.alarm(&cause);
        let now = Instant::now();
        if let Cause::Stream(StreamError::Status { retry_after: Some(floor), .. }) = &cause {
            self.endpoints[self.at].not_before = now + *floor;
        }
        let url = self.endpoints[self.at].url.clone();
        self.tried += 1;
        // The next address is tried at once. The wait comes after all have failed.
        let mut try_at = now;
        if self.tried >= self.endpoints.len() {
            self.tried = 0;
            try_at += self.backoff.next_wait();
        }
        let count = self.endpoints.len();
        let in_turn = (1..=count).map(|step| (self.at + step) % count);
        // The first in turn that may be tried by then, else the one that may be tried soonest.
        self.at = in_turn.min_by_key(|&at| self.endpoints[at].not_before.max(try_at)).unwrap_or(self.at);
        self.try_at = try_at.max(self.endpoints[self.at].not_before);
        FeedEvent::Interrupted(Interruption { url, cause, alarm, wait: self.try_at.duration_since(now) })
    }
}
