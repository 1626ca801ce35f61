//! Attention of query rows over a sequence's keys and values, with causal and sliding-window masks.
//!
//! Two shapes of work, two kernels: [`decode`] (one query row per sequence, limited by reading the cache) and
//! [`prefill`] (many rows of one sequence, limited by arithmetic). Both keep scores in f32 and use the online
//! softmax of Milakov and Gimelshein (2018), as FlashAttention does. A row at position `pos` sees positions
//! `pos - window + 1 ..= pos` (all of `0 ..= pos` without a window).
//!
//! The cache of one layer is `[K heads][capacity][row]`: one head's rows are contiguous, position `p` lies in
//! slot `p % capacity`, and a row is head_dim elements padded with zeros to [`row_len`].

mod decode;
mod kv_dtype;
mod prefill;

pub use decode::{DecodeQuery, DecodeScratch, decode};
pub use kv_dtype::KvDType;
pub use prefill::{PrefillQuery, PrefillScratch, prefill};

use crate::simd::Simd;

/// Elements of a cache row.
#[must_use]
pub fn row_len(head_dim: usize) -> usize {
    kv_dtype::row_len(head_dim)
}

/// Cached numbers, in the format of the cache.
#[derive(Clone, Copy, Debug)]
pub enum KvData<'a> {
    /// f16 as bits.
    F16(&'a [u16]),
    /// f32.
    F32(&'a [f32]),
}

impl KvData<'_> {
    fn len(self) -> usize {
        match self {
            KvData::F16(data) => data.len(),
            KvData::F32(data) => data.len(),
        }
    }
}

/// One layer's cache of one sequence. See the module's head for the layout.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// Keys, after norm and rotation.
    pub k: KvData<'a>,
    /// Values.
    pub v: KvData<'a>,
    /// Heads of keys and values.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Slots of a head, in positions.
    pub capacity: usize,
}

impl KvView<'_> {
    fn check(&self) {
        let n = self
            .n_kv_heads
            .checked_mul(self.capacity)
            .and_then(|n| n.checked_mul(row_len(self.head_dim)));
        assert!(
            n == Some(self.k.len()) && n == Some(self.v.len()) && self.head_dim > 0 && self.capacity > 0,
            "a cache does not fit its shape"
        );
    }

    /// Offset of the row of `pos` in head `head`.
    fn row(&self, head: usize, pos: usize) -> usize {
        (head * self.capacity + pos % self.capacity) * row_len(self.head_dim)
    }
}

/// An element of the cache that can be loaded as f32.
trait Element: Copy {
    /// `S::LANES` elements at `from`.
    ///
    /// # Safety
    /// `from` is valid for reading them.
    unsafe fn load<S: Simd>(simd: S, from: *const Self) -> S::F;
}

impl Element for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const u16) -> S::F {
        // SAFETY: as this function's contract.
        unsafe { simd.load_f16(from) }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, from: *const f32) -> S::F {
        // SAFETY: as this function's contract.
        unsafe { simd.load(from) }
    }
}

#[cfg(test)]
mod tests;
