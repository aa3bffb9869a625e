//! `signal-feed demo`: the whole system on one machine with nothing configured.

use std::net::SocketAddr;

use super::say;
use super::serve::signals;
use crate::config::ServeOptions;
use crate::demo;
use crate::error::Error;
use crate::logging;
use crate::options::parse_address;

/// Try the whole system: a private PostgreSQL, the schema, a key, the server and a screener that writes signals
///
/// Needs PostgreSQL's server programs (Debian: apt-get install postgresql). Ctrl-C stops everything and leaves
/// nothing behind.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  signal-feed demo --listen 127.0.0.1:9090 --rate 10")]
pub(super) struct Args {
    /// Address of the feed; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = parse_address)]
    listen: SocketAddr,
    /// Signals per second
    #[arg(long, value_name = "SIGNALS", default_value = "2", value_parser = parse_rate)]
    rate: f64,
}

pub(super) fn run(args: &Args) -> Result<(), Error> {
    logging::start(log::LevelFilter::Warn);
    let options = ServeOptions { listen: vec![args.listen], ..ServeOptions::defaults() };
    demo::run(options, args.rate, &signals()?, |ready| {
        say(format_args!(
            "signal-feed demo: {} signals a second; Ctrl-C stops everything and leaves nothing behind",
            args.rate
        ));
        say("");
        say(format_args!("watch page   http://{}/", ready.address));
        say(format_args!("its key      {}", ready.key));
        say(format_args!("status page  http://{}/", ready.ops_address));
        say(format_args!("database     {}", ready.database_url));
        say("");
        say("see the stream:");
        say(format_args!("  curl -N -H 'Authorization: Bearer {}' http://{}/feed", ready.key, ready.address));
        say("everything from the beginning:");
        say(format_args!(
            "  curl -N -H 'Authorization: Bearer {}' 'http://{}/feed?cursor=0'",
            ready.key, ready.address
        ));
    })
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| (0.001..=10_000.0).contains(rate));
    rate.ok_or_else(|| "expected a number from 0.001 to 10000".to_owned())
}
