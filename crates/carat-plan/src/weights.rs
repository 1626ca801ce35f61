//! The bytes of a model's weights by what they are for.

use carat_kernels::DType;
use carat_model::Config;
use carat_model::convert::{Mix, tensors_of};

/// Bytes of a GGUF file beside its tensors for each piece of the vocabulary: its text, score and type. (Gemma's
/// 262,144 pieces take 6.5 MB.)
const FILE_BYTES_PER_PIECE: u64 = 25;

/// Rows of the embedding that a GGUF file has; checkpoints of Hugging Face have a few for padding.
const VOCABULARY: usize = 262_144;

/// Bytes of a text model's weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    /// The token embedding; also the output matrix where that is not stored apart.
    pub embedding: u64,
    /// The output matrix where it is stored apart, else 0.
    pub head: u64,
    /// Projections of queries, keys, values and of the attention's result.
    pub attention: u64,
    /// The three matrices of the MLPs.
    pub mlp: u64,
    /// Norms and what else is small.
    pub small: u64,
    /// What the files hold beside tensors: keys and vocabulary.
    pub rest: u64,
    /// The image tower's tensors, where they are in the same files. Not read by a text model.
    pub vision: u64,
    /// Whether a matrix is stored in plain floats, which need other scratch memory.
    pub has_floats: bool,
}

impl Weights {
    /// What a GGUF file of this mix holds.
    #[must_use]
    pub fn of_mix(config: &Config, mix: Mix) -> Weights {
        let mut config = config.clone();
        config.vocab_size = config.vocab_size.min(VOCABULARY);
        let mut weights = Weights::default();
        for tensor in tensors_of(&config, mix) {
            weights.add(&tensor.name, Some(tensor.dtype), tensor.n_bytes);
        }
        weights.rest = FILE_BYTES_PER_PIECE.saturating_mul(config.vocab_size as u64);
        weights
    }

    /// What files hold: their tensors (name in GGUF or safetensors, format if it is a known one, bytes) and
    /// `rest` bytes beside them.
    pub fn of_tensors<'a>(
        tensors: impl IntoIterator<Item = (&'a str, Option<DType>, u64)>,
        rest: u64,
    ) -> Weights {
        let mut weights = Weights {
            rest,
            ..Weights::default()
        };
        for (name, dtype, n_bytes) in tensors {
            weights.add(name, dtype, n_bytes);
        }
        weights
    }

    fn add(&mut self, name: &str, dtype: Option<DType>, n_bytes: u64) {
        let is_any = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        let is_tower = name.starts_with("v.")
            || name.starts_with("mm.")
            || is_any(&["vision_tower.", "multi_modal_projector."]);
        let group = if is_tower {
            &mut self.vision
        } else if is_any(&["norm"]) {
            &mut self.small
        } else if is_any(&["token_embd.", "embed_tokens."]) {
            &mut self.embedding
        } else if name == "output.weight" || is_any(&["lm_head."]) {
            &mut self.head
        } else if is_any(&["attn_", "self_attn."]) {
            &mut self.attention
        } else if is_any(&["ffn_", "mlp."]) {
            &mut self.mlp
        } else {
            &mut self.small
        };
        *group = group.saturating_add(n_bytes);
        let is_matrix = !is_any(&["norm"]) && !is_tower;
        self.has_floats |= is_matrix && dtype.is_some_and(|dtype| !dtype.is_quantized());
    }

    /// All tensors of the text model.
    #[must_use]
    pub fn tensors(&self) -> u64 {
        [self.embedding, self.head, self.attention, self.mlp, self.small]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    /// What is mapped and touched by a run: the text model's tensors and what stands beside them in the file.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.tensors().saturating_add(self.rest)
    }

    /// What one step of decoding reads: every matrix once; of an embedding beside a head only a row.
    #[must_use]
    pub fn read_per_token(&self) -> u64 {
        if self.head > 0 {
            self.tensors().saturating_sub(self.embedding)
        } else {
            self.tensors()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_270m_in_q4_k_m_has_the_size_of_its_file() {
        let weights = Weights::of_mix(&Config::published("270M").unwrap(), Mix::Q4_K_M);
        assert_eq!(weights.tensors(), 246_587_904);
        assert!(
            weights.total().abs_diff(253_113_024) < 253_113_024 / 200,
            "{weights:?}"
        );
    }

    #[test]
    fn padding_rows_are_left_out_as_by_conversion() {
        let config = Config::published("12B").unwrap();
        let padded = Config {
            vocab_size: 262_208,
            ..config.clone()
        };
        assert_eq!(
            Weights::of_mix(&padded, Mix::Q8_0),
            Weights::of_mix(&config, Mix::Q8_0)
        );
    }

    #[test]
    fn names_of_both_kinds_find_their_group() {
        let weights = Weights::of_tensors(
            [
                ("model.language_model.embed_tokens.weight", Some(DType::BF16), 1),
                ("lm_head.weight", Some(DType::BF16), 2),
                (
                    "model.language_model.layers.3.self_attn.q_proj.weight",
                    Some(DType::BF16),
                    4,
                ),
                ("blk.3.attn_output.weight", Some(DType::Q4_K), 8),
                ("model.layers.3.mlp.up_proj.weight", None, 16),
                ("blk.3.ffn_down.weight", Some(DType::Q4_K), 32),
                ("blk.3.attn_q_norm.weight", Some(DType::F32), 64),
                ("model.layers.3.input_layernorm.weight", Some(DType::BF16), 128),
                (
                    "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
                    None,
                    256,
                ),
                ("mm.input_projection.weight", None, 512),
            ],
            1024,
        );
        assert_eq!(
            weights,
            Weights {
                embedding: 1,
                head: 2,
                attention: 12,
                mlp: 48,
                small: 192,
                rest: 1024,
                vision: 768,
                has_floats: true,
            }
        );
        assert_eq!((weights.total(), weights.read_per_token()), (1279, 254));
    }
}
