//! `signal-feed status`: the status page for a terminal and for scripts.

use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::output;
use super::table::output_rows;
use crate::error::Error;

/// Longest time for the whole answer: the server may have to wait for a slow database.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many streams are shown, those furthest behind.
const MOST_STREAMS: usize = 5;

/// Show the state of a running server
///
/// Prints its state, the newest event, the keys without a stream, and the streams furthest behind. Exit code 0: live;
/// 1: degraded, starting or stopping, or capture is off; 2: the server cannot be reached.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed status
  signal-feed status --json | jq '.keys[] | select(.streams == 0).name'")]
pub(super) struct Args {
    /// Address of the server's operator port
    #[arg(long, value_name = "URL", env = "SIGNAL_FEED_URL", default_value = "http://127.0.0.1:9464", value_parser = parse_url)]
    url: String,
    /// Print the JSON of /status
    #[arg(long, env = "SIGNAL_FEED_JSON")]
    json: bool,
}

/// The parts of `/status` that are shown.
#[derive(Debug, Deserialize)]
struct Status {
    version: String,
    instance: String,
    role: String,
    state: String,
    capture: String,
    started_at: Timestamp,
    standby_lag_seconds: Option<f64>,
    head: i64,
    earliest: i64,
    last_event_at: Option<Timestamp>,
    keys: Vec<Key>,
    clients: Vec<Client>,
    database: Database,
}

#[derive(Debug, Deserialize)]
struct Database {
    another_cluster: bool,
    unsettled_quarantined_events: u64,
}

#[derive(Debug, Deserialize)]
struct Key {
    name: String,
    streams: u64,
    last_used_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
struct Client {
    key: String,
    address: String,
    lag: u64,
    queued: u64,
    dropped: u64,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let body = fetch(&args.url)?;
    let status: Status = serde_json::from_str(&body)
        .map_err(|error| unreachable(&args.url, format!("not the expected answer: {error}")))?;
    if args.json {
        output(body.trim_end())?;
    } else {
        show(&status)?;
    }
    match (status.state.as_str(), status.capture.as_str()) {
        ("live", "on") => Ok(()),
        ("live", _) => {
            Err(Error::Failed("capture is off: new signals reach no bot; run \"signal-feed migrate\"".into()))
        }
        (state, _) => Err(Error::Failed(format!("the server is {state}"))),
    }
}

fn fetch(url: &str) -> Result<String, Error> {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_global(Some(PATIENCE))
        .build();
    let answer = ureq::Agent::new_with_config(config).get(format!("{url}/status")).call();
    let mut answer = answer.map_err(|error| {
        unreachable(url, format!("no answer: {error}; is the server running, with this --ops-listen?"))
    })?;
    let body = answer.body_mut().read_to_string().map_err(|error| unreachable(url, error))?;
    match answer.status().as_u16() {
        200 => Ok(body),
        status => {
            Err(unreachable(url, format!("the server answered {status}; --url needs the address of --ops-listen")))
        }
    }
}

fn unreachable(url: &str, why: impl std::fmt::Display) -> Error {
    Error::Unreachable(format!("--url {url}: {why}"))
}

fn show(status: &Status) -> Result<(), Error> {
    let now = Timestamp::now();
    let ago = |time: Timestamp| format!("{} ago", lasted(now.duration_since(time).unsigned_abs()));
    let behind = status.standby_lag_seconds.map_or(String::new(), |lag| format!(", {lag:.1} s behind its primary"));
    let last_event = match status.last_event_at {
        Some(time) => format!("{} ({time:.0})", ago(time)),
        None => "none".into(),
    };
    let rows = [
        [
            "server",
            &format!(
                "{}, version {}, up {}",
                status.instance,
                status.version,
                lasted(now.duration_since(status.started_at).unsigned_abs())
            ),
        ],
        ["state", &format!("{}, capture {}, {}{behind}", status.state, status.capture, status.role)],
        ["last event", &last_event],
        ["head", &format!("{}, replay from {}", status.head, status.earliest)],
        ["streams", &status.clients.len().to_string()],
    ];
    output_rows(&rows.map(|row| row.map(str::to_owned)))?;
    if status.database.another_cluster {
        output(
            "The database was restored or failed over: run \"signal-feed restored\", or with --nothing-lost if it lost no commit.",
        )?;
    }
    match status.database.unsettled_quarantined_events {
        0 => {}
        count => output(format_args!("Quarantined and not settled: {count}; see \"signal-feed quarantine list\"."))?,
    }
    output("")?;
    show_away(&status.keys, ago)?;
    output("")?;
    show_behind(&status.clients)
}

fn show_away(keys: &[Key], ago: impl Fn(Timestamp) -> String + Copy) -> Result<(), Error> {
    let away: Vec<&Key> = keys.iter().filter(|key| key.streams == 0).collect();
    if away.is_empty() {
        return output(format_args!("Every key has a stream ({} keys).", keys.len()));
    }
    output(format_args!("Keys without a stream ({} of {}):", away.len(), keys.len()))?;
    let mut rows = vec![["NAME", "LAST USED", "EXPIRES (UTC)"].map(str::to_owned)];
    rows.extend(away.iter().map(|key| {
        [
            key.name.clone(),
            key.last_used_at.map_or("never".into(), ago),
            key.expires_at.map_or("never".into(), |at| format!("{at:.0}")),
        ]
    }));
    output_rows(&rows)
}

fn show_behind(clients: &[Client]) -> Result<(), Error> {
    let mut behind: Vec<&Client> = clients.iter().filter(|client| client.lag > 0).collect();
    behind.sort_by_key(|client| std::cmp::Reverse(client.lag));
    if behind.is_empty() {
        return output("No stream is behind.");
    }
    output(format_args!("Streams furthest behind ({} of {}):", behind.len().min(MOST_STREAMS), clients.len()))?;
    let mut rows = vec![["KEY", "ADDRESS", "BEHIND", "QUEUED", "DROPPED"].map(str::to_owned)];
    rows.extend(behind.iter().take(MOST_STREAMS).map(|client| {
        [
            client.key.clone(),
            client.address.clone(),
            client.lag.to_string(),
            client.queued.to_string(),
            client.dropped.to_string(),
        ]
    }));
    output_rows(&rows)
}

/// A duration in its largest unit.
fn lasted(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ ..3_600 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn parse_url(text: &str) -> Result<String, String> {
    let url = text.trim().trim_end_matches('/');
    match url.strip_prefix("http://") {
        Some(host) if !host.is_empty() && !host.contains(['/', '?', '#', '@']) => Ok(url.to_owned()),
        _ => Err("expected an address such as http://127.0.0.1:9464".to_owned()),
    }
}
