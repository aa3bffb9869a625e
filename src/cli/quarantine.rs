//! `signal-feed quarantine`: the events that cannot be delivered.

use clap::Subcommand;
use serde_json::{Value, json};

use super::print::{minute, output_table, say};
use crate::db::quarantine::{self, Quarantined};
use crate::db::{Connection, migrate};
use crate::error::{Doing, Error};
use crate::event::FeedSeq;
use crate::options::{DatabaseArgs, output, parse_number};

/// List the events that cannot be delivered, and mark them as dealt with
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed quarantine list
  signal-feed quarantine settle 12346")]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(subcommand)]
    command: QuarantineCommand,
}

#[derive(Debug, Subcommand)]
enum QuarantineCommand {
    /// List every quarantined event, when the server found it (UTC), and why it cannot be delivered
    #[command(after_help = "Examples:
  signal-feed quarantine list
  signal-feed quarantine list --json | jq '.[-1]'")]
    List {
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
        /// The event's number
        #[arg(value_name = "SEQ", value_parser = parse_number(1..=i64::MAX))]
        seq: i64,
    },
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let mut connection = args.database.connect()?;
    migrate::check_schema(&mut connection)?;
    match args.command {
        QuarantineCommand::List { json } => list(&mut connection, json),
        QuarantineCommand::Settle { seq } => {
            if !quarantine::settle(&mut connection, FeedSeq(seq)).doing("settle the event")? {
                return Err(Error::Failed(format!("event {seq} is not quarantined; see signal-feed quarantine list")));
            }
            say(format_args!("event {seq} is settled"));
            Ok(())
        }
    }
}

fn list(connection: &mut Connection, json: bool) -> Result<(), Error> {
    let list = quarantine::read_all(connection).doing("read the quarantine")?;
    if json {
        let as_json = |one: &Quarantined| json!({"feed_seq": one.seq, "error": one.error, "quarantined_at": one.at});
        return output(list.iter().map(as_json).collect::<Value>());
    }
    if list.is_empty() {
        return output("nothing is quarantined");
    }
    let rows = list.into_iter().map(|one| {
        let settled = if one.is_settled { "yes" } else { "no" };
        [one.seq.to_string(), minute(one.at), settled.to_owned(), one.error]
    });
    output_table(["NUMBER", "FOUND (UTC)", "SETTLED", "ERROR"], rows.collect())
}
