//! Safetensors: the reader, for files and folders, and the writer.
//!
//! Layout: u64 length of the header, the header (JSON, padded with blanks), the data:
//!
//! ```text
//! {"__metadata__": {"format": "pt"},
//!  "model.norm.weight": {"dtype": "BF16", "shape": [640], "data_offsets": [0, 1280]}}
//! ```
//!
//! Offsets count from the first byte of data. The data is covered by the tensors without holes.

mod dtype;
mod header;
mod index;
mod reader;
mod writer;

pub use dtype::SafeDType;
pub use reader::{RawTensor, Safetensors};
pub use writer::SafetensorsBuilder;

/// The key of the header that holds free text instead of a tensor.
const METADATA_KEY: &str = "__metadata__";
