//! `signal-feed migrate`: installs, upgrades or repairs the schema.

use std::time::Duration;

use super::print::{progress, say};
use crate::db::Connection;
use crate::db::migrate::{self, Options, ROLES_SQL, SignalInserted};
use crate::error::{Doing, Error};
use crate::options::{DatabaseArgs, output, parse_duration};

/// Install, upgrade or repair the feed's schema; safe to run again
///
/// Prints what it did, and warns about rights and objects that the feed did not make. Run it the first time as a
/// superuser, or as a login with CREATEROLE that owns the database and signal. It refuses to run beside objects named
/// signal_feed_* that are not the feed's own. While it runs, standard error shows its progress.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed migrate --check               # before an upgrade: what would be done
  signal-feed migrate
  signal-feed migrate --roles-sql | psql    # for a DBA: the roles alone")]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    /// Change nothing; exit 1 if something is missing
    #[arg(long, conflicts_with = "roles_sql")]
    check: bool,
    /// Print the SQL that makes the roles, for a DBA or for another cluster; needs no database
    #[arg(long, conflicts_with = "check")]
    roles_sql: bool,
    /// How long to try to lock signal; writers continue between the tries
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    lock_wait: Duration,
    /// Whether an INSERT also notifies channel signal_inserted [default: as chosen before, at first auto]
    #[arg(long, value_name = "WHEN", value_enum)]
    signal_inserted: Option<SignalInserted>,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    if args.roles_sql {
        return output(ROLES_SQL.trim_end());
    }
    let options = Options { lock_wait: args.lock_wait, signal_inserted: args.signal_inserted };
    let mut connection =
        Connection::open(&args.database.settings()?, "signal-feed migrate").doing("connect to the database")?;
    migrate::allow_long_statements(&mut connection)?;
    let progress = progress("migrate");
    if !args.check {
        return migrate::migrate(&mut connection, &options, &mut |line| {
            progress.suspend(|| say(line));
            progress.set_message(format!("last {line:?}"));
        });
    }
    let missing = migrate::check(&mut connection, &options)?;
    drop(progress);
    for line in &missing {
        output(line)?;
    }
    match missing.len() {
        0 => output("nothing to do"),
        count => Err(Error::Failed(format!("migrate --check: {count} missing or wrong; run \"signal-feed migrate\""))),
    }
}
