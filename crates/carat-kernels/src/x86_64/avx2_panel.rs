//! A quantized matrix times many quantized activation rows, AVX2 with or without AVX-VNNI: prefill.
//!
//! A panel of [`PANEL_ROWS`] weight rows by [`PANEL_COLS`] columns is unpacked to the L1 cache once and multiplied
//! with every activation row, 16 rows after the other. Two shapes of codes:
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
//! The tile is 2 registers of rows by [`TILE_X`] activation rows: 6 sums in integers, 6 in f32, 2 of weights, a broadcast
//! and a product: all 16. Bound, for 32 columns by 8 rows and one activation row, on the three vector ports of Intel, of
//! which two multiply (AMD has four, of which two multiply):
//!
//! | | products | sums | scales | of the rate of `vpmaddubsw` alone (64 products a cycle) |
//! |---|---|---|---|---|
//! | bytes of 4 bits | 8 + 1 | 7 + 1 | 3 | 20 on 3 ports, 6.7 cycles: 60 % (AMD 80 %) |
//! | words | 16 | 15 | 3 | 34 on 3 ports, 11.3 cycles: 35 % (AMD 47 %) |
//! | bytes, VNNI | 8 | 0 | 3, of which one needs not multiply | 10 on two ports, 5 cycles: 80 % (AMD 80 %) |
//! | words, VNNI | 16 | 0 | 3 | 19 on two ports, 9.5 cycles: 42 % |

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::avx2_products::{Sums, TILE_ROWS, TILE_X, zero};
use super::avx2_unit::{Kernel, Madd, Unit, Vnni};
use super::avx2_unpack::Unpack;
use super::fill_shares;
use crate::activation::{QuantizedRows, QuantizedTile};
use crate::block::{BlockFormat, CHUNK, by_format};
use crate::matmul::{PanelScratch, RowChunks, RowTask, SharedOut};

/// Weight rows of a panel.
const PANEL_ROWS: usize = 32;
/// Columns of a panel: 16 KiB of bytes or 32 KiB of words, and up to 4 KiB of scales.
const PANEL_COLS: usize = 512;
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
    scratch.sums.resize(n_x.next_multiple_of(TILE_X) * PANEL_ROWS);
    if !WORDS {
        // SAFETY: the caller's word.
        unsafe { fill_all_shares::<U, F>(task.x, scratch) };
    }
    for row in task.rows.clone().step_by(PANEL_ROWS) {
        let rows = row..(row + PANEL_ROWS).min(task.rows.end);
        let chunks: [Option<RowChunks<'_, F>>; PANEL_ROWS] =
            std::array::from_fn(|r| (r < rows.len()).then(|| RowChunks::new(task.weights, row + r)));
        for first in (0..n_cols).step_by(PANEL_COLS) {
            let cols = first..(first + PANEL_COLS).min(n_cols);
            // SAFETY: the caller's word.
            unsafe { pack::<F, WORDS>(&chunks, &cols, scratch) };
            for first in rows.clone().step_by(TILE_ROWS) {
                let strip = first..(first + TILE_ROWS).min(rows.end);
                let mut strip = Strip::<F, WORDS>::new(task, &cols, scratch, (row, strip));
                // SAFETY: the caller's word; the panel has just been packed.
                unsafe { unit.run(&mut strip) };
            }
        }
    }
}

/// # Safety
/// AVX2 is there.
#[target_feature(enable = "avx2")]
unsafe fn fill_all_shares<U: Unit, F: BlockFormat>(x: &QuantizedRows, scratch: &mut PanelScratch) {
    let all = x.all();
    fill_shares::<F>(&mut scratch.shares, &all, 0..all.isum32.len());
    if !F::HAS_MIN {
        scratch.shares.iter_mut().for_each(|share| *share += U::START);
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

/// 16 rows of a panel by all activation rows.
struct Strip<'a, F, const WORDS: bool> {
    q: &'a [u8],
    scale: &'a [f32],
    min: &'a [f32],
    /// All tiles of activations, of whose columns the first `n_blocks` blocks from `first_block` on are multiplied.
    x: QuantizedTile<'a>,
    shares: &'a [i32],
    n_tiles: usize,
    /// Blocks of a whole row.
    row_blocks: usize,
    first_block: usize,
    n_blocks: usize,
    /// `[n_tiles, TILE_X, PANEL_ROWS]`: the sums of the columns before, unless these are the first.
    sums: &'a mut [f32],
    is_first: bool,
    /// With the last columns: where they go, and which weight rows they are of.
    out: Option<(&'a SharedOut<'a>, Range<usize>)>,
    of: PhantomData<F>,
}

/// What a strip reads of a tile of activations.
#[derive(Clone, Copy)]
struct TileX {
    q: *const i8,
    words: *const i16,
    scale: *const f32,
    sum: *const f32,
    share: *const i32,
}

impl<'a, F: Unpack, const WORDS: bool> Strip<'a, F, WORDS> {
    /// Subs of a block of 32 columns.
    const SUBS: usize = 32 / F::SUB;

    /// The weight rows `rows` of a panel that begins at row `panel` and has the columns `cols`.
    fn new(
        task: &'a RowTask<'_>,
        cols: &Range<usize>,
        scratch: &'a mut PanelScratch,
        (panel, rows): (usize, Range<usize>),
    ) -> Self {
        let strip = (rows.start - panel) / TILE_ROWS;
        let n_subs = cols.len() / F::SUB;
        let q_bytes = TILE_ROWS * cols.len() * if WORDS { 2 } else { 1 };
        let scales = TILE_ROWS * n_subs * strip..TILE_ROWS * n_subs * (strip + 1);
        let x = task.x.all();
        let (n_tiles, row_blocks) = (task.x.n_rows().div_ceil(TILE_X), task.x.n_cols() / 32);
        let n_x_blocks = n_tiles * TILE_X * row_blocks;
        let has_codes = if WORDS { x.words.len() } else { x.q.len() } == 32 * n_x_blocks;
        let has_shares = WORDS || F::HAS_MIN || scratch.shares.len() == Self::SUBS * n_x_blocks;
        assert!(
            task.x.tile_rows() == TILE_X && has_codes && has_shares && cols.end <= 32 * row_blocks,
            "activations in tiles of three rows, with words or shares if they are needed"
        );
        Strip {
            q: &scratch.q[q_bytes * strip..q_bytes * (strip + 1)],
            scale: &scratch.scale[scales.clone()],
            min: &scratch.min[scales],
            x,
            shares: &scratch.shares,
            n_tiles,
            row_blocks,
            first_block: cols.start / 32,
            // What is left of the last chunk is not multiplied: the activations are zero there.
            n_blocks: (task.weights.n_cols().min(cols.end) - cols.start).div_ceil(32),
            sums: &mut scratch.sums[TILE_ROWS * strip..],
            is_first: cols.start == 0,
            out: (cols.end == task.x.n_cols()).then_some((task.out, rows)),
            of: PhantomData,
        }
    }

    /// Tile `i`, below `n_tiles`, from the first block on.
    #[inline(always)]
    fn tile(&self, i: usize) -> TileX {
        let block = TILE_X * (self.row_blocks * i + self.first_block);
        let x_sum = if F::SUB == 32 { self.x.sum32 } else { self.x.sum };
        TileX {
            q: self.x.q.as_ptr().wrapping_add(32 * block),
            words: self.x.words.as_ptr().wrapping_add(32 * block),
            scale: self.x.scale32.as_ptr().wrapping_add(block),
            sum: x_sum.as_ptr().wrapping_add(Self::SUBS * block),
            share: self.shares.as_ptr().wrapping_add(Self::SUBS * block),
        }
    }

    /// The products of the `SUB` columns that are part `sub` of block `b`.
    ///
    /// # Safety
    /// The instructions of `unit` are there, `x` is one of the tiles, and `b` is below `n_blocks`.
    #[inline(always)]
    unsafe fn products<U: Unit>(&self, unit: U, x: TileX, b: usize, sub: usize) -> Sums {
        const { assert!(F::SUB == 16 || F::SUB == 32) };
        let column = 32 * b + F::SUB * sub;
        let x_column = 32 * TILE_X * b + F::SUB * sub;
        // SAFETY: the strip and the tile have these columns, by the caller's word and what `new` saw.
        unsafe {
            if WORDS {
                let w = self.q.as_ptr().add(2 * TILE_ROWS * column);
                let x = x.words.add(x_column);
                return if F::SUB == 16 {
                    unit.tile_words::<8>(w, x)
                } else {
                    unit.tile_words::<16>(w, x)
                };
            }
            let w = self.q.as_ptr().add(TILE_ROWS * column);
            match U::steps(F::BITS).min(F::SUB / 4) {
                2..4 => self.bytes::<U, 2>(unit, x, (b, sub), w),
                4..8 => self.bytes::<U, 4>(unit, x, (b, sub), w),
                _ => self.bytes::<U, 8>(unit, x, (b, sub), w),
            }
        }
    }

    /// [`Strip::products`] of bytes, of which `N` lanes are added in one go.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn bytes<U: Unit, const N: usize>(
        &self,
        unit: U,
        x: TileX,
        (b, sub): (usize, usize),
        w: *const u8,
    ) -> Sums {
        let shares = || {
            if F::HAS_MIN {
                // SAFETY: the callers have AVX2.
                return unsafe { [[_mm256_set1_epi32(U::START); 2]; TILE_X] };
            }
            std::array::from_fn(|i| {
                // SAFETY: the tile has a share for each part of its blocks; the callers have AVX2.
                unsafe { [_mm256_set1_epi32(*x.share.add(Self::SUBS * (TILE_X * b + i) + sub)); 2] }
            })
        };
        let x = x.q.wrapping_add(32 * TILE_X * b + F::SUB * sub);
        // SAFETY: the caller's word.
        unsafe {
            if N == F::SUB / 4 {
                return unit.tile_bytes::<N>(shares, w, x);
            }
            let mut sums = unit.tile_bytes::<N>(|| zero(), w, x);
            for step in (N..F::SUB / 4).step_by(N) {
                sums = unit.tile_bytes::<N>(|| sums, w.add(64 * step), x.add(4 * step));
            }
            for (sum, share) in sums.as_flattened_mut().iter_mut().zip(shares().as_flattened()) {
                *sum = _mm256_add_epi32(*sum, *share);
            }
            sums
        }
    }

    /// Asks for block `b` of the tile behind `x`: the columns of a tile are too few for the processor to see a stream.
    #[inline(always)]
    fn ask_for_next_tile(&self, x: TileX, b: usize) {
        let (from, size) = if WORDS {
            (x.words.cast::<i8>(), 64 * TILE_X)
        } else {
            (x.q, 32 * TILE_X)
        };
        for line in 0..size.div_ceil(64) {
            // SAFETY: a hint, whatever the address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(size * (self.row_blocks + b) + 64 * line));
            }
        }
    }

    /// Adds block `b` times tile `x` to `sums`.
    ///
    /// # Safety
    /// As [`Strip::products`].
    #[inline(always)]
    unsafe fn add_block<U: Unit>(&self, unit: U, x: TileX, b: usize, sums: &mut [[__m256; 2]; TILE_X]) {
        for sub in 0..Self::SUBS {
            // SAFETY: the caller's word; the strip has scales for its blocks, the tile those and sums for its own.
            unsafe {
                let dots = self.products(unit, x, b, sub);
                for (i, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
                    let block = TILE_X * b + i;
                    let part = Self::SUBS * block + sub;
                    let x_scale = _mm256_broadcast_ss(&*x.scale.add(block));
                    for (half, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
                        let at = TILE_ROWS * (Self::SUBS * b + sub) + LANES * half;
                        let scale = _mm256_mul_ps(x_scale, _mm256_loadu_ps(self.scale.as_ptr().add(at)));
                        let dot = if WORDS {
                            _mm256_cvtepi32_ps(dot)
                        } else {
                            unit.to_floats(dot)
                        };
                        *sum = _mm256_fmadd_ps(scale, dot, *sum);
                        if F::HAS_MIN {
                            let x_sum = _mm256_broadcast_ss(&*x.sum.add(part));
                            *sum = _mm256_fmadd_ps(_mm256_loadu_ps(self.min.as_ptr().add(at)), x_sum, *sum);
                        }
                    }
                }
            }
        }
    }

    /// Takes the sums of tile `i`: to those of the next columns, or to the output.
    #[inline(always)]
    fn take(&mut self, i: usize, sums: [[f32; TILE_ROWS]; TILE_X]) {
        for (j, mut sums) in sums.into_iter().enumerate() {
            let t = TILE_X * i + j;
            let before = &mut self.sums[PANEL_ROWS * t..PANEL_ROWS * t + TILE_ROWS];
            if !self.is_first {
                for (sum, before) in sums.iter_mut().zip(&*before) {
                    *sum += before;
                }
            }
            match &self.out {
                None => before.copy_from_slice(&sums),
                Some((out, _)) if t >= out.n_x() => {}
                // Of a known length, that is, without a call.
                Some((out, rows)) if rows.len() == TILE_ROWS => out.set_run(t, rows.start, &sums),
                Some((out, rows)) => out.set_run(t, rows.start, &sums[..rows.len()]),
            }
        }
    }
}

impl<F: Unpack, const WORDS: bool> Kernel for Strip<'_, F, WORDS> {
    #[inline(always)]
    unsafe fn run<U: Unit>(&mut self, unit: U) {
        for i in 0..self.n_tiles {
            let x = self.tile(i);
            // SAFETY: the caller's word; tile and blocks are those that there are.
            let sums = unsafe {
                let mut sums = [[_mm256_setzero_ps(); 2]; TILE_X];
                for b in 0..self.n_blocks {
                    self.ask_for_next_tile(x, b);
                    self.add_block(unit, x, b, &mut sums);
                }
                // As many f32, in their order.
                std::mem::transmute::<[[__m256; 2]; TILE_X], [[f32; TILE_ROWS]; TILE_X]>(sums)
            };
            self.take(i, sums);
        }
    }
}
