//! One thread's tile of prefill: queries, keys, scores and sums, in f32 or with operands in bf16, and the online
//! softmax between the two products. See [`super::prefill`] for what is multiplied with what.

use super::integer_tile::IntegerTile;
use super::page::PAGE;
use crate::Isa;
use crate::aligned::Aligned;
use crate::gemm_f32::{Accumulate, Gemm, gemm_f32};
use crate::pair_gemm::{
    LANES, PairGemm, Rest, Start, keep_what_rounding_loses, pair_gemm, pair_rows, round_to_bf16,
};
use crate::simd::{Scalar, Simd, dispatch};

/// Positions of a tile of keys: those of a page.
pub(super) const KEYS: usize = PAGE;

/// One thread's memory. `C` is the number of columns: `M` rows of queries, filled up to whole registers by zeros.
#[derive(Default)]
pub(super) struct Tile {
    /// `[E, C]`
    pub(super) q: Vec<f32>,
    /// `[KEYS, E]` each
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// `[KEYS, C]`
    pub(super) scores: Vec<f32>,
    /// `[M, E]`
    pub(super) out: Vec<f32>,
    /// `[C]` each: largest score so far, sum of weights, factor for what was summed before.
    largest: Vec<f32>,
    pub(super) total: Vec<f32>,
    factor: Vec<f32>,
    /// Per token: the position after the last that it sees.
    pub(super) ends: Vec<usize>,
    pairs: PairTile,
    integers: IntegerTile,
}

/// The operands in bf16, in pairs along the summed axis, and where the cache keeps more than that, what rounding lost.
#[derive(Default)]
struct PairTile {
    with_rest: bool,
    /// `[E / 2, C]`
    q: [Aligned<u32>; 2],
    /// `[KEYS, E / 2]`
    k: [Aligned<u32>; 2],
    /// `[KEYS / 2, E]`
    v: [Aligned<u32>; 2],
    /// `[KEYS / 2, C]`
    weights: [Aligned<u32>; 2],
}

/// Makes `len` pairs of `x` by `round`, and with a rest those of what rounding loses, for which `x` is given up.
fn split(
    isa: Isa,
    with_rest: bool,
    x: &mut [f32],
    to: &mut [Aligned<u32>; 2],
    len: usize,
    round: impl Fn(&[f32], &mut [u32]),
) {
    let [whole, rest] = to;
    whole.resize(len);
    round(x, whole);
    if with_rest {
        rest.resize(len);
        keep_what_rounding_loses(isa, x);
        round(x, rest);
    }
}

impl PairTile {
    fn rest<'a>(&self, a: &'a [u32], b: &'a [u32]) -> Option<Rest<'a>> {
        self.with_rest.then_some(Rest { a, b })
    }
}

impl Tile {
    /// Makes room for `rows` queries of `dim` elements; nothing is seen yet.
    pub(super) fn reset(&mut self, rows: usize, dim: usize) {
        let columns = rows.next_multiple_of(LANES);
        self.k.resize(KEYS * dim, 0.0);
        self.v.resize(KEYS * dim, 0.0);
        self.scores.resize(KEYS * columns, 0.0);
        self.factor.resize(columns, 1.0);
        for (values, len, start) in [
            (&mut self.q, dim * columns, 0.0),
            (&mut self.largest, columns, f32::NEG_INFINITY),
            (&mut self.total, columns, 0.0),
            (&mut self.out, rows * dim, 0.0),
        ] {
            values.clear();
            values.resize(len, start);
        }
    }

    /// Columns of queries, scores and weights.
    pub(super) fn columns(&self) -> usize {
        self.largest.len()
    }

    /// The queries in bf16, and what that loses if `with_rest`.
    pub(super) fn round_queries(&mut self, isa: Isa, dim: usize, with_rest: bool) {
        let columns = self.columns();
        self.pairs.with_rest = with_rest;
        let (x, to) = (&mut self.q, &mut self.pairs.q);
        split(isa, with_rest, x, to, dim / 2 * columns, |x, to| {
            pair_rows(isa, x, columns, to);
        });
    }

    /// The first `n` keys and values in bf16.
    pub(super) fn round_keys(&mut self, isa: Isa, n: usize, dim: usize) {
        let with_rest = self.pairs.with_rest;
        let pairs = &mut self.pairs;
        let (k, v) = (&mut self.k[..n * dim], &mut self.v[..n * dim]);
        split(isa, with_rest, k, &mut pairs.k, n * dim / 2, |x, to| {
            round_to_bf16(isa, x, bytemuck::cast_slice_mut(to));
        });
        split(isa, with_rest, v, &mut pairs.v, n.div_ceil(2) * dim, |x, to| {
            pair_rows(isa, x, dim, to);
        });
    }

    /// The queries in integers.
    pub(super) fn round_queries_to_integers(&mut self, isa: Isa, dim: usize) {
        self.integers.round_queries(isa, &self.q, dim);
    }

    /// The first `n` keys and values in integers.
    pub(super) fn round_keys_to_integers(&mut self, isa: Isa, n: usize, dim: usize) {
        self.integers
            .round_keys(isa, &self.k[..n * dim], &self.v[..n * dim], dim);
    }

    /// S^T of `n` keys from integers.
    pub(super) fn score_integers(&mut self, isa: Isa, n: usize, dim: usize) {
        let len = n * self.columns();
        self.integers.score(isa, &mut self.scores[..len], dim);
    }

    /// Adds the values of `n` keys by their weights, from integers.
    pub(super) fn weigh_integers(&mut self, isa: Isa, n: usize, dim: usize) {
        let len = n * self.columns();
        self.integers.weigh(isa, &self.scores[..len], &mut self.out, dim);
    }

    /// S^T of `n` keys in f32.
    pub(super) fn score_floats(&mut self, isa: Isa, n: usize, dim: usize) {
        let columns = self.columns();
        let product = Gemm {
            a: &self.k,
            a_row: dim,
            a_col: 1,
            b: &self.q,
            ldb: columns,
            c: self.scores.as_mut_ptr(),
            ldc: columns,
            m: n,
            n: columns,
            k: dim,
            add: Accumulate::Overwrite,
        };
        // SAFETY: `scores` has KEYS >= n rows of `columns` and is borrowed by nobody else.
        unsafe { gemm_f32(isa, &product) };
    }

    /// Turns the scores of `n` keys into weights, and brings the sums so far to the new largest scores.
    pub(super) fn soften(&mut self, isa: Isa, n: usize, dim: usize) {
        let scores = &mut self.scores[..n * self.largest.len()];
        softmax_columns(isa, scores, &mut self.largest, &mut self.total, &mut self.factor);
        for (row, factor) in self.out.chunks_exact_mut(dim).zip(&self.factor) {
            if *factor != 1.0 {
                crate::vector::scale(isa, row, *factor);
            }
        }
    }

    /// Adds the values of `n` keys by their weights, in f32.
    pub(super) fn weigh_floats(&mut self, isa: Isa, n: usize, dim: usize) {
        let product = Gemm {
            a: &self.scores,
            a_row: 1,
            a_col: self.columns(),
            b: &self.v,
            ldb: dim,
            c: self.out.as_mut_ptr(),
            ldc: dim,
            m: self.out.len() / dim,
            n: dim,
            k: n,
            add: Accumulate::Add,
        };
        // SAFETY: `out` has m rows of `dim` and is borrowed by nobody else.
        unsafe { gemm_f32(isa, &product) };
    }

    /// S^T of `n` keys from operands in bf16.
    pub(super) fn score_pairs(&mut self, isa: Isa, n: usize, dim: usize) {
        let columns = self.columns();
        let product = PairGemm {
            a: &self.pairs.k[0],
            a_row: dim / 2,
            a_col: 1,
            b: &self.pairs.q[0],
            ldb: columns,
            c: self.scores.as_mut_ptr(),
            ldc: columns,
            m: n,
            n: columns,
            k: dim / 2,
            rest: self.pairs.rest(&self.pairs.k[1], &self.pairs.q[1]),
            start: Start::Row(None),
        };
        // SAFETY: `scores` has KEYS >= n rows of `columns` and is borrowed by nobody else.
        unsafe { pair_gemm(isa, &product) };
    }

    /// Adds the values of `n` keys by their weights, from operands in bf16.
    pub(super) fn weigh_pairs(&mut self, isa: Isa, n: usize, dim: usize) {
        let (columns, n_pairs) = (self.columns(), n.div_ceil(2));
        let (x, to) = (&mut self.scores[..n * columns], &mut self.pairs.weights);
        split(isa, self.pairs.with_rest, x, to, n_pairs * columns, |x, to| {
            pair_rows(isa, x, columns, to);
        });
        let product = PairGemm {
            a: &self.pairs.weights[0],
            a_row: 1,
            a_col: columns,
            b: &self.pairs.v[0],
            ldb: dim,
            c: self.out.as_mut_ptr(),
            ldc: dim,
            m: self.out.len() / dim,
            n: dim,
            k: n_pairs,
            rest: self.pairs.rest(&self.pairs.weights[1], &self.pairs.v[1]),
            start: Start::Old,
        };
        // SAFETY: `out` has m rows of `dim` and is borrowed by nobody else.
        unsafe { pair_gemm(isa, &product) };
    }
}

dispatch! {
    /// Online softmax down the columns of `scores` `[n, M]`: turns scores into weights e^(score - largest) with
    /// the largest score so far, sets `factor` to what earlier sums must be multiplied with, updates the rest.
    fn softmax_columns(scores: &mut [f32], largest: &mut [f32], total: &mut [f32], factor: &mut [f32])
        = softmax_columns_generic;
}

#[inline(always)]
fn softmax_columns_generic<S: Simd>(
    simd: S,
    scores: &mut [f32],
    largest: &mut [f32],
    total: &mut [f32],
    factor: &mut [f32],
) {
    let m = largest.len();
    assert!(total.len() == m && factor.len() == m, "one of each for a column");
    let whole = m / S::LANES * S::LANES;
    for at in (0..whole).step_by(S::LANES) {
        softmax_lanes(simd, at, scores, largest, total, factor);
    }
    for at in whole..m {
        softmax_lanes(Scalar, at, scores, largest, total, factor);
    }
}

/// The columns `at .. at + LANES`.
#[inline(always)]
fn softmax_lanes<S: Simd>(
    simd: S,
    at: usize,
    scores: &mut [f32],
    largest: &mut [f32],
    total: &mut [f32],
    factor: &mut [f32],
) {
    let m = largest.len();
    assert!(
        at + S::LANES <= m && scores.len().is_multiple_of(m),
        "columns out of range"
    );
    let rows = scores.len() / m;
    // SAFETY: columns at .. at + LANES are below `m`, rows below `rows`.
    unsafe {
        let column = scores.as_mut_ptr().add(at);
        let old = simd.load(largest.as_ptr().add(at));
        let mut new = old;
        for r in 0..rows {
            new = simd.max(new, simd.load(column.add(r * m)));
        }
        // A column without any visible key yet stays at minus infinity; a finite shift keeps NaN out.
        let shift = simd.max(new, simd.splat(f32::MIN));
        let correction = simd.exp(simd.sub(simd.max(old, simd.splat(f32::MIN)), shift));
        let mut sum = simd.mul(simd.load(total.as_ptr().add(at)), correction);
        for r in 0..rows {
            let score = simd.load(column.add(r * m));
            let below = simd.sub(score, shift);
            let weight = simd.zero_below(below, -87.0, simd.exp(below));
            simd.store(column.add(r * m), weight);
            sum = simd.add(sum, weight);
        }
        simd.store(largest.as_mut_ptr().add(at), new);
        simd.store(total.as_mut_ptr().add(at), sum);
        simd.store(factor.as_mut_ptr().add(at), correction);
    }
}
