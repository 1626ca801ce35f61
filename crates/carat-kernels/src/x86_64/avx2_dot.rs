//! Rows of a quantized matrix times quantized activation rows, AVX2.
//!
//! `vpmaddubsw` multiplies unsigned by signed bytes and adds pairs in 16 bits: 2 * 63 * 127 fits, so formats of
//! up to 6 bits take it as they are. 8-bit codes (offset 128) would overflow: there the weight's sign moves to
//! the activation and the product is |w| * sign(w) x, at most 2 * 128 * 127 = 32,512, and no offset is left.

use std::arch::x86_64::*;

use super::avx2_unpack::Unpack;
use crate::activation::QuantizedRow;
use crate::block::{CHUNK, CHUNK_SCALES, by_format};
use crate::matmul::{RowChunks, RowTask};

/// As [`crate::scalar::dot_rows`], for the formats of [`by_format!`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_rows(task: &RowTask<'_>) {
    by_format!(task.weights.dtype(), F => {
        dot_rows_of::<F>(task)
    }, else {})
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_rows_of<F: Unpack>(task: &RowTask<'_>) {
    for row in task.rows.clone() {
        let chunks = RowChunks::<F>::new(task.weights, row);
        let n = task.x.n_rows();
        let mut t = 0;
        while t < n {
            t += match n - t {
                4.. => dot_tile::<F, 4>(task, &chunks, row, t),
                3 => dot_tile::<F, 3>(task, &chunks, row, t),
                2 => dot_tile::<F, 2>(task, &chunks, row, t),
                _ => dot_tile::<F, 1>(task, &chunks, row, t),
            };
        }
    }
}

/// One row times `T` activation rows from `t` on; returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_tile<F: Unpack, const T: usize>(
    task: &RowTask<'_>,
    chunks: &RowChunks<'_, F>,
    row: usize,
    t: usize,
) -> usize {
    let x: [QuantizedRow<'_>; T] = std::array::from_fn(|i| task.x.row(t + i));
    let mut sums = [_mm256_setzero_ps(); T];
    for c in 0..task.x.n_cols() / CHUNK {
        // SAFETY: `bytes` gives one whole chunk; the features are those of this function.
        let w = unsafe { F::unpack(chunks.bytes(c).as_ptr()) };
        for (x, sum) in x.iter().zip(&mut sums) {
            let mut s = *sum;
            for half in 0..2 {
                let at = CHUNK_SCALES * c + 8 * half;
                // SAFETY: an activation row has a whole number of chunks, `c` is below it.
                let (x_scale, x_sum) = unsafe {
                    (
                        _mm256_loadu_ps(x.scale.as_ptr().add(at)),
                        _mm256_loadu_ps(x.sum.as_ptr().add(at)),
                    )
                };
                if F::HAS_MIN {
                    s = _mm256_fmadd_ps(w.min[half], x_sum, s);
                } else if F::OFFSET != 128 {
                    let bias = _mm256_mul_ps(w.scale[half], _mm256_set1_ps(-(F::OFFSET as f32)));
                    s = _mm256_fmadd_ps(bias, x_sum, s);
                }
                let scale = _mm256_mul_ps(w.scale[half], x_scale);
                for g in 0..4 {
                    // SAFETY: 32 bytes of the chunk's 256.
                    let q = unsafe {
                        _mm256_loadu_si256(x.q.as_ptr().add(CHUNK * c + 32 * (4 * half + g)).cast())
                    };
                    let mut dot = dot32::<F>(w.q[4 * half + g], q);
                    if task.x.is_wide() {
                        // SAFETY: wide rows have as many low bytes.
                        let low = unsafe {
                            _mm256_loadu_si256(x.low.as_ptr().add(CHUNK * c + 32 * (4 * half + g)).cast())
                        };
                        dot =
                            _mm256_add_epi32(_mm256_slli_epi32::<8>(dot), dot32::<F>(w.q[4 * half + g], low));
                    }
                    s = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), spread(scale, g), s);
                }
            }
            *sum = s;
        }
    }
    for (i, sum) in sums.into_iter().enumerate() {
        task.out.set(t + i, row, reduce(sum));
    }
    T
}

/// 32 products, four to a lane.
#[inline]
#[target_feature(enable = "avx2")]
fn dot32<F: Unpack>(w: __m256i, x: __m256i) -> __m256i {
    let pairs = if F::OFFSET == 128 {
        let signed = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
        _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
    } else {
        _mm256_maddubs_epi16(w, x)
    };
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
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
