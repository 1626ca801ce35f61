//! A stream, as a client gets it.

use serde_json::{Value, json};

use super::{finish_name, usage_value};
use crate::clock::now_s;
use crate::translate::{Event, Finish, Writer};
use crate::usage::Usage;

/// Writes chunks.
pub(in crate::translate) struct ChunkWriter {
    wants_usage: bool,
    id: String,
    model: String,
    created: u64,
    n_calls: u64,
    /// The latest call has had no arguments yet.
    is_bare: bool,
    usage: Usage,
    /// Thoughts so far, for the block that carries their signature.
    thoughts: String,
}

impl ChunkWriter {
    pub(in crate::translate) fn new(wants_usage: bool) -> Self {
        Self {
            wants_usage,
            id: String::new(),
            model: String::new(),
            created: now_s(),
            n_calls: 0,
            is_bare: false,
            usage: Usage::default(),
            thoughts: String::new(),
        }
    }

    fn chunk(&self, choices: &Value, out: &mut Vec<u8>, usage: Option<Value>) {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if self.wants_usage {
            chunk["usage"] = usage.unwrap_or_default();
        }
        out.extend_from_slice(format!("data: {chunk}\n\n").as_bytes());
    }

    fn delta(&self, delta: &Value, finish: Option<Finish>, out: &mut Vec<u8>) {
        let finish = finish.map(finish_name);
        self.chunk(
            &json!([{"index": 0, "delta": delta, "finish_reason": finish}]),
            out,
            None,
        );
    }

    fn arguments(&mut self, text: &str, out: &mut Vec<u8>) {
        self.is_bare = false;
        let index = self.n_calls.saturating_sub(1);
        let call = json!({"index": index, "function": {"arguments": text}});
        self.delta(&json!({"tool_calls": [call]}), None, out);
    }

    /// Clients read the arguments as JSON, which nothing at all is not.
    fn end_call(&mut self, out: &mut Vec<u8>) {
        if self.is_bare {
            self.arguments("{}", out);
        }
    }
}

impl Writer for ChunkWriter {
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        // Some say words or counts between a call and its arguments: these do not end it.
        if matches!(event, Event::Call { .. } | Event::End(_)) {
            self.end_call(out);
        }
        match event {
            Event::Begin { id, model } => {
                self.id = format!("chatcmpl-{id}");
                self.model.clone_from(model);
                self.delta(&json!({"role": "assistant", "content": ""}), None, out);
            }
            Event::Text(text) => self.delta(&json!({"content": text}), None, out),
            Event::Thinking(text) => {
                self.thoughts.push_str(text);
                self.delta(&json!({"reasoning_content": text}), None, out);
            }
            Event::Signature(signature) => {
                let thoughts = std::mem::take(&mut self.thoughts);
                let block = json!({"type": "thinking", "thinking": thoughts, "signature": signature});
                self.delta(&json!({"thinking_blocks": [block]}), None, out);
            }
            Event::Redacted(data) => {
                let block = json!({"type": "redacted_thinking", "data": data});
                self.delta(&json!({"thinking_blocks": [block]}), None, out);
            }
            Event::Call { id, name, signature } => {
                let function = json!({"name": name, "arguments": ""});
                let mut call =
                    json!({"index": self.n_calls, "id": id, "type": "function", "function": function});
                if let Some(signature) = signature {
                    call["extra_content"] = json!({"google": {"thought_signature": signature}});
                }
                self.n_calls += 1;
                self.is_bare = true;
                self.delta(&json!({"tool_calls": [call]}), None, out);
            }
            Event::Arguments(text) if text.is_empty() => {}
            Event::Arguments(text) => self.arguments(text, out),
            Event::Usage(usage) => self.usage = *usage,
            Event::End(finish) => self.delta(&json!({}), Some(*finish), out),
            Event::Broken(_) => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.end_call(out);
        if self.wants_usage {
            self.chunk(&json!([]), out, Some(usage_value(&self.usage)));
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_calls_without_arguments_have_an_empty_object() {
        let call = |id: &str| Event::Call {
            id: id.into(),
            name: "f".into(),
            signature: None,
        };
        let said = |events: &[Event]| {
            let (mut writer, mut out) = (ChunkWriter::new(false), Vec::new());
            events.iter().for_each(|event| writer.event(event, &mut out));
            writer.end(&mut out);
            let text = String::from_utf8(out).unwrap();
            let mut arguments = vec![String::new(); 3];
            for data in text.lines().filter_map(|line| line.strip_prefix("data: {")) {
                let chunk: Value = serde_json::from_str(&format!("{{{data}")).unwrap();
                let call = &chunk["choices"][0]["delta"]["tool_calls"][0];
                if let Some(more) = call["function"]["arguments"].as_str() {
                    let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
                    arguments[index].push_str(more);
                }
            }
            arguments
        };
        let given = || Event::Arguments(r#"{"a":1}"#.into());
        let usage = || Event::Usage(Usage::default());
        let end = || Event::End(Finish::Calls);
        let all = [call("a"), call("b"), usage(), given(), call("c"), end()];
        assert_eq!(said(&all), ["{}", r#"{"a":1}"#, "{}"]);
        let without_end = [call("a"), Event::Arguments(String::new())];
        assert_eq!(said(&without_end), ["{}", "", ""]);
    }
}
