//! `C = A B` where A and B hold pairs of bf16 along the summed axis: the heart of [`EncoderPrecision::Half`] and of
//! prefill over caches that keep no more than bf16 does.
//!
//! One instruction multiplies a pair of A, broadcast, with sixteen pairs of B and adds both products to sixteen
//! sums in f32. The tile is that of [`crate::gemm_f32`]: 6 rows of A by 4 registers of B, 24 sums in 32 registers;
//! each step of `k` (two elements) loads 4 registers and does 24 such instructions. The bound is twice the f32
//! FMA peak. There is no AVX2 version: without the instruction f32 is faster. With AMX tiles do it
//! (`x86_64/amx_pairs.rs`).
//!
//! [`EncoderPrecision::Half`]: crate::encoder::EncoderPrecision::Half

use crate::Isa;
use crate::isa::Level;
use crate::simd::{Scalar, Simd, dispatch};

/// Registers of B begin at multiples of this many pairs, whatever the instruction set.
pub(crate) const LANES: usize = 16;

/// The operands of one product, in pairs of bf16. C is row-major f32.
pub(crate) struct PairGemm<'a> {
    /// `[m, k]` pairs, rows `a_row` and columns `a_col` apart.
    pub(crate) a: &'a [u32],
    pub(crate) a_row: usize,
    pub(crate) a_col: usize,
    /// `[k, n]` pairs, rows `ldb` apart; rows reach to the next multiple of [`LANES`].
    pub(crate) b: &'a [u32],
    pub(crate) ldb: usize,
    /// `[m, n]`, rows `ldc` apart.
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
    /// Pairs that are summed.
    pub(crate) k: usize,
    /// What rounding to bf16 lost of both.
    pub(crate) rest: Option<Rest<'a>>,
    pub(crate) start: Start<'a>,
}

/// Operands of the same layout that are added to those of a [`PairGemm`], as numbers of 16 bits of mantissa in two halves.
/// Their product with each other is left out.
#[derive(Clone, Copy)]
pub(crate) struct Rest<'a> {
    pub(crate) a: &'a [u32],
    pub(crate) b: &'a [u32],
}

/// What the sums start from.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// What C holds.
    Old,
    /// One number for each column, `[n]`; zeros where there is none.
    Row(Option<&'a [f32]>),
}

/// Pairs of bf16 beside the f32 of a [`Simd`].
///
/// # Safety
/// As of [`Simd`]. Methods may only run inside a function that has the instructions for bf16.
pub(crate) unsafe trait PairSimd: Simd {
    /// As many pairs as [`Simd::F`] has lanes.
    type P: Copy;
    /// `LANES` pairs.
    unsafe fn load_pairs(self, from: *const u32) -> Self::P;
    /// `LANES` pairs.
    unsafe fn store_pairs(self, to: *mut u32, x: Self::P);
    /// Every lane the same pair.
    unsafe fn splat_pair(self, x: u32) -> Self::P;
    /// `sum + a.low * b.low + a.high * b.high`
    unsafe fn dot(self, sum: Self::F, a: Self::P, b: Self::P) -> Self::F;
    /// Rounds two vectors to bf16 and makes pairs of their lanes.
    unsafe fn pair(self, low: Self::F, high: Self::F) -> Self::P;
}

// SAFETY: every processor has it.
unsafe impl PairSimd for Scalar {
    type P = u32;

    #[inline(always)]
    unsafe fn load_pairs(self, from: *const u32) -> u32 {
        // SAFETY: one pair, as the trait's contract says.
        unsafe { from.read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_pairs(self, to: *mut u32, x: u32) {
        // SAFETY: one pair, as the trait's contract says.
        unsafe { to.write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn splat_pair(self, x: u32) -> u32 {
        x
    }
    #[inline(always)]
    unsafe fn dot(self, sum: f32, a: u32, b: u32) -> f32 {
        let low = |x: u32| f32::from_bits(x << 16);
        let high = |x: u32| f32::from_bits(x & 0xffff_0000);
        sum + low(a) * low(b) + high(a) * high(b)
    }
    #[inline(always)]
    unsafe fn pair(self, low: f32, high: f32) -> u32 {
        let bits = |x| u32::from(half::bf16::from_f32(x).to_bits());
        bits(low) | (bits(high) << 16)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::PairSimd;
    use crate::x86_64::Avx512;

    // SAFETY: instructions of AVX-512 and its bf16 extension, which the contract of the methods asks for.
    unsafe impl PairSimd for Avx512 {
        type P = __m512i;

        #[inline(always)]
        unsafe fn load_pairs(self, from: *const u32) -> __m512i {
            // SAFETY: sixteen pairs, as the trait's contract says.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }
        #[inline(always)]
        unsafe fn store_pairs(self, to: *mut u32, x: __m512i) {
            // SAFETY: sixteen pairs, as the trait's contract says.
            unsafe { _mm512_storeu_si512(to.cast(), x) }
        }
        #[inline(always)]
        unsafe fn splat_pair(self, x: u32) -> __m512i {
            // SAFETY: register-only instruction of a set that `self` proves.
            unsafe { _mm512_set1_epi32(x as i32) }
        }
        #[inline(always)]
        unsafe fn dot(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
            // SAFETY: the contract; registers of sixteen pairs are the same bits under either type.
            unsafe {
                let (a, b) = (
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                );
                _mm512_dpbf16_ps(sum, a, b)
            }
        }
        #[inline(always)]
        unsafe fn pair(self, low: __m512, high: __m512) -> __m512i {
            // SAFETY: the contract; the same bits under either type.
            unsafe {
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                // Element i of the low half, then element i of the high half.
                let order = _mm512_set_epi16(
                    31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                    19, 3, 18, 2, 17, 1, 16, 0,
                );
                _mm512_permutexvar_epi16(order, both)
            }
        }
    }
}

/// Whether products of bf16 are faster than those of f32. Intel's `vdpbf16ps` does half as many a cycle, so that there
/// only tiles pay. The scalar version is the specification and is used wherever asked for.
pub(crate) fn pays(isa: Isa) -> bool {
    match isa.0 {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => is_supported(isa) && !crate::isa::is_intel(),
        _ => is_supported(isa),
    }
}

/// Whether there is a version for this instruction set.
pub(crate) fn is_supported(isa: Isa) -> bool {
    match isa.0 {
        Level::Scalar => true,
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Amx => std::arch::is_x86_feature_detected!("avx512bf16"),
        _ => false,
    }
}

/// As [`crate::simd::dispatch`] for functions generic over [`PairSimd`]: AVX-512 with bf16, or scalar.
macro_rules! dispatch_pairs {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) = $generic:path;) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
            fn with_avx512($($arg: $ty),*) {
                $generic($crate::x86_64::Avx512, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            if isa.has_avx512() && $crate::pair_gemm::is_supported(isa) {
                // SAFETY: an `Isa` of this level exists only where the processor has its features, and that for
                // bf16 has just been looked for.
                return unsafe { with_avx512($($arg),*) };
            }
            let _ = isa;
            $generic($crate::simd::Scalar, $($arg),*)
        }
    };
}
pub(crate) use dispatch_pairs;

dispatch! {
    /// `to[i]` = the bf16 nearest to `x[i]`, ties to even; a NaN stays one.
    fn round_row(x: &[f32], to: &mut [u16]) = round_row_generic;
}

/// `to[i]` = the bf16 nearest to `x[i]`.
pub(crate) fn round_to_bf16(isa: Isa, x: &[f32], to: &mut [u16]) {
    assert_eq!(x.len(), to.len(), "as many numbers as places");
    round_row(isa, x, to);
}

dispatch! {
    /// What rounding to bf16 loses, in place.
    pub(crate) fn keep_what_rounding_loses(x: &mut [f32]) = keep_what_rounding_loses_generic;
}

/// LLVM makes vectors of it.
#[inline(always)]
fn keep_what_rounding_loses_generic<S: Simd>(_: S, x: &mut [f32]) {
    for x in x {
        *x -= f32::from_bits(u32::from(round(*x)) << 16);
    }
}

/// The bf16 nearest to `x`, ties to even; a NaN stays one.
#[inline(always)]
pub(crate) fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if x.is_nan() { 0x7fc0 } else { rounded as u16 }
}

/// LLVM makes vectors of it.
#[inline(always)]
fn round_row_generic<S: Simd>(_: S, x: &[f32], to: &mut [u16]) {
    for (x, to) in x.iter().zip(to) {
        *to = round(*x);
    }
}

/// Rounds rows `[n, width]` to bf16 and makes pairs of rows `2i` and `2i + 1`: `to` is `[ceil(n / 2), width]`. A last
/// row without another is paired with zeros.
///
/// # Panics
/// When a length is no whole number of rows, or `width` is not a multiple of [`LANES`].
pub(crate) fn pair_rows(isa: Isa, from: &[f32], width: usize, to: &mut [u32]) {
    assert!(
        width > 0 && width.is_multiple_of(LANES) && from.len().is_multiple_of(width),
        "rows are not whole registers"
    );
    assert!(
        to.len() == (from.len() / width).div_ceil(2) * width,
        "a row of pairs for two rows"
    );
    pair_all(isa, from, width, to);
}

dispatch_pairs! {
    fn pair_all(from: &[f32], width: usize, to: &mut [u32]) = pair_all_generic;
}

#[inline(always)]
fn pair_all_generic<S: PairSimd>(simd: S, from: &[f32], width: usize, to: &mut [u32]) {
    for (rows, to) in from.chunks(2 * width).zip(to.chunks_exact_mut(width)) {
        let second = (rows.len() == 2 * width).then(|| &rows[width..]);
        for at in (0..width).step_by(S::LANES) {
            // SAFETY: whole registers within rows of `width`, a multiple of every register's lanes.
            unsafe {
                let low = simd.load(rows.as_ptr().add(at));
                let high = match second {
                    Some(row) => simd.load(row.as_ptr().add(at)),
                    None => simd.splat(0.0),
                };
                simd.store_pairs(to.as_mut_ptr().add(at), simd.pair(low, high));
            }
        }
    }
}

impl PairGemm<'_> {
    fn check(&self) {
        let area = |rows: usize, row: usize, last: Option<usize>| match rows {
            0 => Some(0),
            _ => (rows - 1).checked_mul(row).and_then(|n| n.checked_add(last?)),
        };
        let width = self.n.next_multiple_of(LANES);
        let fits = |end: Option<usize>, slice: &[u32]| end.is_some_and(|end| end <= slice.len());
        let row_of_a = area(self.k, self.a_col, Some(1));
        let (a_end, b_end) = (
            area(self.m, self.a_row, row_of_a),
            area(self.k, self.ldb, Some(width)),
        );
        for (a, b) in [(self.a, self.b)]
            .into_iter()
            .chain(self.rest.map(|rest| (rest.a, rest.b)))
        {
            assert!(fits(a_end, a), "A is too short");
            assert!(fits(b_end, b), "B is too short");
        }
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
pub(crate) unsafe fn pair_gemm(isa: Isa, gemm: &PairGemm<'_>) {
    gemm.check();
    #[cfg(target_arch = "x86_64")]
    if isa.has_tiles() {
        // SAFETY: an `Isa` of this level exists only where the processor has the features; the rest is the caller's word.
        return unsafe { crate::x86_64::multiply_pairs_amx(gemm) };
    }
    run(isa, gemm);
    if let Some(Rest { a, b }) = gemm.rest {
        let start = Start::Old;
        run(isa, &PairGemm { b, start, ..*gemm });
        run(isa, &PairGemm { a, start, ..*gemm });
    }
}

dispatch_pairs! {
    fn run(gemm: &PairGemm<'_>) = run_generic;
}

#[inline(always)]
fn run_generic<S: PairSimd>(simd: S, gemm: &PairGemm<'_>) {
    let mut i = 0;
    while i < gemm.m {
        i += match gemm.m - i {
            6.. => row_block::<S, 6>(simd, gemm, i),
            5 => row_block::<S, 5>(simd, gemm, i),
            4 => row_block::<S, 4>(simd, gemm, i),
            3 => row_block::<S, 3>(simd, gemm, i),
            2 => row_block::<S, 2>(simd, gemm, i),
            _ => row_block::<S, 1>(simd, gemm, i),
        };
    }
}

/// `M` rows of C from `i` on; returns `M`.
#[inline(always)]
fn row_block<S: PairSimd, const M: usize>(simd: S, gemm: &PairGemm<'_>, i: usize) -> usize {
    let mut j = 0;
    while j + 4 * S::LANES <= gemm.n {
        tile::<S, M, 4>(simd, gemm, i, j, S::LANES);
        j += 4 * S::LANES;
    }
    while j < gemm.n {
        tile::<S, M, 1>(simd, gemm, i, j, (gemm.n - j).min(S::LANES));
        j += S::LANES;
    }
    M
}

/// `M` rows by `V` registers at (i, j); the last register has `lanes` lanes.
#[inline(always)]
fn tile<S: PairSimd, const M: usize, const V: usize>(
    simd: S,
    gemm: &PairGemm<'_>,
    i: usize,
    j: usize,
    lanes: usize,
) {
    let whole = lanes == S::LANES;
    let mut sums = [[simd.splat(0.0); V]; M];
    // SAFETY: `check` holds: rows i..i+M of A and whole registers of B from column j on are inside, and so is the
    // row of starts; C by the caller's word. Functions of this trait run where `dispatch_pairs` found the features.
    unsafe {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                let column = j + v * S::LANES;
                let from = match gemm.start {
                    Start::Old => gemm.c.add((i + r) * gemm.ldc + column).cast_const(),
                    Start::Row(Some(row)) => row.as_ptr().add(column),
                    Start::Row(None) => continue,
                };
                *sum = if whole {
                    simd.load(from)
                } else {
                    simd.load_part(from, lanes)
                };
            }
        }
        let a: [*const u32; M] = std::array::from_fn(|r| gemm.a.as_ptr().add((i + r) * gemm.a_row));
        let b = gemm.b.as_ptr().add(j);
        for k in 0..gemm.k {
            // No closures here: they would be functions without the features, which nothing can be inlined into.
            let mut columns = [simd.splat_pair(0); V];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = simd.load_pairs(b.add(k * gemm.ldb + v * S::LANES));
            }
            for (a, sums) in a.iter().zip(&mut sums) {
                let x = simd.splat_pair(*a.add(k * gemm.a_col));
                for (sum, column) in sums.iter_mut().zip(&columns) {
                    *sum = simd.dot(*sum, x, *column);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let to = gemm.c.add((i + r) * gemm.ldc + j + v * S::LANES);
                if whole {
                    simd.store(to, *sum);
                } else {
                    simd.store_part(to, *sum, lanes);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounds_to_the_nearest_even_and_keeps_nan() {
        let mut x: Vec<f32> = (0..1000u32)
            .map(|i| f32::from_bits(i.wrapping_mul(4_294_967_291)))
            .collect();
        x.extend([
            f32::NAN,
            f32::INFINITY,
            -f32::INFINITY,
            -0.0,
            f32::MAX,
            1.003_906_3,
            1.011_718_8,
        ]);
        for isa in Isa::available() {
            let mut got = vec![0; x.len()];
            round_to_bf16(isa, &x, &mut got);
            for (x, got) in x.iter().zip(&got) {
                let (got, want) = (half::bf16::from_bits(*got), half::bf16::from_f32(*x));
                assert!(got == want || (got.is_nan() && want.is_nan()), "{isa} {x}");
            }
        }
    }

    fn value(bits: u32) -> f64 {
        f64::from(f32::from_bits(bits << 16))
    }

    proptest! {
        #[test]
        fn equals_a_plain_product_in_f64(m in 1usize..70, n in 1usize..150, k in 1usize..40, old: bool, seed: u64) {
            let mut state = seed | 1;
            let mut number = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / 8_388_608.0 - 1.0
            };
            // Both orders of A: row-major with padding, and transposed.
            let (a_row, a_col) = if seed % 2 == 0 { (k + 1, 1) } else { (1, m + 1) };
            let (ldb, ldc) = (n.next_multiple_of(LANES), n + 2);
            let mut pairs = |n: usize| -> Vec<u32> {
                // SAFETY: the scalar version needs nothing of the processor.
                (0..n).map(|_| unsafe { Scalar.pair(number(), number()) }).collect()
            };
            let (a, b) = (pairs((m + 1) * (k + 1)), pairs(k * ldb));
            let (a_rest, b_rest) = (pairs((m + 1) * (k + 1)), pairs(k * ldb));
            let rest = (seed % 3 == 0).then_some(Rest { a: &a_rest, b: &b_rest });
            let before: Vec<f32> = (0..m * ldc).map(|i| (i as f32).sin()).collect();
            let row: Vec<f32> = (0..n).map(|i| (i as f32).cos()).collect();
            for isa in Isa::available().filter(|isa| is_supported(*isa)) {
                let mut c = before.clone();
                let start = if old { Start::Old } else { Start::Row(Some(&row)) };
                let gemm = PairGemm { a: &a, a_row, a_col, b: &b, ldb, c: c.as_mut_ptr(), ldc, m, n, k, rest, start };
                // SAFETY: `c` has m rows of ldc >= n.
                unsafe { pair_gemm(isa, &gemm) };
                for i in 0..m {
                    for j in 0..ldc {
                        let from = f64::from(if old || j >= n { before[i * ldc + j] } else { row[j] });
                        let (mut sum, mut size) = (from, from.abs());
                        for p in 0..if j < n { k } else { 0 } {
                            let products = [(&a, &b), (&a, &b_rest), (&a_rest, &b)];
                            for (a, b) in &products[..if rest.is_some() { 3 } else { 1 }] {
                                let (x, y) = (a[i * a_row + p * a_col], b[p * ldb + j]);
                                for term in [value(x) * value(y), value(x >> 16) * value(y >> 16)] {
                                    sum += term;
                                    size += term.abs();
                                }
                            }
                        }
                        let bound = (2 * k + 1) as f64 * f64::from(f32::EPSILON) * size;
                        prop_assert!((f64::from(c[i * ldc + j]) - sum).abs() <= bound, "{isa} {i} {j}");
                    }
                }
            }
        }

        #[test]
        fn rows_are_paired_alike(
            mut rows in prop::collection::vec(-1e30f32..1e30, 96), small in prop::collection::vec(-2f32..2.0, 48), n in 1usize..4,
        ) {
            rows[..48].copy_from_slice(&small);
            let from = &rows[..n * 32];
            for isa in Isa::available().filter(|isa| is_supported(*isa)) {
                let mut got = vec![0; n.div_ceil(2) * 32];
                pair_rows(isa, from, 32, &mut got);
                for (i, got) in got.iter().enumerate() {
                    let (row, column) = (i / 32 * 2, i % 32);
                    let low = from[row * 32 + column];
                    let high = from.get((row + 1) * 32 + column).copied().unwrap_or(0.0);
                    let bits = |x| u32::from(half::bf16::from_f32(x).to_bits());
                    prop_assert_eq!(*got, bits(low) | (bits(high) << 16), "{} {}", isa, i);
                }
            }
        }
    }
}
