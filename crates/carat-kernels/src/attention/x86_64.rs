//! Quantized rows with AVX2 and AVX-512 VNNI.
//!
//! AVX-512: 64 elements a chunk, `vpdpbusd` on bytes made unsigned by adding 128 (q8_0) or as they are (q4_0).
//! AVX2: 32 elements, `vpmaddubsw` on magnitudes of keys and queries with the keys' signs: two products are at most
//! 2 x 127 x 127, which 16 bits hold.

use std::arch::x86_64::*;

use super::lanes::KvSimd;
use crate::x86_64::{Avx2, Avx512};

// SAFETY: `Avx512` is made only inside functions that have the features.
unsafe impl KvSimd for Avx512 {
    type Chunk = __m512i;
    const CHUNK: usize = 64;
    const OFFSET_Q8: i32 = 128;
    const OFFSET_Q4: i32 = 8;

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a hint, which no address can make fail.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m512 {
        // SAFETY: sixteen bytes, as the trait's contract says.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, from: *const u8, high: bool) -> __m512 {
        // SAFETY: sixteen bytes, as the trait's contract says.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()));
            _mm512_cvtepi32_ps(if high {
                _mm512_srli_epi32::<4>(bytes)
            } else {
                _mm512_and_si512(bytes, _mm512_set1_epi32(15))
            })
        }
    }
    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> __m512 {
        // SAFETY: two bytes, as the trait's contract says.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(from.cast::<i16>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn chunk_q8(self, values: *const u8, i: usize) -> __m512i {
        // SAFETY: the row has this chunk of 64 bytes.
        let bytes = unsafe { _mm512_loadu_si512(values.add(64 * i).cast()) };
        // SAFETY: register-only instructions of a set that `self` proves.
        unsafe { _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn chunk_q4(self, values: *const u8, i: usize) -> __m512i {
        // SAFETY: the row has this chunk of 32 bytes.
        unsafe {
            let bytes = _mm256_loadu_si256(values.add(32 * i).cast());
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(bytes), _mm256_srli_epi16::<4>(bytes));
            _mm512_and_si512(both, _mm512_set1_epi8(15))
        }
    }
    #[inline(always)]
    unsafe fn chunk_scales(self, scales: *const u8, i: usize) -> __m512 {
        // SAFETY: the row has this chunk's two scales, four bytes.
        unsafe {
            let both = _mm256_set1_epi32(scales.add(4 * i).cast::<i32>().read_unaligned());
            let first = _mm_set1_epi16(0x0100);
            let each = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(first), _mm_set1_epi16(0x0302));
            _mm512_cvtph_ps(_mm256_shuffle_epi8(both, each))
        }
    }
    #[inline(always)]
    unsafe fn dot(self, chunk: __m512i, q: *const i8, start: *const i32) -> __m512 {
        // SAFETY: `q` has 64 bytes and `start` sixteen lanes.
        unsafe {
            let (q, start) = (_mm512_loadu_si512(q.cast()), _mm512_loadu_si512(start.cast()));
            _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start, chunk, q))
        }
    }
}

// SAFETY: `Avx2` is made only inside functions that have the features.
unsafe impl KvSimd for Avx2 {
    type Chunk = __m256i;
    const CHUNK: usize = 32;
    const OFFSET_Q8: i32 = 0;
    const OFFSET_Q4: i32 = 0;

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a hint, which no address can make fail.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> __m256 {
        // SAFETY: eight bytes, as the trait's contract says.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, from: *const u8, high: bool) -> __m256 {
        // SAFETY: eight bytes, as the trait's contract says.
        unsafe {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            _mm256_cvtepi32_ps(if high {
                _mm256_srli_epi32::<4>(bytes)
            } else {
                _mm256_and_si256(bytes, _mm256_set1_epi32(15))
            })
        }
    }
    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> __m256 {
        // SAFETY: two bytes, as the trait's contract says.
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(from.cast::<i16>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn chunk_q8(self, values: *const u8, i: usize) -> __m256i {
        // SAFETY: the row has this chunk of 32 bytes.
        unsafe { _mm256_loadu_si256(values.add(32 * i).cast()) }
    }
    #[inline(always)]
    unsafe fn chunk_q4(self, values: *const u8, i: usize) -> __m256i {
        // SAFETY: the row has this block; two blocks share their 32 bytes.
        unsafe {
            let bytes = _mm256_loadu_si256(values.add(i / 2 * 32).cast());
            let half = if i % 2 == 1 {
                _mm256_srli_epi16::<4>(bytes)
            } else {
                bytes
            };
            _mm256_sub_epi8(_mm256_and_si256(half, _mm256_set1_epi8(15)), _mm256_set1_epi8(8))
        }
    }
    #[inline(always)]
    unsafe fn chunk_scales(self, scales: *const u8, i: usize) -> __m256 {
        // SAFETY: the row has this block's scale.
        unsafe { self.splat_f16(scales.add(2 * i)) }
    }
    #[inline(always)]
    unsafe fn dot(self, chunk: __m256i, q: *const i8, start: *const i32) -> __m256 {
        // SAFETY: `q` has 32 bytes and `start` eight lanes.
        unsafe {
            let (q, start) = (_mm256_loadu_si256(q.cast()), _mm256_loadu_si256(start.cast()));
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(chunk), _mm256_sign_epi8(q, chunk));
            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            _mm256_cvtepi32_ps(_mm256_add_epi32(start, fours))
        }
    }
}
