//! What the mock says as Cohere and as Replicate, and what everybody says of vectors and counts.

use super::NATIVE;

/// 11 tokens in, of which 2 cached, 4 out.
const USAGE: &str = "{\"billed_units\":{\"input_tokens\":11.0,\"output_tokens\":4.0},\"tokens\":{\"input_tokens\":70.0},\"cached_tokens\":2.0}";
const CALL: &str = "{\"id\":\"weather_x1\",\"type\":\"function\",\"function\":{\"name\":\"weather\",\"arguments\":\"{\\\"city\\\":\\\"K\u{f6}ln\\\"}\"}}";

pub(super) fn cohere_events(is_tool: bool) -> Vec<String> {
    let [thought, first, second] = NATIVE;
    let event = |kind: &str, rest: &str| format!("event: {kind}\ndata: {{\"type\":\"{kind}\"{rest}}}\n\n");
    let message =
        |kind: &str, message: &str| event(kind, &format!(",\"index\":0,\"delta\":{{\"message\":{message}}}"));
    let mut events = vec![event(
        "message-start",
        ",\"id\":\"c1\",\"delta\":{\"message\":{\"role\":\"assistant\"}}",
    )];
    if is_tool {
        events.push(message(
            "tool-plan-delta",
            &format!("{{\"tool_plan\":\"{thought}\"}}"),
        ));
        events.push(message(
            "tool-call-start",
            "{\"tool_calls\":{\"id\":\"weather_x1\",\"type\":\"function\",\"function\":{\"name\":\"weather\",\"arguments\":\"\"}}}",
        ));
        for arguments in ["{\\\"city\\\":", "\\\"K\u{f6}ln\\\"}"] {
            let call = format!("{{\"tool_calls\":{{\"function\":{{\"arguments\":\"{arguments}\"}}}}}}");
            events.push(message("tool-call-delta", &call));
        }
        events.push(event("tool-call-end", ",\"index\":0"));
    } else {
        events.push(message(
            "content-start",
            "{\"content\":{\"type\":\"thinking\",\"thinking\":\"\"}}",
        ));
        events.push(message(
            "content-delta",
            &format!("{{\"content\":{{\"thinking\":\"{thought}\"}}}}"),
        ));
        events.push(event("content-end", ",\"index\":0"));
        events.push(message(
            "content-start",
            "{\"content\":{\"type\":\"text\",\"text\":\"\"}}",
        ));
        for text in [first, second] {
            events.push(message(
                "content-delta",
                &format!("{{\"content\":{{\"text\":\"{text}\"}}}}"),
            ));
        }
        events.push(message(
            "citation-start",
            "{\"citations\":{\"start\":0,\"end\":4,\"text\":\"x\"}}",
        ));
        events.push(event("content-end", ",\"index\":1"));
    }
    let reason = if is_tool { "TOOL_CALL" } else { "COMPLETE" };
    events.push(event(
        "message-end",
        &format!(",\"delta\":{{\"finish_reason\":\"{reason}\",\"usage\":{USAGE}}}"),
    ));
    events
}

pub(super) fn cohere_whole(is_tool: bool) -> String {
    let [thought, first, second] = NATIVE;
    let (message, reason) = if is_tool {
        (
            format!("\"tool_plan\":\"{thought}\",\"tool_calls\":[{CALL}]"),
            "TOOL_CALL",
        )
    } else {
        let content = format!(
            "\"content\":[{{\"type\":\"thinking\",\"thinking\":\"{thought}\"}},{{\"type\":\"text\",\"text\":\"{first}{second}\"}}]"
        );
        (content, "COMPLETE")
    };
    format!(
        "{{\"id\":\"c1\",\"finish_reason\":\"{reason}\",\"message\":{{\"role\":\"assistant\",{message}}},\"usage\":{USAGE}}}"
    )
}

pub(super) const RERANK: &str = "{\"id\":\"r1\",\"results\":[{\"index\":1,\"relevance_score\":0.9}],\"meta\":{\"billed_units\":{\"search_units\":1}}}";

/// A prediction that is not there yet, or is. One that is called `endless` never will be.
pub(super) fn prediction(host: &str, id: &str, status: &str, can_stream: bool) -> String {
    let [_, first, second] = NATIVE;
    let output = if status == "succeeded" {
        format!("[\"{first}\",\"{second}\"]")
    } else {
        "null".into()
    };
    let stream = if can_stream {
        format!(",\"stream\":\"http://{host}/v1/stream/{id}\"")
    } else {
        String::new()
    };
    format!(
        "{{\"id\":\"{id}\",\"status\":\"{status}\",\"output\":{output},\"error\":null,\"metrics\":{{\"input_token_count\":11,\"output_token_count\":4}},\"urls\":{{\"get\":\"http://{host}/v1/look/{id}\",\"cancel\":\"http://{host}/v1/cancel/{id}\"{stream}}}}}"
    )
}

pub(super) fn replicate_events() -> Vec<String> {
    let [_, first, second] = NATIVE;
    vec![
        format!("event: output\nid: 1\ndata: {first}\n\n"),
        format!("event: output\nid: 2\ndata: {second}\n\n"),
        "event: done\nid: 3\ndata: {}\n\n".into(),
    ]
}

/// Vectors and counts, by the end of the path.
pub(super) fn small(path: &str) -> Option<&'static str> {
    let known = [
        (
            "/v1/embeddings",
            "{\"object\":\"list\",\"data\":[{\"object\":\"embedding\",\"index\":0,\"embedding\":[0.5,-1.25]}],\"usage\":{\"prompt_tokens\":3,\"total_tokens\":3}}",
        ),
        (
            ":batchEmbedContents",
            "{\"embeddings\":[{\"values\":[0.5,-1.25]}]}",
        ),
        (
            ":predict",
            "{\"predictions\":[{\"embeddings\":{\"values\":[0.5,-1.25],\"statistics\":{\"token_count\":3}}}]}",
        ),
        (
            "/api/embed",
            "{\"model\":\"x\",\"embeddings\":[[0.5,-1.25]],\"prompt_eval_count\":3}",
        ),
        (
            "/v2/embed",
            "{\"embeddings\":{\"float\":[[0.5,-1.25]]},\"meta\":{\"billed_units\":{\"input_tokens\":3.0}}}",
        ),
        ("/invoke", "{\"embedding\":[0.5,-1.25],\"inputTextTokenCount\":3}"),
        (":countTokens", "{\"totalTokens\":7}"),
        ("/count_tokens", "{\"input_tokens\":7}"),
    ];
    known
        .iter()
        .find(|(end, _)| path.ends_with(end))
        .map(|(_, body)| *body)
}

/// A line of Ollama's `/api/generate`.
pub(super) fn generate_lines() -> Vec<String> {
    let [thought, first, second] = NATIVE;
    let line =
        |rest: &str| format!("{{\"model\":\"mock-1\",\"created_at\":\"2026-01-01T00:00:00.0Z\",{rest}}}\n");
    vec![
        line(&format!(
            "\"response\":\"\",\"thinking\":\"{thought}\",\"done\":false"
        )),
        line(&format!("\"response\":\"{first}\",\"done\":false")),
        line(&format!("\"response\":\"{second}\",\"done\":false")),
        line(
            "\"response\":\"\",\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":11,\"eval_count\":4",
        ),
    ]
}

pub(super) fn generate_whole() -> String {
    let [thought, first, second] = NATIVE;
    format!(
        "{{\"model\":\"mock-1\",\"response\":\"{first}{second}\",\"thinking\":\"{thought}\",\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":11,\"eval_count\":4}}"
    )
}
