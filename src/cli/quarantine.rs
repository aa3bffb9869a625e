//! `signal-feed quarantine`: the events that cannot be delivered.

use clap::Subcommand;

use super::table::{minute, output_rows};
use super::{DatabaseArgs, output, say};
use crate::db::{migrate, quarantine};
use crate::error::{Doing, Error};
use crate::event::FeedSeq;
use crate::options::parse_number;

/// List the events that cannot be delivered, and mark them as dealt with
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed quarantine list
  signal-feed quarantine settle 12346")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List every quarantined event, when the server found it (UTC), and why it cannot be delivered
    #[command(after_help = "Examples:
  signal-feed quarantine list
  signal-feed quarantine list --json | jq '.[-1]'")]
    List {
        #[command(flatten)]
        database: DatabaseArgs,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Mark an event as dealt with
    ///
    /// Alert rules and the status page no longer count it. Consumers still get the notice. Needs the role
    /// signal_feed_admin.
    #[command(after_help = "Example:\n  signal-feed quarantine settle 12346")]
    Settle {
        #[command(flatten)]
        database: DatabaseArgs,
        /// The event's number
        #[arg(value_name = "SEQ", value_parser = parse_number(1..=i64::MAX))]
        seq: i64,
    },
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    match args.action {
        Action::List { database, json } => list(&database, json),
        Action::Settle { database, seq } => settle(&database, seq),
    }
}

fn settle(database: &DatabaseArgs, seq: i64) -> Result<(), Error> {
    let mut connection = database.connect()?;
    migrate::check_schema(&mut connection)?;
    if !quarantine::settle(&mut connection, FeedSeq(seq)).doing("settle the event")? {
        return Err(Error::Failed(format!(
            "event {seq} is not quarantined: \"signal-feed quarantine list\" shows those that are"
        )));
    }
    say(format_args!("event {seq} is settled"));
    Ok(())
}

fn list(database: &DatabaseArgs, json: bool) -> Result<(), Error> {
    let mut connection = database.connect()?;
    migrate::check_schema(&mut connection)?;
    let list = quarantine::read_all(&mut connection).doing("read the quarantine")?;
    if json {
        let list: Vec<_> = list
            .iter()
            .map(|one| serde_json::json!({"feed_seq": one.seq, "error": one.error, "quarantined_at": one.at.to_string()}))
            .collect();
        output(serde_json::Value::from(list))
    } else if list.is_empty() {
        output("nothing is quarantined")
    } else {
        let mut rows = vec![["NUMBER", "FOUND (UTC)", "SETTLED", "ERROR"].map(str::to_owned)];
        rows.extend(list.into_iter().map(|one| {
            let settled = if one.is_settled { "yes" } else { "no" };
            [one.seq.to_string(), minute(one.at), settled.to_owned(), one.error]
        }));
        output_rows(&rows)
    }
}
