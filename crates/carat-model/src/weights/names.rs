//! What tensors are called in GGUF and in safetensors, and which of them a model has.

use std::collections::HashSet;

use crate::Error;
use crate::checkpoint::{Checkpoint, Container};
use crate::config::{Config, Experts, Family, KvSource, LayerConfig};

/// Where a tensor is (`None` for those that are there once), what it is for, and its shape, outermost first.
pub(super) type Place = (Option<usize>, Role, Vec<usize>);

/// What a tensor is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Role {
    Embedding,
    FinalNorm,
    PerLayerEmbedding,
    PerLayerInputProjection,
    PerLayerInputNorm,
    AttentionNorm,
    Q,
    K,
    V,
    QNorm,
    KNorm,
    O,
    PostAttentionNorm,
    MlpNorm,
    Gate,
    Up,
    Down,
    PostMlpNorm,
    Scalar,
    PerLayerGate,
    PerLayerProjection,
    PerLayerNorm,
    PostDenseNorm,
    Router,
    RouterScale,
    ExpertScale,
    ExpertNorm,
    PostExpertNorm,
    ExpertGateUp,
    ExpertGate,
    ExpertUp,
    ExpertDown,
}

/// A role, its tensor's name in GGUF and its name in safetensors, there after the text model's prefix.
type Row = (Role, &'static str, &'static str);

/// The tensors that are there once.
const MODEL_NAMES: [Row; 5] = [
    (Role::Embedding, "token_embd.weight", "embed_tokens.weight"),
    (Role::FinalNorm, "output_norm.weight", "norm.weight"),
    (
        Role::PerLayerEmbedding,
        "per_layer_token_embd.weight",
        "embed_tokens_per_layer.weight",
    ),
    (
        Role::PerLayerInputProjection,
        "per_layer_model_proj.weight",
        "per_layer_model_projection.weight",
    ),
    (
        Role::PerLayerInputNorm,
        "per_layer_proj_norm.weight",
        "per_layer_projection_norm.weight",
    ),
];

/// The tensors of a layer, after `blk.N.` and `layers.N.`.
const LAYER_NAMES: [Row; 27] = [
    (Role::AttentionNorm, "attn_norm.weight", "input_layernorm.weight"),
    (Role::Q, "attn_q.weight", "self_attn.q_proj.weight"),
    (Role::K, "attn_k.weight", "self_attn.k_proj.weight"),
    (Role::V, "attn_v.weight", "self_attn.v_proj.weight"),
    (Role::QNorm, "attn_q_norm.weight", "self_attn.q_norm.weight"),
    (Role::KNorm, "attn_k_norm.weight", "self_attn.k_norm.weight"),
    (Role::O, "attn_output.weight", "self_attn.o_proj.weight"),
    (
        Role::PostAttentionNorm,
        "post_attention_norm.weight",
        "post_attention_layernorm.weight",
    ),
    (
        Role::MlpNorm,
        "ffn_norm.weight",
        "pre_feedforward_layernorm.weight",
    ),
    (Role::Gate, "ffn_gate.weight", "mlp.gate_proj.weight"),
    (Role::Up, "ffn_up.weight", "mlp.up_proj.weight"),
    (Role::Down, "ffn_down.weight", "mlp.down_proj.weight"),
    (
        Role::PostMlpNorm,
        "post_ffw_norm.weight",
        "post_feedforward_layernorm.weight",
    ),
    (Role::Scalar, "layer_output_scale.weight", "layer_scalar"),
    (
        Role::PerLayerGate,
        "inp_gate.weight",
        "per_layer_input_gate.weight",
    ),
    (
        Role::PerLayerProjection,
        "proj.weight",
        "per_layer_projection.weight",
    ),
    (
        Role::PerLayerNorm,
        "post_norm.weight",
        "post_per_layer_input_norm.weight",
    ),
    (
        Role::PostDenseNorm,
        "post_ffw_norm_1.weight",
        "post_feedforward_layernorm_1.weight",
    ),
    (Role::Router, "ffn_gate_inp.weight", "router.proj.weight"),
    (Role::RouterScale, "ffn_gate_inp.scale", "router.scale"),
    (
        Role::ExpertScale,
        "ffn_down_exps.scale",
        "router.per_expert_scale",
    ),
    (
        Role::ExpertNorm,
        "pre_ffw_norm_2.weight",
        "pre_feedforward_layernorm_2.weight",
    ),
    (
        Role::PostExpertNorm,
        "post_ffw_norm_2.weight",
        "post_feedforward_layernorm_2.weight",
    ),
    (
        Role::ExpertGateUp,
        "ffn_gate_up_exps.weight",
        "experts.gate_up_proj",
    ),
    // Only in GGUF: some converters keep the two apart.
    (Role::ExpertGate, "ffn_gate_exps.weight", "experts.gate_proj"),
    (Role::ExpertUp, "ffn_up_exps.weight", "experts.up_proj"),
    (Role::ExpertDown, "ffn_down_exps.weight", "experts.down_proj"),
];

/// Whether an expert's gate and up matrices are one tensor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GateUp {
    Together,
    Apart,
}

/// The text model's own tensors, those that are there once first.
pub(super) fn places(config: &Config, gate_up: GateUp) -> Vec<Place> {
    let (d, vocab, n_layers) = (config.d_model, config.vocab_size, config.layers.len());
    let mut places = vec![
        (None, Role::Embedding, vec![vocab, d]),
        (None, Role::FinalNorm, vec![d]),
    ];
    let width = config.per_layer_width;
    if width > 0 {
        let all = n_layers.saturating_mul(width);
        places.extend([
            (None, Role::PerLayerEmbedding, vec![vocab, all]),
            (None, Role::PerLayerInputProjection, vec![all, d]),
            (None, Role::PerLayerInputNorm, vec![width]),
        ]);
    }
    for (i, layer) in config.layers.iter().enumerate() {
        let of_layer = layer_places(config, layer, gate_up);
        places.extend(of_layer.into_iter().map(|(role, shape)| (Some(i), role, shape)));
    }
    places
}

fn layer_places(config: &Config, layer: &LayerConfig, gate_up: GateUp) -> Vec<(Role, Vec<usize>)> {
    let d = config.d_model;
    let (q, kv, e, f) = (layer.q_width(), layer.kv_width(), layer.head_dim, layer.d_ff);
    let mut places = vec![(Role::AttentionNorm, vec![d]), (Role::Q, vec![q, d])];
    if layer.owns_kv() {
        places.push((Role::K, vec![kv, d]));
        places.push((Role::KNorm, vec![e]));
    }
    if layer.kv == KvSource::Own {
        places.push((Role::V, vec![kv, d]));
    }
    places.extend([
        (Role::QNorm, vec![e]),
        (Role::O, vec![d, q]),
        (Role::PostAttentionNorm, vec![d]),
        (Role::MlpNorm, vec![d]),
        (Role::Gate, vec![f, d]),
        (Role::Up, vec![f, d]),
        (Role::Down, vec![d, f]),
        (Role::PostMlpNorm, vec![d]),
    ]);
    if config.family == Family::Gemma4 {
        places.push((Role::Scalar, vec![1]));
    }
    if config.per_layer_width > 0 {
        let width = config.per_layer_width;
        places.extend([
            (Role::PerLayerGate, vec![width, d]),
            (Role::PerLayerProjection, vec![d, width]),
            (Role::PerLayerNorm, vec![d]),
        ]);
    }
    if let Some(Experts { n, d_ff, .. }) = layer.experts {
        places.extend([
            (Role::PostDenseNorm, vec![d]),
            (Role::Router, vec![n, d]),
            (Role::RouterScale, vec![d]),
            (Role::ExpertScale, vec![n]),
            (Role::ExpertNorm, vec![d]),
            (Role::PostExpertNorm, vec![d]),
            (Role::ExpertDown, vec![n, d, d_ff]),
        ]);
        places.extend(match gate_up {
            GateUp::Together => vec![(Role::ExpertGateUp, vec![n, 2 * d_ff, d])],
            GateUp::Apart => vec![
                (Role::ExpertGate, vec![n, d_ff, d]),
                (Role::ExpertUp, vec![n, d_ff, d]),
            ],
        });
    }
    places
}

/// Names in GGUF and shapes, outermost first, of all tensors of a model with a tied embedding.
pub(crate) fn gguf_shapes(config: &Config) -> Vec<(String, Vec<usize>)> {
    let names = Names {
        prefix: None,
        head: None,
        gate_up: GateUp::Together,
    };
    let places = places(config, GateUp::Together).into_iter();
    places
        .map(|(layer, role, shape)| (names.of(layer, role), shape))
        .collect()
}

/// Where the text model's tensors begin in safetensors: text-only checkpoints, newer and original multimodal.
const TEXT_PREFIXES: [&str; 3] = ["model.", "model.language_model.", "language_model.model."];

/// Tensors of the towers of multimodal checkpoints and of tools: known, not read here.
const OTHER_PARTS: [&str; 17] = [
    "model.vision_embedder.",
    "model.embed_vision.",
    "model.embed_audio.",
    "model.audio_tower.",
    "a.",
    "model.vision_tower.",
    "vision_tower.",
    "model.multi_modal_projector.",
    "multi_modal_projector.",
    "v.",
    "mm.",
    // The factors of frequencies that the configuration was read from.
    "rope_freqs.",
    // A drafter's own; in some conversions of other models, dead weights.
    "nextn.",
    "pre_projection.",
    "post_projection.",
    "masked_embedding.",
    "masked_embd_",
];

/// A tensor's name in GGUF and in safetensors (there after the text model's prefix).
///
/// Public for conversion from one to the other: `model.layers.3.mlp.up_proj.weight` to `blk.3.ffn_up.weight`.
/// `None` for a tensor that is not of the text model.
#[must_use]
pub fn gguf_name(safetensors_name: &str) -> Option<String> {
    if HUGGING_FACE_HEADS.contains(&safetensors_name) {
        return Some(GGUF_HEAD.to_owned());
    }
    let is_longer = |prefix: &&&str| safetensors_name.starts_with(**prefix);
    let prefix = TEXT_PREFIXES
        .iter()
        .filter(is_longer)
        .max_by_key(|prefix| prefix.len())?;
    let name = &safetensors_name[prefix.len()..];
    let find = |rows: &[Row], name: &str| {
        rows.iter()
            .find(|(_, _, theirs)| *theirs == name)
            .map(|row| row.1)
    };
    if let Some(gguf) = find(&MODEL_NAMES, name) {
        return Some(gguf.to_owned());
    }
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    Some(format!("blk.{layer}.{}", find(&LAYER_NAMES, rest)?))
}

/// How this checkpoint calls its tensors.
pub(super) struct Names {
    /// `None` for GGUF.
    pub(super) prefix: Option<&'static str>,
    head: Option<&'static str>,
    pub(super) gate_up: GateUp,
}

impl Names {
    pub(super) fn new(checkpoint: &Checkpoint) -> Names {
        let infos = checkpoint.infos();
        let has = |name: &str| infos.iter().any(|info| info.name == name);
        let is_apart = infos
            .iter()
            .any(|info| info.name.ends_with(".ffn_gate_exps.weight"));
        let (prefix, heads) = match checkpoint.container() {
            Container::Gguf(_) => (None, &[GGUF_HEAD][..]),
            Container::HuggingFace(_) => {
                let holds_text = |prefix: &&&str| has(&format!("{prefix}embed_tokens.weight"));
                let prefix = TEXT_PREFIXES.iter().find(holds_text).copied();
                (Some(prefix.unwrap_or(TEXT_PREFIXES[0])), &HUGGING_FACE_HEADS[..])
            }
        };
        Names {
            prefix,
            head: heads.iter().copied().find(|name| has(name)),
            gate_up: if is_apart { GateUp::Apart } else { GateUp::Together },
        }
    }

    /// The matrix that makes the logits, where it is not the embedding.
    pub(super) fn head(&self) -> Option<&'static str> {
        self.head
    }

    pub(super) fn of(&self, layer: Option<usize>, role: Role) -> String {
        let rows: &[Row] = if layer.is_some() {
            &LAYER_NAMES
        } else {
            &MODEL_NAMES
        };
        let names = rows.iter().find(|(r, _, _)| *r == role);
        let (gguf, hugging_face) = names.map_or(("", ""), |(_, a, b)| (a, b));
        match (self.prefix, layer) {
            (None, None) => gguf.to_owned(),
            (None, Some(i)) => format!("blk.{i}.{gguf}"),
            (Some(prefix), None) => format!("{prefix}{hugging_face}"),
            (Some(prefix), Some(i)) => format!("{prefix}layers.{i}.{hugging_face}"),
        }
    }

    /// Compares the names that the model needs with those that the files have.
    pub(super) fn check(&self, checkpoint: &Checkpoint, places: &[Place]) -> Result<(), Error> {
        let mut needed: HashSet<String> = places
            .iter()
            .map(|(layer, role, _)| self.of(*layer, *role))
            .collect();
        needed.extend(self.head().map(str::to_owned));
        let infos = checkpoint.infos();
        let found: HashSet<&str> = infos.iter().map(|info| info.name).collect();
        let mut missing: Vec<String> = needed
            .iter()
            .filter(|name| !found.contains(name.as_str()))
            .cloned()
            .collect();
        if !missing.is_empty() {
            missing.sort_unstable();
            return Err(Error::MissingTensors {
                path: checkpoint.path().to_owned(),
                names: missing,
            });
        }
        // Some conversions keep what layers would need if they did not attend to another's keys and values.
        let layers = checkpoint.config().layers.iter().enumerate();
        for (i, _) in layers.filter(|(_, layer)| !layer.owns_kv()) {
            needed.extend([Role::K, Role::V, Role::KNorm].map(|role| self.of(Some(i), role)));
        }
        let unknown: Vec<String> = infos
            .iter()
            .map(|info| info.name)
            .filter(|name| !needed.contains(*name) && !OTHER_PARTS.iter().any(|part| name.starts_with(part)))
            .map(str::to_owned)
            .collect();
        if unknown.is_empty() {
            Ok(())
        } else {
            Err(Error::UnknownTensors {
                path: checkpoint.path().to_owned(),
                names: unknown,
            })
        }
    }
}

/// Stored only where it is not the embedding: in text-only and newer checkpoints, and in original multimodal ones.
const HUGGING_FACE_HEADS: [&str; 2] = ["lm_head.weight", "language_model.lm_head.weight"];
/// As above.
const GGUF_HEAD: &str = "output.weight";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_translate_from_every_prefix() {
        for prefix in TEXT_PREFIXES {
            let name = format!("{prefix}layers.17.post_feedforward_layernorm.weight");
            assert_eq!(gguf_name(&name).as_deref(), Some("blk.17.post_ffw_norm.weight"));
            assert_eq!(
                gguf_name(&format!("{prefix}norm.weight")).as_deref(),
                Some("output_norm.weight")
            );
        }
        for head in HUGGING_FACE_HEADS {
            assert_eq!(gguf_name(head).as_deref(), Some(GGUF_HEAD));
        }
        for other in [
            "vision_tower.x.weight",
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.1.mlp.weight",
        ] {
            assert_eq!(gguf_name(other), None);
        }
    }
}
