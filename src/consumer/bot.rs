//! The bot: from events to orders, each at most once, with everything that can go wrong on the way.
//!
//! One thread does it all, one event at a time: journal the intent, place, journal the outcome, then move the cursor.
//! Before anything is sent or consumed, every order whose outcome is open is settled with the broker.

mod settle;

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;

use super::alert::{Alerts, Level, Reason};
use super::broker::{Broker, Ended, Placing};
use super::clock;
use super::decide::{Circumstances, Decision, decide};
use super::files::{self, Lock};
use super::follow::{End, FollowOptions, Follower, Happening, Interruption};
use super::journal::Journal;
use super::ledger::{Line, Record, intent_line};
use super::message::{Connected, Quarantined, SignalEvent};
use super::order::{Action, Order, Signal};
use super::recovery::{self, Recovery};
use super::state::{Found, Mode, State, StateFile};
use super::stop::Stop;
use super::stream::Cursor;
use crate::error::Error;
use crate::logging::LIMITED;
use crate::text::clip;

/// A key that ends sooner than this is warned about, once a day.
const KEY_WARNING: Duration = Duration::from_secs(7 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The same hole this many times in a row is an alert.
const HOLES_TO_ALERT: u32 = 3;

/// What to do about an event that cannot be delivered to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnQuarantined {
    /// A CRITICAL alert, no more.
    Alert,
    /// The alert, and close-only mode.
    CloseOnly,
}

/// How a bot works.
#[derive(Debug)]
pub struct BotOptions {
    /// The feed.
    pub follow: FollowOptions,
    /// Cursor and mode.
    pub state_file: PathBuf,
    /// Every order ever.
    pub journal: PathBuf,
    /// Entries older than this are not placed; `None`: all are.
    pub max_entry_age: Option<Duration>,
    /// What to do about an event that cannot be delivered to anybody.
    pub on_quarantined: OnQuarantined,
    /// Gets every alert.
    pub alert_command: Option<PathBuf>,
    /// Catch up from the database first.
    pub recovery: Option<Recovery>,
}

/// Makes the broker once the journal is the bot's alone. Gets the journal's path.
pub type OpenBroker<'a> = &'a dyn Fn(&std::path::Path) -> Result<Box<dyn Broker>, Error>;

/// Why the bot ends.
#[derive(Debug)]
pub(super) enum Halt {
    Stopped,
    Failed(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What the bot waits for, and why.
#[derive(Debug)]
pub(super) struct Trouble {
    reason: Reason,
    why: String,
}

/// What became of a signal.
#[derive(Debug)]
pub(super) enum Acted {
    /// It is dealt with; `sync` where the cursor's move has to be on the disk.
    Done { sync: bool },
    /// The broker has to be waited for.
    Wait(Trouble),
    /// The broker has to be asked whether it has the order.
    Ask,
}

/// What [`Bot::settle`] does with orders that the broker surely has not got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsent {
    Send,
    Keep,
}

/// Runs the bot until `stop` is asked. Blocks.
///
/// # Errors
/// Whatever ends it otherwise; the text is one line.
pub fn run(options: &BotOptions, open_broker: OpenBroker<'_>, stop: &Stop) -> Result<(), Error> {
    let mut bot = Bot::open(options, open_broker, stop)?;
    let halt = match bot.run() {
        Ok(never) => match never {},
        Err(halt) => halt,
    };
    bot.alerts.finish();
    match halt {
        Halt::Stopped => {
            log::info!("stopped, cursor {}", bot.state.cursor.map_or("none".to_owned(), |cursor| cursor.to_string()));
            Ok(())
        }
        Halt::Failed(error) => Err(error),
    }
}

enum Never {}

pub(super) struct Bot<'a> {
    pub(super) options: &'a BotOptions,
    pub(super) stop: &'a Stop,
    pub(super) journal: Journal,
    pub(super) state: State,
    state_file: StateFile,
    broker: Box<dyn Broker>,
    pub(super) alerts: Alerts,
    pub(super) follower: Follower,
    /// Between the snapshot and the end of a recovery: entries are placed although the mode is close-only.
    pub(super) is_recovering: bool,
    last_unreadable: Option<String>,
    key_expires_at: Option<Timestamp>,
    _locks: [Lock; 2],
}

impl<'a> Bot<'a> {
    fn open(options: &'a BotOptions, open_broker: OpenBroker<'_>, stop: &'a Stop) -> Result<Self, Error> {
        let state_path = files::resolved(&options.state_file)?;
        let journal_path = files::resolved(&options.journal)?;
        files::require_plain(&state_path)?;
        files::require_plain(&journal_path)?;
        let locks = [Lock::take(&journal_path)?, Lock::take(&state_path)?];
        let state_file = StateFile::new(state_path.clone());
        let found = state_file.load()?;
        if found != Found::Nothing && !Journal::exists(&journal_path)? {
            return Err(Error::Failed(format!(
                "the journal {} is lost, but the state file {} is there: restore the journal, or remove the state file \
                 to begin anew, knowing that orders already placed may be placed again",
                journal_path.display(),
                state_path.display()
            )));
        }
        let journal = Journal::open(&journal_path)?;
        let state = reconcile(found, &journal)?;
        // Before any order: a state file that cannot be written ends the bot here.
        state_file.save(&state, true)?;
        let mut broker = open_broker(&journal_path)?;
        for intent in journal.ledger().working() {
            if let Some(order_id) = intent.attempt.order_id {
                broker.follow(order_id, &intent.order, intent.attempt.tried_at);
            }
        }
        let follower = Follower::new(&options.follow, state.cursor(), stop.clone());
        Ok(Self {
            options,
            stop,
            journal,
            state,
            state_file,
            broker,
            alerts: Alerts::new(options.alert_command.clone()),
            follower,
            is_recovering: false,
            last_unreadable: None,
            key_expires_at: None,
            _locks: locks,
        })
    }

    fn run(&mut self) -> Result<Never, Halt> {
        if let Mode::CloseOnly { reason, since, .. } = &self.state.mode {
            log::warn!("close-only mode since {since} ({reason}): entries are not placed until a run with --recovery");
        }
        if let Some(recovery) = &self.options.recovery {
            recovery::run(self, recovery)?;
        }
        // A bot without a cursor connects first, whatever the broker does: its signals begin now.
        if self.state.cursor.is_some() || self.journal.ledger().first_open().is_some() {
            self.settle(None, Unsent::Send)?;
        }
        loop {
            let happening = self.follower.next_happening().map_err(|end| self.unauthorized_or_stopped(end))?;
            self.handle(happening)?;
        }
    }

    fn handle(&mut self, happening: Happening) -> Result<(), Halt> {
        self.note_ended_orders()?;
        match &happening {
            Happening::Interrupted(interruption) => {
                self.interrupted(interruption);
                return Ok(());
            }
            Happening::Connected(connected) => self.connected(connected)?,
            // Its signals begin with the first connection, whatever the broker does.
            Happening::Nothing if self.state.cursor.is_none() => return Ok(()),
            _ => {}
        }
        if let Err(why) = self.broker.connected() {
            // Whatever is in hand is not acknowledged, so it comes again.
            self.follower.disconnect();
            return self.settle(Some(Trouble { reason: Reason::BrokerAway, why }), Unsent::Send);
        }
        match happening {
            Happening::Signal(event) => {
                let trouble = match self.signal(event)? {
                    Acted::Done { .. } => return Ok(()),
                    Acted::Wait(trouble) => Some(trouble),
                    Acted::Ask => None,
                };
                self.follower.disconnect();
                self.settle(trouble, Unsent::Send)?;
            }
            Happening::Unreadable { feed_seq, why, data } => self.unreadable(feed_seq, &why, &data)?,
            Happening::Quarantined(event) => self.quarantined(&event)?,
            Happening::Missed(missed) => {
                let (reason, word) = match missed {
                    super::message::Missed::ReplayTruncated => (Reason::ReplayTruncated, missed.reason()),
                    super::message::Missed::HistoryRewritten => (Reason::HistoryRewritten, missed.reason()),
                };
                let message = format!("the feed says {word}: signals were missed");
                self.enter_close_only(reason, &message)?;
            }
            Happening::Notice(notice) => log::info!(target: LIMITED, "the feed says {notice}"),
            Happening::Nothing => self.warn_of_key_end(None)?,
            Happening::Connected(_) | Happening::Interrupted(_) => {}
        }
        Ok(())
    }

    pub(super) fn unauthorized_or_stopped(&mut self, end: End) -> Halt {
        match end {
            End::Stopped => Halt::Stopped,
            End::Unauthorized { url, answer } => {
                let message = format!("{url}: {answer}: the key is not accepted, the bot ends");
                self.alert(Level::Critical, Reason::Unauthorized, &message);
                Halt::Failed(Error::Refused(message))
            }
        }
    }

    pub(super) fn interrupted(&mut self, interruption: &Interruption) {
        let Interruption { url, cause, same_hole, wait } = interruption;
        let wait = crate::text::duration(Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)));
        log::warn!(target: LIMITED, "{url}: {cause}; trying again in {wait}");
        if *same_hole == HOLES_TO_ALERT {
            let message = format!("{url}: {cause}; this happened {same_hole} times in a row and is tried on");
            self.alert(Level::Critical, Reason::Hole, &message);
        }
    }

    fn connected(&mut self, connected: &Connected) -> Result<(), Error> {
        self.bind(connected.feed_id.as_deref())?;
        if self.state.cursor.is_none()
            && let Some(cursor) = self.follower.cursor().cloned()
        {
            self.journal.append(&Line::new(Record::Cursor).at(Some(&cursor)), true)?;
            self.state.set_cursor(Some(cursor));
            self.save(true)?;
        }
        let cursor = self.state.cursor.map_or("now".to_owned(), |cursor| cursor.to_string());
        log::info!("connected, streaming after {cursor}");
        self.warn_of_key_end(Some(connected))
    }

    /// Journal and state belong to one log for ever.
    pub(super) fn bind(&mut self, feed_id: Option<&str>) -> Result<(), Error> {
        let Some(feed_id) = feed_id else { return Ok(()) };
        match &self.state.feed_id {
            Some(bound) if bound != feed_id => Err(Error::Failed(format!(
                "this feed streams the log {feed_id}, but state file and journal belong to the log {bound}"
            ))),
            Some(_) => Ok(()),
            None => {
                let mut line = Line::new(Record::Bound);
                line.feed_id = Some(feed_id.to_owned());
                self.journal.append(&line, true)?;
                self.state.feed_id = Some(feed_id.to_owned());
                self.save(true)
            }
        }
    }

    /// Once a day, also on a stream that lasts for weeks: the last `connected` is remembered.
    fn warn_of_key_end(&mut self, connected: Option<&Connected>) -> Result<(), Error> {
        if let Some(connected) = connected {
            self.key_expires_at = connected.key_expires_at.as_deref().and_then(clock::instant);
        }
        let Some(end) = self.key_expires_at else { return Ok(()) };
        let now = Timestamp::now();
        let warned = self.state.key_warned_at.as_deref().and_then(clock::instant);
        let warned_today =
            warned.is_some_and(|warned| (now - warned).total(jiff::Unit::Second).is_ok_and(|s| s < DAY.as_secs_f64()));
        if warned_today || end.duration_since(now) > jiff::SignedDuration::try_from(KEY_WARNING).unwrap_or_default() {
            return Ok(());
        }
        self.alert(Level::Warning, Reason::KeyExpires, &format!("the key ends at {}", clock::text(end)));
        self.state.key_warned_at = Some(clock::text(now));
        self.save(false)
    }

    /// Unless it is done, the event is not acknowledged, and comes again.
    fn signal(&mut self, event: SignalEvent) -> Result<Acted, Error> {
        let cursor = Cursor { feed_seq: event.feed_seq, event_time: event.event_time.clone() };
        let signal = match event.signal {
            Ok(signal) => signal,
            Err(why) => {
                self.unusable(Some(&cursor), &format!("event {}: {why}", event.feed_seq), &event.data)?;
                self.moved(cursor, true)?;
                return Ok(Acted::Done { sync: true });
            }
        };
        let circumstances = self.circumstances(event.is_update, event.event_time.as_deref().and_then(clock::instant));
        let order = signal.order(Some(event.feed_seq), event.event_time);
        let acted = self.act(&signal, order, &circumstances, Some(&cursor))?;
        if let Acted::Done { sync } = acted {
            self.moved(cursor, sync)?;
        }
        Ok(acted)
    }

    pub(super) fn circumstances(&self, is_update: bool, made_at: Option<Timestamp>) -> Circumstances {
        Circumstances {
            is_update,
            is_close_only: self.blocks_entries(),
            max_entry_age: self.options.max_entry_age,
            made_at,
            now: Timestamp::now(),
        }
    }

    fn blocks_entries(&self) -> bool {
        self.state.mode.is_close_only() && !self.is_recovering
    }

    /// Decides about a signal and carries it out. `cursor` is where the cursor goes once it is done; none in recovery.
    pub(super) fn act(
        &mut self,
        signal: &Signal,
        order: Order,
        circumstances: &Circumstances,
        cursor: Option<&Cursor>,
    ) -> Result<Acted, Error> {
        let name = &order.order_ref;
        match decide(self.journal.ledger(), signal, circumstances) {
            Decision::Place => return self.place(&order, signal.created_at.clone(), cursor),
            Decision::PassOver => {
                log::debug!("{name} is known: nothing is placed");
                if cursor.is_some() {
                    self.journal.append(&Line::new(Record::Cursor).at(cursor), false)?;
                }
                return Ok(Acted::Done { sync: false });
            }
            Decision::Conflict(difference) => {
                let message = format!(
                    "{name} is known with other facts ({difference}): the id was used again? nothing is placed"
                );
                self.alert_about(Reason::IdReused, &message, &order);
                let line = Line::new(Record::Conflict).signal(signal).why(difference).at(cursor);
                self.journal.append(&line, true)?;
            }
            Decision::Blocked => {
                log::warn!("{name} is blocked: close-only mode");
                self.journal
                    .append(&Line::new(Record::Blocked).signal(signal).why("close-only mode").at(cursor), true)?;
            }
            Decision::Stale(why) => {
                if signal.action == Action::Exit {
                    self.alert_about(
                        Reason::ExitStale,
                        &format!("{name} is an exit that is not placed: {why}"),
                        &order,
                    );
                } else {
                    log::warn!("{name} is stale: {why}");
                }
                self.journal.append(&Line::new(Record::Stale).signal(signal).why(why).at(cursor), true)?;
            }
        }
        Ok(Acted::Done { sync: true })
    }

    fn place(&mut self, order: &Order, created_at: Option<String>, cursor: Option<&Cursor>) -> Result<Acted, Error> {
        let name = &order.order_ref;
        let mut intent = intent_line(order, created_at);
        intent.order_id = self.broker.next_order_id(self.journal.ledger().highest_order_id);
        self.journal.append(&intent, true)?;
        match self.broker.place(order, intent.order_id) {
            Placing::Placed => {
                self.placed(order, intent.order_id, None, cursor)?;
                log::info!("{name} placed: {} {} {}", order.side, order.quantity, order.symbol);
                Ok(Acted::Done { sync: true })
            }
            Placing::Rejected(why) => {
                self.rejected(order, why, cursor)?;
                Ok(Acted::Done { sync: true })
            }
            Placing::Unfilled(why) => {
                self.unfilled(order, why, cursor)?;
                Ok(Acted::Done { sync: true })
            }
            Placing::Away(why) => {
                self.journal.append(&Line::new(Record::Unsent).order_key(order).why(&why), true)?;
                Ok(Acted::Wait(Trouble { reason: Reason::BrokerAway, why }))
            }
            Placing::Unknown(why) => self.unknown(order, why, None),
            Placing::Broke(why) => self.unknown(order, why, Some(true)),
        }
    }

    /// The broker is asked about it at once; there is an alert where that gives no answer.
    fn unknown(&mut self, order: &Order, why: String, broke: Option<bool>) -> Result<Acted, Error> {
        log::warn!("{}: {why}; asking the broker whether it has the order", order.order_ref);
        let mut line = Line::new(Record::Unknown).order_key(order).why(why);
        line.broke = broke;
        self.journal.append(&line, true)?;
        Ok(Acted::Ask)
    }

    /// The broker has the order. Where it has a number there, it is followed to its end.
    fn placed(
        &mut self,
        order: &Order,
        order_id: Option<i64>,
        why: Option<&str>,
        cursor: Option<&Cursor>,
    ) -> Result<(), Error> {
        let mut line = Line::new(Record::Placed).order_key(order).at(cursor);
        line.order_id = order_id;
        line.why = why.map(ToOwned::to_owned);
        self.journal.append(&line, true)?;
        if let Some(order_id) = order_id {
            self.broker.follow(order_id, order, Timestamp::now());
        }
        Ok(())
    }

    fn rejected(&mut self, order: &Order, why: String, cursor: Option<&Cursor>) -> Result<(), Error> {
        let name = &order.order_ref;
        if order.action == Action::Exit {
            self.alert_about(Reason::ExitRejected, &format!("{name} was rejected: {why}"), order);
        } else {
            log::error!("{name} was rejected: {why}");
        }
        self.journal.append(&Line::new(Record::Rejected).order_key(order).why(why).at(cursor), true)
    }

    fn unfilled(&mut self, order: &Order, why: String, cursor: Option<&Cursor>) -> Result<(), Error> {
        let name = &order.order_ref;
        if order.action == Action::Exit {
            let message = format!("{name} ended without being filled, the position is still open: {why}");
            self.alert_about(Reason::ExitUnfilled, &message, order);
        } else {
            log::error!("{name} ended without being filled: {why}");
        }
        self.journal.append(&Line::new(Record::Unfilled).order_key(order).why(why).at(cursor), true)
    }

    /// Orders that the broker had accepted, and that have ended since.
    fn note_ended_orders(&mut self) -> Result<(), Error> {
        while let Some((order_id, ended)) = self.broker.next_ended() {
            let working = self.journal.ledger().working();
            let Some(intent) = working.iter().find(|intent| intent.attempt.order_id == Some(order_id)) else {
                continue;
            };
            let order = intent.order.clone();
            match ended {
                Ended::Filled(how) => {
                    log::info!("{} was filled: {how}", order.order_ref);
                    self.journal.append(&Line::new(Record::Filled).order_key(&order).why(how), true)?;
                }
                Ended::Unfilled(why) => self.unfilled(&order, why, None)?,
            }
        }
        Ok(())
    }

    fn unreadable(&mut self, feed_seq: Option<i64>, why: &str, data: &str) -> Result<(), Error> {
        let cursor = feed_seq.map(|feed_seq| Cursor { feed_seq, event_time: None });
        match cursor {
            Some(cursor) => {
                self.unusable(Some(&cursor), &format!("event {}: {why}", cursor.feed_seq), data)?;
                self.moved(cursor, true)
            }
            // Without a number the cursor cannot tell that it was dealt with, so it may come again with every stream.
            None if self.last_unreadable.as_deref() == Some(data) => Ok(()),
            None => {
                self.last_unreadable = Some(data.to_owned());
                self.unusable(None, why, data)
            }
        }
    }

    pub(super) fn unusable(&mut self, cursor: Option<&Cursor>, why: &str, data: &str) -> Result<(), Error> {
        let data = clip(data);
        self.alert(Level::Critical, Reason::UnusableEvent, &format!("{why}; it is passed over: {data}"));
        let mut line = Line::new(Record::Unusable).why(why).at(cursor);
        line.data = Some(data);
        self.journal.append(&line, true)
    }

    fn quarantined(&mut self, event: &Quarantined) -> Result<(), Error> {
        let Quarantined { feed_seq, error, .. } = event;
        let message = format!("event {feed_seq} cannot be delivered to anybody: {}", clip(error));
        let enters = self.options.on_quarantined == OnQuarantined::CloseOnly && !self.state.mode.is_close_only();
        if enters {
            self.enter_close_only(Reason::Quarantined, &message)?;
        } else {
            self.alert(Level::Critical, Reason::Quarantined, &message);
        }
        let cursor = Cursor { feed_seq: *feed_seq, event_time: None };
        self.journal.append(&Line::new(Record::Quarantined).why(clip(error)).at(Some(&cursor)), true)?;
        self.moved(cursor, true)
    }

    fn enter_close_only(&mut self, reason: Reason, message: &str) -> Result<(), Error> {
        if self.state.mode.is_close_only() {
            log::warn!("{message}; the mode is close-only already");
            return Ok(());
        }
        let ledger = self.journal.ledger();
        let last_event = ledger.last_event_time.clone().filter(|time| clock::instant(time).is_some());
        let mode = Mode::CloseOnly {
            reason: reason.to_string(),
            since: clock::now_text(),
            missed_since: last_event.unwrap_or_else(|| clock::text(ledger.started_at)),
        };
        self.set_mode(mode, None)?;
        let message = format!("{message}; close-only mode: exits are placed, entries not, until a run with --recovery");
        self.alert(Level::Critical, reason, &message);
        Ok(())
    }

    /// Changes the mode, and the cursor with it where one is given.
    pub(super) fn set_mode(&mut self, mode: Mode, cursor: Option<Cursor>) -> Result<(), Error> {
        let mut line = Line::new(Record::Mode).at(cursor.as_ref());
        line.mode = Some(mode.clone());
        self.journal.append(&line, true)?;
        self.state.mode = mode;
        if cursor.is_some() {
            self.state.set_cursor(cursor);
        }
        self.save(true)
    }

    /// The event is dealt with, and the journal says so.
    fn moved(&mut self, cursor: Cursor, sync: bool) -> Result<(), Error> {
        self.state.set_cursor(Some(cursor.clone()));
        self.save(sync)?;
        self.follower.acknowledge(cursor);
        Ok(())
    }

    fn save(&self, sync: bool) -> Result<(), Error> {
        self.state_file.save(&self.state, sync)
    }

    pub(super) fn alert(&mut self, level: Level, reason: Reason, message: &str) {
        self.alerts.raise(level, reason, message, None);
    }

    fn alert_about(&mut self, reason: Reason, message: &str, order: &Order) {
        self.alerts.raise(Level::Critical, reason, message, Some(order));
    }
}

/// State file and journal tell one story; where they differ, the journal was written first.
fn reconcile(found: Found, journal: &Journal) -> Result<State, Error> {
    let ledger = journal.ledger();
    let mut told = State::default();
    told.feed_id.clone_from(&ledger.feed_id);
    told.mode.clone_from(&ledger.mode);
    told.set_cursor(ledger.cursor.clone());
    let state = match found {
        Found::State(state) => state,
        Found::Torn(why) => {
            log::warn!("the state file cannot be read ({why}): cursor and mode are taken from the journal");
            return Ok(told);
        }
        Found::Nothing => {
            if told.cursor.is_some() {
                log::warn!("there is no state file: cursor and mode are taken from the journal");
            }
            return Ok(told);
        }
    };
    if let (Some(one), Some(other)) = (&state.feed_id, &told.feed_id)
        && one != other
    {
        return Err(Error::Failed(format!(
            "the state file belongs to the log {one}, but the journal to the log {other}: they are not of the same bot"
        )));
    }
    told.key_warned_at = state.key_warned_at.clone();
    // A crash between the two leaves the state file behind; its events come again, and the journal knows their orders.
    if state.cursor.is_some() && state.mode.is_close_only() == told.mode.is_close_only() {
        told.set_cursor(state.cursor());
    }
    Ok(told)
}
