//! Sample rate conversion by a windowed sinc.
//!
//! ```text
//! out[n] = sum over j of in[j] * h(n * from / to - j)
//! h(t)   = c * sinc(c * t) * kaiser(t / R)        c = 0.95 * min(1, to / from), R = 64 / min(1, to / from)
//! ```
//!
//! The transition band is a tenth of the lower rate's half, ending at it, and the stop band lies 100 dB down
//! (beta 10, 128 zero crossings), which is what SoX calls high quality and librosa, behind the reference, uses.
//! `h` is tabulated once per phase of the output; rates with very many phases share 512, interpolated linearly.

/// Zero crossings of the lower rate's sinc on each side.
const RADIUS: f64 = 64.0;
/// Where the pass band's middle of the slope lies, as a part of the lower rate's half.
const CUTOFF: f64 = 0.95;
/// Shape of the Kaiser window.
const BETA: f64 = 10.06;
/// Most coefficients that are tabulated for exact phases: 4 MB.
const MAX_COEFFICIENTS: usize = 1 << 20;
/// Phases when there are too many: the error of interpolation is about 1e-6.
const INTERPOLATED_PHASES: usize = 512;

/// `samples` at rate `from`, as `ceil(len * to / from)` samples at rate `to`; both rates are above 0.
pub(super) fn resample(samples: &[f32], from: u32, to: u32) -> Vec<f32> {
    let common = gcd(from, to);
    let (from, to) = (u64::from(from / common), u64::from(to / common));
    let bank = FilterBank::new(from, to);
    let n_out = (samples.len() as u64 * to).div_ceil(from);
    let mut window = vec![0.0f32; bank.n_taps];
    let output = |n: u64| {
        let (position, rest) = (n * from / to, n * from % to);
        // Taps run from `position + 1 - half` to `position + half`.
        let first = position as i64 + 1 - (bank.n_taps / 2) as i64;
        let input = match usize::try_from(first) {
            Ok(first) if first + bank.n_taps <= samples.len() => &samples[first..first + bank.n_taps],
            _ => {
                copy_padded(samples, first, &mut window);
                &window[..]
            }
        };
        bank.apply(input, rest, to)
    };
    (0..n_out).map(output).collect()
}

/// Fills `window` with the samples from `first` on, zeros where there are none.
fn copy_padded(samples: &[f32], first: i64, window: &mut [f32]) {
    for (sample, index) in window.iter_mut().zip(first..) {
        let at = usize::try_from(index).ok().and_then(|index| samples.get(index));
        *sample = at.copied().unwrap_or(0.0);
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The filter at each phase between two input samples.
struct FilterBank {
    n_taps: usize,
    n_phases: usize,
    /// `[n_phases + 1, n_taps]`: the last row is the first, one sample on.
    coefficients: Vec<f32>,
}

impl FilterBank {
    fn new(from: u64, to: u64) -> FilterBank {
        let narrowing = (to as f64 / from as f64).min(1.0);
        let radius = RADIUS / narrowing;
        let half = radius.ceil() as usize;
        let n_taps = 2 * half;
        let exact = to as usize;
        let n_phases = if (exact + 1) * n_taps <= MAX_COEFFICIENTS {
            exact
        } else {
            INTERPOLATED_PHASES
        };
        let mut coefficients = Vec::with_capacity((n_phases + 1) * n_taps);
        for phase in 0..=n_phases {
            let fraction = phase as f64 / n_phases as f64;
            let taps = (0..n_taps).map(|tap| fraction + half as f64 - 1.0 - tap as f64);
            coefficients.extend(taps.map(|t| kernel(t, CUTOFF * narrowing, radius) as f32));
        }
        FilterBank {
            n_taps,
            n_phases,
            coefficients,
        }
    }

    /// The output that lies `rest / to` of a sample behind the middle of `input`.
    fn apply(&self, input: &[f32], rest: u64, to: u64) -> f32 {
        let scaled = rest * self.n_phases as u64;
        let (phase, between) = ((scaled / to) as usize, scaled % to);
        let at = |phase: usize| dot(input, &self.coefficients[phase * self.n_taps..][..self.n_taps]);
        let value = at(phase);
        if between == 0 {
            return value;
        }
        value + (at(phase + 1) - value) * (between as f64 / to as f64) as f32
    }
}

/// Sum of products in eight lanes, which the compiler makes vectors of.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, rest_a) = a.as_chunks::<8>();
    let (b, rest_b) = b.as_chunks::<8>();
    let mut lanes = [0.0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

fn kernel(t: f64, cutoff: f64, radius: f64) -> f64 {
    let x = t / radius;
    if x.abs() >= 1.0 {
        return 0.0;
    }
    let window = bessel_i0(BETA * (1.0 - x * x).sqrt()) / bessel_i0(BETA);
    cutoff * sinc(cutoff * t) * window
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x.abs() < 1e-9 { 1.0 } else { x.sin() / x }
}

/// The modified Bessel function of order 0, by its series; for arguments up to about 20.
fn bessel_i0(x: f64) -> f64 {
    let quarter = x * x / 4.0;
    let mut term = 1.0;
    let mut sum = 1.0;
    for k in 1..64 {
        term *= quarter / f64::from(k * k);
        sum += term;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error over the middle of a second of a sine, where the ends play no part.
    fn sine_error(frequency: f64, from: u32, to: u32) -> f64 {
        let sine = |rate: u32, n: usize| {
            let turns = 2.0 * std::f64::consts::PI * frequency / f64::from(rate);
            (0..n).map(move |i| (turns * i as f64).sin())
        };
        let input: Vec<f32> = sine(from, from as usize).map(|x| x as f32).collect();
        let output = resample(&input, from, to);
        let expected = sine(to, output.len());
        let pairs = output
            .iter()
            .zip(expected)
            .skip(to as usize / 10)
            .take(to as usize / 2);
        pairs.map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn sines_of_the_pass_band_come_through() {
        for from in [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000, 44_057] {
            let top = f64::from(from.min(16_000)) / 2.0 * 0.9;
            for frequency in [100.0, 1000.0, top / 2.0, top] {
                let error = sine_error(frequency, from, 16_000);
                assert!(error < 3e-5, "{frequency} Hz from {from}: {error:.1e}");
            }
        }
    }

    #[test]
    fn what_would_fold_back_is_gone() {
        // 10 kHz at 44.1 kHz would appear at 6 kHz.
        let input: Vec<f32> = (0..44_100)
            .map(|i| (f64::from(i) * 1.424_758).sin() as f32)
            .collect();
        let output = resample(&input, 44_100, 16_000);
        let loudest = output[1000..15_000]
            .iter()
            .fold(0.0f32, |max, x| max.max(x.abs()));
        assert!(loudest < 3e-5, "{loudest:e}");
    }

    #[test]
    fn lengths_are_rounded_up_as_in_the_reference() {
        for (n, from, expected) in [
            (1, 48_000, 1),
            (3, 48_000, 1),
            (4, 48_000, 2),
            (5, 8_000, 10),
            (0, 8_000, 0),
        ] {
            assert_eq!(resample(&vec![0.0; n], from, 16_000).len(), expected);
        }
    }
}
