//! A whole answer, as a client gets it.

use serde_json::{Value, json};

use crate::translate::{Answer, Finish, Piece, object, set};
use crate::usage::Usage;

pub(super) fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::Calls => "STOP",
        Finish::Length => "MAX_TOKENS",
        Finish::Filter => "SAFETY",
    }
}

pub(super) fn usage_value(usage: &Usage) -> Value {
    json!({
        "promptTokenCount": usage.input,
        "cachedContentTokenCount": usage.cache_read,
        "candidatesTokenCount": usage.output.saturating_sub(usage.reasoning),
        "thoughtsTokenCount": usage.reasoning,
        "totalTokenCount": usage.input.saturating_add(usage.output),
    })
}

/// A piece of an answer as a part.
pub(super) fn answer_part(piece: &Piece) -> Option<Value> {
    Some(match piece {
        Piece::Text { text, .. } => json!({"text": text}),
        Piece::Thinking { text, .. } => json!({"text": text, "thought": true}),
        Piece::Call {
            id,
            name,
            arguments,
            signature,
        } => {
            let mut part = json!({"functionCall": {"id": id, "name": name, "args": object(arguments)}});
            set(&mut part, "thoughtSignature", signature.clone());
            part
        }
        _ => return None,
    })
}

pub(in crate::translate) fn answer(answer: &Answer) -> Value {
    let parts: Vec<Value> = answer.pieces.iter().filter_map(answer_part).collect();
    let finish = finish_name(answer.finish.unwrap_or(Finish::Stop));
    json!({
        "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": finish, "index": 0}],
        "usageMetadata": usage_value(&answer.usage),
        "modelVersion": answer.model,
        "responseId": answer.id,
    })
}
