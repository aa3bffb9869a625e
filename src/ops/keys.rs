//! Every live key and its streams, so that an operator sees whether each bot is connected.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::event::EventTime;
use crate::feed::{Feed, seconds};

/// A live key. During a rotation both keys of a name are one entry, because they belong to the same bot.
#[derive(Debug, Serialize)]
pub(super) struct KeyStatus {
    /// The name it was minted under.
    pub(super) name: String,
    /// Its open streams.
    pub(super) streams: usize,
    /// When one of its streams last began or ended, as recorded in the database.
    last_used_at: Option<EventTime>,
    /// When it expires; `None` for never.
    expires_at: Option<EventTime>,
    delay_seconds: serde_json::Value,
}

/// Every live key by name, as last read. Never asks the database.
pub(super) fn live(feed: &Feed) -> Vec<KeyStatus> {
    let mut by_name: BTreeMap<String, KeyStatus> = BTreeMap::new();
    for key in feed.keys.live(feed.clock.now()) {
        let status = by_name.entry(key.name.clone()).or_insert_with(|| KeyStatus {
            name: key.name.clone(),
            streams: 0,
            last_used_at: key.last_used_at,
            expires_at: key.expires_at,
            delay_seconds: seconds(key.delay),
        });
        status.last_used_at = status.last_used_at.max(key.last_used_at);
        // The later expiry counts, and `None` is the latest.
        status.expires_at = status.expires_at.and_then(|at| key.expires_at.map(|other| at.max(other)));
    }
    for client in feed.clients.present() {
        if let Some(status) = by_name.get_mut(&client.key.name) {
            status.streams += 1;
        }
    }
    by_name.into_values().collect()
}
