//! IQ4_NL and IQ4_XS, which are only read: four bits choose one of 16 unevenly spaced values.
//!
//! ```text
//! IQ4_NL (32):  d f16, qs[16]                                        d K[q]
//! IQ4_XS (256): d f16, scales_h u16, scales_l[4], qs[128]            d (scale - 32) K[q]
//! ```
//!
//! The 6-bit scale of sub-block g of 32 is nibble g of `scales_l` and bits 2g, 2g+1 of `scales_h` above it.
//! Within 32 values the low nibbles come first, then the high ones.

use super::f16_at;

/// The values of the 16 codes.
const CODES: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];

pub(super) fn decode_iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    decode_sub_block(f16_at(block, 0), &block[2..], out);
}

pub(super) fn decode_iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (g, (qs, out)) in block[8..].chunks_exact(16).zip(out.as_chunks_mut().0).enumerate() {
        let low = (block[4 + g / 2] >> (4 * (g % 2))) & 15;
        let scale = low | ((((high >> (2 * g)) & 3) as u8) << 4);
        decode_sub_block(d * f32::from(scale as i8 - 32), qs, out);
    }
}

#[inline(always)]
fn decode_sub_block(d: f32, qs: &[u8], out: &mut [f32; 32]) {
    for (i, &byte) in qs.iter().enumerate() {
        out[i] = d * f32::from(CODES[usize::from(byte & 15)]);
        out[i + 16] = d * f32::from(CODES[usize::from(byte >> 4)]);
    }
}
