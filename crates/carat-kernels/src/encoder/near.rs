//! Attention of the audio encoder: a row sees itself and the rows just before it, with a term for the distance.
//!
//! ```text
//! score[d] = cap tanh(q[t] . (k[t - d] + r[d]) / cap)    d = 0 .. span, t - d >= 0
//! out[t]   = sum over d of softmax(score)[d] v[t - d]
//! ```
//!
//! With some twelve keys a row this is next to nothing beside the encoder's products (1 operation in 800), so rows
//! are taken one by one.

use std::sync::{Mutex, PoisonError};

use crate::simd::{Simd, dispatch};
use crate::{Compute, is_area};

/// Rows of a chunk of work.
const ROWS_PER_CHUNK: usize = 16;

/// The shape of [`attend_near`] and its terms for distances.
#[derive(Clone, Copy, Debug)]
pub struct NearAttention<'a> {
    /// Heads.
    pub n_heads: usize,
    /// Width of one.
    pub head_dim: usize,
    /// `[span, H, E]`: for each distance, from 0 on, what is added to the key.
    pub relative: &'a [f32],
    /// Scores stay within plus and minus this.
    pub cap: f32,
}

/// Attention over near rows; see the module's head. `q` (scaled), `k`, `v` and `out` are `[T, H, E]`.
///
/// # Panics
/// When a shape does not fit.
pub fn attend_near(compute: &Compute, shape: &NearAttention<'_>, [q, k, v]: [&[f32]; 3], out: &mut [f32]) {
    let width = shape.n_heads * shape.head_dim;
    let n = q.len() / width.max(1);
    let span = shape.relative.len() / width.max(1);
    assert!(
        [q, k, v, &*out].iter().all(|x| is_area(x.len(), n, width)) && shape.relative.len() == span * width,
        "queries, keys, values and relative terms do not fit each other"
    );
    let chunks: Vec<Mutex<&mut [f32]>> = out
        .chunks_mut((ROWS_PER_CHUNK * width).max(1))
        .map(Mutex::new)
        .collect();
    compute.pool().run(chunks.len(), &|_, i| {
        // Each chunk is one thread's; the lock only says so to the compiler.
        let mut chunk = chunks[i].lock().unwrap_or_else(PoisonError::into_inner);
        for (r, out) in chunk.chunks_exact_mut(width).enumerate() {
            let t = i * ROWS_PER_CHUNK + r;
            near_row(compute.isa(), shape, t, q, k, v, out);
        }
    });
}

dispatch! {
    /// Row `t` of all heads.
    fn near_row(shape: &NearAttention<'_>, t: usize, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32])
        = near_row_generic;
}

#[inline(always)]
fn near_row_generic<S: Simd>(
    simd: S,
    shape: &NearAttention<'_>,
    t: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
) {
    let (dim, width) = (shape.head_dim, shape.n_heads * shape.head_dim);
    let span = (shape.relative.len() / width).min(t + 1);
    let mut weights = smallvec::SmallVec::<[f32; 32]>::from_elem(0.0, span);
    for head in 0..shape.n_heads {
        let row = |x: &'_ [f32], t: usize| -> std::ops::Range<usize> {
            let at = t * width + head * dim;
            assert!(at + dim <= x.len(), "outside the rows");
            at..at + dim
        };
        let q = &q[row(q, t)];
        for (d, weight) in weights.iter_mut().enumerate() {
            let score = dot_of_sum(
                simd,
                q,
                &k[row(k, t - d)],
                &shape.relative[row(shape.relative, d)],
            );
            *weight = shape.cap * (score / shape.cap).tanh();
        }
        let largest = weights.iter().copied().fold(f32::MIN, f32::max);
        weights
            .iter_mut()
            .for_each(|weight| *weight = (*weight - largest).exp());
        let inverse = 1.0 / weights.iter().sum::<f32>();
        let out = &mut out[head * dim..(head + 1) * dim];
        out.fill(0.0);
        for (d, weight) in weights.iter().enumerate() {
            for (out, value) in out.iter_mut().zip(&v[row(v, t - d)]) {
                *out += weight * inverse * value;
            }
        }
    }
}

/// `q . (k + r)`; all of one length.
#[inline(always)]
fn dot_of_sum<S: Simd>(simd: S, q: &[f32], k: &[f32], r: &[f32]) -> f32 {
    assert!(q.len() == k.len() && q.len() == r.len(), "rows of one length");
    let whole = q.len() / S::LANES * S::LANES;
    let mut sum = simd.splat(0.0);
    for at in (0..whole).step_by(S::LANES) {
        // SAFETY: whole registers below the common length.
        unsafe {
            let key = simd.add(simd.load(k.as_ptr().add(at)), simd.load(r.as_ptr().add(at)));
            sum = simd.fma(simd.load(q.as_ptr().add(at)), key, sum);
        }
    }
    let rest: f32 = (whole..q.len()).map(|i| q[i] * (k[i] + r[i])).sum();
    simd.reduce_add(sum) + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_f64(n in 1usize..40, n_heads in 1usize..3, dim in 1usize..40, span in 1usize..14, seed: u16) {
            let width = n_heads * dim;
            let numbers = |n: usize, salt: f32| -> Vec<f32> {
                (0..n).map(|i| (i as f32 * 0.83 + f32::from(seed) + salt).sin()).collect()
            };
            let [q, k, v] = [0.1, 0.2, 0.3].map(|salt| numbers(n * width, salt));
            let relative = numbers(span * width, 0.4);
            let shape = NearAttention { n_heads, head_dim: dim, relative: &relative, cap: 2.5 };
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; n * width];
                attend_near(&Compute::new(isa, 2).unwrap(), &shape, [&q, &k, &v], &mut out);
                for (t, head) in (0..n).flat_map(|t| (0..n_heads).map(move |head| (t, head))) {
                    let at = |x: &[f32], t: usize, e: usize| f64::from(x[t * width + head * dim + e]);
                    let weights: Vec<f64> = (0..span.min(t + 1))
                        .map(|d| {
                            let dot: f64 = (0..dim).map(|e| at(&q, t, e) * (at(&k, t - d, e) + at(&relative, d, e))).sum();
                            (2.5 * (dot / 2.5).tanh()).exp()
                        })
                        .collect();
                    let total: f64 = weights.iter().sum();
                    for e in 0..dim {
                        let want: f64 = weights.iter().enumerate().map(|(d, w)| w / total * at(&v, t - d, e)).sum();
                        prop_assert!((at(&out, t, e) - want).abs() < 2e-5, "{isa} {t} {head} {e}");
                    }
                }
            }
        }
    }
}
