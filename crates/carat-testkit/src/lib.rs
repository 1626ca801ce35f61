//! Golden files and comparators for carat's tests.
//!
//! Everything here panics with a message when something is not as a test needs it: it is used in tests
//! only, by `[dev-dependencies]`.
//!
//! - [`fixture`]: the path of a file under `tests/fixtures`.
//! - [`Golden`]: the tensors of a safetensors file, by name, as `f32` or `i64`.
//! - [`ChatModel`]: a tiny model with a vocabulary and a template, to be talked to.
//! - [`sentencepiece`]: a `tokenizer.model` of given pieces.
//! - [`assert_close`], [`relative_l2`], [`max_abs_diff`]: comparison with what the reference computed.

#![forbid(unsafe_code)]
#![expect(clippy::panic, reason = "a test that cannot go on must fail")]

mod chat_model;
mod compare;
mod golden;
mod sentencepiece;

use std::path::{Path, PathBuf};

pub use chat_model::ChatModel;
pub use compare::{assert_close, max_abs_diff, relative_l2};
pub use golden::{Golden, Tensor};
pub use sentencepiece::sentencepiece;

/// The path of `path` under `tests/fixtures`, such as `gemma3-text/model.safetensors`.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn fixture(path: impl AsRef<Path>) -> PathBuf {
    let full = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(path);
    assert!(full.exists(), "no fixture `{}`", full.display());
    full
}
