//! Replays the fuzzers' corpora with the same code that the fuzzers run.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may fail loudly")]

use std::path::PathBuf;

#[path = "../../../fuzz/exercise/template.rs"]
mod template;
#[path = "../../../fuzz/exercise/tokenizer.rs"]
mod tokenizer;

fn replay(target: &str, exercise: fn(&[u8])) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut n_files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        exercise(&std::fs::read(entry.unwrap().path()).unwrap());
        n_files += 1;
    }
    assert!(n_files >= 5, "{n_files} files for {target}");
}

#[test]
fn tokenizer_corpus_holds() {
    replay("tokenizer", tokenizer::exercise);
}

#[test]
fn template_corpus_holds() {
    replay("template", template::exercise);
}
