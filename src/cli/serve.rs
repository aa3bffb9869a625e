//! `signal-feed serve`: runs the feed until SIGTERM or SIGINT.

use crossbeam_channel::bounded;
use log::LevelFilter;

use crate::config::ServeOptions;
use crate::error::Error;
use crate::logging;
use crate::options::{DatabaseArgs, parse_log_level, send_on_signal};

/// Run the feed until SIGTERM or SIGINT
///
/// Starts even if the database is away, and retries. Refuses to start if the schema is missing, older or newer than
/// this version. Needs the role signal_feed_server.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  signal-feed serve --database-url postgres://feed@localhost/market --listen 0.0.0.0:8080
  signal-feed serve --database-url-file /etc/signal-feed/database-url --listen '[::]:8080'")]
pub(super) struct Args {
    #[command(flatten)]
    database: DatabaseArgs,
    #[command(flatten)]
    options: ServeOptions,
    /// Lowest level that is logged: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = parse_log_level, help_heading = "Log")]
    log_level: LevelFilter,
}

pub(super) fn run(args: Args) -> Result<(), Error> {
    logging::start(args.log_level);
    let settings = args.database.settings()?;
    let (asked, stop) = bounded(1);
    send_on_signal(asked)?;
    crate::serve::serve(args.options, &settings, &stop)
}
