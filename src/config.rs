//! From text to checked values: durations and the options that several programs share.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::db::Settings;
use crate::error::{Doing, Error};
use crate::http::proxy::Network;

/// The longest duration that is taken: a hundred years. Beyond it PostgreSQL's own arithmetic on times has an end.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Reads a duration as people write it: `500ms`, `15s`, `5m`, `72h`, `7d`, also `1h 30m`.
///
/// # Errors
/// A text saying what is allowed, where it is none, or longer than a hundred years.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text.trim())
        .map_err(|_| "expected a duration such as 500ms, 15s, 5m or 72h".to_owned())?;
    if duration > LONGEST {
        return Err("expected at most 100 years".to_owned());
    }
    Ok(duration)
}

/// Like [`parse_duration`], for a duration that may not be zero.
///
/// # Errors
/// As [`parse_duration`], and for zero.
pub fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("expected a duration above zero".to_owned()),
        duration => Ok(duration),
    }
}

/// Reads an address with its port.
///
/// # Errors
/// A text saying what is allowed.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.trim().parse().map_err(|_| "expected an IP address with a port such as 127.0.0.1:8080 or [::]:8080".to_owned())
}

/// Reads a whole number that may not be smaller than `least`.
///
/// # Errors
/// A text saying what is allowed.
pub fn parse_number_from(least: i64, text: &str) -> Result<i64, String> {
    let number = text.parse().ok().filter(|number| *number >= least);
    number.ok_or_else(|| format!("expected a number from {least} to {}", i64::MAX))
}

/// Which database is meant: `--database-url`, else what is in `--database-url-file`, else `DATABASE_URL`. What is empty
/// counts as not given, so that an environment file may list every variable.
///
/// # Errors
/// Where the file cannot be read, or the connection string cannot be used; the text names where it came from and the
/// offending part, never a secret. `None` where nothing is given.
pub fn database_settings(url: Option<&str>, file: Option<&Path>) -> Result<Option<Settings>, Error> {
    let variable = std::env::var("DATABASE_URL").unwrap_or_default();
    let (source, text) = match (url, file) {
        (Some(url), _) if !url.trim().is_empty() => ("--database-url".to_owned(), url.to_owned()),
        (_, Some(file)) if !file.as_os_str().is_empty() => {
            let source = format!("--database-url-file {}", file.display());
            let text = fs::read_to_string(file).doing(format!("read {source}"))?;
            (source, text)
        }
        _ if !variable.trim().is_empty() => ("DATABASE_URL".to_owned(), variable),
        _ => return Ok(None),
    };
    let settings = text.trim().parse().map_err(|error| Error::Usage(format!("{source}: {error}")))?;
    Ok(Some(settings))
}

/// What `serve` is told to do; the defaults are those of the command line.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Addresses of the feed listener. Default 127.0.0.1:8080.
    pub listen: Vec<SocketAddr>,
    /// Address of the operator's port; `None` for none. Default 127.0.0.1:9464.
    pub ops_listen: Option<SocketAddr>,
    /// How far back a consumer can replay. Default 72 h.
    pub replay_window: Duration,
    /// Events that a client's queue holds. Default 1024.
    pub queue_capacity: usize,
    /// Longest silence on a stream. Default 15 s.
    pub heartbeat: Duration,
    /// Streams in all. Default 1024.
    pub max_clients: usize,
    /// Streams of one key's name. Default 16.
    pub max_clients_per_key: usize,
    /// A client that takes nothing for so long is cut off. Default 20 s.
    pub write_timeout: Duration,
    /// A stream ends at a random 80–100 % of it; `None` for never. Default 24 h.
    pub max_stream_age: Option<Duration>,
    /// The log is read so often also without a notification. Default 1 s.
    pub poll_interval: Duration,
    /// Connections for replay. Default 4.
    pub replay_connections: usize,
    /// How long requests are held in an outage before they are told of it. Default 5 s.
    pub degraded_hold: Duration,
    /// Longest time for streams to end after SIGTERM. Default 5 s.
    pub shutdown_grace: Duration,
    /// Reverse proxies whose word about a client is taken. Default none.
    pub trusted_proxies: Vec<Network>,
}
