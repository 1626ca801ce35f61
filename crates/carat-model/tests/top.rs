//! The largest logits alone are those of the whole row, to the bit, with every kind of weights and arithmetic, in any
//! company.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "support/quantized.rs"]
mod quantized;

use std::path::Path;

use carat_model::{KvCache, LanguageModel, LoadOptions, LogitRows, Model, Precision, Segment, TokenLogit};
use carat_testkit::fixture;
use quantized::quantized;

fn load(path: &Path, precision: Precision) -> Model {
    let options = LoadOptions {
        n_threads: 2,
        precision: Some(precision),
        ..LoadOptions::default()
    };
    Model::load(path, options).unwrap()
}

/// The `k` largest of a row, by sorting it.
fn largest(row: &[f32], k: usize) -> Vec<TokenLogit> {
    let mut all: Vec<TokenLogit> = (0..)
        .zip(row)
        .map(|(id, logit)| TokenLogit { id, logit: *logit })
        .collect();
    all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
    all.truncate(k);
    all
}

/// Nine sequences after prompts of different lengths.
fn sequences(model: &mut Model) -> Vec<KvCache> {
    let one = |i: usize| {
        let mut cache = model.new_cache(100).unwrap();
        let tokens: Vec<u32> = (0..30 + i).map(|t| ((t * 131 + i * 17) % 500) as u32).collect();
        let mut batch = [Segment {
            tokens: &tokens,
            media: &[],
            cache: &mut cache,
            logits: LogitRows::None,
        }];
        model.forward(&mut batch, &mut Vec::new()).unwrap();
        cache
    };
    (0..9).map(one).collect()
}

/// One token for each of the sequences, with these rows wanted.
fn step(model: &mut Model, rows: &[LogitRows; 9]) -> (Vec<f32>, Vec<Vec<TokenLogit>>, Vec<f32>) {
    let mut caches = sequences(model);
    let tokens: Vec<u32> = (0..9).map(|i| 40 + i).collect();
    let segments = caches.iter_mut().zip(tokens.chunks(1)).zip(rows);
    let mut batch: Vec<_> = segments
        .map(|((cache, tokens), logits)| Segment {
            tokens,
            media: &[],
            cache,
            logits: *logits,
        })
        .collect();
    let mut logits = Vec::new();
    model.forward(&mut batch, &mut logits).unwrap();
    (logits, model.top().to_vec(), model.hidden().to_vec())
}

/// Where nine rows are multiplied by another kernel than one, the numbers may differ in rounding, and the order with them.
fn compare(top: &[TokenLogit], expected: &[TokenLogit], is_exact: bool, what: &str) {
    if is_exact {
        assert_eq!(top, expected, "{what}");
    }
    assert_eq!(top.len(), expected.len(), "{what}");
    for (got, want) in top.iter().zip(expected) {
        assert!(
            (got.logit - want.logit).abs() <= 1e-3 * want.logit.abs().max(1.0),
            "{what}"
        );
    }
}

fn check(path: &Path, name: &str) {
    for precision in [Precision::Int16, Precision::Int8, Precision::F32] {
        let mut model = load(path, precision);
        let is_exact = model.n_alike_rows() >= 9;
        let vocab_size = model.vocab_size();
        let (whole, none, _) = step(&mut model, &[LogitRows::Last; 9]);
        assert!(none.is_empty());
        let row = |i: usize| &whole[i * vocab_size..(i + 1) * vocab_size];

        let (logits, top, _) = step(&mut model, &[LogitRows::Top(20); 9]);
        assert!(logits.is_empty() && top.len() == 9);
        for (i, top) in top.iter().enumerate() {
            compare(
                top,
                &largest(row(i), 20),
                is_exact,
                &format!("{name} {precision:?} {i}"),
            );
        }

        use LogitRows::{Hidden, Last, None, Top};
        let mixed = [
            Top(3),
            Last,
            Hidden,
            Top(1),
            None,
            Top(7),
            Hidden,
            Last,
            Top(100_000),
        ];
        let (logits, top, hidden) = step(&mut model, &mixed);
        assert_eq!(logits.len(), 2 * vocab_size);
        if is_exact {
            assert_eq!(logits, [row(1), row(7)].concat(), "{name} {precision:?}");
        }
        assert_eq!(hidden.len(), 2 * model.config().d_model);
        assert_eq!(top.len(), 4);
        for (top, (i, k)) in top.iter().zip([(0, 3), (3, 1), (5, 7), (8, model.max_top())]) {
            compare(
                top,
                &largest(row(i), k),
                is_exact,
                &format!("{name} {precision:?} {i}"),
            );
        }
    }
}

#[test]
fn the_largest_logits_are_those_of_the_whole_row() {
    for name in ["gemma3-text", "gemma4-unified", "gemma4-edge", "gemma4-moe"] {
        check(&fixture(format!("{name}/config.json")).with_file_name(""), name);
    }
}

#[test]
fn the_largest_logits_of_a_quantized_model_are_those_of_the_whole_row() {
    for name in ["gemma3-text", "gemma4-dense"] {
        let dir = quantized(name);
        check(&dir.path().join("model.gguf"), name);
    }
}
