//! The operations that a forward pass is made of: the seam between models and the hardware that runs them.
//!
//! A model is written once over [`Backend`] ([`crate::gemma`]); a backend keeps weights, activations and
//! caches where it computes and knows nothing of layers or names. The CPU is one ([`crate::cpu`]); a GPU is to
//! be another, in its own crate. Shapes use `T` for the tokens of the batch, all sequences one after another.

use std::ops::Range;

use carat_format::TensorView;
use smallvec::SmallVec;

use crate::config::{LayerConfig, Rope};
use crate::{Config, Error, SequenceCache};

/// A place to compute.
pub(crate) trait Backend {
    /// A weight matrix `[out, in]`.
    type Matrix;
    /// A norm's weights.
    type Vector;
    /// Activations `[T, width]` in f32, reused from pass to pass.
    type Buffer: Default;
    /// One sequence's keys and values.
    type Cache: SequenceCache;
    /// Angles of the batch's positions for one rope.
    type Angles: Default;

    /// Takes a weight matrix; the CPU leaves it mapped where it is.
    fn matrix(&self, tensor: &TensorView<'_>) -> Result<Self::Matrix, Error>;

    /// Takes a norm's weights.
    fn vector(&self, values: Vec<f32>) -> Self::Vector;

    /// An empty cache, which takes no memory yet.
    fn new_cache(&self, config: &Config, max_tokens: usize) -> Self::Cache;

    /// Whether a cache was made for this model.
    fn cache_fits(&self, cache: &Self::Cache, config: &Config) -> bool;

    /// Takes the memory that the next `n` tokens of a cache need, so that nothing can fail later.
    fn reserve(&self, cache: &mut Self::Cache, n: usize) -> Result<(), Error>;

    /// `out[t] = scale * table[tokens[t]]`. Token ids are below the table's rows.
    fn embed(
        &mut self,
        table: &Self::Matrix,
        tokens: &[u32],
        scale: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), Error>;

    /// Puts `values` `[n, width]` in the place of the rows from `first` on.
    fn replace_rows(&mut self, x: &mut Self::Buffer, first: usize, values: &[f32]);

    /// Fills `angles` for `positions`, one for each token.
    fn angles(&mut self, rope: &Rope, head_dim: usize, positions: &[usize], angles: &mut Self::Angles);

    /// `out[t] = rms_norm(x[t]) * weight`
    fn norm(&mut self, x: &Self::Buffer, weight: &Self::Vector, eps: f32, out: &mut Self::Buffer);

    /// `x[t] += rms_norm(y[t]) * weight`
    fn add_norm(&mut self, x: &mut Self::Buffer, y: &Self::Buffer, weight: &Self::Vector, eps: f32);

    /// `out[t] = w x[t]` for several matrices with one input, which a backend may run as one.
    fn multiply(&mut self, x: &Self::Buffer, products: &mut [(&Self::Matrix, &mut Self::Buffer)]);

    /// Norms each head of `x` `[T, heads, head_dim]` and rotates it.
    fn norm_rotate(
        &mut self,
        x: &mut Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        head_dim: usize,
        angles: &Self::Angles,
    );

    /// Appends keys and values to the caches' layer `layer` and attends: row `t` of `q` sees its own sequence
    /// as far as the layer's window goes. `k` may be rounded to the cache's format in place, and so may `v`.
    fn attend(
        &mut self,
        layer: usize,
        shape: &AttentionShape<'_>,
        qkv: [&mut Self::Buffer; 3],
        sequences: &mut [Sequence<'_, Self::Cache>],
        out: &mut Self::Buffer,
    );

    /// Counts the tokens of a pass in the caches, once every layer has stored them.
    fn advance(&mut self, sequences: &mut [Sequence<'_, Self::Cache>]);

    /// `gate[t] = gelu(gate[t]) * up[t]`
    fn gelu_mul(&mut self, gate: &mut Self::Buffer, up: &Self::Buffer);

    /// Keeps the rows whose indexes are given, in their order.
    fn gather(&mut self, x: &Self::Buffer, rows: &[usize], out: &mut Self::Buffer);

    /// Hands the rows to the caller; what the buffer holds afterwards is not defined.
    fn take(&mut self, x: &mut Self::Buffer, out: &mut Vec<f32>);

    /// Copies the rows to the caller.
    fn read(&self, x: &Self::Buffer, out: &mut Vec<f32>);
}

/// What attention needs to know of a layer.
pub(crate) struct AttentionShape<'a> {
    pub(crate) layer: &'a LayerConfig,
    pub(crate) score_scale: f32,
}

/// One sequence's share of a batch: `n` rows, at positions from the cache's length on.
pub(crate) struct Sequence<'a, C> {
    pub(crate) cache: &'a mut C,
    pub(crate) n: usize,
    /// Rows that see each other in both directions, in layers that have it so.
    pub(crate) spans: SmallVec<[Range<usize>; 2]>,
}
