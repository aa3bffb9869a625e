//! `/metrics`: the feed's counters and present gauges, in Prometheus' text format 0.0.4.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Encoder, Gauge, GaugeVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use super::{Operator, keys, status};
use crate::event::EventTime;
use crate::feed::health::Part;
use crate::feed::standby::Role;
use crate::feed::stats::registered;
use crate::feed::{Feed, seconds};
use crate::sync::lock;

/// Every value of the label of `signal_feed_state`.
const STATES: [&str; 4] = ["starting", "live", "degraded", "stopping"];

/// Gauges that are set at each scrape.
#[derive(Debug)]
pub struct Gauges {
    /// Allows one scrape at a time: it resets and fills the clients' gauges.
    scrape: Mutex<()>,
    state: IntGaugeVec,
    database_up: IntGauge,
    listen_up: IntGauge,
    standby: IntGauge,
    standby_lag: Gauge,
    log_read_age: Gauge,
    log_lag: IntGauge,
    outage: Gauge,
    capture_on: IntGauge,
    counter: IntGauge,
    counter_ok: IntGauge,
    another_cluster: IntGauge,
    head: IntGauge,
    earliest: IntGauge,
    clients: IntGaugeVec,
    clients_most: IntGauge,
    lag_most: IntGauge,
    queued: IntGauge,
    unsettled: IntGauge,
    key_streams: IntGaugeVec,
    last_event: Gauge,
    replay_connections: IntGauge,
    replay_in_use: IntGauge,
    replay_waiting: IntGauge,
}

impl Gauges {
    /// The gauges of the feed `instance`, and the process's own metrics.
    pub fn new(registry: &Registry, instance: &str) -> Self {
        let int = |name: &str, help: &str| registered(registry, IntGauge::new(name, help));
        let float = |name: &str, help: &str| registered(registry, Gauge::new(name, help));
        let by = |name: &str, help: &str, label: &str| {
            registered(registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
        };
        let info = Opts::new("signal_feed_build_info", "Always 1; the labels give the version and the feed");
        let info = registered(registry, GaugeVec::new(info, &["version", "feed"]));
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), instance]).set(1.0);
        // Once only: a second collector of this process would fail to register.
        let _ = registry.register(Box::new(ProcessCollector::for_self()));
        Self {
            scrape: Mutex::default(),
            state: by("signal_feed_state", "1 for the state that the feed is in, 0 for the others", "state"),
            database_up: int("signal_feed_database_up", "Whether the log can be read"),
            listen_up: int("signal_feed_listen_up", "Whether notifications arrive"),
            standby: int("signal_feed_standby", "Whether the database is a hot standby"),
            standby_lag: float(
                "signal_feed_standby_lag_seconds",
                "How far a standby is behind its primary; 0 on a primary",
            ),
            log_read_age: float("signal_feed_log_read_age_seconds", "How long ago the log was last read"),
            log_lag: int("signal_feed_log_lag_events", "Events in the log that were not broadcast yet"),
            outage: float("signal_feed_outage_seconds", "How long the feed has not been live; 0 while it is"),
            capture_on: int("signal_feed_capture_on", "1 if writes to signal reach the log, 0 if they do not"),
            counter: int("signal_feed_allocated", "The last number that was given to an event, as last read"),
            counter_ok: int(
                "signal_feed_allocation_ok",
                "0 if the counter is behind the log, so that commits of signals fail",
            ),
            another_cluster: int(
                "signal_feed_another_cluster",
                "1 if the cluster or timeline is not the recorded one, after a restore or a failover",
            ),
            head: int("signal_feed_head", "The highest number that was broadcast"),
            earliest: int("signal_feed_earliest", "The lowest number that can be replayed, as last read"),
            clients: by("signal_feed_clients", "Open streams by their key's delay", "delay_seconds"),
            clients_most: int("signal_feed_clients_limit", "The most streams (--max-clients)"),
            lag_most: int(
                "signal_feed_client_lag_max_events",
                "Events that the client furthest behind has still to get",
            ),
            queued: int("signal_feed_queued_events", "Events in all clients' queues"),
            unsettled: int(
                "signal_feed_unsettled_quarantined_events",
                "Quarantined events that are not settled, as last checked",
            ),
            key_streams: by(
                "signal_feed_key_streams",
                "Open streams of every live key; 0 means that its bot is away",
                "key",
            ),
            last_event: float(
                "signal_feed_last_event_timestamp_seconds",
                "When the newest event was written, in seconds since 1970; 0 before the first",
            ),
            replay_connections: int("signal_feed_replay_connections", "Connections for replay (--replay-connections)"),
            replay_in_use: int("signal_feed_replay_connections_in_use", "Connections for replay in use"),
            replay_waiting: int("signal_feed_replays_waiting", "Replays that wait for a connection"),
        }
    }

    fn look(&self, feed: &Feed) {
        let now = status::state(feed);
        for state in STATES {
            self.state.with_label_values(&[state]).set(i64::from(state == now));
        }
        let log_read = feed.health.proven_for(Part::Log);
        self.database_up.set(i64::from(log_read.is_some()));
        self.listen_up.set(i64::from(feed.health.proven_for(Part::Listen).is_some()));
        self.standby.set(i64::from(feed.role() == Role::Standby));
        self.standby_lag.set(feed.standby_lag().unwrap_or_default().as_secs_f64());
        // Never read: counts from the server's start.
        self.log_read_age.set(log_read.unwrap_or_else(|| feed.age()).as_secs_f64());
        self.log_lag.set(count(feed.log_lag_events()));
        self.outage.set(feed.health.outage().map_or(0.0, |outage| outage.as_secs_f64()));
        self.capture_on.set(i64::from(feed.capture_on()));
        self.counter.set(feed.counter().0);
        self.counter_ok.set(i64::from(feed.is_counter_ok()));
        self.another_cluster.set(i64::from(feed.is_another_cluster()));
        self.head.set(feed.head().0);
        self.earliest.set(feed.last_earliest().0);
        if let Some(at) = feed.last_event_at().and_then(EventTime::timestamp) {
            self.last_event.set(at.as_microsecond() as f64 / 1e6);
        }
        self.look_at_clients(feed);
        self.look_at_keys(feed);
        self.unsettled.set(count(feed.unsettled_events()));
        self.replay_connections.set(count(feed.replay.size()));
        self.replay_in_use.set(count(feed.replay.in_use()));
        self.replay_waiting.set(count(feed.replay.waiting()));
    }

    fn look_at_clients(&self, feed: &Feed) {
        let mut by_delay = BTreeMap::from([(Duration::ZERO, 0)]);
        let (mut queued, mut lag) = (0, 0);
        for client in feed.clients.present() {
            *by_delay.entry(client.key.delay).or_insert(0) += 1;
            queued += feed.queued_events(&client);
            lag = lag.max(feed.lag_events(&client));
        }
        // Drop delays that no stream has any more.
        self.clients.reset();
        for (delay, streams) in by_delay {
            self.clients.with_label_values(&[&seconds(delay).to_string()]).set(streams);
        }
        self.clients_most.set(count(feed.options.max_clients));
        self.queued.set(count(queued));
        self.lag_most.set(count(lag));
    }

    fn look_at_keys(&self, feed: &Feed) {
        // Drop revoked and expired keys.
        self.key_streams.reset();
        for key in keys::live(feed) {
            self.key_streams.with_label_values(&[&key.name]).set(count(key.streams));
        }
    }
}

/// The present metrics.
pub fn text(operator: &Operator) -> String {
    let _alone = lock(&operator.gauges.scrape);
    operator.gauges.look(&operator.feed);
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&operator.feed.stats.registry().gather(), &mut text) {
        log::error!("write the metrics: {error}");
    }
    String::from_utf8(text).unwrap_or_default()
}

fn count(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}
