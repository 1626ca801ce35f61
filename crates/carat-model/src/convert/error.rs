//! What can stop a conversion.

use std::path::PathBuf;

use carat_kernels::{DType, QuantError};

/// The errors of [`convert`](super::convert).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The source is no checkpoint of a Gemma model.
    #[error(transparent)]
    Model(#[from] crate::Error),
    /// A file cannot be read or written.
    #[error(transparent)]
    Format(#[from] carat_format::Error),
    /// No mix has this name.
    #[error("there is no mix called `{name}`; choose one of {known}")]
    UnknownMix {
        /// As given.
        name: String,
        /// The names, with commas.
        known: String,
    },
    /// The target would replace the source while it is read.
    #[error("`{}` is the source itself; give another name for the new file", path.display())]
    SameFile {
        /// The file.
        path: PathBuf,
    },
    /// A setting of the source that GGUF has no key for.
    #[error(
        "`{}` has {setting} that no key of a GGUF file can say, so the new file would give other answers; run the folder \
         as it is", path.display()
    )]
    Forgotten {
        /// The source.
        path: PathBuf,
        /// What would be forgotten.
        setting: &'static str,
    },
    /// A vocabulary that does not make a GGUF one.
    #[error("`{}`: {reason}; get the file again from the model's publisher", path.display())]
    Vocabulary {
        /// The tokenizer file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A `tokenizer.model` that cannot be read.
    #[error("`{}` cannot be converted", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: carat_text::Error,
    },
    /// A number that the new format cannot hold.
    #[error(
        "tensor `{tensor}`, row {row}, column {column}: {value} cannot be written as {dtype}; check the source, or use BF16 or F32"
    )]
    Value {
        /// GGUF name.
        tensor: String,
        /// Counted from 0.
        row: usize,
        /// Counted from 0.
        column: usize,
        /// The number.
        value: f32,
        /// The format it was to get.
        dtype: DType,
    },
    /// A tensor that cannot be decoded or encoded for another reason.
    #[error("tensor `{tensor}` cannot be converted: {source}")]
    Tensor {
        /// GGUF name.
        tensor: String,
        /// Why.
        source: QuantError,
    },
    /// The caller asked to stop. Nothing was left behind.
    #[error("the conversion was cancelled; no file was written")]
    Cancelled,
}
