//! Tools by prompting: how the model is told of them, what its calls must look like, and how they are read.
//!
//! Gemma 3 has no tokens for tools; what it was trained on is a list of functions as JSON in the prompt and calls as JSON
//! in the answer. A grammar makes sure of the form: an answer is either text that does not begin with `{`, or calls and
//! nothing else, each `{"name": NAME, "parameters": OBJECT}` with an object that is valid for the function's schema. So
//! calls can be read as they come, and never need mending.

use std::fmt::Write;

use carat_api::{ApiError, Delta, GenerationRequest, Part, Role, ToolCall, ToolChoice, Turn};
use carat_engine::Grammar;
use serde_json::{Value, json};

use super::{MAX_WAITING, arguments_schema, callable, no_call};
use crate::tools::schema::{check, compact};

/// What a call begins with, up to its name.
const HEAD: &str = "{\"name\": \"";
/// What stands between name and arguments.
const MIDDLE: &str = "\", \"parameters\": ";

/// What the model is told, to stand at the end of the system text.
pub(crate) fn instructions(request: &GenerationRequest) -> String {
    let functions: Vec<Value> = request
        .tools
        .iter()
        .map(
            |tool| json!({"name": tool.name, "description": tool.description, "parameters": tool.parameters}),
        )
        .collect();
    let mut text = String::from("You have access to functions. ");
    text.push_str(match &request.tool_choice {
        ToolChoice::Required => "Call at least one of them now. ",
        _ => "If you decide to call one, answer with nothing but the call. ",
    });
    if let ToolChoice::Named(name) = &request.tool_choice {
        let _infallible = write!(text, "Call `{name}` now. ");
    }
    text.push_str("A call looks like this, one on a line:\n{\"name\": function name, \"parameters\": {argument: value}}\n\n");
    text.push_str(&Value::from(functions).to_string());
    text
}

/// What binds an answer that may call tools.
pub(crate) fn grammar(request: &GenerationRequest) -> Result<Grammar, ApiError> {
    let tools = callable(request);
    let mut lark = String::new();
    lark.push_str(match (&request.tool_choice, request.parallel_tool_calls) {
        (ToolChoice::Auto, true) => "start: | TEXT | call (\"\\n\" call){0,15}\nTEXT: /[^{](.|\\n)*/\n",
        (ToolChoice::Auto, false) => "start: | TEXT | call\nTEXT: /[^{](.|\\n)*/\n",
        (ToolChoice::Required, true) => "start: call (\"\\n\" call){0,15}\n",
        _ => "start: call\n",
    });
    let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
    let _infallible = writeln!(lark, "call: {}", names.join(" | "));
    for (i, tool) in tools.iter().enumerate() {
        let schema = arguments_schema(tool);
        if tool.is_strict {
            check(&schema, "tools")?;
        }
        let head = Value::from(format!("{HEAD}{}{MIDDLE}", tool.name)).to_string();
        let _infallible = writeln!(lark, "call_{i}: {head} arguments_{i} \"}}\"");
        let _infallible = writeln!(lark, "arguments_{i}: %json {}", compact(&schema, tool.is_strict));
    }
    Ok(Grammar::Lark(lark))
}

/// Turns with calls and results written as text. Results must answer a call that the model made.
pub(crate) fn as_text(turns: &[Turn]) -> Result<Vec<Turn>, ApiError> {
    let mut calls: Vec<&ToolCall> = Vec::new();
    let mut written = Vec::with_capacity(turns.len());
    for turn in turns {
        match turn.role {
            Role::Assistant if !turn.tool_calls.is_empty() => {
                calls.extend(&turn.tool_calls);
                let lines = turn
                    .tool_calls
                    .iter()
                    .map(|call| format!("{HEAD}{}{MIDDLE}{}}}", call.name, call.arguments));
                let said = Some(text_of(turn)).filter(|text| !text.is_empty());
                let all: Vec<String> = said.into_iter().chain(lines).collect();
                written.push(Turn::text(Role::Assistant, all.join("\n")));
            }
            Role::Tool => {
                let name = result_of(turn, &calls).ok_or_else(|| no_call(turn))?;
                let text = format!("Result of {name}: {}", text_of(turn));
                let media = turn.parts.iter().filter(|part| !matches!(part, Part::Text(_)));
                let parts = std::iter::once(Part::Text(text)).chain(media.cloned());
                written.push(Turn::new(Role::User, parts.collect()));
            }
            _ => written.push(Turn::new(turn.role, turn.parts.clone())),
        }
    }
    Ok(written)
}

/// A turn's text without its images and sounds.
fn text_of(turn: &Turn) -> String {
    let texts = turn.parts.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.as_str()),
        Part::Image(_) | Part::Audio(_) | Part::Video(_) => None,
    });
    texts.collect()
}

/// The name of the function whose result a turn is.
fn result_of(turn: &Turn, calls: &[&ToolCall]) -> Option<String> {
    let id = turn.tool_call_id.as_deref().unwrap_or_default();
    let calls = &calls[calls.len().saturating_sub(MAX_WAITING)..];
    let by_id = calls.iter().rev().find(|call| !id.is_empty() && call.id == id);
    let by_name = || {
        calls
            .iter()
            .rev()
            .find(|call| turn.name.as_deref() == Some(&call.name))
    };
    // Ollama's clients send results in order, without a word on which call they answer.
    let latest = || calls.last().filter(|_| id.is_empty() && turn.name.is_none());
    by_id
        .or_else(by_name)
        .or_else(latest)
        .map(|call| call.name.clone())
}

/// Reads calls as they come.
pub(crate) struct CallReader {
    place: Place,
    /// Text that is not decided yet.
    held: String,
    n_calls: usize,
    /// Makes the calls' ids.
    id: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Nothing has come.
    Start,
    /// It is plain text.
    Text,
    /// Before or in a call's name.
    Name,
    /// In its arguments, so deep in braces, and whether in a string.
    Arguments {
        depth: usize,
        in_string: bool,
        escaped: bool,
    },
    /// Behind its arguments.
    Between,
}

impl CallReader {
    /// A reader at the start of an answer; calls are named after `id`.
    pub(crate) fn new(id: String) -> Self {
        Self {
            place: Place::Start,
            held: String::new(),
            n_calls: 0,
            id,
        }
    }

    /// Calls that were read.
    pub(crate) fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// Whether the arguments of the latest call are not whole.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.place, Place::Arguments { .. })
    }

    /// Whether the answer is calls and no text.
    pub(crate) fn is_calling(&self) -> bool {
        !matches!(self.place, Place::Start | Place::Text)
    }

    /// Takes the next piece of text.
    pub(crate) fn push(&mut self, text: &str, out: &mut Vec<Delta>) {
        self.held.push_str(text);
        loop {
            let before = self.held.len();
            match self.place {
                Place::Start => match self.held.chars().next() {
                    None => return,
                    Some('{') => self.place = Place::Name,
                    Some(_) => self.place = Place::Text,
                },
                Place::Text => {
                    if !self.held.is_empty() {
                        out.push(Delta::Text(std::mem::take(&mut self.held)));
                    }
                    return;
                }
                Place::Name => {
                    let Some(at) = self.held.find(MIDDLE) else { return };
                    let name = self.held[..at].strip_prefix(HEAD).unwrap_or_default().to_string();
                    self.held.drain(..at + MIDDLE.len());
                    let id = format!("call_{}{}", self.id, self.n_calls);
                    out.push(Delta::ToolCall {
                        index: self.n_calls,
                        id,
                        name,
                    });
                    self.n_calls += 1;
                    self.place = Place::Arguments {
                        depth: 0,
                        in_string: false,
                        escaped: false,
                    };
                }
                Place::Arguments { .. } => self.arguments(out),
                Place::Between => {
                    // The call's own brace and the line's end.
                    let rest = self.held.trim_start_matches(['}', '\n']);
                    self.held = rest.to_string();
                    if self.held.is_empty() {
                        return;
                    }
                    self.place = Place::Name;
                }
            }
            if self.held.is_empty()
                || (self.held.len() == before && matches!(self.place, Place::Arguments { .. }))
            {
                return;
            }
        }
    }

    /// Passes on what belongs to the arguments, up to the brace that closes them.
    fn arguments(&mut self, out: &mut Vec<Delta>) {
        let Place::Arguments {
            mut depth,
            mut in_string,
            mut escaped,
        } = self.place
        else {
            return;
        };
        let mut end = None;
        for (at, c) in self.held.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' if in_string => escaped = true,
                '"' => in_string = !in_string,
                '{' | '[' if !in_string => depth += 1,
                '}' | ']' if !in_string => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        end = Some(at + 1);
                        break;
                    }
                }
                _ => {}
            }
        }
        let text: String = self.held.drain(..end.unwrap_or(self.held.len())).collect();
        self.place = match end {
            Some(_) => Place::Between,
            None => Place::Arguments {
                depth,
                in_string,
                escaped,
            },
        };
        if !text.is_empty() {
            out.push(Delta::Arguments {
                index: self.n_calls.saturating_sub(1),
                text,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let mut reader = CallReader::new("x".into());
        let mut deltas = Vec::new();
        pieces.iter().for_each(|piece| reader.push(piece, &mut deltas));
        let (mut text, mut calls) = (String::new(), Vec::new());
        for delta in deltas {
            match delta {
                Delta::Text(more) => text.push_str(&more),
                Delta::ToolCall { name, .. } => calls.push((name, String::new())),
                Delta::Arguments { index, text } => calls[index].1.push_str(&text),
                _ => {}
            }
        }
        (text, calls)
    }

    #[test]
    fn calls_are_read_however_they_are_cut() {
        let whole = "{\"name\": \"w\", \"parameters\": {\"a\": \"}\\\"{\", \"b\": [{}]}}\n{\"name\": \"v\", \"parameters\": {}}";
        let expected = vec![
            ("w".to_string(), "{\"a\": \"}\\\"{\", \"b\": [{}]}".to_string()),
            ("v".to_string(), "{}".to_string()),
        ];
        for cut in 0..=whole.len() {
            for second in cut..=whole.len() {
                let found = read(&[&whole[..cut], &whole[cut..second], &whole[second..]]);
                assert_eq!(
                    found,
                    (String::new(), expected.clone()),
                    "cut at {cut} and {second}"
                );
            }
        }
        let is_open = |text: &str| {
            let mut reader = CallReader::new("x".into());
            reader.push(text, &mut Vec::new());
            reader.is_open()
        };
        assert!(is_open(&whole[..40]) && !is_open(whole));
        assert_eq!(read(&["Hel", "lo {x}"]), ("Hello {x}".to_string(), Vec::new()));
    }

    #[test]
    fn results_must_answer_a_call() {
        let call = ToolCall {
            id: "c1".into(),
            name: "w".into(),
            arguments: json!({"a": 1}),
        };
        let made = Turn {
            tool_calls: vec![call],
            ..Turn::new(Role::Assistant, Vec::new())
        };
        let result = |id: &str| Turn {
            tool_call_id: Some(id.into()),
            ..Turn::text(Role::Tool, "sun").at("messages[1]")
        };
        let turns = as_text(&[Turn::text(Role::User, "?"), made.clone(), result("c1")]).unwrap();
        assert_eq!(
            turns[1],
            Turn::text(Role::Assistant, "{\"name\": \"w\", \"parameters\": {\"a\":1}}")
        );
        assert_eq!(turns[2], Turn::text(Role::User, "Result of w: sun"));
        let error = as_text(&[made, result("other")]).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[1]"));
    }
}
