//! Sixteen weight rows side by side, unpacked to bytes: what the AVX-512 products are made from.
//!
//! ```text
//! codes  register k: elements 4 k .. 4 k + 4 of each of the 16 rows, one row to a lane
//! scale  [n][16] f32        one register for every 32 (or 16) elements; min likewise
//! ```
//!
//! All formats are read from [`Lanes`], sixteen rows with each operation. Decode takes the codes of a block of 32
//! elements straight into its products; prefill keeps them, since it multiplies them many times ([`Packed`]).

use std::arch::x86_64::*;

use super::avx512_lanes::{Lanes, PACK_ROWS, Rows};
use crate::block::{
    BlockFormat, CHUNK, IQ4_CODES, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
};

/// Chunks of 16 rows that are kept together: 64 KiB of codes and up to 16 of scales, in the L2 cache, from where a tile of
/// activations reads them as fast as from the first. Fewer mean that sums are put down and taken up again more often.
pub(crate) const PACK_CHUNKS: usize = 16;

/// Registers of codes of 32 elements.
pub(super) const BLOCK_REGISTERS: usize = 8;

/// Several chunks of 16 rows. Codes of all chunks, then scales of all: each is read as one stream.
#[repr(C, align(64))]
pub(crate) struct Packed {
    pub(super) q: [[[u8; 64]; CHUNK / 4]; PACK_CHUNKS],
    pub(super) scales: [Scales; PACK_CHUNKS],
}

/// The scales of a chunk, one register for every 32 (or 16) elements, and mins where the format has them.
#[repr(C, align(64))]
pub(super) struct Scales {
    pub(super) scale: [[f32; PACK_ROWS]; CHUNK / 16],
    pub(super) min: [[f32; PACK_ROWS]; CHUNK / 16],
}

impl Default for Packed {
    fn default() -> Packed {
        Packed {
            q: [[[0; 64]; CHUNK / 4]; PACK_CHUNKS],
            scales: std::array::from_fn(|_| Scales {
                scale: [[0.0; PACK_ROWS]; CHUNK / 16],
                min: [[0.0; PACK_ROWS]; CHUNK / 16],
            }),
        }
    }
}

impl Packed {
    /// Keeps a chunk as number `i`, below [`PACK_CHUNKS`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
    pub(super) fn set_chunk<F: Pack>(&mut self, i: usize, lanes: &Lanes) {
        // SAFETY: the features are those of this function.
        unsafe { F::scales(lanes, &mut self.scales[i]) };
        let (blocks, _) = self.q[i].as_chunks_mut::<BLOCK_REGISTERS>();
        for (pair, blocks) in blocks.chunks_exact_mut(2).enumerate() {
            for (odd, block) in blocks.iter_mut().enumerate() {
                // SAFETY: the features are those of this function.
                let codes = unsafe { F::codes(lanes, pair, odd) };
                for (to, codes) in block.iter_mut().zip(codes) {
                    // SAFETY: 64 bytes.
                    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), codes) };
                }
            }
        }
    }
}

impl Scales {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set_scale(&mut self, s: usize, lanes: __m512) {
        // SAFETY: 16 numbers.
        unsafe { _mm512_storeu_ps(self.scale[s].as_mut_ptr(), lanes) };
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set_min(&mut self, s: usize, lanes: __m512) {
        // SAFETY: 16 numbers.
        unsafe { _mm512_storeu_ps(self.min[s].as_mut_ptr(), lanes) };
    }
}

/// A format whose chunks can be packed: the numbers of [`crate::scalar::Unpack`], bit for bit.
pub(super) trait Pack: BlockFormat + Sized {
    /// Turns the first `n_pairs` of four pairs of blocks of a chunk, for [`Pack::scales`] and [`Pack::codes`].
    ///
    /// # Safety
    /// AVX-512 F and DQ are there, and the contract of [`Rows`] holds.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn fill(lanes: &mut Lanes, rows: Rows, n_pairs: usize) {
        // SAFETY: the caller's word.
        unsafe { lanes.fill::<Self>(rows, n_pairs) };
    }

    /// The same for [`Pack::scales`] and [`Pack::codes_once`].
    ///
    /// # Safety
    /// As [`Pack::fill`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn fill_once(lanes: &mut Lanes, rows: Rows, n_pairs: usize) {
        // SAFETY: the caller's word.
        unsafe { Self::fill(lanes, rows, n_pairs) };
    }

    /// The scales of a chunk: as many registers as it has scales, and mins only where the format has them.
    ///
    /// # Safety
    /// AVX-512 F, BW, VL, DQ and F16C are there.
    unsafe fn scales(lanes: &Lanes, to: &mut Scales);

    /// The codes of block `2 * pair + odd` of the chunk's eight blocks of 32 elements. By pairs, since whole pairs begin
    /// at words in all formats.
    ///
    /// # Safety
    /// As [`Pack::scales`].
    unsafe fn codes(lanes: &Lanes, pair: usize, odd: usize) -> [__m512i; BLOCK_REGISTERS];

    /// [`Pack::codes`] where they are multiplied once or twice, so that the products leave registers and time for formats
    /// that take them from the rows themselves.
    ///
    /// # Safety
    /// As [`Pack::fill`], and AVX-512 BW, VL and F16C are there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
    unsafe fn codes_once(lanes: &Lanes, _rows: Rows, pair: usize, odd: usize) -> [__m512i; BLOCK_REGISTERS] {
        // SAFETY: the caller's word.
        unsafe { Self::codes(lanes, pair, odd) }
    }
}

/// Implements [`Pack`] with the features that its bodies need.
macro_rules! pack {
    ($format:ident, scales |$from:ident, $to:ident| $scales:expr, codes |$lanes:ident, $pair:ident, $odd:ident| $codes:expr) => {
        impl Pack for $format {
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
            unsafe fn scales($from: &Lanes, $to: &mut Scales) {
                $scales
            }

            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
            unsafe fn codes($lanes: &Lanes, $pair: usize, $odd: usize) -> [__m512i; BLOCK_REGISTERS] {
                $codes
            }
        }
    };
}

/// The lower nibbles.
#[inline]
#[target_feature(enable = "avx512f")]
fn low(x: __m512i) -> __m512i {
    _mm512_and_si512(x, _mm512_set1_epi8(15))
}

/// The upper nibbles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn high(x: __m512i) -> __m512i {
    low(_mm512_srli_epi16::<4>(x))
}

/// The lower nibbles if `half` is 0, the upper ones if it is 1.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(x: __m512i, half: usize) -> __m512i {
    low(_mm512_srl_epi16(x, _mm_cvtsi32_si128(4 * half as i32)))
}

/// The bits from `from` on of each byte, moved to bit `to` of it; `mask` has them there.
#[inline]
#[target_feature(enable = "avx512f")]
fn bits(x: __m512i, from: usize, to: usize, mask: i8) -> __m512i {
    // What turns over from other bytes is not under the mask.
    let by = _mm512_set1_epi32(from as i32 - to as i32);
    _mm512_and_si512(_mm512_rorv_epi32(x, by), _mm512_set1_epi8(mask))
}

/// The values that 4-bit codes of the IQ4 formats stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn iq4_values(codes: __m512i) -> __m512i {
    // SAFETY: the table has 16 bytes.
    let table = unsafe { _mm_loadu_si128(IQ4_CODES.as_ptr().cast()) };
    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes)
}

/// Adds 16 to the four codes of each lane whose bit among the bits `4 k .. 4 k + 4` of `fifth` is set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_fifth_bits(codes: __m512i, fifth: __m512i, k: usize) -> __m512i {
    // Byte k / 2 of each lane, four times.
    let byte = 0x0101_0101 * (k / 2) as i32;
    let order = _mm512_broadcast_i32x4(_mm_setr_epi32(
        byte,
        byte + 0x0404_0404,
        byte + 0x0808_0808,
        byte + 0x0C0C_0C0C,
    ));
    let bytes = _mm512_shuffle_epi8(fifth, order);
    let bit = _mm512_set1_epi32(0x0804_0201 << (4 * (k % 2)));
    _mm512_mask_add_epi8(
        codes,
        _mm512_test_epi8_mask(bytes, bit),
        codes,
        _mm512_set1_epi8(16),
    )
}

/// The four unsigned bytes of each lane as f32, byte `j` in register `j`.
#[inline]
#[target_feature(enable = "avx512f")]
fn four_u8(x: __m512i) -> [__m512; 4] {
    let byte = _mm512_set1_epi32(255);
    [
        _mm512_cvtepi32_ps(_mm512_and_si512(x, byte)),
        _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<8>(x), byte)),
        _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<16>(x), byte)),
        _mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(x)),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn minus(x: __m512) -> __m512 {
    _mm512_sub_ps(_mm512_setzero_ps(), x)
}

/// The f16 at the beginning of each of eight blocks of `size` bytes as scales, and if `HAS_MIN` the next one as mins.
#[inline]
#[target_feature(enable = "avx512f")]
fn f16_scales<F: BlockFormat>(lanes: &Lanes, to: &mut Scales, size: usize) {
    for b in 0..8 {
        to.set_scale(b, lanes.f16(size * b));
        if F::HAS_MIN {
            to.set_min(b, lanes.f16(size * b + 2));
        }
    }
}

/// The codes in 16 bytes of nibbles at `offset`: the lower ones of all, then the upper ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibble_block(lanes: &Lanes, offset: usize) -> [__m512i; BLOCK_REGISTERS] {
    let [a, b, c, d] = lanes.words(offset);
    [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
}

/// The codes in four bytes of fifth bits at `offset` and 16 bytes of nibbles after them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn five_bit_block(lanes: &Lanes, offset: usize) -> [__m512i; BLOCK_REGISTERS] {
    let fifth = lanes.word(offset);
    let mut codes = nibble_block(lanes, offset + 4);
    for (k, codes) in codes.iter_mut().enumerate() {
        *codes = add_fifth_bits(*codes, fifth, k);
    }
    codes
}

/// The values that the codes in 16 bytes of nibbles at `offset` stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn iq4_block(lanes: &Lanes, offset: usize) -> [__m512i; BLOCK_REGISTERS] {
    let mut codes = nibble_block(lanes, offset);
    for codes in &mut codes {
        *codes = iq4_values(*codes);
    }
    codes
}

pack!(
    Q4_0,
    scales | lanes,
    to | f16_scales::<Q4_0>(lanes, to, 18),
    codes | lanes,
    pair,
    odd | nibble_block(lanes, 36 * pair + 18 * odd + 2)
);

pack!(
    Iq4Nl,
    scales | lanes,
    to | f16_scales::<Iq4Nl>(lanes, to, 18),
    codes | lanes,
    pair,
    odd | iq4_block(lanes, 36 * pair + 18 * odd + 2)
);

pack!(
    Q4_1,
    scales | lanes,
    to | f16_scales::<Q4_1>(lanes, to, 20),
    codes | lanes,
    pair,
    odd | nibble_block(lanes, 40 * pair + 20 * odd + 4)
);

pack!(
    Q5_0,
    scales | lanes,
    to | f16_scales::<Q5_0>(lanes, to, 22),
    codes | lanes,
    pair,
    odd | five_bit_block(lanes, 44 * pair + 22 * odd + 2)
);

pack!(
    Q5_1,
    scales | lanes,
    to | f16_scales::<Q5_1>(lanes, to, 24),
    codes | lanes,
    pair,
    odd | five_bit_block(lanes, 48 * pair + 24 * odd + 4)
);

impl Pack for Q8_0 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn fill(lanes: &mut Lanes, rows: Rows, n_pairs: usize) {
        // SAFETY: the caller's word.
        unsafe { lanes.fill_q8_0(rows, n_pairs) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn fill_once(lanes: &mut Lanes, rows: Rows, n_pairs: usize) {
        // SAFETY: the caller's word.
        unsafe { lanes.fill_q8_0_scales(rows, n_pairs) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
    unsafe fn scales(lanes: &Lanes, to: &mut Scales) {
        for b in 0..8 {
            to.set_scale(b, lanes.f16(4 * (64 + b)));
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
    unsafe fn codes(lanes: &Lanes, pair: usize, odd: usize) -> [__m512i; BLOCK_REGISTERS] {
        unsigned(lanes.words(32 * (2 * pair + odd)))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
    unsafe fn codes_once(_lanes: &Lanes, rows: Rows, pair: usize, odd: usize) -> [__m512i; BLOCK_REGISTERS] {
        // SAFETY: the caller's word; the codes are the last 32 bytes of a block of 34.
        unsigned(unsafe { rows.wide_columns(34 * (2 * pair + odd) + 2) })
    }
}

/// Signed bytes plus 128.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn unsigned(mut codes: [__m512i; BLOCK_REGISTERS]) -> [__m512i; BLOCK_REGISTERS] {
    for codes in &mut codes {
        *codes = _mm512_xor_si512(*codes, _mm512_set1_epi8(-128));
    }
    codes
}

/// Scales and mins of Q4_K and Q5_K: f16 `d`, f16 `dmin`, 12 bytes of 6-bit numbers (see [`crate::block::q4k_scales`]).
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q4k_scales(lanes: &Lanes, to: &mut Scales) {
    let [a, b, c] = lanes.words(4);
    let (d, minus_dmin) = (lanes.f16(0), minus(lanes.f16(2)));
    let six = |x: __m512i| _mm512_and_si512(x, _mm512_set1_epi8(63));
    let top = |x: __m512i| bits(x, 6, 4, 0x30);
    let scales = [six(a), _mm512_or_si512(low(c), top(a))];
    let mins = [six(b), _mm512_or_si512(high(c), top(b))];
    for half in 0..2 {
        for (j, scale) in four_u8(scales[half]).into_iter().enumerate() {
            to.set_scale(4 * half + j, _mm512_mul_ps(scale, d));
        }
        for (j, min) in four_u8(mins[half]).into_iter().enumerate() {
            to.set_min(4 * half + j, _mm512_mul_ps(min, minus_dmin));
        }
    }
}

pack!(
    Q4K,
    scales | lanes,
    to | q4k_scales(lanes, to),
    codes | lanes,
    pair,
    odd | {
        let mut codes = lanes.words(16 + 32 * pair);
        for codes in &mut codes {
            *codes = nibbles(*codes, odd);
        }
        codes
    }
);

pack!(
    Q5K,
    scales | lanes,
    to | q4k_scales(lanes, to),
    codes | lanes,
    pair,
    odd | {
        let mut codes = lanes.words(48 + 32 * pair);
        for (k, codes) in codes.iter_mut().enumerate() {
            let fifth = bits(lanes.word(16 + 4 * k), 2 * pair + odd, 4, 16);
            *codes = _mm512_or_si512(nibbles(*codes, odd), fifth);
        }
        codes
    }
);

/// Sixteen signed 8-bit scales at `offset` times `d`.
#[inline]
#[target_feature(enable = "avx512f")]
fn sixteen_scales(lanes: &Lanes, to: &mut Scales, offset: usize, d: __m512) {
    for (i, bytes) in lanes.words::<4>(offset).into_iter().enumerate() {
        for j in 0..4 {
            let left = _mm512_sll_epi32(bytes, _mm_cvtsi32_si128(24 - 8 * j));
            let scale = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(left));
            to.set_scale(4 * i + j as usize, _mm512_mul_ps(scale, d));
        }
    }
}

// Of the K formats with 16 elements to a scale, each half of a chunk has its own bytes, and its four blocks are the
// fields of these: blocks 0 and 1 of a half are the pairs of even number.

pack!(
    Q6K,
    scales | lanes,
    to | sixteen_scales(lanes, to, 192, lanes.f16(208)),
    codes | lanes,
    pair,
    odd | {
        let (half, upper) = (pair / 2, pair % 2);
        let mut codes = lanes.words(64 * half + 32 * odd);
        for (k, codes) in codes.iter_mut().enumerate() {
            let top = bits(lanes.word(128 + 32 * half + 4 * k), 4 * upper + 2 * odd, 4, 0x30);
            *codes = _mm512_or_si512(nibbles(*codes, upper), top);
        }
        codes
    }
);

pack!(
    Q2K,
    scales | lanes,
    to | {
        let (d, minus_dmin) = (lanes.f16(80), minus(lanes.f16(82)));
        for (i, bytes) in lanes.words::<4>(0).into_iter().enumerate() {
            let (scales, mins) = (four_u8(low(bytes)), four_u8(high(bytes)));
            for j in 0..4 {
                to.set_scale(4 * i + j, _mm512_mul_ps(scales[j], d));
                to.set_min(4 * i + j, _mm512_mul_ps(mins[j], minus_dmin));
            }
        }
    },
    codes | lanes,
    pair,
    odd | {
        let mut codes = lanes.words(16 + 32 * (pair / 2));
        for codes in &mut codes {
            *codes = bits(*codes, 4 * (pair % 2) + 2 * odd, 0, 3);
        }
        codes
    }
);

pack!(
    Q3K,
    scales | lanes,
    to | {
        // Scales of 6 bits in 12 bytes (see `crate::block::q3k_scales`), less 32.
        let [a, b, top] = lanes.words(96);
        let d = lanes.f16(108);
        let words = [
            _mm512_or_si512(low(a), bits(top, 0, 4, 0x30)),
            _mm512_or_si512(low(b), bits(top, 2, 4, 0x30)),
            _mm512_or_si512(high(a), bits(top, 4, 4, 0x30)),
            _mm512_or_si512(high(b), bits(top, 6, 4, 0x30)),
        ];
        for (i, word) in words.into_iter().enumerate() {
            for (j, scale) in four_u8(word).into_iter().enumerate() {
                let scale = _mm512_sub_ps(scale, _mm512_set1_ps(32.0));
                to.set_scale(4 * i + j, _mm512_mul_ps(scale, d));
            }
        }
    },
    codes | lanes,
    pair,
    odd | {
        let mut codes = lanes.words(32 + 32 * (pair / 2));
        for (k, codes) in codes.iter_mut().enumerate() {
            let third = bits(lanes.word(4 * k), 2 * pair + odd, 2, 4);
            *codes = _mm512_or_si512(bits(*codes, 4 * (pair % 2) + 2 * odd, 0, 3), third);
        }
        codes
    }
);

pack!(
    Iq4Xs,
    scales | lanes,
    to | {
        // f16 d, 16 bits with the upper twos of eight scales, 4 bytes with their lower fours (see
        // `crate::block::iq4xs_scales`), less 32.
        let [head, low_bits] = lanes.words(0);
        let d = lanes.f16(0);
        for g in 0..8 {
            let shift = |x: __m512i, n: usize| _mm512_srl_epi32(x, _mm_cvtsi32_si128(n as i32));
            let four = _mm512_and_si512(shift(low_bits, 4 * g), _mm512_set1_epi32(15));
            let two = _mm512_and_si512(shift(head, 16 + 2 * g), _mm512_set1_epi32(3));
            let scale = _mm512_or_si512(four, _mm512_slli_epi32::<4>(two));
            let scale = _mm512_cvtepi32_ps(_mm512_sub_epi32(scale, _mm512_set1_epi32(32)));
            to.set_scale(g, _mm512_mul_ps(scale, d));
        }
    },
    codes | lanes,
    pair,
    odd | iq4_block(lanes, 8 + 32 * pair + 16 * odd)
);
