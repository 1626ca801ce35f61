//! A Fourier transform of one size.

use std::f64::consts::PI;

/// Points of the transform.
pub(super) const N_POINTS: usize = 512;

/// Tables for transforms of [`N_POINTS`] complex numbers, radix 2, in place.
pub(super) struct Fft {
    /// `exp(-2 pi i k / N_POINTS)`.
    turns: Vec<(f64, f64)>,
    /// Where each input goes first.
    order: Vec<usize>,
}

impl Fft {
    pub(super) fn new() -> Fft {
        let angle = |k: usize| -2.0 * PI * k as f64 / N_POINTS as f64;
        let bits = N_POINTS.trailing_zeros();
        Fft {
            turns: (0..N_POINTS / 2)
                .map(|k| (angle(k).cos(), angle(k).sin()))
                .collect(),
            order: (0..N_POINTS)
                .map(|i| i.reverse_bits() >> (usize::BITS - bits))
                .collect(),
        }
    }

    /// The transform of `re + i * im`.
    pub(super) fn transform(&self, re: &mut [f64; N_POINTS], im: &mut [f64; N_POINTS]) {
        for (i, &j) in self.order.iter().enumerate() {
            if i < j {
                re.swap(i, j);
                im.swap(i, j);
            }
        }
        let mut half = 1;
        while half < N_POINTS {
            let stride = N_POINTS / (2 * half);
            for begin in (0..N_POINTS).step_by(2 * half) {
                for k in 0..half {
                    let (cos, sin) = self.turns[k * stride];
                    let (a, b) = (begin + k, begin + k + half);
                    let turned = (re[b] * cos - im[b] * sin, re[b] * sin + im[b] * cos);
                    (re[b], im[b]) = (re[a] - turned.0, im[a] - turned.1);
                    (re[a], im[a]) = (re[a] + turned.0, im[a] + turned.1);
                }
            }
            half *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_sum_that_defines_it() {
        let mut re = [0.0; N_POINTS];
        let mut im = [0.0; N_POINTS];
        for i in 0..N_POINTS {
            re[i] = ((i * 7919) % 1000) as f64 / 500.0 - 1.0;
            im[i] = ((i * 104_729) % 1000) as f64 / 500.0 - 1.0;
        }
        let input = (re, im);
        Fft::new().transform(&mut re, &mut im);
        for k in [0, 1, 2, 100, 255, 256, 257, 511] {
            let (mut sum_re, mut sum_im) = (0.0, 0.0);
            for n in 0..N_POINTS {
                let (sin, cos) = (-2.0 * PI * (k * n % N_POINTS) as f64 / N_POINTS as f64).sin_cos();
                sum_re += input.0[n] * cos - input.1[n] * sin;
                sum_im += input.0[n] * sin + input.1[n] * cos;
            }
            assert!((re[k] - sum_re).abs() < 1e-10 && (im[k] - sum_im).abs() < 1e-10);
        }
    }
}
