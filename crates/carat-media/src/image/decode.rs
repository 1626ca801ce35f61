//! Bytes to RGB pixels.
//!
//! The format is told by the first bytes, never by the name. Width and height are checked before anything is
//! decoded. As in the reference's processors, transparency becomes white and 16-bit channels keep their high byte;
//! as in its loader, EXIF's orientation is applied and colour profiles are not. Two things are not as there. The
//! loader, by which the reference reads paths and addresses, drops the alpha channel before the processors see it:
//! what is under transparent pixels, black as a rule, would show, and black writing on it vanish. And of greys of 16
//! bits the reference makes white wherever they are above 255 of 65,535: a scan or an X-ray would be a blank sheet.

use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::rgb::RgbImage;
use super::{jpeg_end, webp_chunks};
use crate::error::{Error, Result};
use crate::input;
use crate::limits::{MAX_DECODED_IMAGE_BYTES, MAX_IMAGE_FILE_BYTES, MAX_IMAGE_PIXELS, MAX_IMAGE_SIDE};

/// Reads an image file: PNG, JPEG, WebP, GIF (its first frame), BMP or TIFF.
///
/// # Errors
/// As [`decode_image`]; [`Error::Io`] and [`Error::FileTooLarge`] for the file itself.
pub fn read_image(path: &Path) -> Result<RgbImage> {
    let bytes = input::read(path, "an image", MAX_IMAGE_FILE_BYTES)?;
    decode_image(&bytes, &input::display(path))
}

/// Decodes the bytes of an image file; `name` is what errors call it.
///
/// # Errors
/// [`Error::NotAnImage`], [`Error::Unsupported`], [`Error::ImageTooLarge`], [`Error::ImageDamaged`].
pub fn decode_image(bytes: &[u8], name: &str) -> Result<RgbImage> {
    let format = recognize(bytes, name)?;
    let damaged = || damaged_by(name, format, "its header makes no sense");
    input::decode_guarded(|| decode(bytes, name, format), damaged)
}

fn decode(bytes: &[u8], name: &str, format: ImageFormat) -> Result<RgbImage> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits());
    let failed = |error: image::ImageError| damaged(name, format, &error);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, decoder.total_bytes())?;
    if format == ImageFormat::Jpeg && !jpeg_end::has_end(bytes) {
        return Err(damaged_by(name, format, "the end marker is missing"));
    }
    // Before the orientation is asked for, which lies in a chunk of its own.
    if format == ImageFormat::WebP && !webp_chunks::are_whole(bytes) {
        return Err(damaged_by(name, format, "a chunk ends behind the file"));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let decoded = DynamicImage::from_decoder(decoder).map_err(failed)?;
    let rgb = into_rgb(decoded, name)?;
    Ok(turned(rgb, orientation))
}

/// What the decoders may allocate beside the pixels.
pub(crate) fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODED_IMAGE_BYTES);
    limits
}

/// Refuses sizes beyond the limits; `decoded_bytes` is what the pixels take in the file's own depth.
pub(crate) fn check_size(name: &str, width: u32, height: u32, decoded_bytes: u64) -> Result<()> {
    let n_pixels = u64::from(width) * u64::from(height);
    if width > MAX_IMAGE_SIDE
        || height > MAX_IMAGE_SIDE
        || n_pixels > MAX_IMAGE_PIXELS
        || decoded_bytes > MAX_DECODED_IMAGE_BYTES
    {
        return Err(Error::ImageTooLarge {
            file: name.to_owned(),
            width,
            height,
        });
    }
    Ok(())
}

/// The decoder's reason, as one line.
pub(crate) fn damaged(name: &str, format: ImageFormat, error: &image::ImageError) -> Error {
    damaged_by(name, format, &error.to_string().replace('\n', " "))
}

pub(crate) fn damaged_by(name: &str, format: ImageFormat, reason: &str) -> Error {
    let format = match format {
        ImageFormat::WebP => "WebP".to_owned(),
        other => other.extensions_str().first().unwrap_or(&"image").to_uppercase(),
    };
    let format = match format.as_str() {
        "JPG" => "JPEG".to_owned(),
        "TIF" => "TIFF".to_owned(),
        _ => format,
    };
    Error::ImageDamaged {
        file: name.to_owned(),
        format,
        reason: reason.to_owned(),
    }
}

fn recognize(bytes: &[u8], name: &str) -> Result<ImageFormat> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    match image::guess_format(bytes) {
        Ok(format @ (Png | Jpeg | WebP | Gif | Bmp | Tiff)) => Ok(format),
        _ => match foreign_format(bytes) {
            Some(format) => Err(Error::Unsupported {
                file: name.to_owned(),
                format,
                convert_to: "JPEG or PNG",
            }),
            None => Err(Error::NotAnImage {
                file: name.to_owned(),
            }),
        },
    }
}

/// Images that people have and that no library here decodes.
fn foreign_format(bytes: &[u8]) -> Option<&'static str> {
    const HEIF_BRANDS: [&[u8; 4]; 9] = [
        b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis",
    ];
    let text = bytes.trim_ascii_start();
    if bytes.get(4..8) == Some(b"ftyp") {
        let brand = bytes.get(8..12)?;
        return HEIF_BRANDS
            .iter()
            .any(|known| brand == known.as_slice())
            .then_some("a HEIC or AVIF image");
    }
    if bytes.starts_with(b"%PDF-") {
        return Some("a PDF document");
    }
    (text.starts_with(b"<svg") || text.starts_with(b"<?xml")).then_some("an SVG or another XML file")
}

fn into_rgb(image: DynamicImage, name: &str) -> Result<RgbImage> {
    let (width, height) = (image.width(), image.height());
    let pixels = match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => image.as_raw().iter().flat_map(|grey| [*grey; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => grey_alpha(image.as_raw().iter().copied()),
        DynamicImage::ImageRgba8(image) => rgba(image.as_raw().iter().copied()),
        DynamicImage::ImageLuma16(image) => image.as_raw().iter().flat_map(|grey| [high(grey); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => grey_alpha(image.as_raw().iter().map(high)),
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(high).collect(),
        DynamicImage::ImageRgba16(image) => rgba(image.as_raw().iter().map(high)),
        DynamicImage::ImageRgba32F(image) => rgba(image.as_raw().iter().map(unit)),
        DynamicImage::ImageRgb32F(image) => image.as_raw().iter().map(unit).collect(),
        other => other.to_rgb8().into_raw(),
    };
    RgbImage::new(width, height, pixels).map_err(|error| match error {
        Error::PixelCount { .. } => Error::NotAnImage {
            file: name.to_owned(),
        },
        other => other,
    })
}

fn high(value: &u16) -> u8 {
    value.to_be_bytes()[0]
}

fn unit(value: &f32) -> u8 {
    (value.clamp(0.0, 1.0) * 255.0).round() as u8
}

fn grey_alpha(values: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut values = values;
    let mut pixels = Vec::with_capacity(values.size_hint().0 / 2 * 3);
    while let (Some(grey), Some(alpha)) = (values.next(), values.next()) {
        pixels.extend([over_white(grey, alpha); 3]);
    }
    pixels
}

fn rgba(values: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut values = values;
    let mut pixels = Vec::with_capacity(values.size_hint().0 / 4 * 3);
    while let (Some(r), Some(g), Some(b), Some(alpha)) =
        (values.next(), values.next(), values.next(), values.next())
    {
        pixels.extend([r, g, b].map(|value| over_white(value, alpha)));
    }
    pixels
}

/// `value` of opacity `alpha` on a white ground, rounded as Pillow's `alpha_composite` does.
pub(crate) fn over_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let sum = value * alpha + 255 * (255 - alpha) + 128;
    (((sum >> 8) + sum) >> 8) as u8
}

fn turned(rgb: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return rgb;
    }
    let (width, height) = (rgb.width() as u32, rgb.height() as u32);
    let Some(buffer) = image::RgbImage::from_raw(width, height, rgb.pixels().to_vec()) else {
        return rgb;
    };
    let mut image = DynamicImage::ImageRgb8(buffer);
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    RgbImage::from_parts(width, height, image.into_rgb8().into_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opaque_stays_and_transparent_is_white() {
        for value in [0, 1, 127, 254, 255] {
            assert_eq!(over_white(value, 255), value);
            assert_eq!(over_white(value, 0), 255);
        }
        assert_eq!(over_white(0, 128), 127);
    }

    #[test]
    fn formats_that_are_not_read_are_named() {
        let message = |bytes: &[u8]| decode_image(bytes, "x").unwrap_err().to_string();
        assert_eq!(
            message(b"\0\0\0\x18ftypheic\0\0\0\0"),
            "`x` is a HEIC or AVIF image, which is not read; convert it to JPEG or PNG"
        );
        assert!(message(b"\0\0\0\x18ftypavif\0\0\0\0").contains("AVIF"));
        assert!(message(b"%PDF-1.7").contains("PDF"));
        assert!(message(b" <svg xmlns=").contains("SVG"));
        let not_an_image =
            "`x` is not an image that can be read; give a PNG, JPEG, WebP, GIF, BMP or TIFF file";
        for bytes in [
            &b""[..],
            b"hello",
            b"\0\0\0\x18ftypisom",
            b"ftyp",
            b"\0\0\0\0ftyp",
        ] {
            assert_eq!(message(bytes), not_an_image);
        }
    }
}
