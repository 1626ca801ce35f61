//! The audio tower of Gemma 4 E2B and E4B: a conformer over mel features.
//!
//! ```text
//! mel [T, 128] → 2 x { 3 x 3 convolution of stride 2 → LayerNorm → ReLU } → linear              [T / 4, d_model]
//!              → layers { half MLP; attention to the rows before; light convolution; half MLP; norm }
//!              → linear with bias → rms → linear
//! ```
//!
//! After the reference's `modeling_gemma4`. A row sees itself and the eleven before it, with a term for the
//! distance: the reference's blocks of 12 and its shift come to exactly that. Frames that the processor masks are
//! left out from the start; the reference zeroes them, which is what the convolutions' padding gives. Clamps at
//! 1e10, which keep half precision from overflowing, do nothing in f32.

mod subsampling;

use carat_kernels::encoder::NearAttention;
use carat_kernels::vector;

use super::linear::Linear;
use super::tensors::Tensors;
use super::workspace::{Workspace, row};
use super::{MediaObserver, MediaStage, frames};
use crate::Error;
use crate::config::{ConformerConfig, MEL_BINS};
use subsampling::Subsampling;

/// Frames that make a soft token: two convolutions of stride 2.
const FRAMES_PER_TOKEN: usize = 4;

/// See the module's head.
pub(super) struct Conformer {
    config: ConformerConfig,
    subsampling: Subsampling,
    layers: Vec<Layer>,
    output: Linear,
    ones: Vec<f32>,
    projection: Linear,
}

struct Layer {
    halves: [Half; 2],
    attention_norm: Vec<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// `[head_dim]`: what queries are multiplied with.
    q_scale: Vec<f32>,
    /// `[span, d_model]`: what is added to the key at each distance.
    relative: Vec<f32>,
    post_attention_norm: Vec<f32>,
    conv: LightConv,
    out_norm: Vec<f32>,
}

/// A feed-forward half-step.
struct Half {
    norm: Vec<f32>,
    up: Linear,
    down: Linear,
    post_norm: Vec<f32>,
}

struct LightConv {
    norm: Vec<f32>,
    start: Linear,
    /// `[taps, d_model]`, oldest first.
    taps: Vec<f32>,
    conv_norm: Vec<f32>,
    end: Linear,
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
    gated: Vec<f32>,
}

impl Conformer {
    pub(super) fn load(
        c: &ConformerConfig,
        tensors: &Tensors<'_>,
        d_text: usize,
    ) -> Result<Conformer, Error> {
        let prefix = tensors.prefix(&["model.", ""], "audio_tower.output_proj.weight");
        let of = |hugging_face: &str, gguf: &str| {
            if tensors.is_mmproj() {
                gguf.to_owned()
            } else {
                format!("{prefix}{hugging_face}")
            }
        };
        let subsampling = Subsampling::load(c, tensors, &of("audio_tower.subsample_conv_projection", "a"))?;
        // Not before a tensor has shown that the width is what the file says: memory is asked for by it.
        let distances = distances(c);
        let layers = (0..c.n_layers).map(|i| {
            let layer = of(&format!("audio_tower.layers.{i}"), &format!("a.blk.{i}"));
            Layer::load(c, tensors, &layer, &distances)
        });
        Ok(Conformer {
            subsampling,
            layers: layers.collect::<Result<Vec<_>, Error>>()?,
            output: tensors.linear(
                &of("audio_tower.output_proj", "a.pre_encode.out"),
                c.d_out,
                c.d_model,
            )?,
            ones: vec![1.0; c.d_out],
            projection: tensors.linear(
                &of("embed_audio.embedding_projection", "mm.a.input_projection"),
                d_text,
                c.d_out,
            )?,
            config: c.clone(),
        })
    }

    pub(super) fn encode(
        &self,
        workspace: &mut Workspace,
        features: &[f32],
        rows: &mut Vec<f32>,
        observer: &mut MediaObserver<'_>,
    ) -> Result<(), Error> {
        let (c, isa) = (&self.config, workspace.isa());
        frames(features, MEL_BINS, FRAMES_PER_TOKEN)?;
        let mut x = self.subsampling.run(workspace, features);
        observer(MediaStage::Embedded, &x);
        let mut buffers = Buffers::default();
        for (i, layer) in self.layers.iter().enumerate() {
            layer.run(workspace, c, &mut x, &mut buffers);
            observer(MediaStage::Layer(i), &x);
        }
        let n = x.len() / c.d_model;
        let mut encoded = Vec::new();
        let input = |t: usize, to: &mut [f32]| to.copy_from_slice(row(&x, t, c.d_model));
        workspace.project(n, &input, &mut [(&self.output, &mut encoded)]);
        observer(MediaStage::Encoded, &encoded);
        workspace.project(
            n,
            &|t, to| vector::rms_norm(isa, row(&encoded, t, c.d_out), &self.ones, c.norm_eps, to),
            &mut [(&self.projection, rows)],
        );
        Ok(())
    }
}

/// Sines and cosines of the distances that a row sees, `[span, d_model]`; timescales go from 1 to 10,000.
fn distances(c: &ConformerConfig) -> Vec<f32> {
    let half = c.d_model / 2;
    let step = 10_000f32.ln() / (half.max(2) - 1) as f32;
    let mut table = Vec::with_capacity(c.span * c.d_model);
    for distance in 0..c.span {
        let angle = |i: usize| distance as f32 * (i as f32 * -step).exp();
        table.extend((0..half).map(|i| angle(i).sin()));
        table.extend((0..half).map(|i| angle(i).cos()));
    }
    table
}

impl Half {
    fn load(c: &ConformerConfig, tensors: &Tensors<'_>, layer: &str, which: usize) -> Result<Half, Error> {
        let d = c.d_model;
        let suffix = ["", "_1"][which];
        let of = |hugging_face: &str, gguf: &str| {
            if tensors.is_mmproj() {
                format!("{layer}.{gguf}{suffix}")
            } else {
                format!("{layer}.feed_forward{}.{hugging_face}", which + 1)
            }
        };
        let norm =
            |hugging_face: &str, gguf: &str| tensors.floats(&format!("{}.weight", of(hugging_face, gguf)), d);
        Ok(Half {
            norm: norm("pre_layer_norm", "ffn_norm")?,
            up: tensors.linear(&of("ffw_layer_1", "ffn_up"), 4 * d, d)?,
            down: tensors.linear(&of("ffw_layer_2", "ffn_down"), d, 4 * d)?,
            post_norm: norm("post_layer_norm", "ffn_post_norm")?,
        })
    }

    fn run(&self, workspace: &mut Workspace, c: &ConformerConfig, x: &mut [f32], b: &mut Buffers) {
        let (d, isa) = (c.d_model, workspace.isa());
        let n = x.len() / d;
        workspace.project(
            n,
            &|t, to| vector::rms_norm(isa, row(x, t, d), &self.norm, c.norm_eps, to),
            &mut [(&self.up, &mut b.wide)],
        );
        let wide = &b.wide;
        let activated = |t: usize, to: &mut [f32]| {
            to.copy_from_slice(row(wide, t, 4 * d));
            vector::silu(isa, to);
        };
        workspace.project(n, &activated, &mut [(&self.down, &mut b.projected)]);
        // The norm's weights were multiplied with the residual weight when they were loaded.
        workspace.for_rows(x, d, &|t, to| {
            vector::add_rms_norm(isa, to, row(&b.projected, t, d), &self.post_norm, c.norm_eps);
        });
    }
}

impl LightConv {
    fn load(c: &ConformerConfig, tensors: &Tensors<'_>, layer: &str) -> Result<LightConv, Error> {
        let (d, taps) = (c.d_model, c.conv_taps);
        let of = |hugging_face: &str, gguf: &str| {
            if tensors.is_mmproj() {
                format!("{layer}.{gguf}")
            } else {
                format!("{layer}.lconv1d.{hugging_face}")
            }
        };
        let by_channel =
            tensors.floats(&format!("{}.weight", of("depthwise_conv1d", "conv_dw")), d * taps)?;
        Ok(LightConv {
            norm: tensors.floats(&format!("{}.weight", of("pre_layer_norm", "norm_conv")), d)?,
            start: tensors.linear(&of("linear_start", "conv_pw1"), 2 * d, d)?,
            taps: (0..taps * d).map(|i| by_channel[i % d * taps + i / d]).collect(),
            conv_norm: tensors.floats(&format!("{}.weight", of("conv_norm", "conv_norm")), d)?,
            end: tensors.linear(&of("linear_end", "conv_pw2"), d, d)?,
        })
    }

    fn run(&self, workspace: &mut Workspace, c: &ConformerConfig, x: &mut [f32], b: &mut Buffers) {
        let (d, isa) = (c.d_model, workspace.isa());
        let n = x.len() / d;
        workspace.project(
            n,
            &|t, to| vector::rms_norm(isa, row(x, t, d), &self.norm, c.norm_eps, to),
            &mut [(&self.start, &mut b.wide)],
        );
        b.gated.resize(n * d, 0.0);
        let wide = &b.wide;
        workspace.for_rows(&mut b.gated, d, &|t, to| {
            let (value, gate) = row(wide, t, 2 * d).split_at(d);
            vector::glu(isa, value, gate, to);
        });
        let (gated, n_taps) = (&b.gated, c.conv_taps);
        let convolved = |t: usize, to: &mut [f32]| {
            let mut sum = vec![0.0; d];
            for (i, taps) in self.taps.chunks_exact(d).enumerate() {
                // The last tap is the row's own; rows before the first are zero.
                if let Some(from) = (t + i + 1).checked_sub(n_taps) {
                    for ((sum, tap), value) in sum.iter_mut().zip(taps).zip(row(gated, from, d)) {
                        *sum += tap * value;
                    }
                }
            }
            vector::rms_norm(isa, &sum, &self.conv_norm, c.norm_eps, to);
            vector::silu(isa, to);
        };
        workspace.project(n, &convolved, &mut [(&self.end, &mut b.projected)]);
        workspace.for_rows(x, d, &|t, to| vector::add(isa, to, row(&b.projected, t, d)));
    }
}

impl Layer {
    fn load(
        c: &ConformerConfig,
        tensors: &Tensors<'_>,
        layer: &str,
        distances: &[f32],
    ) -> Result<Layer, Error> {
        let (d, head_dim) = (c.d_model, c.d_model / c.n_heads);
        let is_mmproj = tensors.is_mmproj();
        let of = |hugging_face: &str, gguf: &str| {
            format!("{layer}.{}", if is_mmproj { gguf } else { hugging_face })
        };
        let norm =
            |hugging_face: &str, gguf: &str| tensors.floats(&format!("{}.weight", of(hugging_face, gguf)), d);
        let linear = |hugging_face: &str, gguf: &str| tensors.linear(&of(hugging_face, gguf), d, d);
        let mut halves = [
            Half::load(c, tensors, layer, 0)?,
            Half::load(c, tensors, layer, 1)?,
        ];
        for half in &mut halves {
            half.post_norm.iter_mut().for_each(|w| *w *= c.residual_weight);
        }
        let per_dim = tensors.floats(&of("self_attn.per_dim_scale", "per_dim_scale.weight"), head_dim)?;
        // GGUF files hold the softplus already.
        let softplus = |x: f32| if is_mmproj { x } else { x.exp().ln_1p() };
        let q_scale = 1.0 / ((head_dim as f32).sqrt() * std::f32::consts::LN_2);
        let projection = tensors.floats(
            &format!("{}.weight", of("self_attn.relative_k_proj", "attn_k_rel")),
            d * d,
        )?;
        Ok(Layer {
            halves,
            attention_norm: norm("norm_pre_attn", "attn_pre_norm")?,
            q: linear("self_attn.q_proj", "attn_q")?,
            k: linear("self_attn.k_proj", "attn_k")?,
            v: linear("self_attn.v_proj", "attn_v")?,
            o: linear("self_attn.post", "attn_out")?,
            q_scale: per_dim
                .into_iter()
                .map(|x| if x > 20.0 && !is_mmproj { x } else { softplus(x) } * q_scale)
                .collect(),
            relative: relative_keys(&projection, distances, d),
            post_attention_norm: norm("norm_post_attn", "attn_post_norm")?,
            conv: LightConv::load(c, tensors, layer)?,
            out_norm: norm("norm_out", "ln2")?,
        })
    }

    fn run(&self, workspace: &mut Workspace, c: &ConformerConfig, x: &mut [f32], b: &mut Buffers) {
        self.halves[0].run(workspace, c, x, b);
        self.attention(workspace, c, x, b);
        self.conv.run(workspace, c, x, b);
        self.halves[1].run(workspace, c, x, b);
        let isa = workspace.isa();
        workspace.for_rows(x, c.d_model, &|_, row| {
            vector::rms_norm_in_place(isa, row, &self.out_norm, c.norm_eps)
        });
    }

    fn attention(&self, workspace: &mut Workspace, c: &ConformerConfig, x: &mut [f32], b: &mut Buffers) {
        let (d, isa) = (c.d_model, workspace.isa());
        let (n, head_dim) = (x.len() / d, d / c.n_heads);
        workspace.project(
            n,
            &|t, to| vector::rms_norm(isa, row(x, t, d), &self.attention_norm, c.norm_eps, to),
            &mut [(&self.q, &mut b.q), (&self.k, &mut b.k), (&self.v, &mut b.v)],
        );
        workspace.for_rows(&mut b.q, head_dim, &|_, head| {
            vector::multiply(isa, head, &self.q_scale)
        });
        // ln(1 + e) / ln 2
        let k_scale = std::f32::consts::E.ln_1p() / std::f32::consts::LN_2;
        workspace.for_rows(&mut b.k, d, &|_, row| vector::scale(isa, row, k_scale));
        let shape = NearAttention {
            n_heads: c.n_heads,
            head_dim,
            relative: &self.relative,
            cap: c.score_cap,
        };
        workspace.attend_near(&shape, [&b.q, &b.k, &b.v], &mut b.attended);
        let attended = &b.attended;
        workspace.project(
            n,
            &|t, to| to.copy_from_slice(row(attended, t, d)),
            &mut [(&self.o, &mut b.projected)],
        );
        workspace.for_rows(x, d, &|t, to| {
            vector::add_rms_norm(
                isa,
                to,
                row(&b.projected, t, d),
                &self.post_attention_norm,
                c.norm_eps,
            );
        });
    }
}

/// The distances' table through a layer's projection `[d, d]`: once, when the layer is loaded.
fn relative_keys(projection: &[f32], distances: &[f32], d: usize) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    distances
        .chunks_exact(d)
        .flat_map(|from| projection.chunks_exact(d).map(move |w| dot(w, from)))
        .collect()
}
