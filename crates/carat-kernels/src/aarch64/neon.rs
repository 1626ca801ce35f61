//! f32 vectors of NEON: four lanes.

use std::arch::aarch64::*;

use super::widen_f16;
use crate::simd::Simd;

/// Exists on every 64-bit ARM processor; `DOT` says that it has `dotprod`, which the cache of keys makes use of. Made
/// by [`crate::simd::dispatch`] alone.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const DOT: bool>;

/// The first `n` elements of four, the others 0.
///
/// # Safety
/// `from` is valid for `n <= 4` elements.
#[inline(always)]
unsafe fn part(from: *const f32, n: usize) -> [f32; 4] {
    let mut four = [0.0; 4];
    // SAFETY: `n` elements, by the caller's word.
    unsafe { std::ptr::copy_nonoverlapping(from, four.as_mut_ptr(), n) };
    four
}

/// Implements the register-only methods of `Simd` by an expression of intrinsics each.
macro_rules! by_intrinsics {
    ($($name:ident($($arg:ident),+) = $value:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: Self::F),+) -> Self::F {
            // SAFETY: register-only instructions that every 64-bit ARM processor has.
            unsafe { $value }
        }
    )*};
}

// SAFETY: `Neon` exists on every 64-bit ARM processor.
unsafe impl<const DOT: bool> Simd for Neon<DOT> {
    type F = float32x4_t;
    const LANES: usize = 4;
    const REGISTERS: usize = 32;

    by_intrinsics! {
        add(a, b) = vaddq_f32(a, b);
        sub(a, b) = vsubq_f32(a, b);
        mul(a, b) = vmulq_f32(a, b);
        div(a, b) = vdivq_f32(a, b);
        fma(a, b, c) = vfmaq_f32(c, a, b);
        max(a, b) = vbslq_f32(vcgtq_f32(a, b), a, b);
        min(a, b) = vbslq_f32(vcltq_f32(a, b), a, b);
        round(a) = vrndnq_f32(a);
        pow2(whole) = {
            let biased = vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        };
    }
    #[inline(always)]
    fn splat(self, x: f32) -> float32x4_t {
        // SAFETY: register-only instruction that every 64-bit ARM processor has.
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> float32x4_t {
        // SAFETY: four elements, as the trait's contract says.
        unsafe { vld1q_f32(from) }
    }
    #[inline(always)]
    unsafe fn load_part(self, from: *const f32, n: usize) -> float32x4_t {
        // SAFETY: `n` elements, as the trait's contract says; four in the copy.
        unsafe { vld1q_f32(part(from, n).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: float32x4_t) {
        // SAFETY: four elements, as the trait's contract says.
        unsafe { vst1q_f32(to, x) }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, x: float32x4_t, n: usize) {
        let mut four = [0.0f32; 4];
        // SAFETY: four elements in the copy, of which `n` go to `to`, as the trait's contract says.
        unsafe {
            vst1q_f32(four.as_mut_ptr(), x);
            std::ptr::copy_nonoverlapping(four.as_ptr(), to, n);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> float32x4_t {
        // SAFETY: four elements of 2 bytes, as the trait's contract says.
        unsafe { widen_f16(vld1_u16(from)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> float32x4_t {
        // SAFETY: four elements of 2 bytes, as the trait's contract says.
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from))) }
    }
    #[inline(always)]
    fn zero_below(self, x: float32x4_t, limit: f32, value: float32x4_t) -> float32x4_t {
        // SAFETY: register-only instructions that every 64-bit ARM processor has.
        unsafe {
            let below = vcltq_f32(x, vdupq_n_f32(limit));
            vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), below))
        }
    }
    #[inline(always)]
    fn reduce_add(self, a: float32x4_t) -> f32 {
        // SAFETY: register-only instruction that every 64-bit ARM processor has.
        unsafe { vaddvq_f32(a) }
    }
    #[inline(always)]
    fn reduce_max(self, a: float32x4_t) -> f32 {
        // SAFETY: register-only instruction that every 64-bit ARM processor has.
        unsafe { vmaxvq_f32(a) }
    }
}
