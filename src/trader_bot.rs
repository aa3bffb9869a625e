//! The command line of `trader-bot`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};

use crate::consumer::bot::{self, BotOptions};
use crate::consumer::broker::{Broker, ExecBroker, PaperBroker};
use crate::consumer::follow::FollowOptions;
use crate::consumer::recovery::Recovery;
use crate::consumer::stop::Stop;
use crate::consumer::stream::{ApiKey, FeedUrl};
use crate::error::Error;
use crate::logging;
use crate::options::{
    self, DatabaseArgs, OrOff, or_off, parse_duration, parse_log_level, parse_positive_duration, with_rules,
};
use crate::text::one_line;

/// Place orders from a signal feed, each at most once, and notice when signals were missed
///
/// Every option is also an environment variable (--feed-url is TRADER_BOT_FEED_URL); the flag wins. Durations are
/// written 500ms, 15s, 5m or 72h. Exit codes: 0 after SIGTERM or SIGINT, 1 failure, 2 wrong usage, 77 the feed refuses
/// the key.
#[derive(Debug, Parser)]
#[command(
    name = "trader-bot",
    version,
    max_term_width = 100,
    after_help = "Examples:
  trader-bot --feed-url http://feed:8080/feed --feed-api-key-file bot.key
  trader-bot --feed-url http://feed:8080/feed --feed-api-key-file bot.key --broker exec:./broker.py
  trader-bot --feed-url http://feed:8080/feed --feed-api-key-file bot.key --recovery --database-url postgres://bot@db/market"
)]
struct Args {
    /// URL of the stream, ending in /feed; repeat it for several feeds of the same log, tried in turn
    #[arg(long, value_name = "URL", required = true, value_delimiter = ',', help_heading = "Feed")]
    feed_url: Vec<FeedUrl>,
    /// API key. Other users of this machine can see it in a flag: prefer the file or the environment
    #[arg(long, value_name = "KEY", hide_env_values = true, help_heading = "Feed")]
    feed_api_key: Option<String>,
    /// File with the API key; read again when the feed refuses the key
    #[arg(long, value_name = "FILE", help_heading = "Feed")]
    feed_api_key_file: Option<PathBuf>,
    /// Reconnect after this much silence (the feed writes at least every 15 s)
    #[arg(long, value_name = "DURATION", default_value = "35s",
          value_parser = parse_positive_duration, help_heading = "Feed")]
    read_timeout: Duration,
    /// Longest first wait after a failure; doubles each time. The actual wait is random, up to this limit
    #[arg(long, value_name = "DURATION", default_value = "1s",
          value_parser = parse_positive_duration, help_heading = "Feed")]
    backoff_min: Duration,
    /// Longest wait after any failure
    #[arg(long, value_name = "DURATION", default_value = "60s",
          value_parser = parse_positive_duration, help_heading = "Feed")]
    backoff_max: Duration,

    /// Where orders go: paper, exec:PROGRAM, or ibkr:HOST:PORT in a build with that feature
    #[arg(long, value_name = "BROKER", default_value = "paper", value_parser = parse_broker, help_heading = "Orders")]
    broker: BrokerChoice,
    /// Longest time for one order or one look-up
    #[arg(long, value_name = "DURATION", default_value = "30s",
          value_parser = parse_positive_duration, help_heading = "Orders")]
    broker_timeout: Duration,
    /// Never place entries older than this (a duration, or off); exits are always placed
    #[arg(long, value_name = "DURATION|off", default_value = "off", value_parser = or_off(parse_positive_duration),
          help_heading = "Orders")]
    max_entry_age: OrOff<Duration>,
    /// If the feed cannot deliver an event to anybody: only raise an alert, or enter close-only mode too
    #[arg(long, value_name = "WHAT", default_value = "alert", value_parser = ["alert", "close-only"],
          help_heading = "Orders")]
    on_quarantined: String,

    /// File for the cursor and the mode
    #[arg(long, value_name = "FILE", default_value = "trader-bot.state", help_heading = "Files")]
    state_file: PathBuf,
    /// File with every order; if it is lost, the bot can place orders again
    #[arg(long, value_name = "FILE", default_value = "trader-bot.journal", help_heading = "Files")]
    journal: PathBuf,

    /// Before streaming, place the missed orders from the database (role signal_feed_bot) and leave close-only mode
    #[arg(long, help_heading = "Recovery")]
    recovery: bool,
    /// Print what --recovery would place, send nothing, change no file, and exit
    #[arg(long, help_heading = "Recovery")]
    recovery_dry_run: bool,
    #[command(flatten)]
    database: DatabaseArgs,
    /// How far back recovery looks for created or updated rows; further if the bot was away for longer
    #[arg(long, value_name = "DURATION", default_value = "72h",
          value_parser = parse_duration, help_heading = "Recovery")]
    recovery_lookback: Duration,

    /// Program to run for every alert; gets one JSON line on standard input
    #[arg(long, value_name = "PROGRAM", help_heading = "Log")]
    alert_command: Option<PathBuf>,
    /// Lowest level that is logged: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info", help_heading = "Log", value_parser = parse_log_level)]
    log_level: log::LevelFilter,
}

#[derive(Debug, Clone)]
enum BrokerChoice {
    Paper,
    Exec(PathBuf),
    #[cfg(feature = "ibkr")]
    Ibkr(String),
}

fn parse_broker(text: &str) -> Result<BrokerChoice, String> {
    let expected = if cfg!(feature = "ibkr") {
        "expected paper, exec:PROGRAM or ibkr:HOST:PORT"
    } else {
        "expected paper or exec:PROGRAM"
    };
    match text.split_once(':') {
        None if text == "paper" => Ok(BrokerChoice::Paper),
        Some(("exec", program)) if !program.is_empty() => Ok(BrokerChoice::Exec(PathBuf::from(program))),
        #[cfg(feature = "ibkr")]
        Some(("ibkr", address))
            if address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) =>
        {
            Ok(BrokerChoice::Ibkr(address.to_owned()))
        }
        #[cfg(not(feature = "ibkr"))]
        Some(("ibkr", _)) => Err(format!("this build has no feature ibkr; {expected}")),
        _ => Err(expected.to_owned()),
    }
}

/// The definition of the command line, for help, completions and the manual page.
pub fn command() -> clap::Command {
    with_rules(Args::command(), "TRADER_BOT_")
}

/// Parses the command line, runs the bot, and returns the exit code.
pub fn main() -> ExitCode {
    options::main(command(), |args: Args| run(&args))
}

fn run(args: &Args) -> Result<(), Error> {
    let options = args.options()?;
    logging::start(args.log_level);
    if let (true, Some(recovery)) = (args.recovery_dry_run, &options.recovery) {
        return bot::dry_run(&options, recovery)?.iter().try_for_each(|line| options::output(one_line(line)));
    }
    let stop = Stop::new();
    let asked = stop.clone();
    options::on_signal(move || asked.ask())?;
    bot::run(&options, &|journal| args.open_broker(journal, &stop), &stop)
}

impl Args {
    fn options(&self) -> Result<BotOptions, Error> {
        if self.backoff_min > self.backoff_max {
            let (min, max) = (crate::text::duration(self.backoff_min), crate::text::duration(self.backoff_max));
            return Err(Error::Usage(format!("--backoff-min {min}: expected at most --backoff-max, which is {max}")));
        }
        let key = match (&self.feed_api_key, &self.feed_api_key_file) {
            (Some(key), _) => ApiKey::new(key).map_err(|why| Error::Usage(format!("--feed-api-key: {why}")))?,
            (None, Some(file)) => ApiKey::from_file(file)?,
            (None, None) => return Err(Error::Usage("no key: use --feed-api-key or --feed-api-key-file".to_owned())),
        };
        let follow = FollowOptions {
            urls: self.feed_url.clone(),
            key,
            key_file: self.feed_api_key_file.clone(),
            read_timeout: self.read_timeout,
            backoff_min: self.backoff_min,
            backoff_max: self.backoff_max,
        };
        let recovery = if self.recovery || self.recovery_dry_run {
            let database = self.database.given()?;
            let database = database.ok_or_else(|| Error::Usage("--recovery needs --database-url".to_owned()))?;
            Some(Recovery { database, lookback: self.recovery_lookback })
        } else {
            None
        };
        Ok(BotOptions {
            follow,
            state_file: self.state_file.clone(),
            journal: self.journal.clone(),
            max_entry_age: self.max_entry_age,
            closes_on_quarantined: self.on_quarantined == "close-only",
            away_patience: self.broker_timeout * 2,
            alert_command: self.alert_command.clone(),
            recovery,
        })
    }

    fn open_broker(&self, journal: &Path, stop: &Stop) -> Result<Box<dyn Broker>, Error> {
        let directory = journal.parent().unwrap_or(Path::new("."));
        Ok(match &self.broker {
            BrokerChoice::Paper => Box::new(PaperBroker::open(directory)?),
            BrokerChoice::Exec(program) => {
                Box::new(ExecBroker::open(program, self.broker_timeout, journal, stop.clone())?)
            }
            #[cfg(feature = "ibkr")]
            BrokerChoice::Ibkr(address) => {
                Box::new(crate::consumer::broker::IbkrBroker::new(address, self.broker_timeout, stop.clone()))
            }
        })
    }
}
