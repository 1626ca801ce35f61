//! A whole answer, as a client gets it.

use serde_json::{Value, json};

use super::assistant_message;
use crate::clock::now_s;
use crate::translate::{Answer, Finish, Piece};
use crate::usage::Usage;

pub(in crate::translate) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Calls => "tool_calls",
        Finish::Filter => "content_filter",
    }
}

pub(in crate::translate) fn usage_value(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input.saturating_add(usage.output),
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write.saturating_add(usage.cache_write_1h),
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    })
}

pub(in crate::translate) fn answer(answer: &Answer) -> Value {
    let mut message = assistant_message(&answer.pieces, str::to_string);
    message["refusal"] = Value::Null;
    let thoughts = answer.thoughts();
    if !thoughts.is_empty() {
        message["reasoning_content"] = Value::from(thoughts);
    }
    let blocks: Vec<Value> = answer.pieces.iter().filter_map(thinking_block).collect();
    if !blocks.is_empty() {
        message["thinking_blocks"] = Value::from(blocks);
    }
    let finish = finish_name(answer.finish.unwrap_or(Finish::Stop));
    json!({
        "id": format!("chatcmpl-{}", answer.id),
        "object": "chat.completion",
        "created": now_s(),
        "model": answer.model,
        "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": finish}],
        "usage": usage_value(&answer.usage),
    })
}

/// Thoughts that must come back as they are.
fn thinking_block(piece: &Piece) -> Option<Value> {
    match piece {
        Piece::Thinking {
            text,
            signature: Some(signature),
        } => Some(json!({"type": "thinking", "thinking": text, "signature": signature})),
        Piece::Redacted(data) => Some(json!({"type": "redacted_thinking", "data": data})),
        _ => None,
    }
}
