//! The environment of a run: a private PostgreSQL, a database, the server, and the client's process.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use postgres::{Client, Statement};
use signal_feed::demo::postgres::PrivatePostgres;

use super::client::{self, Measured};
use super::usage;
use crate::support::cluster::Cluster as _;
use crate::support::database::Database;
use crate::support::server::Server;

/// A row as a screener writes it, of about 300 bytes as JSON, with the time at which it was sent.
const INSERT: &str = "insert into stock_market.signal (symbol, action, side, price, quantity, strategy, meta) \
                      select 'ACME', 'entry', 'BUY', 187.25 + i, 100, 'mean-reversion', jsonb_build_object('sent_us', $1::bigint) \
                      from generate_series(1, $2::int) as i";

/// A database with the feed, and a key.
pub struct World<'a> {
    pub postgres: &'a PrivatePostgres,
    pub database: Database,
    pub key: String,
}

impl<'a> World<'a> {
    /// A fresh one.
    pub fn new(postgres: &'a PrivatePostgres) -> Self {
        let database = Database::migrated_in(postgres);
        let key = database.mint("bench");
        Self { postgres, database, key }
    }

    /// A server for this many streams, all of one key; everything else has its default.
    pub fn serve(&self, streams: usize) -> Server {
        let streams = streams.to_string();
        Server::ready(&self.database, &["--max-clients", &streams, "--max-clients-per-key", &streams])
    }

    /// Starts the client and waits until every stream is open.
    pub fn connect(&self, server: &Server, streams: usize, events: usize, more: &[&str]) -> Streams {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["client", "--address", &server.address().to_string(), "--key", &self.key]);
        command.args(["--streams", &streams.to_string(), "--events", &events.to_string()]).args(more);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut streams = Streams { process, output };
        assert_eq!(streams.line(), "ready", "the client did not connect");
        streams
    }

    /// Processor time of PostgreSQL so far, seconds.
    pub fn database_cpu_s(&self) -> f64 {
        usage::cpu_with_children_s(self.postgres.pid())
    }
}

/// The client's process.
pub struct Streams {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Streams {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits until it has everything, and returns what it measured.
    pub fn finish(mut self) -> Measured {
        let line = self.line();
        self.process.wait().unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("the client ended early ({error}): {line:?}"))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A screener.
pub struct Writer {
    session: Client,
    insert: Statement,
}

impl Writer {
    /// With one session, which stays.
    pub fn new(database: &Database) -> Self {
        let mut session = database.connect();
        let insert = session.prepare(INSERT).unwrap();
        Self { session, insert }
    }

    /// Inserts this many rows in one transaction. Returns when they are committed.
    pub fn insert(&mut self, rows: usize) {
        let sent_us = (client::now() * 1e6) as i64;
        self.session.execute(&self.insert, &[&sent_us, &i32::try_from(rows).unwrap()]).unwrap();
    }

    /// Inserts rows one by one on a fixed schedule. Returns the median time of an INSERT, milliseconds.
    pub fn insert_at(&mut self, rate: f64, rows: usize) -> f64 {
        let began = Instant::now();
        let mut took: Vec<f64> = Vec::with_capacity(rows);
        for row in 0..rows {
            let due = row as f64 / rate - began.elapsed().as_secs_f64();
            std::thread::sleep(std::time::Duration::from_secs_f64(due.max(0.0)));
            let sent = Instant::now();
            self.insert(1);
            took.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        took.sort_unstable_by(f64::total_cmp);
        took[took.len() / 2]
    }
}
