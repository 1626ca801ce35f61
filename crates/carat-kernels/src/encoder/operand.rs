//! The input of an encoder's products: rows of f32, or of 16 bits in pairs.

use std::sync::{Mutex, PoisonError};

use super::{Arithmetic, EncoderPrecision};
use crate::aligned::Aligned;
use crate::integer_gemm::row_len;
use crate::integer_round::round_blocks;
use crate::pair_gemm::round_to_bf16;
use crate::{Compute, Isa};

/// Rows of one chunk of work while an operand is made.
const ROWS_PER_CHUNK: usize = 32;

/// Rows `[n_rows, n_cols]` that weights are multiplied with. The memory is reused from call to call.
#[derive(Debug)]
pub struct Operand {
    precision: EncoderPrecision,
    pub(super) arithmetic: Arithmetic,
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    /// `[n_rows, n_cols]` with F32.
    pub(super) floats: Vec<f32>,
    /// Element `2i` of a row in the low half of pair `i`: `[n_rows, ceil(n_cols / 2)]` with bf16; integers have scales
    /// behind each row ([`row_len`]).
    pub(super) pairs: Aligned<u32>,
}

impl Operand {
    /// Without rows.
    #[must_use]
    pub fn new(precision: EncoderPrecision) -> Operand {
        Operand {
            precision,
            arithmetic: Arithmetic::F32,
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
        self.arithmetic = self.precision.on(compute.isa());
        (self.n_rows, self.n_cols) = (n_rows, n_cols);
        let width = n_cols.max(1);
        match self.arithmetic {
            Arithmetic::F32 => {
                self.floats.resize(n_rows * width, 0.0);
                chunks(compute, &mut self.floats, ROWS_PER_CHUNK * width, &|i, part| {
                    for (r, to) in part.chunks_exact_mut(width).enumerate() {
                        row(i * ROWS_PER_CHUNK + r, to);
                    }
                });
            }
            Arithmetic::Bf16 | Arithmetic::Integers => {
                let len = self.arithmetic.row_len(width);
                self.pairs.resize(n_rows * len);
                let arithmetic = self.arithmetic;
                chunks(compute, &mut self.pairs, ROWS_PER_CHUNK * len, &|i, part| {
                    let mut floats = vec![0.0; width];
                    for (r, to) in part.chunks_exact_mut(len).enumerate() {
                        row(i * ROWS_PER_CHUNK + r, &mut floats);
                        arithmetic.round(compute.isa(), &floats, to);
                    }
                });
            }
        }
    }
}

impl Arithmetic {
    /// Length of a row of `n` elements in pairs.
    pub(super) fn row_len(self, n: usize) -> usize {
        match self {
            Arithmetic::Integers => row_len(n),
            Arithmetic::F32 | Arithmetic::Bf16 => n.div_ceil(2),
        }
    }

    /// Rounds a row to pairs.
    pub(super) fn round(self, isa: Isa, row: &[f32], to: &mut [u32]) {
        match self {
            Arithmetic::Integers => round_blocks(isa, row, to),
            Arithmetic::F32 | Arithmetic::Bf16 => {
                let to = bytemuck::cast_slice_mut::<u32, u16>(to);
                to[row.len()..].fill(0);
                round_to_bf16(isa, row, &mut to[..row.len()]);
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
