//! GGUF: the reader and the writer.
//!
//! Layout (little endian; versions 2 and 3 are laid out alike):
//!
//! ```text
//! "GGUF"  u32 version  u64 n_tensors  u64 n_keys
//! n_keys    × { string key, u32 value type, value }
//! n_tensors × { string name, u32 n_dims, u64 dims[] (fastest-varying first), u32 type, u64 offset }
//! padding to `general.alignment` (32 unless said)
//! data: each tensor at its offset from here
//! ```
//!
//! A string is a u64 length and its bytes; an array is a u32 element type, a u64 count and its elements.

mod array;
mod cursor;
mod metadata;
mod parse;
mod reader;
mod split;
mod tensor_type;
mod value;
mod writer;

pub use array::{Array, StringArray};
pub use metadata::Metadata;
pub use reader::Gguf;
pub use value::{Value, ValueType};
pub use writer::GgufBuilder;

/// The first four bytes of a file.
const MAGIC: &[u8; 4] = b"GGUF";

/// The key that holds the alignment of the data.
const ALIGNMENT_KEY: &str = "general.alignment";

/// The alignment of the data, in bytes, when the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The alignments that are accepted: the powers of two that keep f32 and f64 values aligned.
fn is_alignment(bytes: u64) -> bool {
    bytes >= 8 && bytes.is_power_of_two()
}
