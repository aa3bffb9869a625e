//! Times as texts and as instants.

use jiff::Timestamp;

pub(super) fn now_text() -> String {
    text(Timestamp::now())
}

/// A time in UTC with six digits.
pub(super) fn text(instant: Timestamp) -> String {
    format!("{instant:.6}")
}

/// Parses an instant with any offset. PostgreSQL's `-infinity` and times before Christ are older than everything. A time
/// without a time zone, or anything else (`infinity`), is an unknown time.
pub(super) fn instant(text: &str) -> Option<Timestamp> {
    if text == "-infinity" || text.ends_with(" BC") {
        return Some(Timestamp::MIN);
    }
    text.parse().ok()
}

/// Whether two texts can mean the same instant. An unknown time is compared with another one by its text.
pub(super) fn same_instant(one: &str, other: &str) -> bool {
    match (instant(one), instant(other)) {
        (Some(one), Some(other)) => one == other,
        (None, None) => one == other,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_instant_is_found_under_any_offset() {
        assert!(same_instant("2026-11-20T12:00:00.5+00:00", "2026-11-20T14:00:00.500000+02:00"));
        assert!(!same_instant("2026-11-20T12:00:00Z", "2026-11-20T12:00:01Z"));
        assert!(same_instant("infinity", "infinity"));
        assert!(!same_instant("2026-11-20T12:00:00", "2026-11-20T13:00:00"));
    }

    #[test]
    fn a_time_without_a_zone_is_unknown() {
        assert_eq!(instant("infinity"), None);
        assert_eq!(instant("2026-11-20T12:00:00"), None);
        assert!(instant("2026-11-20T12:00:00+02:00").is_some());
    }

    #[test]
    fn a_time_before_christ_is_older_than_everything() {
        for old in ["-infinity", "0044-03-15T00:00:00+00:00 BC"] {
            assert!(instant(old).is_some_and(|old| Some(old) < instant("0001-01-01T00:00:00Z")), "{old}");
            assert!(!same_instant(old, "2026-11-20T12:00:00Z"));
        }
    }

    #[test]
    fn now_is_written_with_six_digits() {
        let now = now_text();
        assert!(now.ends_with('Z') && now.len() == "2026-11-20T12:00:00.123456Z".len(), "{now}");
    }
}
