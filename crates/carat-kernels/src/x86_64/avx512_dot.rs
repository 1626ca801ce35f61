//! Rows of a quantized matrix times few quantized activation rows, AVX-512 with VNNI: decode.
//!
//! Bound: each weight byte is read once for all of up to [`MAX_X`] activation rows, so a decode step takes at
//! least weight bytes over memory bandwidth. Per chunk of 256 and row there are some 40 instructions beside
//! the loads (4 `vpdpbusd`, 4 conversions, 4 FMA, 5 products and sums, 4 permutes and the unpacking), about 15
//! cycles for the 144 bytes of a Q4_K block: near 10 bytes a cycle and core, which is what one core can read.
//!
//! ```text
//! lane        0..4        4..8        8..12       12..16         register j of a chunk
//! elements  64j+0..16   +16..32     +32..48     +48..64          each lane the sum of four products
//! scale      s[4j]       s[4j+1]     s[4j+2]     s[4j+3]         one permute of scale * x.scale
//! ```

use std::arch::x86_64::*;

use super::avx512_unpack::{Unpack, Unpacked};
use crate::activation::QuantizedRow;
use crate::block::{CHUNK, CHUNK_SCALES, by_format};
use crate::matmul::{RowChunks, RowTask};

/// Activation rows that are multiplied with a weight row while it is in registers.
const MAX_X: usize = 4;

/// As [`crate::scalar::dot_rows`], for the formats of [`by_format!`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(crate) fn dot_rows(task: &RowTask<'_>) {
    by_format!(task.weights.dtype(), F => {
        if task.x.is_wide() { dot_rows_of::<F, true>(task) } else { dot_rows_of::<F, false>(task) }
    }, else {})
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn dot_rows_of<F: Unpack, const WIDE: bool>(task: &RowTask<'_>) {
    let (mut row, end) = (task.rows.start, task.rows.end);
    let n_x = task.x.n_rows();
    while row < end {
        // Four rows share the loads of one activation row; with more activation rows fewer are enough and leave
        // registers for the sums.
        row += match end - row {
            4.. if n_x == 1 => dot_row_group::<F, WIDE, 4>(task, row),
            2.. if n_x <= 2 => dot_row_group::<F, WIDE, 2>(task, row),
            _ => dot_row_group::<F, WIDE, 1>(task, row),
        };
    }
}

/// `R` rows times all activation rows; returns `R`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn dot_row_group<F: Unpack, const WIDE: bool, const R: usize>(task: &RowTask<'_>, row: usize) -> usize {
    let chunks: [RowChunks<'_, F>; R] = std::array::from_fn(|r| RowChunks::new(task.weights, row + r));
    let n = task.x.n_rows();
    let mut t = 0;
    while t < n {
        t += match n - t {
            MAX_X.. => dot_tile::<F, WIDE, R, 4>(task, &chunks, row, t),
            3 => dot_tile::<F, WIDE, R, 3>(task, &chunks, row, t),
            2 => dot_tile::<F, WIDE, R, 2>(task, &chunks, row, t),
            _ => dot_tile::<F, WIDE, R, 1>(task, &chunks, row, t),
        };
    }
    R
}

/// Repeats `body` for `i` in `0..n`, written out: a loop over registers that the compiler leaves a loop keeps them in
/// memory.
macro_rules! unrolled {
    ($n:expr, |$i:ident| $body:block) => {
        unrolled!(@step $n, $i, $body, 0);
        unrolled!(@step $n, $i, $body, 1);
        unrolled!(@step $n, $i, $body, 2);
        unrolled!(@step $n, $i, $body, 3);
    };
    (@step $n:expr, $i:ident, $body:block, $at:literal) => {
        if $n > $at {
            let $i: usize = $at;
            $body
        }
    };
}

/// `R` rows times `T` activation rows from `t` on, both up to four; returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn dot_tile<F: Unpack, const WIDE: bool, const R: usize, const T: usize>(
    task: &RowTask<'_>,
    chunks: &[RowChunks<'_, F>; R],
    row: usize,
    t: usize,
) -> usize {
    let x: [QuantizedRow<'_>; T] = std::array::from_fn(|i| task.x.row(t + i));
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    let ahead = prefetch_distance(task.weights.row_bytes(), R);
    let spread: [__m512i; 4] = [lane_index(0), lane_index(4), lane_index(8), lane_index(12)];
    for c in 0..task.x.n_cols() / CHUNK {
        unrolled!(R, |r| {
            let bytes = chunks[r].bytes(c).as_ptr();
            prefetch::<F>(bytes.wrapping_add(ahead));
            // SAFETY: `bytes` begins one whole chunk; the features are those of this function.
            let w = unsafe { F::unpack(bytes) };
            let bias = if F::HAS_MIN {
                w.min
            } else {
                _mm512_mul_ps(w.scale, _mm512_set1_ps(-(F::OFFSET as f32)))
            };
            unrolled!(T, |i| {
                // SAFETY: an activation row has a whole number of chunks, `c` is below it.
                sums[r][i] = _mm512_add_ps(sums[r][i], unsafe {
                    product::<WIDE>(&w, bias, &x[i], c, &spread)
                });
            });
        });
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            task.out.set(t + i, row + r, _mm512_reduce_add_ps(sum));
        }
    }
    T
}

/// One chunk of a weight row times chunk `c` of an activation row, to be summed over lanes. Two chains of sums, which
/// nothing of the chunk before has to wait for.
///
/// # Safety
/// `c` is below the activation row's number of chunks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
unsafe fn product<const WIDE: bool>(
    w: &Unpacked,
    bias: __m512,
    x: &QuantizedRow<'_>,
    c: usize,
    spread: &[__m512i; 4],
) -> __m512 {
    // SAFETY: the caller's word: a chunk has 256 elements and 16 scales and sums.
    let (x_scale, x_sum) = unsafe {
        (
            _mm512_loadu_ps(x.scale.as_ptr().add(CHUNK_SCALES * c)),
            _mm512_loadu_ps(x.sum.as_ptr().add(CHUNK_SCALES * c)),
        )
    };
    let scale = _mm512_mul_ps(w.scale, x_scale);
    let mut sums = [_mm512_mul_ps(bias, x_sum), _mm512_setzero_ps()];
    unrolled!(4, |j| {
        // SAFETY: as above, 64 elements of the chunk.
        let high = unsafe { _mm512_loadu_si512(x.q.as_ptr().add(CHUNK * c + 64 * j).cast()) };
        let mut dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w.q[j], high);
        if WIDE {
            // SAFETY: wide rows have as many low bytes.
            let low = unsafe { _mm512_loadu_si512(x.low.as_ptr().add(CHUNK * c + 64 * j).cast()) };
            dot = _mm512_dpbusd_epi32(_mm512_slli_epi32::<8>(dot), w.q[j], low);
        }
        let scale = _mm512_permutexvar_ps(spread[j], scale);
        sums[j % 2] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sums[j % 2]);
    });
    _mm512_add_ps(sums[0], sums[1])
}

/// How far ahead of its use a weight byte is asked for: the same place in the next group of `rows` rows, or in
/// a later one when groups are short. Rows are read side by side, which the processor's own prefetcher takes for
/// as many short streams and follows too late.
#[inline]
fn prefetch_distance(row_bytes: usize, rows: usize) -> usize {
    let group = (row_bytes * rows).max(1);
    group * PREFETCH_BYTES.div_ceil(group)
}

/// Some 100 ns of one core's memory bandwidth: the time that a read takes.
const PREFETCH_BYTES: usize = 4096;

/// Asks for the cache lines of the chunk that begins at `bytes`, which need not be mapped.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn prefetch<F: Unpack>(bytes: *const u8) {
    unrolled!(F::CHUNK_BYTES.div_ceil(64), |line| {
        _mm_prefetch::<_MM_HINT_T0>(bytes.wrapping_add(64 * line).cast());
    });
}

/// `first` in lanes 0..4, `first + 1` in lanes 4..8 and so on.
#[inline]
#[target_feature(enable = "avx512f")]
fn lane_index(first: i32) -> __m512i {
    let step = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    _mm512_add_epi32(step, _mm512_set1_epi32(first))
}
