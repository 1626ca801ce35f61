//! Both kernels against attention written out in f64.

use proptest::prelude::*;

use std::sync::Arc;

use super::prefill::Operands;
use super::*;
use crate::{Compute, Isa};

/// A sequence whose keys, values and queries are known for every position.
struct Sequence {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Sequence {
    fn new(n: usize, n_kv_heads: usize, group: usize, head_dim: usize, seed: u64) -> Sequence {
        let mut state = seed | 1;
        let mut numbers = |len: usize, size: f32| -> Vec<f32> {
            (0..len)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let x = (state >> 40) as f32 / 8_388_608.0 - 1.0;
                    // Exact in f16, so that both cache formats hold the same numbers.
                    half::f16::from_f32(x * size).to_f32()
                })
                .collect()
        };
        let n_heads = n_kv_heads * group;
        Sequence {
            n_heads,
            n_kv_heads,
            head_dim,
            q: numbers(n * n_heads * head_dim, 2.0),
            k: numbers(n * n_kv_heads * head_dim, 2.0),
            v: numbers(n * n_kv_heads * head_dim, 1.0),
        }
    }

    fn row<'a>(&self, x: &'a [f32], n_heads: usize, pos: usize, head: usize) -> &'a [f32] {
        &x[(pos * n_heads + head) * self.head_dim..][..self.head_dim]
    }

    /// Head `h` of position `pos` in f64.
    fn expected(&self, pos: usize, h: usize, window: Option<usize>, scale: f64) -> Vec<f64> {
        self.expected_to(pos, pos, h, window, scale)
    }

    /// As [`Sequence::expected`], for a row that sees forward to position `last`.
    fn expected_to(&self, pos: usize, last: usize, h: usize, window: Option<usize>, scale: f64) -> Vec<f64> {
        let kv_head = h / (self.n_heads / self.n_kv_heads);
        let first = (pos + 1).saturating_sub(window.unwrap_or(usize::MAX));
        let q = self.row(&self.q, self.n_heads, pos, h);
        let scores: Vec<f64> = (first..=last)
            .map(|p| {
                let k = self.row(&self.k, self.n_kv_heads, p, kv_head);
                scale
                    * q.iter()
                        .zip(k)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum::<f64>()
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut out = vec![0.0; self.head_dim];
        for (p, weight) in (first..=last).zip(&weights) {
            for (out, v) in out.iter_mut().zip(self.row(&self.v, self.n_kv_heads, p, kv_head)) {
                *out += weight / total * f64::from(*v);
            }
        }
        out
    }

    /// The cache as it stands when positions `0..len` have been written in order to a table of `n_pages` pages.
    fn cache(&self, dtype: KvDType, len: usize, n_pages: usize) -> Cache {
        let shape = KvShape {
            dtype,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
        };
        let mut pages: Vec<KvPage> = (0..n_pages).map(|_| KvPage::new(&shape).unwrap()).collect();
        let width = self.n_kv_heads * self.head_dim;
        let mut k = vec![0; shape.packed_len(width)];
        let mut v = k.clone();
        for pos in 0..len {
            pack_rows(Isa::detect(), &shape, &self.k[pos * width..][..width], &mut k);
            pack_rows(Isa::detect(), &shape, &self.v[pos * width..][..width], &mut v);
            pages[pos / PAGE % n_pages].write(&shape, pos % PAGE, &k, &v);
        }
        Cache {
            pages: pages.into_iter().map(Arc::new).collect(),
            shape,
        }
    }

    /// Rounds keys and values as the cache does.
    fn round(&mut self, dtype: KvDType) {
        let shape = KvShape {
            dtype,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
        };
        let mut packed = vec![0; shape.packed_len(self.k.len())];
        for x in [&mut self.k, &mut self.v] {
            pack_rows(Isa::detect(), &shape, x, &mut packed);
            unpack_rows(Isa::detect(), &shape, &packed, x);
        }
    }
}

struct Cache {
    pages: Vec<Arc<KvPage>>,
    shape: KvShape,
}

impl Cache {
    fn view(&self) -> KvView<'_> {
        KvView {
            pages: &self.pages,
            shape: self.shape,
        }
    }
}

/// Pages of a ring that always holds `window` positions and `slack` more.
fn ring(window: usize, slack: usize) -> usize {
    (window + slack).div_ceil(PAGE).max(1)
}

/// Scores of up to about 100 lose 100 ulp in the exponent; weights and sums add a few.
const TOLERANCE: f64 = 400.0 * f32::EPSILON as f64;

/// What rounding queries to 8 bits does to the result, for keys that stay bytes.
///
/// A query's element errs by at most half a step of `2 / 127`, and a score by that times the sum of up to 128 keys of
/// at most 2, times the scale of 0.3. Weights then err by that factor's exponential. Errors of random sign stay far
/// below; what is held here is a fifth of it.
const TOLERANCE_OF_BYTES: f64 = 0.25;

/// What prefill's rounding to integers of 12 bits and a sign does to the result.
///
/// Elements of queries and keys err by 2^-13 of the largest at most, so a score of up to 128 products of at most 4 times 0.3, of
/// random sign, by some thousandths, and weights by as much; what is weighed by 2^-13 again.
const TOLERANCE_OF_INTEGERS: f64 = 0.004;

/// What prefill's rounding to bf16 does to the result, for caches that keep no more.
///
/// Elements of queries and keys err by 2^-8 of themselves at most, so a score of up to 128 products of at most 4 times 0.3, of
/// random sign, by some hundredths; weights err by as much, and what is weighed by less.
const TOLERANCE_OF_PAIRS: f64 = 0.05;

fn prefill_tolerance(isa: Isa, dtype: KvDType, head_dim: usize) -> f64 {
    match Operands::of(isa, dtype, head_dim) {
        Operands::Floats | Operands::SplitPairs => TOLERANCE,
        Operands::Integers => TOLERANCE_OF_INTEGERS,
        Operands::Pairs => TOLERANCE_OF_PAIRS,
    }
}

/// Every second stretch between the cuts.
fn spans(mut cuts: Vec<usize>, n_tokens: usize) -> Vec<std::ops::Range<usize>> {
    cuts.retain(|cut| *cut <= n_tokens);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.chunks_exact(2).map(|pair| pair[0]..pair[1]).collect()
}

fn any_dtype() -> impl Strategy<Value = KvDType> {
    prop::sample::select(KvDType::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn decode_equals_f64(
        pos in 0usize..1400, n_kv_heads in 1usize..3, group in 1usize..6,
        head_dim in prop::sample::select(vec![8usize, 24, 64, 128]),
        window in prop::option::of(1usize..600), slack in 0usize..100, dtype in any_dtype(), seed: u64,
    ) {
        let mut sequence = Sequence::new(pos + 1, n_kv_heads, group, head_dim, seed);
        let cache = sequence.cache(dtype, pos + 1, ring(window.unwrap_or(pos + 1), slack));
        sequence.round(dtype);
        let tolerance = match dtype {
            KvDType::Q8_0 | KvDType::Q4_0 => TOLERANCE_OF_BYTES,
            _ => TOLERANCE,
        };
        let width = sequence.n_heads * head_dim;
        for isa in Isa::available() {
            for n_threads in [1, 3] {
                let compute = Compute::new(isa, n_threads).unwrap();
                let mut out = vec![f32::NAN; width];
                let mut queries = [DecodeQuery {
                    q: &sequence.q[pos * width..], kv: cache.view(), pos, out: &mut out,
                }];
                decode(&compute, &mut queries, window, 0.3, &mut DecodeScratch::default());
                for h in 0..sequence.n_heads {
                    let want = sequence.expected(pos, h, window, f64::from(0.3f32));
                    for (e, want) in want.iter().enumerate() {
                        let got = f64::from(out[h * head_dim + e]);
                        prop_assert!((got - want).abs() <= tolerance, "{isa} {dtype} {h} {e}: {got} not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn prefill_equals_f64(
        pos in 0usize..300, n_tokens in 1usize..150, n_kv_heads in 1usize..3, group in 1usize..6,
        head_dim in prop::sample::select(vec![8usize, 16, 24, 64, 128]),
        window in prop::option::of(1usize..200), dtype in any_dtype(), seed: u64,
        cuts in prop::collection::vec(0usize..150, 0..5),
    ) {
        let spans = spans(cuts, n_tokens);
        let n = pos + n_tokens;
        let mut sequence = Sequence::new(n, n_kv_heads, group, head_dim, seed);
        let cache = sequence.cache(dtype, pos, ring(window.unwrap_or(n), 0));
        sequence.round(dtype);
        let (width, kv_width) = (sequence.n_heads * head_dim, n_kv_heads * head_dim);
        for isa in Isa::available() {
            let compute = Compute::new(isa, 2).unwrap();
            let mut out = vec![f32::NAN; n_tokens * width];
            let mut query = PrefillQuery {
                q: &sequence.q[pos * width..],
                k: &sequence.k[pos * kv_width..],
                v: &sequence.v[pos * kv_width..],
                kv: cache.view(),
                pos,
                spans: &spans,
                out: &mut out,
            };
            prefill(&compute, &mut query, window, 0.3, &mut PrefillScratch::default());
            for t in 0..n_tokens {
                for h in 0..sequence.n_heads {
                    let end = spans.iter().find(|span| span.contains(&t)).map_or(t + 1, |span| span.end);
                    let want = sequence.expected_to(pos + t, pos + end - 1, h, window, f64::from(0.3f32));
                    for (e, want) in want.iter().enumerate() {
                        let got = f64::from(out[t * width + h * head_dim + e]);
                        let close = (got - want).abs() <= prefill_tolerance(isa, dtype, head_dim);
                        prop_assert!(close, "{isa} {dtype} {t} head {h} {e}: {got} not {want}");
                    }
                }
            }
        }
    }
}

/// However a prompt is cut, the same pairs are summed in the same order: not even rounding differs.
#[test]
fn chunks_of_a_prompt_give_the_same_bits() {
    let (n, n_kv_heads, group, head_dim, window) = (300, 2, 2, 32, Some(37));
    for dtype in KvDType::ALL {
        let mut sequence = Sequence::new(n, n_kv_heads, group, head_dim, 3);
        sequence.round(dtype);
        let (width, kv_width) = (sequence.n_heads * head_dim, n_kv_heads * head_dim);
        for isa in Isa::available() {
            let compute = Compute::new(isa, 2).unwrap();
            let run = |cut: &[usize]| {
                let mut out = vec![f32::NAN; n * width];
                for ends in cut.windows(2) {
                    let (from, to) = (ends[0], ends[1]);
                    let cache = sequence.cache(dtype, from, ring(n, 0));
                    let mut query = PrefillQuery {
                        q: &sequence.q[from * width..to * width],
                        k: &sequence.k[from * kv_width..to * kv_width],
                        v: &sequence.v[from * kv_width..to * kv_width],
                        kv: cache.view(),
                        pos: from,
                        spans: &[],
                        out: &mut out[from * width..to * width],
                    };
                    prefill(&compute, &mut query, window, 0.3, &mut PrefillScratch::default());
                }
                out
            };
            assert_eq!(run(&[0, n]), run(&[0, 1, 70, 141, 205, n]), "{isa} {dtype}");
        }
    }
}

/// Gemma 4's global layers: sixteen query heads of 512 elements on one key-value head.
#[test]
fn wide_heads_equal_f64() {
    // So that scores stay about as large as in the tests above.
    const SCALE: f32 = 0.05;
    let (n, pos, group, head_dim) = (130, 70, 16, 512);
    let width = group * head_dim;
    for dtype in KvDType::ALL {
        let mut sequence = Sequence::new(n, 1, group, head_dim, 7);
        let before = sequence.cache(dtype, pos, ring(n, 0));
        let after = sequence.cache(dtype, n, ring(n, 0));
        sequence.round(dtype);
        for isa in Isa::available() {
            let compute = Compute::new(isa, 2).unwrap();
            let check = |out: &[f32], pos: usize, tolerance: f64| {
                for h in 0..group {
                    let want = sequence.expected(pos, h, None, f64::from(SCALE));
                    for (got, want) in out[h * head_dim..].iter().zip(want) {
                        let error = (f64::from(*got) - want).abs();
                        assert!(error <= tolerance, "{isa} {dtype} {pos} head {h}: {error}");
                    }
                }
            };
            let mut out = vec![f32::NAN; (n - pos) * width];
            let mut query = PrefillQuery {
                q: &sequence.q[pos * width..],
                k: &sequence.k[pos * head_dim..],
                v: &sequence.v[pos * head_dim..],
                kv: before.view(),
                pos,
                spans: &[],
                out: &mut out,
            };
            prefill(&compute, &mut query, None, SCALE, &mut PrefillScratch::default());
            for t in [0, 1, n - pos - 1] {
                check(
                    &out[t * width..],
                    pos + t,
                    prefill_tolerance(isa, dtype, head_dim),
                );
            }
            let mut queries = [DecodeQuery {
                q: &sequence.q[(n - 1) * width..],
                kv: after.view(),
                pos: n - 1,
                out: &mut out[..width],
            }];
            decode(&compute, &mut queries, None, SCALE, &mut DecodeScratch::default());
            let tolerance = match dtype {
                KvDType::Q8_0 | KvDType::Q4_0 => TOLERANCE_OF_BYTES,
                _ => TOLERANCE,
            };
            check(&out, n - 1, tolerance);
        }
    }
}

#[test]
fn several_sequences_decode_as_each_alone() {
    let lengths = [3usize, 700, 40];
    let sequences: Vec<Sequence> = lengths
        .iter()
        .map(|n| Sequence::new(*n, 2, 2, 32, *n as u64))
        .collect();
    let caches: Vec<Cache> = sequences
        .iter()
        .zip(lengths)
        .map(|(s, n)| s.cache(KvDType::F16, n, n.div_ceil(PAGE)))
        .collect();
    let compute = Compute::new(Isa::detect(), 2).unwrap();
    let width = 4 * 32;
    let run = |which: &[usize]| -> Vec<Vec<f32>> {
        let mut outs = vec![vec![0.0; width]; which.len()];
        let mut queries: Vec<DecodeQuery<'_>> = which
            .iter()
            .zip(&mut outs)
            .map(|(i, out)| DecodeQuery {
                q: &sequences[*i].q[(lengths[*i] - 1) * width..],
                kv: caches[*i].view(),
                pos: lengths[*i] - 1,
                out,
            })
            .collect();
        decode(&compute, &mut queries, None, 0.2, &mut DecodeScratch::default());
        outs
    };
    let together = run(&[0, 1, 2]);
    for (i, together) in together.iter().enumerate() {
        assert_eq!(together, &run(&[i])[0]);
    }
}

#[test]
fn packed_rows_are_as_near_as_their_format_allows() {
    let sequence = Sequence::new(50, 2, 1, 40, 7);
    let shape = |dtype| KvShape {
        dtype,
        n_kv_heads: 2,
        head_dim: 40,
    };
    // Relative to the largest of a block, here up to 2: half a step of each format.
    let bounds = [
        (KvDType::F16, 0.0),
        (KvDType::Bf16, 2.0 / 256.0),
        (KvDType::Q8_0, 2.0 / 254.0 * 1.01),
        (KvDType::Q4_0, 2.0 / 8.0 * 1.01),
        (KvDType::F32, 0.0),
    ];
    for (dtype, bound) in bounds {
        let mut packed = vec![0; shape(dtype).packed_len(sequence.k.len())];
        let mut back = vec![0.0; sequence.k.len()];
        for isa in Isa::available() {
            pack_rows(isa, &shape(dtype), &sequence.k, &mut packed);
            unpack_rows(isa, &shape(dtype), &packed, &mut back);
            for (got, want) in back.iter().zip(&sequence.k) {
                assert!((got - want).abs() <= bound, "{isa} {dtype}: {got} not {want}");
            }
        }
    }
}

#[test]
fn instruction_sets_pack_the_same_bytes() {
    let mut sequence = Sequence::new(30, 2, 1, 72, 11);
    // Zeros, numbers too small and too large for a format.
    sequence.k[..72].fill(0.0);
    sequence.k[72..144].iter_mut().for_each(|x| *x *= 1e-9);
    sequence.k[144..216].iter_mut().for_each(|x| *x *= 1e30);
    sequence.k[216] = f32::INFINITY;
    for dtype in KvDType::ALL {
        let shape = KvShape {
            dtype,
            n_kv_heads: 2,
            head_dim: 72,
        };
        let packed: Vec<Vec<u8>> = Isa::available()
            .map(|isa| {
                let mut to = vec![0; shape.packed_len(sequence.k.len())];
                pack_rows(isa, &shape, &sequence.k, &mut to);
                to
            })
            .collect();
        for other in &packed[1..] {
            assert_eq!(other, &packed[0], "{dtype}");
        }
        let mut back = vec![0.0; sequence.k.len()];
        unpack_rows(Isa::detect(), &shape, &packed[0], &mut back);
        let finite = dtype == KvDType::F32 || back.iter().all(|x| x.is_finite());
        assert!(finite, "{dtype}: what is too large must be cut");
    }
}

#[test]
fn a_page_that_cannot_be_had_is_none() {
    let shape = |n_kv_heads, head_dim| KvShape {
        dtype: KvDType::F32,
        n_kv_heads,
        head_dim,
    };
    assert!(KvPage::new(&shape(1 << 40, 1 << 10)).is_none());
    assert!(KvPage::new(&shape(1, usize::MAX)).is_none());
    assert!(KvPage::new(&shape(usize::MAX, 64)).is_none());
}
