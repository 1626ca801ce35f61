//! The server in one process on a model without weights: every route, whole and streamed, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod access;
mod anthropic;
mod common;
mod fake;
mod media;
mod models;
mod native;
mod ollama;
mod openai;
mod tls;
mod traces;
