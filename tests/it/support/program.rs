//! Runs `signal-feed` as an operator does.

use std::process::Command;

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

/// Runs `signal-feed` with these arguments on the database at `url`.
pub fn signal_feed(url: &str, arguments: &[&str]) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_signal-feed"))
        .args(arguments)
        .env_clear()
        .env("SIGNAL_FEED_DATABASE_URL", url)
        .output()
        .unwrap();
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

    /// A new database with the feed installed.
    pub fn migrated() -> Self {
        let database = Self::empty();
        database.migrate();
        database
    }
}
