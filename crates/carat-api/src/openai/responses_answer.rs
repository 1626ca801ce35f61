//! The answer of `/v1/responses`, whole and as events.
//!
//! Both come from one place: [`ResponseEvents`] builds the output's items as the pieces come, and the whole answer is
//! what it holds at the end.

use serde_json::{Value, json};

use crate::{ApiError, Delta, Finish, Usage};

/// What is known of a response before its first token.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// Its id.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// What it repeats of the request.
    pub echo: Value,
}

/// The whole answer.
pub fn response(head: ResponseHead, deltas: &[Delta], finish: &Finish) -> Value {
    let mut events = ResponseEvents::new(head);
    let mut unused = Vec::new();
    deltas.iter().for_each(|delta| events.delta(delta, &mut unused));
    events.finish(finish, &mut unused);
    events.body
}

/// What the item that is being written is.
enum Open {
    Text(String),
    Reasoning(String),
    Call { index: usize, arguments: String },
}

/// Writes a response's events.
pub struct ResponseEvents {
    /// The response so far.
    body: Value,
    items: Vec<Value>,
    open: Option<Open>,
    n_events: u64,
    has_begun: bool,
}

impl ResponseEvents {
    /// Events of the response with this head.
    pub fn new(head: ResponseHead) -> Self {
        let mut body = json!({
            "id": head.id, "object": "response", "created_at": head.created, "status": "in_progress",
            "model": head.model, "output": [], "error": null, "incomplete_details": null, "usage": null,
            "text": {"format": {"type": "text"}}, "truncation": "disabled", "background": false,
        });
        if let (Some(body), Some(echo)) = (body.as_object_mut(), head.echo.as_object()) {
            body.extend(echo.clone());
        }
        Self {
            body,
            items: Vec::new(),
            open: None,
            n_events: 0,
            has_begun: false,
        }
    }

    /// The response as it stands.
    pub fn body(&self) -> &Value {
        &self.body
    }

    /// A piece.
    pub fn delta(&mut self, delta: &Delta, out: &mut Vec<u8>) {
        self.begin(out);
        match delta {
            Delta::Text(text) => {
                if !matches!(self.open, Some(Open::Text(_))) {
                    self.close("completed", out);
                    self.open_text(out);
                }
                if let Some(Open::Text(all)) = &mut self.open {
                    all.push_str(text);
                }
                let fields = json!({"content_index": 0, "delta": text, "logprobs": []});
                self.item_event("response.output_text.delta", fields, out);
            }
            Delta::Reasoning(text) => {
                if !matches!(self.open, Some(Open::Reasoning(_))) {
                    self.close("completed", out);
                    let item =
                        json!({"type": "reasoning", "id": self.item_id("rs"), "summary": [], "content": []});
                    self.add_item(item, out);
                    self.open = Some(Open::Reasoning(String::new()));
                }
                if let Some(Open::Reasoning(all)) = &mut self.open {
                    all.push_str(text);
                }
                let fields = json!({"content_index": 0, "delta": text});
                self.item_event("response.reasoning_text.delta", fields, out);
            }
            Delta::ToolCall { index, id, name } => {
                self.close("completed", out);
                let item = json!({
                    "type": "function_call", "id": self.item_id("fc"), "call_id": id, "name": name,
                    "arguments": "", "status": "in_progress",
                });
                self.add_item(item, out);
                self.open = Some(Open::Call {
                    index: *index,
                    arguments: String::new(),
                });
            }
            Delta::Arguments { index, text } => {
                if let Some(Open::Call {
                    index: open,
                    arguments,
                }) = &mut self.open
                    && open == index
                {
                    arguments.push_str(text);
                }
                self.item_event(
                    "response.function_call_arguments.delta",
                    json!({"delta": text}),
                    out,
                );
            }
            Delta::Logprob(_) => {}
        }
    }

    /// The end.
    pub fn finish(&mut self, finish: &Finish, out: &mut Vec<u8>) {
        self.begin(out);
        let is_cut = finish.kind.is_cut();
        self.close(if is_cut { "incomplete" } else { "completed" }, out);
        if self.items.is_empty() {
            self.open_text(out);
            self.close("completed", out);
        }
        self.body["output"] = self.items.clone().into();
        self.body["usage"] = usage(&finish.usage);
        let name = if is_cut {
            self.body["status"] = "incomplete".into();
            self.body["incomplete_details"] = json!({"reason": "max_output_tokens"});
            "response.incomplete"
        } else {
            self.body["status"] = "completed".into();
            "response.completed"
        };
        let response = self.body.clone();
        self.event(name, json!({"response": response}), out);
    }

    /// A failure in mid-stream.
    pub fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        self.begin(out);
        self.body["status"] = "failed".into();
        self.body["error"] = json!({"code": "server_error", "message": error.message});
        let response = self.body.clone();
        self.event("response.failed", json!({"response": response}), out);
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_begun, true) {
            for name in ["response.created", "response.in_progress"] {
                let response = self.body.clone();
                self.event(name, json!({"response": response}), out);
            }
        }
    }

    fn open_text(&mut self, out: &mut Vec<u8>) {
        let item = json!({
            "type": "message", "id": self.item_id("msg"), "role": "assistant", "status": "in_progress", "content": [],
        });
        self.add_item(item, out);
        let fields = json!({"content_index": 0, "part": text_part("")});
        self.item_event("response.content_part.added", fields, out);
        self.open = Some(Open::Text(String::new()));
    }

    fn add_item(&mut self, item: Value, out: &mut Vec<u8>) {
        let fields = json!({"output_index": self.items.len(), "item": item});
        self.items.push(item);
        self.event("response.output_item.added", fields, out);
    }

    /// Ends the item that is being written.
    fn close(&mut self, status: &str, out: &mut Vec<u8>) {
        let Some(open) = self.open.take() else { return };
        match &open {
            Open::Text(text) => {
                let fields = json!({"content_index": 0, "text": text, "logprobs": []});
                self.item_event("response.output_text.done", fields, out);
                let fields = json!({"content_index": 0, "part": text_part(text)});
                self.item_event("response.content_part.done", fields, out);
            }
            Open::Reasoning(text) => {
                let fields = json!({"content_index": 0, "text": text});
                self.item_event("response.reasoning_text.done", fields, out);
            }
            Open::Call { arguments, .. } => {
                let name = self.items.last().map_or(Value::Null, |item| item["name"].clone());
                let fields = json!({"arguments": arguments, "name": name});
                self.item_event("response.function_call_arguments.done", fields, out);
            }
        }
        let index = self.items.len().saturating_sub(1);
        let Some(item) = self.items.last_mut() else { return };
        match open {
            Open::Text(text) => {
                item["content"] = json!([text_part(&text)]);
                item["status"] = status.into();
            }
            Open::Reasoning(text) => item["content"] = json!([{"type": "reasoning_text", "text": text}]),
            Open::Call { arguments, .. } => {
                item["arguments"] = arguments.into();
                item["status"] = status.into();
            }
        }
        let fields = json!({"output_index": index, "item": item.clone()});
        self.event("response.output_item.done", fields, out);
    }

    fn item_id(&self, prefix: &str) -> String {
        let own = self.body["id"].as_str().unwrap_or_default();
        format!(
            "{prefix}_{}_{}",
            own.trim_start_matches("resp_"),
            self.items.len()
        )
    }

    /// An event about the last item.
    fn item_event(&mut self, name: &str, mut fields: Value, out: &mut Vec<u8>) {
        fields["output_index"] = self.items.len().saturating_sub(1).into();
        fields["item_id"] = self.items.last().map_or(Value::Null, |item| item["id"].clone());
        self.event(name, fields, out);
    }

    fn event(&mut self, name: &str, mut fields: Value, out: &mut Vec<u8>) {
        fields["type"] = name.into();
        fields["sequence_number"] = self.n_events.into();
        self.n_events += 1;
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
        super::event(out, &fields);
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt, "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.completion, "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FinishKind;

    fn head() -> ResponseHead {
        ResponseHead {
            id: "resp_1".into(),
            created: 5,
            model: "m".into(),
            echo: json!({"store": true}),
        }
    }

    #[test]
    fn events_come_in_order_and_end_with_the_whole() {
        let deltas = [
            Delta::Reasoning("hm".into()),
            Delta::Text("Hel".into()),
            Delta::Text("lo".into()),
            Delta::ToolCall {
                index: 0,
                id: "c".into(),
                name: "f".into(),
            },
            Delta::Arguments {
                index: 0,
                text: "{}".into(),
            },
        ];
        let finish = Finish {
            kind: FinishKind::ToolCalls,
            usage: Usage::default(),
        };
        let mut events = ResponseEvents::new(head());
        let mut out = Vec::new();
        deltas.iter().for_each(|delta| events.delta(delta, &mut out));
        events.finish(&finish, &mut out);
        let text = String::from_utf8(out).unwrap();
        let told: Vec<Value> = text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|data| serde_json::from_str(data).unwrap())
            .collect();
        let numbers: Vec<u64> = told
            .iter()
            .map(|event| event["sequence_number"].as_u64().unwrap())
            .collect();
        assert_eq!(numbers, (0..told.len() as u64).collect::<Vec<_>>());
        let names: Vec<&str> = told.iter().map(|event| event["type"].as_str().unwrap()).collect();
        let first = [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
        ];
        assert_eq!(names[..3], first);
        assert_eq!(
            names
                .iter()
                .filter(|name| **name == "response.output_item.done")
                .count(),
            3
        );
        let last = told.last().unwrap();
        assert_eq!(last["type"], "response.completed");
        assert_eq!(last["response"], response(head(), &deltas, &finish));
        assert_eq!(last["response"]["output"][1]["content"][0]["text"], "Hello");
        assert_eq!(last["response"]["output"][2]["arguments"], "{}");
    }
}
