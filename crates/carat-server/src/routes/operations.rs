//! Routes for those who run the server.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{OriginalUri, State as Shared};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::response::{Html, IntoResponse};
use carat_api::{ApiError, ErrorKind};
use serde_json::json;

use super::{Answer, at, json, path_of};
use crate::server::State;

/// The document that describes the API.
const OPENAPI: &str = include_str!("../openapi.json");
/// The page that shows it.
const DOCS: &str = include_str!("../docs.html");
/// The page at `/`.
const HOME: &str = include_str!("../home.html");

/// Says what listens here to those who probe, and to a browser where to go on.
pub(super) async fn root(headers: HeaderMap) -> Response<Body> {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    if accepted.is_some_and(|accepted| accepted.contains("text/html")) {
        return Html(HOME).into_response();
    }
    "carat is running\n".into_response()
}

/// The process lives.
pub(super) async fn health() -> Response<Body> {
    json(&json!({"status": "ok"}))
}

/// Requests are answered.
pub(super) async fn ready(Shared(state): Shared<Arc<State>>) -> Response<Body> {
    if state.is_ready() {
        return json(&json!({"status": "ready"}));
    }
    let mut response = json(&json!({"status": "not ready"}));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}

pub(super) async fn metrics(Shared(state): Shared<Arc<State>>) -> Response<Body> {
    let mut text = state
        .metrics
        .text(&state.models.figures(), env!("CARGO_PKG_VERSION"));
    if let Some(tracer) = &state.options.tracer {
        text.push_str(&crate::metrics::spans(tracer));
    }
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

pub(super) async fn openapi() -> Response<Body> {
    let mut response = OPENAPI.into_response();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The same for people. It loads nothing from elsewhere.
pub(super) async fn docs() -> Response<Body> {
    let mut response = DOCS.into_response();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

pub(super) async fn not_found(uri: OriginalUri) -> Answer {
    let message = format!("there is no `{}` here; see /openapi.json", uri.path());
    Err(at(path_of(&uri).await)(ApiError::new(
        ErrorKind::NotFound,
        message,
    )))
}

pub(super) async fn wrong_method(uri: OriginalUri) -> Response<Body> {
    let message = format!("`{}` is not asked for in this way; see /openapi.json", uri.path());
    let error = ApiError::new(ErrorKind::InvalidRequest, message);
    let mut response = crate::access::error_response(&error, path_of(&uri).await);
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}
