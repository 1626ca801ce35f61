//! Block formats to chunks in NEON registers. Same numbers as [`crate::scalar::Unpack`], with the offset taken off.

use std::arch::aarch64::*;

use super::widen_f16;
use crate::block::{
    BlockFormat, CHUNK_SCALES, IQ4_CODES, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K,
    Q8_0, iq4xs_scales, q3k_scales, q4k_scales,
};

/// 32 bytes.
type Bytes = [uint8x16_t; 2];
/// One f32 for each 16 elements of a chunk.
pub(super) type Scales = [f32; CHUNK_SCALES];

/// A format that can be unpacked.
pub(super) trait Unpack: BlockFormat {
    /// Codes `32 g .. 32 g + 32` of a chunk, without their offset.
    ///
    /// # Safety
    /// `from` is valid for reads of [`BlockFormat::CHUNK_BYTES`] bytes, and `g` is below 8.
    unsafe fn codes(from: *const u8, g: usize) -> [int8x16_t; 2];

    /// Scales and mins of a chunk; the mins are zero for formats without.
    ///
    /// # Safety
    /// As [`Unpack::codes`].
    unsafe fn scales(from: *const u8) -> (Scales, Scales);
}

/// Implements [`Unpack`]: `codes` gives unsigned bytes from which the offset is taken, or signed ones as they are.
macro_rules! unpack {
    ($format:ident, codes($from:ident, $g:ident) { $($codes:tt)* } scales($head:ident) { $($scales:tt)* }) => {
        impl Unpack for $format {
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn codes($from: *const u8, $g: usize) -> [int8x16_t; 2] {
                // SAFETY: reads stay within the chunk, whose length the contract gives.
                let bytes: Bytes = unsafe { $($codes)* };
                bytes.map(|bytes| vreinterpretq_s8_u8(vsubq_u8(bytes, vdupq_n_u8($format::OFFSET as u8))))
            }
            #[inline]
            #[target_feature(enable = "neon")]
            unsafe fn scales($head: *const u8) -> (Scales, Scales) {
                // SAFETY: reads stay within the chunk, whose length the contract gives.
                unsafe { $($scales)* }
            }
        }
    };
}

/// # Safety
/// `from` is valid for reads of 32 bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load(from: *const u8) -> Bytes {
    // SAFETY: 32 bytes, by the caller's word.
    unsafe { [vld1q_u8(from), vld1q_u8(from.add(16))] }
}

#[inline]
#[target_feature(enable = "neon")]
fn or(a: Bytes, b: Bytes) -> Bytes {
    [vorrq_u8(a[0], b[0]), vorrq_u8(a[1], b[1])]
}

/// 32 nibbles from the 16 bytes at `from`.
///
/// # Safety
/// `from` is valid for reads of 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn nibbles(from: *const u8) -> Bytes {
    // SAFETY: 16 bytes, by the caller's word.
    let both = unsafe { vld1q_u8(from) };
    [vandq_u8(both, vdupq_n_u8(15)), vshrq_n_u8::<4>(both)]
}

/// The bytes shifted right by `bits`, masked.
#[inline]
#[target_feature(enable = "neon")]
fn shifted(bytes: Bytes, bits: usize, mask: u8) -> Bytes {
    let right = vdupq_n_s8(-(bits as i8));
    bytes.map(|bytes| vandq_u8(vshlq_u8(bytes, right), vdupq_n_u8(mask)))
}

/// `value` where bit `g` of the byte is set, else 0.
#[inline]
#[target_feature(enable = "neon")]
fn high_bit(bits: Bytes, g: usize, value: u8) -> Bytes {
    bits.map(|bits| vandq_u8(vtstq_u8(bits, vdupq_n_u8(1 << g)), vdupq_n_u8(value)))
}

/// The fifth bits of a block: 16 where set.
///
/// # Safety
/// `from` is valid for reads of four bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn fifth_bits(from: *const u8) -> Bytes {
    // SAFETY: four bytes, by the caller's word.
    let bits = unsafe { from.cast::<[u8; 4]>().read() };
    let which = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
    let sixteen = |low, high| {
        let spread = vcombine_u8(vdup_n_u8(low), vdup_n_u8(high));
        vandq_u8(vtstq_u8(spread, which), vdupq_n_u8(16))
    };
    [sixteen(bits[0], bits[1]), sixteen(bits[2], bits[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn iq4_values(codes: Bytes) -> Bytes {
    // SAFETY: the table has 16 bytes.
    let table = unsafe { vld1q_u8(IQ4_CODES.as_ptr()) };
    codes.map(|codes| vqtbl1q_u8(table, codes))
}

/// The f16 at `from`.
///
/// # Safety
/// `from` is valid for reads of two bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn f16_at(from: *const u8) -> f32 {
    // SAFETY: two bytes, by the caller's word.
    let bits = unsafe { from.cast::<u16>().read_unaligned() };
    vgetq_lane_f32::<0>(widen_f16(vdup_n_u16(bits)))
}

/// The f16 at `from + offset` of each of eight blocks of `size` bytes, each twice.
///
/// # Safety
/// `from` is valid for reads of eight blocks.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn eight_f16(from: *const u8, size: usize, offset: usize) -> Scales {
    // SAFETY: within the chunk of eight blocks, by the caller's word.
    let bits = |b: usize| u64::from(unsafe { from.add(b * size + offset).cast::<u16>().read_unaligned() });
    let mut scales = [0.0; CHUNK_SCALES];
    for (half, scales) in scales.chunks_exact_mut(8).enumerate() {
        let b = 4 * half;
        let four = bits(b) | (bits(b + 1) << 16) | (bits(b + 2) << 32) | (bits(b + 3) << 48);
        let wide = widen_f16(vcreate_u16(four));
        // SAFETY: eight elements, four at a time.
        unsafe {
            vst1q_f32(scales.as_mut_ptr(), vzip1q_f32(wide, wide));
            vst1q_f32(scales.as_mut_ptr().add(4), vzip2q_f32(wide, wide));
        }
    }
    scales
}

/// Scales and mins of Q4_K and Q5_K.
///
/// # Safety
/// `from` is valid for reads of 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn q4k_head(from: *const u8) -> (Scales, Scales) {
    // SAFETY: 16 bytes, by the caller's word.
    let (d, dmin, bytes) = unsafe {
        (
            f16_at(from),
            f16_at(from.add(2)),
            from.add(4).cast::<[u8; 12]>().read(),
        )
    };
    let (scales, mins) = q4k_scales(bytes);
    let twice = |bytes: [u8; 8], d: f32| std::array::from_fn(|j| d * f32::from(bytes[j / 2]));
    (twice(scales, d), twice(mins, -dmin))
}

const NO_MIN: Scales = [0.0; CHUNK_SCALES];

unpack! {
    Q4_0,
    codes(from, g) { nibbles(from.add(18 * g + 2)) }
    scales(from) { (eight_f16(from, 18, 0), NO_MIN) }
}

unpack! {
    Q4_1,
    codes(from, g) { nibbles(from.add(20 * g + 4)) }
    scales(from) { (eight_f16(from, 20, 0), eight_f16(from, 20, 2)) }
}

unpack! {
    Q5_0,
    codes(from, g) { or(nibbles(from.add(22 * g + 6)), fifth_bits(from.add(22 * g + 2))) }
    scales(from) { (eight_f16(from, 22, 0), NO_MIN) }
}

unpack! {
    Q5_1,
    codes(from, g) { or(nibbles(from.add(24 * g + 8)), fifth_bits(from.add(24 * g + 4))) }
    scales(from) { (eight_f16(from, 24, 0), eight_f16(from, 24, 2)) }
}

unpack! {
    Q8_0,
    codes(from, g) { load(from.add(34 * g + 2)).map(|bytes| veorq_u8(bytes, vdupq_n_u8(128))) }
    scales(from) { (eight_f16(from, 34, 0), NO_MIN) }
}

unpack! {
    Iq4Nl,
    codes(from, g) { iq4_values(nibbles(from.add(18 * g + 2))) }
    scales(from) { (eight_f16(from, 18, 0), NO_MIN) }
}

unpack! {
    Q2K,
    codes(from, g) { shifted(load(from.add(16 + 32 * (g / 4))), 2 * (g % 4), 3) }
    scales(from) {
        let (d, dmin) = (f16_at(from.add(80)), f16_at(from.add(82)));
        let bytes = from.cast::<[u8; 16]>().read();
        (bytes.map(|byte| d * f32::from(byte & 15)), bytes.map(|byte| -dmin * f32::from(byte >> 4)))
    }
}

unpack! {
    Q3K,
    codes(from, g) {
        or(shifted(load(from.add(32 + 32 * (g / 4))), 2 * (g % 4), 3), high_bit(load(from), g, 4))
    }
    scales(from) {
        let d = f16_at(from.add(108));
        (q3k_scales(from.add(96).cast::<[u8; 12]>().read()).map(|scale| d * f32::from(scale)), NO_MIN)
    }
}

unpack! {
    Q4K,
    codes(from, g) { shifted(load(from.add(16 + 32 * (g / 2))), 4 * (g % 2), 15) }
    scales(from) { q4k_head(from) }
}

unpack! {
    Q5K,
    codes(from, g) {
        or(shifted(load(from.add(48 + 32 * (g / 2))), 4 * (g % 2), 15), high_bit(load(from.add(16)), g, 16))
    }
    scales(from) { q4k_head(from) }
}

unpack! {
    Q6K,
    codes(from, g) {
        let (half, s) = (g / 4, g % 4);
        let low = shifted(load(from.add(64 * half + 32 * (s % 2))), 4 * (s / 2), 15);
        let high = shifted(load(from.add(128 + 32 * half)), 2 * s, 3);
        or(low, high.map(|high| vshlq_n_u8::<4>(high)))
    }
    scales(from) {
        let d = f16_at(from.add(208));
        (from.add(192).cast::<[i8; 16]>().read().map(|scale| d * f32::from(scale)), NO_MIN)
    }
}

unpack! {
    Iq4Xs,
    codes(from, g) { iq4_values(nibbles(from.add(8 + 16 * g))) }
    scales(from) {
        let d = f16_at(from);
        let high = from.add(2).cast::<u16>().read_unaligned();
        let scales = iq4xs_scales(u16::from_le(high), from.add(4).cast::<[u8; 4]>().read());
        (std::array::from_fn(|j| d * f32::from(scales[j / 2])), NO_MIN)
    }
}
