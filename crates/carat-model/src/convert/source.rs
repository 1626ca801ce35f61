//! The model to convert, in one shape whichever files it comes from: GGUF keys and GGUF tensors.
//!
//! Of a GGUF file everything is kept, except keys that describe the file itself. Of a Hugging Face folder the
//! text model is taken: names are translated, norm weights of Gemma 3 get the one added that GGUF includes, rows
//! of the embedding beyond the vocabulary are left out, and the towers for images and sounds are not converted.

use std::path::Path;

use carat_format::{Gguf, Safetensors, TensorBytes, TensorView, Value};
use carat_kernels::DType;

use super::{ConvertError, kept, metadata};
use crate::checkpoint::{Checkpoint, Container};
use crate::config::ROPE_FACTORS;
use crate::{Config, Error, Family, gguf_name, weights};

/// Keys that say how a file was made and not what the model is; the new file gets its own or none.
const KEYS_OF_THE_FILE: [&str; 4] = [
    "split.",
    "quantize.",
    "general.file_type",
    "general.quantization_version",
];

/// What is to be written.
pub(super) struct Source {
    pub(super) metadata: Vec<(String, Value)>,
    pub(super) tensors: Vec<SourceTensor>,
    /// Sentences for the user.
    pub(super) notes: Vec<String>,
}

/// A tensor of the source, still in its files.
pub(super) struct SourceTensor {
    /// GGUF name.
    pub(super) name: String,
    /// Outermost first; may have fewer rows than the file holds.
    pub(super) shape: Vec<usize>,
    pub(super) dtype: DType,
    /// At least what the shape needs.
    pub(super) stored: TensorBytes,
    /// Added to every value.
    pub(super) offset: f32,
}

impl SourceTensor {
    fn new(name: String, view: &TensorView<'_>) -> SourceTensor {
        SourceTensor {
            name,
            shape: view.shape.to_vec(),
            dtype: view.dtype,
            stored: view.hold(),
            offset: 0.0,
        }
    }

    /// Length of a row.
    pub(super) fn n_cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The bytes of all values.
    pub(super) fn bytes(&self) -> &[u8] {
        let needed = self.dtype.bytes_for(self.shape.iter().product()).unwrap_or(0);
        &self.stored[..needed.min(self.stored.len())]
    }
}

impl Source {
    /// Opens a GGUF file of any Gemma, or a Hugging Face folder.
    pub(super) fn open(path: &Path) -> Result<Source, ConvertError> {
        if !path.is_dir() {
            return from_gguf(&Gguf::open(path)?, path);
        }
        let checkpoint = Checkpoint::open(path)?;
        match checkpoint.container() {
            Container::Gguf(gguf) => from_gguf(gguf, path),
            Container::HuggingFace(tensors) => from_folder(&checkpoint, tensors),
        }
    }
}

fn from_gguf(gguf: &Gguf, path: &Path) -> Result<Source, ConvertError> {
    let architecture = gguf.metadata().str("general.architecture")?.unwrap_or("(none)");
    if !architecture.starts_with("gemma") {
        let architecture = architecture.to_owned();
        return Err(Error::Architecture {
            path: path.to_owned(),
            architecture,
        }
        .into());
    }
    let is_kept = |key: &str| !KEYS_OF_THE_FILE.iter().any(|of_file| key.starts_with(of_file));
    let keys = gguf.metadata().iter().filter(|(key, _)| is_kept(key));
    let mut tensors = Vec::new();
    for view in gguf.tensors() {
        let view = view?;
        tensors.push(SourceTensor::new(view.name.to_owned(), &view));
    }
    Ok(Source {
        metadata: keys.map(|(key, value)| (key.to_owned(), value.clone())).collect(),
        tensors,
        notes: Vec::new(),
    })
}

fn from_folder(checkpoint: &Checkpoint, files: &Safetensors) -> Result<Source, ConvertError> {
    // What loading would refuse (weights of adapters, biases, shards of another model) is not left out in silence.
    weights::check(checkpoint)?;
    let mut tensors = Vec::new();
    let mut n_left_out = 0;
    for info in files.infos() {
        let Some(name) = gguf_name(info.name) else {
            n_left_out += 1;
            continue;
        };
        let Some(view) = files.tensor(info.name).transpose()? else {
            continue;
        };
        let mut tensor = SourceTensor::new(name, &view);
        if tensor.name.ends_with("norm.weight") && checkpoint.config().family == Family::Gemma3 {
            tensor.offset = 1.0;
        }
        tensors.push(tensor);
    }
    tensors.extend(rope_factors(checkpoint.config()));
    tensors.sort_by_cached_key(|tensor| place(&tensor.name));
    let mut notes = Vec::new();
    if n_left_out > 0 {
        notes.push(format!(
            "{n_left_out} tensors that are not of the text model were left out (towers for images and sounds)"
        ));
    }
    let n_rows = tensors
        .iter()
        .find(|t| t.name == "token_embd.weight")
        .and_then(|t| t.shape.first().copied());
    let described = metadata::of_folder(checkpoint, n_rows.unwrap_or(0), &mut notes)?;
    if let Some(n_tokens) = described.n_tokens {
        for tensor in &mut tensors {
            let is_tall = matches!(
                tensor.name.as_str(),
                "token_embd.weight" | "output.weight" | "per_layer_token_embd.weight"
            );
            if let Some(n_rows) = tensor.shape.first_mut().filter(|_| is_tall) {
                *n_rows = (*n_rows).min(n_tokens);
            }
        }
    }
    let source = Source {
        metadata: described.metadata,
        tensors,
        notes,
    };
    kept::check(&source, checkpoint)?;
    Ok(source)
}

/// What angles of Gemma 4's global layers are divided by: ones for the pairs of a head that turn, then numbers too large
/// to turn by.
fn rope_factors(config: &Config) -> Option<SourceTensor> {
    let layer = config.layers.iter().find(|layer| layer.window.is_none())?;
    let n_pairs = layer.head_dim / 2;
    let n_turning = match (config.family, config.ropes.get(layer.rope)?.n_turning) {
        (Family::Gemma3, _) => return None,
        // Without factors a quarter would be taken to turn.
        (Family::Gemma4, n_turning) => n_turning.unwrap_or(n_pairs),
    };
    let factor = |pair: usize| if pair < n_turning { 1.0f32 } else { 1e30 };
    let bytes: Vec<u8> = (0..n_pairs).flat_map(|pair| factor(pair).to_le_bytes()).collect();
    Some(SourceTensor {
        name: ROPE_FACTORS.to_owned(),
        shape: vec![n_pairs],
        dtype: DType::F32,
        stored: bytes.into(),
        offset: 0.0,
    })
}

/// Order in the file: embedding, head and last norm, then layer by layer, as a run reads them.
fn place(name: &str) -> (usize, String) {
    let layer = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'))
        .and_then(|(n, _)| n.parse().ok());
    (layer.map_or(0, |n: usize| n.saturating_add(1)), name.to_owned())
}
