//! Exponentials and sums over rows of logits.
//!
//! A row has 262,144 numbers, so these run over a million bytes per token. The exponential is written out so
//! that the compiler turns it into vector instructions, and so that it gives the same bits on every machine:
//! the platform's own differs from one C library to the next, which would let a seed mean two things.

/// `e^x` for `x <= 0`, within 2 units in the last place; 0 below -87, where an f32 is no longer normal.
///
/// `x = n·ln 2 + r` with `|r| <= ln 2 / 2`, a Taylor polynomial of degree 7 for `e^r`, then `2^n` put into the
/// exponent bits. Adding and taking off `1.5·2^23` rounds to the nearest whole number.
#[inline(always)]
pub(crate) fn exp_nonpositive(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let power = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    if x < -87.0 { 0.0 } else { p * power }
}

/// The largest number of a row; minus infinity when there is none. NaN is passed over.
pub(crate) fn row_max(row: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(
        f32::NEG_INFINITY,
        |max, &value| if value > max { value } else { max },
    )
}

/// `ln Σ e^row[i]`, the denominator of the log-softmax; minus infinity when no entry is above it.
///
/// Stable for any finite logits: the maximum is taken off first and the sum runs in f64.
pub(crate) fn log_sum_exp(row: &[f32]) -> f64 {
    const LANES: usize = 8;
    // f32 lanes are flushed to f64 every 64 values each: a sum of at most 64 terms in 0..=1 loses under 4e-6
    // of itself in the worst case and some 1e-7 in practice.
    const RUN: usize = LANES * 64;
    let max = row_max(row);
    if max == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    let mut sum = 0.0f64;
    for run in row.chunks(RUN) {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = run.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += exp_nonpositive(value - max);
            }
        }
        sum += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        sum += rest
            .iter()
            .map(|&value| f64::from(exp_nonpositive(value - max)))
            .sum::<f64>();
    }
    f64::from(max) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_within_two_units_in_the_last_place() {
        let mut x = 0.0f32;
        while x > -86.9 {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_nonpositive(x)) - exact).abs() / exact;
            assert!(
                error < 2.0 * f64::from(f32::EPSILON),
                "e^{x}: relative error {error:e}"
            );
            x -= 0.000_937;
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-88.0), 0.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_nonpositive(f32::MIN), 0.0);
    }

    #[test]
    fn log_sum_exp_equals_the_f64_sum_for_every_length() {
        for n in [1, 2, 7, 8, 9, 511, 512, 513, 5000] {
            let row: Vec<f32> = (0..n)
                .map(|i| ((i * 7919) % 1000) as f32 / 50.0 - 500.0)
                .collect();
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            let exact = f64::from(max)
                + row
                    .iter()
                    .map(|&v| (f64::from(v) - f64::from(max)).exp())
                    .sum::<f64>()
                    .ln();
            assert!((log_sum_exp(&row) - exact).abs() < 1e-6, "{n} values");
        }
    }

    #[test]
    fn log_sum_exp_survives_extremes() {
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 3]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::MAX, f32::MIN]), f64::from(f32::MAX));
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 3.0]), 3.0);
    }
}
