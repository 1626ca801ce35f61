//! A quantized matrix times many activation rows, by tiles of bf16.
//!
//! A task is a panel of weight rows. Chunk by chunk of 256 columns they become tiles of bf16 (the L2 cache holds them),
//! and all activations, which lie in tiles already, stream past them:
//!
//! ```text
//! for each chunk      16 rows at a time: codes and scales as in decode, w = scale * code + min, rounded
//!   for each 32 activation rows      16 KiB, which stay in the L1 cache for all of the panel
//!     for each 32 weight rows        16 KiB from the L2 cache; four sums of 16 x 16 in tiles, kept beside the panel
//! 512 activation rows at a time, so that their sums stay in the L2 cache too
//! ```
//!
//! bf16 and not int8: formats have a scale for every 32 columns or fewer. Sums of integers would have to leave the tiles
//! after each of them to be scaled, and a product of 32 columns takes as long as one of 64. A weight in bf16 is off by
//! 1/256 of itself at most, which is little beside what its format lost, and an activation by less than in 8 bits.
//!
//! With 16-bit activations, both sides are split into two numbers of bf16, `w = w0 + w1`, and three products are summed,
//! `w0 x0 + w1 x0 + w0 x1`; what is left out is 2^-16 of a term at most, as what either side has lost.
//!
//! Bound: 512 products a cycle and core. Beside them, 0.26 cycles for unpacking a weight, which 512 activation rows share.

use std::arch::x86_64::*;

use super::amx::{Part, SIDE, Start, TILE, Tiles};
use super::avx512_lanes::{PACK_ROWS, Rows};
use super::avx512_matmul::sixteen_rows;
use super::avx512_pack::{BLOCK_REGISTERS, Pack, Scales};
use super::rounded::{RoundedRows, TILE_COLS};
use crate::block::{BlockFormat, CHUNK, by_format};
use crate::matmul::{Matrix, PanelScratch, SharedOut};

/// Steps of a chunk: tiles of 32 columns.
const STEPS: usize = CHUNK / TILE_COLS;

/// Blocks of 32 activation rows whose sums are kept at a time: 256 KiB with a panel of 128 rows.
const MAX_BLOCKS: usize = 16;

/// Some rows of a product. Whoever makes one sees to it that no other live task has the same rows.
pub(crate) struct TileTask<'a> {
    pub(crate) weights: &'a Matrix<'a>,
    pub(crate) rows: std::ops::Range<usize>,
    /// Where this thread will probably go on, for asking memory ahead of time; may be beyond the end.
    pub(crate) next_row: usize,
    pub(crate) x: &'a RoundedRows,
    pub(crate) out: &'a SharedOut<'a>,
}

/// Weight rows of a task: as many as leave each thread several.
pub(crate) fn panel_rows(n_rows: usize, n_threads: usize) -> usize {
    [128, 64]
        .into_iter()
        .find(|rows| n_rows / rows >= 3 * n_threads)
        .unwrap_or(SIDE)
}

/// `out[t][r]` for the rows of `task`, which begin at a multiple of 32.
///
/// # Safety
/// [`super::amx::is_present`] said yes, and AVX-512 with VNNI and BF16 is there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,f16c")]
pub(crate) unsafe fn multiply(task: &TileTask<'_>, scratch: &mut PanelScratch) {
    // SAFETY: the caller's word; no function on the way here holds tiles.
    let tiles = unsafe { Tiles::new() };
    by_format!(task.weights.dtype(), F => {
        if task.x.has_rest() {
            multiply_as::<F, true>(task, &tiles, scratch);
        } else {
            multiply_as::<F, false>(task, &tiles, scratch);
        }
    }, else {});
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,f16c")]
fn multiply_as<F: Pack, const WIDE: bool>(task: &TileTask<'_>, tiles: &Tiles, scratch: &mut PanelScratch) {
    let n_strips = task.rows.len().div_ceil(SIDE);
    let panel = n_strips * SIDE * CHUNK;
    scratch.tiles.resize(if WIDE { 2 * panel } else { panel });
    let n_blocks = task.x.n_blocks();
    for first in (0..n_blocks).step_by(MAX_BLOCKS) {
        let blocks = first..(first + MAX_BLOCKS).min(n_blocks);
        scratch.sums.resize(blocks.len() * n_strips * SIDE * SIDE);
        multiply_blocks::<F, WIDE>(task, tiles, blocks, scratch);
    }
}

/// The same for some blocks of activation rows, whose sums `scratch` has room for.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,f16c")]
fn multiply_blocks<F: Pack, const WIDE: bool>(
    task: &TileTask<'_>,
    tiles: &Tiles,
    blocks: std::ops::Range<usize>,
    scratch: &mut PanelScratch,
) {
    let n_strips = task.rows.len().div_ceil(SIDE);
    let panel = n_strips * SIDE * CHUNK;
    let n_chunks = task.x.n_cols() / CHUNK;
    for c in 0..n_chunks {
        // What is left of the last chunk is not multiplied: the activations are zero there.
        let n_steps = (task.weights.n_cols().div_ceil(32) - STEPS * c).min(STEPS);
        fill_panel::<F, WIDE>(task, c, scratch);
        let (panel, rest) = scratch.tiles.split_at(panel);
        let start = if c == 0 { Start::Zero } else { Start::Old };
        let (sums, _) = scratch.sums.as_chunks_mut::<{ SIDE * SIDE }>();
        for (i, sums) in blocks.clone().zip(sums.chunks_exact_mut(n_strips)) {
            ask_for_next_chunk::<F>(task, c, i);
            let (x, x_rest) = task.x.chunk(i, c);
            for (s, sums) in sums.iter_mut().enumerate() {
                let at = s * SIDE * CHUNK..(s + 1) * SIDE * CHUNK;
                let part = |a: &[u16], b: &[u16]| Part {
                    a: a.as_ptr(),
                    b: b.as_ptr(),
                };
                let whole = part(x, &panel[at.clone()]);
                // SAFETY: both sides of each part have the tiles of a chunk, which are STEPS times two, no fewer than are
                // wanted.
                unsafe {
                    match x_rest {
                        Some(x_rest) if WIDE => {
                            let parts = [whole, part(x, &rest[at.clone()]), part(x_rest, &panel[at])];
                            tiles.multiply(sums, start, &parts, n_steps);
                        }
                        _ => tiles.multiply(sums, start, &[whole], n_steps),
                    }
                }
                if c + 1 == n_chunks {
                    // At once, so that memory takes them while the next are multiplied.
                    write(task, i, s, sums);
                }
            }
        }
    }
}

/// Chunk `c` of the rows of `task` as tiles: `[rows / 32][STEPS][2][16][16 pairs]`, and if `WIDE` what rounding lost
/// behind all of them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,f16c")]
fn fill_panel<F: Pack, const WIDE: bool>(task: &TileTask<'_>, c: usize, scratch: &mut PanelScratch) {
    let n_rest = scratch.tiles.len() / 2;
    for group in 0..task.rows.len().div_ceil(PACK_ROWS) {
        let row = task.rows.start + PACK_ROWS * group;
        let rows = sixteen_rows::<F>(task.weights, task.x.n_cols(), row, &mut scratch.padded);
        let scales = &mut scratch.packed[0].scales[0];
        // SAFETY: `sixteen_rows` gave 16 rows of all chunks; the features are those of this function.
        unsafe {
            let chunk = rows.chunk.add(c * F::CHUNK_BYTES);
            F::fill(&mut scratch.lanes, Rows { chunk, ..rows }, STEPS / 2);
            F::scales(&scratch.lanes, scales);
        }
        for b in 0..STEPS {
            let at = ((group / 2 * STEPS + b) * 2 + group % 2) * TILE;
            // SAFETY: as above; the tile is one of the panel's, and so is what is lost if it is wanted.
            unsafe {
                let codes = F::codes(&scratch.lanes, b / 2, b % 2);
                let to = scratch.tiles[at..at + TILE].as_mut_ptr();
                let rest = if WIDE {
                    scratch.tiles[n_rest + at..n_rest + at + TILE].as_mut_ptr()
                } else {
                    to
                };
                set_tile::<F, WIDE>(&codes, (scales, b), to, rest);
            }
        }
    }
}

/// Block `b` of a chunk with these scales as a tile, and if `WIDE` what rounding lost.
///
/// # Safety
/// - AVX-512 F, BW and BF16 are there.
/// - `to`, and `rest` if `WIDE`, are valid for writes of a tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn set_tile<F: BlockFormat, const WIDE: bool>(
    codes: &[__m512i; BLOCK_REGISTERS],
    (scales, b): (&Scales, usize),
    to: *mut u16,
    rest: *mut u16,
) {
    let byte = _mm512_set1_epi32(255);
    let n_subs = 32 / F::SUB;
    let mut factors = [(_mm512_setzero_ps(), _mm512_setzero_ps()); 2];
    for (i, (scale, min)) in factors[..n_subs].iter_mut().enumerate() {
        let s = n_subs * b + i;
        // SAFETY: 16 numbers.
        *scale = with_plain_nan(unsafe { _mm512_loadu_ps(scales.scale[s].as_ptr()) });
        *min = if F::HAS_MIN {
            // SAFETY: 16 numbers.
            with_plain_nan(unsafe { _mm512_loadu_ps(scales.min[s].as_ptr()) })
        } else {
            _mm512_mul_ps(*scale, _mm512_set1_ps(-F::OFFSET as f32))
        };
    }
    for (k, codes) in codes.iter().enumerate() {
        let (scale, min) = factors[k * n_subs / BLOCK_REGISTERS];
        let element = |code: __m512i| _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(code), min);
        let four = [
            element(_mm512_and_si512(*codes, byte)),
            element(_mm512_and_si512(_mm512_srli_epi32::<8>(*codes), byte)),
            element(_mm512_and_si512(_mm512_srli_epi32::<16>(*codes), byte)),
            element(_mm512_srli_epi32::<24>(*codes)),
        ];
        for (half, [even, odd]) in four.as_chunks::<2>().0.iter().enumerate() {
            let at = (2 * k + half) * 2 * PACK_ROWS;
            // SAFETY: 64 of the tile's bytes; the features are those of this function.
            unsafe {
                let pair = rounded_pair(*even, *odd);
                _mm512_storeu_si512(to.add(at).cast(), pair);
                if WIDE {
                    let low = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair));
                    let high = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(-0x1_0000)));
                    let lost = rounded_pair(_mm512_sub_ps(*even, low), _mm512_sub_ps(*odd, high));
                    _mm512_storeu_si512(rest.add(at).cast(), lost);
                }
            }
        }
    }
}

/// The bf16 nearest to each, side by side. In whole numbers, since the instruction for it, with the shuffle that it needs,
/// takes longer: unpacking was a third slower with it. Numbers halfway go away from zero; NaN must have its upper bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded_pair(even: __m512, odd: __m512) -> __m512i {
    let half = _mm512_set1_epi32(0x8000);
    let even = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_castps_si512(even), half));
    let odd = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    // The lower half of the one, the upper of the other.
    _mm512_ternarylogic_epi32::<0xe4>(even, odd, _mm512_set1_epi32(0xffff))
}

/// With every NaN of a damaged file as the one that [`rounded_pair`] keeps.
#[inline]
#[target_feature(enable = "avx512f")]
fn with_plain_nan(x: __m512) -> __m512 {
    _mm512_mask_mov_ps(
        x,
        _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x),
        _mm512_set1_ps(f32::NAN),
    )
}

/// Asks for the share of block `i` of the memory of the next chunk, which is unpacked when all blocks are done.
#[inline]
#[target_feature(enable = "avx512f")]
fn ask_for_next_chunk<F: BlockFormat>(task: &TileTask<'_>, c: usize, i: usize) {
    let stride = task.weights.row_bytes();
    let (row, c) = if (c + 1) * CHUNK < task.x.n_cols() {
        (task.rows.start, c + 1)
    } else {
        (task.next_row, 0)
    };
    let (n, n_blocks) = (task.rows.len(), task.x.n_blocks());
    let first = task.weights.rows_from(0).as_ptr();
    for r in n * i / n_blocks..n * (i + 1) / n_blocks {
        let from = first.wrapping_add((row + r) * stride + c * F::CHUNK_BYTES);
        for line in 0..=F::CHUNK_BYTES / 64 {
            _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(64 * line).cast());
        }
    }
}

/// The sums of block `i` of activation rows and strip `s` of weight rows to where they belong.
fn write(task: &TileTask<'_>, i: usize, s: usize, sums: &[f32; SIDE * SIDE]) {
    let first = task.rows.start + s * SIDE;
    let n = (task.rows.end - first).min(SIDE);
    let (sums, _) = sums.as_chunks::<16>();
    for (t, sums) in (i * SIDE..task.x.n_rows())
        .zip(0..SIDE)
        .map(|(t, r)| (t, &sums[r / 16 * 32 + r % 16..]))
    {
        if n == SIDE {
            let to = task.out.run(t, first, SIDE);
            // SAFETY: `run` checked 32 elements, which this task alone writes.
            unsafe {
                to.cast::<[f32; 16]>().write_unaligned(sums[0]);
                to.add(16).cast::<[f32; 16]>().write_unaligned(sums[16]);
            }
        } else {
            task.out.set_run(t, first, &sums[0][..n.min(16)]);
            task.out
                .set_run(t, first + n.min(16), &sums[16][..n.saturating_sub(16)]);
        }
    }
}
