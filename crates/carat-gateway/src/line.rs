//! The log's line of a request, written when its answer has ended.
//!
//! It says who asked, who answered and what came of it, and nothing that was said. An answer that is whole ends with
//! its head, a stream when nothing more comes of it, so the line goes along with the stream.

use std::time::Instant;

use http::{Response, StatusCode};

use crate::account::Outcome;
use crate::reply::Body;
use crate::usage::Usage;

/// Longest part of a path that is told.
const PATH: usize = 200;

/// What is known of a request when it comes.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) arrived: Instant,
    pub(crate) method: http::Method,
    pub(crate) path: String,
    /// The key's name, where there are keys.
    pub(crate) key: Option<String>,
}

/// What is known of it when its answer begins.
#[derive(Debug)]
pub(crate) struct Answered {
    line: Line,
    id: String,
    status: StatusCode,
    /// As clients are told: the target, its route, and who was asked before.
    by: String,
}

impl Line {
    /// The line of a request for `path`, if such lines are written.
    pub(crate) fn begin(
        method: &http::Method,
        path: &str,
        key: impl FnOnce() -> Option<String>,
    ) -> Option<Self> {
        tracing::enabled!(tracing::Level::INFO).then(|| Self {
            arrived: Instant::now(),
            method: method.clone(),
            path: path.chars().take(PATH).collect(),
            key: key(),
        })
    }

    /// The answer is there, or a stream's beginning.
    pub(crate) fn answered(self, response: &mut Response<Body>) {
        let header = |name: &str| {
            let value = response.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_string()
        };
        let answered = Answered {
            id: header("x-request-id"),
            by: header("x-carat-route"),
            status: response.status(),
            line: self,
        };
        let usage = response.extensions_mut().remove::<Usage>();
        match response.body_mut() {
            Body::Whole(_) => answered.end(&Outcome::Complete, usage.as_ref()),
            Body::Stream(stream) => stream.tell(answered),
        }
    }
}

impl Answered {
    /// Writes the line.
    pub(crate) fn end(&self, outcome: &Outcome, usage: Option<&Usage>) {
        let ended = match outcome {
            Outcome::Complete => None,
            Outcome::Cut(failure) => Some(failure.class.name()),
            Outcome::ClientGone => Some("client gone"),
        };
        let ms = u64::try_from(self.line.arrived.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            id = %self.id,
            method = %self.line.method,
            path = self.line.path,
            key = self.line.key,
            status = self.status.as_u16(),
            by = (!self.by.is_empty()).then_some(self.by.as_str()),
            input = usage.map(|usage| usage.input),
            output = usage.map(|usage| usage.output),
            cut = ended,
            ms,
            "request"
        );
    }
}
