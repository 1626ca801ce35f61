//! A configuration from a `config.json`: Gemma 3 in the old and the new spelling, and which other file of this
//! folder reads the rest.

mod gemma4;

use std::path::Path;

use serde::Deserialize;

use super::{Config, DrafterClusters, Gemma3Sizes, Rope, every_nth_global};
use crate::Error;

/// The fields that matter. Multimodal checkpoints have them under `text_config`, and leave out what is the
/// default of the reference's configuration class; those defaults stand here.
#[derive(Deserialize)]
#[serde(default)]
struct TextConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    sliding_window: usize,
    rms_norm_eps: f32,
    query_pre_attn_scalar: f32,
    rope_theta: f32,
    rope_local_base_freq: f32,
    rope_scaling: Option<RopeParameters>,
    rope_parameters: Option<LayerRopes>,
    layer_types: Option<Vec<String>>,
    #[serde(alias = "_sliding_window_pattern")]
    sliding_window_pattern: Option<usize>,
    attn_logit_softcapping: Option<f32>,
    final_logit_softcapping: Option<f32>,
    attention_bias: bool,
    hidden_activation: Option<String>,
    use_bidirectional_attention: Option<bool>,
}

impl Default for TextConfig {
    fn default() -> TextConfig {
        TextConfig {
            hidden_size: 2304,
            intermediate_size: 9216,
            num_hidden_layers: 26,
            num_attention_heads: 8,
            num_key_value_heads: 4,
            head_dim: 256,
            vocab_size: 262_208,
            max_position_embeddings: 131_072,
            sliding_window: 4096,
            rms_norm_eps: 1e-6,
            query_pre_attn_scalar: 256.0,
            rope_theta: 1e6,
            rope_local_base_freq: 1e4,
            rope_scaling: None,
            rope_parameters: None,
            layer_types: None,
            sliding_window_pattern: None,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            attention_bias: false,
            hidden_activation: None,
            use_bidirectional_attention: None,
        }
    }
}

#[derive(Deserialize)]
struct LayerRopes {
    full_attention: RopeParameters,
    sliding_attention: RopeParameters,
}

#[derive(Deserialize)]
struct RopeParameters {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
}

impl Config {
    /// Reads the text of a `config.json` at `path` (named in errors).
    ///
    /// # Errors
    /// [`Error::Json`] for what is no such JSON, [`Error::Architecture`] for another model,
    /// [`Error::BadField`] for sizes that cannot be and for features that no released Gemma 3 has.
    pub fn from_config_json(json: &[u8], path: &Path) -> Result<Config, Error> {
        let not_understood = |source| Error::Json {
            path: path.to_owned(),
            source,
        };
        let root: serde_json::Value = serde_json::from_slice(json).map_err(not_understood)?;
        let model_type = root
            .get("model_type")
            .and_then(|value| value.as_str())
            .unwrap_or("(none)");
        let text = match model_type {
            "gemma3" => root.get("text_config").cloned().unwrap_or_default(),
            "gemma3_text" => root,
            "gemma4" | "gemma4_text" | "gemma4_unified" | "gemma4_unified_text" => {
                return gemma4::read(root, path);
            }
            other => {
                return Err(Error::Architecture {
                    path: path.to_owned(),
                    architecture: other.to_owned(),
                });
            }
        };
        let mut text = text;
        // The two spellings of the pattern are one field to serde, which refuses to see it twice.
        if let Some(fields) = text.as_object_mut()
            && fields.contains_key("sliding_window_pattern")
        {
            fields.remove("_sliding_window_pattern");
        }
        let text: TextConfig = serde_json::from_value(text).map_err(not_understood)?;
        text.check_features(path)?;
        let (local_rope, global_rope) = text.ropes(path)?;
        let is_global = text.is_global(path)?;
        let sizes = Gemma3Sizes {
            n_layers: text.num_hidden_layers,
            d_model: text.hidden_size,
            d_ff: text.intermediate_size,
            n_heads: text.num_attention_heads,
            n_kv_heads: text.num_key_value_heads,
            head_dim: text.head_dim,
            vocab_size: text.vocab_size,
            context_len: text.max_position_embeddings,
            window: text.sliding_window,
            norm_eps: text.rms_norm_eps,
            score_scale: 1.0 / text.query_pre_attn_scalar.sqrt(),
            local_rope,
            global_rope,
            is_global,
        };
        sizes.into_config(path)
    }
}

/// A drafter's `config.json`: the configuration of its layers, as if they had keys and values of their own, the width
/// of the model that it drafts for, and the clusters of its head.
pub(super) fn read_drafter(
    json: &[u8],
    path: &Path,
) -> Result<(Config, usize, Option<DrafterClusters>), Error> {
    let not_understood = |source| Error::Json {
        path: path.to_owned(),
        source,
    };
    let mut root: serde_json::Value = serde_json::from_slice(json).map_err(not_understood)?;
    let drafter: DrafterFields = serde_json::from_value(root.clone()).map_err(not_understood)?;
    if !matches!(
        drafter.model_type.as_str(),
        "gemma4_assistant" | "gemma4_unified_assistant"
    ) {
        return Err(Error::NoDrafter {
            path: path.to_owned(),
            architecture: drafter.model_type,
        });
    }
    if let Some(text) = root
        .get_mut("text_config")
        .and_then(|value| value.as_object_mut())
    {
        text.insert("num_kv_shared_layers".to_owned(), 0.into());
    }
    let clusters = drafter.use_ordered_embeddings.then_some(DrafterClusters {
        n: drafter.num_centroids,
        n_active: drafter.centroid_intermediate_top_k,
    });
    Ok((gemma4::read(root, path)?, drafter.backbone_hidden_size, clusters))
}

/// What only drafters have.
#[derive(Deserialize)]
struct DrafterFields {
    #[serde(default)]
    model_type: String,
    #[serde(default)]
    backbone_hidden_size: usize,
    #[serde(default)]
    use_ordered_embeddings: bool,
    #[serde(default = "default_centroids")]
    num_centroids: usize,
    #[serde(default = "default_active")]
    centroid_intermediate_top_k: usize,
}

/// Of the reference's configuration class.
fn default_centroids() -> usize {
    2048
}

/// As above.
fn default_active() -> usize {
    32
}

impl TextConfig {
    /// Refuses what would silently give other logits.
    fn check_features(&self, path: &Path) -> Result<(), Error> {
        let used = [
            ("attn_logit_softcapping", self.attn_logit_softcapping.is_some()),
            ("final_logit_softcapping", self.final_logit_softcapping.is_some()),
            ("attention_bias", self.attention_bias),
            (
                "hidden_activation",
                self.hidden_activation
                    .as_deref()
                    .is_some_and(|name| name != "gelu_pytorch_tanh"),
            ),
            (
                "use_bidirectional_attention",
                self.use_bidirectional_attention == Some(true),
            ),
        ];
        match used.into_iter().find(|(_, is_used)| *is_used) {
            None => Ok(()),
            Some((field, _)) => Err(Error::BadField {
                path: path.to_owned(),
                field,
                value: "something else".to_owned(),
                expected: "as in every Gemma 3 that generates text",
            }),
        }
    }

    /// Local and global rope.
    fn ropes(&self, path: &Path) -> Result<(Rope, Rope), Error> {
        let scaling = |rope: &RopeParameters| match rope.rope_type.as_deref() {
            Some("linear") => Ok(rope.factor.unwrap_or(1.0)),
            Some("default") | None => Ok(1.0),
            Some(other) => Err(Error::BadField {
                path: path.to_owned(),
                field: "rope_type",
                value: other.to_owned(),
                expected: "default or linear",
            }),
        };
        if let Some(ropes) = &self.rope_parameters {
            let (local, global) = (&ropes.sliding_attention, &ropes.full_attention);
            return Ok((
                Rope {
                    theta: local.rope_theta.unwrap_or(1e4),
                    scaling: scaling(local)?,
                    n_turning: None,
                },
                Rope {
                    theta: global.rope_theta.unwrap_or(1e6),
                    scaling: scaling(global)?,
                    n_turning: None,
                },
            ));
        }
        let global_scaling = self.rope_scaling.as_ref().map_or(Ok(1.0), scaling)?;
        Ok((
            Rope {
                theta: self.rope_local_base_freq,
                scaling: 1.0,
                n_turning: None,
            },
            Rope {
                theta: self.rope_theta,
                scaling: global_scaling,
                n_turning: None,
            },
        ))
    }

    /// Per layer, whether it is global.
    fn is_global(&self, path: &Path) -> Result<Vec<bool>, Error> {
        let Some(types) = &self.layer_types else {
            return Ok(every_nth_global(
                self.num_hidden_layers,
                self.sliding_window_pattern.unwrap_or(6),
            ));
        };
        let one = |name: &String| match name.as_str() {
            "full_attention" => Ok(true),
            "sliding_attention" => Ok(false),
            other => Err(Error::BadField {
                path: path.to_owned(),
                field: "layer_types",
                value: other.to_owned(),
                expected: "full_attention or sliding_attention",
            }),
        };
        types.iter().map(one).collect()
    }
}
