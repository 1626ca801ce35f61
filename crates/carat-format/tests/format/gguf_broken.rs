//! GGUF files with one thing wrong: each must give an error that names it, and never panic.

use std::path::Path;
use std::sync::LazyLock;

use crate::common::{self, ARRAY, BOOL, GgufBytes, STRING};
use carat_format::{Gguf, GgufBuilder, Result, Value};
use carat_kernels::DType;
use proptest::prelude::*;

const HUGE: u64 = u64::MAX;

fn open(bytes: Vec<u8>) -> Result<Gguf> {
    Gguf::from_bytes(Path::new("m.gguf"), bytes)
}

/// A file with one tensor of 8 f32.
fn one_tensor(dims: &[u64], type_id: u32, offset: u64, n_data: usize) -> GgufBytes {
    GgufBytes::head(1, 0)
        .tensor("w", dims, type_id, offset)
        .data(n_data)
}

/// Name of the case, file, what the message must say.
type Case = (&'static str, GgufBytes, &'static str);

fn broken_heads() -> Vec<Case> {
    let magic = || GgufBytes(b"GGUF".to_vec());
    let head = GgufBytes::head;
    vec![
        (
            "empty",
            GgufBytes::default(),
            "header: magic takes 4 bytes but the file has only 0 more",
        ),
        (
            "not gguf",
            GgufBytes(b"PK\x03\x04 a zip file".to_vec()),
            "header: the file does not begin with `GGUF`; give",
        ),
        ("magic only", magic(), "version takes 4 bytes"),
        (
            "version 1",
            magic().u32(1).u64(0).u64(0),
            "version 1 is not supported; supported are versions 2 and 3",
        ),
        (
            "version 4",
            magic().u32(4).u64(0).u64(0),
            "version 4 is not supported",
        ),
        (
            "version huge",
            magic().u32(0x1234_5678).u64(0),
            "version 305419896 is not supported",
        ),
        (
            "big endian",
            magic().bytes(&3u32.to_be_bytes()).u64(0).u64(0),
            "header: the file is big endian",
        ),
        (
            "too many tensors",
            head(1 << 40, 0),
            "number of tensors is 1099511627776, more than the limit of 65536",
        ),
        (
            "tensor count beyond the file",
            head(1000, 0),
            "number of tensors takes 24000 bytes but",
        ),
        (
            "tensor count overflows",
            head(HUGE, 0),
            "number of tensors is 18446744073709551615, more than",
        ),
        (
            "too many keys",
            head(0, 1 << 32),
            "number of keys is 4294967296, more than the limit of 65536",
        ),
        (
            "key count beyond the file",
            head(0, 60_000),
            "number of keys takes 780000 bytes but",
        ),
        (
            "keys missing",
            head(0, 1).bytes(&[0; 7]),
            "number of keys takes 13 bytes but the file has only 7 more",
        ),
    ]
}

fn broken_keys() -> Vec<Case> {
    let head = || GgufBytes::head(0, 1);
    let key = |type_id| head().string(b"k").u32(type_id);
    let pad = |bytes: GgufBytes| bytes.bytes(&[0; 16]);
    let array = |element, count| key(ARRAY).u32(element).u64(count);
    let long = |n| vec![b'x'; n];
    vec![
        (
            "key longer than the file",
            pad(head().u64(1000)),
            "key number 0: key name takes 1000 bytes but",
        ),
        (
            "key length overflows",
            pad(head().u64(HUGE)),
            "key name takes 18446744073709551615 bytes but",
        ),
        (
            "key too long",
            head().string(&long(70_000)),
            "key number 0: key name has 70000 bytes, more than the limit of 65535",
        ),
        (
            "key not text",
            pad(head().string(b"\xff\xfe").u32(4)),
            "key number 0: key name is not UTF-8",
        ),
        (
            "key twice",
            GgufBytes::head(0, 2).key_u32("k", 1).key_u32("k", 2),
            "key `k`: the name is used twice",
        ),
        (
            "value type unknown",
            pad(key(13)),
            "key `k`: value type 13 is unknown",
        ),
        (
            "value cut",
            key(10).u32(1),
            "key `k`: value takes 8 bytes but the file has only 4 more",
        ),
        ("bool of 2", key(BOOL).u8(2), "key `k`: a bool is 2, not 0 or 1"),
        (
            "string longer than the file",
            key(STRING).u64(50).bytes(b"abc"),
            "value takes 50 bytes but the file has only 3",
        ),
        (
            "string too long",
            key(STRING).string(&long(17 << 20)),
            "value has 17825792 bytes, more than the limit of 16777216",
        ),
        (
            "array type unknown",
            pad(array(77, 1)),
            "key `k`: value type 77 is unknown",
        ),
        (
            "array in array",
            pad(array(ARRAY, 1).u32(4).u64(1).u32(1)),
            "key `k`: an array inside an array is not supp",
        ),
        (
            "array deeply nested",
            (0..500).fold(key(ARRAY), |b, _| b.u32(ARRAY).u64(1)),
            "an array inside an array",
        ),
        (
            "array longer than the file",
            pad(array(4, 5)),
            "key `k`: array takes 20 bytes but the file has only 16 more",
        ),
        (
            "array size overflows",
            pad(array(10, HUGE / 4)),
            "array takes 18446744073709551615 bytes but",
        ),
        (
            "string array count lies",
            pad(array(STRING, 1 << 50)),
            "array takes 9007199254740992 bytes but",
        ),
        (
            "string in array is cut",
            array(STRING, 2).string(b"ab").u64(9).u8(1),
            "string takes 9 bytes but the file has on",
        ),
        (
            "string length in array overflows",
            array(STRING, 1).u64(HUGE),
            "string takes 18446744073709551615 bytes",
        ),
        (
            "bool in array of 9",
            array(BOOL, 2).bytes(&[1, 9]),
            "key `k`: a bool is 9, not 0 or 1",
        ),
        (
            "alignment 0",
            head().key_u32("general.alignment", 0),
            "alignment 0 is not a power of two of at least 8",
        ),
        (
            "alignment 24",
            head().key_u32("general.alignment", 24),
            "key `general.alignment`: alignment 24 is not",
        ),
        (
            "alignment 4",
            head().key_u32("general.alignment", 4),
            "alignment 4 is not a power of two of at least 8",
        ),
        (
            "alignment is text",
            head().string(b"general.alignment").u32(STRING).string(b"32"),
            "key `general.alignment`: found string, expected an integer",
        ),
    ]
}

fn broken_tensors() -> Vec<Case> {
    let two = |a: &[u64], offset_a, b: &[u64], offset_b, names: [&str; 2]| {
        GgufBytes::head(2, 0)
            .tensor(names[0], a, 0, offset_a)
            .tensor(names[1], b, 0, offset_b)
            .data(128)
    };
    let pad = |bytes: GgufBytes| bytes.bytes(&[0; 32]);
    let head = || GgufBytes::head(1, 0);
    let across = GgufBytes::head(3, 0)
        .tensor("a", &[32], 0, 0)
        .tensor("u", &[1], 99, 32);
    let across = across.tensor("b", &[8], 0, 64).data(128);
    let align = GgufBytes::head(1, 1)
        .key_u32("general.alignment", 1 << 31)
        .tensor("w", &[8], 0, 0)
        .data(32);
    vec![
        (
            "name cut",
            pad(head().u64(100)),
            "tensor number 0: tensor name takes 100 bytes but",
        ),
        (
            "name not text",
            pad(head().string(b"\xc3\x28")),
            "tensor number 0: tensor name is not UTF-8",
        ),
        (
            "name twice",
            two(&[8], 0, &[8], 32, ["w", "w"]),
            "tensor `w`: the name is used twice",
        ),
        (
            "5 dimensions",
            one_tensor(&[1; 5], 0, 0, 4),
            "tensor `w`: number of dimensions is 5, more than the limit of 4",
        ),
        (
            "4 billion dimensions",
            pad(head().string(b"w").u32(u32::MAX)),
            "number of dimensions is 4294967295, more",
        ),
        (
            "dimension 0",
            one_tensor(&[8, 0], 0, 0, 32),
            "tensor `w`: dimension 1 is 0",
        ),
        (
            "dimensions overflow",
            one_tensor(&[1 << 40, 1 << 40], 0, 0, 32),
            "multiply to more than memory can hold",
        ),
        (
            "bytes overflow",
            one_tensor(&[1 << 62], 0, 0, 32),
            "tensor `w`: the dimensions multiply to more than memory",
        ),
        (
            "part of a block",
            one_tensor(&[100, 2], 12, 0, 512),
            "tensor `w`: rows of 100 elements are not whole blocks of 256",
        ),
        (
            "record cut",
            head().string(b"w").u32(2).u64(8),
            "tensor `w`: dimension takes 8 bytes but the file has only 0",
        ),
        (
            "offset cut",
            head().string(b"w").u32(1).u64(8).u32(0),
            "tensor `w`: tensor offset takes 8 bytes",
        ),
        (
            "offset misaligned",
            one_tensor(&[8], 0, 40, 128),
            "tensor `w`: offset 40 is not a multiple of the alignment 32",
        ),
        (
            "data cut",
            one_tensor(&[8], 0, 0, 31),
            "tensor `w`: the data is at bytes 0..32 but the data section has 31",
        ),
        (
            "data beyond the file",
            one_tensor(&[8], 0, 1 << 40, 32),
            "the data is at bytes 1099511627776..1099511627808",
        ),
        (
            "offset overflows",
            one_tensor(&[8], 0, HUGE - 31, 32),
            "the data is at bytes 18446744073709551584..18446744073709551615 but",
        ),
        (
            "no data section",
            head().tensor("w", &[8], 0, 0),
            "the data is at bytes 0..32 but the data section has 0",
        ),
        (
            "alignment beyond the file",
            align,
            "the data is at bytes 0..32 but the data section has 0",
        ),
        (
            "overlap across a tensor of unknown size",
            across,
            "tensor `b`: the data overlaps that of tensor `a`",
        ),
        (
            "same data",
            two(&[8], 0, &[8], 0, ["a", "b"]),
            "tensor `b`: the data overlaps that of tensor `a`",
        ),
        (
            "data inside other data",
            two(&[32], 0, &[8], 32, ["a", "b"]),
            "tensor `b`: the data overlaps that of tensor `a`",
        ),
        (
            "overlap backwards",
            two(&[8], 32, &[16], 0, ["a", "b"]),
            "tensor `a`: the data overlaps that of tensor `b`",
        ),
        (
            "unknown type, bad offset",
            one_tensor(&[8], 99, 64, 32),
            "the data is at bytes 64..64 but the data section has 32",
        ),
    ]
}

#[test]
fn every_fault_is_named() {
    for (name, file, expected) in [broken_heads(), broken_keys(), broken_tensors()].concat() {
        match open(file.0) {
            Ok(_) => panic!("{name}: opened"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with("`m.gguf`, "), "{name}: {text}");
                assert!(text.contains(expected), "{name}: {text}");
            }
        }
    }
}

#[test]
fn a_tensor_of_an_unsupported_type_is_an_error_when_it_is_asked_for() {
    for (type_id, type_name) in [(16, "IQ2_XXS"), (77, "number 77")] {
        let file = GgufBytes::head(2, 0)
            .tensor("x", &[256], type_id, 0)
            .tensor("w", &[8], 0, 96)
            .data(128);
        let gguf = open(file.0).unwrap();
        let error = gguf.tensor("x").unwrap().unwrap_err().to_string();
        assert!(
            error.contains(&format!("tensor `x`: type {type_name} is not supported")),
            "{error}"
        );
        assert_eq!(gguf.tensor("w").unwrap().unwrap().bytes, [1; 32]);
        assert_eq!(gguf.tensors().filter(Result::is_ok).count(), 1);
        let listed: Vec<_> = gguf.infos().map(|info| (info.name, info.n_bytes)).collect();
        assert_eq!(listed, [("x", if type_id == 16 { 66 } else { 0 }), ("w", 32)]);
    }
}

/// A small file with every kind of value and three tensors.
static VALID: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("valid.gguf");
    let mut builder = GgufBuilder::new();
    builder.metadata("general.architecture", Value::from("gemma3"));
    for (key, value) in common::values() {
        builder.metadata(key, value);
    }
    builder
        .tensor("a", DType::F32, &[2, 3])
        .tensor("b", DType::Q8_0, &[64])
        .tensor("c", DType::F16, &[5]);
    let mut writer = builder.create(&path).unwrap();
    writer.write_tensor("a", &[1; 24]).unwrap();
    writer.write_tensor("b", &[2; 68]).unwrap();
    writer.write_tensor("c", &[3; 10]).unwrap();
    writer.finish().unwrap();
    std::fs::read(path).unwrap()
});

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let bytes = VALID.clone();
    assert!(open(bytes.clone()).is_ok());
    // The padding after the last tensor (10 bytes of 32) may be missing.
    let needed = bytes.len() - 22;
    assert!(open(bytes[..needed].to_vec()).is_ok());
    for n in 0..needed {
        let error = open(bytes[..n].to_vec()).unwrap_err().to_string();
        assert!(
            error.contains(" takes ") || error.contains("the data section has"),
            "{n}: {error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = open(bytes.clone());
        let _ = open([&b"GGUF\x03\0\0\0"[..], &bytes].concat());
    }

    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = VALID.clone();
        for (place, value) in changes {
            let i = place.index(bytes.len());
            bytes[i] = value;
        }
        crate::gguf_exercise::exercise(&bytes);
    }
}

#[test]
fn flipped_bits_never_panic() {
    let bytes = VALID.clone();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        crate::gguf_exercise::exercise(&flipped);
    }
}
