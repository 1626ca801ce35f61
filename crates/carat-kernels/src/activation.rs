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

/// Elements from which on several threads quantize: some 5 to 15 µs of work.
const PARALLEL_MIN: usize = 1 << 14;

/// Elements of the blocks that are quantized at a time.
const EIGHT: usize = 8 * 32;
/// What the largest of a block becomes, with 8 bits.
pub(crate) const LARGEST: f32 = 127.0;
/// With 16 bits.
pub(crate) const LARGEST_WIDE: f32 = 127.0 * 256.0;

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
        let pool = pool.filter(|_| n_rows * n_cols >= PARALLEL_MIN);
        let n_parts = pool.map_or(1, Pool::n_threads);
        let eights_per_part = (n / EIGHT).div_ceil(n_parts).max(1);
        // Each part is one thread's; the lock only says so to the compiler.
        let work: SmallVec<[_; 16]> = self.parts(eights_per_part * EIGHT).map(Mutex::new).collect();
        let fill = |_, i: usize| {
            let mut part = work[i].lock().unwrap_or_else(PoisonError::into_inner);
            let mut source = Source::new(x, [n_rows, n_cols], tile_rows, 8 * eights_per_part * i);
            part.each_eight(|mut to| quantize_eight(isa, &source.next_eight(), &mut to));
        };
        match pool {
            Some(pool) => pool.run(work.len(), &fill),
            None => (0..work.len()).for_each(|i| fill(0, i)),
        }
    }

    /// The buffers cut into parts of `n` elements, which are whole [`Eight`]s.
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

/// Eight blocks that stand one behind the other in the buffers of a [`QuantizedRows`], of one row or of several.
pub(crate) struct Eight<'a> {
    pub(crate) q: &'a mut [[i8; 32]; 8],
    /// None with 8 bits.
    pub(crate) low: Option<&'a mut [[i8; 32]; 8]>,
    words: Option<&'a mut [[i16; 32]; 8]>,
    pub(crate) scale: &'a mut [f32; 16],
    pub(crate) sum: &'a mut [f32; 16],
    pub(crate) isum: &'a mut [i32; 16],
    pub(crate) scale32: &'a mut [f32; 8],
    pub(crate) sum32: &'a mut [f32; 8],
    pub(crate) isum32: &'a mut [i32; 8],
}

impl QuantizedPart<'_> {
    /// Calls `fill` for all of it.
    fn each_eight(&mut self, mut fill: impl FnMut(Eight<'_>)) {
        fn blocks<T, const N: usize>(all: &mut [T]) -> impl Iterator<Item = &mut [[T; N]; 8]> {
            all.as_chunks_mut().0.as_chunks_mut().0.iter_mut()
        }
        fn few<T, const N: usize>(all: &mut [T]) -> impl Iterator<Item = &mut [T; N]> {
            all.as_chunks_mut().0.iter_mut()
        }
        let (mut low, mut words) = (blocks(self.low), blocks(self.words));
        let floats16 = few(self.scale).zip(few(self.sum));
        let floats32 = few(self.scale32).zip(few(self.sum32));
        let whole = few(self.isum).zip(few(self.isum32));
        for (((q, (scale, sum)), (scale32, sum32)), (isum, isum32)) in
            blocks(self.q).zip(floats16).zip(floats32).zip(whole)
        {
            fill(Eight {
                q,
                low: low.next(),
                words: words.next(),
                scale,
                sum,
                isum,
                scale32,
                sum32,
                isum32,
            });
        }
    }
}

/// The blocks of `x` in the order in which they stand in tiles.
struct Source<'a> {
    x: &'a [f32],
    n_cols: usize,
    n_rows: usize,
    tile_rows: usize,
    /// First row of the tile.
    tile: usize,
    /// Block of the row.
    b: usize,
    /// Row of the tile.
    t: usize,
    /// For blocks that are not there, or not whole.
    padded: [[f32; 32]; 8],
}

impl<'a> Source<'a> {
    /// From block `at` of the buffers on.
    fn new(x: &'a [f32], [n_rows, n_cols]: [usize; 2], tile_rows: usize, at: usize) -> Source<'a> {
        let n_blocks = n_cols.next_multiple_of(CHUNK) / 32;
        let tile = at / (tile_rows * n_blocks).max(1);
        let within = at - tile * tile_rows * n_blocks;
        Source {
            x,
            n_cols,
            n_rows,
            tile_rows,
            tile: tile * tile_rows,
            b: within / tile_rows,
            t: within % tile_rows,
            padded: [[0.0; 32]; 8],
        }
    }

    /// The next eight, filled up with zeros.
    fn next_eight(&mut self) -> [&[f32; 32]; 8] {
        let blocks: [&[f32]; 8] = std::array::from_fn(|_| self.next());
        for (padded, block) in self.padded.iter_mut().zip(blocks) {
            if block.len() < 32 {
                padded.fill(0.0);
                padded[..block.len()].copy_from_slice(block);
            }
        }
        std::array::from_fn(|i| blocks[i].first_chunk().unwrap_or(&self.padded[i]))
    }

    /// What there is of the next block.
    fn next(&mut self) -> &'a [f32] {
        let (row, from) = (self.tile + self.t, 32 * self.b);
        self.t += 1;
        if self.t == self.tile_rows {
            (self.t, self.b) = (0, self.b + 1);
            if 32 * self.b >= self.n_cols.next_multiple_of(CHUNK) {
                (self.b, self.tile) = (0, self.tile + self.tile_rows);
            }
        }
        if row >= self.n_rows || from >= self.n_cols {
            return &[];
        }
        let n = (self.n_cols - from).min(32);
        &self.x[row * self.n_cols + from..][..n]
    }
}

/// Quantizes eight blocks.
fn quantize_eight(isa: Isa, values: &[&[f32; 32]; 8], to: &mut Eight<'_>) {
    #[cfg(target_arch = "x86_64")]
    if isa.has_avx512() && to.words.is_none() {
        // SAFETY: an `Isa` of this level exists only where the processor has the features.
        if unsafe { crate::x86_64::quantize_avx512(values, to) } {
            return;
        }
    }
    quantize_blocks(isa, values, to);
}

dispatch! {
    /// [`quantize_eight`] block by block.
    fn quantize_blocks(values: &[&[f32; 32]; 8], to: &mut Eight<'_>) = quantize_blocks_generic;
}

#[inline(always)]
fn quantize_blocks_generic<S: Simd>(_: S, values: &[&[f32; 32]; 8], to: &mut Eight<'_>) {
    for (i, values) in values.iter().enumerate() {
        let q = &mut to.q[i];
        let (scale, sums) = match &mut to.low {
            Some(low) => quantize_wide_block(values, q, &mut low[i]),
            None => quantize_block(values, q),
        };
        if let Some(words) = &mut to.words {
            widen_block(q, to.low.as_ref().map(|low| &low[i]), &mut words[i]);
        }
        to.scale32[i] = scale;
        to.isum32[i] = sums[0] + sums[1];
        to.sum32[i] = scale * to.isum32[i] as f32;
        for (at, sum) in (2 * i..).zip(sums) {
            (to.scale[at], to.isum[at], to.sum[at]) = (scale, sum, scale * sum as f32);
        }
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
    let largest = largest_of(values);
    if !largest.is_finite() {
        // A broken number must be seen in the output, as it would be in f32.
        q.fill(0);
        low.fill(0);
        return (f32::NAN, [0; 2]);
    }
    let factor = factor_to(LARGEST_WIDE, largest);
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
    (largest / LARGEST_WIDE, [sums[0] + rest[0], sums[1] + rest[1]])
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
    let factor = factor_to(LARGEST, largest);
    let whole = nearest_of(values, factor);
    narrow(&whole, q);
    (largest / LARGEST, halves(&whole))
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

    /// Values of all sizes, of which some blocks have one of their own.
    fn values() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![
            40 => -4f32..4.0,
            4 => prop::num::f32::NORMAL,
            4 => prop::sample::select(vec![0.0, -0.0, 127.0, -127.5, 32640.5, -32512.0, 1e-40, f32::MIN_POSITIVE]),
            1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
        ];
        let block = prop_oneof![
            4 => prop::collection::vec(value, 32),
            1 => prop::sample::select(vec![0.0, 1.0, -3.5, 1e-38, 1e-42]).prop_map(|value| vec![value; 32]),
        ];
        prop::collection::vec(block, 1..40).prop_map(|blocks| blocks.concat())
    }

    proptest! {
        #[test]
        fn every_instruction_set_quantizes_as_the_scalar_twin(
            x in values(), n_rows in 1usize..20, tile_rows in 1usize..17, wide: bool, has_words: bool,
        ) {
            let bits = if wide { Bits::Sixteen } else { Bits::Eight };
            let n_cols = x.len() / n_rows;
            let fill = |isa| {
                let mut rows = QuantizedRows::default();
                let layout = Layout { tile_rows, has_words };
                rows.fill((isa, Some(&pool())), bits, &x[..n_rows * n_cols], [n_rows, n_cols], layout);
                rows
            };
            let bits_of = |floats: &Aligned<f32>| floats.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            let twin = fill(Isa(crate::isa::Level::Scalar));
            for isa in Isa::available() {
                let rows = fill(isa);
                prop_assert_eq!(&rows.q[..], &twin.q[..], "{}", isa);
                prop_assert_eq!(&rows.low[..], &twin.low[..], "{}", isa);
                prop_assert_eq!(&rows.words[..], &twin.words[..], "{}", isa);
                prop_assert_eq!(&rows.isum[..], &twin.isum[..], "{}", isa);
                prop_assert_eq!(&rows.isum32[..], &twin.isum32[..], "{}", isa);
                for (floats, twin) in [
                    (&rows.scale, &twin.scale),
                    (&rows.scale32, &twin.scale32),
                    (&rows.sum, &twin.sum),
                    (&rows.sum32, &twin.sum32),
                ] {
                    prop_assert_eq!(bits_of(floats), bits_of(twin), "{}", isa);
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
