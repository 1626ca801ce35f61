//! Animated GIF and WebP.
//!
//! They are decoded twice: once to count frames and their times, once to take some of them.

use std::borrow::Cow;
use std::io::Cursor;
use std::path::Path;

use image::codecs::gif::GifDecoder;
use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, ImageDecoder, ImageFormat};

use super::{FrameSampling, VideoFrame, gif_frames};
use crate::error::{Error, Result};
use crate::image::{RgbImage, check_size, damaged, damaged_by, decode_image, limits, over_white};
use crate::input;
use crate::limits::{
    MAX_ANIMATION_FILE_BYTES, MAX_ANIMATION_PIXELS, MAX_SENT_ANIMATION_PIXELS, MAX_SOURCE_FRAMES,
};

/// What browsers show a frame for whose delay is 0.
const DEFAULT_DELAY_SECONDS: f64 = 0.1;
/// Bytes that tell the format.
const HEAD_BYTES: u64 = 16;

/// A file that begins as a GIF or WebP.
pub(super) struct Animation<'a> {
    name: String,
    format: ImageFormat,
    bytes: Cow<'a, [u8]>,
    /// Most pixels of all frames together.
    max_pixels: u64,
}

impl Animation<'_> {
    /// `None` for any other format.
    pub(super) fn open(path: &Path) -> Result<Option<Animation<'static>>> {
        use std::io::Read;
        let name = input::display(path);
        let mut head = Vec::new();
        let read = input::open(path)?.take(HEAD_BYTES).read_to_end(&mut head);
        read.map_err(|source| Error::Io {
            action: "read",
            file: name.clone(),
            source,
        })?;
        let Some(format) = format_of(&head) else {
            return Ok(None);
        };
        let bytes = input::read(path, "an animation", MAX_ANIMATION_FILE_BYTES)?;
        Ok(Some(Animation {
            name,
            format,
            bytes: bytes.into(),
            max_pixels: MAX_ANIMATION_PIXELS,
        }))
    }

    /// The same of the bytes of a file that somebody sent.
    pub(super) fn of_bytes<'a>(bytes: &'a [u8], name: &str) -> Option<Animation<'a>> {
        Some(Animation {
            name: name.to_owned(),
            format: format_of(bytes)?,
            bytes: bytes.into(),
            max_pixels: MAX_SENT_ANIMATION_PIXELS,
        })
    }

    pub(super) fn read(
        &self,
        sampling: FrameSampling,
        take: &mut dyn FnMut(VideoFrame) -> Result<()>,
    ) -> Result<()> {
        let senseless = || damaged_by(&self.name, self.format, "its header makes no sense");
        let begins = input::decode_guarded(|| self.begins(), senseless)?;
        let (total, end) = match &begins[..] {
            [.., end] if begins.len() > 1 => (begins.len() - 1, end),
            // A WebP without animation has no frames but itself.
            _ => {
                let image = decode_image(&self.bytes, &self.name)?;
                return take(VideoFrame { image, seconds: 0.0 });
            }
        };
        let wanted = sampling.indices(total, *end);
        let mut frames = self.frames()?;
        let mut next = 0;
        for index in wanted {
            let Some(frame) = frames.nth(index - next) else {
                return Ok(());
            };
            next = index + 1;
            let buffer = frame.map_err(|error| self.damaged(&error))?.into_buffer();
            let (width, height) = buffer.dimensions();
            let rgb = buffer.pixels().flat_map(|pixel| {
                let [r, g, b, alpha] = pixel.0;
                [r, g, b].map(|value| over_white(value, alpha))
            });
            take(VideoFrame {
                image: RgbImage::new(width, height, rgb.collect())?,
                seconds: begins[index],
            })?;
        }
        Ok(())
    }

    /// When each frame begins, in seconds, and at last when the final one ends.
    fn begins(&self) -> Result<Vec<f64>> {
        if self.format == ImageFormat::Gif {
            // Those of a WebP never leave its screen, which is what is counted below.
            let cost = gif_frames::cost(&self.bytes);
            self.check_cost(cost.n_frames, cost.n_pixels)?;
        }
        let mut begins = vec![0.0];
        let mut n_pixels = 0u64;
        for frame in self.frames()? {
            let frame = frame.map_err(|error| self.damaged(&error))?;
            let (numerator, denominator) = frame.delay().numer_denom_ms();
            let delay = f64::from(numerator) / f64::from(denominator.max(1)) / 1000.0;
            let delay = if delay > 0.0 { delay } else { DEFAULT_DELAY_SECONDS };
            begins.push(begins.last().copied().unwrap_or(0.0) + delay);
            n_pixels += u64::from(frame.buffer().width()) * u64::from(frame.buffer().height());
            self.check_cost(begins.len() - 1, n_pixels)?;
        }
        Ok(begins)
    }

    fn check_cost(&self, n_frames: usize, n_pixels: u64) -> Result<()> {
        if n_pixels <= self.max_pixels && n_frames <= MAX_SOURCE_FRAMES {
            return Ok(());
        }
        Err(Error::AnimationTooLarge {
            file: self.name.clone(),
            reason: format!(
                "more than {} million pixels or {MAX_SOURCE_FRAMES} frames",
                self.max_pixels / 1_000_000
            ),
        })
    }

    fn frames(&self) -> Result<image::Frames<'_>> {
        let source = Cursor::new(&self.bytes[..]);
        match self.format {
            ImageFormat::Gif => {
                let mut decoder = GifDecoder::new(source).map_err(|error| self.damaged(&error))?;
                self.check(&mut decoder)?;
                Ok(decoder.into_frames())
            }
            _ => {
                let mut decoder = WebPDecoder::new(source).map_err(|error| self.damaged(&error))?;
                self.check(&mut decoder)?;
                Ok(decoder.into_frames())
            }
        }
    }

    fn check(&self, decoder: &mut impl ImageDecoder) -> Result<()> {
        let (width, height) = decoder.dimensions();
        // Frames are composed as RGBA.
        check_size(
            &self.name,
            width,
            height,
            u64::from(width) * u64::from(height) * 4,
        )?;
        decoder.set_limits(limits()).map_err(|error| self.damaged(&error))
    }

    fn damaged(&self, error: &image::ImageError) -> Error {
        damaged(&self.name, self.format, error)
    }
}

fn format_of(head: &[u8]) -> Option<ImageFormat> {
    let format = image::guess_format(head).ok()?;
    matches!(format, ImageFormat::Gif | ImageFormat::WebP).then_some(format)
}
