//! One query row per sequence: decode.
//!
//! Bound: every cached key and value of the visible span is read once for the whole group of query heads that
//! shares it: `2 * K * span` rows a layer, of 512 bytes in f16 for heads of 256 elements, 272 in q8_0, 144 in
//! q4_0. For Gemma 3 12B at a depth of 16,384 that is 1.07 GB in eight global layers and 0.34 GB in forty local
//! ones, 31 ms at 45 GB/s in f16, 17 ms in q8_0. The span is cut into parts of [`SPAN`] positions, which threads
//! take in any order; their partial softmaxes are joined in the order of positions, so the result does not
//! depend on the number of threads.

use std::ops::Range;
use std::slice::ChunksExact;
use std::sync::{Mutex, PoisonError};

use smallvec::SmallVec;

use super::page::{KvView, PAGE, Rows, Side, by_page};
use super::scores::{Queries, scores};
use super::weigh::weigh;
use crate::matmul::SharedOut;
use crate::simd::{Simd, dispatch};
use crate::vector::scale;
use crate::{Compute, Isa};

/// Positions of one part of a span: whole pages.
const SPAN: usize = 8 * PAGE;

/// One sequence's query.
pub struct DecodeQuery<'a> {
    /// `[H, E]`, normed, rotated; not yet scaled.
    pub q: &'a [f32],
    /// The layer's cache, in which the query's own key and value already stand.
    pub kv: KvView<'a>,
    /// Position of the query.
    pub pos: usize,
    /// `[H, E]`, overwritten.
    pub out: &'a mut [f32],
}

/// What all queries of a layer have in common, and memory that is reused between calls.
#[derive(Default)]
pub struct DecodeScratch {
    /// Per part: for each query head of a group `[row_len]` sums, then the largest score and the sum of weights.
    parts: Vec<f32>,
    threads: Vec<Mutex<Local>>,
}

/// One thread's memory.
#[derive(Default)]
struct Local {
    queries: Queries,
    /// `[G, SPAN]`
    scores: Vec<f32>,
    /// One part's result: as in [`DecodeScratch::parts`].
    record: Vec<f32>,
}

/// Attention of each query over its own cache. `window` counts the query's own position; `None` is all.
///
/// # Panics
/// When a shape does not fit.
pub fn decode(
    compute: &Compute,
    queries: &mut [DecodeQuery<'_>],
    window: Option<usize>,
    score_scale: f32,
    scratch: &mut DecodeScratch,
) {
    let isa = compute.isa();
    scratch
        .threads
        .resize_with(compute.pool().n_threads(), Mutex::default);
    let plans: SmallVec<[Plan; 16]> = queries.iter().map(|query| Plan::new(query, window)).collect();
    assert!(
        window != Some(0),
        "a window has at least the query's own position"
    );
    let n_items: usize = plans.iter().map(Plan::n_items).sum();
    let record = plans.iter().map(|plan| plan.record).max().unwrap_or(0);
    scratch.parts.resize(n_items.saturating_mul(record), 0.0);
    // Every thread's memory now, whether or not it gets a part this time: later steps then allocate nothing.
    for thread in &mut scratch.threads {
        let local = thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        plans.iter().for_each(|plan| local.reserve(plan));
    }
    let parts = SharedOut::new(&mut scratch.parts, n_items, record);
    let shared: &[DecodeQuery<'_>] = queries;
    let threads = &scratch.threads;
    compute.pool().run(n_items, &|worker, item| {
        let mut thread = threads[worker].lock().unwrap_or_else(PoisonError::into_inner);
        let mut local = item;
        for (query, plan) in shared.iter().zip(&plans) {
            if local < plan.n_items() {
                let part = Part::new(query, plan, local);
                part.run(isa, score_scale, &mut thread);
                parts.set_run(item, 0, &thread.record[..plan.record]);
                return;
            }
            local -= plan.n_items();
        }
    });
    let mut rest = scratch.parts.as_slice();
    for (query, plan) in queries.iter_mut().zip(&plans) {
        for head in 0..plan.n_kv_heads {
            let (parts, others) = rest.split_at(plan.n_parts * record);
            rest = others;
            let out = &mut query.out[head * plan.group * plan.head_dim..];
            join(isa, parts.chunks_exact(record.max(1)), plan, out);
        }
    }
}

/// How one query's work is cut: `n_kv_heads * n_parts` items.
struct Plan {
    first: usize,
    end: usize,
    n_parts: usize,
    n_kv_heads: usize,
    group: usize,
    head_dim: usize,
    /// Elements of a cache row.
    row: usize,
    /// f32 of one part's result.
    record: usize,
}

impl Plan {
    fn new(query: &DecodeQuery<'_>, window: Option<usize>) -> Plan {
        let (kv, shape) = (&query.kv, &query.kv.shape);
        let n_heads = query.q.len() / shape.head_dim.max(1);
        let group = n_heads / shape.n_kv_heads.max(1);
        assert_eq!(
            query.q.len(),
            group * shape.n_kv_heads * shape.head_dim,
            "query heads do not fit the cache's"
        );
        assert_eq!(query.out.len(), query.q.len(), "an output does not fit its query");
        let end = query.pos + 1;
        let first = end - window.unwrap_or(end).min(end);
        assert!(
            end - first <= kv.n_slots(),
            "the visible span is longer than the cache"
        );
        Plan {
            first,
            end,
            // Parts are cut at multiples of SPAN, so that a position keeps its place in the order of sums.
            n_parts: (end - 1) / SPAN - first / SPAN + 1,
            n_kv_heads: shape.n_kv_heads,
            group,
            head_dim: shape.head_dim,
            row: shape.row_len(),
            record: group * (shape.row_len() + 2),
        }
    }

    fn n_items(&self) -> usize {
        self.n_kv_heads * self.n_parts
    }
}

/// One key-value head over one part of the span.
struct Part<'a> {
    q: &'a [f32],
    kv: KvView<'a>,
    head: usize,
    group: usize,
    first: usize,
    end: usize,
}

impl<'a> Part<'a> {
    fn new(query: &'a DecodeQuery<'_>, plan: &Plan, item: usize) -> Part<'a> {
        let (head, part) = (item / plan.n_parts, item % plan.n_parts);
        let base = plan.first / SPAN * SPAN + part * SPAN;
        let width = plan.group * plan.head_dim;
        Part {
            q: &query.q[head * width..(head + 1) * width],
            kv: query.kv,
            head,
            group: plan.group,
            first: base.max(plan.first),
            end: (base + SPAN).min(plan.end),
        }
    }

    /// The rows of `positions`, which lie in one page, followed by those of the next page.
    fn rows(&self, side: Side, positions: &Range<usize>) -> Rows<'a> {
        let next = by_page(positions.end..self.end).next();
        let next = next.map(|next| self.kv.rows(side, self.head, next));
        self.kv.rows(side, self.head, positions.clone()).before(next)
    }

    /// Leaves in `record` `group` rows of weighted sums `[row]`, then `group` largest scores, then `group` sums of
    /// weights.
    fn run(&self, isa: Isa, score_scale: f32, local: &mut Local) {
        let shape = &self.kv.shape;
        let (row, n_sums) = (shape.row_len(), self.group * shape.row_len());
        let queries = &mut local.queries;
        queries.floats[..n_sums].fill(0.0);
        for (padded, q) in queries
            .floats
            .chunks_exact_mut(row)
            .zip(self.q.chunks_exact(shape.head_dim))
        {
            padded[..shape.head_dim].copy_from_slice(q);
            scale(isa, padded, score_scale);
        }
        queries.prepare(isa, shape.dtype, n_sums);
        for positions in by_page(self.first..self.end) {
            let k = self.rows(Side::Key, &positions);
            let to = &mut local.scores[positions.start - self.first..];
            scores(isa, queries, self.group, k, to, SPAN);
        }
        let (sums, stats) = local.record.split_at_mut(n_sums);
        let (largest, total) = stats.split_at_mut(self.group);
        for (g, scores) in local.scores.chunks_exact_mut(SPAN).enumerate().take(self.group) {
            (largest[g], total[g]) = softmax_part(isa, &mut scores[..self.end - self.first]);
        }
        sums.fill(0.0);
        for positions in by_page(self.first..self.end) {
            let v = self.rows(Side::Value, &positions);
            weigh(isa, &local.scores[positions.start - self.first..], SPAN, v, sums);
        }
    }
}

impl Local {
    fn reserve(&mut self, plan: &Plan) {
        self.queries.reserve(plan.group * plan.row);
        for (buffer, n) in [
            (&mut self.scores, plan.group * SPAN),
            (&mut self.record, plan.record),
        ] {
            buffer.resize(n.max(buffer.len()), 0.0);
        }
    }
}

/// Joins the parts of one key-value head in the order of positions and writes `group` heads to `out`.
fn join(isa: Isa, parts: ChunksExact<'_, f32>, plan: &Plan, out: &mut [f32]) {
    let row = plan.row;
    let stats = plan.group * row;
    for g in 0..plan.group {
        let out = &mut out[g * plan.head_dim..(g + 1) * plan.head_dim];
        let largest = parts
            .clone()
            .map(|part| part[stats + g])
            .fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        out.fill(0.0);
        for part in parts.clone() {
            let weight = (part[stats + g] - largest).exp();
            total += weight * part[stats + plan.group + g];
            for (out, sum) in out.iter_mut().zip(&part[g * row..]) {
                *out += weight * sum;
            }
        }
        scale(isa, out, 1.0 / total);
    }
}

dispatch! {
    /// Turns scores into weights e^(score - largest); returns the largest score and the sum of weights.
    fn softmax_part(scores: &mut [f32]) -> (f32, f32) = softmax_part_generic;
}

#[inline(always)]
fn softmax_part_generic<S: Simd>(simd: S, scores: &mut [f32]) -> (f32, f32) {
    let n = scores.len();
    let whole = n / S::LANES * S::LANES;
    let to = scores.as_mut_ptr();
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: `at + LANES <= n`.
        largest = simd.max(largest, unsafe { simd.load(to.add(at)) });
    }
    let largest = scores[whole..]
        .iter()
        .fold(simd.reduce_max(largest), |m, s| if *s > m { *s } else { m });
    let shift = simd.splat(largest);
    let mut total = simd.splat(0.0);
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: `at + LANES <= n`.
        unsafe {
            let weight = simd.exp(simd.sub(simd.load(to.add(at)), shift));
            simd.store(to.add(at), weight);
            total = simd.add(total, weight);
        }
    }
    let mut sum = simd.reduce_add(total);
    for score in &mut scores[whole..] {
        *score = crate::simd::Scalar.exp(*score - largest);
        sum += *score;
    }
    (largest, sum)
}
