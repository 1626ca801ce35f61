//! f32 vectors of AVX-512: sixteen lanes.

use std::arch::x86_64::*;

use super::avx2::by_intrinsic;
use crate::simd::Simd;

/// Exists only where AVX-512 F, BW, VL, DQ and VNNI do: made by [`crate::simd::dispatch`] alone.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[inline(always)]
fn first_lanes(n: usize) -> __mmask16 {
    (1u16 << n).wrapping_sub(1)
}

// SAFETY: `Avx512` is made only inside functions that have the features.
unsafe impl Simd for Avx512 {
    type F = __m512;
    const LANES: usize = 16;
    const REGISTERS: usize = 32;

    by_intrinsic! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        fma(a, b, c) = _mm512_fmadd_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
        round(a) = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>;
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: register-only instruction of a set that `self` proves.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        // SAFETY: sixteen elements, as the trait's contract says.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_part(self, from: *const f32, n: usize) -> __m512 {
        // SAFETY: masked-out lanes are not read.
        unsafe { _mm512_maskz_loadu_ps(first_lanes(n), from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m512) {
        // SAFETY: sixteen elements, as the trait's contract says.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, x: __m512, n: usize) {
        // SAFETY: masked-out lanes are not written.
        unsafe { _mm512_mask_storeu_ps(to, first_lanes(n), x) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> __m512 {
        // SAFETY: sixteen elements of 2 bytes, as the trait's contract says.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m512 {
        // SAFETY: sixteen elements of 2 bytes, as the trait's contract says.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn zero_below(self, x: __m512, limit: f32, value: __m512) -> __m512 {
        // SAFETY: register-only instructions of a set that `self` proves.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(limit)), value) }
    }
    #[inline(always)]
    fn pow2(self, whole: __m512) -> __m512 {
        // SAFETY: register-only instructions of a set that `self` proves.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(whole), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn reduce_add(self, a: __m512) -> f32 {
        // SAFETY: register-only instructions of a set that `self` proves.
        unsafe { _mm512_reduce_add_ps(a) }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m512) -> f32 {
        // SAFETY: register-only instructions of a set that `self` proves.
        unsafe { _mm512_reduce_max_ps(a) }
    }
}
