//! Pairs of 16-bit integers that stand below each other in a matrix: what [`crate::integer_gemm`] multiplies as B, or reads by
//! columns as A.

use crate::Isa;
use crate::integer_gemm::BLOCK;
use crate::integer_round::{HIGHEST, Size, WHOLE, factors, magnitude};
use crate::pair_gemm::LANES;
use crate::simd::{Simd, dispatch};

/// The largest integer of values that are weighed: 14 bits and a sign.
pub(crate) const LARGEST_VALUE: i32 = 16_383;
/// The sum that the integers of weights may have beside such values, with what rounding a block's adds.
const HEAVIEST: f32 = (i32::MAX / LARGEST_VALUE - 2 * BLOCK as i32) as f32;
/// Columns that are looked at together, where there are so many.
const WIDTH: usize = 32;

/// `to[i]` = rows `2i` and `2i + 1` of `x` `[n, m]` as integers, with a scale for each column: as
/// [`crate::integer_round::round_row`] does for rows.
pub(crate) fn pair_columns(isa: Isa, x: &[f32], to: &mut [u32], scales: &mut [f32]) {
    let m = scales.len();
    assert!(
        x.len().is_multiple_of(m) && to.len() == (x.len() / m).div_ceil(2) * m,
        "a pair for two rows"
    );
    columns(isa, x, to, scales);
}

/// As [`pair_columns`] for weights, none below zero, of at most a block of values: first they are multiplied with the
/// values' scales `factors` `[n]`. The sum of a column's integers is so small that values up to [`LARGEST_VALUE`] cannot
/// overflow.
pub(crate) fn pair_weights(isa: Isa, x: &[f32], factors: &[f32], to: &mut [u32], scales: &mut [f32]) {
    let (n, m) = (factors.len(), scales.len());
    assert!(
        n <= 2 * BLOCK && x.len() == n * m && to.len() == n.div_ceil(2) * m,
        "a pair for two rows of a block"
    );
    weights(isa, x, factors, to, scales);
}

/// `to[i]` = rows `2i` and `2i + 1` of `x` `[n, m]` as integers up to [`LARGEST_VALUE`], with a scale for each row.
pub(crate) fn pair_values(isa: Isa, x: &[f32], to: &mut [u32], scales: &mut [f32]) {
    let n = scales.len();
    assert!(
        n > 0 && x.len().is_multiple_of(n) && to.len() == n.div_ceil(2) * (x.len() / n),
        "a pair for two rows"
    );
    values(isa, x, to, scales);
}

dispatch! {
    fn columns(x: &[f32], to: &mut [u32], scales: &mut [f32]) = columns_generic;
}
dispatch! {
    fn weights(x: &[f32], factors: &[f32], to: &mut [u32], scales: &mut [f32]) = weights_generic;
}
dispatch! {
    fn values(x: &[f32], to: &mut [u32], scales: &mut [f32]) = values_generic;
}

#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    ((low + WHOLE).to_bits() & 0xffff) | ((high + WHOLE).to_bits() << 16)
}

#[inline(always)]
fn columns_generic<S: Simd>(_: S, x: &[f32], to: &mut [u32], scales: &mut [f32]) {
    by_columns(scales.len(), |at, width| match width {
        WIDTH => columns_at::<WIDTH>(x, at, to, scales),
        LANES => columns_at::<LANES>(x, at, to, scales),
        _ => columns_at::<1>(x, at, to, scales),
    });
}

#[inline(always)]
fn weights_generic<S: Simd>(_: S, x: &[f32], of_rows: &[f32], to: &mut [u32], scales: &mut [f32]) {
    by_columns(scales.len(), |at, width| match width {
        WIDTH => weights_at::<WIDTH>(x, of_rows, at, to, scales),
        LANES => weights_at::<LANES>(x, of_rows, at, to, scales),
        _ => weights_at::<1>(x, of_rows, at, to, scales),
    });
}

/// Calls `each` with the first of some columns and their number, of `m` in all.
#[inline(always)]
fn by_columns(m: usize, mut each: impl FnMut(usize, usize)) {
    let mut at = 0;
    while at < m {
        let width = match m - at {
            WIDTH.. => WIDTH,
            LANES.. => LANES,
            _ => 1,
        };
        each(at, width);
        at += width;
    }
}

/// LLVM makes vectors of the loops over a constant number of columns, here and below, and keeps what is gathered of them
/// in registers.
#[inline(always)]
fn columns_at<const W: usize>(x: &[f32], at: usize, to: &mut [u32], scales: &mut [f32]) {
    let m = scales.len();
    let (mut most, mut squares) = ([0; W], [0.0f32; W]);
    for block in x.chunks(2 * BLOCK * m) {
        let mut of_block = [0.0; W];
        for row in block.chunks_exact(m) {
            for (i, x) in row[at..at + W].iter().enumerate() {
                most[i] = magnitude(*x).max(most[i]);
                of_block[i] += x * x;
            }
        }
        for (squares, of_block) in squares.iter_mut().zip(of_block) {
            *squares = squares.max(of_block);
        }
    }
    let mut inverse = [0.0; W];
    for i in 0..W {
        let size = Size {
            most: most[i],
            squares: squares[i],
        };
        (inverse[i], scales[at + i]) = size.factors();
    }
    for (rows, to) in x.chunks(2 * m).zip(to.chunks_exact_mut(m)) {
        convert([1.0; 2], &inverse, rows, m, at, to);
    }
}

#[inline(always)]
fn weights_at<const W: usize>(x: &[f32], of_rows: &[f32], at: usize, to: &mut [u32], scales: &mut [f32]) {
    let m = scales.len();
    let (mut most, mut sums, mut inverse) = ([0; W], [0.0f32; W], [0.0; W]);
    for (row, factor) in x.chunks_exact(m).zip(of_rows) {
        for (i, x) in row[at..at + W].iter().enumerate() {
            let weight = x * factor;
            most[i] = magnitude(weight).max(most[i]);
            sums[i] += weight;
        }
    }
    for i in 0..W {
        let largest = f32::from_bits(most[i]) * (HEAVIEST / sums[i]);
        (inverse[i], scales[at + i]) = factors(most[i], largest.min(HIGHEST));
    }
    for ((rows, factors), to) in x.chunks(2 * m).zip(of_rows.chunks(2)).zip(to.chunks_exact_mut(m)) {
        let factors = [factors[0], factors.get(1).copied().unwrap_or_default()];
        convert(factors, &inverse, rows, m, at, to);
    }
}

/// The pairs of two rows from column `at` on, or of one and zeros.
#[inline(always)]
fn convert<const W: usize>(
    factors: [f32; 2],
    inverse: &[f32; W],
    rows: &[f32],
    m: usize,
    at: usize,
    to: &mut [u32],
) {
    let (low, to) = (&rows[at..at + W], &mut to[at..at + W]);
    if let Some(high) = rows.get(m + at..m + at + W) {
        for i in 0..W {
            let scaled = [low[i] * factors[0], high[i] * factors[1]];
            to[i] = pair(scaled[0] * inverse[i], scaled[1] * inverse[i]);
        }
    } else {
        for i in 0..W {
            to[i] = pair(low[i] * factors[0] * inverse[i], 0.0);
        }
    }
}

#[inline(always)]
fn values_generic<S: Simd>(_: S, x: &[f32], to: &mut [u32], scales: &mut [f32]) {
    let m = x.len() / scales.len();
    let rows = x.chunks(2 * m).zip(scales.chunks_mut(2));
    for ((rows, scales), to) in rows.zip(to.chunks_exact_mut(m)) {
        let mut inverse = [0.0; 2];
        for ((row, to), inverse) in rows.chunks_exact(m).zip(scales).zip(&mut inverse) {
            let most = row.iter().fold(0, |most: u32, x| most.max(magnitude(*x)));
            (*inverse, *to) = factors(most, LARGEST_VALUE as f32);
        }
        let (low, high) = rows.split_at(m);
        if high.is_empty() {
            for (to, low) in to.iter_mut().zip(low) {
                *to = pair(low * inverse[0], 0.0);
            }
        } else {
            for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
                *to = pair(low * inverse[0], high * inverse[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn integer(pairs: &[u32], m: usize, r: usize, c: usize) -> i16 {
        (pairs[r / 2 * m + c] >> (r % 2 * 16)) as i16
    }

    proptest! {
        #[test]
        fn integers_are_the_nearest(n in 1usize..300, m in 1usize..70, seed: u32) {
            let number = |i: usize| (i as f32 * 0.7 + seed as f32 * 1e-4).sin();
            let x: Vec<f32> = (0..n * m).map(|i| number(i) * (1.0 + (i % 7) as f32)).collect();
            for isa in Isa::available() {
                let (mut to, mut scales) = (vec![7; n.div_ceil(2) * m], vec![7.0; m]);
                pair_columns(isa, &x, &mut to, &mut scales);
                for c in 0..m {
                    let column: Vec<f32> = (0..n).map(|r| x[r * m + c]).collect();
                    let mut want = vec![0; n];
                    let scale = crate::integer_round::round_row(isa, &column, &mut want);
                    // Squares may be added in another order.
                    prop_assert!((scales[c] / scale - 1.0).abs() < 1e-5, "{isa} {c}");
                    for (r, x) in column.iter().enumerate() {
                        let error = f32::from(integer(&to, m, r, c)) * scales[c] - x;
                        prop_assert!(error.abs() <= 0.505 * scales[c], "{isa} {r} {c}");
                    }
                    prop_assert!(n % 2 == 0 || to[n / 2 * m + c] >> 16 == 0);
                }
                let (mut to, mut scales) = (vec![7; n.div_ceil(2) * m], vec![7.0; n]);
                pair_values(isa, &x, &mut to, &mut scales);
                for (r, row) in x.chunks_exact(m).enumerate() {
                    let most = row.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
                    prop_assert_eq!(scales[r], most / LARGEST_VALUE as f32);
                    for (c, x) in row.iter().enumerate() {
                        let error = f32::from(integer(&to, m, r, c)) * scales[r] - x;
                        prop_assert!(error.abs() <= 0.505 * scales[r], "{isa} {r} {c}");
                    }
                }
            }
        }

        /// Whether one weight is all, or all are alike.
        #[test]
        fn weights_are_the_nearest_and_cannot_overflow(n in 1usize..129, m in 1usize..70, power in 0i32..40, seed: u32) {
            let number = |i: usize| (i as f32 * 0.7 + seed as f32 * 1e-4).sin().abs();
            let x: Vec<f32> = (0..n * m).map(|i| number(i).powi(power)).collect();
            let factors: Vec<f32> = (0..n).map(|r| 0.1 + number(r)).collect();
            for isa in Isa::available() {
                let (mut to, mut scales) = (vec![7; n.div_ceil(2) * m], vec![7.0; m]);
                pair_weights(isa, &x, &factors, &mut to, &mut scales);
                for c in 0..m {
                    let mut sum = 0i64;
                    for r in 0..n {
                        let integer = integer(&to, m, r, c);
                        sum += i64::from(integer);
                        let error = f32::from(integer) * scales[c] - x[r * m + c] * factors[r];
                        prop_assert!(integer >= 0 && error.abs() <= 0.505 * scales[c] + 1e-29, "{isa} {r} {c}");
                    }
                    prop_assert!(sum * i64::from(LARGEST_VALUE) <= i64::from(i32::MAX), "{isa} {sum}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for (isa, odd) in Isa::available().flat_map(|isa| [f32::NAN, f32::INFINITY].map(|odd| (isa, odd))) {
            let x = [1.0, odd, 0.0, 2.0, 1.0, 1e-38];
            let (mut to, mut scales) = ([0; 3], [0.0; 3]);
            pair_columns(isa, &x, &mut to, &mut scales);
            assert!(
                !scales[1].is_finite() && scales[0].is_finite(),
                "{isa} {odd}: {scales:?}"
            );
            assert_eq!((scales[2], to[2]), (0.0, 0));
            pair_weights(isa, &x, &[1.0; 2], &mut to, &mut scales);
            assert!(
                !scales[1].is_finite() && scales[0].is_finite(),
                "{isa} {odd}: {scales:?}"
            );
            assert_eq!((scales[2], to[2]), (0.0, 0));
            let (mut to, mut scales) = ([0; 3], [0.0; 2]);
            pair_values(isa, &x, &mut to, &mut scales);
            assert!(
                !scales[0].is_finite() && scales[1].is_finite(),
                "{isa} {odd}: {scales:?}"
            );
        }
    }
}
