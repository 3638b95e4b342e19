//! `strftime_now` for a moment that is given, not read from the clock.

use crate::{ErrorKind, Result};

/// A moment in seconds since 1970-01-01 00:00 UTC.
///
/// Templates that print today's date print this one, so that calibration does not depend on the day it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(pub i64);

/// 2024-07-26, the date that the Llama 3.1 template falls back to.
const DEFAULT_SECONDS: i64 = 1_721_952_000;
const SECONDS_OF_DAY: i64 = 86_400;
/// Years 1 to 9999, which is what Python's dates cover.
const RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Default for Moment {
    fn default() -> Self {
        Self(DEFAULT_SECONDS)
    }
}

impl Moment {
    /// The moment in Python's `strftime` notation, in the C locale.
    ///
    /// # Errors
    /// [`ErrorKind::Template`] for a directive that is not known or a year outside 1 to 9999.
    pub fn strftime(self, format: &str) -> Result<String> {
        let refused = |reason: String| crate::Error::from(ErrorKind::Template { line: None, reason });
        if !RANGE.contains(&self.0) {
            return Err(refused(format!("the moment {} is outside the years 1 to 9999", self.0)));
        }
        let days = self.0.div_euclid(SECONDS_OF_DAY);
        let second = self.0.rem_euclid(SECONDS_OF_DAY);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let weekday = (days + 4).rem_euclid(7);
        let day_of_year = days - days_before_year(year) + 1;
        let month_name = MONTHS[(month - 1) as usize];
        let day_name = DAYS[weekday as usize];
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next();
            let unpadded = directive == Some('-');
            if unpadded {
                directive = chars.next();
            }
            let number = |value: i64, width: usize| {
                if unpadded { value.to_string() } else { format!("{value:0width$}") }
            };
            let text = match directive {
                Some('Y') => number(year, 4),
                Some('y') => number(year % 100, 2),
                Some('m') => number(month, 2),
                Some('d') => number(day, 2),
                Some('e') if unpadded => day.to_string(),
                Some('e') => format!("{day:2}"),
                Some('H') => number(hour, 2),
                Some('I') => number((hour + 11) % 12 + 1, 2),
                Some('M') => number(minute, 2),
                Some('S') => number(second, 2),
                Some('f') => number(0, 6),
                Some('j') => number(day_of_year, 3),
                Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
                Some('B') => month_name.to_owned(),
                Some('b' | 'h') => month_name[..3].to_owned(),
                Some('A') => day_name.to_owned(),
                Some('a') => day_name[..3].to_owned(),
                Some('w') => weekday.to_string(),
                Some('u') => ((weekday + 6) % 7 + 1).to_string(),
                Some('F') => format!("{year:04}-{month:02}-{day:02}"),
                Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
                Some('R') => format!("{hour:02}:{minute:02}"),
                Some('D' | 'x') => format!("{month:02}/{day:02}/{:02}", year % 100),
                Some('Z') => "UTC".to_owned(),
                Some('z') => "+0000".to_owned(),
                Some('s') => self.0.to_string(),
                Some('n') => "\n".to_owned(),
                Some('t') => "\t".to_owned(),
                Some('%') => "%".to_owned(),
                Some(other) => return Err(refused(format!("strftime_now does not know `%{}`", other.escape_debug()))),
                None => return Err(refused("strftime_now format ends with `%`".to_owned())),
            };
            out.push_str(&text);
        }
        Ok(out)
    }
}

/// Days from 1970-01-01 to the first of January of `year`, in the Gregorian calendar.
fn days_before_year(year: i64) -> i64 {
    let before = year - 1;
    365 * before + before.div_euclid(4) - before.div_euclid(100) + before.div_euclid(400) - 719_162
}

fn is_leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

/// Year, month and day of a day counted from 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    // 400 years have 146,097 days; the estimate is off by one year at most.
    let mut year = 1970 + (days * 400).div_euclid(146_097);
    while days_before_year(year) > days {
        year -= 1;
    }
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let mut left = days - days_before_year(year);
    let lengths = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_gregorian_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thu 001"),
            (951_782_400, "2000-02-29 00:00:00 Tue 060"),
            (1_721_952_000, "2024-07-26 00:00:00 Fri 208"),
            (4_107_542_399, "2100-02-28 23:59:59 Sun 059"),
            (4_107_542_400, "2100-03-01 00:00:00 Mon 060"),
            (-1, "1969-12-31 23:59:59 Wed 365"),
            (-62_135_596_800, "0001-01-01 00:00:00 Mon 001"),
            (253_402_300_799, "9999-12-31 23:59:59 Fri 365"),
        ] {
            assert_eq!(Moment(seconds).strftime("%F %T %a %j").unwrap(), expected);
        }
    }

    #[test]
    fn the_directives_of_known_templates_are_there() {
        let text = Moment::default().strftime("%d %b %Y|%B %-d, %Y|%Y-%m-%d|%A|%I:%M %p|%%").unwrap();
        assert_eq!(text, "26 Jul 2024|July 26, 2024|2024-07-26|Friday|12:00 AM|%");
        Moment::default().strftime("%Q").unwrap_err();
        Moment::default().strftime("%").unwrap_err();
        Moment(i64::MAX).strftime("%Y").unwrap_err();
    }
}
