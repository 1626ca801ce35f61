//! The operations that a forward pass is made of: the seam between models and the hardware that runs them.
//!
//! A model is written once over [`Backend`] ([`crate::gemma`]); a backend keeps weights, activations and
//! caches where it computes and knows nothing of layers or names. The CPU is one ([`crate::cpu`]); a GPU is to
//! be another, in its own crate. Shapes use `T` for the tokens of the batch, all sequences one after another.

use std::ops::Range;

use carat_format::TensorView;
use smallvec::SmallVec;

use crate::config::{LayerConfig, Rope};
use crate::{Config, Error, SequenceCache, TokenLogit};

/// A place to compute.
pub(crate) trait Backend {
    /// A weight matrix `[out, in]`.
    type Matrix;
    /// A norm's weights.
    type Vector;
    /// Activations `[T, width]` in f32, reused from pass to pass.
    type Buffer: Default;
    /// A batch's keys and values in the caches' format.
    type Packed: Default;
    /// Which experts a batch's tokens go to.
    type Routes: Default;
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

    /// Takes `values` `[n, width]` from the caller.
    fn write(&mut self, values: &[f32], width: usize, out: &mut Self::Buffer);

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

    /// The `k[t]` largest of `w x[t]`, capped as [`Backend::soft_cap`] does if there is a cap: the largest first, of equals
    /// that of the earlier row.
    fn largest(
        &mut self,
        x: &Self::Buffer,
        matrix: &Self::Matrix,
        cap: Option<f32>,
        k: &[usize],
        out: &mut Vec<Vec<TokenLogit>>,
    );

    /// Norms each head of `x` `[T, heads, head_dim]` and rotates it.
    fn norm_rotate(
        &mut self,
        x: &mut Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        head_dim: usize,
        angles: &Self::Angles,
    );

    /// Norms every stretch of `x` that is as long as `weight`: whole rows, or each head of them.
    fn norm_in_place(&mut self, x: &mut Self::Buffer, weight: &Self::Vector, eps: f32);

    /// Brings the keys and values of a batch into the format of the caches' layer `layer`. Those of sequences that
    /// are decoded go there at once; those of others may be rounded in place and wait for [`Backend::store`].
    fn pack(&mut self, layer: usize, kv: &mut KeyValues<Self>, sequences: &mut [Sequence<'_, Self::Cache>]);

    /// Row `t` of `q` sees its own sequence as far as the layer's window goes: what the caches' layer `layer`
    /// holds, and of the batch itself `kv`, which has been packed for it.
    fn attend(
        &mut self,
        layer: usize,
        shape: &AttentionShape<'_>,
        q: &Self::Buffer,
        kv: &KeyValues<Self>,
        sequences: &[Sequence<'_, Self::Cache>],
        out: &mut Self::Buffer,
    );

    /// Puts what [`Backend::pack`] left for later into the caches' layer `layer`, after the last layer whose rows before
    /// each sequence's last attend to it: what a ring of the cache loses by it is needed no more.
    fn store(&mut self, layer: usize, kv: &KeyValues<Self>, sequences: &mut [Sequence<'_, Self::Cache>]);

    /// Counts the tokens of a pass in the caches, once every layer has stored them.
    fn advance(&mut self, sequences: &mut [Sequence<'_, Self::Cache>]);

    /// `gate[t] = gelu(gate[t]) * up[t]`, of `up` the columns from `first` on.
    fn gelu_mul(&mut self, gate: &mut Self::Buffer, up: &Self::Buffer, first: usize);

    /// `out = x`
    fn copy(&mut self, x: &Self::Buffer, out: &mut Self::Buffer);

    /// `x *= factor`
    fn scale(&mut self, x: &mut Self::Buffer, factor: f32);

    /// `x = (x + y) * factor`
    fn add(&mut self, x: &mut Self::Buffer, y: &Self::Buffer, factor: f32);

    /// `x = cap * tanh(x / cap)`
    fn soft_cap(&mut self, x: &mut Self::Buffer, cap: f32);

    /// Turns the router's scores `[T, experts]` into probabilities and chooses the `n_used` likeliest experts of
    /// each token; their weights are their probabilities over the sum of the chosen, times `scale` of the expert.
    fn route(
        &mut self,
        scores: &mut Self::Buffer,
        n_used: usize,
        scale: &Self::Vector,
        routes: &mut Self::Routes,
    );

    /// `out[t]` = the weighted sum of what the chosen experts make of `x[t]`; the others are not computed.
    fn mix_experts(
        &mut self,
        x: &Self::Buffer,
        routes: &Self::Routes,
        experts: &ExpertMatrices<Self>,
        out: &mut Self::Buffer,
    );

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

/// A batch's keys and values for one layer, or for those that share them.
pub(crate) struct KeyValues<B: Backend + ?Sized> {
    /// `[T, K, E]`, normed and rotated.
    pub(crate) k: B::Buffer,
    /// `[T, K, E]`
    pub(crate) v: B::Buffer,
    pub(crate) packed: B::Packed,
}

impl<B: Backend> Default for KeyValues<B> {
    fn default() -> KeyValues<B> {
        KeyValues {
            k: B::Buffer::default(),
            v: B::Buffer::default(),
            packed: B::Packed::default(),
        }
    }
}

/// The matrices of a layer's experts, one expert's rows after another's.
#[derive(Debug)]
pub(crate) struct ExpertMatrices<B: Backend + ?Sized> {
    /// `[experts * d_ff, d_model]`, or with both parts of each expert one after the other
    /// `[experts * 2 * d_ff, d_model]`.
    pub(crate) gate: B::Matrix,
    /// `[experts * d_ff, d_model]`, where it is not within `gate`.
    pub(crate) up: Option<B::Matrix>,
    /// `[experts * d_model, d_ff]`
    pub(crate) down: B::Matrix,
    /// Width of an expert.
    pub(crate) d_ff: usize,
}

/// One sequence's share of a batch: `n` rows, at positions from `pos` on.
pub(crate) struct Sequence<'a, C> {
    pub(crate) cache: &'a mut C,
    pub(crate) pos: usize,
    pub(crate) n: usize,
    /// Of its rows, those whose logits are wanted: the last ones.
    pub(crate) n_wanted: usize,
    /// Whether its rows are few and computed as if they came one by one: see [`Sequence::is_decoded`].
    pub(crate) is_chain: bool,
    /// Rows that see each other in both directions, in layers that have it so.
    pub(crate) spans: SmallVec<[Range<usize>; 2]>,
}

impl<C> Sequence<'_, C> {
    /// Whether the rows' keys and values go into the cache before anything attends, and each row reads the cache.
    ///
    /// One row is; so are the rows of a draft that is checked, in the arithmetic of decoding, so that what they give
    /// is to the bit what decoding them one after another gives. They are few enough for a local layer's ring not to
    /// lose what the first of them sees.
    pub(crate) fn is_decoded(&self) -> bool {
        self.n == 1 || self.is_chain
    }
}
