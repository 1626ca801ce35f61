//! Scoring on a fake model, against sums written out.

use std::ops::ControlFlow;

use crate::fake::{BOS, FakeModel, N_PIECES, word};
use carat_engine::{Error, Windows, score};
use carat_model::{LanguageModel, LogitRows, Segment};

fn text(n: usize) -> Vec<u32> {
    (0..n).map(|i| word(["a", "b", "z"][(i * i) % 3])).collect()
}

/// `-ln p(target | seen)` of the chaotic model, in f64.
fn expected(seen: &[u32], target: u32) -> f64 {
    let mut model = FakeModel {
        max_batch_tokens: 500,
        ..FakeModel::chaotic()
    };
    let mut cache = model.new_cache(500).unwrap();
    let mut logits = Vec::new();
    let segment = Segment {
        tokens: seen,
        media: &[],
        cache: &mut cache,
        logits: LogitRows::Last,
    };
    model.forward(&mut [segment], &mut logits).unwrap();
    assert_eq!(logits.len(), N_PIECES);
    let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    sum.ln() - f64::from(logits[target as usize])
}

fn check(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*found) - expected).abs() < 1e-5,
            "token {i}: {found}, expected {expected}"
        );
    }
}

#[test]
fn strided_windows_see_what_transformers_shows_them() {
    let tokens = text(10);
    let windows = Windows::Strided { window: 6, stride: 3 };
    let sees = |i: usize| match i {
        1..6 => 0,
        6..9 => 3,
        _ => 6,
    };
    let expected: Vec<f64> = (1..10)
        .map(|i| expected(&tokens[sees(i)..i], tokens[i]))
        .collect();
    for max_batch_tokens in [1, 2, 5, 100] {
        let mut model = FakeModel {
            max_batch_tokens,
            ..FakeModel::chaotic()
        };
        check(
            &score(&mut model, &tokens, windows, |_, _| ControlFlow::Continue(())).unwrap(),
            &expected,
        );
    }
}

#[test]
fn halves_begin_with_bos_and_score_their_second_half() {
    let tokens = text(21);
    let mut wanted = Vec::new();
    for start in [0, 8] {
        let mut seen = tokens[start..start + 8].to_vec();
        seen[0] = BOS;
        wanted.extend((5..8).map(|i| expected(&seen[..i], seen[i])));
    }
    let windows = Windows::Halves {
        window: 8,
        bos: Some(BOS),
    };
    let mut progress = Vec::new();
    let found = score(&mut FakeModel::chaotic(), &tokens, windows, |done, all| {
        progress.push((done, all));
        ControlFlow::Continue(())
    })
    .unwrap();
    check(&found, &wanted);
    assert_eq!(progress, [(0, 6), (3, 6), (3, 6), (6, 6)]);
}

#[test]
fn scoring_can_be_cancelled_and_names_unknown_tokens() {
    let windows = Windows::Strided { window: 6, stride: 6 };
    let error = score(&mut FakeModel::chaotic(), &text(10), windows, |_, _| {
        ControlFlow::Break(())
    })
    .unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    let error = score(&mut FakeModel::chaotic(), &[2, 9999], windows, |_, _| {
        ControlFlow::Continue(())
    })
    .unwrap_err();
    assert!(error.to_string().contains("names token 9999"), "{error}");
}
