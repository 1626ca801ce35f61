//! Sixteen weight rows side by side, unpacked to bytes: what the AVX-512 products are made from.
//!
//! ```text
//! q      [64][16][4] u8     register k: elements 4 k .. 4 k + 4 of each of the 16 rows, one row to a lane
//! scale  [n][16] f32        one register for every 32 (or 16) elements; min likewise
//! ```
//!
//! So that `vpdpbusd` with four activations broadcast to all lanes adds to the sums of 16 rows. Bytes are transposed
//! while they still hold several elements each, as they lie in the file: 16 rows of 16 bytes are four registers, and
//! 20 shuffles for 256 bytes. Nothing is repacked at load time.
//!
//! Bound: the reads. A chunk of Q4_0 takes some 25 instructions a row, 9 cycles measured from the L1 cache, for 144
//! bytes, twice what a core gets from memory in that time; so a decode step stays at the memory's speed. For that the
//! rows must be asked for ahead of time ([`Rows::prefetch`]): sixteen rows read side by side are too many streams for
//! the processor's own prefetcher.

use std::arch::x86_64::*;

use crate::block::{
    BlockFormat, CHUNK, IQ4_CODES, Iq4Nl, Iq4Xs, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0,
};

/// Rows that are packed together: the lanes of a register.
pub(crate) const PACK_ROWS: usize = 16;

/// Chunks of 16 rows that are kept together: with [`PACK_ROWS`] rows 32 KiB of codes and 8 of scales.
pub(crate) const PACK_CHUNKS: usize = 8;

/// Several chunks of 16 rows. Codes of all chunks, then scales of all: each is read as one stream.
#[repr(C, align(64))]
pub(crate) struct Packed {
    q: [[[u8; 64]; CHUNK / 4]; PACK_CHUNKS],
    scale: [[[f32; PACK_ROWS]; CHUNK / 16]; PACK_CHUNKS],
    min: [[[f32; PACK_ROWS]; CHUNK / 16]; PACK_CHUNKS],
}

/// One chunk of a [`Packed`]. See the module's head.
#[derive(Clone, Copy)]
pub(super) struct PackedChunk<'a> {
    pub(super) q: &'a [[u8; 64]; CHUNK / 4],
    pub(super) scale: &'a [[f32; PACK_ROWS]; CHUNK / 16],
    pub(super) min: &'a [[f32; PACK_ROWS]; CHUNK / 16],
}

/// The same, to be filled.
pub(super) struct PackedChunkMut<'a> {
    q: &'a mut [[u8; 64]; CHUNK / 4],
    scale: &'a mut [[f32; PACK_ROWS]; CHUNK / 16],
    min: &'a mut [[f32; PACK_ROWS]; CHUNK / 16],
}

impl Default for Packed {
    fn default() -> Packed {
        Packed {
            q: [[[0; 64]; CHUNK / 4]; PACK_CHUNKS],
            scale: [[[0.0; PACK_ROWS]; CHUNK / 16]; PACK_CHUNKS],
            min: [[[0.0; PACK_ROWS]; CHUNK / 16]; PACK_CHUNKS],
        }
    }
}

impl Packed {
    /// Chunk `i`, below [`PACK_CHUNKS`].
    #[inline]
    pub(super) fn chunk(&self, i: usize) -> PackedChunk<'_> {
        PackedChunk {
            q: &self.q[i],
            scale: &self.scale[i],
            min: &self.min[i],
        }
    }

    /// Chunk `i`, below [`PACK_CHUNKS`].
    #[inline]
    pub(super) fn chunk_mut(&mut self, i: usize) -> PackedChunkMut<'_> {
        PackedChunkMut {
            q: &mut self.q[i],
            scale: &mut self.scale[i],
            min: &mut self.min[i],
        }
    }
}

impl PackedChunkMut<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set_q(&mut self, k: usize, lanes: __m512i) {
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(self.q[k].as_mut_ptr().cast(), lanes) };
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set_scale(&mut self, s: usize, lanes: __m512) {
        // SAFETY: 16 numbers.
        unsafe { _mm512_storeu_ps(self.scale[s].as_mut_ptr(), lanes) };
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set_min(&mut self, s: usize, lanes: __m512) {
        // SAFETY: 16 numbers.
        unsafe { _mm512_storeu_ps(self.min[s].as_mut_ptr(), lanes) };
    }
}

/// The same chunk of 16 rows in memory.
///
/// Whoever makes one sees to it that `chunk + r * stride` is valid for reads of a whole chunk for each row `r < 16`.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The chunk of the first row.
    pub(super) chunk: *const u8,
    /// Bytes from row to row.
    pub(super) stride: usize,
    /// Bytes from a chunk to the one that will be packed somewhat later.
    pub(super) ahead: isize,
}

impl Rows {
    /// Asks for the lines of the later chunk, of rows `part * 16 / n_parts` on: spread over the work, since a burst of
    /// requests waits for the ones before it.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn prefetch<F: BlockFormat>(self, part: usize, n_parts: usize) {
        for r in part * PACK_ROWS / n_parts..(part + 1) * PACK_ROWS / n_parts {
            let row = self
                .chunk
                .wrapping_add(r * self.stride)
                .wrapping_offset(self.ahead);
            for line in 0..F::CHUNK_BYTES.div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(64 * line).cast());
            }
        }
    }

    /// Sixteen bytes of each row from `offset` on: register `k` holds bytes `4 k .. 4 k + 4` of every row.
    ///
    /// # Safety
    /// `offset + 16` is within the chunk.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn columns(self, offset: usize) -> [__m512i; 4] {
        // SAFETY: within each row's chunk, by the contracts of this function and of the type.
        let row = |r: usize| unsafe { _mm_loadu_si128(self.chunk.add(r * self.stride + offset).cast()) };
        // Register i: rows i, i + 4, i + 8, i + 12, which a transposition within quarters brings in order.
        let four = |i: usize| {
            let lanes = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(row(i)), row(4 + i));
            _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(lanes, row(8 + i)), row(12 + i))
        };
        let [a, b, c, d] = [four(0), four(1), four(2), four(3)];
        let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab_low, cd_low),
            _mm512_unpackhi_epi64(ab_low, cd_low),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }

    /// Four bytes of each row from `offset` on.
    ///
    /// # Safety
    /// `offset + 4` is within the chunk, and fifteen strides are below 2 GiB.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn words(self, offset: usize) -> __m512i {
        let row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let index = _mm512_mullo_epi32(row, _mm512_set1_epi32(self.stride as i32));
        // SAFETY: within each row's chunk, by the contracts of this function and of the type.
        unsafe { _mm512_i32gather_epi32::<1>(index, self.chunk.add(offset).cast()) }
    }

    /// The f16 at the beginning of each of eight blocks of `size` bytes, moved by `offset`: register `b` holds those
    /// of block `b`.
    ///
    /// # Safety
    /// The chunk has eight such blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    unsafe fn block_f16(self, size: usize, offset: usize) -> [__m512; 8] {
        let mut halves = [[_mm_setzero_si128(); 8]; 2];
        for (half, rows) in halves.iter_mut().enumerate() {
            for (r, words) in rows.iter_mut().enumerate() {
                // SAFETY: the chunk of row 8 half + r, by the caller's word.
                *words = unsafe { eight_words(self.chunk.add((8 * half + r) * self.stride), size, offset) };
            }
            transpose_words(rows);
        }
        let [low, high] = halves;
        std::array::from_fn(|b| {
            _mm512_cvtph_ps(_mm256_inserti128_si256::<1>(
                _mm256_castsi128_si256(low[b]),
                high[b],
            ))
        })
    }
}

/// The 16-bit words at `offset` of eight blocks of `size` bytes from `from` on.
///
/// # Safety
/// The eight blocks are valid for reads.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn eight_words(from: *const u8, size: usize, offset: usize) -> __m128i {
    if 3 * size + offset + 2 <= 64 {
        // SAFETY: eight blocks of 16 bytes or more, by the caller's word; both loads lie within them.
        let (first, second) = unsafe {
            (
                _mm512_loadu_si512(from.cast()),
                _mm512_loadu_si512(from.add(4 * size).cast()),
            )
        };
        // Indexes from 32 on are words of `second`.
        let at = |b: i16| b % 4 * (size as i16 / 2) + offset as i16 / 2 + b / 4 * 32;
        let index = _mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
        _mm512_castsi512_si128(_mm512_permutex2var_epi16(
            first,
            _mm512_castsi128_si512(index),
            second,
        ))
    } else {
        // SAFETY: within the chunk of eight blocks, by the caller's word.
        let word = |b: usize| unsafe { from.add(b * size + offset).cast::<i16>().read_unaligned() };
        _mm_setr_epi16(
            word(0),
            word(1),
            word(2),
            word(3),
            word(4),
            word(5),
            word(6),
            word(7),
        )
    }
}

/// 8 x 8 transposition of words.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_words(rows: &mut [__m128i; 8]) {
    let mut pairs = [_mm_setzero_si128(); 8];
    for i in 0..4 {
        pairs[2 * i] = _mm_unpacklo_epi16(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm_unpackhi_epi16(rows[2 * i], rows[2 * i + 1]);
    }
    // pairs[2 i + h]: columns 4 h .. 4 h + 4 of rows 2 i and 2 i + 1.
    for h in 0..2 {
        let [a, b, c, d] = [pairs[h], pairs[2 + h], pairs[4 + h], pairs[6 + h]];
        let (ab_low, ab_high) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
        rows[4 * h] = _mm_unpacklo_epi64(ab_low, cd_low);
        rows[4 * h + 1] = _mm_unpackhi_epi64(ab_low, cd_low);
        rows[4 * h + 2] = _mm_unpacklo_epi64(ab_high, cd_high);
        rows[4 * h + 3] = _mm_unpackhi_epi64(ab_high, cd_high);
    }
}

/// A format whose chunks can be packed.
pub(super) trait Pack: BlockFormat {
    /// Fills `to` with the chunk of `rows`: the numbers of [`crate::scalar::Unpack`], bit for bit. Of `scale` and `min`
    /// only as many registers as the chunk has scales, and `min` only where the format has one.
    ///
    /// # Safety
    /// - AVX-512 F, BW, VL, DQ and F16C are there.
    /// - The contract of [`Rows`] holds.
    unsafe fn pack(rows: Rows, to: &mut PackedChunkMut<'_>);
}

/// Implements [`Pack`] with the features that its body needs.
macro_rules! pack {
    ($format:ident, |$rows:ident, $to:ident| $body:block) => {
        impl Pack for $format {
            // On its own, so that the caller's sums stay in registers and are not spilled in the midst of this.
            #[inline(never)]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
            unsafe fn pack($rows: Rows, $to: &mut PackedChunkMut<'_>) {
                // SAFETY: offsets stay within the chunk, whose rows the contract gives.
                unsafe { $body }
            }
        }
    };
}

/// The lower nibbles.
#[inline]
#[target_feature(enable = "avx512f")]
fn low(x: __m512i) -> __m512i {
    _mm512_and_si512(x, _mm512_set1_epi8(15))
}

/// The upper nibbles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn high(x: __m512i) -> __m512i {
    low(_mm512_srli_epi16::<4>(x))
}

/// Bits `from .. from + n` of each byte, moved to bit `to` of it; `mask` has them there.
#[inline]
#[target_feature(enable = "avx512f")]
fn bits(x: __m512i, from: usize, to: usize, mask: i8) -> __m512i {
    let moved = if to >= from {
        _mm512_sll_epi32(x, _mm_cvtsi32_si128((to - from) as i32))
    } else {
        _mm512_srl_epi32(x, _mm_cvtsi32_si128((from - to) as i32))
    };
    _mm512_and_si512(moved, _mm512_set1_epi8(mask))
}

/// The values that 4-bit codes of the IQ4 formats stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn iq4_values(codes: __m512i) -> __m512i {
    // SAFETY: the table has 16 bytes.
    let table = unsafe { _mm_loadu_si128(IQ4_CODES.as_ptr().cast()) };
    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), codes)
}

/// 16 where one of the four bits `4 k .. 4 k + 4` of a lane is set, each in its own byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn fifth_bits(words: __m512i, k: usize) -> __m512i {
    let nibble = _mm512_and_si512(
        _mm512_srl_epi32(words, _mm_cvtsi32_si128(4 * k as i32)),
        _mm512_set1_epi32(15),
    );
    // The product has bit i of the nibble at bit 8 i.
    let spread = _mm512_mullo_epi32(nibble, _mm512_set1_epi32(0x0020_4081));
    _mm512_slli_epi32::<4>(_mm512_and_si512(spread, _mm512_set1_epi32(0x0101_0101)))
}

/// The four unsigned bytes of each lane as f32, byte `j` in register `j`.
#[inline]
#[target_feature(enable = "avx512f")]
fn four_u8(x: __m512i) -> [__m512; 4] {
    let byte = _mm512_set1_epi32(255);
    [
        _mm512_cvtepi32_ps(_mm512_and_si512(x, byte)),
        _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<8>(x), byte)),
        _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<16>(x), byte)),
        _mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(x)),
    ]
}

/// The lower 16 bits of each lane as f16.
#[inline]
#[target_feature(enable = "avx512f")]
fn low_f16(x: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x))
}

/// The upper 16 bits of each lane as f16.
#[inline]
#[target_feature(enable = "avx512f")]
fn high_f16(x: __m512i) -> __m512 {
    low_f16(_mm512_srli_epi32::<16>(x))
}

/// Stores the scales (and mins) of eight blocks.
#[inline]
#[target_feature(enable = "avx512f")]
fn set_scales(to: &mut PackedChunkMut<'_>, scales: [__m512; 8]) {
    for (b, scale) in scales.into_iter().enumerate() {
        to.set_scale(b, scale);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn set_mins(to: &mut PackedChunkMut<'_>, mins: [__m512; 8]) {
    for (b, min) in mins.into_iter().enumerate() {
        to.set_min(b, min);
    }
}

/// The codes of eight blocks of 16 bytes of nibbles, the first at `first`, `size` bytes from each to the next.
///
/// # Safety
/// As [`Pack::pack`]; the blocks are within the chunk.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
unsafe fn nibble_blocks<F: BlockFormat>(rows: Rows, to: &mut PackedChunkMut<'_>, first: usize, size: usize) {
    for b in 0..8 {
        rows.prefetch::<F>(b, 8);
        // SAFETY: the block's 16 bytes.
        let bytes = unsafe { rows.columns(first + size * b) };
        for (k, bytes) in bytes.into_iter().enumerate() {
            let (mut first, mut second) = (low(bytes), high(bytes));
            if F::OFFSET == 128 {
                (first, second) = (iq4_values(first), iq4_values(second));
            }
            to.set_q(8 * b + k, first);
            to.set_q(8 * b + 4 + k, second);
        }
    }
}

pack!(Q4_0, |rows, to| {
    set_scales(to, rows.block_f16(18, 0));
    nibble_blocks::<Q4_0>(rows, to, 2, 18);
});

pack!(Iq4Nl, |rows, to| {
    set_scales(to, rows.block_f16(18, 0));
    nibble_blocks::<Iq4Nl>(rows, to, 2, 18);
});

pack!(Q4_1, |rows, to| {
    set_scales(to, rows.block_f16(20, 0));
    set_mins(to, rows.block_f16(20, 2));
    nibble_blocks::<Q4_1>(rows, to, 4, 20);
});

/// The codes of eight blocks with four bytes of fifth bits at `first + size * b` and 16 bytes of nibbles after them.
///
/// # Safety
/// As [`Pack::pack`]; the blocks are within the chunk.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
unsafe fn five_bit_blocks<F: BlockFormat>(
    rows: Rows,
    to: &mut PackedChunkMut<'_>,
    first: usize,
    size: usize,
) {
    for b in 0..8 {
        rows.prefetch::<F>(b, 8);
        let at = first + size * b;
        // SAFETY: the block's 20 bytes; rows of a mapped matrix are far below 2 GiB / 15 (see `Rows::of`).
        let (fifth, bytes) = unsafe { (rows.words(at), rows.columns(at + 4)) };
        for (k, bytes) in bytes.into_iter().enumerate() {
            to.set_q(8 * b + k, _mm512_or_si512(low(bytes), fifth_bits(fifth, k)));
            to.set_q(
                8 * b + 4 + k,
                _mm512_or_si512(high(bytes), fifth_bits(fifth, 4 + k)),
            );
        }
    }
}

pack!(Q5_0, |rows, to| {
    set_scales(to, rows.block_f16(22, 0));
    five_bit_blocks::<Q5_0>(rows, to, 2, 22);
});

pack!(Q5_1, |rows, to| {
    set_scales(to, rows.block_f16(24, 0));
    set_mins(to, rows.block_f16(24, 2));
    five_bit_blocks::<Q5_1>(rows, to, 4, 24);
});

pack!(Q8_0, |rows, to| {
    set_scales(to, rows.block_f16(34, 0));
    for b in 0..8 {
        rows.prefetch::<Q8_0>(b, 8);
        for part in 0..2 {
            for (k, bytes) in rows.columns(34 * b + 2 + 16 * part).into_iter().enumerate() {
                let unsigned = _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
                to.set_q(8 * b + 4 * part + k, unsigned);
            }
        }
    }
});

/// Scales and mins of Q4_K and Q5_K: f16 `d`, f16 `dmin`, 12 bytes of 6-bit numbers (see [`crate::block::q4k_scales`]),
/// all lanes at once.
///
/// # Safety
/// As [`Pack::pack`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn q4k_scales(rows: Rows, to: &mut PackedChunkMut<'_>) {
    // SAFETY: the first 16 bytes of the block.
    let [head, a, b, c] = unsafe { rows.columns(0) };
    let d = low_f16(head);
    let minus_dmin = _mm512_sub_ps(_mm512_setzero_ps(), high_f16(head));
    let six = |x: __m512i| _mm512_and_si512(x, _mm512_set1_epi8(63));
    let top = |x: __m512i| bits(x, 6, 4, 0x30);
    let scales = [six(a), _mm512_or_si512(low(c), top(a))];
    let mins = [six(b), _mm512_or_si512(high(c), top(b))];
    for half in 0..2 {
        for (j, scale) in four_u8(scales[half]).into_iter().enumerate() {
            to.set_scale(4 * half + j, _mm512_mul_ps(scale, d));
        }
        for (j, min) in four_u8(mins[half]).into_iter().enumerate() {
            to.set_min(4 * half + j, _mm512_mul_ps(min, minus_dmin));
        }
    }
}

pack!(Q4K, |rows, to| {
    q4k_scales(rows, to);
    for part in 0..8 {
        rows.prefetch::<Q4K>(part, 8);
        let (pair, side) = (part / 2, part % 2);
        for (k, bytes) in rows.columns(16 + 16 * part).into_iter().enumerate() {
            to.set_q(16 * pair + 4 * side + k, low(bytes));
            to.set_q(16 * pair + 8 + 4 * side + k, high(bytes));
        }
    }
});

pack!(Q5K, |rows, to| {
    q4k_scales(rows, to);
    for side in 0..2 {
        let fifth = rows.columns(16 + 16 * side);
        for pair in 0..4 {
            rows.prefetch::<Q5K>(4 * side + pair, 8);
            let bytes = rows.columns(48 + 32 * pair + 16 * side);
            for (k, (bytes, fifth)) in bytes.into_iter().zip(fifth).enumerate() {
                let to_bit_4 = |bit| bits(fifth, bit, 4, 16);
                to.set_q(
                    16 * pair + 4 * side + k,
                    _mm512_or_si512(low(bytes), to_bit_4(2 * pair)),
                );
                to.set_q(
                    16 * pair + 8 + 4 * side + k,
                    _mm512_or_si512(high(bytes), to_bit_4(2 * pair + 1)),
                );
            }
        }
    }
});

/// Sixteen signed 8-bit scales at `offset` times `d`.
///
/// # Safety
/// As [`Pack::pack`]; `offset + 16` is within the chunk.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn sixteen_scales(rows: Rows, to: &mut PackedChunkMut<'_>, offset: usize, d: __m512) {
    // SAFETY: the caller's word.
    for (i, bytes) in unsafe { rows.columns(offset) }.into_iter().enumerate() {
        for j in 0..4 {
            let left = _mm512_sll_epi32(bytes, _mm_cvtsi32_si128(24 - 8 * j));
            let scale = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(left));
            to.set_scale(4 * i + j as usize, _mm512_mul_ps(scale, d));
        }
    }
}

pack!(Q6K, |rows, to| {
    // The last two bytes of the block: the upper half of its last four.
    sixteen_scales(rows, to, 192, high_f16(rows.words(206)));
    for half in 0..2 {
        for side in 0..2 {
            rows.prefetch::<Q6K>(2 * half + side, 4);
            let first = rows.columns(64 * half + 16 * side);
            let second = rows.columns(64 * half + 32 + 16 * side);
            let top = rows.columns(128 + 32 * half + 16 * side);
            for k in 0..4 {
                let codes = [low(first[k]), low(second[k]), high(first[k]), high(second[k])];
                for (block, code) in codes.into_iter().enumerate() {
                    let code = _mm512_or_si512(code, bits(top[k], 2 * block, 4, 0x30));
                    to.set_q(8 * (4 * half + block) + 4 * side + k, code);
                }
            }
        }
    }
});

pack!(Q2K, |rows, to| {
    let head = rows.words(80);
    let (d, minus_dmin) = (low_f16(head), _mm512_sub_ps(_mm512_setzero_ps(), high_f16(head)));
    for (i, bytes) in rows.columns(0).into_iter().enumerate() {
        let (scales, mins) = (four_u8(low(bytes)), four_u8(high(bytes)));
        for j in 0..4 {
            to.set_scale(4 * i + j, _mm512_mul_ps(scales[j], d));
            to.set_min(4 * i + j, _mm512_mul_ps(mins[j], minus_dmin));
        }
    }
    for part in 0..4 {
        rows.prefetch::<Q2K>(part, 4);
        let (half, side) = (part / 2, part % 2);
        for (k, bytes) in rows.columns(16 + 16 * part).into_iter().enumerate() {
            for block in 0..4 {
                to.set_q(
                    8 * (4 * half + block) + 4 * side + k,
                    bits(bytes, 2 * block, 0, 3),
                );
            }
        }
    }
});

pack!(Q3K, |rows, to| {
    // Scales of 6 bits in 12 bytes (see `crate::block::q3k_scales`), less 32.
    let [.., a] = rows.columns(84);
    let (b, top) = (rows.words(100), rows.words(104));
    let d = high_f16(rows.words(106));
    let words = [
        _mm512_or_si512(low(a), bits(top, 0, 4, 0x30)),
        _mm512_or_si512(low(b), bits(top, 2, 4, 0x30)),
        _mm512_or_si512(high(a), bits(top, 4, 4, 0x30)),
        _mm512_or_si512(high(b), bits(top, 6, 4, 0x30)),
    ];
    for (i, word) in words.into_iter().enumerate() {
        for (j, scale) in four_u8(word).into_iter().enumerate() {
            let scale = _mm512_sub_ps(scale, _mm512_set1_ps(32.0));
            to.set_scale(4 * i + j, _mm512_mul_ps(scale, d));
        }
    }
    for side in 0..2 {
        let third = rows.columns(16 * side);
        for half in 0..2 {
            rows.prefetch::<Q3K>(2 * side + half, 4);
            for (k, bytes) in rows.columns(32 + 32 * half + 16 * side).into_iter().enumerate() {
                for block in 0..4 {
                    let code = _mm512_or_si512(
                        bits(bytes, 2 * block, 0, 3),
                        bits(third[k], 4 * half + block, 2, 4),
                    );
                    to.set_q(8 * (4 * half + block) + 4 * side + k, code);
                }
            }
        }
    }
});

pack!(Iq4Xs, |rows, to| {
    // f16 d, 16 bits with the upper twos of eight scales, 4 bytes with their lower fours (see
    // `crate::block::iq4xs_scales`), less 32.
    let [head, low_bits, ..] = rows.columns(0);
    let d = low_f16(head);
    for g in 0..8 {
        let shift = |x: __m512i, n: usize| _mm512_srl_epi32(x, _mm_cvtsi32_si128(n as i32));
        let four = _mm512_and_si512(shift(low_bits, 4 * g), _mm512_set1_epi32(15));
        let two = _mm512_and_si512(shift(head, 16 + 2 * g), _mm512_set1_epi32(3));
        let scale = _mm512_or_si512(four, _mm512_slli_epi32::<4>(two));
        let scale = _mm512_cvtepi32_ps(_mm512_sub_epi32(scale, _mm512_set1_epi32(32)));
        to.set_scale(g, _mm512_mul_ps(scale, d));
    }
    nibble_blocks::<Iq4Xs>(rows, to, 8, 16);
});
