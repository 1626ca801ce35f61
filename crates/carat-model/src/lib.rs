#![forbid(unsafe_code)]
//! Gemma models: configuration, weights, cache and forward pass.

mod language_model;

pub use language_model::{LanguageModel, LogitRows, Segment, SequenceCache};
