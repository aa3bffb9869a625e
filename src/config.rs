//! The options of `serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

/// The options of `serve`, with the defaults of the command line.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Addresses of the feed listener. Default 127.0.0.1:8080.
    pub listen: Vec<SocketAddr>,
    /// Address of the operator's port; `None` for none. Default 127.0.0.1:9464.
    pub ops_listen: Option<SocketAddr>,
    /// How far back a consumer can replay. Default 72 h.
    pub replay_window: Duration,
    /// The most events that wait for one stalled client. Default 1024.
    pub queue_capacity: usize,
    /// Longest silence on a stream. Default 15 s.
    pub heartbeat: Duration,
    /// The most streams in all. Default 1024.
    pub max_clients: usize,
    /// The most streams of one key's name. Default 16.
    pub max_clients_per_key: usize,
    /// A client that takes nothing for this long is cut off. Default 20 s.
    pub write_timeout: Duration,
    /// A stream ends at a random 80–100 % of this; `None` for never. Default 24 h.
    pub max_stream_age: Option<Duration>,
    /// How often the log is read when no notification arrives. Default 1 s.
    pub poll_interval: Duration,
    /// Connections for replay. Default 4.
    pub replay_connections: usize,
    /// New requests wait until an outage is this old, then get 503. Default 5 s.
    pub degraded_hold: Duration,
    /// Longest time for streams to end after SIGTERM. Default 5 s.
    pub shutdown_grace: Duration,
    /// The program to run for each alert, with one JSON line on its input. Default none.
    pub alert_command: Option<PathBuf>,
    /// Reverse proxies whose headers about a client are trusted. Default none.
    pub trusted_proxies: Vec<IpNet>,
}
