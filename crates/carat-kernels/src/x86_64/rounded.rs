//! Activations as AMX takes them: tiles of bf16, and what rounding lost as tiles beside them.
//!
//! ```text
//! tiles   [n_rows / 32][n_cols / 32][2][16][32]      two tiles of 16 rows and 32 columns, one under the other
//! ```
//!
//! Rows are filled up with zeros to whole chunks of 256 columns; rows that fill up the last tile are of no meaning.

use std::sync::{Mutex, PoisonError};

use smallvec::SmallVec;

use super::amx::{SIDE, TILE};
use crate::aligned::Aligned;
use crate::block::CHUNK;
use crate::pair_gemm::round;
use crate::simd::{Simd, dispatch};
use crate::{Isa, Pool, is_area};

/// Columns of a tile.
pub(super) const TILE_COLS: usize = 32;

/// A batch of rounded rows; the buffers are reused from call to call.
#[derive(Debug, Default)]
pub(crate) struct RoundedRows {
    n_rows: usize,
    n_cols: usize,
    tiles: Aligned<u16>,
    /// Empty unless wanted.
    rest: Aligned<u16>,
}

impl RoundedRows {
    /// Rounds `x` `[n_rows, n_cols]` to bf16 and, if `with_rest`, what that lost once more, so that both together
    /// have 16 bits of mantissa.
    pub(crate) fn fill(
        &mut self,
        (isa, pool): (Isa, Option<&Pool>),
        with_rest: bool,
        x: &[f32],
        [n_rows, n_cols]: [usize; 2],
    ) {
        assert!(
            is_area(x.len(), n_rows, n_cols) && n_cols > 0,
            "activations do not fit their shape"
        );
        self.n_rows = n_rows;
        self.n_cols = n_cols.next_multiple_of(CHUNK);
        let n = n_rows.next_multiple_of(SIDE) * self.n_cols;
        self.tiles.resize(n);
        self.rest.resize(if with_rest { n } else { 0 });
        let block = SIDE * self.n_cols;
        let mut rests = self.rest.chunks_mut(block);
        let blocks = self.tiles.chunks_mut(block).zip(x.chunks(SIDE * n_cols));
        // Each block is one thread's; the lock only says so to the compiler.
        let work: SmallVec<[_; 16]> = blocks
            .map(|(tiles, x)| Mutex::new((tiles, rests.next().unwrap_or(&mut []), x)))
            .collect();
        let fill = |_, i: usize| {
            let (tiles, rest, x) = &mut *work[i].lock().unwrap_or_else(PoisonError::into_inner);
            for (r, x) in x.chunks_exact(n_cols).enumerate() {
                round_row(isa, x, r, tiles, rest);
            }
        };
        match pool {
            Some(pool) => pool.run(work.len(), &fill),
            None => (0..work.len()).for_each(|i| fill(0, i)),
        }
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Padded length of a row.
    pub(super) fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Blocks of 32 rows.
    pub(super) fn n_blocks(&self) -> usize {
        self.n_rows.div_ceil(SIDE)
    }

    /// The tiles of chunk `c` of block `i`, and what rounding lost if that was kept.
    pub(super) fn chunk(&self, i: usize, c: usize) -> (&[u16], Option<&[u16]>) {
        let n = SIDE * CHUNK;
        let at = i * SIDE * self.n_cols + c * n..i * SIDE * self.n_cols + (c + 1) * n;
        (&self.tiles[at.clone()], self.rest.get(at))
    }

    pub(super) fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }
}

dispatch! {
    /// Row `r` of a block.
    fn round_row(x: &[f32], r: usize, tiles: &mut [u16], rest: &mut [u16]) = round_row_generic;
}

/// LLVM makes vectors of it.
#[inline(always)]
fn round_row_generic<S: Simd>(_: S, x: &[f32], r: usize, tiles: &mut [u16], rest: &mut [u16]) {
    let at = |step: usize| (2 * step + r / 16) * TILE + r % 16 * TILE_COLS;
    for step in 0..tiles.len() / (2 * TILE) {
        let mut from = [0.0; TILE_COLS];
        let seen = x.get(step * TILE_COLS..).unwrap_or(&[]);
        let seen = &seen[..seen.len().min(TILE_COLS)];
        from[..seen.len()].copy_from_slice(seen);
        for (x, to) in from.iter_mut().zip(&mut tiles[at(step)..][..TILE_COLS]) {
            *to = round(*x);
            *x -= f32::from_bits(u32::from(*to) << 16);
        }
        if let Some(rest) = rest.get_mut(at(step)..at(step) + TILE_COLS) {
            for (x, to) in from.iter().zip(rest) {
                *to = round(*x);
            }
        }
    }
}
