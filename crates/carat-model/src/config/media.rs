//! What of a model sees and hears: the settings of towers and embedders for images and audio.
//!
//! They come from the `vision_config` and `audio_config` of a `config.json`, or from the `clip.*` keys of an
//! `mmproj` GGUF file beside the text model. What files leave out is the default of the reference's
//! configuration classes, or, in GGUF, read off the shapes of the tensors.

use std::path::Path;

use carat_format::{Gguf, Metadata};
use serde::Deserialize;

use super::{Family, MAX_HEADS, MAX_LAYERS, MAX_WIDTH};
use crate::Error;

/// Mel bins that the audio encoder of Gemma 4 takes.
pub(crate) const MEL_BINS: usize = 128;

/// Most soft tokens of one audio clip: 30 seconds of 25.
pub(crate) const MAX_AUDIO_TOKENS: usize = 750;

/// Tokens that Gemma 4 makes of an image unless told otherwise.
const DEFAULT_BUDGET: usize = 280;

/// Which inputs beside text a model takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MediaConfig {
    /// Images, and frames of videos.
    pub vision: Option<VisionConfig>,
    /// Sounds.
    pub audio: Option<AudioConfig>,
}

/// How a model sees.
#[derive(Clone, Debug, PartialEq)]
pub enum VisionConfig {
    /// Gemma 3: a SigLIP tower over square images of one size.
    Siglip(SiglipConfig),
    /// Gemma 4 E2B, E4B, 26B-A4B, 31B: a tower over patches of an image of any size.
    Gemma4(Gemma4VisionConfig),
    /// Gemma 4 12B: cells of pixels are projected into the decoder.
    Unified(UnifiedVisionConfig),
}

/// How a model hears.
#[derive(Clone, Debug, PartialEq)]
pub enum AudioConfig {
    /// Gemma 4 E2B, E4B: a conformer over mel features.
    Conformer(ConformerConfig),
    /// Gemma 4 12B: frames of samples are projected into the decoder.
    Unified(UnifiedAudioConfig),
}

/// The tower of Gemma 3.
#[derive(Clone, Debug, PartialEq)]
pub struct SiglipConfig {
    /// Pixels along each side.
    pub image_size: usize,
    /// Pixels along each side of a patch.
    pub patch_size: usize,
    /// Layers.
    pub n_layers: usize,
    /// Width of the tower.
    pub d_model: usize,
    /// Heads; divides `d_model`.
    pub n_heads: usize,
    /// Width of the MLP.
    pub d_ff: usize,
    /// Added to variances and mean squares.
    pub norm_eps: f32,
    /// Soft tokens of an image: a square number whose root divides the patches along a side.
    pub soft_tokens: usize,
}

/// The tower of Gemma 4.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemma4VisionConfig {
    /// Pixels along each side of a patch.
    pub patch_size: usize,
    /// Patches along each side of a soft token.
    pub pooling: usize,
    /// Layers.
    pub n_layers: usize,
    /// Width of the tower.
    pub d_model: usize,
    /// Heads.
    pub n_heads: usize,
    /// Width of a head; a multiple of 4.
    pub head_dim: usize,
    /// Width of the MLP.
    pub d_ff: usize,
    /// Added to mean squares.
    pub norm_eps: f32,
    /// Base of the rotary frequencies of either axis.
    pub rope_theta: f32,
    /// Rows and columns of patches that have an embedding.
    pub positions: usize,
    /// Whether pooled vectors are shifted and scaled.
    pub standardize: bool,
}

/// The image embedder of the 12B.
#[derive(Clone, Debug, PartialEq)]
pub struct UnifiedVisionConfig {
    /// Pixels along each side of a patch.
    pub patch_size: usize,
    /// Patches along each side of a cell, which is a soft token.
    pub pooling: usize,
    /// Width of the embedder.
    pub d_model: usize,
    /// Rows and columns of cells that have an embedding.
    pub positions: usize,
    /// Added to mean squares; the LayerNorms have their own.
    pub norm_eps: f32,
}

/// The audio tower of E2B and E4B.
#[derive(Clone, Debug, PartialEq)]
pub struct ConformerConfig {
    /// Layers.
    pub n_layers: usize,
    /// Width of the tower; its feed-forward halves are four times as wide.
    pub d_model: usize,
    /// Heads; divides `d_model`.
    pub n_heads: usize,
    /// Channels after each of the two convolutions.
    pub channels: [usize; 2],
    /// Taps of the depthwise convolution.
    pub conv_taps: usize,
    /// Rows that a row sees, itself included.
    pub span: usize,
    /// Scores stay within plus and minus this.
    pub score_cap: f32,
    /// What the feed-forward halves are added with.
    pub residual_weight: f32,
    /// Width that the tower gives.
    pub d_out: usize,
    /// Added to variances and mean squares.
    pub norm_eps: f32,
}

/// The audio embedder of the 12B.
#[derive(Clone, Debug, PartialEq)]
pub struct UnifiedAudioConfig {
    /// Samples of a frame, which is a soft token.
    pub frame_len: usize,
    /// Added to mean squares.
    pub norm_eps: f32,
}

impl VisionConfig {
    /// Most soft tokens of an image with the model's usual settings.
    #[must_use]
    pub fn soft_tokens(&self) -> usize {
        match self {
            VisionConfig::Siglip(siglip) => siglip.soft_tokens,
            VisionConfig::Gemma4(_) | VisionConfig::Unified(_) => DEFAULT_BUDGET,
        }
    }
}

/// `vision_config` of a `config.json`, of whichever kind.
#[derive(Deserialize)]
struct VisionJson {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    image_size: Option<usize>,
    patch_size: Option<usize>,
    pooling_kernel_size: Option<usize>,
    position_embedding_size: Option<usize>,
    mm_embed_dim: Option<usize>,
    mm_posemb_size: Option<usize>,
    layer_norm_eps: Option<f32>,
    rms_norm_eps: Option<f32>,
    rope_parameters: Option<RopeJson>,
    standardize: Option<bool>,
}

#[derive(Deserialize)]
struct RopeJson {
    rope_theta: Option<f32>,
}

/// `audio_config` of a `config.json`, of either kind.
#[derive(Deserialize)]
struct AudioJson {
    model_type: Option<String>,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    subsampling_conv_channels: Option<[usize; 2]>,
    conv_kernel_size: Option<usize>,
    attention_chunk_size: Option<usize>,
    attention_context_left: Option<usize>,
    attention_context_right: Option<usize>,
    attention_logit_cap: Option<f32>,
    residual_weight: Option<f32>,
    output_proj_dims: Option<usize>,
    audio_embed_dim: Option<usize>,
    rms_norm_eps: Option<f32>,
}

/// What of a multimodal `config.json` is about media.
#[derive(Deserialize)]
struct RootJson {
    vision_config: Option<VisionJson>,
    audio_config: Option<AudioJson>,
    mm_tokens_per_image: Option<usize>,
}

impl MediaConfig {
    /// Reads the text of a `config.json` at `path` (named in errors). Models without towers give an empty one.
    ///
    /// # Errors
    /// [`Error::Json`] for what is no such JSON, [`Error::BadField`] for sizes that cannot be and for towers of
    /// another kind.
    pub fn from_config_json(json: &[u8], path: &Path) -> Result<MediaConfig, Error> {
        let root: RootJson = serde_json::from_slice(json).map_err(|source| Error::Json {
            path: path.to_owned(),
            source,
        })?;
        let soft_tokens = root.mm_tokens_per_image.unwrap_or(256);
        let vision = root
            .vision_config
            .map(|vision| vision.understood(soft_tokens, path));
        let audio = root.audio_config.map(|audio| audio.understood(path));
        MediaConfig {
            vision: vision.transpose()?,
            audio: audio.transpose()?,
        }
        .checked(path)
    }

    /// Reads the keys and shapes of an `mmproj` GGUF file at `path` (named in errors).
    ///
    /// # Errors
    /// [`Error::BadField`] for a file of another kind or for another model, and for sizes that cannot be.
    pub fn from_mmproj(gguf: &Gguf, path: &Path) -> Result<MediaConfig, Error> {
        let keys = ClipKeys {
            metadata: gguf.metadata(),
            gguf,
            path,
        };
        if keys.metadata.str("general.architecture")? != Some("clip") {
            return Err(keys.bad("general.architecture", "clip, as in every mmproj file"));
        }
        let plain = keys.metadata.str("clip.projector_type")?;
        let vision = match keys.metadata.str("clip.vision.projector_type")?.or(plain) {
            Some("gemma3") => Some(VisionConfig::Siglip(keys.siglip()?)),
            Some("gemma4v") => Some(VisionConfig::Gemma4(keys.gemma4_vision()?)),
            Some("gemma4uv") => Some(VisionConfig::Unified(keys.unified_vision()?)),
            Some("gemma4a" | "gemma4ua") | None => None,
            Some(_) => return Err(keys.bad("clip.projector_type", "gemma3, gemma4v or gemma4uv")),
        };
        let audio = match keys.metadata.str("clip.audio.projector_type")?.or(plain) {
            Some("gemma4a") => Some(AudioConfig::Conformer(keys.conformer()?)),
            Some("gemma4ua") => Some(AudioConfig::Unified(UnifiedAudioConfig {
                frame_len: keys.columns("mm.a.input_projection.weight")?,
                norm_eps: 1e-6,
            })),
            _ => None,
        };
        MediaConfig { vision, audio }.checked(path)
    }

    /// The generations of Gemma whose towers these are: one at most, unless files are mixed up.
    pub(crate) fn families(&self) -> impl Iterator<Item = Family> {
        let vision = self.vision.as_ref().map(|vision| match vision {
            VisionConfig::Siglip(_) => Family::Gemma3,
            VisionConfig::Gemma4(_) | VisionConfig::Unified(_) => Family::Gemma4,
        });
        let audio = self.audio.as_ref().map(|audio| match audio {
            AudioConfig::Conformer(_) | AudioConfig::Unified(_) => Family::Gemma4,
        });
        vision.into_iter().chain(audio)
    }

    /// Keeps sizes within what any Gemma has, so that no product of them overflows.
    fn checked(self, path: &Path) -> Result<MediaConfig, Error> {
        let mut sizes: Vec<(&'static str, usize, usize)> = Vec::new();
        let mut numbers: Vec<(&'static str, f32)> = Vec::new();
        let mut divisible: Vec<(&'static str, usize, usize)> = Vec::new();
        let bad = |field, value: String, expected| Error::BadField {
            path: path.to_owned(),
            field,
            value,
            expected,
        };
        match &self.vision {
            Some(VisionConfig::Siglip(c)) => {
                sizes.extend([
                    ("image size", c.image_size, 1 << 13),
                    ("patch size", c.patch_size, 256),
                    ("number of vision layers", c.n_layers, MAX_LAYERS),
                    ("vision width", c.d_model, MAX_WIDTH),
                    ("number of vision heads", c.n_heads, MAX_HEADS),
                    ("vision feed-forward size", c.d_ff, MAX_WIDTH),
                    ("soft tokens of an image", c.soft_tokens, 1 << 16),
                ]);
                numbers.push(("vision norm epsilon", c.norm_eps));
                divisible.push(("vision width", c.d_model, c.n_heads));
                divisible.push(("image size", c.image_size, c.patch_size));
                let side = c.soft_tokens.isqrt();
                if side * side != c.soft_tokens {
                    return Err(bad(
                        "soft tokens of an image",
                        c.soft_tokens.to_string(),
                        "a square number",
                    ));
                }
                divisible.push(("patches along a side", c.image_size / c.patch_size.max(1), side));
            }
            Some(VisionConfig::Gemma4(c)) => {
                sizes.extend([
                    ("patch size", c.patch_size, 256),
                    ("pooling", c.pooling, 64),
                    ("number of vision layers", c.n_layers, MAX_LAYERS),
                    ("vision width", c.d_model, MAX_WIDTH),
                    ("number of vision heads", c.n_heads, MAX_HEADS),
                    ("vision head size", c.head_dim, 1 << 12),
                    ("vision feed-forward size", c.d_ff, MAX_WIDTH),
                    ("vision positions", c.positions, 1 << 20),
                ]);
                numbers.push(("vision norm epsilon", c.norm_eps));
                numbers.push(("vision rope base", c.rope_theta));
                divisible.push(("vision head size", c.head_dim, 4));
            }
            Some(VisionConfig::Unified(c)) => {
                sizes.extend([
                    ("patch size", c.patch_size, 256),
                    ("pooling", c.pooling, 64),
                    ("vision width", c.d_model, MAX_WIDTH),
                    ("vision positions", c.positions, 1 << 20),
                ]);
                numbers.push(("vision norm epsilon", c.norm_eps));
            }
            None => {}
        }
        match &self.audio {
            Some(AudioConfig::Conformer(c)) => {
                sizes.extend([
                    ("number of audio layers", c.n_layers, MAX_LAYERS),
                    ("audio width", c.d_model, MAX_WIDTH / 4),
                    ("number of audio heads", c.n_heads, MAX_HEADS),
                    ("audio convolution channels", c.channels[0], 1 << 12),
                    ("audio convolution channels", c.channels[1], 1 << 12),
                    ("audio convolution taps", c.conv_taps, 64),
                    ("audio attention span", c.span, 1 << 10),
                    ("audio output width", c.d_out, MAX_WIDTH),
                ]);
                numbers.push(("audio norm epsilon", c.norm_eps));
                numbers.push(("audio logit cap", c.score_cap));
                numbers.push(("audio residual weight", c.residual_weight));
                divisible.push(("audio width", c.d_model, 2));
                divisible.push(("audio width", c.d_model, c.n_heads));
            }
            Some(AudioConfig::Unified(c)) => {
                sizes.push(("audio frame length", c.frame_len, 1 << 16));
                numbers.push(("audio norm epsilon", c.norm_eps));
            }
            None => {}
        }
        for (field, value, limit) in sizes {
            if value == 0 || value > limit {
                return Err(bad(
                    field,
                    value.to_string(),
                    "a positive number of the size that a Gemma has",
                ));
            }
        }
        for (field, value) in numbers {
            if !value.is_finite() || value <= 0.0 {
                return Err(bad(field, value.to_string(), "a positive number"));
            }
        }
        for (field, value, by) in divisible {
            if by == 0 || !value.is_multiple_of(by) {
                return Err(bad(field, value.to_string(), "divisible as in every Gemma"));
            }
        }
        Ok(self)
    }
}

impl VisionJson {
    fn understood(self, soft_tokens: usize, path: &Path) -> Result<VisionConfig, Error> {
        match self.model_type.as_deref() {
            Some("siglip_vision_model") | None => Ok(VisionConfig::Siglip(SiglipConfig {
                image_size: self.image_size.unwrap_or(224),
                patch_size: self.patch_size.unwrap_or(16),
                n_layers: self.num_hidden_layers.unwrap_or(12),
                d_model: self.hidden_size.unwrap_or(768),
                n_heads: self.num_attention_heads.unwrap_or(12),
                d_ff: self.intermediate_size.unwrap_or(3072),
                norm_eps: self.layer_norm_eps.unwrap_or(1e-6),
                soft_tokens,
            })),
            Some("gemma4_vision") => {
                let n_heads = self.num_attention_heads.unwrap_or(12);
                if self.num_key_value_heads.is_some_and(|n| n != n_heads) {
                    return Err(unknown(
                        path,
                        "vision_config.num_key_value_heads",
                        "the number of heads",
                    ));
                }
                Ok(VisionConfig::Gemma4(Gemma4VisionConfig {
                    patch_size: self.patch_size.unwrap_or(16),
                    pooling: self.pooling_kernel_size.unwrap_or(3),
                    n_layers: self.num_hidden_layers.unwrap_or(16),
                    d_model: self.hidden_size.unwrap_or(768),
                    n_heads,
                    head_dim: self.head_dim.unwrap_or(64),
                    d_ff: self.intermediate_size.unwrap_or(3072),
                    norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
                    rope_theta: self
                        .rope_parameters
                        .and_then(|rope| rope.rope_theta)
                        .unwrap_or(100.0),
                    positions: self.position_embedding_size.unwrap_or(10_240),
                    standardize: self.standardize.unwrap_or(false),
                }))
            }
            Some("gemma4_unified_vision") => Ok(VisionConfig::Unified(UnifiedVisionConfig {
                patch_size: self.patch_size.unwrap_or(16),
                pooling: self.pooling_kernel_size.unwrap_or(3),
                d_model: self.mm_embed_dim.unwrap_or(3840),
                positions: self.mm_posemb_size.unwrap_or(1120),
                norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            })),
            Some(_) => Err(unknown(
                path,
                "vision_config.model_type",
                "siglip_vision_model, gemma4_vision or gemma4_unified_vision",
            )),
        }
    }
}

impl AudioJson {
    fn understood(self, path: &Path) -> Result<AudioConfig, Error> {
        match self.model_type.as_deref() {
            Some("gemma4_audio") => {
                if self.attention_context_right.unwrap_or(0) != 0 {
                    return Err(unknown(path, "audio_config.attention_context_right", "0"));
                }
                let span = self.attention_context_left.unwrap_or(13).saturating_sub(1);
                // The table of distances is laid out for this alone.
                if self.attention_chunk_size.unwrap_or(12) != span {
                    return Err(unknown(
                        path,
                        "audio_config.attention_chunk_size",
                        "attention_context_left - 1",
                    ));
                }
                Ok(AudioConfig::Conformer(ConformerConfig {
                    n_layers: self.num_hidden_layers.unwrap_or(12),
                    d_model: self.hidden_size.unwrap_or(1024),
                    n_heads: self.num_attention_heads.unwrap_or(8),
                    channels: self.subsampling_conv_channels.unwrap_or([128, 32]),
                    conv_taps: self.conv_kernel_size.unwrap_or(5),
                    span,
                    score_cap: self.attention_logit_cap.unwrap_or(50.0),
                    residual_weight: self.residual_weight.unwrap_or(0.5),
                    d_out: self.output_proj_dims.unwrap_or(1536),
                    norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
                }))
            }
            Some("gemma4_unified_audio") => Ok(AudioConfig::Unified(UnifiedAudioConfig {
                frame_len: self.audio_embed_dim.unwrap_or(640),
                norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
            })),
            _ => Err(unknown(
                path,
                "audio_config.model_type",
                "gemma4_audio or gemma4_unified_audio",
            )),
        }
    }
}

fn unknown(path: &Path, field: &'static str, expected: &'static str) -> Error {
    Error::BadField {
        path: path.to_owned(),
        field,
        value: "something else".to_owned(),
        expected,
    }
}

/// The keys of an `mmproj` file, and its shapes.
struct ClipKeys<'a> {
    metadata: &'a Metadata,
    gguf: &'a Gguf,
    path: &'a Path,
}

impl ClipKeys<'_> {
    fn bad(&self, field: &'static str, expected: &'static str) -> Error {
        let value = self
            .metadata
            .get(field)
            .map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"));
        Error::BadField {
            path: self.path.to_owned(),
            field,
            value,
            expected,
        }
    }

    fn required(&self, field: &'static str) -> Result<usize, Error> {
        let value = self.metadata.u32(field)?.ok_or_else(|| Error::MissingField {
            path: self.path.to_owned(),
            field,
        })?;
        Ok(value as usize)
    }

    fn eps(&self, field: &'static str) -> Result<f32, Error> {
        Ok(self.metadata.f32(field)?.unwrap_or(1e-6))
    }

    fn shape(&self, name: &'static str) -> Result<&[usize], Error> {
        let info = self.gguf.infos().find(|info| info.name == name);
        info.map(|info| info.shape).ok_or_else(|| Error::MissingTensors {
            path: self.path.to_owned(),
            names: vec![name.to_owned()],
        })
    }

    /// Elements of a row.
    fn columns(&self, name: &'static str) -> Result<usize, Error> {
        Ok(self.shape(name)?.last().copied().unwrap_or(0))
    }

    fn siglip(&self) -> Result<SiglipConfig, Error> {
        let image_size = self.required("clip.vision.image_size")?;
        let patch_size = self.required("clip.vision.patch_size")?;
        // The projector's factor is that of the pooling along a side; 4 in every Gemma 3.
        let factor = self
            .metadata
            .u32("clip.vision.projector.scale_factor")?
            .unwrap_or(4)
            .max(1) as usize;
        let side = image_size / patch_size.max(1) / factor;
        Ok(SiglipConfig {
            image_size,
            patch_size,
            n_layers: self.required("clip.vision.block_count")?,
            d_model: self.required("clip.vision.embedding_length")?,
            n_heads: self.required("clip.vision.attention.head_count")?,
            d_ff: self.required("clip.vision.feed_forward_length")?,
            norm_eps: self.eps("clip.vision.attention.layer_norm_epsilon")?,
            soft_tokens: side.saturating_mul(side),
        })
    }

    fn gemma4_vision(&self) -> Result<Gemma4VisionConfig, Error> {
        let positions = self.shape("v.position_embd.weight")?;
        Ok(Gemma4VisionConfig {
            patch_size: self.required("clip.vision.patch_size")?,
            pooling: self
                .metadata
                .u32("clip.vision.projector.scale_factor")?
                .unwrap_or(3) as usize,
            n_layers: self.required("clip.vision.block_count")?,
            d_model: self.required("clip.vision.embedding_length")?,
            n_heads: self.required("clip.vision.attention.head_count")?,
            head_dim: self.columns("v.blk.0.attn_q_norm.weight")?,
            d_ff: self.required("clip.vision.feed_forward_length")?,
            norm_eps: self.eps("clip.vision.attention.layer_norm_epsilon")?,
            rope_theta: 100.0,
            positions: positions.get(1).copied().unwrap_or(0),
            standardize: self.gguf.infos().any(|info| info.name == "v.std_bias"),
        })
    }

    fn unified_vision(&self) -> Result<UnifiedVisionConfig, Error> {
        let pooling = self
            .metadata
            .u32("clip.vision.projector.scale_factor")?
            .unwrap_or(3)
            .max(1) as usize;
        let pixels = self.shape("v.patch_norm.1.weight")?.iter().product::<usize>() / 3;
        let positions = self.shape("v.position_embd.weight")?;
        Ok(UnifiedVisionConfig {
            patch_size: pixels.isqrt() / pooling,
            pooling,
            d_model: self.columns("v.position_embd.weight")?,
            positions: positions.get(1).copied().unwrap_or(0),
            norm_eps: self.eps("clip.vision.attention.layer_norm_epsilon")?,
        })
    }

    fn conformer(&self) -> Result<ConformerConfig, Error> {
        let first = self.shape("a.conv1d.0.weight")?.first().copied().unwrap_or(0);
        let second = self.shape("a.conv1d.1.weight")?.first().copied().unwrap_or(0);
        Ok(ConformerConfig {
            n_layers: self.required("clip.audio.block_count")?,
            d_model: self.required("clip.audio.embedding_length")?,
            n_heads: self.required("clip.audio.attention.head_count")?,
            channels: [first, second],
            conv_taps: self.columns("a.blk.0.conv_dw.weight")?,
            // Not in these files: the same in both models.
            span: 12,
            score_cap: 50.0,
            residual_weight: 0.5,
            d_out: self
                .shape("a.pre_encode.out.weight")?
                .first()
                .copied()
                .unwrap_or(0),
            norm_eps: self.eps("clip.audio.attention.layer_norm_epsilon")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<MediaConfig, Error> {
        MediaConfig::from_config_json(json.as_bytes(), Path::new("config.json"))
    }

    #[test]
    fn the_published_gemma_3_tower_is_read() {
        let config = parse(
            r#"{"model_type": "gemma3", "mm_tokens_per_image": 256, "vision_config": {"hidden_size": 1152,
               "image_size": 896, "intermediate_size": 4304, "model_type": "siglip_vision_model",
               "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14}}"#,
        );
        let Some(VisionConfig::Siglip(siglip)) = config.unwrap().vision else {
            panic!("a SigLIP tower");
        };
        assert_eq!((siglip.soft_tokens, siglip.n_heads, siglip.d_ff), (256, 16, 4304));
    }

    #[test]
    fn defaults_are_those_of_the_small_gemma_4() {
        let config = parse(
            r#"{"vision_config": {"model_type": "gemma4_vision"}, "audio_config": {"model_type": "gemma4_audio"}}"#,
        )
        .unwrap();
        let Some(VisionConfig::Gemma4(vision)) = &config.vision else {
            panic!("a tower of Gemma 4");
        };
        assert_eq!(
            (vision.n_layers, vision.head_dim, vision.positions),
            (16, 64, 10_240)
        );
        let Some(AudioConfig::Conformer(audio)) = &config.audio else {
            panic!("a conformer");
        };
        assert_eq!((audio.span, audio.d_model, audio.d_out), (12, 1024, 1536));
        assert_eq!(
            parse(r#"{"audio_config": null}"#).unwrap(),
            MediaConfig::default()
        );
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for json in [
            r#"{"vision_config": {"model_type": "gemma4_vision", "hidden_size": 0}}"#,
            r#"{"vision_config": {"model_type": "gemma4_vision", "head_dim": 6}}"#,
            r#"{"vision_config": {"model_type": "gemma4_vision", "num_hidden_layers": 9999999}}"#,
            r#"{"vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 7}}"#,
            r#"{"vision_config": {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 9}"#,
            r#"{"vision_config": {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 8}"#,
            r#"{"vision_config": {"model_type": "siglip_vision_model", "patch_size": 0}}"#,
            r#"{"vision_config": {"model_type": "clip"}}"#,
            r#"{"audio_config": {"model_type": "gemma4_audio", "attention_context_left": 0}}"#,
            r#"{"audio_config": {"model_type": "gemma4_audio", "attention_logit_cap": -1}}"#,
            r#"{"vision_config": 3}"#,
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
    }
}
