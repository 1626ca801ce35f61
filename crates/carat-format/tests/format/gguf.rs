//! GGUF files that are right: written and read back, split, of version 2, of the oddities in use.

use std::fs;
use std::path::{Path, PathBuf};

use carat_format::{Array, Error, Gguf, GgufBuilder, TensorBytes, Value};
use carat_kernels::DType;

use crate::common::{self, GgufBytes};

/// Data that differs from byte to byte.
fn data(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 % 251) as u8).collect()
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut builder = GgufBuilder::new();
    for (key, value) in common::values() {
        builder.metadata(key, value);
    }
    let mut shapes = vec![];
    for (i, dtype) in DType::all().enumerate() {
        let shape = [i + 1, 2, dtype.block_len() * 3];
        builder.tensor(dtype.name(), dtype, &shape);
        shapes.push((dtype, shape));
    }
    let mut writer = builder.create(&path).unwrap();
    for (dtype, shape) in &shapes {
        let bytes = data(dtype.bytes_for(shape.iter().product()).unwrap());
        writer.begin(dtype.name()).unwrap();
        for piece in bytes.chunks(100) {
            writer.append(piece).unwrap();
        }
    }
    writer.finish().unwrap();

    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.version(), 3);
    let read: Vec<_> = gguf
        .metadata()
        .iter()
        .map(|(key, value)| (key, value.clone()))
        .collect();
    assert_eq!(read, common::values());
    assert_eq!(gguf.tensors().len(), shapes.len());
    for (dtype, shape) in &shapes {
        let tensor = gguf.tensor(dtype.name()).unwrap().unwrap();
        assert_eq!((tensor.dtype, tensor.shape), (*dtype, &shape[..]));
        assert_eq!(
            tensor.bytes,
            data(dtype.bytes_for(shape.iter().product()).unwrap())
        );
        assert_eq!(tensor.bytes.as_ptr().align_offset(32), 0);
    }
    assert!(gguf.tensor("none").is_none());
}

#[test]
fn held_bytes_outlive_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut writer = GgufBuilder::new()
        .tensor("w", DType::F32, &[4])
        .create(&path)
        .unwrap();
    writer.write_tensor("w", &data(16)).unwrap();
    writer.finish().unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let held: TensorBytes = gguf.tensor("w").unwrap().unwrap().hold();
    drop(gguf);
    fs::remove_file(&path).unwrap();
    held.advise_willneed();
    assert_eq!(held.clone()[..], data(16));
}

#[test]
fn the_alignment_can_be_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let mut builder = GgufBuilder::new();
    builder.metadata("general.alignment", Value::U32(4096));
    builder.tensor("a", DType::F32, &[1]).tensor("b", DType::F32, &[]);
    let mut writer = builder.create(&path).unwrap();
    writer.write_tensor("a", &data(4)).unwrap();
    writer.write_tensor("b", &data(4)).unwrap();
    writer.finish().unwrap();
    let gguf = Gguf::open(&path).unwrap();
    for tensor in gguf.tensors() {
        assert_eq!(tensor.unwrap().bytes.as_ptr().align_offset(4096), 0);
    }
    // A scalar is written as one dimension of 1.
    assert_eq!(gguf.tensor("b").unwrap().unwrap().shape, [1]);
    assert_eq!(fs::metadata(&path).unwrap().len(), 3 * 4096);
}

#[test]
fn what_the_format_cannot_hold_is_not_written() {
    let cases: [(&str, GgufBuilder); 9] = [
        (
            "key `k`: the name is used twice",
            builder(|b| b.metadata("k", Value::U8(1)).metadata("k", Value::U8(2))),
        ),
        (
            "the name has 65536 bytes",
            builder(|b| b.metadata(&"k".repeat(65536), Value::U8(1))),
        ),
        (
            "alignment 48 is not",
            builder(|b| b.metadata("general.alignment", Value::U32(48))),
        ),
        (
            "value type 8 is unknown",
            builder(|b| b.metadata("general.alignment", Value::from("32"))),
        ),
        (
            "tensor `w`: the name is used twice",
            builder(|b| b.tensor("w", DType::F32, &[1]).tensor("w", DType::F32, &[1])),
        ),
        (
            "the name has 64 bytes, more than the limit of 63",
            builder(|b| b.tensor(&"w".repeat(64), DType::F32, &[1])),
        ),
        (
            "number of dimensions is 5",
            builder(|b| b.tensor("w", DType::F32, &[1; 5])),
        ),
        (
            "dimension 1 is 0",
            builder(|b| b.tensor("w", DType::F32, &[1, 0])),
        ),
        (
            "rows of 16 elements",
            builder(|b| b.tensor("w", DType::Q4_0, &[2, 16])),
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (expected, builder) in cases {
        let error = builder.create(&dir.path().join("m.gguf")).unwrap_err();
        assert!(matches!(error, Error::Unwritable { .. }));
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    let error = builder(|b| b.tensor("w", DType::F32, &[usize::MAX, 8]))
        .create(Path::new("m"))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("multiply to more than memory can hold"),
        "{error}"
    );
}

fn builder(fill: impl FnOnce(&mut GgufBuilder) -> &mut GgufBuilder) -> GgufBuilder {
    let mut builder = GgufBuilder::new();
    fill(&mut builder);
    builder
}

#[test]
fn version_2_and_scalars_are_read() {
    let mut bytes = GgufBytes::head(1, 0).tensor("clamp", &[], 0, 0).data(4).0;
    bytes[4] = 2;
    let gguf = Gguf::from_bytes(Path::new("m.gguf"), bytes).unwrap();
    assert_eq!(gguf.version(), 2);
    let tensor = gguf.tensor("clamp").unwrap().unwrap();
    assert!(tensor.shape.is_empty());
    assert_eq!((tensor.n_elements(), tensor.bytes.len()), (1, 4));
}

#[test]
fn a_file_without_tensors_needs_no_data_section() {
    let gguf = Gguf::from_bytes(Path::new("vocab.gguf"), GgufBytes::head(0, 1).key_u32("k", 7).0).unwrap();
    assert_eq!(gguf.infos().len(), 0);
    assert_eq!(gguf.metadata().u32("k").unwrap(), Some(7));
}

#[test]
fn a_big_vocabulary_is_read_where_it_is() {
    let tokens: Vec<String> = (0..262_144).map(|i| format!("token {i}")).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vocab.gguf");
    let array = Array::from_strings(&tokens).unwrap();
    builder(|b| b.metadata("tokenizer.ggml.tokens", Value::Array(array)))
        .create(&path)
        .unwrap()
        .finish()
        .unwrap();
    let gguf = Gguf::open(&path).unwrap();
    let read = gguf.metadata().strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(read.len(), tokens.len());
    assert!(read.iter().eq(tokens.iter().map(String::as_bytes)));
    let file = gguf.files()[0].as_ptr_range();
    assert!(file.contains(&read.get(200_000).unwrap().as_ptr()));
}

/// Writes a part of a split file; its tensors have 8 f32, the first of each is `no`.
fn write_part(path: &Path, [no, count, total]: [u16; 3], tensors: &[&str]) {
    let mut builder = GgufBuilder::new();
    builder.metadata("split.no", Value::U16(no));
    builder.metadata("split.count", Value::U16(count));
    builder.metadata("split.tensors.count", Value::I32(total.into()));
    builder.metadata("part", Value::U16(no));
    for name in tensors {
        builder.tensor(name, DType::F32, &[8]);
    }
    let mut writer = builder.create(path).unwrap();
    for name in tensors {
        writer.write_tensor(name, &[no as u8; 32]).unwrap();
    }
    writer.finish().unwrap();
}

/// Two parts with the tensors `a`, `b` and `c`; the second has the numbers `second`.
fn split_file(dir: &Path, second: [u16; 3]) -> [PathBuf; 2] {
    let paths = [
        dir.join("m-00001-of-00002.gguf"),
        dir.join("m-00002-of-00002.gguf"),
    ];
    write_part(&paths[0], [0, 2, 3], &["a", "b"]);
    write_part(&paths[1], second, &["c"]);
    paths
}

#[test]
fn any_part_opens_the_whole() {
    let dir = tempfile::tempdir().unwrap();
    for path in split_file(dir.path(), [1, 2, 3]) {
        let gguf = Gguf::open(&path).unwrap();
        let names: Vec<_> = gguf.infos().map(|info| info.name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(gguf.metadata().u32("part").unwrap(), Some(0));
        assert_eq!(gguf.tensor("a").unwrap().unwrap().bytes, [0; 32]);
        assert_eq!(gguf.tensor("c").unwrap().unwrap().bytes, [1; 32]);
        assert_eq!(gguf.files().len(), 2);
    }
}

#[test]
fn parts_that_do_not_fit_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| Gguf::open(path).unwrap_err().to_string();
    let [first, second] = split_file(dir.path(), [0, 2, 3]);
    assert!(
        open(&first).contains("split: split.no is 0, expected 1; get all the files again"),
        "{}",
        open(&first)
    );
    split_file(dir.path(), [1, 3, 3]);
    assert!(open(&first).contains("split: split.count is 3, expected 2"));
    assert!(open(&second).contains("one of 3 parts but is not named `NAME-00001-of-00003.gguf`"));
    split_file(dir.path(), [1, 2, 3]);
    write_part(&first, [0, 2, 4], &["a", "b"]);
    assert!(open(&second).contains("split: split.tensors.count is 4, expected 3"));
    write_part(&first, [0, 2, 3], &["a", "c"]);
    assert!(open(&first).contains("tensor `c`: the name is used twice"));
    fs::write(&second, GgufBytes::head(0, 0).0).unwrap();
    assert!(open(&first).contains("split: the key `split.no` is missing"));
    fs::remove_file(&second).unwrap();
    let error = open(&first);
    assert!(
        error.contains("cannot open `") && error.contains("m-00002-of-00002.gguf"),
        "{error}"
    );
    fs::rename(&first, dir.path().join("renamed.gguf")).unwrap();
    assert!(open(&dir.path().join("renamed.gguf")).contains("give it its original name back"));
}
