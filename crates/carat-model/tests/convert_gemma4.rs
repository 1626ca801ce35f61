//! Conversion of the small Gemma 4 models: what comes out loads again and says the same.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use carat_format::{Gguf, GgufBuilder, Value};
use carat_kernels::DType;
use carat_model::convert::{ConvertError, ConvertOptions, ConvertReport, Mix, convert, tensors_of};
use carat_model::{Checkpoint, LanguageModel, LoadOptions, LogitRows, Model, Precision, Segment};
use carat_testkit::{Golden, fixture, relative_l2};
use carat_text::{GgufVocabulary, Special, Tokenizer};
use tempfile::TempDir;

const MODELS: [&str; 4] = ["gemma4-unified", "gemma4-dense", "gemma4-edge", "gemma4-moe"];

/// As in the tests of the forward pass: conversion to F32 adds nothing to its error.
const TOL_LOGITS: f64 = 1e-4;
/// The small models amplify relative noise in their weights, that of Q8_0 being 0.0054, up to so much.
const TOL_Q8_0: f64 = 0.2;

fn folder(model: &str) -> PathBuf {
    fixture(format!("{model}/config.json"))
        .parent()
        .unwrap()
        .to_owned()
}

fn run(source: &Path, target: &Path, mix: Mix) -> ConvertReport {
    let options = ConvertOptions {
        mix,
        pure: false,
        n_threads: 2,
    };
    convert(source, target, &options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn logits(path: &Path, tokens: &[u32], options: LoadOptions) -> Vec<f32> {
    let mut model = Model::load(path, options).unwrap();
    let mut cache = model.new_cache(tokens.len()).unwrap();
    let mut all = Vec::new();
    let mut batch = [Segment {
        tokens,
        media: &[],
        cache: &mut cache,
        logits: LogitRows::All,
    }];
    model.forward(&mut batch, &mut all).unwrap();
    all
}

/// Relative L2 of what the model at `path` says to the reference's prompt.
fn error_of(model: &str, path: &Path, options: LoadOptions) -> f64 {
    let golden = Golden::open(&fixture(format!("{model}/golden.safetensors")));
    let ids = golden.i64s("input_ids").data;
    let tokens: Vec<u32> = ids.iter().map(|id| u32::try_from(*id).unwrap()).collect();
    relative_l2(&logits(path, &tokens, options), &golden.f32s("logits").data)
}

#[test]
fn a_folder_converted_to_f32_gives_the_reference_logits() {
    let dir = tempfile::tempdir().unwrap();
    for model in MODELS {
        let path = dir.path().join(format!("{model}.gguf"));
        let report = run(&folder(model), &path, Mix::F32);
        assert!(
            report.notes.iter().any(|note| note.contains("no tokenizer")),
            "{:?}",
            report.notes
        );
        let error = error_of(model, &path, LoadOptions::reference());
        assert!(error < TOL_LOGITS, "{model}: {error}");
        // All that a configuration says is in the file, but where the context ends in a folder.
        let (from, to) = (
            Checkpoint::open(&folder(model)).unwrap(),
            Checkpoint::open(&path).unwrap(),
        );
        assert_eq!(from.config(), to.config(), "{model}");
    }
}

/// The model with other words in its settings.
fn changed_folder(model: &str, from: &str, to: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let json = fs::read_to_string(folder(model).join("config.json")).unwrap();
    assert!(json.contains(from), "{from}");
    fs::write(dir.path().join("config.json"), json.replace(from, to)).unwrap();
    let weights = "model.safetensors";
    fs::copy(folder(model).join(weights), dir.path().join(weights)).unwrap();
    dir
}

/// What moves logits and differs from the released models goes over all the same.
#[test]
fn settings_that_few_models_have_are_written() {
    let tokens: Vec<u32> = (0..60).map(|i| (i * 131 + 17) % 500).collect();
    let proportional = "\"rope_type\": \"proportional\"";
    for (model, from, to) in [
        (
            "gemma4-dense",
            proportional,
            "\"rope_type\": \"linear\", \"factor\": 4.0",
        ),
        ("gemma4-dense", proportional, "\"rope_type\": \"default\""),
        (
            "gemma4-edge",
            "\"partial_rotary_factor\": 0.25",
            "\"partial_rotary_factor\": 1.0",
        ),
        ("gemma4-dense", "\"vision\"", "null"),
        (
            "gemma4-edge",
            "\"use_bidirectional_attention\": null",
            "\"use_bidirectional_attention\": \"vision\"",
        ),
    ] {
        let dir = changed_folder(model, from, to);
        let path = dir.path().join("model.gguf");
        run(dir.path(), &path, Mix::F32);
        let config = |path: &Path| Checkpoint::open(path).unwrap().config().clone();
        assert_ne!(config(dir.path()), config(&folder(model)), "{model}: {to}");
        assert_eq!(config(dir.path()), config(&path), "{model}: {to}");
        let options = LoadOptions::reference();
        let error = relative_l2(
            &logits(&path, &tokens, options),
            &logits(dir.path(), &tokens, options),
        );
        assert!(error < TOL_LOGITS, "{model}: {to}: {error}");
    }
}

/// Neither a folder's setting that has no key, nor a file's that carat does not know, is passed over.
#[test]
fn settings_that_cannot_be_are_not_forgotten() {
    let dir = changed_folder(
        "gemma4-dense",
        "\"rope_theta\": 10000.0,\n        \"rope_type\": \"default\"",
        "\"rope_theta\": 10000.0, \"rope_type\": \"linear\", \"factor\": 2.0",
    );
    let path = dir.path().join("model.gguf");
    let options = ConvertOptions {
        mix: Mix::F32,
        pure: false,
        n_threads: 2,
    };
    let error = convert(dir.path(), &path, &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(
        matches!(&error, ConvertError::Forgotten { setting, .. } if setting.contains("rope")),
        "{error}"
    );
    assert!(!path.exists());
    run(&folder("gemma4-dense"), &path, Mix::F32);
    let mut builder = GgufBuilder::new();
    for (key, value) in Gguf::open(&path).unwrap().metadata().iter() {
        builder.metadata(key, value.clone());
    }
    builder.metadata("gemma4.rope.scaling.type", Value::from("yarn"));
    let other = dir.path().join("other.gguf");
    builder.create(&other).unwrap().finish().unwrap();
    let error = Checkpoint::open(&other).unwrap_err().to_string();
    assert!(error.contains("gemma4.rope.scaling.type"), "{error}");
}

#[test]
fn eight_bits_stay_close_to_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    for model in MODELS {
        let path = dir.path().join(format!("{model}.gguf"));
        run(&folder(model), &path, Mix::Q8_0);
        let precisions = [Precision::F32, Precision::Int16, Precision::Int8];
        let errors = precisions.map(|precision| {
            let options = LoadOptions {
                precision: Some(precision),
                ..LoadOptions::reference()
            };
            error_of(model, &path, options)
        });
        assert!(
            errors.iter().all(|error| *error < TOL_Q8_0),
            "{model}: {errors:?}"
        );
        // 16-bit activations are as exact as f32 beside the weights' own rounding.
        assert!(
            (errors[0] - errors[1]).abs() < 0.02 * errors[0],
            "{model}: {errors:?}"
        );
    }
}

/// Rules of formats and names of tensors are one thing for files and for plans.
#[test]
fn a_plan_lists_the_tensors_that_are_written() {
    let dir = tempfile::tempdir().unwrap();
    for model in MODELS {
        let path = dir.path().join(format!("{model}.gguf"));
        run(&folder(model), &path, Mix::Q4_K_M);
        let gguf = Gguf::open(&path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let written: BTreeMap<String, (String, usize)> = gguf
            .infos()
            .filter(|info| info.name != "rope_freqs.weight")
            .map(|info| (info.name.to_owned(), (info.type_name.to_owned(), info.n_bytes)))
            .collect();
        let planned: BTreeMap<String, (String, usize)> = tensors_of(checkpoint.config(), Mix::Q4_K_M)
            .into_iter()
            .map(|tensor| (tensor.name, (tensor.dtype.to_string(), tensor.n_bytes as usize)))
            .collect();
        assert_eq!(written, planned, "{model}");
    }
}

/// Some converters keep the gate and up matrices of experts apart, and dead projections in layers that use the keys
/// and values of others; and write no factors of frequencies.
#[test]
fn files_of_other_converters_are_read() {
    let dir = tempfile::tempdir().unwrap();
    for model in ["gemma4-moe", "gemma4-edge"] {
        let (path, other) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
        run(&folder(model), &path, Mix::F32);
        rewrite(&Gguf::open(&path).unwrap(), &other);
        assert!(Gguf::open(&other).unwrap().infos().any(|info| {
            info.name == "blk.0.ffn_up_exps.weight" || info.name == "blk.9.attn_k_norm.weight"
        }));
        let error = error_of(model, &other, LoadOptions::reference());
        assert!(error < TOL_LOGITS, "{model}: {error}");
    }
}

/// Writes the model as another converter might.
fn rewrite(from: &Gguf, to: &Path) {
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for tensor in from.tensors() {
        let tensor = tensor.unwrap();
        if tensor.name == "rope_freqs.weight" {
            continue;
        }
        let Some(layer) = tensor.name.strip_suffix(".ffn_gate_up_exps.weight") else {
            tensors.push((
                tensor.name.to_owned(),
                tensor.shape.to_vec(),
                tensor.bytes.to_vec(),
            ));
            continue;
        };
        let [n, rows, cols] = tensor.shape.try_into().unwrap();
        let half = rows / 2 * cols * 4;
        let parts = tensor.bytes.chunks_exact(half).enumerate();
        for (which, role) in [(0, "gate"), (1, "up")] {
            let bytes = parts
                .clone()
                .filter(|(i, _)| i % 2 == which)
                .flat_map(|(_, part)| part.to_vec());
            tensors.push((
                format!("{layer}.ffn_{role}_exps.weight"),
                vec![n, rows / 2, cols],
                bytes.collect(),
            ));
        }
    }
    let dead: Vec<_> = ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"]
        .iter()
        .filter(|role| tensors.iter().all(|(name, ..)| *name != format!("blk.9.{role}")))
        .filter(|role| {
            **role != "attn_v.weight"
                || tensors
                    .iter()
                    .any(|(name, ..)| name == "per_layer_token_embd.weight")
        })
        .map(|role| {
            let like = tensors
                .iter()
                .find(|(name, ..)| *name == format!("blk.4.{role}"))
                .unwrap();
            (format!("blk.9.{role}"), like.1.clone(), like.2.clone())
        })
        .collect();
    tensors.extend(dead);
    let mut builder = GgufBuilder::new();
    for (key, value) in from.metadata().iter() {
        builder.metadata(key, value.clone());
    }
    for (name, shape, _) in &tensors {
        builder.tensor(name, DType::F32, shape);
    }
    let mut writer = builder.create(to).unwrap();
    for (name, _, bytes) in &tensors {
        writer.begin(name).unwrap();
        writer.append(bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// The vocabulary goes over with its rules, and reads texts as `tokenizer.json` does.
#[test]
fn a_vocabulary_is_written_with_its_rules() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(folder("gemma4-dense").join(name), dir.path().join(name)).unwrap();
    }
    let specials = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<|turn>",
        "<turn|>",
        "<|channel>",
        "<channel|>",
        "<|image|>",
    ];
    let mut pieces: Vec<String> = specials.iter().map(|piece| (*piece).to_owned()).collect();
    pieces.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    // Rules whose order is not that of ids: `ab` is made before `bc`.
    pieces.extend(
        [
            "a",
            "b",
            "c",
            "\u{2581}",
            "bc",
            "abc",
            "ab",
            "\u{2581}a",
            "\n",
            "\n\n",
        ]
        .map(str::to_owned),
    );
    let merges = [
        ["a", "b"],
        ["b", "c"],
        ["ab", "c"],
        ["\u{2581}", "a"],
        ["\n", "\n"],
    ];
    let vocab: serde_json::Map<String, serde_json::Value> = pieces
        .iter()
        .enumerate()
        .map(|(id, piece)| (piece.clone(), id.into()))
        .collect();
    let added: Vec<_> = (0..specials.len())
        .map(|id| serde_json::json!({"id": id, "content": specials[id], "special": true}))
        .collect();
    let json = serde_json::json!({
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true, "vocab": vocab, "merges": merges},
    });
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    fs::write(
        dir.path().join("generation_config.json"),
        r#"{"suppress_tokens": [8, 7]}"#,
    )
    .unwrap();
    let path = dir.path().join("model.gguf");
    run(dir.path(), &path, Mix::F32);
    let gguf = Gguf::open(&path).unwrap();
    let keys = gguf.metadata();
    assert_eq!(keys.str("tokenizer.ggml.model").unwrap(), Some("gemma4"));
    assert_eq!(keys.get("tokenizer.ggml.scores"), None);
    assert_eq!(
        keys.i32s("tokenizer.ggml.suppress_tokens").unwrap(),
        Some(vec![8, 7])
    );
    assert_eq!(keys.u32("tokenizer.ggml.eot_token_id").unwrap(), Some(5));
    assert_eq!(keys.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(true)));
    let kinds = keys.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
    // Markers of channels must be seen by whoever parses an answer.
    assert_eq!(kinds[4..9], [3, 3, 4, 4, 3]);
    let (tokens, merges) = (
        keys.strings("tokenizer.ggml.tokens").unwrap().unwrap(),
        keys.strings("tokenizer.ggml.merges").unwrap().unwrap(),
    );
    assert_eq!(tokens.len(), pieces.len());
    let id = |name: &str| keys.u32(&format!("tokenizer.ggml.{name}_token_id")).unwrap();
    let from_gguf = Tokenizer::from_gguf(GgufVocabulary {
        tokens: Box::new(tokens.iter()),
        scores: &[],
        token_types: &kinds,
        merges: Some(Box::new(merges.iter())),
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unknown"),
        pad: id("padding"),
        eot: id("eot"),
        add_bos: true,
        add_space_prefix: false,
    })
    .unwrap();
    let from_json = Tokenizer::from_tokenizer_json(json.to_string().as_bytes()).unwrap();
    for text in ["abc", "bc abc", "\n\n\nab", "aé", "<|turn>a<turn|>"] {
        let ids = from_gguf.encode(text, Special::Parse);
        assert_eq!(ids, from_json.encode(text, Special::Parse), "{text:?}");
    }
}
