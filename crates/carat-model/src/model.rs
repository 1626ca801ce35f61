//! A loaded model: weights on the CPU, ready to run batches of sequences.

use std::path::Path;
use std::sync::Arc;

use carat_kernels::attention::KvDType;
use carat_kernels::encoder::EncoderPrecision;
use carat_kernels::{Compute, Isa, Precision};
use smallvec::SmallVec;

use crate::backend::{Backend, Sequence};
use crate::checkpoint::Checkpoint;
use crate::cpu::Cpu;
use crate::drafter::{DraftStep, Drafter, DrafterKind, Mtp, Small, Target};
use crate::gemma::{Buffers, Observer, Outputs, Pass, forward};
use crate::kv_cache::KvCache;
use crate::language_model::{
    DraftSegment, LanguageModel, LogitRows, MediaSpan, Segment, SequenceCache, SpanAttention, TokenLogit,
};
use crate::media::{MediaEncoder, MediaSource};
use crate::weights::Weights;
use crate::{Config, Error};

/// Most rows of a bidirectional span: those of the largest image there is (1,120) several times over.
pub const MAX_SPAN_ROWS: usize = 8192;
/// Most rows of a segment that are computed as decoding would: [`ROLLBACK`](crate::ROLLBACK) leaves room for twice as
/// many in the rings.
pub const MAX_CHAIN: usize = 32;
/// Most of a row's largest logits that are looked for: enough for nearly every sampler.
const MAX_TOP: usize = 256;
/// The token that stands where media rows do, for whatever looks a token up.
const PADDING: u32 = 0;

/// How a model is to be run.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// What quantized weights are multiplied with. `None` leaves it to the model's size: see
    /// [`LoadOptions::precision_for`].
    pub precision: Option<Precision>,
    /// How keys and values are stored.
    pub kv_dtype: KvDType,
    /// Instruction set of the kernels.
    pub isa: Isa,
    /// Threads, at least 1; best the number of physical cores.
    pub n_threads: usize,
    /// Most tokens of one forward pass: the chunk of a prefill. Larger chunks are faster up to some hundred
    /// tokens and need more memory for activations.
    pub max_batch_tokens: usize,
}

impl Default for LoadOptions {
    /// The fast path on the best instruction set, on all physical cores, 512 tokens a pass.
    fn default() -> LoadOptions {
        LoadOptions {
            precision: None,
            kv_dtype: KvDType::F16,
            isa: Isa::detect(),
            n_threads: carat_kernels::physical_cores(),
            max_batch_tokens: 512,
        }
    }
}

impl LoadOptions {
    /// The reference's arithmetic: f32 throughout, the cache too.
    #[must_use]
    pub fn reference() -> LoadOptions {
        LoadOptions {
            precision: Some(Precision::F32),
            kv_dtype: KvDType::F32,
            ..LoadOptions::default()
        }
    }
    /// The precision in effect for a model: as set, or 16-bit activations for models of under a billion
    /// parameters and 8-bit ones for larger.
    ///
    /// Rounding to 8 bits moves the log-probability of a token of the 270M by 0.07 (standard deviation), about
    /// two thirds of what llama.cpp's does; in 16 bits it is as good as none, and so small a model stays quick
    /// with twice the multiplications. The wider rows of larger models average it out.
    #[must_use]
    pub fn precision_for(&self, config: &Config) -> Precision {
        let small = config.n_parameters() < 1_000_000_000;
        self.precision
            .unwrap_or(if small { Precision::Int16 } else { Precision::Int8 })
    }
}

/// A Gemma model. See [`LanguageModel`] for how to run it.
pub struct Model {
    config: Config,
    options: LoadOptions,
    backend: Cpu,
    weights: Weights<Cpu>,
    buffers: Buffers<Cpu>,
    tokens: Vec<u32>,
    positions: Vec<usize>,
    wanted: Vec<usize>,
    drafter: Option<Drafter>,
    /// Rows on their way to the caches, for the drafter.
    kept: Vec<f32>,
    /// Which of `wanted` are wanted as hidden states.
    shown: Vec<usize>,
    hidden: Vec<f32>,
    /// Which of `wanted` are wanted as their largest logits, and how many of them.
    topped: Vec<(usize, usize)>,
    top: Vec<Vec<TokenLogit>>,
}

impl Model {
    /// Opens and loads the checkpoint at `path`: [`Checkpoint::open`], then [`Model::from_checkpoint`].
    ///
    /// # Errors
    /// What either of them reports.
    pub fn load(path: &Path, options: LoadOptions) -> Result<Model, Error> {
        Model::from_checkpoint(&Checkpoint::open(path)?, options)
    }

    /// Loads an opened checkpoint. Weights stay mapped; nothing is copied but the norms.
    ///
    /// # Errors
    /// Tensors that are missing, unknown or of another shape than the settings say; no threads to be had.
    pub fn from_checkpoint(checkpoint: &Checkpoint, options: LoadOptions) -> Result<Model, Error> {
        let compute = Arc::new(Compute::new(options.isa, options.n_threads)?);
        Model::on(compute, checkpoint, options)
    }

    /// Loads a checkpoint onto threads that there are already.
    fn on(compute: Arc<Compute>, checkpoint: &Checkpoint, options: LoadOptions) -> Result<Model, Error> {
        let precision = options.precision_for(checkpoint.config());
        let backend = Cpu::on(compute, precision, options.kv_dtype);
        let weights = Weights::load(checkpoint, &backend)?;
        Ok(Model {
            config: checkpoint.config().clone(),
            options: LoadOptions {
                n_threads: backend.compute().pool().n_threads(),
                precision: Some(precision),
                ..options
            },
            backend,
            weights,
            buffers: Buffers::default(),
            tokens: Vec::new(),
            positions: Vec::new(),
            wanted: Vec::new(),
            drafter: None,
            kept: Vec::new(),
            shown: Vec::new(),
            hidden: Vec::new(),
            topped: Vec::new(),
            top: Vec::new(),
        })
    }

    /// Sizes and constants.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How it was loaded: `n_threads` is what there is, `precision` what was chosen.
    #[must_use]
    pub fn options(&self) -> &LoadOptions {
        &self.options
    }

    /// Gives the model a drafter: one made for it, or any smaller model, which must have the same tokenizer: that is the
    /// caller's to check. Before the first pass of any cache.
    ///
    /// # Errors
    /// [`Error::ForeignDrafter`] for a drafter of another model, and what is wrong with the files.
    pub fn add_drafter(&mut self, path: &Path) -> Result<DrafterKind, Error> {
        match Mtp::load(path, &self.config, &self.backend) {
            Ok(mtp) => {
                self.drafter = Some(Drafter::Mtp(Box::new(mtp)));
                Ok(DrafterKind::Mtp)
            }
            Err(Error::NoDrafter { .. }) => {
                let options = LoadOptions {
                    precision: None,
                    ..self.options
                };
                let compute = Arc::clone(self.backend.compute());
                let model = Model::on(compute, &Checkpoint::open(path)?, options)?;
                self.drafter = Some(Drafter::Small(Box::new(Small::new(model))));
                Ok(DrafterKind::Model)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`LanguageModel::draft`], and shows `see` the steps of a drafter that was made for this model.
    ///
    /// # Errors
    /// As [`LanguageModel::draft`].
    pub fn draft_observed(
        &mut self,
        batch: &mut [DraftSegment<'_, KvCache>],
        see: &mut dyn FnMut(&DraftStep<'_>),
    ) -> Result<(), Error> {
        let target = Target {
            config: &self.config,
            weights: &self.weights,
        };
        match &mut self.drafter {
            Some(Drafter::Mtp(mtp)) => {
                let _turn = self.backend.compute().pool().turn();
                mtp.draft(&mut self.backend, &target, batch, see)
            }
            // Its model's passes have turns of their own.
            Some(Drafter::Small(small)) => small.draft(batch),
            None => Ok(()),
        }
    }

    /// Loads the towers of `source` onto the threads of this model, where they give way to its passes: [`carat_kernels::Pool::beside`].
    ///
    /// # Errors
    /// Tensors that are missing, unknown or of another shape than the settings say.
    pub fn media_encoder(
        &self,
        source: &MediaSource<'_>,
        precision: EncoderPrecision,
    ) -> Result<MediaEncoder, Error> {
        let compute = Arc::new(self.backend.compute().beside());
        MediaEncoder::with_compute(source, compute, precision)
    }

    /// As [`LanguageModel::forward`], and shows `observer` what is inside: the residual stream, and what
    /// [`Observed`](crate::Observed) lists. The raw output of the last layer is not shown, as in the reference's
    /// `hidden_states`. Models whose last layers share keys and values compute there only the rows whose logits
    /// are wanted, so ask for all to see all.
    ///
    /// # Errors
    /// As [`LanguageModel::forward`].
    pub fn forward_observed(
        &mut self,
        batch: &mut [Segment<'_, KvCache>],
        logits: &mut Vec<f32>,
        observer: &mut Observer<'_>,
    ) -> Result<(), Error> {
        self.run(batch, logits, Some(observer))
    }

    fn run(
        &mut self,
        batch: &mut [Segment<'_, KvCache>],
        logits: &mut Vec<f32>,
        observer: Option<&mut Observer<'_>>,
    ) -> Result<(), Error> {
        self.check(batch)?;
        self.tokens.clear();
        self.positions.clear();
        self.wanted.clear();
        self.shown.clear();
        self.hidden.clear();
        self.topped.clear();
        for segment in batch.iter_mut() {
            self.backend.reserve(segment.cache, segment.tokens.len())?;
        }
        let mut sequences: SmallVec<[Sequence<'_, KvCache>; 16]> = SmallVec::new();
        let mut media: SmallVec<[(usize, &[f32]); 4]> = SmallVec::new();
        let mut n_predicting: SmallVec<[usize; 16]> = SmallVec::new();
        let d_model = self.config.d_model;
        for segment in batch {
            let (first, n) = (self.tokens.len(), segment.tokens.len());
            let pos = segment.cache.len();
            self.tokens.extend_from_slice(segment.tokens);
            self.positions.extend(pos..pos + n);
            let n_wanted = segment.logits.computed(n);
            if segment.logits == LogitRows::Hidden {
                self.shown.extend(self.wanted.len()..self.wanted.len() + n_wanted);
            }
            if let LogitRows::Top(k) = segment.logits {
                self.topped.push((self.wanted.len(), k.min(MAX_TOP)));
            }
            self.wanted.extend(first + n - n_wanted..first + n);
            n_predicting.push(segment.logits.predicting(n));
            let mut spans = SmallVec::new();
            for span in segment.media {
                let rows = rows_of(span, d_model);
                // Whatever stands for media in the tokens need not be a row of the embedding.
                self.tokens[first..][rows.clone()].fill(PADDING);
                media.push((first + span.start, span.rows));
                if span.attention == SpanAttention::Bidirectional {
                    spans.push(rows);
                }
            }
            sequences.push(Sequence {
                cache: segment.cache,
                pos,
                n,
                n_wanted,
                is_chain: segment.logits == LogitRows::All && n <= MAX_CHAIN && spans.is_empty(),
                spans,
            });
        }
        let mut pass = Pass {
            tokens: &self.tokens,
            positions: &self.positions,
            media: &media,
            sequences: &mut sequences,
            wanted: &self.wanted,
            shown: &self.shown,
            topped: &self.topped,
        };
        let Model {
            config,
            backend,
            weights,
            buffers,
            hidden,
            top,
            ..
        } = self;
        let outputs = Outputs { logits, hidden, top };
        let _turn = backend.compute().pool().turn();
        forward(backend, config, weights, buffers, &mut pass, outputs, observer)?;
        if matches!(self.drafter, Some(Drafter::Mtp(_))) {
            self.kept.clear();
            if n_predicting.iter().any(|n| *n > 0) {
                self.backend.read(&self.buffers.normed, &mut self.kept);
            }
            let mut rest = self.kept.as_slice();
            for (sequence, n) in sequences.iter_mut().zip(n_predicting) {
                let (rows, others) = rest.split_at(n * d_model);
                rest = others;
                let first = sequence.pos + sequence.n - n;
                sequence.cache.keep_hidden(first, d_model, rows);
            }
        }
        Ok(())
    }

    /// Everything that could go wrong half-way is found before anything is written.
    fn check(&self, batch: &[Segment<'_, KvCache>]) -> Result<(), Error> {
        let n_tokens: usize = batch.iter().map(|segment| segment.tokens.len()).sum();
        if n_tokens == 0 || batch.iter().any(|segment| segment.tokens.is_empty()) {
            return Err(Error::EmptySegment);
        }
        let n_bidirectional = batch
            .iter()
            .try_fold(0, |n, segment| Ok::<_, Error>(n + self.check_media(segment)?))?;
        let limit = self.max_batch_tokens() + n_bidirectional;
        if n_tokens > limit {
            return Err(Error::BatchTooLarge { n_tokens, limit });
        }
        for segment in batch {
            let (n_tokens, max_tokens) = (
                segment.cache.len() + segment.tokens.len(),
                segment.cache.max_tokens(),
            );
            if n_tokens > max_tokens {
                return Err(Error::CacheFull { n_tokens, max_tokens });
            }
            if !self.backend.cache_fits(segment.cache, &self.config) {
                return Err(Error::ForeignCache);
            }
            let (vocab_size, d_model) = (self.config.vocab_size, self.config.d_model);
            let is_text = |i: usize| {
                !segment
                    .media
                    .iter()
                    .any(|span| rows_of(span, d_model).contains(&i))
            };
            let mut ids = segment.tokens.iter().enumerate();
            if let Some((_, id)) = ids.find(|(i, id)| **id as usize >= vocab_size && is_text(*i)) {
                return Err(Error::TokenId { id: *id, vocab_size });
            }
        }
        Ok(())
    }

    /// Checks the places of a segment's media; returns how many rows are in bidirectional spans.
    fn check_media(&self, segment: &Segment<'_, KvCache>) -> Result<usize, Error> {
        let (n_tokens, d_model) = (segment.tokens.len(), self.config.d_model);
        let (mut free, mut n_bidirectional) = (0, 0);
        for span in segment.media {
            let rows = rows_of(span, d_model);
            if span.rows.is_empty()
                || !span.rows.len().is_multiple_of(d_model)
                || rows.start < free
                || rows.end > n_tokens
            {
                return Err(Error::MediaRows {
                    start: span.start,
                    n_tokens,
                    d_model,
                });
            }
            if span.attention == SpanAttention::Bidirectional {
                if rows.len() > MAX_SPAN_ROWS {
                    return Err(Error::SpanTooLong {
                        n_rows: rows.len(),
                        limit: MAX_SPAN_ROWS,
                    });
                }
                n_bidirectional += rows.len();
            }
            free = rows.end;
        }
        Ok(n_bidirectional)
    }
}

/// The tokens of its segment that a span stands for.
fn rows_of(span: &MediaSpan<'_>, d_model: usize) -> std::ops::Range<usize> {
    span.start..span.start.saturating_add(span.rows.len() / d_model)
}

impl LanguageModel for Model {
    type Cache = KvCache;
    type Error = Error;

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn context_len(&self) -> usize {
        self.config.context_len
    }

    fn max_batch_tokens(&self) -> usize {
        self.options.max_batch_tokens.max(1)
    }

    fn new_cache(&self, max_tokens: usize) -> Result<KvCache, Error> {
        let context_len = self.config.context_len;
        if max_tokens > context_len {
            return Err(Error::ContextTooLong {
                max_tokens,
                context_len,
            });
        }
        Ok(self.backend.new_cache(&self.config, max_tokens))
    }

    fn cache_bytes(&self, n_tokens: usize) -> usize {
        let own = KvCache::bytes_for(&self.config, self.options.kv_dtype, n_tokens);
        match &self.drafter {
            Some(Drafter::Small(small)) => own.saturating_add(small.cache_bytes(n_tokens)),
            Some(Drafter::Mtp(_)) | None => own,
        }
    }

    fn n_alike_rows(&self) -> usize {
        self.backend.compute().n_few().min(MAX_CHAIN)
    }

    fn drafts(&self) -> bool {
        self.drafter.is_some()
    }

    fn draft(&mut self, batch: &mut [DraftSegment<'_, KvCache>]) -> Result<(), Error> {
        self.draft_observed(batch, &mut |_| {})
    }

    fn forward(&mut self, batch: &mut [Segment<'_, KvCache>], logits: &mut Vec<f32>) -> Result<(), Error> {
        self.run(batch, logits, None)
    }

    fn hidden(&self) -> &[f32] {
        &self.hidden
    }

    fn top(&self) -> &[Vec<TokenLogit>] {
        &self.top
    }

    fn max_top(&self) -> usize {
        MAX_TOP
    }
}
