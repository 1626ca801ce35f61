//! Gemma 3's images: one size for all, the aspect ratio ignored, and on demand crops along the longer side.

use super::resize::{Filter, resize};
use super::rgb::RgbImage;
use crate::content_hash::{ContentHash, Hasher};
use crate::error::{Error, Result};

/// Resizes, crops and normalizes for Gemma 3's vision tower.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gemma3ImageProcessor {
    image_size: usize,
    pan_and_scan: Option<PanAndScan>,
}

/// Crops of elongated images, each seen in full resolution beside the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PanAndScan {
    /// No crop's side is smaller, in pixels.
    pub min_crop_size: usize,
    /// Most crops of an image.
    pub max_crops: usize,
    /// Images whose longer side is less than this times the shorter are not cropped.
    pub min_ratio: f64,
}

impl Default for PanAndScan {
    /// The published values: crops of at least 256 pixels, at most 4, from a ratio of 1.2 on.
    fn default() -> PanAndScan {
        PanAndScan {
            min_crop_size: 256,
            max_crops: 4,
            min_ratio: 1.2,
        }
    }
}

/// One image, and its crops, as the tower takes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemma3Images {
    /// `[1 + n_crops, 3, image_size, image_size]`, in -1 ..= 1; the whole image first.
    pub pixel_values: Vec<f32>,
    /// Crops behind the whole image.
    pub n_crops: usize,
    /// Width and height of each.
    pub image_size: usize,
    /// One for the image and each crop.
    pub content_hashes: Vec<ContentHash>,
}

impl Gemma3ImageProcessor {
    /// Sides that make sense, in pixels.
    const SIZES: (usize, usize) = (1, 4096);

    /// For a tower whose input is `image_size` x `image_size` (896 for all published models).
    ///
    /// # Errors
    /// [`Error::Setting`] for a size of 0 or above 4096.
    pub fn new(image_size: usize, pan_and_scan: Option<PanAndScan>) -> Result<Gemma3ImageProcessor> {
        let (min, max) = Gemma3ImageProcessor::SIZES;
        if !(min..=max).contains(&image_size) {
            return Err(Error::Setting {
                setting: "image_size",
                value: image_size,
                min,
                max,
            });
        }
        Ok(Gemma3ImageProcessor {
            image_size,
            pan_and_scan,
        })
    }

    /// The image, and its crops where pan-and-scan is on and the image is elongated enough.
    #[must_use]
    pub fn process(&self, image: &RgbImage) -> Gemma3Images {
        let crops = self
            .pan_and_scan
            .map_or(Vec::new(), |settings| crops(image, settings));
        let size = self.image_size;
        let mut pixel_values = Vec::with_capacity((1 + crops.len()) * 3 * size * size);
        let mut content_hashes = Vec::with_capacity(1 + crops.len());
        for part in std::iter::once(image).chain(&crops) {
            let part = resize(part, size, size, Filter::Bilinear);
            let mut hasher = Hasher::new("gemma3 image", &[size]);
            hasher.bytes(part.pixels());
            content_hashes.push(hasher.finish());
            for channel in 0..3 {
                let values = part.pixels().iter().skip(channel).step_by(3);
                pixel_values.extend(values.map(|value| (f32::from(*value) - 127.5) / 127.5));
            }
        }
        Gemma3Images {
            pixel_values,
            n_crops: crops.len(),
            image_size: size,
            content_hashes,
        }
    }
}

/// Equal parts along the longer side, none if the image is not elongated or the parts would be too small.
fn crops(image: &RgbImage, settings: PanAndScan) -> Vec<RgbImage> {
    let (width, height) = (image.width(), image.height());
    let (long, short) = (width.max(height), width.min(height));
    let ratio = long as f64 / short as f64;
    if ratio < settings.min_ratio {
        return Vec::new();
    }
    let fitting = long / settings.min_crop_size.max(1);
    let n = ((ratio + 0.5).floor() as usize)
        .min(fitting)
        .max(2)
        .min(settings.max_crops.max(1));
    let part = long.div_ceil(n);
    if part.min(short) < settings.min_crop_size {
        return Vec::new();
    }
    // Rounding up can leave nothing for the last part of a very small image.
    let starts = (0..n).map(|i| i * part).filter(|start| *start < long);
    if width >= height {
        starts.map(|x| image.crop(x, 0, part, height)).collect()
    } else {
        starts.map(|y| image.crop(0, y, width, part)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crop_sizes(width: usize, height: usize) -> Vec<(usize, usize)> {
        let image = RgbImage::from_parts(width, height, vec![0; width * height * 3]);
        let crops = crops(&image, PanAndScan::default());
        crops.iter().map(|crop| (crop.width(), crop.height())).collect()
    }

    #[test]
    fn crops_lie_along_the_longer_side() {
        assert_eq!(crop_sizes(600, 512), []);
        assert_eq!(crop_sizes(640, 480), [(320, 480); 2]);
        assert_eq!(crop_sizes(480, 640), [(480, 320); 2]);
        assert_eq!(
            crop_sizes(1201, 300),
            [(301, 300), (301, 300), (301, 300), (298, 300)]
        );
        assert_eq!(crop_sizes(3000, 300), [(750, 300); 4]);
        assert_eq!(crop_sizes(3000, 255), [], "parts would be smaller than 256");
        assert_eq!(crop_sizes(500, 256), [], "two parts of 250");
    }

    #[test]
    fn sizes_of_settings_are_checked() {
        assert!(Gemma3ImageProcessor::new(0, None).is_err());
        assert!(Gemma3ImageProcessor::new(4097, None).is_err());
    }
}
