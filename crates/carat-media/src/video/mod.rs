//! Videos: a few frames, evenly spread, each an image with its time.
//!
//! A folder of images and an animated GIF or WebP are read here; everything else by the `ffmpeg` of the machine.
//! Frames are handed on one by one, so that a long or large video never lies in memory.

mod animation;
mod command;
mod ffmpeg;
mod folder;
mod gif_frames;
mod sampling;

use std::path::Path;

use crate::error::{Error, Result};
use crate::image::RgbImage;
use crate::input;
use animation::Animation;

pub use ffmpeg::VideoTools;
pub use sampling::FrameSampling;

/// A frame that was taken from a video.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoFrame {
    /// The picture, in the video's own size.
    pub image: RgbImage,
    /// When it is shown, from the begin of the video.
    pub seconds: f64,
}

/// Takes frames from the video at `path`, in order, and gives each to `take`; returns how many there were.
///
/// `tools` are needed for anything but folders, animated GIF and animated WebP. A folder's images are its frames in
/// the order of their names, 24 a second as the reference assumes.
///
/// # Errors
/// [`Error::NoVideoTools`], [`Error::VideoTool`], [`Error::VideoTimeout`], [`Error::NoFrames`],
/// [`Error::AnimationTooLarge`], those of [`read_image`](crate::read_image), and what `take` returns.
pub fn read_video(
    path: &Path,
    sampling: FrameSampling,
    tools: Option<&VideoTools>,
    take: &mut dyn FnMut(VideoFrame) -> Result<()>,
) -> Result<usize> {
    let name = input::display(path);
    counted(&name, take, |take| {
        if path.is_dir() {
            folder::read(path, sampling, take)
        } else if let Some(animation) = Animation::open(path)? {
            animation.read(sampling, take)
        } else {
            ffmpeg::read(path, sampling, needed(tools, &name)?, take)
        }
    })
}

/// The same for the bytes of a file that somebody sent, which errors call `name`. ffmpeg is told to be warier of it.
///
/// # Errors
/// As [`read_video`].
pub fn decode_video(
    bytes: &[u8],
    name: &str,
    sampling: FrameSampling,
    tools: Option<&VideoTools>,
    take: &mut dyn FnMut(VideoFrame) -> Result<()>,
) -> Result<usize> {
    counted(name, take, |take| match Animation::of_bytes(bytes, name) {
        Some(animation) => animation.read(sampling, take),
        None => ffmpeg::decode(bytes, name, sampling, needed(tools, name)?, take),
    })
}

/// Frames on their way to their taker.
type Take<'a> = dyn FnMut(VideoFrame) -> Result<()> + 'a;

/// Counts the frames that `read` gives; none is an error.
fn counted(name: &str, take: &mut Take<'_>, read: impl FnOnce(&mut Take<'_>) -> Result<()>) -> Result<usize> {
    let mut n_taken = 0;
    read(&mut |frame| {
        n_taken += 1;
        take(frame)
    })?;
    if n_taken == 0 {
        return Err(Error::NoFrames {
            file: name.to_owned(),
        });
    }
    Ok(n_taken)
}

fn needed<'a>(tools: Option<&'a VideoTools>, name: &str) -> Result<&'a VideoTools> {
    tools.ok_or_else(|| Error::NoVideoTools {
        file: name.to_owned(),
        missing: "ffmpeg or ffprobe",
    })
}
