//! Block formats to chunks in AVX-512 registers. Same numbers as [`crate::scalar::Unpack`], bit for bit.
//!
//! Elements are kept in their natural order: 64 of them to a register. Where a byte holds several elements it
//! is broadcast to the places that want it and each lane shifts by its own count, which costs the same as
//! splitting nibbles and needs no reordering of the activations.

use std::arch::x86_64::*;

use super::f16_at;
use crate::block::{
    BlockFormat, IQ4_CODES, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
    iq4xs_scales, q3k_scales, q4k_scales,
};

/// A chunk in registers; lane `j` of `scale` and `min` belongs to elements `16 j .. 16 j + 16`.
pub(super) struct Unpacked {
    pub(super) q: [__m512i; 4],
    pub(super) scale: __m512,
    /// Zero for formats without a min.
    pub(super) min: __m512,
}

/// A format that can be unpacked.
pub(super) trait Unpack: BlockFormat {
    /// # Safety
    /// - AVX-512 F, BW, VL, DQ and F16C are there.
    /// - `from` is valid for reads of [`BlockFormat::CHUNK_BYTES`] bytes.
    unsafe fn unpack(from: *const u8) -> Unpacked;
}

/// The four registers of a chunk. Written out, not a closure: a closure passed through a function without the
/// features is not sure to be inlined, and `j` must be a constant.
macro_rules! four {
    (|$j:ident| $value:expr) => {
        [
            {
                let $j = 0usize;
                $value
            },
            {
                let $j = 1usize;
                $value
            },
            {
                let $j = 2usize;
                $value
            },
            {
                let $j = 3usize;
                $value
            },
        ]
    };
}

/// Implements [`Unpack`] with the features that its body needs.
macro_rules! unpack {
    ($format:ident, |$from:ident| $body:block) => {
        impl Unpack for $format {
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
            unsafe fn unpack($from: *const u8) -> Unpacked {
                // SAFETY: reads stay within the chunk, whose length the contract gives.
                unsafe { $body }
            }
        }
    };
}

/// Eight f32, each twice.
#[inline]
#[target_feature(enable = "avx512f")]
fn twice(x: __m256) -> __m512 {
    let index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    _mm512_permutexvar_ps(index, _mm512_castps256_ps512(x))
}

/// The f16 at `from + offset` of each of eight blocks of `size` bytes, each twice.
///
/// Two loads and one permutation where four blocks' numbers fit a register; storing eight words to load them again as
/// one would wait for the stores.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
unsafe fn eight_f16(from: *const u8, size: usize, offset: usize) -> __m512 {
    let bits = if 3 * size + offset + 2 <= 64 {
        // SAFETY: eight blocks of 16 bytes or more, by the caller's word; both loads lie within them.
        let (first, second) = unsafe {
            (
                _mm512_loadu_si512(from.cast()),
                _mm512_loadu_si512(from.add(4 * size).cast()),
            )
        };
        // Indexes from 32 on are words of `second`.
        let at = |b: i16| b % 4 * (size as i16 / 2) + offset as i16 / 2 + b / 4 * 32;
        let index = _mm512_castsi256_si512(_mm256_setr_epi16(
            at(0),
            at(0),
            at(1),
            at(1),
            at(2),
            at(2),
            at(3),
            at(3),
            at(4),
            at(4),
            at(5),
            at(5),
            at(6),
            at(6),
            at(7),
            at(7),
        ));
        _mm512_castsi512_si256(_mm512_permutex2var_epi16(first, index, second))
    } else {
        // SAFETY: within the chunk of eight blocks, by the caller's word.
        let word = |b: usize| unsafe { from.add(b * size + offset).cast::<i16>().read_unaligned() };
        let words = _mm_setr_epi16(
            word(0),
            word(1),
            word(2),
            word(3),
            word(4),
            word(5),
            word(6),
            word(7),
        );
        let doubled = _mm256_cvtepu16_epi32(words);
        _mm256_or_si256(doubled, _mm256_slli_epi32::<16>(doubled))
    };
    _mm512_cvtph_ps(bits)
}

/// 64 nibbles from the 16 bytes at `first` and the 16 at `second`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn nibbles(first: *const u8, second: *const u8) -> __m512i {
    // SAFETY: 16 bytes each, by the caller's word.
    let (a, b) = unsafe { (_mm_loadu_si128(first.cast()), _mm_loadu_si128(second.cast())) };
    let both = _mm512_inserti64x4::<1>(
        _mm512_castsi256_si512(_mm256_broadcastsi128_si256(a)),
        _mm256_broadcastsi128_si256(b),
    );
    let shift = _mm512_setr_epi64(0, 0, FOUR, FOUR, 0, 0, FOUR, FOUR);
    _mm512_and_si512(_mm512_srlv_epi16(both, shift), _mm512_set1_epi8(15))
}

/// The count 4 in each 16-bit lane.
const FOUR: i64 = 0x0004_0004_0004_0004;

/// The 32 bytes at `from` twice, the lower copy shifted right by `low` bits, the upper by `high`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn shifted_pair(from: *const u8, low: i16, high: i16) -> __m512i {
    // SAFETY: 32 bytes, by the caller's word.
    let both = _mm512_broadcast_i64x4(unsafe { _mm256_loadu_si256(from.cast()) });
    let shift = _mm512_inserti64x4::<1>(
        _mm512_castsi256_si512(_mm256_set1_epi16(low)),
        _mm256_set1_epi16(high),
    );
    _mm512_srlv_epi16(both, shift)
}

/// Adds `value` where bit `2 j` (lower 32 elements) or `2 j + 1` (upper) of the byte in `bits` is set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_high_bit(q: __m512i, bits: __m512i, j: usize, value: i8) -> __m512i {
    let (low, high) = (1u8 << (2 * j), 1u8 << (2 * j + 1));
    let which = _mm512_inserti64x4::<1>(
        _mm512_castsi256_si512(_mm256_set1_epi8(low as i8)),
        _mm256_set1_epi8(high as i8),
    );
    _mm512_mask_add_epi8(q, _mm512_test_epi8_mask(bits, which), q, _mm512_set1_epi8(value))
}

/// The fifth bits of two blocks: 16 where set.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn fifth_bits(first: *const u8, second: *const u8) -> __m512i {
    // SAFETY: four bytes each, by the caller's word.
    let (a, b) = unsafe {
        (
            first.cast::<u32>().read_unaligned(),
            second.cast::<u32>().read_unaligned(),
        )
    };
    _mm512_maskz_set1_epi8(u64::from(a) | (u64::from(b) << 32), 16)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn iq4_values(codes: __m512i) -> __m512i {
    // SAFETY: the table has 16 bytes.
    let table = unsafe { _mm_loadu_si128(IQ4_CODES.as_ptr().cast()) };
    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes)
}

/// Eight unsigned bytes as f32 times `d`, each twice.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn eight_u8(bytes: [u8; 8], d: f32) -> __m512 {
    let wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes)));
    twice(_mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_set1_ps(d)))
}

/// Sixteen signed bytes as f32 times `d`.
#[inline]
#[target_feature(enable = "avx512f")]
fn sixteen_i8(bytes: __m128i, d: f32) -> __m512 {
    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)), _mm512_set1_ps(d))
}

/// Scales and mins of Q4_K and Q5_K.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,f16c")]
unsafe fn q4k_head(from: *const u8) -> (__m512, __m512) {
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

unpack!(Q4_0, |from| {
    let q = four!(|j| nibbles(from.add(36 * j + 2), from.add(36 * j + 20)));
    Unpacked {
        q,
        scale: eight_f16(from, 18, 0),
        min: _mm512_setzero_ps(),
    }
});

unpack!(Q4_1, |from| {
    let q = four!(|j| nibbles(from.add(40 * j + 4), from.add(40 * j + 24)));
    Unpacked {
        q,
        scale: eight_f16(from, 20, 0),
        min: eight_f16(from, 20, 2),
    }
});

unpack!(Q5_0, |from| {
    let q = four!(|j| {
        let block = from.add(44 * j);
        _mm512_or_si512(
            nibbles(block.add(6), block.add(28)),
            fifth_bits(block.add(2), block.add(24)),
        )
    });
    Unpacked {
        q,
        scale: eight_f16(from, 22, 0),
        min: _mm512_setzero_ps(),
    }
});

unpack!(Q5_1, |from| {
    let q = four!(|j| {
        let block = from.add(48 * j);
        _mm512_or_si512(
            nibbles(block.add(8), block.add(32)),
            fifth_bits(block.add(4), block.add(28)),
        )
    });
    Unpacked {
        q,
        scale: eight_f16(from, 24, 0),
        min: eight_f16(from, 24, 2),
    }
});

unpack!(Q8_0, |from| {
    let q = four!(|j| {
        let block = from.add(68 * j);
        let low = _mm256_loadu_si256(block.add(2).cast());
        let high = _mm256_loadu_si256(block.add(36).cast());
        let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
        _mm512_xor_si512(both, _mm512_set1_epi8(-128))
    });
    Unpacked {
        q,
        scale: eight_f16(from, 34, 0),
        min: _mm512_setzero_ps(),
    }
});

unpack!(Iq4Nl, |from| {
    let q = four!(|j| iq4_values(nibbles(from.add(36 * j + 2), from.add(36 * j + 20))));
    Unpacked {
        q,
        scale: eight_f16(from, 18, 0),
        min: _mm512_setzero_ps(),
    }
});

unpack!(Q2K, |from| {
    let q = four!(|j| {
        let shift = 4 * (j % 2) as i16;
        let bits = shifted_pair(from.add(16 + 32 * (j / 2)), shift, shift + 2);
        _mm512_and_si512(bits, _mm512_set1_epi8(3))
    });
    let both = _mm_loadu_si128(from.cast());
    let low = _mm_and_si128(both, _mm_set1_epi8(15));
    let high = _mm_and_si128(_mm_srli_epi16::<4>(both), _mm_set1_epi8(15));
    let (d, dmin) = (f16_at(from.add(80)), f16_at(from.add(82)));
    Unpacked {
        q,
        scale: sixteen_i8(low, d),
        min: sixteen_i8(high, -dmin),
    }
});

unpack!(Q3K, |from| {
    let mask = _mm512_broadcast_i64x4(_mm256_loadu_si256(from.cast()));
    let q = four!(|j| {
        let shift = 4 * (j % 2) as i16;
        let bits = shifted_pair(from.add(32 + 32 * (j / 2)), shift, shift + 2);
        add_high_bit(_mm512_and_si512(bits, _mm512_set1_epi8(3)), mask, j, 4)
    });
    let scales = q3k_scales(from.add(96).cast::<[u8; 12]>().read_unaligned());
    let scale = sixteen_i8(_mm_loadu_si128(scales.as_ptr().cast()), f16_at(from.add(108)));
    Unpacked {
        q,
        scale,
        min: _mm512_setzero_ps(),
    }
});

unpack!(Q4K, |from| {
    let q = four!(|j| _mm512_and_si512(shifted_pair(from.add(16 + 32 * j), 0, 4), _mm512_set1_epi8(15)));
    let (scale, min) = q4k_head(from);
    Unpacked { q, scale, min }
});

unpack!(Q5K, |from| {
    let high = _mm512_broadcast_i64x4(_mm256_loadu_si256(from.add(16).cast()));
    let q = four!(|j| {
        let low = _mm512_and_si512(shifted_pair(from.add(48 + 32 * j), 0, 4), _mm512_set1_epi8(15));
        add_high_bit(low, high, j, 16)
    });
    let (scale, min) = q4k_head(from);
    Unpacked { q, scale, min }
});

unpack!(Q6K, |from| {
    let q = four!(|j| {
        let half = j / 2;
        let both = _mm512_loadu_si512(from.add(64 * half).cast());
        let low = if j.is_multiple_of(2) {
            both
        } else {
            _mm512_srli_epi16::<4>(both)
        };
        let low = _mm512_and_si512(low, _mm512_set1_epi8(15));
        let shift = 4 * (j % 2) as i16;
        let high = shifted_pair(from.add(128 + 32 * half), shift, shift + 2);
        let high = _mm512_slli_epi16::<4>(_mm512_and_si512(high, _mm512_set1_epi8(3)));
        _mm512_or_si512(low, high)
    });
    let scale = sixteen_i8(_mm_loadu_si128(from.add(192).cast()), f16_at(from.add(208)));
    Unpacked {
        q,
        scale,
        min: _mm512_setzero_ps(),
    }
});

unpack!(Iq4Xs, |from| {
    let q = four!(|j| iq4_values(nibbles(from.add(8 + 32 * j), from.add(24 + 32 * j))));
    let high = from.add(2).cast::<u16>().read_unaligned();
    let scales = iq4xs_scales(u16::from_le(high), from.add(4).cast::<[u8; 4]>().read_unaligned());
    let wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(scales.as_ptr().cast()));
    let scale = twice(_mm256_mul_ps(
        _mm256_cvtepi32_ps(wide),
        _mm256_set1_ps(f16_at(from)),
    ));
    Unpacked {
        q,
        scale,
        min: _mm512_setzero_ps(),
    }
});
