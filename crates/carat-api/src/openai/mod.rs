//! OpenAI: chat completions, completions, responses, embeddings, models.

mod chat;
mod chat_answer;
mod completion;
mod embedding;
mod format;
mod responses;
mod responses_answer;

pub use chat::chat_request;
pub(crate) use chat::{Thinking, arguments, effort, tool};
pub use chat_answer::{ChatEvents, chat_completion};
pub use completion::{CompletionEvents, CompletionRequest, Prompt, completion, completion_request};
pub use embedding::{EmbeddingRequest, MAX_INPUTS, embedding_list, embedding_request};
pub use responses::{ResponsesRequest, responses_request};
pub use responses_answer::{ResponseEvents, ResponseHead, response};

use serde_json::{Value, json};

use crate::Usage;

/// One model in a list.
pub fn model(id: &str, created: u64) -> Value {
    json!({"id": id, "object": "model", "created": created, "owned_by": "carat"})
}

/// A list of models.
pub fn model_list(models: &[Value]) -> Value {
    json!({"object": "list", "data": models})
}

/// Usage as chat and completions write it.
fn usage(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning, "audio_tokens": 0, "accepted_prediction_tokens": usage.accepted,
            "rejected_prediction_tokens": usage.drafted.saturating_sub(usage.accepted),
        },
    })
}

/// One event of a stream.
fn event(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    out.extend_from_slice(b"data: ");
    // Writing to memory, of types that have a JSON form: nothing can fail.
    let _written = serde_json::to_writer(&mut *out, value);
    out.extend_from_slice(b"\n\n");
}
