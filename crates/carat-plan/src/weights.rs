//! The bytes of a model's weights by what they are for.

use carat_kernels::DType;
use carat_model::Config;
use carat_model::convert::{Mix, tensors_of};

/// Bytes of a GGUF file beside its tensors for each piece of the vocabulary: its text, score and type. (Gemma's
/// 262,144 pieces take 6.5 MB.)
const FILE_BYTES_PER_PIECE: u64 = 25;

/// Rows of the embedding that a GGUF file has; checkpoints of Hugging Face have a few for padding.
const VOCABULARY: usize = 262_144;

/// By how much a published size may differ from the file's: a unit of its last digit, tenths of a gigabyte.
const ROUNDING: u64 = 100_000_000;

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
    /// The matrices of experts, of which a token goes to a few.
    pub experts: u64,
    /// The tables of per-layer embeddings, of which a token reads a row.
    pub per_layer: u64,
    /// Norms and what else is small.
    pub small: u64,
    /// What the files hold beside tensors: keys and vocabulary.
    pub rest: u64,
    /// The tensors of towers for images and sounds, where they are in the same files. Not read by a text model.
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

    /// These weights of a mix as they are in a published file of `n_bytes`, a figure that is rounded. Who publishes a
    /// mix may leave the largest table in more bits than carat's own mix has for it: Google's own 4-bit files of
    /// Gemma 3 have an embedding of 16 bits, those of E2B and E4B wider tables of per-layer embeddings.
    #[must_use]
    pub fn published_in(self, n_bytes: u64, config: &Config) -> Weights {
        let more = n_bytes.saturating_sub(self.total());
        if more <= ROUNDING {
            return self;
        }
        if config.per_layer_width > 0 {
            let per_layer = self.per_layer.saturating_add(more);
            return Weights { per_layer, ..self };
        }
        Weights {
            embedding: self.embedding.saturating_add(more),
            // Nothing but floats takes so much, and they need more to compute in.
            has_floats: true,
            ..self
        }
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
        let is_tower = ["v.", "a.", "mm."].iter().any(|part| name.starts_with(part)) || is_any(&TOWERS);
        let group = if is_tower {
            &mut self.vision
        } else if is_any(&["norm"]) {
            &mut self.small
        } else if is_any(&["per_layer_token_embd.", "embed_tokens_per_layer."]) {
            &mut self.per_layer
        } else if is_any(&["_exps.", "experts."]) && !name.ends_with("scale") {
            &mut self.experts
        } else if is_any(&["token_embd.", "embed_tokens."]) {
            &mut self.embedding
        } else if name == "output.weight" || is_any(&["lm_head."]) {
            &mut self.head
        } else if is_any(&["attn_", "self_attn."]) {
            &mut self.attention
        } else if is_any(&["ffn_", "mlp.", "inp_gate.", "per_layer_input_gate.", "per_layer_"])
            || is_projection(name)
        {
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
        let matrices = [self.embedding, self.head, self.attention, self.mlp, self.experts];
        let others = [self.per_layer, self.small];
        matrices.into_iter().chain(others).fold(0, u64::saturating_add)
    }

    /// What is mapped and touched by a run: the text model's tensors and what stands beside them in the file.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.tensors().saturating_add(self.rest)
    }

    /// What one step of decoding reads: every matrix once, but only the experts that a token goes to; of an
    /// embedding beside a head, and of per-layer embeddings, only a row.
    #[must_use]
    pub fn read_per_token(&self, config: &Config) -> u64 {
        let rows_only = if self.head > 0 { self.embedding } else { 0 };
        let experts = config.layers.iter().find_map(|layer| layer.experts);
        let idle = experts.map_or(0, |experts| {
            let (n, n_idle) = (experts.n as u64, (experts.n - experts.n_used) as u64);
            self.experts / n.max(1) * n_idle
        });
        [rows_only, self.per_layer, idle]
            .into_iter()
            .fold(self.tensors(), u64::saturating_sub)
    }
}

/// Parts of the names of towers and what joins them to the text model, in safetensors.
const TOWERS: [&str; 6] = [
    "vision_tower.",
    "audio_tower.",
    "multi_modal_projector.",
    "vision_embedder.",
    "embed_vision.",
    "embed_audio.",
];

/// The matrix that brings a layer's own input back, whose name in GGUF is part of others.
fn is_projection(name: &str) -> bool {
    name.starts_with("blk.") && name.ends_with(".proj.weight")
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

    /// 8 of 128 experts, and none of the tables of per-layer embeddings.
    #[test]
    fn decoding_reads_what_is_active() {
        for (size, least, most) in [
            ("26B-A4B", 3.75, 3.9),
            ("E2B", 2.2, 2.35),
            ("gemma4-12B", 11.8, 12.0),
        ] {
            let config = Config::published(size).unwrap();
            let read = Weights::of_mix(&config, Mix::BF16).read_per_token(&config) as f64 / 2e9;
            assert!((least..most).contains(&read), "{size}: {read} billion");
        }
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
                ("blk.3.ffn_gate_up_exps.weight", Some(DType::Q4_0), 2048),
                (
                    "model.language_model.layers.3.experts.down_proj",
                    Some(DType::BF16),
                    4096,
                ),
                ("per_layer_token_embd.weight", Some(DType::Q4_0), 8192),
                (
                    "model.language_model.embed_tokens_per_layer.weight",
                    Some(DType::BF16),
                    16_384,
                ),
                ("blk.3.proj.weight", Some(DType::Q4_0), 32_768),
                ("blk.3.ffn_down_exps.scale", Some(DType::F32), 65_536),
                (
                    "model.audio_tower.layers.0.feed_forward1.ffw_layer_1.linear.weight",
                    None,
                    131_072,
                ),
            ],
            1024,
        );
        assert_eq!(
            weights,
            Weights {
                embedding: 1,
                head: 2,
                attention: 12,
                mlp: 48 + 32_768 + 65_536,
                experts: 2048 + 4096,
                per_layer: 8192 + 16_384,
                small: 192,
                rest: 1024,
                vision: 768 + 131_072,
                has_floats: true,
            }
        );
        let text = 255 + 2048 + 4096 + 8192 + 16_384 + 32_768 + 65_536;
        assert_eq!(weights.total(), text + 1024);
        let dense = Config::published("1B").unwrap();
        assert_eq!(weights.read_per_token(&dense), text - 1 - (8192 + 16_384));
    }

    #[test]
    fn a_published_file_may_be_larger_than_the_mix() {
        let gemma3 = Config::published("12B").unwrap();
        let mix = Weights::of_mix(&gemma3, Mix::Q4_0);
        let published = mix.published_in(8_100_000_000, &gemma3);
        assert_eq!(published.total(), 8_100_000_000);
        assert_eq!(published.embedding - mix.embedding, 8_100_000_000 - mix.total());
        assert!(published.has_floats && !mix.has_floats);
        assert_eq!(mix.published_in(mix.total() + ROUNDING, &gemma3), mix);
        assert_eq!(mix.published_in(0, &gemma3), mix);

        let e4b = Config::published("gemma4-E4B").unwrap();
        let mix = Weights::of_mix(&e4b, Mix::Q4_K_M);
        let published = mix.published_in(5_300_000_000, &e4b);
        assert_eq!(published.total(), 5_300_000_000);
        // Of these tables a token reads a row.
        assert_eq!(published.read_per_token(&e4b), mix.read_per_token(&e4b));
    }
}
