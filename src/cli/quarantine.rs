//! `signal-feed quarantine list`: the events that cannot be delivered.

use clap::Subcommand;

use super::table::{minute, output_rows};
use super::{DatabaseArgs, output};
use crate::db::quarantine;
use crate::error::{Doing, Error};

/// Show the events that cannot be delivered
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  signal-feed quarantine list")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show every quarantined event, when that was found out (UTC), and why
    #[command(after_help = "Examples:
  signal-feed quarantine list
  signal-feed quarantine list --json | jq '.[-1]'")]
    List {
        #[command(flatten)]
        database: DatabaseArgs,
        /// An array for scripts
        #[arg(long, env = "SIGNAL_FEED_JSON")]
        json: bool,
    },
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    let Action::List { database, json } = args.action;
    let list = quarantine::read_all(&mut database.connect()?).doing("read the quarantine")?;
    if json {
        let list: Vec<_> = list
            .iter()
            .map(|one| serde_json::json!({"feed_seq": one.seq, "error": one.error, "quarantined_at": one.at.to_string()}))
            .collect();
        output(serde_json::Value::from(list))
    } else if list.is_empty() {
        output("nothing is quarantined")
    } else {
        let mut rows = vec![["NUMBER", "FOUND (UTC)", "ERROR"].map(str::to_owned)];
        rows.extend(list.into_iter().map(|one| [one.seq.to_string(), minute(one.at), one.error]));
        output_rows(&rows)
    }
}
