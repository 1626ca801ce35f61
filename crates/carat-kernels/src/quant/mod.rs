//! Number formats to f32 and back.
//!
//! Decoding is exact: every value is the format's formula evaluated in f32 from left to right (scale times
//! sub-scale, times the integer, plus or minus the minimum), without fused multiply-adds, as the common
//! reference decoders do. Any bytes are valid blocks; what they decode to may be infinite or NaN when their
//! scales are.
//!
//! Encoding rounds to the nearest for the plain floats, follows the simple published rule for the blocks of
//! 32 (`simple`), and for the blocks of 256 looks for the scales with the least weighted squared error
//! (`fit`). The result depends on nothing but the block, so rows may be split over threads at will.
//!
//! The functions here check lengths and values; the files below hold one family of formats each.

mod error;
mod fit;
mod float;
mod iq4;
mod k_scale;
mod q2_k;
mod q3_k;
mod q4_k;
mod q6_k;
mod simple;

pub use error::QuantError;

use crate::DType;
use half::f16;

/// Decodes whole blocks.
///
/// - `bytes`: `dtype.bytes_for(out.len())` bytes, at any alignment
/// - `out`: overwritten; a whole number of blocks, usually one or more rows
///
/// # Errors
/// [`QuantError::Length`] when the two lengths do not belong together.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    check_length(dtype, out.len(), bytes.len())?;
    match dtype {
        DType::F32 => float::decode_f32(bytes, out),
        DType::F16 => float::decode_f16(bytes, out),
        DType::BF16 => float::decode_bf16(bytes, out),
        DType::Q4_0 => decode_blocks(bytes, out, simple::decode_q4_0),
        DType::Q4_1 => decode_blocks(bytes, out, simple::decode_q4_1),
        DType::Q5_0 => decode_blocks(bytes, out, simple::decode_q5_0),
        DType::Q5_1 => decode_blocks(bytes, out, simple::decode_q5_1),
        DType::Q8_0 => decode_blocks(bytes, out, simple::decode_q8_0),
        DType::Q2_K => decode_blocks(bytes, out, q2_k::decode),
        DType::Q3_K => decode_blocks(bytes, out, q3_k::decode),
        DType::Q4_K => decode_blocks(bytes, out, q4_k::decode_q4_k),
        DType::Q5_K => decode_blocks(bytes, out, q4_k::decode_q5_k),
        DType::Q6_K => decode_blocks(bytes, out, q6_k::decode),
        DType::IQ4_NL => decode_blocks(bytes, out, iq4::decode_iq4_nl),
        DType::IQ4_XS => decode_blocks(bytes, out, iq4::decode_iq4_xs),
    }
    Ok(())
}

/// Encodes whole blocks.
///
/// - `values`: a whole number of blocks, usually one or more rows
/// - `out`: `dtype.bytes_for(values.len())` bytes, overwritten; its content is unspecified after an error
///
/// # Errors
/// - [`QuantError::Length`] when the two lengths do not belong together
/// - [`QuantError::NotFinite`] and [`QuantError::TooLarge`] for the first value that cannot be written
/// - [`QuantError::ReadOnly`] for IQ4_NL and IQ4_XS
pub fn quantize(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<(), QuantError> {
    check_length(dtype, values.len(), out.len())?;
    check_values(dtype, values)?;
    match dtype {
        DType::F32 => float::encode_f32(values, out),
        DType::F16 => float::encode_f16(values, out),
        DType::BF16 => float::encode_bf16(values, out),
        DType::Q4_0 => encode_blocks(values, out, simple::encode_q4_0),
        DType::Q4_1 => encode_blocks(values, out, simple::encode_q4_1),
        DType::Q5_0 => encode_blocks(values, out, simple::encode_q5_0),
        DType::Q5_1 => encode_blocks(values, out, simple::encode_q5_1),
        DType::Q8_0 => encode_blocks(values, out, simple::encode_q8_0),
        DType::Q2_K => encode_blocks(values, out, q2_k::encode),
        DType::Q3_K => encode_blocks(values, out, q3_k::encode),
        DType::Q4_K => encode_blocks(values, out, q4_k::encode_q4_k),
        DType::Q5_K => encode_blocks(values, out, q4_k::encode_q5_k),
        DType::Q6_K => encode_blocks(values, out, q6_k::encode),
        DType::IQ4_NL | DType::IQ4_XS => return Err(QuantError::ReadOnly { dtype }),
    }
    Ok(())
}

fn check_length(dtype: DType, n_values: usize, n_bytes: usize) -> Result<(), QuantError> {
    if dtype.bytes_for(n_values) == Some(n_bytes) {
        Ok(())
    } else {
        Err(QuantError::Length {
            dtype,
            n_values,
            n_bytes,
        })
    }
}

/// Refuses what has no place in the format, so that the encoders need not think of it: with this limit no
/// scale or minimum overflows f16, and no sum of weighted squares overflows f32.
fn check_values(dtype: DType, values: &[f32]) -> Result<(), QuantError> {
    let limit = match dtype {
        DType::F32 => f32::MAX,
        // The last value that does not round up to infinity.
        DType::BF16 => f32::from_bits(0x7f7f_7fff),
        _ => f16::MAX.to_f32(),
    };
    // A range does not contain NaN, which must be found too.
    match values.iter().position(|v| !(-limit..=limit).contains(v)) {
        None => Ok(()),
        Some(index) => {
            let value = values[index];
            Err(if value.is_finite() {
                QuantError::TooLarge {
                    dtype,
                    index,
                    value,
                    limit,
                }
            } else {
                QuantError::NotFinite { index, value }
            })
        }
    }
}

fn decode_blocks<const N: usize, const BYTES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; N]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

fn encode_blocks<const N: usize, const BYTES: usize>(
    values: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; N], &mut [u8; BYTES]),
) {
    for (values, block) in values.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        encode(values, block);
    }
}

/// The f16 at `block[at..at + 2]`.
#[inline(always)]
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Writes `value`, rounded to f16, to `block[at..at + 2]`.
#[inline(always)]
fn put_f16(block: &mut [u8], at: usize, value: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}
