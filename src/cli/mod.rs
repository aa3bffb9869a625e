//! The command line of `signal-feed`: one file per subcommand.

mod demo;
mod doctor;
mod key;
mod migrate;
mod print;
mod prune;
mod quarantine;
mod restored;
mod serve;
mod status;
mod tail;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::error::Error;
use crate::options::{self, with_rules};

/// Stream a PostgreSQL table of trading signals to bots: a gapless, commit-ordered log over Server-Sent Events
///
/// Every option is also an environment variable (--listen is SIGNAL_FEED_LISTEN); the flag wins. Durations are written
/// 500ms, 15s, 5m, 72h or 30d. Exit codes: 0 success, 1 failure, 2 wrong usage; also 2 if status reaches no server, and
/// 77 if the feed refuses the key of tail.
#[derive(Debug, Parser)]
#[command(
    name = "signal-feed",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Examples:
  signal-feed demo                            # try it: everything on this machine
  export DATABASE_URL=postgres://owner@localhost/market
  signal-feed migrate                         # install or upgrade the schema
  signal-feed key mint --name bot-1           # a key for a consumer
  signal-feed serve --listen 0.0.0.0:8080     # run the feed"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Migrate(migrate::Args),
    Serve(Box<serve::Args>),
    Status(status::Args),
    Key(key::Args),
    Quarantine(quarantine::Args),
    Tail(tail::Args),
    Prune(prune::Args),
    Doctor(doctor::Args),
    Restored(restored::Args),
    Demo(demo::Args),
}

/// The definition of the command line, for help, completions and manual pages.
pub fn command() -> clap::Command {
    with_rules(Cli::command(), "SIGNAL_FEED_")
}

/// Parses the command line, runs the command, and says how the process ends.
pub fn main() -> ExitCode {
    options::main(command(), |cli: Cli| cli.command.run())
}

impl Command {
    fn run(self) -> Result<(), Error> {
        match self {
            Self::Migrate(args) => migrate::run(&args),
            Self::Serve(args) => serve::run(*args),
            Self::Status(args) => status::run(&args),
            Self::Key(args) => key::run(args),
            Self::Quarantine(args) => quarantine::run(args),
            Self::Tail(args) => tail::run(args),
            Self::Prune(args) => prune::run(&args),
            Self::Doctor(args) => doctor::run(&args),
            Self::Restored(args) => restored::run(&args),
            Self::Demo(args) => demo::run(&args),
        }
    }
}
