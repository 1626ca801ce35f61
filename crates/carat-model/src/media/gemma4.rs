//! The tower of Gemma 4 E2B, E4B, 26B-A4B and 31B: patches of an image of any size, then pooling and a projection.
//!
//! ```text
//! 2p - 1 → linear + column + row → layers { norm → q,k,v → norm heads, rotate by column and row → attention → o
//!                                          → norm → add; norm → gelu(gate) * up → down → norm → add }
//!        → mean of 3 x 3 patches * sqrt(width) → (standardize) → rms → linear
//! ```
//!
//! After the reference's `modeling_gemma4`. Scores are not scaled; values are normed without weights; the first half
//! of a head turns with the column, the second with the row. Padding patches are left out from the start: nothing
//! attends to them.

use carat_kernels::encoder::EncoderHeads;
use carat_kernels::vector;

use super::linear::Linear;
use super::tensors::{PixelOrder, Tensors};
use super::workspace::{Workspace, row};
use super::{ImageInput, MediaObserver, MediaStage, real_patches};
use crate::Error;
use crate::config::Gemma4VisionConfig;

/// Rows of the MLP's wide activations at a time.
const MLP_ROWS: usize = 2048;

/// See the module's head.
pub(super) struct Gemma4Vision {
    config: Gemma4VisionConfig,
    patch: Linear,
    /// `[2, positions, d_model]`: of columns, then of rows.
    positions: Vec<f32>,
    layers: Vec<Layer>,
    /// Shift and scale.
    standard: Option<(Vec<f32>, Vec<f32>)>,
    ones: Vec<f32>,
    projection: Linear,
}

struct Layer {
    attention_norm: Vec<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    o: Linear,
    post_attention_norm: Vec<f32>,
    mlp_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
    down: Linear,
    post_mlp_norm: Vec<f32>,
}

/// Cosines and sines of the positions along an axis, `[positions, head_dim / 4]`.
struct Angles {
    quarter: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Activations of a layer, reused by the next.
#[derive(Default)]
struct Buffers {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    projected: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl Gemma4Vision {
    pub(super) fn load(
        config: &Gemma4VisionConfig,
        tensors: &Tensors<'_>,
        d_text: usize,
    ) -> Result<Gemma4Vision, Error> {
        let d = config.d_model;
        let table = 2 * config.positions * d;
        let prefix = tensors.prefix(&["model.", ""], "vision_tower.patch_embedder.input_proj.weight");
        let of = |hugging_face: &str, gguf: &str| {
            if tensors.is_mmproj() {
                gguf.to_owned()
            } else {
                format!("{prefix}{hugging_face}")
            }
        };
        let order = if tensors.is_mmproj() {
            PixelOrder::ChannelsFirst
        } else {
            PixelOrder::ChannelsLast
        };
        let standard = |what: &str| {
            tensors.floats(
                &of(&format!("vision_tower.std_{what}"), &format!("v.std_{what}")),
                d,
            )
        };
        let layers = (0..config.n_layers).map(|i| {
            let layer = of(&format!("vision_tower.encoder.layers.{i}"), &format!("v.blk.{i}"));
            Layer::load(config, tensors, &layer)
        });
        Ok(Gemma4Vision {
            patch: tensors.pixel_linear(
                &of("vision_tower.patch_embedder.input_proj", "v.patch_embd"),
                d,
                config.patch_size,
                order,
            )?,
            positions: tensors.floats(
                &of(
                    "vision_tower.patch_embedder.position_embedding_table",
                    "v.position_embd.weight",
                ),
                table,
            )?,
            layers: layers.collect::<Result<Vec<_>, Error>>()?,
            standard: if config.standardize {
                Some((standard("bias")?, standard("scale")?))
            } else {
                None
            },
            ones: vec![1.0; d.max(config.head_dim)],
            projection: tensors.linear(
                &of("embed_vision.embedding_projection", "mm.input_projection"),
                d_text,
                d,
            )?,
            config: config.clone(),
        })
    }

    pub(super) fn encode(
        &self,
        workspace: &mut Workspace,
        image: &ImageInput<'_>,
        rows: &mut Vec<f32>,
        observer: &mut MediaObserver<'_>,
    ) -> Result<(), Error> {
        let (c, d, isa) = (&self.config, self.config.d_model, workspace.isa());
        let patch_len = 3 * c.patch_size * c.patch_size;
        let patches = real_patches(image, patch_len, c.positions)?;
        let cells = cells(&patches, c.pooling)?;
        let mut x = self.embed(workspace, image.pixel_values, &patches);
        observer(MediaStage::Embedded, &x);
        let n_positions = patches.iter().flat_map(|(_, at)| at).max().map_or(0, |at| at + 1);
        let angles = Angles::new(c, n_positions);
        let mut buffers = Buffers::default();
        for (i, layer) in self.layers.iter().enumerate() {
            layer.run(workspace, self, &patches, &angles, &mut x, &mut buffers);
            observer(MediaStage::Layer(i), &x);
        }
        let pooled = self.pool(&x, &cells);
        observer(MediaStage::Encoded, &pooled);
        workspace.project(
            pooled.len() / d,
            &|t, to| vector::rms_norm(isa, row(&pooled, t, d), &self.ones[..d], c.norm_eps, to),
            &mut [(&self.projection, rows)],
        );
        Ok(())
    }

    /// Patches through the first layer, with the embeddings of their columns and rows.
    fn embed(&self, workspace: &mut Workspace, pixels: &[f32], patches: &[(usize, [usize; 2])]) -> Vec<f32> {
        let (c, d, isa) = (&self.config, self.config.d_model, workspace.isa());
        let mut x = Vec::new();
        let input = |t: usize, to: &mut [f32]| {
            let from = row(pixels, patches[t].0, to.len());
            to.iter_mut().zip(from).for_each(|(to, p)| *to = 2.0 * (p - 0.5));
        };
        workspace.project(patches.len(), &input, &mut [(&self.patch, &mut x)]);
        workspace.for_rows(&mut x, d, &|t, to| {
            let [column, line] = patches[t].1;
            vector::add(isa, to, row(&self.positions, column, d));
            vector::add(isa, to, row(&self.positions, c.positions + line, d));
        });
        x
    }

    /// The means of cells of patches, `[cells, d_model]`, scaled and standardized. `cells` says whose each patch is.
    fn pool(&self, x: &[f32], cells: &[usize]) -> Vec<f32> {
        let (c, d) = (&self.config, self.config.d_model);
        let area = c.pooling * c.pooling;
        let mut pooled = vec![0.0; cells.len() / area * d];
        for (t, cell) in cells.iter().enumerate() {
            for (to, value) in pooled[cell * d..(cell + 1) * d].iter_mut().zip(row(x, t, d)) {
                *to += value;
            }
        }
        let factor = (d as f32).sqrt() / area as f32;
        for values in pooled.chunks_exact_mut(d) {
            values.iter_mut().for_each(|value| *value *= factor);
            if let Some((bias, scale)) = &self.standard {
                for (value, (bias, scale)) in values.iter_mut().zip(bias.iter().zip(scale)) {
                    *value = (*value - bias) * scale;
                }
            }
        }
        pooled
    }
}

/// The cell of each patch, row-major. Patches must fill a rectangle of whole cells.
fn cells(patches: &[(usize, [usize; 2])], pooling: usize) -> Result<Vec<usize>, Error> {
    let width = patches.iter().map(|(_, [x, _])| x + 1).max().unwrap_or(0);
    let across = width / pooling;
    let mut counts = vec![0; patches.len().div_ceil(pooling * pooling)];
    let mut cells = Vec::with_capacity(patches.len());
    for (_, [x, y]) in patches {
        let cell = (x / pooling).saturating_add(across.saturating_mul(y / pooling));
        match counts.get_mut(cell) {
            Some(count) if *count < pooling * pooling => *count += 1,
            _ => {
                return Err(Error::MediaPosition {
                    x: i32::try_from(*x).unwrap_or(i32::MAX),
                    y: i32::try_from(*y).unwrap_or(i32::MAX),
                    problem: "not one of a rectangle of patches that are pooled together",
                });
            }
        }
        cells.push(cell);
    }
    if !width.is_multiple_of(pooling) || counts.iter().any(|count| *count != pooling * pooling) {
        return Err(Error::MediaShape {
            what: "patches of an image",
            found: patches.len(),
            expected: format!("a rectangle whose sides are multiples of {pooling}"),
        });
    }
    Ok(cells)
}

impl Angles {
    fn new(c: &Gemma4VisionConfig, n_positions: usize) -> Angles {
        let quarter = c.head_dim / 4;
        let mut angles = Angles {
            quarter,
            cos: Vec::with_capacity(n_positions * quarter),
            sin: Vec::with_capacity(n_positions * quarter),
        };
        for at in 0..n_positions {
            for j in 0..quarter {
                // In f32 and in this order: as the reference computes its frequencies and angles.
                let frequency = 1.0 / c.rope_theta.powf((2 * j) as f32 / (2 * quarter) as f32);
                let (sin, cos) = (at as f32 * frequency).sin_cos();
                angles.cos.push(cos);
                angles.sin.push(sin);
            }
        }
        angles
    }

    fn rotate(&self, isa: carat_kernels::Isa, head: &mut [f32], position: [usize; 2]) {
        for (half, at) in head.chunks_exact_mut(2 * self.quarter).zip(position) {
            vector::rotate(
                isa,
                half,
                row(&self.cos, at, self.quarter),
                row(&self.sin, at, self.quarter),
            );
        }
    }
}

impl Layer {
    fn load(c: &Gemma4VisionConfig, tensors: &Tensors<'_>, layer: &str) -> Result<Layer, Error> {
        let (d, f, e, h) = (c.d_model, c.d_ff, c.head_dim, c.n_heads * c.head_dim);
        let of = |hugging_face: &str, gguf: &str| {
            format!(
                "{layer}.{}",
                if tensors.is_mmproj() { gguf } else { hugging_face }
            )
        };
        let norm = |hugging_face: &str, gguf: &str, n: usize| tensors.floats(&of(hugging_face, gguf), n);
        let linear = |hugging_face: &str, gguf: &str, n_out: usize, n_in: usize| {
            tensors.linear(&of(hugging_face, gguf), n_out, n_in)
        };
        Ok(Layer {
            attention_norm: norm("input_layernorm.weight", "ln1.weight", d)?,
            q: linear("self_attn.q_proj", "attn_q", h, d)?,
            k: linear("self_attn.k_proj", "attn_k", h, d)?,
            v: linear("self_attn.v_proj", "attn_v", h, d)?,
            q_norm: norm("self_attn.q_norm.weight", "attn_q_norm.weight", e)?,
            k_norm: norm("self_attn.k_norm.weight", "attn_k_norm.weight", e)?,
            o: linear("self_attn.o_proj", "attn_out", d, h)?,
            post_attention_norm: norm("post_attention_layernorm.weight", "attn_post_norm.weight", d)?,
            mlp_norm: norm("pre_feedforward_layernorm.weight", "ln2.weight", d)?,
            gate: linear("mlp.gate_proj", "ffn_gate", f, d)?,
            up: linear("mlp.up_proj", "ffn_up", f, d)?,
            down: linear("mlp.down_proj", "ffn_down", d, f)?,
            post_mlp_norm: norm("post_feedforward_layernorm.weight", "ffn_post_norm.weight", d)?,
        })
    }

    fn run(
        &self,
        workspace: &mut Workspace,
        tower: &Gemma4Vision,
        patches: &[(usize, [usize; 2])],
        angles: &Angles,
        x: &mut [f32],
        b: &mut Buffers,
    ) {
        let (c, d, isa) = (&tower.config, tower.config.d_model, workspace.isa());
        let (n, width) = (patches.len(), c.n_heads * c.head_dim);
        workspace.project(
            n,
            &|t, to| vector::rms_norm(isa, row(x, t, d), &self.attention_norm, c.norm_eps, to),
            &mut [(&self.q, &mut b.q), (&self.k, &mut b.k), (&self.v, &mut b.v)],
        );
        for (heads, weight) in [(&mut b.q, &self.q_norm), (&mut b.k, &self.k_norm)] {
            workspace.for_rows(heads, width, &|t, row| {
                for head in row.chunks_exact_mut(c.head_dim) {
                    vector::rms_norm_in_place(isa, head, weight, c.norm_eps);
                    angles.rotate(isa, head, patches[t].1);
                }
            });
        }
        workspace.for_rows(&mut b.v, c.head_dim, &|_, head| {
            vector::rms_norm_in_place(isa, head, &tower.ones[..c.head_dim], c.norm_eps);
        });
        let heads = EncoderHeads {
            n_heads: c.n_heads,
            head_dim: c.head_dim,
            score_scale: 1.0,
        };
        workspace.attend(&heads, [&b.q, &b.k, &b.v], &mut b.attended);
        let attended = &b.attended;
        workspace.project(
            n,
            &|t, to| to.copy_from_slice(row(attended, t, width)),
            &mut [(&self.o, &mut b.projected)],
        );
        let add =
            |x: &mut [f32], y: &[f32], weight: &[f32]| vector::add_rms_norm(isa, x, y, weight, c.norm_eps);
        workspace.for_rows(x, d, &|t, x| {
            add(x, row(&b.projected, t, d), &self.post_attention_norm)
        });
        for x in x.chunks_mut(MLP_ROWS * d) {
            let n = x.len() / d;
            workspace.project(
                n,
                &|t, to| vector::rms_norm(isa, row(x, t, d), &self.mlp_norm, c.norm_eps, to),
                &mut [(&self.gate, &mut b.gate), (&self.up, &mut b.up)],
            );
            let (gate, up) = (&b.gate, &b.up);
            let gated = |t: usize, to: &mut [f32]| {
                to.copy_from_slice(row(gate, t, c.d_ff));
                vector::gelu_mul(isa, to, row(up, t, c.d_ff));
            };
            workspace.project(n, &gated, &mut [(&self.down, &mut b.projected)]);
            workspace.for_rows(x, d, &|t, x| add(x, row(&b.projected, t, d), &self.post_mlp_norm));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(width: usize, height: usize) -> Vec<(usize, [usize; 2])> {
        (0..width * height).map(|i| (i, [i % width, i / width])).collect()
    }

    #[test]
    fn patches_belong_to_cells_of_three_by_three() {
        let cells = cells(&grid(6, 3), 3).unwrap();
        assert_eq!(cells[..6], [0, 0, 0, 1, 1, 1]);
        assert_eq!(cells[12..], [0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn what_is_no_rectangle_of_cells_is_refused() {
        assert!(cells(&grid(5, 3), 3).is_err());
        assert!(cells(&grid(3, 4), 3).is_err());
        let mut twice = grid(3, 3);
        twice[4].1 = [0, 0];
        // The same cell, so that only the count of places could tell; it is one rectangle still.
        assert!(cells(&twice, 3).is_ok());
        twice[4].1 = [3, 0];
        assert!(cells(&twice, 3).is_err());
        twice[4].1 = [0, usize::MAX - 1];
        assert!(cells(&twice, 3).is_err());
    }
}
