//! Which frames are taken.

use crate::error::{Error, Result};
use crate::limits::{DEFAULT_VIDEO_FRAMES, MAX_VIDEO_FRAMES};

/// How many frames are taken from a video.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FrameSampling(Amount);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Amount {
    Count(usize),
    PerSecond(f64),
}

impl Default for FrameSampling {
    /// 32 frames, as in the reference.
    fn default() -> FrameSampling {
        FrameSampling(Amount::Count(DEFAULT_VIDEO_FRAMES))
    }
}

impl FrameSampling {
    /// `n` frames over the whole video, or all if it has fewer.
    ///
    /// # Errors
    /// [`Error::FrameSampling`] for 0 and above 1024.
    pub fn count(n: usize) -> Result<FrameSampling> {
        if !(1..=MAX_VIDEO_FRAMES).contains(&n) {
            return Err(Error::FrameSampling(format!(
                "{n} frames cannot be taken from a video; take between 1 and {MAX_VIDEO_FRAMES}"
            )));
        }
        Ok(FrameSampling(Amount::Count(n)))
    }

    /// So many frames for each second of the video, at most 1024 in all.
    ///
    /// # Errors
    /// [`Error::FrameSampling`] for rates that are not above 0 and at most 240.
    pub fn per_second(rate: f64) -> Result<FrameSampling> {
        if !(rate > 0.0 && rate <= 240.0) {
            return Err(Error::FrameSampling(format!(
                "{rate} frames a second cannot be taken from a video; take more than 0 and at most 240"
            )));
        }
        Ok(FrameSampling(Amount::PerSecond(rate)))
    }

    /// Indices of the frames to take from `total` frames that last `seconds`; increasing, without repetition.
    pub(super) fn indices(self, total: usize, seconds: f64) -> Vec<usize> {
        let n = match self.0 {
            Amount::Count(n) => n,
            // A video of less than a frame's time still gives one.
            Amount::PerSecond(rate) => ((seconds * rate) as usize).clamp(1, MAX_VIDEO_FRAMES),
        };
        let n = n.min(total);
        (0..n)
            .map(|k| (k as u128 * total as u128 / n as u128) as usize)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_the_floors_of_even_steps() {
        let indices = |n, total| FrameSampling::count(n).unwrap().indices(total, 1.0);
        assert_eq!(indices(4, 10), [0, 2, 5, 7]);
        assert_eq!(indices(32, 5), [0, 1, 2, 3, 4]);
        assert_eq!(indices(1, 100), [0]);
        assert_eq!(indices(3, 0), [0usize; 0]);
        assert_eq!(indices(2, usize::MAX)[1], usize::MAX / 2);
    }

    #[test]
    fn rates_become_counts() {
        let indices = |rate, total, seconds| FrameSampling::per_second(rate).unwrap().indices(total, seconds);
        assert_eq!(indices(1.0, 75, 3.0), [0, 25, 50]);
        assert_eq!(indices(1.0, 10, 0.4), [0]);
        assert_eq!(indices(2.0, 1_000_000, f64::INFINITY).len(), MAX_VIDEO_FRAMES);
        assert_eq!(indices(2.0, 9, f64::NAN), [0]);
    }

    #[test]
    fn senseless_amounts_are_refused() {
        assert!(FrameSampling::count(0).is_err() && FrameSampling::count(1025).is_err());
        for rate in [0.0, -1.0, 241.0, f64::NAN] {
            assert!(FrameSampling::per_second(rate).is_err());
        }
    }
}
