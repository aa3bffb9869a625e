//! What a stream attends to while it waits: its end, its heartbeat, notices of the database's health.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{LOOK_AGAIN, Leave, Step, Stream};
use crate::db;
use crate::feed::Feed;
use crate::feed::client::Client;
use crate::feed::reason::End;
use crate::http::socket;
use crate::sync::lock;

/// How often a thread with a blocked write checks for other work.
const WRITE_LOOK_EVERY: Duration = Duration::from_millis(250);
/// A client that takes nothing for this long is stalled; before that it is slow.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// How long after the end of its key a stream gives up a blocked write.
const BLOCKED_AT_END: Duration = Duration::from_millis(500);

fn end(feed: &Feed, client: &Client) -> Option<End> {
    let ending = client.ending();
    if ending.is_some() {
        ending
    } else if feed.health.is_stopping() {
        Some(End::Shutdown)
    } else if client.expires_at().is_some_and(|at| at <= feed.now()) {
        Some(End::KeyExpired)
    } else {
        client.ends_at.is_some_and(|at| at <= Instant::now()).then_some(End::MaxAge)
    }
}

/// Handles requests to end, changes of the database's health, and the heartbeat. Does not block. It must be called
/// during every wait of a stream. Before the block `connected` it writes only heartbeats, which are no blocks.
pub(super) fn attend(feed: &Feed, client: &Client) -> Step {
    match end(feed, client) {
        Some(end @ End::ClientGone) => return Err(Leave::Within(end)),
        Some(end) => return Err(Leave::Between(end)),
        None => {}
    }
    let mut writer = lock(&client.writer);
    if writer.is_connected {
        // Two changes restore the same state, so the client hears of the last two at most.
        let epoch = feed.health.epoch();
        for epoch in writer.told_epoch.max(epoch.saturating_sub(2)) + 1..=epoch {
            let reason = if epoch.is_multiple_of(2) { "degraded" } else { "recovered" };
            writer.push_notice(&json!({"reason": reason}));
        }
        writer.told_epoch = epoch;
    }
    if writer.is_idle() && writer.silent_for() >= feed.options.heartbeat {
        if socket::is_closed(&client.socket) {
            return Err(Leave::Within(End::ClientGone));
        }
        // No blank line: several clients turn one into an empty event.
        writer.push_blocks(b":ping\n");
    }
    writer.write_pending(&feed.stats)?;
    Ok(())
}

impl Stream<'_> {
    pub(super) fn attend(&self) -> Step {
        attend(self.feed, self.client)
    }

    pub(super) fn pause(&mut self, time: Duration) -> Step {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            // A batch taken off the channel here is still in the tail.
            self.client.wait(left);
            self.attend()?;
        }
        Ok(())
    }

    /// Writes everything that is pending. Blocks until the client has taken it.
    pub(super) fn flush(&mut self) -> Step {
        let mut ended_at: Option<Instant> = None;
        loop {
            let unanswered = {
                let mut writer = lock(&self.client.writer);
                if writer.write_pending(&self.feed.stats)? {
                    return Ok(());
                }
                writer.unanswered_for().unwrap_or_default()
            };
            self.is_stalled |= unanswered >= STALLED_AFTER;
            if unanswered >= self.feed.options.write_timeout {
                return Err(Leave::Within(End::WriteTimeout));
            }
            let end = end(self.feed, self.client);
            let is_for_key = matches!(end, Some(End::KeyRevoked | End::KeyExpired));
            let is_overdue = is_for_key && ended_at.get_or_insert_with(Instant::now).elapsed() >= BLOCKED_AT_END;
            if let Some(end) = end.filter(|end| is_overdue || *end == End::ClientGone) {
                return Err(Leave::Within(end));
            }
            socket::wait_writable(&self.client.socket, WRITE_LOOK_EVERY);
            let generation = lock(&self.feed.tail).generation;
            lock(&self.client.writer).forget_others(generation);
        }
    }

    pub(super) fn retry_later(&mut self, error: &db::Error) -> Step {
        self.attend()?;
        log::debug!("replay for {}: {error}", self.client);
        self.pause(LOOK_AGAIN)
    }
}
