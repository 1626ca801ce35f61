//! What a model is: its sizes, layer by layer, read from a GGUF file's keys or a `config.json`.
//!
//! Layers differ only in data (window, rope, heads, whose keys and values they see), never in code. Files leave
//! out what their makers thought obvious; what is filled in is written beside each default.

mod drafter;
mod gemma4;
mod gguf;
mod hugging_face;
mod media;
mod published;

use std::fmt;
use std::path::Path;

use crate::Error;
use crate::weights::gguf_shapes;
pub(crate) use drafter::{DrafterClusters, DrafterConfig};
pub(crate) use gguf::{GgufHead, ROPE_FACTORS, SEES_SPANS, usually_sees_spans};
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
    /// Logits become `cap * tanh(logits / cap)`.
    pub logit_cap: Option<f32>,
    /// Width of the input that each layer has for the token itself; 0 for models without.
    pub per_layer_width: usize,
    /// The rotary embeddings that layers refer to.
    pub ropes: Vec<Rope>,
    /// The layers, first to last.
    pub layers: Vec<LayerConfig>,
}

impl Config {
    /// Weights of the text model, the embedding counted once, per-layer embeddings included.
    #[must_use]
    pub fn n_parameters(&self) -> usize {
        let elements = |shape: &[usize]| shape.iter().fold(1usize, |n, side| n.saturating_mul(*side));
        let shapes = gguf_shapes(self).into_iter();
        shapes
            .map(|(_, shape)| elements(&shape))
            .fold(0, usize::saturating_add)
    }

    /// Of the [weights](Config::n_parameters), those that one token is multiplied with: without the experts that it
    /// does not go to and without the per-layer embeddings, of which only a row is read.
    #[must_use]
    pub fn n_active_parameters(&self) -> usize {
        let idle = |layer: &LayerConfig| {
            layer.experts.map_or(0, |experts| {
                let one = self.d_model.saturating_mul(3 * experts.d_ff);
                one.saturating_mul(experts.n - experts.n_used)
            })
        };
        let rows = self.vocab_size.saturating_mul(self.per_layer_width);
        let idle = self.layers.iter().map(idle).fold(0, usize::saturating_add);
        let tables = rows.saturating_mul(self.layers.len());
        self.n_parameters().saturating_sub(idle).saturating_sub(tables)
    }

    /// Layers before the first that attends to another's keys and values.
    pub(crate) fn n_owning_layers(&self) -> usize {
        let shared = self.layers.iter().position(|layer| !layer.owns_kv());
        shared.unwrap_or(self.layers.len())
    }

    /// Whether other layers attend to this one's keys and values.
    pub(crate) fn is_shared(&self, layer: usize) -> bool {
        self.layers.iter().any(|other| other.kv == KvSource::Layer(layer))
    }
}

/// A generation of Gemma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Gemma 3: 270M, 1B, 4B, 12B, 27B and what is tuned from them.
    Gemma3,
    /// Gemma 4: E2B, E4B, 12B, 26B-A4B, 31B and what is tuned from them.
    Gemma4,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Gemma3 => "Gemma 3",
            Family::Gemma4 => "Gemma 4",
        })
    }
}

/// Where a layer's keys and values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvSource {
    /// From projections of its own.
    Own,
    /// Keys from a projection of its own; values are the keys before their norm.
    KeysAsValues,
    /// From this earlier layer, of the same shape: it has none of its own.
    Layer(usize),
}

/// The experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub n: usize,
    /// How many a token goes to.
    pub n_used: usize,
    /// Width of each.
    pub d_ff: usize,
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
    /// Where its keys and values come from.
    pub kv: KvSource,
    /// Experts beside the MLP.
    pub experts: Option<Experts>,
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

    /// Whether it has keys and values of its own, and pages in a cache.
    #[must_use]
    pub fn owns_kv(&self) -> bool {
        !matches!(self.kv, KvSource::Layer(_))
    }

    /// The layer whose keys and values layer `i`, which is this one, attends to.
    #[must_use]
    pub fn kv_owner(&self, i: usize) -> usize {
        match self.kv {
            KvSource::Layer(owner) => owner,
            KvSource::Own | KvSource::KeysAsValues => i,
        }
    }
}

/// A rotary embedding: pair `j` of a head turns by `pos * theta^(-2j / head_dim) / scaling`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Linear scaling of positions; 1 for none.
    pub scaling: f32,
    /// Pairs that turn, the first ones; the others stay as they are. `None` turns all.
    pub n_turning: Option<usize>,
}

/// Index of the local layers' rope in [`Config::ropes`].
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
            kv: KvSource::Own,
            experts: None,
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
            logit_cap: None,
            per_layer_width: 0,
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
