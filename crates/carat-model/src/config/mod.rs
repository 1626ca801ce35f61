//! What a model is: its sizes, layer by layer, read from a GGUF file's keys or a `config.json`.
//!
//! Layers differ only in data (window, rope, heads), never in code, so Gemma 4's wider global layers have
//! their place here. Files leave out what their makers thought obvious; what is filled in is written beside
//! each default.

mod gguf;
mod hugging_face;
mod media;
mod published;

use std::path::Path;

use crate::Error;
pub use media::{
    AudioConfig, ConformerConfig, Gemma4VisionConfig, MediaConfig, SiglipConfig, UnifiedAudioConfig,
    UnifiedVisionConfig, VisionConfig,
};
pub(crate) use media::{MAX_AUDIO_TOKENS, MEL_BINS};

/// A model's sizes and constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which Gemma.
    pub family: Family,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Rows of the embedding; may exceed the tokenizer's size.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub context_len: usize,
    /// Added to the mean square in every norm.
    pub norm_eps: f32,
    /// What token embeddings are multiplied with.
    pub embed_scale: f32,
    /// What scores are multiplied with before the softmax.
    pub score_scale: f32,
    /// The rotary embeddings that layers refer to.
    pub ropes: Vec<Rope>,
    /// The layers, first to last.
    pub layers: Vec<LayerConfig>,
}

impl Config {
    /// Weights of the text model, the embedding counted once.
    #[must_use]
    pub fn n_parameters(&self) -> usize {
        let layer = |layer: &LayerConfig| {
            let attention = 2 * layer.q_width() + 2 * layer.kv_width();
            self.d_model * (attention + 3 * layer.d_ff + 4) + 2 * layer.head_dim
        };
        self.vocab_size * self.d_model + self.d_model + self.layers.iter().map(layer).sum::<usize>()
    }
}

/// A generation of Gemma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Gemma 3: 270M, 1B, 4B, 12B, 27B and what is tuned from them.
    Gemma3,
}

/// One layer's shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Positions that a row sees, its own included; `None` sees all before it (a global layer).
    pub window: Option<usize>,
    /// Index into [`Config::ropes`].
    pub rope: usize,
    /// Width of the MLP.
    pub d_ff: usize,
    /// Whether the rows of a bidirectional span see each other here.
    pub sees_spans: bool,
}

impl LayerConfig {
    /// Width of all query heads.
    #[must_use]
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key (or value) heads.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

/// A rotary embedding: element `j` turns by `pos * theta^(-2j / head_dim) / scaling`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Linear scaling of positions; 1 for none.
    pub scaling: f32,
}

/// Index of the local layers' rope in [`Config::ropes`], for Gemma 3.
const LOCAL_ROPE: usize = 0;
/// Index of the global layers' rope.
const GLOBAL_ROPE: usize = 1;

/// Limits of what a file may claim, far above every Gemma: they keep sizes from overflowing.
const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 20;
const MAX_HEADS: usize = 1024;
const MAX_VOCABULARY: usize = 1 << 24;

/// What either kind of file says about a Gemma 3, before it is spread over the layers.
struct Gemma3Sizes {
    n_layers: usize,
    d_model: usize,
    d_ff: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    context_len: usize,
    window: usize,
    norm_eps: f32,
    score_scale: f32,
    local_rope: Rope,
    global_rope: Rope,
    /// Per layer: whether it is global.
    is_global: Vec<bool>,
}

impl Gemma3Sizes {
    /// Checks the sizes and builds the layers.
    fn into_config(self, path: &Path) -> Result<Config, Error> {
        let bad = |field, value: usize, expected| Error::BadField {
            path: path.to_owned(),
            field,
            value: value.to_string(),
            expected,
        };
        let width = "between 1 and 1048576";
        for (field, value) in [
            ("hidden size", self.d_model),
            ("feed-forward size", self.d_ff),
            ("number of heads", self.n_heads),
            ("number of KV heads", self.n_kv_heads),
            ("head size", self.head_dim),
            ("sliding window", self.window),
        ] {
            if value == 0 || value > MAX_WIDTH {
                return Err(bad(field, value, width));
            }
        }
        if self.vocab_size == 0 || self.vocab_size > MAX_VOCABULARY {
            return Err(bad("vocabulary size", self.vocab_size, "between 1 and 16777216"));
        }
        if self.n_heads > MAX_HEADS {
            return Err(bad("number of heads", self.n_heads, "between 1 and 1024"));
        }
        if self.n_layers == 0 || self.n_layers > MAX_LAYERS {
            return Err(bad("number of layers", self.n_layers, "between 1 and 1024"));
        }
        if self.is_global.len() != self.n_layers {
            return Err(bad(
                "length of the layer pattern",
                self.is_global.len(),
                "the number of layers",
            ));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(bad(
                "number of heads",
                self.n_heads,
                "a multiple of the number of KV heads",
            ));
        }
        if !self.head_dim.is_multiple_of(2) || self.n_heads.saturating_mul(self.head_dim) > MAX_WIDTH {
            return Err(bad(
                "head size",
                self.head_dim,
                "even, and its product with the heads below 1048576",
            ));
        }
        if self.context_len == 0 || self.context_len > 1 << 30 {
            return Err(bad("context length", self.context_len, "between 1 and 2^30"));
        }
        for (field, value) in [
            ("norm epsilon", self.norm_eps),
            ("attention scale", self.score_scale),
            ("rope base", self.local_rope.theta),
            ("rope base", self.global_rope.theta),
            ("rope scaling", self.local_rope.scaling),
            ("rope scaling", self.global_rope.scaling),
        ] {
            if !value.is_finite() || value <= 0.0 {
                let expected = "a positive number";
                return Err(Error::BadField {
                    path: path.to_owned(),
                    field,
                    value: value.to_string(),
                    expected,
                });
            }
        }
        let layer = |is_global: &bool| LayerConfig {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            window: (!is_global).then_some(self.window),
            rope: if *is_global { GLOBAL_ROPE } else { LOCAL_ROPE },
            d_ff: self.d_ff,
            // In both kinds of layers; local ones do not see further back for it.
            sees_spans: true,
        };
        Ok(Config {
            family: Family::Gemma3,
            d_model: self.d_model,
            vocab_size: self.vocab_size,
            context_len: self.context_len,
            norm_eps: self.norm_eps,
            // The reference rounds this to the weights' dtype; in f32, our reference, it stays as it is.
            embed_scale: (self.d_model as f32).sqrt(),
            score_scale: self.score_scale,
            ropes: vec![self.local_rope, self.global_rope],
            layers: self.is_global.iter().map(layer).collect(),
        })
    }
}

/// Layer `i` is global when `i + 1` is a multiple of `pattern`.
fn every_nth_global(n_layers: usize, pattern: usize) -> Vec<bool> {
    (0..n_layers.min(MAX_LAYERS + 1))
        .map(|i| pattern > 0 && (i + 1) % pattern == 0)
        .collect()
}
