//! Sums of rows of values by the weights of a group's heads.
//!
//! A row is read once for up to [`HEADS`] heads, some registers of columns at a time for all rows, so that the
//! sums stay in registers; the rows of a page are in the caches when the next columns' turn comes. Sums are f32.

use super::format::{Bf16, F16, F32, Format, Q4_0, Q8_0};
use super::kv_dtype::{BLOCK, KvDType};
use super::lanes::KvSimd;
use super::page::Rows;
use super::scores::HEADS;
use crate::Isa;
use crate::simd::dispatch;

/// `sums[g] += weights[g * stride + s] * v[s]` over the rows `v`; `sums` is `[G, row]`.
pub(super) fn weigh(isa: Isa, weights: &[f32], stride: usize, v: Rows<'_>, sums: &mut [f32]) {
    match v.shape().dtype {
        KvDType::F16 => weigh_f16(isa, weights, stride, v, sums),
        KvDType::Bf16 => weigh_bf16(isa, weights, stride, v, sums),
        KvDType::F32 => weigh_f32(isa, weights, stride, v, sums),
        KvDType::Q8_0 => weigh_q8_0(isa, weights, stride, v, sums),
        KvDType::Q4_0 => weigh_q4_0(isa, weights, stride, v, sums),
    }
}

dispatch! {
    fn weigh_f16(weights: &[f32], stride: usize, v: Rows<'_>, sums: &mut [f32]) = by_heads::<_, F16>;
}
dispatch! {
    fn weigh_bf16(weights: &[f32], stride: usize, v: Rows<'_>, sums: &mut [f32]) = by_heads::<_, Bf16>;
}
dispatch! {
    fn weigh_f32(weights: &[f32], stride: usize, v: Rows<'_>, sums: &mut [f32]) = by_heads::<_, F32>;
}
dispatch! {
    fn weigh_q8_0(weights: &[f32], stride: usize, v: Rows<'_>, sums: &mut [f32]) = by_heads::<_, Q8_0>;
}
dispatch! {
    fn weigh_q4_0(weights: &[f32], stride: usize, v: Rows<'_>, sums: &mut [f32]) = by_heads::<_, Q4_0>;
}

#[inline(always)]
fn by_heads<S: KvSimd, F: Format>(simd: S, weights: &[f32], stride: usize, v: Rows<'_>, sums: &mut [f32]) {
    let row = v.shape().row_len();
    let group = sums.len() / row;
    let mut g = 0;
    while g < group {
        let (weights, sums) = (&weights[g * stride..], &mut sums[g * row..]);
        g += match group - g {
            HEADS.. => some_heads::<S, F, HEADS>(simd, weights, stride, v, sums),
            3 => some_heads::<S, F, 3>(simd, weights, stride, v, sums),
            2 => some_heads::<S, F, 2>(simd, weights, stride, v, sums),
            _ => some_heads::<S, F, 1>(simd, weights, stride, v, sums),
        };
    }
}

/// `G` heads at once, as many columns as fit in registers at a time; returns `G`.
#[inline(always)]
fn some_heads<S: KvSimd, F: Format, const G: usize>(
    simd: S,
    weights: &[f32],
    stride: usize,
    v: Rows<'_>,
    sums: &mut [f32],
) -> usize {
    let n_blocks = v.shape().row_len() / BLOCK;
    let mut block = 0;
    while block < n_blocks {
        // Four registers of columns, or a block where those are less.
        block += match S::LANES {
            1 => columns::<S, F, G, BLOCK>(simd, weights, stride, v, sums, block),
            4 => columns::<S, F, G, 8>(simd, weights, stride, v, sums, block),
            _ => columns::<S, F, G, 4>(simd, weights, stride, v, sums, block),
        };
    }
    G
}

/// `C` registers of columns from `block` on; returns the blocks done.
#[inline(always)]
fn columns<S: KvSimd, F: Format, const G: usize, const C: usize>(
    simd: S,
    weights: &[f32],
    stride: usize,
    v: Rows<'_>,
    sums: &mut [f32],
    block: usize,
) -> usize {
    let (row, n_blocks) = (v.shape().row_len(), C * S::LANES / BLOCK);
    assert!(
        sums.len() >= G * row
            && weights.len() >= (G - 1) * stride + v.len()
            && (block + n_blocks) * BLOCK <= row,
        "weights or sums are too short"
    );
    // Whole rows are asked for when their first columns are read.
    let n_lines = if block == 0 { v.lines() } else { 0 };
    let mut registers = [[simd.splat(0.0); C]; G];
    // SAFETY: the columns are within a row; rows, sums and weights are as asserted.
    unsafe {
        for (s, value) in v.iter().enumerate() {
            for line in 0..n_lines {
                simd.prefetch(value.ahead.wrapping_add(64 * line));
            }
            let mut values = [simd.splat(0.0); C];
            for (c, register) in values.iter_mut().enumerate() {
                let at = c * S::LANES;
                *register = F::load(simd, value.values, value.scales, block + at / BLOCK, at % BLOCK);
            }
            for (g, registers) in registers.iter_mut().enumerate() {
                let weight = simd.splat(*weights.get_unchecked(g * stride + s));
                for (register, value) in registers.iter_mut().zip(&values) {
                    *register = simd.fma(weight, *value, *register);
                }
            }
        }
        for (g, registers) in registers.iter().enumerate() {
            for (c, register) in registers.iter().enumerate() {
                let to = sums.as_mut_ptr().add(g * row + block * BLOCK + c * S::LANES);
                simd.store(to, simd.add(simd.load(to), *register));
            }
        }
    }
    n_blocks
}
