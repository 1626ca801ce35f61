//! Gemma 4's own drafters (multi-token prediction): four small layers over the target's keys, values and hidden state.
//!
//! ```text
//! token, last hidden state of the target
//!   → [target's embedding ; hidden] → project to its own width
//!   → layers of Gemma 4 with queries alone, at the position of the token, over the target's cache
//!   → final norm → scores of tokens;  projected back: the hidden state for the next guess
//! ```
//!
//! All guesses of a round are made at one position over the same cache: nothing is added to it. Some have a head that
//! scores clusters of tokens first and then the tokens of the best clusters only. After the reference's
//! `modeling_gemma4_assistant`.

use std::path::Path;

use carat_format::SafeDType;
use smallvec::SmallVec;

use super::likeliest;
use crate::backend::{Backend, Sequence};
use crate::checkpoint::{Checkpoint, Container};
use crate::config::DrafterClusters;
use crate::cpu::Cpu;
use crate::gemma::{Buffers, forward_borrowing};
use crate::kv_cache::KvCache;
use crate::language_model::{DraftSegment, SequenceCache};
use crate::weights::{Weights, matrix};
use crate::{Config, Error};

/// Accumulators of a dot product, so that it need not be one long chain of additions.
const LANES: usize = 16;

/// What drafters have beside their layers, in GGUF and in safetensors.
const PRE_PROJECTION: [&str; 2] = ["nextn.pre_projection.weight", "pre_projection.weight"];
const POST_PROJECTION: [&str; 2] = ["nextn.post_projection.weight", "post_projection.weight"];
const CENTROIDS: [&str; 2] = [
    "masked_embd_centroids.weight",
    "masked_embedding.centroids.weight",
];
const ORDERING: [&str; 2] = ["masked_embd_ordering", "masked_embedding.token_ordering"];

/// A drafter's weights and memory.
pub(crate) struct Mtp {
    config: Config,
    weights: Weights<Cpu>,
    /// `[d_model, 2 * d_target]`
    pre: <Cpu as Backend>::Matrix,
    /// `[d_target, d_model]`
    post: <Cpu as Backend>::Matrix,
    clusters: Option<Clusters>,
    buffers: Buffers<Cpu>,
    joined: <Cpu as Backend>::Buffer,
    scores: <Cpu as Backend>::Buffer,
    rows: Vec<f32>,
    hidden: Vec<f32>,
    inputs: Vec<f32>,
    logits: Vec<f32>,
    /// Of a head with clusters: the tokens scored last, and their scores.
    ids: Vec<u32>,
    chosen: Vec<f32>,
}

/// The inside of one step of a drafter made for its target, for comparison with the reference.
#[derive(Clone, Copy, Debug)]
pub struct DraftStep<'a> {
    /// `[sequences, 2 * d_target]`: embeddings and hidden states.
    pub inputs: &'a [f32],
    /// The tokens that the last sequence's scores are for; empty for all tokens in their order.
    pub ids: &'a [u32],
    /// Scores of all sequences' tokens, or of the last one's tokens above.
    pub scores: &'a [f32],
    /// `[sequences, d_target]`: what takes the place of the hidden states in the next step.
    pub hidden: &'a [f32],
}

/// A head that looks at clusters of tokens first.
struct Clusters {
    /// `[n, d_model]`
    centroids: <Cpu as Backend>::Matrix,
    n: usize,
    n_active: usize,
    /// Token ids, those of the first cluster first.
    order: Vec<u32>,
}

/// What the drafter needs of its target.
pub(crate) struct Target<'a> {
    pub(crate) config: &'a Config,
    pub(crate) weights: &'a Weights<Cpu>,
}

/// One guess of a sequence on its way.
struct Round<'a, 'b> {
    segment: &'a mut DraftSegment<'b, KvCache>,
    token: u32,
}

impl Mtp {
    /// Loads the drafter at `path`, a GGUF file or a folder, for a model of this configuration.
    ///
    /// # Errors
    /// [`Error::NoDrafter`], [`Error::ForeignDrafter`], and tensors that are missing, unknown or of another shape.
    pub(crate) fn load(path: &Path, target: &Config, backend: &Cpu) -> Result<Mtp, Error> {
        let (checkpoint, clusters) = Checkpoint::open_drafter(path, target)?;
        let weights = Weights::load(&checkpoint, backend)?;
        let config = checkpoint.config().clone();
        let name = |names: [&'static str; 2]| names[usize::from(path.is_dir())];
        let (d, d_target) = (config.d_model, target.d_model);
        Ok(Mtp {
            pre: matrix(&checkpoint, backend, name(PRE_PROJECTION), [d, 2 * d_target])?,
            post: matrix(&checkpoint, backend, name(POST_PROJECTION), [d_target, d])?,
            clusters: match clusters {
                Some(DrafterClusters { n, n_active }) => Some(Clusters {
                    centroids: matrix(&checkpoint, backend, name(CENTROIDS), [n, d])?,
                    n,
                    n_active,
                    order: order(&checkpoint, name(ORDERING))?,
                }),
                None => None,
            },
            config,
            weights,
            buffers: Buffers::default(),
            joined: <Cpu as Backend>::Buffer::default(),
            scores: <Cpu as Backend>::Buffer::default(),
            rows: Vec::new(),
            hidden: Vec::new(),
            inputs: Vec::new(),
            logits: Vec::new(),
            ids: Vec::new(),
            chosen: Vec::new(),
        })
    }

    /// Adds guesses for each sequence whose last hidden state is known. `see` is shown every step.
    ///
    /// # Errors
    /// An embedding that cannot be read.
    pub(crate) fn draft(
        &mut self,
        backend: &mut Cpu,
        target: &Target<'_>,
        batch: &mut [DraftSegment<'_, KvCache>],
        see: &mut dyn FnMut(&DraftStep<'_>),
    ) -> Result<(), Error> {
        let mut rounds: Vec<Round<'_, '_>> = Vec::with_capacity(batch.len());
        self.hidden.clear();
        for segment in batch {
            let (Some(hidden), Some(token)) = (segment.cache.last_hidden(), segment.tokens.last()) else {
                continue;
            };
            if segment.n > 0 && (*token as usize) < target.config.vocab_size {
                self.hidden.extend_from_slice(hidden);
                rounds.push(Round {
                    token: *token,
                    segment,
                });
            }
        }
        let most = rounds.iter().map(|round| round.segment.n).max().unwrap_or(0);
        for step in 0..most {
            self.step(backend, target, &mut rounds)?;
            for (i, round) in rounds.iter_mut().enumerate() {
                round.token = self.guess(backend, i)?;
                if step < round.segment.n {
                    round.segment.guesses.push(round.token);
                }
            }
            backend.multiply(&self.buffers.normed, &mut [(&self.post, &mut self.joined)]);
            backend.read(&self.joined, &mut self.hidden);
            see(&DraftStep {
                inputs: &self.inputs,
                ids: &self.ids,
                scores: if self.ids.is_empty() {
                    &self.logits
                } else {
                    &self.chosen
                },
                hidden: &self.hidden,
            });
        }
        Ok(())
    }

    /// From tokens and hidden states to `buffers.normed`, and to the scores of tokens or of clusters.
    fn step(
        &mut self,
        backend: &mut Cpu,
        target: &Target<'_>,
        rounds: &mut [Round<'_, '_>],
    ) -> Result<(), Error> {
        let d_target = target.config.d_model;
        let tokens: SmallVec<[u32; 16]> = rounds.iter().map(|round| round.token).collect();
        let scale = target.config.embed_scale;
        backend.embed(&target.weights.embedding, &tokens, scale, &mut self.joined)?;
        backend.read(&self.joined, &mut self.rows);
        self.inputs.clear();
        let hidden = self.hidden.chunks_exact(d_target);
        for (embedding, hidden) in self.rows.chunks_exact(d_target).zip(hidden) {
            self.inputs.extend_from_slice(embedding);
            self.inputs.extend_from_slice(hidden);
        }
        backend.write(&self.inputs, 2 * d_target, &mut self.joined);
        backend.multiply(&self.joined, &mut [(&self.pre, &mut self.buffers.x)]);
        let positions: SmallVec<[usize; 16]> = rounds.iter().map(|round| round.segment.cache.len()).collect();
        let mut sequences: SmallVec<[Sequence<'_, KvCache>; 16]> = SmallVec::new();
        for (round, position) in rounds.iter_mut().zip(&positions) {
            sequences.push(Sequence {
                // The last token with keys and values is the one before.
                pos: position.saturating_sub(1),
                cache: &mut *round.segment.cache,
                n: 1,
                n_wanted: 1,
                is_chain: false,
                spans: SmallVec::new(),
            });
        }
        forward_borrowing(
            backend,
            &self.config,
            &self.weights,
            &mut self.buffers,
            &positions,
            &mut sequences,
        );
        let head = match &self.clusters {
            Some(clusters) => &clusters.centroids,
            None => self.weights.head.as_ref().unwrap_or(&self.weights.embedding),
        };
        backend.multiply(&self.buffers.normed, &mut [(head, &mut self.scores)]);
        backend.read(&self.scores, &mut self.logits);
        Ok(())
    }

    /// The likeliest token of row `i`.
    fn guess(&mut self, backend: &mut Cpu, i: usize) -> Result<u32, Error> {
        let Some(clusters) = &self.clusters else {
            let width = self.config.vocab_size;
            let best = likeliest(&self.logits[i * width..(i + 1) * width]);
            return Ok(u32::try_from(best).unwrap_or(0));
        };
        let scores = &self.logits[i * clusters.n..(i + 1) * clusters.n];
        self.ids = clusters.candidates(scores);
        backend.embed(&self.weights.embedding, &self.ids, 1.0, &mut self.joined)?;
        backend.read(&self.joined, &mut self.rows);
        backend.read(&self.buffers.normed, &mut self.hidden);
        let d = self.config.d_model;
        let y = &self.hidden[i * d..(i + 1) * d];
        self.chosen.clear();
        self.chosen
            .extend(self.rows.chunks_exact(d).map(|row| dot(row, y)));
        Ok(self.ids.get(likeliest(&self.chosen)).copied().unwrap_or(0))
    }
}

impl Clusters {
    /// The tokens of the best clusters.
    fn candidates(&self, scores: &[f32]) -> Vec<u32> {
        let mut best: Vec<usize> = (0..self.n).collect();
        best.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let size = self.order.len() / self.n;
        let of_cluster = |c: &usize| &self.order[c * size..(c + 1) * size];
        best[..self.n_active]
            .iter()
            .flat_map(of_cluster)
            .copied()
            .collect()
    }
}

/// The order of tokens by clusters: every token once.
fn order(checkpoint: &Checkpoint, name: &str) -> Result<Vec<u32>, Error> {
    let vocab_size = checkpoint.config().vocab_size;
    let no_order = || Error::TokenOrder {
        path: checkpoint.path().to_owned(),
        name: name.to_owned(),
    };
    let ids = match checkpoint.container() {
        Container::HuggingFace(tensors) => {
            let raw = tensors.raw(name).filter(|raw| raw.dtype == SafeDType::I64);
            let ids = raw.ok_or_else(no_order)?.bytes.as_chunks::<8>().0.iter();
            ids.map(|id| u32::try_from(i64::from_le_bytes(*id)).ok())
                .collect::<Option<Vec<u32>>>()
        }
        Container::Gguf(gguf) => gguf.ids(name),
    }
    .ok_or_else(no_order)?;
    let mut seen = vec![false; vocab_size];
    for id in &ids {
        match seen.get_mut(*id as usize) {
            Some(seen) if !*seen => *seen = true,
            _ => return Err(no_order()),
        }
    }
    if ids.len() == vocab_size {
        Ok(ids)
    } else {
        Err(no_order())
    }
}

/// `sum of a[i] * b[i]`
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_whole, b_whole) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_whole
        .remainder()
        .iter()
        .zip(b_whole.remainder())
        .map(|(a, b)| a * b)
        .sum();
    for (a, b) in a_whole.zip(b_whole) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}
