//! Sound: decoding to mono at 16 kHz, and the features that the models take.

mod decode;
mod fft;
mod frames;
#[cfg(test)]
mod hostile;
mod mel;
mod mp4_lead;
mod resample;
mod vorbis_books;

use crate::content_hash::{ContentHash, Hasher};
use crate::error::{Error, Result};
use crate::limits::{
    AUDIO_PADDING_MS, AUDIO_PADDING_SAMPLES, MAX_AUDIO_SECONDS, MAX_SAMPLE_MAGNITUDE, MAX_SAMPLE_RATE_HZ,
    MIN_SAMPLE_RATE_HZ,
};

pub use decode::{decode_audio, read_audio};
pub use frames::RawFrames;
pub use mel::MelFeatures;

/// The rate that the models hear at, in hertz.
pub const SAMPLE_RATE_HZ: u32 = 16_000;

/// Most samples of a clip.
const MAX_SAMPLES: usize = SAMPLE_RATE_HZ as usize * MAX_AUDIO_SECONDS as usize;

/// A sound of at most 30 seconds: mono, 16 kHz, nominally in -1 ..= 1 and always finite; never empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    samples: Vec<f32>,
}

impl Clip {
    /// From mono samples at `rate_hz`; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::AudioEmpty`], [`Error::AudioTooLong`], [`Error::AudioNotFinite`], [`Error::AudioTooLoud`],
    /// [`Error::SampleRate`].
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
        // Sums of samples near the largest float would not be finite.
        let too_loud = |sample: &f32| sample.abs() > MAX_SAMPLE_MAGNITUDE;
        if let Some(index) = samples.iter().position(too_loud) {
            return Err(Error::AudioTooLoud {
                file: file(),
                index,
                value: samples[index],
            });
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
    let rate_hz = u64::from(rate_hz);
    let padding = (rate_hz * u64::from(AUDIO_PADDING_MS) / 1000).max(u64::from(AUDIO_PADDING_SAMPLES));
    (rate_hz * u64::from(MAX_AUDIO_SECONDS) + padding) as usize
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
        let error = clip(482_049, 16_000).unwrap_err();
        assert!(matches!(error, Error::AudioTooLong { seconds: Some(s), .. } if s > 30.1));
        // Two frames of AAC are much at a low rate, and less than a tenth of a second at a high one.
        assert_eq!(clip(242_048, 8_000).unwrap().samples().len(), 480_000);
        assert!(clip(242_049, 8_000).is_err());
        assert!(clip(1_444_800, 48_000).is_ok() && clip(1_444_801, 48_000).is_err());
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
        for bad in [3e38, -3e38, MAX_SAMPLE_MAGNITUDE * 1.01] {
            let error = Clip::new([0.0, bad, bad, -bad].repeat(100), 44_100, "a.wav").unwrap_err();
            assert!(matches!(error, Error::AudioTooLoud { index: 1, .. }), "{error}");
        }
        for rate in [0, 999, 768_001, u32::MAX] {
            assert!(matches!(
                Clip::new(vec![0.0], rate, "a"),
                Err(Error::SampleRate { .. })
            ));
        }
    }

    #[test]
    fn the_loudest_clip_stays_finite() {
        for rate_hz in [8_000, 16_000, 44_057, 48_000] {
            let loudest = |i: usize| {
                if i % 18 < 9 {
                    MAX_SAMPLE_MAGNITUDE
                } else {
                    -MAX_SAMPLE_MAGNITUDE
                }
            };
            let clip = Clip::new((0..20_000).map(loudest).collect(), rate_hz, "a.wav").unwrap();
            let features = MelFeatures::new(&clip).unwrap();
            let mut values = clip.samples().iter().chain(&features.values);
            assert!(values.all(|value| value.is_finite()), "{rate_hz}");
        }
    }

    #[test]
    fn the_hash_follows_the_samples() {
        let hash = |samples: Vec<f32>| Clip::new(samples, 16_000, "a").unwrap().content_hash();
        assert_eq!(hash(vec![0.5, 0.25]), hash(vec![0.5, 0.25]));
        assert_ne!(hash(vec![0.5, 0.25]), hash(vec![0.5, 0.25, 0.0]));
    }
}
