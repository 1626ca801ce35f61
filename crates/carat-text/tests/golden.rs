//! Ids and texts of the reference for 574 strings and id lists, from each of the three file forms.
#![expect(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use carat_text::{ControlText, Special, StreamDecoder, Tokenizer};
use common::{Pieces, fixture};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    group: String,
    text: Option<String>,
    ids: Vec<u32>,
    decoded: String,
    decoded_skip_special: Option<String>,
}

fn rows() -> Vec<Row> {
    let lines = std::fs::read_to_string(fixture("tokenizer/gemma3.jsonl")).unwrap();
    let rows: Vec<Row> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 574);
    rows
}

fn check(tokenizer: &Tokenizer) {
    for row in rows() {
        if let Some(text) = &row.text {
            assert_eq!(
                tokenizer.encode(text, Special::Parse),
                row.ids,
                "{}: {text:?}",
                row.group
            );
        }
        assert_eq!(
            tokenizer.decode(&row.ids, ControlText::Show),
            row.decoded,
            "{:?}",
            row.ids
        );
        if let Some(skipped) = &row.decoded_skip_special {
            assert_eq!(
                tokenizer.decode(&row.ids, ControlText::Hide),
                *skipped,
                "{:?}",
                row.ids
            );
        }
    }
    assert_eq!(tokenizer.bos(), Some(2));
    assert_eq!(tokenizer.eos(), Some(1));
    assert_eq!(tokenizer.pad(), Some(0));
    assert_eq!(tokenizer.unk(), Some(3));
    assert_eq!(tokenizer.end_of_turn(), Some(106));
    assert_eq!(tokenizer.stop_ids(), [1, 106]);
    assert!(tokenizer.adds_bos());
}

#[test]
fn gguf_gives_the_reference_ids() {
    check(&Pieces::gemma3().tokenizer());
}

#[test]
fn tokenizer_json_gives_the_reference_ids() {
    check(&Tokenizer::from_tokenizer_json(&Pieces::gemma3().tokenizer_json()).unwrap());
}

#[test]
fn sentencepiece_gives_the_reference_ids() {
    check(&Tokenizer::from_sentencepiece(&Pieces::gemma3().sentencepiece()).unwrap());
}

#[test]
fn gguf_with_merges_gives_the_reference_ids() {
    let pieces = Pieces::gemma3();
    let rules: Vec<String> = pieces
        .merges()
        .iter()
        .map(|(left, right)| format!("{left} {right}"))
        .collect();
    let mut source = pieces.gguf();
    source.scores = &[];
    source.merges = Some(Box::new(rules.iter().map(|rule| rule.as_bytes())));
    check(&Tokenizer::from_gguf(source).unwrap());
}

#[test]
fn a_stream_gives_the_same_text_as_decoding_at_once() {
    let tokenizer = Pieces::gemma3().tokenizer();
    for row in rows() {
        let mut decoder = StreamDecoder::new(ControlText::Show);
        let mut text = String::new();
        for &id in &row.ids {
            text += decoder.push(&tokenizer, id);
        }
        text += decoder.finish();
        // A stray byte between valid ones: the reference gives up the whole run, a stream has shown its start.
        let expected = if row.ids == [493, 303] {
            "\u{fffd}A"
        } else {
            &row.decoded
        };
        assert_eq!(text, expected, "{:?}", row.ids);
    }
}

#[test]
fn text_mode_never_yields_control_tokens() {
    let tokenizer = Pieces::gemma3().tokenizer();
    for row in rows() {
        let Some(text) = &row.text else { continue };
        let ids = tokenizer.encode(text, Special::AsText);
        assert!(!ids.iter().any(|&id| tokenizer.is_control(id)), "{text:?}");
        let plain = text.replace('\u{2581}', " ");
        assert_eq!(
            tokenizer.decode(&ids, ControlText::Hide),
            plain,
            "every text must survive as plain text"
        );
    }
    let marker = tokenizer.encode("<end_of_turn>", Special::AsText);
    assert!(marker.len() > 1 && !marker.contains(&106));
    assert_eq!(
        tokenizer.encode("a<h1>\n\n", Special::AsText),
        tokenizer.encode("a<h1>\n\n", Special::Parse)
    );
}

#[test]
fn pieces_can_be_asked_for() {
    let tokenizer = Pieces::gemma3().tokenizer();
    assert_eq!(tokenizer.len(), 262_145);
    assert_eq!(tokenizer.id_of("\u{2581}the"), tokenizer.id_of(" the"));
    let the = tokenizer.id_of("\u{2581}the").unwrap();
    assert_eq!(tokenizer.token_bytes(the), Some(&b" the"[..]));
    assert_eq!(tokenizer.token_piece(the).as_deref(), Some("\u{2581}the"));
    assert_eq!(tokenizer.token_bytes(248), Some(&b"\n"[..]));
    assert_eq!(tokenizer.token_piece(248).as_deref(), Some("<0x0A>"));
    assert_eq!(tokenizer.id_of("<start_of_turn>"), Some(105));
    assert!(tokenizer.is_control(105) && tokenizer.is_control(255_999) && !tokenizer.is_control(107));
    assert_eq!(tokenizer.token_bytes(262_145), None);
    assert_eq!(tokenizer.decode(&[262_145, u32::MAX], ControlText::Show), "");
}
