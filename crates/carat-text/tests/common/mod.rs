//! The real Gemma 3 vocabulary, and writers for the three forms in which tokenizers come.
#![allow(dead_code, reason = "each test file uses its own part")]
#![expect(clippy::unwrap_used, reason = "fixtures are part of the repository")]

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

use carat_text::{GgufVocabulary, Tokenizer};

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures")
        .join(name)
}

/// Pieces, scores and types, as a GGUF file has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces {
    pub(crate) pieces: Vec<Vec<u8>>,
    pub(crate) scores: Vec<f32>,
    pub(crate) types: Vec<i32>,
}

pub(crate) const NORMAL: i32 = 1;
pub(crate) const UNKNOWN: i32 = 2;
pub(crate) const CONTROL: i32 = 3;
pub(crate) const USER: i32 = 4;
pub(crate) const UNUSED: i32 = 5;
pub(crate) const BYTE: i32 = 6;

impl Pieces {
    /// The vocabulary of Gemma 3, with the image placeholder that files of vision models add.
    pub(crate) fn gemma3() -> Self {
        let file = std::fs::File::open(fixture("tokenizer/gemma3-vocabulary.bin.gz")).unwrap();
        let mut data = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut data).unwrap();
        let n = u32::from_le_bytes(data[..4].try_into().unwrap()) as usize;
        let (types, rest) = data[4..].split_at(n);
        let (differences, rest) = rest.split_at(4 * n);
        let (lengths, mut text) = rest.split_at(n);
        let mut pieces = Self::default();
        let mut score = 0;
        for i in 0..n {
            score += i32::from_le_bytes(differences[4 * i..4 * i + 4].try_into().unwrap());
            let (piece, after) = text.split_at(lengths[i] as usize);
            pieces.push(piece, score as f32, i32::from(types[i]));
            text = after;
        }
        pieces.push(b"<image_soft_token>", -1000.0, CONTROL);
        pieces
    }

    pub(crate) fn push(&mut self, piece: &[u8], score: f32, kind: i32) {
        self.pieces.push(piece.to_vec());
        self.scores.push(score);
        self.types.push(kind);
    }

    pub(crate) fn gguf(&self) -> GgufVocabulary<'_> {
        GgufVocabulary {
            tokens: Box::new(self.pieces.iter().map(Vec::as_slice)),
            scores: &self.scores,
            token_types: &self.types,
            merges: None,
            bos: Some(2),
            eos: Some(1),
            unk: Some(3),
            pad: Some(0),
            eot: None,
            add_bos: true,
            add_space_prefix: false,
        }
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_gguf(self.gguf()).unwrap()
    }

    /// Pieces as SentencePiece writes them.
    pub(crate) fn escaped(&self) -> Vec<String> {
        self.pieces
            .iter()
            .map(|p| String::from_utf8(p.clone()).unwrap().replace(' ', "\u{2581}"))
            .collect()
    }

    /// Merge rules as Hugging Face's converter makes them: every way to cut every piece, best score first, among
    /// equals the longest left side.
    pub(crate) fn merges(&self) -> Vec<(String, String)> {
        let pieces = self.escaped();
        let mergeable = |i: usize| self.types[i] == NORMAL || self.types[i] == USER;
        let known: HashMap<&str, usize> = pieces
            .iter()
            .map(String::as_str)
            .enumerate()
            .map(|(i, p)| (p, i))
            .filter(|&(_, i)| mergeable(i))
            .collect();
        let mut rules = Vec::new();
        for (i, piece) in pieces.iter().enumerate().filter(|&(i, _)| mergeable(i)) {
            for (cut, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(cut);
                if known.contains_key(left) && known.contains_key(right) {
                    rules.push((self.scores[i], i, left.to_owned(), right.to_owned()));
                }
            }
        }
        rules.sort_by(|a, b| {
            b.0.total_cmp(&a.0)
                .then(a.1.cmp(&b.1))
                .then(b.2.len().cmp(&a.2.len()))
        });
        rules
            .into_iter()
            .map(|(_, _, left, right)| (left, right))
            .collect()
    }

    /// A file as Hugging Face writes them: with line breaks, keys in their order, the rules last.
    pub(crate) fn tokenizer_json(&self) -> Vec<u8> {
        let pieces = self.escaped();
        let added: Vec<_> = (0..pieces.len())
            .filter(|&i| [UNKNOWN, CONTROL, USER].contains(&self.types[i]))
            .map(|i| {
                let unused = pieces[i].starts_with("<unused");
                serde_json::json!({
                    "id": i, "content": pieces[i].replace('\u{2581}', " "), "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": self.types[i] != USER && !unused,
                })
            })
            .collect();
        let added = serde_json::to_string_pretty(&added).unwrap();
        let quoted = |piece: &str| serde_json::to_string(piece).unwrap();
        let vocab: Vec<String> = pieces
            .iter()
            .enumerate()
            .map(|(i, piece)| format!("      {}: {i}", quoted(piece)))
            .collect();
        let merges: Vec<String> = self
            .merges()
            .iter()
            .map(|(left, right)| {
                format!(
                    "      [\n        {},\n        {}\n      ]",
                    quoted(left),
                    quoted(right)
                )
            })
            .collect();
        let (vocab, merges) = (vocab.join(",\n"), merges.join(",\n"));
        format!(
            r#"{{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": {added},
  "normalizer": {{"type": "Replace", "pattern": {{"String": " "}}, "content": "\u2581"}},
  "pre_tokenizer": {{
    "type": "Split", "pattern": {{"String": " "}}, "behavior": "MergedWithPrevious", "invert": false
  }},
  "model": {{
    "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
    "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
    "vocab": {{
{vocab}
    }},
    "merges": [
{merges}
    ]
  }}
}}
"#
        )
        .into_bytes()
    }

    /// A SentencePiece file; Gemma's calls all markers but three user defined.
    pub(crate) fn sentencepiece(&self) -> Vec<u8> {
        let mut model = Vec::new();
        for (i, piece) in self.escaped().iter().enumerate() {
            let kind = match piece.as_str() {
                "<unk>" => UNKNOWN,
                "<pad>" | "<bos>" | "<eos>" => CONTROL,
                _ if self.types[i] == CONTROL => USER,
                _ => self.types[i],
            };
            let mut message = Vec::new();
            put_bytes(&mut message, 1, piece.as_bytes());
            put_key(&mut message, 2, 5);
            message.extend_from_slice(&self.scores[i].to_le_bytes());
            put_number(&mut message, 3, kind as u64);
            put_bytes(&mut model, 1, &message);
        }
        let mut trainer = Vec::new();
        for (field, value) in [(3, 2), (35, 1), (40, 3), (41, 2), (42, 1), (43, 0)] {
            put_number(&mut trainer, field, value);
        }
        put_bytes(&mut model, 2, &trainer);
        let mut normalizer = Vec::new();
        put_bytes(&mut normalizer, 1, b"identity");
        put_bytes(&mut normalizer, 2, b"");
        for (field, value) in [(3, 0), (4, 0), (5, 1)] {
            put_number(&mut normalizer, field, value);
        }
        put_bytes(&mut model, 3, &normalizer);
        model
    }
}

/// A small vocabulary with all byte pieces: ids 0 to 4 are special, bytes follow, then `pieces` by falling score.
pub(crate) fn small(pieces: &[(&str, i32)]) -> Pieces {
    let mut small = Pieces::default();
    for (piece, kind) in [
        ("<pad>", CONTROL),
        ("<eos>", CONTROL),
        ("<bos>", CONTROL),
        ("<unk>", UNKNOWN),
        ("<end_of_turn>", CONTROL),
    ] {
        small.push(piece.as_bytes(), -1000.0, kind);
    }
    for byte in 0..=255 {
        small.push(format!("<0x{byte:02X}>").as_bytes(), 0.0, BYTE);
    }
    for (i, (piece, kind)) in pieces.iter().enumerate() {
        small.push(piece.as_bytes(), -(i as f32), *kind);
    }
    small
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_key(out: &mut Vec<u8>, field: u64, wire: u64) {
    put_varint(out, field << 3 | wire);
}

pub(crate) fn put_number(out: &mut Vec<u8>, field: u64, value: u64) {
    put_key(out, field, 0);
    put_varint(out, value);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}
