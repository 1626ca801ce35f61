//! A layer that multiplies with a matrix: weights where they are mapped, a bias, limits of input and output.

use carat_format::TensorBytes;
use carat_kernels::{DType, Matrix};

use crate::Error;

/// `out = clip(weights clip(x)) + bias`. No layer has both a bias and limits.
#[derive(Debug)]
pub(super) struct Linear {
    dtype: DType,
    n_out: usize,
    n_in: usize,
    bytes: TensorBytes,
    bias: Option<Vec<f32>>,
    clip: Option<Clip>,
}

/// What inputs and outputs are kept within: low and high.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Clip {
    pub(super) input: (f32, f32),
    pub(super) output: (f32, f32),
}

impl Clip {
    pub(super) fn input(&self) -> (f32, f32) {
        self.input
    }

    pub(super) fn output(&self) -> (f32, f32) {
        self.output
    }
}

impl Linear {
    /// Takes `[n_out, n_in]` weights; the bias has `n_out` elements.
    pub(super) fn new(
        dtype: DType,
        (n_out, n_in): (usize, usize),
        bytes: TensorBytes,
        bias: Option<Vec<f32>>,
        clip: Option<Clip>,
    ) -> Result<Linear, Error> {
        Matrix::new(dtype, n_out, n_in, &bytes)?;
        Ok(Linear {
            dtype,
            n_out,
            n_in,
            bytes,
            bias,
            clip,
        })
    }

    pub(super) fn n_out(&self) -> usize {
        self.n_out
    }

    pub(super) fn n_in(&self) -> usize {
        self.n_in
    }

    pub(super) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    pub(super) fn clip(&self) -> Option<&Clip> {
        self.clip.as_ref()
    }

    /// The kernels' view. Sizes were checked when it was made.
    pub(super) fn weights(&self) -> Result<Matrix<'_>, Error> {
        Ok(Matrix::new(self.dtype, self.n_out, self.n_in, &self.bytes)?)
    }
}
