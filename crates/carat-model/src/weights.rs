//! The tensors of a model by what they are for, whatever they are called in the file.
//!
//! This is the only place that knows tensors' names. Every tensor of the file must find its place here, and
//! every place its tensor: what is missing or left over is reported by name, since a model with a forgotten
//! tensor runs and talks nonsense. Matrices stay mapped in their own format; norms become f32.

use carat_format::TensorView;
use carat_kernels::dequantize;

use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, Container};
use crate::{Config, Error};

/// A model's weights on a backend.
#[derive(Debug)]
pub(crate) struct Weights<B: Backend> {
    /// `[vocab_size, d_model]`
    pub(crate) embedding: B::Matrix,
    /// `[vocab_size, d_model]` where the file has a matrix of its own for the logits; else the embedding.
    pub(crate) head: Option<B::Matrix>,
    /// `[d_model]`
    pub(crate) final_norm: B::Vector,
    pub(crate) layers: Vec<LayerWeights<B>>,
}

/// One layer's weights. Matrices are `[out, in]`.
#[derive(Debug)]
pub(crate) struct LayerWeights<B: Backend> {
    pub(crate) attention_norm: B::Vector,
    pub(crate) q: B::Matrix,
    pub(crate) k: B::Matrix,
    pub(crate) v: B::Matrix,
    pub(crate) q_norm: B::Vector,
    pub(crate) k_norm: B::Vector,
    pub(crate) o: B::Matrix,
    pub(crate) post_attention_norm: B::Vector,
    pub(crate) mlp_norm: B::Vector,
    pub(crate) gate: B::Matrix,
    pub(crate) up: B::Matrix,
    pub(crate) down: B::Matrix,
    pub(crate) post_mlp_norm: B::Vector,
}

/// The tensors of a layer: what it is for, its name in GGUF (after `blk.N.`), its name in safetensors (after
/// `layers.N.`), both without `.weight`.
const LAYER_NAMES: [(Role, &str, &str); 13] = [
    (Role::AttentionNorm, "attn_norm", "input_layernorm"),
    (Role::Q, "attn_q", "self_attn.q_proj"),
    (Role::K, "attn_k", "self_attn.k_proj"),
    (Role::V, "attn_v", "self_attn.v_proj"),
    (Role::QNorm, "attn_q_norm", "self_attn.q_norm"),
    (Role::KNorm, "attn_k_norm", "self_attn.k_norm"),
    (Role::O, "attn_output", "self_attn.o_proj"),
    (
        Role::PostAttentionNorm,
        "post_attention_norm",
        "post_attention_layernorm",
    ),
    (Role::MlpNorm, "ffn_norm", "pre_feedforward_layernorm"),
    (Role::Gate, "ffn_gate", "mlp.gate_proj"),
    (Role::Up, "ffn_up", "mlp.up_proj"),
    (Role::Down, "ffn_down", "mlp.down_proj"),
    (Role::PostMlpNorm, "post_ffw_norm", "post_feedforward_layernorm"),
];

/// What a tensor of a layer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
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
}

/// Where the text model's tensors begin in safetensors: text-only checkpoints, newer and original multimodal.
const TEXT_PREFIXES: [&str; 3] = ["model.", "model.language_model.", "language_model.model."];

/// Tensors of the towers of multimodal checkpoints and of tools: known, not read here.
const OTHER_PARTS: [&str; 7] = [
    "model.vision_tower.",
    "vision_tower.",
    "model.multi_modal_projector.",
    "multi_modal_projector.",
    "v.",
    "mm.",
    "rope_freqs.",
];

/// A tensor's name in GGUF and in safetensors (there after the text model's prefix).
///
/// Public for conversion from one to the other: `model.layers.3.mlp.up_proj.weight` to `blk.3.ffn_up.weight`.
/// `None` for a tensor that is not of the text model.
#[must_use]
pub fn gguf_name(safetensors_name: &str) -> Option<String> {
    let is_longer = |prefix: &&&str| safetensors_name.starts_with(**prefix);
    let prefix = TEXT_PREFIXES
        .iter()
        .filter(is_longer)
        .max_by_key(|prefix| prefix.len())?;
    let name = &safetensors_name[prefix.len()..];
    match name {
        "embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "norm.weight" => return Some("output_norm.weight".to_owned()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("layers.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let role = rest.strip_suffix(".weight")?;
    let (_, gguf, _) = LAYER_NAMES.iter().find(|(_, _, theirs)| *theirs == role)?;
    Some(format!("blk.{layer}.{gguf}.weight"))
}

impl<B: Backend> Weights<B> {
    /// Finds every tensor, checks its shape and hands it to the backend.
    pub(crate) fn load(checkpoint: &Checkpoint, backend: &B) -> Result<Weights<B>, Error> {
        let config = checkpoint.config();
        let names = Names::new(checkpoint);
        let loader = Loader {
            checkpoint,
            names: &names,
            backend,
        };
        names.check(checkpoint)?;
        let (vocab, d) = (config.vocab_size, config.d_model);
        let head = match names.head() {
            Some(name) => Some(loader.matrix(&name, vocab, d)?),
            None => None,
        };
        let layers = (0..config.layers.len())
            .map(|i| loader.layer(i))
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(Weights {
            embedding: loader.matrix(&names.embedding(), vocab, d)?,
            head,
            final_norm: loader.norm(&names.final_norm(), d)?,
            layers,
        })
    }
}

struct Loader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    names: &'a Names,
    backend: &'a B,
}

impl<B: Backend> Loader<'_, B> {
    fn layer(&self, i: usize) -> Result<LayerWeights<B>, Error> {
        let config: &Config = self.checkpoint.config();
        let (layer, d) = (&config.layers[i], config.d_model);
        let (q, kv, e, f) = (layer.q_width(), layer.kv_width(), layer.head_dim, layer.d_ff);
        let norm = |role, n| self.norm(&self.names.of_layer(i, role), n);
        let matrix = |role, rows, cols| self.matrix(&self.names.of_layer(i, role), rows, cols);
        Ok(LayerWeights {
            attention_norm: norm(Role::AttentionNorm, d)?,
            q: matrix(Role::Q, q, d)?,
            k: matrix(Role::K, kv, d)?,
            v: matrix(Role::V, kv, d)?,
            q_norm: norm(Role::QNorm, e)?,
            k_norm: norm(Role::KNorm, e)?,
            o: matrix(Role::O, d, q)?,
            post_attention_norm: norm(Role::PostAttentionNorm, d)?,
            mlp_norm: norm(Role::MlpNorm, d)?,
            gate: matrix(Role::Gate, f, d)?,
            up: matrix(Role::Up, f, d)?,
            down: matrix(Role::Down, d, f)?,
            post_mlp_norm: norm(Role::PostMlpNorm, d)?,
        })
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, Error> {
        let path = || self.checkpoint.path().to_owned();
        let Some(tensor) = self.checkpoint.tensor(name)? else {
            return Err(Error::MissingTensors {
                path: path(),
                names: vec![name.to_owned()],
            });
        };
        if tensor.shape != shape {
            return Err(Error::TensorShape {
                path: path(),
                name: name.to_owned(),
                expected: shape.to_vec(),
                found: tensor.shape.to_vec(),
            });
        }
        Ok(tensor)
    }

    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<B::Matrix, Error> {
        self.backend.matrix(&self.tensor(name, &[rows, cols])?)
    }

    fn norm(&self, name: &str, n: usize) -> Result<B::Vector, Error> {
        let tensor = self.tensor(name, &[n])?;
        let mut values = vec![0.0; n];
        dequantize(tensor.dtype, tensor.bytes, &mut values).map_err(|source| Error::Tensor {
            name: name.to_owned(),
            source,
        })?;
        if self.names.norms_need_one {
            // Gemma 3 safetensors hold the weight less one; the sum is taken in f32, as the reference does.
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(self.backend.vector(values))
    }
}

/// How this checkpoint calls its tensors.
struct Names {
    /// `None` for GGUF.
    prefix: Option<&'static str>,
    norms_need_one: bool,
    has_head: bool,
}

impl Names {
    fn new(checkpoint: &Checkpoint) -> Names {
        let infos = checkpoint.infos();
        match checkpoint.container() {
            Container::Gguf(_) => Names {
                prefix: None,
                norms_need_one: false,
                has_head: infos.iter().any(|info| info.name == "output.weight"),
            },
            Container::HuggingFace(_) => {
                let has = |prefix: &&&str| {
                    infos
                        .iter()
                        .any(|info| info.name.strip_prefix(**prefix) == Some("embed_tokens.weight"))
                };
                Names {
                    prefix: Some(
                        TEXT_PREFIXES
                            .iter()
                            .find(has)
                            .copied()
                            .unwrap_or(TEXT_PREFIXES[0]),
                    ),
                    norms_need_one: true,
                    has_head: infos.iter().any(|info| info.name == HUGGING_FACE_HEAD),
                }
            }
        }
    }

    fn embedding(&self) -> String {
        self.prefix.map_or_else(
            || "token_embd.weight".to_owned(),
            |p| format!("{p}embed_tokens.weight"),
        )
    }

    fn final_norm(&self) -> String {
        self.prefix
            .map_or_else(|| "output_norm.weight".to_owned(), |p| format!("{p}norm.weight"))
    }

    fn head(&self) -> Option<String> {
        let name = if self.prefix.is_none() {
            "output.weight"
        } else {
            HUGGING_FACE_HEAD
        };
        self.has_head.then(|| name.to_owned())
    }

    fn of_layer(&self, layer: usize, role: Role) -> String {
        let names = LAYER_NAMES.iter().find(|(r, _, _)| *r == role);
        let (gguf, hugging_face) = names.map_or(("", ""), |(_, a, b)| (a, b));
        match self.prefix {
            None => format!("blk.{layer}.{gguf}.weight"),
            Some(prefix) => format!("{prefix}layers.{layer}.{hugging_face}.weight"),
        }
    }

    /// Compares the names that the model needs with those that the files have.
    fn check(&self, checkpoint: &Checkpoint) -> Result<(), Error> {
        let mut needed = vec![self.embedding(), self.final_norm()];
        needed.extend(self.head());
        for i in 0..checkpoint.config().layers.len() {
            needed.extend(LAYER_NAMES.iter().map(|(role, _, _)| self.of_layer(i, *role)));
        }
        let infos = checkpoint.infos();
        let found: std::collections::HashSet<&str> = infos.iter().map(|info| info.name).collect();
        let missing: Vec<String> = needed
            .iter()
            .filter(|name| !found.contains(name.as_str()))
            .cloned()
            .collect();
        if !missing.is_empty() {
            return Err(Error::MissingTensors {
                path: checkpoint.path().to_owned(),
                names: missing,
            });
        }
        let needed: std::collections::HashSet<&str> = needed.iter().map(String::as_str).collect();
        let unknown: Vec<String> = infos
            .iter()
            .map(|info| info.name)
            .filter(|name| !needed.contains(name) && !OTHER_PARTS.iter().any(|part| name.starts_with(part)))
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

/// Stored only where it is not the embedding.
const HUGGING_FACE_HEAD: &str = "lm_head.weight";

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
        for other in [
            "vision_tower.x.weight",
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.1.mlp.weight",
        ] {
            assert_eq!(gguf_name(other), None);
        }
    }
}
