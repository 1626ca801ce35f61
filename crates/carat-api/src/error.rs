//! One error for all APIs, and the shape that each gives it.

use serde_json::{Value, json};

/// Longest message and longest path, in bytes: both quote what requests say, and that may be a megabyte.
const LONGEST: usize = 1000;

/// What kind of failure, which decides the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request makes no sense (400).
    InvalidRequest,
    /// No key, or a wrong one (401).
    Authentication,
    /// What is asked for is not for whoever asks (403).
    Permission,
    /// Something that is asked for is not there (404).
    NotFound,
    /// The body came too slowly (408).
    Timeout,
    /// The answer would have taken longer than a request may (408), and would again.
    TooLate,
    /// The body is too large (413).
    TooLarge,
    /// Too many requests wait already (429).
    RateLimit,
    /// A mistake of the server (500).
    Internal,
    /// The server is starting or stopping (503).
    Unavailable,
}

/// Why a request was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind.
    pub kind: ErrorKind,
    /// One sentence that says what to do.
    pub message: String,
    /// The path of the field at fault.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
}

impl ApiError {
    /// An error without a field.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: brief(message.into()),
            param: None,
            code: None,
        }
    }

    /// A field that cannot be used.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            param: Some(brief(param.into())),
            ..Self::new(ErrorKind::InvalidRequest, message)
        }
    }

    /// The same with a word for programs.
    #[must_use]
    pub fn with_code(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self.kind {
            ErrorKind::InvalidRequest => 400,
            ErrorKind::Authentication => 401,
            ErrorKind::Permission => 403,
            ErrorKind::NotFound => 404,
            ErrorKind::Timeout | ErrorKind::TooLate => 408,
            ErrorKind::TooLarge => 413,
            ErrorKind::RateLimit => 429,
            ErrorKind::Internal => 500,
            ErrorKind::Unavailable => 503,
        }
    }

    /// As OpenAI writes it.
    pub fn openai(&self) -> Value {
        let kind = match self.kind {
            ErrorKind::RateLimit => "rate_limit_error",
            ErrorKind::Internal | ErrorKind::Unavailable => "server_error",
            ErrorKind::Timeout | ErrorKind::TooLate => "timeout",
            _ => "invalid_request_error",
        };
        let code = self.code.or(match self.kind {
            ErrorKind::Authentication => Some("invalid_api_key"),
            ErrorKind::RateLimit => Some("rate_limit_exceeded"),
            _ => None,
        });
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": code}})
    }

    /// As Anthropic writes it.
    pub fn anthropic(&self) -> Value {
        let kind = match self.kind {
            ErrorKind::InvalidRequest => "invalid_request_error",
            ErrorKind::Authentication => "authentication_error",
            ErrorKind::Permission => "permission_error",
            ErrorKind::NotFound => "not_found_error",
            ErrorKind::TooLarge => "request_too_large",
            ErrorKind::RateLimit => "rate_limit_error",
            ErrorKind::Timeout | ErrorKind::TooLate => "timeout_error",
            ErrorKind::Unavailable => "overloaded_error",
            ErrorKind::Internal => "api_error",
        };
        let message = match &self.param {
            Some(param) => format!("{param}: {}", self.message),
            None => self.message.clone(),
        };
        json!({"type": "error", "error": {"type": kind, "message": message}})
    }

    /// As Ollama writes it.
    pub fn ollama(&self) -> Value {
        json!({"error": self.message})
    }
}

/// The text, or its beginning and its end, which says what was expected.
fn brief(text: String) -> String {
    if text.len() <= LONGEST {
        return text;
    }
    let start = text.floor_char_boundary(LONGEST / 2);
    let end = text.ceil_char_boundary(text.len() - LONGEST / 2);
    format!("{} ... {}", &text[..start], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_says_is_quoted_in_part() {
        let long = "é".repeat(1 << 20);
        let error = ApiError::field(format!("a.{long}"), format!("`a.{long}` must be a number"));
        assert!(error.message.len() < 1100 && error.message.ends_with("must be a number"));
        assert!(error.message.starts_with("`a.é") && error.param.unwrap().len() < 1100);
        assert_eq!(ApiError::new(ErrorKind::Internal, "x").message, "x");
    }
}
