//! The reference's resizing, to the bit.
//!
//! torchvision resizes 8-bit images with antialiasing as Pillow does: first along rows, then along columns, with
//! 8-bit values between, and with weights in fixed point. Its weights have 16 bits, with as many of them behind
//! the point as the largest weight of the axis allows; Pillow has 22 behind the point, which gives now and then
//! one level more or less. This is torchvision's way, since that is what transformers uses.
//!
//! For output `i`, with `scale = in / out` and `s = max(scale, 1)`:
//!
//! ```text
//! center  = scale * (i + 0.5)              weight(j) = filter((j - center + 0.5) / s), normalized to sum 1
//! j runs over [center - radius * s, center + radius * s], rounded, inside the image
//! ```

use std::ops::Range;

use super::rgb::RgbImage;

/// How a pixel's surroundings are weighed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    /// A triangle of radius 1.
    Bilinear,
    /// Keys' cubic of radius 2 with a = -0.5.
    Bicubic,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, distance: f64) -> f64 {
        const A: f64 = -0.5;
        let x = distance.abs();
        match self {
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Filter::Bicubic => 0.0,
        }
    }
}

/// `image` with `width` x `height` pixels (both at least 1).
pub(crate) fn resize(image: &RgbImage, width: usize, height: usize, filter: Filter) -> RgbImage {
    let wide;
    let mut current = image;
    if width != image.width() {
        let axis = Axis::new(image.width(), width, filter);
        wide = RgbImage::from_parts(width, image.height(), along_rows(image, &axis));
        current = &wide;
    }
    if height == current.height() {
        return current.clone();
    }
    let axis = Axis::new(current.height(), height, filter);
    RgbImage::from_parts(width, height, along_columns(current, &axis))
}

/// The weights of one direction.
struct Axis {
    /// For each output: the first input, and where its weights are.
    windows: Vec<(usize, Range<usize>)>,
    weights: Vec<i16>,
    /// Bits of a weight behind the point.
    precision: u32,
}

impl Axis {
    fn new(n_in: usize, n_out: usize, filter: Filter) -> Axis {
        let scale = n_in as f64 / n_out as f64;
        let stretch = scale.max(1.0);
        let support = filter.radius() * stretch;
        let mut windows = Vec::with_capacity(n_out);
        let mut exact: Vec<f64> = Vec::new();
        for i in 0..n_out {
            let center = scale * (i as f64 + 0.5);
            // Casts of negative numbers saturate at 0, as the reference's `max(.., 0)`.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(n_in);
            let begin = exact.len();
            exact.extend((first..end).map(|j| filter.weight((j as f64 - center + 0.5) / stretch)));
            let total: f64 = exact[begin..].iter().sum();
            exact[begin..].iter_mut().for_each(|weight| *weight /= total);
            windows.push((first, begin..exact.len()));
        }
        let precision = precision_for(exact.iter().copied().fold(0.0, f64::max));
        let unit = f64::from(1u32 << precision);
        // `round` goes away from zero at one half, as the reference does.
        let weights = exact
            .iter()
            .map(|weight| (weight * unit).round() as i16)
            .collect();
        Axis {
            windows,
            weights,
            precision,
        }
    }

    fn half(&self) -> i32 {
        (1 << self.precision) >> 1
    }

    fn outputs(&self) -> impl Iterator<Item = (usize, &[i16])> {
        let weights = |range: &Range<usize>| &self.weights[range.clone()];
        self.windows
            .iter()
            .map(move |(first, range)| (*first, weights(range)))
    }

    /// The 8-bit value of a sum; sums stay below 2^31, since all weights together are about 2^precision <= 2^22.
    fn level(&self, sum: i32) -> u8 {
        (sum >> self.precision).clamp(0, 255) as u8
    }
}

/// As many bits behind the point as leave the largest weight below 2^15.
fn precision_for(largest: f64) -> u32 {
    (0..22)
        .find(|bits| (0.5 + largest * f64::from(1u32 << (bits + 1))) as i32 >= 1 << 15)
        .unwrap_or(22)
}

fn along_rows(image: &RgbImage, axis: &Axis) -> Vec<u8> {
    let n_out = axis.windows.len();
    let mut pixels = vec![0u8; n_out * image.height() * 3];
    let rows = image.pixels().chunks_exact(image.width() * 3);
    for (row, out) in rows.zip(pixels.chunks_exact_mut(n_out * 3)) {
        for ((first, weights), out) in axis.outputs().zip(out.chunks_exact_mut(3)) {
            let mut sums = [axis.half(); 3];
            let inputs = row[first * 3..].chunks_exact(3);
            for (input, &weight) in inputs.zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(input) {
                    *sum += i32::from(value) * i32::from(weight);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = axis.level(sum);
            }
        }
    }
    pixels
}

fn along_columns(image: &RgbImage, axis: &Axis) -> Vec<u8> {
    let width = image.width() * 3;
    let mut pixels = vec![0u8; width * axis.windows.len()];
    let mut sums = vec![0i32; width];
    for ((first, weights), out) in axis.outputs().zip(pixels.chunks_exact_mut(width)) {
        sums.fill(axis.half());
        let rows = image.pixels()[first * width..].chunks_exact(width);
        for (row, &weight) in rows.zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * i32::from(weight);
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = axis.level(sum);
        }
    }
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: usize, height: usize) -> RgbImage {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        RgbImage::from_parts(width, height, (0..width * height * 3).map(|_| next()).collect())
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let image = noise(7, 5);
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            assert_eq!(resize(&image, 7, 5, filter), image);
        }
    }

    #[test]
    fn one_colour_stays_that_colour() {
        for (width, height, to_width, to_height) in [(1, 1, 48, 96), (301, 7, 16, 64), (65_535, 1, 48, 48)] {
            let image = RgbImage::from_parts(width, height, [13, 255, 0].repeat(width * height));
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let out = resize(&image, to_width, to_height, filter);
                assert!(out.pixels().chunks(3).all(|pixel| pixel == [13, 255, 0]));
            }
        }
    }

    #[test]
    fn weights_sum_to_one_within_their_rounding() {
        for (n_in, n_out) in [(4000, 896), (896, 4000), (3, 2), (1, 5), (65_535, 48)] {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let axis = Axis::new(n_in, n_out, filter);
                let unit = 1i64 << axis.precision;
                for (first, weights) in axis.outputs() {
                    assert!(!weights.is_empty() && first + weights.len() <= n_in);
                    let sum: i64 = weights.iter().map(|weight| i64::from(*weight)).sum();
                    let absolute: i64 = weights.iter().map(|weight| i64::from(*weight).abs()).sum();
                    assert!(
                        (sum - unit).abs() <= weights.len() as i64,
                        "{n_in} {n_out} {filter:?}"
                    );
                    assert!(255 * absolute + unit < 1 << 31);
                }
            }
        }
    }
}
