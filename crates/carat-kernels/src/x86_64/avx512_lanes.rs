//! The same chunk of sixteen weight rows, turned so that each row is a lane.
//!
//! ```text
//! in the file   row r: 144 bytes (Q4_0) from r * stride on
//! here          word i: one register, lane r holds bytes 4 i .. 4 i + 4 of row r
//! ```
//!
//! From here on every format is unpacked for sixteen rows at once, and `vpdpbusd` with four activations broadcast to all
//! lanes adds to the sums of sixteen rows. Turning 256 bytes of each row while they still hold several codes each costs
//! 4.5 loads, 3 insertions and 6 shuffles a row for Q4_0. Nothing is repacked at load time.

use std::arch::x86_64::*;

use crate::block::BlockFormat;

/// Rows that are turned together: the lanes of a register.
pub(crate) const PACK_ROWS: usize = 16;

/// The same chunk of 16 rows in memory.
///
/// Whoever makes one sees to it that `chunk + r * stride` is valid for reads of a whole chunk for each row `r < 16`, and
/// that 16 strides fit 31 bits.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The chunk of the first row.
    pub(super) chunk: *const u8,
    /// Bytes from row to row.
    pub(super) stride: usize,
}

impl Rows {
    /// Asks for the lines of rows `part * 16 / n_parts` on of a chunk that will be packed later, wherever that may be:
    /// spread over the work, since a burst of requests waits for the ones before it. `HINT` says to which cache.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn prefetch<F: BlockFormat, const HINT: i32>(self, part: usize, n_parts: usize) {
        for r in part * PACK_ROWS / n_parts..(part + 1) * PACK_ROWS / n_parts {
            let row = self.chunk.wrapping_add(r * self.stride);
            for line in 0..F::CHUNK_BYTES.div_ceil(64) {
                _mm_prefetch::<HINT>(row.wrapping_add(64 * line).cast());
            }
        }
    }

    /// Where each row begins.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn starts(self) -> __m512i {
        let row = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        _mm512_mullo_epi32(row, _mm512_set1_epi32(self.stride as i32))
    }

    /// Four bytes of each row from `offset` on.
    ///
    /// # Safety
    /// `offset + 4` is within the chunk, and `starts` are [`Rows::starts`].
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn word(self, offset: usize, starts: __m512i) -> __m512i {
        // SAFETY: within each row's chunk, by the contracts of this function and of the type.
        unsafe { _mm512_i32gather_epi32::<1>(starts, self.chunk.add(offset).cast()) }
    }

    /// Sixteen bytes of each row from `offset` on: register `k` holds bytes `4 k .. 4 k + 4` of every row.
    ///
    /// # Safety
    /// `offset + 16` is within the chunk.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn columns(self, offset: usize) -> [__m512i; 4] {
        // SAFETY: within each row's chunk, by the contracts of this function and of the type.
        let row = |r: usize| unsafe { _mm_loadu_si128(self.chunk.add(r * self.stride + offset).cast()) };
        // Register i: rows i, i + 4, i + 8, i + 12, which a transposition within quarters brings in order.
        let four = |i: usize| {
            let lanes = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(row(i)), row(4 + i));
            _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(lanes, row(8 + i)), row(12 + i))
        };
        transpose_quarters([four(0), four(1), four(2), four(3)])
    }

    /// Thirty-two bytes of each row from `offset` on: register `k` holds bytes `4 k .. 4 k + 4` of every row.
    ///
    /// # Safety
    /// `offset + 32` is within the chunk.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) unsafe fn wide_columns(self, offset: usize) -> [__m512i; 8] {
        // SAFETY: within each row's chunk, by the contracts of this function and of the type.
        let row = |r: usize| unsafe { _mm256_loadu_si256(self.chunk.add(r * self.stride + offset).cast()) };
        // Register i of a half: rows i and i + 4, two quarters each.
        let half = |first: usize| {
            let two = |i: usize| {
                let low = _mm512_castsi256_si512(row(first + i));
                _mm512_inserti64x4::<1>(low, row(first + 4 + i))
            };
            transpose_quarters([two(0), two(1), two(2), two(3)])
        };
        let (top, bottom) = (half(0), half(8));
        let mut columns = [_mm512_setzero_si512(); 8];
        for k in 0..4 {
            columns[k] = _mm512_shuffle_i32x4::<0b10_00_10_00>(top[k], bottom[k]);
            columns[4 + k] = _mm512_shuffle_i32x4::<0b11_01_11_01>(top[k], bottom[k]);
        }
        columns
    }
}

/// 4 x 4 transposition of the 32-bit lanes of each quarter.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab_low, cd_low),
        _mm512_unpackhi_epi64(ab_low, cd_low),
        _mm512_unpacklo_epi64(ab_high, cd_high),
        _mm512_unpackhi_epi64(ab_high, cd_high),
    ]
}

/// Words of the longest chunk, Q8_0's with whole words for each scale.
const MAX_WORDS: usize = 64 + 8;

/// A chunk of 16 rows. See the module's head.
#[repr(C, align(64))]
pub(crate) struct Lanes([[u8; 64]; MAX_WORDS]);

impl Default for Lanes {
    fn default() -> Lanes {
        Lanes([[0; 64]; MAX_WORDS])
    }
}

impl Lanes {
    /// Takes the chunk of `rows`, of which the first `n_pairs` of four pairs of blocks are wanted, the rest may be
    /// missing.
    ///
    /// # Safety
    /// The contract of [`Rows`] holds.
    // On its own, so that the caller's sums are not spilled in the midst of this.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) unsafe fn fill<F: BlockFormat>(&mut self, rows: Rows, n_pairs: usize) {
        // Three pairs end within the whole columns, the only ones that are looked at below.
        const { assert!(3 * F::CHUNK_BYTES / 4 <= F::CHUNK_BYTES / 32 * 32) };
        let (n_words, n_wide) = (F::CHUNK_BYTES / 4, F::CHUNK_BYTES / 32);
        // SAFETY: all within the chunk.
        unsafe {
            for g in 0..n_wide {
                if n_pairs < 4 && 32 * g >= n_pairs * F::CHUNK_BYTES / 4 {
                    return;
                }
                self.set(8 * g, rows.wide_columns(32 * g));
            }
            if n_words % 8 > 4 {
                self.set(8 * n_wide, rows.columns(32 * n_wide));
            }
            if !n_words.is_multiple_of(8) {
                self.set(n_words - 4, rows.columns(4 * n_words - 16));
            }
            if !F::CHUNK_BYTES.is_multiple_of(4) {
                // Half a word is left, the upper half of the last four bytes.
                let [.., end] = rows.columns(F::CHUNK_BYTES - 16);
                self.set(n_words, [_mm512_srli_epi32::<16>(end)]);
            }
        }
    }

    /// [`Lanes::fill`] for Q8_0, block by block: every other block begins within a word, and each word of it would have to
    /// be put together from two.
    ///
    /// ```text
    /// words 8 b .. 8 b + 8   the codes of block b
    /// word  64 + b           its scale and two bytes more
    /// ```
    ///
    /// # Safety
    /// The contract of [`Rows`] holds.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512dq")]
    pub(super) unsafe fn fill_q8_0(&mut self, rows: Rows, n_pairs: usize) {
        let starts = rows.starts();
        for b in 0..2 * n_pairs {
            // SAFETY: the caller's word; the codes are the last 32 bytes of a block of 34.
            unsafe {
                self.set(8 * b, rows.wide_columns(34 * b + 2));
                self.set(64 + b, [rows.word(34 * b, starts)]);
            }
        }
    }

    /// The scales of [`Lanes::fill_q8_0`] alone.
    ///
    /// # Safety
    /// The contract of [`Rows`] holds.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn fill_q8_0_scales(&mut self, rows: Rows, n_pairs: usize) {
        let starts = rows.starts();
        for b in 0..2 * n_pairs {
            // SAFETY: the caller's word.
            self.set(64 + b, [unsafe { rows.word(34 * b, starts) }]);
        }
    }

    /// Sets the words from `first` on.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn set<const N: usize>(&mut self, first: usize, words: [__m512i; N]) {
        for (to, word) in self.0[first..first + N].iter_mut().zip(words) {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), word) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn get(&self, i: usize) -> __m512i {
        // SAFETY: 64 bytes.
        unsafe { _mm512_loadu_si512(self.0[i].as_ptr().cast()) }
    }

    /// Four bytes of each row from `offset` on, an even number.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn word(&self, offset: usize) -> __m512i {
        let i = offset / 4;
        if offset.is_multiple_of(4) {
            self.get(i)
        } else {
            let (low, high) = (self.get(i), self.get(i + 1));
            _mm512_or_si512(_mm512_srli_epi32::<16>(low), _mm512_slli_epi32::<16>(high))
        }
    }

    /// `4 * N` bytes of each row from `offset` on, an even number: register `k` holds bytes `4 k .. 4 k + 4`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn words<const N: usize>(&self, offset: usize) -> [__m512i; N] {
        let mut words = [_mm512_setzero_si512(); N];
        for (k, word) in words.iter_mut().enumerate() {
            *word = self.word(offset + 4 * k);
        }
        words
    }

    /// The f16 at `offset` of each row, an even number.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn f16(&self, offset: usize) -> __m512 {
        let word = self.get(offset / 4);
        if offset.is_multiple_of(4) {
            low_f16(word)
        } else {
            high_f16(word)
        }
    }
}

/// The lower 16 bits of each lane as f16.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn low_f16(x: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x))
}

/// The upper 16 bits of each lane as f16.
#[inline]
#[target_feature(enable = "avx512f")]
fn high_f16(x: __m512i) -> __m512 {
    low_f16(_mm512_srli_epi32::<16>(x))
}
