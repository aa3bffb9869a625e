//! Prints tables for people; scripts use `--json`.

use std::io::{IsTerminal, stdout};

use super::output;
use crate::error::Error;
use crate::event::EventTime;

/// The gap between two columns.
const GAP: &str = "  ";
/// If less than this width is left for the last column, it is not wrapped.
const LEAST_WIDTH: usize = 20;

/// Prints the rows, each column as wide as its widest cell. The last column wraps at the terminal's width;
/// if standard output is not a terminal, a row is always one line.
///
/// # Errors
/// As [`output`].
pub(super) fn output_rows<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> Result<(), Error> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS - 1).map(width).collect();
    let indent: usize = widths.iter().map(|width| width + GAP.len()).sum();
    let room = terminal_width().and_then(|width| width.checked_sub(indent)).filter(|room| *room >= LEAST_WIDTH);
    for row in rows {
        let mut begin = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            begin.push_str(&format!("{cell:width$}{GAP}"));
        }
        for line in broken(&row[COLUMNS - 1], room.unwrap_or(usize::MAX)) {
            output(format_args!("{begin}{line}").to_string().trim_end())?;
            begin = " ".repeat(indent);
        }
    }
    Ok(())
}

/// A time for people: UTC, to the minute.
pub(super) fn minute(at: EventTime) -> String {
    let text = at.to_string();
    text.get(..16).map_or(text.clone(), |minute| minute.replace('T', " "))
}

fn terminal_width() -> Option<usize> {
    let output = stdout();
    if !output.is_terminal() {
        return None;
    }
    rustix::termios::tcgetwinsize(output).ok().map(|size| usize::from(size.ws_col))
}

/// Wraps the text at this many characters, without splitting words; at least one line.
fn broken(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let used = lines[last].chars().count();
        if used > 0 && used + 1 + word.chars().count() > room {
            lines.push(word.to_owned());
        } else {
            if used > 0 {
                lines[last].push(' ');
            }
            lines[last].push_str(word);
        }
    }
    lines
}
