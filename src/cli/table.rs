//! Prints tables for people; scripts use `--json`.

use super::output;
use crate::error::Error;
use crate::event::EventTime;

/// Prints the rows, one line each. A column is as wide as its widest cell.
///
/// # Errors
/// As [`output`].
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
///
/// # Errors
/// As [`output`].
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
