//! Numbers rounded to 16-bit integers and their scales, so that no sum of [`crate::integer_gemm`] overflows.
//!
//! The integers of a block are as large as its length as a vector allows: by Cauchy and Schwarz the product of two
//! vectors is at most that of their lengths, and so is that of any parts of them. A few large numbers so cost the small
//! ones less than they would if the largest had to be so small that a block of nothing else could not overflow. An element
//! errs by 2^-13 of the root mean square of its block, or 2^-16 of its largest, whichever is more.

use crate::Isa;
use crate::integer_gemm::{BLOCK, LARGEST};
use crate::simd::{Simd, dispatch};

/// Length that the integers of a block may have: with what rounding adds, less than the root of 2^31.
const LONGEST: f32 = 46_300.0;
/// The largest number of 16 bits.
pub(crate) const HIGHEST: f32 = 32_767.0;
/// A number so large that the last bit of its mantissa is 1: what is added to it is rounded to a whole number, ties to even,
/// whose last 16 bits are those of the sum.
pub(crate) const WHOLE: f32 = 12_582_912.0;
/// Below it the reciprocal is infinite.
pub(crate) const SMALLEST: f32 = 1e-30;
/// Numbers that are looked at together.
const WIDTH: usize = 16;

/// What decides on the scale of some blocks.
#[derive(Clone, Copy, Default)]
pub(crate) struct Size {
    /// Bits of the largest number.
    pub(crate) most: u32,
    /// The largest sum of squares of a block.
    pub(crate) squares: f32,
}

/// The bits of a number without its sign, which are ordered as numbers are, with NaN above infinity.
#[inline(always)]
pub(crate) fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The integer nearest to `x`, as two's complement.
#[inline(always)]
pub(crate) fn integer(x: f32) -> u16 {
    (x + WHOLE).to_bits() as u16
}

/// What numbers are multiplied with to be integers up to `largest`, and integers to be the numbers.
#[inline(always)]
pub(crate) fn factors(most: u32, largest: f32) -> (f32, f32) {
    let most = f32::from_bits(most);
    if most < SMALLEST {
        (0.0, 0.0)
    } else {
        (largest / most, most / largest)
    }
}

impl Size {
    #[inline(always)]
    fn of(block: &[f32]) -> Size {
        let (mut most, mut squares) = ([0; WIDTH], [0.0; WIDTH]);
        let chunks = block.chunks_exact(WIDTH);
        let rest = chunks.remainder();
        for chunk in chunks {
            for ((x, most), squares) in chunk.iter().zip(&mut most).zip(&mut squares) {
                *most = magnitude(*x).max(*most);
                *squares += x * x;
            }
        }
        for ((x, most), squares) in rest.iter().zip(&mut most).zip(&mut squares) {
            *most = magnitude(*x).max(*most);
            *squares += x * x;
        }
        Size {
            most: most.into_iter().fold(0, u32::max),
            squares: squares.into_iter().sum(),
        }
    }

    /// Of the blocks of both.
    #[inline(always)]
    fn and(self, other: Size) -> Size {
        Size {
            most: self.most.max(other.most),
            squares: self.squares.max(other.squares),
        }
    }

    /// As [`factors`], for integers as large as their length allows.
    #[inline(always)]
    pub(crate) fn factors(self) -> (f32, f32) {
        let most = f32::from_bits(self.most);
        // Squares of others are infinite or nothing.
        let largest = if (1e-15..1e15).contains(&most) {
            (most * LONGEST / self.squares.sqrt()).min(HIGHEST)
        } else {
            LARGEST as f32
        };
        factors(self.most, largest)
    }
}

/// Rounds a row to integers and the scales of its blocks: `to` is as long as [`row_len`] says, the pairs first. Where a
/// number is not finite the scale is not, and the integers' product with it is NaN.
///
/// [`row_len`]: crate::integer_gemm::row_len
pub(crate) fn round_blocks(isa: Isa, row: &[f32], to: &mut [u32]) {
    let half = row.len().div_ceil(2);
    let (pairs, scales) = to.split_at_mut(half);
    let integers = bytemuck::cast_slice_mut::<u32, u16>(pairs);
    integers[row.len()..].fill(0);
    blocks(isa, row, &mut integers[..row.len()], scales);
}

/// As [`round_blocks`], with one scale for the whole row, which is returned; `to[i]` is the integer of `row[i]`.
pub(crate) fn round_row(isa: Isa, row: &[f32], to: &mut [u16]) -> f32 {
    assert_eq!(row.len(), to.len(), "as many numbers as places");
    whole(isa, row, to)
}

/// As [`round_row`], with integers up to `largest`.
pub(crate) fn round_to(isa: Isa, row: &[f32], largest: i32, to: &mut [u16]) -> f32 {
    assert_eq!(row.len(), to.len(), "as many numbers as places");
    by_largest(isa, row, largest as f32, to)
}

dispatch! {
    fn blocks(row: &[f32], to: &mut [u16], scales: &mut [u32]) = blocks_generic;
}
dispatch! {
    fn whole(row: &[f32], to: &mut [u16]) -> f32 = whole_generic;
}
dispatch! {
    fn by_largest(row: &[f32], largest: f32, to: &mut [u16]) -> f32 = by_largest_generic;
}

/// LLVM makes vectors of the loops, here and below.
#[inline(always)]
fn blocks_generic<S: Simd>(_: S, row: &[f32], to: &mut [u16], scales: &mut [u32]) {
    let blocks = row.chunks(2 * BLOCK).zip(to.chunks_mut(2 * BLOCK));
    for ((from, to), scale) in blocks.zip(scales) {
        let (inverse, of_block) = Size::of(from).factors();
        convert(from, inverse, to);
        *scale = of_block.to_bits();
    }
}

#[inline(always)]
fn whole_generic<S: Simd>(_: S, row: &[f32], to: &mut [u16]) -> f32 {
    let blocks = row.chunks(2 * BLOCK);
    let size = blocks.fold(Size::default(), |size, block| size.and(Size::of(block)));
    let (inverse, scale) = size.factors();
    convert(row, inverse, to);
    scale
}

#[inline(always)]
fn by_largest_generic<S: Simd>(_: S, row: &[f32], largest: f32, to: &mut [u16]) -> f32 {
    let most = row.iter().fold(0, |most: u32, x| most.max(magnitude(*x)));
    let (inverse, scale) = factors(most, largest);
    convert(row, inverse, to);
    scale
}

#[inline(always)]
fn convert(from: &[f32], inverse: f32, to: &mut [u16]) {
    for (x, to) in from.iter().zip(to) {
        *to = integer(x * inverse);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integer_gemm::row_len;
    use proptest::prelude::*;

    /// Whether integers are the nearest, and their blocks short enough; the error is relative to the scale.
    fn check(row: &[f32], integers: &[u16], scales: &[f32]) -> Result<(), TestCaseError> {
        let blocks = row.chunks(2 * BLOCK).zip(integers.chunks(2 * BLOCK));
        for ((row, integers), scale) in blocks.zip(scales) {
            let mut squares = 0;
            for (x, integer) in row.iter().zip(integers) {
                let integer = *integer as i16;
                squares += i64::from(integer).pow(2);
                let error = f64::from(integer) * f64::from(*scale) - f64::from(*x);
                prop_assert!(error.abs() <= 0.505 * f64::from(*scale), "{x}: {integer}");
            }
            prop_assert!(squares <= i64::from(i32::MAX), "{squares}");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn integers_are_the_nearest_and_sums_of_their_products_fit(
            mut x in prop::collection::vec(-1.0f32..1.0, 1..400), exponent in -90i32..90,
            outlier in 0usize..300, factor in 1.0f32..1000.0, is_even: bool,
        ) {
            if is_even {
                // The longest vectors there are for their largest number.
                x.iter_mut().for_each(|x| *x = x.signum());
            }
            if let Some(x) = x.get_mut(outlier) {
                *x *= factor;
            }
            x.iter_mut().for_each(|x| *x *= 2f32.powi(exponent));
            let most = x.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            for isa in Isa::available() {
                let mut to = vec![7; row_len(x.len())];
                round_blocks(isa, &x, &mut to);
                let (pairs, scales) = to.split_at(x.len().div_ceil(2));
                let scales: Vec<f32> = scales.iter().map(|bits| f32::from_bits(*bits)).collect();
                check(&x, &bytemuck::cast_slice(pairs)[..x.len()], &scales)?;
                let mut to = vec![7; x.len()];
                let scale = round_row(isa, &x, &mut to);
                check(&x, &to, &vec![scale; scales.len()])?;
                // Never coarser than if nothing but the largest were known.
                prop_assert!(scale <= most / (LARGEST as f32 - 5.0), "{isa}");
                prop_assert_eq!(round_to(isa, &x, LARGEST, &mut to), most / LARGEST as f32);
                check(&x, &to, &vec![most / LARGEST as f32; scales.len()])?;
            }
        }
    }

    #[test]
    fn one_large_number_leaves_the_others_their_digits() {
        let mut x = [1.0; 2 * BLOCK];
        x[3] = 10.0;
        for isa in Isa::available() {
            let mut to = [0; 2 * BLOCK];
            let scale = round_row(isa, &x, &mut to);
            let by_length = (100.0f32 + 127.0).sqrt() / LONGEST;
            assert!(
                (scale / by_length - 1.0).abs() < 1e-5,
                "{isa}: {scale} {by_length}"
            );
            assert!(scale < 0.14 * 10.0 / LARGEST as f32, "{isa}: {scale}");
        }
    }

    #[test]
    fn tiny_numbers_count_as_zeros() {
        for isa in Isa::available() {
            let mut to = [7; 3];
            assert_eq!(round_row(isa, &[1e-38, -1e-32, 0.0], &mut to), 0.0);
            assert_eq!(to, [0; 3]);
        }
    }
}
