//! `carat debug preprocess`: what a model's encoders get for given files, into a safetensors file.
//!
//! The names are those of the reference's processors, and so is the padding: images of one call have the same
//! number of rows, filled up with zeros at position -1; sounds the same number of frames, masked where filled up.
//!
//! | tensor | shape | of |
//! |---|---|---|
//! | `pixel_values` | `[images and crops, 3, side, side]` | Gemma 3 |
//! | `num_crops` | `[images]` | Gemma 3 |
//! | `pixel_values`, `image_position_ids` | `[images, rows, values]`, `[images, rows, 2]` | Gemma 4 |
//! | `num_soft_tokens_per_image` | `[images]` | Gemma 4 |
//! | `input_features`, `input_features_mask` | `[sounds, frames, values]`, `[sounds, frames]` | Gemma 4 |
//! | `pixel_values_videos`, `video_position_ids` | as of images, for all frames | Gemma 4 |
//! | `num_frames_per_video` | `[videos]` | both |

use std::path::{Path, PathBuf};

use anyhow::Result;
use carat_format::{SafeDType, SafetensorsBuilder, TensorWriter, read_limited};
use carat_media::{
    EncoderInput, FrameSampling, MediaOptions, MediaProcessor, MelFeatures, PanAndScan, Prepared, RawFrames,
    TokenBudget, read_audio, read_image,
};
use carat_model::{AudioConfig, Checkpoint, MediaConfig, MediaSource, VisionConfig};
use clap::Args;

use crate::failure::Hinted;
use crate::interrupt::Interrupt;
use crate::media_args::video_tools;
use crate::model_source::obtain;
use crate::settings::Settings;

/// Largest `config.json` that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Write what a model's encoders get for images, sounds and videos to a safetensors file
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat debug preprocess ./model --image cat.jpg --out cat.safetensors\n  carat debug preprocess \
                  ./model --image a.png --image b.png --budget 1120 --out two.safetensors\n  carat debug preprocess ./model \
                  --audio speech.mp3 --out speech.safetensors\n\nA folder with a config.json alone is enough."
)]
pub(crate) struct Preprocess {
    /// The model
    model: String,
    /// An image; may be repeated
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// A sound; may be repeated
    #[arg(long, value_name = "FILE")]
    audio: Vec<PathBuf>,
    /// A video, an animation or a folder of frames; may be repeated
    #[arg(long, value_name = "FILE")]
    video: Vec<PathBuf>,
    /// File to write
    #[arg(long, value_name = "OUT.safetensors")]
    out: PathBuf,
    /// Soft tokens of an image at most (Gemma 4): 70, 140, 280, 560 or 1120
    #[arg(long, value_name = "N", default_value_t = 280)]
    budget: u32,
    /// Add crops of elongated images (Gemma 3)
    #[arg(long)]
    pan_and_scan: bool,
    /// Frames to take from a video
    #[arg(long, value_name = "N", default_value_t = 32)]
    frames: usize,
}

impl Preprocess {
    pub(super) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        if self.image.is_empty() && self.audio.is_empty() && self.video.is_empty() {
            return Err(Hinted::wrong_arguments(
                "there is nothing to process",
                "give at least one --image, --audio or --video",
            )
            .into());
        }
        let config = media_config(&self.model, settings, interrupt)?;
        let options = MediaOptions {
            pan_and_scan: self.pan_and_scan.then(PanAndScan::default),
            image_budget: TokenBudget::new(self.budget)?,
            sampling: FrameSampling::count(self.frames)?,
            ..MediaOptions::default()
        };
        let processor = carat_prompt::processor(&config, options)?;
        let mut tensors = Tensors::default();
        self.images(&processor, &config, &mut tensors)?;
        self.sounds(&processor, &config, &mut tensors)?;
        self.videos(&processor, &config, settings, &mut tensors)?;
        tensors.write(&self.out)
    }

    fn images(&self, processor: &MediaProcessor, config: &MediaConfig, tensors: &mut Tensors) -> Result<()> {
        let mut images = Vec::new();
        for path in &self.image {
            images.push(processor.image(&read_image(path)?)?);
        }
        if images.is_empty() {
            return Ok(());
        }
        let budget = self.budget as usize;
        tensors.pictures(config, &images, budget, ["pixel_values", "image_position_ids"]);
        match &config.vision {
            Some(VisionConfig::Siglip(_)) => {
                let n_crops = images.iter().map(|image| image.inputs.len() - 1);
                tensors.counts("num_crops", n_crops);
            }
            _ => {
                let n_soft_tokens = images.iter().map(|image| image.inputs[0].n_soft_tokens);
                tensors.counts("num_soft_tokens_per_image", n_soft_tokens);
            }
        }
        Ok(())
    }

    fn sounds(&self, processor: &MediaProcessor, config: &MediaConfig, tensors: &mut Tensors) -> Result<()> {
        let mut sounds = Vec::new();
        for path in &self.audio {
            let clip = read_audio(path)?;
            // A model that does not hear says so here.
            processor.audio(&clip)?;
            sounds.push(match &config.audio {
                Some(AudioConfig::Unified(embedder)) => {
                    let frames = RawFrames::new(&clip, embedder.frame_len)?;
                    (frames.values, vec![true; frames.n_soft_tokens])
                }
                _ => {
                    let features = MelFeatures::new(&clip)?;
                    (features.values, features.mask)
                }
            });
        }
        let n_frames = sounds.iter().map(|(_, mask)| mask.len()).max().unwrap_or(0);
        let Some(width) = sounds
            .first()
            .map(|(values, mask)| values.len() / mask.len().max(1))
        else {
            return Ok(());
        };
        let (mut values, mut masks) = (Vec::new(), Vec::new());
        for (i, (sound, mask)) in sounds.iter().enumerate() {
            values.extend_from_slice(sound);
            values.resize((i + 1) * n_frames * width, 0.0);
            masks.extend(mask.iter().map(|real| u8::from(*real)));
            masks.resize((i + 1) * n_frames, 0);
        }
        let n = sounds.len();
        tensors.floats("input_features", &[n, n_frames, width], values);
        tensors.add("input_features_mask", SafeDType::U8, &[n, n_frames], masks);
        Ok(())
    }

    fn videos(
        &self,
        processor: &MediaProcessor,
        config: &MediaConfig,
        settings: &Settings,
        tensors: &mut Tensors,
    ) -> Result<()> {
        let tools = video_tools(settings);
        let mut videos = Vec::new();
        for path in &self.video {
            videos.push(processor.video(path, tools.as_ref())?);
        }
        if videos.is_empty() {
            return Ok(());
        }
        let budget = TokenBudget::VIDEO_FRAME.tokens();
        tensors.pictures(
            config,
            &videos,
            budget,
            ["pixel_values_videos", "video_position_ids"],
        );
        tensors.counts(
            "num_frames_per_video",
            videos.iter().map(|video| video.inputs.len()),
        );
        Ok(())
    }
}

/// What `model` sees and hears: of a folder by its configuration alone, of a GGUF file by the file beside it.
fn media_config(model: &str, settings: &Settings, interrupt: &Interrupt) -> Result<MediaConfig> {
    // Looked at first: a folder without weights is no model to the hub.
    let given = Path::new(model);
    let path = if given.join("config.json").is_file() {
        given.to_owned()
    } else {
        obtain(model, settings, interrupt)?.path
    };
    if path.is_dir() {
        let json = path.join("config.json");
        return Ok(MediaConfig::from_config_json(
            &read_limited(&json, MAX_CONFIG_BYTES)?,
            &json,
        )?);
    }
    let checkpoint = Checkpoint::open(&path)?;
    let source = MediaSource::find(&checkpoint)?;
    Ok(source.map(|source| source.config().clone()).unwrap_or_default())
}

/// What is written, in order.
#[derive(Default)]
struct Tensors(Vec<Tensor>);

struct Tensor {
    name: &'static str,
    dtype: SafeDType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensors {
    fn add(&mut self, name: &'static str, dtype: SafeDType, shape: &[usize], bytes: Vec<u8>) {
        self.0.push(Tensor {
            name,
            dtype,
            shape: shape.to_vec(),
            bytes,
        });
    }

    fn floats(&mut self, name: &'static str, shape: &[usize], values: Vec<f32>) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.add(name, SafeDType::F32, shape, bytes);
    }

    fn integers(&mut self, name: &'static str, shape: &[usize], values: impl Iterator<Item = i64>) {
        let bytes = values.flat_map(i64::to_le_bytes).collect();
        self.add(name, SafeDType::I64, shape, bytes);
    }

    fn counts(&mut self, name: &'static str, counts: impl ExactSizeIterator<Item = usize>) {
        let shape = [counts.len()];
        self.integers(name, &shape, counts.map(|count| count as i64));
    }

    /// Squares one after the other (Gemma 3), or rows filled up to the budget with their positions (Gemma 4).
    fn pictures(
        &mut self,
        config: &MediaConfig,
        prepared: &[Prepared],
        budget: usize,
        names: [&'static str; 2],
    ) {
        let inputs: Vec<&EncoderInput> = prepared.iter().flat_map(|one| &one.inputs).collect();
        let (max_rows, side) = match &config.vision {
            Some(VisionConfig::Gemma4(tower)) => (budget * tower.pooling.pow(2), tower.patch_size),
            Some(VisionConfig::Unified(embedder)) => (budget, embedder.patch_size * embedder.pooling),
            Some(VisionConfig::Siglip(siglip)) => {
                let side = siglip.image_size;
                let values = inputs
                    .iter()
                    .flat_map(|input| input.values.iter().copied())
                    .collect();
                return self.floats(names[0], &[inputs.len(), 3, side, side], values);
            }
            None => return,
        };
        let width = 3 * side * side;
        let (mut values, mut positions) = (Vec::new(), Vec::new());
        for (i, input) in inputs.iter().enumerate() {
            values.extend_from_slice(&input.values);
            values.resize((i + 1) * max_rows * width, 0.0);
            positions.extend_from_slice(&input.positions);
            positions.resize((i + 1) * max_rows, [-1, -1]);
        }
        self.floats(names[0], &[inputs.len(), max_rows, width], values);
        let positions = positions.into_iter().flatten().map(i64::from);
        self.integers(names[1], &[inputs.len(), max_rows, 2], positions);
    }

    fn write(&self, out: &Path) -> Result<()> {
        // The widest elements first, so that all lie aligned.
        let mut order: Vec<&Tensor> = self.0.iter().collect();
        order.sort_by_key(|tensor| match tensor.dtype {
            SafeDType::I64 => 0,
            SafeDType::F32 => 1,
            _ => 2,
        });
        let mut builder = SafetensorsBuilder::new();
        for tensor in &order {
            builder.tensor(tensor.name, tensor.dtype, &tensor.shape);
        }
        let mut writer: TensorWriter = builder.create(out)?;
        for tensor in &order {
            writer.begin(tensor.name)?;
            writer.append(&tensor.bytes)?;
        }
        Ok(writer.finish()?)
    }
}
