//! The seeds of the fuzzer, replayed by the same code on a stable toolchain.

use std::fs;
use std::path::Path;

use crate::{audio_exercise, image_exercise};

fn replay(target: &str, exercise: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut n_files = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(bytes.len() < 4096, "seeds are small");
        exercise(&bytes);
        n_files += 1;
    }
    assert!(n_files >= 10, "only {n_files} seeds in {}", folder.display());
}

#[test]
fn image() {
    replay("image", image_exercise::exercise);
}

#[test]
fn audio() {
    replay("audio", audio_exercise::exercise);
}
