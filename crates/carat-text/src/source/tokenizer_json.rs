//! A tokenizer from Hugging Face's `tokenizer.json`.
//!
//! The file of a Gemma model has 33 MB and half a million merge rules. It is read in one pass into arenas, without
//! a tree of values. The parts that steer the pipeline (normalizer, pre-tokenizer, flags of added tokens) are small
//! and are checked against what Gemma uses; anything else would change ids and is refused.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::merges::{Merges, PairTable};
use crate::tokenizer::{SpecialIds, Tokenizer};
use crate::vocabulary::{Builder, Vocabulary, byte_of, with_plain_blanks};

/// Ids without a piece that are accepted beyond the number of pieces.
const HOLE_LIMIT: usize = 4096;

impl Tokenizer {
    /// A tokenizer from the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// Broken JSON, defects of the vocabulary, and settings that Gemma tokenizers do not use.
    pub fn from_tokenizer_json(bytes: &[u8]) -> Result<Self> {
        let file: File<'_> = serde_json::from_slice(bytes).map_err(Error::Json)?;
        check_normalizer(file.normalizer.as_ref())?;
        check_pre_tokenizer(file.pre_tokenizer.as_ref())?;
        file.model.check()?;
        let vocabulary = vocabulary_of(&file)?;
        let merges = merges_of(&vocabulary, &file.model.merges)?;
        Self::new(vocabulary, merges, SpecialIds::default(), true)
    }
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default, borrow)]
    normalizer: Option<Step<'a>>,
    #[serde(default, borrow)]
    pre_tokenizer: Option<Step<'a>>,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

/// A normalizer or pre-tokenizer.
#[derive(Deserialize)]
struct Step<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default, borrow)]
    pattern: Option<Pattern<'a>>,
    #[serde(default, borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    normalizers: Vec<Step<'a>>,
    #[serde(default, borrow)]
    pretokenizers: Vec<Step<'a>>,
}

#[derive(Deserialize)]
enum Pattern<'a> {
    String(#[serde(borrow)] Cow<'a, str>),
    Regex(#[serde(borrow)] Cow<'a, str>),
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(rename = "type", default, borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default, borrow)]
    continuing_subword_prefix: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    end_of_word_suffix: Option<Cow<'a, str>>,
    vocab: Entries,
    merges: Rules,
}

impl Model<'_> {
    fn check(&self) -> Result<()> {
        let is_filled = |text: &Option<Cow<'_, str>>| text.as_ref().is_some_and(|text| !text.is_empty());
        let refused = [
            (
                self.kind.as_ref().is_some_and(|kind| kind != "BPE"),
                "a model other than BPE",
            ),
            (!self.byte_fallback, "no byte pieces for unknown characters"),
            (self.ignore_merges, "`ignore_merges`"),
            (
                self.dropout.is_some_and(|dropout| dropout != 0.0),
                "random dropout of merges",
            ),
            (
                is_filled(&self.continuing_subword_prefix),
                "a prefix of inner pieces",
            ),
            (is_filled(&self.end_of_word_suffix), "a suffix of last pieces"),
        ];
        match refused.into_iter().find(|(is_set, _)| *is_set) {
            Some((_, what)) => Err(Error::Unsupported { what: what.into() }),
            None => Ok(()),
        }
    }
}

/// Gemma's only normalization writes a blank as `▁`.
fn check_normalizer(step: Option<&Step<'_>>) -> Result<()> {
    let is_blank = |step: &Step<'_>| {
        step.kind == "Replace"
            && matches!(&step.pattern, Some(Pattern::String(pattern)) if pattern == " ")
            && step.content.as_deref() == Some("\u{2581}")
    };
    let is_known = step.is_some_and(|step| match &*step.kind {
        "Sequence" => matches!(step.normalizers.as_slice(), [only] if is_blank(only)),
        _ => is_blank(step),
    });
    if is_known {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "a normalizer other than the replacement of blanks by U+2581".into(),
    })
}

/// Gemma 3 splits at blanks, of which the normalizer has left none; Gemma 4 splits around runs of newlines, which
/// no piece spans anyway (`borders`).
fn check_pre_tokenizer(step: Option<&Step<'_>>) -> Result<()> {
    let Some(step) = step else { return Ok(()) };
    let is_harmless = |step: &Step<'_>| {
        step.kind == "Split"
            && match &step.pattern {
                Some(Pattern::String(pattern)) => pattern == " " || pattern == "\n",
                Some(Pattern::Regex(pattern)) => is_newline_split(pattern),
                None => false,
            }
    };
    let is_known = match &*step.kind {
        "Sequence" => step.pretokenizers.iter().all(is_harmless),
        _ => is_harmless(step),
    };
    if is_known {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "a pre-tokenizer other than a split at blanks or newlines".into(),
    })
}

/// Whether a regular expression only tells runs of newlines from other text.
fn is_newline_split(pattern: &str) -> bool {
    let unwrapped = pattern.trim_start_matches('(').trim_end_matches(')');
    unwrapped.split('|').all(|part| {
        let part = part.trim_start_matches("(?:").trim_matches(['(', ')']);
        matches!(part, "\\n+" | "\n+" | "[\\n]+" | "[\n]+" | "[^\\n]+" | "[^\n]+")
    })
}

/// The pieces in id order, with their classes.
fn vocabulary_of(file: &File<'_>) -> Result<Vocabulary> {
    let entries = &file.model.vocab;
    let n = entries.ids.len() + file.added_tokens.len();
    let mut slots: Vec<Slot<'_>> = Vec::new();
    let mut place = |id: u32, piece, kind| {
        let at = id as usize;
        if at >= n.saturating_add(HOLE_LIMIT) {
            return Err(Error::SparseIds { id, pieces: n });
        }
        if slots.len() <= at {
            slots.resize(
                at + 1,
                Slot {
                    piece: "",
                    kind: Kind::Unused,
                },
            );
        }
        let slot = &mut slots[at];
        if slot.kind != Kind::Unused && slot.piece != piece && !is_same_piece(slot.piece, piece) {
            return Err(Error::IdTwice {
                id,
                first: slot.piece.into(),
                second: piece.into(),
            });
        }
        *slot = Slot { piece, kind };
        Ok(())
    };
    for (piece, id) in entries.iter() {
        place(
            id,
            piece,
            if byte_of(piece).is_some() {
                Kind::Byte
            } else {
                Kind::Normal
            },
        )?;
    }
    for token in &file.added_tokens {
        if token.single_word || token.lstrip || token.rstrip {
            let what = format!("stripping around the added token `{}`", token.content);
            return Err(Error::Unsupported { what });
        }
        place(
            token.id,
            &token.content,
            if token.special {
                Kind::Control
            } else {
                Kind::UserDefined
            },
        )?;
    }
    let mut builder = Builder::with_capacity(slots.len());
    for slot in &slots {
        builder.push(slot.piece.as_bytes(), slot.kind)?;
    }
    builder.finish()
}

#[derive(Clone, Copy)]
struct Slot<'a> {
    piece: &'a str,
    kind: Kind,
}

/// Whether two spellings differ only in how blanks are written.
fn is_same_piece(a: &str, b: &str) -> bool {
    with_plain_blanks(a) == with_plain_blanks(b)
}

fn merges_of(vocabulary: &Vocabulary, rules: &Rules) -> Result<Merges> {
    let mut table = PairTable::with_capacity(rules.ends.len());
    for (left, right) in rules.iter() {
        table.push(vocabulary, &with_plain_blanks(left), &with_plain_blanks(right))?;
    }
    Ok(Merges::ByPair(table))
}

/// The map `vocab`: pieces in one arena, in file order.
#[derive(Default)]
struct Entries {
    text: String,
    ends: Vec<usize>,
    ids: Vec<u32>,
}

impl Entries {
    fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let pieces = starts.zip(&self.ends).map(|(start, &end)| &self.text[start..end]);
        pieces.zip(self.ids.iter().copied())
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from piece to id")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries::default();
                while map.next_key_seed(PushText(&mut entries.text))?.is_some() {
                    entries.ids.push(map.next_value()?);
                    entries.ends.push(entries.text.len());
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// The list `merges`: both sides of each rule in one arena.
#[derive(Default)]
struct Rules {
    text: String,
    /// End of the left and of the right side.
    ends: Vec<(usize, usize)>,
}

impl Rules {
    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|&(_, end)| end));
        starts
            .zip(&self.ends)
            .map(|(start, &(middle, end))| (&self.text[start..middle], &self.text[middle..end]))
    }
}

impl<'de> Deserialize<'de> for Rules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RulesVisitor;
        impl<'de> Visitor<'de> for RulesVisitor {
            type Value = Rules;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of merge rules")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Rules, A::Error> {
                let mut rules = Rules::default();
                while list.next_element_seed(PushRule(&mut rules))?.is_some() {}
                Ok(rules)
            }
        }
        deserializer.deserialize_seq(RulesVisitor)
    }
}

/// Appends a string to an arena.
struct PushText<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for PushText<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for PushText<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.0.push_str(text);
        Ok(())
    }
}

/// Appends a rule, written as `"left right"` or as `["left", "right"]`.
struct PushRule<'a>(&'a mut Rules);

impl<'de> DeserializeSeed<'de> for PushRule<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PushRule<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge rule: two pieces")
    }

    fn visit_str<E: serde::de::Error>(self, rule: &str) -> Result<(), E> {
        let (left, right) = rule
            .split_once(' ')
            .ok_or_else(|| E::custom("a merge rule without a blank"))?;
        self.0.text.push_str(left);
        let middle = self.0.text.len();
        self.0.text.push_str(right);
        self.0.ends.push((middle, self.0.text.len()));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rule: A) -> Result<(), A::Error> {
        let short = || serde::de::Error::custom("a merge rule without two pieces");
        rule.next_element_seed(PushText(&mut self.0.text))?
            .ok_or_else(short)?;
        let middle = self.0.text.len();
        rule.next_element_seed(PushText(&mut self.0.text))?
            .ok_or_else(short)?;
        if rule.next_element::<IgnoredAny>()?.is_some() {
            return Err(serde::de::Error::custom("a merge rule with more than two pieces"));
        }
        self.0.ends.push((middle, self.0.text.len()));
        Ok(())
    }
}
