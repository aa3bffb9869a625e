//! Runs `signal-feed` as an operator does.

use std::process::Command;
use std::sync::OnceLock;

use signal_feed::demo::postgres::PrivatePostgres;

use super::database::Database;

/// How a run of the program ended.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Standard output of a run that must have succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        self.stdout
    }

    /// Standard error of a run that must have failed with `code`.
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        self.stderr
    }
}

/// The program with only the database in its environment and without an operator's port, of which each host has one:
/// tests that use it choose a port.
pub fn command(url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_signal-feed"));
    command.env_clear().env("SIGNAL_FEED_DATABASE_URL", url).env("SIGNAL_FEED_OPS_LISTEN", "off");
    command
}

/// Runs `signal-feed` with these arguments on the database at `url`.
pub fn signal_feed(url: &str, arguments: &[&str]) -> Outcome {
    let output = command(url).args(arguments).output().unwrap();
    Outcome {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Database {
    /// Installs the feed.
    pub fn migrate(&self) -> String {
        signal_feed(&self.url, &["migrate"]).ok()
    }

    /// A new database with the feed installed: a copy of a template that is migrated once, with an identity of its own.
    pub fn migrated() -> Self {
        static TEMPLATE: OnceLock<Database> = OnceLock::new();
        if Self::is_elsewhere() {
            // There a template would be left behind.
            let database = Self::empty();
            database.migrate();
            return database;
        }
        let template = TEMPLATE.get_or_init(|| {
            let database = Self::empty();
            database.migrate();
            database
        });
        let database = Self::copy_of(template);
        database.sql(
            "update stock_market.signal_feed_identity set feed_id = gen_random_uuid();
             select stock_market.signal_feed_nothing_lost()",
        );
        database
    }

    /// The same in a cluster of the test's own.
    pub fn migrated_in(cluster: &PrivatePostgres) -> Self {
        let database = Self::empty_in(cluster);
        database.migrate();
        database
    }

    /// Mints a key.
    pub fn mint(&self, name: &str) -> String {
        self.mint_with(name, &[])
    }

    /// Mints a key with more options.
    pub fn mint_with(&self, name: &str, options: &[&str]) -> String {
        let key =
            signal_feed(&self.url, &[&["key", "mint", "--name", name], options].concat()).ok().trim_end().to_owned();
        assert!(key.starts_with("sf_") && key.len() == 46, "{key:?}");
        key
    }
}
