//! Q3_K: 16 sub-blocks of 16 with a signed 6-bit scale each.
//!
//! ```text
//! hmask[32], qs[64], scales[12], d f16          d (sc - 32) (q - 4)
//! ```
//!
//! The low two bits of value 128 h + 32 s + l are bits 2s, 2s+1 of `qs[32 h + l]`; its third bit is bit
//! 4 h + s of `hmask[l]`.

use super::fit::{self, SymmetricGrid};
use super::k_scale::{pack_signed, unpack_signed};
use super::{f16_at, put_f16};

const GRID: SymmetricGrid = SymmetricGrid {
    q_half: 4,
    scale_half: 32,
    first: -0.9,
    step: 0.1,
    n_steps: 19,
};

pub(super) fn decode(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 108);
    let scales = unpack_signed(&block[96..108]);
    let (hmask, qs) = block[..96].split_at(32);
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[j]);
        let (g, h, s, l) = (j / 2, j / 8, j % 8 / 2, j % 2 * 16);
        let bytes = qs[32 * h + l..][..16].iter().zip(&hmask[l..][..16]);
        for ((&byte, &high), out) in bytes.zip(out) {
            let q = ((byte >> (2 * s)) & 3) | (((high >> g) & 1) << 2);
            *out = scale * f32::from(q as i8 - 4);
        }
    }
}

pub(super) fn encode(values: &[f32; 256], block: &mut [u8; 110]) {
    let fitted = fit::symmetric(values, &GRID);
    let q = fitted.q.map(|q| (q + 4) as u8);
    for l in 0..32 {
        block[l] = (0..8).fold(0, |byte, g| byte | ((q[32 * g + l] >> 2) << g));
    }
    for (i, byte) in block[32..96].iter_mut().enumerate() {
        let (h, l) = (i / 32, i % 32);
        *byte = (0..4).fold(0, |byte, s| byte | ((q[128 * h + 32 * s + l] & 3) << (2 * s)));
    }
    pack_signed(&fitted.scales, &mut block[96..108]);
    put_f16(block, 108, fitted.d);
}
