//! `/metrics`: the feed's counters and its present gauges, in Prometheus' text format 0.0.4.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Gauge, GaugeVec, Opts, Registry, TextEncoder};

use super::status;
use crate::event::EventTime;
use crate::feed::health::Part;
use crate::feed::stats::registered;
use crate::feed::{Feed, seconds};

const STATES: [&str; 4] = ["starting", "live", "degraded", "stopping"];

pub(crate) fn text(feed: &Feed, instance: &str) -> String {
    let mut families = feed.stats.registry.gather();
    families.extend(gauges(feed, instance).gather());
    TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
        log::error!("write the metrics: {error}");
        String::new()
    })
}

/// Gauges are made at each scrape, with their values, so that none outlives what it is about.
fn gauges(feed: &Feed, instance: &str) -> Registry {
    let registry = Registry::new();
    figures(feed, &registry);
    let by =
        |name: &str, help: &str, labels: &[&str]| registered(&registry, GaugeVec::new(Opts::new(name, help), labels));
    let build =
        by("signal_feed_build_info", "Always 1; the labels give the version and the feed", &["version", "feed"]);
    build.with_label_values(&[env!("CARGO_PKG_VERSION"), instance]).set(1.0);
    let state = by("signal_feed_state", "1 for the state that the feed is in, 0 for the others", &["state"]);
    for name in STATES {
        state.with_label_values(&[name]).set(f64::from(name == feed.health.state()));
    }
    let streams = by("signal_feed_clients", "Open streams by their key's delay", &["delay_seconds"]);
    let mut by_delay = BTreeMap::from([(Duration::ZERO, 0.0)]);
    for client in feed.clients.present() {
        *by_delay.entry(client.key.delay).or_insert(0.0) += 1.0;
    }
    for (delay, count) in by_delay {
        streams.with_label_values(&[&seconds(delay).to_string()]).set(count);
    }
    let help = "Open streams of every live key; 0 means that its bot is away";
    let streams = by("signal_feed_key_streams", help, &["key"]);
    for key in status::keys(feed) {
        streams.with_label_values(&[&key.name]).set(key.streams as f64);
    }
    let _ = registry.register(Box::new(ProcessCollector::for_self()));
    registry
}

/// The gauges without labels; the names here are without `signal_feed_`.
fn figures(feed: &Feed, registry: &Registry) {
    let figure = |name: &str, help: &str, value: f64| {
        registered(registry, Gauge::new(format!("signal_feed_{name}"), help)).set(value);
    };
    let facts = feed.facts();
    let is_up = |part| f64::from(feed.health.proven_for(part).is_some());
    let standby_lag = if facts.is_standby { facts.standby_lag } else { Duration::ZERO };
    let lag = feed.clients.present().iter().map(|client| feed.lag_events(client)).max().unwrap_or_default();
    let last_event = feed.last_event_at().map_or(0.0, EventTime::unix_seconds);
    let is_allocation_ok = facts.counter >= facts.log_head;
    figure("database_up", "Whether the log can be read", is_up(Part::Log));
    figure("listen_up", "Whether notifications arrive", is_up(Part::Listen));
    figure("standby", "Whether the database is a hot standby", f64::from(facts.is_standby));
    figure("standby_lag_seconds", "How far a standby is behind its primary; 0 on a primary", standby_lag.as_secs_f64());
    figure("log_lag_events", "Events in the log that were not broadcast yet", feed.log_lag_events() as f64);
    figure("capture_on", "1 if writes to signal reach the log, 0 if they do not", f64::from(!facts.is_capture_off));
    figure("allocated", "The last number that was given to an event, as last read", facts.counter.0 as f64);
    figure("allocation_ok", "0 if the counter is behind the log: commits fail", f64::from(is_allocation_ok));
    figure("another_cluster", "1 after a restore or a failover", f64::from(facts.is_another_cluster));
    figure("head", "The highest number that was broadcast", feed.head().0 as f64);
    figure("last_event_timestamp_seconds", "When the newest event was written; 0 before the first", last_event);
    figure("unsettled_quarantined_events", "Quarantined and not settled", facts.unsettled_events as f64);
    figure("replays_waiting", "Replays that wait for a connection", feed.replay.waiting() as f64);
    figure("clients_limit", "The most streams (--max-clients)", feed.options.max_clients as f64);
    figure("client_lag_max_events", "Events that the client furthest behind has still to get", lag as f64);
}
