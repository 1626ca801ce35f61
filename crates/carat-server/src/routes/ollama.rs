//! Ollama's routes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::extract::rejection::BytesRejection;
use axum::http::Response;
use carat_api::ollama::{self, Lines, Shape};
use carat_api::openai::{CompletionRequest, Prompt};
use carat_api::{ApiError, ErrorKind, KeepAlive, parse};
use serde::Deserialize;
use serde_json::{Value, json};

use super::openai::{TooLong, shorten};
use super::{Answer, at, converse, in_time, json, openai, whole};
use crate::ids;
use crate::model::ModelDetails;
use crate::reply::{Caller, Reply};
use crate::server::State;
use crate::store::ListedModel;
use crate::stream::{self, Writer};

/// The expiry of what stays as long as the server does.
const NEVER: &str = "9999-12-31T23:59:59Z";
/// The version of Ollama's whose API is spoken: the first with `think`, the latest of what carat has of it. Clients decide
/// by it what they may ask for, and some refuse what is older than 0.6.4, as carat's own version is.
const SPOKEN_VERSION: &str = "0.9.0";

pub(super) async fn version() -> Response<Body> {
    json(&json!({"version": SPOKEN_VERSION, "carat": env!("CARGO_PKG_VERSION")}))
}

fn details(details: &ModelDetails) -> Value {
    json!({
        "parent_model": "", "format": "gguf", "family": details.family, "families": [details.family],
        "parameter_size": details.parameters, "quantization_level": details.quantization,
    })
}

/// One of a list of models, under one of its names.
fn entry(state: &State, name: &str, model: &ListedModel, about: &ModelDetails) -> Value {
    let modified = model.modified.unwrap_or(Duration::from_secs(state.created));
    json!({
        "name": name, "model": name, "modified_at": ollama::timestamp(modified),
        "size": model.size_bytes, "digest": digest(model), "details": details(about),
    })
}

/// What stands for the digest of the files, which would have to be read whole: the same for the same name, size and time.
/// Ollama's program takes twelve digits of it without looking whether they are there.
fn digest(model: &ListedModel) -> String {
    let word = |i: u64| {
        let mut hasher = DefaultHasher::new();
        (i, &model.id, model.size_bytes, model.modified).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    (0..4).map(word).collect()
}

pub(super) async fn tags(Shared(state): Shared<Arc<State>>) -> Answer {
    let mut models = Vec::new();
    for model in state.models.list().await.map_err(at("/api/"))? {
        match state.models.details(&model.id).await {
            Ok(about) => {
                let aliases = state.models.aliases().iter().filter(|(_, of)| *of == model.id);
                let names = std::iter::once(&model.id).chain(aliases.map(|(name, _)| name));
                models.extend(names.map(|name| entry(&state, name, &model, &about)));
            }
            // What cannot be read cannot be used either.
            Err(error) => tracing::warn!(model = model.id, %error, "left out of the list"),
        }
    }
    Ok(json(&json!({"models": models})))
}

pub(super) async fn running(Shared(state): Shared<Arc<State>>) -> Response<Body> {
    let models = state.models.running().into_iter().map(|running| {
        let listed = running.model.listed();
        let mut model = entry(&state, &listed.id, &listed, &running.model.setup.details);
        model["size"] = running
            .claim_bytes
            .max(running.model.setup.details.size_bytes)
            .into();
        model["size_vram"] = 0.into();
        model["context_length"] = running.model.context().into();
        model["expires_at"] = match running.expires_in {
            Some(time) => ollama::timestamp(ids::now().saturating_add(time)).into(),
            None => NEVER.into(),
        };
        model
    });
    json(&json!({"models": models.collect::<Vec<_>>()}))
}

/// Ollama's own clients give both names, one of them empty.
#[derive(Deserialize)]
struct Named {
    model: Option<String>,
    name: Option<String>,
}

impl Named {
    fn name(&self) -> &str {
        let mut names = [&self.model, &self.name].into_iter().flatten();
        names.find(|name| !name.is_empty()).map_or("", String::as_str)
    }
}

pub(super) async fn show(Shared(state): Shared<Arc<State>>, body: Result<Bytes, BytesRejection>) -> Answer {
    let refuse = at("/api/");
    let named: Named = parse(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let id = state.models.id_of(named.name()).await.map_err(refuse)?;
    let about = state.models.details(&id).await.map_err(refuse)?;
    let family = &about.family;
    let mut info = json!({"general.architecture": family});
    info[format!("{family}.context_length")] = about.context_len.into();
    info[format!("{family}.embedding_length")] = about.embedding_len.into();
    let mut capabilities = vec!["completion", "tools"];
    capabilities.extend(about.sees.then_some("vision"));
    capabilities.extend(about.hears.then_some("audio"));
    let modified = about.modified.unwrap_or(Duration::from_secs(state.created));
    Ok(json(&json!({
        "modelfile": "", "parameters": "", "template": about.template, "details": details(&about),
        "model_info": info, "capabilities": capabilities, "modified_at": ollama::timestamp(modified),
    })))
}

pub(super) async fn chat(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/api/chat");
    let request = ollama::chat_request(&whole(body).map_err(refuse)?).map_err(refuse)?;
    if request.turns.is_empty() {
        let value = load_only(&state, &request.model, request.keep_alive, Shape::Chat);
        let value = in_time(&state, &caller, value).await;
        return Ok(json(&value.map_err(refuse)?));
    }
    let request = Arc::new(request);
    let reply = converse(&state, &request, caller).await.map_err(refuse)?;
    answer(reply, Shape::Chat, request.stream).await.map_err(refuse)
}

pub(super) async fn generate(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/api/generate");
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
            let (name, keep_alive) = (&wanted.generation.model, wanted.generation.keep_alive);
            let value = load_only(&state, name, keep_alive, Shape::Generate);
            let value = in_time(&state, &caller, value).await;
            return Ok(json(&value.map_err(refuse)?));
        }
        None => {
            let request = Arc::new(wanted.generation);
            converse(&state, &request, caller).await.map_err(refuse)?
        }
    };
    answer(reply, Shape::Generate, is_streamed).await.map_err(refuse)
}

/// Loads a model for those who only want that, or unloads it for those who say that it shall not stay.
async fn load_only(
    state: &State,
    name: &str,
    keep_alive: Option<KeepAlive>,
    shape: Shape,
) -> Result<Value, ApiError> {
    let (id, reason) = if keep_alive == Some(KeepAlive::For(Duration::ZERO)) {
        (state.models.let_go(name).await?, "unload")
    } else {
        let lease = state.models.lease(name, keep_alive).await?;
        (lease.setup.id.clone(), "load")
    };
    let mut value = json!({
        "model": id, "created_at": ollama::timestamp(ids::now()), "done": true, "done_reason": reason,
    });
    match shape {
        Shape::Chat => value["message"] = json!({"role": "assistant", "content": ""}),
        Shape::Generate => value["response"] = "".into(),
    }
    Ok(value)
}

async fn answer(reply: Reply, shape: Shape, is_streamed: bool) -> Result<Response<Body>, ApiError> {
    let lines = Lines::new(reply.model_id(), shape);
    if is_streamed {
        return Ok(stream::respond(reply, Writer::Lines(lines)));
    }
    let gathered = reply.gather().await?;
    match gathered.choices.first() {
        Some((deltas, finish)) => Ok(json(&lines.whole(deltas, finish, ids::now(), gathered.times))),
        None => Err(ApiError::new(ErrorKind::Internal, "there is no answer")),
    }
}

pub(super) async fn embed(
    Shared(state): Shared<Arc<State>>,
    Extension(caller): Extension<Caller>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let refuse = at("/api/");
    let wanted = ollama::embed_request(&whole(body).map_err(refuse)?).map_err(refuse)?;
    let started = std::time::Instant::now();
    let model = state.models.lease(&wanted.model, wanted.keep_alive);
    let model = in_time(&state, &caller, model).await.map_err(refuse)?;
    let loaded = started.elapsed();
    let too_long = if wanted.truncates {
        TooLong::Cut
    } else {
        TooLong::Refused
    };
    let vectors = openai::embed(&state, &model, wanted.inputs, too_long, caller);
    let (mut vectors, n_tokens) = vectors.await.map_err(refuse)?;
    if let Some(n) = wanted.dimensions {
        shorten(&mut vectors, n).map_err(refuse)?;
    }
    if wanted.is_older {
        return Ok(json(&json!({"embedding": vectors.first()})));
    }
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Ok(json(&json!({
        "model": model.setup.id, "embeddings": vectors, "total_duration": ns(started.elapsed()),
        "load_duration": ns(loaded), "prompt_eval_count": n_tokens,
    })))
}
