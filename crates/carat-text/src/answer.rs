//! Gemma 4's answers as they come: thoughts, text and calls of tools.
//!
//! `<|channel>thought` … `<channel|>` holds thoughts, `<|tool_call>call:NAME{…}` … `<tool_call|>` a call. The marks are
//! tokens, and their ids are what is looked for: text that merely looks like a mark stays text. In calls strings
//! stand between two `<|"|>` tokens, unescaped; keys are bare. What small or hard-quantized models get wrong is
//! forgiven: `=` for `:`, JSON's quotes, blanks, a brace or a whole end that is missing. What still makes no
//! sense as a call is given as text.

use std::fmt::Write;

use serde_json::{Map, Number, Value};

use crate::decode::{ControlText, StreamDecoder};
use crate::tokenizer::Tokenizer;

/// What thoughts begin with, behind the mark.
const THOUGHT: &str = "thought\n";
/// Nested lists and objects of a call's arguments.
const MAX_DEPTH: usize = 64;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerPiece {
    /// Text for the reader.
    Text(String),
    /// What the model thought before.
    Thought(String),
    /// A call of a tool, whole.
    Call {
        /// The function.
        name: String,
        /// Its arguments, an object.
        arguments: Value,
    },
}

/// Reads an answer token by token. For models without these marks all is text.
#[derive(Clone, Debug)]
pub struct AnswerReader {
    marks: Vec<(u32, Mark)>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Channel,
    ChannelEnd,
    Call,
    CallEnd,
    Quote,
    Response,
}

impl Mark {
    const ALL: [(Mark, &'static str); 6] = [
        (Mark::Channel, "<|channel>"),
        (Mark::ChannelEnd, "<channel|>"),
        (Mark::Call, "<|tool_call>"),
        (Mark::CallEnd, "<tool_call|>"),
        (Mark::Quote, "<|\"|>"),
        (Mark::Response, "<|tool_response>"),
    ];

    fn text(self) -> &'static str {
        Mark::ALL
            .iter()
            .find(|(mark, _)| *mark == self)
            .map_or("", |(_, text)| text)
    }
}

#[derive(Clone, Debug)]
enum State {
    Text,
    /// What of the channel's name has not come yet.
    Thought(&'static str),
    Call(Vec<Item>),
}

/// What a call is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Char(char),
    /// The token around strings.
    Quote,
}

impl AnswerReader {
    /// A reader for the answers of a model with this vocabulary.
    #[must_use]
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let marks = Mark::ALL.iter().filter_map(|&(mark, text)| {
            let id = tokenizer.id_of(text)?;
            tokenizer.is_special(id).then_some((id, mark))
        });
        Self {
            marks: marks.collect(),
            state: State::Text,
        }
    }

    /// Whether the model has a channel for thoughts.
    #[must_use]
    pub fn knows_thoughts(&self) -> bool {
        self.marks.iter().any(|(_, mark)| *mark == Mark::Channel)
    }

    /// Whether the model has marks for calls of tools.
    #[must_use]
    pub fn knows_calls(&self) -> bool {
        self.marks.iter().any(|(_, mark)| *mark == Mark::Call)
    }

    /// Whether what comes now is thought.
    #[must_use]
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Thought(_))
    }

    /// Whether what comes now is text for the reader: neither thought nor a call.
    #[must_use]
    pub fn is_text(&self) -> bool {
        matches!(self.state, State::Text)
    }

    /// Takes a token and the text that it decided, which may hold more than its own.
    pub fn push(&mut self, id: u32, text: &str, out: &mut Vec<AnswerPiece>) {
        let mark = self.marks.iter().find(|(of, _)| *of == id).map(|(_, mark)| *mark);
        // What was held back before a mark comes with it.
        let before = mark.and_then(|mark| text.strip_suffix(mark.text()));
        self.text(before.unwrap_or(text), out);
        let Some(mark) = mark else { return };
        match (mark, &mut self.state) {
            (Mark::Quote, State::Call(items)) => items.push(Item::Quote),
            (Mark::Quote, _) => {}
            (Mark::Channel, _) => {
                self.end(out);
                self.state = State::Thought(THOUGHT);
            }
            (Mark::Call, _) => {
                self.end(out);
                self.state = State::Call(Vec::new());
            }
            (Mark::ChannelEnd, State::Thought(_)) | (Mark::CallEnd, State::Call(_)) | (Mark::Response, _) => {
                self.end(out);
            }
            // An end without a beginning means nothing.
            (Mark::ChannelEnd | Mark::CallEnd, _) => {}
        }
    }

    /// Takes the end of the answer, with the last of its text. A call that has begun is read as far as it came.
    pub fn finish(&mut self, text: &str, out: &mut Vec<AnswerPiece>) {
        self.text(text, out);
        self.end(out);
    }

    /// Takes the end of an answer that was cut, with the last of its text. A call that has begun is left out: its
    /// arguments would not be what the tool wants.
    pub fn cut(&mut self, text: &str, out: &mut Vec<AnswerPiece>) {
        self.text(text, out);
        self.state = State::Text;
    }

    fn text(&mut self, text: &str, out: &mut Vec<AnswerPiece>) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Text => out.push(AnswerPiece::Text(text.to_owned())),
            State::Thought(name) => {
                let n = name.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
                let thought = &text[n..];
                *name = if thought.is_empty() { &name[n..] } else { "" };
                if !thought.is_empty() {
                    out.push(AnswerPiece::Thought(thought.to_owned()));
                }
            }
            State::Call(items) => items.extend(text.chars().map(Item::Char)),
        }
    }

    /// Leaves the present state.
    fn end(&mut self, out: &mut Vec<AnswerPiece>) {
        let State::Call(items) = std::mem::replace(&mut self.state, State::Text) else {
            return;
        };
        out.push(match call(&items) {
            Some((name, arguments)) => AnswerPiece::Call { name, arguments },
            None => AnswerPiece::Text(written(&items)),
        });
    }
}

/// Reads all of an answer's ids.
#[must_use]
pub fn parse_answer(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<AnswerPiece> {
    let mut reader = AnswerReader::new(tokenizer);
    let mut decoder = StreamDecoder::new(ControlText::Hide);
    let mut out = Vec::new();
    for &id in ids {
        reader.push(id, decoder.push(tokenizer, id), &mut out);
    }
    reader.finish(decoder.finish(), &mut out);
    joined(out)
}

/// Neighbours of the same kind made one.
fn joined(pieces: Vec<AnswerPiece>) -> Vec<AnswerPiece> {
    let mut all: Vec<AnswerPiece> = Vec::new();
    for piece in pieces {
        match (all.last_mut(), piece) {
            (Some(AnswerPiece::Text(all)), AnswerPiece::Text(more))
            | (Some(AnswerPiece::Thought(all)), AnswerPiece::Thought(more)) => all.push_str(&more),
            (_, piece) => all.push(piece),
        }
    }
    all
}

/// A call as it was written.
fn written(items: &[Item]) -> String {
    let mut text = String::from(Mark::Call.text());
    for item in items {
        match item {
            Item::Char(c) => text.push(*c),
            Item::Quote => text.push_str(Mark::Quote.text()),
        }
    }
    text
}

/// `call:NAME{key:value,...}`.
fn call(items: &[Item]) -> Option<(String, Value)> {
    let mut cursor = Cursor { items };
    cursor.blanks();
    cursor.literal("call:");
    let name = cursor.until(&['{', '(']);
    let name = name.trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return None;
    }
    if cursor.items.is_empty() {
        return Some((name.to_owned(), Value::Object(Map::new())));
    }
    cursor.skip();
    let fields = cursor.object(0)?;
    Some((name.to_owned(), Value::Object(fields)))
}

/// What is left of a call.
struct Cursor<'a> {
    items: &'a [Item],
}

impl Cursor<'_> {
    fn peek(&self) -> Option<Item> {
        self.items.first().copied()
    }

    fn skip(&mut self) {
        self.items = self.items.get(1..).unwrap_or_default();
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(Item::Char(wanted));
        if found {
            self.skip();
        }
        found
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(Item::Char(c)) if c.is_whitespace()) {
            self.skip();
        }
    }

    fn literal(&mut self, text: &str) {
        let n = text.chars().count();
        let starts = self.items.len() >= n
            && text
                .chars()
                .zip(self.items)
                .all(|(c, item)| *item == Item::Char(c));
        if starts {
            self.items = &self.items[n..];
        }
    }

    /// The characters up to one of `ends` or a quote.
    fn until(&mut self, ends: &[char]) -> String {
        let mut text = String::new();
        while let Some(Item::Char(c)) = self.peek() {
            if ends.contains(&c) {
                break;
            }
            text.push(c);
            self.skip();
        }
        text
    }

    /// What stands between two quote tokens; the first is next.
    fn string(&mut self) -> String {
        self.skip();
        let text = self.until(&[]);
        self.skip();
        text
    }

    /// A JSON string; its first quote is next.
    fn json_string(&mut self) -> String {
        self.skip();
        let (mut raw, mut json) = (String::new(), String::from('"'));
        while let Some(Item::Char(c)) = self.peek() {
            self.skip();
            if c == '"' {
                break;
            }
            raw.push(c);
            // Line ends and tabs, as models write them in code, must be escaped in JSON.
            if c < ' ' {
                let _infallible = write!(json, "\\u{:04x}", u32::from(c));
                continue;
            }
            json.push(c);
            if c == '\\'
                && let Some(Item::Char(escaped)) = self.peek()
            {
                if escaped < ' ' {
                    // It escapes nothing: a line that goes on in the next one.
                    json.push('\\');
                    continue;
                }
                raw.push(escaped);
                json.push(escaped);
                self.skip();
            }
        }
        json.push('"');
        serde_json::from_str(&json).unwrap_or(raw)
    }

    /// A field's name. In quotes it is what stands between them, be it blanks or nothing.
    fn key(&mut self) -> Option<String> {
        self.blanks();
        match self.peek() {
            Some(Item::Quote) => Some(self.string()),
            Some(Item::Char('"')) => Some(self.json_string()),
            _ => {
                let key = self.until(&[':', '=', ',', '}']);
                Some(key.trim().to_owned()).filter(|key| !key.is_empty())
            }
        }
    }

    /// The fields up to the brace that closes them, or to the end.
    fn object(&mut self, depth: usize) -> Option<Map<String, Value>> {
        let mut fields = Map::new();
        loop {
            self.blanks();
            if self.peek().is_none() || self.take('}') || self.take(')') {
                return Some(fields);
            }
            if self.take(',') {
                continue;
            }
            let key = self.key()?;
            self.blanks();
            if !(self.take(':') || self.take('=')) {
                return None;
            }
            fields.insert(key, self.value(depth + 1)?);
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.blanks();
        Some(match self.peek() {
            Some(Item::Quote) => Value::String(self.string()),
            Some(Item::Char('"')) => Value::String(self.json_string()),
            Some(Item::Char('{')) => {
                self.skip();
                Value::Object(self.object(depth)?)
            }
            Some(Item::Char('[')) => {
                self.skip();
                let mut items = Vec::new();
                loop {
                    self.blanks();
                    if self.peek().is_none() || self.take(']') {
                        break;
                    }
                    if self.peek() == Some(Item::Char('}')) {
                        break;
                    }
                    if !self.take(',') {
                        items.push(self.value(depth + 1)?);
                    }
                }
                Value::Array(items)
            }
            _ => bare(self.until(&[',', '}', ']']).trim()),
        })
    }
}

/// A value without quotes: a number, a word of the language, else text.
fn bare(text: &str) -> Value {
    match text {
        "true" | "True" => Value::Bool(true),
        "false" | "False" => Value::Bool(false),
        "null" | "None" | "" => Value::Null,
        "-0" => Value::from(0),
        text => match text.parse::<Number>() {
            // A whole number beyond 64 bits would become another one: it stays what was written, as does `1e999`.
            Ok(number) if number.is_f64() && !text.contains(['.', 'e', 'E']) => {
                Value::String(text.to_owned())
            }
            Ok(number) => Value::Number(number),
            Err(_) => Value::String(text.to_owned()),
        },
    }
}
