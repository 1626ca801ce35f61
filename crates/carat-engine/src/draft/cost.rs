//! What passes cost: seconds by the number of rows, measured as they go by.
//!
//! A pass of few rows waits for the weights, one of many for the arithmetic; how soon the one turns into the other
//! depends on the machine, the model and its format, so nothing is assumed for longer than a few passes. Between
//! measured numbers of rows the cost lies on a line; beyond them it goes on as steeply as between the outermost.

/// Rows up to which costs are kept apart.
const MAX_ROWS: usize = 128;
/// Weight of a new measurement.
const WEIGHT: f64 = 0.15;
/// A measurement counts as at most so many times what was known: something else had the processor.
const OUTLIER: f64 = 1.5;
/// What a row beside the first is taken to cost before any was measured, in passes of one row.
const ASSUMED_ROW: f64 = 0.2;
/// What a drafter's token is taken to cost before any was measured, likewise.
const ASSUMED_GUESS: f64 = 0.1;

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    /// Seconds of a pass with `i` rows.
    pass_s: Vec<Option<f64>>,
    /// Seconds of a step of the drafter.
    guess_s: Option<f64>,
}

impl Cost {
    /// Takes note of a pass of `n_rows` rows.
    pub(crate) fn record(&mut self, n_rows: usize, seconds: f64) {
        if n_rows > MAX_ROWS {
            return;
        }
        if self.pass_s.len() <= n_rows {
            self.pass_s.resize(n_rows + 1, None);
        }
        let known = &mut self.pass_s[n_rows];
        *known = Some(blend(*known, seconds));
    }

    /// Takes note of `n` steps of the drafter.
    pub(crate) fn record_guesses(&mut self, n: usize, seconds: f64) {
        if n > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
            let each = seconds / n as f64;
            self.guess_s = Some(blend(self.guess_s, each));
        }
    }

    /// Seconds that a pass of `n_rows` rows will take; in unknown units before any was measured.
    pub(crate) fn pass(&self, n_rows: usize) -> f64 {
        let known = self.pass_s.iter().enumerate();
        let known = || known.clone().filter_map(|(n, s)| s.map(|s| (n, s)));
        let below = known().take_while(|(n, _)| *n <= n_rows).last();
        let above = known().find(|(n, _)| *n >= n_rows);
        match (below, above) {
            (Some(below), Some(above)) if below.0 == above.0 => below.1,
            (Some(below), Some(above)) => line(below, above, n_rows),
            (Some(last), None) => {
                let slope = match known().next() {
                    Some(first) if first.0 < last.0 => (last.1 - first.1) / distance(first.0, last.0),
                    _ => ASSUMED_ROW * last.1 / distance(0, last.0).max(1.0),
                };
                last.1 + slope.max(0.0) * distance(last.0, n_rows)
            }
            (None, Some(above)) => above.1,
            (None, None) => 1.0 + ASSUMED_ROW * distance(1, n_rows),
        }
    }

    /// Seconds that `n` steps of the drafter will take.
    pub(crate) fn guesses(&self, n: usize) -> f64 {
        self.guess_s.unwrap_or_else(|| ASSUMED_GUESS * self.pass(1)) * distance(0, n)
    }
}

fn line(a: (usize, f64), b: (usize, f64), n: usize) -> f64 {
    a.1 + (b.1 - a.1) * distance(a.0, n) / distance(a.0, b.0)
}

#[expect(clippy::cast_precision_loss, reason = "a count of rows")]
fn distance(from: usize, to: usize) -> f64 {
    to.saturating_sub(from) as f64
}

fn blend(known: Option<f64>, new: f64) -> f64 {
    known.map_or(new, |known| known + WEIGHT * (new.min(OUTLIER * known) - known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_lie_on_lines_between_what_was_measured() {
        let mut cost = Cost::default();
        assert!(cost.pass(3) > cost.pass(1), "assumed");
        cost.record(1, 0.100);
        assert!((cost.pass(2) - 0.120).abs() < 1e-9);
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
    fn more_rows_never_look_cheaper_beyond_what_is_known() {
        let mut cost = Cost::default();
        cost.record(1, 0.2);
        cost.record(4, 0.1);
        assert!(cost.pass(9) >= cost.pass(4));
        cost.record(1000, 5.0);
        assert!(cost.pass(1000) < 5.0, "what is beyond all drafts is not kept");
    }
}
