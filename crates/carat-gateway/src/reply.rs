//! Answers that the gateway makes itself: errors in the client's own words, and bodies of either kind.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body::{Frame, SizeHint};
use serde_json::{Value, json};

use crate::endpoint::{Dialect, Endpoint};
use crate::failure::{Class, Failure};
use crate::timed::Timed;

/// What goes back to a client.
pub(crate) enum Body {
    /// All of it.
    Whole(Option<Bytes>),
    /// Events as they come.
    Stream(Timed),
}

impl Body {
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => {
                let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Stream(relay) => relay
                .poll_bytes(cx)
                .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.as_ref().is_none_or(Bytes::is_empty))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::whole(value.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A refusal in the words of `dialect`.
pub(crate) fn refusal(dialect: Dialect, failure: &Failure) -> Response<Body> {
    let status = StatusCode::from_u16(failure.status)
        .ok()
        .filter(|status| !status.is_success());
    let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = json(status, &error_value(dialect, failure));
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(wait) = failure.wait {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::REQUEST_TIMEOUT {
        // The rest of its body may still be coming.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if failure.class.is_final()
        || matches!(
            failure.class,
            Class::BadKey | Class::ModelGone | Class::Moved | Class::Refused | Class::OutOfQuota
        )
    {
        // Official clients try again by themselves unless they are told that it cannot help.
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    response
}

/// An error as `dialect` writes it.
fn error_value(dialect: Dialect, failure: &Failure) -> Value {
    let message = if failure.message.is_empty() {
        "the provider gave no reason"
    } else {
        &failure.message
    };
    match dialect {
        Dialect::OpenAi | Dialect::Bedrock | Dialect::Cohere | Dialect::Replicate => {
            let kind = failure.kind.as_deref().unwrap_or(openai_kind(failure));
            let code = failure.code.as_deref().or(openai_code(failure.class));
            json!({"error": {"message": message, "type": kind, "param": failure.param, "code": code}})
        }
        Dialect::Anthropic => {
            json!({"type": "error", "error": {"type": anthropic_kind(failure), "message": message}})
        }
        Dialect::Gemini => {
            json!({"error": {"code": failure.status, "message": message, "status": gemini_status(failure.status)}})
        }
        Dialect::Ollama => json!({"error": message}),
    }
}

fn openai_kind(failure: &Failure) -> &'static str {
    match failure.status {
        429 => "rate_limit_error",
        401 => "authentication_error",
        403 => "permission_error",
        402 => "insufficient_quota",
        408 | 504 => "timeout",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

fn openai_code(class: Class) -> Option<&'static str> {
    Some(match class {
        Class::RateLimited => "rate_limit_exceeded",
        Class::OutOfQuota => "insufficient_quota",
        Class::BadKey => "invalid_api_key",
        Class::ModelGone => "model_not_found",
        Class::ContextTooLong => "context_length_exceeded",
        Class::ContentPolicy => "content_filter",
        _ => return None,
    })
}

fn anthropic_kind(failure: &Failure) -> &'static str {
    match failure.status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        408 | 504 => "timeout_error",
        503 | 529 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

fn gemini_status(status: u16) -> &'static str {
    match status {
        401 => "UNAUTHENTICATED",
        402 | 403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        408 | 504 => "DEADLINE_EXCEEDED",
        503 | 529 => "UNAVAILABLE",
        500.. => "INTERNAL",
        _ => "INVALID_ARGUMENT",
    }
}

/// The last event of a stream that failed.
pub(crate) fn stream_error(endpoint: Endpoint, failure: &Failure, out: &mut Vec<u8>) {
    let mut value = error_value(endpoint.dialect(), failure);
    let text = match endpoint {
        Endpoint::Responses => {
            let error = value["error"].take();
            let message = &error["message"];
            let value =
                json!({"type": "error", "code": error["code"], "message": message, "param": error["param"]});
            format!("event: error\ndata: {value}\n\n")
        }
        Endpoint::Messages => format!("event: error\ndata: {value}\n\n"),
        lines if lines.has_lines() => format!("{value}\n"),
        _ => format!("data: {value}\n\n"),
    };
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn refusals_speak_the_clients_language() {
        let failure = Failure {
            wait: Some(Duration::from_millis(1200)),
            ..Failure::new(Class::RateLimited, 429, "slow down")
        };
        let response = refusal(Dialect::OpenAi, &failure);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert!(!response.headers().contains_key("x-should-retry"));
        assert_eq!(
            error_value(Dialect::OpenAi, &failure)["error"]["code"],
            "rate_limit_exceeded"
        );
        assert_eq!(
            error_value(Dialect::Anthropic, &failure)["error"]["type"],
            "rate_limit_error"
        );
        assert_eq!(
            error_value(Dialect::Gemini, &failure)["error"]["status"],
            "RESOURCE_EXHAUSTED"
        );
        assert_eq!(error_value(Dialect::Ollama, &failure)["error"], "slow down");
        let response = refusal(Dialect::OpenAi, &Failure::new(Class::BadRequest, 400, ""));
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert_eq!(
            refusal(Dialect::OpenAi, &Failure::new(Class::ServerFault, 200, "")).status(),
            502
        );
    }

    #[test]
    fn streams_end_with_an_error_event() {
        let failure = Failure::new(Class::Network, 502, "cut");
        let mut out = Vec::new();
        stream_error(Endpoint::Chat, &failure, &mut out);
        assert!(out.starts_with(b"data: {\"error\":{") && out.ends_with(b"\n\n"));
        out.clear();
        stream_error(Endpoint::Responses, &failure, &mut out);
        assert!(out.starts_with(b"event: error\ndata: {"));
    }
}
