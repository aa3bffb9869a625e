//! A progress line for long work on a terminal. If standard error is not a terminal, it shows nothing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::say;

/// How often the line is redrawn.
const DRAWN_EVERY: Duration = Duration::from_secs(1);

/// The progress line. Dropping it removes the line.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Starts the line; `what` names the work.
    pub(super) fn start(what: &'static str) -> Self {
        let bar = ProgressBar::new_spinner().with_prefix(what).with_message("working");
        if let Ok(style) = ProgressStyle::with_template("{prefix}: {msg}, {elapsed} so far") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(DRAWN_EVERY);
        Self(bar)
    }

    /// Sets the text that shows the progress.
    pub(super) fn tell(&self, text: String) {
        self.0.set_message(text);
    }

    /// Prints a line on standard output, which may be the same terminal.
    pub(super) fn say(&self, text: &str) {
        self.0.suspend(|| say(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
