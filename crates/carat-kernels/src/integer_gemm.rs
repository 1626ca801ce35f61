//! `C = A B` where A and B hold pairs of 16-bit integers along the summed axis, with scales: the arithmetic of
//! [`EncoderPrecision::Half`] and of prefill where the processor multiplies integers twice as fast as f32, and bf16 not.
//!
//! One instruction multiplies a pair of A, broadcast, with a register of pairs of B and adds both products to sums in 32
//! bits. After [`BLOCK`] pairs at most the sums are added to C in f32, times the scale of that block of A's row; columns of B have
//! one scale each. All rows of A pass a block of B, 16 KB in the first cache, before the next: from the second one B would
//! come too slowly. The integers are so small that the sums of a block cannot overflow ([`crate::integer_round`]). The tile is that of
//! [`crate::pair_gemm`], 6 rows of A by 4 registers of B, or 2 of AVX2's. Bound: twice the f32 FMA peak where the
//! instruction is one of VNNI; without, a multiplication and an addition share three ports, 1.5 times.
//!
//! [`EncoderPrecision::Half`]: crate::encoder::EncoderPrecision::Half

use crate::Isa;
use crate::isa::Level;
use crate::pair_gemm::{LANES, Start};
use crate::simd::{Scalar, Simd};

/// Pairs of A that share a scale.
pub(crate) const BLOCK: usize = 64;
/// The largest integer of both operands, if nothing else is known of them: 12 bits and a sign.
pub(crate) const LARGEST: i32 = 4095;
const _: () = assert!(LARGEST <= largest_beside(2 * BLOCK, LARGEST));

/// The largest integer of weights beside few values: 13 bits.
pub(crate) const LARGEST_WEIGHT: i32 = 8191;
/// The largest integers that `n` products with integers up to `other` can be summed of in 32 bits.
pub(crate) const fn largest_beside(n: usize, other: i32) -> i32 {
    i32::MAX / (n as i32 * other)
}

/// The operands of one product. C is row-major f32.
pub(crate) struct IntegerGemm<'a> {
    /// `[m, k]` pairs, rows `a_row` and columns `a_col` apart.
    pub(crate) a: &'a [u32],
    /// Scales of A's blocks, `[m, ceil(k / BLOCK)]`, bits of f32, rows `a_row` apart too: behind the pairs of rows, or, where
    /// A is read by columns and has one block, side by side.
    pub(crate) a_scales: &'a [u32],
    pub(crate) a_row: usize,
    pub(crate) a_col: usize,
    /// `[k, n]` pairs, rows `ldb` apart; rows reach to the next multiple of [`LANES`].
    pub(crate) b: &'a [u32],
    /// Scales of B's columns, `[n]`.
    pub(crate) b_scales: &'a [f32],
    pub(crate) ldb: usize,
    /// `[m, n]`, rows `ldc` apart.
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
    /// Pairs that are summed.
    pub(crate) k: usize,
    pub(crate) start: Start<'a>,
}

/// Length of a row of `n` elements: pairs, and the scales of their blocks.
pub(crate) fn row_len(n: usize) -> usize {
    let half = n.div_ceil(2);
    half + half.div_ceil(BLOCK)
}

/// Pairs of 16-bit integers beside the f32 of a [`Simd`].
///
/// # Safety
/// As of [`Simd`]: pointers must be valid for the stated number of pairs, and methods may only run inside a function that
/// has the instructions.
pub(crate) unsafe trait IntegerSimd: Copy {
    /// The same processor's f32.
    type Floats: Simd;
    /// As many pairs, or sums in 32 bits, as a vector of f32 has lanes.
    type I: Copy;
    fn floats(self) -> Self::Floats;
    /// Every lane the same pair.
    unsafe fn splat(self, x: u32) -> Self::I;
    /// `LANES` pairs.
    unsafe fn load(self, from: *const u32) -> Self::I;
    /// `LANES` pairs.
    unsafe fn store(self, to: *mut u32, x: Self::I);
    /// `sum + a.low * b.low + a.high * b.high`
    unsafe fn dot(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// The sums as f32.
    unsafe fn to_floats(self, sums: Self::I) -> <Self::Floats as Simd>::F;
    /// Pairs of whole numbers in 0..=32767.
    unsafe fn pair(self, low: <Self::Floats as Simd>::F, high: <Self::Floats as Simd>::F) -> Self::I;
}

// SAFETY: every processor has it.
unsafe impl IntegerSimd for Scalar {
    type Floats = Scalar;
    type I = u32;

    #[inline(always)]
    fn floats(self) -> Scalar {
        self
    }
    #[inline(always)]
    unsafe fn splat(self, x: u32) -> u32 {
        x
    }
    #[inline(always)]
    unsafe fn load(self, from: *const u32) -> u32 {
        // SAFETY: one pair, as the trait's contract says.
        unsafe { from.read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u32, x: u32) {
        // SAFETY: one pair, as the trait's contract says.
        unsafe { to.write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn dot(self, sum: u32, a: u32, b: u32) -> u32 {
        let low = |x: u32| i32::from(x as i16);
        let high = |x: u32| i32::from((x >> 16) as i16);
        let products = (low(a) * low(b)).wrapping_add(high(a) * high(b));
        sum.wrapping_add(products as u32)
    }
    #[inline(always)]
    unsafe fn to_floats(self, sums: u32) -> f32 {
        sums as i32 as f32
    }
    #[inline(always)]
    unsafe fn pair(self, low: f32, high: f32) -> u32 {
        low as u32 | ((high as u32) << 16)
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use super::IntegerSimd;
    use crate::x86_64::{Avx2, Avx512};

    /// AVX2 with AVX-VNNI. Exists only where both do.
    #[derive(Clone, Copy)]
    pub(crate) struct AvxVnni(pub(crate) Avx2);

    /// `_mm512_dpwssd_epi32`, as an instruction of its own: of the intrinsic LLVM makes a multiplication and an addition,
    /// whose latency is lower, where the sums are enough to hide it and only the number of instructions counts.
    ///
    /// # Safety
    /// The processor has the features.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn dot_512(mut sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: it touches nothing but its registers.
        unsafe {
            asm!(
                "vpdpwssd {sum}, {a}, {b}",
                sum = inout(zmm_reg) sum,
                a = in(zmm_reg) a,
                b = in(zmm_reg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    /// As [`dot_512`], of `_mm256_dpwssd_avx_epi32`.
    ///
    /// # Safety
    /// The processor has the features.
    #[inline]
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn dot_256(mut sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: as above.
        unsafe {
            asm!(
                "{{vex}} vpdpwssd {sum}, {a}, {b}",
                sum = inout(ymm_reg) sum,
                a = in(ymm_reg) a,
                b = in(ymm_reg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    /// The methods that all sets of one width share.
    macro_rules! common {
        ($floats:ty, $i:ty, $f:ty, $splat:ident, $load:ident, $store:ident, $convert:ident, $back:ident, $left:ident, $or:ident) => {
            type Floats = $floats;
            type I = $i;

            #[inline(always)]
            unsafe fn splat(self, x: u32) -> $i {
                // SAFETY: the contract.
                unsafe { $splat(x as i32) }
            }
            #[inline(always)]
            unsafe fn load(self, from: *const u32) -> $i {
                // SAFETY: a register of pairs, as the trait's contract says.
                unsafe { $load(from.cast()) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut u32, x: $i) {
                // SAFETY: a register of pairs, as the trait's contract says.
                unsafe { $store(to.cast(), x) }
            }
            #[inline(always)]
            unsafe fn to_floats(self, sums: $i) -> $f {
                // SAFETY: the contract.
                unsafe { $convert(sums) }
            }
            #[inline(always)]
            unsafe fn pair(self, low: $f, high: $f) -> $i {
                // SAFETY: the contract.
                unsafe { $or($back(low), $left::<16>($back(high))) }
            }
        };
    }

    macro_rules! of_avx2 {
        () => {
            common!(
                Avx2,
                __m256i,
                __m256,
                _mm256_set1_epi32,
                _mm256_loadu_si256,
                _mm256_storeu_si256,
                _mm256_cvtepi32_ps,
                _mm256_cvtps_epi32,
                _mm256_slli_epi32,
                _mm256_or_si256
            );
        };
    }

    // SAFETY: instructions of AVX2.
    unsafe impl IntegerSimd for Avx2 {
        of_avx2!();

        #[inline(always)]
        fn floats(self) -> Avx2 {
            self
        }
        #[inline(always)]
        unsafe fn dot(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
            // SAFETY: the contract.
            unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)) }
        }
    }

    // SAFETY: instructions of AVX2 and AVX-VNNI, both of which the contract of the methods asks for.
    unsafe impl IntegerSimd for AvxVnni {
        of_avx2!();

        #[inline(always)]
        fn floats(self) -> Avx2 {
            self.0
        }
        #[inline(always)]
        unsafe fn dot(self, sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
            // SAFETY: the contract.
            unsafe { dot_256(sum, a, b) }
        }
    }

    // SAFETY: instructions of AVX-512 with VNNI.
    unsafe impl IntegerSimd for Avx512 {
        common!(
            Avx512,
            __m512i,
            __m512,
            _mm512_set1_epi32,
            _mm512_loadu_si512,
            _mm512_storeu_si512,
            _mm512_cvtepi32_ps,
            _mm512_cvtps_epi32,
            _mm512_slli_epi32,
            _mm512_or_si512
        );

        #[inline(always)]
        fn floats(self) -> Avx512 {
            self
        }
        #[inline(always)]
        unsafe fn dot(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
            // SAFETY: the contract.
            unsafe { dot_512(sum, a, b) }
        }
    }
}

/// Whether products of these integers are faster than those of f32.
pub(crate) fn pays(isa: Isa) -> bool {
    match isa.0 {
        Level::Avx2 | Level::AvxVnni | Level::Avx512 | Level::Amx => true,
        Level::Scalar | Level::Neon | Level::Dotprod | Level::I8mm => false,
    }
}

/// As [`crate::simd::dispatch`] for functions generic over [`IntegerSimd`]; scalar where they do not [pay](pays).
macro_rules! dispatch_integers {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) = $generic:path;) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            fn with_avx512($($arg: $ty),*) {
                $generic($crate::x86_64::Avx512, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
            fn with_avx_vnni($($arg: $ty),*) {
                $generic($crate::integer_gemm::AvxVnni($crate::x86_64::Avx2), $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn with_avx2($($arg: $ty),*) {
                $generic($crate::x86_64::Avx2, $($arg),*)
            }
            match isa.0 {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` of this level exists only where the processor has these features.
                $crate::isa::Level::Avx512 | $crate::isa::Level::Amx => unsafe { with_avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::isa::Level::AvxVnni => unsafe { with_avx_vnni($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::isa::Level::Avx2 => unsafe { with_avx2($($arg),*) },
                _ => $generic($crate::simd::Scalar, $($arg),*),
            }
        }
    };
}
pub(crate) use dispatch_integers;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::AvxVnni;

impl IntegerGemm<'_> {
    fn check(&self) {
        let end = |rows: usize, row: usize, last: usize| match rows {
            0 => Some(0),
            _ => (rows - 1).checked_mul(row).and_then(|n| n.checked_add(last)),
        };
        let fits = |end: Option<usize>, len: usize| end.is_some_and(|end| end <= len);
        let width = self.n.next_multiple_of(LANES);
        assert!(
            fits(
                end(
                    self.m,
                    self.a_row,
                    end(self.k, self.a_col, 1).unwrap_or(usize::MAX)
                ),
                self.a.len()
            ),
            "A is too short"
        );
        let n_blocks = self.k.div_ceil(BLOCK);
        assert!(
            fits(end(self.m, self.a_row, n_blocks), self.a_scales.len()),
            "A has too few scales"
        );
        assert!(fits(end(self.k, self.ldb, width), self.b.len()), "B is too short");
        assert!(self.b_scales.len() >= self.n, "B has too few scales");
        if let Start::Row(Some(row)) = self.start {
            assert!(row.len() >= self.n, "the sums' start is too short");
        }
    }
}

/// Carries out `gemm`.
///
/// # Safety
/// `gemm.c` is valid for reads and writes of `n` elements at each of `m` rows, `ldc` apart, and nobody else
/// touches them meanwhile.
pub(crate) unsafe fn integer_gemm(isa: Isa, gemm: &IntegerGemm<'_>) {
    gemm.check();
    run(isa, gemm);
}

dispatch_integers! {
    fn run(gemm: &IntegerGemm<'_>) = run_generic;
}

#[inline(always)]
fn run_generic<S: IntegerSimd>(simd: S, gemm: &IntegerGemm<'_>) {
    for block in 0..gemm.k.div_ceil(BLOCK) {
        run_block(simd, gemm, block);
    }
}

#[inline(always)]
fn run_block<S: IntegerSimd>(simd: S, gemm: &IntegerGemm<'_>, block: usize) {
    let mut i = 0;
    while i < gemm.m {
        // 16 registers: 6 x 2 sums, 2 of B, 1 broadcast and 1 product. 32: 6 x 4 sums, 4 of B, 1 broadcast.
        let wide = S::Floats::REGISTERS == 32;
        i += match (gemm.m - i, wide) {
            (6.., true) => row_block::<S, 6, 4>(simd, gemm, block, i),
            (6.., false) => row_block::<S, 6, 2>(simd, gemm, block, i),
            (3.., true) => row_block::<S, 3, 4>(simd, gemm, block, i),
            (3.., false) => row_block::<S, 3, 2>(simd, gemm, block, i),
            (_, true) => row_block::<S, 1, 4>(simd, gemm, block, i),
            (_, false) => row_block::<S, 1, 2>(simd, gemm, block, i),
        };
    }
}

/// A block's part of `M` rows of C from `i` on, `V` registers at a time; returns `M`.
#[inline(always)]
fn row_block<S: IntegerSimd, const M: usize, const V: usize>(
    simd: S,
    gemm: &IntegerGemm<'_>,
    block: usize,
    i: usize,
) -> usize {
    let lanes = S::Floats::LANES;
    let mut j = 0;
    while j + V * lanes <= gemm.n {
        tile::<S, M, V>(simd, gemm, block, [i, j], lanes);
        j += V * lanes;
    }
    while j < gemm.n {
        tile::<S, M, 1>(simd, gemm, block, [i, j], (gemm.n - j).min(lanes));
        j += lanes;
    }
    M
}

/// A block's part of `M` rows by `V` registers at (i, j); the last register has `lanes` lanes.
#[inline(always)]
fn tile<S: IntegerSimd, const M: usize, const V: usize>(
    simd: S,
    gemm: &IntegerGemm<'_>,
    block: usize,
    [i, j]: [usize; 2],
    lanes: usize,
) {
    let (floats, register) = (simd.floats(), S::Floats::LANES);
    // SAFETY: `check` holds: rows i..i+M of A, their scales, and whole registers of B from column j on are inside, and so
    // are `lanes` scales of B and starts; C by the caller's word. Functions of these traits run where
    // `dispatch_integers` has the features.
    unsafe {
        let rows: [usize; M] = std::array::from_fn(|r| (i + r) * gemm.a_row);
        let (a, b) = (gemm.a.as_ptr(), gemm.b.as_ptr().add(j));
        let mut sums = [[simd.splat(0); V]; M];
        for k in block * BLOCK..((block + 1) * BLOCK).min(gemm.k) {
            // No closures here: they would be functions without the features, which nothing can be inlined into.
            let mut columns = [simd.splat(0); V];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = simd.load(b.add(k * gemm.ldb + v * register));
            }
            for (row, sums) in rows.iter().zip(&mut sums) {
                let x = simd.splat(*a.add(row + k * gemm.a_col));
                for (sum, column) in sums.iter_mut().zip(&columns) {
                    *sum = simd.dot(*sum, x, *column);
                }
            }
        }
        for v in 0..V {
            let column = j + v * register;
            let scale = load_lanes(floats, gemm.b_scales.as_ptr().add(column), lanes);
            for (r, sums) in sums.iter().enumerate() {
                let to = gemm.c.add((i + r) * gemm.ldc + column);
                let start = match gemm.start {
                    _ if block > 0 => load_lanes(floats, to, lanes),
                    Start::Old => load_lanes(floats, to, lanes),
                    Start::Row(Some(row)) => load_lanes(floats, row.as_ptr().add(column), lanes),
                    Start::Row(None) => floats.splat(0.0),
                };
                let of_row = floats.splat(f32::from_bits(*gemm.a_scales.as_ptr().add(rows[r] + block)));
                let value = floats.fma(simd.to_floats(sums[v]), floats.mul(of_row, scale), start);
                if lanes == register {
                    floats.store(to, value);
                } else {
                    floats.store_part(to, value, lanes);
                }
            }
        }
    }
}

/// The first `lanes` of a register.
///
/// # Safety
/// `from` is valid for reading as many.
#[inline(always)]
unsafe fn load_lanes<S: Simd>(simd: S, from: *const f32, lanes: usize) -> S::F {
    // SAFETY: the caller's word.
    unsafe {
        if lanes == S::LANES {
            simd.load(from)
        } else {
            simd.load_part(from, lanes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integer_round::round_blocks;
    use proptest::prelude::*;

    fn low_and_high(pair: u32) -> [i64; 2] {
        [i64::from(pair as i16), i64::from((pair >> 16) as i16)]
    }

    proptest! {
        /// The sums of a block are exact, also where all integers are the largest, and only what is done with them rounds.
        #[test]
        fn equals_exact_products(
            m in 1usize..20, n in 1usize..150, k in 1usize..200, old: bool, extreme: bool, seed: u64,
        ) {
            let mut state = seed | 1;
            let mut number = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as i32
            };
            let mut pairs = |n: usize| -> Vec<u32> {
                let mut integer = || match number() {
                    _ if extreme => LARGEST as u16,
                    x => (x % (LARGEST + 1) * [1, -1][x as usize / 4096 % 2]) as u16,
                };
                (0..n).map(|_| u32::from(integer()) | (u32::from(integer()) << 16)).collect()
            };
            let (n_blocks, ldb, ldc) = (k.div_ceil(BLOCK), n.next_multiple_of(LANES), n + 2);
            let a_row = k + n_blocks;
            let (mut a, b) = (pairs(m * a_row), pairs(k * ldb));
            for (i, row) in a.chunks_exact_mut(a_row).enumerate() {
                for (block, scale) in row[k..].iter_mut().enumerate() {
                    *scale = ((i + block) as f32).cos().to_bits();
                }
            }
            let b_scales: Vec<f32> = (0..n).map(|i| 1e-3 * (i as f32 + 0.5).sin()).collect();
            let before: Vec<f32> = (0..m * ldc).map(|i| (i as f32).sin()).collect();
            let row: Vec<f32> = (0..n).map(|i| (i as f32).cos()).collect();
            for isa in Isa::available() {
                let mut c = before.clone();
                let start = if old { Start::Old } else { Start::Row(Some(&row)) };
                let gemm = IntegerGemm {
                    a: &a, a_scales: &a[k..], a_row, a_col: 1, b: &b, b_scales: &b_scales, ldb, c: c.as_mut_ptr(), ldc, m, n, k, start,
                };
                // SAFETY: `c` has m rows of ldc >= n.
                unsafe { integer_gemm(isa, &gemm) };
                for (i, (got, before)) in c.chunks_exact(ldc).zip(before.chunks_exact(ldc)).enumerate() {
                    prop_assert_eq!(&got[n..], &before[n..]);
                    for j in 0..n {
                        let (mut total, mut size) = (0.0, 0.0);
                        for block in 0..n_blocks {
                            let pairs = block * BLOCK..((block + 1) * BLOCK).min(k);
                            let sum: i64 = pairs.map(|p| {
                                let (x, y) = (low_and_high(a[i * a_row + p]), low_and_high(b[p * ldb + j]));
                                x[0] * y[0] + x[1] * y[1]
                            }).sum();
                            let term = sum as f64 * f64::from(f32::from_bits(a[i * a_row + k + block]));
                            total += term;
                            size += term.abs();
                        }
                        let from = f64::from(if old { before[j] } else { row[j] });
                        let scale = f64::from(b_scales[j]);
                        let bound = (n_blocks + 3) as f64 * f64::from(f32::EPSILON) * (size * scale.abs() + from.abs());
                        let want = from + total * scale;
                        prop_assert!((f64::from(got[j]) - want).abs() <= bound, "{isa} {i} {j}: {} {want}", got[j]);
                    }
                }
            }
        }
    }

    /// A row that has what is no number gives none, and leaves others alone; tiny numbers count as zeros.
    #[test]
    fn what_is_not_finite_stays_so() {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        for (isa, odd) in Isa::available().flat_map(|isa| odd.map(|odd| (isa, odd))) {
            let mut x = vec![0.5; 3 * 2 * BLOCK + 7];
            let n = x.len();
            x[2 * BLOCK + 5] = odd;
            let mut a = vec![0; 2 * row_len(n)];
            let (bad, good) = a.split_at_mut(row_len(n));
            round_blocks(isa, &x, bad);
            round_blocks(isa, &vec![0.5; n], good);
            let (half, a_row) = (n.div_ceil(2), row_len(n));
            let b = vec![0x0001_0001; half * LANES];
            let mut c = [0.0; 2];
            let gemm = IntegerGemm {
                a: &a,
                a_scales: &a[half..],
                a_row,
                a_col: 1,
                b: &b,
                b_scales: &[2.0],
                ldb: LANES,
                c: c.as_mut_ptr(),
                ldc: 1,
                m: 2,
                n: 1,
                k: half,
                start: Start::Row(None),
            };
            // SAFETY: `c` has two rows of one column.
            unsafe { integer_gemm(isa, &gemm) };
            assert!(c[0].is_nan(), "{isa} {odd}: {}", c[0]);
            assert!((c[1] - n as f32).abs() < 0.1, "{isa}: {}", c[1]);
        }
    }
}
