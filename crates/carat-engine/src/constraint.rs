//! Grammars that an answer must follow: JSON by schema, regular expressions, context-free grammars.
//!
//! A [`GrammarCompiler`] is made once for a tokenizer; it compiles a [`Grammar`] to a [`Constraint`], the state of
//! one answer. Before each choice the constraint computes a mask with a bit for every token that may come next
//! (beside the forward pass, see `generation`), and after it takes the chosen token. Where the grammar may end, the
//! mask allows the tokenizer's stop tokens; where it must, the answer ends.
//!
//! JSON is written without line breaks and with one blank after `:` and `,`: a small model in doubt would else write
//! blanks for ever.

use std::sync::Arc;

use carat_text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::error::Error;

/// Longest text of a grammar or schema, in bytes.
const MAX_GRAMMAR_BYTES: usize = 1 << 20;
/// Marks special tokens in the compiler's vocabulary; no UTF-8 text holds this byte.
const SPECIAL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid for this schema.
    JsonSchema(Value),
    /// Text that this regular expression matches as a whole.
    Regex(String),
    /// A grammar in Lark's notation, as llguidance reads it. `<|name|>` stands for a special token.
    Lark(String),
    /// A grammar in llama.cpp's notation; its rule `root` is the answer.
    Gbnf(String),
}

/// Compiles grammars for one tokenizer. Building it takes some tenths of a second and some tens of megabytes.
pub struct GrammarCompiler {
    factory: ParserFactory,
}

impl GrammarCompiler {
    /// A compiler for answers of a model with this tokenizer.
    ///
    /// # Errors
    /// [`Error::Grammar`] when the vocabulary has no stop token.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, Error> {
        let stop_ids = tokenizer.stop_ids();
        let n_tokens = u32::try_from(tokenizer.len()).map_err(|_| refused("the vocabulary is too large"))?;
        let Some(&eos) = stop_ids.first() else {
            return Err(refused("the vocabulary has no token that ends an answer"));
        };
        let words: Vec<Vec<u8>> = (0..n_tokens).map(|id| word(tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(n_tokens, eos), &words).with_eos_tokens(stop_ids);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(refused)?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory })
    }

    /// The state at the beginning of an answer.
    ///
    /// # Errors
    /// [`Error::Grammar`] with the reason.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, Error> {
        let top = match grammar {
            Grammar::JsonObject => TopLevelGrammar::from_json_schema(compact(json!({"type": "object"}))),
            Grammar::JsonSchema(schema) => {
                check_length(schema.to_string().len())?;
                TopLevelGrammar::from_json_schema(compact(schema.clone()))
            }
            Grammar::Regex(regex) => {
                check_length(regex.len())?;
                TopLevelGrammar::from_regex(regex)
            }
            Grammar::Lark(text) => {
                check_length(text.len())?;
                TopLevelGrammar::from_lark(text.clone())
            }
            Grammar::Gbnf(text) => {
                check_length(text.len())?;
                TopLevelGrammar::from_lark(crate::gbnf::to_lark(text).map_err(refused)?)
            }
        };
        let matcher = Matcher::new(self.factory.create_parser(top));
        match matcher.get_error() {
            Some(reason) => Err(refused(reason.trim().lines().next().unwrap_or_default())),
            None => Ok(Constraint { matcher, mask: None }),
        }
    }
}

/// How far one answer is in its grammar.
pub struct Constraint {
    matcher: Matcher,
    mask: Option<Result<SimpleVob, String>>,
}

impl Constraint {
    /// Computes the mask of the next choice, unless that is done.
    pub(crate) fn prepare(&mut self) {
        let matcher = &mut self.matcher;
        self.mask
            .get_or_insert_with(|| matcher.compute_mask_or_eos().map_err(|error| error.to_string()));
    }

    /// A bit for each token that may come next, lowest id first.
    ///
    /// # Errors
    /// [`Error::Grammar`] when the grammar has become too costly to follow.
    pub(crate) fn mask(&mut self) -> Result<&[u32], Error> {
        self.prepare();
        match &self.mask {
            Some(Ok(mask)) => Ok(mask.as_slice()),
            Some(Err(reason)) => Err(refused(reason)),
            None => Err(refused("no mask was computed")),
        }
    }

    /// Takes the chosen token.
    ///
    /// # Errors
    /// [`Error::Grammar`] when the mask does not allow it.
    pub(crate) fn accept(&mut self, id: u32) -> Result<(), Error> {
        self.mask = None;
        if self.matcher.is_stopped() {
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(refused)
    }

    /// How many of `ids`, one after another, the grammar allows next.
    pub(crate) fn n_allowed(&mut self, ids: &[u32]) -> usize {
        // A grammar that cannot be followed any more is reported by `mask`.
        self.matcher.validate_tokens(ids).unwrap_or(0)
    }

    /// Whether nothing may follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }
}

/// A token as the compiler sees it: its bytes, or its marked name.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    if tokenizer.is_special(id) {
        let name = tokenizer.token_piece(id).unwrap_or_default();
        return [&[SPECIAL], name.as_bytes()].concat();
    }
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    // A raw byte that no text holds would be taken for a mark.
    if bytes.first() == Some(&SPECIAL) {
        Vec::new()
    } else {
        bytes.to_vec()
    }
}

/// The schema with the one way of writing blanks.
fn compact(mut schema: Value) -> Value {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("x-guidance").or_insert_with(
            || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
        );
    }
    schema
}

fn check_length(n_bytes: usize) -> Result<(), Error> {
    if n_bytes > MAX_GRAMMAR_BYTES {
        return Err(refused(format!(
            "it has {n_bytes} bytes, more than {MAX_GRAMMAR_BYTES}"
        )));
    }
    Ok(())
}

fn refused(reason: impl ToString) -> Error {
    Error::Grammar {
        reason: reason.to_string(),
    }
}
