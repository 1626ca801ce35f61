//! `C = A B` in f32 for tiles that are in the cache: the heart of attention and of float weights in prefill.
//!
//! The tile is 6 rows of A by 4 registers of B: 24 sums, 4 registers of B and 1 broadcast of the 32 of
//! AVX-512 and NEON (on AVX2: 4 by 2, 8 sums). Each step of `k` loads 4 registers and does 24 FMA, so the two FMA ports
//! are the limit. Sums are kept in registers over all of `k`, in order.

use crate::simd::{Simd, dispatch};

/// The operands of one product. B and C are row-major with a distance between rows; A is read one element at
/// a time, so its rows and columns may lie any distance apart.
pub(crate) struct Gemm<'a> {
    /// `[m, k]`: rows `a_row` apart, columns `a_col` apart.
    pub(crate) a: &'a [f32],
    pub(crate) a_row: usize,
    pub(crate) a_col: usize,
    /// `[k, n]`, rows `ldb` apart.
    pub(crate) b: &'a [f32],
    pub(crate) ldb: usize,
    /// `[m, n]`, rows `ldc` apart.
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Add to C instead of overwriting it.
    pub(crate) add: Accumulate,
}

/// What happens to the old content of C.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accumulate {
    Overwrite,
    Add,
}

impl Gemm<'_> {
    fn check(&self) {
        // `None` where the last element's index overflows: no slice is that long.
        let end = |(rows, row): (usize, usize), (cols, col): (usize, usize)| {
            if rows == 0 || cols == 0 {
                return Some(0);
            }
            (rows - 1)
                .checked_mul(row)?
                .checked_add((cols - 1).checked_mul(col)?)?
                .checked_add(1)
        };
        let fits = |end: Option<usize>, slice: &[f32]| end.is_some_and(|end| end <= slice.len());
        assert!(
            fits(end((self.m, self.a_row), (self.k, self.a_col)), self.a),
            "A is too short"
        );
        assert!(
            fits(end((self.k, self.ldb), (self.n, 1)), self.b),
            "B is too short"
        );
    }
}

/// Carries out `gemm`.
///
/// # Safety
/// `gemm.c` is valid for reads and writes of `n` elements at each of `m` rows, `ldc` apart, and nobody else
/// touches them meanwhile.
pub(crate) unsafe fn gemm_f32(isa: crate::Isa, gemm: &Gemm<'_>) {
    gemm.check();
    run(isa, gemm);
}

dispatch! {
    fn run(gemm: &Gemm<'_>) = run_generic;
}

#[inline(always)]
fn run_generic<S: Simd>(simd: S, gemm: &Gemm<'_>) {
    let mut i = 0;
    while i < gemm.m {
        // AVX2 has 16 registers: 4 x 2 sums, 2 of B, 1 broadcast. AVX-512 and NEON have 32.
        if S::REGISTERS == 32 {
            i += match gemm.m - i {
                6.. => row_block::<S, 6, 4>(simd, gemm, i),
                5 => row_block::<S, 5, 4>(simd, gemm, i),
                4 => row_block::<S, 4, 4>(simd, gemm, i),
                3 => row_block::<S, 3, 4>(simd, gemm, i),
                2 => row_block::<S, 2, 4>(simd, gemm, i),
                _ => row_block::<S, 1, 4>(simd, gemm, i),
            };
        } else {
            i += match gemm.m - i {
                4.. => row_block::<S, 4, 2>(simd, gemm, i),
                3 => row_block::<S, 3, 2>(simd, gemm, i),
                2 => row_block::<S, 2, 2>(simd, gemm, i),
                _ => row_block::<S, 1, 2>(simd, gemm, i),
            };
        }
    }
}

/// `M` rows of C from `i` on, `V` registers at a time; returns `M`.
#[inline(always)]
fn row_block<S: Simd, const M: usize, const V: usize>(simd: S, gemm: &Gemm<'_>, i: usize) -> usize {
    let mut j = 0;
    while j + V * S::LANES <= gemm.n {
        tile::<S, M, V>(simd, gemm, i, j, S::LANES);
        j += V * S::LANES;
    }
    while j < gemm.n {
        tile::<S, M, 1>(simd, gemm, i, j, (gemm.n - j).min(S::LANES));
        j += S::LANES;
    }
    M
}

/// `M` rows by `V` registers at (i, j); the last register has `lanes` lanes.
#[inline(always)]
fn tile<S: Simd, const M: usize, const V: usize>(simd: S, gemm: &Gemm<'_>, i: usize, j: usize, lanes: usize) {
    let mut sums = [[simd.splat(0.0); V]; M];
    let whole = lanes == S::LANES;
    // SAFETY: `check` holds: rows i..i+M of A and columns j.. of B are inside; C by the caller's word.
    unsafe {
        let a: [*const f32; M] = std::array::from_fn(|r| gemm.a.as_ptr().add((i + r) * gemm.a_row));
        let b = gemm.b.as_ptr().add(j);
        for k in 0..gemm.k {
            let from = b.add(k * gemm.ldb);
            let mut columns = [simd.splat(0.0); V];
            for (v, column) in columns.iter_mut().enumerate() {
                let from = from.add(v * S::LANES);
                *column = if whole {
                    simd.load(from)
                } else {
                    simd.load_part(from, lanes)
                };
            }
            for (a, sums) in a.iter().zip(&mut sums) {
                let x = simd.splat(*a.add(k * gemm.a_col));
                for (sum, column) in sums.iter_mut().zip(&columns) {
                    *sum = simd.fma(x, *column, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let to = gemm.c.add((i + r) * gemm.ldc + j + v * S::LANES);
                let load = || {
                    if whole {
                        simd.load(to)
                    } else {
                        simd.load_part(to, lanes)
                    }
                };
                let value = if gemm.add == Accumulate::Add {
                    simd.add(load(), *sum)
                } else {
                    *sum
                };
                if whole {
                    simd.store(to, value)
                } else {
                    simd.store_part(to, value, lanes)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_a_plain_product_in_f64(m in 1usize..14, n in 1usize..90, k in 1usize..40, pad in 0usize..3, seed: u64) {
            let mut state = seed | 1;
            let mut number = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / 8_388_608.0 - 1.0
            };
            // Both orders of A: row-major with padding, and transposed.
            let (a_row, a_col) = if seed % 2 == 0 { (k + pad, 1) } else { (1, m + pad) };
            let (ldb, ldc) = (n + pad, n + 2 * pad);
            let a: Vec<f32> = (0..(m + pad) * (k + pad)).map(|_| number()).collect();
            let b: Vec<f32> = (0..k * ldb).map(|_| number()).collect();
            let old: Vec<f32> = (0..m * ldc).map(|_| number()).collect();
            for isa in Isa::available() {
                for add in [Accumulate::Overwrite, Accumulate::Add] {
                    let mut c = old.clone();
                    let gemm = Gemm { a: &a, a_row, a_col, b: &b, ldb, c: c.as_mut_ptr(), ldc, m, n, k, add };
                    // SAFETY: `c` has m rows of ldc >= n.
                    unsafe { gemm_f32(isa, &gemm) };
                    for i in 0..m {
                        for j in 0..ldc {
                            let before = f64::from(old[i * ldc + j]);
                            let (mut sum, mut size) = (0.0, 0.0);
                            for p in 0..k {
                                let term = f64::from(a[i * a_row + p * a_col]) * f64::from(b[p * ldb + j.min(n - 1)]);
                                sum += term;
                                size += term.abs();
                            }
                            let want = match add {
                                _ if j >= n => before,
                                Accumulate::Overwrite => sum,
                                Accumulate::Add => before + sum,
                            };
                            let bound = (k + 1) as f64 * f64::from(f32::EPSILON) * (size + before.abs());
                            prop_assert!((f64::from(c[i * ldc + j]) - want).abs() <= bound, "{isa} {i} {j}");
                        }
                    }
                }
            }
        }
    }
}
