//! From messages with images, sounds and videos to what the engine is asked.
//!
//! ```text
//! Attachment ── Senses::attach ──► Attached       decoded, resized; how many tokens it takes is known
//!                                     │
//! messages ── prompt ─────────────────┤            template, placeholders expanded, tokenized; checked against
//!                                     │            the context before any tower runs
//!                                     └─ Senses ──► rows of the model's width, kept by content
//! = Prompt { ids, media }  ──►  the fields of a carat_engine::Request
//! ```
//!
//! [`Senses`] is one model's way of seeing and hearing; it is shared between threads. Towers compute on the threads of
//! the text model, operation by operation beside it, so whoever calls waits: a server calls from a thread that may.
//! An [`Attached`] input may be used in many prompts and keeps its rows; and what is the same to the model, whoever
//! sends it again, is found by its content and runs no tower.
//!
//! The crate reads the files that it is told to and nothing else: no environment, no network.

#![forbid(unsafe_code)]

mod attachment;
mod compose;
mod error;
pub mod limits;
mod processor;
mod senses;

pub use attachment::{Attached, Attachment, Kind, Source};
pub use compose::{Composed, Prompt, PromptOptions, compose};
pub use error::{Error, Result};
pub use processor::processor;
pub use senses::{Senses, SensesOptions};
