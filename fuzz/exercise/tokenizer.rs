//! What the fuzzer and the replay of its corpus do with a tokenizer: read it, encode a text, decode it again.
//!
//! The first byte says what follows: `j` a `tokenizer.json`, `m` a SentencePiece file; otherwise pieces, one a line, each
//! after a digit for its type, then a zero byte and a text for the vocabulary of these pieces.

use std::collections::HashSet;
use std::hint::black_box;

use carat_text::{ControlText, GgufVocabulary, Special, StreamDecoder, Tokenizer};

/// Reads `bytes`; panics when the tokenizer promises what it does not keep.
pub(crate) fn exercise(bytes: &[u8]) {
    let Some((&form, rest)) = bytes.split_first() else {
        return;
    };
    let (tokenizer, text) = match form {
        b'j' => (
            Tokenizer::from_tokenizer_json(rest),
            "Hello<bos>, \u{2581}\u{e9}\n\n\t \u{1f600}".into(),
        ),
        b'm' => (
            Tokenizer::from_sentencepiece(rest),
            "ab<eos>  b\u{4e2d}a\u{0}".into(),
        ),
        _ => {
            let at = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
            let (pieces, text) = rest.split_at(at);
            let text = text.strip_prefix(&[0]).unwrap_or(text);
            (
                from_pieces(pieces, form),
                String::from_utf8_lossy(text).into_owned(),
            )
        }
    };
    match tokenizer {
        Ok(tokenizer) => check(&tokenizer, &text),
        Err(error) => {
            black_box(error.to_string());
        }
    }
}

/// A vocabulary with all bytes, a blank and the pieces of the input; `form` decides how scores fall.
fn from_pieces(lines: &[u8], form: u8) -> Result<Tokenizer, carat_text::Error> {
    let bytes: Vec<String> = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut pieces: Vec<&[u8]> = bytes.iter().map(String::as_bytes).collect();
    let mut types = vec![6; pieces.len()];
    pieces.push("\u{2581}".as_bytes());
    types.push(1);
    let mut seen: HashSet<&[u8]> = pieces.iter().copied().collect();
    for line in lines.split(|&byte| byte == b'\n').take(2000) {
        let Some((&digit, piece)) = line.split_first() else {
            continue;
        };
        if seen.insert(piece) {
            pieces.push(piece);
            types.push(match digit {
                b'2'..=b'5' => i32::from(digit - b'0'),
                _ => 1,
            });
        }
    }
    let step = usize::from(form % 4) + 1;
    let scores: Vec<f32> = (0..pieces.len()).map(|i| -((i / step) as f32)).collect();
    Tokenizer::from_gguf(GgufVocabulary {
        tokens: Box::new(pieces.into_iter()),
        scores: &scores,
        token_types: &types,
        merges: None,
        bos: None,
        eos: None,
        unk: None,
        pad: None,
        eot: None,
        add_bos: true,
        add_space_prefix: false,
    })
}

fn check(tokenizer: &Tokenizer, text: &str) {
    for special in [Special::Parse, Special::AsText] {
        let ids = tokenizer.encode(text, special);
        assert_eq!(
            ids,
            tokenizer.encode(text, special),
            "the second time, stretches are remembered"
        );
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.len()));
        let control = ids.iter().any(|&id| tokenizer.is_control(id));
        assert!(
            special == Special::Parse || !control,
            "plain text has no control tokens"
        );
        let decoded = tokenizer.decode(&ids, ControlText::Show);
        // Without a piece for the blank, its visible form remains.
        assert_eq!(decoded.replace('\u{2581}', " "), text.replace('\u{2581}', " "));
        let mut decoder = StreamDecoder::new(ControlText::Show);
        let mut streamed = String::new();
        for &id in &ids {
            streamed += decoder.push(tokenizer, id);
        }
        streamed += decoder.finish();
        assert_eq!(streamed, decoded);
    }
    // Any ids at all, in an order no text gives.
    let ids: Vec<u32> = text.bytes().map(|byte| u32::from(byte) * 3).collect();
    let mut decoder = StreamDecoder::new(ControlText::Hide);
    for &id in &ids {
        black_box(decoder.push(tokenizer, id).len());
    }
    black_box(decoder.finish().len());
    black_box(tokenizer.decode(&ids, ControlText::Hide));
}
