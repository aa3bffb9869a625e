//! The whole system on one machine with nothing configured: a private PostgreSQL, the schema, a key, the server, and a
//! screener that writes signals.

pub mod postgres;
mod screener;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select};

use self::postgres::PrivatePostgres;
use crate::config::ServeOptions;
use crate::db::{Connection, Settings, keys, migrate};
use crate::error::{Doing, Error};
use crate::feed::keys::new_key;
use crate::http::accept::bind;

/// The demo's database.
const DATABASE: &str = "demo";

/// Short, because nothing else uses the demo's database.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The addresses and the key of a running demo.
#[derive(Debug)]
pub struct Ready {
    /// Where the feed listens.
    pub address: SocketAddr,
    /// Where the status page is.
    pub ops_address: SocketAddr,
    /// A key that opens it.
    pub key: String,
    /// The private database, for `psql`.
    pub database_url: String,
}

/// Runs the demo until `stop` gets a message. Blocks; calls `ready` once everything runs. Leaves nothing behind.
///
/// # Errors
/// If PostgreSQL's server programs are missing, the address cannot be bound, or a part of the demo fails.
pub fn run(options: ServeOptions, rate: f64, stop: &Receiver<()>, ready: impl FnOnce(&Ready)) -> Result<(), Error> {
    let address = *options.listen.first().ok_or_else(|| Error::Usage("--listen: no address".into()))?;
    // Checked before PostgreSQL is started, and port 0 becomes a real port.
    let address = bind(address, &[])?.local_addr().doing("find a free port")?;
    // Any free port: a server with the usual one may run beside the demo.
    let ops_address = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &[])?.local_addr().doing("find a free port")?;
    let options = ServeOptions { listen: vec![address], ops_listen: Some(ops_address), ..options };
    let postgres = PrivatePostgres::start(&[])?;
    Connection::open(&settings(&postgres.url("postgres"))?, "signal-feed demo")
        .and_then(|mut connection| connection.batch(&format!("create database {DATABASE}")))
        .doing("create the demo's database")?;
    let database_url = postgres.url(DATABASE);
    let settings = settings(&database_url)?;
    let mut connection = Connection::open(&settings, "signal-feed demo").doing("connect to the demo's database")?;
    let options_of_migrate = migrate::Options { lock_wait: LOCK_WAIT, signal_inserted: None };
    migrate::migrate(&mut connection, &options_of_migrate, &mut |line| log::debug!("migrate: {line}"))?;
    let (key, hash) = new_key()?;
    keys::insert(&mut connection, "demo", &hash, None, Duration::ZERO).doing("mint the demo's key")?;
    drop(connection);

    let (stop_screener, screener_stops) = bounded::<()>(0);
    let (stop_server, server_stops) = bounded(1);
    let (ended, end) = bounded(2);
    std::thread::scope(|scope| {
        let server_ended = ended.clone();
        scope.spawn({
            let settings = settings.clone();
            move || {
                let _ = server_ended.send(crate::serve::serve(options, &settings, &server_stops));
            }
        });
        scope.spawn(move || {
            let _ = ended.send(screener::run(&settings, rate, &screener_stops));
        });
        ready(&Ready { address, ops_address, key, database_url });
        let outcome = select! {
            recv(stop) -> _ => Ok(()),
            recv(end) -> outcome => outcome.unwrap_or(Ok(())),
        };
        drop(stop_screener);
        let _ = stop_server.try_send(());
        outcome
    })
}

fn settings(url: &str) -> Result<Settings, Error> {
    url.parse::<Settings>().doing("read the demo's own connection string")
}
