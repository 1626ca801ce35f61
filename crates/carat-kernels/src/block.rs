//! The one shape that all block formats are brought into before they are multiplied.
//!
//! A *chunk* is 256 consecutive elements of a row: one K-quant block, or eight blocks of 32. In it,
//!
//! ```text
//! value[i] = scale[i / 16] * (q[i] - OFFSET) + min[i / 16]          q: u8
//! ```
//!
//! Symmetric formats (Q4_0, Q5_0, Q8_0, IQ4_NL, Q3_K, Q6_K, IQ4_XS) have an `OFFSET` and no `min`, the others
//! a `min` and no offset. `q` is unsigned because the processors' 8-bit dot product takes one unsigned and
//! one signed side. Scales are kept per 16 elements, the finest of all formats, so that one kernel serves all.

use crate::DType;

/// Elements of a chunk.
pub(crate) const CHUNK: usize = 256;
/// Scales of a chunk: one for every 16 elements.
pub(crate) const CHUNK_SCALES: usize = CHUNK / 16;

/// What the kernels must know of a block format at compile time.
pub(crate) trait BlockFormat {
    /// Name, sizes.
    const DTYPE: DType;
    /// Subtracted from every `q`.
    const OFFSET: i32;
    /// Bits of a code: every `q` is below `1 << BITS`.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for the kernels of x86-64")
    )]
    const BITS: u32;
    /// Whether `min` is used.
    const HAS_MIN: bool;
    /// Elements that share a scale: 16 or 32.
    const SUB: usize;
    /// Bytes of a chunk.
    const CHUNK_BYTES: usize;
}

/// A chunk in the common shape; see the module's head.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chunk {
    pub(crate) q: [u8; CHUNK],
    pub(crate) scale: [f32; CHUNK_SCALES],
    pub(crate) min: [f32; CHUNK_SCALES],
}

impl Chunk {
    pub(crate) fn zero() -> Chunk {
        Chunk {
            q: [0; CHUNK],
            scale: [0.0; CHUNK_SCALES],
            min: [0.0; CHUNK_SCALES],
        }
    }
}

macro_rules! formats {
    ($($name:ident: $dtype:ident, sub $sub:literal, bits $bits:literal, offset $offset:literal, min $min:literal;)*) => {$(
        pub(crate) struct $name;
        impl BlockFormat for $name {
            const DTYPE: DType = DType::$dtype;
            const OFFSET: i32 = $offset;
            const BITS: u32 = $bits;
            const HAS_MIN: bool = $min;
            const SUB: usize = $sub;
            const CHUNK_BYTES: usize = CHUNK / DType::$dtype.block_len() * DType::$dtype.block_bytes();
        }
    )*};
}

formats! {
    Q4_0:  Q4_0,   sub 32, bits 4, offset 8,   min false;
    Q4_1:  Q4_1,   sub 32, bits 4, offset 0,   min true;
    Q5_0:  Q5_0,   sub 32, bits 5, offset 16,  min false;
    Q5_1:  Q5_1,   sub 32, bits 5, offset 0,   min true;
    Q8_0:  Q8_0,   sub 32, bits 8, offset 128, min false;
    Iq4Nl: IQ4_NL, sub 32, bits 8, offset 128, min false;
    Q2K:   Q2_K,   sub 16, bits 2, offset 0,   min true;
    Q3K:   Q3_K,   sub 16, bits 3, offset 4,   min false;
    Q4K:   Q4_K,   sub 32, bits 4, offset 0,   min true;
    Q5K:   Q5_K,   sub 32, bits 5, offset 0,   min true;
    Q6K:   Q6_K,   sub 16, bits 6, offset 32,  min false;
    Iq4Xs: IQ4_XS, sub 32, bits 8, offset 128, min false;
}

/// Calls a generic function with the type of a block format: `by_format!(dtype, F => call::<F>(..), else ..)`.
macro_rules! by_format {
    ($dtype:expr, $F:ident => $call:expr, else $other:expr) => {{
        macro_rules! arm {
            ($name:ident) => {{
                type $F = $crate::block::$name;
                $call
            }};
        }
        match $dtype {
            $crate::DType::Q4_0 => arm!(Q4_0),
            $crate::DType::Q4_1 => arm!(Q4_1),
            $crate::DType::Q5_0 => arm!(Q5_0),
            $crate::DType::Q5_1 => arm!(Q5_1),
            $crate::DType::Q8_0 => arm!(Q8_0),
            $crate::DType::IQ4_NL => arm!(Iq4Nl),
            $crate::DType::Q2_K => arm!(Q2K),
            $crate::DType::Q3_K => arm!(Q3K),
            $crate::DType::Q4_K => arm!(Q4K),
            $crate::DType::Q5_K => arm!(Q5K),
            $crate::DType::Q6_K => arm!(Q6K),
            $crate::DType::IQ4_XS => arm!(Iq4Xs),
            $crate::DType::F32 | $crate::DType::F16 | $crate::DType::BF16 => $other,
        }
    }};
}
pub(crate) use by_format;

/// The values that the 4-bit codes of IQ4_NL and IQ4_XS stand for, plus 128.
pub(crate) const IQ4_CODES: [u8; 16] = [
    1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241,
];

/// The 6-bit scales and mins of a Q4_K or Q5_K block: 8 of each, from its 12 bytes.
#[inline(always)]
pub(crate) fn q4k_scales(bytes: [u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    let (a, b, c) = (word(0), word(4), word(8));
    // Four at a time: bytes 0..4 and 4..8 hold the low sixes of the first four, their top two bits belong to
    // the last four, whose low nibbles are in bytes 8..12.
    let low6 = 0x3f3f_3f3f;
    let scale_hi = (c & 0x0f0f_0f0f) | (((a >> 6) & 0x0303_0303) << 4);
    let min_hi = ((c >> 4) & 0x0f0f_0f0f) | (((b >> 6) & 0x0303_0303) << 4);
    let pair = |lo: u32, hi: u32| (u64::from(lo) | (u64::from(hi) << 32)).to_le_bytes();
    (pair(a & low6, scale_hi), pair(b & low6, min_hi))
}

/// The 16 signed scales of a Q3_K block, from its 12 bytes.
#[inline(always)]
pub(crate) fn q3k_scales(bytes: [u8; 12]) -> [i8; 16] {
    let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    let (a, b, top) = (word(0), word(4), word(8));
    let low4 = |w: u32| w & 0x0f0f_0f0f;
    let high2 = |shift: u32| ((top >> shift) & 0x0303_0303) << 4;
    let words = [
        low4(a) | high2(0),
        low4(b) | high2(2),
        low4(a >> 4) | high2(4),
        low4(b >> 4) | high2(6),
    ];
    let mut scales = [0; 16];
    for (four, word) in scales.chunks_exact_mut(4).zip(words) {
        for (scale, byte) in four.iter_mut().zip(word.to_le_bytes()) {
            *scale = byte as i8 - 32;
        }
    }
    scales
}

/// The 8 signed scales of an IQ4_XS block.
#[inline(always)]
pub(crate) fn iq4xs_scales(high: u16, low: [u8; 4]) -> [i8; 8] {
    let mut scales = [0; 8];
    for (g, scale) in scales.iter_mut().enumerate() {
        let four = (low[g / 2] >> (4 * (g % 2))) & 15;
        let two = ((high >> (2 * g)) & 3) as u8;
        *scale = (four | (two << 4)) as i8 - 32;
    }
    scales
}
