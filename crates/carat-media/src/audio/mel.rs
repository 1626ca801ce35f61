//! Log-mel features: what the audio encoders of Gemma 4 E2B and E4B hear.
//!
//! ```text
//! 160 zeros, the samples, zeros up to a multiple of 128 of them
//!   ─► frames of 320 samples every 160, times a periodic Hann window
//!   ─► magnitudes of a 512-point transform ─► 128 triangles on the HTK mel scale, 0 to 8000 Hz
//!   ─► ln(x + 0.001)
//! ```
//!
//! A frame counts if the sample after its last one is still real sound; the others are zeros. The encoder halves
//! the number of frames twice and keeps every fourth mark, so a soft token stands for 40 ms.

use super::fft::{Fft, N_POINTS};
use super::{Clip, SAMPLE_RATE_HZ};
use crate::error::{Error, Result};

/// Samples of a frame.
const FRAME: usize = 320;
/// Samples from one frame to the next.
const HOP: usize = 160;
/// Zeros in front, so that the first frame's middle is the first sample.
const LEAD: usize = FRAME / 2;
/// The reference pads samples to a multiple of this.
const PAD_TO: usize = 128;
/// Mel filters.
const N_MEL: usize = 128;
/// Frequencies of a transform of real numbers.
const N_BINS: usize = N_POINTS / 2 + 1;
/// Added before the logarithm.
const FLOOR: f64 = 1e-3;
/// Frames per soft token.
const FRAMES_PER_TOKEN: usize = 4;

/// A clip as the audio encoder takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct MelFeatures {
    /// `[n_frames, 128]`; zeros where the mask says no.
    pub values: Vec<f32>,
    /// Which frames are real.
    pub mask: Vec<bool>,
    /// Soft tokens that the encoder makes of them.
    pub n_soft_tokens: usize,
}

impl MelFeatures {
    /// Features of a frame.
    pub const WIDTH: usize = N_MEL;

    /// The features of a clip.
    ///
    /// # Errors
    /// [`Error::AudioTooShort`] when no frame is real: below 161 samples (10 ms).
    pub fn new(clip: &Clip) -> Result<MelFeatures> {
        let samples = clip.samples();
        let min = FRAME + 1 - LEAD;
        if samples.len() < min {
            return Err(Error::AudioTooShort {
                samples: samples.len(),
                min,
            });
        }
        let mut padded = vec![0.0f32; LEAD];
        padded.extend_from_slice(samples);
        padded.resize(LEAD + samples.len().next_multiple_of(PAD_TO), 0.0);
        let n_frames = (padded.len() - FRAME - 1) / HOP + 1;
        let mask: Vec<bool> = (0..n_frames)
            .map(|i| i * HOP + FRAME < LEAD + samples.len())
            .collect();

        let n_real = mask.iter().filter(|real| **real).count();
        let mut values = vec![0.0f32; n_frames * N_MEL];
        let spectrum = Spectrum::new();
        for (i, out) in values.chunks_mut(2 * N_MEL).enumerate().take(n_real.div_ceil(2)) {
            let frame = |i: usize| padded.get(i * HOP..i * HOP + FRAME).unwrap_or(&[]);
            spectrum.two_frames([frame(2 * i), frame(2 * i + 1)], out);
        }
        values[n_real * N_MEL..].fill(0.0);
        Ok(MelFeatures {
            n_soft_tokens: mask
                .iter()
                .step_by(FRAMES_PER_TOKEN)
                .filter(|real| **real)
                .count(),
            values,
            mask,
        })
    }
}

/// Window, transform and filters.
struct Spectrum {
    window: [f64; FRAME],
    fft: Fft,
    /// For each filter its first bin and its weights.
    filters: Vec<(usize, Vec<f64>)>,
}

impl Spectrum {
    fn new() -> Spectrum {
        let turn = |i: usize| 2.0 * std::f64::consts::PI * i as f64 / FRAME as f64;
        Spectrum {
            // In f32, as the reference keeps it.
            window: std::array::from_fn(|i| f64::from((0.5 - 0.5 * turn(i).cos()) as f32)),
            fft: Fft::new(),
            filters: mel_filters(),
        }
    }

    /// Features of two frames by one transform: one frame in the real part, one in the imaginary part. With
    /// `X[k]` and `X[N - k]` at hand, the two spectra are `(X[k] ± conj(X[N - k])) / 2`.
    fn two_frames(&self, frames: [&[f32]; 2], out: &mut [f32]) {
        let (mut re, mut im) = ([0.0f64; N_POINTS], [0.0f64; N_POINTS]);
        for (part, frame) in [&mut re, &mut im].into_iter().zip(frames) {
            for ((value, sample), weight) in part.iter_mut().zip(frame).zip(&self.window) {
                // The reference multiplies in f32.
                *value = f64::from(sample * *weight as f32);
            }
        }
        self.fft.transform(&mut re, &mut im);
        let mut magnitudes = [[0.0f64; N_BINS]; 2];
        for k in 0..N_BINS {
            let mirror = (N_POINTS - k) % N_POINTS;
            magnitudes[0][k] = (re[k] + re[mirror]).hypot(im[k] - im[mirror]) / 2.0;
            magnitudes[1][k] = (im[k] + im[mirror]).hypot(re[k] - re[mirror]) / 2.0;
        }
        for (magnitudes, out) in magnitudes.iter().zip(out.chunks_exact_mut(N_MEL)) {
            for ((first, weights), out) in self.filters.iter().zip(out) {
                let bins = magnitudes[*first..].iter().zip(weights);
                let sum: f64 = bins.map(|(magnitude, weight)| magnitude * weight).sum();
                *out = (sum + FLOOR).ln() as f32;
            }
        }
    }
}

/// Triangles whose corners are equally spaced on the mel scale, each of height 1.
fn mel_filters() -> Vec<(usize, Vec<f64>)> {
    let top = f64::from(SAMPLE_RATE_HZ / 2);
    let mel_top = 2595.0 * (1.0 + top / 700.0).log10();
    let corner = |i: usize| {
        let mel = mel_top * i as f64 / (N_MEL + 1) as f64;
        700.0 * (10f64.powf(mel / 2595.0) - 1.0)
    };
    let bin_width = top / (N_BINS - 1) as f64;
    let filter = |i: usize| {
        let (left, middle, right) = (corner(i), corner(i + 1), corner(i + 2));
        let weight = |k: usize| {
            let frequency = k as f64 * bin_width;
            let rising = (frequency - left) / (middle - left);
            let falling = (right - frequency) / (right - middle);
            rising.min(falling).max(0.0)
        };
        let first = (0..N_BINS).find(|k| weight(*k) > 0.0).unwrap_or(0);
        let weights = (first..N_BINS).map(weight).take_while(|weight| *weight > 0.0);
        (first, weights.collect())
    };
    (0..N_MEL).map(filter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(n: usize) -> Result<MelFeatures> {
        let samples = (0..n).map(|i| (i as f32 * 0.3).sin()).collect();
        MelFeatures::new(&Clip::new(samples, 16_000, "a").unwrap())
    }

    #[test]
    fn counts_follow_the_references_arithmetic() {
        // (samples, frames, real frames, tokens)
        for (n, n_frames, n_real, tokens) in [
            (161, 1, 1, 1),
            (640, 3, 3, 1),
            (1281, 8, 8, 2),
            (16_000, 99, 99, 25),
            (480_000, 2999, 2999, 750),
        ] {
            let features = features(n).unwrap();
            assert_eq!(features.mask.len(), n_frames, "{n}");
            assert_eq!(features.values.len(), n_frames * N_MEL);
            assert_eq!(features.mask.iter().filter(|real| **real).count(), n_real);
            assert_eq!(features.n_soft_tokens, tokens, "{n}");
        }
        assert!(matches!(
            features(160),
            Err(Error::AudioTooShort {
                samples: 160,
                min: 161
            })
        ));
    }

    #[test]
    fn masked_frames_are_zeros() {
        // 7777 samples are padded to 7808; find a length whose last frame is not real.
        let features = (161..400).map(|n| features(n).unwrap());
        let mut seen = 0;
        for features in features {
            for (row, real) in features.values.chunks(N_MEL).zip(&features.mask) {
                assert_eq!(*real, row.iter().any(|value| *value != 0.0));
                seen += usize::from(!real);
            }
        }
        assert!(seen > 0);
    }
}
