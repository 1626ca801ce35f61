//! A quantized matrix times many quantized activation rows, NEON: prefill.
//!
//! As [`crate::x86_64`]'s panels: 32 weight rows by 512 columns are unpacked to the L1 cache once and multiplied with
//! every activation row. The order of codes is that of the instruction, 16 bytes to a register:
//!
//! ```text
//! sdot   [8 rows][K/4][2][4 rows][4] i8    times four bytes of one activation row, picked as a lane
//! smmla  [8 rows][K/8][4][2 rows][8] i8    times eight bytes of each of two activation rows
//! scale  [8 rows][K/SUB][8]          f32   min likewise
//! ```
//!
//! A tile is 8 rows by 4 activation rows in both: 8 registers of sums in integers, 8 in f32, 2 to 4 of each operand, of
//! 32. Per 16 bytes of codes `sdot` does 16 products, `smmla` 32; both run twice a cycle on the large cores there are,
//! for a ceiling of 32 and 64 products a cycle, of which conversions and scales (3 of every 8 + 3 instructions, 3 of
//! 4 + 3) leave 73 % and 57 %. No ARM processor was at hand to measure it on.

use std::arch::aarch64::*;
use std::ops::Range;

use super::neon_unit::Unit;
use super::neon_unpack::Unpack;
use crate::activation::QuantizedRows;
use crate::block::{CHUNK, CHUNK_SCALES, by_format};
use crate::matmul::{PanelScratch, RowChunks, RowTask};
use crate::simd::unrolled;

/// Weight rows of a panel.
const PANEL_ROWS: usize = 32;
/// Columns of a panel: 16 KiB of codes.
const PANEL_COLS: usize = 512;
/// Rows of a tile.
const TILE_ROWS: usize = 8;
/// Activation rows of a tile.
const TILE_X: usize = 4;

/// As [`crate::scalar::dot_rows`], best for many activation rows.
pub(crate) fn multiply_panel<U: Unit>(unit: U, task: &RowTask<'_>, scratch: &mut PanelScratch) {
    by_format!(task.weights.dtype(), F => {
        if task.x.is_wide() {
            multiply::<U, F, true>(unit, task, scratch)
        } else {
            multiply::<U, F, false>(unit, task, scratch)
        }
    }, else {})
}

fn multiply<U: Unit, F: Unpack, const WIDE: bool>(unit: U, task: &RowTask<'_>, scratch: &mut PanelScratch) {
    let (n_cols, n_x) = (task.x.n_cols(), task.x.n_rows());
    scratch.reserve(PANEL_ROWS * PANEL_COLS, PANEL_ROWS * PANEL_COLS / 16);
    scratch.sums.resize(n_x * PANEL_ROWS);
    for row in task.rows.clone().step_by(PANEL_ROWS) {
        let n_rows = PANEL_ROWS.min(task.rows.end - row);
        scratch.sums.fill(0.0);
        for first in (0..n_cols).step_by(PANEL_COLS) {
            let cols = first..(first + PANEL_COLS).min(n_cols);
            for r in 0..PANEL_ROWS {
                let chunks = (r < n_rows).then(|| RowChunks::<F>::new(task.weights, row + r));
                pack_row::<F>(chunks, r, &cols, if U::HAS_MATRIX { 8 } else { 4 }, scratch);
            }
            for t in (0..n_x).step_by(TILE_X) {
                for tile in 0..n_rows.div_ceil(TILE_ROWS) {
                    // SAFETY: every 64-bit ARM processor has NEON; the panel has just been packed.
                    unsafe { add_tile::<U, F, WIDE>(unit, task.x, &cols, scratch, tile, t) };
                }
            }
        }
        for (t, sums) in scratch.sums.chunks_exact(PANEL_ROWS).enumerate() {
            task.out.set_run(t, row, &sums[..n_rows]);
        }
    }
}

/// Unpacks columns `cols` of row `r` of the panel, `unit` consecutive columns to a place; a missing row is zeros.
fn pack_row<F: Unpack>(
    chunks: Option<RowChunks<'_, F>>,
    r: usize,
    cols: &Range<usize>,
    unit: usize,
    scratch: &mut PanelScratch,
) {
    let (tile, lane) = (r / TILE_ROWS, r % TILE_ROWS);
    let (q_first, n_subs) = (TILE_ROWS * cols.len() * tile, cols.len() / F::SUB);
    for (at, c) in (cols.start / CHUNK..cols.end / CHUNK).enumerate() {
        let mut codes = [0u8; CHUNK];
        let (mut scale, mut min) = ([0.0; CHUNK_SCALES], [0.0; CHUNK_SCALES]);
        if let Some(chunks) = &chunks {
            let bytes = chunks.bytes(c).as_ptr();
            for (g, to) in codes.chunks_exact_mut(32).enumerate() {
                // SAFETY: `bytes` gives one whole chunk; `to` has 32 bytes; every 64-bit ARM processor has NEON.
                unsafe {
                    let codes = F::codes(bytes, g);
                    vst1q_s8(to.as_mut_ptr().cast(), codes[0]);
                    vst1q_s8(to.as_mut_ptr().add(16).cast(), codes[1]);
                }
            }
            // SAFETY: as above.
            (scale, min) = unsafe { F::scales(bytes) };
        }
        for (k, codes) in codes.chunks_exact(unit).enumerate() {
            let to = q_first + ((CHUNK / unit * at + k) * TILE_ROWS + lane) * unit;
            scratch.q[to..to + unit].copy_from_slice(codes);
        }
        for (s, j) in (0..CHUNK_SCALES).step_by(F::SUB / 16).enumerate() {
            let to = TILE_ROWS * (n_subs * tile + CHUNK / F::SUB * at + s) + lane;
            (scratch.scale[to], scratch.min[to]) = (scale[j], min[j]);
        }
    }
}

/// What a tile reads of an activation row, with the sums at the granularity of the format.
#[derive(Clone, Copy)]
struct TileRow {
    q: *const i8,
    low: *const i8,
    scale: *const f32,
    sum: *const f32,
}

impl TileRow {
    /// Row `t` from column `first` on.
    fn new<F: Unpack>(x: &QuantizedRows, t: usize, first: usize) -> TileRow {
        let (row, sub) = (x.tile(t), first / F::SUB);
        let (scale, sum) = if F::SUB == 16 {
            (x.row(t).scale, row.sum)
        } else {
            (row.scale32, row.sum32)
        };
        TileRow {
            q: row.q[first..].as_ptr(),
            low: row.low.get(first..).unwrap_or(&[]).as_ptr(),
            scale: scale[sub..].as_ptr(),
            sum: sum[sub..].as_ptr(),
        }
    }
}

/// Sums of eight rows by four activation rows, in the order of the instruction: two registers of four rows for each
/// activation row, or four of two rows by two for each pair.
type Sums<T> = [[T; 4]; 2];

/// Adds tile `tile` of the packed rows times up to four activation rows from `t` on to the panel's sums. Where fewer
/// are left, the last one stands in for the missing ones.
///
/// # Safety
/// The panel has been packed with the same `F` and `cols` for this unit.
#[target_feature(enable = "neon")]
unsafe fn add_tile<U: Unit, F: Unpack, const WIDE: bool>(
    unit: U,
    x: &QuantizedRows,
    cols: &Range<usize>,
    scratch: &mut PanelScratch,
    tile: usize,
    t: usize,
) {
    let rows: [TileRow; TILE_X] =
        std::array::from_fn(|i| TileRow::new::<F>(x, (t + i).min(x.n_rows() - 1), cols.start));
    let n_subs = cols.len() / F::SUB;
    let q = scratch.q[TILE_ROWS * cols.len() * tile..][..TILE_ROWS * cols.len()]
        .as_ptr()
        .cast::<i8>();
    let scale = &scratch.scale[TILE_ROWS * n_subs * tile..][..TILE_ROWS * n_subs];
    let min = &scratch.min[TILE_ROWS * n_subs * tile..][..TILE_ROWS * n_subs];
    let mut sums: Sums<float32x4_t> = [[vdupq_n_f32(0.0); 4]; 2];
    for s in 0..n_subs {
        let mut dots: Sums<int32x4_t> = [[vdupq_n_s32(0); 4]; 2];
        // SAFETY: `s` is below the panel's and the rows' `n_subs`; wide rows have as many low bytes.
        unsafe {
            if WIDE {
                add_products::<U, F>(unit, &mut dots, q, rows.map(|row| row.q), s);
                dots = dots.map(|dots| dots.map(|dot| vshlq_n_s32::<8>(dot)));
            }
            add_products::<U, F>(
                unit,
                &mut dots,
                q,
                rows.map(|row| if WIDE { row.low } else { row.q }),
                s,
            );
        }
        // SAFETY: as above.
        let (x_scale, x_sum) =
            unsafe { (rows.map(|row| *row.scale.add(s)), rows.map(|row| *row.sum.add(s))) };
        let (scale, min) = (&scale[TILE_ROWS * s..], &min[TILE_ROWS * s..]);
        for pair in 0..2 {
            for j in 0..4 {
                let factor = vmulq_f32(of_rows::<U>(scale, j), of_x::<U>(&x_scale, pair, j));
                let dot = vcvtq_f32_s32(dots[pair][j]);
                sums[pair][j] = vfmaq_f32(sums[pair][j], factor, dot);
                if F::HAS_MIN {
                    sums[pair][j] =
                        vfmaq_f32(sums[pair][j], of_rows::<U>(min, j), of_x::<U>(&x_sum, pair, j));
                }
            }
        }
    }
    let n_x = TILE_X.min(x.n_rows() - t);
    for (pair, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            let mut four = [0.0f32; 4];
            // SAFETY: four elements.
            unsafe { vst1q_f32(four.as_mut_ptr(), *sum) };
            for (lane, value) in four.into_iter().enumerate() {
                let (row, i) = place::<U>(pair, j, lane);
                if i < n_x {
                    scratch.sums[PANEL_ROWS * (t + i) + TILE_ROWS * tile + row] += value;
                }
            }
        }
    }
}

/// The row and the activation row of a lane of [`Sums`].
fn place<U: Unit>(pair: usize, j: usize, lane: usize) -> (usize, usize) {
    if U::HAS_MATRIX {
        (2 * j + lane / 2, 2 * pair + lane % 2)
    } else {
        (4 * (j % 2) + lane, 2 * pair + j / 2)
    }
}

/// The numbers of a register's rows, in its lanes.
#[inline]
#[target_feature(enable = "neon")]
fn of_rows<U: Unit>(eight: &[f32], j: usize) -> float32x4_t {
    let from = &eight[if U::HAS_MATRIX { 4 * (j / 2) } else { 4 * (j % 2) }..][..4];
    // SAFETY: four elements.
    let four = unsafe { vld1q_f32(from.as_ptr()) };
    match (U::HAS_MATRIX, j % 2) {
        (false, _) => four,
        (true, 0) => vzip1q_f32(four, four),
        (true, _) => vzip2q_f32(four, four),
    }
}

/// The numbers of a register's activation rows, in its lanes.
#[inline]
#[target_feature(enable = "neon")]
fn of_x<U: Unit>(four: &[f32; TILE_X], pair: usize, j: usize) -> float32x4_t {
    if U::HAS_MATRIX {
        // SAFETY: two elements of four.
        let two = unsafe { vld1_f32(four.as_ptr().add(2 * pair)) };
        vcombine_f32(two, two)
    } else {
        vdupq_n_f32(four[2 * pair + j / 2])
    }
}

/// Adds to `dots` the products of the `SUB` columns `s` of the tile `q` with those of four activation rows.
///
/// # Safety
/// The tile and the rows have at least `(s + 1) * SUB` columns.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn add_products<U: Unit, F: Unpack>(
    unit: U,
    dots: &mut Sums<int32x4_t>,
    q: *const i8,
    x: [*const i8; TILE_X],
    s: usize,
) {
    // SAFETY: 16 columns at a time, within the `SUB` of the caller's word.
    unsafe {
        for col in (s * F::SUB..(s + 1) * F::SUB).step_by(16) {
            let q = q.add(TILE_ROWS * col);
            if U::HAS_MATRIX {
                for k in 0..2 {
                    let eight = |i: usize| vld1_s8(x[i].add(col + 8 * k));
                    let x = [vcombine_s8(eight(0), eight(1)), vcombine_s8(eight(2), eight(3))];
                    for j in 0..4 {
                        let w = vld1q_s8(q.add(64 * k + 16 * j));
                        dots[0][j] = unit.matrix(dots[0][j], w, x[0]);
                        dots[1][j] = unit.matrix(dots[1][j], w, x[1]);
                    }
                }
            } else {
                let x = x.map(|x| vld1q_s8(x.add(col)));
                macro_rules! lane {
                    ($k:literal) => {
                        let w = [vld1q_s8(q.add(32 * $k)), vld1q_s8(q.add(32 * $k + 16))];
                        unrolled!(4, |i| {
                            for half in 0..2 {
                                let dot = &mut dots[i / 2][2 * (i % 2) + half];
                                *dot = unit.dot_lane::<$k>(*dot, w[half], x[i]);
                            }
                        });
                    };
                }
                lane!(0);
                lane!(1);
                lane!(2);
                lane!(3);
            }
        }
    }
}
