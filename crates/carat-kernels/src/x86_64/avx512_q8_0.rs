//! Q8_0 weights times eight or sixteen activation rows: the embedding of a small model, which the logits of sequences that
//! decode together take half of their time for.
//!
//! A block of sixteen rows goes straight from the file into registers and from there into the products, and memory is asked
//! for in the order of the file, some lines a block: shuffles, products and reading overlap, which they do not where a
//! chunk of eight blocks is turned at a time ([`super::avx512_matmul`]). The sums of so many rows leave no registers for
//! that; they stay in the first cache.

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx512_lanes::{PACK_ROWS, low_f16};
use super::avx512_matmul::{GROUP, MAX_FEW, lane_mask, sixteen_rows};
use super::avx512_pack::{BLOCK_REGISTERS, unsigned};
use super::fill_shares;
use crate::activation::QuantizedTile;
use crate::block::{CHUNK, Q8_0};
use crate::matmul::{PanelScratch, RowTask};

/// Bytes of a block: an f16 scale and 32 codes.
const BLOCK_BYTES: usize = 34;

/// Sums of up to [`MAX_FEW`] activation rows with sixteen weight rows.
#[derive(Default)]
#[repr(align(64))]
pub(crate) struct Sums([[f32; PACK_ROWS]; MAX_FEW]);

/// `out[t][r]` for the rows of `task`, of Q8_0, and up to `T` activation rows, which are one tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")]
pub(super) fn several<const WIDE: bool, const T: usize>(task: &RowTask<'_>, scratch: &mut PanelScratch) {
    const {
        assert!(
            T.is_multiple_of(GROUP) && T <= MAX_FEW,
            "whole groups that have room"
        )
    };
    let (x, n_x) = (task.x.tile(0), task.x.n_rows().min(T));
    let n_cols = task.x.n_cols();
    let n_blocks = task.weights.n_cols().div_ceil(32);
    debug_assert!(
        n_blocks <= n_cols / CHUNK * (CHUNK / 32),
        "blocks of whole chunks"
    );
    fill_shares::<Q8_0>(&mut scratch.shares, &x, 0..x.isum32.len());
    let stride = task.weights.row_bytes();
    let n_lines = (PACK_ROWS * stride).div_ceil(64);
    let lines_a_block = n_lines.div_ceil(n_blocks);
    for row in task.rows.clone().step_by(PACK_ROWS) {
        let rows = sixteen_rows::<Q8_0>(task.weights, n_cols, row, &mut scratch.padded);
        let next = if row + PACK_ROWS < task.rows.end {
            row + PACK_ROWS
        } else {
            task.next_row
        };
        let next = rows.chunk.wrapping_add((next - row) * stride);
        let (groups, _) = scratch.q8_0_sums.0[..T].as_chunks_mut::<GROUP>();
        groups.as_flattened_mut().fill([0.0; PACK_ROWS]);
        for b in 0..n_blocks {
            for line in b * lines_a_block..((b + 1) * lines_a_block).min(n_lines) {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(64 * line).cast());
            }
            // SAFETY: `sixteen_rows` gave 16 rows of whole chunks, which these blocks are within; the tile has `T` rows of as
            // many blocks, with low bytes if `WIDE`; the features are those of this function.
            unsafe {
                let codes = BLOCK_BYTES * b + 2;
                let [w0, w1, w2, w3] = rows.columns(codes);
                let [w4, w5, w6, w7] = rows.columns(codes + 16);
                let w = unsigned([w0, w1, w2, w3, w4, w5, w6, w7]);
                let scale = low_f16(rows.word(BLOCK_BYTES * b, rows.starts()));
                for (g, sums) in groups.iter_mut().enumerate() {
                    add_block::<WIDE>(&w, scale, (&x, &scratch.shares), T * b + GROUP * g, sums);
                }
            }
        }
        let n = (task.rows.end - row).min(PACK_ROWS);
        for (t, sums) in groups.as_flattened().iter().enumerate().take(n_x) {
            let to = task.out.run(t, row, n);
            // SAFETY: `run` checked `n` elements, which this task alone writes.
            unsafe { _mm512_mask_storeu_ps(to, lane_mask(n), _mm512_loadu_ps(sums.as_ptr())) };
        }
    }
}

/// Adds the products of a block `w` of 16 rows with eight activation rows, block `at` of the tile and the following.
///
/// # Safety
/// - AVX-512 F and VNNI are there.
/// - `x` is a tile of at least `at + GROUP` blocks, with low bytes if `WIDE`, and its shares ([`fill_shares`]).
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_block<const WIDE: bool>(
    w: &[__m512i; BLOCK_REGISTERS],
    scale: __m512,
    (x, shares): (&QuantizedTile<'_>, &[i32]),
    at: usize,
    sums: &mut [[f32; PACK_ROWS]; GROUP],
) {
    // SAFETY: the blocks from `at` on are the tile's, by the caller's word; each has 32 codes, a scale and a share.
    unsafe {
        let mut dots = [_mm512_setzero_si512(); GROUP];
        for (g, dots) in dots.iter_mut().enumerate() {
            *dots = _mm512_set1_epi32(*shares.as_ptr().add(at + g));
        }
        let q = x.q.as_ptr().add(32 * at);
        if WIDE {
            let mut high = [_mm512_setzero_si512(); GROUP];
            add_high_and_low(w, (q, &mut high), (x.low.as_ptr().add(32 * at), &mut dots));
            for (dots, high) in dots.iter_mut().zip(high) {
                *dots = _mm512_add_epi32(*dots, _mm512_slli_epi32::<8>(high));
            }
        } else {
            add(w, q, &mut dots);
        }
        for (g, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(*x.scale32.as_ptr().add(at + g)));
            let sum = _mm512_loadu_ps(sums.as_ptr());
            _mm512_storeu_ps(
                sums.as_mut_ptr(),
                _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dots), sum),
            );
        }
    }
}

/// The products of a register of codes `w` with the four bytes of each of eight activation rows from `x + k` on, added to
/// the registers of sums `d`.
macro_rules! products {
    ($w:literal, $x:literal, $k:literal, $d:literal) => {
        products!($w, $x, $k, $d; 0 0, 1 32, 2 64, 3 96, 4 128, 5 160, 6 192, 7 224)
    };
    ($w:literal, $x:literal, $k:literal, $d:literal; $($i:literal $at:literal),*) => {
        concat!($("vpdpbusd {", $d, $i, "}, {w", $w, "}, dword ptr [{", $x, "} + ", $at, " + ", $k, "]{{1to16}}\n",)*)
    };
}

/// Half a block's codes times eight activation rows, sum by sum in turn, as [`super::avx512_matmul`] says.
///
/// Not `pure`: so that the compiler puts down the sums of one group before it begins the next, whose codes it would have no
/// registers for otherwise.
///
/// # Safety
/// - AVX-512 F and VNNI are there.
/// - `x` is valid for reads of 256 bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add(w: &[__m512i; BLOCK_REGISTERS], x: *const i8, dots: &mut [__m512i; GROUP]) {
    let [d0, d1, d2, d3, d4, d5, d6, d7] = dots;
    for (half, w) in w.as_chunks::<4>().0.iter().enumerate() {
        // SAFETY: reads what the caller vouches for, writes registers that are declared.
        unsafe {
            asm!(
                products!(0, "x", 0, "d"),
                products!(1, "x", 4, "d"),
                products!(2, "x", 8, "d"),
                products!(3, "x", 12, "d"),
                x = in(reg) x.add(16 * half),
                w0 = in(zmm_reg) w[0],
                w1 = in(zmm_reg) w[1],
                w2 = in(zmm_reg) w[2],
                w3 = in(zmm_reg) w[3],
                d0 = inout(zmm_reg) *d0,
                d1 = inout(zmm_reg) *d1,
                d2 = inout(zmm_reg) *d2,
                d3 = inout(zmm_reg) *d3,
                d4 = inout(zmm_reg) *d4,
                d5 = inout(zmm_reg) *d5,
                d6 = inout(zmm_reg) *d6,
                d7 = inout(zmm_reg) *d7,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// [`add`] for the high and the low bytes of activations in 16 bits, together: sixteen sums in turn.
///
/// # Safety
/// As there, for both.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_high_and_low(
    w: &[__m512i; BLOCK_REGISTERS],
    (x, high): (*const i8, &mut [__m512i; GROUP]),
    (y, low): (*const i8, &mut [__m512i; GROUP]),
) {
    let [h0, h1, h2, h3, h4, h5, h6, h7] = high;
    let [l0, l1, l2, l3, l4, l5, l6, l7] = low;
    for (half, w) in w.as_chunks::<4>().0.iter().enumerate() {
        // SAFETY: reads what the caller vouches for, writes registers that are declared.
        unsafe {
            asm!(
                products!(0, "x", 0, "h"),
                products!(0, "y", 0, "l"),
                products!(1, "x", 4, "h"),
                products!(1, "y", 4, "l"),
                products!(2, "x", 8, "h"),
                products!(2, "y", 8, "l"),
                products!(3, "x", 12, "h"),
                products!(3, "y", 12, "l"),
                x = in(reg) x.add(16 * half),
                y = in(reg) y.add(16 * half),
                w0 = in(zmm_reg) w[0],
                w1 = in(zmm_reg) w[1],
                w2 = in(zmm_reg) w[2],
                w3 = in(zmm_reg) w[3],
                h0 = inout(zmm_reg) *h0,
                h1 = inout(zmm_reg) *h1,
                h2 = inout(zmm_reg) *h2,
                h3 = inout(zmm_reg) *h3,
                h4 = inout(zmm_reg) *h4,
                h5 = inout(zmm_reg) *h5,
                h6 = inout(zmm_reg) *h6,
                h7 = inout(zmm_reg) *h7,
                l0 = inout(zmm_reg) *l0,
                l1 = inout(zmm_reg) *l1,
                l2 = inout(zmm_reg) *l2,
                l3 = inout(zmm_reg) *l3,
                l4 = inout(zmm_reg) *l4,
                l5 = inout(zmm_reg) *l5,
                l6 = inout(zmm_reg) *l6,
                l7 = inout(zmm_reg) *l7,
                options(nostack, preserves_flags),
            );
        }
    }
}
