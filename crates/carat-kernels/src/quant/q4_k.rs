//! Q4_K and Q5_K: 8 sub-blocks of 32 with a 6-bit scale and a 6-bit minimum each.
//!
//! ```text
//! Q4_K: d f16, dmin f16, scales[12], qs[128]              d sc q - dmin mn
//! Q5_K: d f16, dmin f16, scales[12], qh[32], qs[128]      the same with a fifth bit
//! ```
//!
//! Value 32 g + l is a nibble of `qs[32 (g / 2) + l]`, the low one when g is even; its fifth bit is bit g of
//! `qh[l]`. The 12 bytes of scales are described in `k_scale`.

use super::fit::{self, AffineGrid};
use super::k_scale::{pack_pairs, unpack_pairs};
use super::{f16_at, put_f16};

const GRID_4: AffineGrid = AffineGrid {
    q_max: 15,
    scale_max: 63,
    first: -1.0,
    step: 0.1,
    n_steps: 21,
};
const GRID_5: AffineGrid = AffineGrid {
    q_max: 31,
    scale_max: 63,
    first: -0.5,
    step: 0.1,
    n_steps: 16,
};

pub(super) fn decode_q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    decode(&block[..16], &block[16..], out, |_, _| 0);
}

pub(super) fn decode_q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let qh = &block[16..48];
    decode(&block[..16], &block[48..], out, |g, l| ((qh[l] >> g) & 1) << 4);
}

/// `head` is d, dmin and scales; `fifth` gives 16 or 0 for value l of sub-block g.
#[inline(always)]
fn decode(head: &[u8], qs: &[u8], out: &mut [f32; 256], fifth: impl Fn(usize, usize) -> u8) {
    let (d, dmin) = (f16_at(head, 0), f16_at(head, 2));
    let (scales, mins) = unpack_pairs(&head[4..]);
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let scale = d * f32::from(scales[g]);
        let min = dmin * f32::from(mins[g]);
        let shift = 4 * (g % 2);
        for (l, (&byte, out)) in qs[32 * (g / 2)..][..32].iter().zip(out).enumerate() {
            *out = scale * f32::from(((byte >> shift) & 15) | fifth(g, l)) - min;
        }
    }
}

pub(super) fn encode_q4_k(values: &[f32; 256], block: &mut [u8; 144]) {
    let (head, qs) = block.split_at_mut(16);
    encode(values, &GRID_4, head, qs);
}

pub(super) fn encode_q5_k(values: &[f32; 256], block: &mut [u8; 176]) {
    let (head, rest) = block.split_at_mut(16);
    let (qh, qs) = rest.split_at_mut(32);
    let q = encode(values, &GRID_5, head, qs);
    for (l, byte) in qh.iter_mut().enumerate() {
        *byte = (0..8).fold(0, |byte, g| byte | ((q[32 * g + l] >> 4) << g));
    }
}

/// Writes all but the fifth bits, which are in the numbers it returns.
fn encode(values: &[f32; 256], grid: &AffineGrid, head: &mut [u8], qs: &mut [u8]) -> [u8; 256] {
    let fitted = fit::affine::<32, 8>(values, grid);
    put_f16(head, 0, fitted.d);
    put_f16(head, 2, fitted.dmin);
    pack_pairs(&fitted.scales, &fitted.mins, &mut head[4..]);
    for (i, byte) in qs.iter_mut().enumerate() {
        let (pair, l) = (i / 32, i % 32);
        *byte = (fitted.q[64 * pair + l] & 15) | ((fitted.q[64 * pair + 32 + l] & 15) << 4);
    }
    fitted.q
}
