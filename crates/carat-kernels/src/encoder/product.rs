//! Products of an [`Operand`] with weights, with a bias where there is one.
//!
//! As in [`crate::matmul`], work is split over weight rows, never over the sum. A chunk is a panel of 64 weight
//! rows: they become pairs of bf16 with the rows side by side, `[k / 2][64]`, 550 KB for SigLIP's widest (4,304
//! columns) and 885 KB for the 12B's embedder (6,912), which stay in the L2 cache while all activation rows stream past
//! them. Weights are converted once for each call, which costs little beside some hundred rows of products.

use std::sync::PoisonError;

use super::{EncoderPrecision, Operand};
use crate::aligned::Aligned;
use crate::float_matmul::{FLOAT_PANEL_ROWS, float_panel, to_f32};
use crate::matmul::{FloatTask, SharedOut};
use crate::pair_gemm::round_to_bf16;
use crate::pair_gemm::{PairGemm, Start, pair_gemm};
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
#[derive(Default)]
pub(crate) struct PairScratch {
    row: Vec<f32>,
    rounded: Vec<u16>,
    panel: Aligned<u32>,
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
        match x.precision {
            EncoderPrecision::F32 => {
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
            EncoderPrecision::Bf16 => {
                let half = x.n_cols.div_ceil(2);
                scratch.pairs.load(isa, &self.weights, rows);
                let gemm = PairGemm {
                    a: &x.pairs,
                    a_row: half,
                    a_col: 1,
                    b: &scratch.pairs.panel,
                    ldb: FLOAT_PANEL_ROWS,
                    c: self.out.run(0, first, n),
                    ldc: self.out.stride(),
                    m: x.n_rows,
                    n,
                    k: half,
                    rest: None,
                    start: Start::Row(bias),
                };
                // SAFETY: the output has `n_rows` rows, of which this task alone has these `n` columns.
                unsafe { pair_gemm(isa, &gemm) };
            }
        }
    }
}

impl PairScratch {
    /// Weight rows as pairs, side by side.
    fn load(&mut self, isa: Isa, weights: &Matrix<'_>, rows: std::ops::Range<usize>) {
        let n_cols = weights.n_cols();
        let half = n_cols.div_ceil(2);
        self.rounded.clear();
        self.rounded.resize(2 * half, 0);
        self.panel.resize(half * FLOAT_PANEL_ROWS);
        if rows.len() < FLOAT_PANEL_ROWS {
            self.panel.fill(0);
        }
        for (r, row) in rows.enumerate() {
            let bytes = weights.row(row);
            if weights.dtype() == DType::BF16 {
                bytemuck::cast_slice_mut(&mut self.rounded[..n_cols]).copy_from_slice(bytes);
            } else {
                to_f32(weights.dtype(), bytes, n_cols, &mut self.row);
                round_to_bf16(isa, &self.row, &mut self.rounded[..n_cols]);
            }
            for (i, pair) in self.rounded.chunks_exact(2).enumerate() {
                self.panel[i * FLOAT_PANEL_ROWS + r] = u32::from(pair[0]) | (u32::from(pair[1]) << 16);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
                for (precision, error) in [(EncoderPrecision::F32, sums), (EncoderPrecision::Bf16, sums + 0.008)] {
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
