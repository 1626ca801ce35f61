//! Whether a new file says all that its source says.
//!
//! A setting that is not written would be forgotten, and the file give other logits than its source without a word. So the
//! configuration is read back from what is about to be written, as loading will, and held against the source's.

use carat_format::{Metadata, Value};
use carat_kernels::DType;

use super::ConvertError;
use super::source::{Source, SourceTensor};
use crate::checkpoint::Checkpoint;
use crate::config::GgufHead;
use crate::{Config, Error};

/// Keys that no configuration is read from, and that may be large.
const TOKENIZER: &str = "tokenizer.";

/// The head of the file that a source is to become.
struct Head<'a> {
    metadata: Metadata,
    tensors: &'a [SourceTensor],
}

impl Head<'_> {
    fn tensor(&self, name: &str) -> Option<&SourceTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

impl GgufHead for Head<'_> {
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensor(name)?.shape)
    }

    fn values(&self, name: &str) -> Result<Option<(DType, &[u8])>, Error> {
        Ok(self.tensor(name).map(|tensor| (tensor.dtype, tensor.bytes())))
    }
}

/// Fails when what is to be written would be read as another model than `checkpoint`, whose folder it comes from.
pub(super) fn check(source: &Source, checkpoint: &Checkpoint) -> Result<(), ConvertError> {
    let path = checkpoint.path();
    let is_kept = |entry: &&(String, Value)| !entry.0.starts_with(TOKENIZER);
    let entries = source.metadata.iter().filter(is_kept).cloned();
    let head = Head {
        metadata: Metadata::from_entries(path, entries)?,
        tensors: &source.tensors,
    };
    let written = Config::from_head(&head, path)?;
    match forgotten(checkpoint.config(), &written) {
        None => Ok(()),
        Some(setting) => Err(ConvertError::Forgotten {
            path: path.to_owned(),
            setting,
        }),
    }
}

/// What of a source's configuration is not in that of the new file.
fn forgotten(source: &Config, written: &Config) -> Option<&'static str> {
    let mut expected = source.clone();
    // Rows without a token are left out.
    expected.vocab_size = written.vocab_size;
    for (i, (rope, found)) in expected.ropes.iter_mut().zip(&written.ropes).enumerate() {
        if source.layers.iter().all(|layer| layer.rope != i) {
            *rope = *found;
        }
    }
    if expected == *written {
        None
    } else if expected.ropes != written.ropes {
        Some("rotary embeddings (rope_parameters)")
    } else if expected.layers != written.layers {
        Some("layers")
    } else {
        Some("sizes or constants")
    }
}
