//! A quantized matrix times many quantized activation rows, AVX-512 with VNNI: prefill.
//!
//! A panel of [`PANEL_ROWS`] weight rows is unpacked to bytes once and then multiplied with every activation
//! row, so the unpacking costs next to nothing per token. Nothing is repacked at load time: the weights stay
//! as they are mapped.
//!
//! ```text
//! q      [K/4][2][16][4] u8     four consecutive elements of one row in a lane, 16 rows to a register
//! scale  [K/SUB][2][16]  f32    min likewise
//! ```
//!
//! The tile is 2 registers of rows by [`TILE_X`] activation rows: 12 sums in i32, 12 in f32, 2 registers of
//! weights, 1 broadcast: 27 of 32. For each 32 elements and 16x1 outputs there are 8 `vpdpbusd`, a conversion,
//! a product and an FMA (formats with a min: 2): 8 of 10 (11) on the two multiplying ports, so the ceiling is
//! 80 % (73 %) of the int8 peak. Panels are cut at [`PANEL_COLS`] columns: 64 KiB of `q` and 16 or 32 KiB of
//! scales stay in the L2 cache while the activations stream past.

use std::arch::x86_64::*;

use super::avx512_dot::prefetch;
use super::avx512_unpack::Unpack;
use crate::activation::{QuantizedRow, QuantizedRows};
use crate::block::{CHUNK, CHUNK_SCALES, by_format};
use crate::matmul::{PanelScratch, RowChunks, RowTask};

/// Weight rows of a panel: two registers of 16 lanes.
pub(crate) const PANEL_ROWS: usize = 32;
/// Columns of a panel.
const PANEL_COLS: usize = 2048;
/// Activation rows of a tile.
const TILE_X: usize = 6;
const LANES: usize = 16;

/// As [`crate::scalar::dot_rows`], for up to [`PANEL_ROWS`] rows, best for many activation rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(crate) fn multiply_panel(task: &RowTask<'_>, scratch: &mut PanelScratch) {
    by_format!(task.weights.dtype(), F => {
        multiply::<F>(task, scratch)
    }, else {})
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn multiply<F: Unpack>(task: &RowTask<'_>, scratch: &mut PanelScratch) {
    assert!(
        task.rows.len() <= PANEL_ROWS,
        "a panel has at most {PANEL_ROWS} rows"
    );
    scratch.reserve(PANEL_ROWS * PANEL_COLS, PANEL_ROWS * PANEL_COLS / 16);
    let n_cols = task.x.n_cols();
    let mut first = 0;
    while first < n_cols {
        let cols = first..(first + PANEL_COLS).min(n_cols);
        pack::<F>(task, cols.clone(), scratch);
        if task.x.is_wide() {
            multiply_cols::<F, true>(task, cols.clone(), scratch);
        } else {
            multiply_cols::<F, false>(task, cols.clone(), scratch);
        }
        first = cols.end;
    }
}

/// Unpacks columns `cols` of the rows of `task`; missing rows of the panel are zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn pack<F: Unpack>(task: &RowTask<'_>, cols: std::ops::Range<usize>, scratch: &mut PanelScratch) {
    for group in 0..PANEL_ROWS / LANES {
        let ahead = distance_to_next::<F>(task, &cols, group);
        let chunks: [Option<RowChunks<'_, F>>; LANES] = std::array::from_fn(|r| {
            let row = task.rows.start + LANES * group + r;
            (row < task.rows.end).then(|| RowChunks::new(task.weights, row))
        });
        for (at, c) in (cols.start / CHUNK..cols.end / CHUNK).enumerate() {
            let mut q = [[_mm512_setzero_si512(); LANES]; 4];
            let mut scale = [_mm512_setzero_si512(); LANES];
            let mut min = [_mm512_setzero_si512(); LANES];
            for (r, chunks) in chunks.iter().enumerate() {
                if let Some(chunks) = chunks {
                    let bytes = chunks.bytes(c).as_ptr();
                    prefetch::<F>(bytes.wrapping_offset(ahead));
                    // SAFETY: `bytes` begins one whole chunk; the features are those of this function.
                    let w = unsafe { F::unpack(bytes) };
                    (q[0][r], q[1][r], q[2][r], q[3][r]) = (w.q[0], w.q[1], w.q[2], w.q[3]);
                    (scale[r], min[r]) = (_mm512_castps_si512(w.scale), _mm512_castps_si512(w.min));
                }
            }
            for (j, q) in q.iter_mut().enumerate() {
                transpose(q);
                for (k, lanes) in q.iter().enumerate() {
                    let register = (CHUNK / 4 * at + LANES * j + k) * 2 + group;
                    let to = &mut scratch.q[64 * register..64 * (register + 1)];
                    // SAFETY: `to` has 64 bytes.
                    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), *lanes) };
                }
            }
            store_scales::<F>(&mut scale, &mut scratch.scale, at, group);
            if F::HAS_MIN {
                store_scales::<F>(&mut min, &mut scratch.min, at, group);
            }
        }
    }
}

/// Bytes from a chunk to the one at the same place of what is packed next: the other 16 rows of the panel, its next
/// columns, or the next panel. Sixteen rows read side by side are too many streams for the processor's own prefetcher.
fn distance_to_next<F: Unpack>(task: &RowTask<'_>, cols: &std::ops::Range<usize>, group: usize) -> isize {
    let chunk = F::CHUNK_BYTES as isize;
    let sixteen_rows = (LANES * task.weights.row_bytes()) as isize;
    if group == 0 {
        sixteen_rows
    } else if cols.end < task.x.n_cols() {
        (cols.len() / CHUNK) as isize * chunk - sixteen_rows
    } else {
        sixteen_rows - (cols.start / CHUNK) as isize * chunk
    }
}

/// Writes the scales of one chunk of 16 rows, one register per `SUB` elements.
#[inline]
#[target_feature(enable = "avx512f")]
fn store_scales<F: Unpack>(rows: &mut [__m512i; LANES], to: &mut [f32], at: usize, group: usize) {
    transpose(rows);
    let step = F::SUB / 16;
    for (s, lanes) in rows.iter().step_by(step).enumerate() {
        let register = (CHUNK_SCALES / step * at + s) * 2 + group;
        let to = &mut to[LANES * register..LANES * (register + 1)];
        // SAFETY: `to` has 16 elements.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), *lanes) };
    }
}

/// 16 x 16 transpose of 32-bit lanes: pairs, fours, then 128-bit quarters.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: &mut [__m512i; LANES]) {
    let mut pairs = [_mm512_setzero_si512(); LANES];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = [_mm512_setzero_si512(); LANES];
    for i in 0..4 {
        for half in 0..2 {
            let (a, b) = (pairs[4 * i + half], pairs[4 * i + 2 + half]);
            fours[4 * i + 2 * half] = _mm512_unpacklo_epi64(a, b);
            fours[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    // Now fours[4 i + k], quarter u, holds column 4 u + k of rows 4 i .. 4 i + 4.
    for k in 0..4 {
        let [a, b, c, d] = [fours[k], fours[4 + k], fours[8 + k], fours[12 + k]];
        let (ab_even, ab_odd) = (
            _mm512_shuffle_i32x4::<0x88>(a, b),
            _mm512_shuffle_i32x4::<0xdd>(a, b),
        );
        let (cd_even, cd_odd) = (
            _mm512_shuffle_i32x4::<0x88>(c, d),
            _mm512_shuffle_i32x4::<0xdd>(c, d),
        );
        rows[k] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
        rows[8 + k] = _mm512_shuffle_i32x4::<0xdd>(ab_even, cd_even);
        rows[4 + k] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        rows[12 + k] = _mm512_shuffle_i32x4::<0xdd>(ab_odd, cd_odd);
    }
}

/// The packed columns times all activation rows, added to (first columns: written to) the output.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn multiply_cols<F: Unpack, const WIDE: bool>(
    task: &RowTask<'_>,
    cols: std::ops::Range<usize>,
    scratch: &PanelScratch,
) {
    let n = task.x.n_rows();
    let mut t = 0;
    while t < n {
        t += match n - t {
            TILE_X.. => tile::<F, WIDE, 6>(task, &cols, scratch, t),
            5 => tile::<F, WIDE, 5>(task, &cols, scratch, t),
            4 => tile::<F, WIDE, 4>(task, &cols, scratch, t),
            3 => tile::<F, WIDE, 3>(task, &cols, scratch, t),
            2 => tile::<F, WIDE, 2>(task, &cols, scratch, t),
            _ => tile::<F, WIDE, 1>(task, &cols, scratch, t),
        };
    }
}

/// What a tile reads of the activations, with the sums at the granularity of the format.
#[derive(Clone, Copy)]
struct TileRow {
    q: *const i32,
    low: *const i32,
    scale: *const f32,
    sum: *const f32,
    isum: *const i32,
}

impl TileRow {
    /// Row `t` from column `first` on.
    fn new<F: Unpack>(x: &QuantizedRows, t: usize, first: usize) -> TileRow {
        let row: QuantizedRow<'_> = x.row(t);
        let sub = first / F::SUB;
        let (scale, sum, isum) = if F::SUB == 16 {
            (row.scale, row.sum, row.isum)
        } else {
            (row.scale32, row.sum32, row.isum32)
        };
        TileRow {
            q: row.q[first..].as_ptr().cast(),
            low: row.low.get(first..).unwrap_or(&[]).as_ptr().cast(),
            scale: scale[sub..].as_ptr(),
            sum: sum[sub..].as_ptr(),
            isum: isum[sub..].as_ptr(),
        }
    }
}

/// Adds to `dots` the products of the `SUB` columns `s` of the panel `q` with those of `T` activation rows.
///
/// # Safety
/// - AVX-512 F and VNNI are there.
/// - The panel and the rows have at least `(s + 1) * SUB` columns.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_products<F: Unpack, const T: usize>(
    dots: &mut [[__m512i; 2]; T],
    q: &[u8],
    x: [*const i32; T],
    s: usize,
) {
    for k in s * F::SUB / 4..(s + 1) * F::SUB / 4 {
        // SAFETY: `k` is below the panel's columns over 4, each with two registers.
        let (w0, w1) = unsafe {
            let from = q.as_ptr().add(128 * k);
            (
                _mm512_loadu_si512(from.cast()),
                _mm512_loadu_si512(from.add(64).cast()),
            )
        };
        for (dots, x) in dots.iter_mut().zip(&x) {
            // SAFETY: four bytes of the row.
            let x = _mm512_set1_epi32(unsafe { x.add(k).read_unaligned() });
            dots[0] = _mm512_dpbusd_epi32(dots[0], w0, x);
            dots[1] = _mm512_dpbusd_epi32(dots[1], w1, x);
        }
    }
}

/// `T` activation rows from `t` on; returns `T`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn tile<F: Unpack, const WIDE: bool, const T: usize>(
    task: &RowTask<'_>,
    cols: &std::ops::Range<usize>,
    scratch: &PanelScratch,
    t: usize,
) -> usize {
    let x: [TileRow; T] = std::array::from_fn(|i| TileRow::new::<F>(task.x, t + i, cols.start));
    let n_subs = cols.len() / F::SUB;
    let (q, scales, mins) = (&*scratch.q, &*scratch.scale, &*scratch.min);
    assert!(
        q.len() >= PANEL_ROWS * cols.len()
            && scales.len() >= PANEL_ROWS * n_subs
            && mins.len() == scales.len()
    );
    let mut sums = [[_mm512_setzero_ps(); 2]; T];
    for s in 0..n_subs {
        let mut dots = [[_mm512_setzero_si512(); 2]; T];
        if WIDE {
            // SAFETY: wide rows have as many low bytes as high ones; the rest as below.
            unsafe { add_products::<F, T>(&mut dots, q, x.map(|x| x.q), s) };
            for dot in dots.as_flattened_mut() {
                *dot = _mm512_slli_epi32::<8>(*dot);
            }
        }
        if !F::HAS_MIN {
            // Symmetric formats: the offset's share is -OFFSET * sum of q.
            for (dots, x) in dots.iter_mut().zip(&x) {
                // SAFETY: `s` is below the row's number of sums.
                let share = _mm512_set1_epi32(-F::OFFSET * unsafe { *x.isum.add(s) });
                *dots = dots.map(|dot| if WIDE { _mm512_add_epi32(dot, share) } else { share });
            }
        }
        // SAFETY: `s` is below the panel's `n_subs`, and rows and panel have `cols.len()` columns.
        unsafe { add_products::<F, T>(&mut dots, q, x.map(|x| if WIDE { x.low } else { x.q }), s) };
        for half in 0..2 {
            let at = LANES * (2 * s + half);
            // SAFETY: the assertion above: `n_subs` pairs of registers.
            let (scale, min) = unsafe {
                (
                    _mm512_loadu_ps(scales.as_ptr().add(at)),
                    _mm512_loadu_ps(mins.as_ptr().add(at)),
                )
            };
            for ((sums, dots), x) in sums.iter_mut().zip(&dots).zip(&x) {
                // SAFETY: `s` is below the row's number of scales.
                let (x_scale, x_sum) =
                    unsafe { (_mm512_set1_ps(*x.scale.add(s)), _mm512_set1_ps(*x.sum.add(s))) };
                let dot = _mm512_cvtepi32_ps(dots[half]);
                sums[half] = _mm512_fmadd_ps(_mm512_mul_ps(scale, x_scale), dot, sums[half]);
                if F::HAS_MIN {
                    sums[half] = _mm512_fmadd_ps(min, x_sum, sums[half]);
                }
            }
        }
    }
    for (i, sums) in sums.into_iter().enumerate() {
        let mut values = [0.0f32; PANEL_ROWS];
        // SAFETY: `values` has room for two registers.
        unsafe {
            _mm512_storeu_ps(values.as_mut_ptr(), sums[0]);
            _mm512_storeu_ps(values.as_mut_ptr().add(LANES), sums[1]);
        }
        let values = &values[..task.rows.len()];
        if cols.start == 0 {
            task.out.set_run(t + i, task.rows.start, values);
        } else {
            task.out.add_run(t + i, task.rows.start, values);
        }
    }
    T
}
