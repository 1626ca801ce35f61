//! The vocabulary of a `tokenizer.json`, as GGUF files keep it: pieces with scores and kinds.
//!
//! `tokenizer.json` ranks pairs in a list of merges, GGUF ranks pieces by score. In Gemma's vocabulary the two
//! agree: pieces are numbered in the order in which training made them, so the score of an ordinary piece is
//! its distance from the first one, negated. That is checked against the merges; where it does not hold, the
//! file is refused. (Single characters, which no merge makes and whose scores nothing looks at, come out 31
//! higher than in the published files.) (Folders of Gemma also have a `tokenizer.model`; it says the same and is not needed.)

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use carat_format::read_limited;
use serde::Deserialize;

use super::ConvertError;
use crate::Error;

/// Largest `tokenizer.json` that is read, in bytes; Gemma's has 33 MB.
const MAX_BYTES: u64 = 256 << 20;

/// Kinds of pieces, by their GGUF ids.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Score of pieces that are matched as a whole and never merged.
const SCORE_OF_ADDED: f32 = -1000.0;
/// Score of ids without a piece.
const SCORE_OF_UNUSED: f32 = -10_000.0;

/// A vocabulary; the three lists are as long as each other.
pub(super) struct Vocabulary {
    path: PathBuf,
    pub(super) pieces: Vec<String>,
    pub(super) scores: Vec<f32>,
    pub(super) kinds: Vec<i32>,
    /// Tokens whose id is no row of the embedding.
    pub(super) n_dropped: usize,
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model<'a> {
    vocab: HashMap<String, u32>,
    #[serde(borrow)]
    merges: Vec<Merge<'a>>,
}

/// Newer files have pairs, older ones a text with a blank between.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge<'a> {
    Pair(#[serde(borrow)] Cow<'a, str>, #[serde(borrow)] Cow<'a, str>),
    Text(#[serde(borrow)] Cow<'a, str>),
}

impl Vocabulary {
    /// Reads the folder's `tokenizer.json`; `None` when there is none. Ids from `n_rows` on are dropped.
    pub(super) fn open(folder: &Path, n_rows: usize) -> Result<Option<Vocabulary>, ConvertError> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Ok(None);
        }
        let bytes = read_limited(&path, MAX_BYTES)?;
        Vocabulary::parse(&bytes, path, n_rows).map(Some)
    }

    fn parse(json: &[u8], path: PathBuf, n_rows: usize) -> Result<Vocabulary, ConvertError> {
        let file: File<'_> = serde_json::from_slice(json).map_err(|source| Error::Json {
            path: path.clone(),
            source,
        })?;
        let mut vocabulary = Vocabulary {
            path,
            pieces: vec![String::new(); n_rows],
            scores: vec![SCORE_OF_UNUSED; n_rows],
            kinds: vec![UNUSED; n_rows],
            n_dropped: 0,
        };
        vocabulary.place_plain(&file.model.vocab)?;
        vocabulary.place_added(&file.added_tokens);
        vocabulary.score()?;
        vocabulary.check_merges(&file.model)?;
        vocabulary.close_holes();
        Ok(vocabulary)
    }

    /// Puts the pieces at their ids.
    fn place_plain(&mut self, vocab: &HashMap<String, u32>) -> Result<(), ConvertError> {
        for (piece, &id) in vocab {
            let at = id as usize;
            let Some(place) = self.pieces.get_mut(at) else {
                self.n_dropped += 1;
                continue;
            };
            if self.kinds[at] != UNUSED {
                return Err(self.bad(&format!("two pieces have the id {id}")));
            }
            place.clone_from(piece);
            self.kinds[at] = if is_byte(piece) { BYTE } else { NORMAL };
        }
        Ok(())
    }

    /// Added tokens are listed a second time among the pieces, as a rule; here they get their kind.
    fn place_added(&mut self, added: &[AddedToken]) {
        for token in added {
            let at = token.id as usize;
            let Some(place) = self.pieces.get_mut(at) else {
                // Not among the pieces, which are counted already.
                self.n_dropped += 1;
                continue;
            };
            place.clone_from(&token.content);
            self.kinds[at] = if token.special { CONTROL } else { USER_DEFINED };
        }
    }

    fn score(&mut self) -> Result<(), ConvertError> {
        let Some(first) = self.kinds.iter().position(|kind| *kind == NORMAL) else {
            return Err(self.bad("it has no ordinary pieces"));
        };
        for (at, (score, kind)) in self.scores.iter_mut().zip(&self.kinds).enumerate() {
            *score = match *kind {
                NORMAL => -((at - first) as f32),
                BYTE => 0.0,
                UNUSED => SCORE_OF_UNUSED,
                _ => SCORE_OF_ADDED,
            };
        }
        Ok(())
    }

    /// Earlier merges must make pieces of lower ids, otherwise scores by id would merge in another order.
    fn check_merges(&self, model: &Model<'_>) -> Result<(), ConvertError> {
        let mut last = 0;
        let mut merged = String::new();
        for merge in &model.merges {
            merged.clear();
            match merge {
                Merge::Pair(left, right) => merged.extend([left.as_ref(), right.as_ref()]),
                Merge::Text(text) => merged.extend(text.split(' ')),
            }
            let Some(&id) = model.vocab.get(&merged) else {
                return Err(self.bad("a merge makes a piece that is not in the vocabulary"));
            };
            if self.kinds.get(id as usize) != Some(&NORMAL) {
                continue;
            }
            if id < last {
                return Err(self.bad("its merges are not in the order of its ids, as Gemma's are"));
            }
            last = id;
        }
        Ok(())
    }

    /// Names ids without a piece as other converters do, and cuts them off at the end.
    fn close_holes(&mut self) {
        let len = self
            .kinds
            .iter()
            .rposition(|kind| *kind != UNUSED)
            .map_or(0, |last| last + 1);
        self.pieces.truncate(len);
        self.scores.truncate(len);
        self.kinds.truncate(len);
        for (at, (piece, kind)) in self.pieces.iter_mut().zip(&self.kinds).enumerate() {
            if *kind == UNUSED {
                *piece = format!("[PAD{at}]");
            }
        }
    }

    /// The id of a piece.
    pub(super) fn id_of(&self, piece: &str) -> Option<u32> {
        self.pieces
            .iter()
            .position(|p| p == piece)
            .and_then(|at| u32::try_from(at).ok())
    }

    /// An error about this file.
    pub(super) fn bad(&self, reason: &str) -> ConvertError {
        ConvertError::Vocabulary {
            path: self.path.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// `<0x00>` to `<0xFF>`.
fn is_byte(piece: &str) -> bool {
    let hex = piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(merges: &str, n_rows: usize) -> Result<Vocabulary, ConvertError> {
        let json = format!(
            r#"{{"added_tokens": [{{"id": 0, "content": "<bos>", "special": true}}, {{"id": 1, "content": "\n\n"}},
                                 {{"id": 9, "content": "<image>", "special": true}}],
                "model": {{"vocab": {{"<bos>": 0, "\n\n": 1, "<0x0A>": 2, "ab": 3, "abc": 4, "a": 5, "b": 6, "c": 7}},
                          "merges": [{merges}]}}}}"#
        );
        Vocabulary::parse(json.as_bytes(), "tokenizer.json".into(), n_rows)
    }

    #[test]
    fn pieces_get_scores_and_kinds() {
        for merges in [r#"["a", "b"], ["ab", "c"]"#, r#""a b", "ab c""#] {
            let vocabulary = parse(merges, 9).unwrap();
            assert_eq!(
                vocabulary.pieces,
                ["<bos>", "\n\n", "<0x0A>", "ab", "abc", "a", "b", "c"]
            );
            assert_eq!(
                vocabulary.scores,
                [-1000.0, -1000.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0]
            );
            assert_eq!(vocabulary.kinds, [3, 4, 6, 1, 1, 1, 1, 1]);
            assert_eq!(vocabulary.n_dropped, 1);
            assert_eq!(vocabulary.id_of("abc"), Some(4));
        }
    }

    #[test]
    fn holes_below_an_added_token_are_named() {
        let vocabulary = parse(r#"["a", "b"]"#, 12).unwrap();
        assert_eq!(vocabulary.pieces[8..], ["[PAD8]", "<image>"]);
        assert_eq!(vocabulary.kinds[8..], [5, 3]);
    }

    #[test]
    fn merges_in_another_order_are_refused() {
        let text = parse(r#"["ab", "c"], ["a", "b"]"#, 9).err().unwrap().to_string();
        assert!(
            text.contains("tokenizer.json") && text.contains("not in the order"),
            "{text}"
        );
        let text = parse(r#"["b", "c"]"#, 9).err().unwrap().to_string();
        assert!(text.contains("not in the vocabulary"), "{text}");
    }
}
