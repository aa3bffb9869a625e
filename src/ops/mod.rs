//! The operator's port: `/metrics`, `/status`, and a page that shows it. It reads the feed's state and changes nothing.
//!
//! [`http`](crate::http) serves it like the feed's port, from a separate listener, so its connections do not count
//! against the limit of streams.

pub mod alerts;
mod keys;
pub mod metrics;
pub mod routes;
pub mod status;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::feed::Feed;

/// Connections to the operator's port at once, 64.
pub const MOST_CONNECTIONS: usize = 64;

/// The operator's port.
#[derive(Debug)]
pub struct Operator {
    feed: Arc<Feed>,
    /// Tells several feeds apart: the host's name and the feed's port.
    instance: String,
}

impl Operator {
    /// The operator's view of a feed that listens on `address`.
    pub fn new(feed: Arc<Feed>, address: Option<SocketAddr>) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let instance = match address {
            Some(address) => format!("{host}:{}", address.port()),
            None => host,
        };
        Self { feed, instance }
    }
}
