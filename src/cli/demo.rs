//! `signal-feed demo`: the whole system on one machine with nothing configured: a private PostgreSQL, the schema, a key,
//! the server, and a screener that writes signals.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::print::say;
use crate::config::ServeOptions;
use crate::db::{Connection, Settings, Watch, keys, migrate};
use crate::demo::postgres::PrivatePostgres;
use crate::demo::screener;
use crate::error::{Doing, Error};
use crate::feed::keys::new_key;
use crate::http::accept::bind;
use crate::logging;
use crate::options::{parse_address, send_on_signal};

/// Short, because nothing else uses the demo's database.
const LOCK_WAIT: Duration = Duration::from_secs(10);

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
    let (asked, stop) = bounded(1);
    send_on_signal(asked.clone())?;
    // Checked before PostgreSQL is started, and port 0 becomes a real port.
    let address = bind(args.listen, &[])?.local_addr().doing("find a free port")?;
    // Any free port: a server with the usual one may run beside the demo.
    let ops_address = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &[])?.local_addr().doing("find a free port")?;
    let options = ServeOptions { listen: vec![address], ops_listen: Some(ops_address), ..ServeOptions::defaults() };
    let postgres = PrivatePostgres::start(&[])?;
    let database_url = postgres.url("postgres");
    let settings = database_url.parse::<Settings>().doing("read the demo's own connection string")?;
    let key = install(&settings)?;

    let (stop_server, server_stops) = bounded::<()>(0);
    thread::scope(|scope| {
        let settings = &settings;
        let server = scope.spawn(move || {
            let outcome = crate::serve::serve(options, settings, &server_stops);
            // If the server ends by itself, the screener ends too.
            let _ = asked.try_send(());
            outcome
        });
        introduce(args.rate, address, ops_address, &key, &database_url);
        let watched = stop.clone();
        let watch: Watch = Arc::new(move || watched.is_empty());
        let written = screener::run(&settings.clone().with_watch(Some(watch)), args.rate, &stop);
        // If it was asked to stop during a write, it gave up the write.
        let written = if stop.is_empty() { written } else { Ok(()) };
        drop(stop_server);
        let served = server.join().unwrap_or_else(|_| Err(Error::Failed("run the server: it panicked".into())));
        written.and(served)
    })
}

fn install(settings: &Settings) -> Result<String, Error> {
    let mut connection = Connection::open(settings, "signal-feed demo").doing("connect to the demo's database")?;
    let options = migrate::Options { lock_wait: LOCK_WAIT, signal_inserted: None };
    migrate::migrate(&mut connection, &options, &mut |line| log::debug!("migrate: {line}"))?;
    let (key, hash) = new_key()?;
    keys::insert(&mut connection, "demo", &hash, None, Duration::ZERO)?;
    Ok(key)
}

fn introduce(rate: f64, address: SocketAddr, ops_address: SocketAddr, key: &str, database_url: &str) {
    say(format_args!(
        "signal-feed demo: {rate} signals a second; Ctrl-C stops everything and leaves nothing behind

watch page   http://{address}/
its key      {key}
status page  http://{ops_address}/
database     {database_url}

see the stream:
  curl -N -H 'Authorization: Bearer {key}' http://{address}/feed
everything from the beginning:
  curl -N -H 'Authorization: Bearer {key}' 'http://{address}/feed?cursor=0'"
    ));
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.trim().parse::<f64>().ok().filter(|rate| (0.001..=10_000.0).contains(rate));
    rate.ok_or_else(|| "expected a number from 0.001 to 10000".to_owned())
}
