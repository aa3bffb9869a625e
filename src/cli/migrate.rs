//! `signal-feed migrate`: installs or upgrades the schema.

use super::DatabaseArgs;
use crate::error::Error;

/// Install or upgrade the feed's schema; safe to run again
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    args.database.connect()?;
    Ok(())
}
