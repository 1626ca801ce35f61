//! What traces tell of a request: settings, counts and times, and nothing of what is said.

use axum::http::{HeaderMap, Method};
use carat_api::{FinishKind, GenerationRequest, Usage};
use carat_traces::{Trace, Tracer, Value, genai};

/// Most answers of a request whose ends are told.
const MOST_REASONS: usize = 16;

/// Begins the span of a request for a model, under what its client says.
pub(crate) fn begin(
    tracer: Option<&Tracer>,
    method: &Method,
    route: &'static str,
    headers: &HeaderMap,
) -> Option<Trace> {
    let tracer = tracer?;
    let operation = operation(route).filter(|_| method == Method::POST)?;
    let parent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let trace = Trace::begin(tracer, operation, parent);
    let mut span = trace.span();
    span.set(genai::OPERATION, operation);
    span.set(genai::PROVIDER, "carat");
    span.set(genai::METHOD, "POST");
    span.set(genai::ROUTE, route);
    drop(span);
    Some(trace)
}

/// What the conventions call it.
fn operation(route: &str) -> Option<&'static str> {
    match route {
        "/v1/chat/completions" | "/v1/responses" | "/v1/messages" | "/api/chat" => Some("chat"),
        "/v1/completions" | "/api/generate" => Some("text_completion"),
        "/v1/embeddings" | "/api/embed" | "/api/embeddings" => Some("embeddings"),
        "/v1/audio/transcriptions" => Some("generate_content"),
        _ => None,
    }
}

/// An answer's status, when its head goes out.
pub(crate) fn answered(trace: &Trace, status: u16) {
    let mut span = trace.span();
    span.set(genai::STATUS, u64::from(status));
    if status >= 400 {
        span.fail(status.to_string());
    }
}

/// What is asked for, and of which model.
pub(crate) fn asked(trace: &Trace, request: &GenerationRequest, model: &str) {
    let mut span = trace.span();
    let operation = span.text(genai::OPERATION).unwrap_or("chat");
    let name = format!("{operation} {}", request.model);
    span.rename(name);
    span.set(genai::REQUEST_MODEL, request.model.clone());
    span.set(genai::RESPONSE_MODEL, model.to_string());
    span.set(genai::STREAM, request.stream);
    let wish = &request.sampling;
    let numbers = [
        (genai::TEMPERATURE, wish.temperature),
        (genai::TOP_P, wish.top_p),
        (genai::FREQUENCY_PENALTY, wish.frequency_penalty),
        (genai::PRESENCE_PENALTY, wish.presence_penalty),
    ];
    for (attribute, number) in numbers {
        if let Some(number) = number {
            span.set(attribute, f64::from(number));
        }
    }
    let counts = [
        (genai::MAX_TOKENS, request.max_tokens),
        (genai::TOP_K, wish.top_k),
        (genai::CHOICES, Some(request.n).filter(|n| *n > 1)),
    ];
    for (attribute, count) in counts {
        if let Some(count) = count {
            span.set(attribute, count as u64);
        }
    }
    if let Some(seed) = wish.seed {
        span.set(genai::SEED, seed);
    }
}

/// Texts became vectors.
pub(crate) fn embedded(trace: &Trace, model: &str, n_tokens: usize) {
    let mut span = trace.span();
    span.rename(format!("embeddings {model}"));
    span.set(genai::REQUEST_MODEL, model.to_string());
    span.set(genai::RESPONSE_MODEL, model.to_string());
    span.set(genai::INPUT_TOKENS, n_tokens as u64);
}

/// The first token is there.
pub(crate) fn spoke(trace: &Trace) {
    let mut span = trace.span();
    let took = span.elapsed();
    span.set(genai::SERVER_FIRST_TOKEN, took);
}

/// Why answers ended, as they are told of.
#[derive(Debug, Default)]
pub(crate) struct Reasons(Vec<&'static str>);

impl Reasons {
    pub(crate) fn add(&mut self, kind: &FinishKind) {
        if self.0.len() < MOST_REASONS {
            self.0.push(match kind {
                FinishKind::Stop | FinishKind::StopString(_) => "stop",
                FinishKind::Length | FinishKind::ContextFull => "length",
                FinishKind::ToolCalls => "tool_calls",
            });
        }
    }
}

/// There will be no more. `is_whole`: all answers came to an end of their own.
pub(crate) fn ended(trace: &Trace, usage: &Usage, reasons: &Reasons, is_whole: bool) {
    let mut span = trace.span();
    span.set(genai::INPUT_TOKENS, usage.prompt as u64);
    span.set(genai::OUTPUT_TOKENS, usage.completion as u64);
    if usage.cached > 0 {
        span.set(genai::CACHED_TOKENS, usage.cached as u64);
    }
    if !reasons.0.is_empty() {
        let reasons = reasons.0.iter().map(|reason| (*reason).into()).collect();
        span.set(genai::FINISH_REASONS, Value::Texts(reasons));
    }
    if !is_whole {
        span.fail("cut");
    }
}
