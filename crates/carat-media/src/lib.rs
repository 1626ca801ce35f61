//! Images, audio and video, from files or bytes to exactly what the reference's processors give the models.
//!
//! ```text
//! file or bytes ─► RgbImage ─┬─► Gemma3ImageProcessor ─► pixel_values [n, 3, S, S]
//!                            └─► Gemma4ImageProcessor ─► patches [n, values] and their positions
//! file or bytes ─► Clip ─────┬─► RawFrames   [n, 640]       (12B unified)
//!                            └─► MelFeatures [n, 128], mask (E2B, E4B)
//! video, animation, folder ──► VideoFrame by VideoFrame, sampled as the reference samples
//! ```
//!
//! [`MediaProcessor`] does all of this for one model, and gives the pieces of the prompt beside: how many
//! placeholder tokens an input takes, and the text that stands around them, is data too ([`PromptPiece`]). The
//! crate knows no weights and no tokenizer.
//!
//! Everything that comes from outside is bounded before memory is taken for it; the limits are in [`limits`].
//! What cannot be used is refused with one sentence that names the file ([`Error`]).

#![forbid(unsafe_code)]

mod audio;
mod content_hash;
mod error;
mod image;
mod input;
pub mod limits;
mod processor;
mod prompt;
mod video;

pub use audio::{Clip, MelFeatures, RawFrames, SAMPLE_RATE_HZ, decode_audio, read_audio};
pub use content_hash::ContentHash;
pub use error::{Error, Result};
pub use image::{
    Gemma3ImageProcessor, Gemma3Images, Gemma4ImageProcessor, Gemma4Patches, PanAndScan, PatchLayout,
    RgbImage, TokenBudget, decode_image, read_image,
};
pub use processor::{AudioInput, EncoderInput, MediaOptions, MediaProcessor, Prepared, VisionInput};
pub use prompt::{
    MediaKind, PromptPiece, audio_pieces, gemma3_image_pieces, gemma4_image_pieces, gemma4_video_pieces,
};
pub use video::{FrameSampling, VideoFrame, VideoTools, decode_video, read_video};
