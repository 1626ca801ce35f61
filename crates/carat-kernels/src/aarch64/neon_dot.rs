//! Rows of a quantized matrix times few quantized activation rows, NEON with or without `dotprod`: decode.
//!
//! Bound: weight bytes over memory bandwidth. For 32 elements of a row and one activation row there are two
//! instructions of product (eight without `dotprod`), a conversion and an FMA, and three to five of unpacking.

use std::arch::aarch64::*;

use super::neon_unit::Unit;
use super::neon_unpack::Unpack;
use super::prefetch;
use crate::activation::QuantizedTile;
use crate::block::{CHUNK, CHUNK_SCALES, by_format};
use crate::matmul::{RowChunks, RowTask};
use crate::simd::unrolled;

/// How far ahead of its use a weight byte is asked for.
const PREFETCH_BYTES: usize = 4096;

/// As [`crate::scalar::dot_rows`], for the formats of [`by_format!`].
pub(crate) fn dot_rows<U: Unit>(unit: U, task: &RowTask<'_>) {
    by_format!(task.weights.dtype(), F => {
        if task.x.is_wide() { dot_rows_of::<U, F, true>(unit, task) } else { dot_rows_of::<U, F, false>(unit, task) }
    }, else {})
}

fn dot_rows_of<U: Unit, F: Unpack, const WIDE: bool>(unit: U, task: &RowTask<'_>) {
    let n = task.x.n_rows();
    for row in task.rows.clone() {
        let chunks = RowChunks::<F>::new(task.weights, row);
        let mut t = 0;
        while t < n {
            // SAFETY: every 64-bit ARM processor has NEON; as many activation rows are left.
            t += unsafe {
                match n - t {
                    4.. => dot_tile::<U, F, WIDE, 4>(unit, task, &chunks, row, t),
                    2.. => dot_tile::<U, F, WIDE, 2>(unit, task, &chunks, row, t),
                    _ => dot_tile::<U, F, WIDE, 1>(unit, task, &chunks, row, t),
                }
            };
        }
    }
}

/// One row times `T` activation rows from `t` on, up to four; returns `T`.
#[target_feature(enable = "neon")]
fn dot_tile<U: Unit, F: Unpack, const WIDE: bool, const T: usize>(
    unit: U,
    task: &RowTask<'_>,
    chunks: &RowChunks<'_, F>,
    row: usize,
    t: usize,
) -> usize {
    let x: [QuantizedTile<'_>; T] = std::array::from_fn(|i| task.x.tile(t + i));
    let mut sums = [vdupq_n_f32(0.0); T];
    for c in 0..task.x.n_cols() / CHUNK {
        let bytes = chunks.bytes(c).as_ptr();
        unrolled!(F::CHUNK_BYTES.div_ceil(64), |line| {
            prefetch(bytes.wrapping_add(PREFETCH_BYTES + 64 * line));
        });
        // SAFETY: `bytes` begins a whole chunk, and activation rows have a whole number of chunks.
        unsafe { add_chunk::<U, F, WIDE, T>(unit, bytes, &x, c, &mut sums) };
    }
    for (i, sum) in sums.into_iter().enumerate() {
        task.out.set(t + i, row, vaddvq_f32(sum));
    }
    T
}

/// Adds one chunk of a weight row times chunk `c` of `T` activation rows.
///
/// # Safety
/// `bytes` begins a whole chunk, and `c` is below the activation rows' number of chunks.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_chunk<U: Unit, F: Unpack, const WIDE: bool, const T: usize>(
    unit: U,
    bytes: *const u8,
    x: &[QuantizedTile<'_>; T],
    c: usize,
    sums: &mut [float32x4_t; T],
) {
    // SAFETY: the caller's word: a chunk has 256 elements, 16 sums, 8 scales.
    unsafe {
        let (scale, min) = F::scales(bytes);
        if F::HAS_MIN {
            for j in 0..CHUNK_SCALES / 4 {
                let min = vld1q_f32(min.as_ptr().add(4 * j));
                for i in 0..T {
                    let x_sum = vld1q_f32(x[i].sum.as_ptr().add(CHUNK_SCALES * c + 4 * j));
                    sums[i] = vfmaq_f32(sums[i], min, x_sum);
                }
            }
        }
        unrolled!(8, |g| {
            let w = F::codes(bytes, g);
            for i in 0..T {
                let mut dots = [vdupq_n_s32(0); 2];
                for half in 0..2 {
                    // Both halves in one sum where they have one scale.
                    let to = &mut dots[if F::SUB == 16 { half } else { 0 }];
                    let at = CHUNK * c + 32 * g + 16 * half;
                    *to = unit.dot(*to, w[half], vld1q_s8(x[i].q.as_ptr().add(at)));
                }
                if WIDE {
                    dots = [vshlq_n_s32::<8>(dots[0]), vshlq_n_s32::<8>(dots[1])];
                    for half in 0..2 {
                        let to = &mut dots[if F::SUB == 16 { half } else { 0 }];
                        let at = CHUNK * c + 32 * g + 16 * half;
                        *to = unit.dot(*to, w[half], vld1q_s8(x[i].low.as_ptr().add(at)));
                    }
                }
                let x_scale = *x[i].scale32.get_unchecked(8 * c + g);
                for half in 0..32 / F::SUB {
                    let factor = scale[2 * g + half] * x_scale;
                    sums[i] = vfmaq_n_f32(sums[i], vcvtq_f32_s32(dots[half]), factor);
                }
            }
        });
    }
}
