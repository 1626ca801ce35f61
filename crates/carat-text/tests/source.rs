//! Defects of vocabulary files are errors that say what is wrong, and honest variations are accepted.

mod common;

use carat_text::{Error, SentencePieceModel, Special, Tokenizer};
use common::{CONTROL, NORMAL, Pieces, UNUSED, USER, put_bytes, put_number, small};
use serde_json::json;

fn abc() -> Pieces {
    small(&[
        ("ab", NORMAL),
        ("a", NORMAL),
        ("b", NORMAL),
        ("\u{2581}", NORMAL),
        ("\n\n", USER),
        ("[PAD]", UNUSED),
    ])
}

#[test]
fn a_small_vocabulary_works_from_all_three_forms() {
    let pieces = abc();
    let from_json = Tokenizer::from_tokenizer_json(&pieces.tokenizer_json()).unwrap();
    let from_model = Tokenizer::from_sentencepiece(&pieces.sentencepiece()).unwrap();
    for tokenizer in [pieces.tokenizer(), from_json, from_model] {
        assert_eq!(
            tokenizer.encode("ab a\n\n\n<bos>", Special::Parse),
            [261, 264, 262, 265, 15, 2]
        );
        assert_eq!(tokenizer.encode("\u{e9}", Special::Parse), [5 + 0xC3, 5 + 0xA9]);
        assert_eq!(tokenizer.encode("[PAD]", Special::Parse).len(), 5);
        assert_eq!(tokenizer.stop_ids(), [1, 4]);
    }
}

#[test]
fn defects_of_gguf_arrays_are_errors() {
    let check = |change: &dyn Fn(&mut Pieces), expected: &str| {
        let mut pieces = abc();
        change(&mut pieces);
        let error = Tokenizer::from_gguf(pieces.gguf()).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    };
    check(
        &|p| p.types.truncate(9),
        "`token_type` has 9 entries, the vocabulary has 10 pieces",
    );
    check(
        &|p| p.types.push(1),
        "`token_type` has 268 entries, the vocabulary has 267 pieces",
    );
    check(&|p| p.types[7] = 9, "vocabulary piece 7 has the unknown type 9");
    check(
        &|p| p.scores.truncate(3),
        "`scores` has 3 entries, the vocabulary has 267 pieces",
    );
    check(
        &|p| p.scores[4] = f32::NAN,
        "the score of vocabulary piece 4 is not a number",
    );
    check(
        &|p| p.scores.clear(),
        "the vocabulary has neither scores nor merges",
    );
    check(
        &|p| p.pieces[261] = vec![0xFF],
        "vocabulary piece 261 is not valid UTF-8",
    );
    check(
        &|p| p.pieces[261] = b"b".to_vec(),
        "vocabulary pieces 261 and 263 are both `b`",
    );
    check(
        &|p| p.pieces[70] = b"x".to_vec(),
        "the vocabulary lacks the byte piece `<0x41>`",
    );
    check(
        &|p| p.pieces[261] = vec![b'x'; 5000],
        "vocabulary piece 261 has 5000 bytes",
    );
    check(&|p| *p = Pieces::default(), "the vocabulary has 0 pieces");
    let pieces = abc();
    let outside = |error: Error| {
        matches!(
            error,
            Error::SpecialId {
                name: "bos",
                id: 267,
                pieces: 267
            }
        )
    };
    let mut source = pieces.gguf();
    source.bos = Some(267);
    assert!(outside(Tokenizer::from_gguf(source).unwrap_err()));
    let mut source = pieces.gguf();
    source.add_space_prefix = true;
    assert!(matches!(
        Tokenizer::from_gguf(source),
        Err(Error::Unsupported { .. })
    ));
    for rule in ["ab", "a z", "a ", " a", "b a", "a\u{ff}", "a  b"] {
        let mut source = pieces.gguf();
        source.merges = Some(Box::new(std::iter::once(rule.as_bytes())));
        assert!(
            matches!(
                Tokenizer::from_gguf(source),
                Err(Error::MergeRule { index: 0, .. })
            ),
            "{rule}"
        );
    }
}

#[test]
fn listed_merges_go_by_their_order() {
    let pieces = small(&[
        ("a", NORMAL),
        ("b", NORMAL),
        ("ab", NORMAL),
        ("ba", NORMAL),
        ("aba", NORMAL),
    ]);
    let check = |rules: &[&str], expected: &[u32]| {
        let mut source = pieces.gguf();
        source.merges = Some(Box::new(rules.iter().map(|rule| rule.as_bytes())));
        assert_eq!(
            Tokenizer::from_gguf(source)
                .unwrap()
                .encode("aba", Special::Parse),
            expected,
            "{rules:?}"
        );
    };
    check(&["a b", "b a"], &[263, 261]);
    check(&["b a", "a b"], &[261, 264]);
    check(&["b a", "a b", "ab a"], &[261, 264]);
    check(&["b a", "a ba", "a b"], &[265]);
    check(&[], &[261, 262, 261]);
    // A control token is never the result of a merge, whatever the file says.
    let mut pieces = small(&[("<end_of", NORMAL), ("_turn>", NORMAL)]);
    for c in "<end_oftur>".chars().collect::<std::collections::BTreeSet<_>>() {
        pieces.push(c.to_string().as_bytes(), 0.0, NORMAL);
    }
    let mut source = pieces.gguf();
    source.merges = Some(Box::new(std::iter::once(&b"<end_of _turn>"[..])));
    let tokenizer = Tokenizer::from_gguf(source).unwrap();
    assert!(!tokenizer.encode("<end_of_turn>", Special::AsText).contains(&4));
    let by_score = pieces.tokenizer();
    assert!(!by_score.encode("<end_of_turn>", Special::AsText).contains(&4));
}

#[test]
fn tokenizer_json_of_other_kinds_is_refused() {
    let good: serde_json::Value = serde_json::from_slice(&abc().tokenizer_json()).unwrap();
    let with = |pointer: &str, value: serde_json::Value| {
        let mut file = good.clone();
        *file.pointer_mut(pointer).unwrap() = value;
        Tokenizer::from_tokenizer_json(&serde_json::to_vec(&file).unwrap())
    };
    for (pointer, value) in [
        ("/model/type", json!("Unigram")),
        ("/model/byte_fallback", json!(false)),
        ("/model/ignore_merges", json!(true)),
        ("/model/dropout", json!(0.5)),
        ("/model/end_of_word_suffix", json!("</w>")),
        ("/normalizer", json!(null)),
        ("/normalizer", json!({"type": "NFC"})),
        ("/normalizer/content", json!("_")),
        ("/pre_tokenizer", json!({"type": "ByteLevel"})),
        ("/pre_tokenizer/pattern", json!({"Regex": "\\s+"})),
        ("/added_tokens/0/lstrip", json!(true)),
    ] {
        assert!(
            matches!(with(pointer, value), Err(Error::Unsupported { .. })),
            "{pointer}"
        );
    }
    assert!(matches!(
        with("/model/vocab/a", json!(u32::MAX)),
        Err(Error::SparseIds { id: u32::MAX, .. })
    ));
    assert!(matches!(
        with("/model/vocab/a", json!(263)),
        Err(Error::IdTwice { id: 263, .. })
    ));
    assert!(matches!(with("/model/vocab/a", json!(-1)), Err(Error::Json(_))));
    assert!(matches!(
        with("/model/merges", json!(["a b", "a z"])),
        Err(Error::MergeRule { index: 1, .. })
    ));
    assert!(matches!(
        with("/model/merges", json!([["a"]])),
        Err(Error::Json(_))
    ));
    assert!(matches!(
        with("/model/merges", json!([["a", "b", "c"]])),
        Err(Error::Json(_))
    ));
    assert!(matches!(
        Tokenizer::from_tokenizer_json(b"{"),
        Err(Error::Json(_))
    ));
    for (pointer, value) in [
        ("/pre_tokenizer", json!(null)),
        ("/pre_tokenizer/pattern", json!({"Regex": "[^\\n]+|[\\n]+"})),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": [good["normalizer"]]}),
        ),
        ("/model/merges", json!(["a b"])),
    ] {
        assert_eq!(
            with(pointer, value).unwrap().encode("ab", Special::Parse),
            [261],
            "{pointer}"
        );
    }
}

#[test]
fn a_sentencepiece_file_can_be_read_as_a_list() {
    let mut pieces = abc();
    pieces.push(b"<|tool>", 0.5, CONTROL);
    let file = pieces.sentencepiece();
    let model = SentencePieceModel::parse(&file).unwrap();
    assert_eq!(model.pieces, pieces.escaped());
    assert_eq!(model.scores, pieces.scores);
    // The file calls the markers user defined: those that readers must not see are control again, the others stay.
    let mut expected = pieces.types.clone();
    expected[267] = USER;
    assert_eq!(model.token_types, expected);
    for (change, error) in [
        (
            put_score(f32::NAN),
            "the score of vocabulary piece 268 is not a number",
        ),
        (put_piece(&[0xFF]), "vocabulary piece 268 is not valid UTF-8"),
        (put_piece(&[b'x'; 2000]), "vocabulary piece 268 has 2000 bytes"),
    ] {
        let mut bad = file.clone();
        put_bytes(&mut bad, 1, &change);
        let text = SentencePieceModel::parse(&bad).unwrap_err().to_string();
        assert!(text.starts_with(error), "{text}");
    }
    let mut endless = file.clone();
    (0..1 << 20).for_each(|_| endless.extend([0x0A, 0x00]));
    assert!(matches!(
        SentencePieceModel::parse(&endless),
        Err(Error::PieceCount { .. })
    ));
}

fn put_piece(bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    put_bytes(&mut message, 1, bytes);
    message
}

fn put_score(score: f32) -> Vec<u8> {
    let mut message = vec![0x15];
    message.extend(score.to_le_bytes());
    message
}

#[test]
fn damaged_sentencepiece_files_are_errors() {
    let good = abc().sentencepiece();
    // Cut anywhere: an error or, between two fields, a file that lacks its settings; never a panic.
    for len in 0..good.len() {
        assert!(Tokenizer::from_sentencepiece(&good[..len]).is_err(), "{len}");
    }
    let with = |field: u64, spec: &[u8]| {
        let mut file = good.clone();
        put_bytes(&mut file, field, spec);
        Tokenizer::from_sentencepiece(&file)
    };
    let number = |field, value| {
        let mut spec = Vec::new();
        put_number(&mut spec, field, value);
        spec
    };
    assert!(with(2, &[]).is_ok() && with(9, b"unknown").is_ok());
    assert!(matches!(with(2, &number(3, 1)), Err(Error::Unsupported { .. })));
    assert!(matches!(with(2, &number(35, 0)), Err(Error::Unsupported { .. })));
    assert!(matches!(with(3, &number(3, 1)), Err(Error::Unsupported { .. })));
    assert!(matches!(with(3, &number(4, 1)), Err(Error::Unsupported { .. })));
    assert!(matches!(
        with(2, &number(41, 99_999)),
        Err(Error::SpecialId { name: "bos", .. })
    ));
    assert!(matches!(
        with(1, &number(3, 77)),
        Err(Error::PieceType { found: 77, .. })
    ));
    assert!(matches!(with(2, &[0x0B]), Err(Error::Protobuf { .. })));
    assert!(matches!(with(2, &[0x18, 0xFF]), Err(Error::Protobuf { .. })));
    assert!(matches!(with(2, &[0xFF; 12]), Err(Error::Protobuf { .. })));
    let mut endless = good.clone();
    endless.extend_from_slice(&[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]);
    assert!(matches!(
        Tokenizer::from_sentencepiece(&endless),
        Err(Error::Protobuf { .. })
    ));
}
