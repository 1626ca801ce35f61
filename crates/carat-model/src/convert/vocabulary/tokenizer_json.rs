//! `tokenizer.json`: the pieces by id, the added tokens, and the merges.
//!
//! It ranks pairs in a list of merges, GGUF ranks pieces by score. In Gemma's vocabulary the two agree, which is
//! checked: merges must make pieces of falling scores. Without `tokenizer.model` the scores are the distances of
//! ordinary pieces from the first one, negated. (Single characters, which no merge makes and whose scores nothing
//! looks at, come out 31 higher than in the original.)

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use carat_text::SentencePieceModel;
use serde::Deserialize;

use super::added::AddedToken;
use super::{BYTE, ConvertError, NORMAL, Vocabulary, with_plain_blanks};
use crate::Error;

/// What is read of the file.
#[derive(Deserialize)]
pub(super) struct TokenizerJson<'a> {
    #[serde(default)]
    pub(super) added_tokens: Vec<AddedToken>,
    #[serde(borrow)]
    model: Model<'a>,
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

impl<'a> TokenizerJson<'a> {
    /// Reads the bytes of the file at `path`.
    pub(super) fn parse(json: &'a [u8], path: &Path) -> Result<Self, ConvertError> {
        serde_json::from_slice(json).map_err(|source| {
            let path = path.to_owned();
            Error::Json { path, source }.into()
        })
    }

    /// Puts the pieces at their ids, without scores.
    pub(super) fn place(&self, vocabulary: &mut Vocabulary) -> Result<(), String> {
        let mut taken = HashSet::with_capacity(self.model.vocab.len());
        for (piece, id) in &self.model.vocab {
            if !taken.insert(id) {
                return Err(format!("two pieces have the id {id}"));
            }
            let kind = if byte_of(piece).is_some() { BYTE } else { NORMAL };
            vocabulary.place(*id as usize, piece, 0.0, kind);
        }
        Ok(())
    }

    /// Whether `model` has these pieces at these ids; otherwise where it differs. Added tokens may be missing there,
    /// or stand in the place of others.
    pub(super) fn check_same_pieces(&self, model: &SentencePieceModel<'_>) -> Result<(), String> {
        let added: HashSet<u32> = self.added_tokens.iter().map(|token| token.id).collect();
        let is_in_model = |piece: &str, id: u32| {
            let original = model.pieces.get(id as usize);
            added.contains(&id)
                || original.is_some_and(|original| is_same(piece, original, model.token_types[id as usize]))
        };
        let others = self
            .model
            .vocab
            .iter()
            .filter(|(piece, id)| !is_in_model(piece, **id));
        // The first, since the map has no order that a user would see twice.
        if let Some((piece, id)) = others.min_by_key(|(_, id)| **id) {
            return Err(format!("in tokenizer.json the piece {id} is `{piece}`"));
        }
        let lists = model.pieces.iter().zip(&model.token_types).enumerate();
        for (at, (piece, _)) in lists.filter(|(_, (_, kind))| **kind == NORMAL) {
            let id = self.model.vocab.get(*piece);
            let is_added = u32::try_from(at).is_ok_and(|at| added.contains(&at));
            if !is_added && id.is_none_or(|id| *id as usize != at) {
                return Err(format!("its piece {at}, `{piece}`, is not in tokenizer.json"));
            }
        }
        Ok(())
    }

    /// The merges as GGUF has them, `left right`.
    pub(super) fn merges(&self) -> Vec<String> {
        let text = |merge: &Merge<'_>| match merge {
            Merge::Pair(left, right) => format!("{left} {right}"),
            Merge::Text(text) => text.clone().into_owned(),
        };
        self.model.merges.iter().map(text).collect()
    }

    /// Earlier merges must make pieces of higher scores, otherwise scores would merge in another order.
    pub(super) fn check_merges(&self, vocabulary: &Vocabulary) -> Result<(), String> {
        let mut last = f32::INFINITY;
        let mut merged = String::new();
        for merge in &self.model.merges {
            merged.clear();
            match merge {
                Merge::Pair(left, right) => merged.extend([left.as_ref(), right.as_ref()]),
                Merge::Text(text) => merged.extend(text.split(' ')),
            }
            let Some(&id) = self.model.vocab.get(&merged) else {
                return Err(format!(
                    "a merge makes `{merged}`, which is not in the vocabulary"
                ));
            };
            let at = id as usize;
            if vocabulary.kinds.get(at) != Some(&NORMAL) {
                continue;
            }
            let score = vocabulary.scores[at];
            if score > last {
                return Err(
                    "the merges of tokenizer.json are not in the order of scores, as Gemma's are".to_owned(),
                );
            }
            last = score;
        }
        Ok(())
    }
}

/// Whether a piece of `tokenizer.json` is the one that the original has at its id. Blanks are written in two ways, and
/// Hugging Face's converter puts the tab in the place of its byte.
fn is_same(piece: &str, original: &str, kind: i32) -> bool {
    let is_byte = || {
        let byte = byte_of(original).filter(|_| kind == BYTE);
        byte.is_some_and(|byte| byte.is_ascii() && piece.as_bytes() == [byte])
    };
    piece == original || with_plain_blanks(piece) == with_plain_blanks(original) || is_byte()
}

/// The byte of `<0x00>` to `<0xFF>`.
fn byte_of(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_hex = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    u8::from_str_radix(hex, 16).ok().filter(|_| is_hex)
}
