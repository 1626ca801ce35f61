//! The 64-bit ARM versions: NEON, which every such processor has, and its 8-bit products of four (`dotprod`) and of
//! two by two rows (`i8mm`), found at run time.
//!
//! The intrinsics of the last two and of f16 are not stable; each is one instruction in an `asm!` of its own.

mod neon;
mod neon_dot;
mod neon_panel;
mod neon_unit;
mod neon_unpack;

use std::arch::aarch64::{float32x4_t, uint16x4_t};
use std::arch::asm;

pub(crate) use neon::Neon;
pub(crate) use neon_dot::dot_rows;
pub(crate) use neon_panel::multiply_panel;
pub(crate) use neon_unit::{Base, Dotprod, I8mm, Unit};

/// Four f16 as f32.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn widen_f16(bits: uint16x4_t) -> float32x4_t {
    let wide: float32x4_t;
    // SAFETY: a register-only instruction that every 64-bit ARM processor has.
    unsafe {
        asm!("fcvtl {to:v}.4s, {from:v}.4h", to = lateout(vreg) wide, from = in(vreg) bits,
            options(pure, nomem, nostack, preserves_flags));
    }
    wide
}

/// Asks for the cache line at `at`, which need not be valid.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    // SAFETY: a hint, which no address can make fail.
    unsafe {
        asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
    }
}
