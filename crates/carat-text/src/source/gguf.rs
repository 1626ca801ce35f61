//! A tokenizer from the metadata of a GGUF file (`tokenizer.ggml.*`).
//!
//! Two kinds exist: `llama` (Gemma 3), with a score per piece, and `gemma4`, with a list of merges. Which one it is shows
//! by what the file has. The caller has read the arrays; nothing about GGUF itself is known here.

use std::fmt;

use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::merges::{Merges, PairTable, RuleBatch};
use crate::tokenizer::{SpecialIds, Tokenizer};
use crate::vocabulary::{Builder, Vocabulary, push_with_plain_blanks};

/// The `tokenizer.ggml.*` metadata of a GGUF file.
pub struct GgufVocabulary<'a> {
    /// `tokens`: the pieces in id order, as bytes.
    pub tokens: Box<dyn Iterator<Item = &'a [u8]> + 'a>,
    /// `scores`: one per piece; empty when the file has none.
    pub scores: &'a [f32],
    /// `token_type`: one per piece (1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte).
    pub token_types: &'a [i32],
    /// `merges`: rules `left right` in order; when present they decide, and scores are not looked at.
    pub merges: Option<Box<dyn Iterator<Item = &'a [u8]> + 'a>>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `eot_token_id`.
    pub eot: Option<u32>,
    /// `add_bos_token`; Gemma's default is true.
    pub add_bos: bool,
    /// `add_space_prefix`; Gemma files say false, anything else is refused.
    pub add_space_prefix: bool,
}

impl fmt::Debug for GgufVocabulary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GgufVocabulary")
            .field("pieces", &self.token_types.len())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// A tokenizer from GGUF metadata.
    ///
    /// # Errors
    /// Any defect of the arrays: pieces that are not text, occur twice or lack a byte, arrays of different
    /// length, unknown types, scores that are not numbers, rules about unknown pieces, ids out of range.
    pub fn from_gguf(source: GgufVocabulary<'_>) -> Result<Self> {
        if source.add_space_prefix {
            return Err(Error::Unsupported {
                what: "a blank in front of every text (`add_space_prefix`)".into(),
            });
        }
        let mut builder = Builder::with_capacity(source.token_types.len());
        let mut types = source.token_types.iter();
        for piece in source.tokens {
            let id = builder.len();
            let Some(&number) = types.next() else {
                return Err(Error::LengthMismatch {
                    field: "token_type",
                    found: id,
                    expected: id + 1,
                });
            };
            let number = i64::from(number);
            let kind = Kind::from_number(number).ok_or(Error::PieceType { id, found: number })?;
            builder.push(piece, kind)?;
        }
        let n = builder.len();
        if types.len() > 0 {
            return Err(Error::LengthMismatch {
                field: "token_type",
                found: n + types.len(),
                expected: n,
            });
        }
        let vocabulary = builder.finish()?;
        let merges = match source.merges {
            Some(rules) => merges_from_rules(&vocabulary, rules)?,
            None if source.scores.is_empty() => return Err(Error::NoMergeOrder),
            None if source.scores.len() != n => {
                return Err(Error::LengthMismatch {
                    field: "scores",
                    found: source.scores.len(),
                    expected: n,
                });
            }
            None => Merges::from_scores(source.scores)?,
        };
        let special = SpecialIds {
            bos: source.bos,
            eos: source.eos,
            unk: source.unk,
            pad: source.pad,
            end_of_turn: source.eot,
        };
        Self::new(vocabulary, merges, special, source.add_bos)
    }
}

/// Rules written as `left right`.
fn merges_from_rules<'a>(
    vocabulary: &Vocabulary,
    rules: Box<dyn Iterator<Item = &'a [u8]> + 'a>,
) -> Result<Merges> {
    let n = rules.size_hint().0;
    let mut batch = RuleBatch::default();
    for (index, rule) in rules.enumerate() {
        let broken = || Error::MergeRule {
            index,
            rule: String::from_utf8_lossy(rule).into_owned(),
        };
        let rule = std::str::from_utf8(rule).map_err(|_| broken())?;
        let (left, right) = rule.split_once(' ').ok_or_else(broken)?;
        push_with_plain_blanks(&mut batch.text, left);
        let middle = batch.text.len();
        push_with_plain_blanks(&mut batch.text, right);
        batch.cuts.push((middle, batch.text.len()));
    }
    Ok(Merges::ByPair(PairTable::from_batches(vocabulary, n, [batch])?))
}
