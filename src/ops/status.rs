//! `/status`: the feed's present state, as JSON.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Histogram;
use prometheus::core::Metric;
use serde::Serialize;
use serde_json::{Value, json};

use crate::db::Watch;
use crate::event::{EventTime, FeedSeq};
use crate::feed::client::Client;
use crate::feed::health::Part;
use crate::feed::{Facts, Feed, seconds};
use crate::sync::lock;

/// The feed's present state. May read the log to find where the window begins, and blocks for one database call at
/// most. Lag and queued are counted in events; `totals` and `latency` are counted from the start of the server.
pub(crate) fn json(feed: &Feed, instance: &str) -> String {
    let stats = &feed.stats;
    let facts = feed.facts();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": instance,
        "role": if facts.is_standby { "standby" } else { "primary" },
        "standby_lag_seconds": facts.is_standby.then_some(facts.standby_lag.as_secs_f64()),
        "started_at": feed.started_at.to_string(),
        "feed_id": facts.feed_id,
        "state": feed.health.state(),
        "capture": if facts.is_capture_off { "off" } else { "on" },
        "head": feed.head(),
        "earliest": earliest(feed),
        "last_event_at": feed.last_event_at(),
        "keys": keys(feed),
        "clients": clients(feed),
        "replay": {
            "connections": feed.replay.size(),
            "in_use": feed.replay.in_use(),
            "waiting": feed.replay.waiting(),
            "truncated": stats.truncated.get(),
            "rewritten": stats.rewritten.get(),
        },
        "database": database(feed, &facts),
        "totals": {
            "events": stats.events.get(),
            "deliveries": stats.deliveries.get(),
            "dropped_events": stats.dropped.get(),
        },
        "latency": {
            "commit_to_broadcast_seconds": buckets(&stats.commit_to_broadcast),
            "broadcast_to_written_seconds": buckets(&stats.broadcast_to_written),
        },
    })
    .to_string()
}

fn earliest(feed: &Feed) -> FeedSeq {
    let known = feed.last_earliest();
    let (None, Some(head)) = (feed.health.outage(), feed.recall_head(Duration::ZERO)) else { return known };
    let watch: Watch = Arc::new(|| true);
    feed.earliest(Duration::ZERO, head, &watch).map_or(known, |earliest| earliest.seq)
}

/// A live key, so that an operator sees whether each bot is connected. During a rotation both keys of a name are one
/// entry, because they belong to the same bot.
#[derive(Debug, Serialize)]
pub(super) struct KeyStatus {
    pub(super) name: String,
    pub(super) streams: usize,
    /// When one of its streams last began or ended, as recorded in the database.
    last_used_at: Option<EventTime>,
    /// When it expires; `None` for never.
    expires_at: Option<EventTime>,
    delay_seconds: Value,
}

/// Every live key by name, as last read. Never asks the database.
pub(super) fn keys(feed: &Feed) -> Vec<KeyStatus> {
    let mut by_name: BTreeMap<String, KeyStatus> = BTreeMap::new();
    for key in feed.keys.live(feed.now()) {
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

fn clients(feed: &Feed) -> Vec<Value> {
    let figures = |client: &Arc<Client>| {
        let (position, delivered, dropped) = {
            let writer = lock(&client.writer);
            (writer.position, writer.delivered, writer.dropped)
        };
        let lag = feed.lag_events(client);
        json!({
            "key": client.key.name,
            "address": client.address.to_string(),
            "cursor": position.cursor,
            "lag": lag,
            // A client's queue has room for this many.
            "queued": lag.min(feed.options.queue_capacity as u64),
            "delivered": delivered,
            "dropped": dropped,
            "since": client.since,
            "delay_seconds": seconds(client.key.delay),
        })
    };
    feed.clients.present().iter().map(figures).collect()
}

fn database(feed: &Feed, facts: &Facts) -> Value {
    let (log_read, probed) = (feed.health.proven_for(Part::Log), feed.health.proven_for(Part::Listen));
    json!({
        "log_readable": log_read.is_some(),
        "log_read_age_seconds": log_read.map(|age| age.as_secs_f64()),
        "log_lag_events": feed.log_lag_events(),
        "listening": probed.is_some(),
        "listen_probe_age_seconds": probed.map(|age| age.as_secs_f64()),
        "listen_probe_seconds": feed.stats.listen_probe.get(),
        "outage_seconds": feed.health.outage().map(|outage| outage.as_secs_f64()),
        "counter": facts.counter,
        "another_cluster": facts.is_another_cluster,
        "unsettled_quarantined_events": facts.unsettled_events,
    })
}

/// A histogram: upper bounds, and how many observations lie at or below each.
fn buckets(histogram: &Histogram) -> Value {
    let metric = histogram.metric();
    let histogram = metric.get_histogram();
    let buckets = histogram.get_bucket();
    json!({
        "upper_bounds": buckets.iter().map(|bucket| bucket.upper_bound()).collect::<Vec<_>>(),
        "cumulative": buckets.iter().map(|bucket| bucket.cumulative_count()).collect::<Vec<_>>(),
    })
}
