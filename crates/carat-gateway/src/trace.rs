//! What traces tell of a request and of the calls it leads to.
//!
//! A request is a span of its own, each call to a provider one below it. Both end when the answer does, streams
//! included: the request's with its body, a call's with its account. Without a tracer all of this is `None`. Nothing
//! that is said or answered is told, only settings, counts and names.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use carat_traces::{Context, Span, Trace, Tracer, Value, genai};
use http::{HeaderMap, HeaderValue, Request};
use memchr::memmem;

use crate::account::Outcome;
use crate::attempt::Call;
use crate::endpoint::{Endpoint, Kind};
use crate::failure::Failure;
use crate::provider::Provider;
use crate::route::{Candidate, Route};
use crate::usage::Usage;

/// Reasons that answers end for, in all dialects. A text that is none of them may be anybody's words.
const REASONS: [&str; 36] = [
    "stop",
    "length",
    "tool_calls",
    "function_call",
    "content_filter",
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "pause_turn",
    "refusal",
    "guardrail_intervened",
    "content_filtered",
    "model_context_window_exceeded",
    "completed",
    "incomplete",
    "load",
    "unload",
    "COMPLETE",
    "STOP_SEQUENCE",
    "TOOL_CALL",
    "ERROR",
    "TIMEOUT",
    "STOP",
    "MAX_TOKENS",
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "OTHER",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "MALFORMED_FUNCTION_CALL",
    "IMAGE_SAFETY",
    "UNEXPECTED_TOOL_CALL",
    "eos",
];
/// The fields that hold them.
const REASON_FIELDS: [&[u8]; 5] = [
    b"\"finish_reason\"",
    b"\"stop_reason\"",
    b"\"finishReason\"",
    b"\"done_reason\"",
    b"\"stopReason\"",
];
/// Most reasons that are told of one answer.
const MOST_REASONS: usize = 16;

impl Endpoint {
    /// The operation, as the conventions call it; none for what they do not know.
    fn operation(self) -> Option<&'static str> {
        match (self, self.kind()) {
            (Self::Completions | Self::OllamaGenerate, _) => Some("text_completion"),
            (Self::Generate, _) => Some("generate_content"),
            (_, Kind::Conversation) => Some("chat"),
            (_, Kind::Embeddings) => Some("embeddings"),
            _ => None,
        }
    }

    fn operation_name(self) -> &'static str {
        self.operation().unwrap_or("request")
    }
}

/// Begins a request's span, under what its client says.
pub(crate) fn begin(tracer: &Tracer, headers: &HeaderMap) -> Trace {
    let parent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let trace = Trace::begin(tracer, "request", parent);
    trace.span().set(genai::METHOD, "POST");
    trace
}

/// What was asked for.
pub(crate) fn asked(trace: &Trace, name: &str, route: &Route, call: &Call<'_>) {
    let mut span = trace.span();
    span.rename(format!("{} {name}", call.endpoint.operation_name()));
    span.set("carat.route", route.name.clone());
    describe(&mut span, name, call);
}

/// A request has its answer, or the beginning of one.
pub(crate) fn answered(trace: &Trace, status: u16) {
    let mut span = trace.span();
    span.set(genai::STATUS, u64::from(status));
    if status >= 400 {
        span.fail(status.to_string());
    }
}

/// An answer came from what was kept.
pub(crate) fn cached(trace: &Trace, target: &str) {
    let mut span = trace.span();
    span.set("carat.cache", "hit");
    span.set("carat.target", target.to_string());
}

/// What request and call have in common.
fn describe(span: &mut Span, model: &str, call: &Call<'_>) {
    if let Some(operation) = call.endpoint.operation() {
        span.set(genai::OPERATION, operation);
    }
    span.set(genai::REQUEST_MODEL, model.to_string());
    span.set(genai::STREAM, call.is_stream);
    if let Some(n) = call
        .max_tokens
        .filter(|_| call.endpoint.kind() == Kind::Conversation)
    {
        span.set(genai::MAX_TOKENS, n);
    }
    // Gemini's and Ollama's settings are in an object of their own, Gemini's in camel case.
    let own: Option<serde_json::Value> = match call.endpoint {
        Endpoint::Generate => call.fields.get("generationConfig"),
        Endpoint::OllamaChat | Endpoint::OllamaGenerate => call.fields.get("options"),
        _ => None,
    };
    let number = |names: [&str; 2]| {
        let of = |name: &&str| match &own {
            Some(own) => own[*name].as_f64(),
            None => call.fields.get(name),
        };
        names.iter().find_map(of)
    };
    let numbers = [
        (genai::TEMPERATURE, ["temperature", "temperature"]),
        (genai::TOP_P, ["top_p", "topP"]),
        (genai::TOP_K, ["top_k", "topK"]),
        (
            genai::FREQUENCY_PENALTY,
            ["frequency_penalty", "frequencyPenalty"],
        ),
        (genai::PRESENCE_PENALTY, ["presence_penalty", "presencePenalty"]),
    ];
    for (attribute, names) in numbers {
        if let Some(number) = number(names) {
            span.set(attribute, number);
        }
    }
    if let Some(n) = call.fields.get::<u64>("n").filter(|n| *n != 1) {
        span.set(genai::CHOICES, n);
    }
    if let Some(seed) = call.fields.get::<u64>("seed") {
        span.set(genai::SEED, seed);
    }
}

/// Who answers, as the conventions call it.
fn provider_name(provider: &Provider) -> &str {
    match provider.like.as_str() {
        "gemini" => "gcp.gemini",
        "vertex" | "vertex-express" | "vertex-anthropic" => "gcp.vertex_ai",
        "bedrock" => "aws.bedrock",
        "azure" | "azure-deployments" => "azure.ai.openai",
        "github" => "azure.ai.inference",
        "mistral" => "mistral_ai",
        "xai" => "x_ai",
        "cohere-compat" => "cohere",
        like => like,
    }
}

/// A call to a provider.
#[derive(Debug)]
pub(crate) struct CallTrace {
    request: Trace,
    state: Mutex<CallState>,
}

#[derive(Debug)]
struct CallState {
    span: Span,
    reasons: Vec<&'static str>,
    has_ended: bool,
}

impl CallTrace {
    /// Begins it, and tells the provider of it.
    pub(crate) fn begin(
        call: &Call<'_>,
        candidate: &Candidate,
        request: &mut Request<Bytes>,
    ) -> Option<Box<Self>> {
        let trace = call.trace.as_ref()?;
        let mut span = trace.child(format!("{} {}", call.endpoint.operation_name(), candidate.model));
        tell(span.context(), request.headers_mut());
        describe(&mut span, &candidate.model, call);
        let provider = &candidate.provider;
        let authority = &provider.base.authority;
        span.set(genai::PROVIDER, provider_name(provider).to_string());
        span.set(genai::SERVER_ADDRESS, authority.host().to_string());
        if let Some(port) = authority.port_u16() {
            span.set(genai::SERVER_PORT, u64::from(port));
        }
        span.set("carat.target", candidate.name.clone());
        Some(Box::new(Self {
            request: trace.clone(),
            state: Mutex::new(CallState {
                span,
                reasons: Vec::new(),
                has_ended: false,
            }),
        }))
    }

    fn state(&self) -> MutexGuard<'_, CallState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The provider's status.
    pub(crate) fn status(&self, status: u16) {
        self.state().span.set(genai::STATUS, u64::from(status));
    }

    /// Takes a piece of an answer as it came, for the reasons why answers end.
    pub(crate) fn heard(&self, data: &[u8]) {
        let mut state = self.state();
        for field in REASON_FIELDS {
            for at in memmem::find_iter(data, field) {
                if let Some(reason) = reason(&data[at + field.len()..])
                    && state.reasons.len() < MOST_REASONS
                {
                    state.reasons.push(reason);
                }
            }
        }
    }

    /// The answer begins, and it is this one that the client gets.
    pub(crate) fn began(&self) {
        let mut state = self.state();
        let took = state.span.elapsed();
        state.span.set(genai::CLIENT_FIRST_CHUNK, took);
        let mut request = self.request.span();
        let took = request.elapsed();
        request.set(genai::SERVER_FIRST_TOKEN, took);
    }

    /// There is no answer.
    pub(crate) fn failed(&self, failure: &Failure) {
        let mut state = self.state();
        state.span.fail(failure.class.name());
        state.has_ended = true;
    }

    /// The answer has ended.
    pub(crate) fn ended(&self, candidate: &str, outcome: &Outcome, usage: &Usage, is_counted: bool) {
        let mut state = self.state();
        state.has_ended = true;
        let CallState { span, reasons, .. } = &mut *state;
        let mut request = self.request.span();
        let (_, model) = candidate.split_once('/').unwrap_or(("", candidate));
        for span in [&mut *span, &mut *request] {
            span.set(genai::RESPONSE_MODEL, model.to_string());
            span.set(genai::INPUT_TOKENS, usage.input);
            span.set(genai::OUTPUT_TOKENS, usage.output);
            if usage.cache_read > 0 {
                span.set(genai::CACHED_TOKENS, usage.cache_read);
            }
            if !is_counted {
                span.set("carat.usage.is_estimated", true);
            }
            if !reasons.is_empty() {
                let reasons = reasons.iter().map(|reason| (*reason).into()).collect();
                span.set(genai::FINISH_REASONS, Value::Texts(reasons));
            }
            match outcome {
                Outcome::Complete => {}
                Outcome::Cut(failure) => span.fail(failure.class.name()),
                Outcome::ClientGone => span.fail("client_gone"),
            }
        }
        request.set("carat.target", candidate.to_string());
    }
}

impl Drop for CallTrace {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Another call answered first, or the client left before any did.
        if !state.has_ended {
            state.span.fail("abandoned");
        }
    }
}

/// The reason that stands behind its field.
fn reason(data: &[u8]) -> Option<&'static str> {
    let data = data.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let data = data.strip_prefix(b"\"")?;
    let text = &data[..memchr::memchr(b'"', data)?];
    REASONS.into_iter().find(|reason| reason.as_bytes() == text)
}

/// Names the span to whoever is asked.
fn tell(context: Context, headers: &mut HeaderMap) {
    if let Ok(value) = HeaderValue::try_from(context.to_string()) {
        headers.insert("traceparent", value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_found_and_words_are_not() {
        assert_eq!(reason(b" : \"stop\"}"), Some("stop"));
        assert_eq!(reason(b":null"), None);
        assert_eq!(reason(b":\"my secret\""), None);
        assert_eq!(reason(b":\"sto"), None);
    }
}
