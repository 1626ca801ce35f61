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
//! so that softmax needs no sums across lanes. Where the cache keeps no more than bf16 does (`bf16`, `q8_0`, `q4_0`)
//! and the processor is faster at bf16, operands are rounded to bf16 and paired along the summed axis, sums stay in
//! f32: twice the products a cycle; with AMX sixteen times, and for f16 caches, as two numbers of bf16 each, five. Where
//! it is not, caches of 16 bits and fewer are multiplied as integers of 16 bits (`integer_tile.rs`), twice as many a
//! cycle too. Bound: `4 * M * KEYS * E` operations a tile at the peak of f32, bf16 or those integers.
//!
//! Keys and values of earlier chunks come from the cache, those of this chunk from the activations, rounded to
//! the cache's format first by the caller: how a prompt was cut changes rounding only. So a local layer's cache
//! need not hold more than its window.
//!
//! Spans are tokens that see each other in both directions (an image's). A row of a span sees to the span's end;
//! the window limits only how far it sees back. Without spans nothing but one comparison is spent on them.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::format::widen;
use super::kv_dtype::KvDType;
use super::page::{KvView, Side};
use super::tile::{KEYS, Tile};
use crate::matmul::SharedOut;
use crate::{Compute, Isa, integer_gemm, pair_gemm};

/// Rows (tokens x group) that a tile of queries has at most, unless one token has more.
const ROWS: usize = 96;
/// The same with operands of 16 bits: keys and values are rounded once for each tile of queries.
const ROWS_OF_PAIRS: usize = 192;

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
    let operands = Operands::of(compute.isa(), shape.dtype, shape.head_dim);
    let rows = match operands {
        Operands::Floats => ROWS,
        Operands::Pairs | Operands::SplitPairs | Operands::Integers => ROWS_OF_PAIRS,
    };
    let task = Task {
        isa: compute.isa(),
        operands,
        q: query.q,
        k: query.k,
        v: query.v,
        kv,
        pos: query.pos,
        spans: query.spans,
        group,
        n_tokens,
        tile_tokens: (rows / group.max(1)).max(1),
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
            item % shape.n_kv_heads,
            n_tiles - 1 - item / shape.n_kv_heads,
            &mut tile,
        );
    });
}

/// What the operands of products are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Operands {
    Floats,
    /// Rounded to bf16.
    Pairs,
    /// Split into two numbers of bf16.
    SplitPairs,
    /// Rounded to 16-bit integers.
    Integers,
}

impl Operands {
    /// bf16 where that rounds no more than the cache does and the processor is faster at it. What f16 keeps takes two
    /// numbers of bf16 and three products, which pays with tiles alone. Else integers where they are faster than f32.
    pub(super) fn of(isa: Isa, dtype: KvDType, head_dim: usize) -> Operands {
        let whole = head_dim.is_multiple_of(pair_gemm::LANES);
        match dtype {
            KvDType::Bf16 | KvDType::Q8_0 | KvDType::Q4_0 if whole && pair_gemm::pays(isa) => Operands::Pairs,
            KvDType::F16 if whole && isa.has_tiles() => Operands::SplitPairs,
            KvDType::F32 => Operands::Floats,
            _ if whole && integer_gemm::pays(isa) => Operands::Integers,
            _ => Operands::Floats,
        }
    }
}

struct Task<'a> {
    isa: Isa,
    operands: Operands,
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
    fn run(&self, head: usize, tile_index: usize, tile: &mut Tile) {
        let tokens = tile_index * self.tile_tokens..((tile_index + 1) * self.tile_tokens).min(self.n_tokens);
        let rows = tokens.len() * self.group;
        let dim = self.kv.shape.head_dim;
        tile.reset(rows, dim);
        self.load_queries(head, &tokens, rows, tile);
        let first = (self.pos + tokens.start + 1).saturating_sub(self.window);
        tile.ends.clear();
        tile.ends.extend(tokens.clone().map(|token| self.end(token)));
        let end = tile.ends.iter().copied().max().unwrap_or(self.pos);
        // Tiles of keys begin at multiples of KEYS, and what is summed together at multiples of it, so that the order of
        // sums does not depend on the chunk.
        let together = match self.operands {
            Operands::Floats | Operands::Integers => 1,
            _ if self.isa.has_tiles() => KEYS,
            _ => 2,
        };
        let mut base = first / KEYS * KEYS;
        while base < end {
            let keys = base.max(first / together * together)..(base + KEYS).min(end);
            self.load_keys(head, first, &keys, tile);
            self.multiply(&keys, &tokens, tile);
            base += KEYS;
        }
        for (r, row) in tile.out.chunks_exact_mut(dim).enumerate() {
            crate::vector::scale(self.isa, row, 1.0 / tile.total[r]);
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
    fn load_queries(&self, head: usize, tokens: &Range<usize>, rows: usize, tile: &mut Tile) {
        let (dim, columns) = (self.kv.shape.head_dim, tile.columns());
        let width = self.group * self.kv.shape.n_kv_heads * dim;
        for r in 0..rows {
            let (token, g) = (tokens.start + r / self.group, r % self.group);
            let from = &self.q[token * width + (head * self.group + g) * dim..][..dim];
            for (e, value) in from.iter().enumerate() {
                tile.q[e * columns + r] = value * self.score_scale;
            }
        }
        match self.operands {
            Operands::Floats => {}
            Operands::Integers => tile.round_queries_to_integers(self.isa, dim),
            Operands::Pairs => tile.round_queries(self.isa, dim, false),
            Operands::SplitPairs => tile.round_queries(self.isa, dim, true),
        }
    }

    /// Keys and values of positions `keys`: older ones from the cache, the chunk's own as they are, zeros before
    /// `first`.
    fn load_keys(&self, head: usize, first: usize, keys: &Range<usize>, tile: &mut Tile) {
        let shape = &self.kv.shape;
        let (dim, width) = (shape.head_dim, shape.n_kv_heads * shape.head_dim);
        let n_unseen = first.saturating_sub(keys.start);
        let seen = keys.start + n_unseen..keys.end;
        let n_cached = seen.end.min(self.pos).saturating_sub(seen.start);
        for (side, own, to) in [
            (Side::Key, self.k, &mut tile.k),
            (Side::Value, self.v, &mut tile.v),
        ] {
            let (unseen, to) = to[..keys.len() * dim].split_at_mut(n_unseen * dim);
            unseen.fill(0.0);
            let (cached, new) = to.split_at_mut(n_cached * dim);
            if n_cached > 0 {
                let rows = self.kv.rows(side, head, seen.start..seen.start + n_cached);
                widen(self.isa, rows, cached);
            }
            for (pos, to) in (seen.start + n_cached..seen.end).zip(new.chunks_exact_mut(dim)) {
                to.copy_from_slice(&own[(pos - self.pos) * width + head * dim..][..dim]);
            }
        }
        match self.operands {
            Operands::Floats => {}
            Operands::Integers => tile.round_keys_to_integers(self.isa, keys.len(), dim),
            Operands::Pairs | Operands::SplitPairs => tile.round_keys(self.isa, keys.len(), dim),
        }
    }

    /// One tile of keys: scores, online softmax, weighted values.
    fn multiply(&self, keys: &Range<usize>, tokens: &Range<usize>, tile: &mut Tile) {
        let (dim, n, columns) = (self.kv.shape.head_dim, keys.len(), tile.columns());
        match self.operands {
            Operands::Floats => tile.score_floats(self.isa, n, dim),
            Operands::Integers => tile.score_integers(self.isa, n, dim),
            Operands::Pairs | Operands::SplitPairs => tile.score_pairs(self.isa, n, dim),
        }
        self.mask(keys, tokens, &tile.ends, columns, &mut tile.scores);
        tile.soften(self.isa, n, dim);
        match self.operands {
            Operands::Floats => tile.weigh_floats(self.isa, n, dim),
            Operands::Integers => tile.weigh_integers(self.isa, n, dim),
            Operands::Pairs | Operands::SplitPairs => tile.weigh_pairs(self.isa, n, dim),
        }
    }

    /// Sets the scores of positions that a row must not see to minus infinity.
    fn mask(
        &self,
        keys: &Range<usize>,
        tokens: &Range<usize>,
        ends: &[usize],
        columns: usize,
        scores: &mut [f32],
    ) {
        let (first, last) = (self.pos + tokens.start, self.pos + tokens.end - 1);
        if keys.end <= first + 1 && last - keys.start < self.window {
            return;
        }
        for (key, scores) in keys.clone().zip(scores.chunks_exact_mut(columns)) {
            let per_token = tokens.clone().zip(ends).zip(scores.chunks_exact_mut(self.group));
            for ((token, end), scores) in per_token {
                if key >= *end || (self.pos + token).saturating_sub(key) >= self.window {
                    scores.fill(f32::NEG_INFINITY);
                }
            }
        }
    }
}
