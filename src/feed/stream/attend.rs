//! What a stream attends to while it waits: its end, its heartbeat, notices of the database's health.

use std::time::{Duration, Instant};

use super::{LOOK_AGAIN, Step, Stop, Stream, notices};
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

/// Asked while the database works for a stream: attends to the stream, and says whether the work is to go on.
pub(super) fn watch(feed: &Feed, client: &Client) -> bool {
    attend(feed, client).is_ok() && !is_connected_overdue(feed, client)
}

/// Whether the block `connected` must go out without waiting any longer: nothing may be written before it, and a
/// heartbeat or the stream's end is due.
pub(super) fn is_connected_overdue(feed: &Feed, client: &Client) -> bool {
    let (is_connected, silent) = {
        let writer = lock(&client.writer);
        (writer.is_connected(), writer.silent_for())
    };
    !is_connected && (silent >= feed.options.heartbeat || end(feed, client).is_some())
}

/// Why the stream should end, if it should.
fn end(feed: &Feed, client: &Client) -> Option<End> {
    if let Some(end) = client.ending() {
        return Some(end);
    }
    if feed.health.is_stopping() {
        return Some(End::Shutdown);
    }
    if client.expires_at().is_some_and(|at| at <= feed.clock.now()) {
        return Some(End::KeyExpired);
    }
    client.ends_at.is_some_and(|at| at <= Instant::now()).then_some(End::MaxAge)
}

/// Handles requests to end, changes of the database's health, and the heartbeat. Does not block. It must be called
/// during every wait of a stream.
fn attend(feed: &Feed, client: &Client) -> Step {
    match end(feed, client) {
        Some(end @ End::ClientGone) => return Err(Stop::Within(end)),
        Some(end) => return Err(Stop::Between(end)),
        None => {}
    }
    if !lock(&client.writer).is_connected() {
        client.write_pending(&feed.stats)?;
        return Ok(());
    }
    while let Some(epoch) = client.next_epoch(feed.health.epoch()) {
        let reason = if epoch.is_multiple_of(2) { "degraded" } else { "recovered" };
        notices::push(client, &serde_json::json!({"reason": reason}));
    }
    let is_heartbeat_due = {
        let writer = lock(&client.writer);
        writer.is_idle() && writer.silent_for() >= feed.options.heartbeat
    };
    if is_heartbeat_due {
        if socket::is_closed(&client.socket) {
            return Err(Stop::Within(End::ClientGone));
        }
        // No blank line: several clients turn one into an empty event.
        lock(&client.writer).push_blocks(b":ping\n");
    }
    client.write_pending(&feed.stats)?;
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
            let written = self.client.write_pending(&self.feed.stats)?;
            if !written.is_blocked {
                return Ok(());
            }
            let still = lock(&self.client.writer).unanswered_for().unwrap_or_default();
            self.is_stalled |= still >= STALLED_AFTER;
            if still >= self.feed.options.write_timeout {
                return Err(Stop::Within(End::WriteTimeout));
            }
            let end = end(self.feed, self.client);
            let is_for_key = matches!(end, Some(End::KeyRevoked | End::KeyExpired));
            let is_overdue = is_for_key && ended_at.get_or_insert_with(Instant::now).elapsed() >= BLOCKED_AT_END;
            if let Some(end) = end.filter(|end| is_overdue || *end == End::ClientGone) {
                return Err(Stop::Within(end));
            }
            socket::wait_writable(&self.client.socket, WRITE_LOOK_EVERY);
        }
    }

    /// After a call that failed: tries again a little later.
    pub(super) fn retry_later(&mut self, error: &db::Error) -> Step {
        self.attend()?;
        log::debug!("replay for key {:?}: {error}", self.client.key.name);
        if error.is_conflict() {
            self.feed.stats.replay_conflicts.inc();
        }
        self.pause(LOOK_AGAIN)
    }
}
