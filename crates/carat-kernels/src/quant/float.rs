//! F32, F16 and BF16: one value, one number.
//!
//! Rounding to F16 and BF16 is to the nearest, ties to even. Slices of bytes have no alignment, so values go
//! through small aligned buffers; the compiler turns these copies into plain loads and stores.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Values per buffer: 64 bytes of f16 are one cache line.
const STEP: usize = 32;

pub(super) fn decode_f32(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = f32::from_le_bytes(*bytes);
    }
}

pub(super) fn encode_f32(values: &[f32], out: &mut [u8]) {
    for (value, bytes) in values.iter().zip(out.as_chunks_mut().0) {
        *bytes = value.to_le_bytes();
    }
}

pub(super) fn decode_f16(bytes: &[u8], out: &mut [f32]) {
    let mut buffer = [f16::ZERO; STEP];
    for (bytes, out) in bytes.chunks(2 * STEP).zip(out.chunks_mut(STEP)) {
        let buffer = &mut buffer[..out.len()];
        for (bytes, half) in bytes.as_chunks().0.iter().zip(buffer.iter_mut()) {
            *half = f16::from_le_bytes(*bytes);
        }
        buffer.convert_to_f32_slice(out);
    }
}

pub(super) fn encode_f16(values: &[f32], out: &mut [u8]) {
    let mut buffer = [f16::ZERO; STEP];
    for (values, out) in values.chunks(STEP).zip(out.chunks_mut(2 * STEP)) {
        let buffer = &mut buffer[..values.len()];
        buffer.convert_from_f32_slice(values);
        for (half, bytes) in buffer.iter().zip(out.as_chunks_mut().0) {
            *bytes = half.to_le_bytes();
        }
    }
}

pub(super) fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (bytes, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// `values` are finite and do not round to infinity.
pub(super) fn encode_bf16(values: &[f32], out: &mut [u8]) {
    for (value, bytes) in values.iter().zip(out.as_chunks_mut().0) {
        let bits = value.to_bits();
        // Half of the last place kept, less one when that place is even: a tie then stays below the carry.
        let rounded = bits + 0x7fff + ((bits >> 16) & 1);
        *bytes = ((rounded >> 16) as u16).to_le_bytes();
    }
}
