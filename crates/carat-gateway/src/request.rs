//! What becomes of a request for a model: read, let in, answered from what is kept or by somebody, and told so.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use carat_net::{Paced, TooSlow};
use carat_traces::Trace;
use http::header::{AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::access::{self, Entry, Gate};
use crate::attempt::{self, Answer, Call, Lost, Means, Trail, Wish, Won};
use crate::cache::{Kept, Lookup, Tape};
use crate::clock;
use crate::config::Config;
use crate::effects;
use crate::endpoint::{Called, Endpoint, Kind};
use crate::explain::{self, Chosen};
use crate::failure::{Class, Failure};
use crate::fields::{self, Fields};
use crate::files::Files;
use crate::gateway::{Gateway, find, unknown_model};
use crate::guard::{self, Guard};
use crate::heir::{self, Heir};
use crate::needs::Needs;
use crate::policy::Known;
use crate::reply::{self, Body};
use crate::route::{Policy, Route};
use crate::sticky;
use crate::timed::Timed;
use crate::trace;
use crate::upstream;
use crate::waiting::Priority;

/// Longest that somebody who judges requests may take.
const JUDGING: Duration = Duration::from_secs(30);

/// Longest name of a model, in bytes.
const NAME_BYTES: usize = 512;

/// A request that was read.
struct Asking<'a> {
    headers: &'a HeaderMap,
    /// What the client names.
    name: &'a str,
    route: Arc<Route>,
    /// The rule that led to the route; 0 is none of them.
    rule: Option<usize>,
    id: [u8; 16],
    /// The request as it is let in, for who goes on with its answer.
    body: Bytes,
}

impl Gateway {
    pub(crate) async fn post(
        self: &Arc<Self>,
        called: &Called,
        id: [u8; 16],
        request: Request<Incoming>,
    ) -> Response<Body> {
        let config = self.config();
        let trace = self
            .tracer
            .as_ref()
            .map(|tracer| trace::begin(tracer, request.headers()));
        let response = match self.read(&config, called, id, request, trace.clone()).await {
            Ok(response) => response,
            Err(failure) => {
                if failure.code.as_deref() == Some("guardrail") {
                    self.counts.guarded.fetch_add(1, Ordering::Relaxed);
                }
                reply::refusal(called.endpoint.dialect(), &failure)
            }
        };
        if let Some(trace) = &trace {
            trace::answered(trace, response.status().as_u16());
        }
        response
    }

    /// Reads a request, and what its route's guard lets of it in.
    async fn read(
        self: &Arc<Self>,
        config: &Arc<Config>,
        called: &Called,
        id: [u8; 16],
        request: Request<Incoming>,
        trace: Option<Trace>,
    ) -> Result<Response<Body>, Failure> {
        let (head, body) = request.into_parts();
        let body = Paced::new(body);
        // Nobody without a key has a body kept for him.
        let bearer = self.bearer(&head.headers)?;
        let body = whole(&head.headers, body, config.body_bytes).await?;
        // How long its body took is nobody's fault who answers.
        let ends = Instant::now() + config.timeouts.total;
        let fields = fields(&body)?;
        let name: Cow<'_, str> = match &called.model {
            Some(name) => Cow::Borrowed(name),
            None => fields.get("model").ok_or_else(no_model)?,
        };
        fits(&name)?;
        let max_tokens = max_tokens(called.endpoint, &fields);
        let needs = Needs::read(called.endpoint, &fields, max_tokens);
        let (route, rule) = chosen(config, &name, &needs, &fields)?;
        let guard = route.guard.as_deref();
        let changed = guard.map_or(Ok(None), |guard| guard.let_in(&fields, max_tokens))?;
        let again = changed.as_deref().map(self::fields).transpose()?;
        let call = Call {
            endpoint: called.endpoint,
            body_bytes: needs.worth(changed.as_ref().map_or(body.len(), Vec::len)),
            is_stream: is_stream(called, &fields)?,
            max_tokens,
            forwarded: upstream::forwarded(&head.headers),
            deadline: ends.min(own_deadline(&head.headers)),
            ends,
            wish: Wish {
                needs,
                key: key(&route, &head.headers, &fields),
                priority: priority(&head.headers),
            },
            fields: again.as_ref().unwrap_or(&fields),
            continues: false,
            is_continued: false,
            files: Files::default(),
            trace,
        };
        let call = Call {
            continues: route.ways.continues
                && call.is_stream
                && heir::may_be_continued(call.endpoint, call.fields)
                && !effects::may_act(call.endpoint, call.fields),
            ..call
        };
        if let Some(trace) = &call.trace {
            trace::asked(trace, &name, &route, &call);
        }
        let let_in = changed.as_ref().filter(|_| call.continues);
        let body = let_in.map_or_else(|| body.clone(), |changed| Bytes::from(changed.clone()));
        let asking = Asking {
            headers: &head.headers,
            name: &name,
            route,
            rule,
            id,
            body,
        };
        if called.is_dry || head.headers.contains_key("x-carat-dry-run") {
            if bearer.is_some_and(|bearer| !bearer.may_ask(&name)) {
                return Err(access::not_allowed());
            }
            let chosen = Chosen {
                name: &name,
                route: &asking.route,
                rule,
            };
            return Ok(explain::response(&chosen, &call, &self.known(config)));
        }
        // On the heap, since it is large and most of a connection's life is spent without it.
        Box::pin(self.serve(config, asking, &call)).await
    }

    fn known<'a>(&'a self, config: &'a Config) -> Known<'a> {
        Known {
            book: self.book(),
            prices: &config.prices,
            fetches: config.fetcher.is_some(),
            now: clock::now(),
        }
    }

    /// Lets a request in and has it answered.
    async fn serve(
        self: &Arc<Self>,
        config: &Arc<Config>,
        asking: Asking<'_>,
        call: &Call<'_>,
    ) -> Result<Response<Body>, Failure> {
        let guard = asking.route.guard.clone();
        let (mut entry, route, told) = self.admit(config, &asking, call).await?;
        if let Some(guard) = &guard
            && let Err(failure) = self.judged(config, guard, call, &mut entry).await
        {
            if let Some(entry) = entry {
                entry.fail();
            }
            return Err(failure);
        }
        let way = Way {
            endpoint: call.endpoint,
            route: &route,
            rule: asking.rule.map(|rule| (asking.name, rule)),
        };
        let lookup = route.cache.as_ref().and_then(|keeping| {
            let routes = [route.name.as_str(), asking.route.name.as_str()];
            Lookup::new(&self.cache, keeping, config, routes, asking.headers, call)
        });
        if let Some((body, target, age)) = lookup.as_ref().and_then(Lookup::find) {
            if let Some(entry) = entry {
                entry.cached(&target);
            }
            if let Some(trace) = &call.trace {
                trace::cached(trace, &target);
            }
            return Ok(with(way.kept(call.is_stream, body, &target, age), told));
        }
        let means = Means {
            // What was asked for decides what is let out, whoever answers in its place.
            guard: route
                .guard
                .as_ref()
                .or(guard.as_ref())
                .filter(|guard| guard.looks_at_answers()),
            ..self.means(config)
        };
        let answer = attempt::answer(&means, &route, call, entry).await;
        let answer = answer.map(|mut won| {
            if let Answer::Stream(relay) = &mut won.answer
                && call.continues
            {
                relay.bequeath(self.heir(config, &route, call, asking.body.clone(), &won.target));
            }
            won
        });
        let mut response = match answer {
            Ok(won) => way.answered(won, means.guard, lookup)?,
            Err(lost) => way.refused(*lost),
        };
        if route.cache.is_some() && !response.headers().contains_key("x-carat-cache") {
            insert(response.headers_mut(), "x-carat-cache", "bypass");
        }
        Ok(with(response, told))
    }

    /// Who goes on if a stream breaks.
    fn heir(
        self: &Arc<Self>,
        config: &Arc<Config>,
        route: &Arc<Route>,
        call: &Call<'_>,
        body: Bytes,
        target: &str,
    ) -> Heir {
        Heir {
            gateway: Arc::clone(self),
            config: Arc::clone(config),
            route: Arc::clone(route),
            endpoint: call.endpoint,
            body,
            body_bytes: call.body_bytes,
            forwarded: call.forwarded.clone(),
            deadline: call.ends,
            wish: call.wish,
            broken: route
                .candidates
                .iter()
                .position(|one| one.name == target)
                .into_iter()
                .collect(),
        }
    }

    pub(crate) fn means<'a>(&'a self, config: &'a Config) -> Means<'a> {
        Means {
            upstream: &self.upstream,
            book: self.book(),
            retries: &self.retries,
            hedges: &self.hedges,
            variants: &self.variants,
            guard: None,
            config,
        }
    }

    /// With a ledger, the key's limits decide; past a soft one another route may answer.
    async fn admit(&self, config: &Config, asking: &Asking<'_>, call: &Call<'_>) -> Result<LetIn, Failure> {
        let route = Arc::clone(&asking.route);
        let Some(ledger) = &self.ledger else {
            return Ok((None, route, Vec::new()));
        };
        let gate = Gate {
            ledger,
            config,
            route: &route,
        };
        let admitted = gate.admit(asking.headers, asking.id, asking.name, call).await?;
        let route = admitted.instead.unwrap_or(route);
        Ok((Some(admitted.entry), route, admitted.headers))
    }

    /// Asks whoever judges requests for a route, if somebody does.
    async fn judged(
        &self,
        config: &Config,
        guard: &Guard,
        call: &Call<'_>,
        entry: &mut Option<Entry>,
    ) -> Result<(), Failure> {
        let Some(classifier) = &guard.classifier else {
            return Ok(());
        };
        let body = classifier.body(call.fields);
        let fields = fields(body.as_bytes())?;
        let route = named(config, &classifier.route).ok_or_else(guard::unjudged)?;
        let deadline = call.deadline.min(Instant::now() + JUDGING);
        let judging = Call {
            endpoint: Endpoint::Chat,
            body_bytes: body.len(),
            is_stream: false,
            max_tokens: Some(16),
            forwarded: Vec::new(),
            deadline,
            ends: deadline,
            wish: Wish {
                needs: Needs::read(Endpoint::Chat, &fields, Some(16)),
                ..call.wish
            },
            fields: &fields,
            continues: false,
            is_continued: false,
            files: Files::default(),
            trace: call.trace.clone(),
        };
        let answer = Box::pin(attempt::answer(&self.means(config), &route, &judging, None)).await;
        let answer = match answer {
            Ok(Won {
                answer: Answer::Whole { bytes, usage },
                target,
                ..
            }) => {
                let price = config
                    .target(&target)
                    .and_then(|target| config.prices.of(&target));
                if let Some((entry, price)) = entry.as_mut().zip(price) {
                    entry.also(price.cost(&usage));
                }
                classifier.refuses(&bytes)
            }
            _ => None,
        };
        match answer {
            Some(false) => Ok(()),
            Some(true) => Err(guard::unfit()),
            None if classifier.open_on_failure => Ok(()),
            None => Err(guard::unjudged()),
        }
    }
}

/// What is written down, who answers, and what the client is told.
type LetIn = (Option<Entry>, Arc<Route>, Vec<(&'static str, String)>);

fn fields(body: &[u8]) -> Result<Fields<'_>, Failure> {
    Fields::read(body).map_err(|error| {
        Failure::new(
            Class::BadRequest,
            400,
            format!("the body is not the JSON object expected: {error}"),
        )
    })
}

fn with(mut response: Response<Body>, told: Vec<(&'static str, String)>) -> Response<Body> {
    for (name, value) in told {
        insert(response.headers_mut(), name, &value);
    }
    response
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

/// Names are kept for a while: long ones must not fill the memory.
fn fits(name: &str) -> Result<(), Failure> {
    if name.len() <= NAME_BYTES {
        return Ok(());
    }
    Err(Failure {
        param: Some("model".into()),
        ..Failure::new(
            Class::BadRequest,
            400,
            format!("`model` is longer than {NAME_BYTES} bytes"),
        )
    })
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
    let route = named(config, target).ok_or_else(|| unknown_model(target))?;
    Ok((route, Some(rule.unwrap_or(0))))
}

/// The route that the configuration itself names, which may be a target that clients cannot name.
fn named(config: &Config, name: &str) -> Option<Arc<Route>> {
    let route = config.routes.get(name).cloned();
    route.or_else(|| config.target(name).map(|target| Arc::new(Route::direct(target))))
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
fn is_stream(called: &Called, fields: &Fields<'_>) -> Result<bool, Failure> {
    if let Some(is_stream) = called.stream {
        return Ok(is_stream);
    }
    // Vectors and counts come whole whatever is said: who answers so has not failed.
    if called.endpoint.kind() != Kind::Conversation {
        return Ok(false);
    }
    if fields.raw("stream").is_none() {
        return Ok(called.endpoint.has_lines());
    }
    // What is neither may be read as either by who answers.
    fields.get("stream").ok_or_else(|| Failure {
        param: Some("stream".into()),
        ..Failure::new(Class::BadRequest, 400, "`stream` must be true or false")
    })
}

/// The most tokens that the answer may have, if the request says so.
fn max_tokens(endpoint: Endpoint, fields: &Fields<'_>) -> Option<u64> {
    let within = |object: &str, names: &[&str]| {
        let object: serde_json::Value = fields.get(object)?;
        names
            .iter()
            .filter_map(|name| fields::count(&object[*name]))
            .max()
    };
    match endpoint {
        // Google takes either way of writing.
        Endpoint::Generate => ["generationConfig", "generation_config"]
            .iter()
            .filter_map(|object| within(object, &["maxOutputTokens", "max_output_tokens"]))
            .max(),
        Endpoint::OllamaChat | Endpoint::OllamaGenerate => within("options", &["num_predict"]),
        // These have answers without tokens.
        other if other.kind() != Kind::Conversation => Some(0),
        // A request with two names for it may be read by either.
        _ => ["max_completion_tokens", "max_tokens", "max_output_tokens"]
            .iter()
            .filter_map(|name| fields.count(name))
            .max(),
    }
}

/// The whole body, if it is not too large and comes in time.
async fn whole(headers: &HeaderMap, body: Paced<Incoming>, limit: usize) -> Result<Bytes, Failure> {
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
    let collected = Limited::new(body, limit).collect().await;
    collected.map(Collected::to_bytes).map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_large()
        } else if TooSlow::is_behind(&*error) {
            Failure::new(Class::BadRequest, 408, TooSlow.to_string())
        } else {
            let message = "the body did not come whole; send it again";
            Failure::new(Class::BadRequest, 400, message)
        }
    })
}

/// When the client will have given up an answer that has not begun: OpenAI's and Anthropic's own libraries say how long
/// they wait for a word, not how long an answer may take. Of a stream that stops they take leave by themselves.
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
    /// An answer that was kept.
    fn kept(&self, is_stream: bool, body: Bytes, target: &str, age: Duration) -> Response<Body> {
        let mut response = Response::new(Body::whole(body));
        let headers = response.headers_mut();
        if is_stream {
            stream_headers(self.endpoint, headers);
        } else {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
        insert(headers, "x-carat-cache", "hit");
        insert(
            headers,
            "x-carat-route",
            &self.explained(Some(target), &Trail::default()),
        );
        response
    }

    fn answered(
        &self,
        won: Won,
        guard: Option<&Arc<Guard>>,
        lookup: Option<Lookup>,
    ) -> Result<Response<Body>, Failure> {
        let is_kept = lookup.is_some();
        let mut response = match won.answer {
            Answer::Whole { bytes, usage } => {
                let bytes = guard.map_or(Ok(bytes.clone()), |guard| guard.let_out(bytes))?;
                if let Some(lookup) = lookup {
                    lookup.keep(Kept {
                        body: bytes.clone(),
                        is_stream: false,
                        wanted_usage: false,
                        target: won.target.clone(),
                        usage,
                    });
                }
                let mut response = Response::new(Body::whole(bytes));
                let kind = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                // For the log's line of it.
                response.extensions_mut().insert(usage);
                response
            }
            Answer::Stream(mut relay) => {
                if let Some(lookup) = lookup {
                    relay.record(Tape::new(lookup, &won.target));
                }
                let mut response = Response::new(Body::Stream(Timed::new(relay)));
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
        if is_kept {
            insert(headers, "x-carat-cache", "miss");
        }
        Ok(response)
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
        if lost.may_be_done {
            // Official clients ask again by themselves.
            insert(response.headers_mut(), "x-should-retry", "false");
        }
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
        lines if lines.has_lines() => "application/x-ndjson",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_of_models_are_refused() {
        assert!(fits(&"x".repeat(NAME_BYTES)).is_ok());
        let failure = fits(&"x".repeat(NAME_BYTES + 1)).unwrap_err();
        assert_eq!((failure.status, failure.class), (400, Class::BadRequest));
    }

    #[test]
    fn a_stream_is_asked_for_with_true_or_false_alone() {
        let asked = |path: &str, body: &str| {
            let called = Called::of(path).unwrap();
            is_stream(&called, &fields(body.as_bytes()).unwrap()).map_err(|failure| failure.status)
        };
        let chat = "/v1/chat/completions";
        assert_eq!(asked(chat, "{}"), Ok(false));
        assert_eq!(asked(chat, r#"{"stream":null}"#), Ok(false));
        assert_eq!(asked(chat, r#"{"stream":true}"#), Ok(true));
        assert_eq!(asked("/api/chat", "{}"), Ok(true));
        for path in [
            "/v1/embeddings",
            "/v1/messages/count_tokens",
            "/v1/rerank",
            "/api/embed",
        ] {
            assert_eq!(asked(path, r#"{"stream":true}"#), Ok(false), "{path}");
        }
        for value in ["1", "\"true\"", "[]", "{}"] {
            assert_eq!(
                asked(chat, &format!("{{\"stream\":{value}}}")),
                Err(400),
                "{value}"
            );
        }
    }
}
