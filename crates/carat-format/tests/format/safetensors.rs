//! Safetensors files that are right: written and read back, sharded, and the fixtures.

use std::fs;
use std::path::{Path, PathBuf};

use carat_format::{Error, SafeDType, Safetensors, SafetensorsBuilder};
use carat_kernels::DType;

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    let mut builder = SafetensorsBuilder::new();
    builder.metadata("format", "pt").metadata("quote", "\"\n");
    builder
        .tensor("ids", SafeDType::I64, &[1, 2])
        .tensor("logits \"x\"", SafeDType::F32, &[2, 2]);
    builder
        .tensor("scalar", SafeDType::BF16, &[])
        .tensor("empty", SafeDType::F32, &[0, 4]);
    let mut writer = builder.create(&path).unwrap();
    writer.write_tensor("ids", &[[1u8; 8], [2; 8]].concat()).unwrap();
    writer.begin("logits \"x\"").unwrap();
    writer.append(&[3; 10]).unwrap();
    writer.append(&[4; 6]).unwrap();
    writer.write_tensor("scalar", &[5; 2]).unwrap();
    writer.write_tensor("empty", &[]).unwrap();
    writer.finish().unwrap();

    let file = Safetensors::open(&path).unwrap();
    assert_eq!(file.metadata()["format"], "pt");
    assert_eq!(file.metadata()["quote"], "\"\n");
    let ids = file.raw("ids").unwrap();
    assert_eq!(
        (ids.dtype, ids.shape, ids.bytes.len()),
        (SafeDType::I64, &[1, 2][..], 16)
    );
    assert_eq!(ids.bytes.as_ptr().align_offset(8), 0);
    let logits = file.tensor("logits \"x\"").unwrap().unwrap();
    assert_eq!((logits.dtype, logits.shape), (DType::F32, &[2, 2][..]));
    assert_eq!(logits.hold()[..], [[3; 8], [3, 3, 4, 4, 4, 4, 4, 4]].concat());
    assert_eq!(file.tensor("scalar").unwrap().unwrap().n_elements(), 1);
    assert!(file.raw("empty").unwrap().bytes.is_empty());
    let error = file.tensor("ids").unwrap().unwrap_err().to_string();
    assert!(
        error.contains("tensor `ids`: type I64 is not supported"),
        "{error}"
    );
    assert_eq!(file.tensors().filter(Result::is_err).count(), 1);
    assert!(file.tensor("none").is_none() && file.raw("none").is_none());
}

#[test]
fn what_the_format_cannot_hold_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let check = |expected: &str, builder: &SafetensorsBuilder| {
        let error = builder.create(&dir.path().join("m.safetensors")).unwrap_err();
        assert!(
            matches!(error, Error::Unwritable { .. }) && error.to_string().contains(expected),
            "{error}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    };
    let new = SafetensorsBuilder::new;
    check(
        "tensor `w`: the name is used twice",
        new()
            .tensor("w", SafeDType::F32, &[1])
            .tensor("w", SafeDType::U8, &[1]),
    );
    check(
        "tensor `__metadata__`: the name is used twice",
        new().tensor("__metadata__", SafeDType::F32, &[1]),
    );
    check(
        "more than memory can hold",
        new().tensor("w", SafeDType::F32, &[usize::MAX]),
    );
    check(
        "more than memory can hold",
        new()
            .tensor("v", SafeDType::U8, &[usize::MAX])
            .tensor("w", SafeDType::U8, &[1]),
    );
}

/// The folder of a fixture.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

#[test]
fn a_published_folder_is_read() {
    let folder = Safetensors::open(&fixture("gemma3-text")).unwrap();
    let file = Safetensors::open(&fixture("gemma3-text/model.safetensors")).unwrap();
    assert!(folder.infos().eq(file.infos()));
    let embedding = folder.tensor("model.embed_tokens.weight").unwrap().unwrap();
    assert_eq!((embedding.dtype, embedding.shape), (DType::F32, &[512, 64][..]));
    let golden = Safetensors::open(&fixture("gemma3-text/golden.safetensors")).unwrap();
    assert_eq!(golden.raw("input_ids").unwrap().dtype, SafeDType::I64);
}

fn write(path: &Path, tensors: &[&str]) {
    let mut builder = SafetensorsBuilder::new();
    for name in tensors {
        builder.tensor(name, SafeDType::F32, &[2]);
    }
    let mut writer = builder.create(path).unwrap();
    for name in tensors {
        writer.write_tensor(name, &[name.as_bytes()[0]; 8]).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn shards_are_joined() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Safetensors::open(dir.path());
    let message = || open().unwrap_err().to_string();
    let index = |map: serde_json::Value| {
        let json = serde_json::json!({ "metadata": { "total_size": 24 }, "weight_map": map });
        fs::write(dir.path().join("model.safetensors.index.json"), json.to_string()).unwrap();
    };
    assert!(matches!(open(), Err(Error::NoWeights { .. })));
    write(&dir.path().join("1.safetensors"), &["a", "b"]);
    write(&dir.path().join("2.safetensors"), &["c"]);
    index(serde_json::json!({ "a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors" }));
    let model = open().unwrap();
    assert_eq!(model.files().len(), 2);
    assert_eq!(model.tensor("c").unwrap().unwrap().bytes, [b'c'; 8]);
    assert_eq!(
        model.infos().map(|info| info.name).collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    // Some systems let no file be replaced that is mapped.
    drop(model);

    index(serde_json::json!({ "a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors" }));
    assert!(
        message().contains("tensor `b`: the tensor is not in `2.safetensors`"),
        "{}",
        message()
    );
    index(serde_json::json!({ "a": "1.safetensors", "d": "1.safetensors" }));
    assert!(
        message().contains("tensor `d`: the tensor is not in `1.safetensors`"),
        "{}",
        message()
    );
    index(serde_json::json!({ "a": "../1.safetensors" }));
    assert!(
        message().contains("the file name `../1.safetensors` is not a plain name"),
        "{}",
        message()
    );
    index(serde_json::json!({ "a": "3.safetensors" }));
    assert!(
        message().contains("cannot open `") && message().contains("3.safetensors"),
        "{}",
        message()
    );
    index(serde_json::json!(["a"]));
    assert!(
        message().contains("index: not the JSON that is expected"),
        "{}",
        message()
    );
    write(&dir.path().join("2.safetensors"), &["b"]);
    index(serde_json::json!({ "a": "1.safetensors", "b": "2.safetensors" }));
    assert!(
        message().contains("tensor `b`: the name is used twice"),
        "{}",
        message()
    );
}
