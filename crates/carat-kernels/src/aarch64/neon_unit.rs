//! Products of small integers with NEON alone, with `dotprod` and with `i8mm`, in registers of 16 bytes.
//!
//! Codes are signed here: they fit, since formats with a min have at most 6 bits and the others an offset.

use std::arch::aarch64::*;
use std::arch::asm;

/// The instructions that multiply.
///
/// # Safety
/// A value of an implementing type may only exist where the processor has its set.
pub(crate) unsafe trait Unit: Copy {
    /// Whether [`Unit::matrix`] is there.
    const HAS_MATRIX: bool;
    /// Lane `j` of `sums` and the products of bytes `4 j .. 4 j + 4`.
    fn dot(self, sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t;
    /// Lane `j` of `sums` and the products of bytes `4 j .. 4 j + 4` of `w` with bytes `4 L .. 4 L + 4` of `x`.
    #[inline(always)]
    fn dot_lane<const L: i32>(self, sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: register-only instruction that every 64-bit ARM processor has.
        let four = unsafe { vreinterpretq_s8_s32(vdupq_laneq_s32::<L>(vreinterpretq_s32_s8(x))) };
        self.dot(sums, w, four)
    }
    /// Lane `2 i + j` of `sums` and the products of the eight bytes `i` of `w` with the eight bytes `j` of `x`.
    fn matrix(self, sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t;
}

/// NEON alone.
#[derive(Clone, Copy)]
pub(crate) struct Base;

/// The 8-bit product of four, ARMv8.2 and later.
#[derive(Clone, Copy)]
pub(crate) struct Dotprod;

/// The 8-bit product of matrices, ARMv8.6 and later.
#[derive(Clone, Copy)]
pub(crate) struct I8mm;

// SAFETY: every 64-bit ARM processor has it.
unsafe impl Unit for Base {
    const HAS_MATRIX: bool = false;

    #[inline(always)]
    fn dot(self, sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // Two products of at most 128 * 127 fit 16 bits.
        // SAFETY: register-only instructions that every 64-bit ARM processor has.
        unsafe {
            let low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
            let high = vmull_high_s8(w, x);
            vpadalq_s16(sums, vpaddq_s16(low, high))
        }
    }
    #[inline(always)]
    fn matrix(self, sums: int32x4_t, _: int8x16_t, _: int8x16_t) -> int32x4_t {
        sums
    }
}

// SAFETY: made only where the processor has `dotprod`.
unsafe impl Unit for Dotprod {
    const HAS_MATRIX: bool = false;

    #[inline(always)]
    fn dot(self, mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: a register-only instruction of a set that `self` proves.
        unsafe {
            asm!(".arch_extension dotprod", "sdot {sums:v}.4s, {w:v}.16b, {x:v}.16b",
                sums = inout(vreg) sums, w = in(vreg) w, x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags));
        }
        sums
    }
    #[inline(always)]
    fn dot_lane<const L: i32>(self, mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: a register-only instruction of a set that `self` proves.
        unsafe {
            asm!(".arch_extension dotprod", "sdot {sums:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
                sums = inout(vreg) sums, w = in(vreg) w, x = in(vreg) x, lane = const L,
                options(pure, nomem, nostack, preserves_flags));
        }
        sums
    }
    #[inline(always)]
    fn matrix(self, sums: int32x4_t, _: int8x16_t, _: int8x16_t) -> int32x4_t {
        sums
    }
}

// SAFETY: made only where the processor has `dotprod` and `i8mm`.
unsafe impl Unit for I8mm {
    const HAS_MATRIX: bool = true;

    #[inline(always)]
    fn dot(self, sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        Dotprod.dot(sums, w, x)
    }
    #[inline(always)]
    fn matrix(self, mut sums: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        // SAFETY: a register-only instruction of a set that `self` proves.
        unsafe {
            asm!(".arch_extension i8mm", "smmla {sums:v}.4s, {w:v}.16b, {x:v}.16b",
                sums = inout(vreg) sums, w = in(vreg) w, x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags));
        }
        sums
    }
}
