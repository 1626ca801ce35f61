//! From a model's settings to the processing of images, sounds and videos.

use carat_media::{AudioInput, MediaOptions, MediaProcessor, PatchLayout, VisionInput};
use carat_model::{AudioConfig, MediaConfig, VisionConfig};

use crate::error::Result;

/// How inputs become what the model described by `config` takes.
///
/// # Errors
/// Sizes that cannot be.
pub fn processor(config: &MediaConfig, options: MediaOptions) -> Result<MediaProcessor> {
    let vision = config.vision.as_ref().map(|vision| match vision {
        VisionConfig::Siglip(siglip) => VisionInput::Square {
            image_size: siglip.image_size,
            n_soft_tokens: siglip.soft_tokens,
        },
        VisionConfig::Gemma4(tower) => VisionInput::Patches {
            patch_size: tower.patch_size,
            pooling: tower.pooling,
            layout: PatchLayout::Patches,
        },
        VisionConfig::Unified(embedder) => VisionInput::Patches {
            patch_size: embedder.patch_size,
            pooling: embedder.pooling,
            layout: PatchLayout::Cells,
        },
    });
    let audio = config.audio.as_ref().map(|audio| match audio {
        AudioConfig::Conformer(_) => AudioInput::Mel,
        AudioConfig::Unified(embedder) => AudioInput::RawFrames {
            frame_len: embedder.frame_len,
        },
    });
    Ok(MediaProcessor::new(vision, audio, options)?)
}
