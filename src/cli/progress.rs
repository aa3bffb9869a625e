//! One line on a terminal that says how far long work is. If standard error is no terminal there is none.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::say;

/// How often the line is drawn anew.
const DRAWN_EVERY: Duration = Duration::from_secs(1);

/// Work that may take long. Dropping it takes the line away.
pub(super) struct Progress(ProgressBar);

impl Progress {
    /// Begins; `what` names the work.
    pub(super) fn start(what: &'static str) -> Self {
        let bar = ProgressBar::new_spinner().with_prefix(what).with_message("working");
        if let Ok(style) = ProgressStyle::with_template("{prefix}: {msg}, {elapsed} so far") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(DRAWN_EVERY);
        Self(bar)
    }

    /// From now on this is what is being done, or how far it is.
    pub(super) fn tell(&self, text: String) {
        self.0.set_message(text);
    }

    /// Says a line on standard output, which may be the same terminal.
    pub(super) fn say(&self, text: &str) {
        self.0.suspend(|| say(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
