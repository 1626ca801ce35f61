//! The gateway: its state, and what becomes of a request.

use std::borrow::Cow;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use carat_ledger::Ledger;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::json;
use tokio::time::Instant;

use crate::access::{self, Gate};
use crate::attempt::{self, Answer, Call, Lost, Means, RetryBudget, Trail, Won};
use crate::config::Config;
use crate::endpoint::{Called, Dialect, Endpoint};
use crate::failure::{Class, Failure};
use crate::fields::Fields;
use crate::health::HealthBook;
use crate::reply::{self, Body};
use crate::route::{Policy, Route};
use crate::upstream::{self, Upstream};
use crate::{Error, metrics};

/// One endpoint over many providers.
pub struct Gateway {
    config: RwLock<Arc<Config>>,
    upstream: Upstream,
    book: HealthBook,
    retries: RetryBudget,
    ledger: Option<Ledger>,
    ids: Ids,
    pub(crate) counts: Counts,
    pub(crate) is_stopping: AtomicBool,
}

/// What happened since the start, whoever answered.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) in_flight: AtomicU64,
    /// Answers by the hundreds of their status, 0 to 5.
    pub(crate) by_status: [AtomicU64; 6],
    pub(crate) reloads: AtomicU64,
    pub(crate) refused_reloads: AtomicU64,
}

/// Ids that nobody else makes and nobody guesses.
#[derive(Debug, Default)]
struct Ids {
    hasher: RandomState,
    next: AtomicU64,
}

impl Ids {
    /// Milliseconds first, so that a database finds neighbours in time beside each other.
    fn id(&self) -> [u8; 16] {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        let [high, low] = [self.hasher.hash_one(n), self.hasher.hash_one((n, 1))].map(u128::from);
        (ms << 80 | high << 16 | low & 0xffff).to_be_bytes()
    }
}

impl Gateway {
    /// A gateway over a configuration.
    ///
    /// # Errors
    /// When TLS cannot be set up, or the ledger cannot be used.
    pub fn new(config: Config) -> Result<Self, Error> {
        let ledger = config
            .ledger
            .as_deref()
            .map(|path| Ledger::open(path, config.ledger_keep))
            .transpose()
            .map_err(Error::Ledger)?;
        if let Some(n) = ledger.as_ref().map(Ledger::n_lost).filter(|n| *n > 0) {
            tracing::warn!(n, "requests of an earlier run were open; they are marked as lost");
        }
        Ok(Self {
            upstream: Upstream::new(config.timeouts.connect)?,
            config: RwLock::new(Arc::new(config)),
            book: HealthBook::default(),
            retries: RetryBudget::default(),
            ledger,
            ids: Ids::default(),
            counts: Counts::default(),
            is_stopping: AtomicBool::new(false),
        })
    }

    /// Serves by another configuration from now on. Requests under way end by theirs; what is known about targets
    /// stays.
    pub fn replace(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn book(&self) -> &HealthBook {
        &self.book
    }

    /// Answers a request.
    pub(crate) async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        self.counts.in_flight.fetch_add(1, Ordering::Relaxed);
        let _leaves = Leaving(&self.counts.in_flight);
        let id = self.ids.id();
        let mut response = self.dispatch(id, request).await;
        let id = HeaderValue::try_from(format!("req-{:032x}", u128::from_be_bytes(id)));
        let id = id.unwrap_or_else(|_| HeaderValue::from_static("-"));
        response.headers_mut().insert("x-request-id", id);
        let hundreds = usize::from(response.status().as_u16() / 100).min(5);
        self.counts.by_status[hundreds].fetch_add(1, Ordering::Relaxed);
        Ok(response)
    }

    async fn dispatch(&self, id: [u8; 16], request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if request.method() == Method::POST {
            return match Called::of(path) {
                Some(called) => self.post(&called, id, request).await,
                None => not_found(path),
            };
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let failure = Failure::new(Class::BadRequest, 405, "this path is asked by GET or POST");
            return reply::refusal(Dialect::OpenAi, &failure);
        }
        let path = path.strip_prefix("/v1").unwrap_or(path);
        let is_open = path.starts_with("/health");
        if !is_open
            && self
                .ledger
                .as_ref()
                .is_some_and(|ledger| access::bearer(ledger, request.headers()).is_none())
        {
            return reply::refusal(Dialect::OpenAi, &access::no_key());
        }
        match path {
            "/health" | "/health/live" => reply::json(StatusCode::OK, &json!({"status": "ok"})),
            "/health/ready" => self.ready(),
            "/metrics" => metrics::response(self),
            "/models" => self.models(request.headers().contains_key("anthropic-version")),
            "/api/tags" => self.tags(),
            "/api/version" => reply::json(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")})),
            other => match other.strip_prefix("/models/") {
                Some(id) => self.model(id),
                None => not_found(path),
            },
        }
    }

    fn ready(&self) -> Response<Body> {
        if self.is_stopping.load(Ordering::Relaxed) {
            return reply::json(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "stopping"}));
        }
        reply::json(StatusCode::OK, &json!({"status": "ok"}))
    }

    /// Routes, and the candidates that may be asked for directly.
    fn names(&self) -> Vec<String> {
        let config = self.config();
        let mut names: Vec<String> = config.routes.keys().cloned().collect();
        if config.direct {
            let candidates = config.routes.values().flat_map(|route| &route.candidates);
            names.extend(candidates.map(|candidate| candidate.name.clone()));
        }
        names.sort();
        names.dedup();
        names
    }

    /// The list as OpenAI's clients want it, or as Anthropic's do.
    fn models(&self, is_anthropic: bool) -> Response<Body> {
        let names = self.names();
        if is_anthropic {
            let model = |name: &String| json!({"id": name, "type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"});
            let data: Vec<_> = names.iter().map(model).collect();
            let value =
                json!({"data": data, "has_more": false, "first_id": names.first(), "last_id": names.last()});
            return reply::json(StatusCode::OK, &value);
        }
        let models: Vec<_> = names.iter().map(|name| model(name)).collect();
        reply::json(StatusCode::OK, &json!({"object": "list", "data": models}))
    }

    /// The list as Ollama's clients want it.
    fn tags(&self) -> Response<Body> {
        let model = |name: &String| {
            let details = json!({"format": "", "family": "", "families": [], "parameter_size": "", "quantization_level": ""});
            json!({"name": name, "model": name, "modified_at": "1970-01-01T00:00:00Z", "size": 0, "digest": "", "details": details})
        };
        let models: Vec<_> = self.names().iter().map(model).collect();
        reply::json(StatusCode::OK, &json!({"models": models}))
    }

    fn model(&self, id: &str) -> Response<Body> {
        let config = self.config();
        match find(&config, id) {
            Some(_) => reply::json(StatusCode::OK, &model(id)),
            None => reply::refusal(Dialect::OpenAi, &unknown_model(id)),
        }
    }

    async fn post(&self, called: &Called, id: [u8; 16], request: Request<Incoming>) -> Response<Body> {
        let config = self.config();
        match self.answer(&config, called, id, request).await {
            Ok(response) => response,
            Err(failure) => reply::refusal(called.endpoint.dialect(), &failure),
        }
    }

    async fn answer(
        &self,
        config: &Config,
        called: &Called,
        id: [u8; 16],
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Failure> {
        let endpoint = called.endpoint;
        let deadline = Instant::now() + config.timeouts.total;
        let (head, body) = request.into_parts();
        let body = whole(&head.headers, body, config.body_bytes, deadline).await?;
        let fields = Fields::read(&body).map_err(|error| {
            Failure::new(
                Class::BadRequest,
                400,
                format!("the body is not the JSON object expected: {error}"),
            )
        })?;
        let named = || Failure {
            param: Some("model".into()),
            ..Failure::new(
                Class::BadRequest,
                400,
                "`model` must name a route or a model, as `provider/model`",
            )
        };
        let name: Cow<'_, str> = match &called.model {
            Some(name) => Cow::Borrowed(name),
            None => fields.get("model").ok_or_else(named)?,
        };
        let mut route = find(config, &name).ok_or_else(|| unknown_model(&name))?;
        let mut told = Vec::new();
        let call = Call {
            endpoint,
            body_bytes: body.len(),
            is_stream: is_stream(called, &fields),
            max_tokens: max_tokens(endpoint, &fields),
            forwarded: upstream::forwarded(&head.headers),
            deadline: deadline.min(own_deadline(&head.headers)),
            fields: &fields,
        };
        let entry = match &self.ledger {
            Some(ledger) => {
                let gate = Gate {
                    ledger,
                    config,
                    route: &route,
                };
                let admitted = gate.admit(&head.headers, id, &name, &call).await?;
                told = admitted.headers;
                route = admitted.instead.unwrap_or(route);
                Some(admitted.entry)
            }
            None => None,
        };
        let means = Means {
            upstream: &self.upstream,
            book: &self.book,
            retries: &self.retries,
            config,
        };
        // On the heap, since it is large and most of a connection's life is spent without it.
        let mut response = match Box::pin(attempt::answer(&means, &route, &call, entry)).await {
            Ok(won) => answered(endpoint, won, &route),
            Err(lost) => refused(endpoint, *lost, &route),
        };
        for (name, value) in told {
            insert(response.headers_mut(), name, &value);
        }
        Ok(response)
    }
}

/// Whether the answer comes as it is made.
fn is_stream(called: &Called, fields: &Fields<'_>) -> bool {
    let default = called.endpoint == Endpoint::OllamaChat;
    called
        .stream
        .unwrap_or_else(|| fields.get("stream").unwrap_or(default))
}

/// The most tokens that the answer may have, if the request says so.
fn max_tokens(endpoint: Endpoint, fields: &Fields<'_>) -> Option<u64> {
    let within = |object: &str, name: &str| {
        let object: Option<serde_json::Value> = fields.get(object);
        object.and_then(|object| object[name].as_u64())
    };
    match endpoint {
        Endpoint::Generate => within("generationConfig", "maxOutputTokens"),
        Endpoint::OllamaChat => within("options", "num_predict"),
        // These have answers without tokens.
        Endpoint::Embeddings | Endpoint::Rerank | Endpoint::Moderations | Endpoint::CountTokens => Some(0),
        _ => ["max_completion_tokens", "max_tokens", "max_output_tokens"]
            .iter()
            .find_map(|name| fields.get(name)),
    }
}

/// Counts a request out, also when its client has left.
struct Leaving<'a>(&'a AtomicU64);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The route that a model's name means: one of the configuration, or one made of a single target.
pub(crate) fn find(config: &Config, name: &str) -> Option<Arc<Route>> {
    if let Some(route) = config.routes.get(name) {
        return Some(Arc::clone(route));
    }
    let target = config.target(name).filter(|_| config.direct)?;
    Some(Arc::new(Route {
        name: "direct".into(),
        policy: Policy::Ordered,
        candidates: vec![target],
    }))
}

/// The whole body, if it is not too large and comes in time.
async fn whole(headers: &HeaderMap, body: Incoming, limit: usize, until: Instant) -> Result<Bytes, Failure> {
    let too_large = || {
        let message =
            format!("the body has more than the {limit} bytes that this gateway takes (`max-body-mb`)");
        Failure::new(Class::BadRequest, 413, message)
    };
    let stated = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if stated.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    match tokio::time::timeout_at(until, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Failure::new(
            Class::BadRequest,
            400,
            "the body did not come whole; send it again",
        )),
        Err(_) => Err(Failure::new(
            Class::BadRequest,
            408,
            "the body took too long to come",
        )),
    }
}

/// When the client will have given up: OpenAI's and Anthropic's own libraries say so.
fn own_deadline(headers: &HeaderMap) -> Instant {
    const FAR: std::time::Duration = std::time::Duration::from_secs(86400);
    let names = ["x-stainless-read-timeout", "x-stainless-timeout"];
    let seconds = names
        .iter()
        .find_map(|name| headers.get(*name)?.to_str().ok()?.parse::<f64>().ok());
    let patience = seconds.and_then(|seconds| std::time::Duration::try_from_secs_f64(seconds).ok());
    Instant::now()
        + patience
            .filter(|patience| !patience.is_zero())
            .unwrap_or(FAR)
            .min(FAR)
}

fn answered(endpoint: Endpoint, won: Won, route: &Route) -> Response<Body> {
    let mut response = match won.answer {
        Answer::Whole { bytes } => {
            let mut response = Response::new(Body::whole(bytes));
            let kind = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        Answer::Stream(relay) => {
            let mut response = Response::new(Body::Stream(relay));
            let headers = response.headers_mut();
            let kind = match endpoint {
                Endpoint::OllamaChat => "application/x-ndjson",
                _ => "text/event-stream",
            };
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
            response
        }
    };
    let headers = response.headers_mut();
    insert(
        headers,
        "x-carat-route",
        &explained(Some(&won.target), &won.trail, route),
    );
    if !won.dropped.is_empty() {
        insert(headers, "x-carat-dropped", &won.dropped.join(", "));
    }
    if let Some(id) = won.upstream_id {
        headers.insert("x-carat-upstream-id", id);
    }
    response
}

fn refused(endpoint: Endpoint, lost: Lost, route: &Route) -> Response<Body> {
    let mut failure = lost.failure;
    // A provider's quarrel with this gateway's key is not the client's.
    if failure.class == Class::BadKey {
        failure = Failure::new(
            Class::BadKey,
            502,
            "the provider does not accept this gateway's key for it",
        );
    }
    let mut response = reply::refusal(endpoint.dialect(), &failure);
    insert(
        response.headers_mut(),
        "x-carat-route",
        &explained(None, &lost.trail, route),
    );
    response
}

/// Where an answer came from and why.
fn explained(target: Option<&str>, trail: &Trail, route: &Route) -> String {
    let target = target.unwrap_or("none");
    let mut text = format!(
        "{target}; route={}; policy={}; attempts={}",
        route.name,
        route.policy.name(),
        trail.n_attempts
    );
    if !trail.failed.is_empty() {
        text.push_str("; failed=");
        text.push_str(&trail.text());
    }
    text
}

/// Names may hold what no header can; such a header is left out.
fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn model(id: &str) -> serde_json::Value {
    json!({"id": id, "object": "model", "created": 0, "owned_by": id.split('/').next().unwrap_or(id)})
}

fn unknown_model(name: &str) -> Failure {
    let name: String = name.chars().take(200).collect();
    Failure {
        param: Some("model".into()),
        code: Some("model_not_found".into()),
        ..Failure::new(
            Class::BadRequest,
            404,
            format!("no route or provider answers to `{name}`; GET /v1/models lists them"),
        )
    }
}

fn not_found(path: &str) -> Response<Body> {
    let path: String = path.chars().take(200).collect();
    let failure = Failure::new(Class::BadRequest, 404, format!("nothing is served at `{path}`"));
    reply::refusal(Dialect::OpenAi, &failure)
}
