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
use crate::attempt::{self, Answer, Call, CallBudget, Lost, Means, Trail, Wish, Won};
use crate::config::Config;
use crate::endpoint::{Called, Dialect, Endpoint};
use crate::explain::{self, Chosen};
use crate::failure::{Class, Failure};
use crate::fields::Fields;
use crate::health::HealthBook;
use crate::needs::Needs;
use crate::policy::Known;
use crate::reply::{self, Body};
use crate::route::{Policy, Route};
use crate::upstream::{self, Upstream};
use crate::variants::Variants;
use crate::waiting::Priority;
use crate::{Error, metrics, sticky};

/// One request in so many may be retried, and one in so many hedged.
const RETRIED: i64 = 5;
const HEDGED: i64 = 20;

/// One endpoint over many providers.
pub struct Gateway {
    config: RwLock<Arc<Config>>,
    upstream: Upstream,
    book: HealthBook,
    retries: CallBudget,
    hedges: CallBudget,
    pub(crate) variants: Variants,
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
            retries: CallBudget::one_in(RETRIED),
            hedges: CallBudget::one_in(HEDGED),
            variants: Variants::default(),
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
        // Nobody without a key has a body read for him.
        if let Some(ledger) = &self.ledger
            && access::bearer(ledger, &head.headers).is_none()
        {
            return Err(access::no_key());
        }
        let body = whole(&head.headers, body, config.body_bytes, deadline).await?;
        let fields = Fields::read(&body).map_err(|error| {
            Failure::new(
                Class::BadRequest,
                400,
                format!("the body is not the JSON object expected: {error}"),
            )
        })?;
        let name: Cow<'_, str> = match &called.model {
            Some(name) => Cow::Borrowed(name),
            None => fields.get("model").ok_or_else(no_model)?,
        };
        let max_tokens = max_tokens(endpoint, &fields);
        let needs = Needs::read(endpoint, &fields, max_tokens);
        let (mut route, rule) = chosen(config, &name, &needs, &fields)?;
        let mut told = Vec::new();
        let call = Call {
            endpoint,
            body_bytes: body.len(),
            is_stream: is_stream(called, &fields),
            max_tokens,
            forwarded: upstream::forwarded(&head.headers),
            deadline: deadline.min(own_deadline(&head.headers)),
            wish: Wish {
                needs,
                key: key(&route, &head.headers, &fields),
                priority: priority(&head.headers),
            },
            fields: &fields,
        };
        let name = name.as_ref();
        if called.is_dry || head.headers.contains_key("x-carat-dry-run") {
            let known = Known {
                book: &self.book,
                prices: &config.prices,
                now: std::time::Instant::now(),
            };
            let route = route.as_ref();
            return Ok(explain::response(&Chosen { name, route, rule }, &call, &known));
        }
        let entry = match &self.ledger {
            Some(ledger) => {
                let gate = Gate {
                    ledger,
                    config,
                    route: &route,
                };
                let admitted = gate.admit(&head.headers, id, name, &call).await?;
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
            hedges: &self.hedges,
            variants: &self.variants,
            config,
        };
        let way = Way {
            endpoint,
            route: &route,
            rule: rule.map(|rule| (name, rule)),
        };
        // On the heap, since it is large and most of a connection's life is spent without it.
        let mut response = match Box::pin(attempt::answer(&means, &route, &call, entry)).await {
            Ok(won) => way.answered(won),
            Err(lost) => way.refused(*lost),
        };
        for (name, value) in told {
            insert(response.headers_mut(), name, &value);
        }
        Ok(response)
    }
}

fn no_model() -> Failure {
    Failure {
        param: Some("model".into()),
        ..Failure::new(
            Class::BadRequest,
            400,
            "`model` must name a route or a model, as `provider/model`",
        )
    }
}

/// The route that answers a request for `name`, and the rule that chose it if there are any.
fn chosen(
    config: &Config,
    name: &str,
    needs: &Needs,
    fields: &Fields<'_>,
) -> Result<(Arc<Route>, Option<usize>), Failure> {
    let route = find(config, name).ok_or_else(|| unknown_model(name))?;
    let Some(rules) = &route.rules else {
        return Ok((route, None));
    };
    let (target, rule) = rules.choose(needs, fields);
    let found = config.routes.get(target).cloned();
    let found = found.or_else(|| {
        config
            .target(target)
            .map(|target| Arc::new(Route::direct(target)))
    });
    let route = found.ok_or_else(|| unknown_model(target))?;
    Ok((route, Some(rule.unwrap_or(0))))
}

/// What the request belongs to, where the policy keeps such together.
fn key(route: &Route, headers: &HeaderMap, fields: &Fields<'_>) -> Option<u64> {
    match route.policy {
        Policy::Sticky => Some(sticky::conversation(headers, fields)),
        // Who is not known is assigned by the key of the gateway that he uses, and at random without one.
        Policy::Ab => sticky::user(headers, fields)
            .or_else(|| access::key_of(headers).map(|key| sticky::hash(key.as_bytes()))),
        _ => None,
    }
}

fn priority(headers: &HeaderMap) -> Option<Priority> {
    Priority::of_name(headers.get("x-carat-priority")?.to_str().ok()?)
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
    Some(Arc::new(Route::direct(target)))
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

/// Where a request went.
struct Way<'a> {
    endpoint: Endpoint,
    route: &'a Route,
    /// The route of rules that was asked for, and the rule that held; 0 is none.
    rule: Option<(&'a str, usize)>,
}

impl Way<'_> {
    fn answered(&self, won: Won) -> Response<Body> {
        let mut response = match won.answer {
            Answer::Whole { bytes } => {
                let mut response = Response::new(Body::whole(bytes));
                let kind = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
            Answer::Stream(relay) => {
                let mut response = Response::new(Body::Stream(relay));
                stream_headers(self.endpoint, response.headers_mut());
                response
            }
        };
        let headers = response.headers_mut();
        insert(
            headers,
            "x-carat-route",
            &self.explained(Some(&won.target), &won.trail),
        );
        if !won.dropped.is_empty() {
            insert(headers, "x-carat-dropped", &won.dropped.join(", "));
        }
        if let Some(id) = won.upstream_id {
            headers.insert("x-carat-upstream-id", id);
        }
        response
    }

    fn refused(&self, lost: Lost) -> Response<Body> {
        let mut failure = lost.failure;
        // A provider's quarrel with this gateway's key is not the client's.
        if failure.class == Class::BadKey {
            failure = Failure::new(
                Class::BadKey,
                502,
                "the provider does not accept this gateway's key for it",
            );
        }
        let mut response = reply::refusal(self.endpoint.dialect(), &failure);
        insert(
            response.headers_mut(),
            "x-carat-route",
            &self.explained(None, &lost.trail),
        );
        response
    }

    /// Where an answer came from and why.
    fn explained(&self, target: Option<&str>, trail: &Trail) -> String {
        let name = target.unwrap_or("none");
        let mut text = format!(
            "{name}; route={}; policy={}; attempts={}",
            self.route.name,
            self.route.policy.name(),
            trail.n_attempts
        );
        match self.rule {
            Some((name, 0)) => text.push_str(&format!("; rule={name}:otherwise")),
            Some((name, rule)) => text.push_str(&format!("; rule={name}:{rule}")),
            None => {}
        }
        let passed = trail
            .passed
            .iter()
            .filter(|(other, _)| Some(other.as_str()) != target);
        let passed: Vec<String> = passed.map(|(name, why)| format!("{name}:{why}")).collect();
        if !passed.is_empty() {
            text.push_str("; passed=");
            text.push_str(&passed.join(","));
        }
        if !trail.failed.is_empty() {
            text.push_str("; failed=");
            text.push_str(&trail.text());
        }
        if let Some(abandoned) = &trail.abandoned {
            text.push_str("; hedged=");
            text.push_str(abandoned);
        }
        text
    }
}

fn stream_headers(endpoint: Endpoint, headers: &mut HeaderMap) {
    let kind = match endpoint {
        Endpoint::OllamaChat => "application/x-ndjson",
        _ => "text/event-stream",
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
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
