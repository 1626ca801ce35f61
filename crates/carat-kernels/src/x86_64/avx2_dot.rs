//! Rows of a quantized matrix times few quantized activation rows, AVX2 with or without AVX-VNNI: decode.
//!
//! Bound: as in [`super::avx512_matmul`], weight bytes over memory bandwidth. For 32 elements of a row and one activation
//! row there are two instructions of product (one with VNNI), a conversion, two for the scales and three to five of
//! unpacking: with the scales of the chunk some 80 for the 144 bytes of a Q4_K block, 20 cycles of four ports, 7 bytes
//! a cycle and core.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits: 2 * 63 * 127 fits, so formats of up to
//! 6 bits take it as they are. 8-bit codes (offset 128) would overflow: there the weight's sign moves to the activation
//! and the product is |w| * sign(w) x, at most 2 * 128 * 127 = 32,512, and no offset is left.

use std::arch::x86_64::*;

use super::avx2_unit::{Kernel, Madd, Unit, Vnni};
use super::avx2_unpack::Unpack;
use crate::activation::QuantizedTile;
use crate::block::{CHUNK, CHUNK_SCALES, by_format};
use crate::matmul::{RowChunks, RowTask};
use crate::simd::unrolled;

/// How far ahead of its use a weight byte is asked for: as for AVX-512, the time of a read at one core's bandwidth.
const PREFETCH_BYTES: usize = 4096;

/// As [`crate::scalar::dot_rows`], for the formats of [`by_format!`].
///
/// # Safety
/// AVX2, FMA and F16C are there.
pub(crate) unsafe fn dot_rows(task: &RowTask<'_>) {
    // SAFETY: the caller's word.
    unsafe { dot_rows_by(Madd, task) }
}

/// As [`dot_rows`], with AVX-VNNI.
///
/// # Safety
/// AVX2, FMA, F16C and AVX-VNNI are there.
pub(crate) unsafe fn dot_rows_vnni(task: &RowTask<'_>) {
    // SAFETY: the caller's word.
    unsafe { dot_rows_by(Vnni, task) }
}

/// # Safety
/// AVX2, FMA, F16C and the instructions of `unit` are there.
unsafe fn dot_rows_by<U: Unit>(unit: U, task: &RowTask<'_>) {
    // SAFETY: the caller's word.
    unsafe {
        by_format!(task.weights.dtype(), F => {
            if task.x.is_wide() {
                dot_rows_of::<U, F, true>(unit, task)
            } else {
                dot_rows_of::<U, F, false>(unit, task)
            }
        }, else {})
    }
}

/// # Safety
/// As [`dot_rows_by`].
unsafe fn dot_rows_of<U: Unit, F: Unpack, const WIDE: bool>(unit: U, task: &RowTask<'_>) {
    let n = task.x.n_rows();
    let mut t = 0;
    while t < n {
        // Rows side by side are as many streams from memory; more activation rows leave registers for fewer.
        // SAFETY: the caller's word; as many activation rows are left.
        t += unsafe {
            match n - t {
                4.. => some_x::<U, F, WIDE, 1, 4>(unit, task, t),
                2.. => some_x::<U, F, WIDE, 2, 2>(unit, task, t),
                _ => some_x::<U, F, WIDE, 4, 1>(unit, task, t),
            }
        };
    }
}

/// All rows, `R` at a time, times `T` activation rows from `t` on; returns `T`.
///
/// # Safety
/// As [`dot_rows_by`].
unsafe fn some_x<U: Unit, F: Unpack, const WIDE: bool, const R: usize, const T: usize>(
    unit: U,
    task: &RowTask<'_>,
    t: usize,
) -> usize {
    let (mut row, end) = (task.rows.start, task.rows.end);
    while row < end {
        // SAFETY: the caller's word.
        row += unsafe {
            if end - row >= R {
                Tile::<F, WIDE, R, T>::run_at(unit, task, row, t)
            } else {
                Tile::<F, WIDE, 1, T>::run_at(unit, task, row, t)
            }
        };
    }
    T
}

/// `R` rows from `row` on times `T` activation rows from `t` on, both up to four.
struct Tile<'a, F: Unpack, const WIDE: bool, const R: usize, const T: usize> {
    task: &'a RowTask<'a>,
    chunks: [RowChunks<'a, F>; R],
    row: usize,
    t: usize,
}

impl<'a, F: Unpack, const WIDE: bool, const R: usize, const T: usize> Tile<'a, F, WIDE, R, T> {
    /// Returns `R`.
    ///
    /// # Safety
    /// As [`dot_rows_by`].
    unsafe fn run_at<U: Unit>(unit: U, task: &'a RowTask<'a>, row: usize, t: usize) -> usize {
        let chunks = std::array::from_fn(|r| RowChunks::new(task.weights, row + r));
        // SAFETY: the caller's word.
        unsafe { unit.run(&mut Self { task, chunks, row, t }) };
        R
    }
}

impl<F: Unpack, const WIDE: bool, const R: usize, const T: usize> Kernel for Tile<'_, F, WIDE, R, T> {
    #[inline(always)]
    unsafe fn run<U: Unit>(&mut self, unit: U) {
        let Tile { task, chunks, row, t } = &*self;
        let (row, t) = (*row, *t);
        let x: [QuantizedTile<'_>; T] = std::array::from_fn(|i| task.x.tile(t + i));
        let group = (task.weights.row_bytes() * R).max(1);
        let ahead = group * PREFETCH_BYTES.div_ceil(group);
        // SAFETY: the caller's word; `bytes` begins a whole chunk, and activation rows have a whole number of chunks.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); T]; R];
            for c in 0..task.x.n_cols() / CHUNK {
                unrolled!(R, |r| {
                    let bytes = chunks[r].bytes(c).as_ptr();
                    unrolled!(F::CHUNK_BYTES.div_ceil(64), |line| {
                        _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(ahead + 64 * line).cast());
                    });
                    // Of a last chunk that is half full the other half is not multiplied: the activations are zero there.
                    if task.weights.n_cols() > CHUNK * c + CHUNK / 2 {
                        add_chunk::<U, F, WIDE, T, 8>(unit, bytes, &x, c, &mut sums[r]);
                    } else {
                        add_chunk::<U, F, WIDE, T, 4>(unit, bytes, &x, c, &mut sums[r]);
                    }
                });
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (i, sum) in sums.into_iter().enumerate() {
                    task.out.set(t + i, row + r, reduce(sum));
                }
            }
        }
    }
}

/// Adds the first `G` blocks of 32 of one chunk of a weight row times chunk `c` of `T` activation rows. Two chains of
/// sums, which nothing of the chunk before has to wait for.
///
/// # Safety
/// - As [`dot_rows_by`].
/// - `bytes` begins a whole chunk, and `c` is below the activation rows' number of chunks.
#[inline(always)]
unsafe fn add_chunk<U: Unit, F: Unpack, const WIDE: bool, const T: usize, const G: usize>(
    unit: U,
    bytes: *const u8,
    x: &[QuantizedTile<'_>; T],
    c: usize,
    sums: &mut [__m256; T],
) {
    // SAFETY: the caller's word: a chunk has 256 elements, 16 sums, 8 scales.
    unsafe {
        let (scale, min) = F::scales(bytes);
        let mut parts = [[_mm256_setzero_ps(); 2]; T];
        if F::HAS_MIN || U::steps(F::BITS) > 0 {
            unrolled!(2, |half| {
                let bias = if F::HAS_MIN {
                    min[half]
                } else {
                    _mm256_mul_ps(scale[half], _mm256_set1_ps(-(F::OFFSET as f32)))
                };
                unrolled!(T, |i| {
                    let x_sum = _mm256_loadu_ps(x[i].sum.as_ptr().add(CHUNK_SCALES * c + 8 * half));
                    parts[i][half] = _mm256_mul_ps(bias, x_sum);
                });
            });
        }
        unrolled!(G, |g| {
            let w = F::codes(bytes, g);
            let scale = spread(scale[g / 4], g % 4);
            let at = CHUNK * c + 32 * g;
            unrolled!(T, |i| {
                let mut dot = products::<U, F>(unit, w, _mm256_loadu_si256(x[i].q.as_ptr().add(at).cast()));
                if WIDE {
                    let low = products::<U, F>(unit, w, _mm256_loadu_si256(x[i].low.as_ptr().add(at).cast()));
                    dot = _mm256_add_epi32(_mm256_slli_epi32::<8>(dot), low);
                }
                let factor =
                    _mm256_mul_ps(scale, _mm256_broadcast_ss(&*x[i].scale32.as_ptr().add(8 * c + g)));
                parts[i][g % 2] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, parts[i][g % 2]);
            });
        });
        unrolled!(T, |i| {
            sums[i] = _mm256_add_ps(sums[i], _mm256_add_ps(parts[i][0], parts[i][1]));
        });
    }
}

/// 32 products, four to a lane.
///
/// # Safety
/// AVX2 and the instructions of `unit` are there.
#[inline(always)]
unsafe fn products<U: Unit, F: Unpack>(unit: U, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller's word.
    unsafe {
        if U::steps(F::BITS) == 0 {
            let signed = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
            unit.products(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
        } else {
            unit.products(w, x)
        }
    }
}

/// Scale `2 g` in the lower four lanes, `2 g + 1` in the upper.
#[inline]
#[target_feature(enable = "avx2")]
fn spread(scale: __m256, g: usize) -> __m256 {
    let g = 2 * g as i32;
    _mm256_permutevar8x32_ps(scale, _mm256_setr_epi32(g, g, g, g, g + 1, g + 1, g + 1, g + 1))
}

#[inline]
#[target_feature(enable = "avx2")]
fn reduce(a: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}
