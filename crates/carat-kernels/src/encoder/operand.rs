//! The input of an encoder's products: rows of f32, or of bf16 in pairs.

use std::sync::{Mutex, PoisonError};

use super::EncoderPrecision;
use crate::aligned::Aligned;
use crate::simd::{Simd, dispatch};
use crate::{Compute, Isa};

/// Rows of one chunk of work while an operand is made.
const ROWS_PER_CHUNK: usize = 32;

/// Rows `[n_rows, n_cols]` that weights are multiplied with. The memory is reused from call to call.
#[derive(Debug)]
pub struct Operand {
    wanted: EncoderPrecision,
    pub(super) precision: EncoderPrecision,
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    /// `[n_rows, n_cols]` with F32.
    pub(super) floats: Vec<f32>,
    /// `[n_rows, ceil(n_cols / 2)]` with Bf16: element `2i` in the low half of pair `i`.
    pub(super) pairs: Aligned<u32>,
}

impl Operand {
    /// Without rows.
    #[must_use]
    pub fn new(precision: EncoderPrecision) -> Operand {
        Operand {
            wanted: precision,
            precision,
            n_rows: 0,
            n_cols: 0,
            floats: Vec::new(),
            pairs: Aligned::default(),
        }
    }

    /// Makes `n_rows` rows of `n_cols` elements on all threads: `row(t, to)` writes row `t`.
    ///
    /// `to` holds anything before; every element must be written.
    pub fn fill(
        &mut self,
        compute: &Compute,
        n_rows: usize,
        n_cols: usize,
        row: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        self.precision = self.wanted.on(compute.isa());
        (self.n_rows, self.n_cols) = (n_rows, n_cols);
        let width = n_cols.max(1);
        match self.precision {
            EncoderPrecision::F32 => {
                self.floats.resize(n_rows * width, 0.0);
                chunks(compute, &mut self.floats, ROWS_PER_CHUNK * width, &|i, part| {
                    for (r, to) in part.chunks_exact_mut(width).enumerate() {
                        row(i * ROWS_PER_CHUNK + r, to);
                    }
                });
            }
            EncoderPrecision::Bf16 => {
                let half = width.div_ceil(2);
                self.pairs.resize(n_rows * half);
                chunks(compute, &mut self.pairs, ROWS_PER_CHUNK * half, &|i, part| {
                    let mut floats = vec![0.0; 2 * half];
                    for (r, to) in part.chunks_exact_mut(half).enumerate() {
                        row(i * ROWS_PER_CHUNK + r, &mut floats[..width]);
                        round_to_bf16(compute.isa(), &floats, bytemuck::cast_slice_mut(to));
                    }
                });
            }
        }
    }
}

/// Calls `each` with the chunks of `values` and their indexes on all threads.
pub(super) fn chunks<T: Send>(
    compute: &Compute,
    values: &mut [T],
    chunk_len: usize,
    each: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    // Each chunk is one thread's; the lock only says so to the compiler.
    let chunks: Vec<Mutex<&mut [T]>> = values.chunks_mut(chunk_len.max(1)).map(Mutex::new).collect();
    compute.pool().run(chunks.len(), &|_, i| {
        let mut chunk = chunks[i].lock().unwrap_or_else(PoisonError::into_inner);
        each(i, &mut chunk);
    });
}

dispatch! {
    /// `to[i]` = the bf16 nearest to `x[i]`, ties to even; a NaN stays one.
    fn round_row(x: &[f32], to: &mut [u16]) = round_row_generic;
}

/// `to[i]` = the bf16 nearest to `x[i]`.
pub(super) fn round_to_bf16(isa: Isa, x: &[f32], to: &mut [u16]) {
    assert_eq!(x.len(), to.len(), "as many numbers as places");
    round_row(isa, x, to);
}

/// LLVM makes vectors of it.
#[inline(always)]
fn round_row_generic<S: Simd>(_: S, x: &[f32], to: &mut [u16]) {
    for (x, to) in x.iter().zip(to) {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        *to = if x.is_nan() { 0x7fc0 } else { rounded as u16 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
