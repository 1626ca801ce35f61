//! Anthropic's routes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::extract::rejection::BytesRejection;
use carat_api::{ApiError, ErrorKind, GenerationRequest, anthropic};
use serde_json::json;

use super::{Answer, Presence, at, blocking, converse, encoding, fetched, in_time, json, whole};
use crate::prompt;
use crate::reply::Caller;
use crate::server::State;
use crate::stream::{self, Writer};

pub(super) async fn messages(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/v1/messages");
    let request = anthropic::message_request(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let request = Arc::new(request);
    let reply = converse(&state, &request, caller).await.map_err(refuse)?;
    let (id, model) = (state.ids.id("msg_"), reply.model_id());
    if request.stream {
        let events = anthropic::MessageEvents::new(id, model, reply.n_prompt());
        return Ok(stream::respond(reply, Writer::Message(events)));
    }
    let gathered = reply.gather().await.map_err(refuse)?;
    match gathered.choices.first() {
        Some((deltas, finish)) => Ok(json(&anthropic::message(&id, &model, deltas, finish))),
        None => Err(refuse(ApiError::new(ErrorKind::Internal, "there is no answer"))),
    }
}

pub(super) async fn count_tokens(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/v1/messages");
    let request = anthropic::count_request(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let counting = in_time(&state, &caller, counted(&state, request));
    let n_tokens = counting.await.map_err(refuse)?;
    Ok(json(&json!({"input_tokens": n_tokens})))
}

async fn counted(state: &State, request: GenerationRequest) -> Result<usize, ApiError> {
    let lease = state.models.lease(&request.model, None).await?;
    prompt::check_senses(&lease, &request)?;
    let (request, held) = fetched(state, &Arc::new(request)).await?;
    let place = encoding(state, &request).await?;
    let presence = Presence::default();
    let absent = presence.absent();
    blocking(move || {
        // Held by the work, which goes on for a while when its client has gone.
        let _places = (held, place);
        prompt::n_tokens(&lease, &request, &mut || !absent.load(Ordering::Relaxed))
    })
    .await
}
