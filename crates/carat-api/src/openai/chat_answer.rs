//! The answer of `/v1/chat/completions`, whole and as events.

use serde::Serialize;
use serde_json::{Value, json};

use super::{event, usage};
use crate::{ApiError, Delta, Finish, FinishKind, TokenLogprob, Usage, whole_arguments};

/// One answer, gathered.
#[derive(Debug, Default)]
struct Choice {
    text: String,
    reasoning: String,
    calls: Vec<(String, String, String)>,
    logprobs: Vec<Value>,
}

/// The whole answer: each choice's pieces and its end.
pub fn chat_completion(
    id: &str,
    created: u64,
    model: &str,
    choices: &[(Vec<Delta>, Finish)],
    with_logprobs: bool,
) -> Value {
    let mut total = Usage::default();
    let mut written = Vec::new();
    for (index, (deltas, finish)) in choices.iter().enumerate() {
        total.add_choice(&finish.usage);
        let choice = gather(deltas);
        // With `length` OpenAI gives what there is of a call; with any other reason clients take it for whole.
        let is_length = finish.kind.is_cut();
        let calls: Vec<Value> = choice
            .calls
            .iter()
            .filter(|(_, _, arguments)| is_length || whole_arguments(arguments).is_some())
            .map(|(id, name, arguments)| {
                json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
            })
            .collect();
        let content = (calls.is_empty() || !choice.text.is_empty()).then_some(choice.text);
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !choice.reasoning.is_empty() {
            message["reasoning_content"] = choice.reasoning.into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        let logprobs = with_logprobs.then(|| json!({"content": choice.logprobs, "refusal": null}));
        written.push(json!({
            "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason(&finish.kind),
        }));
    }
    json!({
        "id": id, "object": "chat.completion", "created": created, "model": model, "choices": written,
        "usage": usage(&total), "system_fingerprint": null,
    })
}

fn gather(deltas: &[Delta]) -> Choice {
    let mut choice = Choice::default();
    for delta in deltas {
        match delta {
            Delta::Text(text) => choice.text.push_str(text),
            Delta::Reasoning(text) => choice.reasoning.push_str(text),
            Delta::ToolCall { id, name, .. } => {
                choice.calls.push((id.clone(), name.clone(), String::new()));
            }
            Delta::Arguments { index, text } => {
                if let Some((_, _, arguments)) = choice.calls.get_mut(*index) {
                    arguments.push_str(text);
                }
            }
            Delta::Logprob(token) if token.is_content => choice.logprobs.push(logprob(token)),
            Delta::Logprob(_) => {}
        }
    }
    choice
}

fn reason(kind: &FinishKind) -> &'static str {
    match kind {
        FinishKind::Stop | FinishKind::StopString(_) => "stop",
        FinishKind::Length | FinishKind::ContextFull => "length",
        FinishKind::ToolCalls => "tool_calls",
    }
}

/// A token's log-probabilities as chat writes them.
pub(super) fn logprob(token: &TokenLogprob) -> Value {
    let one = |bytes: &[u8], logprob: f32| json!({"token": String::from_utf8_lossy(bytes), "logprob": finite(logprob), "bytes": bytes});
    let mut value = one(&token.token, token.logprob);
    let top: Vec<Value> = token
        .top
        .iter()
        .map(|(bytes, logprob)| one(bytes, *logprob))
        .collect();
    value["top_logprobs"] = top.into();
    value
}

/// JSON knows no infinity; OpenAI writes this instead.
pub(super) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// Writes a chat's events.
pub struct ChatEvents {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
    total: Usage,
    /// Choices whose role was told.
    begun: Vec<bool>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: Option<&'static str>,
    choices: [ChunkChoice<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: ChunkDelta<'a>,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct ChunkDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<Value>,
}

impl ChatEvents {
    /// Events of an answer with `n` choices.
    pub fn new(id: String, created: u64, model: String, n: usize, include_usage: bool) -> Self {
        Self {
            id,
            created,
            model,
            include_usage,
            total: Usage::default(),
            begun: vec![false; n],
        }
    }

    /// A piece of a choice.
    pub fn delta(&mut self, choice: usize, delta: &Delta, out: &mut Vec<u8>) {
        self.begin(choice, out);
        if matches!(delta, Delta::Logprob(token) if !token.is_content) {
            return;
        }
        let mut logprobs = None;
        let delta = match delta {
            Delta::Text(text) => ChunkDelta {
                content: Some(text),
                ..ChunkDelta::default()
            },
            Delta::Reasoning(text) => ChunkDelta {
                reasoning_content: Some(text),
                ..ChunkDelta::default()
            },
            Delta::ToolCall { index, id, name } => ChunkDelta {
                tool_calls: Some(json!([{
                    "index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""},
                }])),
                ..ChunkDelta::default()
            },
            Delta::Arguments { index, text } => ChunkDelta {
                tool_calls: Some(json!([{"index": index, "function": {"arguments": text}}])),
                ..ChunkDelta::default()
            },
            Delta::Logprob(token) => {
                logprobs = Some(json!({"content": [logprob(token)], "refusal": null}));
                ChunkDelta {
                    content: Some(""),
                    ..ChunkDelta::default()
                }
            }
        };
        self.chunk(choice, delta, logprobs, None, out);
    }

    /// The end of a choice.
    pub fn finish(&mut self, choice: usize, finish: &Finish, out: &mut Vec<u8>) {
        self.begin(choice, out);
        self.total.add_choice(&finish.usage);
        self.chunk(
            choice,
            ChunkDelta::default(),
            None,
            Some(reason(&finish.kind)),
            out,
        );
    }

    /// The end of the stream.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if self.include_usage {
            let last = json!({
                "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
                "system_fingerprint": null, "choices": [], "usage": usage(&self.total),
            });
            event(out, &last);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// A failure in mid-stream.
    pub fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        event(out, &error.openai());
    }

    fn begin(&mut self, choice: usize, out: &mut Vec<u8>) {
        if let Some(begun) = self.begun.get_mut(choice)
            && !std::mem::replace(begun, true)
        {
            let delta = ChunkDelta {
                role: Some("assistant"),
                content: Some(""),
                ..ChunkDelta::default()
            };
            self.chunk(choice, delta, None, None, out);
        }
    }

    fn chunk(
        &self,
        index: usize,
        delta: ChunkDelta<'_>,
        logprobs: Option<Value>,
        finish_reason: Option<&'static str>,
        out: &mut Vec<u8>,
    ) {
        let choice = ChunkChoice {
            index,
            delta,
            logprobs,
            finish_reason,
        };
        let chunk = Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            system_fingerprint: None,
            choices: [choice],
            usage: self.include_usage.then_some(Value::Null),
        };
        event(out, &chunk);
    }
}
