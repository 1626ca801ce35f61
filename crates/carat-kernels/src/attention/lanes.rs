//! Vectors of small integers as the quantized cache needs them, on top of [`Simd`].
//!
//! Values are read as f32 ([`KvSimd::load_i8`], [`KvSimd::load_nibbles`]). Keys may stay integers: a chunk of
//! [`KvSimd::CHUNK`] elements is multiplied with a query of bytes, lane `i` of the result being the sum over the
//! `CHUNK / LANES` elements from `i * CHUNK / LANES` on. How a set holds a chunk is its own affair: AVX-512 adds
//! [`KvSimd::OFFSET_Q8`] to make the bytes unsigned, which its dot product wants, and the sums' start takes it
//! away again.

use super::kv_dtype::BLOCK;
use crate::simd::{Scalar, Simd};

/// One instruction set's view of quantized rows.
///
/// # Safety
/// As [`Simd`]. `values` and `scales` point to the begin of a row.
pub(super) unsafe trait KvSimd: Simd {
    /// A chunk of keys.
    type Chunk: Copy;
    /// Elements of a chunk: one block or two.
    const CHUNK: usize;
    /// What a chunk of q8_0 has been increased by.
    const OFFSET_Q8: i32;
    /// What a chunk of q4_0 has been increased by.
    const OFFSET_Q4: i32;
    /// Asks for the cache line at `at`, which need not be valid.
    fn prefetch(self, at: *const u8);
    /// `LANES` signed bytes as f32.
    unsafe fn load_i8(self, from: *const u8) -> Self::F;
    /// The low or the high halves of `LANES` bytes as f32, 0 to 15.
    unsafe fn load_nibbles(self, from: *const u8, high: bool) -> Self::F;
    /// Every lane the f16 at `from`.
    unsafe fn splat_f16(self, from: *const u8) -> Self::F;
    /// Chunk `i` of a row of q8_0.
    unsafe fn chunk_q8(self, values: *const u8, i: usize) -> Self::Chunk;
    /// Chunk `i` of a row of q4_0.
    unsafe fn chunk_q4(self, values: *const u8, i: usize) -> Self::Chunk;
    /// The scales of chunk `i`, each in the lanes of its block.
    unsafe fn chunk_scales(self, scales: *const u8, i: usize) -> Self::F;
    /// `start` `[LANES]` plus the chunk's products with `q` `[CHUNK]`.
    unsafe fn dot(self, chunk: Self::Chunk, q: *const i8, start: *const i32) -> Self::F;
}

// SAFETY: every processor has it.
unsafe impl KvSimd for Scalar {
    type Chunk = [i8; BLOCK];
    const CHUNK: usize = BLOCK;
    const OFFSET_Q8: i32 = 0;
    const OFFSET_Q4: i32 = 0;

    #[inline(always)]
    fn prefetch(self, _: *const u8) {}
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> f32 {
        // SAFETY: one byte, as the trait's contract says.
        f32::from(unsafe { *from }.cast_signed())
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, from: *const u8, high: bool) -> f32 {
        // SAFETY: one byte, as the trait's contract says.
        let byte = unsafe { *from };
        f32::from(if high { byte >> 4 } else { byte & 15 })
    }
    #[inline(always)]
    unsafe fn splat_f16(self, from: *const u8) -> f32 {
        // SAFETY: two bytes, as the trait's contract says.
        unsafe { self.load_f16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn chunk_q8(self, values: *const u8, i: usize) -> [i8; BLOCK] {
        // SAFETY: the row has this block.
        unsafe { values.add(i * BLOCK).cast::<[i8; BLOCK]>().read() }
    }
    #[inline(always)]
    unsafe fn chunk_q4(self, values: *const u8, i: usize) -> [i8; BLOCK] {
        // SAFETY: the row has this block; two blocks share their bytes.
        let bytes = unsafe { values.add(i / 2 * BLOCK).cast::<[u8; BLOCK]>().read() };
        bytes.map(|byte| (if i % 2 == 1 { byte >> 4 } else { byte & 15 }).cast_signed() - 8)
    }
    #[inline(always)]
    unsafe fn chunk_scales(self, scales: *const u8, i: usize) -> f32 {
        // SAFETY: the row has this block's scale.
        unsafe { self.splat_f16(scales.add(2 * i)) }
    }
    #[inline(always)]
    unsafe fn dot(self, chunk: [i8; BLOCK], q: *const i8, start: *const i32) -> f32 {
        // SAFETY: `q` has a chunk, `start` one lane.
        let (q, start) = unsafe { (q.cast::<[i8; BLOCK]>().read(), *start) };
        let products = chunk.iter().zip(&q).map(|(k, q)| i32::from(*k) * i32::from(*q));
        (start + products.sum::<i32>()) as f32
    }
}
