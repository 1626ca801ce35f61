//! A Gemma 4 configuration from the keys of a GGUF file.
//!
//! The plain keys are those of global layers, the ones ending in `_swa` those of local ones; any of them may be
//! one number for all layers or an array. That values are keys shows in the tensors that are missing, and the
//! share of a head that turns in the factors of `rope_freqs.weight`.

use carat_kernels::dequantize;

use super::super::gemma4::{Gemma4Layer, Gemma4Sizes};
use super::super::{Config, Experts, MAX_LAYERS, Rope, every_nth_global};
use super::{GgufHead, Keys, vocabulary_rows};
use crate::Error;

/// Factors of frequencies above this stand for "does not turn": files have 1e30 there.
const STANDS_STILL: f32 = 1e10;

const PATTERN: &str = "gemma4.attention.sliding_window_pattern";

/// The factors of frequencies.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Whether images are seen in both directions: a key of carat's own, written where [`usually_sees_spans`] is wrong.
pub(crate) const SEES_SPANS: &str = "gemma4.attention.bidirectional_spans";

/// Files do not say; of the released models those with per-layer inputs see images as they see text.
pub(crate) fn usually_sees_spans(per_layer_width: usize) -> bool {
    per_layer_width == 0
}

/// Reads the keys of a file of architecture `gemma4`.
pub(super) fn read(gguf: &dyn GgufHead, keys: &Keys<'_>) -> Result<Config, Error> {
    let n_layers = keys.required("gemma4.block_count")?;
    if n_layers == 0 || n_layers > MAX_LAYERS {
        return Err(keys.bad("gemma4.block_count", "between 1 and 1024"));
    }
    let head_dim = keys.usize("gemma4.attention.key_length")?.unwrap_or(512);
    let local_head_dim = keys.usize("gemma4.attention.key_length_swa")?.unwrap_or(256);
    for (key, expected) in [
        ("gemma4.attention.value_length", head_dim),
        ("gemma4.attention.value_length_swa", local_head_dim),
    ] {
        if keys.usize(key)?.is_some_and(|found| found != expected) {
            return Err(keys.bad(key, "the key length"));
        }
    }
    let per_layer_width = keys
        .usize("gemma4.embedding_length_per_layer_input")?
        .unwrap_or(0);
    let heads = per_layer(keys, "gemma4.attention.head_count", n_layers)?;
    let kv_heads = per_layer(keys, "gemma4.attention.head_count_kv", n_layers)?;
    let d_ff = per_layer(keys, "gemma4.feed_forward_length", n_layers)?;
    let is_global = pattern(keys, n_layers)?;
    let layer = |i: usize| Gemma4Layer {
        is_global: is_global[i],
        n_heads: heads[i],
        n_kv_heads: kv_heads[i],
        head_dim: if is_global[i] { head_dim } else { local_head_dim },
        d_ff: d_ff[i],
        keys_are_values: gguf.shape(&format!("blk.{i}.attn_v.weight")).is_none(),
    };
    let sizes = Gemma4Sizes {
        d_model: keys.required("gemma4.embedding_length")?,
        vocab_size: vocabulary_rows(gguf),
        context_len: keys.required("gemma4.context_length")?,
        window: keys.required("gemma4.attention.sliding_window")?,
        norm_eps: keys
            .f32("gemma4.attention.layer_norm_rms_epsilon")?
            .unwrap_or(1e-6),
        logit_cap: keys.f32("gemma4.final_logit_softcapping")?,
        per_layer_width,
        local_rope: Rope {
            theta: keys.f32("gemma4.rope.freq_base_swa")?.unwrap_or(1e4),
            scaling: 1.0,
            n_turning: None,
        },
        global_rope: Rope {
            theta: keys.f32("gemma4.rope.freq_base")?.unwrap_or(1e6),
            scaling: keys.scaling([
                "gemma4.rope.scaling.type",
                "gemma4.rope.scaling.factor",
                "gemma4.rope.scale_linear",
            ])?,
            n_turning: Some(n_turning(gguf, keys, head_dim)?),
        },
        sees_spans: keys
            .metadata
            .bool(&keys.name(SEES_SPANS))?
            .unwrap_or(usually_sees_spans(per_layer_width)),
        experts: experts(keys)?,
        // All layers of a drafter share, with layers that are in another file.
        n_shared: match keys.usize("gemma4.attention.shared_kv_layers")? {
            Some(n) if !keys.is_drafter => n,
            _ => 0,
        },
        layers: (0..n_layers).map(layer).collect(),
    };
    sizes.into_config(keys.path)
}

fn per_layer(keys: &Keys<'_>, field: &'static str, n_layers: usize) -> Result<Vec<usize>, Error> {
    let values = keys.metadata.u32_or_array(&keys.name(field), n_layers)?;
    let values = values.ok_or_else(|| Error::MissingField {
        path: keys.path.to_owned(),
        field,
    })?;
    Ok(values.into_iter().map(|value| value as usize).collect())
}

/// Which layers are global: an array says which are local, a number how many there are to a global one, and nothing
/// means six. The last is always global then.
fn pattern(keys: &Keys<'_>, n_layers: usize) -> Result<Vec<bool>, Error> {
    if let Some(carat_format::Value::Array(_)) = keys.metadata.get(&keys.name(PATTERN)) {
        let local = keys.metadata.bools(&keys.name(PATTERN))?.unwrap_or_default();
        if local.len() != n_layers {
            return Err(keys.bad(PATTERN, "one value for each layer"));
        }
        return Ok(local.into_iter().map(|is_local| !is_local).collect());
    }
    let mut pattern = every_nth_global(n_layers, keys.usize(PATTERN)?.unwrap_or(6));
    if let Some(last) = pattern.last_mut() {
        *last = true;
    }
    Ok(pattern)
}

fn experts(keys: &Keys<'_>) -> Result<Option<Experts>, Error> {
    match keys.usize("gemma4.expert_count")? {
        None | Some(0) => Ok(None),
        Some(n) => Ok(Some(Experts {
            n,
            n_used: keys.required("gemma4.expert_used_count")?,
            d_ff: keys.required("gemma4.expert_feed_forward_length")?,
        })),
    }
}

/// Pairs of a global layer's head that turn: those whose factor is one. Without the tensor, a quarter.
fn n_turning(gguf: &dyn GgufHead, keys: &Keys<'_>, head_dim: usize) -> Result<usize, Error> {
    let Some((dtype, bytes)) = gguf.values(ROPE_FACTORS)? else {
        return Ok(head_dim / 8);
    };
    let found = gguf.shape(ROPE_FACTORS).unwrap_or_default();
    if found != [head_dim / 2] {
        return Err(Error::TensorShape {
            path: keys.path.to_owned(),
            name: ROPE_FACTORS.to_owned(),
            expected: vec![head_dim / 2],
            found: found.to_vec(),
        });
    }
    let mut factors = vec![0.0; head_dim / 2];
    dequantize(dtype, bytes, &mut factors).map_err(|source| Error::Tensor {
        name: ROPE_FACTORS.to_owned(),
        source,
    })?;
    let n_turning = factors.iter().take_while(|factor| **factor == 1.0).count();
    if factors[n_turning..].iter().all(|factor| *factor > STANDS_STILL) {
        Ok(n_turning)
    } else {
        Err(Error::RopeFactors {
            path: keys.path.to_owned(),
        })
    }
}
