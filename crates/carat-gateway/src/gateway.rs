//! The gateway: its state, and what it tells of itself.

use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use carat_ledger::{Bearer, Ledger};
use carat_net::{CertificateFiles, Tls, is_of_a_foreign_page, is_own_name};
use carat_traces::Tracer;
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use crate::access;
use crate::budget::CallBudget;
use crate::cache::Cache;
use crate::config::Config;
use crate::endpoint::{Called, Dialect};
use crate::engine::Engine;
use crate::failure::{Class, Failure};
use crate::health::HealthBook;
use crate::line::Line;
use crate::reply::{self, Body};
use crate::route::Route;
use crate::upstream::Upstream;
use crate::variants::Variants;
use crate::{Error, home, metrics};

/// One request in so many may be retried, and one in so many hedged.
const RETRIED: i64 = 5;
/// Time between two retries that are there even where nobody asks.
const RETRY_EVERY: Duration = Duration::from_millis(100);
const HEDGED: i64 = 20;

/// What `/api/version` says: the version of Ollama's whose API is spoken, as `carat serve` says it. Clients decide by it what
/// they may ask for, and some refuse what is older than 0.6.4, as carat's own version is.
const OLLAMA_VERSION: &str = "0.9.0";

/// One endpoint over many providers.
pub struct Gateway {
    config: RwLock<Arc<Config>>,
    pub(crate) upstream: Upstream,
    book: HealthBook,
    pub(crate) retries: CallBudget,
    pub(crate) hedges: CallBudget,
    pub(crate) cache: Arc<Cache>,
    pub(crate) variants: Variants,
    pub(crate) ledger: Option<Ledger>,
    pub(crate) began: std::time::Instant,
    ids: Ids,
    pub(crate) counts: Counts,
    pub(crate) is_stopping: AtomicBool,
    has_engine: bool,
    pub(crate) tracer: Option<Tracer>,
    /// The certificate that clients are shown.
    pub(crate) tls: Option<Tls>,
}

/// What happened since the start, whoever answered.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) in_flight: AtomicU64,
    /// Answers by the hundreds of their status, 0 to 5.
    pub(crate) by_status: [AtomicU64; 6],
    pub(crate) reloads: AtomicU64,
    pub(crate) refused_reloads: AtomicU64,
    /// Requests and answers that a route's guard refused.
    pub(crate) guarded: AtomicU64,
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
        Self::with(config, None)
    }

    /// The same with an engine in this process, for providers that are like `engine`.
    ///
    /// # Errors
    /// As [`Gateway::new`].
    pub fn with_engine(config: Config, engine: Engine) -> Result<Self, Error> {
        Self::with(config, Some(engine))
    }

    fn with(config: Config, engine: Option<Engine>) -> Result<Self, Error> {
        let ledger = config
            .ledger
            .as_ref()
            .map(|place| Ledger::open(place, config.ledger_keep))
            .transpose()
            .map_err(Error::Ledger)?;
        if let Some(n) = ledger.as_ref().map(Ledger::n_lost).filter(|n| *n > 0) {
            tracing::warn!(n, "requests of an earlier run were open; they are marked as lost");
        }
        let tls = config.tls.as_ref().map(CertificateFiles::open).transpose();
        Ok(Self {
            has_engine: engine.is_some(),
            tls: tls.map_err(Error::Certificate)?,
            upstream: Upstream::new(config.timeouts.connect, engine)?,
            config: RwLock::new(Arc::new(config)),
            book: HealthBook::default(),
            retries: CallBudget::one_in_and_every(RETRIED, RETRY_EVERY),
            hedges: CallBudget::one_in(HEDGED),
            cache: Arc::default(),
            variants: Variants::default(),
            ledger,
            began: std::time::Instant::now(),
            ids: Ids::default(),
            counts: Counts::default(),
            is_stopping: AtomicBool::new(false),
            tracer: None,
        })
    }

    /// Requests and the calls they lead to are told to a tracer.
    #[must_use]
    pub fn with_tracer(mut self, tracer: Tracer) -> Self {
        self.tracer = Some(tracer);
        self
    }

    /// Serves by another configuration from now on. Requests under way end by theirs; what is known about targets
    /// stays.
    pub fn replace(&self, mut config: Config) {
        let mut current = self.config.write().unwrap_or_else(PoisonError::into_inner);
        config.generation = current.generation + 1;
        // What was let out by another configuration is not to be given again, nor kept when it has ended.
        self.cache.begin(config.generation);
        *current = Arc::new(config);
    }

    /// A configuration, if this process can serve by it.
    ///
    /// # Errors
    /// When it needs an engine, which is only started with the process.
    pub(crate) fn fit(&self, config: Config) -> Result<Config, Error> {
        if config.uses_engine() && !self.has_engine {
            let message = "one is the engine of this process, which was started without; restart it";
            return Err(Error::config("providers", message));
        }
        Ok(config)
    }

    /// The configuration in force.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
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
        let line = Line::begin(request.method(), request.uri().path(), || {
            let ledger = self.ledger.as_ref()?;
            access::bearer(ledger, request.headers()).map(|bearer| bearer.key)
        });
        let mut response = self.dispatch(id, request).await;
        let id = HeaderValue::try_from(format!("req-{:032x}", u128::from_be_bytes(id)));
        let id = id.unwrap_or_else(|_| HeaderValue::from_static("-"));
        response.headers_mut().insert("x-request-id", id);
        let hundreds = usize::from(response.status().as_u16() / 100).min(5);
        self.counts.by_status[hundreds].fetch_add(1, Ordering::Relaxed);
        if let Some(line) = line {
            line.answered(&mut response);
        }
        Ok(response)
    }

    async fn dispatch(self: &Arc<Self>, id: [u8; 16], request: Request<Incoming>) -> Response<Body> {
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
        match path {
            "/health" | "/health/live" => {
                return reply::json(StatusCode::OK, &json!({"status": "ok"}));
            }
            "/health/ready" => return self.ready(),
            // Ollama's own client asks for it before anything else.
            "/" => return home::response(request.headers()),
            _ => {}
        }
        let bearer = match self.bearer(request.headers()) {
            Ok(bearer) => bearer,
            Err(failure) => return reply::refusal(Dialect::OpenAi, &failure),
        };
        let may_see = |name: &str| bearer.as_ref().is_none_or(|bearer| bearer.may_ask(name));
        match path {
            "/metrics" => metrics::response(self),
            "/models" => self.models(may_see, request.headers().contains_key("anthropic-version")),
            "/api/tags" => self.tags(may_see),
            "/api/version" => reply::json(
                StatusCode::OK,
                &json!({"version": OLLAMA_VERSION, "carat": env!("CARGO_PKG_VERSION")}),
            ),
            other => match other.strip_prefix("/models/") {
                Some(id) => self.model(may_see, id),
                None => not_found(path),
            },
        }
    }

    /// Whose request it is, where keys are needed.
    ///
    /// # Errors
    /// There is no key; or, where none is needed, the request is to a name that is not this machine's or comes of
    /// another's page.
    pub(crate) fn bearer(&self, headers: &HeaderMap) -> Result<Option<Bearer>, Failure> {
        let Some(ledger) = &self.ledger else {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok());
            if !host.is_none_or(is_own_name) {
                return Err(access::not_here());
            }
            // Where no key is asked for any page could spend the provider's.
            let origin = headers
                .get(ORIGIN)
                .map(|origin| origin.to_str().unwrap_or_default());
            return if origin.is_some_and(|origin| is_of_a_foreign_page(origin, host)) {
                Err(access::not_from_there())
            } else {
                Ok(None)
            };
        };
        let bearer = access::bearer(ledger, headers);
        bearer.map(Some).ok_or_else(access::no_key)
    }

    fn ready(&self) -> Response<Body> {
        if self.is_stopping.load(Ordering::Relaxed) {
            return reply::json(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "stopping"}));
        }
        reply::json(StatusCode::OK, &json!({"status": "ok"}))
    }

    /// Routes, and the candidates that may be asked for directly, as far as they may be seen.
    fn names(&self, may_see: impl Fn(&str) -> bool) -> Vec<String> {
        let config = self.config();
        let mut names: Vec<String> = config.routes.keys().cloned().collect();
        if config.direct {
            let candidates = config.routes.values().flat_map(|route| &route.candidates);
            names.extend(candidates.map(|candidate| candidate.name.clone()));
        }
        names.retain(|name| may_see(name));
        names.sort();
        names.dedup();
        names
    }

    /// The list as OpenAI's clients want it, or as Anthropic's do.
    fn models(&self, may_see: impl Fn(&str) -> bool, is_anthropic: bool) -> Response<Body> {
        let names = self.names(may_see);
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
    fn tags(&self, may_see: impl Fn(&str) -> bool) -> Response<Body> {
        let model = |name: &String| {
            let details = json!({"format": "", "family": "", "families": [], "parameter_size": "", "quantization_level": ""});
            json!({"name": name, "model": name, "modified_at": "1970-01-01T00:00:00Z", "size": 0, "digest": "", "details": details})
        };
        let models: Vec<_> = self.names(may_see).iter().map(model).collect();
        reply::json(StatusCode::OK, &json!({"models": models}))
    }

    fn model(&self, may_see: impl Fn(&str) -> bool, id: &str) -> Response<Body> {
        let config = self.config();
        match find(&config, id).filter(|_| may_see(id)) {
            Some(_) => reply::json(StatusCode::OK, &model(id)),
            None => reply::refusal(Dialect::OpenAi, &unknown_model(id)),
        }
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

fn model(id: &str) -> serde_json::Value {
    json!({"id": id, "object": "model", "created": 0, "owned_by": id.split('/').next().unwrap_or(id)})
}

pub(crate) fn unknown_model(name: &str) -> Failure {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    #[test]
    fn without_a_ledger_pages_of_others_are_refused() {
        let env: Env = Arc::new(|_| None);
        let gateway = Gateway::new(Config::parse("", &env).unwrap()).unwrap();
        let status = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("box.local:4100"));
            if let Some(origin) = origin {
                headers.insert(ORIGIN, HeaderValue::from_static(origin));
            }
            gateway.bearer(&headers).err().map(|failure| failure.status)
        };
        for own in [None, Some("http://box.local:4100"), Some("http://localhost:3000")] {
            assert_eq!(status(own), None, "{own:?}");
        }
        for foreign in ["https://evil.example", "null", ""] {
            assert_eq!(status(Some(foreign)), Some(403), "{foreign}");
        }
    }

    #[test]
    fn an_engine_cannot_be_added_while_the_gateway_runs() {
        let env: Env = Arc::new(|_| None);
        let config = |text: &str| Config::parse(text, &env).unwrap();
        let gateway = Gateway::new(config("")).unwrap();
        assert!(
            gateway
                .fit(config("[providers.x]\nbase-url = \"http://x\""))
                .is_ok()
        );
        let error = gateway
            .fit(config("[providers.local]\nlike = \"engine\""))
            .unwrap_err();
        assert!(error.to_string().contains("restart"), "{error}");
        let engine: Engine = Arc::new(|_| {});
        let gateway = Gateway::with_engine(config(""), engine).unwrap();
        assert!(
            gateway
                .fit(config("[providers.local]\nlike = \"engine\""))
                .is_ok()
        );
    }
}
