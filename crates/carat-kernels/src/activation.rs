//! Activations as the integer kernels take them: 8 or 16 bits with a scale for every 32 elements.
//!
//! 8 bits: `x ~ scale * q` with `scale = max|x| / 127` over 32 elements and `q` rounded to nearest, so the error
//! of an element is at most half a scale. 16 bits: `x ~ scale * (256 q + low)` with a scale 256 times finer and
//! two signed bytes, so that the same 8-bit dot product serves, twice. Rows are padded with zeros to whole
//! chunks of 256. Beside `q` stand the sums that the formats' offsets and mins are multiplied with; they are sums
//! of `q`, or of `256 q + low`.
//!
//! Rows may stand in tiles: block 0 of each row of the tile, then block 1 of each, so that a kernel that works on
//! several rows at once reads one stream. With tiles of one row each row stands by itself. Kernels that multiply words
//! of 16 bits find `256 q + low`, or `q`, as such beside the bytes.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use smallvec::SmallVec;

use crate::aligned::Aligned;
use crate::block::CHUNK;
use crate::simd::{Simd, dispatch};
use crate::{Isa, Pool, is_area};

/// Elements from which on several threads quantize: some 10 µs of work.
const PARALLEL_MIN: usize = 1 << 14;

/// A batch of quantized rows; the buffers are reused from call to call.
#[derive(Debug, Default)]
pub(crate) struct QuantizedRows {
    n_rows: usize,
    n_cols: usize,
    tile_rows: usize,
    q: Aligned<i8>,
    /// Empty with 8 bits.
    low: Aligned<i8>,
    /// Empty unless asked for.
    words: Aligned<i16>,
    scale: Aligned<f32>,
    sum: Aligned<f32>,
    isum: Aligned<i32>,
    scale32: Aligned<f32>,
    sum32: Aligned<f32>,
    isum32: Aligned<i32>,
}

/// Some rows of a [`QuantizedRows`] that stand together, `T` of `n / 32` blocks each.
#[derive(Clone, Copy)]
pub(crate) struct QuantizedTile<'a> {
    /// `[n / 32, T, 32]`
    pub(crate) q: &'a [i8],
    /// `[n / 32, T, 32]`, or empty with 8 bits.
    pub(crate) low: &'a [i8],
    /// `[n / 32, T, 32]`: `256 q + low`, or `q` with 8 bits; empty if not asked for.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "read by tests and on x86-64")
    )]
    pub(crate) words: &'a [i16],
    /// `[n / 32, T]`
    pub(crate) scale32: &'a [f32],
    /// `[n / 32, T]`: scale times the sum of 32 `q`.
    pub(crate) sum32: &'a [f32],
    /// `[n / 32, T]`: the sum of 32 `q`.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "read by tests and on x86-64")
    )]
    pub(crate) isum32: &'a [i32],
    /// `[n / 32, T, 2]`: scale times the sum of 16 `q`.
    pub(crate) sum: &'a [f32],
    /// `[n / 32, T, 2]`: the sum of 16 `q`.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "read by tests and on x86-64")
    )]
    pub(crate) isum: &'a [i32],
}

/// One row of a [`QuantizedRows`] whose tiles are single rows. `n` is the padded length.
#[derive(Clone, Copy)]
pub(crate) struct QuantizedRow<'a> {
    /// `[n]`
    pub(crate) q: &'a [i8],
    /// `[n]`, or empty with 8 bits.
    pub(crate) low: &'a [i8],
    /// `[n / 16]`
    pub(crate) scale: &'a [f32],
    /// `[n / 16]`: scale times the sum of 16 `q`.
    pub(crate) sum: &'a [f32],
}

/// How rows stand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) tile_rows: usize,
    /// Whether `words` are there.
    pub(crate) has_words: bool,
}

impl Layout {
    /// Each row by itself.
    pub(crate) const ROWS: Layout = Layout {
        tile_rows: 1,
        has_words: false,
    };
}

/// Bits of a quantized activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    Eight,
    Sixteen,
}

impl QuantizedRows {
    /// Quantizes `x` `[n_rows, n_cols]`, on the pool's threads if there is one and it pays. What fills up the last tile is
    /// of no meaning.
    pub(crate) fn fill(
        &mut self,
        (isa, pool): (Isa, Option<&Pool>),
        bits: Bits,
        x: &[f32],
        [n_rows, n_cols]: [usize; 2],
        Layout { tile_rows, has_words }: Layout,
    ) {
        assert!(
            is_area(x.len(), n_rows, n_cols) && tile_rows > 0,
            "activations do not fit their shape"
        );
        let padded = n_cols.next_multiple_of(CHUNK);
        self.n_rows = n_rows;
        self.n_cols = padded;
        self.tile_rows = tile_rows;
        let n = n_rows.next_multiple_of(tile_rows) * padded;
        self.q.resize(n);
        self.low.resize(if bits == Bits::Sixteen { n } else { 0 });
        self.words.resize(if has_words { n } else { 0 });
        self.isum.resize(n / 16);
        self.isum32.resize(n / 32);
        for floats in [&mut self.scale, &mut self.sum] {
            floats.resize(n / 16);
        }
        for floats in [&mut self.scale32, &mut self.sum32] {
            floats.resize(n / 32);
        }
        let n_tiles = n_rows.div_ceil(tile_rows);
        let pool = pool.filter(|_| n_rows * n_cols >= PARALLEL_MIN);
        let n_parts = pool.map_or(1, Pool::n_threads);
        let tiles_per_part = n_tiles.div_ceil(n_parts).max(1);
        let parts = self.parts(tiles_per_part * tile_rows * padded);
        let x_parts = x.chunks((tiles_per_part * tile_rows * n_cols).max(1));
        // Each part is one thread's; the lock only says so to the compiler.
        let work: SmallVec<[_; 16]> = parts.zip(x_parts).map(Mutex::new).collect();
        let fill = |_, i: usize| {
            let (part, x) = &mut *work[i].lock().unwrap_or_else(PoisonError::into_inner);
            for (t, from) in x.chunks_exact(n_cols.max(1)).enumerate() {
                fill_row(isa, part, padded / 32, (t, tile_rows), from);
            }
        };
        match pool {
            Some(pool) => pool.run(work.len(), &fill),
            None => (0..work.len()).for_each(|i| fill(0, i)),
        }
    }

    /// The buffers cut into parts of `n` elements, which are whole tiles.
    fn parts(&mut self, n: usize) -> impl Iterator<Item = QuantizedPart<'_>> {
        let mut low = self.low.chunks_mut(n);
        let mut words = self.words.chunks_mut(n);
        let floats16 = self.scale.chunks_mut(n / 16).zip(self.sum.chunks_mut(n / 16));
        let floats32 = self.scale32.chunks_mut(n / 32).zip(self.sum32.chunks_mut(n / 32));
        let whole = self.isum.chunks_mut(n / 16).zip(self.isum32.chunks_mut(n / 32));
        let parts = self.q.chunks_mut(n).zip(floats16).zip(floats32).zip(whole);
        parts.map(
            move |(((q, (scale, sum)), (scale32, sum32)), (isum, isum32))| QuantizedPart {
                q,
                low: low.next().unwrap_or(&mut []),
                words: words.next().unwrap_or(&mut []),
                scale,
                sum,
                isum,
                scale32,
                sum32,
                isum32,
            },
        )
    }

    /// Whether `low` is there.
    pub(crate) fn is_wide(&self) -> bool {
        !self.low.is_empty()
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Padded length of a row.
    pub(crate) fn n_cols(&self) -> usize {
        self.n_cols
    }

    /// Rows of a tile.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for the kernels of x86-64")
    )]
    pub(crate) fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// Rows `i * tile_rows` and the following, as far as there are any.
    pub(crate) fn tile(&self, i: usize) -> QuantizedTile<'_> {
        let n = self.tile_rows * self.n_cols;
        self.part(i * n..(i + 1) * n)
    }

    /// All tiles, one behind the other.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "for the kernels of x86-64")
    )]
    pub(crate) fn all(&self) -> QuantizedTile<'_> {
        self.part(0..self.q.len())
    }

    fn part(&self, of: Range<usize>) -> QuantizedTile<'_> {
        let (by16, by32) = (of.start / 16..of.end / 16, of.start / 32..of.end / 32);
        QuantizedTile {
            q: &self.q[of.clone()],
            low: self.low.get(of.clone()).unwrap_or(&[]),
            words: self.words.get(of).unwrap_or(&[]),
            scale32: &self.scale32[by32.clone()],
            sum32: &self.sum32[by32.clone()],
            isum32: &self.isum32[by32],
            sum: &self.sum[by16.clone()],
            isum: &self.isum[by16],
        }
    }

    /// Block `b` of row `t`, as the kernels take it.
    pub(crate) fn block(&self, t: usize, b: usize) -> [f32; 32] {
        let (tile, n_blocks) = (t / self.tile_rows, self.n_cols / 32);
        let at = (tile * n_blocks + b) * self.tile_rows + t % self.tile_rows;
        let (scale, q) = (self.scale32[at], &self.q.as_chunks::<32>().0[at]);
        match self.low.as_chunks::<32>().0.get(at) {
            Some(low) => std::array::from_fn(|i| scale * (256 * i32::from(q[i]) + i32::from(low[i])) as f32),
            None => q.map(|q| scale * f32::from(q)),
        }
    }

    /// Row `t`; tiles are single rows.
    pub(crate) fn row(&self, t: usize) -> QuantizedRow<'_> {
        debug_assert_eq!(self.tile_rows, 1, "rows stand in tiles");
        let n = self.n_cols;
        let by16 = t * (n / 16)..(t + 1) * (n / 16);
        QuantizedRow {
            q: &self.q[t * n..(t + 1) * n],
            low: self.low.get(t * n..(t + 1) * n).unwrap_or(&[]),
            scale: &self.scale[by16.clone()],
            sum: &self.sum[by16],
        }
    }
}

/// What one thread fills of a [`QuantizedRows`].
struct QuantizedPart<'a> {
    q: &'a mut [i8],
    low: &'a mut [i8],
    words: &'a mut [i16],
    scale: &'a mut [f32],
    sum: &'a mut [f32],
    isum: &'a mut [i32],
    scale32: &'a mut [f32],
    sum32: &'a mut [f32],
    isum32: &'a mut [i32],
}

dispatch! {
    /// Row `t` of the part, of `n_blocks` blocks, in tiles of `tile_rows`.
    fn fill_row(part: &mut QuantizedPart<'_>, n_blocks: usize, place: (usize, usize), from: &[f32]) = fill_row_generic;
}

#[inline(always)]
fn fill_row_generic<S: Simd>(
    _: S,
    part: &mut QuantizedPart<'_>,
    n_blocks: usize,
    (t, tile_rows): (usize, usize),
    from: &[f32],
) {
    let first = t / tile_rows * tile_rows * n_blocks + t % tile_rows;
    let mut block = [0.0; 32];
    for b in 0..n_blocks {
        let values = from.get(32 * b..).unwrap_or(&[]);
        let values: &[f32; 32] = if let Some(whole) = values.first_chunk() {
            whole
        } else {
            block.fill(0.0);
            block[..values.len()].copy_from_slice(values);
            &block
        };
        let at = first + b * tile_rows;
        let q = &mut part.q.as_chunks_mut().0[at];
        let (scale, sums) = match part.low.as_chunks_mut().0.get_mut(at) {
            Some(low) => quantize_wide_block(values, q, low),
            None => quantize_block(values, q),
        };
        if let Some(words) = part.words.as_chunks_mut().0.get_mut(at) {
            widen_block(q, part.low.as_chunks().0.get(at), words);
        }
        part.scale[2 * at..2 * at + 2].fill(scale);
        part.scale32[at] = scale;
        part.isum[2 * at..2 * at + 2].copy_from_slice(&sums);
        part.isum32[at] = sums[0] + sums[1];
        for (to, sum) in part.sum[2 * at..].iter_mut().zip(sums) {
            *to = scale * sum as f32;
        }
        part.sum32[at] = scale * part.isum32[at] as f32;
    }
}

/// The same numbers in words.
#[inline(always)]
fn widen_block(q: &[i8; 32], low: Option<&[i8; 32]>, words: &mut [i16; 32]) {
    match low {
        Some(low) => {
            for (i, word) in words.iter_mut().enumerate() {
                *word = 256 * i16::from(q[i]) + i16::from(low[i]);
            }
        }
        None => *words = q.map(i16::from),
    }
}

/// The largest absolute value; infinite or NaN if one of them is. In whole numbers, whose order is the same, since the
/// compiler makes vectors of those only.
#[inline(always)]
pub(crate) fn largest_of(values: &[f32; 32]) -> f32 {
    let bits = values
        .iter()
        .fold(0, |most, value| (value.to_bits() & 0x7FFF_FFFF).max(most));
    f32::from_bits(bits)
}

/// What brings `largest` to `to`; zero if it is too small for that.
#[inline(always)]
fn factor_to(to: f32, largest: f32) -> f32 {
    let factor = to / largest;
    if factor.is_finite() { factor } else { 0.0 }
}

/// The whole number nearest to `x`, of two the even one, for `|x|` below 2^22: what such a number leaves in the lowest
/// bits of one whose unit is its last bit.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i32 {
    const UNIT: f32 = 12_582_912.0;
    (x + UNIT).to_bits().wrapping_sub(UNIT.to_bits()) as i32
}

/// As [`quantize_block`], with 16 bits.
#[inline(always)]
fn quantize_wide_block(values: &[f32; 32], q: &mut [i8; 32], low: &mut [i8; 32]) -> (f32, [i32; 2]) {
    const LARGEST: f32 = 127.0 * 256.0;
    let largest = largest_of(values);
    if !largest.is_finite() {
        // A broken number must be seen in the output, as it would be in f32.
        q.fill(0);
        low.fill(0);
        return (f32::NAN, [0; 2]);
    }
    let factor = factor_to(LARGEST, largest);
    // Each step for all 32 in a loop of its own: the compiler makes vectors of these. One loop over all steps it does byte
    // by byte, and `map` of an array calls a function that knows no vectors.
    let (mut high, mut rest) = ([0; 32], nearest_of(values, factor));
    for (high, whole) in high.iter_mut().zip(&rest) {
        *high = (whole + 128) >> 8;
    }
    for (rest, high) in rest.iter_mut().zip(&high) {
        // -128 would have no opposite in 8 bits, which the AVX2 kernel needs; -127 is a 1/256 of an 8-bit step away.
        *rest = (*rest - 256 * high).max(-127);
    }
    narrow(&high, q);
    narrow(&rest, low);
    let sums = halves(&high).map(|sum| 256 * sum);
    let rest = halves(&rest);
    (largest / LARGEST, [sums[0] + rest[0], sums[1] + rest[1]])
}

/// One block of 32: its scale and the sums of its two halves. LLVM makes vectors of it.
#[inline(always)]
fn quantize_block(values: &[f32; 32], q: &mut [i8; 32]) -> (f32, [i32; 2]) {
    let largest = largest_of(values);
    if !largest.is_finite() {
        // A broken number must be seen in the output, as it would be in f32.
        q.fill(0);
        return (f32::NAN, [0; 2]);
    }
    let factor = factor_to(127.0, largest);
    let whole = nearest_of(values, factor);
    narrow(&whole, q);
    (largest / 127.0, halves(&whole))
}

/// The whole numbers nearest to `factor` times the values.
#[inline(always)]
fn nearest_of(values: &[f32; 32], factor: f32) -> [i32; 32] {
    let mut whole = [0; 32];
    for (whole, value) in whole.iter_mut().zip(values) {
        *whole = nearest(value * factor);
    }
    whole
}

/// Numbers that fit eight bits.
#[inline(always)]
fn narrow(from: &[i32; 32], to: &mut [i8; 32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from as i8;
    }
}

/// The sums of the two halves.
#[inline(always)]
fn halves(of: &[i32; 32]) -> [i32; 2] {
    let (first, second) = of.split_at(16);
    [first.iter().sum(), second.iter().sum()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool() -> Pool {
        Pool::new(2).unwrap()
    }

    /// The whole number that stands for element `i`.
    fn whole(row: &QuantizedRow<'_>, i: usize) -> i32 {
        let q = i32::from(row.q[i]);
        row.low.get(i).map_or(q, |low| 256 * q + i32::from(*low))
    }

    proptest! {
        #[test]
        fn error_is_at_most_half_a_scale(x in prop::collection::vec(-1e4f32..1e4, 1..700), wide: bool) {
            // 16 bits: one unit more where -128 became -127, and the rounding of f32 itself.
            let (bits, units) = if wide { (Bits::Sixteen, 1.51) } else { (Bits::Eight, 0.5001) };
            for isa in Isa::available() {
                let mut rows = QuantizedRows::default();
                rows.fill((isa, Some(&pool())), bits, &x, [1, x.len()], Layout::ROWS);
                let row = rows.row(0);
                prop_assert_eq!(rows.is_wide(), wide);
                for (i, value) in x.iter().enumerate() {
                    let error = (value - row.scale[i / 16] * whole(&row, i) as f32).abs();
                    prop_assert!(error <= row.scale[i / 16] * units + 1e-30, "{isa} {i}: {error}");
                }
                prop_assert!((x.len()..row.q.len()).all(|i| whole(&row, i) == 0));
                let tile = rows.tile(0);
                for (j, sum) in tile.isum.iter().enumerate() {
                    prop_assert_eq!(*sum, (16 * j..16 * (j + 1)).map(|i| whole(&row, i)).sum::<i32>());
                }
                for (j, sum) in tile.isum32.iter().enumerate() {
                    prop_assert_eq!(*sum, tile.isum[2 * j] + tile.isum[2 * j + 1]);
                }
            }
        }
    }

    #[test]
    fn tiles_hold_the_same_numbers_as_rows() {
        let (n_rows, n_cols) = (131, 300);
        assert!(n_rows * n_cols >= PARALLEL_MIN, "several threads take part");
        let x: Vec<f32> = (0..n_rows * n_cols)
            .map(|i| (i as f32 * 0.7).sin() * 3.0)
            .collect();
        let (mut rows, mut tiles) = (QuantizedRows::default(), QuantizedRows::default());
        rows.fill(
            (Isa::detect(), Some(&pool())),
            Bits::Sixteen,
            &x,
            [n_rows, n_cols],
            Layout::ROWS,
        );
        tiles.fill(
            (Isa::detect(), Some(&pool())),
            Bits::Sixteen,
            &x,
            [n_rows, n_cols],
            Layout {
                tile_rows: 4,
                has_words: true,
            },
        );
        for t in 0..n_rows {
            let (row, tile) = (rows.tile(t), tiles.tile(t / 4));
            for b in 0..16 {
                let at = 4 * b + t % 4;
                assert_eq!(row.q[32 * b..][..32], tile.q[32 * at..][..32]);
                assert_eq!(row.low[32 * b..][..32], tile.low[32 * at..][..32]);
                for (i, word) in tile.words[32 * at..][..32].iter().enumerate() {
                    assert_eq!(i32::from(*word), whole(&rows.row(t), 32 * b + i));
                }
                assert_eq!(row.isum[2 * b..][..2], tile.isum[2 * at..][..2]);
                assert_eq!(
                    (row.isum32[b], row.scale32[b]),
                    (tile.isum32[at], tile.scale32[at])
                );
            }
        }
    }

    #[test]
    fn a_broken_number_shows() {
        for (isa, bits) in Isa::available().flat_map(|isa| [(isa, Bits::Eight), (isa, Bits::Sixteen)]) {
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = [1.0; 64];
                x[40] = broken;
                let mut rows = QuantizedRows::default();
                rows.fill((isa, Some(&pool())), bits, &x, [1, 64], Layout::ROWS);
                let row = rows.row(0);
                assert!(
                    row.scale[1].is_finite() && row.scale[2].is_nan() && row.sum[3].is_nan(),
                    "{isa}"
                );
            }
        }
    }

    #[test]
    fn buffers_are_reused_for_another_shape() {
        let mut rows = QuantizedRows::default();
        rows.fill(
            (Isa::detect(), Some(&pool())),
            Bits::Sixteen,
            &[1.0; 1024],
            [2, 512],
            Layout {
                tile_rows: 2,
                has_words: true,
            },
        );
        rows.fill(
            (Isa::detect(), Some(&pool())),
            Bits::Eight,
            &[2.0; 40],
            [1, 40],
            Layout::ROWS,
        );
        assert!(rows.tile(0).words.is_empty());
        assert_eq!((rows.n_rows(), rows.n_cols(), rows.is_wide()), (1, 256, false));
        assert_eq!(&rows.row(0).q[38..42], &[127, 127, 0, 0]);
    }
}
