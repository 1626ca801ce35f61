//! Scores of one key-value head: the products of a group's queries with rows of keys.
//!
//! A row of keys is read once for up to [`HEADS`] queries. Keys of f16, bf16 and f32 become f32 in registers.
//! Quantized keys stay bytes: the queries are rounded to 8 bits per block of 32 once, and a chunk costs one dot
//! instruction a head and one multiply-add to apply both scales, a quarter of what widening 64 numbers would.

use super::format::{Bf16, F16, F32, Format};
use super::kv_dtype::{BLOCK, KvDType};
use super::lanes::KvSimd;
use super::page::{Row, Rows};
use crate::Isa;
use crate::simd::dispatch;

/// Query heads whose sums are in registers at once.
pub(super) const HEADS: usize = 4;

/// A group's queries, as the keys' format wants them. The memory is reused.
#[derive(Default)]
pub(super) struct Queries {
    /// `[G, row]`, scaled, padded with zeros.
    pub(super) floats: Vec<f32>,
    /// `[G, row]`: the same, rounded per block.
    bytes: Vec<i8>,
    /// `[G, chunks, LANES]`: each block's scale, in the lanes of its sums.
    scales: Vec<f32>,
    /// `[G, chunks, LANES]`: where the sums start, which undoes the offset of the keys' bytes.
    starts: Vec<i32>,
}

impl Queries {
    /// Room for `n` elements of queries.
    pub(super) fn reserve(&mut self, n: usize) {
        if self.floats.len() < n {
            self.floats.resize(n, 0.0);
            self.bytes.resize(n, 0);
            // Lanes of a chunk: one for four elements, fewer in the scalar version.
            self.scales.resize(n / 4, 0.0);
            self.starts.resize(n / 4, 0);
        }
    }

    /// Rounds the `n` elements in `floats` as keys of `dtype` need it.
    pub(super) fn prepare(&mut self, isa: Isa, dtype: KvDType, n: usize) {
        match dtype {
            KvDType::F16 | KvDType::Bf16 | KvDType::F32 => {}
            KvDType::Q8_0 => round_q8_0(isa, self, n),
            KvDType::Q4_0 => round_q4_0(isa, self, n),
        }
    }
}

/// `scores[g * stride + s] = q[g] . k[s]` for `group` heads and the rows `k`.
pub(super) fn scores(
    isa: Isa,
    queries: &Queries,
    group: usize,
    k: Rows<'_>,
    scores: &mut [f32],
    stride: usize,
) {
    match k.shape().dtype {
        KvDType::F16 => scores_f16(isa, queries, group, k, scores, stride),
        KvDType::Bf16 => scores_bf16(isa, queries, group, k, scores, stride),
        KvDType::F32 => scores_f32(isa, queries, group, k, scores, stride),
        KvDType::Q8_0 => scores_q8_0(isa, queries, group, k, scores, stride),
        KvDType::Q4_0 => scores_q4_0(isa, queries, group, k, scores, stride),
    }
}

dispatch! {
    fn scores_f16(q: &Queries, group: usize, k: Rows<'_>, scores: &mut [f32], stride: usize)
        = by_heads::<_, Floats<F16>>;
}
dispatch! {
    fn scores_bf16(q: &Queries, group: usize, k: Rows<'_>, scores: &mut [f32], stride: usize)
        = by_heads::<_, Floats<Bf16>>;
}
dispatch! {
    fn scores_f32(q: &Queries, group: usize, k: Rows<'_>, scores: &mut [f32], stride: usize)
        = by_heads::<_, Floats<F32>>;
}
dispatch! {
    fn scores_q8_0(q: &Queries, group: usize, k: Rows<'_>, scores: &mut [f32], stride: usize)
        = by_heads::<_, Q8Chunks>;
}
dispatch! {
    fn scores_q4_0(q: &Queries, group: usize, k: Rows<'_>, scores: &mut [f32], stride: usize)
        = by_heads::<_, Q4Chunks>;
}
dispatch! {
    fn round_q8_0(queries: &mut Queries, n: usize) = round_queries::<_, Q8Chunks>;
}
dispatch! {
    fn round_q4_0(queries: &mut Queries, n: usize) = round_queries::<_, Q4Chunks>;
}

/// How one row of keys is multiplied with `G` queries.
trait Products {
    /// `q[first + g] . k` for each `g`.
    ///
    /// # Safety
    /// `key` is a row of `row` elements; `q` has `first + G` heads of them.
    unsafe fn products<S: KvSimd, const G: usize>(
        simd: S,
        q: &Queries,
        first: usize,
        row: usize,
        key: Row,
    ) -> [f32; G];
}

/// Keys that become f32.
struct Floats<F>(std::marker::PhantomData<F>);

impl<F: Format> Products for Floats<F> {
    #[inline(always)]
    unsafe fn products<S: KvSimd, const G: usize>(
        simd: S,
        q: &Queries,
        first: usize,
        row: usize,
        key: Row,
    ) -> [f32; G] {
        // SAFETY: the caller's word: the queries are there, the row has its blocks.
        unsafe {
            let q = q.floats.as_ptr().add(first * row);
            // Two sums a head, so that the adds of long heads do not wait for each other.
            let mut sums = [[simd.splat(0.0); 2]; G];
            for block in 0..row / BLOCK {
                for i in 0..BLOCK / S::LANES {
                    let k = F::load(simd, key.values, key.scales, block, i * S::LANES);
                    for (g, sums) in sums.iter_mut().enumerate() {
                        let q = simd.load(q.add(g * row + block * BLOCK + i * S::LANES));
                        sums[i % 2] = simd.fma(k, q, sums[i % 2]);
                    }
                }
            }
            let mut products = [0.0; G];
            for (product, sums) in products.iter_mut().zip(sums) {
                *product = simd.reduce_add(simd.add(sums[0], sums[1]));
            }
            products
        }
    }
}

/// Keys that stay bytes.
trait Chunks {
    /// What their bytes have been increased by.
    fn offset<S: KvSimd>() -> i32;
    /// Chunk `i` of a row.
    ///
    /// # Safety
    /// The row at `values` has it.
    unsafe fn chunk<S: KvSimd>(simd: S, values: *const u8, i: usize) -> S::Chunk;
}

struct Q8Chunks;
struct Q4Chunks;

impl Chunks for Q8Chunks {
    #[inline(always)]
    fn offset<S: KvSimd>() -> i32 {
        S::OFFSET_Q8
    }
    #[inline(always)]
    unsafe fn chunk<S: KvSimd>(simd: S, values: *const u8, i: usize) -> S::Chunk {
        // SAFETY: as this function's contract.
        unsafe { simd.chunk_q8(values, i) }
    }
}

impl Chunks for Q4Chunks {
    #[inline(always)]
    fn offset<S: KvSimd>() -> i32 {
        S::OFFSET_Q4
    }
    #[inline(always)]
    unsafe fn chunk<S: KvSimd>(simd: S, values: *const u8, i: usize) -> S::Chunk {
        // SAFETY: as this function's contract.
        unsafe { simd.chunk_q4(values, i) }
    }
}

impl<C: Chunks> Products for C {
    #[inline(always)]
    unsafe fn products<S: KvSimd, const G: usize>(
        simd: S,
        q: &Queries,
        first: usize,
        row: usize,
        key: Row,
    ) -> [f32; G] {
        let n_chunks = row / S::CHUNK;
        // SAFETY: the caller's word: the queries are there, the row has its chunks.
        unsafe {
            let bytes = q.bytes.as_ptr().add(first * row);
            let factors = q.scales.as_ptr().add(first * n_chunks * S::LANES);
            let starts = q.starts.as_ptr().add(first * n_chunks * S::LANES);
            let mut sums = [simd.splat(0.0); G];
            for i in 0..n_chunks {
                let chunk = C::chunk(simd, key.values, i);
                let scale = simd.chunk_scales(key.scales, i);
                for (g, sum) in sums.iter_mut().enumerate() {
                    let lanes = (g * n_chunks + i) * S::LANES;
                    let dot = simd.dot(chunk, bytes.add(g * row + i * S::CHUNK), starts.add(lanes));
                    let factor = simd.mul(scale, simd.load(factors.add(lanes)));
                    *sum = simd.fma(dot, factor, *sum);
                }
            }
            let mut products = [0.0; G];
            for (product, sum) in products.iter_mut().zip(sums) {
                *product = simd.reduce_add(sum);
            }
            products
        }
    }
}

#[inline(always)]
fn by_heads<S: KvSimd, P: Products>(
    simd: S,
    q: &Queries,
    group: usize,
    k: Rows<'_>,
    scores: &mut [f32],
    stride: usize,
) {
    assert!(
        q.floats.len() >= group * k.shape().row_len(),
        "queries are not there"
    );
    let mut g = 0;
    while g < group {
        let scores = &mut scores[g * stride..];
        g += match group - g {
            HEADS.. => some_heads::<S, P, HEADS>(simd, q, g, k, scores, stride),
            3 => some_heads::<S, P, 3>(simd, q, g, k, scores, stride),
            2 => some_heads::<S, P, 2>(simd, q, g, k, scores, stride),
            _ => some_heads::<S, P, 1>(simd, q, g, k, scores, stride),
        };
    }
}

/// `G` heads from `first` on, so that a key is loaded once for them; returns `G`.
#[inline(always)]
fn some_heads<S: KvSimd, P: Products, const G: usize>(
    simd: S,
    q: &Queries,
    first: usize,
    k: Rows<'_>,
    scores: &mut [f32],
    stride: usize,
) -> usize {
    let row = k.shape().row_len();
    // The processor reads ahead by itself, but not beyond 4 KiB, eight rows.
    let n_lines = if first == 0 { k.lines() } else { 0 };
    for (s, key) in k.iter().enumerate() {
        for line in 0..n_lines {
            simd.prefetch(key.ahead.wrapping_add(64 * line));
        }
        // SAFETY: `key` is a row of the shape; the caller has checked that the heads are there.
        let products = unsafe { P::products::<S, G>(simd, q, first, row, key) };
        for (g, product) in products.into_iter().enumerate() {
            scores[g * stride + s] = product;
        }
    }
    G
}

/// Rounds queries to bytes, each block of 32 by its own scale.
#[inline(always)]
fn round_queries<S: KvSimd, C: Chunks>(_: S, queries: &mut Queries, n: usize) {
    let Queries {
        floats,
        bytes,
        scales,
        starts,
    } = queries;
    // Elements and lanes of a block's sums.
    let lanes = BLOCK * S::LANES / S::CHUNK;
    let blocks = floats[..n]
        .chunks_exact(BLOCK)
        .zip(bytes[..n].chunks_exact_mut(BLOCK));
    let places = scales.chunks_exact_mut(lanes).zip(starts.chunks_exact_mut(lanes));
    for ((floats, bytes), (scales, starts)) in blocks.zip(places) {
        let largest = floats
            .iter()
            .fold(0.0, |m: f32, x| if x.abs() > m { x.abs() } else { m });
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        for (byte, x) in bytes.iter_mut().zip(floats) {
            *byte = (x * inverse).round_ties_even() as i8;
        }
        scales.fill(largest / 127.0);
        for (start, bytes) in starts.iter_mut().zip(bytes.chunks_exact(BLOCK / lanes)) {
            *start = -C::offset::<S>() * bytes.iter().map(|byte| i32::from(*byte)).sum::<i32>();
        }
    }
}
