//! A draft is checked as decoding would have computed it: the same numbers to the bit, with every kind of layer, of
//! weights and of cache, alone and beside other sequences, and as if nothing had been drafted once it is taken back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "support/quantized.rs"]
mod quantized;
#[expect(dead_code, reason = "for text, which nobody makes here")]
mod support;

use std::path::Path;

use carat_model::{
    Isa, KvCache, KvDType, LanguageModel, LoadOptions, LogitRows, MAX_CHAIN, Model, Precision, Segment,
    SequenceCache,
};
use carat_testkit::fixture;
use quantized::quantized;
use support::run;

const MODELS: [&str; 4] = ["gemma3-text", "gemma4-unified", "gemma4-edge", "gemma4-moe"];

fn tokens(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 131 + seed * 17) % 500) as u32).collect()
}

/// Prefills `ids[..n]`, then decodes the rest: one row of logits for each.
fn plain(model: &mut Model, ids: &[u32], n: usize) -> Vec<f32> {
    let mut cache = model.new_cache(ids.len()).unwrap();
    run(model, &mut cache, &ids[..n], LogitRows::None);
    let mut rows = Vec::new();
    for id in &ids[n..] {
        rows.extend(run(model, &mut cache, &[*id], LogitRows::Last));
    }
    rows
}

/// The same in chains of each length, every one with wrong guesses behind it that are taken back.
fn chained(model: &mut Model, ids: &[u32], n: usize, longest: usize) -> Vec<f32> {
    let mut cache = model.new_cache(ids.len() + longest).unwrap();
    run(model, &mut cache, &ids[..n], LogitRows::None);
    let (mut rows, mut at, mut n_true) = (Vec::new(), n, 1);
    while at < ids.len() {
        let end = (at + n_true).min(ids.len());
        let mut chain = ids[at..end].to_vec();
        chain.extend(tokens(longest - n_true, at));
        let logits = run(model, &mut cache, &chain, LogitRows::All);
        rows.extend_from_slice(&logits[..(end - at) * model.vocab_size()]);
        assert!(cache.truncate(end));
        at = end;
        n_true = n_true % longest + 1;
    }
    rows
}

fn check(path: &Path, options: LoadOptions) {
    let mut model = Model::load(path, options).unwrap();
    let longest = model.n_alike_rows();
    assert!((4..=MAX_CHAIN).contains(&longest));
    let ids = tokens(240, 3);
    let want = plain(&mut model, &ids, 40);
    let got = chained(&mut model, &ids, 40, longest);
    let width = model.vocab_size();
    for (i, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let same = got.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(
            same,
            "{}: row {i} differs with {} and {:?}",
            path.display(),
            options.isa,
            options.precision
        );
    }
}

#[test]
fn a_chain_is_decoding_to_the_bit_on_every_kind_of_model() {
    for name in MODELS {
        check(&fixture(name), LoadOptions::default());
    }
}

#[test]
fn a_chain_is_decoding_to_the_bit_with_every_cache_and_precision() {
    let dir = quantized("gemma3-text");
    let path = dir.path().join("model.gguf");
    for kv_dtype in [KvDType::F32, KvDType::Bf16, KvDType::Q8_0, KvDType::Q4_0] {
        for precision in [Precision::Int8, Precision::Int16, Precision::F32] {
            let options = LoadOptions {
                kv_dtype,
                precision: Some(precision),
                ..LoadOptions::default()
            };
            check(&path, options);
        }
    }
}

#[test]
fn a_chain_is_decoding_to_the_bit_on_every_instruction_set() {
    let dir = quantized("gemma3-text");
    let path = dir.path().join("model.gguf");
    for isa in Isa::available() {
        let options = LoadOptions {
            isa,
            precision: Some(Precision::Int8),
            ..LoadOptions::default()
        };
        check(&path, options);
    }
}

/// As many rows in all as are computed alike, shared out among sequences of different lengths.
#[test]
fn chains_beside_each_other_are_decoding_to_the_bit() {
    for name in MODELS {
        for isa in Isa::available() {
            let options = LoadOptions {
                isa,
                ..LoadOptions::default()
            };
            check_beside(&fixture(name), options);
        }
    }
}

fn check_beside(path: &Path, options: LoadOptions) {
    let mut model = Model::load(path, options).unwrap();
    // One goes on by a single token, the other by what is left; prompts before and beyond the window.
    let n_rows = model.n_alike_rows();
    let prompts = [tokens(7, 1), tokens(50, 2)];
    let news = [tokens(1, 5), tokens(n_rows - 1, 6)];
    let mut caches: Vec<KvCache> = Vec::new();
    let mut want = Vec::new();
    for (prompt, new) in prompts.iter().zip(&news) {
        let ids = [&prompt[..], new].concat();
        want.extend(plain(&mut model, &ids, prompt.len()));
        let mut cache = model.new_cache(100).unwrap();
        run(&mut model, &mut cache, prompt, LogitRows::None);
        caches.push(cache);
    }
    let mut got = Vec::new();
    let rows = caches.iter_mut().zip(&news);
    let mut batch: Vec<Segment<'_, KvCache>> = rows
        .map(|(cache, tokens)| Segment {
            tokens,
            media: &[],
            cache,
            logits: LogitRows::All,
        })
        .collect();
    model.forward(&mut batch, &mut got).unwrap();
    let is_same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
    assert!(
        got.len() == want.len() && is_same,
        "{} {}",
        path.display(),
        options.isa
    );
}
