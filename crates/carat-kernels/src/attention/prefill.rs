//! Many query rows of one sequence: prefill.
//!
//! A task is one key-value head and a tile of query tokens; the query heads of the group are further rows of
//! the tile. Keys and values are taken in tiles of [`KEYS`] positions:
//!
//! ```text
//! Q^T [E, M]      transposed once per task; M = tokens x group
//! S^T [KEYS, M]   = K [KEYS, E] Q^T          keys need no transposing, softmax runs down the columns
//! O   [M, E]     += P [M, KEYS] V [KEYS, E]  P is S^T read by columns
//! ```
//!
//! so that softmax needs no sums across lanes. Bound: `4 * M * KEYS * E` operations a tile at the f32 FMA peak.
//! Keys and values of earlier chunks come from the cache, those of this chunk from the activations, rounded to
//! the cache's format first by the caller: how a prompt was cut changes rounding only. So a local layer's cache
//! need not hold more than its window.
//!
//! Spans are tokens that see each other in both directions (an image's). A row of a span sees to the span's end;
//! the window limits only how far it sees back. Without spans nothing but one comparison is spent on them.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::format::widen;
use super::page::{KvView, PAGE, Side};
use crate::Compute;
use crate::gemm_f32::{Accumulate, Gemm, gemm_f32};
use crate::matmul::SharedOut;
use crate::simd::{Scalar, Simd, dispatch};

/// Positions of a tile of keys: those of a page.
const KEYS: usize = PAGE;
/// Rows (tokens x group) that a tile of queries has at most, unless one token has more.
const ROWS: usize = 96;

/// The query rows of one sequence's chunk.
pub struct PrefillQuery<'a> {
    /// `[T, H, E]`, normed, rotated; not yet scaled.
    pub q: &'a [f32],
    /// `[T, K, E]`: the chunk's keys, normed, rotated, rounded to the cache's format.
    pub k: &'a [f32],
    /// `[T, K, E]`: the chunk's values, rounded likewise.
    pub v: &'a [f32],
    /// The cache of the positions before the chunk. The chunk's own are not read from it.
    pub kv: KvView<'a>,
    /// Position of the first row.
    pub pos: usize,
    /// Rows of the chunk that see each other in both directions, ascending and apart; each whole in the chunk.
    pub spans: &'a [Range<usize>],
    /// `[T, H, E]`, overwritten.
    pub out: &'a mut [f32],
}

/// Memory that is reused between calls.
#[derive(Default)]
pub struct PrefillScratch {
    threads: Vec<Mutex<Tile>>,
}

/// One thread's memory.
#[derive(Default)]
struct Tile {
    /// `[E, M]`
    q: Vec<f32>,
    /// `[KEYS, E]` each
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[KEYS, M]`
    scores: Vec<f32>,
    /// `[M, E]`
    out: Vec<f32>,
    /// `[M]` each: largest score so far, sum of weights, factor for what was summed before.
    largest: Vec<f32>,
    total: Vec<f32>,
    factor: Vec<f32>,
    /// Per token: the position after the last that it sees.
    ends: Vec<usize>,
}

/// Attention of all rows of `query`. `window` counts a row's own position; `None` is all.
///
/// # Panics
/// When a shape does not fit.
pub fn prefill(
    compute: &Compute,
    query: &mut PrefillQuery<'_>,
    window: Option<usize>,
    score_scale: f32,
    scratch: &mut PrefillScratch,
) {
    scratch
        .threads
        .resize_with(compute.pool().n_threads(), Mutex::default);
    let kv = query.kv;
    let shape = kv.shape;
    let kv_width = shape.n_kv_heads * shape.head_dim;
    let n_tokens = query.k.len() / kv_width.max(1);
    let q_width = query.q.len() / n_tokens.max(1);
    let group = q_width / kv_width.max(1);
    assert!(
        query.k.len() == n_tokens * kv_width
            && query.v.len() == query.k.len()
            && query.q.len() == n_tokens * group * kv_width,
        "queries, keys and values do not fit each other"
    );
    assert!(
        window != Some(0),
        "a window has at least the query's own position"
    );
    assert!(
        query
            .spans
            .iter()
            .all(|span| span.start < span.end && span.end <= n_tokens)
            && query.spans.is_sorted_by(|a, b| a.end <= b.start),
        "spans are not ascending rows of the chunk"
    );
    let first = (query.pos + 1).saturating_sub(window.unwrap_or(usize::MAX));
    assert!(
        query.pos - first.min(query.pos) <= kv.n_slots(),
        "the visible span is longer than the cache"
    );
    let out = SharedOut::new(query.out, n_tokens, q_width);
    let task = Task {
        q: query.q,
        k: query.k,
        v: query.v,
        kv,
        pos: query.pos,
        spans: query.spans,
        group,
        n_tokens,
        tile_tokens: (ROWS / group.max(1)).max(1),
        window: window.unwrap_or(usize::MAX),
        score_scale,
        out,
    };
    let n_tiles = n_tokens.div_ceil(task.tile_tokens);
    compute.pool().run(n_tiles * shape.n_kv_heads, &|worker, item| {
        let mut tile = scratch.threads[worker]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Late tiles see the most keys: they go first, so that no thread is left alone with one at the end.
        task.run(
            compute.isa(),
            item % shape.n_kv_heads,
            n_tiles - 1 - item / shape.n_kv_heads,
            &mut tile,
        );
    });
}

struct Task<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    kv: KvView<'a>,
    pos: usize,
    spans: &'a [Range<usize>],
    group: usize,
    n_tokens: usize,
    tile_tokens: usize,
    window: usize,
    score_scale: f32,
    out: SharedOut<'a>,
}

impl Task<'_> {
    fn run(&self, isa: crate::Isa, head: usize, tile_index: usize, tile: &mut Tile) {
        let tokens = tile_index * self.tile_tokens..((tile_index + 1) * self.tile_tokens).min(self.n_tokens);
        let rows = tokens.len() * self.group;
        let dim = self.kv.shape.head_dim;
        tile.reset(rows, dim);
        self.load_queries(head, &tokens, rows, &mut tile.q);
        let first = (self.pos + tokens.start + 1).saturating_sub(self.window);
        tile.ends.clear();
        tile.ends.extend(tokens.clone().map(|token| self.end(token)));
        let end = tile.ends.iter().copied().max().unwrap_or(self.pos);
        // Tiles of keys begin at multiples of KEYS, so that the order of sums does not depend on the chunk.
        let mut base = first / KEYS * KEYS;
        while base < end {
            let keys = base.max(first)..(base + KEYS).min(end);
            self.load_keys(isa, head, &keys, tile);
            self.multiply(isa, &keys, &tokens, tile);
            base += KEYS;
        }
        for (r, row) in tile.out.chunks_exact_mut(dim).enumerate() {
            crate::vector::scale(isa, row, 1.0 / tile.total[r]);
            let (token, g) = (tokens.start + r / self.group, r % self.group);
            self.out.set_run(token, (head * self.group + g) * dim, row);
        }
    }

    /// The position after the last that a token of the chunk sees.
    fn end(&self, token: usize) -> usize {
        let next = self.spans.partition_point(|span| span.end <= token);
        match self.spans.get(next) {
            Some(span) if span.start <= token => self.pos + span.end,
            _ => self.pos + token + 1,
        }
    }

    /// Q^T: element `e` of row `token * group + g`, scaled.
    fn load_queries(&self, head: usize, tokens: &Range<usize>, rows: usize, to: &mut [f32]) {
        let dim = self.kv.shape.head_dim;
        let width = self.group * self.kv.shape.n_kv_heads * dim;
        for r in 0..rows {
            let (token, g) = (tokens.start + r / self.group, r % self.group);
            let from = &self.q[token * width + (head * self.group + g) * dim..][..dim];
            for (e, value) in from.iter().enumerate() {
                to[e * rows + r] = value * self.score_scale;
            }
        }
    }

    /// Keys and values of positions `keys` as f32: older ones from the cache, the chunk's own as they are.
    fn load_keys(&self, isa: crate::Isa, head: usize, keys: &Range<usize>, tile: &mut Tile) {
        let shape = &self.kv.shape;
        let (dim, width) = (shape.head_dim, shape.n_kv_heads * shape.head_dim);
        let n_cached = keys.end.min(self.pos).saturating_sub(keys.start);
        for (side, own, to) in [
            (Side::Key, self.k, &mut tile.k),
            (Side::Value, self.v, &mut tile.v),
        ] {
            let (cached, new) = to[..keys.len() * dim].split_at_mut(n_cached * dim);
            if n_cached > 0 {
                let rows = self.kv.rows(side, head, keys.start..keys.start + n_cached);
                widen(isa, rows, cached);
            }
            for (pos, to) in (keys.start + n_cached..keys.end).zip(new.chunks_exact_mut(dim)) {
                to.copy_from_slice(&own[(pos - self.pos) * width + head * dim..][..dim]);
            }
        }
    }

    /// One tile of keys: scores, online softmax, weighted values.
    fn multiply(&self, isa: crate::Isa, keys: &Range<usize>, tokens: &Range<usize>, tile: &mut Tile) {
        let (dim, n, rows) = (self.kv.shape.head_dim, keys.len(), tokens.len() * self.group);
        let scores = Gemm {
            a: &tile.k,
            a_row: dim,
            a_col: 1,
            b: &tile.q,
            ldb: rows,
            c: tile.scores.as_mut_ptr(),
            ldc: rows,
            m: n,
            n: rows,
            k: dim,
            add: Accumulate::Overwrite,
        };
        // SAFETY: `scores` has KEYS x rows elements and is borrowed by nobody else.
        unsafe { gemm_f32(isa, &scores) };
        self.mask(keys, tokens, &tile.ends, &mut tile.scores);
        let scores = &mut tile.scores[..n * rows];
        softmax_columns(isa, scores, &mut tile.largest, &mut tile.total, &mut tile.factor);
        for (row, factor) in tile.out.chunks_exact_mut(dim).zip(&tile.factor) {
            if *factor != 1.0 {
                crate::vector::scale(isa, row, *factor);
            }
        }
        let values = Gemm {
            a: &tile.scores,
            a_row: 1,
            a_col: rows,
            b: &tile.v,
            ldb: dim,
            c: tile.out.as_mut_ptr(),
            ldc: dim,
            m: rows,
            n: dim,
            k: n,
            add: Accumulate::Add,
        };
        // SAFETY: `out` has rows x dim elements and is borrowed by nobody else.
        unsafe { gemm_f32(isa, &values) };
    }

    /// Sets the scores of positions that a row must not see to minus infinity.
    fn mask(&self, keys: &Range<usize>, tokens: &Range<usize>, ends: &[usize], scores: &mut [f32]) {
        let (first, last) = (self.pos + tokens.start, self.pos + tokens.end - 1);
        if keys.end <= first + 1 && last - keys.start < self.window {
            return;
        }
        let rows = tokens.len() * self.group;
        for (key, scores) in keys.clone().zip(scores.chunks_exact_mut(rows)) {
            let per_token = tokens.clone().zip(ends).zip(scores.chunks_exact_mut(self.group));
            for ((token, end), scores) in per_token {
                if key >= *end || (self.pos + token).saturating_sub(key) >= self.window {
                    scores.fill(f32::NEG_INFINITY);
                }
            }
        }
    }
}

impl Tile {
    fn reset(&mut self, rows: usize, dim: usize) {
        self.q.resize(dim * rows, 0.0);
        self.k.resize(KEYS * dim, 0.0);
        self.v.resize(KEYS * dim, 0.0);
        self.scores.resize(KEYS * rows, 0.0);
        self.factor.resize(rows, 1.0);
        for (values, start) in [(&mut self.largest, f32::NEG_INFINITY), (&mut self.total, 0.0)] {
            values.clear();
            values.resize(rows, start);
        }
        self.out.clear();
        self.out.resize(rows * dim, 0.0);
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
