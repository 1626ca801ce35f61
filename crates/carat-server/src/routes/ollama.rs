//! Ollama's routes.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::extract::rejection::BytesRejection;
use axum::http::Response;
use carat_api::ollama::{self, Lines, Shape};
use carat_api::openai::{CompletionRequest, Prompt};
use carat_api::{ApiError, ErrorKind, parse};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, at, check_model, converse, json, openai, whole};
use crate::ids;
use crate::reply::{Caller, Reply};
use crate::server::State;
use crate::stream::{self, Writer};

pub(super) async fn version() -> Response<Body> {
    json(&json!({"version": env!("CARGO_PKG_VERSION")}))
}

fn details(state: &State) -> Value {
    let details = &state.model.setup.details;
    json!({
        "parent_model": "", "format": "gguf", "family": details.family, "families": [details.family],
        "parameter_size": details.parameters, "quantization_level": details.quantization,
    })
}

fn entry(state: &State) -> Value {
    let id = &state.model.setup.id;
    json!({
        "name": id, "model": id, "modified_at": ollama::timestamp(Duration::from_secs(state.created)),
        "size": state.model.setup.details.size_bytes, "digest": "", "details": details(state),
    })
}

pub(super) async fn tags(Shared(state): Shared<Arc<State>>) -> Response<Body> {
    json(&json!({"models": [entry(&state)]}))
}

pub(super) async fn running(Shared(state): Shared<Arc<State>>) -> Response<Body> {
    let mut model = entry(&state);
    model["size_vram"] = 0.into();
    model["context_length"] = state.model.context().into();
    // It stays as long as the server does.
    model["expires_at"] = "9999-12-31T23:59:59Z".into();
    json(&json!({"models": [model]}))
}

#[derive(Deserialize)]
struct Named {
    #[serde(alias = "name")]
    model: Option<String>,
}

pub(super) async fn show(Shared(state): Shared<Arc<State>>, body: Result<Bytes, BytesRejection>) -> Answer {
    let refuse = at("/api/");
    let named: Named = parse(&whole(body).map_err(refuse)?).map_err(refuse)?;
    check_model(&state, named.model.as_deref().unwrap_or_default()).map_err(refuse)?;
    let about = &state.model.setup.details;
    let family = &about.family;
    let mut info = json!({"general.architecture": family});
    info[format!("{family}.context_length")] = about.context_len.into();
    Ok(json(&json!({
        "modelfile": "", "parameters": "", "template": about.template, "details": details(&state),
        "model_info": info, "capabilities": ["completion", "tools"],
        "modified_at": ollama::timestamp(Duration::from_secs(state.created)),
    })))
}

pub(super) async fn chat(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/api/");
    let request = ollama::chat_request(&whole(body).map_err(refuse)?).map_err(refuse)?;
    if request.turns.is_empty() {
        check_model(&state, &request.model).map_err(refuse)?;
        return Ok(json(&loaded(&state, Shape::Chat)));
    }
    let request = Arc::new(request);
    let reply = converse(&state, &request, caller).await.map_err(refuse)?;
    answer(&state, reply, Shape::Chat, request.stream)
        .await
        .map_err(refuse)
}

pub(super) async fn generate(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/api/");
    let wanted = ollama::generate_request(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let is_streamed = wanted.generation.stream;
    let reply = match wanted.raw {
        Some(text) => {
            let prompts = vec![Prompt::Text(text)];
            let request = CompletionRequest {
                prompts,
                echo: false,
                generation: wanted.generation,
            };
            let (reply, _) = openai::complete(&state, &request, caller).await.map_err(refuse)?;
            reply
        }
        None if wanted.generation.turns.is_empty() => {
            check_model(&state, &wanted.generation.model).map_err(refuse)?;
            return Ok(json(&loaded(&state, Shape::Generate)));
        }
        None => {
            let request = Arc::new(wanted.generation);
            converse(&state, &request, caller).await.map_err(refuse)?
        }
    };
    answer(&state, reply, Shape::Generate, is_streamed)
        .await
        .map_err(refuse)
}

/// The answer to those who only want the model loaded: it is.
fn loaded(state: &State, shape: Shape) -> Value {
    let mut value = json!({
        "model": state.model.setup.id, "created_at": ollama::timestamp(ids::now()), "done": true, "done_reason": "load",
    });
    match shape {
        Shape::Chat => value["message"] = json!({"role": "assistant", "content": ""}),
        Shape::Generate => value["response"] = "".into(),
    }
    value
}

async fn answer(
    state: &State,
    reply: Reply,
    shape: Shape,
    is_streamed: bool,
) -> Result<Response<Body>, ApiError> {
    let lines = Lines::new(state.model.setup.id.clone(), shape);
    if is_streamed {
        return Ok(stream::respond(reply, Writer::Lines(lines)));
    }
    let gathered = reply.gather().await?;
    match gathered.choices.first() {
        Some((deltas, finish)) => Ok(json(&lines.whole(deltas, finish, ids::now(), gathered.times))),
        None => Err(ApiError::new(ErrorKind::Internal, "there is no answer")),
    }
}

#[derive(Deserialize)]
struct Embed {
    model: Option<String>,
    /// `/api/embed`: a text or several.
    #[serde(default)]
    input: Value,
    /// `/api/embeddings`, the older one: a text.
    prompt: Option<String>,
}

pub(super) async fn embed(Shared(state): Shared<Arc<State>>, body: Result<Bytes, BytesRejection>) -> Answer {
    let refuse = at("/api/");
    let wanted: Embed = parse(&whole(body).map_err(refuse)?).map_err(refuse)?;
    check_model(&state, wanted.model.as_deref().unwrap_or_default()).map_err(refuse)?;
    if let Some(text) = wanted.prompt {
        let (vectors, _) = openai::embed(&state, vec![Prompt::Text(text)])
            .await
            .map_err(refuse)?;
        return Ok(json(&json!({"embedding": vectors.first()})));
    }
    let texts = match wanted.input {
        Value::String(text) => Some(vec![Prompt::Text(text)]),
        Value::Array(texts) => texts
            .iter()
            .map(|text| text.as_str().map(|text| Prompt::Text(text.to_string())))
            .collect(),
        _ => None,
    };
    let wrong = || {
        refuse(ApiError::field(
            "input",
            "`input` must be a string or an array of strings",
        ))
    };
    let started = std::time::Instant::now();
    let (vectors, n_tokens) = openai::embed(&state, texts.ok_or_else(wrong)?)
        .await
        .map_err(refuse)?;
    let ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(json(&json!({
        "model": state.model.setup.id, "embeddings": vectors, "total_duration": ns, "load_duration": 0,
        "prompt_eval_count": n_tokens,
    })))
}
