//! Rows of a quantized matrix times quantized activations, element by element.

use super::Unpack;
use crate::activation::QuantizedRow;
use crate::block::{CHUNK, Chunk};
use crate::matmul::{RowChunks, RowTask};

/// `out[t][r] = sum over k of w[r][k] * x[t][k]` for the rows of `task`.
///
/// Order: within 16 elements in i32, then chunk by chunk in f32.
pub(crate) fn dot_rows<F: Unpack>(task: &RowTask<'_>) {
    let mut chunk = Chunk::zero();
    for row in task.rows.clone() {
        let chunks = RowChunks::<F>::new(task.weights, row);
        for t in 0..task.x.n_rows() {
            let x = task.x.row(t);
            let mut sum = 0.0;
            for c in 0..task.x.n_cols() / CHUNK {
                F::unpack(chunks.bytes(c), &mut chunk);
                sum += dot_chunk::<F>(&chunk, &x, c);
            }
            task.out.set(t, row, sum);
        }
    }
}

fn dot_chunk<F: Unpack>(chunk: &Chunk, x: &QuantizedRow<'_>, c: usize) -> f32 {
    let mut sum = 0.0;
    for j in 0..CHUNK / 16 {
        let (first, s) = (CHUNK * c + 16 * j, CHUNK / 16 * c + j);
        let dot: i32 = (0..16)
            .map(|i| {
                let high = i32::from(x.q[first + i]);
                let whole = x
                    .low
                    .get(first + i)
                    .map_or(high, |low| 256 * high + i32::from(*low));
                (i32::from(chunk.q[16 * j + i]) - F::OFFSET) * whole
            })
            .sum();
        sum += chunk.scale[j] * x.scale[s] * dot as f32 + chunk.min[j] * x.sum[s];
    }
    sum
}
