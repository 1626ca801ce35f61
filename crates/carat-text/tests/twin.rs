//! The fast path against a plain twin: match, then merge the best pair of neighbours one at a time over the whole text.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use std::collections::HashMap;

use carat_text::{ControlText, Special, Tokenizer};
use common::{BYTE, CONTROL, NORMAL, Pieces, UNKNOWN, USER, small};
use proptest::prelude::*;

/// The specification, slow on purpose. Knows no borders, no cache and no heap.
struct Twin {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    matched: Vec<(String, u32, bool)>,
    bytes: HashMap<u8, u32>,
    mergeable: Vec<bool>,
}

impl Twin {
    fn new(pieces: &Pieces) -> Self {
        let escaped = pieces.escaped();
        let mut bytes = HashMap::new();
        let mut matched = Vec::new();
        for (i, piece) in escaped.iter().enumerate() {
            let id = i as u32;
            match pieces.types[i] {
                BYTE => {
                    bytes.insert(u8::from_str_radix(&piece[3..5], 16).unwrap(), id);
                }
                UNKNOWN | CONTROL => matched.push((piece.clone(), id, true)),
                USER => {
                    let special =
                        ["<start_of_image>", "<end_of_image>", "[multimodal]"].contains(&piece.as_str());
                    matched.push((piece.clone(), id, special));
                }
                _ => {}
            }
        }
        Self {
            ids: escaped
                .into_iter()
                .enumerate()
                .map(|(i, piece)| (piece, i as u32))
                .collect(),
            scores: pieces.scores.clone(),
            matched,
            bytes,
            mergeable: pieces.types.iter().map(|&kind| kind == NORMAL).collect(),
        }
    }

    fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let text = text.replace(' ', "\u{2581}");
        let mut ids = Vec::new();
        let mut gap = String::new();
        let mut rest = text.as_str();
        while let Some(c) = rest.chars().next() {
            let allowed = |only_parsed: bool| !only_parsed || special == Special::Parse;
            let candidates = self
                .matched
                .iter()
                .filter(|(p, _, only)| allowed(*only) && rest.starts_with(p.as_str()));
            if let Some((piece, id, _)) = candidates.max_by_key(|(piece, _, _)| piece.len()) {
                self.merge(&std::mem::take(&mut gap), &mut ids);
                ids.push(*id);
                rest = &rest[piece.len()..];
            } else {
                gap.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        self.merge(&gap, &mut ids);
        ids
    }

    fn id_of(&self, piece: &str) -> Option<u32> {
        self.ids
            .get(piece)
            .copied()
            .filter(|&id| self.mergeable[id as usize])
    }

    fn merge(&self, text: &str, ids: &mut Vec<u32>) {
        let mut symbols: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let mut best: Option<(f32, usize)> = None;
            for (i, pair) in symbols.windows(2).enumerate() {
                let Some(id) = self.id_of(&pair.concat()) else {
                    continue;
                };
                let score = self.scores[id as usize];
                if best.is_none_or(|(held, _)| score > held) {
                    best = Some((score, i));
                }
            }
            let Some((_, i)) = best else { break };
            let right = symbols.remove(i + 1);
            symbols[i] += &right;
        }
        for symbol in symbols {
            match self.id_of(&symbol) {
                Some(id) => ids.push(id),
                None => ids.extend(symbol.bytes().map(|byte| self.bytes[&byte])),
            }
        }
    }
}

/// Texts from many alphabets, with what tends to go wrong: runs, markers, blanks, control characters.
fn texts() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        4 => "[a-zA-Z ,.'-]{1,30}",
        2 => "[ \t\n\r]{1,40}",
        1 => "[=#*_-]{1,70}",
        1 => "[\u{0}-\u{1f}\u{7f}-\u{9f}]{1,5}",
        2 => "[а-яё ]{1,20}",
        2 => "[一-龠ぁ-んァ-ヶ。、]{1,25}",
        1 => "[\u{ac00}-\u{d7a3} ]{1,12}",
        1 => "[\u{900}-\u{97f}\u{e00}-\u{e7f} ]{1,20}",
        1 => "[\u{600}-\u{6ff} ]{1,20}",
        1 => "[\u{1f300}-\u{1faff}\u{200d}\u{fe0f}]{1,8}",
        1 => "\\PC{1,12}",
        1 => "[\u{2581} >/<]{1,12}",
        2 => proptest::sample::select(vec![
            "<start_of_turn>", "<end_of_turn>", "<bos>", "<unused12>", "<unused1", "<h1>", "</td>", "<start_of_image>",
            "<0x0A>", "[multimodal]", ">\u{2581}</", "> </div>", "fn main() {\n    let x = 1;\n}", "don't", "1,234.5e-6",
            "https://example.org/a?b=c&d", "<unk>", "<image_soft_token>", "\u{feff}", "\u{10ffff}",
        ]).prop_map(String::from),
    ];
    prop::collection::vec(fragment, 1..8).prop_map(|fragments| fragments.concat())
}

#[test]
fn fast_path_equals_the_twin_on_gemmas_vocabulary() {
    let pieces = Pieces::gemma3();
    let (twin, tokenizer) = (Twin::new(&pieces), pieces.tokenizer());
    let config = ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(text in texts())| {
        for special in [Special::Parse, Special::AsText] {
            let ids = tokenizer.encode(&text, special);
            prop_assert_eq!(&ids, &twin.encode(&text, special));
            prop_assert_eq!(tokenizer.decode(&ids, ControlText::Show), text.replace('\u{2581}', " "));
        }
    });
}

/// Small random vocabularies over few letters: here borders, ties and unreachable pieces really happen.
fn vocabularies() -> impl Strategy<Value = Pieces> {
    let piece = prop_oneof![6 => "[abc\u{e9} ]{1,4}", 1 => "[ab]{5,8}"];
    let list = prop::collection::btree_set(piece, 1..40);
    (list, prop::collection::vec(0_u8..6, 40), any::<u64>()).prop_map(|(list, grades, order)| {
        let mut pieces = small(&[]);
        let mut list: Vec<String> = list.into_iter().collect();
        list.sort_by_key(|piece| {
            piece
                .bytes()
                .fold(order, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
        });
        for (i, piece) in list.iter().enumerate() {
            let kind = if grades[i] == 0 && piece.len() > 1 {
                USER
            } else {
                NORMAL
            };
            let piece = piece.replace(' ', "\u{2581}");
            // Equal scores on purpose: then the leftmost pair goes first.
            pieces.push(piece.as_bytes(), -f32::from(grades[i] / 2) - (i / 3) as f32, kind);
        }
        pieces
    })
}

#[test]
fn fast_path_equals_the_twin_on_small_vocabularies() {
    let config = ProptestConfig {
        cases: 1500,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let texts = prop::collection::vec("[abcd\u{e9} \u{2581}]{0,90}", 1..4);
    proptest!(config, |(pieces in vocabularies(), texts in texts)| {
        let (twin, tokenizer) = (Twin::new(&pieces), pieces.tokenizer());
        // Twice: the second time stretches are remembered.
        for text in texts.iter().chain(&texts) {
            prop_assert_eq!(tokenizer.encode(text, Special::Parse), twin.encode(text, Special::Parse), "{:?}", text);
        }
    });
}

#[test]
fn listed_merges_equal_scores_on_gemmas_vocabulary() {
    let pieces = Pieces::gemma3();
    let by_score = pieces.tokenizer();
    let by_pair = Tokenizer::from_tokenizer_json(&pieces.tokenizer_json()).unwrap();
    let config = ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(text in texts())| {
        for special in [Special::Parse, Special::AsText] {
            prop_assert_eq!(by_score.encode(&text, special), by_pair.encode(&text, special));
        }
    });
}

#[test]
fn a_megabyte_of_one_thing_takes_seconds_at_most() {
    let tokenizer = Pieces::gemma3().tokenizer();
    let start = std::time::Instant::now();
    for unit in [
        "a",
        " ",
        "\n",
        "\u{1f600}",
        "=",
        "<",
        "\u{2581}",
        "ab",
        "\u{4e2d}",
        "\u{0}",
        "<unused1",
    ] {
        let text = unit.repeat((1 << 20) / unit.len());
        let ids = tokenizer.encode(&text, Special::Parse);
        assert_eq!(
            tokenizer.decode(&ids, ControlText::Show),
            text.replace('\u{2581}', " ")
        );
    }
    // Quadratic merging of any one of them would take hours.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
