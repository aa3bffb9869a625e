//! Alerts: a log line, and the operator's program, which never holds the bot up.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::value::RawValue;

use super::order::{Action, order_ref};
use super::{clock, message, program};

/// Programs that may run at once; with one more the oldest is killed.
const MOST_RUNNING: usize = 16;
/// How long the end of the bot waits for programs that still run.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// An id longer than this does not fit into the alert: the input of the program must never block.
const MOST_ID_BYTES: usize = 1024;

/// A longer message is cut, for the same reason.
const MOST_MESSAGE_CHARS: usize = 2000;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Level {
    /// Somebody has to act.
    Critical,
    /// Somebody should know.
    Warning,
}

/// One occurrence: a log line and a run of the operator's program.
#[derive(Debug)]
pub(super) struct Alert<'a> {
    pub(super) level: Level,
    pub(super) reason: Reason,
    pub(super) message: String,
    pub(super) signal: Option<(&'a RawValue, &'a str, Action)>,
}

/// Why there is an alert; its word is the same in the log line and in what the program gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reason {
    ReplayTruncated,
    HistoryRewritten,
    Quarantined,
    UnusableEvent,
    Hole,
    Unauthorized,
    ExitRejected,
    ExitStale,
    IdReused,
    OutcomeUnknown,
    SendingFails,
    BrokerAway,
    KeyExpires,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = serde_json::to_string(self).unwrap_or_default();
        f.write_str(word.trim_matches('"'))
    }
}

#[derive(Serialize)]
struct Line<'a> {
    level: Level,
    reason: Reason,
    message: &'a str,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal_id: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_ref: Option<String>,
}

/// Raises alerts.
#[derive(Debug)]
pub(super) struct Alerts {
    program: Option<PathBuf>,
    running: Vec<Child>,
}

impl Alerts {
    pub(super) fn new(program: Option<PathBuf>) -> Self {
        Self { program, running: Vec::new() }
    }

    /// Writes the log line and starts the program. Does not wait for it.
    pub(super) fn raise(&mut self, alert: &Alert<'_>) {
        let Alert { level, reason, message, signal } = alert;
        match level {
            Level::Critical => log::error!("CRITICAL {reason}: {message}"),
            Level::Warning => log::warn!("{reason}: {message}"),
        }
        let Some(program) = &self.program else { return };
        let signal = signal.filter(|(id, _, _)| id.get().len() <= MOST_ID_BYTES);
        let line = Line {
            level: *level,
            reason: *reason,
            message: &message::clip_to(message, MOST_MESSAGE_CHARS),
            time: clock::now_text(),
            signal_id: signal.map(|(id, _, _)| id),
            order_ref: signal.map(|(_, id, action)| order_ref(id, action)),
        };
        let mut text = serde_json::to_string(&line).unwrap_or_default();
        text.push('\n');
        match program::start(program) {
            Ok(mut child) => {
                if let Some(mut input) = child.stdin.take() {
                    // Far smaller than a pipe, so it never blocks; a program that reads nothing is no failure.
                    let _ = input.write_all(text.as_bytes());
                }
                self.running.push(child);
            }
            Err(error) => log::error!("start --alert-command {}: {error}", program.display()),
        }
        self.reap();
        if self.running.len() > MOST_RUNNING {
            let oldest = self.running.remove(0);
            log::error!("--alert-command: {MOST_RUNNING} runs have not ended; the oldest is killed");
            end(oldest);
        }
    }

    fn reap(&mut self) {
        self.running.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// Gives programs that still run a moment: under systemd they end with the bot.
    pub(super) fn finish(&mut self) {
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

fn end(mut child: Child) {
    program::kill(program::group_of(&child));
    let _ = child.wait();
}
