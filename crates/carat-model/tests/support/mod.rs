//! What several tests do with a model.

use carat_model::{KvCache, LanguageModel, LogitRows, Model, Segment};

/// Logits of one sequence's next tokens.
pub(crate) fn run(model: &mut Model, cache: &mut KvCache, tokens: &[u32], logits: LogitRows) -> Vec<f32> {
    let mut out = Vec::new();
    let mut batch = [Segment {
        tokens,
        media: &[],
        cache,
        logits,
    }];
    model.forward(&mut batch, &mut out).unwrap();
    out
}

/// The index of the largest logit of a row.
pub(crate) fn likeliest(row: &[f32]) -> u32 {
    let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    best.unwrap() as u32
}

/// Greedy text after `prompt`, a token at a time.
pub(crate) fn greedy(model: &mut Model, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut cache = model.new_cache(prompt.len() + n).unwrap();
    let mut text = Vec::new();
    let mut row = run(model, &mut cache, prompt, LogitRows::Last);
    loop {
        text.push(likeliest(&row));
        if text.len() == n {
            return text;
        }
        row = run(model, &mut cache, &text[text.len() - 1..], LogitRows::Last);
    }
}
