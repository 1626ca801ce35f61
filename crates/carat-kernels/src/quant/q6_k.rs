//! Q6_K: 16 sub-blocks of 16 with a signed 8-bit scale each.
//!
//! ```text
//! ql[128], qh[64], scales i8[16], d f16          d sc (q - 32)
//! ```
//!
//! Of value 128 h + 32 s + l the low four bits are a nibble of `ql[64 h + 32 (s % 2) + l]`, the low one for
//! s < 2; the high two bits are bits 2s, 2s+1 of `qh[32 h + l]`.

use super::fit::{self, SymmetricGrid};
use super::{f16_at, put_f16};

const GRID: SymmetricGrid = SymmetricGrid {
    q_half: 32,
    scale_half: 128,
    first: -0.9,
    step: 0.1,
    n_steps: 19,
};

pub(super) fn decode(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    let (ql, rest) = block.split_at(128);
    let (qh, scales) = rest[..80].split_at(64);
    for (j, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[j] as i8);
        let (h, s, l) = (j / 8, j % 8 / 2, j % 2 * 16);
        let low = &ql[64 * h + 32 * (s % 2) + l..][..16];
        let high = &qh[32 * h + l..][..16];
        for ((&low, &high), out) in low.iter().zip(high).zip(out) {
            let q = ((low >> (4 * (s / 2))) & 15) | (((high >> (2 * s)) & 3) << 4);
            *out = scale * f32::from(q as i8 - 32);
        }
    }
}

pub(super) fn encode(values: &[f32; 256], block: &mut [u8; 210]) {
    let fitted = fit::symmetric(values, &GRID);
    let q = fitted.q.map(|q| (q + 32) as u8);
    for (i, byte) in block[..128].iter_mut().enumerate() {
        let (h, s, l) = (i / 64, i % 64 / 32, i % 32);
        let at = 128 * h + 32 * s + l;
        *byte = (q[at] & 15) | ((q[at + 64] & 15) << 4);
    }
    for (i, byte) in block[128..192].iter_mut().enumerate() {
        let (h, l) = (i / 32, i % 32);
        *byte = (0..4).fold(0, |byte, s| byte | ((q[128 * h + 32 * s + l] >> 4) << (2 * s)));
    }
    for (byte, &scale) in block[192..208].iter_mut().zip(&fitted.scales) {
        *byte = scale as u8;
    }
    put_f16(block, 208, fitted.d);
}
