//! Safetensors files with one thing wrong: each must give an error that names it, and never panic.

use std::path::Path;

use carat_format::{Result, Safetensors};
use proptest::prelude::*;

use crate::common::safetensors_bytes;
use crate::safetensors_exercise::exercise;

fn open(bytes: Vec<u8>) -> Result<Safetensors> {
    Safetensors::from_bytes(Path::new("m.safetensors"), bytes)
}

/// The entry of a tensor.
fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{begin},{end}]}}"#)
}

/// A file with one tensor `w` and 8 bytes of data.
fn one(dtype: &str, shape: &str, begin: u64, end: u64) -> Vec<u8> {
    safetensors_bytes(&format!("{{{}}}", entry("w", dtype, shape, begin, end)), 8)
}

/// A file with the tensors `a` and `b`, `F32`, and 16 bytes of data.
fn two(a: [u64; 2], b: [u64; 2], names: [&str; 2]) -> Vec<u8> {
    let [a, b] = [(names[0], a), (names[1], b)].map(|(name, [begin, end])| {
        entry(
            name,
            "F32",
            &((end.saturating_sub(begin)) / 4).to_string(),
            begin,
            end,
        )
    });
    safetensors_bytes(&format!("{{{a},{b}}}"), 16)
}

fn with_length(length: u64) -> Vec<u8> {
    [&length.to_le_bytes()[..], b"{}"].concat()
}

const JSON: &str = "header: not the JSON that is expected";

fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let text = |header: &str| safetensors_bytes(header, 0);
    let nested = "[".repeat(100_000);
    let huge = u64::MAX.to_string();
    let overflow = format!("{huge},{huge}");
    vec![
        (
            "empty",
            vec![],
            "header: header length takes 8 bytes but the file has only 0 more",
        ),
        (
            "length cut",
            vec![1; 7],
            "header length takes 8 bytes but the file has only 7 more",
        ),
        (
            "length beyond the file",
            with_length(3),
            "header: header takes 3 bytes but the file has only 2 more",
        ),
        (
            "length above the limit",
            with_length(100_000_001),
            "header length is 100000001, more than the limit of 100000000",
        ),
        (
            "length overflows",
            with_length(u64::MAX),
            "header length is 18446744073709551615, more than",
        ),
        (
            "a GGUF file",
            b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0".to_vec(),
            "header length is 14",
        ),
        ("no header", with_length(0), JSON),
        ("not JSON", text("hello"), JSON),
        ("not UTF-8", [&2u64.to_le_bytes()[..], b"\"\xff"].concat(), JSON),
        ("JSON of another kind", text("[1, 2]"), JSON),
        ("JSON goes on", text("{} {}"), JSON),
        ("deep JSON", text(&format!("{{\"w\":{nested}")), JSON),
        (
            "deep JSON in an unknown field",
            text(&format!("{{\"w\":{{\"x\":{nested}")),
            JSON,
        ),
        ("17 dimensions", one("F32", &["1"; 17].join(","), 0, 4), JSON),
        (
            "no shape",
            text(r#"{"w":{"dtype":"F32","data_offsets":[0,0]}}"#),
            JSON,
        ),
        ("negative dimension", one("F32", "-2", 0, 8), JSON),
        ("fractional dimension", one("F32", "2.5", 0, 8), JSON),
        (
            "one offset",
            text(r#"{"w":{"dtype":"F32","shape":[0],"data_offsets":[0]}}"#),
            JSON,
        ),
        (
            "three offsets",
            text(r#"{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0,0]}}"#),
            JSON,
        ),
        (
            "metadata twice",
            text(r#"{"__metadata__":{},"__metadata__":{}}"#),
            JSON,
        ),
        ("metadata not text", text(r#"{"__metadata__":{"a":1}}"#), JSON),
        (
            "unknown dtype",
            one("Q4_0", "2", 0, 8),
            "tensor `w`: dtype `Q4_0` is not supported",
        ),
        (
            "end before begin",
            one("F32", "2", 8, 0),
            "tensor `w`: the data is at bytes 8..0 but the data section has 8",
        ),
        (
            "end beyond the data",
            one("F32", "2", 4, 12),
            "the data is at bytes 4..12 but the data section has 8",
        ),
        (
            "offsets overflow",
            one("F32", "2", u64::MAX - 7, u64::MAX),
            "but the data section has 8",
        ),
        (
            "shape too small",
            one("F32", "1", 0, 8),
            "tensor `w`: the data has 8 bytes, shape and type need 4",
        ),
        (
            "shape too large",
            one("F32", "3", 0, 8),
            "the data has 8 bytes, shape and type need 12",
        ),
        (
            "wrong width",
            one("BF16", "2", 0, 8),
            "the data has 8 bytes, shape and type need 4",
        ),
        (
            "shape overflows",
            one("U8", &overflow, 0, 8),
            "tensor `w`: the dimensions multiply to more than memory",
        ),
        (
            "overlap",
            two([0, 8], [4, 16], ["a", "b"]),
            "tensor `b`: the data overlaps that of tensor `a`",
        ),
        (
            "same data",
            two([0, 16], [0, 16], ["a", "b"]),
            "tensor `b`: the data overlaps that of tensor `a`",
        ),
        (
            "hole",
            two([0, 4], [8, 16], ["a", "b"]),
            "tensor `b`: the data begins at byte 8, leaving a hole after 4",
        ),
        (
            "hole at the begin",
            one("F32", "1", 4, 8),
            "tensor `w`: the data begins at byte 4, leaving a hole after 0",
        ),
        (
            "bytes left over",
            two([0, 4], [4, 8], ["a", "b"]),
            "header: 8 bytes after the last tensor belong to none",
        ),
        (
            "name twice",
            two([0, 8], [8, 16], ["a", "a"]),
            "tensor `a`: the name is used twice",
        ),
    ]
}

#[test]
fn every_fault_is_named() {
    for (name, file, expected) in cases() {
        match open(file) {
            Ok(_) => panic!("{name}: opened"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.starts_with("`m.safetensors`, "), "{name}: {text}");
                assert!(text.contains(expected), "{name}: {text}");
            }
        }
    }
}

fn valid() -> Vec<u8> {
    let entries = [
        r#""__metadata__":{"format":"pt"}"#.to_owned(),
        entry("a", "F32", "2,3", 0, 24),
        entry("b", "I64", "1", 24, 32),
        entry("c", "BF16", "", 32, 34),
        entry("d", "F32", "4,0", 34, 34),
    ];
    safetensors_bytes(&format!("{{{}}}", entries.join(",")), 34)
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let bytes = valid();
    assert!(open(bytes.clone()).is_ok());
    for n in 0..bytes.len() {
        let error = open(bytes[..n].to_vec()).unwrap_err().to_string();
        assert!(
            error.contains(" takes ") || error.contains("the data section has"),
            "{n}: {error}"
        );
    }
}

#[test]
fn flipped_bits_never_panic() {
    let bytes = valid();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        exercise(&flipped);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), header in ".{0,200}") {
        exercise(&bytes);
        exercise(&safetensors_bytes(&header, 8));
    }

    #[test]
    fn any_offsets_and_shape_are_checked(
        dtype in prop::sample::select(vec!["F32", "BF16", "I64", "BOOL"]),
        shape in prop::collection::vec(prop_oneof![0u64..5, any::<u64>()], 0..4),
        begin in prop_oneof![0u64..9, any::<u64>()],
        end in prop_oneof![0u64..9, any::<u64>()],
    ) {
        let shape: Vec<String> = shape.iter().map(u64::to_string).collect();
        exercise(&one(dtype, &shape.join(","), begin, end));
    }
}

#[test]
fn too_many_tensors_are_refused() {
    let entries: Vec<String> = (0..70_000)
        .map(|i| entry(&i.to_string(), "F32", "0", 0, 0))
        .collect();
    let error = open(safetensors_bytes(&format!("{{{}}}", entries.join(",")), 0)).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("more than 65536 tensors"), "{source}");
}
