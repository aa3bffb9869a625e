//! The bot's log: one line an occurrence, on standard error, with levels that journald understands.

use std::io::{self, Write};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::clock;

struct StandardError {
    level: LevelFilter,
    /// journald has its own times, and takes a level from `<N>` at the line's start (sd-daemon(3)).
    is_journald: bool,
}

/// Sets up the log of this process. A second call changes nothing.
pub(super) fn init(level: LevelFilter) {
    let logger = StandardError { level, is_journald: std::env::var_os("JOURNAL_STREAM").is_some() };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The HTTP client would log headers, and one of them is the key.
        metadata.level() <= self.level && metadata.target().starts_with("signal_feed")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let line = if self.is_journald {
            format!("<{}>{text}\n", priority(record.level(), &text))
        } else {
            format!("{} {:5} {text}\n", clock::now_text(), record.level())
        };
        // There is nobody left to tell where standard error is closed.
        let _ = io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

fn priority(level: Level, text: &str) -> u8 {
    match level {
        Level::Error if text.starts_with("CRITICAL") => 2,
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
