//! A stream, as a client gets it.

use serde_json::{Value, json};

use super::answer::{answer_part, finish_name, usage_value};
use crate::translate::{Event, Finish, Piece, Writer, parsed, set};
use crate::usage::Usage;

/// Writes events: each a whole answer with a piece of it. Calls come whole, so their arguments are held.
#[derive(Default)]
pub(in crate::translate) struct ContentWriter {
    id: String,
    model: String,
    call: Option<(Event, String)>,
    usage: Usage,
    finish: Option<Finish>,
}

impl ContentWriter {
    fn write(&self, parts: &Value, finish: Option<Finish>, out: &mut Vec<u8>) {
        let mut candidate = json!({"content": {"role": "model", "parts": parts}, "index": 0});
        set(&mut candidate, "finishReason", finish.map(finish_name));
        let mut value = json!({"candidates": [candidate], "modelVersion": self.model, "responseId": self.id});
        if finish.is_some() {
            value["usageMetadata"] = usage_value(&self.usage);
        }
        out.extend_from_slice(format!("data: {value}\n\n").as_bytes());
    }

    fn end_call(&mut self, out: &mut Vec<u8>) {
        if let Some((Event::Call { id, name, signature }, arguments)) = self.call.take() {
            let piece = Piece::Call {
                id,
                name,
                signature,
                arguments: parsed(&arguments),
            };
            if let Some(part) = answer_part(&piece) {
                self.write(&json!([part]), None, out);
            }
        }
    }
}

impl Writer for ContentWriter {
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) {
        if let (Event::Arguments(more), Some((_, arguments))) = (event, &mut self.call) {
            arguments.push_str(more);
            return;
        }
        // Some say words or counts between a call and its arguments: these do not end it.
        if matches!(event, Event::Call { .. } | Event::End(_)) {
            self.end_call(out);
        }
        match event {
            Event::Begin { id, model } => (self.id, self.model) = (id.clone(), model.clone()),
            Event::Text(text) => self.write(&json!([{"text": text}]), None, out),
            Event::Thinking(text) => self.write(&json!([{"text": text, "thought": true}]), None, out),
            Event::Call { .. } => self.call = Some((event.clone(), String::new())),
            Event::Usage(usage) => self.usage = *usage,
            Event::End(finish) => self.finish = Some(*finish),
            Event::Signature(_) | Event::Redacted(_) | Event::Arguments(_) | Event::Broken(_) => {}
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        self.end_call(out);
        let finish = self.finish.unwrap_or(Finish::Stop);
        self.write(&json!([]), Some(finish), out);
    }
}
