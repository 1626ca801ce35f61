//! The time, and how APIs write the time of day.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Now, by the runtime's clock, which tests may stop.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A moment in the calendar, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Civil {
    pub(crate) year: u64,
    pub(crate) month: u64,
    pub(crate) day: u64,
    pub(crate) hour: u64,
    pub(crate) minute: u64,
    pub(crate) second: u64,
}

/// Time since 1970; nothing before.
pub(crate) fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    since_epoch(SystemTime::now()).as_secs()
}

/// What the calendar and the clock say so many seconds after 1970 began.
pub(crate) fn civil(seconds: u64) -> Civil {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The proleptic calendar in eras of 400 years that begin on the first of March.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * in_year + 2) / 153;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    Civil {
        year: era * 400 + year + u64::from(month <= 2),
        month,
        day: in_year - (153 * from_march + 2) / 5 + 1,
        hour: second / 3600,
        minute: second / 60 % 60,
        second: second % 60,
    }
}

/// Now, as RFC 3339 has it, with microseconds.
pub(crate) fn rfc3339() -> String {
    let now = since_epoch(SystemTime::now());
    let at = civil(now.as_secs());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        at.year,
        at.month,
        at.day,
        at.hour,
        at.minute,
        at.second,
        now.subsec_micros()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leap_days_and_ends_of_years_are_where_they_belong() {
        let at = |seconds| {
            let at = civil(seconds);
            (at.year, at.month, at.day, at.hour, at.minute, at.second)
        };
        assert_eq!(at(0), (1970, 1, 1, 0, 0, 0));
        assert_eq!(at(951_782_400), (2000, 2, 29, 0, 0, 0));
        assert_eq!(at(1_440_938_160), (2015, 8, 30, 12, 36, 0));
        assert_eq!(at(1_735_689_599), (2024, 12, 31, 23, 59, 59));
        assert!(rfc3339().ends_with('Z') && rfc3339().len() == 27);
    }
}
