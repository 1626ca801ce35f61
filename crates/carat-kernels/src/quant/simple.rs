//! Blocks of 32 with one scale, and perhaps one minimum, in f16: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
//!
//! ```text
//! Q4_0: d f16, qs[16]                     d (q - 8)
//! Q4_1: d f16, m f16, qs[16]              d q + m
//! Q5_0: d f16, qh u32, qs[16]             d (q - 16)     q = nibble + 16 * bit i of qh
//! Q5_1: d f16, m f16, qh u32, qs[16]      d q + m
//! Q8_0: d f16, i8[32]                     d q
//! ```
//!
//! Values 0..16 are the low nibbles of `qs`, 16..32 the high ones. The encoders follow the plain rule that
//! every GGUF writer shares, bit for bit: the value of largest magnitude (or the range, with a minimum) sets
//! the scale, and the others are rounded on the grid of the scale *before* it is rounded to f16. That keeps
//! the grid of checkpoints trained for Q4_0.

use super::{f16_at, put_f16};

/// Values per block.
const N: usize = 32;

pub(super) fn decode_q4_0(block: &[u8; 18], out: &mut [f32; N]) {
    let d = f16_at(block, 0);
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = d * f32::from((byte & 15) as i8 - 8);
        out[i + 16] = d * f32::from((byte >> 4) as i8 - 8);
    }
}

pub(super) fn decode_q4_1(block: &[u8; 20], out: &mut [f32; N]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (i, &byte) in block[4..].iter().enumerate() {
        out[i] = d * f32::from(byte & 15) + m;
        out[i + 16] = d * f32::from(byte >> 4) + m;
    }
}

pub(super) fn decode_q5_0(block: &[u8; 22], out: &mut [f32; N]) {
    let d = f16_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (i, &byte) in block[6..].iter().enumerate() {
        let (low_q, high_q) = fifth_bits(byte, high, i);
        out[i] = d * f32::from(low_q as i8 - 16);
        out[i + 16] = d * f32::from(high_q as i8 - 16);
    }
}

pub(super) fn decode_q5_1(block: &[u8; 24], out: &mut [f32; N]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for (i, &byte) in block[8..].iter().enumerate() {
        let (low_q, high_q) = fifth_bits(byte, high, i);
        out[i] = d * f32::from(low_q) + m;
        out[i + 16] = d * f32::from(high_q) + m;
    }
}

pub(super) fn decode_q8_0(block: &[u8; 34], out: &mut [f32; N]) {
    let d = f16_at(block, 0);
    for (&byte, out) in block[2..].iter().zip(out) {
        *out = d * f32::from(byte as i8);
    }
}

/// The 5-bit numbers `i` and `i + 16`, from their common byte of nibbles and all the fifth bits.
#[inline(always)]
fn fifth_bits(byte: u8, high: u32, i: usize) -> (u8, u8) {
    let bit = |at: usize| ((high >> at) & 1) as u8;
    ((byte & 15) | (bit(i) << 4), (byte >> 4) | (bit(i + 16) << 4))
}

pub(super) fn encode_q4_0(values: &[f32; N], block: &mut [u8; 18]) {
    let d = largest(values) / -8.0;
    put_f16(block, 0, d);
    let q = levels(values, 0.0, inverse(d), 8.5, 15);
    put_nibbles(&q, &mut block[2..]);
}

pub(super) fn encode_q4_1(values: &[f32; N], block: &mut [u8; 20]) {
    let (min, max) = range(values);
    let d = (max - min) / 15.0;
    put_f16(block, 0, d);
    put_f16(block, 2, min);
    let q = levels(values, min, inverse(d), 0.5, 15);
    put_nibbles(&q, &mut block[4..]);
}

pub(super) fn encode_q5_0(values: &[f32; N], block: &mut [u8; 22]) {
    let d = largest(values) / -16.0;
    put_f16(block, 0, d);
    let q = levels(values, 0.0, inverse(d), 16.5, 31);
    put_fifth_bits(&q, &mut block[2..6]);
    put_nibbles(&q, &mut block[6..]);
}

pub(super) fn encode_q5_1(values: &[f32; N], block: &mut [u8; 24]) {
    let (min, max) = range(values);
    let d = (max - min) / 31.0;
    put_f16(block, 0, d);
    put_f16(block, 2, min);
    let q = levels(values, min, inverse(d), 0.5, 31);
    put_fifth_bits(&q, &mut block[4..8]);
    put_nibbles(&q, &mut block[8..]);
}

pub(super) fn encode_q8_0(values: &[f32; N], block: &mut [u8; 34]) {
    let d = largest(values).abs() / 127.0;
    put_f16(block, 0, d);
    let scale = inverse(d);
    for (&value, byte) in values.iter().zip(&mut block[2..]) {
        let x = value * scale;
        // Adding just under a half and cutting off rounds halves away from zero, as this format wants.
        *byte = (x + f32::copysign(0.499_999_97, x)) as i8 as u8;
    }
}

/// The value of largest magnitude with its sign; the first one of equals.
fn largest(values: &[f32; N]) -> f32 {
    let magnitude = values
        .iter()
        .fold(0.0, |max, v| if v.abs() > max { v.abs() } else { max });
    values
        .iter()
        .copied()
        .find(|v| v.abs() == magnitude)
        .unwrap_or(0.0)
}

fn range(values: &[f32; N]) -> (f32, f32) {
    values.iter().fold((f32::MAX, f32::MIN), |(min, max), &v| {
        (if v < min { v } else { min }, if v > max { v } else { max })
    })
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// `(value - min) * scale + bias`, cut off to an integer in `0 ..= top`. The cast saturates and takes NaN
/// (zero times the inverse of a subnormal scale) to 0.
#[inline(always)]
fn levels(values: &[f32; N], min: f32, scale: f32, bias: f32, top: u8) -> [u8; N] {
    std::array::from_fn(|i| (((values[i] - min) * scale + bias) as i32).clamp(0, i32::from(top)) as u8)
}

fn put_nibbles(q: &[u8; N], out: &mut [u8]) {
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = (q[i] & 15) | ((q[i + 16] & 15) << 4);
    }
}

fn put_fifth_bits(q: &[u8; N], out: &mut [u8]) {
    let bits = q
        .iter()
        .enumerate()
        .fold(0, |bits, (i, q)| bits | (u32::from(q >> 4) << i));
    out.copy_from_slice(&bits.to_le_bytes());
}
