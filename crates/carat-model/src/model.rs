//! A loaded model: weights on the CPU, ready to run batches of sequences.

use std::path::Path;

use carat_kernels::attention::KvDType;
use carat_kernels::{Isa, Precision};
use smallvec::SmallVec;

use crate::backend::{Backend, Sequence};
use crate::checkpoint::Checkpoint;
use crate::cpu::Cpu;
use crate::gemma::{Buffers, Observer, Pass, forward};
use crate::kv_cache::KvCache;
use crate::language_model::{LanguageModel, Segment, SequenceCache};
use crate::weights::Weights;
use crate::{Config, Error};

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
        let precision = options.precision_for(checkpoint.config());
        let backend = Cpu::new(options.isa, options.n_threads, precision, options.kv_dtype)?;
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

    /// As [`LanguageModel::forward`], and shows `observer` the residual stream of each pass: with index 0 the
    /// scaled embeddings, with `i` what layer `i` (counted from 1) leaves, both `[tokens, d_model]`, and with
    /// the number of layers the wanted rows after the final norm. (The raw output of the last layer is not
    /// shown, as in the reference's `hidden_states`.)
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
        for segment in batch.iter_mut() {
            self.backend.reserve(segment.cache, segment.tokens.len())?;
        }
        let mut sequences: SmallVec<[Sequence<'_, KvCache>; 4]> = SmallVec::new();
        for segment in batch {
            let (first, n) = (self.tokens.len(), segment.tokens.len());
            let pos = segment.cache.len();
            self.tokens.extend_from_slice(segment.tokens);
            self.positions.extend(pos..pos + n);
            self.wanted.extend(first + n - segment.logits.count(n)..first + n);
            sequences.push(Sequence {
                cache: segment.cache,
                n,
            });
        }
        let mut pass = Pass {
            tokens: &self.tokens,
            positions: &self.positions,
            sequences: &mut sequences,
            wanted: &self.wanted,
        };
        let Model {
            config,
            backend,
            weights,
            buffers,
            ..
        } = self;
        forward(backend, config, weights, buffers, &mut pass, logits, observer)
    }

    /// Everything that could go wrong half-way is found before anything is written.
    fn check(&self, batch: &[Segment<'_, KvCache>]) -> Result<(), Error> {
        let n_tokens: usize = batch.iter().map(|segment| segment.tokens.len()).sum();
        if n_tokens == 0 || batch.iter().any(|segment| segment.tokens.is_empty()) {
            return Err(Error::EmptySegment);
        }
        if n_tokens > self.max_batch_tokens() {
            return Err(Error::BatchTooLarge {
                n_tokens,
                limit: self.max_batch_tokens(),
            });
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
            let vocab_size = self.config.vocab_size;
            if let Some(id) = segment.tokens.iter().find(|id| **id as usize >= vocab_size) {
                return Err(Error::TokenId { id: *id, vocab_size });
            }
        }
        Ok(())
    }
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

    fn forward(&mut self, batch: &mut [Segment<'_, KvCache>], logits: &mut Vec<f32>) -> Result<(), Error> {
        self.run(batch, logits, None)
    }
}
