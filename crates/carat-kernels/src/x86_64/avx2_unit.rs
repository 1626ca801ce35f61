//! Products of small integers with AVX2 alone and with AVX-VNNI, in registers of 256 bits.
//!
//! AVX2 multiplies unsigned by signed bytes and adds pairs in 16 bits (`vpmaddubsw`), which saturate: how many such
//! sums fit into one another depends on the bits of the codes. AVX-VNNI adds four products to 32 bits at once.
//!
//! Kernels are written once over [`Unit`], inlined into [`Unit::run`], which has the features of its set.

use std::arch::x86_64::*;

/// The instructions that multiply.
pub(super) trait Unit: Copy {
    /// Runs `kernel` with this unit, in a function that has its features.
    ///
    /// # Safety
    /// - AVX2, FMA, F16C and the set of this unit are there.
    /// - What the kernel asks for.
    unsafe fn run<K: Kernel>(self, kernel: &K);
    /// Products of a lane of bytes with one of codes that may be added before [`Unit::widen`], for codes of `bits`.
    /// None where the codes must be words.
    fn steps(bits: u32) -> usize;
    /// What the products of bytes are added to, of which `sum` is the beginning.
    unsafe fn begin(self, sum: __m256i) -> __m256i;
    /// `sums` and the products of four bytes a lane: codes `w`, activations `x`.
    unsafe fn add_bytes(self, sums: __m256i, w: __m256i, x: __m256i) -> __m256i;
    /// `sum`, and the products that were added to its [`Unit::begin`].
    unsafe fn widen(self, sum: __m256i, sums: __m256i) -> __m256i;
    /// `sum` and the products of two words a lane.
    unsafe fn add_words(self, sum: __m256i, w: __m256i, x: __m256i) -> __m256i;
}

/// Something to be computed with either unit.
pub(super) trait Kernel {
    /// # Safety
    /// - As [`Unit::run`], of which this is the inside.
    unsafe fn run<U: Unit>(&self, unit: U);
}

/// AVX2 alone.
#[derive(Clone, Copy)]
pub(super) struct Madd;

impl Unit for Madd {
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<K: Kernel>(self, kernel: &K) {
        // SAFETY: the caller's word.
        unsafe { kernel.run(self) }
    }
    fn steps(bits: u32) -> usize {
        // Each step adds two products to a word.
        (i16::MAX as usize) / (2 * 127 * ((1 << bits) - 1))
    }
    #[inline(always)]
    unsafe fn begin(self, _: __m256i) -> __m256i {
        // SAFETY: register-only instruction of a set that the callers have.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn add_bytes(self, sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, x)) }
    }
    #[inline(always)]
    unsafe fn widen(self, sum: __m256i, sums: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(sums, _mm256_set1_epi16(1))) }
    }
    #[inline(always)]
    unsafe fn add_words(self, sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)) }
    }
}

/// AVX-VNNI.
#[derive(Clone, Copy)]
pub(super) struct Vnni;

impl Unit for Vnni {
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn run<K: Kernel>(self, kernel: &K) {
        // SAFETY: the caller's word.
        unsafe { kernel.run(self) }
    }
    fn steps(_: u32) -> usize {
        usize::MAX
    }
    #[inline(always)]
    unsafe fn begin(self, sum: __m256i) -> __m256i {
        sum
    }
    #[inline(always)]
    unsafe fn add_bytes(self, sums: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: register-only instruction of a set that the callers have.
        unsafe { _mm256_dpbusd_avx_epi32(sums, w, x) }
    }
    #[inline(always)]
    unsafe fn widen(self, _: __m256i, sums: __m256i) -> __m256i {
        sums
    }
    #[inline(always)]
    unsafe fn add_words(self, sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe { _mm256_dpwssd_avx_epi32(sum, w, x) }
    }
}
