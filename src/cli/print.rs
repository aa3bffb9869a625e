//! What commands show to people: lines, tables, and a line of progress. Scripts use `--json`.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use crate::error::Error;
use crate::event::EventTime;
use crate::options::output;

const DRAWN_EVERY: Duration = Duration::from_secs(1);

/// Prints one line on what a command did. Whether it can be written does not matter.
pub(super) fn say(line: impl std::fmt::Display) {
    let _ = output(line);
}

/// Prints the rows, one line each. A column is as wide as its widest cell.
pub(super) fn output_rows<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> Result<(), Error> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  "));
        output(cells.collect::<String>().replace('\n', " ").trim_end())?;
    }
    Ok(())
}

/// Prints the rows below a heading; nothing if there are none.
pub(super) fn output_table<const COLUMNS: usize>(
    heading: [&str; COLUMNS],
    mut rows: Vec<[String; COLUMNS]>,
) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    rows.insert(0, heading.map(str::to_owned));
    output_rows(&rows)
}

/// A time for people: UTC, to the minute.
pub(super) fn minute(at: EventTime) -> String {
    let text = at.to_string();
    text.get(..16).map_or(text.clone(), |minute| minute.replace('T', " "))
}

/// Starts a progress line for long work; `what` names the work. Its message shows the progress. Dropping it removes the
/// line. If standard error is not a terminal, it shows nothing.
pub(super) fn progress(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_prefix(what).with_message("working");
    let bar = bar.with_finish(ProgressFinish::AndClear);
    if let Ok(style) = ProgressStyle::with_template("{prefix}: {msg}, {elapsed} so far") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(DRAWN_EVERY);
    bar
}
