//! What a provider answers, whole or in chunks.

use serde_json::Value;

use crate::failure::Failure;
use crate::records::Record;
use crate::translate::{Event, Finish, Reader, new_id, text, words};
use crate::usage::OpenAiUsage;

/// Reads chunks and completions.
pub(in crate::translate) struct ChatReader {
    is_apart: bool,
    has_begun: bool,
    /// Calls so far, of which the first `n_told` have begun for whoever reads the events.
    calls: Vec<Said>,
    n_told: usize,
    /// Words that were said in the middle of a call: streams of some APIs have nothing within a call but its arguments.
    held: Vec<Event>,
    is_done: bool,
}

/// A call, as far as it was said. Some providers say several at once, a piece of each in turns; events have one after
/// the other, so that those after the first wait for its arguments to be whole.
struct Said {
    index: u64,
    /// As the provider says it.
    id: Option<String>,
    begins: Event,
    arguments: String,
}

impl Said {
    fn is_whole(&self) -> bool {
        serde_json::from_str::<serde::de::IgnoredAny>(&self.arguments).is_ok()
    }
}

impl ChatReader {
    pub(in crate::translate) fn new(is_apart: bool) -> Self {
        Self {
            is_apart,
            has_begun: false,
            calls: Vec::new(),
            n_told: 0,
            held: Vec::new(),
            is_done: false,
        }
    }

    fn read(&mut self, value: &Value, said: &str, events: &mut Vec<Event>) {
        if !self.has_begun {
            self.has_begun = true;
            let id = text(&value["id"]).unwrap_or_else(|| new_id(""));
            events.push(Event::Begin {
                id: id.trim_start_matches("chatcmpl-").to_string(),
                model: text(&value["model"]).unwrap_or_default(),
            });
        }
        let choice = &value["choices"][0];
        let message = &choice[said];
        read_words(message, &mut self.held);
        self.let_out(false, events);
        for (i, call) in message["tool_calls"].as_array().into_iter().flatten().enumerate() {
            self.read_call(call, i as u64, events);
        }
        let is_last = choice["finish_reason"].is_string() || said == "message";
        self.tell_calls(is_last, events);
        self.let_out(is_last, events);
        // Groq says it beside what is usual, and Moonshot within a choice.
        let within = value["choices"].as_array().into_iter().flatten();
        let usage = [&value["usage"], &value["x_groq"]["usage"]]
            .into_iter()
            .chain(within.map(|choice| &choice["usage"]))
            .find(|usage| usage.is_object());
        if let Some(usage) = usage
            && let Ok(usage) = serde_json::from_value::<OpenAiUsage>(usage.clone())
        {
            events.push(Event::Usage(usage.usage(self.is_apart)));
        }
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.is_done = true;
            let finish = finish_of(finish);
            // Some say `stop` although they call.
            let finish = if finish == Finish::Stop && !self.calls.is_empty() {
                Finish::Calls
            } else {
                finish
            };
            events.push(Event::End(finish));
        }
    }

    fn read_call(&mut self, call: &Value, i: u64, events: &mut Vec<Event>) {
        let index = call["index"].as_u64().unwrap_or(i);
        let function = &call["function"];
        let id = words(&call["id"]);
        // Some number every call 0, and only the id tells that another begins.
        let is_it = |said: &Said| {
            let is_other = said.id.is_some() && id.is_some() && said.id != id;
            said.index == index && !is_other
        };
        let at = self.calls.iter().rposition(is_it).unwrap_or(self.calls.len());
        if at == self.calls.len() {
            let begins = Event::Call {
                id: id.clone().unwrap_or_else(|| new_id("call_")),
                name: text(&function["name"]).unwrap_or_default(),
                signature: text(&call["extra_content"]["google"]["thought_signature"]),
            };
            let arguments = String::new();
            self.calls.push(Said {
                index,
                id,
                begins,
                arguments,
            });
            self.tell_calls(false, events);
        }
        if let Some(more) = words(&function["arguments"]) {
            self.calls[at].arguments.push_str(&more);
            if at + 1 == self.n_told {
                events.push(Event::Arguments(more));
            }
        }
    }

    /// Says what was held, if no call is half said, or none will be.
    fn let_out(&mut self, is_end: bool, events: &mut Vec<Event>) {
        if self.held.is_empty() {
            return;
        }
        let latest = self.n_told.checked_sub(1).and_then(|at| self.calls.get(at));
        if is_end || latest.is_none_or(Said::is_whole) {
            events.append(&mut self.held);
        }
    }

    /// Begins calls whose turn it is; all of them at the end.
    fn tell_calls(&mut self, is_end: bool, events: &mut Vec<Event>) {
        while let Some(next) = self.calls.get(self.n_told) {
            let before = self
                .n_told
                .checked_sub(1)
                .and_then(|before| self.calls.get(before));
            if !is_end && before.is_some_and(|before| !before.is_whole()) {
                return;
            }
            events.push(next.begins.clone());
            if !next.arguments.is_empty() {
                events.push(Event::Arguments(next.arguments.clone()));
            }
            self.n_told += 1;
        }
    }
}

/// What is thought and said in a message or a piece of one.
fn read_words(message: &Value, events: &mut Vec<Event>) {
    let thoughts = words(&message["reasoning_content"]).or(words(&message["reasoning"]));
    events.extend(thoughts.map(Event::Thinking));
    events.extend(words(&message["content"]).map(Event::Text));
    // Mistral's models that think say it in parts.
    for part in message["content"].as_array().into_iter().flatten() {
        events.extend(words(&part["text"]).map(Event::Text));
        for part in part["thinking"].as_array().into_iter().flatten() {
            events.extend(words(&part["text"]).map(Event::Thinking));
        }
    }
    events.extend(words(&message["refusal"]).map(Event::Text));
}

/// MiniMax's way to say, within an answer, that it is none.
fn refuse_disguised(value: &Value) -> Result<(), Failure> {
    let base = &value["base_resp"];
    match base["status_code"].as_i64() {
        None | Some(0) => Ok(()),
        Some(code) => Err(Failure::of_base(
            code,
            base["status_msg"].as_str().unwrap_or_default(),
        )),
    }
}

impl Reader for ChatReader {
    fn record(&mut self, record: &Record<'_>, events: &mut Vec<Event>) -> Result<bool, Failure> {
        let data = record.data.trim_ascii();
        if data.is_empty() {
            return Ok(true);
        }
        if data.starts_with(b"[DONE]") {
            self.is_done = true;
            return Ok(true);
        }
        let Ok(value) = serde_json::from_slice::<Value>(data) else {
            return Ok(false);
        };
        if !value["error"].is_null() {
            return Err(Failure::of_value(&value, None));
        }
        refuse_disguised(&value)?;
        self.read(&value, "delta", events);
        Ok(true)
    }

    fn whole(&mut self, answer: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        if !answer["error"].is_null() {
            return Err(Failure::of_value(answer, None));
        }
        refuse_disguised(answer)?;
        self.read(answer, "message", events);
        Ok(())
    }

    fn end(&mut self, events: &mut Vec<Event>) -> bool {
        if self.is_done {
            self.tell_calls(true, events);
            self.let_out(true, events);
        }
        self.is_done
    }
}

pub(crate) fn finish_of(name: &str) -> Finish {
    match name {
        "length" => Finish::Length,
        "tool_calls" | "function_call" => Finish::Calls,
        "content_filter" => Finish::Filter,
        _ => Finish::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::Usage;
    use serde_json::json;

    fn read(chunks: &[Value]) -> Vec<Event> {
        let (mut reader, mut events) = (ChatReader::new(false), Vec::new());
        chunks
            .iter()
            .for_each(|chunk| reader.read(chunk, "delta", &mut events));
        events.remove(0);
        events
    }

    #[test]
    fn usage_is_read_wherever_it_stands() {
        let tokens =
            json!({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "cached_tokens": 8});
        let last = |more: Value| {
            let mut chunk =
                json!({"id": "1", "choices": [{"delta": {}, "finish_reason": "stop"}], "usage": null});
            for (name, value) in more.as_object().unwrap() {
                chunk[name] = value.clone();
            }
            chunk
        };
        let expected = Event::Usage(Usage {
            input: 9,
            cache_read: 8,
            output: 2,
            ..Usage::default()
        });
        for chunk in [
            last(json!({"usage": tokens})),
            last(json!({"x_groq": {"id": "r", "usage": tokens}})),
            last(json!({"choices": [{"delta": {}, "finish_reason": "stop", "usage": tokens}]})),
        ] {
            assert_eq!(read(std::slice::from_ref(&chunk))[0], expected, "{chunk}");
        }
        let none = json!({"choices": null, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}});
        let failure = ChatReader::new(false).whole(&none, &mut Vec::new()).unwrap_err();
        assert_eq!(
            (failure.class, failure.message.as_str()),
            (crate::failure::Class::OutOfQuota, "insufficient balance")
        );
        let fine = json!({"choices": [], "base_resp": {"status_code": 0, "status_msg": ""}});
        assert!(ChatReader::new(false).whole(&fine, &mut Vec::new()).is_ok());
    }

    #[test]
    fn words_in_parts_and_calls_without_numbers_are_read() {
        let parts = json!([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "Hi"}]);
        let delta = |delta: Value| json!({"id": "1", "choices": [{"delta": delta}]});
        assert_eq!(
            read(&[
                delta(json!({"content": parts})),
                delta(json!({"content": "", "refusal": "No"}))
            ]),
            [
                Event::Thinking("hm".into()),
                Event::Text("Hi".into()),
                Event::Text("No".into())
            ]
        );
        let call = |id: &str| {
            let function = json!({"name": "f", "arguments": "{}"});
            delta(json!({"tool_calls": [{"index": 0, "id": id, "function": function}]}))
        };
        let calls = read(&[call("a"), call("b")]);
        let calls = calls.iter().filter(|event| matches!(event, Event::Call { .. }));
        assert_eq!(calls.count(), 2, "two ids are two calls, whatever their index");
    }

    /// What a client of each API is told of a call whose arguments come in pieces, with a count and a word between them.
    #[test]
    fn a_call_is_whole_whatever_is_said_in_the_middle_of_it() {
        use crate::endpoint::Endpoint;
        use crate::translate::{Answer, whole, writer};
        let usage = json!({"prompt_tokens": 3, "completion_tokens": 1});
        let chunk = |delta: Value| json!({"id": "1", "choices": [{"delta": delta}], "usage": usage});
        let piece = |text: &str| json!({"tool_calls": [{"index": 0, "function": {"arguments": text}}]});
        let begins =
            json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]});
        let events = read(&[
            chunk(begins),
            chunk(piece("{\"a\"")),
            chunk(json!({"content": "so"})),
            chunk(piece(":1}")),
            chunk(json!({"content": "on"})),
            json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}),
        ]);
        let words: Vec<&Event> = events
            .iter()
            .filter(|event| !matches!(event, Event::Usage(_)))
            .collect();
        let said = |text: &str| Event::Text(text.into());
        let more = |text: &str| Event::Arguments(text.into());
        assert!(matches!(words[0], Event::Call { .. }), "{words:?}");
        assert_eq!(
            words[1..],
            [
                &more("{\"a\""),
                &more(":1}"),
                &said("so"),
                &said("on"),
                &Event::End(Finish::Calls)
            ]
        );
        for (endpoint, call) in [
            (Endpoint::Chat, r#""arguments":":1}""#),
            (Endpoint::Generate, r#""args":{"a":1}"#),
            (Endpoint::OllamaChat, r#""arguments":{"a":1}"#),
            (Endpoint::Messages, r#""partial_json":":1}""#),
            (Endpoint::Responses, r#""arguments":"{\"a\":1}""#),
        ] {
            let (mut writer, mut out) = (writer(endpoint, true), Vec::new());
            events.iter().for_each(|event| writer.event(event, &mut out));
            writer.end(&mut out);
            let out = String::from_utf8(out).unwrap();
            assert!(out.contains(call), "{endpoint:?}: {out}");
            // What was streamed and kept may be asked for whole.
            let whole = whole(endpoint, &Answer::of(events.clone())).to_string();
            let is_whole = whole.contains(r#"{"a":1}"#) || whole.contains(r#"{\"a\":1}"#);
            assert!(is_whole, "{endpoint:?}: {whole}");
        }
    }

    #[test]
    fn calls_that_are_said_in_turns_do_not_mix() {
        let delta = |calls: Value| json!({"id": "1", "choices": [{"delta": {"tool_calls": calls}}]});
        let begins = |i: u64, name: &str| {
            let function = json!({"name": name, "arguments": ""});
            json!({"index": i, "id": format!("c{i}"), "function": function})
        };
        let more = |i: u64, text: &str| json!({"index": i, "function": {"arguments": text}});
        let end = json!({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]});
        let told = |chunks: &[Value]| {
            let mut calls: Vec<(String, String, String)> = Vec::new();
            for event in read(chunks) {
                match event {
                    Event::Call { id, name, .. } => calls.push((id, name, String::new())),
                    Event::Arguments(more) => calls.last_mut().unwrap().2.push_str(&more),
                    _ => {}
                }
            }
            calls
        };
        let expected = [
            ("c0".to_string(), "f".to_string(), r#"{"a":1}"#.to_string()),
            ("c1".to_string(), "g".to_string(), r#"{"b":2}"#.to_string()),
        ];
        let in_turns = [
            delta(json!([begins(0, "f"), begins(1, "g")])),
            delta(json!([more(0, "{\"a\""), more(1, "{\"b\"")])),
            delta(json!([more(1, ":2}")])),
            delta(json!([more(0, ":1}")])),
            end.clone(),
        ];
        assert_eq!(told(&in_turns), expected);
        let in_order = [
            delta(json!([begins(0, "f")])),
            delta(json!([more(0, r#"{"a":1}"#)])),
            delta(json!([begins(1, "g")])),
            delta(json!([more(1, r#"{"b":2}"#)])),
        ];
        assert_eq!(told(&in_order), expected, "nobody waits for the end");
        let without = [
            delta(json!([begins(0, "f")])),
            delta(json!([begins(1, "g")])),
            end,
        ];
        assert_eq!(told(&without).len(), 2);
    }
}
