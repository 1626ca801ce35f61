//! Products in f32, for float weights and for the reference arithmetic of quantized ones.
//!
//! Bound in decode: F16 and BF16 weights are converted as they are loaded, so their bytes over the memory
//! bandwidth are the limit, as long as the activations fit beside it. Quantized weights are turned to f32 in a row buffer
//! first.

use crate::gemm_f32::{Accumulate, Gemm, gemm_f32};
use crate::matmul::FloatTask;
use crate::simd::{Simd, dispatch, unrolled};
use crate::{DType, Isa, dequantize};

/// Weight rows of a panel: four registers of AVX-512.
pub(crate) const FLOAT_PANEL_ROWS: usize = 64;
/// Columns of a panel: 64 x 512 f32 are 128 KiB, a part of the L2 cache.
const FLOAT_PANEL_COLS: usize = 512;
/// Weight rows that are transposed together: a cache line of the panel.
pub(crate) const TRANSPOSED_ROWS: usize = 16;

/// Activation rows that share the loads of a weight row.
const GROUP: usize = 4;

/// One thread's memory.
#[derive(Default)]
pub(crate) struct FloatScratch {
    /// Weights in f32.
    row: Vec<f32>,
    panel: Vec<f32>,
    /// What one weight row gives.
    values: Vec<f32>,
}

/// Few activation rows: one weight row at a time.
pub(crate) fn float_rows(isa: Isa, task: &FloatTask<'_>, scratch: &mut FloatScratch) {
    let dtype = task.weights.dtype();
    scratch.values.resize(task.n_x, 0.0);
    for row in task.rows.clone() {
        let mut bytes = task.weights.row(row);
        if dtype.is_quantized() {
            to_f32(dtype, bytes, task.weights.n_cols(), &mut scratch.row);
            bytes = bytemuck::cast_slice(&scratch.row);
        }
        multiply_row(isa, dtype, bytes, task.x, &mut scratch.values);
        for (t, value) in scratch.values.iter().enumerate() {
            task.out.set(t, row, *value);
        }
    }
}

/// Many activation rows: a panel of weight rows, transposed, times all of them.
pub(crate) fn float_panel(isa: Isa, task: &FloatTask<'_>, scratch: &mut FloatScratch) {
    let (n_cols, n) = (task.weights.n_cols(), task.rows.len());
    scratch.row.resize(TRANSPOSED_ROWS * FLOAT_PANEL_COLS, 0.0);
    scratch.panel.resize(FLOAT_PANEL_ROWS * FLOAT_PANEL_COLS, 0.0);
    for first in (0..n_cols).step_by(FLOAT_PANEL_COLS) {
        let k = FLOAT_PANEL_COLS.min(n_cols - first);
        load_panel(task, first, k, scratch);
        let gemm = Gemm {
            a: &task.x[first..],
            a_row: n_cols,
            a_col: 1,
            b: &scratch.panel,
            ldb: FLOAT_PANEL_ROWS,
            c: task.out.run(0, task.rows.start, n),
            ldc: task.out.stride(),
            m: task.n_x,
            n,
            k,
            add: if first == 0 {
                Accumulate::Overwrite
            } else {
                Accumulate::Add
            },
        };
        // SAFETY: the output has `n_x` rows, of which this task alone has these `n` columns.
        unsafe { gemm_f32(isa, &gemm) };
    }
}

/// Columns `first .. first + k` of the task's rows, side by side. Sixteen rows at a time, so that lines of the panel are
/// written whole.
fn load_panel(task: &FloatTask<'_>, first: usize, k: usize, scratch: &mut FloatScratch) {
    let FloatScratch {
        row: buffer, panel, ..
    } = scratch;
    let dtype = task.weights.dtype();
    // Whole blocks: `first` and `k` are multiples of a panel's columns, or the row's end.
    let bytes_of = |n: usize| n / dtype.block_len() * dtype.block_bytes();
    for r in (0..task.rows.len()).step_by(TRANSPOSED_ROWS) {
        let rows = task.rows.clone().skip(r).take(TRANSPOSED_ROWS);
        for (row, to) in rows.zip(buffer.chunks_exact_mut(FLOAT_PANEL_COLS)) {
            let bytes = &task.weights.row(row)[bytes_of(first)..bytes_of(first + k)];
            // A `Matrix` has checked the sizes, so this cannot fail; if it did, zeros would show it at once.
            if dequantize(dtype, bytes, &mut to[..k]).is_err() {
                to.fill(0.0);
            }
        }
        let columns = panel.chunks_exact_mut(FLOAT_PANEL_ROWS).take(k);
        for (i, column) in columns.enumerate() {
            let from = buffer[i..].iter().step_by(FLOAT_PANEL_COLS);
            for (to, value) in column[r..r + TRANSPOSED_ROWS].iter_mut().zip(from) {
                *to = *value;
            }
        }
    }
}

/// A weight row as f32 in `buffer`.
pub(crate) fn to_f32(dtype: DType, bytes: &[u8], n: usize, buffer: &mut Vec<f32>) {
    buffer.resize(n, 0.0);
    // A `Matrix` has checked the sizes, so this cannot fail; if it did, zeros would show it at once.
    if dequantize(dtype, bytes, buffer).is_err() {
        buffer.fill(0.0);
    }
}

dispatch! {
    /// A weight row times each of the activation rows `x` `[n_x, n_cols]`; weights of no 16-bit format are f32.
    fn multiply_row(dtype: DType, weights: &[u8], x: &[f32], out: &mut [f32]) = multiply_row_generic;
}

#[inline(always)]
fn multiply_row_generic<S: Simd>(simd: S, dtype: DType, weights: &[u8], x: &[f32], out: &mut [f32]) {
    match dtype {
        DType::F16 => multiply_row_of(simd, weights, 2, x, out, |from| {
            // SAFETY: `dots` hands out pointers to whole registers of elements of 2 bytes.
            unsafe { simd.load_f16(from.cast()) }
        }),
        DType::BF16 => multiply_row_of(simd, weights, 2, x, out, |from| {
            // SAFETY: `dots` hands out pointers to whole registers of elements of 2 bytes.
            unsafe { simd.load_bf16(from.cast()) }
        }),
        _ => multiply_row_of(simd, weights, 4, x, out, |from| {
            // SAFETY: `dots` hands out pointers to whole registers of elements of 4 bytes.
            unsafe { simd.load(from.cast()) }
        }),
    }
}

#[inline(always)]
fn multiply_row_of<S: Simd>(
    simd: S,
    weights: &[u8],
    size: usize,
    x: &[f32],
    out: &mut [f32],
    load: impl Fn(*const u8) -> S::F + Copy,
) {
    let n = weights.len() / size;
    assert_eq!(x.len(), n * out.len(), "rows of different length");
    let (groups, rest) = out.as_chunks_mut::<GROUP>();
    let n_grouped = GROUP * n * groups.len();
    if n == 0 {
        groups.as_flattened_mut().fill(0.0);
        rest.fill(0.0);
        return;
    }
    for (x, out) in x.chunks_exact(GROUP * n).zip(groups) {
        *out = dots(simd, weights, size, x, load);
    }
    for (x, out) in x[n_grouped..].chunks_exact(n).zip(rest) {
        [*out] = dots(simd, weights, size, x, load);
    }
}

/// Sums of products of the elements in `a`, each `size` bytes, with each of `R` rows. Four sums in turn hide the latency; the
/// order of a row's sums is the same for every `R`.
#[inline(always)]
fn dots<S: Simd, const R: usize>(
    simd: S,
    a: &[u8],
    size: usize,
    rows: &[f32],
    load: impl Fn(*const u8) -> S::F,
) -> [f32; R] {
    let n = a.len() / size;
    assert_eq!(rows.len(), R * n, "rows of different length");
    let mut sums = [[simd.splat(0.0); 4]; R];
    let whole = n / S::LANES;
    for i in (0..whole).step_by(4) {
        unrolled!(4, |s| {
            if i + s < whole {
                let at = (i + s) * S::LANES;
                // SAFETY: `at + LANES <= n`, the elements of `a` and of each row.
                let x = load(unsafe { a.as_ptr().add(at * size) });
                unrolled!(R, |r| {
                    // SAFETY: as above.
                    let y = unsafe { simd.load(rows.as_ptr().add(r * n + at)) };
                    sums[r][s] = simd.fma(x, y, sums[r][s]);
                });
            }
        });
    }
    let done = whole * S::LANES;
    if done < n {
        // The last few go through padded copies, since `a` cannot be loaded in part in every format.
        let mut x = [0u8; 64];
        x[..a.len() - done * size].copy_from_slice(&a[done * size..]);
        let x = load(x.as_ptr());
        unrolled!(R, |r| {
            let mut y = [0.0f32; 16];
            y[..n - done].copy_from_slice(&rows[r * n + done..(r + 1) * n]);
            // SAFETY: the copies hold 16 elements, the most lanes there are.
            sums[r][0] = simd.fma(x, unsafe { simd.load(y.as_ptr()) }, sums[r][0]);
        });
    }
    sums.map(|[a, b, c, d]| simd.reduce_add(simd.add(simd.add(a, b), simd.add(c, d))))
}
