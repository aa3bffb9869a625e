//! A real database with the schema, and a real `signal-feed serve` on it.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use super::process::Place;
use crate::support::database::Database;
use crate::support::wait::until;

/// A database with the feed's schema, and a login of the bot's role.
pub(super) struct Market {
    pub(super) database: Database,
    bot_role: String,
}

impl Market {
    pub(super) fn new() -> Self {
        let database = Database::empty();
        let bot_role = format!("{}_bot", database.name);
        let market = Self { database, bot_role };
        market.run(&["migrate"]);
        market.execute(&format!("create role {} login in role signal_feed_bot", market.bot_role));
        market
    }

    /// `signal-feed` as the superuser; its standard output.
    pub(super) fn run(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_signal-feed"));
        let output = command.args(arguments).env("SIGNAL_FEED_DATABASE_URL", &self.database.url).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(super) fn execute(&self, sql: &str) {
        self.database.connect().batch_execute(sql).unwrap();
    }

    pub(super) fn number(&self, sql: &str) -> i64 {
        self.database.connect().query_one(sql, &[]).unwrap().get(0)
    }

    pub(super) fn feed_id(&self) -> String {
        let sql = "select feed_id::text from stock_market.signal_feed_identity";
        self.database.connect().query_one(sql, &[]).unwrap().get(0)
    }

    pub(super) fn counter(&self) -> i64 {
        self.number("select max(value) from stock_market.signal_feed_counter")
    }

    pub(super) fn bot_url(&self) -> String {
        self.database.url_as(&self.bot_role)
    }

    /// A row; the time of its creation counts back from now.
    pub(super) fn signal(&self, symbol: &str, action: &str, minutes_ago: i64) -> i64 {
        let sql = "insert into stock_market.signal (symbol, action, side, quantity, created_at, updated_at) \
                   values ($1, $2, 'BUY', 1, now() - $3 * interval '1 minute', now() - $3 * interval '1 minute') \
                   returning id";
        let minutes = f64::from(i32::try_from(minutes_ago).unwrap());
        self.database.connect().query_one(sql, &[&symbol, &action, &minutes]).unwrap().get(0)
    }

    /// Starts `signal-feed serve`; returns it once it is ready.
    pub(super) fn serve(&self, place: &Place) -> Server {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        self.serve_at(place, &address)
    }

    pub(super) fn serve_at(&self, place: &Place, address: &str) -> Server {
        let log = std::fs::File::options().create(true).append(true).open(place.path("server.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_signal-feed"))
            .args(["serve", "--listen", address])
            .env("SIGNAL_FEED_DATABASE_URL", &self.database.url)
            .env("SIGNAL_FEED_OPS_LISTEN", "off")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Server { child, address: address.to_owned() };
        until(&format!("the server is up: {}", place.read("server.log")), || {
            std::net::TcpStream::connect(&server.address).ok()
        });
        server
    }
}

impl Drop for Market {
    fn drop(&mut self) {
        let role = &self.bot_role;
        let _ = self.database.connect().batch_execute(&format!("drop owned by {role}; drop role {role}"));
    }
}

/// A running `signal-feed serve`.
pub(super) struct Server {
    child: Child,
    pub(super) address: String,
}

impl Server {
    pub(super) fn url(&self) -> String {
        format!("http://{}/feed", self.address)
    }

    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
