//! Times as texts and as instants.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Now, UTC with six digits.
pub(super) fn now_text() -> String {
    text(Timestamp::now())
}

/// UTC with six digits.
pub(super) fn text(instant: Timestamp) -> String {
    format!("{instant:.6}")
}

/// RFC 3339 with any offset, or a time without one, which counts as UTC; `None` for anything else (`infinity`, say).
pub(super) fn instant(text: &str) -> Option<Timestamp> {
    text.parse().ok().or_else(|| {
        let local: DateTime = text.parse().ok()?;
        local.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    })
}

/// Whether two texts mean the same instant; where one of them means none, whether they are the same text.
pub(super) fn same_instant(one: &str, other: &str) -> bool {
    match (instant(one), instant(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_instant_is_found_under_any_offset() {
        assert!(same_instant("2026-11-20T12:00:00.5+00:00", "2026-11-20T14:00:00.500000+02:00"));
        assert!(same_instant("2026-11-20T12:00:00", "2026-11-20T12:00:00Z"));
        assert!(!same_instant("2026-11-20T12:00:00Z", "2026-11-20T12:00:01Z"));
        assert!(same_instant("infinity", "infinity"));
        assert_eq!(instant("infinity"), None);
    }

    #[test]
    fn now_is_written_with_six_digits() {
        let now = now_text();
        assert!(now.ends_with('Z') && now.len() == "2026-11-20T12:00:00.123456Z".len(), "{now}");
    }
}
