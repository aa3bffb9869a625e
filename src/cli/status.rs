//! `signal-feed status`: the status page for a terminal and for scripts.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::print::{output_rows, output_table};
use crate::error::Error;
use crate::options::output;
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
    let figure = |name: &str| plain(&status[name]);
    let (keys, clients, database) = (list(&status["keys"]), list(&status["clients"]), &status["database"]);
    let outage = database["outage_seconds"].as_f64().map(|seconds| {
        let lasted = text::duration(Duration::try_from_secs_f64(seconds.floor()).unwrap_or_default());
        format!(" for {lasted} (the server's log says why), capture was last")
    });
    let lag = status["standby_lag_seconds"].as_f64().map(|lag| format!(", {lag:.1} s behind its primary"));
    let (outage, lag) = (outage.unwrap_or(", capture".into()), lag.unwrap_or_default());
    let last_event = time(&status["last_event_at"]).map(|at| format!("{} ago ({at:.0})", since(at)));
    let up = time(&status["started_at"]).map(since).unwrap_or_default();
    let rows = [
        ("server", format!("{}, version {}, up {up}", figure("instance"), figure("version"))),
        ("state", format!("{}{outage} {}, {}{lag}", figure("state"), figure("capture"), figure("role"))),
        ("last event", last_event.unwrap_or("none".into())),
        ("head", format!("{}, replay from {}", figure("head"), figure("earliest"))),
        ("streams", clients.len().to_string()),
    ];
    output_rows(&rows.map(|(name, value)| [name.to_owned(), value]))?;
    if database["another_cluster"] == true {
        output("The database was restored or failed over: see \"signal-feed restored --help\".")?;
    }
    let quarantined = database["unsettled_quarantined_events"].as_u64().unwrap_or(0);
    if quarantined > 0 {
        output(format_args!("Quarantined and not settled: {quarantined}; see \"signal-feed quarantine list\"."))?;
    }

    let away = keys.iter().filter(|key| key["streams"] == 0).map(|key| {
        let last_used = time(&key["last_used_at"]).map(|at| format!("{} ago", since(at)));
        let expires = time(&key["expires_at"]).map(|at| format!("{at:.0}"));
        [plain(&key["name"]), last_used.unwrap_or("never".into()), expires.unwrap_or("never".into())]
    });
    let away: Vec<_> = away.collect();
    output(match away.len() {
        0 => format!("\nEvery key has a stream ({} keys).", keys.len()),
        count => format!("\nKeys without a stream ({count} of {}):", keys.len()),
    })?;
    output_table(["NAME", "LAST USED", "EXPIRES (UTC)"], away)?;

    let lag = |client: &&Value| client["lag"].as_u64().unwrap_or_default();
    let mut behind: Vec<&Value> = clients.iter().filter(|client| lag(client) > 0).collect();
    behind.sort_by_key(|client| std::cmp::Reverse(lag(client)));
    behind.truncate(MOST_STREAMS);
    output(match behind.len() {
        0 => "\nNo stream is behind.".to_owned(),
        count => format!("\nStreams furthest behind ({count} of {}):", clients.len()),
    })?;
    let row = |client: &Value| ["key", "address", "lag", "queued", "dropped"].map(|name| plain(&client[name]));
    output_table(["KEY", "ADDRESS", "BEHIND", "QUEUED", "DROPPED"], behind.into_iter().map(row).collect())
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
