//! A progress line for long work on a terminal. If standard error is not a terminal, it shows nothing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// How often the line is redrawn.
const DRAWN_EVERY: Duration = Duration::from_secs(1);

/// Starts the line; `what` names the work. Its message shows the progress. Dropping it removes the line.
pub(super) fn start(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_prefix(what).with_message("working");
    let bar = bar.with_finish(ProgressFinish::AndClear);
    if let Ok(style) = ProgressStyle::with_template("{prefix}: {msg}, {elapsed} so far") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(DRAWN_EVERY);
    bar
}
