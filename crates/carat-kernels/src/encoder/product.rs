//! Products of an [`Operand`] with weights, with a bias where there is one.
//!
//! As in [`crate::matmul`], work is split over weight rows, never over the sum. A chunk is a panel of 64 weight
//! rows: they become pairs of 16 bits with the rows side by side, `[k / 2][64]`, 550 KB for SigLIP's widest (4,304
//! columns) and 885 KB for the 12B's embedder (6,912), which stay in the L2 cache while all activation rows stream past
//! them. Weights are converted once for each call, which costs little beside some hundred rows of products.

use std::sync::PoisonError;

use super::{Arithmetic, Operand};
use crate::aligned::Aligned;
use crate::float_matmul::{FLOAT_PANEL_ROWS, TRANSPOSED_ROWS, float_panel, to_f32};
use crate::integer_gemm::{IntegerGemm, integer_gemm};
use crate::integer_round::round_row;
use crate::matmul::{FloatTask, SharedOut};
use crate::pair_gemm::{PairGemm, Start, pair_gemm, round_to_bf16};
use crate::{Compute, DType, Isa, Matrix};

/// One product of several that share their input: `out[t] = weights x[t] + bias`.
pub struct EncoderProduct<'a> {
    /// Weights `[n_out, n_cols]`.
    pub weights: Matrix<'a>,
    /// `[n_out]`
    pub bias: Option<&'a [f32]>,
    /// `[n_rows, n_out]`, overwritten.
    pub out: &'a mut [f32],
}

/// One thread's memory for a panel of weights.
pub(crate) struct PairScratch {
    row: Vec<f32>,
    /// `[TRANSPOSED_ROWS, k]`
    rounded: Vec<u32>,
    /// `[k, FLOAT_PANEL_ROWS]`
    panel: Aligned<u32>,
    /// Scales of the rows, where they are integers.
    scales: [f32; FLOAT_PANEL_ROWS],
}

struct Job<'a> {
    weights: Matrix<'a>,
    bias: Option<&'a [f32]>,
    out: SharedOut<'a>,
}

impl Compute {
    /// Several products of one input in one parallel region.
    ///
    /// # Panics
    /// When a shape does not fit: a weight's columns, a bias's or an output's length. These are the caller's
    /// invariants.
    pub fn multiply_encoder(&self, x: &Operand, products: &mut [EncoderProduct<'_>]) {
        let jobs: Vec<Job<'_>> = products.iter_mut().map(|product| Job::new(x, product)).collect();
        let n_chunks = jobs.iter().map(Job::n_chunks).sum();
        self.pool().run(n_chunks, &|worker, mut chunk| {
            for job in &jobs {
                if chunk < job.n_chunks() {
                    let mut scratch = self
                        .scratch(worker)
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    job.run(self.isa(), x, chunk, &mut scratch);
                    return;
                }
                chunk -= job.n_chunks();
            }
        });
    }
}

impl<'a> Job<'a> {
    fn new(x: &Operand, product: &'a mut EncoderProduct<'_>) -> Job<'a> {
        let weights = product.weights;
        assert_eq!(
            weights.n_cols(),
            x.n_cols,
            "a weight's columns are not the operand's"
        );
        assert!(
            product.bias.is_none_or(|bias| bias.len() == weights.n_rows()),
            "a bias does not fit its weights"
        );
        Job {
            weights,
            bias: product.bias,
            out: SharedOut::new(product.out, x.n_rows, weights.n_rows()),
        }
    }

    fn n_chunks(&self) -> usize {
        self.weights.n_rows().div_ceil(FLOAT_PANEL_ROWS)
    }

    fn run(&self, isa: Isa, x: &Operand, chunk: usize, scratch: &mut crate::matmul::Scratch) {
        let first = chunk * FLOAT_PANEL_ROWS;
        let rows = first..(first + FLOAT_PANEL_ROWS).min(self.weights.n_rows());
        let (n, bias) = (rows.len(), self.bias.map(|bias| &bias[rows.clone()]));
        if x.n_rows == 0 {
            return;
        }
        let half = x.n_cols.div_ceil(2);
        let (c, ldc) = (self.out.run(0, first, n), self.out.stride());
        let start = Start::Row(bias);
        match x.arithmetic {
            Arithmetic::F32 => {
                let task = FloatTask {
                    weights: &self.weights,
                    rows,
                    x: &x.floats,
                    n_x: x.n_rows,
                    out: &self.out,
                };
                float_panel(isa, &task, &mut scratch.float);
                if let Some(bias) = bias {
                    (0..x.n_rows).for_each(|t| self.out.add_run(t, first, bias));
                }
            }
            Arithmetic::Bf16 => {
                scratch.pairs.load(isa, Arithmetic::Bf16, &self.weights, rows);
                let gemm = PairGemm {
                    a: &x.pairs,
                    a_row: half,
                    a_col: 1,
                    b: &scratch.pairs.panel,
                    ldb: FLOAT_PANEL_ROWS,
                    c,
                    ldc,
                    m: x.n_rows,
                    n,
                    k: half,
                    rest: None,
                    start,
                };
                // SAFETY: the output has `n_rows` rows, of which this task alone has these `n` columns.
                unsafe { pair_gemm(isa, &gemm) };
            }
            Arithmetic::Integers => {
                scratch.pairs.load(isa, Arithmetic::Integers, &self.weights, rows);
                let gemm = IntegerGemm {
                    a: &x.pairs,
                    a_scales: &x.pairs[half..],
                    a_row: x.arithmetic.row_len(x.n_cols),
                    a_col: 1,
                    b: &scratch.pairs.panel,
                    b_scales: &scratch.pairs.scales,
                    ldb: FLOAT_PANEL_ROWS,
                    c,
                    ldc,
                    m: x.n_rows,
                    n,
                    k: half,
                    start,
                };
                // SAFETY: as above.
                unsafe { integer_gemm(isa, &gemm) };
            }
        }
    }
}

impl Default for PairScratch {
    fn default() -> PairScratch {
        PairScratch {
            row: Vec::new(),
            rounded: Vec::new(),
            panel: Aligned::default(),
            scales: [0.0; FLOAT_PANEL_ROWS],
        }
    }
}

impl PairScratch {
    /// Weight rows as pairs, side by side. Sixteen rows at a time, so that lines of the panel are written whole.
    fn load(&mut self, isa: Isa, arithmetic: Arithmetic, weights: &Matrix<'_>, rows: std::ops::Range<usize>) {
        let (n_cols, dtype) = (weights.n_cols(), weights.dtype());
        let half = n_cols.div_ceil(2).max(1);
        self.rounded.clear();
        self.rounded.resize(TRANSPOSED_ROWS * half, 0);
        self.panel.resize(half * FLOAT_PANEL_ROWS);
        if rows.len() < FLOAT_PANEL_ROWS {
            self.panel.fill(0);
        }
        let groups = self.scales.chunks_mut(TRANSPOSED_ROWS).enumerate();
        for (g, scales) in groups.take(rows.len().div_ceil(TRANSPOSED_ROWS)) {
            let group = rows.clone().skip(g * TRANSPOSED_ROWS).take(TRANSPOSED_ROWS);
            let n = group.len();
            let places = self.rounded.chunks_exact_mut(half).zip(scales);
            for (row, (to, scale)) in group.zip(places) {
                let to = &mut bytemuck::cast_slice_mut::<u32, u16>(to)[..n_cols];
                let bytes = weights.row(row);
                if dtype == DType::BF16 && arithmetic == Arithmetic::Bf16 {
                    bytemuck::cast_slice_mut(to).copy_from_slice(bytes);
                    continue;
                }
                to_f32(dtype, bytes, n_cols, &mut self.row);
                match arithmetic {
                    Arithmetic::Integers => *scale = round_row(isa, &self.row, to),
                    Arithmetic::F32 | Arithmetic::Bf16 => round_to_bf16(isa, &self.row, to),
                }
            }
            for (i, column) in self.panel.chunks_exact_mut(FLOAT_PANEL_ROWS).enumerate() {
                let from = self.rounded[i..].iter().step_by(half);
                let to = &mut column[g * TRANSPOSED_ROWS..][..n];
                to.iter_mut().zip(from).for_each(|(to, pair)| *to = *pair);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoder::EncoderPrecision;
    use proptest::prelude::*;

    fn bytes_of(weights: &[f32], dtype: DType) -> Vec<u8> {
        match dtype {
            DType::BF16 => weights
                .iter()
                .flat_map(|w| half::bf16::from_f32(*w).to_le_bytes())
                .collect(),
            DType::F16 => weights
                .iter()
                .flat_map(|w| half::f16::from_f32(*w).to_le_bytes())
                .collect(),
            _ => weights.iter().flat_map(|w| w.to_le_bytes()).collect(),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn equals_f64_in_either_precision(n_x in 1usize..20, n_cols in 1usize..90, n_out in 1usize..140, seed: u32) {
            let number = |i: usize, salt: u32| ((i as f32) * 0.37 + (seed ^ salt) as f32 * 1e-4).sin();
            let x: Vec<f32> = (0..n_x * n_cols).map(|i| number(i, 1)).collect();
            let bias: Vec<f32> = (0..n_out).map(|i| number(i, 2)).collect();
            let dtype = [DType::BF16, DType::F16, DType::F32][seed as usize % 3];
            let bytes = bytes_of(&(0..n_out * n_cols).map(|i| number(i, 3)).collect::<Vec<_>>(), dtype);
            let mut weights = vec![0.0; n_out * n_cols];
            crate::dequantize(dtype, &bytes, &mut weights).unwrap();
            for isa in Isa::available() {
                let compute = Compute::new(isa, 2).unwrap();
                // 2^-8 for each of two roundings where there are any, and the sums in f32.
                let sums = (n_cols + 2) as f64 * f64::from(f32::EPSILON);
                for (precision, error) in [(EncoderPrecision::F32, sums), (EncoderPrecision::Half, sums + 0.008)] {
                    let mut operand = Operand::new(precision);
                    operand.fill(&compute, n_x, n_cols, &|t, to| to.copy_from_slice(&x[t * n_cols..(t + 1) * n_cols]));
                    let (mut plain, mut biased) = (vec![1.0; n_x * n_out], vec![1.0; n_x * n_out]);
                    let matrix = Matrix::new(dtype, n_out, n_cols, &bytes).unwrap();
                    compute.multiply_encoder(&operand, &mut [
                        EncoderProduct { weights: matrix, bias: None, out: &mut plain },
                        EncoderProduct { weights: matrix, bias: Some(&bias), out: &mut biased },
                    ]);
                    for t in 0..n_x {
                        for r in 0..n_out {
                            let terms = (0..n_cols).map(|k| f64::from(x[t * n_cols + k]) * f64::from(weights[r * n_cols + k]));
                            let (sum, size) = terms.fold((0.0, 1.0), |(s, a), term| (s + term, a + term.abs()));
                            let (got, with) = (f64::from(plain[t * n_out + r]), f64::from(biased[t * n_out + r]));
                            prop_assert!((got - sum).abs() <= error * size, "{isa} {precision:?} {got} {sum}");
                            prop_assert!((with - sum - f64::from(bias[r])).abs() <= error * size, "{isa} {precision:?}");
                        }
                    }
                }
            }
        }
    }
}
