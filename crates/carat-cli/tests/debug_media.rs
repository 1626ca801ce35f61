//! `carat debug logits --media`: prompts with images and sounds, from what the reference's processors give to its
//! logits.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use carat_testkit::{Golden, assert_close, fixture};
use tempfile::TempDir;

/// What the reference's float32 logits may differ by, absolute.
const TOL_LOGITS: f32 = 2e-3;

/// `carat debug logits` for a fixture's multimodal prompt with these media files of it.
fn debug_logits(model: &str, out: &Path, media: &[&str], extra: &[&str]) -> Output {
    let home = TempDir::new().unwrap();
    let golden = Golden::open(&fixture(format!("{model}/multimodal.safetensors")));
    let ids = home.path().join("ids.json");
    fs::write(&ids, format!("{:?}", golden.i64s("input_ids").data)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_carat"));
    command
        .env_clear()
        .env("HOME", home.path())
        .env("CARAT_OFFLINE", "1");
    command
        .args(["debug", "logits"])
        .arg(fixture(model))
        .arg("--ids")
        .arg(&ids)
        .arg("--out")
        .arg(out);
    for file in media {
        command
            .arg("--media")
            .arg(fixture(format!("{model}/{file}.safetensors")));
    }
    command.args(extra).output().unwrap()
}

fn check(model: &str, media: &[&str]) {
    let folder = TempDir::new().unwrap();
    let golden = Golden::open(&fixture(format!("{model}/multimodal.safetensors")));
    for (i, extra) in [&["--dtype", "f32"][..], &["--dtype", "f32", "--chunk", "7"]]
        .iter()
        .enumerate()
    {
        let out = folder.path().join(format!("{i}.safetensors"));
        let output = debug_logits(model, &out, media, extra);
        assert!(
            output.status.success(),
            "{model}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "nothing else is printed"
        );
        let name = format!("{model} {extra:?}");
        assert_close(
            &name,
            &Golden::open(&out).f32s("logits").data,
            &golden.f32s("logits").data,
            TOL_LOGITS,
        );
    }
}

#[test]
fn gemma3_sees_as_the_reference() {
    check("gemma3-vision", &["multimodal"]);
}

#[test]
fn gemma4_sees_and_hears_as_the_reference() {
    check("gemma4-unified", &["multimodal"]);
    check("gemma4-edge", &["multimodal", "towers"]);
    check("gemma4-dense", &["multimodal", "towers"]);
    check("gemma4-moe", &["multimodal", "towers"]);
}

#[test]
fn what_does_not_fit_is_said_in_one_line() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out.safetensors");
    for (file, reason) in [
        ("golden", "no mm_token_type_ids"),
        ("model", "no mm_token_type_ids"),
    ] {
        let output = debug_logits("gemma3-vision", &out, &[file], &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(reason), "{said}");
    }
    assert!(!out.exists());
}
