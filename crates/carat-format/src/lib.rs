//! GGUF and safetensors files, read and written.
//!
//! A file is mapped, never copied: opening one checks every length, offset and count against the size of
//! the file, and afterwards a tensor is a slice of the mapping. The readers refuse what they cannot vouch
//! for with an [`Error`] that names the file, the key or tensor, and the field; no input makes them panic,
//! and none makes them allocate more than a small multiple of its own size.
//!
//! What a tensor or a key *means* is not known here: names go in and out as they are.
//!
//! - [`Gguf`], [`Metadata`]: one GGUF file, or all the parts of a split one.
//! - [`Safetensors`]: one file, or a folder as published on a model hub.
//! - [`GgufBuilder`], [`SafetensorsBuilder`]: declare, then stream the tensors through a [`TensorWriter`].
//! - [`Mapping`], [`TensorBytes`]: bytes of a file that live as long as somebody holds them.

mod error;
mod gguf;
mod input;
mod limit;
mod mapping;
mod output;
mod safetensors;
mod tensor;

pub use error::{Error, Fault, Place, Result};
pub use gguf::{Array, Gguf, GgufBuilder, Metadata, StringArray, Value, ValueType};
pub use input::read_limited;
pub use mapping::Mapping;
pub use output::TensorWriter;
pub use safetensors::{RawTensor, SafeDType, Safetensors, SafetensorsBuilder};
pub use tensor::{TensorBytes, TensorInfo, TensorView};
