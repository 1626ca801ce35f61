#![forbid(unsafe_code)]
//! Generation: from a prompt's tokens to text.
//!
//! A [`Request`] holds token ids and how to go on from them; [`generate`], [`generate_batch`] and a
//! [`Session`] (a conversation that keeps its cache) run it on any [`carat_model::LanguageModel`] and report
//! [`Event`]s. [`Sampler`] chooses the tokens, [`score`] measures how likely a given text is.
//!
//! For many clients a [`Scheduler`] runs [`Job`]s together: sequences join and leave at every step, share common
//! beginnings and may be bound to a [`Grammar`]. An [`Engine`] is a scheduler on a thread of its own.
//!
//! The engine knows no HTTP, no JSON, no files and no terminal. It never prints; time is read only for the
//! [`Timings`], randomness comes only from the request's seed.

mod constraint;
mod counters;
mod draft;
mod engine;
mod error;
mod gbnf;
mod generation;
mod job;
mod logprobs;
mod media;
mod numeric;
mod pace;
mod prefix;
mod random;
mod recent;
mod request;
mod sampler;
mod sampling_params;
mod scheduler;
mod schema_cost;
mod score;
mod selection;
mod sequence;
mod session;
mod stop_strings;
mod store;

pub use constraint::{Constraint, Grammar, GrammarCompiler, Thoughts};
pub use counters::{Counter, Counters};
pub use draft::{DraftCounts, Drafting, MAX_DRAFT};
pub use engine::Engine;
pub use error::Error;
pub use job::{Cancel, Job, Sink, Update};
pub use logprobs::TokenLogprobs;
pub use media::Media;
pub use request::{Event, FinishReason, Finished, Request, Timings, Usage};
pub use sampler::Sampler;
pub use sampling_params::SamplingParams;
pub use scheduler::{Limits, Scheduler};
pub use score::{Perplexity, Windows, score};
pub use session::{Session, generate, generate_batch};
pub use store::PrefixStore;
