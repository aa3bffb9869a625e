//! Samples of the last hour, so that a page that was just opened can show it.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use super::status::cumulative;
use crate::feed::Feed;
use crate::sync::lock;

/// The time between two samples, 10 s.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// How many samples are kept: an hour and five minutes.
const SAMPLES: usize = 390;

/// One sample. The difference of two gives rates and latencies: all figures but the first three only grow.
#[derive(Debug, Serialize)]
struct Sample {
    at: Timestamp,
    streams: usize,
    queued: u64,
    events: u64,
    deliveries: u64,
    dropped_events: u64,
    commit_to_broadcast: Vec<u64>,
    broadcast_to_written: Vec<u64>,
}

impl Sample {
    fn of(feed: &Feed) -> Self {
        let clients = feed.clients.all();
        Self {
            at: Timestamp::now(),
            streams: clients.len(),
            queued: clients.iter().map(|client| feed.queued_events(client)).sum(),
            events: feed.stats.events.get(),
            deliveries: feed.stats.deliveries.get(),
            dropped_events: feed.stats.dropped.get(),
            commit_to_broadcast: cumulative(&feed.stats.commit_to_broadcast),
            broadcast_to_written: cumulative(&feed.stats.broadcast_to_written),
        }
    }
}

/// The samples, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    samples: Mutex<VecDeque<Sample>>,
    due: Mutex<Option<Instant>>,
}

impl History {
    /// Takes a sample if one is due.
    pub(super) fn turn(&self, feed: &Feed) {
        let now = Instant::now();
        let mut due = lock(&self.due);
        if due.is_some_and(|due| now < due) {
            return;
        }
        *due = Some(now + SAMPLE_EVERY);
        drop(due);
        let sample = Sample::of(feed);
        let mut samples = lock(&self.samples);
        samples.push_back(sample);
        if samples.len() > SAMPLES {
            samples.pop_front();
        }
    }

    /// The samples as a JSON array.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(&*lock(&self.samples)).unwrap_or_else(|_| "[]".to_owned())
    }
}
