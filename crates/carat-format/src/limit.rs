//! The limits of this crate, in one place. They are far above any real model and far below what hurts.

/// Keys of a GGUF file. Real files have about 50.
pub(crate) const MAX_KEYS: u64 = 1 << 16;

/// Tensors of a file. Real ones have about 1,000, at most 20,000 where experts are kept apart.
pub(crate) const MAX_TENSORS: u64 = 1 << 16;

/// Bytes of a key or of a tensor's name; 65,535 is the limit the GGUF specification gives for keys.
pub(crate) const MAX_NAME_BYTES: u64 = (1 << 16) - 1;

/// Bytes of one string value. The longest in use are chat templates, about 20 KB.
pub(crate) const MAX_TEXT_BYTES: u64 = 16 << 20;

/// Bytes of an array of strings: offsets into it are kept in 32 bits.
pub(crate) const MAX_STRING_ARRAY_BYTES: u64 = u32::MAX as u64 - 8;

/// Dimensions of a GGUF tensor, as in ggml.
pub(crate) const MAX_DIMS: u32 = 4;

/// Bytes of a tensor's name that ggml can hold (64 with the closing zero); kept when writing.
pub(crate) const MAX_WRITTEN_TENSOR_NAME_BYTES: usize = 63;

/// Dimensions of a safetensors tensor. Real ones have at most 5.
pub(crate) const MAX_SAFETENSORS_DIMS: usize = 16;

/// Parts of a split file or shards of a folder.
pub(crate) const MAX_PARTS: u64 = 4096;

/// Entries of a per-layer array.
pub(crate) const MAX_LAYERS: usize = 1 << 16;

/// Bytes of a safetensors header, as in the reference implementation.
pub(crate) const MAX_SAFETENSORS_HEADER_BYTES: u64 = 100_000_000;

/// Bytes of `model.safetensors.index.json`. Real ones have about 100 KB.
pub(crate) const MAX_INDEX_BYTES: u64 = 64 << 20;
