//! `signal-feed restored`: records that the database was restored or failed over.

use super::print::say;
use crate::db::{migrate, restored};
use crate::error::{Doing, Error};
use crate::options::{DatabaseArgs, parse_number};

/// Run after a restore from backup, or a failover that lost something: continue numbering above any numbers that were
/// lost
///
/// Clients whose cursor is a lost number then get history_rewritten. Needs the role signal_feed_admin.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed restored                   # after a restore: events may be lost
  signal-feed restored --nothing-lost    # after a switchover to a standby that had everything")]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    /// How many numbers to skip: more than the number of events that may be lost
    #[arg(long, value_name = "N", default_value_t = 1_000_000,
        value_parser = parse_number(1..=i64::MAX), conflicts_with = "nothing_lost")]
    skip: i64,
    /// Nothing was lost (a clean failover, a copy of the whole cluster): only record the new cluster and database
    #[arg(long, conflicts_with = "skip")]
    nothing_lost: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    let mut connection = args.database.connect()?;
    migrate::check_schema(&mut connection)?;
    if args.nothing_lost {
        restored::nothing_lost(&mut connection).doing("record the cluster")?;
        say("recorded this cluster, timeline and database; skipped no numbers");
        return Ok(());
    }
    let (from, to) = restored::skip(&mut connection, args.skip).doing("skip the lost numbers")?;
    say(format_args!(
        "skipped {from} to {to}: every cursor in this range gets history_rewritten; the next event is {}",
        to.saturating_add(1)
    ));
    // Not done here: signal belongs to the screener and can have any columns.
    say("if signal.id comes from a sequence, raise that above the lost ids too, before signals are \
         written: bots place no order for an id that they know");
    Ok(())
}
