//! What a server knows of its model.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use carat_api::{ApiError, ErrorKind, GenerationRequest};
use carat_engine::{Constraint, Drafting, Engine, Grammar, GrammarCompiler, SamplingParams, Thoughts};
use carat_prompt::Senses;
use carat_text::{ChatTemplate, Message, RenderOptions, Role, Tokenizer, Tool};

use crate::prompt;
use crate::store::ListedModel;

/// A model to serve, as its files describe it.
pub struct ModelSetup {
    /// The name that clients see.
    pub id: String,
    /// Its tokenizer, shared with the engine.
    pub tokenizer: Arc<Tokenizer>,
    /// How it wants conversations written.
    pub template: ChatTemplate,
    /// How it sees and hears.
    pub senses: Senses,
    /// What requests that say nothing get.
    pub sampling: SamplingParams,
    /// Tokens that are never generated.
    pub suppressed: Vec<u32>,
    /// Whether tokens are guessed ahead.
    pub drafting: Drafting,
    /// For lists and pages about the model.
    pub details: ModelDetails,
}

/// What is told about a model.
#[derive(Debug, Clone, Default)]
pub struct ModelDetails {
    /// Such as `gemma3`.
    pub family: String,
    /// Such as `268M`.
    pub parameters: String,
    /// Such as `Q8_0`.
    pub quantization: String,
    /// Bytes of its files.
    pub size_bytes: u64,
    /// Tokens that it was trained for.
    pub context_len: usize,
    /// Numbers of an embedding.
    pub embedding_len: usize,
    /// Its chat template as text, if its files have one.
    pub template: String,
    /// When its files were last written, since 1970.
    pub modified: Option<Duration>,
    /// Whether it takes images.
    pub sees: bool,
    /// Whether it takes sounds.
    pub hears: bool,
}

/// The tokens around calls of tools and around strings in them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallMarks {
    pub(crate) open: u32,
    pub(crate) close: u32,
    pub(crate) quote: u32,
}

/// A model with its engine.
pub(crate) struct ServedModel {
    pub(crate) setup: ModelSetup,
    pub(crate) engine: Engine,
    /// Where the model has a format of its own for tools, in its vocabulary and in its template.
    pub(crate) call_marks: Option<CallMarks>,
    /// The tokens around thoughts, where the vocabulary has them.
    pub(crate) channel: Option<(u32, u32)>,
    /// Bytes of the longest token, at least 1.
    longest_token: usize,
    /// Built when the first grammar comes.
    compiler: OnceLock<Result<GrammarCompiler, String>>,
}

impl ServedModel {
    pub(crate) fn new(setup: ModelSetup, engine: Engine) -> Self {
        let id = |mark: &str| {
            let id = setup.tokenizer.id_of(mark)?;
            setup.tokenizer.is_special(id).then_some(id)
        };
        let marks = id("<|tool_call>").zip(id("<tool_call|>")).zip(id("<|\"|>"));
        let marks = marks.map(|((open, close), quote)| CallMarks { open, close, quote });
        let tokenizer = &setup.tokenizer;
        let lengths = (0..).map_while(|id| tokenizer.token_bytes(id).map(<[u8]>::len));
        Self {
            longest_token: lengths.max().unwrap_or(0).max(1),
            call_marks: marks.filter(|_| declares_tools(&setup.template)),
            channel: id("<|channel>").zip(id("<channel|>")),
            setup,
            engine,
            compiler: OnceLock::new(),
        }
    }

    /// As one of a list.
    pub(crate) fn listed(&self) -> ListedModel {
        ListedModel {
            id: self.setup.id.clone(),
            size_bytes: self.setup.details.size_bytes,
            modified: self.setup.details.modified,
        }
    }

    /// Tokens that prompt and answer may have together.
    pub(crate) fn context(&self) -> usize {
        self.engine.limits().n_max
    }

    /// Tokens that a text has at least: none stands for more bytes than the longest. The tokenizer takes a visible blank for
    /// a plain one, which is shorter.
    pub(crate) fn least_tokens(&self, text: &str) -> usize {
        const BLANK: char = '\u{2581}';
        if text.len() <= self.longest_token {
            return usize::from(!text.is_empty());
        }
        let n_saved = text.matches(BLANK).count() * (BLANK.len_utf8() - 1);
        (text.len() - n_saved).div_ceil(self.longest_token)
    }

    /// What binds an answer behind `prompt`: its grammar, with the field that gave it, and before it the thoughts of a
    /// model that shall think. Takes time: not for the runtime's threads.
    pub(crate) fn constraint(
        &self,
        request: &GenerationRequest,
        grammar: Option<&(Grammar, &'static str)>,
        prompt: &[u32],
    ) -> Result<Option<Constraint>, ApiError> {
        let answer = grammar.map(|(grammar, field)| {
            self.compile(grammar, field).map_err(|error| {
                // Of tools and a format together the format may be at fault.
                let alone = prompt::grammar(request).and_then(|format| match format {
                    Some((format, own)) if own != *field => self.compile(&format, own).map(drop),
                    _ => Ok(()),
                });
                alone.err().unwrap_or(error)
            })
        });
        let answer = answer.transpose()?;
        let are_open = self.thoughts_are_open(prompt);
        let thinks = request.thinking == Some(true) || are_open;
        let Some((open, close)) = self.channel.filter(|_| thinks) else {
            return Ok(answer);
        };
        if answer.is_none() && request.thinking_budget.is_none() {
            return Ok(None);
        }
        let thoughts = Thoughts {
            open,
            close,
            are_open,
            budget: request.thinking_budget,
        };
        let bound = self.compiler()?.thoughtful(answer, thoughts);
        bound
            .map(Some)
            .map_err(|error| ApiError::new(ErrorKind::InvalidRequest, error.to_string()))
    }

    /// Whether a prompt ends within thoughts, as some templates have it.
    pub(crate) fn thoughts_are_open(&self, prompt: &[u32]) -> bool {
        let Some((open, close)) = self.channel else {
            return false;
        };
        // Behind the mark there is nothing but the channel's name.
        let latest = prompt.iter().rev().take(4);
        latest.take_while(|id| **id != close).any(|id| *id == open)
    }

    /// The grammar's state at the beginning of an answer. Takes time: not for the runtime's threads.
    pub(crate) fn compile(&self, grammar: &Grammar, field: &str) -> Result<Constraint, ApiError> {
        let compiled = self.compiler()?.compile(grammar);
        compiled.map_err(|error| ApiError::field(field, error.to_string()))
    }

    fn compiler(&self) -> Result<&GrammarCompiler, ApiError> {
        let compiler = self
            .compiler
            .get_or_init(|| GrammarCompiler::new(&self.setup.tokenizer).map_err(|error| error.to_string()));
        compiler
            .as_ref()
            .map_err(|reason| ApiError::new(ErrorKind::InvalidRequest, reason))
    }
}

/// Whether a template tells the model of tools in Gemma 4's way.
fn declares_tools(template: &ChatTemplate) -> bool {
    let tool = Tool {
        name: "probe".into(),
        description: None,
        parameters: serde_json::json!({"type": "object", "properties": {}}),
    };
    let options = RenderOptions {
        tools: &[tool],
        ..RenderOptions::default()
    };
    let rendered = template.render(&[Message::text(Role::User, "x")], options);
    rendered.is_ok_and(|text| text.contains("<|tool>declaration:probe{"))
}
