//! What the mock says as AWS Bedrock, and as whoever gives out Google's tokens.

use super::NATIVE;

/// A frame of AWS's event stream.
fn frame(kind: &str, name: &str, payload: &str) -> Vec<u8> {
    let mut headers = Vec::new();
    let of = if kind == "event" {
        ":event-type"
    } else {
        ":exception-type"
    };
    for (key, value) in [
        (of, name),
        (":content-type", "application/json"),
        (":message-type", kind),
    ] {
        headers.push(u8::try_from(key.len()).unwrap());
        headers.extend_from_slice(key.as_bytes());
        headers.push(7);
        headers.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
        headers.extend_from_slice(value.as_bytes());
    }
    let length = u32::try_from(16 + headers.len() + payload.len()).unwrap();
    let mut out = length.to_be_bytes().to_vec();
    out.extend_from_slice(&u32::try_from(headers.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
    out.extend_from_slice(&headers);
    out.extend_from_slice(payload.as_bytes());
    out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
    out
}

/// 9 tokens in beside 2 cached ones, 4 out.
const USAGE: &str = "{\"inputTokens\":9,\"outputTokens\":4,\"totalTokens\":15,\"cacheReadInputTokens\":2}";

pub(super) fn bedrock_frames(is_tool: bool) -> Vec<Vec<u8>> {
    let [thought, first, second] = NATIVE;
    let event = |name: &str, payload: &str| frame("event", name, payload);
    let delta = |i: u32, delta: &str| {
        event(
            "contentBlockDelta",
            &format!("{{\"contentBlockIndex\":{i},\"delta\":{delta}}}"),
        )
    };
    let mut frames = vec![
        event("messageStart", "{\"role\":\"assistant\"}"),
        delta(0, &format!("{{\"reasoningContent\":{{\"text\":\"{thought}\"}}}}")),
        delta(0, "{\"reasoningContent\":{\"signature\":\"c2ln\"}}"),
        event("contentBlockStop", "{\"contentBlockIndex\":0}"),
    ];
    if is_tool {
        frames.push(event(
            "contentBlockStart",
            "{\"contentBlockIndex\":1,\"start\":{\"toolUse\":{\"toolUseId\":\"tooluse_1\",\"name\":\"weather\"}}}",
        ));
        frames.push(delta(1, "{\"toolUse\":{\"input\":\"{\\\"city\\\":\"}}"));
        frames.push(delta(1, "{\"toolUse\":{\"input\":\"\\\"K\u{f6}ln\\\"}\"}}"));
    } else {
        frames.extend([first, second].map(|text| delta(1, &format!("{{\"text\":\"{text}\"}}"))));
    }
    frames.push(event("contentBlockStop", "{\"contentBlockIndex\":1}"));
    let reason = if is_tool { "tool_use" } else { "end_turn" };
    frames.push(event("messageStop", &format!("{{\"stopReason\":\"{reason}\"}}")));
    frames.push(event(
        "metadata",
        &format!("{{\"usage\":{USAGE},\"metrics\":{{\"latencyMs\":5}}}}"),
    ));
    frames
}

/// An exception in the middle of a stream.
pub(super) fn bedrock_exception() -> Vec<u8> {
    frame(
        "exception",
        "throttlingException",
        "{\"message\":\"mock is tired\"}",
    )
}

pub(super) fn bedrock_whole(is_tool: bool) -> String {
    let [thought, first, second] = NATIVE;
    let (block, reason) = if is_tool {
        let call = "{\"toolUse\":{\"toolUseId\":\"tooluse_1\",\"name\":\"weather\",\"input\":{\"city\":\"K\u{f6}ln\"}}}";
        (call.to_string(), "tool_use")
    } else {
        (format!("{{\"text\":\"{first}{second}\"}}"), "end_turn")
    };
    format!(
        "{{\"output\":{{\"message\":{{\"role\":\"assistant\",\"content\":[{{\"reasoningContent\":{{\"reasoningText\":{{\"text\":\"{thought}\",\"signature\":\"c2ln\"}}}}}},{block}]}}}},\"stopReason\":\"{reason}\",\"usage\":{USAGE},\"metrics\":{{\"latencyMs\":5}}}}"
    )
}

/// The `n`-th token that was asked for.
pub(super) fn google_token(n: u64) -> String {
    format!("{{\"access_token\":\"ya29.mock-{n}\",\"expires_in\":3600,\"token_type\":\"Bearer\"}}")
}
