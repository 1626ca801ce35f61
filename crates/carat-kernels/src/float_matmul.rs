//! Products in f32, for float weights and for the reference arithmetic of quantized ones.
//!
//! Bound in decode: F16 and BF16 weights are converted as they are loaded, so their bytes over the memory
//! bandwidth are the limit. Quantized weights are turned to f32 in a row buffer first.

use crate::gemm_f32::{Accumulate, Gemm, gemm_f32};
use crate::matmul::FloatTask;
use crate::simd::{Simd, dispatch};
use crate::{DType, Isa, dequantize};

/// Weight rows of a panel: four registers of AVX-512.
pub(crate) const FLOAT_PANEL_ROWS: usize = 64;
/// Columns of a panel: 64 x 512 f32 are 128 KiB, a part of the L2 cache.
const FLOAT_PANEL_COLS: usize = 512;

/// One thread's memory for weights in f32.
#[derive(Default)]
pub(crate) struct FloatScratch {
    row: Vec<f32>,
    panel: Vec<f32>,
}

/// Few activation rows: one weight row at a time.
pub(crate) fn float_rows(isa: Isa, task: &FloatTask<'_>, scratch: &mut FloatScratch) {
    let n = task.weights.n_cols();
    for row in task.rows.clone() {
        let bytes = task.weights.row(row);
        let dtype = task.weights.dtype();
        let direct = matches!(dtype, DType::F16 | DType::BF16 | DType::F32);
        if !direct {
            to_f32(dtype, bytes, n, &mut scratch.row);
        }
        for (t, x) in task.x.chunks_exact(n.max(1)).enumerate() {
            let value = match dtype {
                DType::F16 => dot_f16(isa, bytes, x),
                DType::BF16 => dot_bf16(isa, bytes, x),
                DType::F32 => dot_f32_bytes(isa, bytes, x),
                _ => dot_f32(isa, &scratch.row, x),
            };
            task.out.set(t, row, value);
        }
    }
}

/// Many activation rows: a panel of weight rows, transposed, times all of them.
pub(crate) fn float_panel(isa: Isa, task: &FloatTask<'_>, scratch: &mut FloatScratch) {
    let (n_cols, n) = (task.weights.n_cols(), task.rows.len());
    let FloatScratch { row: buffer, panel } = scratch;
    panel.resize(FLOAT_PANEL_ROWS * n_cols, 0.0);
    for (r, row) in task.rows.clone().enumerate() {
        to_f32(task.weights.dtype(), task.weights.row(row), n_cols, buffer);
        for (k, value) in buffer.iter().enumerate() {
            panel[k * FLOAT_PANEL_ROWS + r] = *value;
        }
    }
    let mut first = 0;
    while first < n_cols {
        let k = FLOAT_PANEL_COLS.min(n_cols - first);
        let gemm = Gemm {
            a: &task.x[first..],
            a_row: n_cols,
            a_col: 1,
            b: &panel[first * FLOAT_PANEL_ROWS..],
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
        first += k;
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
    /// Sum of products; `a` and `b` have one length.
    pub(crate) fn dot_f32(a: &[f32], b: &[f32]) -> f32 = dot_f32_generic;
}
dispatch! {
    fn dot_f32_bytes(a: &[u8], b: &[f32]) -> f32 = dot_f32_bytes_generic;
}
dispatch! {
    fn dot_f16(a: &[u8], b: &[f32]) -> f32 = dot_f16_generic;
}
dispatch! {
    fn dot_bf16(a: &[u8], b: &[f32]) -> f32 = dot_bf16_generic;
}

#[inline(always)]
fn dot_f32_generic<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    dot(simd, bytemuck::cast_slice(a), 4, b, |from| {
        // SAFETY: `dot` hands out pointers to whole registers of elements of 4 bytes.
        unsafe { simd.load(from.cast()) }
    })
}

#[inline(always)]
fn dot_f32_bytes_generic<S: Simd>(simd: S, a: &[u8], b: &[f32]) -> f32 {
    dot(simd, a, 4, b, |from| {
        // SAFETY: `dot` hands out pointers to whole registers of elements of 4 bytes.
        unsafe { simd.load(from.cast()) }
    })
}

#[inline(always)]
fn dot_f16_generic<S: Simd>(simd: S, a: &[u8], b: &[f32]) -> f32 {
    dot(simd, a, 2, b, |from| {
        // SAFETY: `dot` hands out pointers to whole registers of elements of 2 bytes.
        unsafe { simd.load_f16(from.cast()) }
    })
}

#[inline(always)]
fn dot_bf16_generic<S: Simd>(simd: S, a: &[u8], b: &[f32]) -> f32 {
    dot(simd, a, 2, b, |from| {
        // SAFETY: `dot` hands out pointers to whole registers of elements of 2 bytes.
        unsafe { simd.load_bf16(from.cast()) }
    })
}

/// Sum of products of the elements in `a`, each `size` bytes, with `b`. Four sums in turn hide the latency.
#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[u8], size: usize, b: &[f32], load: impl Fn(*const u8) -> S::F) -> f32 {
    assert_eq!(a.len(), b.len() * size, "two rows of different length");
    let mut sums = [simd.splat(0.0); 4];
    let whole = b.len() / S::LANES;
    for i in 0..whole {
        let at = i * S::LANES;
        // SAFETY: `at + LANES <= b.len()`, and `a` has as many elements.
        let (x, y) = unsafe { (load(a.as_ptr().add(at * size)), simd.load(b.as_ptr().add(at))) };
        sums[i % 4] = simd.fma(x, y, sums[i % 4]);
    }
    let done = whole * S::LANES;
    if done < b.len() {
        // The last few go through padded copies, since `a` cannot be loaded in part in every format.
        let mut x = [0u8; 64];
        x[..a.len() - done * size].copy_from_slice(&a[done * size..]);
        let mut y = [0.0f32; 16];
        y[..b.len() - done].copy_from_slice(&b[done..]);
        // SAFETY: both copies hold 16 elements, the most lanes there are.
        sums[0] = simd.fma(load(x.as_ptr()), unsafe { simd.load(y.as_ptr()) }, sums[0]);
    }
    simd.reduce_add(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])))
}
