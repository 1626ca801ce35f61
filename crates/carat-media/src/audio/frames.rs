//! Raw frames: what Gemma 4 12B hears.

use super::Clip;
use crate::error::{Error, Result};

/// A clip in rows of samples, each of them one soft token.
#[derive(Clone, Debug, PartialEq)]
pub struct RawFrames {
    /// `[n_soft_tokens, frame_len]`; the last row is filled up with zeros.
    pub values: Vec<f32>,
    /// Samples of a row.
    pub frame_len: usize,
    /// Rows.
    pub n_soft_tokens: usize,
}

impl RawFrames {
    /// Samples of a frame in the published model: 40 ms.
    pub const PUBLISHED_LEN: usize = 640;

    /// Cuts a clip into frames of `frame_len` samples.
    ///
    /// # Errors
    /// [`Error::Setting`] for a length of 0 or above 16,000.
    pub fn new(clip: &Clip, frame_len: usize) -> Result<RawFrames> {
        const MAX_LEN: usize = 16_000;
        if !(1..=MAX_LEN).contains(&frame_len) {
            return Err(Error::Setting {
                setting: "audio_samples_per_token",
                value: frame_len,
                min: 1,
                max: MAX_LEN,
            });
        }
        let n_soft_tokens = clip.samples().len().div_ceil(frame_len);
        let mut values = clip.samples().to_vec();
        values.resize(n_soft_tokens * frame_len, 0.0);
        Ok(RawFrames {
            values,
            frame_len,
            n_soft_tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_frame_is_filled_up() {
        let clip = Clip::new(vec![0.5; 641], 16_000, "a").unwrap();
        let frames = RawFrames::new(&clip, 640).unwrap();
        assert_eq!((frames.n_soft_tokens, frames.values.len()), (2, 1280));
        assert_eq!(frames.values[639..643], [0.5, 0.5, 0.0, 0.0]);
        assert!(RawFrames::new(&clip, 0).is_err());
    }

    #[test]
    fn the_longest_clip_has_750_frames() {
        let clip = Clip::new(vec![0.5; 480_100], 16_000, "a").unwrap();
        let frames = RawFrames::new(&clip, RawFrames::PUBLISHED_LEN).unwrap();
        assert_eq!(frames.n_soft_tokens, crate::limits::MAX_AUDIO_TOKENS);
    }
}
