//! The first part of the conformer: two convolutions that leave a quarter of the frames and of the mel bins.
//!
//! Both are products of gathered neighbourhoods with the convolution's weights, channels last, so that LayerNorm
//! runs over a row. Neighbourhoods are gathered while a product's input is made, for some frames at a time: in full
//! they would take 110 MB for 30 seconds.

use carat_kernels::vector;

use super::super::linear::Linear;
use super::super::tensors::Tensors;
use super::super::workspace::{Workspace, row};
use crate::Error;
use crate::config::{ConformerConfig, MEL_BINS};

/// Frames of output that are computed at once.
const FRAMES: usize = 64;

/// See the module's head.
pub(super) struct Subsampling {
    stages: [Stage; 2],
    projection: Linear,
}

/// A convolution of 3 x 3 with stride 2 and a border of one zero, a LayerNorm over channels without bias, a ReLU.
struct Stage {
    /// `[channels, 9 * n_in]`: frame, bin, channel.
    conv: Linear,
    norm: Vec<f32>,
    zeros: Vec<f32>,
    n_in: usize,
    eps: f32,
}

impl Subsampling {
    pub(super) fn load(c: &ConformerConfig, tensors: &Tensors<'_>, base: &str) -> Result<Subsampling, Error> {
        let [first, second] = c.channels;
        let projection = if tensors.is_mmproj() {
            "input_projection"
        } else {
            "input_proj_linear"
        };
        Ok(Subsampling {
            stages: [
                Stage::load(c, tensors, base, 0, 1, first)?,
                Stage::load(c, tensors, base, 1, first, second)?,
            ],
            projection: tensors.linear(&format!("{base}.{projection}"), c.d_model, MEL_BINS / 4 * second)?,
        })
    }

    /// `[n / 4, d_model]` of `features` `[n, MEL_BINS]`, rounded up.
    pub(super) fn run(&self, workspace: &mut Workspace, features: &[f32]) -> Vec<f32> {
        let half = self.stages[0].run(workspace, features, MEL_BINS);
        let quarter = self.stages[1].run(workspace, &half, MEL_BINS / 2);
        let (n_in, mut x) = (self.projection.n_in(), Vec::new());
        let input = |t: usize, to: &mut [f32]| to.copy_from_slice(row(&quarter, t, n_in));
        workspace.project(quarter.len() / n_in, &input, &mut [(&self.projection, &mut x)]);
        x
    }
}

impl Stage {
    fn load(
        c: &ConformerConfig,
        tensors: &Tensors<'_>,
        base: &str,
        i: usize,
        n_in: usize,
        n_out: usize,
    ) -> Result<Stage, Error> {
        let (conv, norm) = if tensors.is_mmproj() {
            (
                format!("{base}.conv1d.{i}"),
                format!("{base}.conv1d.{i}.norm.weight"),
            )
        } else {
            (
                format!("{base}.layer{i}.conv"),
                format!("{base}.layer{i}.norm.weight"),
            )
        };
        let channels_last = |from: &[f32], to: &mut [f32]| {
            for (j, to) in to.iter_mut().enumerate() {
                *to = from[j % n_in * 9 + j / n_in];
            }
        };
        Ok(Stage {
            conv: tensors.reordered(&conv, (n_out, 9 * n_in), &channels_last)?,
            norm: tensors.floats(&norm, n_out)?,
            zeros: vec![0.0; n_out],
            n_in,
            eps: c.norm_eps,
        })
    }

    /// `x` is `[frames, bins, n_in]`; the result has half the frames, rounded up, and half the bins.
    fn run(&self, workspace: &mut Workspace, x: &[f32], bins: usize) -> Vec<f32> {
        let (n_in, n_out, isa) = (self.n_in, self.conv.n_out(), workspace.isa());
        let (frames, out_bins) = (x.len() / (bins * n_in), bins / 2);
        let out_frames = frames.div_ceil(2);
        let mut all = Vec::with_capacity(out_frames * out_bins * n_out);
        let mut part = Vec::new();
        for first in (0..out_frames).step_by(FRAMES) {
            let n = (out_frames - first).min(FRAMES);
            let input = |t: usize, to: &mut [f32]| {
                let (frame, bin) = (first + t / out_bins, t % out_bins);
                for (j, to) in to.chunks_exact_mut(n_in).enumerate() {
                    // One less, for the border of zeros.
                    let place = (2 * frame + j / 3)
                        .checked_sub(1)
                        .zip((2 * bin + j % 3).checked_sub(1));
                    match place.filter(|(frame, bin)| *frame < frames && *bin < bins) {
                        Some((frame, bin)) => to.copy_from_slice(row(x, frame * bins + bin, n_in)),
                        None => to.fill(0.0),
                    }
                }
            };
            workspace.project(n * out_bins, &input, &mut [(&self.conv, &mut part)]);
            workspace.for_rows(&mut part, n_out, &|_, row| {
                let copy = row.to_vec();
                vector::layer_norm(isa, &copy, &self.norm, &self.zeros, self.eps, row);
                row.iter_mut().for_each(|x| *x = x.max(0.0));
            });
            all.extend_from_slice(&part);
        }
        all
    }
}
