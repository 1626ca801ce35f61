//! Small vocabularies by hand, and Gemma's own from both files.

use std::fs;
use std::io::Read;

use carat_testkit::{fixture, sentencepiece};
use carat_text::{GgufVocabulary, Special, Tokenizer};
use tempfile::TempDir;

use super::*;
use crate::Error;

/// Eight pieces and an added token at 9.
fn json(merges: &str) -> String {
    format!(
        r#"{{"added_tokens": [{{"id": 0, "content": "<bos>", "special": true}}, {{"id": 1, "content": "\n\n"}},
                             {{"id": 9, "content": "<image>", "special": true}}],
            "model": {{"vocab": {{"<bos>": 0, "\n\n": 1, "<0x0A>": 2, "ab": 3, "abc": 4, "a": 5, "b": 6, "c": 7}},
                      "merges": [{merges}]}}}}"#
    )
}

/// The same pieces with scores of their own.
const MODEL: [(&str, f32, u8); 8] = [
    ("<bos>", 0.0, 3),
    ("\n\n", 0.0, 4),
    ("<0x0A>", 0.0, 6),
    ("ab", -0.5, 1),
    ("abc", -1.25, 1),
    ("a", -9.0, 1),
    ("b", -9.0, 1),
    ("c", -9.0, 1),
];
const MERGES: &str = r#"["a", "b"], ["ab", "c"]"#;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// The vocabulary of a folder and the notes about it.
fn open(files: &[(&str, &[u8])], n_rows: usize) -> Result<(Vocabulary, Vec<String>), ConvertError> {
    let mut notes = Vec::new();
    let vocabulary = Vocabulary::open(folder(files).path(), n_rows, MergeOrder::Scores, &mut notes)?;
    Ok((vocabulary.unwrap(), notes))
}

fn of_json(merges: &str, n_rows: usize) -> Result<Vocabulary, ConvertError> {
    open(&[("tokenizer.json", json(merges).as_bytes())], n_rows).map(|(vocabulary, _)| vocabulary)
}

fn message(result: Result<Vocabulary, ConvertError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn without_the_original_ids_give_the_scores() {
    for merges in [MERGES, r#""a b", "ab c""#] {
        let vocabulary = of_json(merges, 9).unwrap();
        assert_eq!(
            vocabulary.pieces,
            ["<bos>", "\n\n", "<0x0A>", "ab", "abc", "a", "b", "c"]
        );
        assert_eq!(
            vocabulary.scores,
            [-1000.0, -1000.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0]
        );
        assert_eq!(vocabulary.kinds, [3, 4, 6, 1, 1, 1, 1, 1]);
        assert_eq!(vocabulary.n_dropped(), 1);
        assert_eq!(vocabulary.id_of("abc"), Some(4));
    }
}

#[test]
fn holes_below_an_added_token_are_named() {
    let vocabulary = of_json(r#"["a", "b"]"#, 12).unwrap();
    assert_eq!(vocabulary.pieces[8..], ["[PAD8]", "<image>"]);
    assert_eq!(vocabulary.kinds[8..], [5, 3]);
    assert_eq!(vocabulary.scores[8..], [-10_000.0, -1000.0]);
}

#[test]
fn merges_in_another_order_are_refused() {
    let text = message(of_json(r#"["ab", "c"], ["a", "b"]"#, 9));
    assert!(
        text.contains("tokenizer.json`: the merges") && text.contains("not in the order"),
        "{text}"
    );
    let text = message(of_json(r#"["b", "c"]"#, 9));
    assert!(text.contains("not in the vocabulary"), "{text}");
}

#[test]
fn the_original_gives_scores_and_the_json_what_was_added() {
    let model = sentencepiece(MODEL);
    let files = [
        ("tokenizer.json", json(MERGES).into_bytes()),
        ("tokenizer.model", model),
    ];
    let files = files.each_ref().map(|(name, bytes)| (*name, bytes.as_slice()));
    let (vocabulary, notes) = open(&files, 12).unwrap();
    assert_eq!(notes, [""; 0]);
    assert_eq!(
        vocabulary.scores,
        [
            -1000.0, -1000.0, 0.0, -0.5, -1.25, -9.0, -9.0, -9.0, -10_000.0, -1000.0
        ]
    );
    assert_eq!(vocabulary.kinds, [3, 4, 6, 1, 1, 1, 1, 1, 5, 3]);
    assert_eq!(vocabulary.pieces[7..], ["c", "[PAD8]", "<image>"]);
}

#[test]
fn an_original_of_another_vocabulary_is_left_aside() {
    let check = |model: &[u8], json: &str, reason: &str| {
        let files = [("tokenizer.json", json.as_bytes()), ("tokenizer.model", model)];
        let (vocabulary, notes) = open(&files, 9).unwrap();
        assert_eq!(vocabulary.scores[3..5], [0.0, -1.0]);
        assert!(notes.len() == 1 && notes[0].contains(reason), "{notes:?}");
    };
    let with = |at: usize, piece| {
        let mut pieces = MODEL.to_vec();
        pieces[at] = piece;
        sentencepiece(pieces)
    };
    check(&with(4, ("abd", -1.25, 1)), &json(MERGES), "piece 4 is `abc`");
    check(&with(3, ("ab", -2.0, 1)), &json(MERGES), "not in the order");
    check(
        &sentencepiece(MODEL[..7].iter().copied()),
        &json(MERGES),
        "piece 7 is `c`",
    );
    let longer = MODEL.iter().copied().chain([("d", -9.0, 1)]);
    check(
        &sentencepiece(longer),
        &json(MERGES),
        "piece 8, `d`, is not in tokenizer.json",
    );
    check(
        b"version https://git-lfs",
        &json(MERGES),
        "tokenizer.model is damaged",
    );
    // The tab in the place of its byte, and a marker that took an unused place, are no differences.
    let renamed = json(MERGES)
        .replace("<0x0A>", r"\n")
        .replace(r#""content": "<bos>""#, r#""content": "<go>""#);
    let files = [
        ("tokenizer.json", renamed.as_bytes()),
        ("tokenizer.model", &sentencepiece(MODEL)),
    ];
    let (vocabulary, notes) = open(&files, 9).unwrap();
    assert_eq!(notes, [""; 0]);
    assert_eq!(vocabulary.pieces[..3], ["<go>", "\n\n", "<0x0A>"]);
    assert_eq!(vocabulary.kinds[..3], [3, 4, 6]);
}

#[test]
fn tokens_beside_the_original_are_added() {
    let mut pieces = MODEL.to_vec();
    pieces.extend([
        ("<unused0>", 0.0, 4),
        ("<unused1>", 0.0, 4),
        ("\u{2581}\u{2581}", 0.0, 4),
        ("", 0.0, 1),
    ]);
    let model = sentencepiece(pieces);
    let config = br#"{"added_tokens_decoder": {"8": {"content": "<unused0>", "special": false},
                      "9": {"content": "<tool>", "special": false}, "13": {"content": "<mine>", "special": true}}}"#;
    let bare = br#"{"<mine>": 13, "<image>": 14, "<far>": 99}"#;
    let files: [(&str, &[u8]); 3] = [
        ("tokenizer.model", &model),
        ("tokenizer_config.json", config),
        ("added_tokens.json", bare),
    ];
    let (vocabulary, notes) = open(&files, 20).unwrap();
    assert_eq!(notes, [""; 0]);
    assert_eq!(
        vocabulary.pieces[8..],
        [
            "<unused0>",
            "<tool>",
            "  ",
            "[PAD11]",
            "[PAD12]",
            "<mine>",
            "<image>"
        ]
    );
    assert_eq!(vocabulary.kinds[8..], [3, 4, 4, 5, 5, 3, 4]);
    assert_eq!(
        vocabulary.scores[8..],
        [-1000.0, -1000.0, 0.0, -10_000.0, -10_000.0, -1000.0, -1000.0]
    );
    assert_eq!(vocabulary.n_dropped(), 1);
    // Fewer rows than pieces: the rest is counted once.
    assert_eq!(open(&files, 8).unwrap().0.n_dropped(), 7);
}

#[test]
fn a_damaged_original_alone_is_an_error() {
    let result = open(&[("tokenizer.model", b"version https://git-lfs")], 9);
    let error = result.map(|(vocabulary, _)| vocabulary).unwrap_err();
    assert!(matches!(error, ConvertError::Tokenizer { .. }), "{error}");
    let text = message(open(&[("tokenizer.model", &sentencepiece([]))], 9).map(|(vocabulary, _)| vocabulary));
    assert!(text.contains("no ordinary pieces"), "{text}");
    let files: [(&str, &[u8]); 2] = [
        ("tokenizer.model", &sentencepiece(MODEL)),
        ("added_tokens.json", b"[]"),
    ];
    assert!(matches!(
        open(&files, 9),
        Err(ConvertError::Model(Error::Json { .. }))
    ));
}

/// Pieces, scores and types of a published GGUF file of Gemma 3; see the fixture's script for the layout.
fn gemma3() -> (Vec<String>, Vec<f32>, Vec<i32>) {
    let file = fs::File::open(fixture("tokenizer/gemma3-vocabulary.bin.gz")).unwrap();
    let mut data = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut data).unwrap();
    let (n, rest) = data.split_first_chunk::<4>().unwrap();
    let n = u32::from_le_bytes(*n) as usize;
    let (kinds, rest) = rest.split_at(n);
    let (differences, rest) = rest.split_at(4 * n);
    let (lengths, mut text) = rest.split_at(n);
    let scores = differences.chunks_exact(4).scan(0, |score, difference| {
        *score += i32::from_le_bytes(difference.try_into().unwrap());
        Some(*score as f32)
    });
    let pieces = lengths.iter().map(|len| {
        let (piece, after) = text.split_at(usize::from(*len));
        text = after;
        String::from_utf8(piece.to_vec()).unwrap()
    });
    (
        pieces.collect(),
        scores.collect(),
        kinds.iter().map(|kind| i32::from(*kind)).collect(),
    )
}

/// Gemma's file as published has 262,144 pieces, its vision models 262,208 rows, and one token more in side files.
#[test]
fn gemmas_vocabulary_comes_out_as_published() {
    let (pieces, scores, kinds) = gemma3();
    let escaped: Vec<String> = pieces
        .iter()
        .map(|piece| piece.replace(' ', "\u{2581}"))
        .collect();
    // The original calls markers user defined and gives them no score.
    let lists = escaped.iter().zip(&scores).zip(&kinds);
    let original = lists.map(|((piece, score), kind)| match (piece.as_str(), *kind) {
        ("<pad>" | "<bos>" | "<eos>", _) => (piece.as_str(), 0.0, 3),
        ("<unk>", _) => (piece.as_str(), 0.0, 2),
        (_, CONTROL | USER_DEFINED) => (piece.as_str(), 0.0, 4),
        (_, kind) => (piece.as_str(), *score, kind as u8),
    });
    let model = sentencepiece(original);
    let mut decoder: serde_json::Map<String, serde_json::Value> = (0..pieces.len())
        .filter(|at| [CONTROL, USER_DEFINED].contains(&kinds[*at]))
        .map(|at| {
            let is_special = kinds[at] == CONTROL && !pieces[at].starts_with("<unused");
            let token = serde_json::json!({"content": escaped[at], "special": is_special});
            (at.to_string(), token)
        })
        .collect();
    decoder.insert(
        "262144".to_owned(),
        serde_json::json!({"content": "<image_soft_token>", "special": true}),
    );
    let config = serde_json::json!({"added_tokens_decoder": decoder}).to_string();
    let files: [(&str, &[u8]); 2] = [
        ("tokenizer.model", &model),
        ("tokenizer_config.json", config.as_bytes()),
    ];
    let (vocabulary, _) = open(&files, 262_208).unwrap();
    assert_eq!(vocabulary.pieces.len(), 262_145);
    assert_eq!(vocabulary.id_of("<image_soft_token>"), Some(262_144));
    assert!(vocabulary.pieces[..262_144] == pieces);
    assert!(vocabulary.scores[..262_144] == scores);
    for (at, published) in kinds.iter().enumerate() {
        // Published as user defined, but no reader should see them.
        let is_hidden = ["<start_of_image>", "<end_of_image>"].contains(&pieces[at].as_str());
        let expected = if is_hidden { CONTROL } else { *published };
        assert_eq!(vocabulary.kinds[at], expected, "{at} {}", pieces[at]);
    }
    let alone = open(&files[..1], 262_208).unwrap().0;
    assert_eq!(alone.pieces.len(), 262_144);
    let source = Tokenizer::from_sentencepiece(&model).unwrap();
    let rows = fs::read_to_string(fixture("tokenizer/gemma3.jsonl")).unwrap();
    for vocabulary in [&vocabulary, &alone] {
        let tokenizer = tokenizer_of(vocabulary);
        for row in rows.lines() {
            let row: serde_json::Value = serde_json::from_str(row).unwrap();
            let Some(text) = row["text"]
                .as_str()
                .filter(|text| !text.contains("<image_soft_token>"))
            else {
                continue;
            };
            let ids = tokenizer.encode(text, Special::Parse);
            assert_eq!(serde_json::json!(ids), row["ids"], "{text:?}");
            assert_eq!(ids, source.encode(text, Special::Parse), "{text:?}");
        }
    }
}

fn tokenizer_of(vocabulary: &Vocabulary) -> Tokenizer {
    Tokenizer::from_gguf(GgufVocabulary {
        tokens: Box::new(vocabulary.pieces.iter().map(String::as_bytes)),
        scores: &vocabulary.scores,
        token_types: &vocabulary.kinds,
        merges: None,
        bos: vocabulary.id_of("<bos>"),
        eos: vocabulary.id_of("<eos>"),
        unk: vocabulary.id_of("<unk>"),
        pad: vocabulary.id_of("<pad>"),
        eot: None,
        add_bos: true,
        add_space_prefix: false,
    })
    .unwrap()
}
