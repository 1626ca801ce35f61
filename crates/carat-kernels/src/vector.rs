//! Operations on one row of activations: norms, rotary embedding, gated GELU, sums.

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
    /// `x *= factor`.
    pub fn scale(x: &mut [f32], factor: f32) = scale_generic;
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
fn gelu<S: Simd>(simd: S, x: S::F) -> S::F {
    const TWO_ROOT_2_OVER_PI: f32 = 1.595_769_2;
    let cubic = simd.fma(simd.mul(x, x), simd.splat(0.044_715), simd.splat(1.0));
    let minus_2u = simd.mul(simd.mul(x, cubic), simd.splat(-TWO_ROOT_2_OVER_PI));
    simd.div(x, simd.add(simd.splat(1.0), simd.exp(minus_2u)))
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
                simd.mul(gelu(simd, simd.load(g.add(i))), simd.load(u.add(i)))
            ),
            |i, n| {
                let value = simd.mul(
                    gelu(simd, simd.load_part(g.add(i), n)),
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
    fn gelu_of_extremes_is_finite() {
        for isa in Isa::available() {
            let mut gate = vec![-1e30, -200.0, -0.0, 0.0, 200.0, 1e12];
            gelu_mul(isa, &mut gate, &[1.0; 6]);
            assert!(gate[..4].iter().all(|v| v.abs() < 1e-6), "{isa} {gate:?}");
            assert_eq!(&gate[4..], &[200.0, 1e12]);
        }
    }
}
