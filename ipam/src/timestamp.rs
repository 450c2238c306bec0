//! Instants, which this crate is told and never asks a clock for, in the form that Kubernetes writes them (RFC 3339).

use std::fmt;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// Nanoseconds since 1970-01-01T00:00:00Z, leap seconds not counted. Reaches to the year 2554.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The instant so many nanoseconds after 1970 began.
    #[must_use]
    pub fn from_unix_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since 1970 began.
    #[must_use]
    pub fn unix_nanos(self) -> u64 {
        self.0
    }

    /// So many seconds later; the last instant there is when that is beyond it.
    #[must_use]
    pub fn plus_seconds(self, seconds: u32) -> Self {
        Self(self.0.saturating_add(u64::from(seconds).saturating_mul(SECOND)))
    }

    /// Whole seconds since an earlier instant; 0 when that is later.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / SECOND
    }

    /// Reads an RFC 3339 date and time, with or without a fraction of a second, in UTC or with an offset. `None` when it
    /// is none, or lies outside what this type can hold.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (date, rest) = text.split_once(['T', 't'])?;
        let [year, month, day] = numbers(date, '-')?;
        let (clock, offset) = split_offset(rest)?;
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
        let [hour, minute, second] = numbers(clock, ':')?;
        if hour > 23 || minute > 59 || second > 60 || !(1..=days_in_month(year, month)?).contains(&day) {
            return None;
        }
        let days = days_since_1970(year, month, day)?;
        let seconds = days * DAY + hour * 3600 + minute * 60 + second;
        let seconds = i64::try_from(seconds).ok()?.checked_sub(offset)?;
        let seconds = u64::try_from(seconds).ok()?;
        let nanos = seconds.checked_mul(SECOND)?.checked_add(nanoseconds(fraction)?)?;
        Some(Self(nanos))
    }
}

/// RFC 3339 in UTC with whole seconds, as `metav1.Time` is written.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / SECOND;
        let mut days = seconds / DAY;
        let mut year = 1970;
        while days >= days_in_year(year) {
            days -= days_in_year(year);
            year += 1;
        }
        let mut month = 1;
        while let Some(length) = days_in_month(year, month).filter(|length| days >= *length) {
            days -= length;
            month += 1;
        }
        let (day, clock) = (days + 1, seconds % DAY);
        let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"
        )
    }
}

/// The clock part, and the offset from UTC in seconds.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        return Some((clock, 0));
    }
    let sign = text.rfind(['+', '-'])?;
    let (clock, offset) = text.split_at_checked(sign)?;
    let direction = if offset.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let seconds = i64::try_from(hours * 3600 + minutes * 60).ok()?;
    Some((clock, direction * seconds))
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator).map(digits);
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}

/// At most four digits, so that no sum of them can overflow.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > 4 || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn nanoseconds(fraction: &str) -> Option<u64> {
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nine: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    nine.parse().ok()
}

fn is_leap(year: u64) -> bool {
    (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
}

fn days_in_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_in_month(year: u64, month: u64) -> Option<u64> {
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => Some(31),
        4 | 6 | 9 | 11 => Some(30),
        2 if is_leap(year) => Some(29),
        2 => Some(28),
        _ => None,
    }
}

fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 {
        return None;
    }
    let years: u64 = (1970..year).map(days_in_year).sum();
    let months: u64 = (1..month).filter_map(|m| days_in_month(year, m)).sum();
    Some(years + months + day.checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_written_as_kubernetes_writes_it() {
        // Each pair from `date -u -d @SECONDS +%FT%TZ`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_102_444_800, "2100-01-01T00:00:00Z"),
        ] {
            let instant = Timestamp::from_unix_nanos(seconds * SECOND);
            assert_eq!(instant.to_string(), text);
            assert_eq!(Timestamp::parse(text), Some(instant), "{text}");
        }
    }

    #[test]
    fn offsets_and_fractions_are_understood() {
        let utc = Timestamp::parse("2026-08-01T10:00:00Z").unwrap();
        assert_eq!(Timestamp::parse("2026-08-01T12:30:00+02:30"), Some(utc));
        assert_eq!(Timestamp::parse("2026-08-01T05:00:00-05:00"), Some(utc));
        let half = Timestamp::parse("2026-08-01T10:00:00.5Z").unwrap();
        assert_eq!(half.unix_nanos() - utc.unix_nanos(), SECOND / 2);
    }

    #[test]
    fn what_is_no_instant_is_none() {
        for text in [
            "",
            "2026-08-01",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-08-00T00:00:00Z",
            "2026-08-01T24:00:00Z",
            "2026-08-01T00:00:00",
            "1969-12-31T23:59:59Z",
            "99999-01-01T00:00:00Z",
            "9999-01-01T00:00:00Z",
            "2026-08-01T00:00:00.Z",
            "2026-08-01T00:00:00+aa:00",
            "2026-08-01T00:00:00Z\u{e4}",
        ] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }
}
