//! Budgets: what may be spent in a day, a month or at all, and what was. Windows begin at midnight UTC.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Micros;

/// How long a budget lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// From midnight to midnight, UTC.
    Day,
    /// From the first of a month, UTC.
    Month,
    /// For ever: credits that are used up.
    Total,
}

impl Period {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Total => "total",
        }
    }

    /// The period of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::Day, Self::Month, Self::Total]
            .into_iter()
            .find(|period| period.name() == name)
    }

    /// The first day of the window that holds `day`, both counted from 1970.
    pub(crate) fn start(self, day: i64) -> i64 {
        match self {
            Self::Day => day,
            Self::Month => day - day_of_month(day),
            Self::Total => 0,
        }
    }
}

/// The day within its month, from 0.
fn day_of_month(day: i64) -> i64 {
    // Days of the proleptic calendar in eras of 400 years that begin on the first of March.
    let days = (day + 719_468).rem_euclid(146_097);
    let year = (days - days / 1_460 + days / 36_524 - days / 146_096) / 365;
    let in_year = days - (365 * year + year / 4 - year / 100);
    let month = (5 * in_year + 2) / 153;
    in_year - (153 * month + 2) / 5
}

/// An amount for a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The most that may be spent.
    #[serde(rename = "limit_micros")]
    pub limit: Micros,
    /// In this time.
    pub period: Period,
}

/// Days that are kept apart in memory: more than the longest month.
const DAYS_KEPT: i64 = 62;

/// The first day that matters to any budget but a total one.
pub(crate) fn first_day(today: i64) -> i64 {
    today.saturating_sub(DAYS_KEPT)
}

/// What was spent, day by day. Budgets are compared with it and never kept in it, so that one may change at any moment,
/// and a clock that is set back finds the days as they were.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spending {
    days: BTreeMap<i64, Micros>,
    ever: Micros,
}

impl Spending {
    /// As a database knows it: all there ever was, and what came on a day.
    pub(crate) fn load(&mut self, ever: Micros) {
        self.ever = ever;
    }

    pub(crate) fn load_day(&mut self, day: i64, amount: Micros) {
        self.days.insert(day, amount);
    }

    pub(crate) fn add(&mut self, day: i64, amount: Micros) {
        self.ever = self.ever.plus(amount);
        let today = self.days.entry(day).or_default();
        *today = today.plus(amount);
        if self.days.len() as i64 > DAYS_KEPT + 2 {
            self.days.pop_first();
        }
    }

    /// All that was ever spent.
    pub(crate) fn ever(&self) -> Micros {
        self.ever
    }

    /// What was spent in the period that holds `day`. Days to come count: they are there if the clock was set back.
    pub(crate) fn within(&self, period: Period, day: i64) -> Micros {
        match period {
            Period::Total => self.ever,
            Period::Day | Period::Month => {
                let days = self.days.range(period.start(day)..);
                days.fold(Micros(0), |sum, (_, amount)| sum.plus(*amount))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_begin_at_midnight_and_on_the_first() {
        // 2026-11-21 is day 20,778; the first of that month 20,758; 2024-02-29 is 19,782.
        assert_eq!(Period::Month.start(20_778), 20_758);
        assert_eq!(Period::Month.start(20_758), 20_758);
        assert_eq!(Period::Month.start(20_757), 20_727);
        assert_eq!(Period::Month.start(19_782), 19_754);
        assert_eq!(Period::Month.start(0), 0);
        assert_eq!((Period::Day.start(7), Period::Total.start(7)), (7, 0));
    }

    #[test]
    fn days_are_counted_whatever_the_clock_does() {
        let mut spending = Spending::default();
        spending.add(20_757, Micros(5));
        spending.add(20_758, Micros(7));
        let of = |period, day| spending.within(period, day).0;
        assert_eq!(
            (
                of(Period::Day, 20_758),
                of(Period::Month, 20_758),
                of(Period::Total, 20_758)
            ),
            (7, 7, 12)
        );
        assert_eq!(of(Period::Day, 20_757), 12, "set back by a day, both count");
        assert_eq!(of(Period::Month, 20_757), 12);
        assert_eq!(of(Period::Day, 20_759), 0);
        (0..500).for_each(|day| spending.add(30_000 + day, Micros(1)));
        assert!(spending.days.len() < 70);
        assert_eq!(
            (spending.ever(), spending.within(Period::Day, 30_499)),
            (Micros(512), Micros(1))
        );
    }
}
