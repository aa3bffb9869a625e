//! `/status`: the feed's present state, as JSON.

use std::sync::Arc;
use std::time::Duration;

use prometheus::Histogram;
use prometheus::core::Metric;
use serde::Serialize;

use super::Operator;
use super::keys::{self, KeyStatus};
use crate::db::Watch;
use crate::event::{EventTime, FeedSeq};
use crate::feed::client::Client;
use crate::feed::health::{Part, State};
use crate::feed::{Feed, seconds};

#[derive(Debug, Serialize)]
struct Status<'a> {
    version: &'static str,
    instance: &'a str,
    role: &'static str,
    standby_lag_seconds: Option<f64>,
    started_at: String,
    feed_id: String,
    state: &'static str,
    capture: &'static str,
    head: FeedSeq,
    earliest: FeedSeq,
    last_event_at: Option<EventTime>,
    keys: Vec<KeyStatus>,
    clients: Vec<ClientStatus>,
    replay: Replay,
    database: Database,
    totals: Totals,
    latency: Latencies,
}

/// One stream. Lag and queued are counted in events.
#[derive(Debug, Serialize)]
struct ClientStatus {
    key: String,
    address: String,
    cursor: FeedSeq,
    lag: u64,
    queued: u64,
    delivered: u64,
    dropped: u64,
    since: EventTime,
    delay_seconds: serde_json::Value,
}

#[derive(Debug, Serialize)]
struct Replay {
    connections: usize,
    in_use: usize,
    waiting: usize,
    catch_ups: u64,
    pages: u64,
    truncated: u64,
    rewritten: u64,
}

#[derive(Debug, Serialize)]
struct Database {
    log_readable: bool,
    log_read_age_seconds: Option<f64>,
    log_lag_events: u64,
    listening: bool,
    listen_probe_age_seconds: Option<f64>,
    listen_probe_seconds: f64,
    outage_seconds: Option<f64>,
    counter: FeedSeq,
    another_cluster: bool,
    unsettled_quarantined_events: u64,
}

/// Figures that only grow, from the start of the server.
#[derive(Debug, Serialize)]
struct Totals {
    events: u64,
    deliveries: u64,
    sent_bytes: u64,
    dropped_events: u64,
    quarantined_events: u64,
    evicted_connections: u64,
}

#[derive(Debug, Serialize)]
struct Latencies {
    commit_to_broadcast_seconds: Buckets,
    broadcast_to_written_seconds: Buckets,
}

/// A histogram from the start of the server: upper bounds, and how many observations lie at or below each.
#[derive(Debug, Serialize)]
struct Buckets {
    upper_bounds: Vec<f64>,
    cumulative: Vec<u64>,
    count: u64,
    sum: f64,
}

/// The feed's present state. May read the log to find where the window begins, and blocks for one database call at
/// most.
pub fn json(operator: &Operator) -> String {
    let feed = &operator.feed;
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        instance: &operator.instance,
        role: feed.role().name(),
        standby_lag_seconds: feed.standby_lag().map(|lag| lag.as_secs_f64()),
        started_at: feed.started_at.to_string(),
        feed_id: feed.feed_id(),
        state: state(feed),
        capture: if feed.capture_on() { "on" } else { "off" },
        head: feed.head(),
        earliest: earliest(feed),
        last_event_at: feed.last_event_at(),
        keys: keys::live(feed),
        clients: clients(feed),
        replay: Replay {
            connections: feed.replay.size(),
            in_use: feed.replay.in_use(),
            waiting: feed.replay.waiting(),
            catch_ups: feed.stats.catch_ups.get(),
            pages: feed.stats.replay_pages.get(),
            truncated: feed.stats.truncated.get(),
            rewritten: feed.stats.rewritten.get(),
        },
        database: database(feed),
        totals: Totals {
            events: feed.stats.events.get(),
            deliveries: feed.stats.deliveries.get(),
            sent_bytes: feed.stats.bytes.get(),
            dropped_events: feed.stats.dropped.get(),
            quarantined_events: feed.stats.quarantined.get(),
            evicted_connections: feed.stats.evicted.get(),
        },
        latency: Latencies {
            commit_to_broadcast_seconds: Buckets::of(&feed.stats.commit_to_broadcast),
            broadcast_to_written_seconds: Buckets::of(&feed.stats.broadcast_to_written),
        },
    };
    serde_json::to_string(&status).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
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

fn clients(feed: &Feed) -> Vec<ClientStatus> {
    let mut clients = feed.clients.present();
    clients.sort_by_key(|client| client.id);
    clients.iter().map(|client| ClientStatus::of(feed, client)).collect()
}

impl ClientStatus {
    fn of(feed: &Feed, client: &Client) -> Self {
        let cursor = client.cursor();
        Self {
            key: client.key.name.clone(),
            address: client.address.to_string(),
            cursor,
            lag: feed.lag_events(client),
            queued: feed.queued_events(client),
            delivered: client.delivered_events(),
            dropped: client.dropped_events(),
            since: client.since,
            delay_seconds: seconds(client.key.delay),
        }
    }
}

fn database(feed: &Feed) -> Database {
    let (log_read, probed) = (feed.health.proven_for(Part::Log), feed.health.proven_for(Part::Listen));
    Database {
        log_readable: log_read.is_some(),
        log_read_age_seconds: log_read.map(|age| age.as_secs_f64()),
        log_lag_events: feed.log_lag_events(),
        listening: probed.is_some(),
        listen_probe_age_seconds: probed.map(|age| age.as_secs_f64()),
        listen_probe_seconds: feed.stats.listen_probe.get(),
        outage_seconds: feed.health.outage().map(|outage| outage.as_secs_f64()),
        counter: feed.counter(),
        another_cluster: feed.is_another_cluster(),
        unsettled_quarantined_events: feed.unsettled_events(),
    }
}

impl Buckets {
    fn of(of: &Histogram) -> Self {
        let metric = of.metric();
        let histogram = metric.get_histogram();
        Self {
            upper_bounds: histogram.get_bucket().iter().map(|bucket| bucket.upper_bound()).collect(),
            cumulative: cumulative(of),
            count: histogram.get_sample_count(),
            sum: histogram.get_sample_sum(),
        }
    }
}

/// How many observations lie at or below each bucket's bound.
pub(super) fn cumulative(histogram: &Histogram) -> Vec<u64> {
    histogram.metric().get_histogram().get_bucket().iter().map(|bucket| bucket.cumulative_count()).collect()
}
