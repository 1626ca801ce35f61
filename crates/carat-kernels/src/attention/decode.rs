//! One query row per sequence: decode.
//!
//! Bound: every cached key and value of the visible span is read once for the whole group of query heads that
//! shares it, `2 * K * E * span` elements. The span is cut into parts of [`SPAN`] positions, which threads take
//! in any order; their partial softmaxes are joined in the order of positions, so the result does not depend
//! on the number of threads.

use std::sync::{Mutex, PoisonError};

use smallvec::SmallVec;

use super::{Element, KvData, KvView, row_len};
use crate::matmul::SharedOut;
use crate::simd::{Simd, dispatch};
use crate::vector::scale;
use crate::{Compute, Isa};

/// Positions of one part of a span.
const SPAN: usize = 512;
/// Query heads whose sums are in registers at once.
const HEADS: usize = 4;

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
    /// Per thread: padded queries and scores.
    threads: Vec<Mutex<Vec<f32>>>,
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
    let plans: SmallVec<[Plan; 4]> = queries.iter().map(|query| Plan::new(query, window)).collect();
    assert!(
        window != Some(0),
        "a window has at least the query's own position"
    );
    let n_items: usize = plans.iter().map(Plan::n_items).sum();
    let record = plans.iter().map(|plan| plan.record).max().unwrap_or(0);
    scratch.parts.resize(n_items.saturating_mul(record), 0.0);
    // Every thread's memory now, whether or not it gets a part this time: later steps then allocate nothing.
    let buffer = plans.iter().map(|plan| plan.buffer).max().unwrap_or(0);
    for thread in &mut scratch.threads {
        let thread = thread.get_mut().unwrap_or_else(PoisonError::into_inner);
        thread.resize(buffer.max(thread.len()), 0.0);
    }
    let parts = SharedOut::new(&mut scratch.parts, n_items, record);
    let shared: &[DecodeQuery<'_>] = queries;
    let threads = &scratch.threads;
    compute.pool().run(n_items, &|worker, item| {
        let mut buffer = threads[worker].lock().unwrap_or_else(PoisonError::into_inner);
        let mut local = item;
        for (query, plan) in shared.iter().zip(&plans) {
            if local < plan.n_items() {
                let part = Part::new(query, plan, local);
                part.run(isa, score_scale, &mut buffer);
                parts.set_run(item, 0, &buffer[..plan.record]);
                return;
            }
            local -= plan.n_items();
        }
    });
    let mut records = scratch.parts.chunks_exact(record.max(1));
    for (query, plan) in queries.iter_mut().zip(&plans) {
        for head in 0..plan.n_kv_heads {
            let parts: SmallVec<[&[f32]; 8]> = records.by_ref().take(plan.n_parts).collect();
            join(
                isa,
                &parts,
                plan,
                &mut query.out[head * plan.group * plan.head_dim..],
            );
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
    /// f32 of one part's result.
    record: usize,
    /// f32 that a thread needs for a part: the result, padded queries, scores.
    buffer: usize,
}

impl Plan {
    fn new(query: &DecodeQuery<'_>, window: Option<usize>) -> Plan {
        let kv = &query.kv;
        kv.check();
        let n_heads = query.q.len() / kv.head_dim.max(1);
        let group = n_heads / kv.n_kv_heads.max(1);
        assert_eq!(
            query.q.len(),
            group * kv.n_kv_heads * kv.head_dim,
            "query heads do not fit the cache's"
        );
        assert_eq!(query.out.len(), query.q.len(), "an output does not fit its query");
        let end = query.pos + 1;
        let first = end - window.unwrap_or(end).min(end);
        assert!(
            end - first <= kv.capacity,
            "the visible span is longer than the cache"
        );
        Plan {
            first,
            end,
            // Parts are cut at multiples of SPAN, so that a position keeps its place in the order of sums.
            n_parts: (end - 1) / SPAN - first / SPAN + 1,
            n_kv_heads: kv.n_kv_heads,
            group,
            head_dim: kv.head_dim,
            record: group * (row_len(kv.head_dim) + 2),
            buffer: group * (2 * row_len(kv.head_dim) + 2 + SPAN),
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

    /// Leaves in `buffer` `group` rows of weighted sums `[row_len]`, then `group` largest scores, then `group`
    /// sums of weights.
    fn run(&self, isa: Isa, score_scale: f32, buffer: &mut [f32]) {
        let (n, row, head_dim) = (self.end - self.first, row_len(self.kv.head_dim), self.kv.head_dim);
        let record = self.group * (row + 2);
        let (result, rest) = buffer.split_at_mut(record);
        let (q, rest) = rest.split_at_mut(self.group * row);
        let scores = &mut rest[..self.group * SPAN];
        q.fill(0.0);
        for (padded, q) in q.chunks_exact_mut(row).zip(self.q.chunks_exact(head_dim)) {
            padded[..head_dim].copy_from_slice(q);
            scale(isa, padded, score_scale);
        }
        // Positions lie in one or two runs of slots.
        let wrap = (self.first / self.kv.capacity + 1) * self.kv.capacity;
        let cut = wrap.clamp(self.first, self.end) - self.first;
        let (sums, stats) = result.split_at_mut(self.group * row);
        for (from, to) in [(0, cut), (cut, n)] {
            if from < to {
                let at = self.kv.row(self.head, self.first + from);
                let run = at..at + (to - from) * row;
                match self.kv.k {
                    KvData::F16(k) => scores_f16(isa, q, &k[run], row, &mut scores[from..]),
                    KvData::F32(k) => scores_f32(isa, q, &k[run], row, &mut scores[from..]),
                }
            }
        }
        let (largest, total) = stats.split_at_mut(self.group);
        for (g, scores) in scores.chunks_exact_mut(SPAN).enumerate().take(self.group) {
            (largest[g], total[g]) = softmax_part(isa, &mut scores[..n]);
        }
        sums.fill(0.0);
        for (from, to) in [(0, cut), (cut, n)] {
            if from < to {
                let at = self.kv.row(self.head, self.first + from);
                let run = at..at + (to - from) * row;
                match self.kv.v {
                    KvData::F16(v) => weigh_f16(isa, &scores[from..], &v[run], row, sums),
                    KvData::F32(v) => weigh_f32(isa, &scores[from..], &v[run], row, sums),
                }
            }
        }
    }
}

/// Joins the parts of one key-value head in the order of positions and writes `group` heads to `out`.
fn join(isa: Isa, parts: &[&[f32]], plan: &Plan, out: &mut [f32]) {
    let row = row_len(plan.head_dim);
    let stats = plan.group * row;
    for g in 0..plan.group {
        let out = &mut out[g * plan.head_dim..(g + 1) * plan.head_dim];
        let largest = parts
            .iter()
            .map(|part| part[stats + g])
            .fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        out.fill(0.0);
        for part in parts {
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
    /// `scores[g * SPAN + s] = q[g] . k[s]` for the rows of `k`.
    fn scores_f16(q: &[f32], k: &[u16], row: usize, scores: &mut [f32]) = scores_generic;
}
dispatch! {
    fn scores_f32(q: &[f32], k: &[f32], row: usize, scores: &mut [f32]) = scores_generic;
}
dispatch! {
    /// `sums[g] += scores[g * SPAN + s] * v[s]` over the rows of `v`.
    fn weigh_f16(scores: &[f32], v: &[u16], row: usize, sums: &mut [f32]) = weigh_generic;
}
dispatch! {
    fn weigh_f32(scores: &[f32], v: &[f32], row: usize, sums: &mut [f32]) = weigh_generic;
}
dispatch! {
    /// Turns scores into weights e^(score - largest); returns the largest score and the sum of weights.
    fn softmax_part(scores: &mut [f32]) -> (f32, f32) = softmax_part_generic;
}

#[inline(always)]
fn scores_generic<S: Simd, K: Element>(simd: S, q: &[f32], k: &[K], row: usize, scores: &mut [f32]) {
    let group = q.len() / row;
    let mut g = 0;
    while g < group {
        g += match group - g {
            HEADS.. => scores_heads::<S, K, HEADS>(simd, &q[g * row..], k, row, &mut scores[g * SPAN..]),
            3 => scores_heads::<S, K, 3>(simd, &q[g * row..], k, row, &mut scores[g * SPAN..]),
            2 => scores_heads::<S, K, 2>(simd, &q[g * row..], k, row, &mut scores[g * SPAN..]),
            _ => scores_heads::<S, K, 1>(simd, &q[g * row..], k, row, &mut scores[g * SPAN..]),
        };
    }
}

/// `G` heads at once, so that a key is loaded once for them; returns `G`.
#[inline(always)]
fn scores_heads<S: Simd, K: Element, const G: usize>(
    simd: S,
    q: &[f32],
    k: &[K],
    row: usize,
    scores: &mut [f32],
) -> usize {
    assert!(
        q.len() >= G * row && row.is_multiple_of(S::LANES),
        "queries are padded to whole registers"
    );
    for (s, k) in k.chunks_exact(row).enumerate() {
        // Two sums a head, so that the adds of long heads do not wait for each other.
        let mut sums = [[simd.splat(0.0); 2]; G];
        for (i, at) in (0..row).step_by(S::LANES).enumerate() {
            // SAFETY: `at + LANES <= row`, the length of `k` and of each of the G queries.
            unsafe {
                let key = K::load(simd, k.as_ptr().add(at));
                for (g, sums) in sums.iter_mut().enumerate() {
                    sums[i % 2] = simd.fma(key, simd.load(q.as_ptr().add(g * row + at)), sums[i % 2]);
                }
            }
        }
        for (g, sums) in sums.into_iter().enumerate() {
            scores[g * SPAN + s] = simd.reduce_add(simd.add(sums[0], sums[1]));
        }
    }
    G
}

#[inline(always)]
fn weigh_generic<S: Simd, V: Element>(simd: S, scores: &[f32], v: &[V], row: usize, sums: &mut [f32]) {
    let group = sums.len() / row;
    let mut g = 0;
    while g < group {
        let (scores, sums) = (&scores[g * SPAN..], &mut sums[g * row..]);
        g += match group - g {
            HEADS.. => weigh_heads::<S, V, HEADS>(simd, scores, v, row, sums),
            3 => weigh_heads::<S, V, 3>(simd, scores, v, row, sums),
            2 => weigh_heads::<S, V, 2>(simd, scores, v, row, sums),
            _ => weigh_heads::<S, V, 1>(simd, scores, v, row, sums),
        };
    }
}

/// `G` heads at once, as many columns as fit in registers at a time; returns `G`.
#[inline(always)]
fn weigh_heads<S: Simd, V: Element, const G: usize>(
    simd: S,
    scores: &[f32],
    v: &[V],
    row: usize,
    sums: &mut [f32],
) -> usize {
    let mut at = 0;
    while at < row {
        at += if row - at >= 4 * S::LANES {
            weigh_columns::<S, V, G, 4>(simd, scores, v, row, sums, at)
        } else {
            weigh_columns::<S, V, G, 1>(simd, scores, v, row, sums, at)
        };
    }
    G
}

/// `C` registers of columns from `at` on; returns the columns done.
#[inline(always)]
fn weigh_columns<S: Simd, V: Element, const G: usize, const C: usize>(
    simd: S,
    scores: &[f32],
    v: &[V],
    row: usize,
    sums: &mut [f32],
    at: usize,
) -> usize {
    let n = v.len() / row;
    assert!(
        sums.len() >= G * row && scores.len() >= (G - 1) * SPAN + n && at + C * S::LANES <= row,
        "too short"
    );
    let mut registers = [[simd.splat(0.0); C]; G];
    // SAFETY: columns at .. at + C * LANES are within a row; rows, sums and scores as asserted.
    unsafe {
        for s in 0..n {
            let mut values = [simd.splat(0.0); C];
            for (c, value) in values.iter_mut().enumerate() {
                *value = V::load(simd, v.as_ptr().add(s * row + at + c * S::LANES));
            }
            for (g, registers) in registers.iter_mut().enumerate() {
                let weight = simd.splat(*scores.get_unchecked(g * SPAN + s));
                for (register, value) in registers.iter_mut().zip(&values) {
                    *register = simd.fma(weight, *value, *register);
                }
            }
        }
        for (g, registers) in registers.iter().enumerate() {
            for (c, register) in registers.iter().enumerate() {
                let to = sums.as_mut_ptr().add(g * row + at + c * S::LANES);
                simd.store(to, simd.add(simd.load(to), *register));
            }
        }
    }
    C * S::LANES
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
