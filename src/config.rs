//! The options of `serve`, as the command line takes them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as _, FromArgMatches as _};
use ipnet::IpNet;

use crate::http::proxy::parse_network;
use crate::options::{OrOff, or_off, parse_address, parse_duration, parse_number, parse_positive_duration};

/// Limit of every count; the system's limit of threads is far lower.
const MOST: usize = 1_000_000;

/// The options of `serve`. The comment of a field is its help.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ServeOptions {
    /// Address of the feed; can be repeated; `[::]` takes IPv4 too; sockets passed by systemd are used instead
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_delimiter = ',', value_parser = parse_address, help_heading = "Feed")]
    pub listen: Vec<SocketAddr>,
    /// Address of metrics and status page; needs no key, so keep it on loopback; `off` for none
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464", value_parser = or_off(parse_address), help_heading = "Operation")]
    pub ops_listen: OrOff<SocketAddr>,
    /// How far back a consumer can replay
    #[arg(long, value_name = "DURATION", default_value = "72h", value_parser = parse_positive_duration, help_heading = "Feed")]
    pub replay_window: Duration,
    /// Events that wait for one stalled client; beyond that it must reconnect to get them
    #[arg(long, value_name = "EVENTS", default_value = "1024", value_parser = parse_number(1..=MOST), help_heading = "Clients")]
    pub queue_capacity: usize,
    /// Longest silence on a stream; then the server sends a comment line
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = parse_positive_duration, help_heading = "Feed")]
    pub heartbeat: Duration,
    /// Most streams in all; further ones get 503
    #[arg(long, value_name = "STREAMS", default_value = "1024", value_parser = parse_number(1..=MOST), help_heading = "Clients")]
    pub max_clients: usize,
    /// Most streams of one key's name; further ones get 429
    #[arg(long, value_name = "STREAMS", default_value = "16", value_parser = parse_number(1..=MOST), help_heading = "Clients")]
    pub max_clients_per_key: usize,
    /// Disconnect a client that takes no bytes for this long
    #[arg(long, value_name = "DURATION", default_value = "20s", value_parser = parse_positive_duration, help_heading = "Clients")]
    pub write_timeout: Duration,
    /// Each stream ends at a random 80–100 % of this, so that dead ones do not stay open behind proxies; `off` for
    /// never
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = or_off(parse_positive_duration), help_heading = "Feed")]
    pub max_stream_age: OrOff<Duration>,
    /// How often to poll the log when no notification arrives
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_positive_duration, help_heading = "Database")]
    pub poll_interval: Duration,
    /// Database connections for replay
    #[arg(long, value_name = "CONNECTIONS", default_value = "4", value_parser = parse_number(1..=1_000_usize), help_heading = "Database")]
    pub replay_connections: usize,
    /// New requests wait until a database outage is this old, then get 503 (many clients never retry after a 503)
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration, help_heading = "Outages and the end")]
    pub degraded_hold: Duration,
    /// Longest time for streams to take their last block after SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration, help_heading = "Outages and the end")]
    pub shutdown_grace: Duration,
    /// Program that gets every alert as one JSON line on its input: degraded (after 30 s), recovered, capture_off,
    /// capture_on, quarantined, another_cluster
    #[arg(long, value_name = "PROGRAM", help_heading = "Operation")]
    pub alert_command: Option<PathBuf>,
    /// A reverse proxy (network or address; can be repeated): its X-Forwarded-For gives the client's address, its
    /// X-Forwarded-Proto whether the client uses https
    #[arg(long = "trusted-proxy", value_name = "CIDR", value_delimiter = ',', value_parser = parse_network, help_heading = "Feed")]
    pub trusted_proxies: Vec<IpNet>,
}

impl ServeOptions {
    /// The default of every option. Environment variables do not count.
    pub(crate) fn defaults() -> Self {
        let matches = Self::augment_args(clap::Command::new("serve")).get_matches_from(["serve"]);
        // Every option has a default or may be left out, so this cannot fail.
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}
