//! What every tower computes with: threads, arithmetic, and memory that is reused from call to call.

use std::sync::{Arc, Mutex, PoisonError};

use carat_kernels::encoder::{
    AttentionScratch, EncoderHeads, EncoderPrecision, EncoderProduct, NearAttention, Operand, attend,
    attend_near,
};
use carat_kernels::{Compute, Isa, Turn};

use super::linear::{Clip, Linear};

/// Elements of one chunk of element-wise work: below it a parallel region costs more than it saves.
const ELEMENTS_PER_CHUNK: usize = 16 << 10;

/// See the module's head.
pub(super) struct Workspace {
    compute: Arc<Compute>,
    precision: EncoderPrecision,
    operand: Operand,
    attention: AttentionScratch,
}

/// Writes row `t` of a product's input.
pub(super) type Input<'a> = dyn Fn(usize, &mut [f32]) + Sync + 'a;

impl Workspace {
    pub(super) fn new(compute: Arc<Compute>, precision: EncoderPrecision) -> Workspace {
        Workspace {
            compute,
            precision,
            operand: Operand::new(precision),
            attention: AttentionScratch::default(),
        }
    }

    /// An input's time on the threads, until it is dropped.
    pub(super) fn turn(&self) -> Turn {
        self.compute.pool().turn()
    }

    pub(super) fn isa(&self) -> Isa {
        self.compute.isa()
    }

    /// `out[t] = linear(input[t])` for several layers with one input of `n` rows. Outputs become `[n, n_out]`.
    ///
    /// Layers that clip their input alike share it; in the published models these are those of one place.
    pub(super) fn project(&mut self, n: usize, input: &Input<'_>, products: &mut [(&Linear, &mut Vec<f32>)]) {
        for (linear, out) in products.iter_mut() {
            out.resize(n * linear.n_out(), 0.0);
        }
        let mut rest = products;
        while let Some((first, _)) = rest.first() {
            let (clip, n_in) = (first.clip().map(Clip::input), first.n_in());
            let alike = rest
                .iter()
                .take_while(|(linear, _)| linear.clip().map(Clip::input) == clip)
                .count();
            let (now, later) = rest.split_at_mut(alike);
            match clip {
                None => self.operand.fill(&self.compute, n, n_in, input),
                Some((low, high)) => self.operand.fill(&self.compute, n, n_in, &|t, row| {
                    input(t, row);
                    clamp(row, low, high);
                }),
            }
            let mut jobs: Vec<EncoderProduct<'_>> = Vec::new();
            for (linear, out) in now.iter_mut() {
                // The view cannot fail: the same one was made when the weights were loaded.
                if let Ok(weights) = linear.weights() {
                    jobs.push(EncoderProduct {
                        weights,
                        bias: linear.bias(),
                        out,
                    });
                }
            }
            self.compute.multiply_encoder(&self.operand, &mut jobs);
            for (linear, out) in now.iter_mut() {
                if let Some((low, high)) = linear.clip().map(Clip::output) {
                    self.for_rows(out, linear.n_out(), &|_, row| clamp(row, low, high));
                }
            }
            rest = later;
        }
    }

    /// Calls `each` with every row of `x` and its index, on all threads when there is enough to do.
    pub(super) fn for_rows(&self, x: &mut [f32], width: usize, each: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let rows_per_chunk = (ELEMENTS_PER_CHUNK / width.max(1)).max(1);
        let chunks: Vec<Mutex<&mut [f32]>> = x
            .chunks_mut((rows_per_chunk * width).max(1))
            .map(Mutex::new)
            .collect();
        self.compute.pool().run(chunks.len(), &|_, i| {
            // Each chunk is one thread's; the lock only says so to the compiler.
            let mut chunk = chunks[i].lock().unwrap_or_else(PoisonError::into_inner);
            for (r, row) in chunk.chunks_exact_mut(width.max(1)).enumerate() {
                each(i * rows_per_chunk + r, row);
            }
        });
    }

    /// Attention of all rows to all; each `[T, H, E]`.
    pub(super) fn attend(&mut self, heads: &EncoderHeads, qkv: [&[f32]; 3], out: &mut Vec<f32>) {
        out.resize(qkv[0].len(), 0.0);
        attend(
            &self.compute,
            self.precision,
            heads,
            qkv,
            out,
            &mut self.attention,
        );
    }

    /// Attention of rows to those near before them; each `[T, H, E]`.
    pub(super) fn attend_near(&self, shape: &NearAttention<'_>, qkv: [&[f32]; 3], out: &mut Vec<f32>) {
        out.resize(qkv[0].len(), 0.0);
        attend_near(&self.compute, shape, qkv, out);
    }
}

fn clamp(row: &mut [f32], low: f32, high: f32) {
    // Not `f32::clamp`, which panics where a file's limits are the wrong way round.
    row.iter_mut().for_each(|x| *x = x.max(low).min(high));
}

/// Row `t` of rows of `width`.
pub(super) fn row(x: &[f32], t: usize, width: usize) -> &[f32] {
    &x[t * width..(t + 1) * width]
}
