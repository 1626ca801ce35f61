//! What can be wrong with numbers to encode or bytes to decode.

use crate::DType;

/// The errors of [`dequantize`](crate::dequantize) and [`quantize`](crate::quantize).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The two slices do not belong together, or end within a block.
    #[error(
        "{n_values} values and {n_bytes} bytes do not match in {dtype}, which has {} values in {} bytes",
        dtype.block_len(),
        dtype.block_bytes()
    )]
    Length {
        /// The format.
        dtype: DType,
        /// Length of the f32 slice, in values.
        n_values: usize,
        /// Length of the byte slice.
        n_bytes: usize,
    },
    /// A value that no weight should have.
    #[error("value {index} is {value}, which cannot be quantized; check the source of the tensor")]
    NotFinite {
        /// Position in the slice given.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// A finite value that the format, or the f16 scale of its blocks, cannot hold.
    #[error(
        "value {index} is {value}, beyond the {limit} that {dtype} can hold; use F32 or BF16 for this tensor"
    )]
    TooLarge {
        /// The format.
        dtype: DType,
        /// Position in the slice given.
        index: usize,
        /// The value.
        value: f32,
        /// Largest magnitude that is accepted.
        limit: f32,
    },
    /// A format that is only read.
    #[error("{dtype} can be read but not written; choose another type")]
    ReadOnly {
        /// The format.
        dtype: DType,
    },
}
