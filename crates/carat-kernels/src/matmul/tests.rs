//! Every version of the products against the scalar one, and that one against f64.

use proptest::prelude::*;

use super::*;
use crate::block::{CHUNK, Chunk, by_format};
use crate::dequantize;
use crate::scalar::Unpack;

/// xorshift64*: test data that does not change with a library.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Within -1 and 1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8_388_608.0 - 1.0
    }
}

/// Where the f16 numbers of a block are. Random bits there would be NaN or huge.
fn f16_offsets(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4_NL | DType::IQ4_XS => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        DType::F32 | DType::F16 | DType::BF16 => &[],
    }
}

/// Random valid weights. `extreme` sets all quants to their largest codes.
fn weights(dtype: DType, n: usize, numbers: &mut Numbers, extreme: bool) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    match dtype {
        DType::F32 => (0..n).for_each(|_| bytes.extend(numbers.float().to_le_bytes())),
        DType::F16 => {
            (0..n).for_each(|_| bytes.extend(half::f16::from_f32(numbers.float()).to_le_bytes()));
        }
        DType::BF16 => {
            (0..n).for_each(|_| bytes.extend(half::bf16::from_f32(numbers.float()).to_le_bytes()));
        }
        _ => {
            for _ in 0..n / dtype.block_len() {
                let mut block: Vec<u8> = (0..dtype.block_bytes())
                    .map(|_| if extreme { 0xff } else { numbers.next() as u8 })
                    .collect();
                for at in f16_offsets(dtype) {
                    let d = half::f16::from_f32(numbers.float() * 0.1);
                    block[*at..at + 2].copy_from_slice(&d.to_le_bytes());
                }
                bytes.extend(block);
            }
        }
    }
    bytes
}

/// Sizes around the edges of every tile, as whole blocks.
fn columns(dtype: DType, which: usize) -> usize {
    match dtype.block_len() {
        256 => [256, 512, 2048, 2304][which % 4],
        32 => [32, 64, 224, 256, 288, 416, 640, 2048, 2080][which % 9],
        _ => [1, 7, 16, 17, 64, 100, 513, 640][which % 8],
    }
}

pub(crate) struct Case {
    pub(crate) dtype: DType,
    pub(crate) n_rows: usize,
    pub(crate) n_cols: usize,
    pub(crate) n_x: usize,
    pub(crate) bytes: Vec<u8>,
    pub(crate) x: Vec<f32>,
}

impl Case {
    pub(crate) fn new(
        dtype: DType,
        n_rows: usize,
        n_x: usize,
        which: usize,
        seed: u64,
        extreme: bool,
    ) -> Case {
        let mut numbers = Numbers(seed | 1);
        let n_cols = columns(dtype, which);
        let bytes = weights(dtype, n_rows * n_cols, &mut numbers, extreme);
        let x = (0..n_x * n_cols)
            .map(|_| if extreme { 3.0 } else { numbers.float() * 4.0 })
            .collect();
        Case {
            dtype,
            n_rows,
            n_cols,
            n_x,
            bytes,
            x,
        }
    }

    pub(crate) fn multiply(&self, isa: Isa, precision: Precision, n_threads: usize) -> Vec<f32> {
        let compute = Compute::new(isa, n_threads).unwrap();
        let weights = Matrix::new(self.dtype, self.n_rows, self.n_cols, &self.bytes).unwrap();
        let mut x = Activations::new(precision);
        x.fill(&compute, &self.x, self.n_x, self.n_cols, &[weights]);
        let mut out = vec![f32::NAN; self.n_x * self.n_rows];
        compute.multiply(
            &x,
            &mut [Product {
                weights,
                out: &mut out,
            }],
        );
        out
    }

    /// Asserts that rows multiplied alone give the bits that they give together.
    fn is_the_same_alone(&self, isa: Isa, precision: Precision) {
        let (n_rows, n_cols, n_x) = (self.n_rows, self.n_cols, self.n_x);
        let together = self.multiply(isa, precision, 2);
        for t in [0, n_x / 2, n_x - 1] {
            let alone = Case {
                n_x: 1,
                bytes: self.bytes.clone(),
                x: self.x[t * n_cols..(t + 1) * n_cols].to_vec(),
                ..*self
            };
            let (alone, together) = (alone.multiply(isa, precision, 1), &together[n_rows * t..]);
            let are_equal = alone
                .iter()
                .zip(together)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(
                are_equal,
                "{} {precision:?}, {n_cols} columns, row {t} of {n_x}",
                self.dtype
            );
        }
    }

    /// Weights in f64, as far as f32 goes.
    fn floats(&self) -> Vec<f64> {
        let mut row = vec![0.0; self.n_rows * self.n_cols];
        dequantize(self.dtype, &self.bytes, &mut row).unwrap();
        row.into_iter().map(f64::from).collect()
    }

    /// The product in f64 with the activations `x`, and the sum of the terms' sizes.
    fn expected(&self, x: &[f64], t: usize, r: usize, w: &[f64]) -> (f64, f64) {
        let terms = (0..self.n_cols).map(|k| w[r * self.n_cols + k] * x[t * self.n_cols + k]);
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    }

    /// The terms' sizes when each code is taken with its offset still in it: what rounding is relative to.
    fn size_with_offsets(&self, x: &[f64], t: usize, r: usize) -> f64 {
        let weights = Matrix::new(self.dtype, self.n_rows, self.n_cols, &self.bytes).unwrap();
        let largest = by_format!(self.dtype, F => {
            let mut chunk = Chunk::zero();
            let mut largest = 0.0f32;
            let chunks = RowChunks::<F>::new(&weights, r);
            for c in 0..self.n_cols.div_ceil(CHUNK) {
                F::unpack(chunks.bytes(c), &mut chunk);
                for (i, q) in chunk.q.iter().enumerate() {
                    let code = f32::from(*q).max(F::OFFSET as f32);
                    largest = largest.max(chunk.scale[i / 16].abs() * code + chunk.min[i / 16].abs());
                }
            }
            f64::from(largest)
        }, else 0.0);
        2.0 * largest
            * x[t * self.n_cols..(t + 1) * self.n_cols]
                .iter()
                .map(|x| x.abs())
                .sum::<f64>()
    }
}

/// Whether so many activation rows are rounded to bf16 instead of quantized.
fn is_rounded(isa: Isa, n_x: usize) -> bool {
    isa.has_tiles() && n_x >= panel_min_x(isa)
}

pub(crate) fn any_dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(DType::all().collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// f32 arithmetic: within n rounding errors of the product in f64, whatever the set, few rows or many.
    #[test]
    fn float_products_equal_f64(
        dtype in any_dtype(), n_rows in 1usize..70, n_x in 1usize..20, which: usize, seed: u64,
    ) {
        let case = Case::new(dtype, n_rows, n_x, which, seed, false);
        let (w, x) = (case.floats(), case.x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        for isa in Isa::available() {
            let got = case.multiply(isa, Precision::F32, 2);
            for t in 0..n_x {
                for r in 0..n_rows {
                    let (want, size) = case.expected(&x, t, r, &w);
                    let bound = (case.n_cols + 2) as f64 * f64::from(f32::EPSILON) * size + 1e-30;
                    prop_assert!((f64::from(got[t * n_rows + r]) - want).abs() <= bound, "{isa} {dtype} {t} {r}");
                }
            }
        }
    }

    /// Integer arithmetic: within rounding errors of the exact product with the quantized activations.
    #[test]
    fn integer_products_equal_f64_over_quantized_activations(
        dtype in any_dtype(), n_rows in 1usize..70, n_x in 1usize..20, which: usize, seed: u64, extreme: bool,
        wide: bool,
    ) {
        prop_assume!(dtype.is_quantized());
        let case = Case::new(dtype, n_rows, n_x, which, seed, extreme);
        let mut rows = QuantizedRows::default();
        let (bits, precision) =
            if wide { (Bits::Sixteen, Precision::Int16) } else { (Bits::Eight, Precision::Int8) };
        rows.fill((Isa::detect(), None), bits, &case.x, [n_x, case.n_cols], Layout::ROWS);
        let x: Vec<f64> = (0..n_x)
            .flat_map(|t| {
                let row = rows.row(t);
                let whole = move |k: usize| {
                    let q = f64::from(row.q[k]);
                    row.low.get(k).map_or(q, |low| 256.0 * q + f64::from(*low))
                };
                (0..case.n_cols).map(move |k| f64::from(row.scale[k / 16]) * whole(k)).collect::<Vec<_>>()
            })
            .collect();
        let w = case.floats();
        for isa in Isa::available().filter(|isa| !is_rounded(*isa, n_x)) {
            let got = case.multiply(isa, precision, 2);
            for t in 0..n_x {
                for r in 0..n_rows {
                    let (want, _) = case.expected(&x, t, r, &w);
                    let size = case.size_with_offsets(&x, t, r);
                    // One rounding for each of the n/16 scales' terms and a few for each term itself.
                    let bound = (case.n_cols as f64 / 16.0 + 8.0) * f64::from(f32::EPSILON) * size + 1e-30;
                    prop_assert!(
                        (f64::from(got[t * n_rows + r]) - want).abs() <= bound,
                        "{isa} {dtype} {t} {r}: {} not {want}", got[t * n_rows + r]
                    );
                }
            }
        }
    }

    /// Tiles of bf16: within the rounding of both sides to 8 bits of mantissa, or to 16.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn products_of_tiles_equal_f64_within_their_rounding(
        dtype in any_dtype(), n_rows in 1usize..150, n_x in 17usize..70, which: usize, seed: u64, extreme: bool,
        wide: bool,
    ) {
        prop_assume!(dtype.is_quantized());
        let Ok(isa) = Isa::named("amx") else { return Ok(()) };
        let case = Case::new(dtype, n_rows, n_x, which, seed, extreme);
        let (w, x) = (case.floats(), case.x.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        // A number of bf16 is off by up to 2^-8 of itself, one of two by 2^-16; the product of the second halves is left out.
        let (precision, rounding) = if wide { (Precision::Int16, 3.0 * 2.0f64.powi(-16)) } else { (Precision::Int8, 2.0 * 2.0f64.powi(-8)) };
        let got = case.multiply(isa, precision, 2);
        for t in 0..n_x {
            for r in 0..n_rows {
                let (want, size) = case.expected(&x, t, r, &w);
                // A weight is made by one FMA, whose error is relative to its code with the offset.
                let made = f64::from(f32::EPSILON) * case.size_with_offsets(&x, t, r);
                let bound = (1.01 * rounding + case.n_cols as f64 * f64::from(f32::EPSILON)) * size + made + 1e-30;
                let got = f64::from(got[t * n_rows + r]);
                prop_assert!((got - want).abs() <= bound, "{dtype} {t} {r}: {got} not {want}");
            }
        }
    }

    /// Threads share out rows, never sums.
    #[test]
    fn the_number_of_threads_changes_no_bit(dtype in any_dtype(), n_x in 1usize..40, which: usize, seed: u64) {
        let case = Case::new(dtype, 50, n_x, which, seed, false);
        for precision in [Precision::F32, Precision::Int16, Precision::Int8] {
            let one = case.multiply(Isa::detect(), precision, 1);
            let three = case.multiply(Isa::detect(), precision, 3);
            prop_assert!(one.iter().zip(&three).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    /// A row's result does not depend on how many others are multiplied with it.
    #[test]
    fn a_batch_changes_no_bit(dtype in any_dtype(), n_x in 2usize..40, which: usize, seed: u64, wide: bool) {
        prop_assume!(dtype.is_quantized());
        // The other sets' panels sum in another order than their rows.
        let Ok(isa) = Isa::named("avx512") else { return Ok(()) };
        let case = Case::new(dtype, 50, n_x, which, seed, false);
        let precision = if wide { Precision::Int16 } else { Precision::Int8 };
        case.is_the_same_alone(isa, precision);
    }

    /// The chunk form is the same numbers as the format's own.
    #[test]
    fn chunks_stand_for_the_dequantized_values(dtype in any_dtype(), seed: u64, extreme: bool) {
        prop_assume!(dtype.is_quantized());
        let bytes = weights(dtype, CHUNK, &mut Numbers(seed | 1), extreme);
        let mut want = vec![0.0; CHUNK];
        dequantize(dtype, &bytes, &mut want).unwrap();
        let mut chunk = Chunk::zero();
        let offset = by_format!(dtype, F => { F::unpack(&bytes, &mut chunk); F::OFFSET }, else 0);
        for (i, want) in want.iter().enumerate() {
            let (q, scale, min) = (i32::from(chunk.q[i]) - offset, chunk.scale[i / 16], chunk.min[i / 16]);
            let got = scale * q as f32 + min;
            prop_assert!((got - want).abs() <= 4.0 * f32::EPSILON * (scale * q as f32).abs().max(min.abs()));
        }
    }
}

#[test]
fn no_activation_rows_give_no_products() {
    let weights = vec![1; 40 * DType::Q4_0.block_bytes() * 8];
    let weights = Matrix::new(DType::Q4_0, 40, 256, &weights).unwrap();
    for isa in Isa::available() {
        let compute = Compute::new(isa, 1).unwrap();
        for precision in [Precision::Int8, Precision::Int16, Precision::F32] {
            let mut x = Activations::new(precision);
            x.fill(&compute, &[], 0, 256, &[weights]);
            let out = &mut [];
            compute.multiply(&x, &mut [Product { weights, out }]);
        }
    }
}

/// Q8_0 has a kernel of its own for some numbers of rows.
#[test]
fn q8_0_is_the_same_in_every_batch() {
    let Ok(isa) = Isa::named("avx512") else { return };
    for n_x in 1..=17 {
        for which in 0..9 {
            // The last group of sixteen is not whole, and ends where the matrix does.
            let case = Case::new(DType::Q8_0, 150, n_x, which, 11, false);
            case.is_the_same_alone(isa, Precision::Int8);
            case.is_the_same_alone(isa, Precision::Int16);
        }
    }
}

/// A damaged file shows: scales that are no numbers do not become small ones on the way.
#[test]
fn scales_that_are_no_numbers_stay_so() {
    for dtype in [DType::Q4_0, DType::Q8_0, DType::Q4_K, DType::Q6_K] {
        for n_x in [1, 8, 20] {
            // Whole chunks: what is read past a row's end would spoil the rows before.
            let mut case = Case::new(dtype, 40, n_x, 3, 3, false);
            let row = case.bytes.len() / 40;
            case.bytes[17 * row..18 * row].fill(0xff);
            for isa in Isa::available() {
                for precision in [Precision::Int8, Precision::Int16, Precision::F32] {
                    let got = case.multiply(isa, precision, 1);
                    for (i, value) in got.iter().enumerate() {
                        assert_eq!(value.is_nan(), i % 40 == 17, "{isa} {dtype} {precision:?} {i}");
                    }
                }
            }
        }
    }
}

/// Panels are as large as the threads allow; the sums in them do not know.
#[cfg(target_arch = "x86_64")]
#[test]
fn panels_of_any_size_give_the_same_sums() {
    let Ok(isa) = Isa::named("amx") else { return };
    let case = Case::new(DType::Q6_K, 400, 40, 0, 7, false);
    let sizes = [1, 2, 4].map(|n_threads| (crate::x86_64::amx_panel_rows(400, n_threads), n_threads));
    assert_eq!(sizes.map(|(rows, _)| rows), [128, 64, 32]);
    let products = sizes.map(|(_, n_threads)| case.multiply(isa, Precision::Int16, n_threads));
    assert!(products[0].iter().all(|value| value.is_finite()));
    assert_eq!(products[0], products[1]);
    assert_eq!(products[0], products[2]);
}

#[test]
fn a_matrix_must_fit_its_bytes() {
    assert!(Matrix::new(DType::Q4_K, 2, 256, &[0; 288]).is_ok());
    for (rows, cols, n) in [
        (2, 256, 287),
        (2, 100, 288),
        (usize::MAX, 256, 288),
        (0, usize::MAX, 0),
    ] {
        assert!(matches!(
            Matrix::new(DType::Q4_K, rows, cols, &vec![0; n]),
            Err(Error::MatrixSize { .. })
        ));
    }
}
