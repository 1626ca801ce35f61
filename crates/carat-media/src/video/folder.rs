//! A folder of images as a video.

use std::fs;
use std::path::{Path, PathBuf};

use super::{FrameSampling, VideoFrame};
use crate::error::{Error, Result};
use crate::image::read_image;
use crate::input;
use crate::limits::MAX_SOURCE_FRAMES;

/// What the reference assumes where it knows no rate.
const FRAMES_PER_SECOND: f64 = 24.0;

/// Names that count as frames; everything else in the folder is left alone.
const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

pub(super) fn read(
    folder: &Path,
    sampling: FrameSampling,
    take: &mut dyn FnMut(VideoFrame) -> Result<()>,
) -> Result<()> {
    let files = frames(folder)?;
    let seconds = files.len() as f64 / FRAMES_PER_SECOND;
    for index in sampling.indices(files.len(), seconds) {
        let image = read_image(&files[index])?;
        let seconds = index as f64 / FRAMES_PER_SECOND;
        take(VideoFrame { image, seconds })?;
    }
    Ok(())
}

/// The image files of a folder, in the order of their names, numbers in them by their value.
fn frames(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::Io {
        action: "list",
        file: input::display(folder),
        source,
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        let known =
            extension.is_some_and(|extension| EXTENSIONS.iter().any(|e| extension.eq_ignore_ascii_case(e)));
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if known && !hidden && path.is_file() {
            files.push(path);
        }
        if files.len() > MAX_SOURCE_FRAMES {
            return Err(Error::AnimationTooLarge {
                file: input::display(folder),
                reason: format!("more than {MAX_SOURCE_FRAMES} images"),
            });
        }
    }
    files.sort_by_cached_key(|path| natural_key(&path.to_string_lossy()));
    Ok(files)
}

/// A key by which `frame2` comes before `frame10`: runs of digits by length, then by value.
fn natural_key(name: &str) -> Vec<(usize, String)> {
    let mut parts: Vec<(usize, String)> = Vec::new();
    let mut in_number = false;
    for c in name.chars() {
        let digit = c.is_ascii_digit();
        if parts.is_empty() || digit != in_number {
            parts.push((0, String::new()));
        }
        in_number = digit;
        if let Some((length, text)) = parts.last_mut() {
            // Leading zeros do not count.
            if !(digit && c == '0' && text.is_empty()) {
                text.push(c);
                *length += usize::from(digit);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_sort_by_value() {
        let mut names = ["f10.png", "f9.png", "f010b.png", "f1.png", "e.png", "f002.png"];
        names.sort_by_cached_key(|name| natural_key(name));
        assert_eq!(
            names,
            ["e.png", "f1.png", "f002.png", "f9.png", "f10.png", "f010b.png"]
        );
    }
}
