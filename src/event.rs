//! An event of the log: its number, its time, and the row as it was read.

use std::fmt;

use jiff::SignedDuration;
use jiff::civil::{DateTime, date};
use jiff::fmt::temporal::{DateTimePrinter, Pieces};
use tokio_postgres::types::private::BytesMut;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type};

const POSTGRES_EPOCH: DateTime = date(2000, 1, 1).at(0, 0, 0, 0);
/// Microseconds from 1970 (UNIX) to 2000 (PostgreSQL).
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;
/// 0001-01-01 and 10000-01-01 in PostgreSQL's microseconds: the range of an RFC 3339 year.
const FIRST_USABLE: i64 = -63_082_281_600_000_000;
const FIRST_BEYOND: i64 = 252_455_616_000_000_000;

static SIX_DIGITS: DateTimePrinter = DateTimePrinter::new().precision(Some(6));

/// The number of an event in the log, or a cursor. 0 is before the first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize)]
#[serde(transparent)]
pub(crate) struct FeedSeq(pub i64);

impl FeedSeq {
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for FeedSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A `timestamptz` as PostgreSQL holds it: microseconds since 2000-01-01 UTC, or an infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct EventTime(pub i64);

impl EventTime {
    /// Whether it is finite and within the years 1 to 9999, so that RFC 3339 can express it.
    pub(crate) fn is_usable(self) -> bool {
        (FIRST_USABLE..FIRST_BEYOND).contains(&self.0)
    }

    pub(crate) fn minus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    pub(crate) fn plus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Seconds since 1970.
    pub(crate) fn unix_seconds(self) -> f64 {
        self.0.saturating_add(POSTGRES_EPOCH_MICROS) as f64 / 1e6
    }

    /// How long after `other` it is; zero if it is not.
    pub(crate) fn since(self, other: Self) -> std::time::Duration {
        std::time::Duration::from_micros(u64::try_from(self.0.saturating_sub(other.0)).unwrap_or(0))
    }
}

impl fmt::Display for EventTime {
    /// RFC 3339 in UTC with six digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_usable() {
            return f.write_str("unusable");
        }
        // Not jiff's Timestamp, which ends a day before the year 9999 does.
        let time = POSTGRES_EPOCH.checked_add(SignedDuration::from_micros(self.0)).map_err(|_| fmt::Error)?;
        SIX_DIGITS.print_datetime(&time, jiff::fmt::StdFmtWrite(&mut *f)).map_err(|_| fmt::Error)?;
        f.write_str("Z")
    }
}

impl serde::Serialize for EventTime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An instant as a consumer wrote it: RFC 3339 with any offset, possibly finer than the log's microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WrittenTime(SignedDuration);

impl WrittenTime {
    /// Reads `date-time` of RFC 3339 §5.6; `None` for anything else. The plus sign of an offset may be a space: a form
    /// decoder turns one into the other.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // jiff also reads the shorter forms of ISO 8601. RFC 3339 has one form.
        let (date_time, rest) = text.split_at_checked("2000-01-01T00:00:00".len())?;
        let is_separated = [(4, "-"), (7, "-"), (10, "Tt "), (13, ":"), (16, ":")]
            .into_iter()
            .all(|(at, separators)| separators.as_bytes().contains(&date_time.as_bytes()[at]));
        // An event's time has six digits. Of further digits it only matters whether they are zero: jiff reads nine.
        let (fraction, offset) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(rest.find(|sign: char| !sign.is_ascii_digit()).filter(|count| *count > 0)?),
            None => ("", rest),
        };
        let (micros, finer) = fraction.split_at_checked(6).unwrap_or((fraction, ""));
        let beyond = SignedDuration::from_nanos(finer.bytes().any(|digit| digit != b'0').into());
        let has_offset = match offset.len() {
            1 => offset.starts_with(['Z', 'z']),
            6 => {
                let (hours, colon) = (&offset.as_bytes()[1..3], offset.as_bytes()[3]);
                offset.starts_with(['+', '-', ' ']) && hours <= b"23".as_slice() && colon == b':'
            }
            _ => false,
        };
        if !is_separated || !has_offset {
            return None;
        }
        let text = format!("{date_time}.{micros}0{}", offset.replacen(' ', "+", 1));
        let pieces = Pieces::parse(&text).ok()?;
        let offset = pieces.to_numeric_offset()?;
        let local = pieces.date().to_datetime(pieces.time()?);
        Some(Self(local.duration_since(POSTGRES_EPOCH) - SignedDuration::from_secs(offset.seconds().into()) + beyond))
    }

    pub(crate) fn is(self, time: EventTime) -> bool {
        self.0 == SignedDuration::from_micros(time.0)
    }
}

impl<'a> FromSql<'a> for EventTime {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(i64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

impl ToSql for EventTime {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0.to_be_bytes());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    tokio_postgres::types::to_sql_checked!();
}

/// The largest block that is sent, 16 MiB: every consumer must take blocks of that size. A larger event is quarantined.
pub(crate) const LARGEST_BLOCK_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(crate) struct LogRow {
    pub seq: FeedSeq,
    /// Its time, which may be unusable.
    pub time: EventTime,
    /// `INSERT` or `UPDATE`; in a log of the sequence era any text.
    pub op: String,
    /// The row's JSON as PostgreSQL prints it, or why the event cannot be delivered to anybody.
    pub signal: Result<Vec<u8>, String>,
}

pub(crate) fn too_large(bytes: impl fmt::Display) -> String {
    format!("the row's {bytes} bytes do not fit into a block of {LARGEST_BLOCK_BYTES} bytes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{EventTime, POSTGRES_EPOCH_MICROS, WrittenTime};

    #[test]
    fn a_time_is_written_in_utc_with_six_digits() {
        assert_eq!(EventTime(0).to_string(), "2000-01-01T00:00:00.000000Z");
        assert_eq!(EventTime(816_868_800_123_456).to_string(), "2025-11-19T12:00:00.123456Z");
        assert_eq!(EventTime(super::FIRST_USABLE).to_string(), "0001-01-01T00:00:00.000000Z");
        assert_eq!(EventTime(super::FIRST_BEYOND - 1).to_string(), "9999-12-31T23:59:59.999999Z");
    }

    #[test]
    fn infinities_and_years_beyond_four_digits_are_not_usable() {
        for unusable in [i64::MAX, i64::MIN, super::FIRST_BEYOND, super::FIRST_USABLE - 1] {
            assert!(!EventTime(unusable).is_usable());
        }
    }

    #[test]
    fn the_same_instant_in_every_form_is_the_same() {
        let noon = EventTime(816_868_800_500_000);
        for written in [
            "2025-11-19T12:00:00.5Z",
            "2025-11-19t12:00:00.5z",
            "2025-11-19 12:00:00.500000000000000Z",
            "2025-11-19T14:00:00.5+02:00",
            "2025-11-19T14:00:00.5 02:00",
            "2025-11-18T12:01:00.5-23:59",
            "2025-11-19T12:00:00.5-00:00",
        ] {
            assert!(WrittenTime::parse(written).unwrap().is(noon), "{written}");
        }
        for other in ["2025-11-19T12:00:00Z", "2025-11-19T12:00:00.50000000000001Z", "2025-11-19T12:00:00.5+02:00"] {
            assert!(!WrittenTime::parse(other).unwrap().is(noon), "{other}");
        }
    }

    #[test]
    fn a_text_that_rfc_3339_does_not_allow_is_not_a_time() {
        for text in [
            "",
            "2025-11-19",
            "2025-11-19T12:00:00",
            "2025-11-19T12:00Z",
            "2025-11-19T120000Z",
            "20251119T12:00:00Z",
            "2025-11-19T12:00:00.Z",
            "2025-11-19T12:00:005Z",
            "2025-11-19T12:00:00,5Z",
            "2025-11-19T12:00:00+2:00",
            "2025-11-19T12:00:00+24:00",
            "2025-11-19T24:00:00Z",
            "2025-11-19T12:60:00Z",
            "2025-11-19T12:00:61Z",
            "2025-02-29T12:00:00Z",
            "2025-00-19T12:00:00Z",
            "2025-11-19T12:00:00+0200",
            "2025-11-19T12:00:00+02[A]",
            "2025-11-19T12:00:00Z[UTC]",
            "2025-11-19T12:00:00Z ",
            "+2025-11-19T12:00:00Z",
            "２025-11-19T12:00:00Z",
        ] {
            assert_eq!(WrittenTime::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_usable_time_is_written_as_the_instant_it_is(
            micros in prop_oneof![any::<i64>(), super::FIRST_USABLE - 9..super::FIRST_BEYOND + 9],
        ) {
            let time = EventTime(micros);
            let text = time.to_string();
            prop_assert_eq!(text == "unusable", !time.is_usable());
            if let Ok(timestamp) = jiff::Timestamp::from_microsecond(micros.saturating_add(POSTGRES_EPOCH_MICROS)) && time.is_usable() {
                prop_assert_eq!(text.parse::<jiff::Timestamp>().unwrap(), timestamp);
                prop_assert_eq!(text.len(), "2000-01-01T00:00:00.000000Z".len());
            }
        }

        #[test]
        fn every_usable_time_is_read_as_it_is_written(micros in -63_082_281_600_000_000_i64..252_455_616_000_000_000) {
            let time = EventTime(micros);
            prop_assert!(WrittenTime::parse(&time.to_string()).unwrap().is(time), "{}", time);
        }

        #[test]
        fn an_offset_changes_nothing_and_no_text_makes_it_panic(
            micros in -62_135_596_800_000_000_i64..253_402_214_400_000_000,
            minutes in -1439_i32..1440,
            noise: String,
        ) {
            let instant = jiff::Timestamp::from_microsecond(micros).unwrap();
            let offset = jiff::tz::Offset::from_seconds(minutes * 60).unwrap();
            let written = instant.display_with_offset(offset).to_string();
            if !written.starts_with('-') {
                for written in [written.clone(), written.replace('+', " ")] {
                    let time = EventTime(micros - POSTGRES_EPOCH_MICROS);
                    prop_assert!(WrittenTime::parse(&written).unwrap().is(time), "{}", written);
                }
            }
            let _ = WrittenTime::parse(&noise);
            let _ = WrittenTime::parse(&written.replacen('0', &noise, 1));
        }
    }
}
