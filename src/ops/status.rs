//! `/status`: the feed's present state, as JSON.

use std::sync::Arc;
use std::time::Duration;

use prometheus::Histogram;
use prometheus::core::Metric;
use serde_json::{Value, json};

use super::{Operator, keys};
use crate::db::Watch;
use crate::event::FeedSeq;
use crate::feed::client::Client;
use crate::feed::health::{Part, State};
use crate::feed::{Feed, seconds};

/// The feed's present state. May read the log to find where the window begins, and blocks for one database call at
/// most. Lag and queued are counted in events; `totals` and `latency` are counted from the start of the server.
pub fn json(operator: &Operator) -> String {
    let feed = &operator.feed;
    let stats = &feed.stats;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "instance": operator.instance,
        "role": feed.role().name(),
        "standby_lag_seconds": feed.standby_lag().map(|lag| lag.as_secs_f64()),
        "started_at": feed.started_at.to_string(),
        "feed_id": feed.feed_id(),
        "state": state(feed),
        "capture": if feed.capture_on() { "on" } else { "off" },
        "head": feed.head(),
        "earliest": earliest(feed),
        "last_event_at": feed.last_event_at(),
        "keys": keys::live(feed),
        "clients": clients(feed),
        "replay": {
            "connections": feed.replay.size(),
            "in_use": feed.replay.in_use(),
            "waiting": feed.replay.waiting(),
            "catch_ups": stats.catch_ups.get(),
            "pages": stats.replay_pages.get(),
            "truncated": stats.truncated.get(),
            "rewritten": stats.rewritten.get(),
        },
        "database": database(feed),
        "totals": {
            "events": stats.events.get(),
            "deliveries": stats.deliveries.get(),
            "sent_bytes": stats.bytes.get(),
            "dropped_events": stats.dropped.get(),
            "quarantined_events": stats.quarantined.get(),
            "evicted_connections": stats.evicted.get(),
        },
        "latency": {
            "commit_to_broadcast_seconds": buckets(&stats.commit_to_broadcast),
            "broadcast_to_written_seconds": buckets(&stats.broadcast_to_written),
        },
    })
    .to_string()
}

/// The state in one word.
pub fn state(feed: &Feed) -> &'static str {
    match feed.health.state() {
        _ if feed.health.is_stopping() => "stopping",
        State::Starting => "starting",
        State::Live => "live",
        State::Degraded => "degraded",
    }
}

fn earliest(feed: &Feed) -> FeedSeq {
    let known = feed.last_earliest();
    let (None, Some(head)) = (feed.health.outage(), feed.recall_head(Duration::ZERO)) else { return known };
    let watch: Watch = Arc::new(|| true);
    feed.earliest(Duration::ZERO, head, &watch).map_or(known, |earliest| earliest.seq)
}

fn clients(feed: &Feed) -> Vec<Value> {
    let mut clients = feed.clients.present();
    clients.sort_by_key(|client| client.id);
    let figures = |client: &Arc<Client>| {
        json!({
            "key": client.key.name,
            "address": client.address.to_string(),
            "cursor": client.cursor(),
            "lag": feed.lag_events(client),
            "queued": feed.queued_events(client),
            "delivered": client.delivered_events(),
            "dropped": client.dropped_events(),
            "since": client.since,
            "delay_seconds": seconds(client.key.delay),
        })
    };
    clients.iter().map(figures).collect()
}

fn database(feed: &Feed) -> Value {
    let (log_read, probed) = (feed.health.proven_for(Part::Log), feed.health.proven_for(Part::Listen));
    json!({
        "log_readable": log_read.is_some(),
        "log_read_age_seconds": log_read.map(|age| age.as_secs_f64()),
        "log_lag_events": feed.log_lag_events(),
        "listening": probed.is_some(),
        "listen_probe_age_seconds": probed.map(|age| age.as_secs_f64()),
        "listen_probe_seconds": feed.stats.listen_probe.get(),
        "outage_seconds": feed.health.outage().map(|outage| outage.as_secs_f64()),
        "counter": feed.counter(),
        "another_cluster": feed.is_another_cluster(),
        "unsettled_quarantined_events": feed.unsettled_events(),
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
        "count": histogram.get_sample_count(),
        "sum": histogram.get_sample_sum(),
    })
}
