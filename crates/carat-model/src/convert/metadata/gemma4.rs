//! The GGUF keys of a Gemma 4.
//!
//! Nothing is left for other programs to assume: widths and patterns are all written. A number that differs from
//! layer to layer is an array.

use std::path::Path;

use carat_format::{Array, Value, read_limited};

use super::super::ConvertError;
use super::super::vocabulary::Vocabulary;
use super::{Keys, MAX_SIDE_FILE_BYTES, pieces, specials};
use crate::config::{SEES_SPANS, usually_sees_spans};
use crate::{Config, Error, LayerConfig};

pub(super) fn sizes(config: &Config, keys: &mut Keys, notes: &mut Vec<String>) {
    keys.count("context_length", config.context_len);
    keys.count("embedding_length", config.d_model);
    keys.count("block_count", config.layers.len());
    keys.number("attention.layer_norm_rms_epsilon", config.norm_eps);
    per_layer(config, keys, "feed_forward_length", |layer| layer.d_ff);
    per_layer(config, keys, "attention.head_count", |layer| layer.n_heads);
    per_layer(config, keys, "attention.head_count_kv", |layer| layer.n_kv_heads);
    let local = config.layers.iter().find(|layer| layer.window.is_some());
    let global = config.layers.iter().find(|layer| layer.window.is_none());
    for (layer, suffix) in [(global, ""), (local, "_swa")] {
        let Some(layer) = layer else { continue };
        keys.count(&format!("attention.key_length{suffix}"), layer.head_dim);
        keys.count(&format!("attention.value_length{suffix}"), layer.head_dim);
        keys.count(&format!("rope.dimension_count{suffix}"), layer.head_dim);
        match config.ropes.get(layer.rope) {
            Some(rope) if suffix.is_empty() => keys.global_rope(*rope),
            Some(rope) => keys.number("rope.freq_base_swa", rope.theta),
            None => {}
        }
    }
    let window = local.and_then(|layer| layer.window);
    keys.count("attention.sliding_window", window.unwrap_or(config.context_len));
    let is_local: Vec<bool> = config.layers.iter().map(|layer| layer.window.is_some()).collect();
    keys.add(
        "gemma4.attention.sliding_window_pattern",
        Value::Array(Array::from_bools(&is_local)),
    );
    keys.count(
        "attention.shared_kv_layers",
        config.layers.len() - config.n_owning_layers(),
    );
    keys.count("embedding_length_per_layer_input", config.per_layer_width);
    let sees_spans = config.layers.iter().any(|layer| layer.sees_spans);
    if local.is_some() && sees_spans != usually_sees_spans(config.per_layer_width) {
        keys.add(SEES_SPANS, Value::Bool(sees_spans));
        notes.push(
            "whether the rows of an image see each other is said by a key that programs other than carat may ignore"
                .to_owned(),
        );
    }
    if let Some(cap) = config.logit_cap {
        keys.number("final_logit_softcapping", cap);
    }
    if let Some(experts) = config.layers.first().and_then(|layer| layer.experts) {
        keys.count("expert_count", experts.n);
        keys.count("expert_used_count", experts.n_used);
        keys.count("expert_feed_forward_length", experts.d_ff);
    }
}

/// One number where all layers have the same, otherwise an array.
fn per_layer(config: &Config, keys: &mut Keys, key: &str, of: impl Fn(&LayerConfig) -> usize) {
    let values: Vec<usize> = config.layers.iter().map(of).collect();
    match values.first() {
        Some(first) if values.iter().all(|value| value == first) => keys.count(key, *first),
        _ => {
            // All are checked to be small when the configuration is read.
            let narrow = |value: &usize| i32::try_from(*value).unwrap_or(i32::MAX);
            let values: Vec<i32> = values.iter().map(narrow).collect();
            keys.add(&format!("gemma4.{key}"), Value::Array(Array::from_i32s(&values)));
        }
    }
}

/// Pieces with the rules that merge them: this vocabulary has no scores.
pub(super) fn tokenizer(vocabulary: &Vocabulary, folder: &Path, keys: &mut Keys) -> Result<(), ConvertError> {
    keys.text("tokenizer.ggml.model", "gemma4");
    pieces(vocabulary, keys)?;
    let merges = Array::from_strings(&vocabulary.merges)
        .ok_or_else(|| vocabulary.bad("its merges are too long for a GGUF file"))?;
    keys.add("tokenizer.ggml.merges", Value::Array(merges));
    let suppressed = suppressed(folder)?;
    if !suppressed.is_empty() {
        keys.add(
            "tokenizer.ggml.suppress_tokens",
            Value::Array(Array::from_i32s(&suppressed)),
        );
    }
    specials(vocabulary, "<turn|>", folder, keys)
}

/// Tokens that are never to be generated.
fn suppressed(folder: &Path) -> Result<Vec<i32>, ConvertError> {
    let path = folder.join("generation_config.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let bytes = read_limited(&path, MAX_SIDE_FILE_BYTES)?;
    let config: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
    let ids = config["suppress_tokens"].as_array().into_iter().flatten();
    Ok(ids.filter_map(|id| i32::try_from(id.as_i64()?).ok()).collect())
}
