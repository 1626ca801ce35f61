//! Text to token ids and back, by the names of llama.cpp and vLLM.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::extract::rejection::BytesRejection;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Response};
use carat_api::{ApiError, parse};
use carat_text::{ControlText, Special};
use futures_core::Stream;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Answer, at, in_time, json, prepared, whole};
use crate::limits::BRIEF_BYTES;
use crate::pool::Lease;
use crate::reply::Caller;
use crate::server::State;

/// Tokens that are written at a time.
const STRETCH: usize = 1024;

#[derive(Deserialize)]
struct Tokenize {
    #[serde(default)]
    model: Option<String>,
    content: Option<String>,
    prompt: Option<String>,
    text: Option<String>,
    add_special: Option<bool>,
    parse_special: Option<bool>,
    with_pieces: Option<bool>,
}

impl Tokenize {
    fn text(&self) -> Result<&str, ApiError> {
        let mut texts = [&self.content, &self.prompt, &self.text].into_iter().flatten();
        let text = texts.next().map(String::as_str);
        text.ok_or_else(|| ApiError::field("content", "`content` is missing; give the text"))
    }
}

/// Ids of a text.
pub(super) async fn tokenize(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/tokenize");
    let wanted: Tokenize = parse(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let tokens = async {
        let name = wanted.model.as_deref().unwrap_or_default();
        let model = state.models.lease(name, None).await?;
        let is_brief = wanted.text()?.len() <= BRIEF_BYTES;
        prepared(is_brief, move || Tokens::of(model, &wanted)).await
    };
    let tokens = in_time(&state, &caller, tokens).await.map_err(refuse)?;
    let mut response = Response::new(Body::from_stream(tokens));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

/// The answer of `/tokenize`, written as it is sent: whole it would take many times what the text does, and a body of 32 MB
/// has as many tokens.
struct Tokens {
    model: Lease,
    ids: Vec<u32>,
    with_pieces: bool,
    /// Those that are still to be written; `None` at the end.
    left: Option<Range<usize>>,
}

#[derive(Serialize)]
struct Piece {
    id: u32,
    piece: String,
}

impl Tokens {
    fn of(model: Lease, wanted: &Tokenize) -> Result<Self, ApiError> {
        let tokenizer = &model.setup.tokenizer;
        let special = if wanted.parse_special == Some(false) {
            Special::AsText
        } else {
            Special::Parse
        };
        let add = wanted.add_special.unwrap_or(false);
        let mut ids: Vec<u32> = tokenizer.bos().into_iter().filter(|_| add).collect();
        tokenizer.encode_into(wanted.text()?, special, &mut ids);
        Ok(Self {
            model,
            with_pieces: wanted.with_pieces == Some(true),
            left: Some(0..ids.len()),
            ids,
        })
    }

    fn write(&self, id: u32, out: &mut Vec<u8>) {
        let tokenizer = &self.model.setup.tokenizer;
        // Writing to memory, of types that have a JSON form: nothing can fail.
        let _written = if self.with_pieces {
            let piece = tokenizer.decode(&[id], ControlText::Show);
            serde_json::to_writer(out, &Piece { id, piece })
        } else {
            serde_json::to_writer(out, &id)
        };
    }
}

impl Stream for Tokens {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(left) = this.left.take() else {
            return Poll::Ready(None);
        };
        let mut out = Vec::new();
        if left.start == 0 {
            let (n, context) = (this.ids.len(), this.model.context());
            out = format!("{{\"count\":{n},\"max_model_len\":{context},\"tokens\":[").into_bytes();
        }
        let end = left.end.min(left.start + STRETCH);
        for i in left.start..end {
            if i > 0 {
                out.push(b',');
            }
            this.write(this.ids[i], &mut out);
        }
        if end < left.end {
            this.left = Some(end..left.end);
        } else {
            out.extend_from_slice(b"]}");
        }
        Poll::Ready(Some(Ok(Bytes::from(out))))
    }
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
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/detokenize");
    let wanted: Detokenize = parse(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let text = in_time(&state, &caller, text_of(&state, wanted));
    let text = text.await.map_err(refuse)?;
    Ok(json(&json!({"content": text, "prompt": text})))
}

async fn text_of(state: &State, wanted: Detokenize) -> Result<String, ApiError> {
    let name = wanted.model.as_deref().unwrap_or_default();
    let model = state.models.lease(name, None).await?;
    let n_tokens = model.setup.tokenizer.len();
    if let Some(id) = wanted.tokens.iter().find(|&&id| id as usize >= n_tokens) {
        let message = format!("`tokens` names {id}, but the vocabulary has {n_tokens} tokens");
        return Err(ApiError::field("tokens", message));
    }
    let is_brief = size_of_val(wanted.tokens.as_slice()) <= BRIEF_BYTES;
    let decode = move || Ok(model.setup.tokenizer.decode(&wanted.tokens, ControlText::Show));
    prepared(is_brief, decode).await
}
