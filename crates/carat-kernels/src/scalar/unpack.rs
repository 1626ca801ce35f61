//! Block formats to [`Chunk`]s, byte by byte. Layouts as in the GGUF documentation.

use half::f16;

use crate::block::{
    BlockFormat, CHUNK, Chunk, IQ4_CODES, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K,
    Q8_0, iq4xs_scales, q3k_scales, q4k_scales,
};

/// A format that can be unpacked.
pub(crate) trait Unpack: BlockFormat {
    /// Unpacks one chunk. `bytes` has [`BlockFormat::CHUNK_BYTES`] bytes.
    fn unpack(bytes: &[u8], chunk: &mut Chunk);
}

fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn twelve(bytes: &[u8]) -> [u8; 12] {
    std::array::from_fn(|i| bytes[i])
}

/// Nibble `i` of a block of 32: the low ones first, then the high ones.
fn nibble(qs: &[u8], i: usize) -> u8 {
    (qs[i % 16] >> (4 * (i / 16))) & 15
}

/// Unpacks the eight blocks of 32 of a chunk; `each` fills `q` and returns scale and min.
fn eight_blocks(bytes: &[u8], chunk: &mut Chunk, each: impl Fn(&[u8], &mut [u8]) -> (f32, f32)) {
    let size = bytes.len() / 8;
    for (b, block) in bytes.chunks_exact(size).enumerate() {
        let (scale, min) = each(block, &mut chunk.q[32 * b..32 * (b + 1)]);
        chunk.scale[2 * b..2 * b + 2].fill(scale);
        chunk.min[2 * b..2 * b + 2].fill(min);
    }
}

fn fill(q: &mut [u8], value: impl Fn(usize) -> u8) {
    q.iter_mut().enumerate().for_each(|(i, q)| *q = value(i));
}

fn fifth_bit(qh: &[u8], i: usize) -> u8 {
    ((qh[i / 8] >> (i % 8)) & 1) << 4
}

impl Unpack for Q4_0 {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        eight_blocks(bytes, chunk, |block, q| {
            fill(q, |i| nibble(&block[2..], i));
            (f16_at(block, 0), 0.0)
        });
    }
}

impl Unpack for Q4_1 {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        eight_blocks(bytes, chunk, |block, q| {
            fill(q, |i| nibble(&block[4..], i));
            (f16_at(block, 0), f16_at(block, 2))
        });
    }
}

impl Unpack for Q5_0 {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        eight_blocks(bytes, chunk, |block, q| {
            fill(q, |i| nibble(&block[6..], i) | fifth_bit(&block[2..6], i));
            (f16_at(block, 0), 0.0)
        });
    }
}

impl Unpack for Q5_1 {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        eight_blocks(bytes, chunk, |block, q| {
            fill(q, |i| nibble(&block[8..], i) | fifth_bit(&block[4..8], i));
            (f16_at(block, 0), f16_at(block, 2))
        });
    }
}

impl Unpack for Q8_0 {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        eight_blocks(bytes, chunk, |block, q| {
            fill(q, |i| block[2 + i] ^ 0x80);
            (f16_at(block, 0), 0.0)
        });
    }
}

impl Unpack for Iq4Nl {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        eight_blocks(bytes, chunk, |block, q| {
            fill(q, |i| IQ4_CODES[usize::from(nibble(&block[2..], i))]);
            (f16_at(block, 0), 0.0)
        });
    }
}

impl Unpack for Q2K {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        let (d, dmin) = (f16_at(bytes, 80), f16_at(bytes, 82));
        let qs = &bytes[16..80];
        for i in 0..CHUNK {
            chunk.q[i] = (qs[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32))) & 3;
        }
        for (j, byte) in bytes[..16].iter().enumerate() {
            chunk.scale[j] = d * f32::from(byte & 15);
            chunk.min[j] = -dmin * f32::from(byte >> 4);
        }
    }
}

impl Unpack for Q3K {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        let (hmask, qs) = (&bytes[..32], &bytes[32..96]);
        let d = f16_at(bytes, 108);
        for i in 0..CHUNK {
            let low = (qs[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32))) & 3;
            let high = (hmask[i % 32] >> (i / 32)) & 1;
            chunk.q[i] = low | (high << 2);
        }
        for (j, scale) in q3k_scales(twelve(&bytes[96..108])).into_iter().enumerate() {
            chunk.scale[j] = d * f32::from(scale);
        }
        chunk.min.fill(0.0);
    }
}

/// Scales and mins that Q4_K and Q5_K have alike in their first 16 bytes.
fn q4k_head(bytes: &[u8], chunk: &mut Chunk) {
    let (d, dmin) = (f16_at(bytes, 0), f16_at(bytes, 2));
    let (scales, mins) = q4k_scales(twelve(&bytes[4..16]));
    for j in 0..16 {
        chunk.scale[j] = d * f32::from(scales[j / 2]);
        chunk.min[j] = -dmin * f32::from(mins[j / 2]);
    }
}

impl Unpack for Q4K {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        q4k_head(bytes, chunk);
        for i in 0..CHUNK {
            let g = i / 32;
            chunk.q[i] = (bytes[16 + 32 * (g / 2) + i % 32] >> (4 * (g % 2))) & 15;
        }
    }
}

impl Unpack for Q5K {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        q4k_head(bytes, chunk);
        for i in 0..CHUNK {
            let g = i / 32;
            let low = (bytes[48 + 32 * (g / 2) + i % 32] >> (4 * (g % 2))) & 15;
            chunk.q[i] = low | (((bytes[16 + i % 32] >> g) & 1) << 4);
        }
    }
}

impl Unpack for Q6K {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        let (ql, qh, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
        let d = f16_at(bytes, 208);
        for i in 0..CHUNK {
            let (h, s, l) = (i / 128, i % 128 / 32, i % 32);
            let low = (ql[64 * h + 32 * (s % 2) + l] >> (4 * (s / 2))) & 15;
            let high = (qh[32 * h + l] >> (2 * s)) & 3;
            chunk.q[i] = low | (high << 4);
        }
        for (scale, byte) in chunk.scale.iter_mut().zip(scales) {
            *scale = d * f32::from(*byte as i8);
        }
        chunk.min.fill(0.0);
    }
}

impl Unpack for Iq4Xs {
    fn unpack(bytes: &[u8], chunk: &mut Chunk) {
        let d = f16_at(bytes, 0);
        let high = u16::from_le_bytes([bytes[2], bytes[3]]);
        let scales = iq4xs_scales(high, [bytes[4], bytes[5], bytes[6], bytes[7]]);
        for (g, scale) in scales.into_iter().enumerate() {
            let qs = &bytes[8 + 16 * g..8 + 16 * (g + 1)];
            fill(&mut chunk.q[32 * g..32 * (g + 1)], |i| {
                IQ4_CODES[usize::from(nibble(qs, i))]
            });
            chunk.scale[2 * g..2 * g + 2].fill(d * f32::from(scale));
        }
        chunk.min.fill(0.0);
    }
}
