//! What the feed counts and measures, in the registry that `/metrics` shows. Names and units follow Prometheus:
//! `_total` for what only grows, base units (seconds, bytes), labels whose values are few.

use prometheus::core::Collector;
use prometheus::{Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::reason::End;
use crate::text::word;

/// Upper bounds of the latencies' buckets, in seconds: from a wake-up to what is an outage.
const LATENCY_BUCKETS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Counters and histograms since the start of the server. Their help texts below say what each counts.
#[derive(Debug)]
pub(crate) struct Stats {
    pub(crate) registry: Registry,
    pub(crate) events: IntCounter,
    pub(crate) deliveries: IntCounter,
    pub(crate) bytes: IntCounter,
    pub(crate) dropped: IntCounter,
    pub(crate) truncated: IntCounter,
    pub(crate) rewritten: IntCounter,
    pub(crate) quarantined: IntCounter,
    pub(crate) evicted: IntCounter,
    pub(crate) accept_errors: IntCounter,
    /// From an event's time, taken under the feed's lock just before its commit, to its broadcast. The two clocks agree
    /// to within one database round trip.
    pub(crate) commit_to_broadcast: Histogram,
    /// From the broadcast of a batch to the end of the system call that gave it to a client's socket.
    pub(crate) broadcast_to_written: Histogram,
    pub(crate) listen_probe: Gauge,
    pub(crate) reader_turns: IntCounter,
    requests: IntCounterVec,
    ends: IntCounterVec,
}

impl Default for Stats {
    fn default() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| registered(&registry, IntCounter::new(name, help));
        let counters = |name: &str, help: &str, label: &str| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let help = "How long an event takes for each part of its way";
        let latencies = HistogramOpts::new("signal_feed_latency_seconds", help).buckets(LATENCY_BUCKETS.to_vec());
        let latencies = registered(&registry, HistogramVec::new(latencies, &["part"]));
        let probe = Gauge::new("signal_feed_listen_probe_seconds", "Time of the last notification's round trip");
        let stats = Self {
            events: counter("signal_feed_events_total", "Events read from the log and broadcast"),
            deliveries: counter("signal_feed_deliveries_total", "Events written to sockets, one for each client"),
            bytes: counter("signal_feed_sent_bytes_total", "Bytes written to streams"),
            dropped: counter("signal_feed_dropped_events_total", "Events dropped from the queues of slow clients"),
            truncated: counter("signal_feed_replays_truncated_total", "replay_truncated notices sent"),
            rewritten: counter("signal_feed_histories_rewritten_total", "history_rewritten notices sent"),
            quarantined: counter("signal_feed_quarantined_events_total", "Events that cannot be delivered to anybody"),
            evicted: counter("signal_feed_connections_evicted_total", "Connections closed to make room"),
            accept_errors: counter("signal_feed_accept_errors_total", "Connections that could not be accepted"),
            commit_to_broadcast: latencies.with_label_values(&["commit_to_broadcast"]),
            broadcast_to_written: latencies.with_label_values(&["broadcast_to_written"]),
            listen_probe: registered(&registry, probe),
            reader_turns: counter(
                "signal_feed_reader_turns_total",
                "Turns of the reader's loop; it hangs if they stop",
            ),
            requests: counters("signal_feed_requests_total", "Requests to the feed by the answer's status", "status"),
            ends: counters("signal_feed_stream_ends_total", "Streams that ended, by reason", "reason"),
            registry,
        };
        for end in End::ALL {
            stats.ends.with_label_values(&[word(end)]);
        }
        stats
    }
}

impl Stats {
    pub(crate) fn ended(&self, end: End) {
        self.ends.with_label_values(&[word(end)]).inc();
    }

    pub(crate) fn answered(&self, status: &str) {
        self.requests.with_label_values(&[status]).inc();
    }
}

/// Puts a metric into a registry.
///
/// # Panics
/// If its name is invalid or taken. Names are constants of this program, so every start would fail.
pub(crate) fn registered<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("a metric's name and labels are valid");
    registry.register(Box::new(metric.clone())).expect("a metric's name is registered once");
    metric
}
