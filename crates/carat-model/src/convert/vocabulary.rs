//! The vocabulary of a Hugging Face folder, as GGUF files keep it: pieces with scores and types.
//!
//! Two files hold one. `tokenizer.model` is the original, with the scores that training gave; markers that came
//! later stand in small files beside it (`added`). `tokenizer.json` has no scores, so that they are made up from
//! the ids, where its merges allow that (`tokenizer_json`). A folder with both is read from both: the program that
//! trained the model used `tokenizer.json`, so `tokenizer.model` gives the scores and types if it holds the same
//! pieces and ranks them alike, and is left aside, with a note, if not.
//!
//! Gemma 4 has rules instead, those of its `tokenizer.json`, and no scores.
//!
//! Ids that no file names are holes. Those below the last piece are named as other converters do; those above are
//! rows that only pad the embedding, and are cut off.

mod added;
mod tokenizer_json;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use carat_format::read_limited;
use carat_text::SentencePieceModel;

use super::ConvertError;
use added::AddedToken;
use tokenizer_json::TokenizerJson;

/// Largest `tokenizer.json` or `tokenizer.model` that is read, in bytes; Gemma's have 33 MB and 5 MB.
const MAX_BYTES: u64 = 256 << 20;

/// Types of pieces, by their GGUF ids.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Score of pieces that are matched as a whole and never merged.
const SCORE_OF_ADDED: f32 = -1000.0;
/// Score of ids without a piece.
const SCORE_OF_UNUSED: f32 = -10_000.0;

/// Markers of Gemma 4 that stand within answers.
const SEEN_MARKERS: [&str; 7] = [
    "<|channel>",
    "<channel|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|\"|>",
];

/// A vocabulary; the three lists are as long as each other.
#[derive(Debug)]
pub(super) struct Vocabulary {
    path: PathBuf,
    pub(super) pieces: Vec<String>,
    pub(super) scores: Vec<f32>,
    pub(super) kinds: Vec<i32>,
    /// Rules `left right` in order, where those decide and not the scores.
    pub(super) merges: Vec<String>,
    /// Ids of tokens that are no row of the embedding.
    dropped: BTreeSet<usize>,
}

/// What decides which pieces are merged first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MergeOrder {
    /// Gemma 3.
    Scores,
    /// Gemma 4.
    Rules,
}

impl Vocabulary {
    /// Reads the folder's vocabulary; `None` when there is none. Ids from `n_rows` on are dropped.
    pub(super) fn open(
        folder: &Path,
        n_rows: usize,
        order: MergeOrder,
        notes: &mut Vec<String>,
    ) -> Result<Option<Vocabulary>, ConvertError> {
        let (json_path, model_path) = (folder.join("tokenizer.json"), folder.join("tokenizer.model"));
        if !json_path.is_file() {
            // A `tokenizer.model` has no rules.
            if !model_path.is_file() || order == MergeOrder::Rules {
                return Ok(None);
            }
            let bytes = read_limited(&model_path, MAX_BYTES)?;
            let added = added::beside(folder)?;
            return Vocabulary::of_model(&bytes, &added, model_path, n_rows).map(Some);
        }
        let json = read_limited(&json_path, MAX_BYTES)?;
        let json = TokenizerJson::parse(&json, &json_path)?;
        if order == MergeOrder::Rules {
            return Vocabulary::of_rules(&json, json_path, n_rows).map(Some);
        }
        if model_path.is_file() {
            let bytes = read_limited(&model_path, MAX_BYTES)?;
            match Vocabulary::of_both(&bytes, &json, model_path, n_rows) {
                Ok(vocabulary) => return Ok(Some(vocabulary)),
                Err(reason) => notes.push(format!("tokenizer.model was left aside: {reason}")),
            }
        }
        Vocabulary::of_json(&json, json_path, n_rows).map(Some)
    }

    /// From the original and what was added to it later.
    fn of_model(
        bytes: &[u8],
        added: &[AddedToken],
        path: PathBuf,
        n_rows: usize,
    ) -> Result<Vocabulary, ConvertError> {
        let model = match SentencePieceModel::parse(bytes) {
            Ok(model) => model,
            Err(source) => return Err(ConvertError::Tokenizer { path, source }),
        };
        let mut vocabulary = Vocabulary::with_model(&model, path, n_rows);
        vocabulary.place_added(added);
        vocabulary.finish()
    }

    /// From the original, provided that the `tokenizer.json` beside it says the same; otherwise what differs.
    fn of_both(
        bytes: &[u8],
        json: &TokenizerJson<'_>,
        path: PathBuf,
        n_rows: usize,
    ) -> Result<Vocabulary, String> {
        let model = SentencePieceModel::parse(bytes).map_err(|error| error.to_string())?;
        json.check_same_pieces(&model)?;
        let mut vocabulary = Vocabulary::with_model(&model, path, n_rows);
        vocabulary.place_added(&json.added_tokens);
        json.check_merges(&vocabulary)?;
        vocabulary.finish().map_err(|error| error.to_string())
    }

    fn of_json(json: &TokenizerJson<'_>, path: PathBuf, n_rows: usize) -> Result<Vocabulary, ConvertError> {
        let mut vocabulary = Vocabulary::empty(path, n_rows);
        json.place(&mut vocabulary)
            .map_err(|reason| vocabulary.bad(&reason))?;
        vocabulary.place_added(&json.added_tokens);
        vocabulary.score_by_id();
        json.check_merges(&vocabulary)
            .map_err(|reason| vocabulary.bad(&reason))?;
        vocabulary.finish()
    }

    /// The pieces with their rules.
    fn of_rules(json: &TokenizerJson<'_>, path: PathBuf, n_rows: usize) -> Result<Vocabulary, ConvertError> {
        let mut vocabulary = Vocabulary::empty(path, n_rows);
        json.place(&mut vocabulary)
            .map_err(|reason| vocabulary.bad(&reason))?;
        vocabulary.place_added(&json.added_tokens);
        for (piece, kind) in vocabulary.pieces.iter().zip(&mut vocabulary.kinds) {
            // As other converters have it: whoever parses an answer must see these.
            if *kind == CONTROL && SEEN_MARKERS.contains(&piece.as_str()) {
                *kind = USER_DEFINED;
            }
        }
        vocabulary.merges = json.merges();
        vocabulary.finish()
    }

    /// One hole for each row of the embedding.
    fn empty(path: PathBuf, n_rows: usize) -> Vocabulary {
        Vocabulary {
            path,
            pieces: vec![String::new(); n_rows],
            scores: vec![SCORE_OF_UNUSED; n_rows],
            kinds: vec![UNUSED; n_rows],
            merges: Vec::new(),
            dropped: BTreeSet::new(),
        }
    }

    fn with_model(model: &SentencePieceModel<'_>, path: PathBuf, n_rows: usize) -> Vocabulary {
        let mut vocabulary = Vocabulary::empty(path, n_rows);
        let lists = model.pieces.iter().zip(&model.scores).zip(&model.token_types);
        for (at, ((piece, score), kind)) in lists.enumerate() {
            vocabulary.place(at, piece, *score, *kind);
        }
        vocabulary
    }

    /// Puts a piece at its id. An empty one stays a hole.
    fn place(&mut self, at: usize, piece: &str, score: f32, kind: i32) {
        let Some(place) = self.pieces.get_mut(at) else {
            self.dropped.insert(at);
            return;
        };
        if !piece.is_empty() {
            piece.clone_into(place);
            (self.scores[at], self.kinds[at]) = (score, kind);
        }
    }

    /// Added tokens are listed a second time among the pieces, as a rule; here they get their type. One that goes by
    /// another name than the piece of its id has taken its place.
    fn place_added(&mut self, added: &[AddedToken]) {
        for token in added {
            let at = token.id as usize;
            // Control by its name or in the original: a flag that was forgotten does not undo it.
            let is_control = self.kinds.get(at) == Some(&CONTROL) && self.pieces[at] == token.content;
            let kind = if token.special || is_control {
                CONTROL
            } else {
                USER_DEFINED
            };
            self.place(at, &token.content, SCORE_OF_ADDED, kind);
        }
    }

    /// Gemma numbers ordinary pieces in the order in which training made them, which is what scores say.
    fn score_by_id(&mut self) {
        let first = self.kinds.iter().position(|kind| *kind == NORMAL).unwrap_or(0);
        for (at, (score, kind)) in self.scores.iter_mut().zip(&self.kinds).enumerate() {
            if *kind == NORMAL {
                *score = -((at - first) as f32);
            }
        }
    }

    /// Names the holes and cuts off those at the end.
    fn finish(mut self) -> Result<Vocabulary, ConvertError> {
        if !self.kinds.contains(&NORMAL) {
            return Err(self.bad("it has no ordinary pieces"));
        }
        let len = self
            .pieces
            .iter()
            .rposition(|piece| !piece.is_empty())
            .map_or(0, |last| last + 1);
        self.pieces.truncate(len);
        self.scores.truncate(len);
        self.kinds.truncate(len);
        for (at, (piece, kind)) in self.pieces.iter_mut().zip(&self.kinds).enumerate() {
            if piece.is_empty() {
                *piece = format!("[PAD{at}]");
            } else if *kind == USER_DEFINED {
                // llama.cpp looks for these in the text as it came.
                *piece = with_plain_blanks(piece);
            }
        }
        Ok(self)
    }

    /// Tokens whose id is no row of the embedding.
    pub(super) fn n_dropped(&self) -> usize {
        self.dropped.len()
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

/// A piece as it reads in a text; files write a blank as U+2581.
fn with_plain_blanks(piece: &str) -> String {
    piece.replace('\u{2581}', " ")
}

#[cfg(test)]
mod tests;
