//! `signal-feed status`: the status page for a terminal and for scripts.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::output;
use super::table::output_rows;
use crate::error::Error;
use crate::text;

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
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9464", value_parser = parse_url)]
    url: String,
    /// Print the JSON of /status
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let body = fetch(&args.url)?;
    let status: Value = serde_json::from_str(&body).unwrap_or_default();
    let (Some(state), Some(capture)) = (status["state"].as_str(), status["capture"].as_str()) else {
        return Err(unreachable(&args.url, "this is not the answer of a signal-feed server"));
    };
    if args.json {
        output(body.trim_end())?;
    } else {
        show(&status)?;
    }
    match (state, capture) {
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
    if answer.status() != 200 {
        let why = format!("the server answered {}; --url needs the address of --ops-listen", answer.status().as_u16());
        return Err(unreachable(url, why));
    }
    answer.body_mut().read_to_string().map_err(|error| unreachable(url, error))
}

fn unreachable(url: &str, why: impl std::fmt::Display) -> Error {
    Error::Usage(format!("--url {url}: {why}"))
}

fn show(status: &Value) -> Result<(), Error> {
    let plain = |name: &str| plain(&status[name]);
    let up = time(&status["started_at"]).map(since).unwrap_or_default();
    let last_event = time(&status["last_event_at"]).map(|at| format!("{} ago ({at:.0})", since(at)));
    let behind = status["standby_lag_seconds"].as_f64().map(|lag| format!(", {lag:.1} s behind its primary"));
    let outage = status["database"]["outage_seconds"].as_f64();
    let outage = outage.and_then(|seconds| Duration::try_from_secs_f64(seconds.floor()).ok()).map(text::duration);
    let degraded = outage.map(|outage| format!(" for {outage} (the server's log says why)")).unwrap_or_default();
    let capture = if degraded.is_empty() { "capture" } else { "capture was last" };
    let state = format!("{}{degraded}, {capture} {}, {}", plain("state"), plain("capture"), plain("role"));
    let rows = [
        ("server", format!("{}, version {}, up {up}", plain("instance"), plain("version"))),
        ("state", state + &behind.unwrap_or_default()),
        ("last event", last_event.unwrap_or("none".into())),
        ("head", format!("{}, replay from {}", plain("head"), plain("earliest"))),
        ("streams", list(&status["clients"]).len().to_string()),
    ];
    output_rows(&rows.map(|(name, value)| [name.to_owned(), value]))?;
    if status["database"]["another_cluster"] == true {
        output(
            "The database was restored or failed over: run \"signal-feed restored\", or with --nothing-lost if it lost no commit.",
        )?;
    }
    let quarantined = status["database"]["unsettled_quarantined_events"].as_u64().unwrap_or(0);
    if quarantined > 0 {
        output(format_args!("Quarantined and not settled: {quarantined}; see \"signal-feed quarantine list\"."))?;
    }
    output("")?;
    show_away(list(&status["keys"]))?;
    output("")?;
    show_behind(list(&status["clients"]))
}

fn show_away(keys: &[Value]) -> Result<(), Error> {
    let away: Vec<&Value> = keys.iter().filter(|key| key["streams"] == 0).collect();
    if away.is_empty() {
        return output(format_args!("Every key has a stream ({} keys).", keys.len()));
    }
    output(format_args!("Keys without a stream ({} of {}):", away.len(), keys.len()))?;
    let mut rows = vec![["NAME", "LAST USED", "EXPIRES (UTC)"].map(str::to_owned)];
    rows.extend(away.iter().map(|key| {
        let last_used = time(&key["last_used_at"]).map(|at| format!("{} ago", since(at)));
        let expires = time(&key["expires_at"]).map(|at| format!("{at:.0}"));
        [plain(&key["name"]), last_used.unwrap_or("never".into()), expires.unwrap_or("never".into())]
    }));
    output_rows(&rows)
}

fn show_behind(clients: &[Value]) -> Result<(), Error> {
    let lag = |client: &Value| client["lag"].as_u64().unwrap_or_default();
    let mut behind: Vec<&Value> = clients.iter().filter(|client| lag(client) > 0).collect();
    behind.sort_by_key(|client| std::cmp::Reverse(lag(client)));
    if behind.is_empty() {
        return output("No stream is behind.");
    }
    output(format_args!("Streams furthest behind ({} of {}):", behind.len().min(MOST_STREAMS), clients.len()))?;
    let mut rows = vec![["KEY", "ADDRESS", "BEHIND", "QUEUED", "DROPPED"].map(str::to_owned)];
    let shown = behind.iter().take(MOST_STREAMS);
    rows.extend(shown.map(|client| ["key", "address", "lag", "queued", "dropped"].map(|name| plain(&client[name]))));
    output_rows(&rows)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// A text without its quotes; anything else as it is.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The time since then, in whole seconds.
fn since(then: Timestamp) -> String {
    let passed = Timestamp::now().duration_since(then).unsigned_abs();
    text::duration(Duration::from_secs(passed.as_secs()))
}

fn parse_url(text: &str) -> Result<String, String> {
    let url = text.trim().trim_end_matches('/');
    match url.strip_prefix("http://") {
        Some(host) if !host.is_empty() && !host.contains(['/', '?', '#', '@']) => Ok(url.to_owned()),
        _ => Err("expected an address such as http://127.0.0.1:9464".to_owned()),
    }
}
