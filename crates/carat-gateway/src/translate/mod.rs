//! Conversations between clients and providers that speak different APIs.
//!
//! A client's request becomes a [`Question`], which each dialect writes in its own words; an answer becomes
//! [`Event`]s, whole or streamed, which each dialect writes too. So four dialects need four files, not twelve. What a
//! provider cannot be told is named in `dropped`, never left out in silence.
//!
//! Tool calls keep their ids where the provider has ids, and get one where it has none. Thoughts keep their signatures:
//! in chat completions as `thinking_blocks` (Anthropic's) and `extra_content.google.thought_signature` (Gemini's).

pub(crate) mod anthropic;
mod bedrock;
mod broken;
mod calls;
mod claude;
mod closed;
mod cohere;
mod completions;
pub(crate) mod count;
pub(crate) mod embeddings;
pub(crate) mod gemini;
pub(crate) mod gpt;
pub(crate) mod images;
mod numbers;
pub(crate) mod ollama;
pub(crate) mod openai;
mod replicate;
mod responses;
mod schemas;
mod transform;

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use crate::endpoint::{Dialect, Endpoint};
use crate::failure::{Class, Failure};
use crate::records::Record;
use crate::route::Candidate;
use crate::sticky;
use crate::usage::Usage;

pub(crate) use transform::{Counted, Passing, Translated, passed_whole, translated_whole};

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    User,
    Assistant,
}

/// Where an image or a document is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// Here, in base64.
    Data {
        media_type: String,
        data: String,
    },
    Url(String),
}

impl Source {
    /// `data:image/png;base64,…`, or another URL.
    fn of_url(url: &str) -> Self {
        let data = url
            .strip_prefix("data:")
            .and_then(|rest| rest.split_once(";base64,"));
        match data {
            Some((media_type, data)) => {
                // Providers know neither parameters, such as a charset, nor this name of JPEG's.
                let media_type = match media_type.split(';').next() {
                    Some("image/jpg") => "image/jpeg",
                    Some(media_type) => media_type,
                    None => "",
                };
                Self::Data {
                    media_type: media_type.to_string(),
                    data: data.to_string(),
                }
            }
            None => Self::Url(url.to_string()),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Data { media_type, data } => format!("data:{media_type};base64,{data}"),
            Self::Url(url) => url.clone(),
        }
    }
}

/// A piece of a turn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Piece {
    Text {
        text: String,
        /// Anthropic's mark that what is before may be cached.
        cache: Option<Value>,
    },
    Image {
        source: Source,
        cache: Option<Value>,
    },
    /// A document such as a PDF.
    Document {
        source: Source,
        name: Option<String>,
    },
    Thinking {
        text: String,
        signature: Option<String>,
    },
    /// Thoughts that only their provider can read.
    Redacted(String),
    Call {
        id: String,
        name: String,
        arguments: Value,
        /// Gemini's.
        signature: Option<String>,
    },
    Result {
        id: String,
        /// Where it is known; else it is looked up by the id.
        name: Option<String>,
        content: Vec<Piece>,
        is_error: bool,
        cache: Option<Value>,
    },
}

impl Piece {
    fn text(text: impl Into<String>) -> Self {
        Self::Text {
            text: text.into(),
            cache: None,
        }
    }
}

/// A turn of a conversation. Neighbours have different roles.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Turn {
    pub(crate) role: Role,
    pub(crate) pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    name: String,
    description: Option<String>,
    schema: Value,
    strict: Option<bool>,
    cache: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq)]
enum Choice {
    #[default]
    Auto,
    None,
    Required,
    Named(String),
}

#[derive(Debug, Clone, Default, PartialEq)]
enum Format {
    #[default]
    Text,
    Json,
    Schema {
        name: String,
        schema: Value,
        /// Whether the answer must fit it to the letter, where the client says.
        strict: Option<bool>,
    },
}

/// How much the model is to think.
#[derive(Debug, Clone, PartialEq)]
enum Thinking {
    Off,
    /// As it likes.
    Adaptive,
    /// `low`, `medium`, `high` and the like.
    Effort(String),
    Budget(u64),
}

/// What is asked, whichever API asks.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Question {
    system: Vec<Piece>,
    turns: Vec<Turn>,
    tools: Vec<Tool>,
    choice: Choice,
    parallel: Option<bool>,
    format: Format,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    seed: Option<i64>,
    presence: Option<f64>,
    frequency: Option<f64>,
    max_tokens: Option<u64>,
    stop: Vec<String>,
    thinking: Option<Thinking>,
    user: Option<String>,
    pub(crate) stream: bool,
    pub(crate) wants_usage: bool,
    /// Fields that are known to nobody here.
    unknown: Vec<String>,
}

/// For whom a question is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addressee<'a> {
    pub(crate) dialect: Dialect,
    /// As the provider calls it.
    pub(crate) model: &'a str,
    /// Tokens of prompt and answer together, if that is known.
    pub(crate) context: Option<u64>,
    /// The field in which it wants thoughts back beside the calls that came of them.
    pub(crate) reasoning: Option<&'a str>,
}

impl<'a> Addressee<'a> {
    pub(crate) fn of(candidate: &'a Candidate) -> Self {
        Self {
            dialect: candidate.provider.dialect,
            model: &candidate.model,
            context: candidate.abilities.context,
            reasoning: candidate.provider.reasoning.as_deref(),
        }
    }
}

impl Question {
    /// Reads a client's request.
    pub(crate) fn read(endpoint: Endpoint, body: &Value) -> Result<Self, Failure> {
        match endpoint {
            Endpoint::Responses => responses::question(body),
            Endpoint::Completions => completions::question(body),
            Endpoint::OllamaGenerate => ollama::prompt(body),
            other => match other.dialect() {
                Dialect::Anthropic => anthropic::question(body),
                Dialect::Gemini => gemini::question(body),
                Dialect::Ollama => ollama::question(body),
                _ => openai::question(body),
            },
        }
    }

    /// Writes it in a dialect, for somebody of whom no more is known, and the names of what is not told.
    pub(crate) fn write(&self, dialect: Dialect, model: &str) -> Result<(Value, Vec<String>), Failure> {
        self.write_for(&Addressee {
            dialect,
            model,
            context: None,
            reasoning: None,
        })
    }

    /// Writes it for a provider's model, and the names of what it is not told.
    pub(crate) fn write_for(&self, to: &Addressee<'_>) -> Result<(Value, Vec<String>), Failure> {
        let mut dropped = self.unknown.clone();
        let model = to.model;
        let value = match to.dialect {
            Dialect::OpenAi => openai::request(self, to, &mut dropped),
            Dialect::Anthropic => anthropic::request(self, model, &mut dropped)?,
            Dialect::Gemini => gemini::request(self, model, &mut dropped)?,
            Dialect::Ollama => ollama::request(self, to, &mut dropped)?,
            Dialect::Bedrock => bedrock::request(self, model, &mut dropped)?,
            Dialect::Cohere => cohere::request(self, model, &mut dropped)?,
            Dialect::Replicate => replicate::request(self, model, &mut dropped)?,
        };
        Ok((value, dropped))
    }

    /// Tools whose names a provider does not take: as it is told them, and as they are.
    pub(crate) fn renamed(&self, dialect: Dialect) -> Vec<(String, String)> {
        let safe = match dialect {
            Dialect::OpenAi => openai::safe,
            Dialect::Anthropic => anthropic::safe,
            Dialect::Gemini => gemini::safe,
            Dialect::Bedrock => bedrock::safe,
            Dialect::Ollama | Dialect::Cohere | Dialect::Replicate => return Vec::new(),
        };
        let called = self
            .turns
            .iter()
            .flat_map(|turn| &turn.pieces)
            .filter_map(|piece| match piece {
                Piece::Call { name, .. } => Some(name),
                _ => None,
            });
        let names: BTreeSet<&String> = self.tools.iter().map(|tool| &tool.name).chain(called).collect();
        let told: Vec<(String, String)> = names.into_iter().map(|name| (safe(name), name.clone())).collect();
        let mut n_alike: HashMap<&str, usize> = HashMap::new();
        for (told, _) in &told {
            *n_alike.entry(told).or_default() += 1;
        }
        // Where two are told alike nobody knows which one is called.
        let is_clear = |told: &String| n_alike.get(told.as_str()) == Some(&1);
        let renamed = told.iter().filter(|(told, own)| told != own && is_clear(told));
        renamed.cloned().collect()
    }

    /// Adds pieces to the last turn if it has the same role, else a turn.
    fn push(&mut self, role: Role, pieces: Vec<Piece>) {
        if pieces.is_empty() {
            return;
        }
        match self.turns.last_mut() {
            Some(last) if last.role == role => last.pieces.extend(pieces),
            _ => self.turns.push(Turn { role, pieces }),
        }
    }

    /// Names the parameters that are set but cannot be told.
    fn drop_set(&self, names: &[&'static str], dropped: &mut Vec<String>) {
        for name in names {
            let is_set = match *name {
                "seed" => self.seed.is_some(),
                "presence_penalty" => self.presence.is_some_and(|value| value != 0.0),
                "frequency_penalty" => self.frequency.is_some_and(|value| value != 0.0),
                "top_k" => self.top_k.is_some(),
                "user" => self.user.is_some(),
                "tool_choice" => self.choice != Choice::Auto,
                "parallel_tool_calls" => self.parallel == Some(false),
                _ => false,
            };
            if is_set {
                dropped.push((*name).to_string());
            }
        }
    }
}

/// Messages without those of which nothing is left, such as unsigned thoughts alone, and neighbours of one role as one:
/// providers want the roles to alternate.
fn alternating(messages: Vec<Value>) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::with_capacity(messages.len());
    for mut message in messages {
        let same = out.last_mut().filter(|last| last["role"] == message["role"]);
        match (message["content"].as_array_mut(), same) {
            (Some(content), _) if content.is_empty() => {}
            (Some(content), Some(last)) => {
                if let Some(before) = last["content"].as_array_mut() {
                    before.append(content);
                }
            }
            _ => out.push(message),
        }
    }
    out
}

impl Question {
    /// How tokens are chosen, where an API calls it as OpenAI does. `within`: what stands before the fields' names.
    fn sampled(settings: &Value, within: &str) -> Result<Self, Failure> {
        let decimal = |name: &str| numbers::decimal(&settings[name], &format!("{within}{name}"));
        Ok(Self {
            temperature: decimal("temperature")?,
            top_p: decimal("top_p")?,
            top_k: numbers::count(&settings["top_k"], &format!("{within}top_k"))?,
            seed: numbers::integer(&settings["seed"], &format!("{within}seed"))?,
            presence: decimal("presence_penalty")?,
            frequency: decimal("frequency_penalty")?,
            stop: strings(&settings["stop"]),
            ..Self::default()
        })
    }
}

impl Tool {
    /// A function as OpenAI describes it, if it has a name.
    fn of_function(name: Option<String>, function: &Value) -> Result<Self, Failure> {
        let nameless = || {
            refused(
                "tools",
                "only functions, each with a name, can be passed on to this provider",
            )
        };
        Ok(Self {
            name: name.ok_or_else(nameless)?,
            description: text(&function["description"]),
            schema: function["parameters"].clone(),
            strict: function["strict"].as_bool(),
            cache: None,
        })
    }
}

impl Format {
    /// As OpenAI names kinds of it; `schema` is where it says more.
    fn of_kind(kind: &Value, schema: &Value) -> Self {
        match kind.as_str() {
            Some("json_object") => Self::Json,
            Some("json_schema") => Self::Schema {
                name: text(&schema["name"]).unwrap_or_else(|| "answer".into()),
                schema: schema["schema"].clone(),
                strict: schema["strict"].as_bool(),
            },
            _ => Self::Text,
        }
    }
}

impl Thinking {
    /// By OpenAI's words for effort.
    fn of_effort(effort: &Value) -> Option<Self> {
        effort.as_str().map(|effort| match effort {
            "none" => Self::Off,
            other => Self::Effort(other.to_string()),
        })
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    Stop,
    Length,
    Calls,
    Filter,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    Begin {
        id: String,
        model: String,
    },
    Text(String),
    Thinking(String),
    /// Of the thoughts before.
    Signature(String),
    Redacted(String),
    /// A tool call begins; arguments follow.
    Call {
        id: String,
        name: String,
        signature: Option<String>,
    },
    /// More of the latest call's arguments.
    Arguments(String),
    Usage(Usage),
    End(Finish),
    /// It ends and is not whole, for this reason of the provider's; see [`broken`].
    Broken(String),
}

/// Reads an answer of a dialect.
pub(crate) trait Reader: Send {
    /// Takes a record of a stream. `Ok(false)`: it made no sense.
    ///
    /// # Errors
    /// What the provider says went wrong.
    fn record(&mut self, record: &Record<'_>, events: &mut Vec<Event>) -> Result<bool, Failure>;

    /// Takes a whole answer.
    ///
    /// # Errors
    /// What the provider says went wrong.
    fn whole(&mut self, answer: &Value, events: &mut Vec<Event>) -> Result<(), Failure>;

    /// The stream has ended: whether it was whole. Some dialects only then say why.
    fn end(&mut self, events: &mut Vec<Event>) -> bool;

    /// Whether all that was begun has ended, in a dialect whose streams have no last word.
    fn may_be_over(&self) -> bool {
        false
    }
}

/// What a record says: null where it is empty, nothing where it is no JSON.
fn told(record: &Record<'_>) -> Option<Value> {
    match record.data.trim_ascii() {
        b"" => Some(Value::Null),
        data => serde_json::from_slice(data).ok(),
    }
}

/// Reads JSON objects of one kind, whether a stream is made of them or one is the whole answer.
trait Alike: Send {
    /// Takes an object.
    fn read(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure>;

    /// Whether the last one has come.
    fn is_done(&self) -> bool;

    /// As [`Reader::may_be_over`].
    fn may_be_over(&self) -> bool {
        false
    }
}

impl<T: Alike> Reader for T {
    fn record(&mut self, record: &Record<'_>, events: &mut Vec<Event>) -> Result<bool, Failure> {
        let Some(value) = told(record) else {
            return Ok(false);
        };
        if !value.is_null() {
            self.read(&value, events)?;
        }
        Ok(true)
    }

    fn whole(&mut self, answer: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        self.read(answer, events)
    }

    fn end(&mut self, _events: &mut Vec<Event>) -> bool {
        self.is_done()
    }

    fn may_be_over(&self) -> bool {
        Alike::may_be_over(self)
    }
}

/// Writes an answer of a dialect.
pub(crate) trait Writer: Send {
    /// Writes an event of a stream.
    fn event(&mut self, event: &Event, out: &mut Vec<u8>);

    /// Writes what ends the stream.
    fn end(&mut self, out: &mut Vec<u8>);
}

/// How a provider's answers are read.
pub(crate) fn reader(dialect: Dialect, is_apart: bool) -> Box<dyn Reader> {
    match dialect {
        Dialect::OpenAi => Box::new(openai::ChatReader::new(is_apart)),
        Dialect::Anthropic => Box::<anthropic::MessageReader>::default(),
        Dialect::Gemini => Box::<gemini::ContentReader>::default(),
        Dialect::Ollama => Box::<ollama::LineReader>::default(),
        Dialect::Bedrock => Box::<bedrock::ConverseReader>::default(),
        Dialect::Cohere => Box::<cohere::ChatReader>::default(),
        Dialect::Replicate => Box::<replicate::OutputReader>::default(),
    }
}

/// How a client's stream is written. `wants_usage`: it asked for the usage at the end.
pub(crate) fn writer(endpoint: Endpoint, wants_usage: bool) -> Box<dyn Writer> {
    let writer: Box<dyn Writer> = match endpoint {
        Endpoint::Responses => Box::<responses::EventWriter>::default(),
        Endpoint::Completions => Box::new(completions::TextWriter::new(wants_usage)),
        Endpoint::OllamaGenerate => Box::new(ollama::LineWriter::of_prompt()),
        other => match other.dialect() {
            Dialect::Anthropic => Box::<anthropic::EventWriter>::default(),
            Dialect::Gemini => Box::<gemini::ContentWriter>::default(),
            Dialect::Ollama => Box::<ollama::LineWriter>::default(),
            _ => Box::new(openai::ChunkWriter::new(wants_usage)),
        },
    };
    Box::new(broken::Ending::new(endpoint, writer))
}

/// A whole answer in a client's words.
pub(crate) fn whole(endpoint: Endpoint, answer: &Answer) -> Value {
    match endpoint {
        Endpoint::Responses => responses::answer(answer),
        Endpoint::Completions => completions::answer(answer),
        Endpoint::OllamaGenerate => ollama::prompt_answer(answer),
        other => match other.dialect() {
            Dialect::Anthropic => anthropic::answer(answer),
            Dialect::Gemini => gemini::answer(answer),
            Dialect::Ollama => ollama::answer(answer),
            _ => openai::answer(answer),
        },
    }
}

/// A whole answer: what its events come to.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    id: String,
    model: String,
    pieces: Vec<Piece>,
    finish: Option<Finish>,
    usage: Usage,
}

impl Answer {
    /// Joins events.
    pub(crate) fn of(events: Vec<Event>) -> Self {
        let mut answer = Self::default();
        let mut arguments = String::new();
        for event in events {
            // Some say words or counts between a call and its arguments: these do not end it.
            if matches!(event, Event::Call { .. } | Event::End(_)) {
                answer.end_call(&mut arguments);
            }
            match event {
                Event::Begin { id, model } => (answer.id, answer.model) = (id, model),
                Event::Text(more) => match answer.pieces.last_mut() {
                    Some(Piece::Text { text, .. }) => text.push_str(&more),
                    _ => answer.pieces.push(Piece::text(more)),
                },
                Event::Thinking(more) => match answer.pieces.last_mut() {
                    Some(Piece::Thinking {
                        text,
                        signature: None,
                    }) => text.push_str(&more),
                    _ => answer.pieces.push(Piece::Thinking {
                        text: more,
                        signature: None,
                    }),
                },
                Event::Signature(signed) => match answer.pieces.last_mut() {
                    Some(Piece::Thinking {
                        signature: signature @ None,
                        ..
                    }) => *signature = Some(signed),
                    _ => answer.pieces.push(Piece::Thinking {
                        text: String::new(),
                        signature: Some(signed),
                    }),
                },
                Event::Redacted(data) => answer.pieces.push(Piece::Redacted(data)),
                Event::Call { id, name, signature } => answer.pieces.push(Piece::Call {
                    id,
                    name,
                    signature,
                    arguments: Value::Null,
                }),
                Event::Arguments(more) => arguments.push_str(&more),
                Event::Usage(usage) => answer.usage = usage,
                Event::End(finish) => answer.finish = Some(finish),
                Event::Broken(_) => {}
            }
        }
        answer.end_call(&mut arguments);
        answer
    }

    /// Gives the latest call its arguments: text that is no JSON stays text.
    fn end_call(&mut self, text: &mut String) {
        let calls = self.pieces.iter_mut().rev().filter_map(|piece| match piece {
            Piece::Call { arguments, .. } => Some(arguments),
            _ => None,
        });
        if let Some(arguments) = calls.take(1).find(|arguments| arguments.is_null()) {
            *arguments = parsed(text);
        }
        text.clear();
    }

    fn texts(&self) -> String {
        self.pieces.iter().filter_map(|piece| text_of(piece)).collect()
    }

    fn thoughts(&self) -> String {
        thoughts(&self.pieces)
    }
}

/// Arguments as an object. A call without arguments has an empty one.
fn parsed(text: &str) -> Value {
    if text.trim().is_empty() {
        return Value::Object(serde_json::Map::new());
    }
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_string()))
}

/// Arguments for providers that take an object and nothing else: what is none is lost.
fn object(arguments: &Value) -> Value {
    match arguments {
        Value::Object(_) => arguments.clone(),
        _ => Value::Object(serde_json::Map::new()),
    }
}

/// Arguments as OpenAI writes them.
fn written(arguments: &Value) -> String {
    match arguments {
        // Who has none may leave them out, and nobody else reads `null` as no arguments.
        Value::Null => "{}".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn text_of(piece: &Piece) -> Option<&str> {
    match piece {
        Piece::Text { text, .. } => Some(text),
        _ => None,
    }
}

fn thoughts(pieces: &[Piece]) -> String {
    let thoughts = pieces.iter().filter_map(|piece| match piece {
        Piece::Thinking { text, .. } => Some(text.as_str()),
        _ => None,
    });
    thoughts.collect()
}

/// The text of several pieces, as results and systems have it where only text will do.
fn joined(pieces: &[Piece]) -> String {
    let texts: Vec<&str> = pieces.iter().filter_map(text_of).collect();
    texts.join("\n")
}

/// A text that is not empty.
fn words(value: &Value) -> Option<String> {
    text(value).filter(|text| !text.is_empty())
}

/// A name of ASCII letters, digits, `_` and some `others`, for providers that take no more: the rest becomes `_`.
fn safe_name(name: &str, most_chars: usize, others: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || others.contains(c);
    let mut safe: String = name.chars().map(|c| if fits(c) { c } else { '_' }).collect();
    if safe.len() > most_chars {
        // Long names may differ at their ends alone.
        let end = format!("_{:016x}", sticky::hash(name.as_bytes()));
        safe.truncate(most_chars.saturating_sub(end.len()));
        safe.push_str(&end);
    }
    if safe.is_empty() { "_".into() } else { safe }
}

/// Images and documents in a call's result, for providers whose results are text: they come after it.
fn media(content: &[Piece]) -> impl Iterator<Item = &Piece> {
    content
        .iter()
        .filter(|piece| matches!(piece, Piece::Image { .. } | Piece::Document { .. }))
}

/// An id for a call that came without.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{:016x}", fastrand::u64(..))
}

/// What cannot be said in a provider's words. Somebody else may understand it.
fn refused(param: &str, message: impl Into<String>) -> Failure {
    Failure {
        param: Some(param.into()),
        code: Some("unsupported_value".into()),
        ..Failure::new(Class::ModelGone, 400, message)
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(ToString::to_string)
}

/// One string or several.
fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().filter_map(text).collect(),
        _ => Vec::new(),
    }
}

/// Fields of a request that are set and not among those known.
fn unknown(body: &Value, known: &[&str]) -> Vec<String> {
    let fields = body.as_object().into_iter().flatten();
    fields
        .filter(|(name, value)| !value.is_null() && !known.contains(&name.as_str()))
        .map(|(name, _)| name.clone())
        .collect()
}

/// The same within an object of the request, by their whole names.
fn unknown_in(body: &Value, object: &str, known: &[&str]) -> Vec<String> {
    let names = unknown(&body[object], known).into_iter();
    names.map(|name| format!("{object}.{name}")).collect()
}

/// Sets a field if there is something to set it to.
fn set(object: &mut Value, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[name] = value.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thought_keeps_its_own_signature() {
        let signed = |text: &str| Event::Signature(text.into());
        let answer = Answer::of(vec![Event::Thinking("t".into()), signed("a"), signed("b")]);
        let thought = |text: &str, signature: &str| Piece::Thinking {
            text: text.into(),
            signature: Some(signature.into()),
        };
        assert_eq!(answer.pieces, [thought("t", "a"), thought("", "b")]);
    }

    #[test]
    fn media_types_of_data_are_those_that_providers_know() {
        for (url, expected) in [
            ("data:image/png;base64,AA", "image/png"),
            ("data:image/jpg;base64,AA", "image/jpeg"),
            ("data:text/plain;charset=utf-8;base64,AA", "text/plain"),
            ("data:;base64,AA", ""),
        ] {
            let source = Source::Data {
                media_type: expected.into(),
                data: "AA".into(),
            };
            assert_eq!(Source::of_url(url), source, "{url}");
        }
    }
}
