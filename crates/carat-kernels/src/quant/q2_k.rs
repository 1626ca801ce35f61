//! Q2_K: 16 sub-blocks of 16 with a 4-bit scale and a 4-bit minimum each.
//!
//! ```text
//! scales[16], qs[64], d f16, dmin f16          d sc q - dmin mn
//! ```
//!
//! Byte j of `scales` has the scale of sub-block j in its low nibble and the minimum in its high one. Value
//! 128 h + 32 s + l is bits 2s, 2s+1 of `qs[32 h + l]`.

use super::fit::{self, AffineGrid};
use super::{f16_at, put_f16};

const GRID: AffineGrid = AffineGrid {
    q_max: 3,
    scale_max: 15,
    first: -0.6,
    step: 0.1,
    n_steps: 16,
};

pub(super) fn decode(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    let (scales, qs) = block[..80].split_at(16);
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[j] & 15);
        let min = dmin * f32::from(scales[j] >> 4);
        let (h, s, l) = (j / 8, j % 8 / 2, j % 2 * 16);
        for (&byte, out) in qs[32 * h + l..][..16].iter().zip(out) {
            *out = scale * f32::from((byte >> (2 * s)) & 3) - min;
        }
    }
}

pub(super) fn encode(values: &[f32; 256], block: &mut [u8; 84]) {
    let fitted = fit::affine::<16, 16>(values, &GRID);
    for ((byte, scale), min) in block.iter_mut().zip(fitted.scales).zip(fitted.mins) {
        *byte = scale | (min << 4);
    }
    for (i, byte) in block[16..80].iter_mut().enumerate() {
        let (h, l) = (i / 32, i % 32);
        *byte = (0..4).fold(0, |byte, s| byte | (fitted.q[128 * h + 32 * s + l] << (2 * s)));
    }
    put_f16(block, 80, fitted.d);
    put_f16(block, 82, fitted.dmin);
}
