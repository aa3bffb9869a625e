//! The table: what was measured, as a median with least and most.

use std::fmt;

use super::client::Measured;

/// All figures, in the order in which they were first measured.
#[derive(Default)]
pub struct Table {
    rows: Vec<(String, Vec<f64>)>,
    /// Events that never came, in all runs.
    pub missing: u64,
    /// Events that came twice, in all runs.
    pub repeated: u64,
}

impl Table {
    /// Adds one measurement of a figure.
    pub fn add(&mut self, figure: impl Into<String>, value: f64) {
        let figure = figure.into();
        match self.rows.iter_mut().find(|(name, _)| *name == figure) {
            Some((_, values)) => values.push(value),
            None => self.rows.push((figure, vec![value])),
        }
    }

    /// Counts what was missing or came twice.
    pub fn check(&mut self, measured: &Measured) {
        self.missing += measured.missing;
        self.repeated += measured.repeated;
    }

    /// The quantiles of a latency.
    pub fn add_latency(&mut self, figure: &str, measured: &Measured) {
        for (quantile, value) in ["p50", "p90", "p99", "p99.9"].iter().zip(measured.latency_ms) {
            self.add(format!("{figure}, {quantile}, ms"), value);
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | figure |\n|---|---|")?;
        for (figure, values) in &self.rows {
            let mut sorted = values.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            let (least, most) = (sorted[0], sorted[sorted.len() - 1]);
            let median = sorted[sorted.len() / 2];
            writeln!(f, "| {figure} | {} ({}–{}) |", number(median), number(least), number(most))?;
        }
        writeln!(f, "| events missing / repeated, all runs | {} / {} |", self.missing, self.repeated)
    }
}

/// Three significant digits, with separated thousands.
fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}
