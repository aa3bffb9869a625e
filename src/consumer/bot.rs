//! The bot: from events to orders, each at most once, with everything that can go wrong on the way.
//!
//! One thread does it all, one event at a time: journal the intent, place, journal the outcome, then move the cursor.
//! Before it sends or consumes anything, it settles every open order with the broker.

mod orders;
mod recover;

use std::collections::HashSet;
use std::convert::Infallible;
use std::fs::File;
use std::hash::BuildHasher;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::address::{Cursor, FeedUrl};
use super::alert::Reason;
use super::broker::Broker;
use super::clock;
use super::files::{resolved, take_lock};
use super::follow::{Cause, FeedEvent, FollowEnd, FollowOptions, Follower};
use super::journal::Journal;
use super::line::{Line, Mode, Record};
use super::message::Connected;
use super::order::Order;
use super::recovery::Recovery;
use super::state::StateFile;
use super::stop::Stop;
use crate::alert::{About, AlertCommand, Level};
use crate::error::Error;
use crate::logging::{self, LIMITED};
use crate::text::{self, clip};

/// How long before its key expires the bot warns, once a day.
const KEY_WARNING: SignedDuration = SignedDuration::from_hours(7 * 24);
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// How many different unreadable events the bot remembers, so that each raises one alert although it comes again.
const MOST_UNREADABLE: usize = 1000;

#[derive(Debug)]
pub(crate) struct BotOptions {
    pub(crate) follow: FollowOptions,
    pub(crate) state_file: PathBuf,
    pub(crate) journal: PathBuf,
    /// Entries older than this are not placed; `None`: all are.
    pub(crate) max_entry_age: Option<Duration>,
    /// Whether an event that the feed cannot deliver to any client ends entries.
    pub(crate) closes_on_quarantined: bool,
    /// If an order's outcome is unknown, a broker that is away for longer than this raises a CRITICAL alert.
    pub(crate) away_patience: Duration,
    pub(crate) alert_command: Option<PathBuf>,
    pub(crate) recovery: Option<Recovery>,
}

/// Makes the broker, given the journal's path, once the bot holds the journal's lock.
pub(crate) type OpenBroker<'a> = &'a dyn Fn(&Path) -> Result<Box<dyn Broker>, Error>;

#[derive(Debug)]
enum Halt {
    Stopped,
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

pub(crate) use recover::dry_run;

pub(crate) fn run(options: &BotOptions, open_broker: OpenBroker<'_>, stop: &Stop) -> Result<(), Error> {
    let mut bot = Bot::open(options, open_broker, stop)?;
    let Err(halt) = bot.run();
    bot.alerts.finish();
    match halt {
        Halt::Stopped => {
            let cursor = bot.journal.ledger.cursor.map_or("none".to_owned(), |cursor| cursor.feed_seq.to_string());
            log::info!("stopped, cursor {cursor}");
            Ok(())
        }
        Halt::Failed(error) => Err(error),
    }
}

struct Bot<'a> {
    options: &'a BotOptions,
    stop: &'a Stop,
    journal: Journal,
    state_file: StateFile,
    broker: Box<dyn Broker>,
    alerts: AlertCommand,
    follower: Follower,
    /// A recovery is running: entries are placed although the mode is close-only.
    is_recovering: bool,
    /// A recovery has not read its snapshot yet: orders that were certainly not sent wait for it.
    keeps_unsent: bool,
    /// Hashes of events without a usable number, which can come again with every stream.
    unreadable: HashSet<u64>,
    key_expires_at: Option<Timestamp>,
    /// Of the state file.
    _lock: File,
}

/// The state file and the journal.
fn find_files(options: &BotOptions) -> Result<(PathBuf, PathBuf), Error> {
    let (state, journal) = (resolved(&options.state_file)?, resolved(&options.journal)?);
    if state == journal {
        let file = options.journal.display();
        return Err(Error::Usage(format!("--journal {file}: expected another file than --state-file")));
    }
    Ok((state, journal))
}

impl<'a> Bot<'a> {
    fn open(options: &'a BotOptions, open_broker: OpenBroker<'_>, stop: &'a Stop) -> Result<Self, Error> {
        let (state, journal) = find_files(options)?;
        let lock = take_lock(&state)?;
        let mut journal = Journal::open(&journal, &state)?;
        let mode = journal.ledger.mode.clone();
        let mut state_file = StateFile::load(state, &mut journal.ledger)?;
        if journal.ledger.mode != mode {
            let mode = Some(journal.ledger.mode.clone());
            journal.append(&Line { mode, ..Line::new(Record::Mode) }, true)?;
        }
        // Before any order: if the state file cannot be written, the bot ends here.
        state_file.save(&journal.ledger, true)?;
        let mut broker = open_broker(&journal.path)?;
        for intent in journal.ledger.working() {
            if let Some(order_id) = intent.attempt.order_id {
                broker.follow(order_id, &intent.order);
            }
        }
        let follower = Follower::new(&options.follow, journal.ledger.cursor.clone(), stop.clone());
        Ok(Self {
            options,
            stop,
            journal,
            state_file,
            broker,
            alerts: AlertCommand::new(options.alert_command.clone()),
            follower,
            is_recovering: false,
            keeps_unsent: false,
            unreadable: HashSet::new(),
            key_expires_at: None,
            _lock: lock,
        })
    }

    fn run(&mut self) -> Result<Infallible, Halt> {
        if let Mode::CloseOnly { reason, since, .. } = &self.journal.ledger.mode {
            log::warn!("close-only mode since {since} ({reason}): no entries until a run with --recovery");
        }
        if let Some(recovery) = &self.options.recovery {
            self.recover(recovery)?;
        }
        // A bot without a cursor connects first, even if the broker is away: its signals begin now.
        if self.journal.ledger.cursor.is_some() || self.journal.ledger.first_open().is_some() {
            self.settle(None)?;
        }
        loop {
            let event = self.follower.next_event().map_err(|end| self.halt(end))?;
            self.handle(event)?;
        }
    }

    fn handle(&mut self, event: FeedEvent) -> Result<(), Halt> {
        logging::turn();
        self.note_ended_orders()?;
        match &event {
            FeedEvent::Interrupted { url, cause, alarm, wait } => {
                self.interrupted(url, cause, *alarm, *wait);
                return Ok(());
            }
            FeedEvent::Connected(connected) => self.connected(connected)?,
            // Its signals begin with the first connection, even if the broker is away.
            FeedEvent::Nothing if self.journal.ledger.cursor.is_none() => return Ok(()),
            _ => {}
        }
        if let Err(why) = self.broker.connected() {
            // The event in hand is not acknowledged, so it comes again.
            self.follower.disconnect();
            return self.settle(Some((Reason::BrokerAway, why)));
        }
        match event {
            FeedEvent::Signal(event) => self.signal(event)?,
            FeedEvent::Unreadable { feed_seq, why, data } => self.unreadable(feed_seq, &why, &data)?,
            FeedEvent::Quarantined { feed_seq, error, .. } => self.quarantined(feed_seq, &error)?,
            FeedEvent::Missed(reason) => {
                self.enter_close_only(reason, &format!("the feed says {reason}: signals were missed"))?;
            }
            FeedEvent::Notice(notice) => log::info!(target: LIMITED, "{notice}"),
            FeedEvent::Nothing => self.warn_of_key_end()?,
            FeedEvent::Connected(_) | FeedEvent::Interrupted { .. } => {}
        }
        Ok(())
    }

    fn halt(&mut self, end: FollowEnd) -> Halt {
        match end {
            FollowEnd::Stopped => Halt::Stopped,
            FollowEnd::KeyRefused(answer) => {
                let message = format!("{answer}: the feed refuses the key; the bot ends");
                self.alert(Reason::Unauthorized, &message, None);
                Halt::Failed(Error::Refused(message))
            }
        }
    }

    fn interrupted(&mut self, url: &FeedUrl, cause: &Cause, alarm: Option<Reason>, wait: Duration) {
        let wait = text::duration(wait);
        log::warn!(target: LIMITED, "{url}: {cause}; trying again in {wait}");
        if let Some(reason) = alarm {
            let message = format!("{url}: {cause}; this does not end by itself, and the bot keeps trying");
            self.alert(reason, &message, None);
        }
    }

    fn connected(&mut self, connected: &Connected) -> Result<(), Error> {
        self.bind(&connected.feed_id)?;
        if self.journal.ledger.cursor.is_none() {
            self.append(&Line::new(Record::Cursor).at(self.follower.cursor()))?;
        }
        let cursor = self.journal.ledger.cursor.as_ref().map_or(connected.cursor, |cursor| cursor.feed_seq);
        log::info!("connected: streaming after {cursor}");
        self.key_expires_at = connected.key_expires_at.as_deref().and_then(clock::instant);
        self.warn_of_key_end()
    }

    /// Journal and state file belong to one log for good.
    fn bind(&mut self, feed_id: &str) -> Result<(), Error> {
        match &self.journal.ledger.feed_id {
            Some(bound) if bound != feed_id => Err(Error::Failed(format!(
                "this feed streams the log {feed_id}, but state file and journal belong to the log {bound}"
            ))),
            Some(_) => Ok(()),
            None => self.append(&Line { feed_id: Some(feed_id.to_owned()), ..Line::new(Record::Bound) }),
        }
    }

    /// Warns once a day, also on a stream that lasts for weeks: the bot remembers the last `connected`.
    fn warn_of_key_end(&mut self) -> Result<(), Error> {
        let Some(end) = self.key_expires_at else { return Ok(()) };
        let now = Timestamp::now();
        let warned = self.state_file.key_warned_at.as_deref().and_then(clock::instant);
        // A time to come is from before the clock was set back.
        let warned_today = warned.is_some_and(|warned| warned <= now && now.duration_since(warned) < DAY);
        if warned_today || end.duration_since(now) > KEY_WARNING {
            return Ok(());
        }
        self.alert(Reason::KeyExpires, &format!("the key expires at {}", clock::text(end)), None);
        self.state_file.key_warned_at = Some(clock::text(now));
        self.state_file.save(&self.journal.ledger, false)
    }

    fn unreadable(&mut self, feed_seq: Option<i64>, why: &str, data: &str) -> Result<(), Error> {
        if let Some(feed_seq) = feed_seq {
            let cursor = Cursor { feed_seq, event_time: None };
            self.unusable(Some(&cursor), &format!("event {feed_seq}: {why}"), data)?;
            return self.moved(true);
        }
        if self.unreadable.len() >= MOST_UNREADABLE {
            self.unreadable.clear();
        }
        let hash = self.unreadable.hasher().hash_one(data);
        if self.unreadable.insert(hash) { self.unusable(None, why, data) } else { Ok(()) }
    }

    fn unusable(&mut self, cursor: Option<&Cursor>, why: &str, data: &str) -> Result<(), Error> {
        let data = clip(data);
        self.alert(Reason::UnusableEvent, &format!("{why}; skipped: {data}"), None);
        self.journal.append(&Line { data: Some(data), ..Line::new(Record::Unusable).why(clip(why)).at(cursor) }, true)
    }

    fn quarantined(&mut self, feed_seq: i64, error: &str) -> Result<(), Error> {
        let message = format!("the feed cannot deliver event {feed_seq}: {}", clip(error));
        let is_normal = !self.journal.ledger.mode.is_close_only();
        if is_normal && self.options.closes_on_quarantined {
            self.enter_close_only(Reason::Quarantined, &message)?;
        } else {
            self.alert(Reason::Quarantined, &message, None);
        }
        let cursor = Cursor { feed_seq, event_time: None };
        self.journal.append(&Line::new(Record::Quarantined).why(clip(error)).at(Some(&cursor)), true)?;
        self.moved(true)
    }

    fn enter_close_only(&mut self, reason: Reason, message: &str) -> Result<(), Error> {
        if self.journal.ledger.mode.is_close_only() {
            log::warn!("{message}; already in close-only mode");
            return Ok(());
        }
        let ledger = &self.journal.ledger;
        let last_event = ledger.last_event_time.clone().filter(|time| clock::instant(time).is_some());
        let mode = Mode::CloseOnly {
            reason: reason.to_string(),
            since: clock::now_text(),
            missed_since: last_event.unwrap_or_else(|| clock::text(ledger.started_at)),
        };
        let message =
            format!("{message}; close-only mode: exits are placed, entries are not, until a run with --recovery");
        // Alert first: a bot killed in between gets the feed's message again, and then alerts twice rather than never.
        self.alert(reason, &message, None);
        self.append(&Line { mode: Some(mode), ..Line::new(Record::Mode) })
    }

    /// Records a fact in the journal, and its cursor or mode in the state file too.
    fn append(&mut self, line: &Line) -> Result<(), Error> {
        self.journal.append(line, true)?;
        self.state_file.save(&self.journal.ledger, true)
    }

    /// Saves the cursor of an event that was handled, and that the journal has, and takes the next event.
    fn moved(&mut self, sync: bool) -> Result<(), Error> {
        self.state_file.save(&self.journal.ledger, sync)?;
        self.journal.ledger.cursor.clone().into_iter().for_each(|cursor| self.follower.acknowledge(cursor));
        Ok(())
    }

    /// Writes a log line and starts the operator's program. Does not wait for it.
    ///
    /// The log summarises repeated lines. Lines of different reasons or about different orders are no repetition.
    fn alert(&mut self, reason: Reason, message: &str, order: Option<&Order>) {
        let target = format!("{LIMITED}::{reason} {}", order.map_or("", |order| &order.order_ref));
        let level = match reason {
            Reason::BrokerAway | Reason::KeyExpires => Level::Warning,
            _ => Level::Critical,
        };
        match level {
            Level::Critical => log::error!(target: &target, "CRITICAL {reason}: {message}"),
            Level::Warning => log::warn!(target: &target, "{reason}: {message}"),
        }
        let about = order.map(|order| About { signal_id: &order.signal_id, order_ref: &order.order_ref });
        self.alerts.run(level, &reason.to_string(), message, about);
    }
}
