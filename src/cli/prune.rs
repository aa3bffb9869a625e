//! `signal-feed prune`: removes old events from the log.

use std::time::Duration;

use super::print::{progress, say};
use crate::db::{migrate, prune};
use crate::error::{Doing, Error};
use crate::options::{DatabaseArgs, parse_duration};

/// Remove old events from the log; never blocks writers
///
/// Deletes from the old end, in batches. If it is interrupted, the next prune continues. While it runs, standard error
/// shows its progress. Needs the role signal_feed_admin.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed prune --older-than 30d --dry-run
  signal-feed prune --older-than 30d          # from cron or a systemd timer")]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Remove events older than this; never newer than the replay window plus the longest delay of a live key
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    older_than: Duration,
    /// The replay window that serve runs with
    #[arg(long, value_name = "DURATION", default_value = "72h", value_parser = parse_duration)]
    replay_window: Duration,
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let mut connection = args.database.connect()?;
    migrate::check_schema(&mut connection)?;
    migrate::allow_long_statements(&mut connection)?;
    let progress = progress("prune");
    let plan = prune::plan(&mut connection, args.older_than, args.replay_window).doing("find what to prune")?;
    let age = crate::text::duration(plan.older_than);
    if plan.older_than > args.older_than {
        let asked = crate::text::duration(args.older_than);
        let lengthened = format!("--older-than {asked} lengthened to {age}: clients may replay that far (see --help)");
        progress.suspend(|| say(lengthened));
    }
    let through = plan.through.map(|through| format!(", up to {through}")).unwrap_or_default();
    if args.dry_run {
        progress.suspend(|| say(format_args!("would remove {} events older than {age}{through}", plan.events)));
        return Ok(());
    }
    let removed = prune::run(&mut connection, &plan, &mut |removed| {
        progress.set_message(format!("{removed} of {} events removed", plan.events));
    })
    .doing("prune the log")?;
    progress.suspend(|| say(format_args!("removed {removed} events older than {age}{through}")));
    Ok(())
}
