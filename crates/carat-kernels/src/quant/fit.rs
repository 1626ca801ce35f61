//! The search for good scales of a block of 256.
//!
//! A K-quant block stores its sub-blocks' scales (and minimums) as small integers times one f16. Finding the
//! best of all combinations is out of reach, so it is done in two steps:
//!
//! 1. Each sub-block alone: a row of initial scales is tried. Each rounds the values to integers; for those
//!    integers the best real scale (and minimum) follows in closed form by weighted least squares. The trial
//!    with the least error wins.
//! 2. The largest scale fixes the f16 factor. With the factor as it is after rounding, each sub-block tries
//!    the stored integers next to its ideal ones, rounds its values anew and keeps the best.
//!
//! Errors are weighted towards large values, which matter more in a dot product: by
//! `|x| (rms + |x|)` with a symmetric grid and by `rms + |x|` with a minimum. Everything is computed on values divided by the block's largest
//! magnitude, so that no square under- or overflows. Sums run in eight lanes, which compilers turn into
//! vector code, and are therefore the same on every machine.

use half::f16;

/// Values per block.
const N: usize = 256;
/// Partial sums of a reduction.
const LANES: usize = 8;
/// A block whose values are all below this is zero in every format here: the smallest f16 is 2⁻²⁴.
const SMALLEST: f32 = 1.0 / (1 << 26) as f32;

/// The search of a format with scale and minimum, `value = d sc q - dmin mn`.
pub(super) struct AffineGrid {
    /// Largest `q`.
    pub(super) q_max: u8,
    /// Largest stored scale and minimum.
    pub(super) scale_max: u8,
    /// Trial t spreads the range of the values over `q_max + first + t * step` steps.
    pub(super) first: f32,
    /// See `first`.
    pub(super) step: f32,
    /// Number of trials.
    pub(super) n_steps: u8,
}

/// A block of `S` sub-blocks with scale and minimum.
pub(super) struct Affine<const S: usize> {
    pub(super) d: f32,
    pub(super) dmin: f32,
    pub(super) scales: [u8; S],
    pub(super) mins: [u8; S],
    pub(super) q: [u8; N],
}

/// The search of a format without a minimum, `value = d sc q`.
pub(super) struct SymmetricGrid {
    /// `q` is in `-q_half .. q_half`.
    pub(super) q_half: u8,
    /// The stored scale is in `-scale_half .. scale_half`.
    pub(super) scale_half: u8,
    /// Trial t maps the largest value to `q_half + first + t * step`.
    pub(super) first: f32,
    /// See `first`.
    pub(super) step: f32,
    /// Number of trials.
    pub(super) n_steps: u8,
}

/// A block of 16 sub-blocks of 16 without minimum.
pub(super) struct Symmetric {
    pub(super) d: f32,
    pub(super) scales: [i8; 16],
    pub(super) q: [i8; N],
}

/// Fits `S` sub-blocks of `M` values, `M * S = 256`.
pub(super) fn affine<const M: usize, const S: usize>(values: &[f32; N], grid: &AffineGrid) -> Affine<S> {
    let mut fitted = Affine {
        d: 0.0,
        dmin: 0.0,
        scales: [0; S],
        mins: [0; S],
        q: [0; N],
    };
    let Some((x, unit)) = normalized(values) else {
        return fitted;
    };
    let sub_blocks = x.as_chunks::<M>().0;
    let (mut scales, mut mins) = ([0.0; S], [0.0; S]);
    for (j, x) in sub_blocks.iter().enumerate() {
        (scales[j], mins[j]) = fit_affine(x, &affine_weights(x), grid);
    }
    let top = f32::from(grid.scale_max);
    fitted.d = f16_factor(scales.iter().fold(0.0, |max, s| s.max(max)) / top * unit);
    fitted.dmin = f16_factor(mins.iter().fold(0.0, |max, m| m.max(max)) / top * unit);
    let (d, dmin) = (fitted.d / unit, fitted.dmin / unit);
    let q_max = f32::from(grid.q_max);
    for (j, (x, q)) in sub_blocks.iter().zip(fitted.q.as_chunks_mut::<M>().0).enumerate() {
        let weights = affine_weights(x);
        let mut best = f32::MAX;
        for mn in neighbours(ratio(mins[j], dmin), 0.0, top) {
            for sc in neighbours(ratio(scales[j], d), 0.0, top) {
                let trial = round_affine(x, d * sc, dmin * mn, q_max);
                let error = squared_error(x, &weights, &trial, d * sc, dmin * mn);
                if error < best {
                    best = error;
                    (fitted.scales[j], fitted.mins[j]) = (sc as u8, mn as u8);
                    *q = trial.map(|q| q as u8);
                }
            }
        }
    }
    fitted
}

/// Fits 16 sub-blocks of 16 values.
pub(super) fn symmetric(values: &[f32; N], grid: &SymmetricGrid) -> Symmetric {
    let mut fitted = Symmetric {
        d: 0.0,
        scales: [0; 16],
        q: [0; N],
    };
    let Some((x, unit)) = normalized(values) else {
        return fitted;
    };
    let sub_blocks = x.as_chunks::<16>().0;
    let q_half = f32::from(grid.q_half);
    let mut scales = [0.0; 16];
    for (scale, x) in scales.iter_mut().zip(sub_blocks) {
        *scale = fit_symmetric(x, &symmetric_weights(x), grid);
    }
    // The scale of largest magnitude becomes -scale_half, where the stored range reaches one further.
    let largest = scales
        .iter()
        .fold(0.0, |max: f32, s| if s.abs() > max.abs() { *s } else { max });
    let half = f32::from(grid.scale_half);
    fitted.d = f16_factor(largest / -half * unit);
    let d = fitted.d / unit;
    for (j, (x, q)) in sub_blocks
        .iter()
        .zip(fitted.q.as_chunks_mut::<16>().0)
        .enumerate()
    {
        let weights = symmetric_weights(x);
        let mut best = f32::MAX;
        for sc in neighbours(ratio(scales[j], d), -half, half - 1.0) {
            let inverse = ratio(1.0, d * sc);
            let trial = x.map(|x| clamp(round(x * inverse), -q_half, q_half - 1.0));
            let error = squared_error(x, &weights, &trial, d * sc, 0.0);
            if error < best {
                best = error;
                fitted.scales[j] = sc as i8;
                *q = trial.map(|q| q as i8);
            }
        }
    }
    fitted
}

/// The values divided by their largest magnitude, and that magnitude. `None` for a block of zeros.
fn normalized(values: &[f32; N]) -> Option<([f32; N], f32)> {
    let unit = values.iter().fold(0.0, |max: f32, v| v.abs().max(max));
    (unit >= SMALLEST).then(|| (values.map(|v| v / unit), unit))
}

/// `rms + |x|`: not zero where a value is zero, because a minimum moves those too.
fn affine_weights<const M: usize>(x: &[f32; M]) -> [f32; M] {
    let rms = root_mean_square(x);
    x.map(|x| rms + x.abs())
}

/// `|x| (rms + |x|)`: steep, because a zero costs nothing on a symmetric grid, yet not so steep that one large
/// value alone decides.
fn symmetric_weights(x: &[f32; 16]) -> [f32; 16] {
    let rms = root_mean_square(x);
    x.map(|x| x.abs() * (rms + x.abs()))
}

fn root_mean_square<const M: usize>(x: &[f32; M]) -> f32 {
    (sum::<M>(|i| x[i] * x[i]) / M as f32).sqrt()
}

/// The scale and the minimum `m >= 0` of `x = scale q - m` with the least weighted error found.
fn fit_affine<const M: usize>(x: &[f32; M], w: &[f32; M], grid: &AffineGrid) -> (f32, f32) {
    let lowest = x.iter().fold(0.0, |min: f32, v| v.min(min));
    let range = x.iter().fold(lowest, |max: f32, v| v.max(max)) - lowest;
    if range < SMALLEST {
        return (0.0, -lowest);
    }
    let q_max = f32::from(grid.q_max);
    let (sum_w, sum_x) = (sum::<M>(|i| w[i]), sum::<M>(|i| w[i] * x[i]));
    // The plain grid over the range is the one to beat; where all values are alike it is the only one.
    let plain = range / q_max;
    let mut best = (
        squared_error(x, w, &round_affine(x, plain, -lowest, q_max), plain, -lowest),
        plain,
        -lowest,
    );
    for t in 0..grid.n_steps {
        let steps = q_max + grid.first + f32::from(t) * grid.step;
        let q = round_affine(x, range / steps, -lowest, q_max);
        let sum_q = sum::<M>(|i| w[i] * q[i]);
        let sum_qq = sum::<M>(|i| w[i] * q[i] * q[i]);
        let sum_xq = sum::<M>(|i| w[i] * x[i] * q[i]);
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
        let mut min = (sum_q * sum_xq - sum_qq * sum_x) / determinant;
        if min < 0.0 {
            // The formats cannot add, so the best allowed line goes through zero.
            (scale, min) = (sum_xq / sum_qq, 0.0);
        }
        let error = squared_error(x, w, &q, scale, min);
        if error < best.0 {
            best = (error, scale, min);
        }
    }
    (best.1, best.2)
}

/// The scale of `x = scale q` with the least weighted error found.
fn fit_symmetric(x: &[f32; 16], w: &[f32; 16], grid: &SymmetricGrid) -> f32 {
    let largest = x
        .iter()
        .fold(0.0, |max: f32, v| if v.abs() > max.abs() { *v } else { max });
    if largest.abs() < SMALLEST {
        return 0.0;
    }
    let q_half = f32::from(grid.q_half);
    // For given q the best scale leaves an error of Σ w x² - (Σ w x q)² / Σ w q²: the gain is to be largest.
    let (mut best_gain, mut best_scale) = (0.0, 0.0);
    for t in 0..grid.n_steps {
        // Negative: the largest value lands on -q_half, where the range reaches one further.
        let inverse = -(q_half + grid.first + f32::from(t) * grid.step) / largest;
        let q = x.map(|x| clamp(round(x * inverse), -q_half, q_half - 1.0));
        let sum_xq = sum::<16>(|i| w[i] * x[i] * q[i]);
        let sum_qq = sum::<16>(|i| w[i] * q[i] * q[i]);
        if sum_qq > 0.0 && sum_xq * sum_xq > best_gain * sum_qq {
            best_gain = sum_xq * sum_xq / sum_qq;
            best_scale = sum_xq / sum_qq;
        }
    }
    best_scale
}

/// `q` of each value for `x = scale q - min`, in `0 ..= q_max`.
#[inline(always)]
fn round_affine<const M: usize>(x: &[f32; M], scale: f32, min: f32, q_max: f32) -> [f32; M] {
    let inverse = ratio(1.0, scale);
    x.map(|x| clamp(round((x + min) * inverse), 0.0, q_max))
}

#[inline(always)]
fn squared_error<const M: usize>(x: &[f32; M], w: &[f32; M], q: &[f32; M], scale: f32, min: f32) -> f32 {
    sum::<M>(|i| {
        let difference = scale * q[i] - min - x[i];
        w[i] * difference * difference
    })
}

/// The integer next to `ideal` and its two neighbours, those that are in the range.
fn neighbours(ideal: f32, low: f32, high: f32) -> impl Iterator<Item = f32> {
    let middle = clamp(round(ideal), low, high);
    [middle, middle - 1.0, middle + 1.0]
        .into_iter()
        .filter(move |v| (low..=high).contains(v))
}

/// Rounded to f16, but not to zero: with a factor too small for f16 the stored integers become smaller.
fn f16_factor(factor: f32) -> f32 {
    let smallest = f16::from_bits(1).to_f32();
    let rounded = f16::from_f32(factor).to_f32();
    if rounded == 0.0 && factor != 0.0 {
        smallest.copysign(factor)
    } else {
        rounded
    }
}

/// `a / b`, and 0 where `b` is 0.
#[inline(always)]
fn ratio(a: f32, b: f32) -> f32 {
    if b == 0.0 { 0.0 } else { a / b }
}

/// To the nearest integer, ties to even, for magnitudes below 2²².
#[inline(always)]
fn round(v: f32) -> f32 {
    // At 1.5 * 2²³ the numbers are one apart, so the addition rounds. Unlike f32::round_ties_even this needs no
    // instruction beyond the oldest vector sets.
    const SHIFT: f32 = 12_582_912.0;
    (v + SHIFT) - SHIFT
}

/// Written so that it becomes two vector instructions; `f32::clamp` also looks after NaN.
#[inline(always)]
fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    if v < high { v } else { high }
}

/// The sum of `term(i)` over `0..M`, in eight lanes.
#[inline(always)]
fn sum<const M: usize>(term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    for start in (0..M).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}
