//! Budgets: what may be spent in a day, a month or at all, and what is held for requests under way.
//!
//! Windows begin at midnight UTC. A request passes when what was spent, what is held and what it may cost itself stay
//! within the limit. Whether only the holds stand in its way is told apart: then it is worth waiting for.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The most that may be spent.
    pub limit: Micros,
    /// In this time.
    pub period: Period,
}

/// Why a budget does not allow a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    /// It may when others have settled.
    Held,
    /// It is spent.
    Spent,
}

/// A budget with what became of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Purse {
    pub(crate) budget: Option<Budget>,
    /// The first day of the window that `spent` belongs to.
    start: i64,
    pub(crate) spent: Micros,
    pub(crate) held: Micros,
}

impl Purse {
    pub(crate) fn new(budget: Option<Budget>, spent: Micros, day: i64) -> Self {
        Self {
            budget,
            start: budget.map_or(0, |budget| budget.period.start(day)),
            spent,
            held: Micros(0),
        }
    }

    /// Whether so much more may be held.
    pub(crate) fn check(&mut self, cost: Micros, day: i64) -> Result<(), Short> {
        let Some(budget) = self.budget else { return Ok(()) };
        self.roll(budget.period, day);
        let without_holds = self.spent.plus(cost);
        if self.spent >= budget.limit || without_holds > budget.limit {
            return Err(Short::Spent);
        }
        if without_holds.plus(self.held) > budget.limit {
            Err(Short::Held)
        } else {
            Ok(())
        }
    }

    pub(crate) fn hold(&mut self, cost: Micros) {
        self.held = self.held.plus(cost);
    }

    /// Puts what a request did cost in place of its hold.
    pub(crate) fn settle(&mut self, held: Micros, cost: Micros, day: i64) {
        self.held = self.held.minus(held);
        if let Some(budget) = self.budget {
            self.roll(budget.period, day);
        }
        self.spent = self.spent.plus(cost);
    }

    fn roll(&mut self, period: Period, day: i64) {
        let start = period.start(day);
        if start != self.start {
            self.start = start;
            self.spent = Micros(0);
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
    fn holds_count_but_can_be_waited_for() {
        let budget = Budget {
            limit: Micros(10),
            period: Period::Day,
        };
        let mut purse = Purse::new(Some(budget), Micros(0), 5);
        purse.hold(Micros(6));
        assert_eq!(purse.check(Micros(5), 5), Err(Short::Held));
        assert_eq!(purse.check(Micros(11), 5), Err(Short::Spent));
        assert_eq!(purse.check(Micros(4), 5), Ok(()));
        purse.settle(Micros(6), Micros(1), 5);
        assert_eq!(purse.check(Micros(9), 5), Ok(()));
        purse.hold(Micros(9));
        purse.settle(Micros(9), Micros(9), 5);
        assert_eq!(purse.check(Micros(0), 5), Err(Short::Spent));
        assert_eq!(purse.check(Micros(10), 6), Ok(()), "a new day");
    }
}
