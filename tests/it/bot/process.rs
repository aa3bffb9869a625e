//! The real `trader-bot`, in a directory of its own.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::wait::{PATIENCE, until};

pub(super) const KEY: &str = "sf_0123456789012345678901234567890123456789012";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A directory where bots run one after another; removed at the end.
pub(super) struct Place {
    pub(super) dir: PathBuf,
}

impl Place {
    pub(super) fn new() -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("trader-bot-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let place = Self { dir };
        place.script("alert", "cat >> alerts");
        place
    }

    /// A shell program in this directory.
    pub(super) fn script(&self, name: &str, text: &str) {
        self.program(name, &format!("#!/bin/sh\n{text}\n"));
    }

    pub(super) fn program(&self, name: &str, text: &str) {
        let path = self.dir.join(name);
        // Written under another name and renamed: a file that is open for writing cannot be executed.
        let new = self.dir.join(format!("{name}.new"));
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, path).unwrap();
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The bot as every test runs it, with short waits.
    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trader-bot"));
        command.current_dir(&self.dir).env("TRADER_BOT_FEED_API_KEY", KEY);
        command.env("TRADER_BOT_BACKOFF_MIN", "5ms").env("TRADER_BOT_BACKOFF_MAX", "50ms");
        command.env("TRADER_BOT_ALERT_COMMAND", "./alert").env("TRADER_BOT_LOG_LEVEL", "debug").args(arguments);
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command
    }

    pub(super) fn start(&self, url: &str, more: &[&str]) -> Bot {
        let mut arguments = vec!["--feed-url", url];
        arguments.extend(more);
        Bot { child: self.command(&arguments).spawn().unwrap() }
    }

    /// The references of the orders on paper, in order.
    pub(super) fn paper(&self) -> Vec<String> {
        references(&self.path("trader-bot.paper"))
    }

    /// Waits, and shows the bot's log if the wait fails.
    pub(super) fn wait(&self, what: &str, mut look: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !look() {
            assert!(Instant::now() < end, "waited in vain: {what}; log: {}", self.read("log"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(super) fn wait_paper(&self, expected: &[&str]) {
        self.wait(&format!("{expected:?} on paper"), || self.paper() == expected);
    }

    /// The reasons of the alerts so far, each with its level.
    pub(super) fn alerts(&self) -> Vec<(String, String)> {
        let text = self.read("alerts");
        let values = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        values.map(|value| (word(&value, "level"), word(&value, "reason"))).collect()
    }

    pub(super) fn wait_alert(&self, reason: &str) {
        self.wait(&format!("an alert {reason}"), || self.alerts().iter().any(|(_, known)| known == reason));
    }

    pub(super) fn count_alerts(&self, reason: &str) -> usize {
        self.alerts().iter().filter(|(_, known)| known == reason).count()
    }

    pub(super) fn state(&self) -> Value {
        serde_json::from_str(&self.read("trader-bot.state")).unwrap_or_default()
    }

    pub(super) fn cursor(&self) -> Option<i64> {
        self.state()["cursor"].as_i64()
    }

    pub(super) fn wait_cursor(&self, cursor: i64) {
        self.wait(&format!("cursor {cursor}"), || self.cursor() == Some(cursor));
    }

    pub(super) fn wait_log(&self, text: &str) {
        until(&format!("{text:?} in the log"), || self.read("log").contains(text).then_some(()));
    }

    pub(super) fn journal_has(&self, record: &str, id: i64) -> bool {
        self.read("trader-bot.journal").lines().any(|line| {
            let value: Value = serde_json::from_str(line).unwrap_or_default();
            value["record"] == record && value["signal_id"] == id
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub(super) fn references(paper: &Path) -> Vec<String> {
    let text = fs::read_to_string(paper).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| word(&serde_json::from_str(line).unwrap(), "order_ref")).collect()
}

fn word(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}

/// A running bot; killed at the end of the test at the latest.
pub(super) struct Bot {
    child: Child,
}

impl Bot {
    pub(super) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits until it ends.
    pub(super) fn exit_code(&mut self) -> Option<i32> {
        until("the end of the bot", || self.child.try_wait().unwrap()).code()
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGTERM, and a clean end.
    pub(super) fn stop(mut self) {
        self.signal("TERM");
        assert_eq!(self.exit_code(), Some(0));
    }

    /// kill -9.
    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Bot {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
