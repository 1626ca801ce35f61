//! A Gemma 4 configuration from a `config.json`.
//!
//! Two spellings are in use. Published files give the global layers' shape as `global_head_dim` and
//! `num_global_key_value_heads`; newer ones list what differs from the plain fields layer by layer, under
//! `per_layer_config`. Both load to the same model.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::super::gemma4::{Gemma4Layer, Gemma4Sizes};
use super::super::{Config, Experts, MAX_LAYERS, Rope, every_nth_global};
use crate::Error;

/// The fields that matter. What files leave out is the default of the reference's configuration class; those
/// defaults stand here, or where the two classes (`gemma4`, `gemma4_unified`) differ, in [`read`].
#[derive(Deserialize)]
#[serde(default)]
struct TextConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    global_head_dim: Option<usize>,
    num_global_key_value_heads: Option<usize>,
    per_layer_config: Option<BTreeMap<String, LayerOverrides>>,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    sliding_window: Option<usize>,
    rms_norm_eps: f32,
    final_logit_softcapping: Option<f32>,
    rope_parameters: Option<Ropes>,
    layer_types: Option<Vec<String>>,
    attention_k_eq_v: bool,
    num_kv_shared_layers: usize,
    use_double_wide_mlp: bool,
    hidden_size_per_layer_input: Option<usize>,
    vocab_size_per_layer_input: Option<usize>,
    enable_moe_block: bool,
    num_experts: Option<usize>,
    top_k_experts: Option<usize>,
    moe_intermediate_size: Option<usize>,
    use_bidirectional_attention: Bidirectional,
    attention_bias: bool,
    hidden_activation: Option<String>,
}

impl Default for TextConfig {
    fn default() -> TextConfig {
        TextConfig {
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 30,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            global_head_dim: None,
            num_global_key_value_heads: None,
            per_layer_config: None,
            vocab_size: 262_144,
            max_position_embeddings: None,
            sliding_window: None,
            rms_norm_eps: 1e-6,
            final_logit_softcapping: None,
            rope_parameters: None,
            layer_types: None,
            attention_k_eq_v: false,
            num_kv_shared_layers: 0,
            use_double_wide_mlp: false,
            hidden_size_per_layer_input: None,
            vocab_size_per_layer_input: None,
            enable_moe_block: false,
            num_experts: None,
            top_k_experts: None,
            moe_intermediate_size: None,
            use_bidirectional_attention: Bidirectional::Unsaid,
            attention_bias: false,
            hidden_activation: None,
        }
    }
}

/// What one layer has of its own.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct LayerOverrides {
    head_dim: Option<usize>,
    num_key_value_heads: Option<usize>,
    num_attention_heads: Option<usize>,
    intermediate_size: Option<usize>,
}

/// `null` is not the same as nothing: the classes have different defaults.
#[derive(Default)]
enum Bidirectional {
    #[default]
    Unsaid,
    Said(Option<String>),
}

impl<'de> Deserialize<'de> for Bidirectional {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Bidirectional, D::Error> {
        Option::deserialize(deserializer).map(Bidirectional::Said)
    }
}

#[derive(Deserialize)]
struct Ropes {
    full_attention: RopeParameters,
    sliding_attention: RopeParameters,
}

#[derive(Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    partial_rotary_factor: Option<f32>,
}

/// Reads a file of one of the four Gemma 4 types.
pub(super) fn read(root: serde_json::Value, path: &Path) -> Result<Config, Error> {
    let field = |name: &str| root.get(name).and_then(|value| value.as_str());
    let model_type = field("model_type").unwrap_or_default();
    let is_unified = model_type.starts_with("gemma4_unified");
    let is_whole = !model_type.ends_with("_text");
    let text = if is_whole {
        root.get("text_config").cloned().unwrap_or_default()
    } else {
        root
    };
    let text: TextConfig = serde_json::from_value(text).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    let reader = Reader {
        text,
        path,
        is_unified,
    };
    reader.check_features()?;
    let layers = reader.layers()?;
    let text = &reader.text;
    // Without a layer of the kind its rope turns nothing.
    let head_dim = |is_global| {
        let layer = layers.iter().find(|layer| layer.is_global == is_global);
        layer.map_or(text.head_dim, |layer| layer.head_dim)
    };
    let per_layer_default = if is_unified { 0 } else { 256 };
    let sizes = Gemma4Sizes {
        d_model: text.hidden_size,
        vocab_size: text.vocab_size,
        context_len: text
            .max_position_embeddings
            .unwrap_or(if is_unified { 262_144 } else { 131_072 }),
        window: text.sliding_window.unwrap_or(if is_unified { 1024 } else { 512 }),
        norm_eps: text.rms_norm_eps,
        logit_cap: text.final_logit_softcapping,
        per_layer_width: text.hidden_size_per_layer_input.unwrap_or(per_layer_default),
        local_rope: reader.rope(|ropes| &ropes.sliding_attention, head_dim(false), 1e4, None)?,
        global_rope: reader.rope(|ropes| &ropes.full_attention, head_dim(true), 1e6, Some(0.25))?,
        sees_spans: reader.sees_spans()?,
        experts: reader.experts()?,
        n_shared: text.num_kv_shared_layers,
        layers,
    };
    sizes.into_config(path)
}

struct Reader<'a> {
    text: TextConfig,
    path: &'a Path,
    is_unified: bool,
}

impl Reader<'_> {
    fn bad(&self, field: &'static str, value: impl ToString, expected: &'static str) -> Error {
        Error::BadField {
            path: self.path.to_owned(),
            field,
            value: value.to_string(),
            expected,
        }
    }

    /// Refuses what would silently give other logits.
    fn check_features(&self) -> Result<(), Error> {
        let text = &self.text;
        if text.attention_bias {
            return Err(self.bad("attention_bias", true, "false, as in every Gemma 4"));
        }
        match text.hidden_activation.as_deref() {
            None | Some("gelu_pytorch_tanh") => {}
            Some(other) => {
                return Err(self.bad(
                    "hidden_activation",
                    other,
                    "gelu_pytorch_tanh, as in every Gemma 4",
                ));
            }
        }
        match text.vocab_size_per_layer_input {
            Some(n)
                if text.hidden_size_per_layer_input.is_some_and(|width| width > 0)
                    && n != text.vocab_size =>
            {
                Err(self.bad("vocab_size_per_layer_input", n, "the vocabulary size"))
            }
            _ => Ok(()),
        }
    }

    fn sees_spans(&self) -> Result<bool, Error> {
        match &self.text.use_bidirectional_attention {
            Bidirectional::Unsaid => Ok(self.is_unified),
            Bidirectional::Said(None) => Ok(false),
            Bidirectional::Said(Some(kind)) if kind == "vision" => Ok(true),
            Bidirectional::Said(Some(other)) => {
                Err(self.bad("use_bidirectional_attention", other, "vision or nothing"))
            }
        }
    }

    fn experts(&self) -> Result<Option<Experts>, Error> {
        if !self.text.enable_moe_block {
            return Ok(None);
        }
        let required = |value: Option<usize>, field| {
            value.ok_or_else(|| Error::MissingField {
                path: self.path.to_owned(),
                field,
            })
        };
        Ok(Some(Experts {
            n: required(self.text.num_experts, "num_experts")?,
            n_used: required(self.text.top_k_experts, "top_k_experts")?,
            d_ff: required(self.text.moe_intermediate_size, "moe_intermediate_size")?,
        }))
    }

    /// The rope of the layers whose heads are `head_dim` wide. `default` of the share of pairs that turn holds where the
    /// file says nothing of its ropes.
    fn rope(
        &self,
        of: impl Fn(&Ropes) -> &RopeParameters,
        head_dim: usize,
        theta: f32,
        default: Option<f32>,
    ) -> Result<Rope, Error> {
        let n_turning = |share: f32| (share * head_dim as f32 / 2.0) as usize;
        let Some(rope) = self.text.rope_parameters.as_ref().map(of) else {
            return Ok(Rope {
                theta,
                scaling: 1.0,
                n_turning: default.map(n_turning),
            });
        };
        let (scaling, share) = match rope.rope_type.as_deref() {
            Some("default") | None => (1.0, None),
            Some("linear") => (rope.factor.unwrap_or(1.0), None),
            Some("proportional") => (rope.factor.unwrap_or(1.0), rope.partial_rotary_factor),
            Some(other) => return Err(self.bad("rope_type", other, "default, linear or proportional")),
        };
        if let Some(share) = share
            && !(0.0..=1.0).contains(&share)
        {
            return Err(self.bad("partial_rotary_factor", share, "between 0 and 1"));
        }
        Ok(Rope {
            theta: rope.rope_theta.unwrap_or(theta),
            scaling,
            n_turning: share.map(n_turning),
        })
    }

    fn layers(&self) -> Result<Vec<Gemma4Layer>, Error> {
        let text = &self.text;
        let is_global = self.is_global()?;
        if is_global.len() != text.num_hidden_layers {
            return Err(self.bad("layer_types", is_global.len(), "one for each layer"));
        }
        // Before anything is done for each of them.
        if is_global.len() > MAX_LAYERS {
            return Err(Error::OutOfRange {
                path: self.path.to_owned(),
                field: "num_hidden_layers",
                value: is_global.len(),
                least: 1,
                most: MAX_LAYERS,
            });
        }
        let listed = self.listed()?;
        let first_shared = is_global.len().saturating_sub(text.num_kv_shared_layers);
        let mut layers = Vec::with_capacity(is_global.len());
        for (i, is_global) in is_global.into_iter().enumerate() {
            let is_double = text.use_double_wide_mlp && i >= first_shared;
            let overrides = match &listed {
                Some(listed) => listed.get(&i).copied().unwrap_or_default(),
                None => self.of_kind(is_global),
            };
            let d_ff = overrides.intermediate_size.unwrap_or(text.intermediate_size);
            layers.push(Gemma4Layer {
                is_global,
                n_heads: overrides.num_attention_heads.unwrap_or(text.num_attention_heads),
                n_kv_heads: overrides.num_key_value_heads.unwrap_or(text.num_key_value_heads),
                head_dim: overrides.head_dim.unwrap_or(text.head_dim),
                d_ff: if is_double { d_ff.saturating_mul(2) } else { d_ff },
                keys_are_values: is_global && text.attention_k_eq_v,
            });
        }
        Ok(layers)
    }

    /// What layers have of their own, by their indexes, where the file lists it.
    fn listed(&self) -> Result<Option<BTreeMap<usize, LayerOverrides>>, Error> {
        let Some(layers) = &self.text.per_layer_config else {
            return Ok(None);
        };
        let mut listed = BTreeMap::new();
        for (key, layer) in layers {
            let index = key.parse().ok().filter(|i| *i < self.text.num_hidden_layers);
            // What names no layer, or one that is named already, would be forgotten.
            if index.is_none_or(|i: usize| listed.insert(i, *layer).is_some()) {
                return Err(self.bad("per_layer_config", key, "a layer's index, each named once"));
            }
        }
        Ok(Some(listed))
    }

    /// What the layers of a kind have of their own, where the file does not list layers.
    fn of_kind(&self, is_global: bool) -> LayerOverrides {
        if !is_global {
            return LayerOverrides::default();
        }
        let text = &self.text;
        LayerOverrides {
            head_dim: Some(text.global_head_dim.unwrap_or(512)),
            num_key_value_heads: text.num_global_key_value_heads.filter(|_| text.attention_k_eq_v),
            ..LayerOverrides::default()
        }
    }

    /// Per layer, whether it is global. The last always is.
    fn is_global(&self) -> Result<Vec<bool>, Error> {
        let Some(types) = &self.text.layer_types else {
            let mut pattern = every_nth_global(self.text.num_hidden_layers.min(MAX_LAYERS + 1), 6);
            if let Some(last) = pattern.last_mut() {
                *last = true;
            }
            return Ok(pattern);
        };
        let one = |name: &String| match name.as_str() {
            "full_attention" => Ok(true),
            "sliding_attention" => Ok(false),
            other => Err(self.bad("layer_types", other, "full_attention or sliding_attention")),
        };
        types.iter().map(one).collect()
    }
}
