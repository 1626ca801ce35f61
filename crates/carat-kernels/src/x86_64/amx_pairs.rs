//! [`crate::pair_gemm`] by tiles: both operands are copied to tiles first. Each tile of A then meets all of B's columns, and
//! each of B all of A's rows.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::amx::{Part, SIDE, Start, TILE, Tiles};
use super::avx512_lanes::Rows;
use crate::aligned::Aligned;
use crate::pair_gemm::{self, LANES, PairGemm};

/// Pairs in a row of a tile.
const TILE_PAIRS: usize = 16;

/// One thread's memory.
#[derive(Default)]
struct Scratch {
    /// `[steps][2][16][16]` pairs: 32 rows of A, and of its rest.
    a: [Aligned<u32>; 2],
    /// `[n / 32][steps][2][16][16]` pairs: all of B, and of its rest.
    b: [Aligned<u32>; 2],
}

/// Four tiles, each row of which is one line of the cache.
#[repr(align(64))]
struct Sums([f32; SIDE * SIDE]);

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Carries out `gemm`, whose operands are as long as they must be.
///
/// # Safety
/// - [`super::amx::is_present`] said yes, and AVX-512 is there.
/// - `gemm.c` is valid for reads and writes of `n` elements at each of `m` rows, `ldc` apart, and nobody else touches them
///   meanwhile.
#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) unsafe fn multiply(gemm: &PairGemm<'_>) {
    // SAFETY: the caller's word; no function on the way here holds tiles.
    let tiles = unsafe { Tiles::new() };
    let n_steps = gemm.k.div_ceil(TILE_PAIRS);
    let strip = n_steps * SIDE * TILE_PAIRS;
    SCRATCH.with_borrow_mut(|Scratch { a, b }| {
        let operands = [(gemm.a, gemm.b)]
            .into_iter()
            .chain(gemm.rest.map(|rest| (rest.a, rest.b)));
        let n_operands = operands.clone().count();
        for ((a, b), (_, from)) in a.iter_mut().zip(b.iter_mut()).zip(operands.clone()) {
            // Products of several sizes take turns: no memory is given back in between.
            a.resize(strip.max(a.len()));
            b.resize((gemm.n.div_ceil(SIDE) * strip).max(b.len()));
            copy_b(gemm, from, b);
        }
        for first in (0..gemm.m).step_by(SIDE) {
            for (a, (from, _)) in a.iter_mut().zip(operands.clone()) {
                copy_a(gemm, from, first, &mut a[..strip]);
            }
            for s in 0..gemm.n.div_ceil(SIDE) {
                let part = |i: usize, j: usize| Part {
                    a: a[i].as_ptr().cast(),
                    b: b[j][s * strip..].as_ptr().cast(),
                };
                let mut sums = Sums([0.0; SIDE * SIDE]);
                // SAFETY: 32 rows of A and a strip of B have two tiles for each step; rows below `m` are of `gemm.c`.
                unsafe {
                    if n_operands == 1 {
                        tiles.multiply(&mut sums.0, Start::Zero, &[part(0, 0)], n_steps);
                    } else {
                        let parts = [part(0, 0), part(0, 1), part(1, 0)];
                        tiles.multiply(&mut sums.0, Start::Zero, &parts, n_steps);
                    }
                    write(gemm, first, s * SIDE, &sums.0);
                }
            }
        }
    });
}

/// All of B, filled up with zeros to whole steps; what fills up the last strip is of no meaning.
fn copy_b(gemm: &PairGemm<'_>, from: &[u32], to: &mut [u32]) {
    let rows = gemm.k.next_multiple_of(TILE_PAIRS);
    let (to, _) = to.as_chunks_mut::<LANES>();
    for column in (0..gemm.n).step_by(LANES) {
        let (strip, half) = (column / SIDE, column / LANES % 2);
        for k in 0..rows {
            let (step, row) = (k / TILE_PAIRS, k % TILE_PAIRS);
            let to = &mut to[strip * 2 * rows + (2 * step + half) * TILE_PAIRS + row];
            if k < gemm.k {
                to.copy_from_slice(&from[k * gemm.ldb + column..][..LANES]);
            } else {
                to.fill(0);
            }
        }
    }
}

/// The rows of A from `first` on, likewise.
#[target_feature(enable = "avx512f,avx512dq")]
fn copy_a(gemm: &PairGemm<'_>, a: &[u32], first: usize, to: &mut [u32]) {
    for (i, to) in to.as_chunks_mut::<{ TILE / 2 }>().0.iter_mut().enumerate() {
        let (row, k) = (first + i % 2 * 16, i / 2 * TILE_PAIRS);
        let from = row * gemm.a_row + k * gemm.a_col;
        let is_whole = row + 16 <= gemm.m && k + TILE_PAIRS <= gemm.k;
        let (to, _) = to.as_chunks_mut::<TILE_PAIRS>();
        if is_whole && gemm.a_col == 1 {
            for (r, to) in to.iter_mut().enumerate() {
                to.copy_from_slice(&a[from + r * gemm.a_row..][..TILE_PAIRS]);
            }
        } else if is_whole && gemm.a_row == 1 {
            let columns = &a[from..from + 15 * gemm.a_col + 16];
            let rows = Rows {
                chunk: columns.as_ptr().cast(),
                stride: 4 * gemm.a_col,
            };
            for half in 0..2 {
                // SAFETY: 16 columns of A, of which 16 elements each are in `columns`.
                let turned = unsafe { rows.wide_columns(32 * half) };
                for (to, row) in to[8 * half..].iter_mut().zip(turned) {
                    // SAFETY: 16 pairs.
                    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), row) };
                }
            }
        } else {
            for (r, to) in to.iter_mut().enumerate() {
                for (c, to) in to.iter_mut().enumerate() {
                    let is_in = row + r < gemm.m && k + c < gemm.k;
                    *to = if is_in {
                        a[from + r * gemm.a_row + c * gemm.a_col]
                    } else {
                        0
                    };
                }
            }
        }
    }
}

/// The sums of 32 rows and columns from (`first`, `column`) on to C, as far as it goes.
///
/// # Safety
/// As [`multiply`].
unsafe fn write(gemm: &PairGemm<'_>, first: usize, column: usize, sums: &[f32; SIDE * SIDE]) {
    for r in 0..SIDE.min(gemm.m - first) {
        for half in 0..2 {
            let at = column + half * 16;
            let n = gemm.n.saturating_sub(at).min(16);
            if n == 0 {
                break;
            }
            let sums = &sums[(r / 16 * 2 + half) * 256 + r % 16 * 16..][..n];
            // SAFETY: `n` elements of a row of C, by the caller's word.
            let to = unsafe { std::slice::from_raw_parts_mut(gemm.c.add((first + r) * gemm.ldc + at), n) };
            match gemm.start {
                pair_gemm::Start::Old => to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum),
                pair_gemm::Start::Row(None) => to.copy_from_slice(sums),
                pair_gemm::Start::Row(Some(row)) => {
                    for ((to, sum), start) in to.iter_mut().zip(sums).zip(&row[at..]) {
                        *to = start + sum;
                    }
                }
            }
        }
    }
}
