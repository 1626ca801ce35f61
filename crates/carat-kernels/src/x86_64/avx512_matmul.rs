//! A quantized matrix times quantized activation rows, AVX-512 with VNNI.
//!
//! Sixteen weight rows are turned into lanes chunk by chunk ([`super::avx512_lanes`]), unpacked to a form that the 8-bit
//! dot product takes ([`super::avx512_pack`]) and multiplied with a tile of activation rows, whose four-byte pieces are
//! broadcast:
//!
//! ```text
//! few activation rows (decode, drafts)    a block of 32 columns of 16 rows in registers, times all of them at once; for
//!                                         eight or sixteen of them Q8_0 has a way of its own (`avx512_q8_0`)
//! many (prefill)                          a panel of 2 x 16 rows and 2,048 columns in the L2 cache, times six at a time
//! ```
//!
//! Bound of the first: the weights are read once, so memory's bandwidth, as long as the arithmetic fits beside it. A chunk
//! of Q4_0 (2,304 bytes) takes some 340 cycles with one activation row and 50 more with each further one, read from the L3
//! cache of an Intel Xeon, whose memory takes 560 (12 GB/s a core); the two overlap only in part.
//!
//! Bound of the second: for each 32 elements and 16 outputs there are
//! 8 `vpdpbusd`, a product and an FMA (formats with a min: two) on the two multiplying ports, so 80 % (73 %) of the int8
//! peak. Its tile has 12 sums in i32, 12 in f32, 2 registers of weights, 1 of activations: 27 of 32.
//!
//! Order of sums: within 32 (or 16) elements in i32, then block by block in f32, the same for every number of
//! activation rows: a row's result does not depend on what it is batched with.

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx512_lanes::{PACK_ROWS, Rows};
use super::avx512_pack::{BLOCK_REGISTERS, PACK_CHUNKS, Pack, Packed, Scales};
use super::avx512_q8_0::several;
use super::fill_shares;
use crate::DType;
use crate::activation::QuantizedTile;
use crate::aligned::Aligned;
use crate::block::{BlockFormat, CHUNK, by_format};
use crate::matmul::{Matrix, PanelScratch, RowTask};

/// Weight rows of a panel.
pub(crate) const PANEL_ROWS: usize = 2 * PACK_ROWS;
/// Activation rows of a panel's tile.
const PANEL_X: usize = 6;
/// Most activation rows that are multiplied without a panel.
pub(crate) const MAX_FEW: usize = 16;
/// Blocks of 32 in a chunk.
const BLOCKS: usize = CHUNK / 32;
/// Activation rows that are multiplied side by side where there are that many: a register of sums each, beside eight of
/// codes.
pub(super) const GROUP: usize = 8;
/// How far ahead of its use a row's memory is asked for: some 400 ns at one core's bandwidth, with 16 rows.
const PREFETCH_BYTES: usize = 768;
/// Chunks of at least so many bytes are asked for into the L2 cache: sixteen rows of them so far ahead would drive the
/// activations out of the first.
const LONG_CHUNK_BYTES: usize = 176;

/// Activation rows that stand together in memory, for `n_rows` of them: see [`crate::activation::QuantizedRows::fill`].
pub(crate) fn tile_rows(n_rows: usize) -> usize {
    if n_rows > MAX_FEW {
        PANEL_X
    } else {
        n_rows.next_power_of_two()
    }
}

/// `out[t][r]` for the rows of `task`, which begin at a multiple of 16 or [`PANEL_ROWS`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(crate) fn multiply(task: &RowTask<'_>, scratch: &mut PanelScratch) {
    if task.weights.dtype() == DType::Q8_0 {
        match (task.x.tile_rows(), task.x.is_wide()) {
            (8, false) => return several::<false, 8>(task, scratch),
            (8, true) => return several::<true, 8>(task, scratch),
            (16, false) => return several::<false, 16>(task, scratch),
            (16, true) => return several::<true, 16>(task, scratch),
            _ => {}
        }
    }
    by_format!(task.weights.dtype(), F => {
        if task.x.is_wide() { multiply_as::<F, true>(task, scratch) } else { multiply_as::<F, false>(task, scratch) }
    }, else {});
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn multiply_as<F: Pack, const WIDE: bool>(task: &RowTask<'_>, scratch: &mut PanelScratch) {
    match task.x.tile_rows() {
        1 => few::<F, WIDE, 1>(task, scratch),
        2 => few::<F, WIDE, 2>(task, scratch),
        4 => few::<F, WIDE, 4>(task, scratch),
        8 => few::<F, WIDE, 8>(task, scratch),
        16 => few::<F, WIDE, 16>(task, scratch),
        _ => many::<F, WIDE>(task, scratch),
    }
}

/// The first chunk of the 16 rows from `row` on, of `n_cols` columns in whole chunks. Kernels read whole chunks: what follows a row that ends within one is
/// read too, and counts for nothing, since the activations are zero there. Where the matrix ends, a copy padded with
/// zeros is made.
pub(super) fn sixteen_rows<F: BlockFormat>(
    weights: &Matrix<'_>,
    n_cols: usize,
    row: usize,
    padded: &mut Vec<u8>,
) -> Rows {
    let stride = weights.row_bytes();
    assert!(stride < 1 << 27, "16 strides fit 31 bits");
    let bytes = weights.rows_from(row);
    let needed = (PACK_ROWS - 1) * stride + n_cols / CHUNK * F::CHUNK_BYTES;
    let chunk = if bytes.len() < needed {
        padded.clear();
        padded.extend_from_slice(bytes);
        padded.resize(needed, 0);
        padded.as_ptr()
    } else {
        bytes.as_ptr()
    };
    Rows { chunk, stride }
}

/// Up to `T` activation rows, which are one tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn few<F: Pack, const WIDE: bool, const T: usize>(task: &RowTask<'_>, scratch: &mut PanelScratch) {
    let (x, n_x) = (task.x.tile(0), task.x.n_rows().min(T));
    let n_chunks = task.x.n_cols() / CHUNK;
    let n_blocks = task.weights.n_cols().div_ceil(32);
    fill_shares::<F>(&mut scratch.shares, &x, 0..x.isum32.len());
    let ahead = PREFETCH_BYTES.div_ceil(F::CHUNK_BYTES);
    for row in task.rows.clone().step_by(PACK_ROWS) {
        let rows = sixteen_rows::<F>(task.weights, task.x.n_cols(), row, &mut scratch.padded);
        let next = if row + PACK_ROWS < task.rows.end {
            row + PACK_ROWS
        } else {
            task.next_row
        };
        // From the end of these rows to the beginning of the next.
        let next_rows = ((next - row) * rows.stride) as isize - (n_chunks * F::CHUNK_BYTES) as isize;
        let mut sums = [_mm512_setzero_ps(); T];
        for c in 0..n_chunks {
            let wraps = if c + ahead < n_chunks { 0 } else { next_rows };
            // SAFETY: `sixteen_rows` gave 16 rows of `n_chunks` chunks; the features are those of this function.
            unsafe {
                let chunk = rows.chunk.add(c * F::CHUNK_BYTES);
                let later = chunk.wrapping_offset((ahead * F::CHUNK_BYTES) as isize + wraps);
                let later = Rows { chunk: later, ..rows };
                let scales = &mut scratch.packed[0].scales[0];
                // What is left of the last chunk is not multiplied: the activations are zero there.
                let n_pairs = (n_blocks - BLOCKS * c).min(BLOCKS).div_ceil(2);
                let rows = Rows { chunk, ..rows };
                // Products of each code.
                let once = T * (1 + usize::from(WIDE)) <= 2;
                if once {
                    F::fill_once(&mut scratch.lanes, rows, n_pairs);
                } else {
                    F::fill(&mut scratch.lanes, rows, n_pairs);
                }
                F::scales(&scratch.lanes, scales);
                for pair in 0..BLOCKS / 2 {
                    if F::CHUNK_BYTES < LONG_CHUNK_BYTES {
                        later.prefetch::<F, _MM_HINT_T0>(pair, BLOCKS / 2);
                    } else {
                        later.prefetch::<F, _MM_HINT_T1>(pair, BLOCKS / 2);
                    }
                    if pair >= n_pairs {
                        continue;
                    }
                    for odd in 0..2 {
                        let w = if once {
                            F::codes_once(&scratch.lanes, rows, pair, odd)
                        } else {
                            F::codes(&scratch.lanes, pair, odd)
                        };
                        let b = 2 * pair + odd;
                        let at = (BLOCKS * c + b) * T;
                        multiply_block::<F, WIDE, T>(&w, (scales, b), (&x, &scratch.shares), at, &mut sums);
                    }
                }
            }
        }
        let n = (task.rows.end - row).min(PACK_ROWS);
        for (t, sums) in sums.into_iter().enumerate().take(n_x) {
            let to = task.out.run(t, row, n);
            // SAFETY: `run` checked `n` elements, which this task alone writes.
            unsafe { _mm512_mask_storeu_ps(to, lane_mask(n), sums) };
        }
    }
}

/// Sixteen rows, a block's codes or half of them, times as many codes of the blocks of some activation rows from `x` on,
/// which follow each other: added to one sum for each activation row.
trait Dots: Sized {
    /// # Safety
    /// - AVX-512 F and VNNI are there.
    /// - `x` is valid for reads of 16 bytes of each block for each element of `w`.
    unsafe fn add(&mut self, w: &[[__m512i; 4]], x: *const i8);
}

/// Implements [`Dots`] in assembly: sum by sum in turn, since one dot product takes longer than the next one of the same
/// sum can wait. The compiler puts those of one sum together where it likes, which takes a third longer.
macro_rules! dots {
    ($n:literal: $($d:ident $at:literal),*) => {
        impl Dots for [__m512i; $n] {
            #[inline]
            #[target_feature(enable = "avx512f,avx512vnni")]
            unsafe fn add(&mut self, w: &[[__m512i; 4]], x: *const i8) {
                let [$($d),*] = self;
                for (half, &[w0, w1, w2, w3]) in w.iter().enumerate() {
                    // SAFETY: reads what the caller vouches for, writes registers that are declared.
                    unsafe { asm!(
                        $(concat!("vpdpbusd {", stringify!($d), "}, {w0}, dword ptr [{x} + ", $at, "]{{1to16}}"),)*
                        $(concat!("vpdpbusd {", stringify!($d), "}, {w1}, dword ptr [{x} + ", $at, " + 4]{{1to16}}"),)*
                        $(concat!("vpdpbusd {", stringify!($d), "}, {w2}, dword ptr [{x} + ", $at, " + 8]{{1to16}}"),)*
                        $(concat!("vpdpbusd {", stringify!($d), "}, {w3}, dword ptr [{x} + ", $at, " + 12]{{1to16}}"),)*
                        x = in(reg) x.add(16 * half),
                        w0 = in(zmm_reg) w0,
                        w1 = in(zmm_reg) w1,
                        w2 = in(zmm_reg) w2,
                        w3 = in(zmm_reg) w3,
                        $($d = inout(zmm_reg) *$d,)*
                        options(pure, readonly, nostack, preserves_flags),
                    ) };
                }
            }
        }
    };
}

dots!(4: d0 0, d1 32, d2 64, d3 96);
dots!(8: d0 0, d1 32, d2 64, d3 96, d4 128, d5 160, d6 192, d7 224);

/// Implements [`Dots`] for so few activation rows that each has two sums.
macro_rules! few_dots {
    ($($n:literal),*) => {$(
        impl Dots for [__m512i; $n] {
            #[inline]
            #[target_feature(enable = "avx512f,avx512vnni")]
            unsafe fn add(&mut self, w: &[[__m512i; 4]], x: *const i8) {
                let mut others = [_mm512_setzero_si512(); $n];
                for (k, w) in w.as_flattened().iter().enumerate() {
                    for t in 0..$n {
                        // SAFETY: four bytes of those that the caller vouches for.
                        let piece = unsafe { x.add(32 * t).cast::<i32>().add(k).read_unaligned() };
                        let sum = if k % 2 == 0 { &mut self[t] } else { &mut others[t] };
                        *sum = _mm512_dpbusd_epi32(*sum, *w, _mm512_set1_epi32(piece));
                    }
                }
                for (sum, other) in self.iter_mut().zip(others) {
                    *sum = _mm512_add_epi32(*sum, other);
                }
            }
        }
    )*};
}

few_dots!(1, 2);

/// Adds the products of the codes `w` of 16 rows, block `b` of a chunk with these scales, with `T` activation rows,
/// whose blocks begin at block `at` of the tile.
///
/// # Safety
/// - AVX-512 F, BW and VNNI are there.
/// - `x` is a tile of `T` rows of at least `at + T` blocks, with low bytes if `WIDE`, and its shares ([`fill_shares`]).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
unsafe fn multiply_block<F: BlockFormat, const WIDE: bool, const T: usize>(
    w: &[__m512i; BLOCK_REGISTERS],
    scales: (&Scales, usize),
    x: (&QuantizedTile<'_>, &[i32]),
    at: usize,
    sums: &mut [__m512; T],
) {
    const { assert!(T.is_power_of_two(), "what is no whole group is one smaller one") };
    let (groups, rest) = sums.as_chunks_mut::<GROUP>();
    // SAFETY: the caller's word, for each group.
    unsafe {
        for (i, sums) in groups.iter_mut().enumerate() {
            multiply_group::<F, WIDE, GROUP>(w, scales, x, at + GROUP * i, sums);
        }
        let (fours, rest) = rest.as_chunks_mut::<4>();
        for sums in fours {
            multiply_group::<F, WIDE, 4>(w, scales, x, at, sums);
        }
        let (twos, ones) = rest.as_chunks_mut::<2>();
        for sums in twos {
            multiply_group::<F, WIDE, 2>(w, scales, x, at, sums);
        }
        let (ones, _) = ones.as_chunks_mut::<1>();
        for sums in ones {
            multiply_group::<F, WIDE, 1>(w, scales, x, at, sums);
        }
    }
}

/// [`multiply_block`] for `G` of the activation rows, block `at` and the following.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
unsafe fn multiply_group<F: BlockFormat, const WIDE: bool, const G: usize>(
    w: &[__m512i; BLOCK_REGISTERS],
    (scales, b): (&Scales, usize),
    (x, shares): (&QuantizedTile<'_>, &[i32]),
    at: usize,
    sums: &mut [__m512; G],
) where
    [__m512i; G]: Dots,
{
    let n_subs = 32 / F::SUB;
    let &[w0, w1, w2, w3, w4, w5, w6, w7] = w;
    let halves = [[w0, w1, w2, w3], [w4, w5, w6, w7]];
    for sub in 0..n_subs {
        let s = n_subs * b + sub;
        // SAFETY: the blocks from `at` on are the tile's, by the caller's word; each has 32 codes, a scale, two sums.
        unsafe {
            let first_sum = n_subs * at + sub;
            let x_sum = if F::SUB == 32 { x.sum32 } else { x.sum }.as_ptr().add(first_sum);
            // The codes that have these scales, and where the activations' begin.
            let (w, first) = if F::SUB == 32 {
                (&halves[..], 32 * at)
            } else {
                (&halves[sub..=sub], 32 * at + 16 * sub)
            };
            let mut dots = [_mm512_setzero_si512(); G];
            if !F::HAS_MIN {
                for (g, dots) in dots.iter_mut().enumerate() {
                    *dots = _mm512_set1_epi32(*shares.as_ptr().add(first_sum + n_subs * g));
                }
            }
            dots.add(w, if WIDE { x.low } else { x.q }.as_ptr().add(first));
            if WIDE {
                let mut high = [_mm512_setzero_si512(); G];
                high.add(w, x.q.as_ptr().add(first));
                for (dots, high) in dots.iter_mut().zip(high) {
                    *dots = _mm512_add_epi32(*dots, _mm512_slli_epi32::<8>(high));
                }
            }
            let scale = _mm512_loadu_ps(scales.scale[s].as_ptr());
            for (g, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
                let x_scale = _mm512_set1_ps(*x.scale32.as_ptr().add(at + g));
                let scale = _mm512_mul_ps(scale, x_scale);
                *sums = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dots), *sums);
                if F::HAS_MIN {
                    let min = _mm512_loadu_ps(scales.min[s].as_ptr());
                    let x_sum = _mm512_set1_ps(*x_sum.add(n_subs * g));
                    *sums = _mm512_fmadd_ps(min, x_sum, *sums);
                }
            }
        }
    }
}

/// Any number of activation rows, in tiles of [`PANEL_X`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
fn many<F: Pack, const WIDE: bool>(task: &RowTask<'_>, scratch: &mut PanelScratch) {
    assert!(
        task.rows.len() <= PANEL_ROWS,
        "a panel has at most {PANEL_ROWS} rows"
    );
    let n_chunks = task.x.n_cols() / CHUNK;
    let mut first = 0;
    while first < n_chunks {
        let chunks = first..(first + PACK_CHUNKS).min(n_chunks);
        pack_panel::<F>(task, chunks.clone(), scratch);
        for i in 0..task.x.n_rows().div_ceil(PANEL_X) {
            // SAFETY: the panel holds these chunks of the rows of `task`; the features are those of this function.
            unsafe { panel_tile::<F, WIDE>(task, &chunks, (&scratch.packed, &mut scratch.shares), i) };
        }
        first = chunks.end;
    }
}

/// Packs `chunks` of the rows of `task`: the first sixteen rows, then the others.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
fn pack_panel<F: Pack>(task: &RowTask<'_>, chunks: std::ops::Range<usize>, scratch: &mut PanelScratch) {
    for group in 0..task.rows.len().div_ceil(PACK_ROWS) {
        let row = task.rows.start + PACK_ROWS * group;
        let rows = sixteen_rows::<F>(task.weights, task.x.n_cols(), row, &mut scratch.padded);
        for (i, c) in chunks.clone().enumerate() {
            // SAFETY: `sixteen_rows` gave 16 rows of at least `chunks.end` chunks; the features are those of this
            // function.
            unsafe {
                let chunk = rows.chunk.add(c * F::CHUNK_BYTES);
                // From the L2 cache, where `ask_for_next_panel` brought them.
                let later = chunk.wrapping_add(2 * F::CHUNK_BYTES);
                Rows { chunk: later, ..rows }.prefetch::<F, _MM_HINT_T0>(0, 1);
                F::fill(&mut scratch.lanes, Rows { chunk, ..rows }, BLOCKS / 2);
                scratch.packed[group].set_chunk::<F>(i, &scratch.lanes);
            }
        }
    }
}

/// Asks for the share of tile `i` of the next panel's memory: a panel is multiplied for some 100 µs, in which memory
/// would have nothing to do, and then packed in a few, in which it would have to bring everything.
#[inline]
#[target_feature(enable = "avx512f")]
fn ask_for_next_panel<F: BlockFormat>(task: &RowTask<'_>, chunks: &std::ops::Range<usize>, i: usize) {
    let stride = task.weights.row_bytes();
    let n_chunks = task.x.n_cols() / CHUNK;
    let (row, chunks) = if chunks.end < n_chunks {
        (
            task.rows.start,
            chunks.end..(chunks.end + PACK_CHUNKS).min(n_chunks),
        )
    } else {
        (task.next_row, 0..PACK_CHUNKS.min(n_chunks))
    };
    let n_tiles = task.x.n_rows().div_ceil(PANEL_X);
    let first = task.weights.rows_from(0).as_ptr();
    for r in PANEL_ROWS * i / n_tiles..PANEL_ROWS * (i + 1) / n_tiles {
        let from = first.wrapping_add((row + r) * stride + chunks.start * F::CHUNK_BYTES);
        for line in 0..=chunks.len() * F::CHUNK_BYTES / 64 {
            _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(64 * line).cast());
        }
    }
}

/// The panel's chunks times tile `i` of the activations, written to the output or added to what is there.
///
/// # Safety
/// - AVX-512 F, BW, VL, DQ and VNNI are there.
/// - `chunks` are at most [`PACK_CHUNKS`] of the chunks of the activations, which have low bytes if `WIDE`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
unsafe fn panel_tile<F: BlockFormat, const WIDE: bool>(
    task: &RowTask<'_>,
    chunks: &std::ops::Range<usize>,
    (packed, shares): (&[Packed; 2], &mut Aligned<i32>),
    i: usize,
) {
    let x = task.x.tile(i);
    let tile_blocks = PANEL_X * BLOCKS;
    fill_shares::<F>(shares, &x, tile_blocks * chunks.start..tile_blocks * chunks.end);
    let t = PANEL_X * i;
    let n_x = (task.x.n_rows() - t).min(PANEL_X);
    let n = task.rows.len();
    let n_blocks = task.weights.n_cols().div_ceil(32);
    ask_for_next_panel::<F>(task, chunks, i);
    let halves = [lane_mask(n), lane_mask(n.saturating_sub(PACK_ROWS))];
    let mut sums = [[_mm512_setzero_ps(); 2]; PANEL_X];
    if chunks.start > 0 {
        for (j, sums) in sums.iter_mut().enumerate().take(n_x) {
            let from = task.out.run(t + j, task.rows.start, n);
            for (half, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `run` checked `n` elements, which this task alone touches; others are masked out.
                *sums = unsafe { _mm512_maskz_loadu_ps(halves[half], from.wrapping_add(PACK_ROWS * half)) };
            }
        }
    }
    for (i, c) in chunks.clone().enumerate() {
        let [top, bottom] = packed;
        let packed = [(&top.q[i], &top.scales[i]), (&bottom.q[i], &bottom.scales[i])];
        for b in 0..(n_blocks - BLOCKS * c).min(BLOCKS) {
            // SAFETY: block `b` of chunk `c` of the tile, by the caller's word.
            unsafe { panel_block::<F, WIDE>(packed, (&x, shares), b, (BLOCKS * c + b) * PANEL_X, &mut sums) };
        }
    }
    for (j, sums) in sums.into_iter().enumerate().take(n_x) {
        let to = task.out.run(t + j, task.rows.start, n);
        for (half, sums) in sums.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_ps(to.wrapping_add(PACK_ROWS * half), halves[half], sums) };
        }
    }
}

/// The first `n` lanes of a register, all if there are fewer.
#[inline]
pub(super) fn lane_mask(n: usize) -> __mmask16 {
    if n < PACK_ROWS { (1 << n) - 1 } else { !0 }
}

/// 32 columns of 2 x 16 rows times six activation rows, whose blocks begin at block `at` of the tile.
///
/// # Safety
/// As [`panel_tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
unsafe fn panel_block<F: BlockFormat, const WIDE: bool>(
    packed: [(&[[u8; 64]; CHUNK / 4], &Scales); 2],
    (x, shares): (&QuantizedTile<'_>, &[i32]),
    b: usize,
    at: usize,
    sums: &mut [[__m512; 2]; PANEL_X],
) {
    let n_subs = 32 / F::SUB;
    let [(left, _), (right, _)] = packed;
    for sub in 0..n_subs {
        let mut dots = [[_mm512_setzero_si512(); 2]; PANEL_X];
        // SAFETY: six blocks from `at` on are in the tile, by the caller's word; each has 32 codes, a scale, two sums.
        unsafe {
            let products = |dots: &mut _, x: *const i8| {
                for half in 2 / n_subs * sub..2 / n_subs * (sub + 1) {
                    let k = 8 * b + 4 * half;
                    let (left, right) = (left.as_ptr().add(k), right.as_ptr().add(k));
                    add_sixteen_columns(dots, left, right, x.add(32 * at + 16 * half));
                }
            };
            if WIDE {
                products(&mut dots, x.q.as_ptr());
                for dot in dots.as_flattened_mut() {
                    *dot = _mm512_slli_epi32::<8>(*dot);
                }
            }
            if !F::HAS_MIN {
                for (j, dots) in dots.iter_mut().enumerate() {
                    let share = _mm512_set1_epi32(*shares.as_ptr().add(n_subs * (at + j) + sub));
                    *dots = dots.map(|dot| if WIDE { _mm512_add_epi32(dot, share) } else { share });
                }
            }
            let last = if WIDE { x.low.as_ptr() } else { x.q.as_ptr() };
            products(&mut dots, last);
            for (half, (_, scales)) in packed.into_iter().enumerate() {
                let s = n_subs * b + sub;
                let scale = _mm512_loadu_ps(scales.scale[s].as_ptr());
                for (j, (sums, dots)) in sums.iter_mut().zip(&dots).enumerate() {
                    let x_scale = _mm512_set1_ps(*x.scale32.as_ptr().add(at + j));
                    let dot = _mm512_cvtepi32_ps(dots[half]);
                    sums[half] = _mm512_fmadd_ps(_mm512_mul_ps(scale, x_scale), dot, sums[half]);
                    if F::HAS_MIN {
                        let min = _mm512_loadu_ps(scales.min[s].as_ptr());
                        let x_sum = if F::SUB == 32 {
                            x.sum32.as_ptr().add(at + j)
                        } else {
                            x.sum.as_ptr().add(2 * (at + j) + sub)
                        };
                        sums[half] = _mm512_fmadd_ps(min, _mm512_set1_ps(*x_sum), sums[half]);
                    }
                }
            }
        }
    }
}

/// One step of [`add_sixteen_columns`]: four columns of 2 x 16 rows times six activation rows.
macro_rules! four_columns {
    ($step:literal) => {
        concat!(
            "vmovdqa64 {w0}, [{left} + 64 * ",
            $step,
            "]\n",
            "vmovdqa64 {w1}, [{right} + 64 * ",
            $step,
            "]\n",
            "vpbroadcastd {x0}, [{x} + 4 * ",
            $step,
            "]\n",
            "vpbroadcastd {x1}, [{x} + 4 * ",
            $step,
            " + 32]\n",
            "vpdpbusd {d0}, {w0}, {x0}\n",
            "vpdpbusd {d1}, {w1}, {x0}\n",
            "vpbroadcastd {x0}, [{x} + 4 * ",
            $step,
            " + 64]\n",
            "vpdpbusd {d2}, {w0}, {x1}\n",
            "vpdpbusd {d3}, {w1}, {x1}\n",
            "vpbroadcastd {x1}, [{x} + 4 * ",
            $step,
            " + 96]\n",
            "vpdpbusd {d4}, {w0}, {x0}\n",
            "vpdpbusd {d5}, {w1}, {x0}\n",
            "vpbroadcastd {x0}, [{x} + 4 * ",
            $step,
            " + 128]\n",
            "vpdpbusd {d6}, {w0}, {x1}\n",
            "vpdpbusd {d7}, {w1}, {x1}\n",
            "vpbroadcastd {x1}, [{x} + 4 * ",
            $step,
            " + 160]\n",
            "vpdpbusd {d8}, {w0}, {x0}\n",
            "vpdpbusd {d9}, {w1}, {x0}\n",
            "vpdpbusd {d10}, {w0}, {x1}\n",
            "vpdpbusd {d11}, {w1}, {x1}\n",
        )
    };
}

/// Adds to `dots` the products of half a block of 2 x 16 rows with the same half of six activation rows' blocks.
///
/// In assembly, because the compiler moves the loads of all steps to the front, has no registers left for them and
/// spills: 20 % of a prefill.
///
/// # Safety
/// - AVX-512 F and VNNI are there.
/// - `left` and `right` are aligned and valid for reads of 256 bytes, `x` for reads of 176.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_sixteen_columns(
    dots: &mut [[__m512i; 2]; PANEL_X],
    left: *const [u8; 64],
    right: *const [u8; 64],
    x: *const i8,
) {
    let [
        [mut d0, mut d1],
        [mut d2, mut d3],
        [mut d4, mut d5],
        [mut d6, mut d7],
        [mut d8, mut d9],
        [mut d10, mut d11],
    ] = *dots;
    let (mut _w0, mut _w1, mut _x0, mut _x1): (__m512i, __m512i, __m512i, __m512i);
    // SAFETY: reads what the caller vouches for, writes registers that are declared.
    unsafe {
        asm!(
            concat!(four_columns!("0"), four_columns!("1"), four_columns!("2"), four_columns!("3")),
            left = in(reg) left,
            right = in(reg) right,
            x = in(reg) x,
            w0 = out(zmm_reg) _w0,
            w1 = out(zmm_reg) _w1,
            x0 = out(zmm_reg) _x0,
            x1 = out(zmm_reg) _x1,
            d0 = inout(zmm_reg) d0,
            d1 = inout(zmm_reg) d1,
            d2 = inout(zmm_reg) d2,
            d3 = inout(zmm_reg) d3,
            d4 = inout(zmm_reg) d4,
            d5 = inout(zmm_reg) d5,
            d6 = inout(zmm_reg) d6,
            d7 = inout(zmm_reg) d7,
            d8 = inout(zmm_reg) d8,
            d9 = inout(zmm_reg) d9,
            d10 = inout(zmm_reg) d10,
            d11 = inout(zmm_reg) d11,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    *dots = [[d0, d1], [d2, d3], [d4, d5], [d6, d7], [d8, d9], [d10, d11]];
}
