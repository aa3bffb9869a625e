//! The operator's port: `/metrics`, `/status`, and a page that shows it. It reads the feed's state and changes nothing.
//!
//! [`http`](crate::http) serves it like the feed's port, from a separate listener, so its connections do not count
//! against the limit of streams.

pub(crate) mod alerts;
pub(crate) mod metrics;
pub(crate) mod routes;
pub(crate) mod status;

use std::net::SocketAddr;

/// Connections to the operator's port at once, 64.
pub(crate) const MOST_CONNECTIONS: usize = 64;

/// What tells several feeds apart: the host's name, and the port if the feed listens on `address`.
pub(crate) fn instance(address: Option<SocketAddr>) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    address.map_or(host.clone(), |address| format!("{host}:{}", address.port()))
}
