//! How far long work is, on standard error, for whoever waits for it.
//!
//! The thread `progress` owns the line: on a terminal it is drawn anew, elsewhere (a log, an ssh without a terminal) there
//! is a new one at intervals. Work that is soon done says nothing, so cron has no mail of it. It ends with [`Progress`].

use std::io::{IsTerminal, Write, stderr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::say;

/// How often the line of a terminal is drawn, from when on.
const DRAWN_EVERY: Duration = Duration::from_secs(1);
/// How often there is a line elsewhere.
const WRITTEN_EVERY: Duration = Duration::from_secs(20);

/// Work that may take long. Dropping it takes the line away.
pub(super) struct Progress {
    line: Arc<Mutex<Line>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Line {
    /// What is being done, and how far it is.
    text: String,
    /// How many characters of the terminal's line are taken.
    drawn: usize,
}

impl Progress {
    /// Begins; `what` names the work.
    pub(super) fn start(what: &'static str) -> Self {
        let line = Arc::new(Mutex::new(Line { text: "at work".to_owned(), drawn: 0 }));
        let (stop, stopped) = bounded::<()>(0);
        let shown = line.clone();
        let draw = move || {
            let began = Instant::now();
            let is_terminal = stderr().is_terminal();
            let interval = if is_terminal { DRAWN_EVERY } else { WRITTEN_EVERY };
            // Its other end is dropped at the end.
            while stopped.recv_timeout(interval).is_err_and(|error| error.is_timeout()) {
                let so_far = humantime::format_duration(Duration::from_secs(began.elapsed().as_secs()));
                let mut line = lock(&shown);
                let text = format!("{what}: {}, {so_far} so far", line.text);
                line.show(&text, is_terminal);
            }
        };
        // Without the thread there is no progress to be seen, and the work goes on.
        let thread = thread::Builder::new().name("progress".into()).spawn(draw).ok();
        Self { line, stop: Some(stop), thread }
    }

    /// From now on this is what is being done, or how far it is.
    pub(super) fn tell(&self, text: String) {
        lock(&self.line).text = text;
    }

    /// Says a line on standard output, which may be the same terminal.
    pub(super) fn say(&self, text: &str) {
        let mut line = lock(&self.line);
        line.clear();
        say(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        lock(&self.line).clear();
    }
}

impl Line {
    fn show(&mut self, text: &str, is_terminal: bool) {
        if is_terminal {
            self.clear();
            let _ = write!(stderr(), "{text}");
            self.drawn = text.chars().count();
        } else {
            let _ = writeln!(stderr(), "{text}");
        }
    }

    fn clear(&mut self) {
        if self.drawn > 0 {
            let _ = write!(stderr(), "\r{}\r", " ".repeat(self.drawn));
            self.drawn = 0;
        }
    }
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}
