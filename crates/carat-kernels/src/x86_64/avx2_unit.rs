//! Products of small integers with AVX2 alone and with AVX-VNNI, in registers of 256 bits.
//!
//! AVX2 multiplies unsigned by signed bytes and adds pairs in 16 bits (`vpmaddubsw`), which saturate: how many such
//! sums fit into one another depends on the bits of the codes. AVX-VNNI adds four products to 32 bits at once.
//!
//! Kernels are written once over [`Unit`], inlined into [`Unit::run`], which has the features of its set.

use std::arch::x86_64::*;

use super::avx2_products::{Sums, madd_bytes, madd_words, vnni_bytes, vnni_words};

/// The instructions that multiply.
pub(super) trait Unit: Copy {
    /// What sums of [`Unit::tile_bytes`] begin with beside their share.
    const START: i32;
    /// Runs `kernel` with this unit, in a function that has its features.
    ///
    /// # Safety
    /// - AVX2, FMA, F16C and the set of this unit are there.
    /// - What the kernel asks for.
    unsafe fn run<K: Kernel>(self, kernel: &mut K);
    /// Products of a lane of bytes with one of codes that may be added in one go ([`Unit::tile_bytes`]), for codes of
    /// `bits`. None where the codes must be words.
    fn steps(bits: u32) -> usize;
    /// The products of four bytes a lane: codes `w`, activations `x`.
    unsafe fn products(self, w: __m256i, x: __m256i) -> __m256i;
    /// `sums` and the products of a tile's `N` lanes of bytes: codes from `w` on, activations from `x` on. `sums` is asked
    /// when they are wanted: registers are too few to keep them until then.
    ///
    /// # Safety
    /// - The set of this unit is there.
    /// - As [`madd_bytes`].
    unsafe fn tile_bytes<const N: usize>(
        self,
        sums: impl FnOnce() -> Sums,
        w: *const u8,
        x: *const i8,
    ) -> Sums;
    /// Such sums, which began with [`Unit::START`], as numbers.
    ///
    /// # Safety
    /// The set of this unit is there.
    unsafe fn to_floats(self, sums: __m256i) -> __m256;
    /// The products of a tile's `N` lanes of words.
    ///
    /// # Safety
    /// - The set of this unit is there.
    /// - As [`madd_words`].
    unsafe fn tile_words<const N: usize>(self, w: *const u8, x: *const i16) -> Sums;
}

/// Something to be computed with either unit.
pub(super) trait Kernel {
    /// # Safety
    /// - As [`Unit::run`], of which this is the inside.
    unsafe fn run<U: Unit>(&mut self, unit: U);
}

/// AVX2 alone.
#[derive(Clone, Copy)]
pub(super) struct Madd;

impl Unit for Madd {
    const START: i32 = 0;
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<K: Kernel>(self, kernel: &mut K) {
        // SAFETY: the caller's word.
        unsafe { kernel.run(self) }
    }
    fn steps(bits: u32) -> usize {
        // Each step adds two products to a word.
        (i16::MAX as usize) / (2 * 127 * ((1 << bits) - 1))
    }
    #[inline(always)]
    unsafe fn products(self, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: register-only instructions of a set that the callers have.
        unsafe { widen(_mm256_maddubs_epi16(w, x)) }
    }
    #[inline(always)]
    unsafe fn tile_bytes<const N: usize>(
        self,
        sums: impl FnOnce() -> Sums,
        w: *const u8,
        x: *const i8,
    ) -> Sums {
        // SAFETY: the caller's word.
        unsafe {
            let products = madd_bytes::<N>(w, x);
            let mut sums = sums();
            for (sum, products) in sums.as_flattened_mut().iter_mut().zip(products.as_flattened()) {
                *sum = _mm256_add_epi32(*sum, widen(*products));
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn to_floats(self, sums: __m256i) -> __m256 {
        // SAFETY: a register-only instruction of a set that the callers have.
        unsafe { _mm256_cvtepi32_ps(sums) }
    }
    #[inline(always)]
    unsafe fn tile_words<const N: usize>(self, w: *const u8, x: *const i16) -> Sums {
        // SAFETY: the caller's word.
        unsafe { madd_words::<N>(w, x) }
    }
}

/// Sums of pairs of words.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(words: __m256i) -> __m256i {
    _mm256_madd_epi16(words, _mm256_set1_epi16(1))
}

/// AVX-VNNI.
#[derive(Clone, Copy)]
pub(super) struct Vnni;

/// To its bits a whole number of less than 2^22, of either sign, can be added as one: it is then larger by that number.
const BETWEEN_INTEGERS: f32 = 12_582_912.0;

impl Unit for Vnni {
    /// So that a subtraction makes numbers of sums, the same as a conversion would. Intel converts on the ports that multiply,
    /// and subtracts on others. 32 products of bytes are less than 2^20.
    const START: i32 = BETWEEN_INTEGERS.to_bits().cast_signed();
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn run<K: Kernel>(self, kernel: &mut K) {
        // SAFETY: the caller's word.
        unsafe { kernel.run(self) }
    }
    fn steps(_: u32) -> usize {
        usize::MAX
    }
    #[inline(always)]
    unsafe fn products(self, w: __m256i, x: __m256i) -> __m256i {
        // SAFETY: register-only instructions of a set that the callers have.
        unsafe { _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), w, x) }
    }
    #[inline(always)]
    unsafe fn tile_bytes<const N: usize>(
        self,
        sums: impl FnOnce() -> Sums,
        w: *const u8,
        x: *const i8,
    ) -> Sums {
        // SAFETY: the caller's word.
        unsafe { vnni_bytes::<N>(sums(), w, x) }
    }
    #[inline(always)]
    unsafe fn to_floats(self, sums: __m256i) -> __m256 {
        // SAFETY: register-only instructions of a set that the callers have.
        unsafe { _mm256_sub_ps(_mm256_castsi256_ps(sums), _mm256_set1_ps(BETWEEN_INTEGERS)) }
    }
    #[inline(always)]
    unsafe fn tile_words<const N: usize>(self, w: *const u8, x: *const i16) -> Sums {
        // SAFETY: the caller's word.
        unsafe { vnni_words::<N>(w, x) }
    }
}
