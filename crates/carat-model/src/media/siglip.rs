//! The tower of Gemma 3: SigLIP over square images of one size, then pooling and a projection.
//!
//! ```text
//! patches → linear + position → layers { LayerNorm → attention → add; LayerNorm → MLP → add } → LayerNorm
//!         → mean of squares of patches → RMSNorm → linear
//! ```
//!
//! After the reference's `modeling_siglip` and `modeling_gemma3`: biases everywhere, GELU in its tanh form, no
//! pooling head. The MLP runs on [`MLP_ROWS`] rows at a time, which bounds its memory.

use carat_kernels::encoder::EncoderHeads;
use carat_kernels::vector;

use super::linear::Linear;
use super::tensors::Tensors;
use super::workspace::{Workspace, row};
use super::{ImageInput, MediaObserver, MediaStage};
use crate::Error;
use crate::config::SiglipConfig;

/// Rows of the MLP's wide activations: 35 MB at 4,304 columns.
const MLP_ROWS: usize = 2048;

/// See the module's head.
pub(super) struct Siglip {
    config: SiglipConfig,
    patch: Linear,
    /// `[patches, d_model]`
    positions: Vec<f32>,
    layers: Vec<Layer>,
    post_norm: Norm,
    /// One added already.
    soft_norm: Vec<f32>,
    projection: Linear,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Layer {
    attention_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    mlp_norm: Norm,
    up: Linear,
    down: Linear,
}

/// Names of the layer's parts: in safetensors, and in GGUF.
struct Names<'a> {
    prefix: &'static str,
    tensors: &'a Tensors<'a>,
}

impl Names<'_> {
    fn of(&self, hugging_face: &str, gguf: &str) -> String {
        if self.tensors.is_mmproj() {
            format!("v.{gguf}")
        } else {
            format!("{}{hugging_face}", self.prefix)
        }
    }

    fn of_layer(&self, i: usize, hugging_face: &str, gguf: &str) -> String {
        self.of(
            &format!("encoder.layers.{i}.{hugging_face}"),
            &format!("blk.{i}.{gguf}"),
        )
    }

    fn norm(&self, base: &str, n: usize) -> Result<Norm, Error> {
        Ok(Norm {
            weight: self.tensors.floats(&format!("{base}.weight"), n)?,
            bias: self.tensors.floats(&format!("{base}.bias"), n)?,
        })
    }
}

impl Siglip {
    pub(super) fn load(config: &SiglipConfig, tensors: &Tensors<'_>, d_text: usize) -> Result<Siglip, Error> {
        let prefixes = [
            "vision_tower.vision_model.",
            "model.vision_tower.vision_model.",
            "model.vision_tower.",
            "vision_tower.",
        ];
        let names = Names {
            prefix: tensors.prefix(&prefixes, "embeddings.patch_embedding.weight"),
            tensors,
        };
        let (d, side) = (config.d_model, config.image_size / config.patch_size);
        let patch_len = 3 * config.patch_size * config.patch_size;
        let layers = (0..config.n_layers).map(|i| Layer::load(config, &names, i));
        let positions = format!(
            "{}.weight",
            names.of("embeddings.position_embedding", "position_embd")
        );
        let projector = tensors.prefix(
            &["multi_modal_projector.", "model.multi_modal_projector."],
            "mm_soft_emb_norm.weight",
        );
        let (norm_name, projection_name) = if tensors.is_mmproj() {
            (
                "mm.soft_emb_norm.weight".to_owned(),
                "mm.input_projection.weight".to_owned(),
            )
        } else {
            (
                format!("{projector}mm_soft_emb_norm.weight"),
                format!("{projector}mm_input_projection_weight"),
            )
        };
        let mut soft_norm = tensors.floats(&norm_name, d)?;
        if !tensors.is_mmproj() {
            // Safetensors hold this norm less one, as those of the text model.
            soft_norm.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(Siglip {
            patch: tensors.linear(
                &names.of("embeddings.patch_embedding", "patch_embd"),
                d,
                patch_len,
            )?,
            positions: tensors.floats(&positions, side * side * d)?,
            layers: layers.collect::<Result<Vec<_>, Error>>()?,
            post_norm: names.norm(&names.of("post_layernorm", "post_ln"), d)?,
            soft_norm,
            projection: tensors.transposed(&projection_name, d_text, d)?,
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
        let (c, isa) = (&self.config, workspace.isa());
        let expected = 3 * c.image_size * c.image_size;
        if image.pixel_values.len() != expected {
            return Err(Error::MediaShape {
                what: "pixel values",
                found: image.pixel_values.len(),
                expected: format!("{expected}: three channels of {0} x {0}", c.image_size),
            });
        }
        let mut x = self.embed(workspace, image.pixel_values);
        observer(MediaStage::Embedded, &x);
        let mut buffers = Buffers::default();
        for (i, layer) in self.layers.iter().enumerate() {
            layer.run(workspace, c, &mut x, &mut buffers);
            observer(MediaStage::Layer(i), &x);
        }
        let d = c.d_model;
        workspace.for_rows(&mut x, d, &|_, row| {
            let copy = row.to_vec();
            vector::layer_norm(
                isa,
                &copy,
                &self.post_norm.weight,
                &self.post_norm.bias,
                c.norm_eps,
                row,
            );
        });
        observer(MediaStage::Encoded, &x);
        let pooled = self.pool(&x);
        workspace.project(
            c.soft_tokens,
            &|t, to| vector::rms_norm(isa, row(&pooled, t, d), &self.soft_norm, c.norm_eps, to),
            &mut [(&self.projection, rows)],
        );
        Ok(())
    }

    /// Patches through the first layer, with their positions' embeddings.
    fn embed(&self, workspace: &mut Workspace, pixels: &[f32]) -> Vec<f32> {
        let (c, isa) = (&self.config, workspace.isa());
        let (size, patch) = (c.image_size, c.patch_size);
        let side = size / patch;
        let mut x = Vec::new();
        let input = |t: usize, to: &mut [f32]| {
            for (i, to) in to.chunks_exact_mut(patch).enumerate() {
                let (channel, line) = (i / patch, i % patch);
                let at = (channel * size + t / side * patch + line) * size + t % side * patch;
                to.copy_from_slice(&pixels[at..at + patch]);
            }
        };
        workspace.project(side * side, &input, &mut [(&self.patch, &mut x)]);
        workspace.for_rows(&mut x, c.d_model, &|t, to| {
            vector::add(isa, to, row(&self.positions, t, c.d_model))
        });
        x
    }

    /// The means of squares of patches `[soft_tokens, d_model]`.
    fn pool(&self, x: &[f32]) -> Vec<f32> {
        let (c, d) = (&self.config, self.config.d_model);
        let (side, out_side) = (c.image_size / c.patch_size, c.soft_tokens.isqrt());
        let kernel = side / out_side;
        let mut pooled = vec![0.0; c.soft_tokens * d];
        for t in 0..side * side {
            let cell = t / side / kernel * out_side + t % side / kernel;
            for (to, value) in pooled[cell * d..(cell + 1) * d].iter_mut().zip(row(x, t, d)) {
                *to += value;
            }
        }
        let share = 1.0 / (kernel * kernel) as f32;
        pooled.iter_mut().for_each(|value| *value *= share);
        pooled
    }
}

/// Activations of a layer, reused by the next.
#[derive(Default)]
struct Buffers {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    projected: Vec<f32>,
    wide: Vec<f32>,
}

impl Layer {
    fn load(config: &SiglipConfig, names: &Names<'_>, i: usize) -> Result<Layer, Error> {
        let (d, f) = (config.d_model, config.d_ff);
        let linear = |hugging_face: &str, gguf: &str, n_out: usize, n_in: usize| {
            names
                .tensors
                .linear(&names.of_layer(i, hugging_face, gguf), n_out, n_in)
        };
        let norm = |hugging_face: &str, gguf: &str| names.norm(&names.of_layer(i, hugging_face, gguf), d);
        let (up, down) = names.up_and_down(i, f);
        Ok(Layer {
            attention_norm: norm("layer_norm1", "ln1")?,
            q: linear("self_attn.q_proj", "attn_q", d, d)?,
            k: linear("self_attn.k_proj", "attn_k", d, d)?,
            v: linear("self_attn.v_proj", "attn_v", d, d)?,
            o: linear("self_attn.out_proj", "attn_out", d, d)?,
            mlp_norm: norm("layer_norm2", "ln2")?,
            up: linear("mlp.fc1", up, f, d)?,
            down: linear("mlp.fc2", down, d, f)?,
        })
    }

    fn run(&self, workspace: &mut Workspace, c: &SiglipConfig, x: &mut [f32], b: &mut Buffers) {
        let (d, isa) = (c.d_model, workspace.isa());
        let n = x.len() / d;
        let normed = |x: &[f32], norm: &Norm, to: &mut [f32]| {
            vector::layer_norm(isa, x, &norm.weight, &norm.bias, c.norm_eps, to);
        };
        workspace.project(
            n,
            &|t, to| normed(row(x, t, d), &self.attention_norm, to),
            &mut [(&self.q, &mut b.q), (&self.k, &mut b.k), (&self.v, &mut b.v)],
        );
        let head_dim = d / c.n_heads;
        let heads = EncoderHeads {
            n_heads: c.n_heads,
            head_dim,
            score_scale: 1.0 / (head_dim as f32).sqrt(),
        };
        workspace.attend(&heads, [&b.q, &b.k, &b.v], &mut b.attended);
        let attended = &b.attended;
        workspace.project(
            n,
            &|t, to| to.copy_from_slice(row(attended, t, d)),
            &mut [(&self.o, &mut b.projected)],
        );
        workspace.for_rows(x, d, &|t, to| vector::add(isa, to, row(&b.projected, t, d)));
        for x in x.chunks_mut(MLP_ROWS * d) {
            let n = x.len() / d;
            workspace.project(
                n,
                &|t, to| normed(row(x, t, d), &self.mlp_norm, to),
                &mut [(&self.up, &mut b.wide)],
            );
            let wide = &b.wide;
            let activated = |t: usize, to: &mut [f32]| {
                to.copy_from_slice(row(wide, t, c.d_ff));
                vector::gelu(isa, to);
            };
            workspace.project(n, &activated, &mut [(&self.down, &mut b.projected)]);
            workspace.for_rows(x, d, &|t, to| vector::add(isa, to, row(&b.projected, t, d)));
        }
    }
}

impl Names<'_> {
    /// The GGUF names of the MLP's two matrices. Early files have them the wrong way round.
    fn up_and_down(&self, i: usize, d_ff: usize) -> (&'static str, &'static str) {
        let swapped = self.tensors.rows(&format!("v.blk.{i}.ffn_down.weight")) == Some(d_ff);
        if swapped {
            ("ffn_down", "ffn_up")
        } else {
            ("ffn_up", "ffn_down")
        }
    }
}
