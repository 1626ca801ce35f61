//! Full attention of an encoder: every row of one image sees every other.
//!
//! A task is one head and a tile of [`COLUMNS`] queries; keys are taken [`KEYS`] at a time. Queries are columns
//! all the way, so that neither softmax nor the sums of values need anything across lanes:
//!
//! ```text
//! Q^T [E, COLUMNS]      transposed once per task, scaled
//! S^T [KEYS, COLUMNS]   = K [KEYS, E] Q^T
//! P^T [KEYS, COLUMNS]   softmax down the columns, online
//! O^T [E, COLUMNS]     += V^T [E, KEYS] P^T
//! ```
//!
//! Head widths of 64 and 72 make whole tiles of 6 rows and 4 registers. In f32, K and V are read where they are,
//! V by columns. In 16 bits they are rounded and transposed to pairs first, once per layer: `2 * T * E` bytes a head
//! each, which the L2 cache holds while the head's tiles pass. Bound: `4 T^2 E` operations a head at the peak of
//! the product's instruction, and some 15 instructions of softmax for every `2 E` products.

use std::sync::{Mutex, PoisonError};

use super::operand::chunks;
use super::softmax::{COLUMNS, Running, soften, soften_to_integers, soften_to_pairs};
use super::{Arithmetic, EncoderPrecision};
use crate::aligned::Aligned;
use crate::gemm_f32::{Accumulate, Gemm, gemm_f32};
use crate::integer_gemm::{IntegerGemm, LARGEST_WEIGHT, integer_gemm, largest_beside};
use crate::integer_round::{round_row, round_to};
use crate::matmul::SharedOut;
use crate::pair_gemm::{PairGemm, Start, pair_gemm, round_to_bf16};
use crate::{Compute, Isa};

/// Keys of a tile: a multiple of the 6 rows that a product takes at once, and of 2.
const KEYS: usize = 96;
/// The largest integer of a tile's values: 11 bits, since the weights have 13.
const LARGEST_VALUE: i32 = largest_beside(KEYS, LARGEST_WEIGHT);

/// The heads of an encoder's attention.
#[derive(Clone, Copy, Debug)]
pub struct EncoderHeads {
    /// How many.
    pub n_heads: usize,
    /// Width of one.
    pub head_dim: usize,
    /// What scores are multiplied with.
    pub score_scale: f32,
}

/// Memory that is reused between calls.
#[derive(Default)]
pub struct AttentionScratch {
    /// Pairs along E: `[H, T, ceil(E / 2)]`; integers with the scales of their blocks behind each row.
    keys: Aligned<u32>,
    /// Pairs along T: `[H, E, T / 2 padded]`; integers with the scales of the tiles of keys behind each row.
    values: Aligned<u32>,
    threads: Vec<Mutex<Tile>>,
}

/// One thread's memory.
struct Tile {
    /// Q^T
    q: Vec<f32>,
    q_pairs: Aligned<u32>,
    /// Scales of the queries, where they are integers.
    q_scales: [f32; COLUMNS],
    /// S^T, then P^T
    scores: Vec<f32>,
    p_pairs: Aligned<u32>,
    /// O^T
    out: Vec<f32>,
    row: Vec<f32>,
    running: Running,
}

/// `out[t] = softmax(scale q[t] k) v` for each head; all four are `[T, H, E]`.
///
/// # Panics
/// When the lengths differ or are no whole number of rows.
pub fn attend(
    compute: &Compute,
    precision: EncoderPrecision,
    heads: &EncoderHeads,
    [q, k, v]: [&[f32]; 3],
    out: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let width = heads.n_heads * heads.head_dim;
    let n = q.len() / width.max(1);
    assert!(
        q.len() == n * width && k.len() == q.len() && v.len() == q.len(),
        "queries, keys and values do not fit each other"
    );
    if n == 0 {
        return;
    }
    let arithmetic = precision.on(compute.isa());
    if arithmetic != Arithmetic::F32 {
        scratch.round(compute, arithmetic, heads, n, k, v);
    }
    scratch
        .threads
        .resize_with(compute.pool().n_threads(), || Mutex::new(Tile::new()));
    let task = Task {
        isa: compute.isa(),
        arithmetic,
        heads: *heads,
        n,
        q,
        k,
        v,
        k_pairs: &scratch.keys,
        v_pairs: &scratch.values,
        out: SharedOut::new(out, n, width),
    };
    let n_tiles = n.div_ceil(COLUMNS);
    compute.pool().run(heads.n_heads * n_tiles, &|worker, item| {
        let mut tile = scratch.threads[worker]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        task.run(item / n_tiles, item % n_tiles * COLUMNS, &mut tile);
    });
}

/// Pairs in a row of values: whole tiles of keys.
fn value_pairs(n: usize) -> usize {
    n.next_multiple_of(KEYS) / 2
}

/// Length of such a row, with the scales of its tiles.
fn value_row_len(arithmetic: Arithmetic, n: usize) -> usize {
    let n_tiles = match arithmetic {
        Arithmetic::Integers => n.div_ceil(KEYS),
        Arithmetic::F32 | Arithmetic::Bf16 => 0,
    };
    value_pairs(n) + n_tiles
}

impl AttentionScratch {
    /// Keys and values of all heads as pairs.
    fn round(
        &mut self,
        compute: &Compute,
        arithmetic: Arithmetic,
        heads: &EncoderHeads,
        n: usize,
        k: &[f32],
        v: &[f32],
    ) {
        let (dim, width) = (heads.head_dim, heads.n_heads * heads.head_dim);
        let (key_len, value_len) = (arithmetic.row_len(dim), value_row_len(arithmetic, n));
        self.keys.resize(heads.n_heads * n * key_len);
        self.values.resize(heads.n_heads * dim * value_len);
        let isa = compute.isa();
        chunks(compute, &mut self.keys, n * key_len, &|head, to| {
            for (t, to) in to.chunks_exact_mut(key_len).enumerate() {
                arithmetic.round(isa, &k[t * width + head * dim..][..dim], to);
            }
        });
        chunks(compute, &mut self.values, dim * value_len, &|head, to| {
            // Transposed in tiles of some rows, so that lines of the source are used whole.
            let mut column = [0.0; KEYS];
            for (tile, first) in (0..n).step_by(KEYS).enumerate() {
                for (e, to) in to.chunks_exact_mut(value_len).enumerate() {
                    for (i, value) in column.iter_mut().enumerate() {
                        let t = first + i;
                        *value = if t < n { v[t * width + head * dim + e] } else { 0.0 };
                    }
                    let (pairs, scales) = to.split_at_mut(value_pairs(n));
                    let pairs = bytemuck::cast_slice_mut(&mut pairs[first / 2..][..KEYS / 2]);
                    match scales.get_mut(tile) {
                        Some(scale) => {
                            *scale = round_to(isa, &column, LARGEST_VALUE, pairs).to_bits();
                        }
                        None => round_to_bf16(isa, &column, pairs),
                    }
                }
            }
        });
    }
}

struct Task<'a> {
    isa: Isa,
    arithmetic: Arithmetic,
    heads: EncoderHeads,
    n: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    k_pairs: &'a [u32],
    v_pairs: &'a [u32],
    out: SharedOut<'a>,
}

impl Task<'_> {
    /// The queries from `first` on of one head.
    fn run(&self, head: usize, first: usize, tile: &mut Tile) {
        let dim = self.heads.head_dim;
        let rows = (self.n - first).min(COLUMNS);
        tile.reset(dim);
        self.load_queries(head, first, rows, tile);
        for base in (0..self.n).step_by(KEYS) {
            let n = (self.n - base).min(KEYS);
            match self.arithmetic {
                Arithmetic::F32 => self.floats(head, base, n, tile),
                Arithmetic::Bf16 => self.pairs(head, base, n, tile),
                Arithmetic::Integers => self.integers(head, base, n, tile),
            }
        }
        for r in 0..rows {
            let inverse = 1.0 / tile.running.total[r];
            for (e, value) in tile.row.iter_mut().enumerate() {
                *value = tile.out[e * COLUMNS + r] * inverse;
            }
            self.out.set_run(first + r, head * dim, &tile.row);
        }
    }

    /// Q^T, multiplied with the scale and with log2(e), which the softmax wants; columns without a query are zero.
    fn load_queries(&self, head: usize, first: usize, rows: usize, tile: &mut Tile) {
        let (dim, width) = (self.heads.head_dim, self.heads.n_heads * self.heads.head_dim);
        let scale = self.heads.score_scale * std::f32::consts::LOG2_E;
        tile.q.fill(0.0);
        for r in 0..rows {
            let from = &self.q[(first + r) * width + head * dim..][..dim];
            for (e, value) in from.iter().enumerate() {
                tile.q[e * COLUMNS + r] = value * scale;
            }
        }
        if self.arithmetic == Arithmetic::F32 {
            return;
        }
        let mut column = vec![0.0; dim];
        let mut rounded = vec![0u16; 2 * dim.div_ceil(2)];
        for r in 0..COLUMNS {
            let from = tile.q[r..].iter().step_by(COLUMNS);
            column.iter_mut().zip(from).for_each(|(to, value)| *to = *value);
            match self.arithmetic {
                Arithmetic::Integers => {
                    tile.q_scales[r] = round_row(self.isa, &column, &mut rounded[..dim]);
                }
                Arithmetic::F32 | Arithmetic::Bf16 => round_to_bf16(self.isa, &column, &mut rounded[..dim]),
            }
            let to = tile.q_pairs[r..].iter_mut().step_by(COLUMNS);
            for (to, pair) in to.zip(rounded.chunks_exact(2)) {
                *to = u32::from(pair[0]) | (u32::from(pair[1]) << 16);
            }
        }
    }

    /// A tile of `n` keys in f32.
    fn floats(&self, head: usize, base: usize, n: usize, tile: &mut Tile) {
        let (dim, width) = (self.heads.head_dim, self.heads.n_heads * self.heads.head_dim);
        let at = base * width + head * dim;
        let scores = Gemm {
            a: &self.k[at..],
            a_row: width,
            a_col: 1,
            b: &tile.q,
            ldb: COLUMNS,
            c: tile.scores.as_mut_ptr(),
            ldc: COLUMNS,
            m: n,
            n: COLUMNS,
            k: dim,
            add: Accumulate::Overwrite,
        };
        // SAFETY: `scores` has KEYS rows of COLUMNS and is borrowed by nobody else.
        unsafe { gemm_f32(self.isa, &scores) };
        soften(self.isa, &mut tile.scores[..n * COLUMNS], &mut tile.running);
        tile.rescale(self.isa);
        let values = Gemm {
            a: &self.v[at..],
            a_row: 1,
            a_col: width,
            b: &tile.scores,
            ldb: COLUMNS,
            c: tile.out.as_mut_ptr(),
            ldc: COLUMNS,
            m: dim,
            n: COLUMNS,
            k: n,
            add: Accumulate::Add,
        };
        // SAFETY: `out` has `dim` rows of COLUMNS and is borrowed by nobody else.
        unsafe { gemm_f32(self.isa, &values) };
    }

    /// A tile of `n` keys in bf16.
    fn pairs(&self, head: usize, base: usize, n: usize, tile: &mut Tile) {
        let dim = self.heads.head_dim;
        let (half, long) = (dim.div_ceil(2), value_pairs(self.n));
        let scores = PairGemm {
            a: &self.k_pairs[(head * self.n + base) * half..],
            a_row: half,
            a_col: 1,
            b: &tile.q_pairs,
            ldb: COLUMNS,
            c: tile.scores.as_mut_ptr(),
            ldc: COLUMNS,
            m: n,
            n: COLUMNS,
            k: half,
            rest: None,
            start: Start::Row(None),
        };
        // SAFETY: `scores` has KEYS rows of COLUMNS and is borrowed by nobody else.
        unsafe { pair_gemm(self.isa, &scores) };
        let n_pairs = n.div_ceil(2);
        soften_to_pairs(
            self.isa,
            &tile.scores[..n * COLUMNS],
            &mut tile.p_pairs[..n_pairs * COLUMNS],
            &mut tile.running,
        );
        tile.rescale(self.isa);
        let values = PairGemm {
            a: &self.v_pairs[head * dim * long + base / 2..],
            a_row: long,
            a_col: 1,
            b: &tile.p_pairs,
            ldb: COLUMNS,
            c: tile.out.as_mut_ptr(),
            ldc: COLUMNS,
            m: dim,
            n: COLUMNS,
            k: n_pairs,
            rest: None,
            start: Start::Old,
        };
        // SAFETY: `out` has `dim` rows of COLUMNS and is borrowed by nobody else.
        unsafe { pair_gemm(self.isa, &values) };
    }

    /// A tile of `n` keys in integers.
    fn integers(&self, head: usize, base: usize, n: usize, tile: &mut Tile) {
        let dim = self.heads.head_dim;
        let (half, key_len) = (dim.div_ceil(2), self.arithmetic.row_len(dim));
        let keys = &self.k_pairs[(head * self.n + base) * key_len..];
        let scores = IntegerGemm {
            a: keys,
            a_scales: &keys[half..],
            a_row: key_len,
            a_col: 1,
            b: &tile.q_pairs,
            b_scales: &tile.q_scales,
            ldb: COLUMNS,
            c: tile.scores.as_mut_ptr(),
            ldc: COLUMNS,
            m: n,
            n: COLUMNS,
            k: half,
            start: Start::Row(None),
        };
        // SAFETY: `scores` has KEYS rows of COLUMNS and is borrowed by nobody else.
        unsafe { integer_gemm(self.isa, &scores) };
        let n_pairs = n.div_ceil(2);
        soften_to_integers(
            self.isa,
            &tile.scores[..n * COLUMNS],
            &mut tile.p_pairs[..n_pairs * COLUMNS],
            &mut tile.running,
        );
        tile.rescale(self.isa);
        let value_len = value_row_len(self.arithmetic, self.n);
        let of_head = &self.v_pairs[head * dim * value_len..];
        let values = IntegerGemm {
            a: &of_head[base / 2..],
            a_scales: &of_head[value_pairs(self.n) + base / KEYS..],
            a_row: value_len,
            a_col: 1,
            b: &tile.p_pairs,
            b_scales: &tile.running.scale,
            ldb: COLUMNS,
            c: tile.out.as_mut_ptr(),
            ldc: COLUMNS,
            m: dim,
            n: COLUMNS,
            k: n_pairs,
            start: Start::Old,
        };
        // SAFETY: `out` has `dim` rows of COLUMNS and is borrowed by nobody else.
        unsafe { integer_gemm(self.isa, &values) };
    }
}

impl Tile {
    fn new() -> Tile {
        Tile {
            q: Vec::new(),
            q_pairs: Aligned::default(),
            q_scales: [0.0; COLUMNS],
            scores: Vec::new(),
            p_pairs: Aligned::default(),
            out: Vec::new(),
            row: Vec::new(),
            running: Running::new(),
        }
    }

    fn reset(&mut self, dim: usize) {
        self.q.resize(dim * COLUMNS, 0.0);
        self.q_pairs.resize(dim.div_ceil(2) * COLUMNS);
        self.scores.resize(KEYS * COLUMNS, 0.0);
        self.p_pairs.resize(KEYS / 2 * COLUMNS);
        self.out.clear();
        self.out.resize(dim * COLUMNS, 0.0);
        self.row.resize(dim, 0.0);
        self.running = Running::new();
    }

    /// Brings the sums so far to the new largest scores.
    fn rescale(&mut self, isa: Isa) {
        if self.running.factor.iter().any(|factor| *factor != 1.0) {
            for row in self.out.chunks_exact_mut(COLUMNS) {
                crate::vector::multiply(isa, row, &self.running.factor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exact(heads: &EncoderHeads, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let (dim, width) = (heads.head_dim, heads.n_heads * heads.head_dim);
        let n = q.len() / width;
        let mut out = vec![0.0; q.len()];
        for (head, t) in (0..heads.n_heads).flat_map(|head| (0..n).map(move |t| (head, t))) {
            let row = |x: &[f32], t: usize| -> Vec<f64> {
                x[t * width + head * dim..][..dim]
                    .iter()
                    .map(|v| f64::from(*v))
                    .collect()
            };
            let q = row(q, t);
            let dot = |s: usize| q.iter().zip(row(k, s)).map(|(a, b)| a * b).sum::<f64>();
            let scores: Vec<f64> = (0..n).map(|s| dot(s) * f64::from(heads.score_scale)).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (s, weight) in weights.iter().enumerate() {
                for (e, value) in row(v, s).iter().enumerate() {
                    out[t * width + head * dim + e] += weight / total * value;
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn equals_f64(n in 1usize..230, n_heads in 1usize..4, head_dim in 1usize..80, seed: u32) {
            let heads = EncoderHeads { n_heads, head_dim, score_scale: 1.0 / (head_dim as f32).sqrt() };
            let len = n * n_heads * head_dim;
            let numbers = |salt: u32| -> Vec<f32> {
                (0..len).map(|i| ((i as f32) * 0.61 + (seed ^ salt) as f32 * 1e-4).sin() * 1.7).collect()
            };
            let (q, k, v) = (numbers(1), numbers(2), numbers(3));
            let want = exact(&heads, &q, &k, &v);
            for isa in Isa::available() {
                let compute = Compute::new(isa, 2).unwrap();
                // Weights err by the scores' error, at most 2^-7 of the size of a score, and values by 2^-8.
                for (precision, tolerance) in [(EncoderPrecision::F32, 3e-5), (EncoderPrecision::Half, 0.06)] {
                    let (mut out, mut scratch) = (vec![f32::NAN; len], AttentionScratch::default());
                    attend(&compute, precision, &heads, [&q, &k, &v], &mut out, &mut scratch);
                    for (got, want) in out.iter().zip(&want) {
                        prop_assert!((f64::from(*got) - want).abs() <= tolerance, "{isa} {precision:?} {got} {want}");
                    }
                }
            }
        }
    }

    /// One thread or more, a shape after another: the same bits.
    #[test]
    fn results_do_not_depend_on_threads_or_on_what_was_before() {
        let heads = EncoderHeads {
            n_heads: 3,
            head_dim: 20,
            score_scale: 0.3,
        };
        let x: Vec<f32> = (0..150 * 60).map(|i| (i as f32 * 0.3).sin()).collect();
        for precision in [EncoderPrecision::F32, EncoderPrecision::Half] {
            let run = |n_threads: usize, warm: bool| {
                let compute = Compute::new(Isa::detect(), n_threads).unwrap();
                let mut scratch = AttentionScratch::default();
                let mut out = vec![0.0; x.len()];
                if warm {
                    let other = EncoderHeads {
                        n_heads: 2,
                        head_dim: 30,
                        ..heads
                    };
                    attend(&compute, precision, &other, [&x, &x, &x], &mut out, &mut scratch);
                }
                attend(&compute, precision, &heads, [&x, &x, &x], &mut out, &mut scratch);
                out
            };
            assert_eq!(run(1, false), run(3, true));
        }
    }
}
