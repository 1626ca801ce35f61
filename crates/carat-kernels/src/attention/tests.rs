//! Both kernels against attention written out in f64.

use proptest::prelude::*;

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
        let kv_head = h / (self.n_heads / self.n_kv_heads);
        let first = (pos + 1).saturating_sub(window.unwrap_or(usize::MAX));
        let q = self.row(&self.q, self.n_heads, pos, h);
        let scores: Vec<f64> = (first..=pos)
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
        for (p, weight) in (first..=pos).zip(&weights) {
            for (out, v) in out.iter_mut().zip(self.row(&self.v, self.n_kv_heads, p, kv_head)) {
                *out += weight / total * f64::from(*v);
            }
        }
        out
    }

    /// The cache as it stands when positions `0..len` have been written in order.
    fn cache(&self, len: usize, capacity: usize) -> Cache {
        let row = row_len(self.head_dim);
        let mut cache = Cache {
            k: vec![0.0; self.n_kv_heads * capacity * row],
            v: vec![0.0; self.n_kv_heads * capacity * row],
            k16: Vec::new(),
            v16: Vec::new(),
            capacity,
        };
        for pos in 0..len {
            for head in 0..self.n_kv_heads {
                let at = (head * capacity + pos % capacity) * row;
                cache.k[at..at + self.head_dim].copy_from_slice(self.row(
                    &self.k,
                    self.n_kv_heads,
                    pos,
                    head,
                ));
                cache.v[at..at + self.head_dim].copy_from_slice(self.row(
                    &self.v,
                    self.n_kv_heads,
                    pos,
                    head,
                ));
            }
        }
        let bits = |x: &[f32]| x.iter().map(|v| half::f16::from_f32(*v).to_bits()).collect();
        (cache.k16, cache.v16) = (bits(&cache.k), bits(&cache.v));
        cache
    }
}

struct Cache {
    k: Vec<f32>,
    v: Vec<f32>,
    k16: Vec<u16>,
    v16: Vec<u16>,
    capacity: usize,
}

impl Cache {
    fn view(&self, sequence: &Sequence, narrow: bool) -> KvView<'_> {
        let (k, v) = if narrow {
            (KvData::F16(&self.k16), KvData::F16(&self.v16))
        } else {
            (KvData::F32(&self.k), KvData::F32(&self.v))
        };
        KvView {
            k,
            v,
            n_kv_heads: sequence.n_kv_heads,
            head_dim: sequence.head_dim,
            capacity: self.capacity,
        }
    }
}

/// Scores of up to about 100 lose 100 ulp in the exponent; weights and sums add a few.
const TOLERANCE: f64 = 400.0 * f32::EPSILON as f64;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn decode_equals_f64(
        pos in 0usize..1400, n_kv_heads in 1usize..3, group in 1usize..6,
        head_dim in prop::sample::select(vec![8usize, 24, 64, 128]),
        window in prop::option::of(1usize..600), slack in 0usize..40, narrow: bool, seed: u64,
    ) {
        let sequence = Sequence::new(pos + 1, n_kv_heads, group, head_dim, seed);
        let capacity = window.map_or(pos + 1, |w| w + slack).max(1);
        let cache = sequence.cache(pos + 1, capacity);
        let width = sequence.n_heads * head_dim;
        for isa in Isa::available() {
            for n_threads in [1, 3] {
                let compute = Compute::new(isa, n_threads).unwrap();
                let mut out = vec![f32::NAN; width];
                let mut queries = [DecodeQuery {
                    q: &sequence.q[pos * width..], kv: cache.view(&sequence, narrow), pos, out: &mut out,
                }];
                decode(&compute, &mut queries, window, 0.3, &mut DecodeScratch::default());
                for h in 0..sequence.n_heads {
                    let want = sequence.expected(pos, h, window, f64::from(0.3f32));
                    for (e, want) in want.iter().enumerate() {
                        let got = f64::from(out[h * head_dim + e]);
                        prop_assert!((got - want).abs() <= TOLERANCE, "{isa} head {h} {e}: {got} not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn prefill_equals_f64(
        pos in 0usize..300, n_tokens in 1usize..150, n_kv_heads in 1usize..3, group in 1usize..6,
        head_dim in prop::sample::select(vec![8usize, 24, 64, 128]),
        window in prop::option::of(1usize..200), narrow: bool, seed: u64,
    ) {
        let n = pos + n_tokens;
        let sequence = Sequence::new(n, n_kv_heads, group, head_dim, seed);
        let capacity = window.unwrap_or(n);
        let cache = sequence.cache(pos, capacity);
        let (width, kv_width) = (sequence.n_heads * head_dim, n_kv_heads * head_dim);
        for isa in Isa::available() {
            let compute = Compute::new(isa, 2).unwrap();
            let mut out = vec![f32::NAN; n_tokens * width];
            let mut query = PrefillQuery {
                q: &sequence.q[pos * width..],
                k: &sequence.k[pos * kv_width..],
                v: &sequence.v[pos * kv_width..],
                kv: cache.view(&sequence, narrow),
                pos,
                out: &mut out,
            };
            prefill(&compute, &mut query, window, 0.3, &mut PrefillScratch::default());
            for t in 0..n_tokens {
                for h in 0..sequence.n_heads {
                    let want = sequence.expected(pos + t, h, window, f64::from(0.3f32));
                    for (e, want) in want.iter().enumerate() {
                        let got = f64::from(out[t * width + h * head_dim + e]);
                        prop_assert!((got - want).abs() <= TOLERANCE, "{isa} {t} head {h} {e}: {got} not {want}");
                    }
                }
            }
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
        .map(|(s, n)| s.cache(n, n))
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
                kv: caches[*i].view(&sequences[*i], true),
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
