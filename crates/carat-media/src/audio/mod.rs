//! Sound: decoding to mono at 16 kHz, and the features that the models take.

mod decode;
mod fft;
mod frames;
mod mel;
mod mp4_lead;
mod resample;

use crate::content_hash::{ContentHash, Hasher};
use crate::error::{Error, Result};
use crate::limits::{AUDIO_PADDING_MS, MAX_AUDIO_SECONDS, MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ};

pub use decode::{decode_audio, read_audio};
pub use frames::RawFrames;
pub use mel::MelFeatures;

/// The rate that the models hear at, in hertz.
pub const SAMPLE_RATE_HZ: u32 = 16_000;

/// Most samples of a clip.
const MAX_SAMPLES: usize = SAMPLE_RATE_HZ as usize * MAX_AUDIO_SECONDS as usize;

/// A sound of at most 30 seconds: mono, 16 kHz, nominally in -1 ..= 1; never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    samples: Vec<f32>,
}

impl Clip {
    /// From mono samples at `rate_hz`; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::AudioEmpty`], [`Error::AudioTooLong`], [`Error::AudioNotFinite`], [`Error::SampleRate`].
    pub fn new(samples: Vec<f32>, rate_hz: u32, name: &str) -> Result<Clip> {
        let file = || name.to_owned();
        if !(MIN_SAMPLE_RATE_HZ..=MAX_SAMPLE_RATE_HZ).contains(&rate_hz) {
            return Err(Error::SampleRate {
                file: file(),
                rate_hz,
            });
        }
        if samples.is_empty() {
            return Err(Error::AudioEmpty { file: file() });
        }
        if samples.len() > max_samples_at(rate_hz) {
            let seconds = Some(samples.len() as f64 / f64::from(rate_hz));
            return Err(Error::AudioTooLong {
                file: file(),
                seconds,
            });
        }
        if let Some(index) = samples.iter().position(|sample| !sample.is_finite()) {
            return Err(Error::AudioNotFinite { file: file(), index });
        }
        let mut samples = if rate_hz == SAMPLE_RATE_HZ {
            samples
        } else {
            resample::resample(&samples, rate_hz, SAMPLE_RATE_HZ)
        };
        samples.truncate(MAX_SAMPLES);
        Ok(Clip { samples })
    }

    /// The samples, at 16 kHz.
    #[must_use]
    pub fn samples(&self) -> &[f32] {
        &self.samples
    }

    /// Length in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.samples.len() as f64 / f64::from(SAMPLE_RATE_HZ)
    }

    /// What tells this clip from others.
    #[must_use]
    pub fn content_hash(&self) -> ContentHash {
        let mut hasher = Hasher::new("audio", &[self.samples.len()]);
        hasher.samples(&self.samples);
        hasher.finish()
    }
}

/// Most samples of a clip at another rate, what encoders pad included.
fn max_samples_at(rate_hz: u32) -> usize {
    let milliseconds = u64::from(MAX_AUDIO_SECONDS) * 1000 + u64::from(AUDIO_PADDING_MS);
    (u64::from(rate_hz) * milliseconds / 1000) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_seconds_are_the_most() {
        let clip = |n: usize, rate| Clip::new(vec![0.5; n], rate, "a.wav");
        assert_eq!(clip(480_000, 16_000).unwrap().samples().len(), 480_000);
        // A hundredth of a second more is an encoder's padding.
        assert_eq!(clip(480_160, 16_000).unwrap().samples().len(), 480_000);
        assert_eq!(clip(240_080, 8_000).unwrap().samples().len(), 480_000);
        let error = clip(481_601, 16_000).unwrap_err();
        assert!(matches!(error, Error::AudioTooLong { seconds: Some(s), .. } if s > 30.1));
    }

    #[test]
    fn what_is_no_sound_is_refused() {
        assert!(matches!(
            Clip::new(vec![], 16_000, "a"),
            Err(Error::AudioEmpty { .. })
        ));
        for bad in [f32::NAN, f32::INFINITY] {
            let error = Clip::new(vec![0.0, bad], 44_100, "a.wav").unwrap_err();
            assert_eq!(
                error.to_string(),
                "sample 1 of `a.wav` is not a finite number; write the file again from its source"
            );
        }
        for rate in [0, 999, 768_001, u32::MAX] {
            assert!(matches!(
                Clip::new(vec![0.0], rate, "a"),
                Err(Error::SampleRate { .. })
            ));
        }
    }

    #[test]
    fn the_hash_follows_the_samples() {
        let hash = |samples: Vec<f32>| Clip::new(samples, 16_000, "a").unwrap().content_hash();
        assert_eq!(hash(vec![0.5, 0.25]), hash(vec![0.5, 0.25]));
        assert_ne!(hash(vec![0.5, 0.25]), hash(vec![0.5, 0.25, 0.0]));
    }
}
