//! Operations on one row of activations: norms, rotary embedding, activations with and without gate, sums.

use crate::simd::{Simd, dispatch};

dispatch! {
    /// `out = x / sqrt(mean(x^2) + eps) * weight`, all of one length.
    ///
    /// The sum of squares is taken in f32 over as many partial sums as there are lanes.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_generic;
}
dispatch! {
    /// As [`rms_norm`], in place.
    pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) = rms_norm_in_place_generic;
}
dispatch! {
    /// `residual += rms_norm(x)`: Gemma norms the output of attention and MLP before it is added.
    pub fn add_rms_norm(residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32) = add_rms_norm_generic;
}
dispatch! {
    /// Rotates one head `[E]`: element `j` with element `j + E/2` by the angle whose `cos` and `sin` `[E/2]` are
    /// given ("NeoX" pairing).
    pub fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) = rotate_generic;
}
dispatch! {
    /// `gate = gelu(gate) * up` with the tanh form of GELU, all of one length.
    pub fn gelu_mul(gate: &mut [f32], up: &[f32]) = gelu_mul_generic;
}
dispatch! {
    /// `x = cap * tanh(x / cap)`.
    ///
    /// The error is that of subtracting from one: a few ulp of `cap`.
    pub fn soft_cap(x: &mut [f32], cap: f32) = soft_cap_generic;
}
dispatch! {
    /// `x *= factor`.
    pub fn scale(x: &mut [f32], factor: f32) = scale_generic;
}
dispatch! {
    /// `x *= factor`, each element with its own, of one length.
    pub fn multiply(x: &mut [f32], factor: &[f32]) = multiply_generic;
}
dispatch! {
    /// `x += y`, of one length.
    pub fn add(x: &mut [f32], y: &[f32]) = add_generic;
}
dispatch! {
    /// `out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias`, all of one length.
    ///
    /// The mean is taken first, then the mean of the squared distances from it: large means cancel nothing.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) = layer_norm_generic;
}
dispatch! {
    /// `x = gelu(x)` with the tanh form of GELU.
    pub fn gelu(x: &mut [f32]) = gelu_generic;
}
dispatch! {
    /// `x = silu(x) = x / (1 + e^-x)`.
    pub fn silu(x: &mut [f32]) = silu_generic;
}
dispatch! {
    /// `out = a / (1 + e^-gate)`, all of one length: a gated linear unit.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn glu(a: &[f32], gate: &[f32], out: &mut [f32]) = glu_generic;
}

/// Calls `$whole` for every whole register at offset `$at` and `$rest` for the last `$n` elements, if any.
macro_rules! lanes {
    ($S:ident, $len:expr, |$at:ident| $whole:expr, |$rest_at:ident, $n:ident| $rest:expr) => {
        let len = $len;
        let mut $at = 0;
        while $at + $S::LANES <= len {
            $whole;
            $at += $S::LANES;
        }
        if $at < len {
            let ($rest_at, $n) = ($at, len - $at);
            $rest;
        }
    };
}

/// 1 / sqrt(mean(x^2) + eps)
#[inline(always)]
fn inverse_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let from = x.as_ptr();
    let mut sum = simd.splat(0.0);
    // SAFETY: `lanes!` stays within the length of `x`.
    unsafe {
        lanes!(
            S,
            x.len(),
            |i| {
                let v = simd.load(from.add(i));
                sum = simd.fma(v, v, sum)
            },
            |i, n| {
                let v = simd.load_part(from.add(i), n);
                sum = simd.fma(v, v, sum);
            }
        );
    }
    1.0 / (simd.reduce_add(sum) / x.len().max(1) as f32 + eps).sqrt()
}

#[inline(always)]
fn rms_norm_generic<S: Simd>(simd: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    // A copy of a row in the L1 cache is nothing beside the norm itself.
    out.copy_from_slice(x);
    rms_norm_in_place_generic(simd, out, weight, eps);
}

#[inline(always)]
fn rms_norm_in_place_generic<S: Simd>(simd: S, x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), weight.len(), "a norm's operands differ in length");
    let factor = simd.splat(inverse_rms(simd, x, eps));
    let (w, to) = (weight.as_ptr(), x.as_mut_ptr());
    // SAFETY: `lanes!` stays within the common length.
    unsafe {
        lanes!(
            S,
            x.len(),
            |i| simd.store(
                to.add(i),
                simd.mul(simd.mul(simd.load(to.add(i)), factor), simd.load(w.add(i)))
            ),
            |i, n| {
                let v = simd.mul(simd.load_part(to.add(i), n), factor);
                simd.store_part(to.add(i), simd.mul(v, simd.load_part(w.add(i), n)), n);
            }
        );
    }
}

#[inline(always)]
fn add_rms_norm_generic<S: Simd>(simd: S, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32) {
    assert!(
        x.len() == weight.len() && x.len() == residual.len(),
        "a norm's operands differ in length"
    );
    let factor = simd.splat(inverse_rms(simd, x, eps));
    let (from, w, to) = (x.as_ptr(), weight.as_ptr(), residual.as_mut_ptr());
    // SAFETY: `lanes!` stays within the common length.
    unsafe {
        lanes!(
            S,
            x.len(),
            |i| {
                let v = simd.mul(simd.load(from.add(i)), factor);
                simd.store(
                    to.add(i),
                    simd.add(simd.load(to.add(i)), simd.mul(v, simd.load(w.add(i)))),
                );
            },
            |i, n| {
                let v = simd.mul(
                    simd.mul(simd.load_part(from.add(i), n), factor),
                    simd.load_part(w.add(i), n),
                );
                simd.store_part(to.add(i), simd.add(simd.load_part(to.add(i), n), v), n);
            }
        );
    }
}

#[inline(always)]
fn rotate_generic<S: Simd>(simd: S, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    assert!(
        sin.len() == half && head.len() == 2 * half,
        "a head has two halves"
    );
    let (low, high) = head.split_at_mut(half);
    let (low, high, cos, sin) = (low.as_mut_ptr(), high.as_mut_ptr(), cos.as_ptr(), sin.as_ptr());
    // SAFETY: `lanes!` stays within `half`, the length of all four.
    unsafe {
        lanes!(
            S,
            half,
            |i| {
                let (a, b) = (simd.load(low.add(i)), simd.load(high.add(i)));
                let (c, s) = (simd.load(cos.add(i)), simd.load(sin.add(i)));
                simd.store(low.add(i), simd.sub(simd.mul(a, c), simd.mul(b, s)));
                simd.store(high.add(i), simd.fma(b, c, simd.mul(a, s)));
            },
            |i, n| {
                let (a, b) = (simd.load_part(low.add(i), n), simd.load_part(high.add(i), n));
                let (c, s) = (simd.load_part(cos.add(i), n), simd.load_part(sin.add(i), n));
                simd.store_part(low.add(i), simd.sub(simd.mul(a, c), simd.mul(b, s)), n);
                simd.store_part(high.add(i), simd.fma(b, c, simd.mul(a, s)), n);
            }
        );
    }
}

/// gelu(x) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form, since (1 + tanh u) / 2 is the
/// logistic function of 2u. Without the cancellation of 1 + tanh for negative u.
#[inline(always)]
fn gelu_of<S: Simd>(simd: S, x: S::F) -> S::F {
    const TWO_ROOT_2_OVER_PI: f32 = 1.595_769_2;
    let cubic = simd.fma(simd.mul(x, x), simd.splat(0.044_715), simd.splat(1.0));
    let minus_2u = simd.mul(simd.mul(x, cubic), simd.splat(-TWO_ROOT_2_OVER_PI));
    simd.div(x, simd.add(simd.splat(1.0), simd.exp(minus_2u)))
}

/// `x = value` for all elements, where `value` is made of the elements `a` of `x` and `b` of `y`, of one length.
///
/// A macro, since a closure is a function without the features, which nothing can be inlined into.
macro_rules! map {
    ($simd:ident, $S:ident, $x:expr, $y:expr, |$a:ident, $b:ident| $value:expr) => {
        assert_eq!($x.len(), $y.len(), "operands differ in length");
        let (to, from) = ($x.as_mut_ptr(), $y.as_ptr());
        // SAFETY: `lanes!` stays within the common length.
        unsafe {
            lanes!(
                $S,
                $x.len(),
                |i| {
                    let ($a, $b) = ($simd.load(to.add(i)), $simd.load(from.add(i)));
                    $simd.store(to.add(i), $value);
                },
                |i, n| {
                    let ($a, $b) = ($simd.load_part(to.add(i), n), $simd.load_part(from.add(i), n));
                    $simd.store_part(to.add(i), $value, n);
                }
            );
        }
    };
}

/// As `map!`, of the elements of `x` alone.
macro_rules! map_alone {
    ($simd:ident, $S:ident, $x:expr, |$a:ident| $value:expr) => {
        let to = $x.as_mut_ptr();
        // SAFETY: `lanes!` stays within the length of `x`.
        unsafe {
            lanes!(
                $S,
                $x.len(),
                |i| {
                    let $a = $simd.load(to.add(i));
                    $simd.store(to.add(i), $value);
                },
                |i, n| {
                    let $a = $simd.load_part(to.add(i), n);
                    $simd.store_part(to.add(i), $value, n);
                }
            );
        }
    };
}

#[inline(always)]
fn multiply_generic<S: Simd>(simd: S, x: &mut [f32], factor: &[f32]) {
    map!(simd, S, x, factor, |a, b| simd.mul(a, b));
}

#[inline(always)]
fn add_generic<S: Simd>(simd: S, x: &mut [f32], y: &[f32]) {
    map!(simd, S, x, y, |a, b| simd.add(a, b));
}

#[inline(always)]
fn silu_generic<S: Simd>(simd: S, x: &mut [f32]) {
    map_alone!(simd, S, x, |v| logistic_times(simd, v, v));
}

#[inline(always)]
fn gelu_generic<S: Simd>(simd: S, x: &mut [f32]) {
    map_alone!(simd, S, x, |v| gelu_of(simd, v));
}

#[inline(always)]
fn glu_generic<S: Simd>(simd: S, a: &[f32], gate: &[f32], out: &mut [f32]) {
    out.copy_from_slice(a);
    map!(simd, S, out, gate, |value, g| logistic_times(simd, value, g));
}

/// `a / (1 + e^-x)`
#[inline(always)]
fn logistic_times<S: Simd>(simd: S, a: S::F, x: S::F) -> S::F {
    let power = simd.exp(simd.sub(simd.splat(0.0), x));
    simd.div(a, simd.add(simd.splat(1.0), power))
}

/// The mean of `x`, and of the squared distances from it.
#[inline(always)]
fn mean_and_variance<S: Simd>(simd: S, x: &[f32]) -> (f32, f32) {
    let (from, n) = (x.as_ptr(), x.len().max(1) as f32);
    let mut total = simd.splat(0.0);
    // SAFETY: `lanes!` stays within the length of `x`.
    unsafe {
        lanes!(
            S,
            x.len(),
            |i| total = simd.add(total, simd.load(from.add(i))),
            |i, n| {
                total = simd.add(total, simd.load_part(from.add(i), n));
            }
        );
    }
    let mean = simd.reduce_add(total) / n;
    let (middle, mut squares, mut rest) = (simd.splat(mean), simd.splat(0.0), 0.0);
    // SAFETY: as above.
    unsafe {
        lanes!(
            S,
            x.len(),
            |i| {
                let distance = simd.sub(simd.load(from.add(i)), middle);
                squares = simd.fma(distance, distance, squares);
            },
            // One by one: lanes beyond the end would count as distances too.
            |i, n| rest = x[i..i + n].iter().map(|v| (v - mean) * (v - mean)).sum::<f32>()
        );
    }
    (mean, (simd.reduce_add(squares) + rest) / n)
}

#[inline(always)]
fn layer_norm_generic<S: Simd>(simd: S, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let (mean, variance) = mean_and_variance(simd, x);
    let (middle, factor) = (simd.splat(mean), simd.splat(1.0 / (variance + eps).sqrt()));
    out.copy_from_slice(x);
    map!(simd, S, out, weight, |v, w| simd
        .mul(simd.mul(simd.sub(v, middle), factor), w));
    map!(simd, S, out, bias, |v, b| simd.add(v, b));
}

#[inline(always)]
fn gelu_mul_generic<S: Simd>(simd: S, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    let (g, u) = (gate.as_mut_ptr(), up.as_ptr());
    // SAFETY: `lanes!` stays within the common length.
    unsafe {
        lanes!(
            S,
            gate.len(),
            |i| simd.store(
                g.add(i),
                simd.mul(gelu_of(simd, simd.load(g.add(i))), simd.load(u.add(i)))
            ),
            |i, n| {
                let value = simd.mul(
                    gelu_of(simd, simd.load_part(g.add(i), n)),
                    simd.load_part(u.add(i), n),
                );
                simd.store_part(g.add(i), value, n);
            }
        );
    }
}

#[inline(always)]
fn scale_generic<S: Simd>(simd: S, x: &mut [f32], factor: f32) {
    let to = x.as_mut_ptr();
    let f = simd.splat(factor);
    // SAFETY: `lanes!` stays within the length of `x`.
    unsafe {
        lanes!(
            S,
            x.len(),
            |i| simd.store(to.add(i), simd.mul(simd.load(to.add(i)), f)),
            |i, n| {
                simd.store_part(to.add(i), simd.mul(simd.load_part(to.add(i), n), f), n);
            }
        );
    }
}

/// tanh u = 1 - 2 / (1 + e^2u), which is right at both ends.
#[inline(always)]
fn soft_cap_generic<S: Simd>(simd: S, x: &mut [f32], cap: f32) {
    let (one, two, cap_all, twice) = (
        simd.splat(1.0),
        simd.splat(2.0),
        simd.splat(cap),
        simd.splat(2.0 / cap),
    );
    map_alone!(simd, S, x, |v| {
        let e = simd.exp(simd.mul(v, twice));
        simd.mul(cap_all, simd.sub(one, simd.div(two, simd.add(one, e))))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    /// |got - want| within `ulps` of f32 at the size of `scale`.
    fn close(got: f32, want: f64, scale: f64, ulps: f64) -> bool {
        (f64::from(got) - want).abs() <= ulps * f64::from(f32::EPSILON) * scale.max(1e-30)
    }

    fn gelu_f64(x: f64) -> f64 {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
    }

    proptest! {
        #[test]
        fn norms_equal_f64(x in prop::collection::vec(-50f32..50.0, 1..70), eps in 1e-7f32..1e-3) {
            let weight: Vec<f32> = x.iter().map(|v| 1.0 + v.sin()).collect();
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
            let factor = 1.0 / (mean + f64::from(eps)).sqrt();
            for isa in Isa::available() {
                let mut out = vec![0.0; x.len()];
                rms_norm(isa, &x, &weight, eps, &mut out);
                let mut in_place = x.clone();
                rms_norm_in_place(isa, &mut in_place, &weight, eps);
                prop_assert_eq!(&in_place, &out);
                let mut residual = vec![1.5; x.len()];
                add_rms_norm(isa, &mut residual, &x, &weight, eps);
                for i in 0..x.len() {
                    let want = f64::from(x[i]) * factor * f64::from(weight[i]);
                    // The sum of n squares errs by at most n ulp, its root by half of that.
                    let ulps = x.len() as f64 / 2.0 + 4.0;
                    prop_assert!(close(out[i], want, want.abs(), ulps), "{isa}");
                    prop_assert!(close(residual[i], want + 1.5, want.abs() + 1.5, ulps), "{isa}");
                }
            }
        }

        #[test]
        fn layer_norm_equals_f64(x in prop::collection::vec(-50f32..50.0, 1..70), shift in -100f32..100.0) {
            let x: Vec<f32> = x.iter().map(|v| v + shift).collect();
            let weight: Vec<f32> = x.iter().map(|v| 1.0 + v.sin()).collect();
            let bias: Vec<f32> = x.iter().map(|v| v.cos()).collect();
            let n = x.len() as f64;
            let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
            let variance = x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
            let factor = 1.0 / (variance + 1e-5).sqrt();
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; x.len()];
                layer_norm(isa, &x, &weight, &bias, 1e-5, &mut out);
                for i in 0..x.len() {
                    let normed = (f64::from(x[i]) - mean) * factor * f64::from(weight[i]);
                    // The mean errs by n ulp of the largest element, which `factor` may enlarge.
                    let scale = normed.abs() + 150.0 * factor.min(320.0) * f64::from(weight[i]);
                    prop_assert!(close(out[i], normed + f64::from(bias[i]), scale + 1.0, n + 4.0), "{isa}");
                }
            }
        }

        #[test]
        fn plain_activations_equal_f64(x in prop::collection::vec(-30f32..30.0, 1..40)) {
            let silu_f64 = |a: f64, x: f64| a / (1.0 + (-x).exp());
            let gate: Vec<f32> = x.iter().map(|v| v.cos() * 9.0).collect();
            for isa in Isa::available() {
                let (mut silus, mut gelus, mut glus) = (x.clone(), x.clone(), vec![f32::NAN; x.len()]);
                silu(isa, &mut silus);
                gelu(isa, &mut gelus);
                glu(isa, &x, &gate, &mut glus);
                let (mut sums, mut products) = (x.clone(), x.clone());
                add(isa, &mut sums, &gate);
                multiply(isa, &mut products, &gate);
                for i in 0..x.len() {
                    let (v, g) = (f64::from(x[i]), f64::from(gate[i]));
                    prop_assert!(close(silus[i], silu_f64(v, v), silu_f64(v, v).abs() + 1e-5, 100.0), "{isa}");
                    prop_assert!(close(gelus[i], gelu_f64(v), gelu_f64(v).abs() + 1e-5, 100.0), "{isa}");
                    prop_assert!(close(glus[i], silu_f64(v, g), silu_f64(v, g).abs() + 1e-5, 100.0), "{isa}");
                    prop_assert!(sums[i] == x[i] + gate[i] && products[i] == x[i] * gate[i], "{isa}");
                }
            }
        }

        #[test]
        fn rotation_equals_f64(half in 1usize..40, angle in -100f32..100.0) {
            let head: Vec<f32> = (0..2 * half).map(|i| (i as f32).sin() * 3.0).collect();
            let (cos, sin): (Vec<f32>, Vec<f32>) =
                (0..half).map(|i| ((angle + i as f32).cos(), (angle + i as f32).sin())).unzip();
            for isa in Isa::available() {
                let mut got = head.clone();
                rotate(isa, &mut got, &cos, &sin);
                for i in 0..half {
                    let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
                    let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                    prop_assert!(close(got[i], a * c - b * s, a.abs() + b.abs(), 2.0));
                    prop_assert!(close(got[i + half], b * c + a * s, a.abs() + b.abs(), 2.0));
                }
            }
        }

        #[test]
        fn gated_gelu_equals_f64(gate in prop::collection::vec(-30f32..30.0, 1..40)) {
            let up: Vec<f32> = gate.iter().map(|v| v.cos() * 2.0).collect();
            for isa in Isa::available() {
                let mut got = gate.clone();
                gelu_mul(isa, &mut got, &up);
                for i in 0..gate.len() {
                    let want = gelu_f64(f64::from(gate[i])) * f64::from(up[i]);
                    // e^-2u of |2u| up to 88 passes on an error of u, 88 ulp, until both are as good as zero.
                    prop_assert!(close(got[i], want, want.abs() + 1e-5, 100.0), "{isa} {} {}", got[i], want);
                }
            }
        }
    }

    #[test]
    fn soft_cap_equals_f64() {
        let x: Vec<f32> = (-500..500)
            .map(|i| i as f32 * 0.37)
            .chain([1e30, -1e30, 1e-6])
            .collect();
        for isa in Isa::available() {
            let mut got = x.clone();
            soft_cap(isa, &mut got, 30.0);
            for (x, got) in x.iter().zip(got) {
                let want = 30.0 * (f64::from(*x) / 30.0).tanh();
                // A few ulp of the cap, and of the exponent of up to 12.
                assert!(
                    (f64::from(got) - want).abs() <= 30.0 * 8.0 * f64::from(f32::EPSILON),
                    "{isa} {x}: {got}"
                );
            }
        }
    }

    #[test]
    fn gelu_of_extremes_is_finite() {
        for isa in Isa::available() {
            let mut gate = vec![-1e30, -200.0, -0.0, 0.0, 200.0, 1e12];
            gelu_mul(isa, &mut gate, &[1.0; 6]);
            assert!(gate[..4].iter().all(|v| v.abs() < 1e-6), "{isa} {gate:?}");
            assert_eq!(&gate[4..], &[200.0, 1e12]);
        }
    }
}
