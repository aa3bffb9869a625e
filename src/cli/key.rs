//! `signal-feed key`: mint, list, revoke and rotate API keys.

use std::io::{Write as _, stdout};
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::print::{minute, output_table, say};
use crate::db::Connection;
use crate::db::keys::{self, Key};
use crate::error::{Doing, Error};
use crate::event::EventTime;
use crate::feed::keys::new_key;
use crate::feed::seconds;
use crate::options::{DatabaseArgs, output, parse_duration, parse_positive_duration};
use crate::text::{is_hidden, word};

const LONGEST_NAME: usize = 100;

/// Mint, list, revoke and rotate API keys
///
/// The database stores only the SHA-256 of a key. A running server applies every change within a second.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed key mint --name bot-1
  signal-feed key list")]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Create a key and print it, alone on one line; it is never shown again
    #[command(after_help = "Examples:
  signal-feed key mint --name bot-1 > bot-1.key
  signal-feed key mint --name guest --expires-in 90d --delay 15m")]
    Mint {
        /// Name of the key; refused if a live key has it
        #[arg(long, value_name = "NAME", value_parser = parse_name)]
        name: String,
        /// The key expires after this time [default: never]
        #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
        expires_in: Option<Duration>,
        /// Deliver every event this much later
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = parse_duration)]
        delay: Duration,
    },
    /// Show live, expired and revoked keys; times are in UTC, LAST USED is when a stream last began or ended
    #[command(after_help = "Examples:
  signal-feed key list
  signal-feed key list --json | jq -r '.[] | select(.state == \"live\") | .name'")]
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Revoke every live key of a name at once; its streams end within a second
    #[command(after_help = "Example:\n  signal-feed key revoke bot-1")]
    Revoke {
        /// Name of the key
        #[arg(value_parser = parse_name)]
        name: String,
    },
    /// Create a new key for a name and print it; the old key ends after an overlap
    #[command(after_help = "Example:\n  signal-feed key rotate bot-1 --overlap 2h > bot-1.key")]
    Rotate {
        /// Name of the key
        #[arg(value_parser = parse_name)]
        name: String,
        /// How long the old key still works
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
        overlap: Duration,
        /// The new key expires after this time [default: the lifetime that the old key was made with]
        #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
        expires_in: Option<Duration>,
    },
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let mut connection = args.database.connect()?;
    match args.command {
        KeyCommand::Mint { name, expires_in, delay } => {
            let (key, hash) = new_key()?;
            if !keys::insert(&mut connection, &name, &hash, expires_in, delay)? {
                let why = "there is already a live key with this name; use key rotate or key revoke";
                return Err(Error::Failed(format!("mint a key named {name:?}: {why}")));
            }
            show(&key, &name)
        }
        KeyCommand::Rotate { name, overlap, expires_in } => {
            let (key, hash) = new_key()?;
            if !keys::rotate(&mut connection, &name, &hash, overlap, expires_in)? {
                return Err(none_live("rotate", &name));
            }
            show(&key, &name)
        }
        KeyCommand::Revoke { name } => {
            if keys::revoke(&mut connection, &name).doing("revoke a key")? == 0 {
                return Err(none_live("revoke", &name));
            }
            say(format_args!("revoked {name}"));
            Ok(())
        }
        KeyCommand::List { json } => list(&mut connection, json),
    }
}

fn none_live(doing: &str, name: &str) -> Error {
    Error::Failed(format!("{doing} a key: there is no live key named {name:?}; see key list"))
}

/// Shows a new key. It cannot be shown again, so if this fails, the command fails.
fn show(key: &str, name: &str) -> Result<(), Error> {
    writeln!(stdout(), "{key}")
        .doing(format!("show the new key {name:?}: it is live but was not shown; revoke it and mint another"))
}

fn list(connection: &mut Connection, json: bool) -> Result<(), Error> {
    let (keys, now) = keys::read_all(connection).doing("read the keys")?;
    if json {
        return output(keys.iter().map(|key| as_json(key, now)).collect::<Value>());
    }
    if keys.is_empty() {
        return output("no keys yet; mint one with: signal-feed key mint --name NAME");
    }
    let rows = keys.iter().map(|key| {
        [
            key.name.clone(),
            word(key.state(now)),
            minute(key.created_at),
            key.revoked_at.or(key.expires_at).map_or("never".to_owned(), minute),
            if key.delay.is_zero() { "none".to_owned() } else { crate::text::duration(key.delay).to_string() },
            key.last_used_at.map_or("never".to_owned(), minute),
        ]
    });
    output_table(["NAME", "STATE", "CREATED (UTC)", "ENDS", "DELAY", "LAST USED"], rows.collect())
}

fn as_json(key: &Key, now: EventTime) -> Value {
    json!({
        "name": key.name,
        "state": key.state(now),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "delay_seconds": seconds(key.delay),
        "last_used_at": key.last_used_at,
    })
}

fn parse_name(text: &str) -> Result<String, String> {
    let length = text.chars().count();
    if length == 0 || length > LONGEST_NAME || text.chars().any(is_hidden) {
        return Err(format!("expected 1 to {LONGEST_NAME} characters, none of them a control character or invisible"));
    }
    Ok(text.to_owned())
}
