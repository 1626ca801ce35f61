//! Routes for those who run the server, and for tokens.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State as Shared};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse;
use carat_api::{ApiError, ErrorKind, parse};
use carat_text::{ControlText, Special};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, at, json, path_of, prepared, whole};
use crate::limits;
use crate::pool::Lease;
use crate::server::State;

/// The document that describes the API.
const OPENAPI: &str = include_str!("../openapi.json");
/// The page that shows it.
const DOCS: &str = include_str!("../docs.html");

/// Says what listens here, to those who probe.
pub(super) async fn root() -> &'static str {
    "carat is running\n"
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

#[derive(Deserialize)]
struct Tokenize {
    #[serde(default)]
    model: Option<String>,
    #[serde(alias = "prompt", alias = "text")]
    content: String,
    add_special: Option<bool>,
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
}

/// Ids of a text, by the names of llama.cpp and vLLM.
pub(super) async fn tokenize(
    Shared(state): Shared<Arc<State>>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/tokenize");
    let wanted: Tokenize = parse(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let name = wanted.model.as_deref().unwrap_or_default();
    let model = state.models.lease(name, None).await.map_err(refuse)?;
    let is_brief = wanted.content.len() <= limits::BRIEF_BYTES;
    let answer = prepared(is_brief, move || Ok(tokenized(&model, &wanted)));
    Ok(json(&answer.await.map_err(refuse)?))
}

fn tokenized(model: &Lease, wanted: &Tokenize) -> Value {
    let tokenizer = &model.setup.tokenizer;
    let special = if wanted.parse_special == Some(false) {
        Special::AsText
    } else {
        Special::Parse
    };
    let add = wanted.add_special.unwrap_or(false);
    let mut ids: Vec<u32> = tokenizer.bos().into_iter().filter(|_| add).collect();
    tokenizer.encode_into(&wanted.content, special, &mut ids);
    let mut answer = json!({"count": ids.len(), "max_model_len": model.context()});
    answer["tokens"] = if wanted.with_pieces == Some(true) {
        ids.iter()
            .map(|&id| json!({"id": id, "piece": tokenizer.decode(&[id], ControlText::Show)}))
            .collect()
    } else {
        ids.into()
    };
    answer
}

#[derive(Deserialize)]
struct Detokenize {
    #[serde(default)]
    model: Option<String>,
    tokens: Vec<u32>,
}

/// Text of ids.
pub(super) async fn detokenize(
    Shared(state): Shared<Arc<State>>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/detokenize");
    let wanted: Detokenize = parse(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let name = wanted.model.as_deref().unwrap_or_default();
    let model = state.models.lease(name, None).await.map_err(refuse)?;
    let tokenizer = &model.setup.tokenizer;
    if let Some(id) = wanted.tokens.iter().find(|&&id| id as usize >= tokenizer.len()) {
        let message = format!(
            "`tokens` names {id}, but the vocabulary has {} tokens",
            tokenizer.len()
        );
        return Err(refuse(ApiError::field("tokens", message)));
    }
    let is_brief = size_of_val(wanted.tokens.as_slice()) <= limits::BRIEF_BYTES;
    let decode = move || Ok(model.setup.tokenizer.decode(&wanted.tokens, ControlText::Show));
    let text = prepared(is_brief, decode).await.map_err(refuse)?;
    Ok(json(&json!({"content": text, "prompt": text})))
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
