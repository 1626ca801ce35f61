#![forbid(unsafe_code)]
//! Gemma models: configuration, weights, KV cache and forward pass.
//!
//! - [`Checkpoint`]: a model on disk, GGUF or Hugging Face folder, opened and understood.
//! - [`Model`]: its weights ready to run; an implementation of [`LanguageModel`], which is all that the
//!   engine knows.
//! - [`KvCache`]: what one sequence has computed so far.
//!
//! A model knows no request, no time and no randomness: the same tokens on the same caches give the same
//! logits.

pub mod convert;

mod backend;
mod checkpoint;
mod config;
mod cpu;
mod drafter;
mod error;
mod fingerprint;
mod gemma;
mod kv_cache;
mod kv_file;
mod language_model;
mod media;
mod model;
mod weights;

pub use carat_kernels::attention::KvDType;
pub use carat_kernels::encoder::EncoderPrecision;
pub use carat_kernels::{Isa, Precision, cpu_features, lower_priority, physical_cores};
pub use checkpoint::{Checkpoint, Container};
pub use config::{
    AudioConfig, Config, ConformerConfig, Experts, Family, Gemma4VisionConfig, KvSource, LayerConfig,
    MediaConfig, Rope, SiglipConfig, UnifiedAudioConfig, UnifiedVisionConfig, VisionConfig,
};
pub use drafter::{DraftStep, DrafterKind, Drafters};
pub use error::Error;
pub use gemma::{Observed, Observer};
pub use kv_cache::{KvCache, ROLLBACK};
pub use kv_file::CacheFiles;
pub use language_model::{
    DraftSegment, LanguageModel, LogitRows, MediaSpan, Segment, SequenceCache, SpanAttention, TokenLogit,
};
pub use media::{ImageInput, MediaCache, MediaEncoder, MediaObserver, MediaSource, MediaStage};
pub use model::{LoadOptions, MAX_CHAIN, MAX_SPAN_ROWS, Model};
pub use weights::gguf_name;
