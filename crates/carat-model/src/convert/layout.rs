//! What a conversion would write, from a configuration alone: for plans that are made without the model.

use carat_kernels::DType;

use super::Mix;
use super::plan::{self, Facts};
use crate::Config;

/// One tensor of a file that could be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MixTensor {
    /// GGUF name.
    pub name: String,
    /// The format that the mix gives it.
    pub dtype: DType,
    /// Its bytes in that format.
    pub n_bytes: u64,
}

/// The tensors that [`convert`](super::convert) writes for a text model of this shape with a tied embedding,
/// from a source in floats.
#[must_use]
pub fn tensors_of(config: &Config, mix: Mix) -> Vec<MixTensor> {
    let shapes = shapes(config);
    let facts: Vec<Facts<'_>> = shapes
        .iter()
        .map(|(name, shape)| Facts {
            name,
            shape,
            dtype: DType::F32,
        })
        .collect();
    let choices = plan::choose(mix, false, &facts);
    let tensors = shapes.iter().zip(choices).map(|((name, shape), choice)| {
        let n_elements = shape.iter().fold(1usize, |n, side| n.saturating_mul(*side));
        MixTensor {
            name: name.clone(),
            dtype: choice.dtype,
            // The rules choose only formats whose blocks divide the rows.
            n_bytes: choice.dtype.bytes_for(n_elements).unwrap_or(0) as u64,
        }
    });
    tensors.collect()
}

/// GGUF names and shapes, outermost first.
fn shapes(config: &Config) -> Vec<(String, Vec<usize>)> {
    let d = config.d_model;
    let mut shapes = vec![
        ("token_embd.weight".to_owned(), vec![config.vocab_size, d]),
        ("output_norm.weight".to_owned(), vec![d]),
    ];
    for (i, layer) in config.layers.iter().enumerate() {
        let (q, kv, e, f) = (layer.q_width(), layer.kv_width(), layer.head_dim, layer.d_ff);
        let of_layer = [
            ("attn_norm", vec![d]),
            ("attn_q", vec![q, d]),
            ("attn_k", vec![kv, d]),
            ("attn_v", vec![kv, d]),
            ("attn_q_norm", vec![e]),
            ("attn_k_norm", vec![e]),
            ("attn_output", vec![d, q]),
            ("post_attention_norm", vec![d]),
            ("ffn_norm", vec![d]),
            ("ffn_gate", vec![f, d]),
            ("ffn_up", vec![f, d]),
            ("ffn_down", vec![d, f]),
            ("post_ffw_norm", vec![d]),
        ];
        shapes.extend(
            of_layer
                .into_iter()
                .map(|(role, shape)| (format!("blk.{i}.{role}.weight"), shape)),
        );
    }
    shapes
}
