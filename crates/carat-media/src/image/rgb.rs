//! A picture in memory.

use crate::error::{Error, Result};
use crate::limits;

/// 8-bit RGB pixels, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl RgbImage {
    /// `pixels` is `[height, width, 3]`.
    ///
    /// # Errors
    /// [`Error::PixelCount`] when the length does not agree or the image is empty, [`Error::ImageTooLarge`] for
    /// sides beyond the limits.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<RgbImage> {
        if width > limits::MAX_IMAGE_SIDE || height > limits::MAX_IMAGE_SIDE {
            return Err(Error::ImageTooLarge {
                file: "an image in memory".into(),
                width,
                height,
            });
        }
        let expected = u64::from(width) * u64::from(height) * 3;
        if expected == 0 || expected != pixels.len() as u64 {
            return Err(Error::PixelCount {
                width,
                height,
                found: pixels.len(),
            });
        }
        Ok(RgbImage {
            width,
            height,
            pixels,
        })
    }

    /// For sizes that this crate computed itself.
    pub(crate) fn from_parts(width: usize, height: usize, pixels: Vec<u8>) -> RgbImage {
        debug_assert_eq!(width * height * 3, pixels.len());
        RgbImage {
            width: width as u32,
            height: height as u32,
            pixels,
        }
    }

    /// Width in pixels, at least 1.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width as usize
    }

    /// Height in pixels, at least 1.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height as usize
    }

    /// The pixels, `[height, width, 3]`.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The part that begins at (`x`, `y`); it ends at the image's edge if it would reach beyond.
    pub(crate) fn crop(&self, x: usize, y: usize, width: usize, height: usize) -> RgbImage {
        let width = width.min(self.width() - x);
        let height = height.min(self.height() - y);
        let rows = self.pixels.chunks_exact(self.width() * 3).skip(y).take(height);
        let pixels = rows.flat_map(|row| &row[x * 3..][..width * 3]).copied().collect();
        RgbImage::from_parts(width, height, pixels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_pixels_must_agree() {
        assert!(RgbImage::new(2, 1, vec![0; 6]).is_ok());
        for (width, height, n) in [
            (2, 1, 5),
            (0, 1, 0),
            (u32::MAX, u32::MAX, 3),
            (1, 65_536, 3 * 65_536),
        ] {
            assert!(RgbImage::new(width, height, vec![0; n]).is_err());
        }
    }

    #[test]
    fn a_crop_ends_at_the_edge() {
        let image = RgbImage::new(3, 2, (0..18).collect()).unwrap();
        let crop = image.crop(2, 0, 2, 2);
        assert_eq!((crop.width(), crop.height()), (1, 2));
        assert_eq!(crop.pixels(), [6, 7, 8, 15, 16, 17]);
    }
}
