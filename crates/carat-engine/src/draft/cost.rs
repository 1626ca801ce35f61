//! What passes cost: seconds by the number of rows, measured as they go by.
//!
//! A pass of few rows waits for the weights, one of many for the arithmetic; how soon the one turns into the other
//! depends on the machine, the model and its format, so nothing is assumed for longer than a few passes. Between
//! measured numbers of rows the cost lies on a line; beyond them it goes on as steeply as between the outermost.
//!
//! Other programs come and go, so that two measurements may be of two different machines, as it were. Hence two
//! rules: a pass never costs more than one of more rows did, and what was not measured for [`MAX_AGE`] passes is
//! forgotten. Either way of guessing wrongly about costs then mends itself: the pass is made once more and measured.

/// Rows up to which costs are kept apart.
const MAX_ROWS: usize = 128;
/// Weight of a new measurement.
const WEIGHT: f64 = 0.15;
/// A measurement counts as at most so many times what was known: something else had the processor.
const OUTLIER: f64 = 1.5;
/// Passes after which a measurement is forgotten.
const MAX_AGE: u64 = 256;
/// What a row beside the first is taken to cost before any was measured, in passes of one row: little, so that it is
/// tried.
const ASSUMED_ROW: f64 = 0.1;
/// What a drafter's token is taken to cost before any was measured, likewise.
const ASSUMED_GUESS: f64 = 0.1;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    /// Seconds of a pass with `i` rows.
    passes: Vec<Option<Measured>>,
    /// Seconds of a step of the drafter.
    guess: Option<Measured>,
    /// Passes so far.
    now: u64,
}

/// Seconds, and after how many passes they were measured last.
#[derive(Debug, Clone, Copy)]
struct Measured {
    seconds: f64,
    at: u64,
}

impl Cost {
    /// Takes note of a pass of `n_rows` rows.
    pub(crate) fn record(&mut self, n_rows: usize, seconds: f64) {
        if n_rows > MAX_ROWS {
            return;
        }
        self.now += 1;
        if self.passes.len() <= n_rows {
            self.passes.resize(n_rows + 1, None);
        }
        self.passes[n_rows] = Some(self.blend(self.passes[n_rows], seconds));
    }

    /// Takes note of `n` steps of the drafter.
    pub(crate) fn record_guesses(&mut self, n: usize, seconds: f64) {
        if n > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
            let each = seconds / n as f64;
            self.guess = Some(self.blend(self.guess, each));
        }
    }

    /// Whether a pass of `n_rows` rows was measured of late.
    pub(crate) fn is_known(&self, n_rows: usize) -> bool {
        let measured = self.passes.get(n_rows).copied().flatten();
        self.fresh(measured).is_some()
    }

    /// Seconds that a pass of `n_rows` rows will take; in unknown units before any was measured.
    pub(crate) fn pass(&self, n_rows: usize) -> f64 {
        // From many rows to few, so that a pass costs no more than one of more rows.
        let (mut below, mut above, mut last) = (None, None, None);
        let mut least = f64::INFINITY;
        for (n, measured) in self.passes.iter().enumerate().rev() {
            let Some(measured) = self.fresh(*measured) else {
                continue;
            };
            least = least.min(measured.seconds);
            let point = (n, least);
            last = last.or(Some(point));
            if n >= n_rows {
                above = Some(point);
            }
            if n <= n_rows {
                below = Some(point);
                break;
            }
        }
        match (below, above) {
            (Some(below), Some(above)) if below.0 < above.0 => line(below, above, n_rows),
            (Some(point), Some(_)) => point.1,
            (Some(_), None) => self.beyond(last.unwrap_or((0, 0.0)), n_rows),
            (None, Some(point)) => point.1 * assumed(n_rows) / assumed(point.0),
            (None, None) => assumed(n_rows),
        }
    }

    /// Seconds of a pass of more rows than `last`, the most that were measured.
    fn beyond(&self, last: (usize, f64), n_rows: usize) -> f64 {
        let first = self.passes.iter().position(|one| self.fresh(*one).is_some());
        match first {
            Some(first) if first < last.0 => {
                let slope = (last.1 - self.pass(first)) / distance(first, last.0);
                last.1 + slope * distance(last.0, n_rows)
            }
            _ => last.1 * assumed(n_rows) / assumed(last.0),
        }
    }

    /// Seconds that `n` steps of the drafter will take.
    pub(crate) fn guesses(&self, n: usize) -> f64 {
        let each = self.fresh(self.guess).map(|guess| guess.seconds);
        each.unwrap_or_else(|| ASSUMED_GUESS * self.pass(1)) * distance(0, n)
    }

    fn fresh(&self, measured: Option<Measured>) -> Option<Measured> {
        measured.filter(|measured| self.now - measured.at <= MAX_AGE)
    }

    fn blend(&self, known: Option<Measured>, new: f64) -> Measured {
        let seconds = self.fresh(known).map_or(new, |Measured { seconds, .. }| {
            seconds + WEIGHT * (new.min(OUTLIER * seconds) - seconds)
        });
        Measured {
            seconds,
            at: self.now,
        }
    }
}

/// What a pass is taken to cost before any was measured, in passes of one row.
fn assumed(n_rows: usize) -> f64 {
    1.0 + ASSUMED_ROW * distance(1, n_rows)
}

fn line(a: (usize, f64), b: (usize, f64), n: usize) -> f64 {
    a.1 + (b.1 - a.1) * distance(a.0, n) / distance(a.0, b.0)
}

#[expect(clippy::cast_precision_loss, reason = "a count of rows")]
fn distance(from: usize, to: usize) -> f64 {
    to.saturating_sub(from) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_lie_on_lines_between_what_was_measured() {
        let mut cost = Cost::default();
        assert!(cost.pass(3) > cost.pass(1), "assumed");
        cost.record(1, 0.100);
        assert!((cost.pass(2) - 0.110).abs() < 1e-9);
        cost.record(5, 0.180);
        assert!((cost.pass(3) - 0.140).abs() < 1e-9);
        assert!((cost.pass(7) - 0.220).abs() < 1e-9);
    }

    #[test]
    fn one_slow_pass_changes_little() {
        let mut cost = Cost::default();
        (0..20).for_each(|_| cost.record(2, 0.1));
        cost.record(2, 10.0);
        assert!(cost.pass(2) < 0.108);
    }

    #[test]
    fn a_pass_costs_no_more_than_one_of_more_rows() {
        let mut cost = Cost::default();
        // The first was measured while another program ran.
        cost.record(1, 0.2);
        cost.record(4, 0.1);
        assert!((cost.pass(1) - 0.1).abs() < 1e-9 && (cost.pass(2) - 0.1).abs() < 1e-9);
        assert!(cost.pass(9) >= cost.pass(4));
        cost.record(1000, 5.0);
        assert!(cost.pass(1000) < 5.0, "what is beyond all drafts is not kept");
    }

    #[test]
    fn what_was_not_measured_for_long_is_forgotten() {
        let mut cost = Cost::default();
        cost.record(1, 0.1);
        cost.record(4, 0.9);
        cost.record_guesses(2, 1.0);
        assert!(cost.pass(4) > 0.8 && cost.guesses(1) > 0.4);
        (0..=MAX_AGE).for_each(|_| cost.record(1, 0.1));
        assert!((cost.pass(4) - 0.13).abs() < 1e-9, "{}", cost.pass(4));
        assert!((cost.guesses(1) - 0.01).abs() < 1e-9);
        // And the other way round: what plain decoding takes, after long runs of drafts.
        (0..=MAX_AGE).for_each(|_| cost.record(4, 0.13));
        assert!((cost.pass(1) - 0.1).abs() < 1e-9, "{}", cost.pass(1));
    }
}
