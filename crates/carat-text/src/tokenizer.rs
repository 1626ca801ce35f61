//! The tokenizer: text to ids and back.
//!
//! Encoding goes once over the text. Pieces that are matched before merging (runs of newlines, special tokens) are
//! taken out first; what lies between is cut at borders that no merge can cross (see `border`), and each stretch
//! is looked up as a whole or merged. A stretch that is a piece need not merge to that piece, so the
//! first time one is met it is merged and remembered.
//!
//! Encoding never adds a token of its own: the caller puts [`Tokenizer::bos`] in front where the model wants it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bpe::Merger;
use crate::error::{Error, Result};
use crate::kind::Kind;
use crate::matcher::{Match, Matcher};
use crate::merges::Merges;
use crate::vocabulary::{VISIBLE_BLANK, Vocabulary, with_plain_blanks};

/// Whether control tokens written in a text mean the tokens or are plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// `<start_of_turn>` becomes the token: for rendered templates.
    Parse,
    /// `<start_of_turn>` stays text: for anything a user or another program wrote.
    AsText,
}

/// Ids of the tokens that have a role; `None` when the file names none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SpecialIds {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) unk: Option<u32>,
    pub(crate) pad: Option<u32>,
    pub(crate) end_of_turn: Option<u32>,
}

impl SpecialIds {
    /// Fills what the file left out by the names that Gemma uses.
    fn or_by_name(self, vocabulary: &Vocabulary) -> Self {
        let by_name = |name: &str| {
            let id = vocabulary.find(name.as_bytes())?;
            vocabulary
                .kind(id)
                .is_some_and(Kind::is_parsed_only)
                .then_some(id)
        };
        Self {
            bos: self.bos.or_else(|| by_name("<bos>")),
            eos: self.eos.or_else(|| by_name("<eos>")),
            unk: self.unk.or_else(|| by_name("<unk>")),
            pad: self.pad.or_else(|| by_name("<pad>")),
            end_of_turn: by_name("<end_of_turn>")
                .or_else(|| by_name("<turn|>"))
                .or(self.end_of_turn),
        }
    }

    fn check(&self, pieces: usize) -> Result<()> {
        let named = [
            ("bos", self.bos),
            ("eos", self.eos),
            ("unk", self.unk),
            ("pad", self.pad),
            ("eot", self.end_of_turn),
        ];
        for (name, id) in named {
            if let Some(id) = id.filter(|&id| id as usize >= pieces) {
                return Err(Error::SpecialId { name, id, pieces });
            }
        }
        Ok(())
    }
}

/// A Gemma tokenizer. Immutable and shareable between threads.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    merges: Merges,
    matcher: Matcher,
    special: SpecialIds,
    stop_ids: Vec<u32>,
    adds_bos: bool,
    /// A bit per id: merging the piece's own text gives that one piece. Filled as texts are met; a lost or late
    /// write costs time only.
    whole: Box<[AtomicU64]>,
}

impl Tokenizer {
    pub(crate) fn new(
        vocabulary: Vocabulary,
        merges: Merges,
        special: SpecialIds,
        adds_bos: bool,
    ) -> Result<Self> {
        let special = special.or_by_name(&vocabulary);
        special.check(vocabulary.len())?;
        let matcher = Matcher::new(&vocabulary);
        let tool_response = vocabulary.find(b"<|tool_response>");
        let stops = [special.eos, special.end_of_turn, tool_response];
        let mut stop_ids: Vec<u32> = stops.into_iter().flatten().collect();
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let whole = (0..vocabulary.len().div_ceil(64))
            .map(|_| AtomicU64::new(0))
            .collect();
        Ok(Self {
            vocabulary,
            merges,
            matcher,
            special,
            stop_ids,
            adds_bos,
            whole,
        })
    }

    /// Ids of `text`, without a beginning-of-sequence token.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        self.encode_into(text, special, &mut ids);
        ids
    }

    /// Appends the ids of `text` to `ids`, without a beginning-of-sequence token.
    pub fn encode_into(&self, text: &str, special: Special, ids: &mut Vec<u32>) {
        let text = with_plain_blanks(text);
        match special {
            Special::Parse => self.encode_plain_blanks(&text, |_| Match::All, ids),
            Special::AsText => self.encode_plain_blanks(&text, |_| Match::UserDefined, ids),
        }
    }

    /// Encodes with all special tokens except those that would start at one of the sorted byte offsets `shielded`.
    pub(crate) fn encode_shielded(&self, text: &str, shielded: &[usize]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        if !text.contains(VISIBLE_BLANK) {
            let mode = |at: usize| mode_at(shielded, at);
            self.encode_plain_blanks(text, mode, &mut ids);
            return ids;
        }
        // Each visible blank becomes two bytes shorter, which moves all offsets behind it.
        let mut moved = Vec::with_capacity(shielded.len());
        let mut blanks = text.match_indices(VISIBLE_BLANK).map(|(at, _)| at).peekable();
        let mut n_blanks = 0;
        for &offset in shielded {
            while blanks.next_if(|&at| at < offset).is_some() {
                n_blanks += 1;
            }
            moved.push(offset.saturating_sub(2 * n_blanks));
        }
        self.encode_plain_blanks(&with_plain_blanks(text), |at| mode_at(&moved, at), &mut ids);
        ids
    }

    /// Cuts, matches and merges; `mode` says what may be matched at a byte offset.
    fn encode_plain_blanks(&self, text: &str, mode: impl Fn(usize) -> Match, ids: &mut Vec<u32>) {
        let mut merger = Merger::new(&self.vocabulary, &self.merges);
        let borders = self.vocabulary.borders();
        let bytes = text.as_bytes();
        let mut start = 0;
        let mut at = 0;
        let mut before = None;
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            if let Some((id, len)) = self.matcher.at_start(&self.vocabulary, &bytes[at..], mode(at)) {
                self.encode_stretch(&text[start..at], &mut merger, ids);
                ids.push(id);
                at += len;
                start = at;
                before = None;
                chars = text[at..].chars();
                continue;
            }
            if before.is_some_and(|before| borders.is_safe(before, c)) {
                self.encode_stretch(&text[start..at], &mut merger, ids);
                start = at;
            }
            before = Some(c);
            at += c.len_utf8();
        }
        self.encode_stretch(&text[start..], &mut merger, ids);
    }

    /// Ids of a stretch whose ends no merge crosses.
    #[inline]
    fn encode_stretch(&self, text: &str, merger: &mut Merger<'_>, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let Some(id) = self.vocabulary.find_mergeable(text.as_bytes()) else {
            merger.merge_into(text, ids);
            return;
        };
        let word = &self.whole[id as usize / 64];
        let bit = 1 << (id % 64);
        if word.load(Ordering::Relaxed) & bit != 0 {
            ids.push(id);
            return;
        }
        let from = ids.len();
        merger.merge_into(text, ids);
        if ids[from..] == [id] {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// First characters of special pieces, sorted.
    pub(crate) fn special_starts(&self) -> &[char] {
        self.matcher.special_starts()
    }

    /// Whether a special piece begins with `text` or is its beginning.
    pub(crate) fn may_begin_special(&self, text: &str) -> bool {
        self.matcher.may_begin_special(&self.vocabulary, text)
    }

    /// The pieces.
    pub(crate) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Number of pieces, which is one more than the highest id.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a vocabulary without pieces cannot be built"
    )]
    pub fn len(&self) -> usize {
        self.vocabulary.len()
    }

    /// Beginning of a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// End of a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// Unknown piece; never produced, since bytes cover every text.
    pub fn unk(&self) -> Option<u32> {
        self.special.unk
    }

    /// Padding.
    pub fn pad(&self) -> Option<u32> {
        self.special.pad
    }

    /// End of a chat turn (`<end_of_turn>`, `<turn|>`).
    pub fn end_of_turn(&self) -> Option<u32> {
        self.special.end_of_turn
    }

    /// Ids that end an answer, sorted: end of text, end of turn and, for Gemma 4, the opening of a tool result.
    /// Files disagree on which of the first two is "eos", so all of them count.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Whether prompts start with [`Tokenizer::bos`]. Rendered chat templates contain it already.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Whether `id` belongs to the prompt format and readers should not see it.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.kind(id).is_some_and(Kind::is_hidden)
    }

    /// Whether `id` is no plain text: a control token, a marker of tool calls or channels, or a row without use.
    pub fn is_special(&self, id: u32) -> bool {
        let kind = self.vocabulary.kind(id);
        kind.is_some_and(|kind| kind.is_parsed_only() || kind == Kind::Unused)
    }

    /// What `id` stands for in text: a byte piece is its raw byte, blanks are plain. `None` for ids outside.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.vocabulary.kind(id).map(|_| self.vocabulary.bytes(id))
    }

    /// The piece as SentencePiece writes it (`▁the`, `<0x0A>`). `None` for ids outside.
    pub fn token_piece(&self, id: u32) -> Option<String> {
        self.vocabulary
            .kind(id)
            .map(|_| self.vocabulary.piece(id).replace(' ', VISIBLE_BLANK))
    }

    /// Id of a piece, written with `▁` or plain blanks. Special pieces count.
    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.vocabulary.find(with_plain_blanks(piece).as_bytes())
    }
}

/// What may be matched at `at` when special pieces may not start at `shielded`.
fn mode_at(shielded: &[usize], at: usize) -> Match {
    if shielded.binary_search(&at).is_ok() {
        Match::UserDefined
    } else {
        Match::All
    }
}
