//! Converting a checkpoint to a GGUF file, usually to fewer bits.
//!
//! [`convert`] takes a GGUF file or a Hugging Face folder and writes one GGUF file that carat and llama.cpp
//! load. It chooses a format for each tensor (`plan`), then streams: a few rows are decoded, encoded and
//! written at a time, so memory stays small whatever the model's size. The new file appears when it is
//! complete; a conversion that fails or is cancelled leaves nothing behind.
//!
//! Numbers are only rounded, never moved: a tensor that already has the chosen format is copied as it is. What a folder says
//! of the model must be in the file too, or nothing is written (`kept`).

mod error;
mod kept;
mod layout;
mod metadata;
mod mix;
mod plan;
mod recode;
mod source;
mod vocabulary;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use carat_format::{GgufBuilder, Value};
use carat_kernels::DType;

pub use error::ConvertError;
pub use layout::{MixTensor, tensors_of};
pub use mix::Mix;

use plan::{Choice, Facts};
use source::{Source, SourceTensor};

/// The layout of quantized blocks; it changed once, in 2023.
const QUANTIZATION_VERSION: u32 = 2;

/// How to convert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Number formats of the new file.
    pub mix: Mix,
    /// Every matrix gets the format of the bulk, the embedding too.
    pub pure: bool,
    /// Threads that encode; 0 counts as 1. The file does not depend on it.
    pub n_threads: usize,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertProgress<'a> {
    /// The tensor being written, by its GGUF name.
    pub tensor: &'a str,
    /// The format it gets.
    pub dtype: DType,
    /// Bytes of tensors written so far.
    pub done_bytes: u64,
    /// Bytes of all tensors of the new file.
    pub total_bytes: u64,
}

/// What a conversion did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertReport {
    /// Tensors per format.
    pub n_tensors: BTreeMap<DType, usize>,
    /// Bytes of all tensors of the new file.
    pub total_bytes: u64,
    /// Whole sentences about what the user may not expect: formats that stand in for others, parts left out.
    pub notes: Vec<String>,
}

/// Writes the model at `source` (GGUF file or Hugging Face folder) to the GGUF file `target`, which is
/// replaced if it is there.
///
/// `on_progress` is called after each few megabytes; when it returns [`ControlFlow::Break`] the conversion
/// ends with [`ConvertError::Cancelled`].
///
/// # Errors
/// Whatever is wrong with the source, with its first number that the new format cannot hold, or with writing.
/// In all cases no file is written.
pub fn convert(
    source: &Path,
    target: &Path,
    options: &ConvertOptions,
    on_progress: &mut dyn FnMut(ConvertProgress<'_>) -> ControlFlow<()>,
) -> Result<ConvertReport, ConvertError> {
    refuse_same_file(source, target)?;
    let mut source = Source::open(source)?;
    let choices = choose(&source.tensors, options);
    let mut report = describe(&source.tensors, &choices);
    report.notes.splice(0..0, source.notes.drain(..));
    write(&source, target, &choices, options, &report, on_progress)?;
    Ok(report)
}

/// Reading and writing are two mappings of one file then; the new one would only be lost.
fn refuse_same_file(source: &Path, target: &Path) -> Result<(), ConvertError> {
    match (source.canonicalize(), target.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => Err(ConvertError::SameFile {
            path: target.to_owned(),
        }),
        _ => Ok(()),
    }
}

fn choose(tensors: &[SourceTensor], options: &ConvertOptions) -> Vec<Choice> {
    let facts: Vec<Facts<'_>> = tensors.iter().map(facts_of).collect();
    plan::choose(options.mix, options.pure, &facts)
}

fn facts_of(tensor: &SourceTensor) -> Facts<'_> {
    // A sum is kept as it was computed, not rounded back to the format of its term.
    let is_kept = tensor.offset == 0.0 && tensor.shape.len() > 1;
    let dtype = if is_kept { tensor.dtype } else { DType::F32 };
    Facts {
        name: &tensor.name,
        shape: &tensor.shape,
        dtype,
    }
}

fn describe(tensors: &[SourceTensor], choices: &[Choice]) -> ConvertReport {
    let mut report = ConvertReport {
        n_tensors: BTreeMap::new(),
        total_bytes: 0,
        notes: Vec::new(),
    };
    let (mut n_again, mut stand_ins) = (0, BTreeMap::new());
    for (tensor, choice) in tensors.iter().zip(choices) {
        *report.n_tensors.entry(choice.dtype).or_insert(0) += 1;
        let n_bytes = choice.dtype.bytes_for(tensor.shape.iter().product()).unwrap_or(0);
        report.total_bytes = report.total_bytes.saturating_add(n_bytes as u64);
        if tensor.dtype.is_quantized() && choice.dtype.is_quantized() && tensor.dtype != choice.dtype {
            n_again += 1;
        }
        if let Some(wanted) = choice.instead_of {
            *stand_ins.entry((wanted, choice.dtype)).or_insert(0) += 1;
        }
    }
    for ((wanted, dtype), n) in stand_ins {
        let block = wanted.block_len();
        report.notes.push(format!(
            "tensors that got {dtype} instead of {wanted}, since their rows are no multiple of {block}: {n}"
        ));
    }
    if n_again > 0 {
        report.notes.push(format!(
            "tensors that were quantized before and lost some quality again: {n_again}; a source in F16, BF16 or F32 is better"
        ));
    }
    report
}

fn write(
    source: &Source,
    target: &Path,
    choices: &[Choice],
    options: &ConvertOptions,
    report: &ConvertReport,
    on_progress: &mut dyn FnMut(ConvertProgress<'_>) -> ControlFlow<()>,
) -> Result<(), ConvertError> {
    let mut builder = GgufBuilder::new();
    for (key, value) in &source.metadata {
        builder.metadata(key, value.clone());
    }
    builder.metadata("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    builder.metadata("general.file_type", Value::U32(options.mix.file_type()));
    for (tensor, choice) in source.tensors.iter().zip(choices) {
        builder.tensor(&tensor.name, choice.dtype, &tensor.shape);
    }
    let mut writer = builder.create(target)?;
    let mut done_bytes = 0;
    for (tensor, choice) in source.tensors.iter().zip(choices) {
        writer.begin(&tensor.name)?;
        recode::recode(tensor, choice.dtype, options.n_threads, &mut |bytes| {
            writer.append(bytes)?;
            done_bytes += bytes.len() as u64;
            let (dtype, total_bytes) = (choice.dtype, report.total_bytes);
            match on_progress(ConvertProgress {
                tensor: &tensor.name,
                dtype,
                done_bytes,
                total_bytes,
            }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(ConvertError::Cancelled),
            }
        })?;
    }
    Ok(writer.finish()?)
}
