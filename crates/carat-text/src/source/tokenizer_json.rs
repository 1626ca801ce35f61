//! A tokenizer from Hugging Face's `tokenizer.json`.
//!
//! The file of a Gemma model has 33 MB and half a million merge rules. It is read in one pass without a tree of
//! values: pieces go into an arena, and each rule goes straight into the table of pairs, because files list the rules
//! last. A part that comes earlier than what it depends on is skipped and read again at the end, so that the order
//! of keys changes the time only. The parts that steer the pipeline (normalizer, pre-tokenizer, flags of added tokens)
//! are small and are checked against what Gemma uses; anything else would change ids and is refused.

use std::borrow::Cow;
use std::fmt;
use std::sync::mpsc::sync_channel;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::merges::{Merges, PairTable, RuleBatch};
use crate::tokenizer::{SpecialIds, Tokenizer};
use crate::vocabulary::{Builder, Vocabulary, byte_of, push_with_plain_blanks, with_plain_blanks};

/// Ids without a piece that are accepted beyond the number of pieces.
const HOLE_LIMIT: usize = 4096;

impl Tokenizer {
    /// A tokenizer from the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// Broken JSON, defects of the vocabulary, and settings that Gemma tokenizers do not use.
    pub fn from_tokenizer_json(bytes: &[u8]) -> Result<Self> {
        let mut refusal = None;
        let read = read_file(bytes, &mut refusal);
        // A refusal ends the reading with an error of JSON's kind, which knows less.
        if let Some(error) = refusal {
            return Err(error);
        }
        let (vocabulary, merges) = read.map_err(Error::Json)?;
        Self::new(vocabulary, merges, SpecialIds::default(), true)
    }
}

/// The vocabulary and merges of a whole file. What is wrong with its content, not its JSON, is left in `refusal`.
fn read_file(bytes: &[u8], refusal: &mut Option<Error>) -> Result<(Vocabulary, Merges), serde_json::Error> {
    // Checked at once: a check per string takes several times as long.
    let text = std::str::from_utf8(bytes).map_err(serde::de::Error::custom)?;
    let mut json = serde_json::Deserializer::from_str(text);
    let file = json.deserialize_map(FileVisitor { refusal })?;
    json.end()?;
    Ok(file)
}

/// Keeps `error` for the caller and ends the reading.
fn refuse<E: serde::de::Error>(refusal: &mut Option<Error>, error: Error) -> E {
    let stop = E::custom(&error);
    *refusal = Some(error);
    stop
}

/// Reads the file's outermost map.
struct FileVisitor<'r> {
    refusal: &'r mut Option<Error>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum FileKey {
    AddedTokens,
    Normalizer,
    PreTokenizer,
    Model,
    #[serde(other)]
    Other,
}

impl<'de> Visitor<'de> for FileVisitor<'_> {
    type Value = (Vocabulary, Merges);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the map of a tokenizer.json")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let refusal = self.refusal;
        let mut added_tokens: Option<Vec<AddedToken>> = None;
        let mut normalizer: Option<Step<'de>> = None;
        let mut pre_tokenizer: Option<Step<'de>> = None;
        let mut model = None;
        let mut skipped_model: Option<&RawValue> = None;
        while let Some(key) = map.next_key()? {
            match (key, &added_tokens) {
                (FileKey::AddedTokens, _) => added_tokens = Some(map.next_value()?),
                (FileKey::Normalizer, _) => normalizer = map.next_value()?,
                (FileKey::PreTokenizer, _) => pre_tokenizer = map.next_value()?,
                (FileKey::Model, Some(added_tokens)) => {
                    model = Some(map.next_value_seed(ModelSeed {
                        added_tokens,
                        refusal,
                    })?);
                }
                (FileKey::Model, None) => skipped_model = Some(map.next_value()?),
                (FileKey::Other, _) => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        check_normalizer(normalizer.as_ref()).map_err(|error| refuse(refusal, error))?;
        check_pre_tokenizer(pre_tokenizer.as_ref()).map_err(|error| refuse(refusal, error))?;
        if let Some(skipped) = skipped_model {
            let added_tokens = added_tokens.as_deref().unwrap_or_default();
            let seed = ModelSeed {
                added_tokens,
                refusal,
            };
            model = Some(read_skipped(skipped, seed)?);
        }
        model.ok_or_else(|| serde::de::Error::missing_field("model"))
    }
}

/// Reads a part that was skipped, now that what it depends on is known.
fn read_skipped<'de, S, E>(skipped: &'de RawValue, seed: S) -> Result<S::Value, E>
where
    S: DeserializeSeed<'de>,
    E: serde::de::Error,
{
    seed.deserialize(&mut serde_json::Deserializer::from_str(skipped.get()))
        .map_err(E::custom)
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

/// Reads the map `model`.
struct ModelSeed<'s> {
    added_tokens: &'s [AddedToken],
    refusal: &'s mut Option<Error>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum ModelKey {
    Type,
    ByteFallback,
    IgnoreMerges,
    Dropout,
    ContinuingSubwordPrefix,
    EndOfWordSuffix,
    Vocab,
    Merges,
    #[serde(other)]
    Other,
}

impl<'de> DeserializeSeed<'de> for ModelSeed<'_> {
    type Value = (Vocabulary, Merges);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ModelSeed<'_> {
    type Value = (Vocabulary, Merges);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the map of a BPE model")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self {
            added_tokens,
            refusal,
        } = self;
        let mut settings = Settings::default();
        let mut entries: Option<Entries> = None;
        let mut built = None;
        let mut skipped_merges: Option<&RawValue> = None;
        while let Some(key) = map.next_key()? {
            match (key, &entries) {
                (ModelKey::Type, _) => settings.kind = map.next_value()?,
                (ModelKey::ByteFallback, _) => settings.byte_fallback = map.next_value()?,
                (ModelKey::IgnoreMerges, _) => settings.ignore_merges = map.next_value()?,
                (ModelKey::Dropout, _) => settings.dropout = map.next_value()?,
                (ModelKey::ContinuingSubwordPrefix, _) => settings.prefix = map.next_value()?,
                (ModelKey::EndOfWordSuffix, _) => settings.suffix = map.next_value()?,
                (ModelKey::Vocab, _) => entries = Some(map.next_value()?),
                (ModelKey::Merges, Some(entries)) => {
                    built = Some(map.next_value_seed(RulesSeed {
                        entries,
                        added_tokens,
                        refusal,
                    })?);
                }
                (ModelKey::Merges, None) => skipped_merges = Some(map.next_value()?),
                (ModelKey::Other, _) => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        settings.check().map_err(|error| refuse(refusal, error))?;
        let entries = entries.ok_or_else(|| serde::de::Error::missing_field("vocab"))?;
        if let Some(skipped) = skipped_merges {
            let seed = RulesSeed {
                entries: &entries,
                added_tokens,
                refusal,
            };
            built = Some(read_skipped(skipped, seed)?);
        }
        built.ok_or_else(|| serde::de::Error::missing_field("merges"))
    }
}

/// What the model says beside its pieces and rules.
#[derive(Default)]
struct Settings<'a> {
    kind: Option<Cow<'a, str>>,
    byte_fallback: bool,
    ignore_merges: bool,
    dropout: Option<f32>,
    prefix: Option<Cow<'a, str>>,
    suffix: Option<Cow<'a, str>>,
}

impl Settings<'_> {
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
            (is_filled(&self.prefix), "a prefix of inner pieces"),
            (is_filled(&self.suffix), "a suffix of last pieces"),
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
fn vocabulary_of(entries: &Entries, added_tokens: &[AddedToken]) -> Result<Vocabulary> {
    let n = entries.ids.len() + added_tokens.len();
    let mut slots: Vec<Slot<'_>> = Vec::with_capacity(entries.ids.len());
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
    for token in added_tokens {
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

/// The map `vocab`: pieces in one arena, in file order.
#[derive(Default)]
struct Entries {
    text: String,
    ends: Vec<u32>,
    ids: Vec<u32>,
}

impl Entries {
    fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let pieces = starts
            .zip(&self.ends)
            .map(|(start, &end)| &self.text[start as usize..end as usize]);
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
                    let end = u32::try_from(entries.text.len())
                        .map_err(|_| serde::de::Error::custom("the pieces have more than 4 GiB"))?;
                    entries.ends.push(end);
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// Reads the list `merges`; with it the vocabulary is built, whose pieces have been read.
struct RulesSeed<'s> {
    entries: &'s Entries,
    added_tokens: &'s [AddedToken],
    refusal: &'s mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for RulesSeed<'_> {
    type Value = (Vocabulary, Merges);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for RulesSeed<'_> {
    type Value = (Vocabulary, Merges);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merge rules")
    }

    /// Reads the rules while a second thread builds the vocabulary and looks up their pieces, which takes as long.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let Self {
            entries,
            added_tokens,
            refusal,
        } = self;
        std::thread::scope(|scope| {
            let (to_table, batches) = sync_channel(BATCHES_WAITING);
            let built = scope.spawn(move || {
                let vocabulary = vocabulary_of(entries, added_tokens)?;
                // Gemma's files have about two rules for each piece.
                let table = PairTable::from_batches(&vocabulary, vocabulary.len() * 2, batches)?;
                Ok((vocabulary, Merges::ByPair(table)))
            });
            let mut batch = RuleBatch::default();
            let mut is_taken = true;
            while is_taken && list.next_element_seed(PushRule(&mut batch))?.is_some() {
                if batch.is_full() {
                    // Nobody takes batches any more once the vocabulary or a rule was refused.
                    is_taken = to_table.send(std::mem::take(&mut batch)).is_ok();
                }
            }
            let _ = to_table.send(batch);
            drop(to_table);
            let built = built
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            built.map_err(|error| refuse(refusal, error))
        })
    }
}

/// Batches of rules that may wait for the vocabulary: some 4 MiB.
const BATCHES_WAITING: usize = 512;

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

/// Appends a string with plain blanks.
struct PushPlain<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for PushPlain<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for PushPlain<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        push_with_plain_blanks(self.0, text);
        Ok(())
    }
}

/// Appends a rule, written as `"left right"` or as `["left", "right"]`.
struct PushRule<'a>(&'a mut RuleBatch);

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
        push_with_plain_blanks(&mut self.0.text, left);
        let middle = self.0.text.len();
        push_with_plain_blanks(&mut self.0.text, right);
        self.0.cuts.push((middle, self.0.text.len()));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rule: A) -> Result<(), A::Error> {
        let short = || serde::de::Error::custom("a merge rule without two pieces");
        rule.next_element_seed(PushPlain(&mut self.0.text))?
            .ok_or_else(short)?;
        let middle = self.0.text.len();
        rule.next_element_seed(PushPlain(&mut self.0.text))?
            .ok_or_else(short)?;
        if rule.next_element::<IgnoredAny>()?.is_some() {
            return Err(serde::de::Error::custom("a merge rule with more than two pieces"));
        }
        self.0.cuts.push((middle, self.0.text.len()));
        Ok(())
    }
}
