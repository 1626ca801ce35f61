//! Which tensor gets which format.
//!
//! - Norms, one-dimensional tensors and small routers keep their numbers: they are a vanishing part of the
//!   file and the model is most sensitive to them.
//! - The matrix that makes the logits (the embedding, where it serves as both) gets Q6_K in all mixes of
//!   blocks below Q8_0.
//! - Value projections and the MLP's last matrices of some layers get more bits in the `_M` and `_L` mixes.
//! - Rows that are no whole blocks of 256 fall back to blocks of 32: Q6_K to Q8_0, Q5_K to Q5_1, Q4_K to Q5_0,
//!   Q3_K and Q2_K to Q4_0 (older llama.cpp: IQ4_NL, which carat only reads); odd rows become F16.

use carat_kernels::DType;

use super::Mix;

/// What the rules ask about a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    /// GGUF name.
    pub(super) name: &'a str,
    /// Outermost first.
    pub(super) shape: &'a [usize],
    /// As it is now.
    pub(super) dtype: DType,
}

/// The format chosen for a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// What it is written as.
    pub(super) dtype: DType,
    /// What the mix wanted, where rows do not divide into its blocks.
    pub(super) instead_of: Option<DType>,
}

/// Chooses a format for each tensor. `pure` gives every matrix the format of the bulk.
pub(super) fn choose(mix: Mix, pure: bool, tensors: &[Facts<'_>]) -> Vec<Choice> {
    let model = ModelFacts::of(tensors);
    let choose_one = |tensor: &Facts<'_>| {
        if !is_quantizable(tensor) {
            return Choice {
                dtype: tensor.dtype,
                instead_of: None,
            };
        }
        let wanted = if pure || !mix.bulk().is_quantized() {
            mix.bulk()
        } else {
            wanted(mix, tensor, &model)
        };
        let dtype = fitting(wanted, tensor.shape);
        Choice {
            dtype,
            instead_of: (dtype != wanted).then_some(wanted),
        }
    };
    tensors.iter().map(choose_one).collect()
}

/// What the rules ask about the whole model.
struct ModelFacts {
    n_layers: usize,
    has_head: bool,
    /// Query heads per KV head.
    group: usize,
    /// Layers that have a value projection, in order.
    value_layers: Vec<usize>,
}

impl ModelFacts {
    fn of(tensors: &[Facts<'_>]) -> ModelFacts {
        let rows = |name| {
            tensors
                .iter()
                .find(|t| t.name == name)
                .and_then(|t| t.shape.first().copied())
        };
        let (q, k) = (rows("blk.0.attn_q.weight"), rows("blk.0.attn_k.weight"));
        let of_values = tensors.iter().filter(|t| t.name.ends_with(".attn_v.weight"));
        let mut value_layers: Vec<usize> = of_values.filter_map(|t| layer(t.name)).collect();
        value_layers.sort_unstable();
        ModelFacts {
            n_layers: tensors
                .iter()
                .filter_map(|t| layer(t.name))
                .max()
                .map_or(0, |last| last.saturating_add(1)),
            has_head: tensors.iter().any(|t| t.name == "output.weight"),
            group: q.unwrap_or(1) / k.unwrap_or(1).max(1),
            value_layers,
        }
    }
}

/// The N of `blk.N.…`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Matrices of the text model, without the router of experts and the projection of per-layer embeddings.
fn is_quantizable(tensor: &Facts<'_>) -> bool {
    let name = tensor.name;
    let is_of_text = matches!(
        name,
        "token_embd.weight" | "output.weight" | "per_layer_token_embd.weight"
    ) || layer(name).is_some();
    is_of_text
        && tensor.shape.len() >= 2
        && name.ends_with(".weight")
        && !name.ends_with("_norm.weight")
        && !name.ends_with(".ffn_gate_inp.weight")
}

/// The format that a block mix wants for a matrix.
fn wanted(mix: Mix, tensor: &Facts<'_>, model: &ModelFacts) -> DType {
    let bulk = mix.bulk();
    let name = tensor.name;
    if name == "output.weight" || (name == "token_embd.weight" && !model.has_head) {
        return if bulk == DType::Q8_0 {
            DType::Q8_0
        } else {
            DType::Q6_K
        };
    }
    let Some(layer) = layer(name) else { return bulk };
    if name.ends_with(".attn_v.weight") {
        let rank = model.value_layers.partition_point(|l| *l < layer);
        of_values(mix, rank, model)
    } else if name.contains(".ffn_down") {
        of_mlp_end(mix, layer, model.n_layers)
    } else if name.ends_with(".attn_output.weight") {
        match mix {
            Mix::Q2_K => DType::Q3_K,
            Mix::Q3_K_M => DType::Q4_K,
            Mix::Q3_K_L => DType::Q5_K,
            _ => bulk,
        }
    } else {
        bulk
    }
}

/// The value projection: small, and every query head of its group hangs on it.
fn of_values(mix: Mix, rank: usize, model: &ModelFacts) -> DType {
    match mix {
        Mix::Q2_K if model.group >= 4 => DType::Q4_K,
        Mix::Q2_K => DType::Q3_K,
        Mix::Q3_K_M if rank < 2 => DType::Q5_K,
        Mix::Q3_K_M => DType::Q4_K,
        Mix::Q3_K_L => DType::Q5_K,
        Mix::Q4_K_S if rank < 4 => DType::Q5_K,
        Mix::Q4_K_M | Mix::Q5_K_M if is_sensitive(rank, model.value_layers.len()) => DType::Q6_K,
        _ => mix.bulk(),
    }
}

/// The last matrix of the MLP, whose input has the widest range.
fn of_mlp_end(mix: Mix, layer: usize, n_layers: usize) -> DType {
    match mix {
        Mix::Q2_K => DType::Q3_K,
        Mix::Q3_K_M if layer < n_layers / 16 => DType::Q5_K,
        Mix::Q3_K_M => DType::Q4_K,
        Mix::Q3_K_L => DType::Q5_K,
        Mix::Q4_K_S if layer < n_layers / 8 => DType::Q5_K,
        Mix::Q4_K_M | Mix::Q5_K_M if is_sensitive(layer, n_layers) => DType::Q6_K,
        _ => mix.bulk(),
    }
}

/// The first and last eighth of the layers, and every third between.
fn is_sensitive(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// `wanted`, or what stands in for it where rows are not whole blocks.
fn fitting(wanted: DType, shape: &[usize]) -> DType {
    let n_cols = shape.last().copied().unwrap_or(0);
    let fits = |dtype: &DType| n_cols.is_multiple_of(dtype.block_len());
    let small_blocks = match wanted {
        DType::Q2_K | DType::Q3_K => DType::Q4_0,
        DType::Q4_K => DType::Q5_0,
        DType::Q5_K => DType::Q5_1,
        DType::Q6_K => DType::Q8_0,
        other => other,
    };
    [wanted, small_blocks]
        .into_iter()
        .find(fits)
        .unwrap_or(DType::F16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tensors of a model in the shape of Gemma 3 with 18 layers, rows of `width`.
    fn names() -> Vec<String> {
        let mut names = vec!["output_norm.weight".to_owned(), "token_embd.weight".to_owned()];
        for layer in 0..18 {
            for role in [
                "attn_q",
                "attn_k",
                "attn_v",
                "attn_output",
                "attn_norm",
                "ffn_up",
                "ffn_down",
            ] {
                names.push(format!("blk.{layer}.{role}.weight"));
            }
        }
        names
    }

    fn chosen(mix: Mix, pure: bool, width: usize) -> impl Fn(&str) -> DType {
        let names = names();
        let shape = |name: &str| {
            if name.ends_with("_norm.weight") {
                vec![width]
            } else if name.contains("attn_q") {
                vec![1024, width]
            } else {
                vec![256, width]
            }
        };
        let shapes: Vec<Vec<usize>> = names.iter().map(|name| shape(name)).collect();
        let facts: Vec<Facts<'_>> = names
            .iter()
            .zip(&shapes)
            .map(|(name, shape)| Facts {
                name,
                shape,
                dtype: DType::F32,
            })
            .collect();
        let choices = choose(mix, pure, &facts);
        move |name| choices[names.iter().position(|n| n == name).unwrap()].dtype
    }

    fn layers_with(chosen: &impl Fn(&str) -> DType, role: &str, dtype: DType) -> Vec<usize> {
        (0..18)
            .filter(|layer| chosen(&format!("blk.{layer}.{role}.weight")) == dtype)
            .collect()
    }

    /// The layers are those of a published Q4_K_M file of an 18-layer model.
    #[test]
    fn q4_k_m_spends_bits_on_sensitive_layers() {
        let chosen = chosen(Mix::Q4_K_M, false, 1024);
        let sensitive = [0, 1, 4, 7, 10, 13, 15, 16, 17];
        assert_eq!(layers_with(&chosen, "ffn_down", DType::Q6_K), sensitive);
        assert_eq!(layers_with(&chosen, "attn_v", DType::Q6_K), sensitive);
        assert_eq!(
            layers_with(&chosen, "ffn_up", DType::Q4_K),
            (0..18).collect::<Vec<_>>()
        );
        assert_eq!(chosen("token_embd.weight"), DType::Q6_K);
        assert_eq!(chosen("output_norm.weight"), DType::F32);
        assert_eq!(chosen("blk.3.attn_norm.weight"), DType::F32);
    }

    #[test]
    fn rows_of_640_fall_back_to_blocks_of_32() {
        let of_q4 = chosen(Mix::Q4_K_M, false, 640);
        assert_eq!(of_q4("token_embd.weight"), DType::Q8_0);
        assert_eq!(of_q4("blk.0.attn_v.weight"), DType::Q8_0);
        assert_eq!(of_q4("blk.2.attn_v.weight"), DType::Q5_0);
        assert_eq!(
            chosen(Mix::Q5_K_S, false, 640)("blk.2.ffn_up.weight"),
            DType::Q5_1
        );
        assert_eq!(
            chosen(Mix::Q3_K_S, false, 640)("blk.2.ffn_up.weight"),
            DType::Q4_0
        );
        assert_eq!(chosen(Mix::Q4_0, false, 24)("blk.2.ffn_up.weight"), DType::F16);
    }

    #[test]
    fn small_mixes_follow_their_rules() {
        let of_q2 = chosen(Mix::Q2_K, false, 1024);
        // Four query heads per KV head.
        assert_eq!(of_q2("blk.9.attn_v.weight"), DType::Q4_K);
        assert_eq!(of_q2("blk.9.ffn_down.weight"), DType::Q3_K);
        assert_eq!(of_q2("blk.9.attn_output.weight"), DType::Q3_K);
        assert_eq!(of_q2("blk.9.ffn_up.weight"), DType::Q2_K);
        let of_q3 = chosen(Mix::Q3_K_M, false, 1024);
        assert_eq!(layers_with(&of_q3, "attn_v", DType::Q5_K), [0, 1]);
        assert_eq!(layers_with(&of_q3, "ffn_down", DType::Q5_K), [0]);
        let of_q4 = chosen(Mix::Q4_K_S, false, 1024);
        assert_eq!(layers_with(&of_q4, "attn_v", DType::Q5_K), [0, 1, 2, 3]);
        assert_eq!(layers_with(&of_q4, "ffn_down", DType::Q5_K), [0, 1]);
    }

    #[test]
    fn pure_and_plain_mixes_are_uniform() {
        for (mix, pure) in [(Mix::Q4_0, true), (Mix::Q8_0, false), (Mix::BF16, false)] {
            let chosen = chosen(mix, pure, 1024);
            for name in names().iter().filter(|name| !name.ends_with("_norm.weight")) {
                assert_eq!(chosen(name), mix.bulk(), "{name}");
            }
        }
        assert_eq!(chosen(Mix::Q4_0, false, 1024)("token_embd.weight"), DType::Q6_K);
    }

    #[test]
    fn what_is_no_matrix_of_the_text_model_stays() {
        for (name, shape) in [
            ("rope_freqs.weight", &[256][..]),
            ("blk.0.ffn_gate_inp.weight", &[128, 256]),
            ("blk.0.layer_output_scale.weight", &[1]),
            ("blk.0.ffn_down_exps.scale", &[128, 256]),
            ("v.blk.0.attn_q.weight", &[256, 256]),
            ("per_layer_model_proj.weight", &[256, 256]),
        ] {
            let facts = Facts {
                name,
                shape,
                dtype: DType::BF16,
            };
            assert_eq!(choose(Mix::Q4_0, false, &[facts])[0].dtype, DType::BF16, "{name}");
        }
    }
}
