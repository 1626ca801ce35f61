//! Vectors of f32 as the float kernels see them: one trait, one implementation per instruction set.
//!
//! The float operations (norms, softmax, rotary, products in f32) are written once over [`Simd`] and compiled
//! per set: [`dispatch!`] wraps a generic function in one `#[target_feature]` function per set and picks by
//! [`crate::Isa`]. `Scalar` has one lane and no intrinsics; it is the specification that the others are tested
//! against. All methods are `#[inline(always)]`, so that they end up inside the wrapper that has the features.

/// One instruction set's f32 vectors.
///
/// # Safety
/// A value of an implementing type may only exist where the processor has the set. Pointers handed to the
/// methods must be valid for the stated number of elements; no alignment is needed.
pub(crate) unsafe trait Simd: Copy {
    /// A vector of [`Simd::LANES`] f32.
    type F: Copy;
    /// Lanes of a vector; at most 16.
    const LANES: usize;
    /// Vector registers there are.
    const REGISTERS: usize;
    /// Every lane `x`.
    fn splat(self, x: f32) -> Self::F;
    /// `LANES` elements.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// `n < LANES` elements, the other lanes 0.
    unsafe fn load_part(self, from: *const f32, n: usize) -> Self::F;
    /// `LANES` elements.
    unsafe fn store(self, to: *mut f32, x: Self::F);
    /// The first `n < LANES` lanes.
    unsafe fn store_part(self, to: *mut f32, x: Self::F, n: usize);
    /// `LANES` elements of f16.
    unsafe fn load_f16(self, from: *const u16) -> Self::F;
    /// `LANES` elements of bf16.
    unsafe fn load_bf16(self, from: *const u16) -> Self::F;
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once where the set can.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each lane; `b` where either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each lane; `b` where either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest whole number, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// `value` where `x` is not below `limit`, else 0.
    fn zero_below(self, x: Self::F, limit: f32, value: Self::F) -> Self::F;
    /// 2 to the power of a whole number within -126..=127.
    fn pow2(self, whole: Self::F) -> Self::F;
    /// Sum of the lanes.
    fn reduce_add(self, a: Self::F) -> f32;
    /// Largest lane.
    fn reduce_max(self, a: Self::F) -> f32;

    /// e^x, within 2 ulp for -87 <= x <= 88; below it goes to about 1e-38, above to about 1e38.
    ///
    /// x = k ln 2 + r with |r| <= ln 2 / 2, then a polynomial of degree 7 for e^r (Taylor: the remainder
    /// r^8/8! is below 5.2e-9 relative), then times 2^k. ln 2 is split in two (Cody and Waite) so that r is exact.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        // In this order of operands a NaN passes, by `Simd::max` and `Simd::min`.
        let x = self.min(self.splat(88.0), self.max(self.splat(-87.0), x));
        let k = self.round(self.mul(x, self.splat(std::f32::consts::LOG2_E)));
        let r = self.fma(k, self.splat(-0.693_359_4), x);
        let r = self.fma(k, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.0 / 5040.0);
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = self.fma(p, r, self.splat(c));
        }
        self.mul(p, self.pow2(k))
    }
}

/// One lane, no intrinsics: the specification.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

// SAFETY: every processor has it.
unsafe impl Simd for Scalar {
    type F = f32;
    const LANES: usize = 1;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn splat(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> f32 {
        // SAFETY: one element, as the trait's contract says.
        unsafe { from.read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_part(self, _: *const f32, _: usize) -> f32 {
        0.0
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: f32) {
        // SAFETY: one element, as the trait's contract says.
        unsafe { to.write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn store_part(self, _: *mut f32, _: f32, _: usize) {}
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> f32 {
        // SAFETY: one element, as the trait's contract says.
        half::f16::from_bits(unsafe { from.read_unaligned() }).to_f32()
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u16) -> f32 {
        // SAFETY: one element, as the trait's contract says.
        half::bf16::from_bits(unsafe { from.read_unaligned() }).to_f32()
    }
    #[inline(always)]
    fn add(self, a: f32, b: f32) -> f32 {
        a + b
    }
    #[inline(always)]
    fn sub(self, a: f32, b: f32) -> f32 {
        a - b
    }
    #[inline(always)]
    fn mul(self, a: f32, b: f32) -> f32 {
        a * b
    }
    #[inline(always)]
    fn div(self, a: f32, b: f32) -> f32 {
        a / b
    }
    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        // Without a fused instruction `mul_add` is a slow library call.
        a * b + c
    }
    #[inline(always)]
    fn max(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    #[inline(always)]
    fn min(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    #[inline(always)]
    fn round(self, a: f32) -> f32 {
        a.round_ties_even()
    }
    #[inline(always)]
    fn zero_below(self, x: f32, limit: f32, value: f32) -> f32 {
        if x < limit { 0.0 } else { value }
    }
    #[inline(always)]
    fn pow2(self, whole: f32) -> f32 {
        f32::from_bits(((whole as i32).wrapping_add(127) << 23) as u32)
    }
    #[inline(always)]
    fn reduce_add(self, a: f32) -> f32 {
        a
    }
    #[inline(always)]
    fn reduce_max(self, a: f32) -> f32 {
        a
    }
}

/// Defines a function that picks the version for an [`crate::Isa`] of a function generic over [`Simd`].
///
/// `dispatch! { pub(crate) fn name(isa, a: A, b: B) -> R = generic; }` calls `generic(simd, a, b)`.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? = $generic:path;) => {
        $(#[$meta])*
        #[expect(clippy::allow_attributes, reason = "whether the limit is passed depends on the function")]
        #[allow(clippy::too_many_arguments, reason = "the instruction set is one more")]
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments, reason = "as the function it wraps")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            fn with_avx512($($arg: $ty),*) $(-> $ret)? {
                $generic($crate::x86_64::Avx512, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[allow(clippy::too_many_arguments, reason = "as the function it wraps")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn with_avx2($($arg: $ty),*) $(-> $ret)? {
                $generic($crate::x86_64::Avx2, $($arg),*)
            }
            match isa.0 {
                $crate::isa::Level::Scalar => $generic($crate::simd::Scalar, $($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` of this level exists only where the processor has these features.
                $crate::isa::Level::Avx2 | $crate::isa::Level::AvxVnni => unsafe { with_avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` of this level exists only where the processor has these features.
                $crate::isa::Level::Avx512 | $crate::isa::Level::Amx => unsafe { with_avx512($($arg),*) },
                // Every 64-bit ARM processor has NEON: no function of its own is needed.
                #[cfg(target_arch = "aarch64")]
                $crate::isa::Level::Neon => $generic($crate::aarch64::Neon::<false>, $($arg),*),
                #[cfg(target_arch = "aarch64")]
                $crate::isa::Level::Dotprod | $crate::isa::Level::I8mm => {
                    $generic($crate::aarch64::Neon::<true>, $($arg),*)
                }
                // The sets of other architectures.
                _ => $generic($crate::simd::Scalar, $($arg),*),
            }
        }
    };
}
pub(crate) use dispatch;

/// Repeats `body` for `i` in `0..n`, `n` at most 8, written out: a loop over registers that the compiler leaves a loop
/// keeps them in memory, and what depends on `i` is no constant.
macro_rules! unrolled {
    ($n:expr, |$i:ident| $body:block) => {
        $crate::simd::unrolled!(@step $n, $i, $body, 0);
        $crate::simd::unrolled!(@step $n, $i, $body, 1);
        $crate::simd::unrolled!(@step $n, $i, $body, 2);
        $crate::simd::unrolled!(@step $n, $i, $body, 3);
        $crate::simd::unrolled!(@step $n, $i, $body, 4);
        $crate::simd::unrolled!(@step $n, $i, $body, 5);
        $crate::simd::unrolled!(@step $n, $i, $body, 6);
        $crate::simd::unrolled!(@step $n, $i, $body, 7);
    };
    (@step $n:expr, $i:ident, $body:block, $at:literal) => {
        if $n > $at {
            let $i: usize = $at;
            $body
        }
    };
}
pub(crate) use unrolled;
