//! Dates for templates that write the present day into the prompt (`strftime_now("%d %B %Y")`).
//!
//! Only what templates use, in English and UTC: a template's text must not depend on the machine's locale or zone.

use std::fmt::Write;

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
const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// Seconds from 1970 to the end of the year 9999, beyond which dates have no agreed form.
const LAST_SECOND: i64 = 253_402_300_799;

/// `format` filled with the UTC time `seconds` after the start of 1970. Unknown directives stay as they are.
pub(crate) fn strftime(format: &str, seconds: i64) -> String {
    let seconds = seconds.clamp(0, LAST_SECOND);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let day_of_year = days - days_before(year, 1) + 1;
    let weekday = WEEKDAYS[((days + 4) % 7) as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let hour12 = (second / 3600 + 11) % 12 + 1;
    let mut text = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        // Writing to a string cannot fail.
        let _ = match chars.next() {
            Some('Y') => write!(text, "{year:04}"),
            Some('y') => write!(text, "{:02}", year % 100),
            Some('m') => write!(text, "{month:02}"),
            Some('d') => write!(text, "{day:02}"),
            Some('e') => write!(text, "{day:2}"),
            Some('j') => write!(text, "{day_of_year:03}"),
            Some('B') => write!(text, "{month_name}"),
            Some('b' | 'h') => write!(text, "{}", &month_name[..3]),
            Some('A') => write!(text, "{weekday}"),
            Some('a') => write!(text, "{}", &weekday[..3]),
            Some('H') => write!(text, "{:02}", second / 3600),
            Some('I') => write!(text, "{hour12:02}"),
            Some('M') => write!(text, "{:02}", second / 60 % 60),
            Some('S') => write!(text, "{:02}", second % 60),
            Some('p') => write!(text, "{}", if second < 43_200 { "AM" } else { "PM" }),
            Some('F') => write!(text, "{year:04}-{month:02}-{day:02}"),
            Some('T') => write!(
                text,
                "{:02}:{:02}:{:02}",
                second / 3600,
                second / 60 % 60,
                second % 60
            ),
            Some('Z') => write!(text, "UTC"),
            Some('%') => write!(text, "%"),
            Some(other) => write!(text, "%{other}"),
            None => write!(text, "%"),
        };
    }
    text
}

/// Year, month and day of a count of days since 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    // Right or one too late, since a mean year has 365.2425 days.
    let mut year = 1970 + days / 365;
    while days_before(year, 1) > days {
        year -= 1;
    }
    let mut month = 1;
    while month < 12 && days_before(year, month + 1) <= days {
        month += 1;
    }
    (year, month, days - days_before(year, month) + 1)
}

/// Days from 1970 to the first of a month.
fn days_before(year: i64, month: i64) -> i64 {
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let past = year - 1;
    let leap_days = |year: i64| year / 4 - year / 100 + year / 400;
    let is_leap = leap_days(year) > leap_days(past);
    let in_year = BEFORE[(month - 1) as usize] + i64::from(is_leap && month > 2);
    (year - 1970) * 365 + leap_days(past) - leap_days(1969) + in_year
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_in_known_dates() {
        let check =
            |seconds, expected: &str| assert_eq!(strftime("%A %d %B %Y %H:%M:%S %j", seconds), expected);
        check(0, "Thursday 01 January 1970 00:00:00 001");
        check(951_782_400, "Tuesday 29 February 2000 00:00:00 060");
        check(1_709_164_800, "Thursday 29 February 2024 00:00:00 060");
        check(4_107_542_399, "Sunday 28 February 2100 23:59:59 059");
        check(i64::MAX, "Friday 31 December 9999 23:59:59 365");
        check(-5, "Thursday 01 January 1970 00:00:00 001");
        assert_eq!(strftime("%I%p %y %b %e|%q%%%", 46_800), "01PM 70 Jan  1|%q%%");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = (1969, 12, 31);
        for days in 0..200_000 {
            let date = civil(days);
            let next_day = date.0 == last.0 && date.1 == last.1 && date.2 == last.2 + 1;
            let next_month = date.2 == 1 && last.2 >= 28;
            assert!(next_day || next_month, "{last:?} then {date:?}");
            last = date;
        }
    }
}
