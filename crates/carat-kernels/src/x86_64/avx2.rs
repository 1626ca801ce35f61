//! f32 vectors of AVX2: eight lanes.

use std::arch::x86_64::*;

use crate::simd::Simd;

/// Exists only where AVX2, FMA and F16C do: made by [`crate::simd::dispatch`] alone.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// `i < n` in lane `i`, as a mask of all ones.
#[inline(always)]
fn first_lanes(n: usize) -> __m256i {
    // SAFETY: register-only instructions of a set that the existing `Avx2` value proves.
    unsafe {
        _mm256_cmpgt_epi32(
            _mm256_set1_epi32(n as i32),
            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
        )
    }
}

/// Implements the register-only methods of `Simd` by one intrinsic each.
macro_rules! by_intrinsic {
    ($($name:ident($($arg:ident),+) = $intrinsic:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::F),+) -> Self::F {
            // SAFETY: register-only instruction of a set that `self` proves.
            unsafe { $intrinsic($($arg),+) }
        }
    )*};
}
pub(super) use by_intrinsic;

// SAFETY: `Avx2` is made only inside functions that have the features.
unsafe impl Simd for Avx2 {
    type F = __m256;
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    by_intrinsic! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        fma(a, b, c) = _mm256_fmadd_ps;
        max(a, b) = _mm256_max_ps;
        min(a, b) = _mm256_min_ps;
        round(a) = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>;
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: register-only instruction of a set that `self` proves.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m256 {
        // SAFETY: eight elements, as the trait's contract says.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn load_part(self, from: *const f32, n: usize) -> __m256 {
        // SAFETY: masked-out lanes are not read.
        unsafe { _mm256_maskload_ps(from, first_lanes(n)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m256) {
        // SAFETY: eight elements, as the trait's contract says.
        unsafe { _mm256_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, x: __m256, n: usize) {
        // SAFETY: masked-out lanes are not written.
        unsafe { _mm256_maskstore_ps(to, first_lanes(n), x) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> __m256 {
        // SAFETY: eight elements of 2 bytes, as the trait's contract says.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> __m256 {
        // SAFETY: eight elements of 2 bytes, as the trait's contract says.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn zero_below(self, x: __m256, limit: f32, value: __m256) -> __m256 {
        // SAFETY: register-only instructions of a set that `self` proves.
        unsafe { _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(limit)), value) }
    }
    #[inline(always)]
    fn pow2(self, whole: __m256) -> __m256 {
        // SAFETY: register-only instructions of a set that `self` proves.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn reduce_add(self, a: __m256) -> f32 {
        // SAFETY: register-only instructions of a set that `self` proves.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, a: __m256) -> f32 {
        // SAFETY: register-only instructions of a set that `self` proves.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
}
