//! `signal-feed doctor`: checks the installation end to end.

use super::print::{output_rows, progress};
use crate::db::doctor;
use crate::error::{Doing, Error};
use crate::options::{DatabaseArgs, output};

/// Check the installation end to end; exit 1 if anything fails
///
/// Prints one line per check: the verdict, the check, what it found, what to do and as which login. It takes 20 seconds
/// at most, even if tables are locked, and names the session that blocks a table of the feed. Needs the role
/// signal_feed_admin.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed doctor
  signal-feed doctor --json | jq '.[] | select(.ok | not)'")]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let progress = progress("doctor");
    let checks = doctor::examine(&args.database.settings()?).doing("connect to the database");
    drop(progress);
    let checks = checks?;
    if args.json {
        let list: Vec<_> = checks
            .iter()
            .map(|(check, one)| serde_json::json!({"check": check, "ok": one.ok, "message": one.message, "fix": one.fix}))
            .collect();
        output(serde_json::Value::from(list))?;
    } else {
        let rows: Vec<_> = checks
            .iter()
            .map(|(check, one)| {
                let verdict = match (one.ok, &one.fix) {
                    (true, None) => "ok",
                    (true, Some(_)) => "WARN",
                    (false, _) => "FAIL",
                };
                let fix = one.fix.as_ref().map(|fix| format!("; {fix}")).unwrap_or_default();
                [verdict.to_owned(), (*check).to_owned(), format!("{}{fix}", one.message)]
            })
            .collect();
        output_rows(&rows)?;
    }
    let failed: Vec<&str> = checks.iter().filter(|(_, one)| !one.ok).map(|(check, _)| *check).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::Failed(format!("these checks failed: {}", failed.join(", "))))
}
