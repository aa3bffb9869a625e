//! The log of both programs: one line per occurrence on standard error, with levels that journald understands.
//!
//! Lines that unauthenticated clients can cause are limited, so that they cannot fill the disk or the journal: after
//! ten of a kind, one summary every ten seconds. Such a line has the target [`LIMITED`]. All other lines are always
//! written.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::sync::lock;
use crate::text;

/// The target of limited lines: refusals, alerts, and other lines that can be caused from outside. A word after it, as in
/// `signal_feed::limited::hole`, tells kinds apart that one place in the program logs.
pub(crate) const LIMITED: &str = "signal_feed::limited";

/// The broker's library. Its warnings are limited too.
const BROKER_LIBRARY: &str = "ibapi";

/// How many lines of one kind are written within a window. Further ones are only counted.
const FLOOD_LINES: usize = 10;
/// The window: 10 s. During a flood, each window ends with one line that gives the number of lines.
const FLOOD_WINDOW: Duration = Duration::from_secs(10);
/// Longest text of a line. With the time and the level the line stays below 4 KiB.
pub(crate) const MOST_TEXT_BYTES: usize = 4000;

static LOGGER: Logger = Logger { floods: Mutex::new(Counts(BTreeMap::new())) };

/// Whether standard error goes to the journal: then `JOURNAL_STREAM` names its device and inode (systemd.exec(5)).
static IS_JOURNAL: LazyLock<bool> = LazyLock::new(|| {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
});

/// Sets up the log of this process, panics included. A second call changes nothing.
pub(crate) fn start(level: LevelFilter) {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            log::error!("thread {} {panic}", thread.name().unwrap_or("without a name"));
        }));
    }
}

pub(crate) fn turn() {
    LOGGER.summarise(Instant::now());
}

/// Writes every summary that is still due, at the end of the process.
pub(crate) fn finish() {
    LOGGER.summarise(Instant::now() + FLOOD_WINDOW);
}

/// The prefix for a line of this level that is written without the logger: journald's level, or nothing.
pub(crate) fn prefix(level: Level) -> &'static str {
    if *IS_JOURNAL { priority(level, "") } else { "" }
}

/// The level in the form that journald reads at a line's start (sd-daemon(3)).
fn priority(level: Level, text: &str) -> &'static str {
    match level {
        Level::Error if text.starts_with("CRITICAL") => "<2>",
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

struct Logger {
    floods: Mutex<Counts>,
}

impl Logger {
    /// Writes one line in one piece: other processes may write to the same standard error.
    fn write(level: Level, text: &str) {
        // journald adds the time itself.
        let line = if *IS_JOURNAL {
            format!("{}{text}\n", priority(level, text))
        } else {
            format!("{:.3} [{level}] {text}\n", Timestamp::now())
        };
        // A failure cannot be reported anywhere else.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn summarise(&self, now: Instant) {
        let summaries = lock(&self.floods).summaries(now);
        for (level, text) in summaries {
            Self::write(level, &text);
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The HTTP client would log headers, which contain the key; the database driver would log statements with
        // hashes. The broker's library reports its failures only in the log.
        metadata.target().starts_with("signal_feed")
            || metadata.level() <= Level::Warn && metadata.target().starts_with(BROKER_LIBRARY)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let level = record.level();
        let text = text::cut(text::one_line(&record.args().to_string()), MOST_TEXT_BYTES);
        self.summarise(Instant::now());
        if record.target().starts_with(LIMITED) || record.target().starts_with(BROKER_LIBRARY) {
            let kind = (record.target().to_owned(), record.module_path_static(), record.line());
            if !lock(&self.floods).admit(kind, level, &text, Instant::now()) {
                return;
            }
        }
        Self::write(level, &text);
    }

    fn flush(&self) {}
}

/// The target of the line, and the place in the program that logs it.
type Kind = (String, Option<&'static str>, Option<u32>);

#[derive(Debug, Default)]
struct Counts(BTreeMap<Kind, Count>);

#[derive(Debug)]
struct Count {
    since: Instant,
    lines: usize,
    /// The last line that was not written.
    last: (Level, String),
}

impl Counts {
    /// Counts a line. Returns whether to write it.
    fn admit(&mut self, kind: Kind, level: Level, text: &str, now: Instant) -> bool {
        let count = self.0.entry(kind).or_insert(Count { since: now, lines: 0, last: (level, String::new()) });
        count.lines += 1;
        let is_written = count.lines <= FLOOD_LINES;
        if !is_written {
            count.last = (level, text.to_owned());
        }
        is_written
    }

    /// The summaries of windows that are over. A kind with counted lines is limited for another window.
    fn summaries(&mut self, now: Instant) -> Vec<(Level, String)> {
        let mut summaries = Vec::new();
        self.0.retain(|_, count| {
            let lasted = now.saturating_duration_since(count.since);
            if lasted < FLOOD_WINDOW {
                return true;
            }
            let held = count.lines.saturating_sub(FLOOD_LINES);
            if held == 0 {
                return false;
            }
            let (level, text) = &count.last;
            let seconds = FLOOD_WINDOW.as_secs();
            summaries.push((*level, format!("… and {held} more like it in {seconds} s, the last: {text}")));
            (count.since, count.lines) = (now, FLOOD_LINES);
            true
        });
        summaries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Kind {
        (LIMITED.to_owned(), Some("here"), Some(1))
    }

    #[test]
    fn a_flood_is_written_first_then_counted_and_its_last_line_shown() {
        let (mut counts, began) = (Counts::default(), Instant::now());
        let written = (0..500).filter(|i| counts.admit(here(), Level::Warn, &format!("line {i}"), began)).count();
        assert_eq!(written, FLOOD_LINES);
        assert!(counts.admit((LIMITED.to_owned(), Some("here"), Some(2)), Level::Info, "another place", began));
        assert_eq!(counts.summaries(began + FLOOD_WINDOW / 2), []);
        let summary = "… and 490 more like it in 10 s, the last: line 499";
        assert_eq!(counts.summaries(began + FLOOD_WINDOW), [(Level::Warn, summary.to_owned())]);
    }

    #[test]
    fn a_flood_that_goes_on_is_one_line_a_window_and_one_that_is_over_is_forgotten() {
        let (mut counts, mut now) = (Counts::default(), Instant::now());
        let mut lines = 0;
        for _ in 0..100 {
            lines += (0..100).filter(|_| counts.admit(here(), Level::Error, "again", now)).count();
            now += FLOOD_WINDOW;
            lines += counts.summaries(now).len();
        }
        assert_eq!(lines, FLOOD_LINES + 100);
        assert_eq!(counts.summaries(now + FLOOD_WINDOW), []);
        assert!(counts.0.is_empty());
        assert!(counts.admit(here(), Level::Error, "again", now));
    }

    #[test]
    fn alerts_and_the_brokers_library_are_limited_and_no_kind_hides_another() {
        let logger = Logger { floods: Mutex::default() };
        for target in ["ibapi::transport", "signal_feed::limited::hole ", "signal_feed::limited::quarantined "] {
            for _ in 0..FLOOD_LINES + 5 {
                let line = Record::builder().level(Level::Warn).target(target).args(format_args!("again")).build();
                logger.log(&line);
            }
        }
        let lines: Vec<usize> = lock(&logger.floods).0.values().map(|count| count.lines).collect();
        assert_eq!(lines, [FLOOD_LINES + 5; 3]);
    }

    #[test]
    fn few_lines_of_a_kind_are_never_suppressed() {
        let (mut counts, mut now) = (Counts::default(), Instant::now());
        for _ in 0..100 {
            assert!(counts.admit(here(), Level::Error, "capture is off", now));
            now += FLOOD_WINDOW;
            assert_eq!(counts.summaries(now), []);
        }
    }
}
