//! How far two lists of numbers are from each other.
//!
//! The numbers of the reference come second. Lists of different lengths are never close, and neither is
//! anything to NaN.

/// `‖got - want‖ / ‖want‖` in f64; infinite when only `want` is all zero.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn relative_l2(got: &[f32], want: &[f32]) -> f64 {
    same_length("relative_l2", got, want);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut want.iter().map(|x| f64::from(*x)));
    if difference == 0.0 { 0.0 } else { difference / size }
}

/// The largest `|got[i] - want[i]|`; NaN when any of the numbers is NaN, 0 when both are empty.
///
/// # Panics
/// When the lengths differ.
#[must_use]
pub fn max_abs_diff(got: &[f32], want: &[f32]) -> f32 {
    same_length("max_abs_diff", got, want);
    got.iter()
        .zip(want)
        .map(|(a, b)| difference(*a, *b))
        .fold(0.0, |worst, d| {
            if worst.is_nan() || d.is_nan() {
                f32::NAN
            } else {
                worst.max(d)
            }
        })
}

/// Fails unless `|got[i] - want[i]| <= tol` for every `i`. The message has the first and the worst
/// difference with their indexes.
///
/// # Panics
/// When the lengths differ or a difference is above `tol` or NaN.
pub fn assert_close(name: &str, got: &[f32], want: &[f32], tol: f32) {
    same_length(name, got, want);
    // Not `d > tol`: NaN must fail.
    let is_off = |i: &usize| {
        difference(got[*i], want[*i])
            .partial_cmp(&tol)
            .is_none_or(|order| order.is_gt())
    };
    let off: Vec<usize> = (0..got.len()).filter(is_off).collect();
    let key = |i: &usize| {
        let d = difference(got[*i], want[*i]);
        if d.is_nan() { f32::INFINITY } else { d }
    };
    let (Some(first), Some(worst)) = (off.first(), off.iter().max_by(|a, b| key(a).total_cmp(&key(b))))
    else {
        return;
    };
    let show = |i: usize| {
        format!(
            "[{i}] {} instead of {} (off by {:e})",
            got[i],
            want[i],
            difference(got[i], want[i])
        )
    };
    panic!(
        "{name}: {} of {} differ by more than {tol:e}; first {}; worst {}; relative l2 {:e}",
        off.len(),
        got.len(),
        show(*first),
        show(*worst),
        relative_l2(got, want),
    );
}

/// The distance; 0 for two equal infinities.
fn difference(a: f32, b: f32) -> f32 {
    if a == b { 0.0 } else { (a - b).abs() }
}

fn same_length(name: &str, got: &[f32], want: &[f32]) {
    assert!(
        got.len() == want.len(),
        "{name}: {} numbers instead of {}",
        got.len(),
        want.len()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(got: &[f32], want: &[f32], tol: f32) -> Option<String> {
        let (got, want) = (got.to_vec(), want.to_vec());
        let failed = std::panic::catch_unwind(move || assert_close("x", &got, &want, tol)).err()?;
        failed.downcast_ref::<String>().cloned()
    }

    #[test]
    fn distances() {
        assert_eq!(relative_l2(&[3.0, 5.0], &[3.0, 4.0]), 0.2);
        assert_eq!(relative_l2(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative_l2(&[1.0], &[0.0]), f64::INFINITY);
        assert_eq!(max_abs_diff(&[1.0, -2.0], &[1.5, 1.0]), 3.0);
        assert_eq!(max_abs_diff(&[], &[]), 0.0);
        assert!(max_abs_diff(&[f32::NAN, 0.0], &[0.0, 1.0]).is_nan());
        assert!(max_abs_diff(&[0.0, 1.0], &[0.0, f32::NAN]).is_nan());
    }

    #[test]
    fn close_is_within_the_tolerance() {
        assert_eq!(message(&[1.0, 2.5], &[1.0, 2.0], 0.5), None);
        assert_eq!(message(&[f32::INFINITY], &[f32::INFINITY], 0.0), None);
        let text = message(&[1.0, 2.5, 9.0], &[1.0, 2.0, 1.0], 0.25).unwrap();
        assert!(text.contains("x: 2 of 3 differ"), "{text}");
        assert!(
            text.contains("first [1] 2.5 instead of 2 (off by 5e-1)"),
            "{text}"
        );
        assert!(text.contains("worst [2] 9 instead of 1 (off by 8e0)"), "{text}");
    }

    #[test]
    fn nan_and_lengths_fail() {
        assert!(
            message(&[f32::NAN], &[f32::NAN], 1.0)
                .unwrap()
                .contains("first [0] NaN instead of NaN")
        );
        assert!(message(&[1.0], &[f32::INFINITY], 1.0).is_some());
        assert_eq!(message(&[1.0], &[], 1.0).unwrap(), "x: 1 numbers instead of 0");
    }
}
