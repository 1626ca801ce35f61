//! Conversion of the small reference model: what comes out loads again and says the same.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use carat_format::{Gguf, SafeDType, Safetensors, SafetensorsBuilder, Value};
use carat_kernels::{DType, dequantize};
use carat_model::convert::{ConvertError, ConvertOptions, ConvertReport, Mix, convert, tensors_of};
use carat_model::{Checkpoint, Error, LanguageModel, LoadOptions, LogitRows, Model, Segment};
use carat_testkit::{Golden, fixture, relative_l2, sentencepiece};
use carat_text::{GgufVocabulary, Special, Tokenizer};
use tempfile::TempDir;

/// As in the tests of the forward pass: conversion to F32 adds nothing to its error.
const TOL_LOGITS: f64 = 1e-4;
/// The small model has sharp attention and amplifies relative noise in its weights 16 to 24 times (measured in
/// BF16 and F16, whose rounding is known).
const AMPLIFICATION: f64 = 24.0;
/// Relative error of normal weights in blocks of Q8_0.
const DISTORTION_Q8_0: f64 = 0.0054;

fn folder() -> PathBuf {
    fixture("gemma3-text/config.json").parent().unwrap().to_owned()
}

fn options(mix: Mix) -> ConvertOptions {
    ConvertOptions {
        mix,
        pure: false,
        n_threads: 2,
    }
}

fn run(source: &Path, target: &Path, mix: Mix) -> ConvertReport {
    convert(source, target, &options(mix), &mut |_| ControlFlow::Continue(())).unwrap()
}

fn logits(path: &Path, tokens: &[u32]) -> Vec<f32> {
    let mut model = Model::load(path, LoadOptions::reference()).unwrap();
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

fn error_of(path: &Path) -> f64 {
    let golden = Golden::open(&fixture("gemma3-text/golden.safetensors"));
    let ids = golden.i64s("input_ids").data;
    let tokens: Vec<u32> = ids.iter().map(|id| u32::try_from(*id).unwrap()).collect();
    relative_l2(&logits(path, &tokens), &golden.f32s("logits").data)
}

/// The fixture with a vocabulary of `n` pieces beside it, and a chat template.
fn folder_with_tokenizer(n: usize) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(folder().join(name), dir.path().join(name)).unwrap();
    }
    let specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"];
    let piece = |id: usize| {
        specials
            .get(id)
            .map_or_else(|| format!("p{id}"), |piece| (*piece).to_owned())
    };
    let vocab: serde_json::Map<String, serde_json::Value> = (0..n).map(|id| (piece(id), id.into())).collect();
    let added: Vec<_> = (0..specials.len())
        .map(|id| serde_json::json!({"id": id, "content": piece(id), "special": true}))
        .collect();
    let json = serde_json::json!({"added_tokens": added, "model": {"vocab": vocab, "merges": []}});
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    fs::write(
        dir.path().join("tokenizer_config.json"),
        r#"{"chat_template": "{{ messages }}"}"#,
    )
    .unwrap();
    dir
}

#[test]
fn a_folder_converted_to_f32_gives_the_reference_logits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let report = run(&folder(), &path, Mix::F32);
    assert_eq!(report.n_tensors.keys().collect::<Vec<_>>(), [&DType::F32]);
    assert!(
        report.notes.iter().any(|note| note.contains("no tokenizer")),
        "{:?}",
        report.notes
    );
    // The fixture scales scores by another number than its heads' width.
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.contains("scale of their own")),
        "{:?}",
        report.notes
    );
    let error = error_of(&path);
    assert!(error < TOL_LOGITS, "{error}");
}

#[test]
fn eight_bits_stay_close_to_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let report = run(&folder(), &path, Mix::Q8_0);
    // Seven matrices in each of eight layers, and the embedding.
    assert_eq!(report.n_tensors[&DType::Q8_0], 57);
    // Six norms in each layer, and the last one.
    assert_eq!(report.n_tensors[&DType::F32], 49);
    let error = error_of(&path);
    assert!(
        (DISTORTION_Q8_0..AMPLIFICATION * DISTORTION_Q8_0).contains(&error),
        "{error}"
    );
}

#[test]
fn rows_of_64_fall_back_and_the_report_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let report = run(&folder(), &dir.path().join("model.gguf"), Mix::Q4_K_M);
    assert_eq!(report.n_tensors.get(&DType::Q4_K), None);
    assert!(report.n_tensors[&DType::Q5_0] > 0 && report.n_tensors[&DType::Q8_0] > 1);
    let note = report
        .notes
        .iter()
        .find(|note| note.contains("Q5_0 instead of Q4_K"))
        .unwrap();
    assert!(note.contains("no multiple of 256"), "{note}");
}

#[test]
fn a_vocabulary_is_written_and_cuts_the_embedding() {
    let dir = folder_with_tokenizer(500);
    let path = dir.path().join("model.gguf");
    let report = run(dir.path(), &path, Mix::F32);
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.starts_with("12 rows of the embedding")),
        "{:?}",
        report.notes
    );
    let gguf = Gguf::open(&path).unwrap();
    let keys = gguf.metadata();
    assert_eq!(
        gguf.tensor("token_embd.weight").unwrap().unwrap().shape,
        [500, 64]
    );
    assert_eq!(
        keys.strings("tokenizer.ggml.tokens").unwrap().unwrap().get(7),
        Some(&b"p7"[..])
    );
    assert_eq!(
        keys.f32s("tokenizer.ggml.scores").unwrap().unwrap()[4..8],
        [-1000.0, 0.0, -1.0, -2.0]
    );
    assert_eq!(
        keys.i32s("tokenizer.ggml.token_type").unwrap().unwrap()[4..6],
        [3, 1]
    );
    let specials = ["bos", "eos", "unknown", "padding", "eot"];
    let ids = specials.map(|name| keys.u32(&format!("tokenizer.ggml.{name}_token_id")).unwrap());
    assert_eq!(ids, [Some(2), Some(1), Some(3), Some(0), Some(4)]);
    assert_eq!(
        keys.str("tokenizer.chat_template").unwrap(),
        Some("{{ messages }}")
    );
    assert_eq!(keys.get("tokenizer.ggml.add_bos_token"), Some(&Value::Bool(true)));
    assert_eq!(keys.u32("general.file_type").unwrap(), Some(0));
}

/// A vocabulary whose scores do not go by its ids: pairs and triples of three letters, the best in the middle.
fn letters_model() -> Vec<u8> {
    let specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"];
    let kinds = [3, 3, 3, 2, 4];
    let mut pieces: Vec<(String, f32, u8)> = specials
        .iter()
        .zip(kinds)
        .map(|(piece, kind)| ((*piece).to_owned(), 0.0, kind))
        .collect();
    pieces.push(("\u{2581}\u{2581}".to_owned(), 0.0, 4));
    pieces.extend((0..=255_u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    let letters = ["a", "b", "\u{2581}"];
    let pairs: Vec<String> = letters
        .iter()
        .flat_map(|a| letters.map(|b| format!("{a}{b}")))
        .collect();
    let triples = pairs.iter().flat_map(|ab| letters.map(|c| format!("{ab}{c}")));
    let merged = pairs
        .iter()
        .cloned()
        .chain(triples)
        .filter(|piece| piece != "\u{2581}\u{2581}");
    // 7 and 37 have no common divisor, so that no two scores are alike.
    pieces.extend(
        merged
            .enumerate()
            .map(|(i, piece)| (piece, -((i * 7 % 37) as f32), 1)),
    );
    pieces.extend(letters.map(|letter| (letter.to_owned(), -99.0, 1)));
    sentencepiece(
        pieces
            .iter()
            .map(|(piece, score, kind)| (piece.as_str(), *score, *kind)),
    )
}

#[test]
fn a_folder_with_the_original_vocabulary_alone_gives_the_same_ids() {
    let dir = folder_with_tokenizer(0);
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let model = letters_model();
    fs::write(dir.path().join("tokenizer.model"), &model).unwrap();
    fs::write(
        dir.path().join("added_tokens.json"),
        r#"{"<image_soft_token>": 400}"#,
    )
    .unwrap();
    let path = dir.path().join("model.gguf");
    let report = run(dir.path(), &path, Mix::F32);
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.starts_with("111 rows of the embedding")),
        "{:?}",
        report.notes
    );
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(
        gguf.tensor("token_embd.weight").unwrap().unwrap().shape,
        [401, 64]
    );
    let keys = gguf.metadata();
    let tokens = keys.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    let written = Tokenizer::from_gguf(GgufVocabulary {
        tokens: Box::new(tokens.iter()),
        scores: &keys.f32s("tokenizer.ggml.scores").unwrap().unwrap(),
        token_types: &keys.i32s("tokenizer.ggml.token_type").unwrap().unwrap(),
        merges: None,
        bos: keys.u32("tokenizer.ggml.bos_token_id").unwrap(),
        eos: keys.u32("tokenizer.ggml.eos_token_id").unwrap(),
        unk: keys.u32("tokenizer.ggml.unknown_token_id").unwrap(),
        pad: keys.u32("tokenizer.ggml.padding_token_id").unwrap(),
        eot: keys.u32("tokenizer.ggml.eot_token_id").unwrap(),
        add_bos: keys.bool("tokenizer.ggml.add_bos_token").unwrap().unwrap(),
        add_space_prefix: keys.bool("tokenizer.ggml.add_space_prefix").unwrap().unwrap(),
    })
    .unwrap();
    let source = Tokenizer::from_sentencepiece(&model).unwrap();
    // All texts of up to seven letters, one of them no piece.
    let mut texts = vec![String::new()];
    for n in 0..7 {
        let longest: Vec<String> = texts
            .iter()
            .filter(|text| text.chars().count() == n)
            .cloned()
            .collect();
        texts.extend(
            longest
                .iter()
                .flat_map(|text| ["a", "b", " ", "\u{e9}"].map(|c| format!("{text}{c}"))),
        );
    }
    texts.push("<bos>ab<end_of_turn>  b".to_owned());
    for text in &texts {
        for special in [Special::Parse, Special::AsText] {
            assert_eq!(
                written.encode(text, special),
                source.encode(text, special),
                "{text:?}"
            );
        }
    }
    assert_eq!(written.stop_ids(), source.stop_ids());
    assert_eq!(written.encode("<image_soft_token>", Special::Parse), [400]);
}

#[test]
fn a_gguf_file_keeps_its_keys_and_what_needs_no_change() {
    let dir = folder_with_tokenizer(512);
    let names = ["first.gguf", "second.gguf", "third.gguf"].map(|name| dir.path().join(name));
    run(dir.path(), &names[0], Mix::Q8_0);
    run(&names[0], &names[1], Mix::Q8_0);
    assert!(fs::read(&names[0]).unwrap() == fs::read(&names[1]).unwrap());
    let report = run(&names[0], &names[2], Mix::Q4_0);
    assert!(
        report.notes.iter().any(|note| note.contains("quantized before")),
        "{:?}",
        report.notes
    );
    let (first, third) = (Gguf::open(&names[0]).unwrap(), Gguf::open(&names[2]).unwrap());
    for (key, value) in first
        .metadata()
        .iter()
        .filter(|(key, _)| *key != "general.file_type")
    {
        assert_eq!(third.metadata().get(key), Some(value), "{key}");
    }
    assert_eq!(third.metadata().u32("general.file_type").unwrap(), Some(2));
    assert_eq!(
        third.tensor("blk.0.ffn_up.weight").unwrap().unwrap().dtype,
        DType::Q4_0
    );
}

#[test]
fn norms_get_their_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    run(&folder(), &path, Mix::F16);
    let gguf = Gguf::open(&path).unwrap();
    let view = gguf.tensor("output_norm.weight").unwrap().unwrap();
    let mut written = vec![0.0; view.n_elements()];
    dequantize(view.dtype, view.bytes, &mut written).unwrap();
    let stored = Golden::open(&fixture("gemma3-text/model.safetensors"))
        .f32s("model.norm.weight")
        .data;
    let expected: Vec<f32> = stored.iter().map(|w| w + 1.0).collect();
    assert_eq!(written, expected);
}

/// The fixture with other words in its settings, and tensors of zeros beside its own.
fn changed_folder(settings: &[(&str, &str)], extra: &[(&str, &[usize])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut json = fs::read_to_string(folder().join("config.json")).unwrap();
    for (from, to) in settings {
        assert!(json.contains(from), "{from}");
        json = json.replace(from, to);
    }
    fs::write(dir.path().join("config.json"), json).unwrap();
    let source = Safetensors::open(&folder()).unwrap();
    let mut builder = SafetensorsBuilder::new();
    for info in source.infos() {
        builder.tensor(info.name, SafeDType::F32, info.shape);
    }
    for (name, shape) in extra {
        builder.tensor(name, SafeDType::F32, shape);
    }
    let mut writer = builder.create(&dir.path().join("model.safetensors")).unwrap();
    for info in source.infos() {
        let bytes = source.raw(info.name).unwrap().bytes;
        writer.write_tensor(info.name, bytes).unwrap();
    }
    for (name, shape) in extra {
        let n_bytes = 4 * shape.iter().product::<usize>();
        writer.write_tensor(name, &vec![0; n_bytes]).unwrap();
    }
    writer.finish().unwrap();
    dir
}

/// Converts a folder that is not to be converted; nothing is written.
fn refusal(folder: &TempDir) -> ConvertError {
    let target = folder.path().join("model.gguf");
    let result = convert(folder.path(), &target, &options(Mix::Q8_0), &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(!target.exists());
    result.unwrap_err()
}

/// A conversion that leaves out what it does not know, or writes what cannot be loaded, hides that something is wrong.
#[test]
fn a_folder_that_could_not_be_loaded_is_not_converted() {
    let bias = "model.layers.0.self_attn.q_proj.bias";
    let error = refusal(&changed_folder(&[], &[(bias, &[96])]));
    assert!(
        matches!(&error, ConvertError::Model(Error::UnknownTensors { names, .. }) if names == &[bias]),
        "{error}"
    );
    // A ninth layer, whose shard is not there.
    let longer = [
        ("\"num_hidden_layers\": 8", "\"num_hidden_layers\": 9"),
        ("\"layer_types\": [", "\"layer_types\": [\"sliding_attention\","),
    ];
    let error = refusal(&changed_folder(&longer, &[]));
    assert!(
        matches!(&error, ConvertError::Model(Error::MissingTensors { names, .. }) if names.len() == 13),
        "{error}"
    );
    let narrower = [("\"intermediate_size\": 160", "\"intermediate_size\": 128")];
    let error = refusal(&changed_folder(&narrower, &[]));
    assert!(
        matches!(&error, ConvertError::Model(Error::TensorShape { .. })),
        "{error}"
    );
}

/// Nobody has a key for a local rope that is scaled.
#[test]
fn settings_that_cannot_be_written_are_not_forgotten() {
    let scaled = [(
        "\"rope_theta\": 10000,\n      \"rope_type\": \"default\"",
        "\"rope_theta\": 10000, \"rope_type\": \"linear\", \"factor\": 2.0",
    )];
    let error = refusal(&changed_folder(&scaled, &[]));
    assert!(
        matches!(&error, ConvertError::Forgotten { setting, .. } if setting.contains("rope")),
        "{error}"
    );
}

#[test]
fn settings_that_few_models_have_are_written() {
    let settings: [&[(&str, &str)]; 4] = [
        // Very near what is taken for granted, the root of a head's width.
        &[(
            "\"query_pre_attn_scalar\": 20",
            "\"query_pre_attn_scalar\": 24.00002",
        )],
        // No local layers.
        &[
            ("\"sliding_attention\",", "\"full_attention\","),
            ("\"sliding_attention\"\n", "\"full_attention\"\n"),
        ],
        &[("\"factor\": 8.0", "\"factor\": 3.0")],
        &[("\"rope_theta\": 10000,", "\"rope_theta\": 30000,")],
    ];
    for settings in settings {
        let dir = changed_folder(settings, &[]);
        let path = dir.path().join("model.gguf");
        run(dir.path(), &path, Mix::F32);
        let config = |path: &Path| Checkpoint::open(path).unwrap().config().clone();
        let (from, to) = (config(dir.path()), config(&path));
        assert_eq!((&from.layers, from.score_scale), (&to.layers, to.score_scale));
        for rope in from.layers.iter().map(|layer| layer.rope) {
            assert_eq!(from.ropes[rope], to.ropes[rope]);
        }
    }
}

/// Towers have no place in a file of text; a head has one by each of its names, and what is run is what is converted.
#[test]
fn towers_are_left_out_and_a_head_is_kept() {
    for head in ["lm_head.weight", "language_model.lm_head.weight"] {
        let dir = changed_folder(&[], &[("vision_tower.x.weight", &[2]), (head, &[512, 64])]);
        let path = dir.path().join("model.gguf");
        let report = run(dir.path(), &path, Mix::F32);
        assert!(
            report
                .notes
                .iter()
                .any(|note| note.starts_with("1 tensors that are not of the text model")),
            "{:?}",
            report.notes
        );
        let ids = [2, 7, 9];
        assert!(logits(&path, &ids).iter().all(|logit| *logit == 0.0), "{head}");
        assert_eq!(logits(dir.path(), &ids), logits(&path, &ids), "{head}");
    }
}

#[test]
fn progress_ends_at_the_total() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let report = convert(
        &folder(),
        &dir.path().join("model.gguf"),
        &options(Mix::Q8_0),
        &mut |progress| {
            seen.push((progress.done_bytes, progress.total_bytes));
            ControlFlow::Continue(())
        },
    )
    .unwrap();
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&(report.total_bytes, report.total_bytes)));
}

#[test]
fn a_cancelled_conversion_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let result = convert(
        &folder(),
        &dir.path().join("model.gguf"),
        &options(Mix::Q8_0),
        &mut |progress| {
            if progress.tensor.starts_with("blk.3.") {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    assert!(matches!(result, Err(ConvertError::Cancelled)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_source_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    run(&folder(), &path, Mix::F16);
    let result = convert(&path, &path, &options(Mix::Q8_0), &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(result, Err(ConvertError::SameFile { .. })));
}

/// What is planned from the configuration is what is written, tensor by tensor, in every mix.
#[test]
fn the_planned_tensors_are_those_that_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let config = Checkpoint::open(&folder()).unwrap().config().clone();
    for mix in Mix::all() {
        let path = dir.path().join(format!("{mix}.gguf"));
        let report = run(&folder(), &path, mix);
        let planned = tensors_of(&config, mix);
        let total: u64 = planned.iter().map(|tensor| tensor.n_bytes).sum();
        assert_eq!(total, report.total_bytes, "{mix}");
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(gguf.infos().count(), planned.len(), "{mix}");
        for tensor in planned {
            let info = gguf.infos().find(|info| info.name == tensor.name).unwrap();
            assert_eq!(
                (info.type_name, info.n_bytes as u64),
                (tensor.dtype.name(), tensor.n_bytes),
                "{mix}: {}",
                tensor.name
            );
        }
    }
}
