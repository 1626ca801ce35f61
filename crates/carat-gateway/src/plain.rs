//! Whether an answer is nothing but one text, thoughts and calls.
//!
//! That much is known here of every API, so that a stream can become a whole answer, and a whole answer a stream, without
//! a loss. What is not known to be harmless is taken for a part of the answer: several answers, pictures and sounds,
//! probabilities, sources, signatures.

use serde_json::Value;

use crate::endpoint::Dialect;

/// Whether a whole answer, or an event of one, has nothing else in it.
pub(crate) fn is_plain(dialect: Dialect, value: &Value) -> bool {
    match dialect {
        Dialect::Anthropic => is_plain_message(value),
        Dialect::Gemini => is_plain_content(value),
        Dialect::Ollama => {
            let known = ["role", "content", "thinking", "tool_calls"];
            has_only(&value["message"], &known) && is_nothing(&value["logprobs"])
        }
        _ => is_plain_completion(value),
    }
}

/// Null, empty or not there.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Whether an object says something in these members alone.
fn has_only(value: &Value, known: &[&str]) -> bool {
    let members = value.as_object().into_iter().flatten();
    let mut others = members.filter(|(name, _)| !known.contains(&name.as_str()));
    others.all(|(_, value)| is_nothing(value))
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn is_plain_completion(value: &Value) -> bool {
    let said = ["role", "content", "reasoning_content", "reasoning", "tool_calls"];
    let is_call = |call: &Value| has_only(call, &["index", "id", "type", "function", "extra_content"]);
    let is_said = |message: &Value| {
        let is_text = message["content"].is_string() || is_nothing(&message["content"]);
        is_text && has_only(message, &said) && items(&message["tool_calls"]).all(is_call)
    };
    let is_choice = |choice: &Value| {
        choice["index"].as_u64().unwrap_or(0) == 0
            && is_nothing(&choice["logprobs"])
            && is_said(&choice["message"])
            && is_said(&choice["delta"])
    };
    // Whoever searches says there where it looked.
    let has_sources = ["citations", "search_results"]
        .iter()
        .any(|name| !is_nothing(&value[*name]));
    !has_sources && items(&value["choices"]).count() <= 1 && items(&value["choices"]).all(is_choice)
}

fn is_plain_message(value: &Value) -> bool {
    let is_block = |block: &Value| match block["type"].as_str() {
        Some("text") => has_only(block, &["type", "text"]),
        Some("tool_use") => has_only(block, &["type", "id", "name", "input"]),
        kind => matches!(kind, None | Some("thinking" | "redacted_thinking")),
    };
    let delta = &value["delta"];
    let is_delta = matches!(
        delta["type"].as_str(),
        None | Some("text_delta" | "input_json_delta" | "thinking_delta" | "signature_delta")
    );
    // Which of the client's words ended it stands nowhere else.
    let is_stopped = |part: &Value| !is_nothing(&part["stop_sequence"]);
    is_delta
        && !is_stopped(value)
        && !is_stopped(delta)
        && is_block(&value["content_block"])
        && items(&value["content"]).all(is_block)
}

fn is_plain_content(value: &Value) -> bool {
    let is_part = |part: &Value| {
        let is_call = !is_nothing(&part["functionCall"]);
        let known: &[&str] = if is_call {
            &["functionCall", "thoughtSignature"]
        } else {
            &["text", "thought"]
        };
        has_only(part, known)
    };
    let known = [
        "content",
        "index",
        "finishReason",
        "finishMessage",
        "safetyRatings",
        "tokenCount",
        "avgLogprobs",
    ];
    let is_candidate =
        |candidate: &Value| has_only(candidate, &known) && items(&candidate["content"]["parts"]).all(is_part);
    let candidates = || items(&value["candidates"]);
    candidates().count() <= 1
        && candidates().all(|one| one["index"].as_u64().unwrap_or(0) == 0)
        && candidates().all(is_candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(dialect: Dialect, text: &str) -> bool {
        is_plain(dialect, &serde_json::from_str(text).unwrap())
    }

    #[test]
    fn texts_thoughts_and_calls_are_plain() {
        for (dialect, text) in [
            (
                Dialect::OpenAi,
                r#"{"id":"1","choices":[{"index":0,"message":{"role":"assistant","content":"a","refusal":null,"annotations":[],"tool_calls":[{"id":"c","type":"function","function":{}}]},"logprobs":null,"finish_reason":"stop"}],"usage":{}}"#,
            ),
            (
                Dialect::OpenAi,
                r#"{"choices":[{"index":0,"delta":{"reasoning_content":"a"}}]}"#,
            ),
            (Dialect::OpenAi, r#"{"choices":[],"usage":{"total_tokens":1}}"#),
            (
                Dialect::Anthropic,
                r#"{"content":[{"type":"thinking","thinking":"a","signature":"b"},{"type":"text","text":"a","citations":null},{"type":"tool_use","id":"t","name":"f","input":{}}],"stop_reason":"end_turn","stop_sequence":null}"#,
            ),
            (
                Dialect::Anthropic,
                r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null}}"#,
            ),
            (
                Dialect::Anthropic,
                r#"{"type":"message_start","message":{"content":[]}}"#,
            ),
            (
                Dialect::Gemini,
                r#"{"candidates":[{"content":{"parts":[{"text":"a","thought":true},{"functionCall":{"name":"f"},"thoughtSignature":"s"}]},"finishReason":"STOP","index":0}]}"#,
            ),
            (
                Dialect::Ollama,
                r#"{"message":{"role":"assistant","content":"a","tool_calls":[]},"done":true}"#,
            ),
        ] {
            assert!(is(dialect, text), "{text}");
        }
    }

    #[test]
    fn what_would_be_lost_is_not_plain() {
        for (dialect, text) in [
            (
                Dialect::OpenAi,
                r#"{"choices":[{"message":{"content":"a"}},{"message":{"content":"b"}}]}"#,
            ),
            (
                Dialect::OpenAi,
                r#"{"choices":[{"index":1,"delta":{"content":"a"}}]}"#,
            ),
            (
                Dialect::OpenAi,
                r#"{"choices":[{"message":{"content":"a"},"logprobs":{"content":[{}]}}]}"#,
            ),
            (
                Dialect::OpenAi,
                r#"{"choices":[{"message":{"content":null,"audio":{"data":"x"}}}]}"#,
            ),
            (
                Dialect::OpenAi,
                r#"{"choices":[{"message":{"content":"a","thinking_blocks":[{}]}}]}"#,
            ),
            (
                Dialect::OpenAi,
                r#"{"choices":[{"message":{"tool_calls":[{"type":"custom","custom":{"name":"x"}}]}}]}"#,
            ),
            (
                Dialect::OpenAi,
                r#"{"choices":[{"delta":{"content":"a"}}],"citations":["x"]}"#,
            ),
            (
                Dialect::Anthropic,
                r#"{"content":[{"type":"text","text":"a","citations":[{}]}]}"#,
            ),
            (
                Dialect::Anthropic,
                r#"{"type":"content_block_start","content_block":{"type":"server_tool_use"}}"#,
            ),
            (Dialect::Anthropic, r#"{"delta":{"type":"citations_delta"}}"#),
            (
                Dialect::Anthropic,
                r#"{"delta":{"stop_reason":"stop_sequence","stop_sequence":"x"}}"#,
            ),
            (
                Dialect::Gemini,
                r#"{"candidates":[{"content":{"parts":[{"inlineData":{"data":"x"}}]}}]}"#,
            ),
            (
                Dialect::Gemini,
                r#"{"candidates":[{"content":{"parts":[{"text":"a","thoughtSignature":"s"}]}}]}"#,
            ),
            (
                Dialect::Gemini,
                r#"{"candidates":[{"content":{"parts":[]},"groundingMetadata":{"x":1}}]}"#,
            ),
            (Dialect::Gemini, r#"{"candidates":[{"index":1,"content":{}}]}"#),
            (
                Dialect::Ollama,
                r#"{"message":{"content":"a"},"logprobs":[{"token":"a"}]}"#,
            ),
        ] {
            assert!(!is(dialect, text), "{text}");
        }
    }
}
