//! Which result belongs to which call, for APIs that tell it by names and order alone.
//!
//! Conversations may have very many calls, and all of them are read on a thread that serves others too: everything here
//! takes time in proportion to their number.

use std::collections::{HashMap, VecDeque};

use super::{Piece, Role, Turn};

/// Calls in their order, and which of them wait for their results.
#[derive(Default)]
pub(super) struct OpenCalls {
    calls: Vec<OpenCall>,
    by_id: HashMap<String, VecDeque<usize>>,
    by_name: HashMap<String, VecDeque<usize>>,
    /// All calls before it have their results.
    first: usize,
}

struct OpenCall {
    id: String,
    is_open: bool,
}

impl OpenCalls {
    pub(super) fn push(&mut self, name: &str, id: &str) {
        let i = self.calls.len();
        self.by_id.entry(id.to_string()).or_default().push_back(i);
        self.by_name.entry(name.to_string()).or_default().push_back(i);
        self.calls.push(OpenCall {
            id: id.to_string(),
            is_open: true,
        });
    }

    /// The result of the call of this id is there.
    pub(super) fn answer(&mut self, id: &str) {
        if let Some(waiting) = self.by_id.get_mut(id) {
            take_open(waiting, &mut self.calls);
        }
    }

    /// The id of the call that a result without an id answers: the oldest of this name, or of all, that has none yet.
    pub(super) fn oldest(&mut self, name: Option<&str>) -> Option<String> {
        let i = match name {
            Some(name) => take_open(self.by_name.get_mut(name)?, &mut self.calls)?,
            None => {
                while !self.calls.get(self.first)?.is_open {
                    self.first += 1;
                }
                self.calls[self.first].is_open = false;
                self.first
            }
        };
        Some(self.calls[i].id.clone())
    }
}

/// Takes the first of these calls that is open; those before it have their results in another way.
fn take_open(waiting: &mut VecDeque<usize>, calls: &mut [OpenCall]) -> Option<usize> {
    while let Some(i) = waiting.pop_front() {
        if let Some(call) = calls.get_mut(i).filter(|call| call.is_open) {
            call.is_open = false;
            return Some(i);
        }
    }
    None
}

/// The names of the functions that were called, by the ids of their calls, as a conversation goes on: some servers count
/// their calls anew in every turn, so that what counts is the latest call of an id.
pub(super) struct Names<'a> {
    before: HashMap<&'a str, &'a str>,
    /// For results that stand before their calls.
    all: HashMap<&'a str, &'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn of(turns: &'a [Turn]) -> Self {
        let pieces = turns.iter().flat_map(|turn| &turn.pieces);
        Self {
            before: HashMap::new(),
            all: called(pieces).collect(),
        }
    }

    /// The function of which this is the call.
    pub(super) fn name(&self, id: &str) -> Option<&'a str> {
        self.before.get(id).or_else(|| self.all.get(id)).copied()
    }

    /// A turn has been told.
    pub(super) fn pass(&mut self, pieces: &[&'a Piece]) {
        self.before.extend(called(pieces.iter().copied()));
    }
}

/// Ids of calls, and whom they call.
fn called<'a>(pieces: impl Iterator<Item = &'a Piece>) -> impl Iterator<Item = (&'a str, &'a str)> {
    pieces.filter_map(|piece| match piece {
        Piece::Call { id, name, .. } => Some((id.as_str(), name.as_str())),
        _ => None,
    })
}

/// The pieces of every turn, with the results among them in the order of the calls that they answer: providers without
/// ids tell the results of one function apart by nothing else, and clients send them in the order in which they came.
pub(super) fn in_order(turns: &[Turn]) -> impl Iterator<Item = (Role, Vec<&Piece>)> {
    let before = std::iter::once::<&[Piece]>(&[]).chain(turns.iter().map(|turn| turn.pieces.as_slice()));
    turns
        .iter()
        .zip(before)
        .map(|(turn, before)| (turn.role, ordered(&turn.pieces, before)))
}

/// Only results move, each into the place of another.
fn ordered<'a>(pieces: &'a [Piece], calls: &[Piece]) -> Vec<&'a Piece> {
    let ids = called(calls.iter()).map(|(id, _)| id);
    let places: HashMap<&str, usize> = ids.enumerate().map(|(i, id)| (id, i)).collect();
    let place = |piece: &&Piece| match piece {
        Piece::Result { id, .. } => places.get(id.as_str()).copied().unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let is_result = |piece: &&Piece| matches!(piece, Piece::Result { .. });
    let mut results: Vec<&Piece> = pieces.iter().filter(is_result).collect();
    results.sort_by_key(place);
    let mut results = results.into_iter();
    let put = |piece: &'a Piece| match piece {
        Piece::Result { .. } => results.next().unwrap_or(piece),
        other => other,
    };
    pieces.iter().map(put).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::endpoint::{Dialect, Endpoint};
    use crate::translate::Question;

    #[test]
    fn a_result_answers_its_call_or_the_oldest_that_has_none() {
        let mut calls = OpenCalls::default();
        for (name, id) in [("f", "a"), ("g", "b"), ("f", "c"), ("f", "d")] {
            calls.push(name, id);
        }
        calls.answer("a");
        assert_eq!(calls.oldest(Some("f")).as_deref(), Some("c"));
        assert_eq!(calls.oldest(None).as_deref(), Some("b"));
        assert_eq!(calls.oldest(None).as_deref(), Some("d"));
        assert_eq!(calls.oldest(None), None);
        assert_eq!(calls.oldest(Some("f")), None);
        // An id may come again in a later turn.
        calls.push("f", "a");
        assert_eq!(calls.oldest(Some("f")).as_deref(), Some("a"));
        assert_eq!(calls.oldest(Some("h")), None);
    }

    #[test]
    fn results_go_out_in_the_order_of_their_calls() {
        let call = |id: &str, city: &str| {
            let arguments = json!({"city": city}).to_string();
            json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}})
        };
        let result = |id: &str, said: &str| json!({"role": "tool", "tool_call_id": id, "content": said});
        let body = json!({"messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "tool_calls": [call("c1", "Paris"), call("c2", "London")]},
            result("c2", "in London"),
            {"role": "user", "content": "and then"},
            result("c1", "in Paris"),
        ]});
        let question = Question::read(Endpoint::Chat, &body).unwrap();
        let (told, _) = question.write(Dialect::Gemini, "m").unwrap();
        let parts = &told["contents"][2]["parts"];
        assert_eq!(
            parts[0]["functionResponse"]["response"],
            json!({"result": "in Paris"}),
            "{told}"
        );
        assert_eq!(parts[1]["text"], "and then", "{told}");
        assert_eq!(
            parts[2]["functionResponse"]["response"],
            json!({"result": "in London"}),
            "{told}"
        );
        let (told, _) = question.write(Dialect::Ollama, "m").unwrap();
        let said = [2, 3, 4].map(|i: usize| told["messages"][i]["content"].as_str().unwrap());
        assert_eq!(said, ["in Paris", "in London", "and then"]);
    }

    #[test]
    fn ids_that_come_again_are_those_of_the_latest_calls() {
        let turn = |name: &str| {
            let call = json!({"id": "0", "type": "function", "function": {"name": name, "arguments": "{}"}});
            let result = json!({"role": "tool", "tool_call_id": "0", "content": "x"});
            [json!({"role": "assistant", "tool_calls": [call]}), result]
        };
        let turns = [turn("f"), turn("g")].concat();
        let body = json!({"messages": turns});
        let question = Question::read(Endpoint::Chat, &body).unwrap();
        let (told, _) = question.write(Dialect::Gemini, "m").unwrap();
        let name = |turn: usize| &told["contents"][turn]["parts"][0]["functionResponse"]["name"];
        assert_eq!((name(1), name(3)), (&json!("f"), &json!("g")), "{told}");
        let (told, _) = question.write(Dialect::Ollama, "m").unwrap();
        let name = |turn: usize| &told["messages"][turn]["tool_name"];
        assert_eq!((name(1), name(3)), (&json!("f"), &json!("g")), "{told}");
    }

    /// A conversation of so many calls, each with a result, as clients of this API have it.
    fn conversation(endpoint: Endpoint, n: usize) -> Value {
        let name = |i: usize| format!("f{i}");
        let list = |one: &dyn Fn(usize) -> Value| (0..n).map(one).collect::<Vec<Value>>();
        let function = |i: usize| json!({"name": name(i), "arguments": "{}"});
        match endpoint {
            Endpoint::Generate => {
                let result = |i| json!({"functionResponse": {"name": name(n - 1 - i), "response": {}}});
                json!({"contents": [
                    {"role": "model", "parts": list(&|i| json!({"functionCall": {"name": name(i)}}))},
                    {"role": "user", "parts": list(&result)},
                ]})
            }
            Endpoint::OllamaChat => {
                let calls = list(&|i| json!({"function": {"name": name(i)}}));
                let mut turns = vec![json!({"role": "assistant", "tool_calls": calls})];
                turns.extend(list(&|i| json!({"role": "tool", "tool_name": name(n - 1 - i)})));
                json!({"messages": turns})
            }
            _ => {
                let calls = list(&|i| json!({"id": name(i), "function": function(i)}));
                let mut turns = vec![json!({"role": "assistant", "tool_calls": calls})];
                turns.extend(list(
                    &|i| json!({"role": "tool", "tool_call_id": name(n - 1 - i)}),
                ));
                json!({"messages": turns})
            }
        }
    }

    /// A request with so many tools that may be called, and as many properties that an answer must have.
    fn offer(n: usize) -> Value {
        let name = |i: usize| format!("f{i}");
        let tools = |i| json!({"type": "function", "function": {"name": name(i)}});
        let tools: Vec<Value> = (0..n).map(tools).collect();
        let properties: serde_json::Map<_, _> = (0..n).map(|i| (name(i), json!({}))).collect();
        let required: Vec<String> = (0..n).rev().map(name).collect();
        let schema = json!({"type": "object", "additionalProperties": false, "properties": properties, "required": required});
        json!({"messages": [], "tools": tools,
            "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}},
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}})
    }

    /// As many calls as a body of some megabytes holds: each is found by its key, since looking through all of them for
    /// each would hold a serving thread for minutes.
    #[test]
    fn long_conversations_find_every_call() {
        let n = 64_000;
        let write = |endpoint, dialect| {
            let question = Question::read(endpoint, &conversation(endpoint, n)).unwrap();
            question.write(dialect, "m").unwrap().0
        };
        let told = write(Endpoint::Chat, Dialect::Gemini);
        let answered = &told["contents"][1]["parts"];
        assert!((0..n).all(|i| answered[i]["functionResponse"]["name"] == format!("f{i}")));
        let told = write(Endpoint::Chat, Dialect::Ollama);
        assert!((0..n).all(|i| told["messages"][1 + i]["tool_name"] == format!("f{i}")));
        for endpoint in [Endpoint::Generate, Endpoint::OllamaChat] {
            let told = write(endpoint, Dialect::OpenAi);
            let calls = &told["messages"][0]["tool_calls"];
            let id = |i: usize| &calls[n - 1 - i]["id"];
            assert!((0..n).all(|i| id(i).is_string() && told["messages"][1 + i]["tool_call_id"] == *id(i)));
        }
        let question = Question::read(Endpoint::Chat, &offer(n)).unwrap();
        let (told, _) = question.write(Dialect::OpenAi, "m").unwrap();
        assert_eq!(told["tools"].as_array().unwrap().len(), n);
    }
}
