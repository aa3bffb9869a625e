//! The messages about a stream itself: blocks of `event: system`.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Position, Step, Stream};
use crate::db::event_log::{Overflow, WindowStart};
use crate::event::FeedSeq;
use crate::feed::client::Client;
use crate::feed::seconds;
use crate::random::random_between;
use crate::sync::lock;

/// Bounds of `retry:`, the time that a client waits before it reconnects.
const RETRY: (Duration, Duration) = (Duration::from_millis(2000), Duration::from_millis(5000));

/// Adds a block about the stream itself. It has no id: a client that reconnects gets what matters of it again.
pub(super) fn push(client: &Client, message: &Value) {
    lock(&client.writer).push_blocks(format!("event: system\ndata: {message}\n\n").as_bytes());
}

impl Stream<'_> {
    pub(super) fn connected(&self, cursor: FeedSeq, head: FeedSeq, earliest: FeedSeq) {
        let message = json!({
            "reason": "connected",
            "feed_id": self.feed.feed_id(),
            "cursor": cursor,
            "head": head,
            "earliest": earliest,
            "delay_seconds": seconds(self.delay),
            "heartbeat_seconds": seconds(self.feed.options.heartbeat),
            "key_expires_at": self.client.expires_at().map(|at| at.to_string()),
        });
        let retry = random_between(RETRY.0, RETRY.1).as_millis();
        let block = format!("id: {cursor}\nevent: system\nretry: {retry}\ndata: {message}\n\n");
        lock(&self.client.writer).push_connected(block.as_bytes());
    }

    pub(super) fn truncated(&self, requested: FeedSeq, earliest: WindowStart, generation: u64) {
        log::warn!(
            "replay truncated: key {:?} from {} asked for events after {requested}, replay begins at {}",
            self.client.key.name,
            self.client.address,
            earliest.seq
        );
        self.feed.stats.truncated.inc();
        push(self.client, &json!({"reason": "replay_truncated", "requested": requested, "earliest": earliest.seq}));
        let position = Position { cursor: earliest.prev, time: None, generation };
        lock(&self.client.writer).set_position(position);
    }

    pub(super) fn rewritten(&mut self, cursor: FeedSeq) -> Step {
        let head = self.head()?;
        self.feed.stats.rewritten.inc();
        log::warn!(
            "history rewritten: key {:?} from {}: cursor {cursor} is not in this log; continuing from {}",
            self.client.key.name,
            self.client.address,
            head.seq
        );
        push(self.client, &json!({"reason": "history_rewritten", "cursor": cursor, "head": head.seq}));
        self.client.set_cursor(head.seq);
        let position = Position { cursor: head.seq, time: head.time, generation: head.generation };
        lock(&self.client.writer).set_position(position);
        Ok(())
    }

    pub(super) fn dropped(&self, lost: &Overflow) {
        let Overflow { events, from, to } = lost;
        log::warn!(
            "dropped {events} events ({from} to {to}): key {:?} from {} took nothing for a second and its queue overflowed",
            self.client.key.name,
            self.client.address
        );
        let count = u64::try_from(*events).unwrap_or(0);
        self.client.dropped(count);
        self.feed.stats.dropped.inc_by(count);
        push(self.client, &json!({"reason": "dropped", "dropped": events, "from": from, "to": to}));
    }
}
