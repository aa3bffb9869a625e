//! Runs the operator's alert program, which gets one JSON line per alert and never delays the caller.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::Pid;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::program;
use crate::text;

/// The most programs that run at once. For one more, the oldest is killed.
const MOST_RUNNING: usize = 16;
/// Longest wait at the end for programs that still run.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// The line must fit into the smallest pipe (4 KiB), so that writing it never blocks. Even with every character
/// escaped, these limits add up to less.
const MOST_MESSAGE_BYTES: usize = 1200;
const MOST_ID_BYTES: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Level {
    /// Somebody must act.
    Critical,
    /// Somebody should know.
    Warning,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct About<'a> {
    pub(crate) signal_id: &'a RawValue,
    pub(crate) order_ref: &'a str,
}

#[derive(Serialize)]
struct AlertLine<'a> {
    level: Level,
    reason: &'a str,
    message: &'a str,
    time: String,
    #[serde(flatten)]
    about: Option<About<'a>>,
}

#[derive(Debug)]
pub(crate) struct AlertCommand {
    program: Option<PathBuf>,
    running: Vec<Child>,
}

impl AlertCommand {
    /// Without a program, alerts are dropped.
    pub(crate) fn new(program: Option<PathBuf>) -> Self {
        Self { program, running: Vec::new() }
    }

    /// Starts the program with one line on its input. Does not wait for it. A failure is logged.
    pub(crate) fn run(&mut self, level: Level, reason: &str, message: &str, about: Option<About<'_>>) {
        self.reap();
        let Some(program) = &self.program else { return };
        let line = AlertLine {
            level,
            reason,
            message: &text::cut(text::one_line(message), MOST_MESSAGE_BYTES),
            time: format!("{:.6}", Timestamp::now()),
            about: about.filter(|about| about.signal_id.get().len() <= MOST_ID_BYTES),
        };
        let line = serde_json::to_string(&line).unwrap_or_default() + "\n";
        match program::start(program, Stdio::inherit()) {
            Ok(mut child) => {
                if let Some(mut input) = child.stdin.take() {
                    // A program that does not read its input is not a failure.
                    let _ = input.write_all(line.as_bytes());
                }
                self.running.push(child);
            }
            Err(error) => log::error!("start --alert-command {}: {error}", program.display()),
        }
        if self.running.len() > MOST_RUNNING {
            log::error!("--alert-command: {MOST_RUNNING} runs have not ended; killed the oldest");
            let mut oldest = self.running.remove(0);
            program::kill(Pid::from_child(&oldest));
            let _ = oldest.wait();
        }
    }

    fn reap(&mut self) {
        self.running.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// Waits up to 2 s for programs that still run: systemd kills them when this process ends.
    pub(crate) fn finish(&mut self) {
        let until = Instant::now() + LAST_PATIENCE;
        loop {
            self.reap();
            if self.running.is_empty() || Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]
mod tests {
    use super::*;

    #[test]
    fn the_largest_line_fits_into_the_smallest_pipe() {
        let id = serde_json::value::to_raw_value(&"\u{e9}".repeat(127)).unwrap();
        let order_ref = "%C3%A9".repeat(127);
        let message = text::cut("\"".repeat(5000), MOST_MESSAGE_BYTES);
        let about = Some(About { signal_id: &id, order_ref: &order_ref });
        let time = format!("{:.6}", Timestamp::now());
        let line = AlertLine { level: Level::Critical, reason: "outcome_unknown", message: &message, time, about };
        assert!(id.get().len() <= MOST_ID_BYTES);
        let line = serde_json::to_string(&line).unwrap();
        assert!(line.len() < 4096 && line.contains(&format!("\"signal_id\":{id},\"order_ref\":\"%C3")), "{line}");
    }
}
