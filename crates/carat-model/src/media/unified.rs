//! The embedders of Gemma 4 12B: no towers, the decoder itself sees and hears.
//!
//! ```text
//! cell of 48 x 48 pixels → LayerNorm → linear → LayerNorm → + column + row → LayerNorm → rms → linear
//! frame of 640 samples   → rms → linear
//! ```
//!
//! After the reference's `modeling_gemma4_unified`. The LayerNorms have PyTorch's epsilon of 1e-5, unlike all else
//! in the model. Digital silence gives rows of zeros.

use carat_kernels::vector;

use super::linear::Linear;
use super::tensors::{PixelOrder, Tensors, channels_first};
use super::workspace::{Workspace, row};
use super::{ImageInput, frames, real_patches};
use crate::Error;
use crate::config::{UnifiedAudioConfig, UnifiedVisionConfig};

/// PyTorch's default, which these norms have and the config does not name.
const LAYER_NORM_EPS: f32 = 1e-5;

/// The image embedder.
pub(super) struct UnifiedVision {
    config: UnifiedVisionConfig,
    /// How the weights over a cell's pixels lie.
    order: PixelOrder,
    pixel_norm: Norm,
    patch: Linear,
    patch_norm: Norm,
    /// Of columns and of rows, each `[positions, d_model]`.
    positions: [Vec<f32>; 2],
    position_norm: Norm,
    ones: Vec<f32>,
    projection: Linear,
}

/// The audio embedder.
pub(super) struct UnifiedAudio {
    config: UnifiedAudioConfig,
    ones: Vec<f32>,
    projection: Linear,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    fn load(tensors: &Tensors<'_>, base: &str, n: usize) -> Result<Norm, Error> {
        Ok(Norm {
            weight: tensors.floats(&format!("{base}.weight"), n)?,
            bias: tensors.floats(&format!("{base}.bias"), n)?,
        })
    }

    fn apply(&self, isa: carat_kernels::Isa, x: &[f32], to: &mut [f32]) {
        vector::layer_norm(isa, x, &self.weight, &self.bias, LAYER_NORM_EPS, to);
    }
}

impl UnifiedVision {
    pub(super) fn load(
        config: &UnifiedVisionConfig,
        tensors: &Tensors<'_>,
        d_text: usize,
    ) -> Result<UnifiedVision, Error> {
        let (d, side) = (config.d_model, config.patch_size * config.pooling);
        let pixels = 3 * side * side;
        let prefix = tensors.prefix(&["model.", ""], "vision_embedder.patch_dense.weight");
        let is_mmproj = tensors.is_mmproj();
        let of = |hugging_face: &str, gguf: &str| {
            if is_mmproj {
                gguf.to_owned()
            } else {
                format!("{prefix}{hugging_face}")
            }
        };
        let table = tensors.floats(
            &of("vision_embedder.pos_embedding", "v.position_embd.weight"),
            2 * config.positions * d,
        )?;
        Ok(UnifiedVision {
            // Pixels are brought into the file's order, not 26 million weights into theirs: those stay mapped.
            order: if is_mmproj {
                PixelOrder::ChannelsFirst
            } else {
                PixelOrder::ChannelsLast
            },
            pixel_norm: Norm::load(
                tensors,
                &of("vision_embedder.patch_ln1", "v.patch_norm.1"),
                pixels,
            )?,
            patch: tensors.linear(&of("vision_embedder.patch_dense", "v.patch_embd"), d, pixels)?,
            patch_norm: Norm::load(tensors, &of("vision_embedder.patch_ln2", "v.patch_norm.2"), d)?,
            positions: [0, 1].map(|axis| one_axis(&table, axis, config, is_mmproj)),
            position_norm: Norm::load(tensors, &of("vision_embedder.pos_norm", "v.patch_norm.3"), d)?,
            ones: vec![1.0; d],
            projection: tensors.linear(
                &of("embed_vision.embedding_projection", "mm.input_projection"),
                d_text,
                d,
            )?,
            config: config.clone(),
        })
    }

    pub(super) fn encode(
        &self,
        workspace: &mut Workspace,
        image: &ImageInput<'_>,
        rows: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let (c, d, isa) = (&self.config, self.config.d_model, workspace.isa());
        let side = c.patch_size * c.pooling;
        let pixels = 3 * side * side;
        let cells = real_patches(image, pixels, c.positions)?;
        let mut x = Vec::new();
        workspace.project(
            cells.len(),
            &|t, to| {
                let cell = row(image.pixel_values, cells[t].0, pixels);
                match self.order {
                    PixelOrder::ChannelsLast => self.pixel_norm.apply(isa, cell, to),
                    PixelOrder::ChannelsFirst => self.pixel_norm.apply(isa, &channels_first(cell), to),
                }
            },
            &mut [(&self.patch, &mut x)],
        );
        let normed = |t: usize, to: &mut [f32]| {
            let mut at = vec![0.0; d];
            self.patch_norm.apply(isa, row(&x, t, d), &mut at);
            for (table, place) in self.positions.iter().zip(cells[t].1) {
                vector::add(isa, &mut at, row(table, place, d));
            }
            self.position_norm.apply(isa, &at, to);
            vector::rms_norm_in_place(isa, to, &self.ones, c.norm_eps);
        };
        workspace.project(cells.len(), &normed, &mut [(&self.projection, rows)]);
        Ok(())
    }
}

/// The embeddings of one axis: `[positions, 2, d]` in safetensors, `[2, positions, d]` in GGUF.
fn one_axis(table: &[f32], axis: usize, config: &UnifiedVisionConfig, is_mmproj: bool) -> Vec<f32> {
    let (n, d) = (config.positions, config.d_model);
    let index = |at: usize| if is_mmproj { axis * n + at } else { 2 * at + axis };
    (0..n).flat_map(|at| row(table, index(at), d)).copied().collect()
}

impl UnifiedAudio {
    pub(super) fn load(
        config: &UnifiedAudioConfig,
        tensors: &Tensors<'_>,
        d_text: usize,
    ) -> Result<UnifiedAudio, Error> {
        let prefix = tensors.prefix(&["model.", ""], "embed_audio.embedding_projection.weight");
        let name = if tensors.is_mmproj() {
            "mm.a.input_projection".to_owned()
        } else {
            format!("{prefix}embed_audio.embedding_projection")
        };
        Ok(UnifiedAudio {
            ones: vec![1.0; config.frame_len],
            projection: tensors.linear(&name, d_text, config.frame_len)?,
            config: config.clone(),
        })
    }

    pub(super) fn encode(
        &self,
        workspace: &mut Workspace,
        features: &[f32],
        rows: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let (c, isa) = (&self.config, workspace.isa());
        let n = frames(features, c.frame_len, 1)?;
        workspace.project(
            n,
            &|t, to| vector::rms_norm(isa, row(features, t, c.frame_len), &self.ones, c.norm_eps, to),
            &mut [(&self.projection, rows)],
        );
        Ok(())
    }
}
