#![forbid(unsafe_code)]
//! Wire types of the OpenAI, Anthropic and Ollama APIs, and one neutral form between them.
//!
//! Every API's request becomes a [`GenerationRequest`]; every answer is a stream of [`Delta`]s and one [`Finish`],
//! which each API writes in its own way, whole or as events. Fields that nobody here knows are ignored; a known field
//! of a wrong type is refused with its path ([`parse`]). Errors are one type, [`ApiError`], written in each API's shape.
//!
//! This crate knows JSON and nothing else: no HTTP, no model, no tokenizer.

pub mod anthropic;
pub mod ollama;
pub mod openai;

mod error;
mod generation;
mod media;
mod read;

pub use error::{ApiError, ErrorKind};
pub use generation::{
    Delta, Finish, FinishKind, Format, GenerationRequest, KeepAlive, Part, Role, Sampling, TokenLogprob,
    Tool, ToolCall, ToolChoice, Turn, Usage, whole_arguments,
};
pub use media::{Media, MediaSource};
pub use read::parse;
