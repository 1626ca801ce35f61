//! A quantized matrix times many quantized activation rows, AVX2 with or without AVX-VNNI: prefill.
//!
//! A panel of [`PANEL_ROWS`] weight rows by [`PANEL_COLS`] columns is unpacked to the L1 cache once and multiplied
//! with every activation row. Two shapes of codes:
//!
//! ```text
//! bytes  [16 rows][K/4][2][8][4] u8     times four signed bytes of an activation row, for 8-bit activations
//! words  [16 rows][K/2][2][8][2] i16    times two words, for 16-bit activations, or codes of 8 bits without VNNI
//! scale  [16 rows][K/SUB][2][8]  f32    min likewise
//! ```
//!
//! Without VNNI a step on bytes is `vpmaddubsw` and an addition in 16 bits, which holds as many products as codes have
//! spare bits: eight of 4 bits, four of 5, two of 6; then `vpmaddwd` widens to 32 bits. Codes of 8 bits do not fit
//! even once and are words from the start. With VNNI `vpdpbusd` and `vpdpwssd` do product and sum in one.
//!
//! The tile is 2 registers of rows by [`TILE_X`] activation rows: 6 sums in integers, 6 in f32, 2 of weights, 1
//! broadcast: 15 of 16. Bound, for 32 columns by 8 rows and one activation row, on four vector ports of which two
//! multiply (AMD; three and two on Intel):
//!
//! | | products | sums | scales, offset | of the rate of `vpmaddubsw` alone (64 products a cycle) |
//! |---|---|---|---|---|
//! | bytes of 4 bits | 8 + 1 | 7 | 4 | 20 on 4 ports, 5 cycles: 80 % |
//! | words | 16 | 15 | 3 | 34 on 4 ports, 8.5 cycles: 47 % |
//! | bytes, VNNI | 8 | 0 | 4 | 8 and 2 on the two multipliers, 5 cycles: 80 % |
//! | words, VNNI | 16 | 0 | 3 | 16 and 2 on the two multipliers, 9 cycles: 44 % |

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::avx2_unit::{Kernel, Madd, Unit, Vnni};
use super::avx2_unpack::Unpack;
use crate::activation::QuantizedTile;
use crate::block::{BlockFormat, CHUNK, by_format};
use crate::matmul::{PanelScratch, RowChunks, RowTask};

/// Weight rows of a panel.
const PANEL_ROWS: usize = 32;
/// Columns of a panel: 16 KiB of bytes or 32 KiB of words, and up to 4 KiB of scales.
const PANEL_COLS: usize = 512;
/// Activation rows of a tile.
const TILE_X: usize = 3;
/// Rows of a tile: two registers.
const TILE_ROWS: usize = 2 * LANES;
const LANES: usize = 8;

/// As [`crate::scalar::dot_rows`], best for many activation rows.
///
/// # Safety
/// AVX2, FMA and F16C are there.
pub(crate) unsafe fn multiply_panel(task: &RowTask<'_>, scratch: &mut PanelScratch) {
    // SAFETY: the caller's word.
    unsafe { multiply_by(Madd, task, scratch) }
}

/// As [`multiply_panel`], with AVX-VNNI.
///
/// # Safety
/// AVX2, FMA, F16C and AVX-VNNI are there.
pub(crate) unsafe fn multiply_panel_vnni(task: &RowTask<'_>, scratch: &mut PanelScratch) {
    // SAFETY: the caller's word.
    unsafe { multiply_by(Vnni, task, scratch) }
}

/// # Safety
/// AVX2, FMA, F16C and the instructions of `unit` are there.
unsafe fn multiply_by<U: Unit>(unit: U, task: &RowTask<'_>, scratch: &mut PanelScratch) {
    // SAFETY: the caller's word.
    unsafe {
        by_format!(task.weights.dtype(), F => {
            if task.x.is_wide() || U::steps(F::BITS) == 0 {
                multiply::<U, F, true>(unit, task, scratch)
            } else {
                multiply::<U, F, false>(unit, task, scratch)
            }
        }, else {})
    }
}

/// # Safety
/// As [`multiply_by`].
unsafe fn multiply<U: Unit, F: Unpack, const WORDS: bool>(
    unit: U,
    task: &RowTask<'_>,
    scratch: &mut PanelScratch,
) {
    let (n_cols, n_x) = (task.x.n_cols(), task.x.n_rows());
    scratch.reserve(2 * PANEL_ROWS * PANEL_COLS, PANEL_ROWS * PANEL_COLS / 16);
    scratch.x.resize(TILE_X * PANEL_COLS);
    scratch.sums.resize(n_x * PANEL_ROWS);
    for row in task.rows.clone().step_by(PANEL_ROWS) {
        let n_rows = PANEL_ROWS.min(task.rows.end - row);
        let chunks: [Option<RowChunks<'_, F>>; PANEL_ROWS] =
            std::array::from_fn(|r| (r < n_rows).then(|| RowChunks::new(task.weights, row + r)));
        scratch.sums.fill(0.0);
        for first in (0..n_cols).step_by(PANEL_COLS) {
            let cols = first..(first + PANEL_COLS).min(n_cols);
            // SAFETY: the caller's word.
            unsafe { pack::<F, WORDS>(&chunks, &cols, scratch) };
            let mut t = 0;
            while t < n_x {
                // SAFETY: the caller's word; the panel has just been packed; as many activation rows are left.
                t += unsafe {
                    match n_x - t {
                        TILE_X.. => tiles::<U, F, WORDS, TILE_X>(unit, task, &cols, scratch, t),
                        2 => tiles::<U, F, WORDS, 2>(unit, task, &cols, scratch, t),
                        _ => tiles::<U, F, WORDS, 1>(unit, task, &cols, scratch, t),
                    }
                };
            }
        }
        for (t, sums) in scratch.sums.chunks_exact(PANEL_ROWS).enumerate() {
            task.out.set_run(t, row, &sums[..n_rows]);
        }
    }
}

/// Unpacks columns `cols` of up to [`PANEL_ROWS`] rows; missing rows are zeros.
///
/// # Safety
/// - AVX2 and F16C are there.
/// - `scratch` has room for a panel.
#[target_feature(enable = "avx2,f16c")]
unsafe fn pack<F: Unpack, const WORDS: bool>(
    rows: &[Option<RowChunks<'_, F>>; PANEL_ROWS],
    cols: &Range<usize>,
    scratch: &mut PanelScratch,
) {
    let per_lane = if WORDS { 2 } else { 4 };
    let (n_lanes, n_subs) = (cols.len() / per_lane, cols.len() / F::SUB);
    assert!(scratch.q.len() >= PANEL_ROWS * cols.len() * 4 / per_lane && cols.len() <= PANEL_COLS);
    for (eight, rows) in rows.chunks_exact(LANES).enumerate() {
        // Tile of this register of rows, and its place in the tile.
        let (tile, register) = (eight / 2, eight % 2);
        for (at, c) in (cols.start / CHUNK..cols.end / CHUNK).enumerate() {
            for g in 0..8 {
                let mut codes = [_mm256_setzero_si256(); LANES];
                for (codes, row) in codes.iter_mut().zip(rows) {
                    if let Some(row) = row {
                        // SAFETY: `bytes` gives one whole chunk; the features are those of this function.
                        *codes = unsafe { F::codes(row.bytes(c).as_ptr(), g) };
                    }
                }
                let first = (CHUNK * at + 32 * g) / per_lane;
                let mut store = |lanes: &mut [__m256i; LANES], first: usize| {
                    transpose(lanes);
                    for (k, lanes) in lanes.iter().enumerate() {
                        let to = 32 * ((tile * n_lanes + first + k) * 2 + register);
                        let to = &mut scratch.q[to..to + 32];
                        // SAFETY: `to` has 32 bytes.
                        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), *lanes) };
                    }
                };
                if WORDS {
                    let offset = _mm256_set1_epi16(F::OFFSET as i16);
                    let widen = |bytes| _mm256_sub_epi16(_mm256_cvtepu8_epi16(bytes), offset);
                    store(&mut codes.map(|c| widen(_mm256_castsi256_si128(c))), first);
                    store(
                        &mut codes.map(|c| widen(_mm256_extracti128_si256::<1>(c))),
                        first + 8,
                    );
                } else {
                    store(&mut codes, first);
                }
            }
            let mut scale = [[_mm256_setzero_si256(); LANES]; 2];
            let mut min = scale;
            for (r, row) in rows.iter().enumerate() {
                if let Some(row) = row {
                    // SAFETY: `bytes` gives one whole chunk; the features are those of this function.
                    let (scales, mins) = unsafe { F::scales(row.bytes(c).as_ptr()) };
                    for half in 0..2 {
                        scale[half][r] = _mm256_castps_si256(scales[half]);
                        min[half][r] = _mm256_castps_si256(mins[half]);
                    }
                }
            }
            let sub = tile * n_subs + CHUNK / F::SUB * at;
            store_scales::<F>(&mut scale, &mut scratch.scale, sub, register);
            if F::HAS_MIN {
                store_scales::<F>(&mut min, &mut scratch.min, sub, register);
            }
        }
    }
}

/// Writes the scales of one chunk of eight rows, one register per `SUB` elements from `sub` on.
#[inline]
#[target_feature(enable = "avx2")]
fn store_scales<F: Unpack>(rows: &mut [[__m256i; LANES]; 2], to: &mut [f32], sub: usize, register: usize) {
    for half in rows.iter_mut() {
        transpose(half);
    }
    let scales = rows.as_flattened().iter().step_by(F::SUB / 16);
    for (s, lanes) in scales.enumerate() {
        let at = LANES * (2 * (sub + s) + register);
        let to = &mut to[at..at + LANES];
        // SAFETY: `to` has eight elements.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), *lanes) };
    }
}

/// 8 x 8 transpose of 32-bit lanes: pairs, fours, then the 128-bit halves.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: &mut [__m256i; LANES]) {
    let mut pairs = [_mm256_setzero_si256(); LANES];
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = [_mm256_setzero_si256(); LANES];
    for i in 0..2 {
        for half in 0..2 {
            let (a, b) = (pairs[4 * i + half], pairs[4 * i + 2 + half]);
            fours[4 * i + 2 * half] = _mm256_unpacklo_epi64(a, b);
            fours[4 * i + 2 * half + 1] = _mm256_unpackhi_epi64(a, b);
        }
    }
    // Now fours[4 i + k], half h, holds column 4 h + k of rows 4 i .. 4 i + 4.
    for k in 0..4 {
        rows[k] = _mm256_permute2x128_si256::<0x20>(fours[k], fours[4 + k]);
        rows[4 + k] = _mm256_permute2x128_si256::<0x31>(fours[k], fours[4 + k]);
    }
}

/// What a tile reads of an activation row, with the sums at the granularity of the format.
#[derive(Clone, Copy)]
struct TileRow {
    /// Lanes of four bytes or two words.
    q: *const i32,
    scale: *const f32,
    sum: *const f32,
    isum: *const i32,
}

/// Adds the packed rows times `T` activation rows from `t` on to the panel's sums; returns `T`.
///
/// # Safety
/// - AVX2, FMA, F16C and the instructions of `unit` are there.
/// - The panel has been packed with the same `F`, `WORDS` and `cols`.
/// - There are `T` activation rows from `t` on.
unsafe fn tiles<U: Unit, F: Unpack, const WORDS: bool, const T: usize>(
    unit: U,
    task: &RowTask<'_>,
    cols: &Range<usize>,
    scratch: &mut PanelScratch,
    t: usize,
) -> usize {
    let x = task.x;
    let PanelScratch {
        q,
        scale,
        min,
        x: words,
        sums,
        ..
    } = scratch;
    let sub = cols.start / F::SUB;
    let x: [TileRow; T] = std::array::from_fn(|i| {
        let row = x.tile(t + i);
        let words = &mut words[PANEL_COLS * i..PANEL_COLS * i + cols.len()];
        if WORDS {
            // SAFETY: the caller's word.
            unsafe { widen_row(&row, cols, words) };
        }
        let (scale, sum, isum) = if F::SUB == 16 {
            (x.row(t + i).scale, row.sum, row.isum)
        } else {
            (row.scale32, row.sum32, row.isum32)
        };
        TileRow {
            q: if WORDS {
                words.as_ptr().cast()
            } else {
                row.q[cols.start..].as_ptr().cast()
            },
            scale: scale[sub..].as_ptr(),
            sum: sum[sub..].as_ptr(),
            isum: isum[sub..].as_ptr(),
        }
    });
    let n_subs = cols.len() / F::SUB;
    let q_bytes = TILE_ROWS * cols.len() * if WORDS { 2 } else { 1 };
    for tile in 0..PANEL_ROWS / TILE_ROWS {
        let scales = TILE_ROWS * n_subs * tile..TILE_ROWS * n_subs * (tile + 1);
        let first = PANEL_ROWS * t + TILE_ROWS * tile;
        let tile = Tile::<F, WORDS, T> {
            q: &q[q_bytes * tile..q_bytes * (tile + 1)],
            scale: &scale[scales.clone()],
            min: &min[scales],
            x,
            // What is left of the last chunk is not multiplied: the activations are zero there.
            n_subs: (task.weights.n_cols().min(cols.end) - cols.start).div_ceil(F::SUB),
            steps: std::hint::black_box(if WORDS { F::SUB / 2 } else { steps_of::<U, F>() }),
            sums: sums[first..first + PANEL_ROWS * (T - 1) + TILE_ROWS].as_mut_ptr(),
            of: PhantomData,
        };
        // SAFETY: the caller's word, and the tile has its part of the panel.
        unsafe { unit.run(&tile) };
    }
    T
}

/// The columns `cols` of an activation row as words.
#[target_feature(enable = "avx2")]
fn widen_row(row: &QuantizedTile<'_>, cols: &Range<usize>, to: &mut [i16]) {
    let q = &row.q[cols.clone()];
    match row.low.get(cols.clone()) {
        Some(low) => {
            for ((to, q), low) in to.iter_mut().zip(q).zip(low) {
                *to = 256 * i16::from(*q) + i16::from(*low);
            }
        }
        None => {
            for (to, q) in to.iter_mut().zip(q) {
                *to = i16::from(*q);
            }
        }
    }
}

/// Steps of bytes between two widenings, a divisor of those of `SUB` columns.
fn steps_of<U: Unit, F: Unpack>() -> usize {
    let most = U::steps(F::BITS).clamp(1, F::SUB / 4);
    1 << most.ilog2()
}

/// 16 rows of a panel by `T` activation rows, over `n_subs` times `SUB` columns.
struct Tile<'a, F, const WORDS: bool, const T: usize> {
    q: &'a [u8],
    scale: &'a [f32],
    min: &'a [f32],
    x: [TileRow; T],
    n_subs: usize,
    /// Steps between two widenings. A number that the compiler does not know: of a loop written out it makes eight
    /// trees of sums, which do not fit its registers.
    steps: usize,
    /// `[T]` times 16, [`PANEL_ROWS`] apart.
    sums: *mut f32,
    of: PhantomData<F>,
}

impl<F: Unpack, const WORDS: bool, const T: usize> Kernel for Tile<'_, F, WORDS, T> {
    #[inline(always)]
    unsafe fn run<U: Unit>(&self, unit: U) {
        let (x, q) = (&self.x, self.q.as_ptr());
        // SAFETY: the caller's word; operands have `n_subs` times `SUB` columns, `sums` as many runs as said.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; T];
            for s in 0..self.n_subs {
                let dots = if WORDS {
                    word_products::<U, F, T>(unit, x, q, s, self.steps)
                } else {
                    byte_products::<U, F, T>(unit, x, q, s, self.steps)
                };
                for half in 0..2 {
                    let at = TILE_ROWS * s + LANES * half;
                    let scale = _mm256_loadu_ps(self.scale.as_ptr().add(at));
                    for i in 0..T {
                        let dot = _mm256_cvtepi32_ps(dots[i][half]);
                        let factor = _mm256_mul_ps(scale, _mm256_broadcast_ss(&*x[i].scale.add(s)));
                        sums[i][half] = _mm256_fmadd_ps(factor, dot, sums[i][half]);
                    }
                    if F::HAS_MIN {
                        let min = _mm256_loadu_ps(self.min.as_ptr().add(at));
                        for i in 0..T {
                            let x_sum = _mm256_broadcast_ss(&*x[i].sum.add(s));
                            sums[i][half] = _mm256_fmadd_ps(min, x_sum, sums[i][half]);
                        }
                    }
                }
            }
            for (i, sums) in sums.into_iter().enumerate() {
                for (half, sum) in sums.into_iter().enumerate() {
                    let to = self.sums.add(PANEL_ROWS * i + LANES * half);
                    _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sum));
                }
            }
        }
    }
}

/// The products of the `SUB` columns `s`, codes of bytes.
///
/// # Safety
/// As [`Tile`], `s` below its `n_subs`.
#[inline(always)]
unsafe fn byte_products<U: Unit, F: Unpack, const T: usize>(
    unit: U,
    x: &[TileRow; T],
    q: *const u8,
    s: usize,
    steps: usize,
) -> [[__m256i; 2]; T] {
    // SAFETY: the caller's word.
    unsafe {
        let mut dots = [[_mm256_setzero_si256(); 2]; T];
        if F::OFFSET != 0 {
            for i in 0..T {
                dots[i] = [_mm256_set1_epi32(-F::OFFSET * *x[i].isum.add(s)); 2];
            }
        }
        let n_rounds = F::SUB / 4 / steps_of::<U, F>();
        for round in 0..n_rounds {
            let mut sums = dots.map(|dots| dots.map(|dot| unit.begin(dot)));
            for k in 0..steps {
                let at = s * (F::SUB / 4) + round * steps + k;
                let w0 = _mm256_load_si256(q.add(64 * at).cast());
                let w1 = _mm256_load_si256(q.add(64 * at + 32).cast());
                for i in 0..T {
                    let x = _mm256_set1_epi32(x[i].q.add(at).read_unaligned());
                    sums[i][0] = unit.add_bytes(sums[i][0], w0, x);
                    sums[i][1] = unit.add_bytes(sums[i][1], w1, x);
                }
            }
            for i in 0..T {
                for half in 0..2 {
                    dots[i][half] = unit.widen(dots[i][half], sums[i][half]);
                }
            }
        }
        dots
    }
}

/// The products of the `SUB` columns `s`, codes of words, their offset taken off already.
///
/// # Safety
/// As [`Tile`], `s` below its `n_subs`.
#[inline(always)]
unsafe fn word_products<U: Unit, F: Unpack, const T: usize>(
    unit: U,
    x: &[TileRow; T],
    q: *const u8,
    s: usize,
    steps: usize,
) -> [[__m256i; 2]; T] {
    // SAFETY: the caller's word.
    unsafe {
        let mut dots = [[_mm256_setzero_si256(); 2]; T];
        for k in 0..steps {
            let at = s * (F::SUB / 2) + k;
            let w0 = _mm256_load_si256(q.add(64 * at).cast());
            let w1 = _mm256_load_si256(q.add(64 * at + 32).cast());
            for i in 0..T {
                let x = _mm256_set1_epi32(x[i].q.add(at).read_unaligned());
                dots[i][0] = unit.add_words(dots[i][0], w0, x);
                dots[i][1] = unit.add_words(dots[i][1], w1, x);
            }
        }
        dots
    }
}
