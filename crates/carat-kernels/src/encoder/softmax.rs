//! Online softmax down the columns of a tile of scores, keys as rows and [`COLUMNS`] queries as columns.
//!
//! Scores come multiplied with log2(e), so that the weights are powers of two: `2^(score - largest)`. The exponent
//! is split into a whole number and a rest within half of one; a polynomial of degree 6 for the rest errs by
//! 1.2e-7 relative (Taylor's remainder 0.347^7 / 7!). Weights either stay in place, or are rounded to bf16 or to integers
//! and paired along the keys, as the product with the values wants them. Integers are relative to the largest of their
//! tile, so that those of a tile of small weights keep their digits; the total is the sum of what they were rounded to.

use crate::Isa;
use crate::integer_gemm::{IntegerSimd, LARGEST_WEIGHT, dispatch_integers};
use crate::pair_gemm::{PairSimd, dispatch_pairs};
use crate::simd::{Simd, dispatch};

/// Queries of a tile: four registers of AVX-512.
pub(super) const COLUMNS: usize = 64;

/// What the tiles so far have given, for each query.
pub(super) struct Running {
    /// Largest score.
    pub(super) largest: [f32; COLUMNS],
    /// Sum of the weights.
    pub(super) total: [f32; COLUMNS],
    /// What earlier sums must be multiplied with, after each tile.
    pub(super) factor: [f32; COLUMNS],
    /// What the last tile's integers must be multiplied with.
    pub(super) scale: [f32; COLUMNS],
}

impl Running {
    pub(super) fn new() -> Running {
        Running {
            largest: [f32::MIN; COLUMNS],
            total: [0.0; COLUMNS],
            factor: [1.0; COLUMNS],
            scale: [0.0; COLUMNS],
        }
    }
}

/// Turns `scores` `[n, COLUMNS]` into weights in place.
pub(super) fn soften(isa: Isa, scores: &mut [f32], running: &mut Running) {
    assert!(scores.len().is_multiple_of(COLUMNS), "whole rows of scores");
    soften_floats(isa, scores, running);
}

/// Turns `scores` `[n, COLUMNS]` into weights in `pairs` `[ceil(n / 2), COLUMNS]`: those of rows `2i` and `2i + 1`
/// together.
pub(super) fn soften_to_pairs(isa: Isa, scores: &[f32], pairs: &mut [u32], running: &mut Running) {
    let rows = scores.len() / COLUMNS;
    assert!(
        scores.len() == rows * COLUMNS && pairs.len() == rows.div_ceil(2) * COLUMNS,
        "a pair for two rows of scores"
    );
    soften_pairs(isa, scores, pairs, running);
}

/// As [`soften_to_pairs`], in integers up to [`LARGEST_WEIGHT`], whose scales are put into `running`.
pub(super) fn soften_to_integers(isa: Isa, scores: &[f32], pairs: &mut [u32], running: &mut Running) {
    let rows = scores.len() / COLUMNS;
    assert!(
        scores.len() == rows * COLUMNS && pairs.len() == rows.div_ceil(2) * COLUMNS,
        "a pair for two rows of scores"
    );
    soften_integers(isa, scores, pairs, running);
}

dispatch! {
    fn soften_floats(scores: &mut [f32], running: &mut Running) = soften_floats_generic;
}
dispatch_pairs! {
    fn soften_pairs(scores: &[f32], pairs: &mut [u32], running: &mut Running) = soften_pairs_generic;
}
dispatch_integers! {
    fn soften_integers(scores: &[f32], pairs: &mut [u32], running: &mut Running) = soften_integers_generic;
}

/// 2^x for x <= 0; below -126 it stays at 2^-126.
#[inline(always)]
fn exp2<S: Simd>(simd: S, x: S::F) -> S::F {
    // In this order of operands a NaN passes.
    let x = simd.max(simd.splat(-126.0), x);
    let k = simd.round(x);
    let r = simd.sub(x, k);
    // ln(2)^n / n!
    let mut p = simd.splat(1.540_353e-4);
    for c in [
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        2.402_265e-1,
        std::f32::consts::LN_2,
        1.0,
    ] {
        p = simd.fma(p, r, simd.splat(c));
    }
    simd.mul(p, simd.pow2(k))
}

/// 2^(score - largest) of the scores at `from`. A function, since a closure has no features and nothing can be
/// inlined into it.
///
/// # Safety
/// `from` is valid for reading a register.
#[inline(always)]
unsafe fn weight<S: Simd>(simd: S, from: *const f32, largest: S::F) -> S::F {
    // SAFETY: the caller's word.
    exp2(simd, simd.sub(unsafe { simd.load(from) }, largest))
}

/// Updates `largest` and `factor` of the columns from `at` on; returns the largest scores, those of these rows and those so far.
///
/// # Safety
/// `at + LANES <= COLUMNS`, and `column` begins `rows` rows of `COLUMNS` elements at column `at`.
#[inline(always)]
unsafe fn advance<S: Simd>(
    simd: S,
    at: usize,
    column: *const f32,
    rows: usize,
    running: &mut Running,
) -> (S::F, S::F) {
    // SAFETY: the caller's word.
    unsafe {
        let old = simd.load(running.largest.as_ptr().add(at));
        let mut largest = [simd.splat(f32::MIN); 2];
        for r in 0..rows {
            largest[r % 2] = simd.max(largest[r % 2], simd.load(column.add(r * COLUMNS)));
        }
        let here = simd.max(largest[0], largest[1]);
        let new = simd.max(old, here);
        simd.store(running.largest.as_mut_ptr().add(at), new);
        simd.store(
            running.factor.as_mut_ptr().add(at),
            exp2(simd, simd.sub(old, new)),
        );
        (here, new)
    }
}

/// Adds `sum` to the total of the columns from `at` on.
///
/// # Safety
/// `at + LANES <= COLUMNS`.
#[inline(always)]
unsafe fn add_total<S: Simd>(simd: S, at: usize, sum: S::F, running: &mut Running) {
    // SAFETY: the caller's word.
    unsafe {
        let factor = simd.load(running.factor.as_ptr().add(at));
        let total = simd.load(running.total.as_ptr().add(at));
        simd.store(running.total.as_mut_ptr().add(at), simd.fma(total, factor, sum));
    }
}

#[inline(always)]
fn soften_floats_generic<S: Simd>(simd: S, scores: &mut [f32], running: &mut Running) {
    let rows = scores.len() / COLUMNS;
    for at in (0..COLUMNS).step_by(S::LANES) {
        // SAFETY: COLUMNS is a multiple of LANES; `scores` has `rows` rows of COLUMNS.
        unsafe {
            let column = scores.as_mut_ptr().add(at);
            let (_, largest) = advance(simd, at, column, rows, running);
            let mut sum = simd.splat(0.0);
            for r in 0..rows {
                let to = column.add(r * COLUMNS);
                let weight = weight(simd, to, largest);
                simd.store(to, weight);
                sum = simd.add(sum, weight);
            }
            add_total(simd, at, sum, running);
        }
    }
}

#[inline(always)]
fn soften_pairs_generic<S: PairSimd>(simd: S, scores: &[f32], pairs: &mut [u32], running: &mut Running) {
    let rows = scores.len() / COLUMNS;
    for at in (0..COLUMNS).step_by(S::LANES) {
        // SAFETY: COLUMNS is a multiple of LANES; `scores` has `rows` rows of COLUMNS, `pairs` half as many. The
        // pairs' instructions are there, since `dispatch_pairs` chose this version.
        unsafe {
            let column = scores.as_ptr().add(at);
            let (_, largest) = advance(simd, at, column, rows, running);
            let (mut low_sum, mut high_sum) = (simd.splat(0.0), simd.splat(0.0));
            for i in 0..rows.div_ceil(2) {
                let low = weight(simd, column.add(2 * i * COLUMNS), largest);
                let high = if 2 * i + 1 < rows {
                    weight(simd, column.add((2 * i + 1) * COLUMNS), largest)
                } else {
                    simd.splat(0.0)
                };
                simd.store_pairs(pairs.as_mut_ptr().add(i * COLUMNS + at), simd.pair(low, high));
                low_sum = simd.add(low_sum, low);
                high_sum = simd.add(high_sum, high);
            }
            add_total(simd, at, simd.add(low_sum, high_sum), running);
        }
    }
}

#[inline(always)]
fn soften_integers_generic<S: IntegerSimd>(
    integers: S,
    scores: &[f32],
    pairs: &mut [u32],
    running: &mut Running,
) {
    let (simd, lanes) = (integers.floats(), S::Floats::LANES);
    let rows = scores.len() / COLUMNS;
    let one = simd.splat(LARGEST_WEIGHT as f32);
    for at in (0..COLUMNS).step_by(lanes) {
        // SAFETY: COLUMNS is a multiple of LANES; `scores` has `rows` rows of COLUMNS, `pairs` half as many. The
        // integers' instructions are there, since `dispatch_integers` chose this version.
        unsafe {
            let column = scores.as_ptr().add(at);
            let (here, largest) = advance(simd, at, column, rows, running);
            let (mut low_sum, mut high_sum) = (simd.splat(0.0), simd.splat(0.0));
            for i in 0..rows.div_ceil(2) {
                let low = simd.round(simd.mul(one, weight(simd, column.add(2 * i * COLUMNS), here)));
                let high = if 2 * i + 1 < rows {
                    simd.round(simd.mul(one, weight(simd, column.add((2 * i + 1) * COLUMNS), here)))
                } else {
                    simd.splat(0.0)
                };
                integers.store(pairs.as_mut_ptr().add(i * COLUMNS + at), integers.pair(low, high));
                low_sum = simd.add(low_sum, low);
                high_sum = simd.add(high_sum, high);
            }
            let scale = simd.div(exp2(simd, simd.sub(here, largest)), one);
            simd.store(running.scale.as_mut_ptr().add(at), scale);
            add_total(simd, at, simd.mul(simd.add(low_sum, high_sum), scale), running);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the weights become.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Kind {
        Floats,
        Bf16,
        Integers,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        /// Two tiles one after the other give the softmax of both together.
        #[test]
        fn equals_softmax_in_f64(first in 1usize..9, second in 1usize..9, scale in 0.1f32..300.0, seed: u32) {
            let score = |r: usize, c: usize| ((r * COLUMNS + c) as f32 * 0.7 + seed as f32 * 1e-3).sin() * scale;
            let rows = first + second;
            for isa in Isa::available() {
                for kind in [Kind::Floats, Kind::Bf16, Kind::Integers] {
                    let mut running = Running::new();
                    let mut weights = vec![0.0f64; rows * COLUMNS];
                    for (base, n) in [(0, first), (first, second)] {
                        let mut tile: Vec<f32> = (0..n * COLUMNS).map(|i| score(base + i / COLUMNS, i % COLUMNS)).collect();
                        let mut pairs = vec![0; n.div_ceil(2) * COLUMNS];
                        match kind {
                            Kind::Floats => soften(isa, &mut tile, &mut running),
                            Kind::Bf16 => soften_to_pairs(isa, &tile, &mut pairs, &mut running),
                            Kind::Integers => soften_to_integers(isa, &tile, &mut pairs, &mut running),
                        }
                        for (i, weight) in tile.iter_mut().enumerate() {
                            let (r, c) = (i / COLUMNS, i % COLUMNS);
                            let bits = pairs[r / 2 * COLUMNS + c] >> (r % 2 * 16) & 0xffff;
                            match kind {
                                Kind::Floats => {}
                                Kind::Bf16 => *weight = f32::from_bits(bits << 16),
                                Kind::Integers => *weight = bits as f32 * running.scale[c],
                            }
                        }
                        for (i, weight) in weights[..base * COLUMNS].iter_mut().enumerate() {
                            *weight *= f64::from(running.factor[i % COLUMNS]);
                        }
                        for (to, weight) in weights[base * COLUMNS..].iter_mut().zip(&tile) {
                            *to = f64::from(*weight);
                        }
                    }
                    for c in 0..COLUMNS {
                        let largest = (0..rows).map(|r| score(r, c)).fold(f32::MIN, f32::max);
                        let exact: Vec<f64> =
                            (0..rows).map(|r| (f64::from(score(r, c)) - f64::from(largest)).exp2()).collect();
                        let total: f64 = exact.iter().sum();
                        prop_assert_eq!(running.largest[c], largest);
                        // The subtraction errs by an ulp of the score, which the power multiplies with ln 2.
                        let error = f64::from(scale) * 2e-7 + 4e-6;
                        // The total is that of the integers, each of which may be half of one off, with one tile's largest as 1.
                        let half = if kind == Kind::Integers { 0.5 / f64::from(LARGEST_WEIGHT) } else { 0.0 };
                        let bound = error * total + half * rows as f64;
                        prop_assert!((f64::from(running.total[c]) - total).abs() <= bound, "{isa} {kind:?}");
                        let rounded = if kind == Kind::Bf16 { 0.004 } else { 0.0 };
                        for (tile, n) in [(0, first), (first, second)] {
                            let most = exact[tile..tile + n].iter().copied().fold(0.0, f64::max);
                            for r in tile..tile + n {
                                let bound = exact[r] * (error + rounded) + most * half * 1.001 + 1e-30;
                                prop_assert!((weights[r * COLUMNS + c] - exact[r]).abs() <= bound, "{isa} {kind:?}");
                            }
                        }
                    }
                }
            }
        }
    }
}
