//! The small models with integer products.

use std::ops::ControlFlow;

use carat_model::convert::{ConvertOptions, Mix, convert};
use carat_testkit::fixture;
use tempfile::TempDir;

/// The model of a fixture in Q8_0, as `model.gguf` in a folder of its own.
pub(crate) fn quantized(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let options = ConvertOptions {
        mix: Mix::Q8_0,
        pure: false,
        n_threads: 2,
    };
    let target = dir.path().join("model.gguf");
    convert(&fixture(name), &target, &options, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    dir
}
