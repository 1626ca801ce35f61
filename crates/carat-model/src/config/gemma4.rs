//! What either kind of file says about a Gemma 4, checked and spread over the layers.
//!
//! One description serves every size: E2B and E4B have per-layer inputs and late layers without keys and values of
//! their own, 26B-A4B has experts, and in 12B, 26B-A4B and 31B the values of global layers are their keys.

use std::path::Path;

use super::{
    Config, Experts, Family, GLOBAL_ROPE, KvSource, LOCAL_ROPE, LayerConfig, MAX_HEADS, MAX_LAYERS,
    MAX_VOCABULARY, MAX_WIDTH, Rope,
};
use crate::Error;

/// Most experts of a layer.
const MAX_EXPERTS: usize = 4096;

/// What the files say.
pub(super) struct Gemma4Sizes {
    pub(super) d_model: usize,
    pub(super) vocab_size: usize,
    pub(super) context_len: usize,
    pub(super) window: usize,
    pub(super) norm_eps: f32,
    pub(super) logit_cap: Option<f32>,
    pub(super) per_layer_width: usize,
    pub(super) local_rope: Rope,
    pub(super) global_rope: Rope,
    /// Whether images are seen in both directions (in local layers).
    pub(super) sees_spans: bool,
    pub(super) experts: Option<Experts>,
    /// Layers at the end that attend to the keys and values of the last of their kind before them.
    pub(super) n_shared: usize,
    pub(super) layers: Vec<Gemma4Layer>,
}

/// What the files say about one layer.
#[derive(Clone)]
pub(super) struct Gemma4Layer {
    pub(super) is_global: bool,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) d_ff: usize,
    pub(super) keys_are_values: bool,
}

impl Gemma4Sizes {
    /// Checks the sizes and builds the layers.
    pub(super) fn into_config(self, path: &Path) -> Result<Config, Error> {
        self.check(&Checker { path })?;
        let n_owning = self.layers.len() - self.n_shared;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (i, layer) in self.layers.iter().enumerate() {
            let kv = if i < n_owning {
                if layer.keys_are_values {
                    KvSource::KeysAsValues
                } else {
                    KvSource::Own
                }
            } else {
                KvSource::Layer(self.donor(layer, n_owning, path)?)
            };
            layers.push(LayerConfig {
                n_heads: layer.n_heads,
                n_kv_heads: layer.n_kv_heads,
                head_dim: layer.head_dim,
                window: (!layer.is_global).then_some(self.window),
                rope: if layer.is_global { GLOBAL_ROPE } else { LOCAL_ROPE },
                d_ff: layer.d_ff,
                kv,
                experts: self.experts,
                sees_spans: self.sees_spans && !layer.is_global,
            });
        }
        Ok(Config {
            family: Family::Gemma4,
            d_model: self.d_model,
            vocab_size: self.vocab_size,
            context_len: self.context_len,
            norm_eps: self.norm_eps,
            // The reference rounds this to the weights' dtype; in f32, our reference, it stays as it is.
            embed_scale: (self.d_model as f32).sqrt(),
            // Queries and keys are normed, and nothing else scales the scores.
            score_scale: 1.0,
            logit_cap: self.logit_cap,
            per_layer_width: self.per_layer_width,
            ropes: vec![
                self.rope(self.local_rope, false),
                self.rope(self.global_rope, true),
            ],
            layers,
        })
    }

    /// The rope of a kind of layers. That all of its pairs turn is said in one way, whatever the file has.
    fn rope(&self, rope: Rope, is_global: bool) -> Rope {
        let n_pairs = self.head_dim(is_global).map(|head_dim| head_dim / 2);
        Rope {
            n_turning: rope.n_turning.filter(|n| Some(*n) != n_pairs),
            ..rope
        }
    }

    /// Width of a head in the layers of a kind; `None` where there are none.
    fn head_dim(&self, is_global: bool) -> Option<usize> {
        let mut of_kind = self.layers.iter().filter(|layer| layer.is_global == is_global);
        of_kind.next().map(|layer| layer.head_dim)
    }

    /// The last layer of the same kind that has keys and values of its own.
    fn donor(&self, layer: &Gemma4Layer, n_owning: usize, path: &Path) -> Result<usize, Error> {
        let is_donor = |other: &Gemma4Layer| {
            (other.is_global, other.n_kv_heads, other.head_dim)
                == (layer.is_global, layer.n_kv_heads, layer.head_dim)
        };
        self.layers[..n_owning]
            .iter()
            .rposition(is_donor)
            .ok_or_else(|| Error::BadField {
                path: path.to_owned(),
                field: "number of layers with shared keys and values",
                value: self.n_shared.to_string(),
                expected: "so small that each of them has a layer of its kind before them",
            })
    }

    fn check(&self, checker: &Checker<'_>) -> Result<(), Error> {
        let n_layers = self.layers.len();
        checker.between("number of layers", n_layers, 1, MAX_LAYERS)?;
        checker.between("hidden size", self.d_model, 1, MAX_WIDTH)?;
        checker.between("sliding window", self.window, 1, MAX_WIDTH)?;
        checker.between("vocabulary size", self.vocab_size, 1, MAX_VOCABULARY)?;
        checker.between("context length", self.context_len, 1, 1 << 30)?;
        checker.between("width of per-layer inputs", self.per_layer_width, 0, 1 << 16)?;
        checker.between(
            "number of layers with shared keys and values",
            self.n_shared,
            0,
            n_layers - 1,
        )?;
        for layer in &self.layers {
            layer.check(checker)?;
            // Each kind has one rope, whose angles are laid out for one width.
            if self.head_dim(layer.is_global) != Some(layer.head_dim) {
                let expected = "the same in all local and in all global layers";
                return Err(checker.bad("head size", layer.head_dim.to_string(), expected));
            }
        }
        if let Some(experts) = self.experts {
            checker.between("number of experts", experts.n, 1, MAX_EXPERTS)?;
            checker.between("number of experts of a token", experts.n_used, 1, experts.n)?;
            checker.between("width of an expert", experts.d_ff, 1, MAX_WIDTH)?;
        }
        let cap = self.logit_cap.unwrap_or(1.0);
        for (field, value) in [
            ("norm epsilon", self.norm_eps),
            ("final logit soft cap", cap),
            ("rope base", self.local_rope.theta),
            ("rope base", self.global_rope.theta),
            ("rope scaling", self.local_rope.scaling),
            ("rope scaling", self.global_rope.scaling),
        ] {
            if !value.is_finite() || value <= 0.0 {
                return Err(checker.bad(field, value.to_string(), "a positive number"));
            }
        }
        Ok(())
    }
}

impl Gemma4Layer {
    fn check(&self, checker: &Checker<'_>) -> Result<(), Error> {
        checker.between("number of heads", self.n_heads, 1, MAX_HEADS)?;
        checker.between("number of KV heads", self.n_kv_heads, 1, MAX_HEADS)?;
        checker.between("feed-forward size", self.d_ff, 1, MAX_WIDTH)?;
        checker.between("head size", self.head_dim, 2, MAX_WIDTH / self.n_heads)?;
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = "a multiple of the number of KV heads";
            return Err(checker.bad("number of heads", self.n_heads.to_string(), expected));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(checker.bad("head size", self.head_dim.to_string(), "even"));
        }
        Ok(())
    }
}

/// Makes errors that name the file.
struct Checker<'a> {
    path: &'a Path,
}

impl Checker<'_> {
    fn bad(&self, field: &'static str, value: String, expected: &'static str) -> Error {
        Error::BadField {
            path: self.path.to_owned(),
            field,
            value,
            expected,
        }
    }

    fn between(&self, field: &'static str, value: usize, least: usize, most: usize) -> Result<(), Error> {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        Err(Error::OutOfRange {
            path: self.path.to_owned(),
            field,
            value,
            least,
            most,
        })
    }
}
