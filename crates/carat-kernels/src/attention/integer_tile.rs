//! The operands of a tile of prefill as 16-bit integers with scales, for caches of 16 bits and fewer where the processor
//! multiplies integers faster than f32 and bf16 not.
//!
//! A query and a weight have the scale of their column, a key those of its blocks, a value one for its row: it is
//! multiplied into the weights before these are rounded. So nothing depends on which other positions share a tile, and
//! sums within a tile are exact: how a prompt is cut changes no bit of a product.

use super::tile::KEYS;
use crate::Isa;
use crate::aligned::Aligned;
use crate::integer_gemm::{BLOCK, IntegerGemm, integer_gemm, row_len};
use crate::integer_pairs::{pair_columns, pair_values, pair_weights};
use crate::integer_round::round_blocks;
use crate::pair_gemm::Start;

const _: () = assert!(KEYS <= 2 * BLOCK, "a tile is a block of values");

/// `C` is the number of columns, as in [`super::tile::Tile`].
#[derive(Default)]
pub(super) struct IntegerTile {
    /// `[E / 2, C]`
    q: Aligned<u32>,
    /// `[C]`
    q_scales: Vec<f32>,
    /// `[KEYS, row_len(E)]`
    k: Aligned<u32>,
    /// `[KEYS / 2, E]`
    v: Aligned<u32>,
    /// `[KEYS]`
    v_scales: Vec<f32>,
    /// `[KEYS / 2, C]`
    weights: Aligned<u32>,
    /// `[C]`
    weight_scales: Vec<f32>,
    /// `[E]`
    ones: Vec<f32>,
}

impl IntegerTile {
    /// Takes the queries `q` `[dim, columns]`.
    pub(super) fn round_queries(&mut self, isa: Isa, q: &[f32], dim: usize) {
        let columns = q.len() / dim;
        self.ones.resize(dim, 1.0);
        self.q_scales.resize(columns, 0.0);
        self.q.resize(dim / 2 * columns);
        pair_columns(isa, q, &mut self.q, &mut self.q_scales);
    }

    /// Takes keys and values `[n, dim]` each.
    pub(super) fn round_keys(&mut self, isa: Isa, k: &[f32], v: &[f32], dim: usize) {
        let n = k.len() / dim;
        let len = row_len(dim);
        self.k.resize(n * len);
        for (row, to) in k.chunks_exact(dim).zip(self.k.chunks_exact_mut(len)) {
            round_blocks(isa, row, to);
        }
        self.v.resize(n.div_ceil(2) * dim);
        self.v_scales.resize(n, 0.0);
        pair_values(isa, v, &mut self.v, &mut self.v_scales);
    }

    /// `scores` `[n, columns]` = S^T.
    pub(super) fn score(&self, isa: Isa, scores: &mut [f32], dim: usize) {
        let (columns, len) = (self.q_scales.len(), row_len(dim));
        let product = IntegerGemm {
            a: &self.k,
            a_scales: &self.k[dim / 2..],
            a_row: len,
            a_col: 1,
            b: &self.q,
            b_scales: &self.q_scales,
            ldb: columns,
            c: scores.as_mut_ptr(),
            ldc: columns,
            m: scores.len() / columns,
            n: columns,
            k: dim / 2,
            start: Start::Row(None),
        };
        // SAFETY: `scores` has m rows of `columns` and is borrowed by nobody else.
        unsafe { integer_gemm(isa, &product) };
    }

    /// Adds the values by their `weights` `[n, columns]` to `out` `[rows, dim]`.
    pub(super) fn weigh(&mut self, isa: Isa, weights: &[f32], out: &mut [f32], dim: usize) {
        let (columns, n) = (self.q_scales.len(), self.v_scales.len());
        self.weight_scales.resize(columns, 0.0);
        self.weights.resize(n.div_ceil(2) * columns);
        let to = &mut self.weights;
        pair_weights(isa, weights, &self.v_scales, to, &mut self.weight_scales);
        let product = IntegerGemm {
            a: &self.weights,
            a_scales: bytemuck::cast_slice(&self.weight_scales),
            a_row: 1,
            a_col: columns,
            b: &self.v,
            b_scales: &self.ones,
            ldb: dim,
            c: out.as_mut_ptr(),
            ldc: dim,
            m: out.len() / dim,
            n: dim,
            k: n.div_ceil(2),
            start: Start::Old,
        };
        // SAFETY: `out` has m rows of `dim` and is borrowed by nobody else.
        unsafe { integer_gemm(isa, &product) };
    }
}
