//! One vector for a text: the mean of the model's last hidden states, of length 1.

use carat_engine::Embed;
use carat_model::{LanguageModel, LogitRows, Model, Observed, Segment};

/// Tokens of a text that are embedded in one pass: each makes a row of logits on the way.
const EMBED_CHUNK: usize = 32;

/// The mean of the last hidden states of a text, of length 1.
pub(super) fn embedder() -> Embed<Model> {
    Box::new(|model: &mut Model, ids: &[u32]| {
        let failed = |error: carat_model::Error| carat_engine::Error::Model(Box::new(error));
        let n_layers = model.config().layers.len();
        let mut sum = vec![0.0f32; model.config().d_model];
        let mut cache = model.new_cache(ids.len()).map_err(failed)?;
        let mut logits = Vec::new();
        for tokens in ids.chunks(EMBED_CHUNK.min(model.max_batch_tokens())) {
            let mut batch = [Segment {
                tokens,
                media: &[],
                cache: &mut cache,
                logits: LogitRows::All,
            }];
            let mut add = |what: Observed, rows: &[f32]| {
                if matches!(what, Observed::Hidden(i) if i == n_layers) {
                    for row in rows.chunks_exact(sum.len()) {
                        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
                    }
                }
            };
            model
                .forward_observed(&mut batch, &mut logits, &mut add)
                .map_err(failed)?;
        }
        let norm = sum
            .iter()
            .map(|x| x * x)
            .sum::<f32>()
            .sqrt()
            .max(f32::MIN_POSITIVE);
        sum.iter_mut().for_each(|x| *x /= norm);
        Ok(sum)
    })
}
