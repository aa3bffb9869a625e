//! The tiers of delayed keys, each with a thread `tier-…` that plays the reader's part in the past.
//!
//! Such a thread owns the head of its tier. It reads ahead the numbers and times of what comes next, sleeps until the
//! first is due, and then reads, renders and broadcasts what is due: once a tier, however many clients it has. It borrows
//! the replay connections, asks the database nothing while nothing new is in the log, and ends when the server stops.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::broadcast::Broadcaster;
use super::pages::{self, PageReader};
use super::standby::Role;
use super::tail::Tail;
use super::tier::Tier;
use super::{Feed, lock, threads};
use crate::db::{self, event_log};
use crate::event::{EventTime, FeedSeq};

/// What the tail of a delayed tier may take, 1 MiB.
const TAIL_BYTES: usize = 1024 * 1024;
/// How many numbers and times are read ahead.
const AHEAD_ROWS: usize = 1_000;
/// Longest sleep; so late at the most is news of the live tier noticed, which is due no earlier than a delay later.
const LONGEST_SLEEP: Duration = Duration::from_millis(500);
/// Least sleep: what becomes due within it goes out together. An event must be out within 100 ms of being due.
const LEAST_SLEEP: Duration = Duration::from_millis(20);
/// How often the head is found by the log alone, should rows with wrong times hide what is due behind them.
const EXACT_EVERY: Duration = Duration::from_secs(10);

/// The tier with this delay; the first who asks makes it, and reads where its head stands.
///
/// # Errors
/// What reading the log failed with; then there is no tier yet.
pub fn tier(feed: &Arc<Feed>, delay: Duration) -> Result<Arc<Tier>, db::Error> {
    // Held while the head is read: all that ask at once are answered by one query.
    let mut tiers = lock(&feed.tiers);
    if let Some(tier) = tiers.get(&delay) {
        return Ok(tier.clone());
    }
    let tier = Tier::new(delay, feed.options.replay_window, TAIL_BYTES);
    let mut reader = DelayedReader {
        feed: feed.clone(),
        tier: tier.clone(),
        broadcaster: Broadcaster::new(tier.clone()),
        pages: PageReader::default(),
        ahead: VecDeque::new(),
        history: feed.live.history(),
        exact_at: Instant::now(),
    };
    reader.begin()?;
    let name = format!("tier-{}s", delay.as_secs());
    let (wake, woken) = bounded(1);
    feed.health.wake_on_change(wake);
    threads::start(feed, name, move |_| reader.run(&woken)).map_err(|error| db::Error::Settings(error.to_string()))?;
    log::info!("a tier with a delay of {} begins at event {}", crate::text::duration(delay), tier.head());
    tiers.insert(delay, tier.clone());
    Ok(tier)
}

struct DelayedReader {
    feed: Arc<Feed>,
    tier: Arc<Tier>,
    broadcaster: Broadcaster,
    pages: PageReader,
    /// Number and time of the rows above the head, as far as they were read ahead.
    ahead: VecDeque<(FeedSeq, EventTime)>,
    history: u64,
    exact_at: Instant,
}

impl DelayedReader {
    fn run(mut self, woken: &Receiver<()>) {
        let mut sleep = Duration::ZERO;
        while !self.feed.health.is_stopping() {
            if woken.recv_timeout(sleep).is_ok() {
                self.broadcaster.ring_all();
            }
            sleep = self.look().unwrap_or_else(|error| {
                log::debug!("read the log for the tier of {:?}: {error}", self.tier.delay());
                LONGEST_SLEEP
            });
        }
        self.broadcaster.ring_all();
    }

    /// Takes up the head as the log has it now.
    fn begin(&mut self) -> Result<(), db::Error> {
        let due = self.tier.now(&self.feed.clock);
        let (head, time) = self.feed.replay.with(|connection| event_log::read_due_head(connection, due))?;
        self.ahead.clear();
        self.broadcaster.replace_history(Tail::new(TAIL_BYTES, head, time));
        Ok(())
    }

    /// Broadcasts what is due, and says how long to sleep.
    fn look(&mut self) -> Result<Duration, db::Error> {
        if self.history != self.feed.live.history() {
            self.history = self.feed.live.history();
            self.begin()?;
        }
        self.read_ahead()?;
        let now = self.tier.now(&self.feed.clock);
        let is_due = |&(_, time): &(FeedSeq, EventTime)| time.is_usable() && time <= now;
        let mut due = self.ahead.iter().rev().find(|row| is_due(row)).map(|&(seq, _)| seq);
        if due.is_none() && !self.ahead.is_empty() && self.exact_at.elapsed() >= EXACT_EVERY {
            self.exact_at = Instant::now();
            let (head, _) = self.feed.replay.with(|connection| event_log::read_due_head(connection, now))?;
            due = Some(head).filter(|head| *head > self.broadcaster.head());
        }
        if let Some(due) = due {
            self.broadcast_upto(due)?;
            return Ok(LEAST_SLEEP);
        }
        let next = self.ahead.iter().filter(|(_, time)| time.is_usable()).map(|&(_, time)| time.since(now)).min();
        Ok(next.unwrap_or(LONGEST_SLEEP).clamp(LEAST_SLEEP, LONGEST_SLEEP))
    }

    fn read_ahead(&mut self) -> Result<(), db::Error> {
        let known = self.ahead.back().map_or(self.broadcaster.head(), |&(seq, _)| seq);
        // Nothing is asked of the database while the live tier has nothing newer.
        if self.ahead.len() >= AHEAD_ROWS || self.feed.live.head() <= known {
            return Ok(());
        }
        let from_memory = lock(&self.feed.live.tail).times_after(known, AHEAD_ROWS);
        let rows = match from_memory {
            Some(rows) => rows,
            None => self.feed.replay.with(|connection| event_log::read_times(connection, known, AHEAD_ROWS as i64))?,
        };
        self.ahead.extend(rows);
        Ok(())
    }

    fn broadcast_upto(&mut self, due: FeedSeq) -> Result<(), db::Error> {
        while self.broadcaster.head() < due {
            let head = self.broadcaster.head();
            let pages = &mut self.pages;
            let page = self.feed.replay.with(|connection| pages.read(connection, head, due))?;
            if page.rows.is_empty() && self.feed.role() == Role::Standby {
                // Yet to be replayed, after another database was left for this standby.
                return Ok(());
            }
            if page.rows.is_empty() {
                // Pruned meanwhile, or the log is another one: begin anew either way.
                return self.begin();
            }
            let prev = head.max(page.pruned_through);
            let ordinal = self.broadcaster.ordinal();
            let most = self.feed.options.queue_capacity;
            let feed = &self.feed;
            let batches = pages::render(&page.rows, prev, ordinal, most, |row, poison| feed.quarantine(row, poison));
            self.broadcaster.publish(batches, &feed.stats);
            let head = self.broadcaster.head();
            while self.ahead.front().is_some_and(|&(seq, _)| seq <= head) {
                self.ahead.pop_front();
            }
        }
        Ok(())
    }
}
