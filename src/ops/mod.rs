//! The operator's port: `/metrics`, `/status`, and a page that draws it. It looks at the feed and changes nothing.
//!
//! It is served like the feed's own port, by [`http`](crate::http), from a listener of its own: what goes on there takes
//! no place of a stream.

pub mod alerts;
mod history;
mod keys;
pub mod metrics;
pub mod routes;
pub mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use self::history::History;
use self::metrics::Gauges;
use crate::feed::Feed;

/// Connections to the operator's port at once, 64.
pub const MOST_CONNECTIONS: usize = 64;

/// What the operator's port shows.
#[derive(Debug)]
pub struct Operator {
    feed: Arc<Feed>,
    /// Which of several feeds this is: the host's name and the feed's port.
    instance: String,
    gauges: Gauges,
    history: History,
}

impl Operator {
    /// The operator's view of a feed that listens on `address`. Made once: its gauges join the feed's metrics.
    pub fn new(feed: Arc<Feed>, address: Option<SocketAddr>) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let instance = match address {
            Some(address) => format!("{host}:{}", address.port()),
            None => host,
        };
        let gauges = Gauges::new(feed.stats.registry(), &instance);
        Self { feed, instance, gauges, history: History::default() }
    }

    /// Keeps the history going; to be called about once a second.
    pub fn turn(&self) {
        self.history.turn(&self.feed);
    }
}
