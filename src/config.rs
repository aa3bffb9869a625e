//! From text to checked values: durations and the options that several programs share.

use std::time::Duration;

/// The longest duration that is taken: a hundred years. Beyond it PostgreSQL's own arithmetic on times has an end.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Reads a duration as people write it: `500ms`, `15s`, `5m`, `72h`, `7d`, also `1h 30m`.
///
/// # Errors
/// A text saying what is allowed, where it is none, or longer than a hundred years.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text.trim())
        .map_err(|_| "expected a duration such as 500ms, 15s, 5m or 72h".to_owned())?;
    if duration > LONGEST {
        return Err("expected at most 100 years".to_owned());
    }
    Ok(duration)
}

/// Like [`parse_duration`], for a duration that may not be zero.
///
/// # Errors
/// As [`parse_duration`], and for zero.
pub fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("expected a duration above zero".to_owned()),
        duration => Ok(duration),
    }
}
