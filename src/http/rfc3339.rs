//! Reading RFC 3339 to the letter, in every year that four digits can say, however fine the fraction.

use jiff::civil::{Date, date};

use crate::event::EventTime;

/// Where PostgreSQL counts from.
const POSTGRES_EPOCH: Date = date(2000, 1, 1);

/// An instant as a consumer wrote it, which may be finer than the log's microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenTime {
    /// Its whole microseconds.
    pub time: EventTime,
    /// Whether there is something left below them: then it is no event's time.
    pub is_finer: bool,
}

impl WrittenTime {
    /// Reads `date-time` of RFC 3339 §5.6, with `t`, `z` or a space for the separators as its notes have it; `None` for
    /// anything else. The plus sign of an offset may have become a space on its way through a form encoder. A leap second
    /// is the first of the next minute, as PostgreSQL reads it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = Rest(text.as_bytes());
        let (year, month, day) =
            (rest.number(4, 9999)?, rest.after("-")?.number(2, 12)?, rest.after("-")?.number(2, 31)?);
        let (hour, minute) = (rest.after("Tt ")?.number(2, 23)?, rest.after(":")?.number(2, 59)?);
        let second = rest.after(":")?.number(2, 60)?;
        let (micros, is_finer) = if rest.after(".").is_some() { rest.fraction()? } else { (0, false) };
        let offset_minutes = match rest.next()? {
            b'Z' | b'z' => 0,
            sign @ (b'+' | b' ' | b'-') => {
                let minutes = rest.number(2, 23)? * 60 + rest.after(":")?.number(2, 59)?;
                if sign == b'-' { -minutes } else { minutes }
            }
            _ => return None,
        };
        if !rest.0.is_empty() {
            return None;
        }
        let day = Date::new(i16::try_from(year).ok()?, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()?;
        let days = POSTGRES_EPOCH.until(day).ok()?.get_days();
        let minutes = (i64::from(days) * 24 + hour) * 60 + minute - offset_minutes;
        Some(Self { time: EventTime((minutes * 60 + second) * 1_000_000 + micros), is_finer })
    }

    /// Whether it is the very instant that the log has.
    pub fn is(self, time: EventTime) -> bool {
        self.time == time && !self.is_finer
    }
}

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// Steps over one of these characters.
    fn after(&mut self, separators: &str) -> Option<&mut Self> {
        separators.as_bytes().contains(self.0.first()?).then(|| self.0 = &self.0[1..])?;
        Some(self)
    }

    /// A number of exactly so many digits, and at most so large.
    fn number(&mut self, digits: usize, most: i64) -> Option<i64> {
        let mut number = 0;
        for _ in 0..digits {
            let digit = self.next().filter(u8::is_ascii_digit)?;
            number = number * 10 + i64::from(digit - b'0');
        }
        (number <= most).then_some(number)
    }

    /// One digit or more of a second's fraction: its microseconds, and whether something is left below them.
    fn fraction(&mut self) -> Option<(i64, bool)> {
        let count = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at_checked(count).filter(|(digits, _)| !digits.is_empty())?;
        self.0 = rest;
        let digit = |place: usize| digits.get(place).map_or(0, |digit| i64::from(digit - b'0'));
        let micros = (0..6).fold(0, |micros, place| micros * 10 + digit(place));
        Some((micros, digits.iter().skip(6).any(|digit| *digit != b'0')))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

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
            "2025-11-19T11:59:60.5-00:00",
        ] {
            assert!(WrittenTime::parse(written).unwrap().is(noon), "{written}");
        }
        for other in ["2025-11-19T12:00:00Z", "2025-11-19T12:00:00.5000001Z", "2025-11-19T12:00:00.5+02:00"] {
            assert!(!WrittenTime::parse(other).unwrap().is(noon), "{other}");
        }
    }

    #[test]
    fn what_rfc_3339_does_not_allow_is_no_time() {
        for text in [
            "",
            "2025-11-19",
            "2025-11-19T12:00:00",
            "2025-11-19T12:00Z",
            "2025-11-19T120000Z",
            "20251119T12:00:00Z",
            "2025-11-19T12:00:00,5Z",
            "2025-11-19T12:00:00.Z",
            "2025-11-19T24:00:00Z",
            "2025-11-19T12:60:00Z",
            "2025-11-19T12:00:61Z",
            "2025-02-29T12:00:00Z",
            "2025-00-19T12:00:00Z",
            "2025-11-19T12:00:00+0200",
            "2025-11-19T12:00:00+2:00",
            "2025-11-19T12:00:00+24:00",
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
            let instant = Timestamp::from_microsecond(micros).unwrap();
            let offset = jiff::tz::Offset::from_seconds(minutes * 60).unwrap();
            let written = instant.display_with_offset(offset).to_string();
            if !written.starts_with('-') {
                for written in [written.clone(), written.replace('+', " ")] {
                    let time = WrittenTime::parse(&written).unwrap().time;
                    prop_assert_eq!(time.timestamp(), Some(instant), "{}", written);
                }
            }
            let _ = WrittenTime::parse(&noise);
            let _ = WrittenTime::parse(&written.replacen('0', &noise, 1));
        }
    }
}
