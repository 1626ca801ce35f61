//! The input of an encoder's products: rows of f32, or of bf16 in pairs.

use std::sync::{Mutex, PoisonError};

use super::EncoderPrecision;
use crate::Compute;
use crate::aligned::Aligned;
use crate::pair_gemm::round_to_bf16;

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
