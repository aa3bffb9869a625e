//! Follows a feed: opens streams, proves that nothing is missing between events, and reconnects after every
//! interruption.
//!
//! The cursor moves only by [`Follower::acknowledge`]. After any interruption the stream continues after the
//! acknowledged event, so an event that was taken and not acknowledged comes again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::address::{ApiKey, Cursor, FeedUrl};
pub use super::alert::Reason;
use super::backoff::Backoff;
pub use super::message::FeedEvent;
use super::message::{SignalEvent, read};
use super::stop::Stop;
pub use super::stream::Cause;
use super::stream::{FeedStream, TURN};

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

/// Why following ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowEnd {
    /// [`Stop`] was requested.
    Stopped,
    /// The feed refuses the key, and will refuse it again: its address and its answer.
    KeyRefused(String),
}

/// Follows one feed. It owns no thread; its calls block.
pub struct Follower {
    options: FollowOptions,
    stop: Stop,
    /// The address in use, or to try next.
    at: usize,
    /// For each address, the end of its wait after a failure.
    not_before: Vec<Instant>,
    backoff: Backoff,
    stream: Option<FeedStream>,
    /// Whether the stream's `connected` has come.
    is_connected: bool,
    cursor: Option<Cursor>,
    /// The feed reported lost events: the next event begins a new chain.
    new_chain: bool,
    /// How often in a row events after this cursor were missing.
    same_hole: u32,
    /// Whether the caller already knows that the feed refuses this cursor.
    cursor_is_refused: bool,
}

impl Follower {
    /// Follows the feed after `cursor`, or from now. Nothing is opened before the first
    /// [`next_event`](Self::next_event).
    pub fn new(options: &FollowOptions, cursor: Option<Cursor>, stop: Stop) -> Self {
        Self {
            backoff: Backoff::new(options.backoff_min, options.backoff_max),
            not_before: vec![Instant::now(); options.urls.len()],
            options: options.clone(),
            stop,
            at: 0,
            stream: None,
            is_connected: false,
            cursor,
            new_chain: false,
            same_hole: 0,
            cursor_is_refused: false,
        }
    }

    /// Waits briefly for what happens next, and returns [`FeedEvent::Nothing`] if nothing does.
    ///
    /// # Errors
    /// [`FollowEnd`], for good.
    pub fn next_event(&mut self) -> Result<FeedEvent, FollowEnd> {
        loop {
            if self.stop.is_asked() {
                return Err(FollowEnd::Stopped);
            }
            let wait = self.not_before[self.at].saturating_duration_since(Instant::now());
            if self.stream.is_none() && !wait.is_zero() {
                self.stop.sleep(wait.min(TURN));
                return Ok(FeedEvent::Nothing);
            }
            match self.read() {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => {}
                Err(cause) if !cause.refuses_key() => return Ok(self.interrupt(cause)),
                Err(_) if self.has_another_key() => self.stream = None,
                Err(answer) => return Err(FollowEnd::KeyRefused(format!("{}: {answer}", self.url()))),
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
    }

    /// The last acknowledged event, or where the first stream began.
    pub fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    fn url(&self) -> &FeedUrl {
        &self.options.urls[self.at]
    }

    /// Reads the key file again: an operator may have replaced the key.
    fn has_another_key(&mut self) -> bool {
        let Some(file) = &self.options.key_file else { return false };
        match ApiKey::from_file(file) {
            Ok(key) if key != self.options.key => {
                log::warn!("the feed refused the key; {} holds a new one: trying it", file.display());
                self.options.key = key;
                return true;
            }
            Ok(_) => {}
            Err(error) => log::error!("{error}"),
        }
        false
    }

    /// `None` after a repetition.
    fn read(&mut self) -> Result<Option<FeedEvent>, Cause> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                (self.new_chain, self.is_connected) = (false, false);
                let FollowOptions { urls, key, read_timeout, .. } = &self.options;
                let opened = FeedStream::open(&urls[self.at], key, self.cursor.as_ref(), *read_timeout)?;
                self.stream.insert(opened)
            }
        };
        match stream.next_event()? {
            Some(event) => self.judge(read(event)?),
            None if !self.is_connected && stream.age() >= self.options.read_timeout => {
                Err(Cause::Broke("no connected block has come".to_owned()))
            }
            None => Ok(Some(FeedEvent::Nothing)),
        }
    }

    /// Checks how an event follows the cursor. `None`: it is a repetition.
    fn judge(&mut self, mut event: FeedEvent) -> Result<Option<FeedEvent>, Cause> {
        let cursor = self.cursor.as_ref().filter(|_| !self.new_chain).map(|cursor| cursor.feed_seq);
        let (feed_seq, prev_seq) = match &mut event {
            FeedEvent::Connected(connected) => {
                self.is_connected = true;
                self.cursor.get_or_insert(Cursor { feed_seq: connected.cursor, event_time: None });
                return Ok(Some(event));
            }
            FeedEvent::Notice(_) | FeedEvent::Interrupted { .. } | FeedEvent::Nothing => return Ok(Some(event)),
            _ if !self.is_connected => return Err(Cause::Broke("an event came before the connected block".to_owned())),
            FeedEvent::Missed(_) => {
                self.new_chain = true;
                return Ok(Some(event));
            }
            FeedEvent::Unreadable { feed_seq, .. } => {
                let is_repetition = cursor.is_some_and(|cursor| feed_seq.is_some_and(|number| number <= cursor));
                // Without a `prev_seq`, only the very next number certainly leaves no hole.
                *feed_seq = feed_seq.filter(|number| cursor == Some(number - 1));
                return Ok((!is_repetition).then_some(event));
            }
            FeedEvent::Signal(SignalEvent { feed_seq, prev_seq, .. })
            | FeedEvent::Quarantined { feed_seq, prev_seq, .. } => (*feed_seq, *prev_seq),
        };
        match (cursor, prev_seq.unwrap_or(feed_seq - 1)) {
            (Some(cursor), _) if feed_seq <= cursor => {
                log::debug!("skipped event {feed_seq}: a repetition");
                Ok(None)
            }
            (Some(cursor), prev_seq) if prev_seq > cursor => Err(Cause::Missing(format!(
                "events are missing: event {feed_seq} follows {prev_seq}, but the cursor is {cursor}"
            ))),
            _ => Ok(Some(event)),
        }
    }

    /// Whether somebody must act on this interruption. A refused cursor is tried once more without its time.
    fn alarm(&mut self, cause: &Cause) -> Option<Reason> {
        match cause {
            Cause::Missing(_) => {
                self.same_hole += 1;
                (self.same_hole == HOLES_TO_ALERT).then_some(Reason::Hole)
            }
            Cause::Status { status: 400, code: Some(code), .. } if code == "bad_cursor" => {
                let had_time = self.cursor.as_mut().is_some_and(|cursor| cursor.event_time.take().is_some());
                let is_new = !had_time && !std::mem::replace(&mut self.cursor_is_refused, true);
                is_new.then_some(Reason::BadCursor)
            }
            _ => None,
        }
    }

    fn interrupt(&mut self, cause: Cause) -> FeedEvent {
        let lasted = LASTED.min(self.options.backoff_max);
        if self.stream.take().is_some_and(|stream| stream.age() >= lasted) {
            self.backoff.reset();
        }
        let (url, alarm, now) = (self.url().clone(), self.alarm(&cause), Instant::now());
        let floor = match &cause {
            Cause::Status { retry_after: Some(floor), .. } => *floor,
            _ => Duration::ZERO,
        };
        self.not_before[self.at] = now + self.backoff.next_wait().max(floor);
        // The next address in turn that need not wait, else the one that may be tried soonest.
        let count = self.not_before.len();
        let in_turn = (1..=count).map(|step| (self.at + step) % count);
        self.at = in_turn.min_by_key(|&at| self.not_before[at].max(now)).unwrap_or(self.at);
        let wait = self.not_before[self.at].saturating_duration_since(now);
        FeedEvent::Interrupted { url, cause, alarm, wait }
    }
}
