//! Images and sounds become rows of the decoder's width.
//!
//! ```text
//! pixel_values (+ positions) → tower or embedder → [n_soft_tokens, d_model] → MediaSpan of a Segment
//! input_features             → tower or embedder →            "
//! ```
//!
//! What goes in is what the reference's processors give: decoding, resizing and mel features are not done here.
//! Weights are those of the checkpoint's folder, or of an `mmproj` GGUF file beside the text model
//! ([`MediaSource`]); they stay mapped. Every tower is written over one [`workspace::Workspace`]: products of the
//! kernels' encoder module, on the threads of the text model.
//!
//! [`EncoderPrecision::F32`] is the reference's arithmetic. [`EncoderPrecision::Half`] rounds the operands of
//! products, as the published models were trained, where the processor is faster at it; rows then differ by 0.5 %
//! (relative L2).

mod cache;
mod conformer;
mod gemma4;
mod linear;
mod siglip;
mod source;
mod tensors;
mod unified;
mod workspace;

use std::sync::Arc;

use carat_kernels::Compute;
use carat_kernels::encoder::EncoderPrecision;

use crate::config::{AudioConfig, MAX_AUDIO_TOKENS, MediaConfig, VisionConfig};
use crate::{Error, LoadOptions};
pub use cache::MediaCache;
use conformer::Conformer;
use gemma4::Gemma4Vision;
use siglip::Siglip;
pub use source::MediaSource;
use unified::{UnifiedAudio, UnifiedVision};
use workspace::Workspace;

/// Most patches of one image, above the 10,080 of the largest budget.
const MAX_PATCHES: usize = 16_384;

/// An image as the reference's processor gives it.
#[derive(Clone, Copy, Debug)]
pub struct ImageInput<'a> {
    /// Gemma 3: `[3, side, side]`, from -1 to 1. Gemma 4: `[n, patch * patch * 3]`, from 0 to 1; for the 12B a
    /// patch is a whole cell.
    pub pixel_values: &'a [f32],
    /// Gemma 4: column and row of each patch; patches where both are -1 are padding. Gemma 3: empty.
    pub positions: &'a [[i32; 2]],
}

/// What an observer sees: see [`MediaEncoder::encode_image_observed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaStage {
    /// Patches or frames as they enter the first layer.
    Embedded,
    /// What layer `i`, counted from 0, leaves.
    Layer(usize),
    /// What the tower gives to the projection: normed (Gemma 3), pooled and standardized (Gemma 4), projected to
    /// the tower's output width (sounds).
    Encoded,
}

/// Sees the rows of a tower at each stage, padding left out.
pub type MediaObserver<'a> = dyn FnMut(MediaStage, &[f32]) + 'a;

/// The towers and embedders of one model.
pub struct MediaEncoder {
    config: MediaConfig,
    d_model: usize,
    id: u64,
    vision: Option<Vision>,
    audio: Option<Audio>,
    workspace: Workspace,
}

enum Vision {
    Siglip(Siglip),
    Gemma4(Gemma4Vision),
    Unified(UnifiedVision),
}

enum Audio {
    Conformer(Box<Conformer>),
    Unified(UnifiedAudio),
}

impl MediaEncoder {
    /// Loads the towers of `source` with threads of their own. [`crate::Model::media_encoder`] shares the model's.
    ///
    /// # Errors
    /// Tensors that are missing, unknown or of another shape than the settings say; no threads to be had.
    pub fn load(
        source: &MediaSource<'_>,
        options: &LoadOptions,
        precision: EncoderPrecision,
    ) -> Result<MediaEncoder, Error> {
        let compute = Arc::new(Compute::new(options.isa, options.n_threads)?);
        MediaEncoder::with_compute(source, compute, precision)
    }

    pub(crate) fn with_compute(
        source: &MediaSource<'_>,
        compute: Arc<Compute>,
        precision: EncoderPrecision,
    ) -> Result<MediaEncoder, Error> {
        let (tensors, d_model) = (source.tensors(), source.d_model());
        let config = source.config().clone();
        let vision = match &config.vision {
            Some(VisionConfig::Siglip(c)) => Some(Vision::Siglip(Siglip::load(c, &tensors, d_model)?)),
            Some(VisionConfig::Gemma4(c)) => Some(Vision::Gemma4(Gemma4Vision::load(c, &tensors, d_model)?)),
            Some(VisionConfig::Unified(c)) => {
                Some(Vision::Unified(UnifiedVision::load(c, &tensors, d_model)?))
            }
            None => None,
        };
        let audio = match &config.audio {
            Some(AudioConfig::Conformer(c)) => {
                Some(Audio::Conformer(Box::new(Conformer::load(c, &tensors, d_model)?)))
            }
            Some(AudioConfig::Unified(c)) => Some(Audio::Unified(UnifiedAudio::load(c, &tensors, d_model)?)),
            None => None,
        };
        tensors.all_used()?;
        Ok(MediaEncoder {
            id: tensors.id(&format!("{config:?} {precision:?}")),
            config,
            d_model,
            vision,
            audio,
            workspace: Workspace::new(compute, precision),
        })
    }

    /// Which inputs there are, and their settings.
    #[must_use]
    pub fn config(&self) -> &MediaConfig {
        &self.config
    }

    /// Width of the rows.
    #[must_use]
    pub fn d_model(&self) -> usize {
        self.d_model
    }

    /// A number that tells its rows from those that other towers, or these in another precision, make of the same input.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Encodes one image; `rows` becomes `[n_soft_tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::NoModality`], [`Error::MediaShape`] and [`Error::MediaPosition`] for an image that the model cannot
    /// take; nothing is computed then.
    pub fn encode_image(&mut self, image: &ImageInput<'_>, rows: &mut Vec<f32>) -> Result<(), Error> {
        self.encode_image_observed(image, rows, &mut |_, _| {})
    }

    /// As [`MediaEncoder::encode_image`], and shows `observer` the rows of each stage.
    ///
    /// # Errors
    /// As [`MediaEncoder::encode_image`].
    pub fn encode_image_observed(
        &mut self,
        image: &ImageInput<'_>,
        rows: &mut Vec<f32>,
        observer: &mut MediaObserver<'_>,
    ) -> Result<(), Error> {
        let workspace = &mut self.workspace;
        let _turn = workspace.turn();
        match &self.vision {
            Some(Vision::Siglip(tower)) => tower.encode(workspace, image, rows, observer),
            Some(Vision::Gemma4(tower)) => tower.encode(workspace, image, rows, observer),
            Some(Vision::Unified(embedder)) => embedder.encode(workspace, image, rows),
            None => Err(Error::NoModality { what: "images" }),
        }
    }

    /// Encodes one sound: `features` `[n_frames, 128]` of mel bins (E2B, E4B) or `[n_frames, 640]` of samples (12B),
    /// frames that the processor masks left out. `rows` becomes `[n_soft_tokens, d_model]`.
    ///
    /// # Errors
    /// [`Error::NoModality`] and [`Error::MediaShape`] for a sound that the model cannot take, among them those of
    /// more than 30 seconds; nothing is computed then.
    pub fn encode_audio(&mut self, features: &[f32], rows: &mut Vec<f32>) -> Result<(), Error> {
        self.encode_audio_observed(features, rows, &mut |_, _| {})
    }

    /// As [`MediaEncoder::encode_audio`], and shows `observer` the rows of each stage.
    ///
    /// # Errors
    /// As [`MediaEncoder::encode_audio`].
    pub fn encode_audio_observed(
        &mut self,
        features: &[f32],
        rows: &mut Vec<f32>,
        observer: &mut MediaObserver<'_>,
    ) -> Result<(), Error> {
        let workspace = &mut self.workspace;
        let _turn = workspace.turn();
        match &self.audio {
            Some(Audio::Conformer(tower)) => tower.encode(workspace, features, rows, observer),
            Some(Audio::Unified(embedder)) => embedder.encode(workspace, features, rows),
            None => Err(Error::NoModality { what: "audio" }),
        }
    }
}

/// The patches of an image that are no padding: index among the given ones, column, row.
fn real_patches(
    image: &ImageInput<'_>,
    patch_len: usize,
    positions: usize,
) -> Result<Vec<(usize, [usize; 2])>, Error> {
    let n = image.positions.len();
    if n.checked_mul(patch_len) != Some(image.pixel_values.len()) {
        return Err(Error::MediaShape {
            what: "pixel values",
            found: image.pixel_values.len(),
            expected: format!("{patch_len} for each of the {n} patches"),
        });
    }
    let mut patches = Vec::new();
    for (i, [x, y]) in image.positions.iter().enumerate() {
        let place = |at: i32| usize::try_from(at).ok().filter(|at| *at < positions);
        match (place(*x), place(*y)) {
            (Some(x), Some(y)) => patches.push((i, [x, y])),
            _ if [*x, *y] == [-1, -1] => {}
            _ => {
                return Err(Error::MediaPosition {
                    x: *x,
                    y: *y,
                    problem: "outside the places that the model has",
                });
            }
        }
    }
    if patches.is_empty() || patches.len() > MAX_PATCHES {
        return Err(Error::MediaShape {
            what: "patches of an image",
            found: patches.len(),
            expected: format!("1 to {MAX_PATCHES}"),
        });
    }
    Ok(patches)
}

/// Frames of a sound of `width` numbers each, if they are some and no more than 30 seconds of them.
fn frames(features: &[f32], width: usize, frames_per_token: usize) -> Result<usize, Error> {
    let (n, limit) = (features.len() / width, MAX_AUDIO_TOKENS * frames_per_token);
    if n == 0 || n > limit || !features.len().is_multiple_of(width) {
        return Err(Error::MediaShape {
            what: "numbers of a sound",
            found: features.len(),
            expected: format!("1 to {limit} frames of {width}, which are 30 seconds"),
        });
    }
    Ok(n)
}
