//! SentencePiece files (`tokenizer.model`), as a list of pieces and as a tokenizer.
//!
//! The file is a protobuf message. Only a few of its fields matter, so that it is read by a small reader of our own
//! that never goes past the slice, never nests deeper than the three levels it knows, and skips what it does not
//! know. Settings that would change ids and that Gemma does not use are refused instead of ignored.

use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::source::GgufVocabulary;
use crate::tokenizer::{SpecialIds, Tokenizer};
use crate::vocabulary::check_piece;

/// `trainer_spec.model_type` of byte-pair encoding.
const MODEL_TYPE_BPE: u64 = 2;

/// What a SentencePiece file says about each piece; the three lists are as long as each other.
#[derive(Debug)]
pub struct SentencePieceModel<'a> {
    /// The pieces in id order, as the file writes them (a blank is U+2581).
    pub pieces: Vec<&'a str>,
    /// Their scores, all of them numbers; the pair that makes the piece of the highest score merges first.
    pub scores: Vec<f32>,
    /// Their types in the numbers of GGUF (1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte).
    /// Gemma's files call most markers user defined; those that carat hides from readers are control here.
    pub token_types: Vec<i32>,
    special: SpecialIds,
}

impl<'a> SentencePieceModel<'a> {
    /// Reads the bytes of a SentencePiece file, usually `tokenizer.model`.
    ///
    /// # Errors
    /// Damaged protobuf, pieces that are too many, too long or not text, unknown types, scores that are not
    /// numbers, and settings that Gemma tokenizers do not use. What only shows when pieces are compared (one that
    /// occurs twice, a byte without a piece) is left to [`Tokenizer::from_sentencepiece`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut model = Self {
            pieces: Vec::new(),
            scores: Vec::new(),
            token_types: Vec::new(),
            special: SpecialIds::default(),
        };
        let mut trainer = Trainer::default();
        let mut normalizer = Normalizer::default();
        let mut reader = Reader::new(bytes);
        while let Some((field, value)) = reader.next_field()? {
            match (field, value) {
                (1, Value::Bytes(piece)) => model.push(piece)?,
                (2, Value::Bytes(spec)) => trainer.read(spec)?,
                (3, Value::Bytes(spec)) => normalizer.read(spec)?,
                _ => {}
            }
        }
        trainer.check()?;
        normalizer.check()?;
        model.special = trainer.special;
        Ok(model)
    }

    /// One `SentencePiece { piece = 1, score = 2, type = 3 }`.
    fn push(&mut self, mut reader: Reader<'a>) -> Result<()> {
        let id = self.pieces.len();
        let (mut piece, mut score, mut number) = (&[][..], 0.0_f32, 1);
        while let Some((field, value)) = reader.next_field()? {
            match (field, value) {
                (1, Value::Bytes(text)) => piece = text.rest,
                (2, Value::Fixed32(bits)) => score = f32::from_bits(bits),
                (3, Value::Varint(found)) => number = found,
                _ => {}
            }
        }
        let piece = check_piece(id, piece)?;
        let number = i64::try_from(number).unwrap_or(-1);
        let kind = Kind::from_number(number).ok_or(Error::PieceType { id, found: number })?;
        if score.is_nan() {
            return Err(Error::ScoreNotNumber { id });
        }
        self.pieces.push(piece);
        self.scores.push(score);
        self.token_types.push(kind.settled(piece).number());
        Ok(())
    }
}

impl Tokenizer {
    /// A tokenizer from the bytes of a SentencePiece file, usually `tokenizer.model`.
    ///
    /// # Errors
    /// Damaged protobuf, defects of the vocabulary, and settings that Gemma tokenizers do not use.
    pub fn from_sentencepiece(bytes: &[u8]) -> Result<Self> {
        let model = SentencePieceModel::parse(bytes)?;
        Self::from_gguf(GgufVocabulary {
            tokens: Box::new(model.pieces.iter().map(|piece| piece.as_bytes())),
            scores: &model.scores,
            token_types: &model.token_types,
            merges: None,
            bos: model.special.bos,
            eos: model.special.eos,
            unk: model.special.unk,
            pad: model.special.pad,
            eot: model.special.end_of_turn,
            add_bos: true,
            add_space_prefix: false,
        })
    }
}

/// What matters of `trainer_spec`; the defaults are the format's.
#[derive(Debug)]
struct Trainer {
    model_type: u64,
    byte_fallback: bool,
    special: SpecialIds,
}

impl Default for Trainer {
    fn default() -> Self {
        let special = SpecialIds {
            unk: Some(0),
            bos: Some(1),
            eos: Some(2),
            pad: None,
            end_of_turn: None,
        };
        Self {
            model_type: 1,
            byte_fallback: false,
            special,
        }
    }
}

impl Trainer {
    fn read(&mut self, mut reader: Reader<'_>) -> Result<()> {
        // Negative ids mean "none" and come as 64-bit two's complement.
        let id = |value: u64| u32::try_from(value).ok();
        while let Some((field, value)) = reader.next_field()? {
            let Value::Varint(value) = value else { continue };
            match field {
                3 => self.model_type = value,
                35 => self.byte_fallback = value != 0,
                40 => self.special.unk = id(value),
                41 => self.special.bos = id(value),
                42 => self.special.eos = id(value),
                43 => self.special.pad = id(value),
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.model_type != MODEL_TYPE_BPE {
            return Err(unsupported(format!(
                "SentencePiece model type {} instead of BPE (2)",
                self.model_type
            )));
        }
        if !self.byte_fallback {
            return Err(unsupported("no byte pieces for unknown characters".into()));
        }
        Ok(())
    }
}

/// What matters of `normalizer_spec`; the defaults are the format's.
#[derive(Debug)]
struct Normalizer {
    has_rules: bool,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl Default for Normalizer {
    fn default() -> Self {
        Self {
            has_rules: false,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

impl Normalizer {
    fn read(&mut self, mut reader: Reader<'_>) -> Result<()> {
        while let Some((field, value)) = reader.next_field()? {
            match (field, value) {
                (2, Value::Bytes(rules)) => self.has_rules = !rules.rest.is_empty(),
                (3, Value::Varint(value)) => self.add_dummy_prefix = value != 0,
                (4, Value::Varint(value)) => self.remove_extra_whitespaces = value != 0,
                (5, Value::Varint(value)) => self.escape_whitespaces = value != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let refused = [
            (self.has_rules, "rules that rewrite characters"),
            (self.add_dummy_prefix, "a blank in front of every text"),
            (self.remove_extra_whitespaces, "the removal of extra blanks"),
            (!self.escape_whitespaces, "blanks that are not written as U+2581"),
        ];
        match refused.into_iter().find(|(is_set, _)| *is_set) {
            Some((_, what)) => Err(unsupported(what.into())),
            None => Ok(()),
        }
    }
}

fn unsupported(what: String) -> Error {
    Error::Unsupported { what }
}

/// One protobuf value.
enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64,
    Bytes(Reader<'a>),
}

/// A cursor over protobuf fields.
#[derive(Clone, Copy, Debug)]
struct Reader<'a> {
    rest: &'a [u8],
    /// Offset of `rest` in the file.
    offset: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            offset: 0,
        }
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::Protobuf {
            offset: self.offset,
            what,
        }
    }

    fn take(&mut self, n: usize) -> Result<Reader<'a>> {
        let (taken, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or_else(|| self.damaged("a field goes past the end"))?;
        let taken = Reader {
            rest: taken,
            offset: self.offset,
        };
        self.rest = rest;
        self.offset += n;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?.rest[0];
            // The tenth byte has room for one bit only.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.damaged("a number is longer than 64 bits"))
    }

    /// The next field's number and value; `None` at the end.
    fn next_field(&mut self) -> Result<Option<(u64, Value<'a>)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let len = self.varint()?;
                let len = usize::try_from(len).map_err(|_| self.damaged("a field goes past the end"))?;
                Value::Bytes(self.take(len)?)
            }
            5 => {
                let bytes = self.take(4)?.rest;
                Value::Fixed32(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            _ => return Err(self.damaged("a field has an unknown wire type")),
        };
        match key >> 3 {
            0 => Err(self.damaged("a field has the number 0")),
            field => Ok(Some((field, value))),
        }
    }
}
