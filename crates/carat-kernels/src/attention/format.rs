//! Rows of each cache format: into it, out of it, and as registers of f32.
//!
//! Rounding is to nearest, ties to even. What a format cannot reach is cut at its largest number: an infinite
//! value would reach rows that must not see it, since nothing times infinity is not nothing. A block's scale is
//! rounded to f16 first and its numbers are divided by that. q4_0 gives its lowest code to the number of largest
//! size, as llama.cpp does, so that the larger half of the codes' range goes to that number's side.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::kv_dtype::{BLOCK, KvDType};
use super::lanes::KvSimd;
use super::page::{KvShape, Rows};
use crate::Isa;
use crate::activation::{largest_of, nearest};
use crate::simd::{Simd, dispatch};

/// A format whose rows can be read as f32.
pub(super) trait Format {
    /// `LANES` elements from element `block * BLOCK + offset` of a row on. They lie in one block.
    ///
    /// # Safety
    /// The row at `values` and `scales` has the block, and `simd`'s features are those of the function it is in.
    unsafe fn load<S: KvSimd>(
        simd: S,
        values: *const u8,
        scales: *const u8,
        block: usize,
        offset: usize,
    ) -> S::F;
}

pub(super) struct F16;
pub(super) struct Bf16;
pub(super) struct F32;
pub(super) struct Q8_0;
pub(super) struct Q4_0;

impl Format for F16 {
    #[inline(always)]
    unsafe fn load<S: KvSimd>(simd: S, values: *const u8, _: *const u8, block: usize, offset: usize) -> S::F {
        // SAFETY: as this function's contract.
        unsafe { simd.load_f16(values.add(2 * (block * BLOCK + offset)).cast()) }
    }
}

impl Format for Bf16 {
    #[inline(always)]
    unsafe fn load<S: KvSimd>(simd: S, values: *const u8, _: *const u8, block: usize, offset: usize) -> S::F {
        // SAFETY: as this function's contract.
        unsafe { simd.load_bf16(values.add(2 * (block * BLOCK + offset)).cast()) }
    }
}

impl Format for F32 {
    #[inline(always)]
    unsafe fn load<S: KvSimd>(simd: S, values: *const u8, _: *const u8, block: usize, offset: usize) -> S::F {
        // SAFETY: as this function's contract.
        unsafe { simd.load(values.add(4 * (block * BLOCK + offset)).cast()) }
    }
}

impl Format for Q8_0 {
    #[inline(always)]
    unsafe fn load<S: KvSimd>(
        simd: S,
        values: *const u8,
        scales: *const u8,
        block: usize,
        offset: usize,
    ) -> S::F {
        // SAFETY: as this function's contract.
        unsafe {
            simd.mul(
                simd.load_i8(values.add(block * BLOCK + offset)),
                simd.splat_f16(scales.add(2 * block)),
            )
        }
    }
}

impl Format for Q4_0 {
    #[inline(always)]
    unsafe fn load<S: KvSimd>(
        simd: S,
        values: *const u8,
        scales: *const u8,
        block: usize,
        offset: usize,
    ) -> S::F {
        // SAFETY: as this function's contract; two blocks share their bytes.
        unsafe {
            let q = simd.load_nibbles(values.add(block / 2 * BLOCK + offset), block % 2 == 1);
            simd.mul(
                simd.sub(q, simd.splat(8.0)),
                simd.splat_f16(scales.add(2 * block)),
            )
        }
    }
}

/// The rows of `x` `[T, K, E]` in the cache's format: `to` becomes `[T, K, row]`, each row its numbers, then its scales.
///
/// # Panics
/// When `x` has no whole number of heads, or `to` not as many rows ([`KvShape::packed_len`]).
pub fn pack_rows(isa: Isa, shape: &KvShape, x: &[f32], to: &mut [u8]) {
    assert!(
        shape.head_dim > 0 && x.len().is_multiple_of(shape.head_dim),
        "keys or values are not whole heads"
    );
    assert_eq!(to.len(), shape.packed_len(x.len()), "rows do not fit their place");
    pack(isa, x, shape, to);
}

/// The rows of [`pack_rows`] as f32 again.
///
/// # Panics
/// When `to` `[T, K, E]` has another number of rows.
pub fn unpack_rows(isa: Isa, shape: &KvShape, from: &[u8], to: &mut [f32]) {
    let row = shape.row_bytes();
    assert!(
        row > 0
            && from.len().is_multiple_of(row)
            && crate::is_area(to.len(), from.len() / row, shape.head_dim),
        "rows do not fit their place"
    );
    for (from, to) in from.chunks_exact(row).zip(to.chunks_exact_mut(shape.head_dim)) {
        widen(isa, Rows::packed(shape, from), to);
    }
}

/// Rows of one head as f32: `to` is `[n, E]`.
pub(super) fn widen(isa: Isa, rows: Rows<'_>, to: &mut [f32]) {
    match rows.shape().dtype {
        KvDType::F16 => widen_f16(isa, rows, to),
        KvDType::Bf16 => widen_bf16(isa, rows, to),
        KvDType::Q8_0 => widen_q8_0(isa, rows, to),
        KvDType::Q4_0 => widen_q4_0(isa, rows, to),
        KvDType::F32 => widen_f32(isa, rows, to),
    }
}

dispatch! {
    fn widen_f16(rows: Rows<'_>, to: &mut [f32]) = widen_generic::<_, F16>;
}
dispatch! {
    fn widen_bf16(rows: Rows<'_>, to: &mut [f32]) = widen_generic::<_, Bf16>;
}
dispatch! {
    fn widen_q8_0(rows: Rows<'_>, to: &mut [f32]) = widen_generic::<_, Q8_0>;
}
dispatch! {
    fn widen_q4_0(rows: Rows<'_>, to: &mut [f32]) = widen_generic::<_, Q4_0>;
}
dispatch! {
    fn widen_f32(rows: Rows<'_>, to: &mut [f32]) = widen_generic::<_, F32>;
}
dispatch! {
    /// Rounds whole heads.
    fn pack(x: &[f32], shape: &KvShape, to: &mut [u8]) = pack_generic;
}

#[inline(always)]
fn widen_generic<S: KvSimd, F: Format>(simd: S, rows: Rows<'_>, to: &mut [f32]) {
    let dim = rows.shape().head_dim;
    assert_eq!(to.len(), rows.len() * dim, "rows do not fit their place");
    for (row, to) in rows.iter().zip(to.chunks_exact_mut(dim)) {
        for at in (0..dim).step_by(S::LANES) {
            // SAFETY: the row is padded to whole blocks; `to` is written as far as it goes.
            unsafe {
                let value = F::load(simd, row.values, row.scales, at / BLOCK, at % BLOCK);
                if dim - at >= S::LANES {
                    simd.store(to.as_mut_ptr().add(at), value);
                } else {
                    simd.store_part(to.as_mut_ptr().add(at), value, dim - at);
                }
            }
        }
    }
}

/// Plain Rust, compiled for each instruction set: blocks of fixed length become vectors by themselves.
#[inline(always)]
fn pack_generic<S: Simd>(_: S, x: &[f32], shape: &KvShape, to: &mut [u8]) {
    let (row, n_values) = (shape.row_bytes(), shape.dtype.value_bytes(shape.head_dim));
    for (x, to) in x.chunks_exact(shape.head_dim).zip(to.chunks_exact_mut(row)) {
        let (values, scales) = to.split_at_mut(n_values);
        for block in 0..shape.row_len() / BLOCK {
            let mut numbers = [0.0; BLOCK];
            let from = x.get(block * BLOCK..).unwrap_or_default();
            let n = from.len().min(BLOCK);
            numbers[..n].copy_from_slice(&from[..n]);
            match shape.dtype {
                KvDType::F16 => pack_f16(&numbers, &mut values[block * 2 * BLOCK..]),
                KvDType::Bf16 => pack_bf16(&numbers, &mut values[block * 2 * BLOCK..]),
                KvDType::F32 => pack_f32(&numbers, &mut values[block * 4 * BLOCK..]),
                KvDType::Q8_0 => pack_q8_0(&numbers, &mut values[block * BLOCK..], &mut scales[2 * block..]),
                KvDType::Q4_0 => pack_q4_0(
                    &numbers,
                    &mut values[block / 2 * BLOCK..],
                    block % 2 == 1,
                    &mut scales[2 * block..],
                ),
            }
        }
    }
}

#[inline(always)]
fn pack_f16(numbers: &[f32; BLOCK], to: &mut [u8]) {
    let limit = f16::MAX.to_f32();
    let mut halves = [f16::ZERO; BLOCK];
    halves.convert_from_f32_slice(&numbers.map(|x| x.clamp(-limit, limit)));
    for (to, half) in to.chunks_exact_mut(2).zip(halves) {
        to.copy_from_slice(&half.to_bits().to_ne_bytes());
    }
}

#[inline(always)]
fn pack_bf16(numbers: &[f32; BLOCK], to: &mut [u8]) {
    let limit = bf16::MAX.to_f32();
    for (to, x) in to.chunks_exact_mut(2).zip(numbers) {
        let half = bf16::from_f32(x.clamp(-limit, limit));
        to.copy_from_slice(&half.to_bits().to_ne_bytes());
    }
}

#[inline(always)]
fn pack_f32(numbers: &[f32; BLOCK], to: &mut [u8]) {
    for (to, x) in to.chunks_exact_mut(4).zip(numbers) {
        to.copy_from_slice(&x.to_ne_bytes());
    }
}

#[inline(always)]
fn pack_q8_0(numbers: &[f32; BLOCK], to: &mut [u8], scale: &mut [u8]) {
    let numbers = without_nan(numbers);
    let inverse = write_scale(largest_of(&numbers) / 127.0, scale);
    for (to, x) in to.iter_mut().zip(numbers) {
        *to = nearest((x * inverse).clamp(-127.0, 127.0)) as u8;
    }
}

#[inline(always)]
fn pack_q4_0(numbers: &[f32; BLOCK], to: &mut [u8], high: bool, scale: &mut [u8]) {
    let numbers = without_nan(numbers);
    let size = largest_of(&numbers);
    let largest = numbers.iter().copied().find(|x| x.abs() >= size);
    let inverse = write_scale(largest.unwrap_or(size) / -8.0, scale);
    for (to, x) in to.iter_mut().zip(numbers) {
        let q = nearest((x * inverse).clamp(-8.0, 7.0)) as u8 ^ 8;
        *to = if high { *to & 15 | q << 4 } else { q & 15 };
    }
}

/// Numbers of which none makes a scale of its own unusable.
#[inline(always)]
fn without_nan(numbers: &[f32; BLOCK]) -> [f32; BLOCK] {
    numbers.map(|x| if x.is_nan() { 0.0 } else { x })
}

/// Rounds a scale and writes it; returns what numbers are to be multiplied with, 0 for a scale of 0.
#[inline(always)]
fn write_scale(scale: f32, to: &mut [u8]) -> f32 {
    let limit = f16::MAX.to_f32();
    let scale = f16::from_f32(scale.clamp(-limit, limit));
    to[..2].copy_from_slice(&scale.to_bits().to_ne_bytes());
    let scale = scale.to_f32();
    // The smallest f16 is 6e-8: an inverse never overflows.
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}
