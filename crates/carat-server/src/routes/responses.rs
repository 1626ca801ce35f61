//! OpenAI's responses, with those before them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State as Shared};
use carat_api::openai::{self, ResponseEvents, ResponseHead};
use carat_api::{ApiError, Delta, ErrorKind, Part, Role, ToolCall, Turn, whole_arguments};
use serde_json::{Value, json};

use super::{Answer, at, converse, json, named, whole};
use crate::ids;
use crate::limits::{STORED_BYTES, STORED_RESPONSES};
use crate::reply::Caller;
use crate::server::State;
use crate::stream::{self, Keep, Writer};

/// Conversations of earlier responses, by id; the oldest go first. They live as long as the server.
#[derive(Default)]
pub(crate) struct ResponseStore(Mutex<Stored>);

#[derive(Default)]
struct Stored {
    conversations: HashMap<String, Kept>,
    order: VecDeque<String>,
    bytes: usize,
}

struct Kept {
    turns: Vec<Turn>,
    body: Option<Value>,
    bytes: usize,
}

impl ResponseStore {
    fn keep(&self, id: String, turns: Vec<Turn>, body: Option<Value>) {
        let text = |turn: &Turn| -> usize {
            let parts = turn.parts.iter().map(|part| match part {
                Part::Text(text) => text.len() + 64,
                Part::Image(media) | Part::Audio(media) | Part::Video(media) => media.n_bytes() + 64,
            });
            let calls = turn
                .tool_calls
                .iter()
                .map(|call| call.arguments.to_string().len() + 64);
            parts.chain(calls).sum::<usize>() + 64
        };
        let bytes =
            turns.iter().map(text).sum::<usize>() + body.as_ref().map_or(0, |body| body.to_string().len());
        let mut stored = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stored.bytes += bytes;
        stored.order.push_back(id.clone());
        stored.conversations.insert(id, Kept { turns, body, bytes });
        while stored.order.len() > STORED_RESPONSES || stored.bytes > STORED_BYTES {
            let Some(oldest) = stored.order.pop_front() else {
                return;
            };
            if let Some(kept) = stored.conversations.remove(&oldest) {
                stored.bytes -= kept.bytes;
            }
        }
    }

    fn turns(&self, id: &str) -> Option<Vec<Turn>> {
        let stored = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stored.conversations.get(id).map(|kept| kept.turns.clone())
    }

    fn body(&self, id: &str) -> Option<Value> {
        let stored = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stored.conversations.get(id).and_then(|kept| kept.body.clone())
    }

    fn remove(&self, id: &str) -> bool {
        let mut stored = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stored.order.retain(|other| other != id);
        match stored.conversations.remove(id) {
            Some(kept) => {
                stored.bytes -= kept.bytes;
                true
            }
            None => false,
        }
    }
}

fn unknown(id: &str, param: &str, kind: ErrorKind) -> ApiError {
    let message = format!("the response `{id}` is not known here: it was not stored, or is too old");
    let error = ApiError::new(kind, message).with_code("previous_response_not_found");
    ApiError {
        param: Some(param.to_string()),
        ..error
    }
}

pub(super) async fn create(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/v1/responses");
    let mut wanted = openai::responses_request(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let mut turns = match &wanted.previous_response_id {
        Some(id) => state
            .responses
            .turns(id)
            .ok_or_else(|| refuse(unknown(id, "previous_response_id", ErrorKind::InvalidRequest)))?,
        None => Vec::new(),
    };
    turns.append(&mut wanted.generation.turns);
    // Instructions hold for this response only: they are not part of what is kept.
    let instructions = wanted
        .instructions
        .iter()
        .map(|text| Turn::text(Role::System, text));
    wanted.generation.turns = instructions.chain(turns.iter().cloned()).collect();
    let request = Arc::new(wanted.generation);
    let reply = converse(&state, &request, caller).await.map_err(refuse)?;
    let head = ResponseHead {
        id: state.ids.id("resp_"),
        created: ids::now().as_secs(),
        model: reply.model_id(),
        echo: wanted.echo,
    };
    let id = head.id.clone();
    if request.stream {
        let kept = Arc::clone(&state);
        let keep = wanted.store.then(|| -> Keep {
            Box::new(move |deltas| kept.responses.keep(id, with_answer(turns, deltas), None))
        });
        let writer = Writer::Response(ResponseEvents::new(head), keep, Vec::new());
        return Ok(stream::respond(reply, writer));
    }
    let gathered = reply.gather().await.map_err(refuse)?;
    let Some((deltas, finish)) = gathered.choices.first() else {
        return Err(refuse(ApiError::new(ErrorKind::Internal, "there is no answer")));
    };
    let body = openai::response(head, deltas, finish);
    if wanted.store {
        state
            .responses
            .keep(id, with_answer(turns, deltas), Some(body.clone()));
    }
    Ok(json(&body))
}

/// The conversation with its answer, for the next request to go on from.
fn with_answer(mut turns: Vec<Turn>, deltas: &[Delta]) -> Vec<Turn> {
    let mut text = String::new();
    let mut calls: Vec<(ToolCall, String)> = Vec::new();
    for delta in deltas {
        match delta {
            Delta::Text(more) => text.push_str(more),
            Delta::ToolCall { id, name, .. } => {
                let call = ToolCall {
                    id: id.clone(),
                    name: name.clone(),
                    arguments: json!({}),
                };
                calls.push((call, String::new()));
            }
            Delta::Arguments { index, text } => {
                if let Some((_, arguments)) = calls.get_mut(*index) {
                    arguments.push_str(text);
                }
            }
            Delta::Reasoning(_) | Delta::Logprob(_) => {}
        }
    }
    let call = |(call, text): (ToolCall, String)| {
        Some(ToolCall {
            arguments: whole_arguments(&text)?,
            ..call
        })
    };
    turns.push(Turn {
        tool_calls: calls.into_iter().filter_map(call).collect(),
        ..Turn::text(Role::Assistant, text)
    });
    // Of the next request they are part by this field.
    for turn in &mut turns {
        turn.path = "previous_response_id".to_string();
    }
    turns
}

pub(super) async fn read(
    Shared(state): Shared<Arc<State>>,
    id: Result<Path<String>, PathRejection>,
) -> Answer {
    let refuse = at("/v1/responses");
    let id = named(id).map_err(refuse)?;
    let body = state
        .responses
        .body(&id)
        .ok_or_else(|| refuse(unknown(&id, "id", ErrorKind::NotFound)))?;
    Ok(json(&body))
}

pub(super) async fn delete(
    Shared(state): Shared<Arc<State>>,
    id: Result<Path<String>, PathRejection>,
) -> Answer {
    let refuse = at("/v1/responses");
    let id = named(id).map_err(refuse)?;
    if !state.responses.remove(&id) {
        return Err(refuse(unknown(&id, "id", ErrorKind::NotFound)));
    }
    Ok(json(&json!({"id": id, "object": "response", "deleted": true})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let store = ResponseStore::default();
        for i in 0..STORED_RESPONSES + 10 {
            store.keep(format!("r{i}"), vec![Turn::text(Role::User, "x")], None);
        }
        assert!(store.turns("r9").is_none() && store.turns("r10").is_some());
        store.keep(
            "large".into(),
            vec![Turn::text(Role::User, "x".repeat(STORED_BYTES - 1000))],
            None,
        );
        assert!(store.turns("r50").is_none() && store.turns("large").is_some());
        assert!(store.remove("large") && !store.remove("large"));
    }
}
