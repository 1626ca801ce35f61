//! The routes, one file for each API.

mod anthropic;
mod audio;
mod ollama;
mod openai;
mod operations;
mod responses;
mod tokens;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{self, DefaultBodyLimit, OriginalUri};
use axum::http::{Response, StatusCode};
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use carat_api::{ApiError, ErrorKind, Format, GenerationRequest, MediaSource, Part, Turn};
use carat_engine::Constraint;
use carat_net::TooSlow;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access;
use crate::limits;
use crate::output::OutputReader;
use crate::pool::Lease;
use crate::prompt;
use crate::reply::{Caller, Reply, Start, check_stops, too_late};
use crate::server::State;
use crate::tools;

pub(crate) use responses::ResponseStore;

/// Every route, as it is counted.
pub(crate) const ROUTES: [&str; 26] = [
    "/",
    "/health",
    "/ready",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/tokenize",
    "/detokenize",
    "/v1/models",
    "/v1/models/{*id}",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/audio/transcriptions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/responses/{id}",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/version",
    "/api/tags",
    "/api/ps",
    "/api/show",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
];

/// All routes over `state`.
pub(crate) fn router(state: Arc<State>) -> Router {
    Router::new()
        .route("/", get(operations::root))
        .route("/health", get(operations::health))
        .route("/ready", get(operations::ready))
        .route("/metrics", get(operations::metrics))
        .route("/openapi.json", get(operations::openapi))
        .route("/docs", get(operations::docs))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*id}", get(openai::model))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/audio/transcriptions", post(audio::transcriptions))
        .route("/v1/embeddings", post(openai::embeddings))
        .route("/v1/responses", post(responses::create))
        .route(
            "/v1/responses/{id}",
            get(responses::read).delete(responses::delete),
        )
        .route("/v1/messages", post(anthropic::messages))
        .route("/v1/messages/count_tokens", post(anthropic::count_tokens))
        .route("/api/version", get(ollama::version))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::running))
        .route("/api/show", post(ollama::show))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/embed", post(ollama::embed))
        .route("/api/embeddings", post(ollama::embed))
        .fallback(operations::not_found)
        .method_not_allowed_fallback(operations::wrong_method)
        .layer(DefaultBodyLimit::max(state.options.body_bytes))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), access::pass))
        .with_state(state)
}

/// What a handler gives: an answer, or an error that knows its API's shape.
pub(crate) type Answer = Result<Response<Body>, Refused>;

/// An error with the path that decides its shape.
pub(crate) struct Refused {
    error: ApiError,
    path: &'static str,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response<Body> {
        access::error_response(&self.error, self.path)
    }
}

/// Gives errors the shape of the API at `path`, and its names of fields.
fn at(path: &'static str) -> impl Fn(ApiError) -> Refused + Copy {
    move |error| Refused {
        error: in_words_of(path, error),
        path,
    }
}

/// What the APIs call a field that is named here as OpenAI's chats name it. Fields that only readers of requests know
/// have the client's name from the beginning.
const NAMES: [(&str, &[(&str, &str)]); 4] = [
    ("/v1/responses", &[("messages", "input")]),
    ("/v1/messages", &[("stop", "stop_sequences")]),
    ("/api/chat", &OPTIONS),
    ("/api/generate", &OPTIONS_AND_PROMPT),
];
const OPTIONS: [(&str, &str); 9] = [
    ("temperature", "options.temperature"),
    ("top_k", "options.top_k"),
    ("top_p", "options.top_p"),
    ("min_p", "options.min_p"),
    ("typical_p", "options.typical_p"),
    ("repetition_penalty", "options.repeat_penalty"),
    ("presence_penalty", "options.presence_penalty"),
    ("frequency_penalty", "options.frequency_penalty"),
    ("stop", "options.stop"),
];
const OPTIONS_AND_PROMPT: [(&str, &str); 10] = {
    let mut all = [("messages", "prompt"); 10];
    let mut i = 0;
    while i < OPTIONS.len() {
        all[i] = OPTIONS[i];
        i += 1;
    }
    all
};

/// The error with the field's name as the client of the API at `path` knows it.
fn in_words_of(path: &str, mut error: ApiError) -> ApiError {
    let names = NAMES.iter().find(|(of, _)| *of == path);
    let name = names.and_then(|(_, names)| {
        names
            .iter()
            .find(|(name, _)| error.param.as_deref() == Some(name))
    });
    if let Some((name, own)) = name {
        error.message = error.message.replace(&format!("`{name}`"), &format!("`{own}`"));
        error.param = Some((*own).to_string());
    }
    error
}

/// A name in a path.
fn named(name: Result<extract::Path<String>, PathRejection>) -> Result<String, ApiError> {
    name.map(|extract::Path(name)| name).map_err(|_| {
        let message = "there is nothing of this name: its `%` codes are no UTF-8";
        ApiError::new(ErrorKind::NotFound, message)
    })
}

/// A body that has come whole.
fn whole(body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            ApiError::new(
                ErrorKind::TooLarge,
                "the body is larger than this server takes; send less",
            )
        } else if TooSlow::is_behind(&rejection) {
            ApiError::new(ErrorKind::Timeout, TooSlow.to_string())
        } else {
            ApiError::new(
                ErrorKind::InvalidRequest,
                "the body did not come whole; send it again",
            )
        }
    })
}

fn json(value: &Value) -> Response<Body> {
    axum::Json(value).into_response()
}

/// Renders, compiles and queues a conversation.
async fn converse(
    state: &Arc<State>,
    request: &Arc<GenerationRequest>,
    caller: Caller,
) -> Result<Reply, ApiError> {
    let (lease, start) = in_time(state, &caller, prepare(state, request)).await?;
    Reply::start(state, lease, request, start, caller)
}

/// What comes before an answer is queued, no longer than a request may take.
async fn in_time<T>(
    state: &State,
    caller: &Caller,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let Some(deadline) = state.deadline(caller.arrived) else {
        return work.await;
    };
    let result = tokio::time::timeout_at(deadline.into(), work).await;
    result.unwrap_or_else(|_| Err(too_late()))
}

/// The model, and the conversation as it takes it.
async fn prepare(state: &Arc<State>, request: &Arc<GenerationRequest>) -> Result<(Lease, Start), ApiError> {
    check_stops(&request.stop)?;
    let lease = state.models.lease(&request.model, request.keep_alive).await?;
    let shared = Arc::clone(state);
    prompt::check_senses(&lease, request)?;
    let (wanted, held) = fetched(state, request).await?;
    let place = encoding(state, &wanted).await?;
    let presence = Presence::default();
    let absent = presence.absent();
    prepared(is_brief(request), move || {
        // These and the lease are held by the work, which goes on for a while when its client has gone.
        let _places = (held, place);
        let mut go_on = || !absent.load(Ordering::Relaxed);
        let prompt = prompt::render(&lease, &wanted, &mut go_on)?;
        // A grammar may take seconds to compile, and the compiler is not asked to stop.
        if !go_on() {
            return Err(prompt::given_up());
        }
        let constraint = lease.constraint(&wanted, prompt.grammar.as_ref(), &prompt.ids)?;
        let mut readers = shared.readers(&lease, &wanted, wanted.n);
        if lease.thoughts_are_open(&prompt.ids) {
            readers.iter_mut().for_each(OutputReader::start_thinking);
        }
        // Nobody waits for a call.
        let calls = lease.call_marks.filter(|_| !tools::are_offered(&wanted));
        let start = Start {
            constraints: for_each_answer(constraint, wanted.n),
            readers,
            forbidden: calls.map(|marks| marks.open),
            prompts: vec![prompt],
        };
        Ok((lease, start))
    })
    .await
}

/// One compiled grammar for `n` answers, which it binds alike: compiling it takes far longer than copying its state.
fn for_each_answer(constraint: Option<Constraint>, n: usize) -> Vec<Constraint> {
    constraint.map_or_else(Vec::new, |constraint| vec![constraint; n])
}

/// The request with what it names by address, and a place among those whose files are held, for as long as it has them.
async fn fetched(
    state: &State,
    request: &Arc<GenerationRequest>,
) -> Result<(Arc<GenerationRequest>, Option<OwnedSemaphorePermit>), ApiError> {
    let mut media = request
        .turns
        .iter()
        .flat_map(|turn| &turn.parts)
        .filter_map(Part::media);
    if !media.any(|media| matches!(media.source, MediaSource::Url(_))) {
        return Ok((Arc::clone(request), None));
    }
    let place = place(&state.fetchings).await?;
    let mut filled = GenerationRequest::clone(request);
    crate::fetch::fill(&state.fetcher, &mut filled).await?;
    Ok((Arc::new(filled), Some(place)))
}

/// A place among those who encode images, sounds and videos, for requests that have some.
async fn encoding(
    state: &State,
    request: &GenerationRequest,
) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
    let mut parts = request.turns.iter().flat_map(|turn| &turn.parts);
    if parts.all(|part| matches!(part, Part::Text(_))) {
        return Ok(None);
    }
    place(&state.encodings).await.map(Some)
}

async fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, ApiError> {
    let place = Arc::clone(places).acquire_owned().await;
    place.map_err(|_| ApiError::new(ErrorKind::Unavailable, "the server is stopping"))
}

/// Raises a flag when the request that holds it is given up.
#[derive(Default)]
struct Presence(Arc<AtomicBool>);

impl Presence {
    /// The flag, for work that may outlive the request.
    fn absent(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether a request's prompt is made in less time than handing it to another thread and back takes: short text, and no
/// grammar to compile.
fn is_brief(request: &GenerationRequest) -> bool {
    let n_bytes = |part: &Part| match part {
        Part::Text(text) => text.len(),
        Part::Image(_) | Part::Audio(_) | Part::Video(_) => usize::MAX,
    };
    let is_plain = |turn: &Turn| turn.reasoning.is_none() && turn.tool_calls.is_empty();
    let parts = request.turns.iter().flat_map(|turn| &turn.parts);
    let begun = request.continues.as_ref().map_or(0, String::len);
    let n_bytes = parts.map(n_bytes).fold(begun, usize::saturating_add);
    n_bytes <= limits::BRIEF_BYTES
        && request.turns.len() <= limits::BRIEF_TURNS
        && request.turns.iter().all(is_plain)
        && request.tools.is_empty()
        && matches!(request.format, Format::Text)
        && request.thinking_budget.is_none()
}

/// Runs brief work at once, other work as [`blocking`] does.
async fn prepared<T: Send + 'static>(
    is_brief: bool,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if !is_brief {
        return blocking(work).await;
    }
    // What it touches is its own, or only read.
    std::panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(mistake()))
}

/// Runs what may take milliseconds away from the threads that serve connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "preparing a request failed");
            Err(mistake())
        }
    }
}

/// Of a panic, which the log tells.
fn mistake() -> ApiError {
    ApiError::new(
        ErrorKind::Internal,
        "the server made a mistake; its log says more",
    )
}

/// The path that a request came by, for errors of no particular API.
async fn path_of(uri: &OriginalUri) -> &'static str {
    match uri.path() {
        path if access::is_anthropics(path) => "/v1/messages",
        path if path.starts_with("/api/") => "/api/",
        _ => "/",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_describes_every_route() {
        let spec: Value = serde_json::from_str(include_str!("../openapi.json")).unwrap();
        let mut described: Vec<String> = spec["paths"].as_object().unwrap().keys().cloned().collect();
        let mut served = ROUTES.map(|route| route.replace("{*", "{"));
        described.sort();
        served.sort();
        assert_eq!(described, served);
    }
}
