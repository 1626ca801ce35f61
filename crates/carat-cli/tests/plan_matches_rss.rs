//! What `carat plan` says against what the system counts: peak resident memory of a filled context, within 5 %.
//!
//! `CARAT_TEST_MODEL` is the 270M as a GGUF file and `CARAT_TEST_12B` any file of the 12B; a test whose file is not
//! named does nothing. The table that docs/benchmarks.md shows is printed with `--nocapture`.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]
#![expect(clippy::print_stdout, reason = "the table is what the test is run for")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Largest difference, in percent of what was measured.
const TOLERANCE: f64 = 5.0;
const THREADS: &str = "2";

fn named(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("skipped: {variable} is not set");
    }
    path
}

fn carat(arguments: &[&str]) -> Vec<u8> {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_carat"))
        .env_clear()
        .env("HOME", home.path())
        .env("CARAT_OFFLINE", "1")
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Fills a context of `n` tokens and compares.
fn compare(name: &str, model: &Path, n: usize, kv_type: &str) {
    let (model, n) = (model.to_str().unwrap(), n.to_string());
    let planned: Value = serde_json::from_slice(&carat(&[
        "plan",
        model,
        "--context",
        &n,
        "--kv-type",
        kv_type,
        "--threads",
        THREADS,
        "--ram",
        "1TB",
        "--json",
    ]))
    .unwrap();
    let measured: Value = serde_json::from_slice(&carat(&[
        "bench",
        model,
        "--prefill",
        &n,
        "--decode",
        "0",
        "--repeat",
        "1",
        "--kv-type",
        kv_type,
        "--threads",
        THREADS,
        "--json",
    ]))
    .unwrap();
    // Measuring speed needs no tokenizer.
    let tokenizer = planned["process_bytes"]["tokenizer"].as_f64().unwrap();
    let planned = planned["peak_bytes"].as_f64().unwrap() - tokenizer;
    let measured = measured["peak_rss_bytes"].as_f64().unwrap();
    let percent = 100.0 * (planned - measured) / measured;
    println!(
        "| {name} | {n} | {kv_type} | {:.1} | {:.1} | {percent:+.1} % |",
        planned / 1e6,
        measured / 1e6
    );
    assert!(
        percent.abs() <= TOLERANCE,
        "{name}, {n} tokens: planned {planned}, measured {measured}"
    );
}

#[test]
fn the_270m_in_six_ways() {
    let Some(model) = named("CARAT_TEST_MODEL") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let in_mix = |mix: &str| {
        let path = folder.path().join(format!("{mix}.gguf"));
        let paths = [model.to_str().unwrap(), path.to_str().unwrap()];
        carat(&["quantize", paths[0], paths[1], "--type", mix]);
        path
    };
    for (mix, path) in [
        ("Q4_K_M", model.clone()),
        ("Q8_0", in_mix("Q8_0")),
        ("BF16", in_mix("BF16")),
    ] {
        for (n, kv_type) in [(1024, "f16"), (8192, "f16")] {
            compare(&format!("270M {mix}"), &path, n, kv_type);
        }
    }
    compare("270M Q4_K_M", &model, 8192, "q8_0");
}

#[test]
fn the_12b_at_two_depths() {
    let Some(model) = named("CARAT_TEST_12B") else {
        return;
    };
    for n in [512, 2048] {
        compare("12B", &model, n, "f16");
    }
}
