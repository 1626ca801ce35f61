//! Grammars that an answer must follow: JSON by schema, regular expressions, context-free grammars.
//!
//! A [`GrammarCompiler`] is made once for a tokenizer; it compiles a [`Grammar`] to a [`Constraint`], the state of
//! one answer. Before each choice the constraint computes a mask with a bit for every token that may come next
//! (beside the forward pass, see `generation`), and after it takes the chosen token. Where the grammar may end, the
//! mask allows the tokenizer's stop tokens; where it must, the answer ends.
//!
//! A model may think first, between two tokens of its vocabulary ([`Thoughts`]): what it thinks is free, up to a budget,
//! and the grammar begins behind it. Without a grammar it may think more than once within the budget.
//!
//! JSON is written without line breaks and with one blank after `:` and `,`: a small model in doubt would else write
//! blanks for ever.

use std::sync::{Arc, Mutex, PoisonError};

use carat_text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::error::Error;
use crate::schema_cost;

/// Longest text of a grammar or schema, in bytes.
const MAX_GRAMMAR_BYTES: usize = 1 << 20;
/// Most rules of a grammar, objects of a schema included. The compiler calls itself for every rule or definition on the way
/// to another: without a limit a chain of some hundreds would be the end of the process.
const MAX_RULES: usize = 10_000;
/// Stack of the thread that compiles, in bytes. So many rules or objects in a chain were measured to take less.
const COMPILER_STACK: usize = 128 << 20;
/// Most states of one grammar's lexer, of 1 to 2 KB each: they are in no other budget, and any client may send a grammar.
const MAX_LEXER_STATES: usize = 50_000;
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
    /// Held while a grammar is compiled, which may take much memory: one at a time.
    compiling: Mutex<()>,
    /// A bit for each token that is text.
    text: SimpleVob,
}

/// Where thoughts stand in an answer, and how long they may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thoughts {
    /// The token that begins them.
    pub open: u32,
    /// The token that ends them.
    pub close: u32,
    /// Whether the prompt has begun them already.
    pub are_open: bool,
    /// Tokens between the two, the channel's name included, of all thoughts of an answer together; `None` for as many as
    /// the answer has room for.
    pub budget: Option<usize>,
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
        factory.limits_mut().max_lexer_states = MAX_LEXER_STATES;
        let mut text = SimpleVob::alloc(tokenizer.len());
        for id in (0..n_tokens).filter(|&id| !tokenizer.is_special(id)) {
            text.allow_token(id);
        }
        Ok(Self {
            factory,
            compiling: Mutex::new(()),
            text,
        })
    }

    /// What binds an answer that may begin with thoughts: these to their budget, and what follows them to `answer`.
    ///
    /// # Errors
    /// [`Error::Grammar`] when the vocabulary does not have the tokens around thoughts.
    pub fn thoughtful(&self, answer: Option<Constraint>, thoughts: Thoughts) -> Result<Constraint, Error> {
        let Thoughts { open, close, .. } = thoughts;
        if [open, close].iter().any(|&id| id as usize >= self.text.len()) {
            return Err(refused("the vocabulary lacks the tokens around thoughts"));
        }
        // No end of the answer among the thoughts: what is asked for would never come.
        let mut free = self.text.clone();
        free.allow_token(close);
        let matcher = answer.and_then(|answer| answer.matcher);
        let channel = Channel {
            thoughts,
            free,
            is_bound: matcher.is_some(),
            at: Progress {
                n_thought: 0,
                place: if thoughts.are_open {
                    Place::Inside
                } else {
                    Place::Before
                },
            },
        };
        Ok(Constraint {
            matcher,
            mask: None,
            channel: Some(channel),
        })
    }

    /// The state at the beginning of an answer.
    ///
    /// # Errors
    /// [`Error::Grammar`] with the reason.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, Error> {
        let _alone = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let matcher = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILER_STACK);
            let work = || Ok(Matcher::new(self.factory.create_parser(checked(grammar)?)));
            let thread = thread.spawn_scoped(scope, work).map_err(refused)?;
            thread.join().map_err(|_| refused("the compiler failed"))?
        })?;
        match matcher.get_error() {
            Some(reason) => Err(refused(reason.trim().lines().next().unwrap_or_default())),
            None => Ok(Constraint {
                matcher: Some(matcher),
                mask: None,
                channel: None,
            }),
        }
    }
}

/// How far one answer is in its grammar. Clones go their own ways and share what was computed of the grammar, so that
/// many answers to one request need not compile it again.
#[derive(Clone)]
pub struct Constraint {
    /// `None` where thoughts alone are bound.
    matcher: Option<Matcher>,
    mask: Option<Mask>,
    channel: Option<Channel>,
}

/// What the next choice is bound to.
#[derive(Clone)]
enum Mask {
    Free,
    Bound(SimpleVob),
    Failed(String),
}

impl Constraint {
    /// Computes the mask of the next choice, unless that is done.
    pub(crate) fn prepare(&mut self) {
        if self.mask.is_none() {
            self.mask = Some(self.next_mask());
        }
    }

    fn next_mask(&mut self) -> Mask {
        if let Some(mask) = self.channel.as_ref().and_then(Channel::mask) {
            return Mask::Bound(mask);
        }
        let Some(matcher) = &mut self.matcher else {
            return Mask::Free;
        };
        match matcher.compute_mask_or_eos() {
            Ok(mut mask) => {
                let may_think = self
                    .channel
                    .as_ref()
                    .filter(|channel| channel.at.place == Place::Before);
                if let Some(channel) = may_think {
                    mask.allow_token(channel.thoughts.open);
                }
                Mask::Bound(mask)
            }
            Err(error) => Mask::Failed(error.to_string()),
        }
    }

    /// A bit for each token that may come next, lowest id first; `None` where all may.
    ///
    /// # Errors
    /// [`Error::Grammar`] when the grammar has become too costly to follow.
    pub(crate) fn mask(&mut self) -> Result<Option<&[u32]>, Error> {
        self.prepare();
        match &self.mask {
            Some(Mask::Bound(mask)) => Ok(Some(mask.as_slice())),
            Some(Mask::Free) => Ok(None),
            Some(Mask::Failed(reason)) => Err(refused(reason)),
            None => Err(refused("no mask was computed")),
        }
    }

    /// Takes the chosen token.
    ///
    /// # Errors
    /// [`Error::Grammar`] when the mask does not allow it.
    pub(crate) fn accept(&mut self, id: u32) -> Result<(), Error> {
        self.mask = None;
        if self.channel.as_mut().is_some_and(|channel| channel.takes(id)) {
            return Ok(());
        }
        match &mut self.matcher {
            Some(matcher) if !matcher.is_stopped() => matcher.consume_token(id).map_err(refused),
            _ => Ok(()),
        }
    }

    /// How many of `ids`, one after another, are allowed next.
    pub(crate) fn n_allowed(&mut self, ids: &[u32]) -> usize {
        let (n, is_answer) = match &self.channel {
            Some(channel) => channel.n_allowed(ids),
            None => (0, true),
        };
        let rest = &ids[n..];
        n + match &mut self.matcher {
            _ if !is_answer => 0,
            // A grammar that cannot be followed any more is reported by `mask`.
            Some(matcher) => matcher.validate_tokens(rest).unwrap_or(0),
            None => rest.len(),
        }
    }

    /// Whether nothing may follow.
    pub(crate) fn is_complete(&self) -> bool {
        let is_inside = self
            .channel
            .as_ref()
            .is_some_and(|channel| channel.at.place == Place::Inside);
        !is_inside && self.matcher.as_ref().is_some_and(Matcher::is_stopped)
    }
}

/// An answer's thoughts, and how far it is in them.
#[derive(Clone)]
struct Channel {
    thoughts: Thoughts,
    /// What may be thought, and the end.
    free: SimpleVob,
    /// Whether a grammar says what may come behind the thoughts. Where none does, the model may begin to think again,
    /// and the budget is for all thoughts together: else one mark would be a way around it.
    is_bound: bool,
    at: Progress,
}

#[derive(Clone, Copy)]
struct Progress {
    /// Tokens thought so far.
    n_thought: usize,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing has come.
    Before,
    /// Among the thoughts.
    Inside,
    /// The answer has begun.
    Behind,
}

impl Channel {
    fn is_spent(&self, at: Progress) -> bool {
        self.thoughts.budget.is_some_and(|budget| at.n_thought >= budget)
    }

    /// What may come next; `None` where the thoughts have no say.
    fn mask(&self) -> Option<SimpleVob> {
        let is_spent = self.is_spent(self.at);
        match self.at.place {
            Place::Inside if is_spent => {
                let mut mask = SimpleVob::alloc(self.free.len());
                mask.allow_token(self.thoughts.close);
                Some(mask)
            }
            Place::Inside => Some(self.free.clone()),
            Place::Behind if is_spent && !self.is_bound => {
                let mut mask = SimpleVob::alloc_ones(self.free.len());
                mask.disallow_token(self.thoughts.open);
                Some(mask)
            }
            Place::Before | Place::Behind => None,
        }
    }

    /// Whether that mask has a token.
    fn allows(&self, at: Progress, id: u32) -> bool {
        let is_spent = self.is_spent(at);
        match at.place {
            Place::Inside if is_spent => id == self.thoughts.close,
            Place::Inside => (id as usize) < self.free.len() && self.free.is_allowed(id),
            Place::Behind if is_spent && !self.is_bound => id != self.thoughts.open,
            Place::Before | Place::Behind => true,
        }
    }

    /// Whether a token belongs to the thoughts, and not to the answer.
    fn has(&self, at: Progress, id: u32) -> bool {
        match at.place {
            Place::Before => id == self.thoughts.open,
            Place::Inside => true,
            Place::Behind => id == self.thoughts.open && !self.is_bound,
        }
    }

    fn after(&self, at: Progress, id: u32) -> Progress {
        let place = match at.place {
            Place::Inside if id == self.thoughts.close => Place::Behind,
            _ if self.has(at, id) => Place::Inside,
            _ => Place::Behind,
        };
        let is_thought = at.place == Place::Inside && place == Place::Inside;
        Progress {
            n_thought: at.n_thought + usize::from(is_thought),
            place,
        }
    }

    /// Takes a token; whether it belongs to the thoughts.
    fn takes(&mut self, id: u32) -> bool {
        let is_thought = self.has(self.at, id);
        self.at = self.after(self.at, id);
        is_thought
    }

    /// How many of `ids` are allowed, and whether those that follow them are a grammar's to allow.
    fn n_allowed(&self, ids: &[u32]) -> (usize, bool) {
        let mut at = self.at;
        for (n, &id) in ids.iter().enumerate() {
            if self.is_bound && !self.has(at, id) {
                return (n, true);
            }
            if !self.allows(at, id) {
                return (n, false);
            }
            at = self.after(at, id);
        }
        (ids.len(), false)
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

/// The grammar as the compiler takes it, unless that would cost too much. Calls itself as the compiler does.
fn checked(grammar: &Grammar) -> Result<TopLevelGrammar, Error> {
    Ok(match grammar {
        Grammar::JsonObject => TopLevelGrammar::from_json_schema(compact(json!({"type": "object"}))),
        Grammar::JsonSchema(schema) => {
            let text = schema.to_string();
            check_length(text.len())?;
            check_rules(n_objects(&text))?;
            check_cost(schema)?;
            TopLevelGrammar::from_json_schema(compact(schema.clone()))
        }
        Grammar::Regex(regex) => {
            check_length(regex.len())?;
            TopLevelGrammar::from_regex(regex)
        }
        Grammar::Lark(text) => {
            check_length(text.len())?;
            lark(text.clone())?
        }
        Grammar::Gbnf(text) => {
            check_length(text.len())?;
            lark(crate::gbnf::to_lark(text).map_err(refused)?)?
        }
    })
}

/// A grammar in Lark's notation, unless it has too many rules.
fn lark(text: String) -> Result<TopLevelGrammar, Error> {
    // Each rule has a line of its own.
    let n_rules = text.lines().filter(|line| line.contains(':')).count();
    let has_schemas = text.contains("%json");
    check_rules(n_rules + if has_schemas { n_objects(&text) } else { 0 })?;
    for (at, mark) in text.match_indices("%json") {
        let behind = &text[at + mark.len()..];
        let mut schemas = serde_json::Deserializer::from_str(behind).into_iter::<Value>();
        // What is no JSON is refused by the compiler, which can say where.
        if let Some(Ok(schema)) = schemas.next() {
            check_cost(&schema)?;
        }
    }
    Ok(TopLevelGrammar::from_lark(text))
}

/// Objects of a schema, at most.
fn n_objects(json: &str) -> usize {
    json.bytes().filter(|byte| *byte == b'{').count()
}

fn check_rules(n: usize) -> Result<(), Error> {
    if n > MAX_RULES {
        return Err(refused(format!(
            "it has about {n} rules or objects, more than {MAX_RULES}; make it smaller"
        )));
    }
    Ok(())
}

fn check_cost(schema: &Value) -> Result<(), Error> {
    if schema_cost::is_affordable(schema) {
        return Ok(());
    }
    Err(refused(
        "what the schema says with `allOf`, `anyOf`, `oneOf` or `$ref` beside other keywords multiplies to too much; \
         write less of it within each other",
    ))
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
