//! What a conversion would write, from a configuration alone: for plans that are made without the model.

use carat_kernels::DType;

use super::Mix;
use super::plan::{self, Facts};
use crate::Config;
use crate::weights::gguf_shapes;

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
    let shapes = gguf_shapes(config);
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
