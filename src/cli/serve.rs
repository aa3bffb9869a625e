//! `signal-feed serve`: runs the feed until SIGTERM or SIGINT.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as _, FromArgMatches as _};
use crossbeam_channel::{Receiver, bounded};
use ipnet::IpNet;
use log::LevelFilter;

use super::DatabaseArgs;
use crate::config::ServeOptions;
use crate::error::Error;
use crate::http::proxy::parse_network;
use crate::logging;
use crate::options::{parse_address, parse_duration, parse_log_level, parse_positive_duration};

/// Limit of every count; the system's limit of threads is far lower.
const MOST: u64 = 1_000_000;

/// Run the feed until SIGTERM or SIGINT
///
/// Starts even if the database is away, and retries. Refuses to start if the schema is missing, older or newer than
/// this version. Needs the role signal_feed_server.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed serve --database-url postgres://feed@localhost/market --listen 0.0.0.0:8080
  signal-feed serve --database-url-file /etc/signal-feed/database-url --listen '[::]:8080'")]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    options: ServeArgs,
}

/// The options of `serve`.
#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Address of the feed; can be repeated; `[::]` takes IPv4 too; sockets passed by systemd are used instead
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "SIGNAL_FEED_LISTEN",
        default_value = "127.0.0.1:8080",
        value_delimiter = ',',
        value_parser = parse_address,
        help_heading = "Feed"
    )]
    listen: Vec<SocketAddr>,
    /// Address of metrics and status page; needs no key, so keep it on loopback; `off` for none
    #[arg(long, value_name = "ADDRESS", env = "SIGNAL_FEED_OPS_LISTEN", default_value = "127.0.0.1:9464", value_parser = parse_ops_listen, help_heading = "Operation")]
    ops_listen: OpsListen,
    /// How far back a consumer can replay
    #[arg(long, value_name = "DURATION", env = "SIGNAL_FEED_REPLAY_WINDOW", default_value = "72h", value_parser = parse_positive_duration, help_heading = "Feed")]
    replay_window: Duration,
    /// Events that wait for one stalled client; beyond that the oldest are dropped
    #[arg(long, value_name = "EVENTS", env = "SIGNAL_FEED_QUEUE_CAPACITY", default_value = "1024", value_parser = parse_count, help_heading = "Clients")]
    queue_capacity: usize,
    /// Longest silence on a stream; then the server sends a comment line
    #[arg(long, value_name = "DURATION", env = "SIGNAL_FEED_HEARTBEAT", default_value = "15s", value_parser = parse_positive_duration, help_heading = "Feed")]
    heartbeat: Duration,
    /// Most streams in all; further ones get 503
    #[arg(long, value_name = "STREAMS", env = "SIGNAL_FEED_MAX_CLIENTS", default_value = "1024", value_parser = parse_count, help_heading = "Clients")]
    max_clients: usize,
    /// Most streams of one key's name; further ones get 429
    #[arg(long, value_name = "STREAMS", env = "SIGNAL_FEED_MAX_CLIENTS_PER_KEY", default_value = "16", value_parser = parse_count, help_heading = "Clients")]
    max_clients_per_key: usize,
    /// Disconnect a client that takes no bytes for this long
    #[arg(long, value_name = "DURATION", env = "SIGNAL_FEED_WRITE_TIMEOUT", default_value = "20s", value_parser = parse_positive_duration, help_heading = "Clients")]
    write_timeout: Duration,
    /// Each stream ends at a random 80–100 % of this, so that dead ones do not stay open behind proxies; `off` for
    /// never
    #[arg(long, value_name = "DURATION", env = "SIGNAL_FEED_MAX_STREAM_AGE", default_value = "24h", value_parser = parse_age, help_heading = "Feed")]
    max_stream_age: Age,
    /// How often to poll the log when no notification arrives
    #[arg(long, value_name = "DURATION", env = "SIGNAL_FEED_POLL_INTERVAL", default_value = "1s", value_parser = parse_positive_duration, help_heading = "Database")]
    poll_interval: Duration,
    /// Database connections for replay
    #[arg(long, value_name = "CONNECTIONS", env = "SIGNAL_FEED_REPLAY_CONNECTIONS", default_value = "4", value_parser = parse_connections, help_heading = "Database")]
    replay_connections: usize,
    /// New requests wait until a database outage is this old, then get 503 (many clients never retry after a 503)
    #[arg(long, value_name = "DURATION", env = "SIGNAL_FEED_DEGRADED_HOLD", default_value = "5s", value_parser = parse_duration, help_heading = "Outages and the end")]
    degraded_hold: Duration,
    /// Longest time for streams to take their last block after SIGTERM
    #[arg(long, value_name = "DURATION", env = "SIGNAL_FEED_SHUTDOWN_GRACE", default_value = "5s", value_parser = parse_duration, help_heading = "Outages and the end")]
    shutdown_grace: Duration,
    /// Program that gets every alert as one JSON line on its input: degraded (after 30 s), recovered, capture_off,
    /// capture_on, quarantined, another_cluster
    #[arg(long, value_name = "PROGRAM", env = "SIGNAL_FEED_ALERT_COMMAND", help_heading = "Operation")]
    alert_command: Option<PathBuf>,
    /// A reverse proxy (network or address; can be repeated): its X-Forwarded-For gives the client's address, its
    /// X-Forwarded-Proto whether the client uses https
    #[arg(long, value_name = "CIDR", env = "SIGNAL_FEED_TRUSTED_PROXY", value_delimiter = ',', value_parser = parse_network, help_heading = "Feed")]
    trusted_proxy: Vec<IpNet>,
    /// Lowest level that is logged: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", env = "SIGNAL_FEED_LOG_LEVEL", default_value = "info", value_parser = parse_log_level, help_heading = "Log")]
    log_level: LevelFilter,
}

/// The operator's address; `None` for `off`.
#[derive(Debug, Clone, Copy)]
struct OpsListen(Option<SocketAddr>);

/// A stream's greatest age; `None` for `off`. (Clap would treat a plain `Option` as an optional option.)
#[derive(Debug, Clone, Copy)]
struct Age(Option<Duration>);

pub(super) fn run(args: Args) -> Result<(), Error> {
    logging::start(args.options.log_level);
    let settings = args.database.settings()?;
    let outcome = crate::serve::serve(args.options.into(), &settings, &signals()?);
    logging::finish();
    outcome
}

/// A channel that receives a message at SIGTERM and SIGINT.
pub(super) fn signals() -> Result<Receiver<()>, Error> {
    let (signal, signals) = bounded(1);
    ctrlc::set_handler(move || {
        let _ = signal.try_send(());
    })
    .map_err(|error| Error::Failed(format!("handle SIGTERM and SIGINT: {error}")))?;
    Ok(signals)
}

impl ServeArgs {
    /// The defaults, without the environment.
    pub(super) fn defaults() -> Self {
        let command = Self::augment_args(clap::Command::new("serve")).mut_args(|argument| argument.env(None::<&str>));
        let matches = command.get_matches_from(["serve"]);
        // Every option has a default, so this cannot fail.
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

impl From<ServeArgs> for ServeOptions {
    fn from(args: ServeArgs) -> Self {
        Self {
            listen: args.listen,
            ops_listen: args.ops_listen.0,
            replay_window: args.replay_window,
            queue_capacity: args.queue_capacity,
            heartbeat: args.heartbeat,
            max_clients: args.max_clients,
            max_clients_per_key: args.max_clients_per_key,
            write_timeout: args.write_timeout,
            max_stream_age: args.max_stream_age.0,
            poll_interval: args.poll_interval,
            replay_connections: args.replay_connections,
            degraded_hold: args.degraded_hold,
            shutdown_grace: args.shutdown_grace,
            alert_command: args.alert_command,
            trusted_proxies: args.trusted_proxy,
        }
    }
}

fn parse_ops_listen(text: &str) -> Result<OpsListen, String> {
    match text {
        "off" => Ok(OpsListen(None)),
        _ => parse_address(text).map(|address| OpsListen(Some(address))).map_err(|error| format!("{error}, or off")),
    }
}

fn parse_age(text: &str) -> Result<Age, String> {
    match text {
        "off" => Ok(Age(None)),
        _ => parse_positive_duration(text).map(|age| Age(Some(age))).map_err(|error| format!("{error}, or off")),
    }
}

fn parse_count(text: &str) -> Result<usize, String> {
    parse_number(text, MOST)
}

fn parse_connections(text: &str) -> Result<usize, String> {
    parse_number(text, 1_000)
}

fn parse_number(text: &str, most: u64) -> Result<usize, String> {
    let number = text.parse::<u64>().ok().filter(|number| (1..=most).contains(number));
    number.and_then(|number| usize::try_from(number).ok()).ok_or_else(|| format!("expected a number from 1 to {most}"))
}
