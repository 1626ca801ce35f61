//! Block formats to chunks in AVX2 registers. Same numbers as [`crate::scalar::Unpack`], bit for bit.

use std::arch::x86_64::*;

use super::f16_at;
use crate::block::{
    BlockFormat, IQ4_CODES, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
    iq4xs_scales, q3k_scales, q4k_scales,
};

/// One f32 for each 16 elements of a chunk: the first eight, the last eight.
pub(super) type Scales = [__m256; 2];

/// A format that can be unpacked.
pub(super) trait Unpack: BlockFormat {
    /// Codes `32 g .. 32 g + 32` of a chunk. Best where `g` is a constant after inlining.
    ///
    /// # Safety
    /// - AVX2 and F16C are there.
    /// - `from` is valid for reads of [`BlockFormat::CHUNK_BYTES`] bytes, and `g` is below 8.
    unsafe fn codes(from: *const u8, g: usize) -> __m256i;

    /// Scales and mins of a chunk; the mins are zero for formats without.
    ///
    /// # Safety
    /// As [`Unpack::codes`].
    unsafe fn scales(from: *const u8) -> (Scales, Scales);
}

/// Implements [`Unpack`] with the features that its bodies need.
macro_rules! unpack {
    ($format:ident, codes($from:ident, $g:ident) { $($codes:tt)* } scales($head:ident) { $($scales:tt)* }) => {
        impl Unpack for $format {
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn codes($from: *const u8, $g: usize) -> __m256i {
                // SAFETY: reads stay within the chunk, whose length the contract gives.
                unsafe { $($codes)* }
            }
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            unsafe fn scales($head: *const u8) -> (Scales, Scales) {
                // SAFETY: reads stay within the chunk, whose length the contract gives.
                unsafe { $($scales)* }
            }
        }
    };
}

/// Eight f32, each twice.
#[inline]
#[target_feature(enable = "avx2")]
fn twice(x: __m256) -> Scales {
    [
        _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
        _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7)),
    ]
}

/// The f16 at `from + offset` of each of eight blocks of `size` bytes, each twice.
///
/// Put together in two general registers: through memory, one load would wait for eight stores.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn eight_f16(from: *const u8, size: usize, offset: usize) -> Scales {
    // SAFETY: within the chunk of eight blocks, by the caller's word.
    let bits = |b: usize| u64::from(unsafe { from.add(b * size + offset).cast::<u16>().read_unaligned() });
    let four = |b| bits(b) | (bits(b + 1) << 16) | (bits(b + 2) << 32) | (bits(b + 3) << 48);
    let eight = _mm_set_epi64x(four(4).cast_signed(), four(0).cast_signed());
    twice(_mm256_cvtph_ps(eight))
}

/// 32 nibbles from the 16 bytes at `from`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn nibbles(from: *const u8) -> __m256i {
    // SAFETY: 16 bytes, by the caller's word.
    let both = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(from.cast()) });
    // Bits that cross from byte to byte within a lane end up above the nibble and are masked away.
    let shifted = _mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    _mm256_and_si256(shifted, _mm256_set1_epi8(15))
}

/// The 32 bytes at `from`, shifted right by `bits`, masked.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn shifted(from: *const u8, bits: usize, mask: i8) -> __m256i {
    // SAFETY: 32 bytes, by the caller's word.
    let bytes = unsafe { _mm256_loadu_si256(from.cast()) };
    let shifted = _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(bits as i32));
    _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
}

/// `value` where bit `g` of the byte is set, else 0.
#[inline]
#[target_feature(enable = "avx2")]
fn high_bit(bits: __m256i, g: usize, value: i8) -> __m256i {
    let which = _mm256_set1_epi8((1u8 << g) as i8);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(bits, which), which);
    _mm256_and_si256(set, _mm256_set1_epi8(value))
}

/// The fifth bits of a block: 16 where set.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn fifth_bits(from: *const u8) -> __m256i {
    // SAFETY: four bytes, by the caller's word.
    let bits = _mm256_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() });
    const ONES: i64 = 0x0101_0101_0101_0101;
    let spread = _mm256_shuffle_epi8(bits, _mm256_setr_epi64x(0, ONES, 2 * ONES, 3 * ONES));
    let which = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
    let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, which), which);
    _mm256_and_si256(set, _mm256_set1_epi8(16))
}

#[inline]
#[target_feature(enable = "avx2")]
fn iq4_values(codes: __m256i) -> __m256i {
    // SAFETY: the table has 16 bytes.
    let table = unsafe { _mm_loadu_si128(IQ4_CODES.as_ptr().cast()) };
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes)
}

/// Eight unsigned bytes as f32 times `d`, each twice.
#[inline]
#[target_feature(enable = "avx2")]
fn eight_u8(bytes: [u8; 8], d: f32) -> Scales {
    let wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes)));
    twice(_mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(d)))
}

/// Sixteen signed bytes as f32 times `d`.
#[inline]
#[target_feature(enable = "avx2")]
fn sixteen_i8(bytes: __m128i, d: f32) -> Scales {
    let half = |bytes| _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_set1_ps(d));
    [half(bytes), half(_mm_unpackhi_epi64(bytes, bytes))]
}

#[inline]
#[target_feature(enable = "avx2")]
fn no_min() -> Scales {
    [_mm256_setzero_ps(); 2]
}

/// Scales and mins of Q4_K and Q5_K.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn q4k_head(from: *const u8) -> (Scales, Scales) {
    // SAFETY: 16 bytes, by the caller's word.
    let (d, dmin, bytes) = unsafe {
        (
            f16_at(from),
            f16_at(from.add(2)),
            from.add(4).cast::<[u8; 12]>().read_unaligned(),
        )
    };
    let (scales, mins) = q4k_scales(bytes);
    (eight_u8(scales, d), eight_u8(mins, -dmin))
}

unpack! {
    Q4_0,
    codes(from, g) { nibbles(from.add(18 * g + 2)) }
    scales(from) { (eight_f16(from, 18, 0), no_min()) }
}

unpack! {
    Q4_1,
    codes(from, g) { nibbles(from.add(20 * g + 4)) }
    scales(from) { (eight_f16(from, 20, 0), eight_f16(from, 20, 2)) }
}

unpack! {
    Q5_0,
    codes(from, g) { _mm256_or_si256(nibbles(from.add(22 * g + 6)), fifth_bits(from.add(22 * g + 2))) }
    scales(from) { (eight_f16(from, 22, 0), no_min()) }
}

unpack! {
    Q5_1,
    codes(from, g) { _mm256_or_si256(nibbles(from.add(24 * g + 8)), fifth_bits(from.add(24 * g + 4))) }
    scales(from) { (eight_f16(from, 24, 0), eight_f16(from, 24, 2)) }
}

unpack! {
    Q8_0,
    codes(from, g) {
        _mm256_xor_si256(_mm256_loadu_si256(from.add(34 * g + 2).cast()), _mm256_set1_epi8(-128))
    }
    scales(from) { (eight_f16(from, 34, 0), no_min()) }
}

unpack! {
    Iq4Nl,
    codes(from, g) { iq4_values(nibbles(from.add(18 * g + 2))) }
    scales(from) { (eight_f16(from, 18, 0), no_min()) }
}

unpack! {
    Q2K,
    codes(from, g) { shifted(from.add(16 + 32 * (g / 4)), 2 * (g % 4), 3) }
    scales(from) {
        let both = _mm_loadu_si128(from.cast());
        let low = _mm_and_si128(both, _mm_set1_epi8(15));
        let high = _mm_and_si128(_mm_srli_epi16::<4>(both), _mm_set1_epi8(15));
        let (d, dmin) = (f16_at(from.add(80)), f16_at(from.add(82)));
        (sixteen_i8(low, d), sixteen_i8(high, -dmin))
    }
}

unpack! {
    Q3K,
    codes(from, g) {
        let low = shifted(from.add(32 + 32 * (g / 4)), 2 * (g % 4), 3);
        _mm256_or_si256(low, high_bit(_mm256_loadu_si256(from.cast()), g, 4))
    }
    scales(from) {
        let scales = q3k_scales(from.add(96).cast::<[u8; 12]>().read_unaligned());
        let scale = sixteen_i8(_mm_loadu_si128(scales.as_ptr().cast()), f16_at(from.add(108)));
        (scale, no_min())
    }
}

unpack! {
    Q4K,
    codes(from, g) { shifted(from.add(16 + 32 * (g / 2)), 4 * (g % 2), 15) }
    scales(from) { q4k_head(from) }
}

unpack! {
    Q5K,
    codes(from, g) {
        let low = shifted(from.add(48 + 32 * (g / 2)), 4 * (g % 2), 15);
        _mm256_or_si256(low, high_bit(_mm256_loadu_si256(from.add(16).cast()), g, 16))
    }
    scales(from) { q4k_head(from) }
}

unpack! {
    Q6K,
    codes(from, g) {
        let (half, s) = (g / 4, g % 4);
        let low = shifted(from.add(64 * half + 32 * (s % 2)), 4 * (s / 2), 15);
        let high = shifted(from.add(128 + 32 * half), 2 * s, 3);
        _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
    }
    scales(from) {
        let scales = _mm_loadu_si128(from.add(192).cast());
        (sixteen_i8(scales, f16_at(from.add(208))), no_min())
    }
}

unpack! {
    Iq4Xs,
    codes(from, g) { iq4_values(nibbles(from.add(8 + 16 * g))) }
    scales(from) {
        let high = from.add(2).cast::<u16>().read_unaligned();
        let scales = iq4xs_scales(u16::from_le(high), from.add(4).cast::<[u8; 4]>().read_unaligned());
        let wide = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(scales.as_ptr().cast())));
        (twice(_mm256_mul_ps(wide, _mm256_set1_ps(f16_at(from)))), no_min())
    }
}
