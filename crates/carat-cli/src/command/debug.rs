//! `carat debug`: `preprocess` in a file of its own, and `logits`: what the model computes for given ids, into a safetensors file.
//!
//! The interface is fixed, since scripts compare other implementations with it. The file holds `logits`
//! `[n, vocab]` f32 for exactly the given ids (with `--last` of the last one alone), and `hidden.N` `[n, d_model]` f32 for the residual streams asked
//! for. Numbers are those of transformers' `hidden_states`: 0 is the scaled embeddings, i what layer i (counted
//! from 1) leaves, and the number of layers, like `last`, what the final norm makes of the last layer's output.

mod preprocess;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use carat_format::{SafeDType, SafetensorsBuilder, TensorWriter, read_limited};
use carat_model::{
    EncoderPrecision, KvCache, LanguageModel, LogitRows, MediaSource, MediaSpan, Model, Observed, Precision,
    Segment,
};
use clap::{Args, Subcommand};

use crate::compute_args::ComputeArgs;
use crate::failure::{Hinted, in_one_line};
use crate::interrupt::Interrupt;
use crate::media_tensors::{EncodedSpan, MediaTensors, passes};
use crate::model_source::ModelSource;
use crate::settings::Settings;
use crate::text_input::parse_ids;

/// Largest file of ids, in bytes.
const MAX_IDS_BYTES: u64 = 64 << 20;

/// Look inside a model
#[derive(Debug, Args)]
pub(crate) struct Debug {
    #[command(subcommand)]
    command: DebugCommand,
}

#[derive(Debug, Subcommand)]
enum DebugCommand {
    Logits(Logits),
    Preprocess(preprocess::Preprocess),
}

impl Debug {
    pub(crate) fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        match self.command {
            DebugCommand::Logits(logits) => logits.run(settings, interrupt),
            DebugCommand::Preprocess(preprocess) => preprocess.run(settings, interrupt),
        }
        .map_err(in_one_line)
    }
}

/// Write the logits, and residual streams, of given token ids to a safetensors file
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  carat debug logits ./model --ids ids.json --out logits.safetensors\n  carat debug logits \
                        gemma3:270m --ids ids.json --out x.safetensors --hidden 0,5,last --dtype f32\n  carat debug logits \
                        ./model --ids ids.json --out x.safetensors --step-by-step --isa avx2 --threads 1\n\nIds are a JSON \
                        array of integers; no token is added. A folder without a tokenizer is enough."
)]
pub(crate) struct Logits {
    /// The model
    model: String,
    /// JSON array of token ids
    #[arg(long, value_name = "FILE.json")]
    ids: PathBuf,
    /// File to write
    #[arg(long, value_name = "OUT.safetensors")]
    out: PathBuf,
    /// Decode token by token through the cache instead of one prefill
    #[arg(long)]
    step_by_step: bool,
    /// Cut the prefill into chunks of N tokens [default: one chunk, at most 512]
    #[arg(long, value_name = "N", conflicts_with = "step_by_step", value_parser = clap::value_parser!(u32).range(1..))]
    chunk: Option<u32>,
    /// Images and sounds of the prompt, as the reference's processors give them (pixel_values, image_position_ids,
    /// input_features, input_features_mask, mm_token_type_ids or token_type_ids); may be given several times
    #[arg(long, value_name = "FILE.safetensors")]
    media: Vec<PathBuf>,
    /// The GGUF model's encoders for images and audio [default: a file with mmproj in its name beside the model]
    #[arg(long, value_name = "FILE.gguf", requires = "media")]
    mmproj: Option<PathBuf>,
    /// Only the logits of the last token: `logits` is [1, vocab]
    #[arg(long, conflicts_with = "hidden")]
    last: bool,
    /// Residual streams to write: numbers as in transformers' hidden_states, or `last`
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    hidden: Vec<Hidden>,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// A residual stream by number or as the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hidden {
    Number(usize),
    Last,
}

impl std::str::FromStr for Hidden {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "last" => Ok(Self::Last),
            number => number
                .parse()
                .map(Self::Number)
                .map_err(|_| format!("`{text}` is neither a number nor `last`")),
        }
    }
}

/// A residual stream to be written.
struct Stream {
    name: String,
    index: usize,
    rows: Vec<f32>,
}

impl Logits {
    fn run(self, settings: &Settings, interrupt: &Interrupt) -> Result<()> {
        let ids = self.read_ids()?;
        let source = ModelSource::open(&self.model, settings, interrupt)?;
        let mut options = self.compute.options(settings)?;
        let chunk = if self.step_by_step {
            1
        } else {
            self.chunk.map_or(512, |n| n as usize)
        };
        options.max_batch_tokens = chunk.min(ids.len());
        let mut model = Model::from_checkpoint(&source.checkpoint, options)?;
        let mut streams = self.streams(model.config().layers.len())?;
        let spans = self.spans(&source, &model, ids.len())?;
        // Made first: ids beyond the context are told before the output is touched.
        let mut cache = model.new_cache(ids.len())?;
        let n_rows = if self.last { 1 } else { ids.len() };
        let mut writer = declare(&self.out, n_rows, &model, &streams)?;
        writer.begin("logits")?;
        let mut logits = Vec::new();
        for pass in passes(ids.len(), chunk, &spans) {
            let media: Vec<MediaSpan<'_>> = spans.iter().filter_map(|span| span.within(&pass)).collect();
            let rows = match (self.last, pass.end == ids.len()) {
                (false, _) => LogitRows::All,
                (true, true) => LogitRows::Last,
                (true, false) => LogitRows::None,
            };
            let mut batch = [Segment {
                tokens: &ids[pass],
                media: &media,
                cache: &mut cache,
                logits: rows,
            }];
            run_pass(&mut model, &mut batch, &mut logits, &mut streams)?;
            if rows != LogitRows::None {
                append(&mut writer, &logits)?;
            }
        }
        for stream in &streams {
            writer.begin(&stream.name)?;
            append(&mut writer, &stream.rows)?;
        }
        Ok(writer.finish()?)
    }

    fn read_ids(&self) -> Result<Vec<u32>> {
        let text = String::from_utf8(read_limited(&self.ids, MAX_IDS_BYTES)?);
        let text = text.with_context(|| format!("`{}` is not UTF-8 text", self.ids.display()))?;
        let ids = parse_ids(&text, &format!("`{}`", self.ids.display()))?;
        if ids.is_empty() {
            return Err(Hinted::new(
                format!("`{}` holds no ids", self.ids.display()),
                "give at least one",
            )
            .into());
        }
        Ok(ids)
    }

    /// What the media files hold, through the model's encoders.
    fn spans(&self, source: &ModelSource, model: &Model, n_tokens: usize) -> Result<Vec<EncodedSpan>> {
        if self.media.is_empty() {
            return Ok(Vec::new());
        }
        let tensors = MediaTensors::open(&self.media)?;
        let towers = match &self.mmproj {
            Some(path) => Some(MediaSource::open(&source.checkpoint, path)?),
            None => MediaSource::find(&source.checkpoint)?,
        };
        let Some(towers) = towers else {
            return Err(Hinted::new(
                format!("`{}` has no encoders for images or audio", self.model),
                "for a GGUF model give them with --mmproj",
            )
            .into());
        };
        // The reference's arithmetic in the towers where it is asked for in the text model.
        let precision = match model.options().precision {
            Some(Precision::F32) => EncoderPrecision::F32,
            _ => EncoderPrecision::Half,
        };
        tensors.encode(&mut model.media_encoder(&towers, precision)?, n_tokens)
    }

    fn streams(&self, n_layers: usize) -> Result<Vec<Stream>> {
        let mut streams: Vec<Stream> = Vec::new();
        for hidden in &self.hidden {
            let (name, index) = match *hidden {
                Hidden::Last => ("hidden.last".to_string(), n_layers),
                Hidden::Number(i) if i <= n_layers => (format!("hidden.{i}"), i),
                Hidden::Number(i) => {
                    return Err(Hinted::wrong_arguments(
                        format!("there is no hidden.{i}: the model has {n_layers} layers"),
                        format!("give numbers from 0 to {n_layers}, or `last`"),
                    )
                    .into());
                }
            };
            if streams.iter().all(|stream| stream.name != name) {
                streams.push(Stream {
                    name,
                    index,
                    rows: Vec::new(),
                });
            }
        }
        Ok(streams)
    }
}

fn declare(out: &Path, n: usize, model: &Model, streams: &[Stream]) -> Result<TensorWriter> {
    let mut builder = SafetensorsBuilder::new();
    builder.tensor("logits", SafeDType::F32, &[n, model.vocab_size()]);
    for stream in streams {
        builder.tensor(&stream.name, SafeDType::F32, &[n, model.config().d_model]);
    }
    Ok(builder.create(out)?)
}

fn run_pass(
    model: &mut Model,
    batch: &mut [Segment<'_, KvCache>],
    logits: &mut Vec<f32>,
    streams: &mut [Stream],
) -> Result<()> {
    model.forward_observed(batch, logits, &mut |what, rows| {
        for stream in streams
            .iter_mut()
            .filter(|stream| what == Observed::Hidden(stream.index))
        {
            stream.rows.extend_from_slice(rows);
        }
    })?;
    Ok(())
}

/// Appends numbers little endian, some at a time.
fn append(writer: &mut TensorWriter, values: &[f32]) -> Result<()> {
    let mut bytes = Vec::new();
    for part in values.chunks(1 << 16) {
        bytes.clear();
        bytes.extend(part.iter().flat_map(|value| value.to_le_bytes()));
        writer.append(&bytes)?;
    }
    Ok(())
}
