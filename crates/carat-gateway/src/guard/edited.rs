//! A stream that goes on as it came, but for the texts in it.
//!
//! Where client and provider speak the same API its events keep all that they have, known here or not: only the texts in
//! them are looked at, each kind of text of each answer on its own. What is held back of a text goes out with its next
//! event, or before whatever ends it, in an event that is like its last one. Probabilities of tokens are taken out, since
//! they repeat the text in pieces.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Value, json};

use super::scrub::{Denied, Scrubber};
use super::{Guard, Marks, answer_denied, without_logprobs};
use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::records::{Framing, Record};
use crate::stream::{Forwarding, Step, Transform};
use crate::usage::Usage;

/// Most texts of a stream that go on beside each other: more answers than anybody gives at once.
const MOST_FLOWS: usize = 128;

/// A guarded stream.
pub(crate) struct Edited {
    guard: Arc<Guard>,
    endpoint: Endpoint,
    framing: Framing,
    inner: Box<dyn Transform>,
    flows: Vec<Flow>,
    /// Events of responses are numbered.
    n_events: u64,
}

/// A text on its way.
struct Flow {
    /// Which of several answers, and which of its texts.
    place: (u64, String),
    scrubber: Scrubber,
    /// An event like the one that it was last in, with nothing else in it.
    event: Value,
    name: Vec<u8>,
    /// Where it is in that.
    pointer: String,
}

/// A text in an event.
struct Slot {
    place: (u64, String),
    pointer: String,
}

/// What an event has in it.
#[derive(Default)]
struct Contents {
    slots: Vec<Slot>,
    /// Answers that end with it.
    ends: Vec<u64>,
    /// It ends every text.
    ends_all: bool,
}

impl Edited {
    pub(crate) fn new(forwarding: Forwarding, guard: Arc<Guard>) -> Self {
        Self {
            guard,
            endpoint: forwarding.endpoint,
            framing: forwarding.framing(),
            inner: forwarding.transform(),
            flows: Vec::new(),
            n_events: 0,
        }
    }

    /// Looks at an event and gives it out.
    fn edit(&mut self, name: &[u8], mut event: Value, out: &mut Vec<u8>) -> Result<Step, Denied> {
        let contents = contents(self.endpoint, &event);
        without_logprobs(&mut event);
        let mut step = Step::Quiet;
        let is_over = |flow: &Flow| {
            let (group, voice) = &flow.place;
            let has = |slot: &Slot| slot.place == flow.place;
            let is_other = |slot: &Slot| slot.place.0 == *group && slot.place.1 != *voice;
            let goes_on = contents.slots.iter().any(has);
            !goes_on
                && (contents.ends_all || contents.ends.contains(group) || contents.slots.iter().any(is_other))
        };
        let (over, mut flows): (Vec<Flow>, Vec<Flow>) =
            std::mem::take(&mut self.flows).into_iter().partition(is_over);
        for flow in over {
            step = further(step, self.finish(flow, out)?);
        }
        if flows.len() + contents.slots.len() > MOST_FLOWS {
            for flow in flows.drain(..) {
                step = further(step, self.finish(flow, out)?);
            }
        }
        self.flows = flows;
        if contents.slots.is_empty() {
            self.mark(&mut event)?;
        } else {
            self.scrub(name, &mut event, &contents)?;
        }
        Ok(further(step, self.give(name, event, out)))
    }

    /// Replaces the texts of an event by what can go out. What else is said in it stands there as a whole.
    fn scrub(&mut self, name: &[u8], event: &mut Value, contents: &Contents) -> Result<(), Denied> {
        let guard = Arc::clone(&self.guard);
        let look = guard.answers();
        let texts: Vec<String> = contents
            .slots
            .iter()
            .map(|slot| take(event, &slot.pointer))
            .collect();
        self.mark(event)?;
        let empty = event.clone();
        for (slot, text) in contents.slots.iter().zip(texts) {
            let at = self.flows.iter().position(|flow| flow.place == slot.place);
            let mut flow = match at {
                Some(at) => self.flows.swap_remove(at),
                None => Flow {
                    place: slot.place.clone(),
                    scrubber: Scrubber::default(),
                    event: Value::Null,
                    name: Vec::new(),
                    pointer: String::new(),
                },
            };
            let mut said = flow.scrubber.push(look, &text)?;
            if contents.ends_all || contents.ends.contains(&slot.place.0) {
                said.push_str(&flow.scrubber.finish(look)?);
            } else {
                (flow.event, flow.pointer) = alone(&empty, &slot.pointer);
                flow.name = name.to_vec();
                self.flows.push(flow);
            }
            put(event, &slot.pointer, &said);
        }
        Ok(())
    }

    /// Marks what is private in texts that do not go on.
    fn mark(&self, event: &mut Value) -> Result<(), Denied> {
        let mut marks = Marks::new(self.guard.answers());
        marks.walk(event);
        if marks.is_denied { Err(Denied) } else { Ok(()) }
    }

    /// Gives out what was held back of a text.
    fn finish(&mut self, mut flow: Flow, out: &mut Vec<u8>) -> Result<Step, Denied> {
        let rest = flow.scrubber.finish(self.guard.answers())?;
        if rest.is_empty() {
            return Ok(Step::Quiet);
        }
        put(&mut flow.event, &flow.pointer, &rest);
        Ok(self.give(&flow.name, flow.event, out))
    }

    fn finish_all(&mut self, out: &mut Vec<u8>) -> Result<Step, Denied> {
        let mut step = Step::Quiet;
        for flow in std::mem::take(&mut self.flows) {
            step = further(step, self.finish(flow, out)?);
        }
        Ok(step)
    }

    fn give(&mut self, name: &[u8], mut event: Value, out: &mut Vec<u8>) -> Step {
        if event["sequence_number"].is_u64() {
            event["sequence_number"] = json!(self.n_events);
            self.n_events += 1;
        }
        let data = event.to_string().into_bytes();
        let mut raw = Vec::with_capacity(data.len() + name.len() + 16);
        if self.framing == Framing::Lines {
            raw.extend_from_slice(&data);
            raw.push(b'\n');
        } else {
            if !name.is_empty() {
                raw.extend_from_slice(b"event: ");
                raw.extend_from_slice(name);
                raw.push(b'\n');
            }
            raw.extend_from_slice(b"data: ");
            raw.extend_from_slice(&data);
            raw.extend_from_slice(b"\n\n");
        }
        let record = Record {
            name,
            data: Cow::Owned(data),
            raw: &raw,
        };
        self.inner.record(&record, out)
    }
}

/// What two events together were.
fn further(before: Step, after: Step) -> Step {
    match (before, after) {
        (failed @ Step::Failed(_), _) => failed,
        (Step::Words, Step::Quiet) => Step::Words,
        (_, after) => after,
    }
}

/// An event with one text and what says where it belongs, without what else happened in it: calls would be made twice.
fn alone(event: &Value, pointer: &str) -> (Value, String) {
    fn kept(value: &Value, path: &[&str]) -> Value {
        let Some((first, rest)) = path.split_first() else {
            return Value::from("");
        };
        match value {
            Value::Object(members) => members
                .iter()
                .filter_map(|(name, member)| {
                    if name == first {
                        return Some((name.clone(), kept(member, rest)));
                    }
                    let is_slight = match member {
                        Value::Array(items) => items.is_empty(),
                        Value::Object(members) => members.is_empty(),
                        _ => true,
                    };
                    is_slight.then(|| (name.clone(), member.clone()))
                })
                .collect(),
            Value::Array(items) => {
                let item = first.parse().ok().and_then(|i: usize| items.get(i));
                item.map(|item| kept(item, rest)).into_iter().collect()
            }
            other => other.clone(),
        }
    }
    let path: Vec<&str> = pointer.split('/').skip(1).collect();
    let is_index = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let first_of_all = path.iter().map(|part| {
        if is_index(part) {
            "/0".into()
        } else {
            format!("/{part}")
        }
    });
    (kept(event, &path), first_of_all.collect())
}

/// A text of an event, which is empty from then on.
fn take(event: &mut Value, pointer: &str) -> String {
    match event.pointer_mut(pointer) {
        Some(Value::String(text)) => std::mem::take(text),
        _ => String::new(),
    }
}

fn put(event: &mut Value, pointer: &str, text: &str) {
    if let Some(slot) = event.pointer_mut(pointer) {
        *slot = Value::from(text);
    }
}

/// The texts of an event, by the API that it is of.
fn contents(endpoint: Endpoint, event: &Value) -> Contents {
    match endpoint {
        Endpoint::Messages => of_messages(event),
        Endpoint::Generate => of_generate(event),
        Endpoint::OllamaChat => of_ollama(event, "/message"),
        Endpoint::OllamaGenerate => of_ollama(event, ""),
        Endpoint::Responses => of_responses(event),
        _ => of_chunk(event),
    }
}

impl Contents {
    /// Takes note of a text, if there is one.
    fn slot(&mut self, event: &Value, place: (u64, &str), pointer: String) {
        if event.pointer(&pointer).is_some_and(Value::is_string) {
            let place = (place.0, place.1.to_string());
            self.slots.push(Slot { place, pointer });
        }
    }
}

fn of_chunk(event: &Value) -> Contents {
    let mut contents = Contents::default();
    let choices = event["choices"].as_array().map_or(&[][..], Vec::as_slice);
    contents.ends_all = choices.is_empty();
    for (i, choice) in choices.iter().enumerate() {
        let group = choice["index"].as_u64().unwrap_or(i as u64);
        let at = format!("/choices/{i}");
        contents.slot(event, (group, "text"), format!("{at}/text"));
        for voice in ["reasoning_content", "reasoning", "content", "refusal"] {
            contents.slot(event, (group, voice), format!("{at}/delta/{voice}"));
        }
        for (k, part) in choice["delta"]["content"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            contents.slot(event, (group, "content"), format!("{at}/delta/content/{k}/text"));
            let thoughts = part["thinking"].as_array().map_or(0, Vec::len);
            for m in 0..thoughts {
                let pointer = format!("{at}/delta/content/{k}/thinking/{m}/text");
                contents.slot(event, (group, "thinking"), pointer);
            }
        }
        for (k, call) in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let voice = format!("call {}", call["index"].as_u64().unwrap_or(k as u64));
            let pointer = format!("{at}/delta/tool_calls/{k}/function/arguments");
            contents.slot(event, (group, &voice), pointer);
        }
        if !choice["finish_reason"].is_null() {
            contents.ends.push(group);
        }
    }
    contents
}

fn of_messages(event: &Value) -> Contents {
    let mut contents = Contents::default();
    let voice = event["index"].to_string();
    if event["type"] == "content_block_delta" {
        for name in ["text", "thinking", "partial_json"] {
            contents.slot(event, (0, &voice), format!("/delta/{name}"));
        }
    }
    contents.ends_all = contents.slots.is_empty() && event["type"] != "ping";
    contents
}

fn of_generate(event: &Value) -> Contents {
    let mut contents = Contents::default();
    for (i, candidate) in event["candidates"].as_array().into_iter().flatten().enumerate() {
        let group = candidate["index"].as_u64().unwrap_or(i as u64);
        let parts = candidate["content"]["parts"].as_array();
        for (k, part) in parts.into_iter().flatten().enumerate() {
            let voice = if part["thought"] == true {
                "thought"
            } else {
                "text"
            };
            contents.slot(
                event,
                (group, voice),
                format!("/candidates/{i}/content/parts/{k}/text"),
            );
        }
        if !candidate["finishReason"].is_null() {
            contents.ends.push(group);
        }
    }
    contents
}

fn of_ollama(event: &Value, at: &str) -> Contents {
    let mut contents = Contents::default();
    for voice in ["thinking", "content", "response"] {
        let pointer = format!("{at}/{voice}");
        // Every line has both, of which one is empty.
        if event
            .pointer(&pointer)
            .and_then(Value::as_str)
            .is_some_and(|text| !text.is_empty())
        {
            contents.slot(event, (0, voice), pointer);
        }
    }
    contents.ends_all = event["done"] == true;
    contents
}

fn of_responses(event: &Value) -> Contents {
    let mut contents = Contents::default();
    let kind = event["type"].as_str().unwrap_or_default();
    if kind.ends_with(".delta") {
        let voice = format!("{kind} {} {}", event["item_id"], event["content_index"]);
        contents.slot(event, (0, &voice), "/delta".into());
    }
    contents.ends_all = contents.slots.is_empty();
    contents
}

impl Transform for Edited {
    fn record(&mut self, record: &Record<'_>, out: &mut Vec<u8>) -> Step {
        let data = record.data.trim_ascii();
        let is_end = data.starts_with(b"[DONE]");
        if data.is_empty() {
            return self.inner.record(record, out);
        }
        if is_end {
            return match self.finish_all(out) {
                Ok(step) => further(step, self.inner.record(record, out)),
                Err(Denied) => Step::Failed(answer_denied()),
            };
        }
        let event = match serde_json::from_slice::<Value>(data) {
            Ok(event) if event.is_object() && event["error"].is_null() && event["type"] != "error" => event,
            // Failures have no words of the model in them.
            Ok(event) if event.is_object() => return self.inner.record(record, out),
            // What cannot be looked at does not go out.
            _ => return Step::Malformed,
        };
        let edited = self.edit(record.name, event, out);
        edited.unwrap_or_else(|Denied| Step::Failed(answer_denied()))
    }

    fn end(&mut self, out: &mut Vec<u8>) -> bool {
        self.finish_all(out).is_ok() && self.inner.end(out)
    }

    fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        self.inner.fail(failure, out);
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn is_counted(&self) -> bool {
        self.inner.is_counted()
    }

    fn may_be_over(&self) -> bool {
        self.inner.may_be_over()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::Dialect;
    use crate::guard::GuardText;
    use crate::records::Records;

    /// What goes out of a stream, and whether it was let.
    fn run(endpoint: Endpoint, dialect: Dialect, events: &[&str]) -> (Vec<Value>, bool) {
        let text = "redact-answers = [\"email\", \"secret\"]\ndeny-answers = [\"forbidden\"]";
        let guard: Guard = toml::from_str::<GuardText>(text).unwrap().into();
        let forwarding = Forwarding {
            endpoint,
            dialect,
            is_translated: false,
            hides_usage: false,
            wants_base64: false,
            reasoning_apart: false,
            secret: None,
            model: "m".into(),
            renamed: Vec::new(),
            keeps_refusals: false,
        };
        let framing = forwarding.framing();
        let mut edited = Edited::new(forwarding, Arc::new(guard));
        let mut records = Records::new(framing);
        let mut given = Vec::new();
        for event in events {
            let text = match framing {
                Framing::Lines => format!("{event}\n"),
                _ => format!("data: {event}\n\n"),
            };
            records.feed(text.as_bytes()).unwrap();
            while let Some(record) = records.next() {
                if let Step::Failed(_) = edited.record(&record, &mut given) {
                    return (Vec::new(), false);
                }
            }
        }
        edited.end(&mut given);
        let lines = std::str::from_utf8(&given)
            .unwrap()
            .lines()
            .map(|line| line.trim_start_matches("data: "));
        let values = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
        (values, true)
    }

    /// All texts at these places, joined.
    fn joined(events: &[Value], pointer: &str) -> String {
        let texts = events.iter().filter_map(|event| event.pointer(pointer)?.as_str());
        texts.collect()
    }

    #[test]
    fn chunks_keep_what_nobody_knows_and_answers_do_not_mix() {
        let chunk = |i: u32, text: &str| {
            format!(
                "{{\"x\":{{\"y\":1}},\"choices\":[{{\"index\":{i},\"delta\":{{\"content\":\"{text}\"}},\"logprobs\":{{\"content\":[{{\"token\":\"{text}\"}}]}}}}]}}"
            )
        };
        let end =
            |i: u32| format!("{{\"choices\":[{{\"index\":{i},\"delta\":{{}},\"finish_reason\":\"stop\"}}]}}");
        let events = [
            chunk(0, "ask ann@exa"),
            chunk(1, "or bob@exa"),
            chunk(0, "mple.org now"),
            end(0),
            chunk(1, "mple.org too"),
            end(1),
            "[DONE]".to_string(),
        ];
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let (out, is_fine) = run(Endpoint::Chat, Dialect::OpenAi, &events);
        assert!(is_fine);
        let of = |i: u64| {
            let own: Vec<Value> = out
                .iter()
                .filter(|event| event["choices"][0]["index"] == i)
                .cloned()
                .collect();
            assert_eq!(own.last().unwrap()["choices"][0]["finish_reason"], "stop");
            joined(&own, "/choices/0/delta/content")
        };
        assert_eq!(
            (of(0), of(1)),
            ("ask [email] now".to_string(), "or [email] too".to_string())
        );
        assert_eq!(out[0]["x"]["y"], 1);
        assert!(out.iter().all(|event| event["choices"][0]["logprobs"].is_null()));
    }

    #[test]
    fn every_api_is_read_and_written_in_place() {
        let said = |text: &str| text.replace("EMAIL", "ann@exa").replace("REST", "mple.org");
        let check = |endpoint, dialect, events: &[String], pointer: &str, expected: &str| {
            let events: Vec<&str> = events.iter().map(String::as_str).collect();
            let (out, is_fine) = run(endpoint, dialect, &events);
            assert!(is_fine, "{endpoint:?}");
            assert_eq!(joined(&out, pointer), expected, "{endpoint:?}: {out:?}");
            out
        };
        let events = [
            r#"{"choices":[{"text":"EMAIL"}],"kept":1}"#,
            r#"{"choices":[{"text":"REST","finish_reason":"stop"}]}"#,
        ];
        check(
            Endpoint::Completions,
            Dialect::OpenAi,
            &events.map(said),
            "/choices/0/text",
            "[email]",
        );
        let events = [
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"EMAIL"}}"#,
            r#"{"type":"ping"}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"REST"}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"message_stop"}"#,
        ];
        let out = check(
            Endpoint::Messages,
            Dialect::Anthropic,
            &events.map(said),
            "/delta/text",
            "[email]",
        );
        let kinds: Vec<&str> = out.iter().filter_map(|event| event["type"].as_str()).collect();
        assert_eq!(
            kinds[kinds.len() - 3..],
            ["content_block_delta", "content_block_stop", "message_stop"]
        );
        let events = [
            r#"{"candidates":[{"content":{"parts":[{"text":"EMAIL"}]}}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"REST"},{"functionCall":{"name":"f","args":{"to":"EMAILREST"}}}]},"finishReason":"STOP"}]}"#,
        ];
        let out = check(
            Endpoint::Generate,
            Dialect::Gemini,
            &events.map(said),
            "/candidates/0/content/parts/0/text",
            "[email]",
        );
        assert_eq!(
            out[1]["candidates"][0]["content"]["parts"][1]["functionCall"]["args"]["to"],
            "[email]"
        );
        let events = [
            r#"{"message":{"thinking":"a thought","content":""},"done":false}"#,
            r#"{"message":{"content":"EMAIL"},"done":false}"#,
            r#"{"message":{"content":"REST"},"done":false}"#,
            r#"{"message":{"content":""},"done":true,"done_reason":"stop"}"#,
        ];
        let out = check(
            Endpoint::OllamaChat,
            Dialect::Ollama,
            &events.map(said),
            "/message/content",
            "[email]",
        );
        assert_eq!(
            (
                joined(&out, "/message/thinking").as_str(),
                &out.last().unwrap()["done"]
            ),
            ("a thought", &json!(true))
        );
        let events = [
            r#"{"response":"EMAIL","done":false}"#,
            r#"{"response":"REST","done":true,"done_reason":"stop"}"#,
        ];
        check(
            Endpoint::OllamaGenerate,
            Dialect::Ollama,
            &events.map(said),
            "/response",
            "[email]",
        );
        let events = [
            r#"{"type":"response.output_text.delta","item_id":"i","content_index":0,"delta":"EMAIL","sequence_number":4}"#,
            r#"{"type":"response.output_text.delta","item_id":"i","content_index":0,"delta":"REST","sequence_number":5}"#,
            r#"{"type":"response.output_text.done","item_id":"i","text":"EMAILREST","sequence_number":6}"#,
            r#"{"type":"response.web_search_call.completed","item_id":"w","sequence_number":7}"#,
            r#"{"type":"response.completed","response":{"output":[{"content":[{"text":"EMAILREST"}]}]},"sequence_number":8}"#,
        ];
        let out = check(
            Endpoint::Responses,
            Dialect::OpenAi,
            &events.map(said),
            "/delta",
            "[email]",
        );
        let numbers: Vec<u64> = out
            .iter()
            .filter_map(|event| event["sequence_number"].as_u64())
            .collect();
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
        assert!(!format!("{out:?}").contains("example"), "{out:?}");
        assert!(
            out.iter()
                .any(|event| event["type"] == "response.web_search_call.completed")
        );
    }

    #[test]
    fn what_stands_beside_a_text_is_looked_at_and_goes_out_once() {
        let call = r#"{"function":{"name":"f","arguments":{"name":"ann@example.org"}}}"#;
        let lines = [
            format!(
                r#"{{"message":{{"role":"assistant","content":"Wait","tool_calls":[{call}]}},"done":false}}"#
            ),
            r#"{"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}"#.to_string(),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (out, is_fine) = run(Endpoint::OllamaChat, Dialect::Ollama, &lines);
        assert!(is_fine);
        let calls: Vec<&Value> = out
            .iter()
            .filter_map(|event| event.pointer("/message/tool_calls/0/function/arguments/name"))
            .collect();
        assert_eq!(
            (calls.as_slice(), out.len()),
            (&[&json!("[email]")][..], 3),
            "{out:?}"
        );
        assert_eq!(joined(&out, "/message/content"), "Wait");
        let parts = r#"[{"executableCode":{"code":"ann@example.org"}},{"functionCall":{"name":"f","args":{}}},{"text":"Wait"}]"#;
        let events = [
            format!(r#"{{"candidates":[{{"content":{{"parts":{parts}}}}}]}}"#),
            r#"{"candidates":[{"content":{"parts":[{"text":"!"}]},"finishReason":"STOP"}]}"#.to_string(),
        ];
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        let (out, _) = run(Endpoint::Generate, Dialect::Gemini, &events);
        let code = &out[0]["candidates"][0]["content"]["parts"][0]["executableCode"]["code"];
        assert_eq!(code, "[email]");
        assert_eq!(joined(&out, "/candidates/0/content/parts/0/text"), "Wait!");
        // What cannot be looked at does not go out.
        let deep = format!(
            r#"{{"choices":[{{"delta":{{"content":"forbidden"}}}}],"x":{}{}}}"#,
            "[".repeat(200),
            "]".repeat(200)
        );
        assert!(run(Endpoint::Chat, Dialect::OpenAi, &[&deep]).0.is_empty());
    }

    #[test]
    fn forbidden_words_end_the_stream() {
        let events = [
            r#"{"choices":[{"delta":{"content":"it is forb"}}]}"#,
            r#"{"choices":[{"delta":{"content":"idden here"}}]}"#,
        ];
        assert!(!run(Endpoint::Chat, Dialect::OpenAi, &events).1);
    }
}
