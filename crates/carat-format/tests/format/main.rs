//! The readers and writers against files made by each other, made wrongly, and made at random.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on must fail"
)]

mod common;
mod corpus;
mod gguf;
mod gguf_broken;
mod safetensors;
mod safetensors_broken;

#[path = "../../../../fuzz/exercise/gguf.rs"]
mod gguf_exercise;
#[path = "../../../../fuzz/exercise/safetensors.rs"]
mod safetensors_exercise;
