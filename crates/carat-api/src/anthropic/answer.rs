//! The answer of `/v1/messages`, whole and as events.

use serde_json::{Value, json};

use crate::{ApiError, Delta, Finish, FinishKind, Usage, whole_arguments};

/// The whole answer.
pub fn message(id: &str, model: &str, deltas: &[Delta], finish: &Finish) -> Value {
    let mut written: Vec<(Block, String)> = Vec::new();
    let mut arguments: Vec<String> = Vec::new();
    let mut grow = |kind: Block, text: &str| match written.last_mut() {
        Some((last, all)) if *last == kind => all.push_str(text),
        _ => written.push((kind, text.to_owned())),
    };
    for delta in deltas {
        match delta {
            Delta::Text(text) => grow(Block::Text, text),
            Delta::Reasoning(text) => grow(Block::Thinking, text),
            Delta::Arguments { index, text } => {
                if let Some(arguments) = arguments.get_mut(*index) {
                    arguments.push_str(text);
                }
            }
            Delta::ToolCall { .. } => arguments.push(String::new()),
            Delta::Logprob(_) => {}
        }
    }
    let block = |(kind, text): (Block, String)| match kind {
        Block::Thinking => json!({"type": "thinking", "thinking": text, "signature": ""}),
        Block::Text | Block::Tool => json!({"type": "text", "text": text}),
    };
    let mut blocks: Vec<Value> = written.into_iter().map(block).collect();
    for delta in deltas {
        if let Delta::ToolCall { index, id, name } = delta
            && let Some(input) = arguments.get(*index).and_then(|text| whole_arguments(text))
        {
            blocks.push(json!({"type": "tool_use", "id": id, "name": name, "input": input}));
        }
    }
    let (reason, sequence) = reason(&finish.kind);
    json!({
        "id": id, "type": "message", "role": "assistant", "model": model, "content": blocks,
        "stop_reason": reason, "stop_sequence": sequence, "usage": usage(&finish.usage),
    })
}

fn reason(kind: &FinishKind) -> (&'static str, Option<String>) {
    match kind {
        FinishKind::Stop => ("end_turn", None),
        FinishKind::StopString(text) => ("stop_sequence", text.clone()),
        FinishKind::Length => ("max_tokens", None),
        FinishKind::ContextFull => ("model_context_window_exceeded", None),
        FinishKind::ToolCalls => ("tool_use", None),
    }
}

/// Anthropic leaves cached tokens out of `input_tokens`.
fn usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.saturating_sub(usage.cached), "output_tokens": usage.completion,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": usage.cached,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Block {
    Text,
    Thinking,
    Tool,
}

/// Writes a message's events.
pub struct MessageEvents {
    id: String,
    model: String,
    n_prompt: usize,
    has_begun: bool,
    open: Option<Block>,
    n_blocks: usize,
}

impl MessageEvents {
    /// Events of an answer to a prompt of `n_prompt` tokens.
    pub fn new(id: String, model: String, n_prompt: usize) -> Self {
        Self {
            id,
            model,
            n_prompt,
            has_begun: false,
            open: None,
            n_blocks: 0,
        }
    }

    /// A piece.
    pub fn delta(&mut self, delta: &Delta, out: &mut Vec<u8>) {
        self.begin(out);
        match delta {
            Delta::Text(text) => {
                self.open(Block::Text, json!({"type": "text", "text": ""}), out);
                self.block_delta(json!({"type": "text_delta", "text": text}), out);
            }
            Delta::Reasoning(text) => {
                self.open(
                    Block::Thinking,
                    json!({"type": "thinking", "thinking": "", "signature": ""}),
                    out,
                );
                self.block_delta(json!({"type": "thinking_delta", "thinking": text}), out);
            }
            Delta::ToolCall { id, name, .. } => {
                self.close(out);
                let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                self.open(Block::Tool, block, out);
            }
            Delta::Arguments { text, .. } => {
                self.block_delta(json!({"type": "input_json_delta", "partial_json": text}), out);
            }
            Delta::Logprob(_) => {}
        }
    }

    /// The end.
    pub fn finish(&mut self, finish: &Finish, out: &mut Vec<u8>) {
        self.begin(out);
        self.close(out);
        let (reason, sequence) = reason(&finish.kind);
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        event(
            "message_delta",
            json!({"delta": delta, "usage": usage(&finish.usage)}),
            out,
        );
        event("message_stop", json!({}), out);
    }

    /// A failure in mid-stream.
    pub fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event("error", error.anthropic(), out);
    }

    /// A sign of life.
    pub fn ping(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        event("ping", json!({}), out);
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_begun, true) {
            let message = json!({
                "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": [],
                "stop_reason": null, "stop_sequence": null,
                "usage": {"input_tokens": self.n_prompt, "output_tokens": 0,
                          "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
            });
            event("message_start", json!({"message": message}), out);
        }
    }

    fn open(&mut self, kind: Block, block: Value, out: &mut Vec<u8>) {
        if self.open != Some(kind) {
            self.close(out);
            event(
                "content_block_start",
                json!({"index": self.n_blocks, "content_block": block}),
                out,
            );
            self.open = Some(kind);
        }
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            event("content_block_stop", json!({"index": self.n_blocks}), out);
            self.n_blocks += 1;
        }
    }

    fn block_delta(&mut self, delta: Value, out: &mut Vec<u8>) {
        event(
            "content_block_delta",
            json!({"index": self.n_blocks, "delta": delta}),
            out,
        );
    }
}

/// One event: clients skip those without a name.
fn event(name: &str, mut data: Value, out: &mut Vec<u8>) {
    data["type"] = name.into();
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    out.extend_from_slice(data.to_string().as_bytes());
    out.extend_from_slice(b"\n\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> (Vec<Delta>, Finish) {
        let deltas = vec![
            Delta::Text("Let ".into()),
            Delta::Text("me.".into()),
            Delta::ToolCall {
                index: 0,
                id: "t".into(),
                name: "w".into(),
            },
            Delta::Arguments {
                index: 0,
                text: "{\"a\": ".into(),
            },
            Delta::Arguments {
                index: 0,
                text: "1}".into(),
            },
        ];
        let usage = Usage {
            prompt: 10,
            cached: 4,
            completion: 7,
            reasoning: 0,
            ..Usage::default()
        };
        (
            deltas,
            Finish {
                kind: FinishKind::ToolCalls,
                usage,
            },
        )
    }

    #[test]
    fn a_whole_message_has_its_blocks_and_leaves_cached_tokens_out() {
        let (deltas, finish) = pieces();
        let message = message("msg_1", "m", &deltas, &finish);
        assert_eq!(message["content"][0], json!({"type": "text", "text": "Let me."}));
        assert_eq!(message["content"][1]["input"], json!({"a": 1}));
        assert_eq!(
            (&message["usage"]["input_tokens"], &message["stop_reason"]),
            (&json!(6), &json!("tool_use"))
        );
    }

    #[test]
    fn events_open_and_close_each_block() {
        let (deltas, finish) = pieces();
        let mut events = MessageEvents::new("msg_1".into(), "m".into(), 10);
        let mut out = Vec::new();
        deltas.iter().for_each(|delta| events.delta(delta, &mut out));
        events.finish(&finish, &mut out);
        let text = String::from_utf8(out).unwrap();
        let names: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("event: "))
            .collect();
        let delta = "content_block_delta";
        assert_eq!(
            names,
            [
                "message_start",
                "content_block_start",
                delta,
                delta,
                "content_block_stop",
                "content_block_start",
                delta,
                delta,
                "content_block_stop",
                "message_delta",
                "message_stop"
            ]
        );
    }
}
