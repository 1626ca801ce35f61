//! The CPU backend: `carat-kernels` on mapped weights.

mod experts;
mod top;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use carat_format::{TensorBytes, TensorView};
use carat_kernels::attention::{
    DecodeQuery, DecodeScratch, KvDType, PrefillQuery, PrefillScratch, decode, pack_rows, prefill,
    unpack_rows,
};
use carat_kernels::{Activations, Compute, DType, Matrix, Precision, Product, dequantize, vector};
use smallvec::SmallVec;

use crate::backend::{AttentionShape, Backend, ExpertMatrices, KeyValues, Sequence};
use crate::config::Rope;
use crate::kv_cache::KvCache;
use crate::{Config, Error, TokenLogit};
use experts::{ExpertScratch, Routes};
use top::Top;

/// Elements of one chunk of element-wise work: below it a parallel region costs more than it saves.
const ELEMENTS_PER_CHUNK: usize = 16 << 10;

/// See the module's head.
pub(crate) struct Cpu {
    compute: Arc<Compute>,
    kv_dtype: KvDType,
    activations: Activations,
    decode_scratch: DecodeScratch,
    prefill_scratch: PrefillScratch,
    experts: ExpertScratch,
    top: Top,
}

/// A weight matrix where it is mapped.
#[derive(Debug)]
pub(crate) struct CpuMatrix {
    dtype: DType,
    n_rows: usize,
    n_cols: usize,
    bytes: TensorBytes,
    /// [`Compute::longest_row`], once it was needed.
    longest_row: OnceLock<f32>,
}

impl CpuMatrix {
    /// The kernels' view. Sizes were checked when the matrix was made.
    fn view(&self) -> Result<Matrix<'_>, Error> {
        Ok(Matrix::new(self.dtype, self.n_rows, self.n_cols, &self.bytes)?)
    }
}

/// Activations `[rows, width]`.
#[derive(Debug, Default)]
pub(crate) struct CpuBuffer {
    width: usize,
    values: Vec<f32>,
}

impl CpuBuffer {
    /// Gives it a shape; the content is left over from before.
    fn reshape(&mut self, rows: usize, width: usize) -> &mut [f32] {
        self.width = width;
        self.values.resize(rows * width, 0.0);
        &mut self.values
    }

    fn n_rows(&self) -> usize {
        self.values.len() / self.width.max(1)
    }
}

/// Cosines and sines `[T, head_dim / 2]`.
#[derive(Debug, Default)]
pub(crate) struct CpuAngles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Cpu {
    /// On threads that there are already.
    pub(crate) fn on(compute: Arc<Compute>, precision: Precision, kv_dtype: KvDType) -> Cpu {
        Cpu {
            compute,
            kv_dtype,
            activations: Activations::new(precision),
            decode_scratch: DecodeScratch::default(),
            prefill_scratch: PrefillScratch::default(),
            experts: ExpertScratch::new(precision),
            top: Top::new(precision),
        }
    }

    pub(crate) fn compute(&self) -> &Arc<Compute> {
        &self.compute
    }

    /// Calls `each` with every row of `x` and its index, on all threads when there is enough to do.
    fn for_rows(&self, x: &mut CpuBuffer, each: impl Fn(usize, &mut [f32]) + Sync) {
        let (width, rows_per_chunk) = (x.width.max(1), (ELEMENTS_PER_CHUNK / x.width.max(1)).max(1));
        self.for_each(x.values.chunks_mut(rows_per_chunk * width), |i, chunk| {
            for (r, row) in chunk.chunks_exact_mut(width).enumerate() {
                each(i * rows_per_chunk + r, row);
            }
        });
    }

    /// Calls `each` with every one of `items` and its index, on all threads if there are several.
    fn for_each<T: Send>(&self, items: impl Iterator<Item = T>, each: impl Fn(usize, &mut T) + Sync) {
        // Each is one thread's; the lock only says so to the compiler.
        let items: SmallVec<[Mutex<T>; 16]> = items.map(Mutex::new).collect();
        self.compute.pool().run(items.len(), &|_, i| {
            each(i, &mut items[i].lock().unwrap_or_else(PoisonError::into_inner));
        });
    }
}

impl Backend for Cpu {
    type Matrix = CpuMatrix;
    type Vector = Vec<f32>;
    type Buffer = CpuBuffer;
    type Cache = KvCache;
    type Angles = CpuAngles;
    /// Keys and values, each `[T, K, row]`.
    type Packed = [Vec<u8>; 2];
    type Routes = Routes;

    fn matrix(&self, tensor: &TensorView<'_>) -> Result<CpuMatrix, Error> {
        // Of three axes, as experts have, the first two are rows.
        let n_cols = tensor.shape.last().copied().unwrap_or(1);
        let n_rows = tensor.n_elements() / n_cols.max(1);
        Matrix::new(tensor.dtype, n_rows, n_cols, tensor.bytes)?;
        Ok(CpuMatrix {
            dtype: tensor.dtype,
            n_rows,
            n_cols,
            bytes: tensor.hold(),
            longest_row: OnceLock::new(),
        })
    }

    fn vector(&self, values: Vec<f32>) -> Vec<f32> {
        values
    }

    fn new_cache(&self, config: &Config, max_tokens: usize) -> KvCache {
        KvCache::new(config, self.kv_dtype, max_tokens)
    }

    fn cache_fits(&self, cache: &KvCache, config: &Config) -> bool {
        cache.dtype() == self.kv_dtype && cache.fits(config)
    }

    fn reserve(&self, cache: &mut KvCache, n: usize) -> Result<(), Error> {
        cache.reserve(n)
    }

    fn embed(
        &mut self,
        table: &CpuMatrix,
        tokens: &[u32],
        scale: f32,
        out: &mut CpuBuffer,
    ) -> Result<(), Error> {
        let (table, isa) = (table.view()?, self.compute.isa());
        let width = table.n_cols();
        let rows = out.reshape(tokens.len(), width).chunks_exact_mut(width);
        for (token, row) in tokens.iter().zip(rows) {
            dequantize(table.dtype(), table.row(*token as usize), row).map_err(|source| Error::Tensor {
                name: "the token embedding".to_owned(),
                source,
            })?;
            vector::scale(isa, row, scale);
        }
        Ok(())
    }

    fn write(&mut self, values: &[f32], width: usize, out: &mut CpuBuffer) {
        out.width = width;
        out.values.clear();
        out.values.extend_from_slice(values);
    }

    fn replace_rows(&mut self, x: &mut CpuBuffer, first: usize, values: &[f32]) {
        x.values[first * x.width..][..values.len()].copy_from_slice(values);
    }

    fn angles(&mut self, rope: &Rope, head_dim: usize, positions: &[usize], angles: &mut CpuAngles) {
        let half = head_dim / 2;
        angles.half = half;
        angles.cos.resize(positions.len() * half, 0.0);
        angles.sin.resize(positions.len() * half, 0.0);
        for j in 0..half {
            // In f32 and in this order: as the reference computes its frequencies and angles.
            let turns = rope.n_turning.is_none_or(|n| j < n);
            let frequency = if turns {
                1.0 / rope.theta.powf((2 * j) as f32 / head_dim as f32) / rope.scaling
            } else {
                0.0
            };
            for (t, pos) in positions.iter().enumerate() {
                let angle = *pos as f32 * frequency;
                (angles.sin[t * half + j], angles.cos[t * half + j]) = angle.sin_cos();
            }
        }
    }

    fn norm(&mut self, x: &CpuBuffer, weight: &Vec<f32>, eps: f32, out: &mut CpuBuffer) {
        out.reshape(x.n_rows(), x.width);
        let isa = self.compute.isa();
        self.for_rows(out, |t, row| {
            vector::rms_norm(isa, &x.values[t * x.width..(t + 1) * x.width], weight, eps, row);
        });
    }

    fn add_norm(&mut self, x: &mut CpuBuffer, y: &CpuBuffer, weight: &Vec<f32>, eps: f32) {
        let isa = self.compute.isa();
        self.for_rows(x, |t, row| {
            vector::add_rms_norm(isa, row, &y.values[t * y.width..(t + 1) * y.width], weight, eps);
        });
    }

    fn multiply(&mut self, x: &CpuBuffer, products: &mut [(&CpuMatrix, &mut CpuBuffer)]) {
        let n = x.n_rows();
        let mut jobs: SmallVec<[Product<'_>; 4]> = SmallVec::new();
        for (matrix, out) in products {
            // The view cannot fail: `matrix` made the same one when the weights were loaded.
            if let Ok(weights) = matrix.view() {
                jobs.push(Product {
                    weights,
                    out: out.reshape(n, matrix.n_rows),
                });
            }
        }
        let weights: SmallVec<[Matrix<'_>; 4]> = jobs.iter().map(|job| job.weights).collect();
        self.activations
            .fill(&self.compute, &x.values, n, x.width, &weights);
        self.compute.multiply(&self.activations, &mut jobs);
    }

    fn largest(
        &mut self,
        x: &CpuBuffer,
        matrix: &CpuMatrix,
        cap: Option<f32>,
        k: &[usize],
        out: &mut Vec<Vec<TokenLogit>>,
    ) {
        let compute = &self.compute;
        // The view cannot fail: `matrix` made the same one when the weights were loaded.
        let Ok(weights) = matrix.view() else { return };
        let longest_row = || *matrix.longest_row.get_or_init(|| compute.longest_row(weights));
        self.top
            .run(compute, &x.values, (weights, longest_row), cap, k, out);
    }

    fn norm_rotate(
        &mut self,
        x: &mut CpuBuffer,
        weight: &Vec<f32>,
        eps: f32,
        head_dim: usize,
        angles: &CpuAngles,
    ) {
        let (isa, half) = (self.compute.isa(), angles.half);
        self.for_rows(x, |t, row| {
            let (cos, sin) = (
                &angles.cos[t * half..(t + 1) * half],
                &angles.sin[t * half..(t + 1) * half],
            );
            for head in row.chunks_exact_mut(head_dim) {
                vector::rms_norm_in_place(isa, head, weight, eps);
                vector::rotate(isa, head, cos, sin);
            }
        });
    }

    fn norm_in_place(&mut self, x: &mut CpuBuffer, weight: &Vec<f32>, eps: f32) {
        let isa = self.compute.isa();
        self.for_rows(x, |_, row| {
            for part in row.chunks_exact_mut(weight.len()) {
                vector::rms_norm_in_place(isa, part, weight, eps);
            }
        });
    }

    fn pack(&mut self, layer: usize, kv: &mut KeyValues<Cpu>, sequences: &mut [Sequence<'_, KvCache>]) {
        let Some(first) = sequences.first() else { return };
        let (isa, shape) = (self.compute.isa(), first.cache.shape(layer));
        let has_prompt = sequences.iter().any(|sequence| !sequence.is_decoded());
        let n = (ELEMENTS_PER_CHUNK / 2 / shape.head_dim).max(1) * shape.head_dim;
        let packed_n = shape.packed_len(n);
        let [k_packed, v_packed] = &mut kv.packed;
        k_packed.resize(shape.packed_len(kv.k.values.len()), 0);
        v_packed.resize(shape.packed_len(kv.v.values.len()), 0);
        let keys = kv.k.values.chunks_mut(n).zip(k_packed.chunks_mut(packed_n));
        let values = kv.v.values.chunks_mut(n).zip(v_packed.chunks_mut(packed_n));
        self.for_each(keys.zip(values), |_, (key, value)| {
            for (x, packed) in [key, value] {
                pack_rows(isa, shape, x, packed);
                if has_prompt {
                    // What later tokens will read from the cache is what a chunk's own rows see too.
                    unpack_rows(isa, shape, packed, x);
                }
            }
        });
        store(layer, kv, sequences, |sequence| sequence.is_decoded());
    }

    fn attend(
        &mut self,
        layer: usize,
        shape: &AttentionShape<'_>,
        q: &CpuBuffer,
        kv: &KeyValues<Cpu>,
        sequences: &[Sequence<'_, KvCache>],
        out: &mut CpuBuffer,
    ) {
        let (q_width, kv_width) = (shape.layer.q_width(), shape.layer.kv_width());
        let window = shape.layer.window;
        out.reshape(q.n_rows(), q_width);
        let mut queries: SmallVec<[DecodeQuery<'_>; 16]> = SmallVec::new();
        let mut rest = out.values.as_mut_slice();
        let mut row = 0;
        for sequence in sequences {
            let n = sequence.n;
            let (own, others) = rest.split_at_mut(n * q_width);
            rest = others;
            let q = &q.values[row * q_width..(row + n) * q_width];
            let view = sequence.cache.view(layer);
            if sequence.is_decoded() {
                let rows = q.chunks_exact(q_width).zip(own.chunks_exact_mut(q_width));
                queries.extend(rows.enumerate().map(|(t, (q, out))| DecodeQuery {
                    q,
                    kv: view,
                    pos: sequence.pos + t,
                    out,
                }));
            } else if n > 1 {
                let mut query = PrefillQuery {
                    q,
                    k: &kv.k.values[row * kv_width..(row + n) * kv_width],
                    v: &kv.v.values[row * kv_width..(row + n) * kv_width],
                    kv: view,
                    pos: sequence.pos,
                    spans: if shape.layer.sees_spans {
                        &sequence.spans
                    } else {
                        &[]
                    },
                    out: own,
                };
                let scratch = &mut self.prefill_scratch;
                prefill(&self.compute, &mut query, window, shape.score_scale, scratch);
            }
            row += n;
        }
        if !queries.is_empty() {
            decode(
                &self.compute,
                &mut queries,
                window,
                shape.score_scale,
                &mut self.decode_scratch,
            );
        }
    }

    fn store(&mut self, layer: usize, kv: &KeyValues<Cpu>, sequences: &mut [Sequence<'_, KvCache>]) {
        store(layer, kv, sequences, |sequence| !sequence.is_decoded());
    }

    fn advance(&mut self, sequences: &mut [Sequence<'_, KvCache>]) {
        for sequence in sequences {
            sequence.cache.advance(sequence.n);
        }
    }

    fn gelu_mul(&mut self, gate: &mut CpuBuffer, up: &CpuBuffer, first: usize) {
        let (isa, width) = (self.compute.isa(), gate.width);
        self.for_rows(gate, |t, row| {
            vector::gelu_mul(isa, row, &up.values[t * up.width + first..][..width]);
        });
    }

    fn copy(&mut self, x: &CpuBuffer, out: &mut CpuBuffer) {
        out.reshape(x.n_rows(), x.width).copy_from_slice(&x.values);
    }

    fn scale(&mut self, x: &mut CpuBuffer, factor: f32) {
        let isa = self.compute.isa();
        self.for_rows(x, |_, row| vector::scale(isa, row, factor));
    }

    fn add(&mut self, x: &mut CpuBuffer, y: &CpuBuffer, factor: f32) {
        self.for_rows(x, |t, row| {
            for (x, y) in row.iter_mut().zip(&y.values[t * y.width..(t + 1) * y.width]) {
                *x = (*x + y) * factor;
            }
        });
    }

    fn soft_cap(&mut self, x: &mut CpuBuffer, cap: f32) {
        let isa = self.compute.isa();
        // A row of logits is long enough to be shared out among threads.
        self.for_each(x.values.chunks_mut(ELEMENTS_PER_CHUNK), |_, chunk| {
            vector::soft_cap(isa, chunk, cap);
        });
    }

    fn route(&mut self, scores: &mut CpuBuffer, n_used: usize, scale: &Vec<f32>, routes: &mut Routes) {
        let n_experts = scores.width;
        let tokens_per_chunk = (ELEMENTS_PER_CHUNK / 4 / n_experts).max(1);
        let chosen = routes.of_tokens(scores.n_rows(), n_used);
        let tokens = scores.values.chunks_mut(tokens_per_chunk * n_experts);
        let chunks = tokens.zip(chosen.chunks_mut(tokens_per_chunk * n_used));
        self.for_each(chunks, |_, (scores, chosen)| {
            let tokens = scores.chunks_exact_mut(n_experts);
            for (scores, chosen) in tokens.zip(chosen.chunks_exact_mut(n_used)) {
                experts::choose(scores, scale, chosen);
            }
        });
        routes.group(n_experts);
    }

    fn mix_experts(
        &mut self,
        x: &CpuBuffer,
        routes: &Routes,
        experts: &ExpertMatrices<Cpu>,
        out: &mut CpuBuffer,
    ) {
        let mut scratch = std::mem::take(&mut self.experts);
        scratch.run(&self.compute, &x.values, routes, experts);
        out.reshape(x.n_rows(), x.width);
        self.for_rows(out, |t, row| scratch.mix(routes, t, row));
        self.experts = scratch;
    }

    fn gather(&mut self, x: &CpuBuffer, rows: &[usize], out: &mut CpuBuffer) {
        let width = x.width;
        let to = out.reshape(rows.len(), width).chunks_exact_mut(width.max(1));
        for (to, from) in to.zip(rows) {
            to.copy_from_slice(&x.values[from * width..(from + 1) * width]);
        }
    }

    fn take(&mut self, x: &mut CpuBuffer, out: &mut Vec<f32>) {
        std::mem::swap(&mut x.values, out);
    }

    fn read(&self, x: &CpuBuffer, out: &mut Vec<f32>) {
        out.clear();
        out.extend_from_slice(&x.values);
    }
}

/// Puts the packed rows of those sequences of a batch that are asked for into their caches.
fn store(
    layer: usize,
    kv: &KeyValues<Cpu>,
    sequences: &mut [Sequence<'_, KvCache>],
    is_wanted: impl Fn(&Sequence<'_, KvCache>) -> bool,
) {
    let n_rows = kv.k.n_rows();
    let mut row = 0;
    for sequence in sequences {
        let n = sequence.n;
        if n > 0 && is_wanted(sequence) {
            let packed = |side: &Vec<u8>| {
                let width = side.len() / n_rows.max(1);
                row * width..(row + n) * width
            };
            let [k, v] = &kv.packed;
            sequence.cache.store(layer, n, &k[packed(k)], &v[packed(v)]);
        }
        row += n;
    }
}
