//! The real binary: output, exit codes, error texts, and logits against the reference's.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use carat_testkit::{ChatModel, Golden, assert_close, fixture, relative_l2};
use tempfile::TempDir;

/// What the reference's float32 logits may differ by, absolute.
const TOL_LOGITS: f32 = 2e-3;
/// What residual streams may differ by, relative to their size.
const TOL_HIDDEN: f64 = 1e-4;

/// carat in an empty home, without network.
fn carat(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carat"));
    command
        .env_clear()
        .env("HOME", home)
        .env("CARAT_OFFLINE", "1")
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    let home = TempDir::new().unwrap();
    carat(home.path()).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Runs to a failure with this code; returns what is said about it.
fn fail(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {}",
        stderr(&output)
    );
    assert_eq!(stdout(&output), "", "{arguments:?}");
    stderr(&output).to_string()
}

fn model() -> PathBuf {
    fixture("gemma3-text")
}

/// `carat debug logits` on the fixture's ids; returns the file's tensors.
fn debug_logits(extra: &[&str]) -> Golden {
    let folder = TempDir::new().unwrap();
    let golden = Golden::open(&fixture("gemma3-text/golden.safetensors"));
    let ids = folder.path().join("ids.json");
    fs::write(&ids, format!("{:?}", golden.i64s("input_ids").data)).unwrap();
    let out = folder.path().join("out.safetensors");
    let output = carat(folder.path())
        .args(["debug", "logits"])
        .args([
            model(),
            PathBuf::from("--ids"),
            ids,
            PathBuf::from("--out"),
            out.clone(),
        ])
        .args(extra)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        (stdout(&output), stderr(&output)),
        ("", ""),
        "nothing else is printed"
    );
    Golden::open(&out)
}

#[test]
fn debug_logits_are_the_references() {
    let golden = Golden::open(&fixture("gemma3-text/golden.safetensors"));
    let expected = golden.f32s("logits");
    for extra in [
        vec![],
        vec!["--step-by-step"],
        vec!["--chunk", "7"],
        vec!["--isa", "scalar", "--threads", "1"],
    ] {
        let extra: Vec<&str> = ["--dtype", "f32", "--hidden", "0,3,8,last"]
            .into_iter()
            .chain(extra)
            .collect();
        let found = debug_logits(&extra);
        let logits = found.f32s("logits");
        assert_eq!(logits.data.len(), expected.data.len());
        assert_eq!(logits.shape.last(), Some(&512));
        assert_close("logits", &logits.data, &expected.data, TOL_LOGITS);
        for name in ["hidden.0", "hidden.3", "hidden.8"] {
            let (found, expected) = (found.f32s(name), golden.f32s(name));
            let error = relative_l2(&found.data, &expected.data);
            assert!(error < TOL_HIDDEN, "{name} with {extra:?}: {error}");
        }
        assert_eq!(found.f32s("hidden.last").data, found.f32s("hidden.8").data);
    }
}

#[test]
fn debug_logits_of_the_last_token_alone_are_the_last_row() {
    // Other rows in the last products mean other rounding.
    let all = debug_logits(&["--dtype", "f32", "--chunk", "7"]).f32s("logits");
    let last = debug_logits(&["--dtype", "f32", "--chunk", "7", "--last"]).f32s("logits");
    assert_eq!(last.shape, [1, 512]);
    assert_close("last", &last.data, &all.data[all.data.len() - 512..], TOL_LOGITS);
}

#[test]
fn debug_logits_says_in_one_line_why_it_cannot() {
    let folder = TempDir::new().unwrap();
    let ids = |text: &str| {
        let path = folder.path().join("ids.json");
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let out = folder.path().join("out.safetensors").display().to_string();
    let model = model().display().to_string();
    let check = |text: &str, extra: &[&str], code: i32, said: &str| {
        let ids = ids(text);
        let arguments = [&["debug", "logits", &model, "--ids", &ids, "--out", &out], extra].concat();
        let message = fail(&arguments, code);
        assert!(message.contains(said), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(!Path::new(&out).exists(), "no half file is left");
    };
    check("[1, 2", &[], 1, "is not a JSON array of token ids");
    check("[]", &[], 1, "holds no ids");
    check(
        "[1, 512]",
        &[],
        1,
        "token id 512 is not below the model's vocabulary size 512",
    );
    check(
        "[1]",
        &["--hidden", "9"],
        2,
        "there is no hidden.9: the model has 8 layers",
    );
    check("[1]", &["--isa", "sse9"], 1, "sse9");
}

#[test]
fn bench_measures_and_says_so_in_json() {
    let model = model().display().to_string();
    let output = run(&[
        "bench",
        &model,
        "--prefill",
        "20",
        "--decode",
        "4",
        "--repeat",
        "3",
        "--json",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(found["results"][0]["kind"], "prefill");
    assert_eq!(found["results"][1]["n_tokens"], 4);
    let speed = &found["results"][1]["tok_per_s"];
    assert!(speed["min"].as_f64().unwrap() <= speed["median"].as_f64().unwrap());
    assert!(fail(&["bench", &model, "--depth", "999999"], 2).contains("more than the 131072"));
}

#[test]
fn bench_of_drafts_says_its_depth_and_takes_one() {
    let folder = TempDir::new().unwrap();
    let _chat = ChatModel::new("gemma3-vision", folder.path());
    let model = folder.path().to_str().unwrap();
    let line = ["bench", model, "--draft", "2", "--accept", "0.5"];
    let line = [&line[..], &["--decode", "4", "--repeat", "1", "--depth", "20"]].concat();
    let output = run(&[&line[..], &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(found["results"][0]["depth"], 20);
    let several = fail(&["bench", "nothing", "--draft", "2", "--depth", "0,16"], 2);
    assert!(several.contains("hint: give one --depth"), "{several}");
    fail(&["bench", "nothing", "--draft", "2", "--reading"], 2);
}

#[test]
fn a_context_beyond_the_models_is_refused_before_anything_is_loaded() {
    // The folder has no tokenizer, of which something would be said next.
    let message = fail(&["run", model().to_str().unwrap(), "hi", "--ctx", "131073"], 2);
    assert!(
        message.contains("--ctx 131073 is more than the 131072 tokens of this model"),
        "{message}"
    );
}

/// Nothing is served: what is wrong is said first, or the settings are printed.
#[test]
fn settings_of_serve_are_those_of_flags_and_file_together() {
    let folder = TempDir::new().unwrap();
    let file = |text: &str| {
        let path = folder.path().join("carat.toml");
        fs::write(&path, format!("[serve]\n{text}\n")).unwrap();
        path.display().to_string()
    };
    let refused = |extra: &[&str], said: &str| {
        let message = fail(&[&["serve", "gemma9:1b", "--host", "0.0.0.0"], extra].concat(), 2);
        assert!(message.contains(said), "{message}");
    };
    let printed = |line: &[&str]| {
        let output = run(&[&["serve"], line, &["--print-config"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output).to_string()
    };
    refused(&["--api-key", ""], "an --api-key is empty");
    refused(&["--config", &file("api-key = [\" \"]")], "an --api-key is empty");
    refused(&["--cache-disk", "1GB"], "name the folder with --cache-dir");
    refused(
        &["--tls-cert", "a.pem"],
        "`tls-cert` and `tls-key` are needed together",
    );
    let config = file("tls-key = \"key.pem\"\ncache-dir = \"caches\"");
    let shown = printed(&[
        "m",
        "--config",
        &config,
        "--tls-cert",
        "a.pem",
        "--cache-disk",
        "1GB",
    ]);
    assert!(shown.contains("tls-key = \"key.pem\""), "{shown}");

    let shown = printed(&["--strict-model", "m", "--api-key", "secret"]);
    for line in [
        "model = [\"m\"]",
        "strict-model = true",
        "# api-key: hidden, set it here",
    ] {
        assert!(shown.lines().any(|other| other == line), "no {line} in {shown}");
    }
    assert!(
        !shown.contains("secret") && !shown.contains("\napi-key"),
        "{shown}"
    );
    assert!(printed(&["m", "--strict-model=false"]).contains("strict-model = false"));
}

/// Linux takes any bytes as a name.
#[cfg(target_os = "linux")]
#[test]
fn paths_that_are_no_unicode_are_used_and_shown() {
    use std::os::unix::ffi::OsStrExt;
    let folder = TempDir::new().unwrap();
    let odd = |name: &[u8]| folder.path().join(std::ffi::OsStr::from_bytes(name));
    let home = odd(b"home\xff");
    let models = home.join(".lmstudio/models/someone/something");
    fs::create_dir_all(&models).unwrap();
    let json = |command: &mut Command| {
        let output = command.arg("--json").output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str::<serde_json::Value>(stdout(&output)).unwrap()
    };
    let written = json(
        carat(folder.path())
            .arg("quantize")
            .args([model(), models.join("gemma-3-small.gguf")])
            .args(["--type", "Q8_0"]),
    );
    assert!(written["path"].as_str().unwrap().ends_with("gemma-3-small.gguf"));
    assert!(
        json(carat(&home).arg("list"))[0]["path"]
            .as_str()
            .unwrap()
            .ends_with("gemma-3-small.gguf")
    );
    assert!(json(carat(&home).arg("doctor"))["stores"].is_array());

    let image = odd(b"cat\xff.png");
    fs::copy(fixture("gemma3-vision/image0.png"), &image).unwrap();
    let output = carat(folder.path())
        .args(["run", "gemma9:1b", "hi", "--image"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("no model is named"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn show_draws_the_architecture() {
    let output = run(&["show", &model().display().to_string(), "--json"]);
    let card: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!((&card["n_layers"], &card["window"]), (&8.into(), &16.into()));
    assert_eq!((&card["n_heads"], &card["n_kv_heads"]), (&4.into(), &2.into()));
}

#[test]
fn quantize_writes_a_model_unless_one_is_there() {
    let folder = TempDir::new().unwrap();
    let target = folder.path().join("small.gguf").display().to_string();
    let message = fail(
        &[
            "quantize",
            &model().display().to_string(),
            &target,
            "--type",
            "Q9_9",
        ],
        2,
    );
    assert!(message.contains("Q4_K_M"), "the types are listed: {message}");
    fs::write(&target, "mine").unwrap();
    let message = fail(
        &[
            "quantize",
            &model().display().to_string(),
            &target,
            "--type",
            "Q8_0",
        ],
        1,
    );
    assert!(
        message.contains("is already there") && message.contains("hint: give another name"),
        "{message}"
    );
    assert_eq!(fs::read(&target).unwrap(), b"mine");
}

#[test]
fn without_model_and_network_it_says_what_was_tried_and_what_to_do() {
    let message = fail(&["run", "gemma3:1b", "hello"], 1);
    for said in ["Hugging Face", "Ollama", "is not on this machine", "what to do:"] {
        assert!(message.contains(said), "no {said:?} in {message}");
    }
}

#[test]
fn exit_codes_tell_whose_fault_it_is() {
    fail(&["fly"], 2);
    fail(&["run", "x", "--temperature", "hot"], 2);
    assert!(fail(&["run", "gemma9:1b", "hello"], 1).starts_with("error: no model is named `gemma9:1b`"));
    assert!(
        fail(&["run", "./nothing.gguf", "hello"], 1).contains("there is no file or folder `./nothing.gguf`")
    );
    assert!(fail(&["rm", "gemma3:1b"], 1).contains("not in carat's own store"));
    assert!(fail(&["run", "gemma3:1b"], 2).contains("hint: give a prompt"));
    for looked_at in [&["show", "gemma3:1b"][..], &["tokenize", "gemma3:1b", "hello"]] {
        let message = fail(looked_at, 1);
        assert!(
            message.contains("`gemma3:1b` is not on this machine")
                && message.contains("carat pull gemma3:1b")
        );
    }
    let folder = TempDir::new().unwrap();
    let broken = folder.path().join("broken.gguf");
    fs::write(&broken, b"GGUF\x03\0\0\0 and no more").unwrap();
    let message = fail(&["show", &broken.display().to_string()], 1);
    assert!(message.contains("broken.gguf"), "{message}");
}

#[test]
fn settings_of_the_environment_are_checked() {
    let home = TempDir::new().unwrap();
    let output = carat(home.path())
        .arg("doctor")
        .env("CARAT_THREADS", "many")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("CARAT_THREADS is `many`"),
        "{}",
        stderr(&output)
    );
    let output = carat(home.path())
        .args(["doctor", "--json"])
        .env("CARAT_ISA", "scalar")
        .output()
        .unwrap();
    let found: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(
        (&found["isa"], &found["offline"]),
        (&"scalar".into(), &true.into())
    );
}

#[test]
fn an_empty_machine_has_no_models() {
    let output = run(&["list", "--json"]);
    assert_eq!(stdout(&output).trim(), "[]");
    let output = run(&["list", "--catalogue"]);
    assert!(stdout(&output).contains("gemma3:270m"));
}

#[test]
fn a_closed_output_ends_quietly() {
    let home = TempDir::new().unwrap();
    let mut child = carat(home.path())
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
}

#[test]
fn help_has_examples_and_version_is_the_crates() {
    let output = run(&["run", "--help"]);
    assert!(stdout(&output).contains("Examples:") && stdout(&output).contains("--temperature"));
    let output = run(&["--version"]);
    assert_eq!(
        stdout(&output).trim(),
        concat!("carat ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn ids_that_are_no_ids_are_refused() {
    let home = TempDir::new().unwrap();
    let mut child = carat(home.path())
        .args(["detokenize", "x.gguf"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"one two").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("hint: write it like [2, 818, 5279]"),
        "{}",
        stderr(&output)
    );
}

/// `carat debug preprocess` for the config of one fixture and files of it; returns the tensors.
fn debug_preprocess(model: &str, extra: &[&str]) -> Golden {
    let folder = TempDir::new().unwrap();
    // The settings alone: neither weights nor a tokenizer are needed.
    let settings = folder.path().join("model");
    fs::create_dir(&settings).unwrap();
    fs::copy(
        fixture(format!("{model}/config.json")),
        settings.join("config.json"),
    )
    .unwrap();
    let out = folder.path().join("out.safetensors");
    let output = carat(folder.path())
        .args(["debug", "preprocess"])
        .args([&settings, Path::new("--out"), &out])
        .args(extra)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!((stdout(&output), stderr(&output)), ("", ""));
    Golden::open(&out)
}

#[test]
fn debug_preprocess_gives_the_references_tensors() {
    let file = |name: &str| fixture(name).display().to_string();
    let images = |model: &str| [0, 1].map(|i| file(&format!("{model}/image{i}.png")));
    let audio = |model: &str| file(&format!("{model}/audio.wav"));

    let [a, b] = images("gemma3-vision");
    let found = debug_preprocess("gemma3-vision", &["--image", &a, "--image", &b]);
    let golden = Golden::open(&fixture("gemma3-vision/multimodal.safetensors"));
    let (pixels, expected) = (found.f32s("pixel_values"), golden.f32s("pixel_values"));
    assert_eq!(pixels.shape, expected.shape);
    assert_close("pixel_values", &pixels.data, &expected.data, 1e-6);
    assert_eq!(found.i64s("num_crops").data, [0, 0]);

    let [a, b] = images("gemma4-unified");
    let sound = audio("gemma4-unified");
    let arguments = ["--image", &a, "--image", &b, "--audio", &sound, "--budget", "70"];
    let found = debug_preprocess("gemma4-unified", &arguments);
    let golden = Golden::open(&fixture("gemma4-unified/multimodal.safetensors"));
    let (pixels, levels) = (found.f32s("pixel_values"), golden.i64s("pixel_values_u8"));
    assert_eq!(pixels.shape, levels.shape);
    let expected: Vec<f32> = levels.data.iter().map(|level| *level as f32 / 255.0).collect();
    assert_close("pixel_values", &pixels.data, &expected, 1e-6);
    assert_eq!(
        found.i64s("image_position_ids"),
        golden.i64s("image_position_ids")
    );
    assert_eq!(found.f32s("input_features"), golden.f32s("input_features"));
    assert_eq!(
        found.i64s("input_features_mask"),
        golden.i64s("input_features_mask")
    );

    let [a, b] = images("gemma4-edge");
    let sound = audio("gemma4-edge");
    let arguments = ["--image", &a, "--image", &b, "--audio", &sound, "--budget", "70"];
    let found = debug_preprocess("gemma4-edge", &arguments);
    let golden = Golden::open(&fixture("gemma4-edge/towers.safetensors"));
    for (name, tolerance) in [("pixel_values", 1e-6), ("input_features", 1e-4)] {
        let (found, expected) = (found.f32s(name), golden.f32s(name));
        assert_eq!(found.shape, expected.shape);
        assert_close(name, &found.data, &expected.data, tolerance);
    }
    for name in ["image_position_ids", "input_features_mask"] {
        assert_eq!(found.i64s(name), golden.i64s(name));
    }
    assert_eq!(found.i64s("num_soft_tokens_per_image").data, [60, 56]);
}

#[test]
fn debug_preprocess_says_in_one_line_why_it_cannot() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("out.safetensors").display().to_string();
    let text = folder.path().join("notes.png").display().to_string();
    fs::write(&text, "no picture").unwrap();
    let image = fixture("gemma4-edge/image0.png").display().to_string();
    let check = |model: &str, extra: &[&str], code: i32, said: &str| {
        let model = fixture(model).display().to_string();
        let arguments = [&["debug", "preprocess", &model, "--out", &out], extra].concat();
        let message = fail(&arguments, code);
        assert!(message.contains(said), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(!Path::new(&out).exists(), "no half file is left");
    };
    check("gemma3-vision", &[], 2, "nothing to process");
    check(
        "gemma3-vision",
        &["--image", &text],
        1,
        "notes.png` is not an image that can be read",
    );
    check(
        "gemma3-vision",
        &["--audio", &text],
        1,
        "notes.png` is not audio that can be read",
    );
    check("gemma3-text", &["--image", &image], 1, "does not take images");
    check(
        "gemma3-vision",
        &["--image", &image, "--budget", "99"],
        1,
        "cannot take 99 soft tokens",
    );
}
