//! The neutral form: what every API asks for, and what every answer is made of.

use std::time::Duration;

use serde_json::Value;

use crate::Media;
use crate::read::exact;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
}

/// A piece of a turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text.
    Text(String),
    /// An image.
    Image(Media),
    /// A sound.
    Audio(Media),
    /// A video.
    Video(Media),
}

impl Part {
    /// What it is of, unless it is text.
    #[must_use]
    pub fn media(&self) -> Option<&Media> {
        match self {
            Self::Text(_) => None,
            Self::Image(media) | Self::Audio(media) | Self::Video(media) => Some(media),
        }
    }

    /// The same, to be changed.
    #[must_use]
    pub fn media_mut(&mut self) -> Option<&mut Media> {
        match self {
            Self::Text(_) => None,
            Self::Image(media) | Self::Audio(media) | Self::Video(media) => Some(media),
        }
    }
}

/// A call that the model made.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// By which the result names it.
    pub id: String,
    /// The function.
    pub name: String,
    /// A JSON object.
    pub arguments: Value,
}

/// A call's arguments, if they came whole. What ends an answer (its limit, a stop text) may cut them, and then there is no
/// call: it would be made with other arguments than the model meant.
#[must_use]
pub fn whole_arguments(text: &str) -> Option<Value> {
    exact(text).ok()
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub parts: Vec<Part>,
    /// What the model thought before.
    pub reasoning: Option<String>,
    /// Calls that the model made in this turn.
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool's result answers.
    pub tool_call_id: Option<String>,
    /// The tool's name, where the API gives it with the result.
    pub name: Option<String>,
    /// Where it stands in the request, for errors; empty where it stands nowhere.
    pub path: String,
}

impl Turn {
    /// A turn of these parts.
    pub fn new(role: Role, parts: Vec<Part>) -> Self {
        Self {
            role,
            parts,
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            path: String::new(),
        }
    }

    /// A turn of one text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self::new(role, vec![Part::Text(text.into())])
    }

    /// The same at `path` in the request.
    #[must_use]
    pub fn at(self, path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            ..self
        }
    }
}

/// Takes the last turn off, if it is the assistant's and of text alone: the beginning of the answer.
pub(crate) fn take_beginning(turns: &mut Vec<Turn>) -> Option<String> {
    let is_text = |part: &Part| matches!(part, Part::Text(_));
    let begun = turns.pop_if(|last| {
        last.role == Role::Assistant && last.tool_calls.is_empty() && last.parts.iter().all(is_text)
    });
    let texts = begun?.parts.into_iter().filter_map(|part| match part {
        Part::Text(text) => Some(text),
        _ => None,
    });
    Some(texts.collect())
}

/// The same for APIs where it needs no saying. What nothing stands before, and what says nothing, begins no answer.
pub(crate) fn take_silent_beginning(turns: &mut Vec<Turn>) -> Option<String> {
    if turns.len() < 2 {
        return None;
    }
    take_beginning(turns).filter(|text| !text.trim().is_empty())
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// JSON schema of its arguments, an object.
    pub parameters: Value,
    /// Whether a schema that cannot be kept to the letter is refused, instead of what cannot be kept being left out.
    pub is_strict: bool,
}

/// Whether the model calls tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It does not.
    None,
    /// It calls some tool.
    Required,
    /// It calls this tool.
    Named(String),
}

/// What the answer must look like.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Format {
    /// Text.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid for a schema.
    JsonSchema(Value),
    /// What a regular expression matches.
    Regex(String),
    /// A grammar in Lark's notation.
    Lark(String),
    /// A grammar in llama.cpp's notation.
    Gbnf(String),
}

/// How tokens are chosen; `None` leaves it to the model's own settings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Keep this many likeliest tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Keep the likeliest tokens up to this probability.
    pub top_p: Option<f32>,
    /// Keep tokens at least this fraction as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Keep tokens of typical surprise up to this probability.
    pub typical_p: Option<f32>,
    /// Divides logits of recent tokens.
    pub repetition_penalty: Option<f32>,
    /// Taken off once for each occurrence.
    pub frequency_penalty: Option<f32>,
    /// Taken off once.
    pub presence_penalty: Option<f32>,
    /// How many of the latest tokens the penalties look at.
    pub penalty_window: Option<usize>,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Decides random choices.
    pub seed: Option<u64>,
}

impl Sampling {
    /// What a client's number means as a seed: to those who know llama.cpp, Ollama or vLLM, -1 is a new one for every
    /// answer.
    pub(crate) fn seed_of(number: Option<i64>) -> Option<u64> {
        number.filter(|number| *number != -1).map(i64::cast_unsigned)
    }
}

/// How long a model stays loaded after its last use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// This long.
    For(Duration),
    /// Until the server ends or memory is needed.
    Forever,
}

/// What is asked for, whichever API asks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationRequest {
    /// The model's name.
    pub model: String,
    /// The conversation.
    pub turns: Vec<Turn>,
    /// The beginning of the answer, which the model goes on with.
    pub continues: Option<String>,
    /// Tools that may be called.
    pub tools: Vec<Tool>,
    /// Whether they are.
    pub tool_choice: ToolChoice,
    /// Whether several may be called in one turn.
    pub parallel_tool_calls: bool,
    /// What the answer must look like.
    pub format: Format,
    /// The field that says so, as the client wrote it.
    pub format_field: &'static str,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens of the answer.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Answers wanted, at least 1.
    pub n: usize,
    /// Log-probabilities with this many alternatives.
    pub logprobs: Option<usize>,
    /// Whether the model thinks before it answers; `None` leaves it to the model.
    pub thinking: Option<bool>,
    /// Most tokens that are thought, if it thinks; `None` for as many as the answer has room for.
    pub thinking_budget: Option<usize>,
    /// Whether the answer comes as events.
    pub stream: bool,
    /// Whether events end with the usage.
    pub include_usage: bool,
    /// How long the model stays loaded; `None` leaves it to the server.
    pub keep_alive: Option<KeepAlive>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// Text of the answer.
    Text(String),
    /// Text of the thoughts before it.
    Reasoning(String),
    /// A tool call begins.
    ToolCall {
        /// Counted from 0 in the answer.
        index: usize,
        /// By which the result will name it.
        id: String,
        /// The function.
        name: String,
    },
    /// More of a tool call's arguments, as JSON text.
    Arguments {
        /// Which call.
        index: usize,
        /// The text.
        text: String,
    },
    /// A token's log-probabilities, when asked for.
    Logprob(TokenLogprob),
}

/// A token's log-probability with its alternatives.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token's text and bytes.
    pub token: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Likeliest first.
    pub top: Vec<(Vec<u8>, f32)>,
    /// Whether it is of the answer's text; else it is of thoughts or calls.
    pub is_content: bool,
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishKind {
    /// The model was done.
    Stop,
    /// One of the stop strings came.
    StopString(Option<String>),
    /// As many tokens as were allowed.
    Length,
    /// As many tokens as the context holds.
    ContextFull,
    /// It calls tools.
    ToolCalls,
}

impl FinishKind {
    /// Whether the model would have gone on. Most APIs do not tell what there was no room in.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Length | Self::ContextFull)
    }
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// Why.
    pub kind: FinishKind,
    /// What it took.
    pub usage: Usage,
}

/// Tokens that an answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt, cached ones included.
    pub prompt: usize,
    /// Of these, not computed anew.
    pub cached: usize,
    /// Of the answer, thoughts included.
    pub completion: usize,
    /// Of these, thoughts.
    pub reasoning: usize,
    /// Tokens guessed ahead and compared with the answer, and the right ones among them.
    pub drafted: usize,
    /// See `drafted`.
    pub accepted: usize,
}

impl Usage {
    /// Adds another answer to the same prompt.
    pub fn add_choice(&mut self, other: &Usage) {
        // The first answer computed the prompt; the others found it in the cache.
        self.cached = if self.prompt == 0 {
            other.cached
        } else {
            self.cached.min(other.cached)
        };
        self.prompt = self.prompt.max(other.prompt);
        self.completion += other.completion;
        self.reasoning += other.reasoning;
        self.drafted += other.drafted;
        self.accepted += other.accepted;
    }
}
