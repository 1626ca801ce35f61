//! One model's way of seeing and hearing: from decoded inputs to what its encoders take and its prompts hold.
//!
//! A caller makes a [`MediaProcessor`] from the model's settings once. For each image, clip or video it gets
//! [`Prepared`]: pieces of the prompt, and for each [`PromptPiece::Media`] among them, in order, one
//! [`EncoderInput`].

use std::path::Path;

use crate::audio::{Clip, MelFeatures, RawFrames};
use crate::content_hash::ContentHash;
use crate::error::{Error, Result};
use crate::image::{
    Gemma3ImageProcessor, Gemma4ImageProcessor, PanAndScan, PatchLayout, RgbImage, TokenBudget,
};
use crate::input;
use crate::limits::MAX_PREPARED_VALUES;
use crate::prompt::{self, PromptPiece};
use crate::video::{FrameSampling, VideoFrame, VideoTools, decode_video, read_video};

/// What a model's vision takes; sizes are those of its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VisionInput {
    /// Gemma 3: squares of `image_size` pixels a side.
    Square {
        /// Pixels a side.
        image_size: usize,
        /// Soft tokens of each square.
        n_soft_tokens: usize,
    },
    /// Gemma 4: patches or cells of an image of any shape.
    Patches {
        /// Pixels a side of a patch.
        patch_size: usize,
        /// Patches a side of a soft token.
        pooling: usize,
        /// What a row holds.
        layout: PatchLayout,
    },
}

/// What a model's hearing takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AudioInput {
    /// Log-mel features (E2B, E4B).
    Mel,
    /// Rows of samples (12B unified).
    RawFrames {
        /// Samples of a row.
        frame_len: usize,
    },
}

/// What the user may choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MediaOptions {
    /// Gemma 3: crops of elongated images.
    pub pan_and_scan: Option<PanAndScan>,
    /// Gemma 4: soft tokens of an image.
    pub image_budget: TokenBudget,
    /// Gemma 4: soft tokens of a video's frame.
    pub frame_budget: TokenBudget,
    /// Which frames are taken from a video.
    pub sampling: FrameSampling,
}

impl Default for MediaOptions {
    /// The reference's: no crops, 280 soft tokens, 32 frames of 70.
    fn default() -> MediaOptions {
        MediaOptions {
            pan_and_scan: None,
            image_budget: TokenBudget::IMAGE,
            frame_budget: TokenBudget::VIDEO_FRAME,
            sampling: FrameSampling::default(),
        }
    }
}

/// One image or clip as the encoder takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderInput {
    /// Pixels or features: see [`Gemma3Images`](crate::Gemma3Images), [`Gemma4Patches`](crate::Gemma4Patches),
    /// [`MelFeatures`] (its real frames alone) and [`RawFrames`].
    pub values: Vec<f32>,
    /// Gemma 4's images: column and row of each row of values. Empty otherwise.
    pub positions: Vec<[i32; 2]>,
    /// Rows that the encoder makes of it.
    pub n_soft_tokens: usize,
    /// Equal for inputs that are equal to the encoder.
    pub content_hash: ContentHash,
}

/// What stands for one input in a prompt, and what is encoded for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// Text and runs of placeholders.
    pub pieces: Vec<PromptPiece>,
    /// One for each run of placeholders, in order.
    pub inputs: Vec<EncoderInput>,
}

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MediaProcessor {
    vision: Option<Vision>,
    audio: Option<AudioInput>,
    options: MediaOptions,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Vision {
    Square {
        processor: Gemma3ImageProcessor,
        /// For frames of videos, which get no crops.
        whole: Gemma3ImageProcessor,
        n_soft_tokens: usize,
    },
    Patches(Gemma4ImageProcessor),
}

impl MediaProcessor {
    /// For a model with these modalities.
    ///
    /// # Errors
    /// [`Error::Setting`] for sizes that cannot be.
    pub fn new(
        vision: Option<VisionInput>,
        audio: Option<AudioInput>,
        options: MediaOptions,
    ) -> Result<MediaProcessor> {
        let vision = match vision {
            Some(VisionInput::Square {
                image_size,
                n_soft_tokens,
            }) => Some(Vision::Square {
                processor: Gemma3ImageProcessor::new(image_size, options.pan_and_scan)?,
                whole: Gemma3ImageProcessor::new(image_size, None)?,
                n_soft_tokens,
            }),
            Some(VisionInput::Patches {
                patch_size,
                pooling,
                layout,
            }) => Some(Vision::Patches(Gemma4ImageProcessor::new(
                patch_size, pooling, layout,
            )?)),
            None => None,
        };
        Ok(MediaProcessor {
            vision,
            audio,
            options,
        })
    }

    /// Whether images and videos are taken.
    #[must_use]
    pub fn sees(&self) -> bool {
        self.vision.is_some()
    }

    /// Whether sounds are taken.
    #[must_use]
    pub fn hears(&self) -> bool {
        self.audio.is_some()
    }

    /// An image.
    ///
    /// # Errors
    /// [`Error::NoModality`] for a model that does not see.
    pub fn image(&self, image: &RgbImage) -> Result<Prepared> {
        let inputs = self.image_inputs(image, self.options.image_budget, Crops::AsChosen)?;
        let pieces = match self.vision {
            Some(Vision::Square { n_soft_tokens, .. }) => {
                prompt::gemma3_image_pieces(inputs.len() - 1, n_soft_tokens)
            }
            _ => prompt::gemma4_image_pieces(inputs.iter().map(|input| input.n_soft_tokens).sum()),
        };
        Ok(Prepared { pieces, inputs })
    }

    /// A clip of sound.
    ///
    /// # Errors
    /// [`Error::NoModality`] for a model that does not hear, [`Error::AudioTooShort`].
    pub fn audio(&self, clip: &Clip) -> Result<Prepared> {
        let (values, n_soft_tokens) = match self.audio {
            Some(AudioInput::Mel) => {
                let features = MelFeatures::new(clip)?;
                let n_real = features.mask.iter().filter(|real| **real).count();
                let mut values = features.values;
                values.truncate(n_real * MelFeatures::WIDTH);
                (values, features.n_soft_tokens)
            }
            Some(AudioInput::RawFrames { frame_len }) => {
                let frames = RawFrames::new(clip, frame_len)?;
                (frames.values, frames.n_soft_tokens)
            }
            None => return Err(Error::NoModality { what: "sounds" }),
        };
        let input = EncoderInput {
            values,
            positions: Vec::new(),
            n_soft_tokens,
            content_hash: clip.content_hash(),
        };
        Ok(Prepared {
            pieces: prompt::audio_pieces(n_soft_tokens),
            inputs: vec![input],
        })
    }

    /// The frames of a video, as [`read_video`] gives them. Gemma 3 gets them as images.
    ///
    /// # Errors
    /// [`Error::NoModality`] for a model that does not see, [`Error::FrameSampling`] for more frames than fit 1 GiB,
    /// and those of [`read_video`].
    pub fn video(&self, path: &Path, tools: Option<&VideoTools>) -> Result<Prepared> {
        let read = |take: Take<'_>| read_video(path, self.options.sampling, tools, take);
        self.frames(&input::display(path), &read)
    }

    /// [`MediaProcessor::video`] for the bytes of a file that somebody sent, which errors call `name`, as
    /// [`decode_video`] reads it.
    ///
    /// # Errors
    /// As [`MediaProcessor::video`].
    pub fn video_bytes(&self, bytes: &[u8], name: &str, tools: Option<&VideoTools>) -> Result<Prepared> {
        let read = |take: Take<'_>| decode_video(bytes, name, self.options.sampling, tools, take);
        self.frames(name, &read)
    }

    /// The frames that `read` gives of the video called `name`.
    fn frames(&self, name: &str, read: &dyn Fn(Take<'_>) -> Result<usize>) -> Result<Prepared> {
        if !self.sees() {
            return Err(Error::NoModality { what: "videos" });
        }
        let mut inputs = Vec::new();
        let mut times = Vec::new();
        let mut n_values = 0;
        read(&mut |frame| {
            let frame_inputs = self.image_inputs(&frame.image, self.options.frame_budget, Crops::Never)?;
            for input in frame_inputs {
                n_values += input.values.len();
                times.push((frame.seconds, input.n_soft_tokens));
                inputs.push(input);
            }
            if n_values > MAX_PREPARED_VALUES {
                return Err(Error::FrameSampling(format!(
                    "the frames taken from `{name}` need more than 1 GiB; take fewer frames or a smaller token budget"
                )));
            }
            Ok(())
        })?;
        let pieces = match self.vision {
            Some(Vision::Square { n_soft_tokens, .. }) => {
                let images = times
                    .iter()
                    .map(|_| prompt::gemma3_image_pieces(0, n_soft_tokens));
                images.flatten().collect()
            }
            _ => prompt::gemma4_video_pieces(&times),
        };
        Ok(Prepared { pieces, inputs })
    }

    fn image_inputs(&self, image: &RgbImage, budget: TokenBudget, crops: Crops) -> Result<Vec<EncoderInput>> {
        match &self.vision {
            Some(Vision::Square {
                processor,
                whole,
                n_soft_tokens,
            }) => {
                let images = match crops {
                    Crops::AsChosen => processor.process(image),
                    Crops::Never => whole.process(image),
                };
                let one = 3 * images.image_size * images.image_size;
                let parts = images.pixel_values.chunks_exact(one).zip(images.content_hashes);
                Ok(parts
                    .map(|(values, content_hash)| EncoderInput {
                        values: values.to_vec(),
                        positions: Vec::new(),
                        n_soft_tokens: *n_soft_tokens,
                        content_hash,
                    })
                    .collect())
            }
            Some(Vision::Patches(processor)) => {
                let patches = processor.process(image, budget);
                Ok(vec![EncoderInput {
                    values: patches.pixel_values,
                    positions: patches.positions,
                    n_soft_tokens: patches.n_soft_tokens,
                    content_hash: patches.content_hash,
                }])
            }
            None => Err(Error::NoModality { what: "images" }),
        }
    }
}

/// Who takes the frames of a video.
type Take<'a> = &'a mut dyn FnMut(VideoFrame) -> Result<()>;

/// Whether pan-and-scan applies.
#[derive(Clone, Copy)]
enum Crops {
    AsChosen,
    Never,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::MediaKind;

    fn runs(prepared: &Prepared) -> Vec<(MediaKind, usize)> {
        let run = |piece: &PromptPiece| match piece {
            PromptPiece::Media { kind, n_soft_tokens } => Some((*kind, *n_soft_tokens)),
            PromptPiece::Text(_) => None,
        };
        prepared.pieces.iter().filter_map(run).collect()
    }

    fn grey(width: usize, height: usize) -> RgbImage {
        RgbImage::from_parts(width, height, vec![99; width * height * 3])
    }

    #[test]
    fn each_run_of_placeholders_has_its_input() {
        let square = VisionInput::Square {
            image_size: 28,
            n_soft_tokens: 4,
        };
        let options = MediaOptions {
            pan_and_scan: Some(PanAndScan::default()),
            ..MediaOptions::default()
        };
        let processor = MediaProcessor::new(Some(square), None, options).unwrap();
        let prepared = processor.image(&grey(600, 300)).unwrap();
        assert_eq!(runs(&prepared), [(MediaKind::Image, 4); 3]);
        assert_eq!(prepared.inputs.len(), 3);
        assert_eq!(prepared.inputs[1].values.len(), 3 * 28 * 28);

        let patches = VisionInput::Patches {
            patch_size: 16,
            pooling: 3,
            layout: PatchLayout::Patches,
        };
        let frames = AudioInput::RawFrames { frame_len: 640 };
        let processor = MediaProcessor::new(Some(patches), Some(frames), MediaOptions::default()).unwrap();
        let prepared = processor.image(&grey(50, 50)).unwrap();
        assert_eq!(runs(&prepared), [(MediaKind::Image, 256)]);
        assert_eq!(prepared.inputs[0].positions.len(), 256 * 9);
        let clip = Clip::new(vec![0.1; 1000], 16_000, "a").unwrap();
        assert_eq!(runs(&processor.audio(&clip).unwrap()), [(MediaKind::Audio, 2)]);
    }

    #[test]
    fn features_are_those_of_real_frames() {
        let processor = MediaProcessor::new(None, Some(AudioInput::Mel), MediaOptions::default()).unwrap();
        for n in [161, 300, 1000, 7777] {
            let clip = Clip::new(vec![0.1; n], 16_000, "a").unwrap();
            let prepared = processor.audio(&clip).unwrap();
            let n_frames = prepared.inputs[0].values.len() / MelFeatures::WIDTH;
            // The encoder halves the frames twice, rounding up.
            assert_eq!(prepared.inputs[0].n_soft_tokens, n_frames.div_ceil(4), "{n}");
        }
    }

    #[test]
    fn models_without_a_sense_refuse() {
        let blind = MediaProcessor::new(None, None, MediaOptions::default()).unwrap();
        let message = blind.image(&grey(1, 1)).unwrap_err().to_string();
        assert!(message.contains("does not take images"), "{message}");
        let clip = Clip::new(vec![0.1; 1000], 16_000, "a").unwrap();
        assert!(blind.audio(&clip).is_err() && blind.video(Path::new("x"), None).is_err());
        assert!(!blind.sees() && !blind.hears());
    }
}
