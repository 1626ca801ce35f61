//! What every request passes on its way in and out: key, origin, id, count, log line.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, CONNECTION,
    CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER, VARY,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use axum::middleware::Next;
use carat_api::{ApiError, ErrorKind};
use carat_net::{is_loopback, is_of_a_foreign_page, is_own_name, name_of};

use crate::auth;
use crate::limits::RETRY_AFTER_S;
use crate::line::Line;
use crate::reply::{Caller, cancelled};
use crate::server::State;
use crate::trace;

/// Paths that need no key: programs that watch the server have none.
const OPEN: [&str; 5] = ["/", "/health", "/ready", "/openapi.json", "/docs"];

/// Who is at the other end of a request's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Lets a request in, and its answer out.
pub(crate) async fn pass(
    axum::extract::State(state): axum::extract::State<Arc<State>>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let arrived = Instant::now();
    let id = state.ids.id("req_");
    let origin = allowed_origin(&state.options.cors_origins, request.headers());
    let asked_headers = request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let path = request.uri().path().to_string();
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other", |path| known(path.as_str()));
    let trace = trace::begin(state.options.tracer.as_ref(), &method, route, request.headers());
    let mut response = if method == Method::OPTIONS {
        empty(StatusCode::NO_CONTENT)
    } else {
        match caller(&state, &request, &path, arrived) {
            Ok(mut caller) => {
                caller.trace.clone_from(&trace);
                request.extensions_mut().insert(caller);
                answered(&state, &path, next.run(request)).await
            }
            Err(error) => error_response(&error, &path),
        }
    };
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert("x-request-id", value.clone());
        headers.insert("request-id", value);
    }
    if let Some(origin) = origin {
        allow(headers, origin, asked_headers);
    }
    let status = response.status().as_u16();
    if let Some(trace) = &trace {
        trace::answered(trace, status);
    }
    state.metrics.count(route, status);
    let line = Line {
        id,
        method,
        route,
        arrived,
    };
    line.after(response)
}

/// The answer, or an error where it has not begun by the time the server stops: the connection would else be cut without
/// a word. An answer that has begun says so itself.
async fn answered(state: &State, path: &str, answer: impl Future<Output = Response<Body>>) -> Response<Body> {
    tokio::select! {
        biased;
        response = answer => response,
        () = state.over() => error_response(&cancelled(), path),
    }
}

/// The caller, unless a key is wanted and this is none.
fn caller(state: &State, request: &Request, path: &str, arrived: Instant) -> Result<Caller, ApiError> {
    let keys = &state.options.api_keys;
    let key = auth::key_of(request.headers());
    let peer: Option<IpAddr> = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    // A page elsewhere can have its own name point to this machine, and is then allowed to read what comes of it.
    if keys.is_empty() && peer.is_some() && !is_called_here(request, &state.options.cors_origins) {
        let message = "without API keys this server answers to the names of this machine only; ask `localhost`, or \
                       start it with a key, or with `--cors` and the origin whose name you use";
        return Err(ApiError::new(ErrorKind::Permission, message));
    }
    if keys.is_empty() && is_foreign_work(request, &state.options.cors_origins) {
        let message = "without API keys pages of other origins may not make this server work; start it with `--cors` and \
                       the page's origin, or with a key";
        return Err(ApiError::new(ErrorKind::Permission, message));
    }
    if !keys.is_empty() && !OPEN.contains(&path) {
        let key = key.ok_or_else(|| {
            let message = "an API key is needed; send `Authorization: Bearer KEY` or `x-api-key: KEY`";
            ApiError::new(ErrorKind::Authentication, message)
        })?;
        if !auth::is_known(keys, key) {
            return Err(wrong_key(state, peer, arrived));
        }
    }
    let client = match key.filter(|_| !keys.is_empty()) {
        Some(key) => state.ids.hash(key),
        None => state.ids.hash(peer),
    };
    let weight = auth::weight(&state.options.key_weights, key.unwrap_or_default());
    Ok(Caller {
        client,
        weight,
        arrived,
        trace: None,
    })
}

/// What a wrong key is told. Only they are: behind one address, of a proxy or of a company, are others with right ones.
fn wrong_key(state: &State, peer: Option<IpAddr>, arrived: Instant) -> ApiError {
    if peer.is_some_and(|peer| state.lockout.holds(peer, arrived)) {
        let message = "too many wrong API keys came from this address; wait a minute and check the key";
        return ApiError::new(ErrorKind::RateLimit, message);
    }
    if let Some(peer) = peer {
        state.lockout.count(peer, arrived);
    }
    let message = "this API key is not known here; check it";
    ApiError::new(ErrorKind::Authentication, message)
}

/// Whether a path is `/v1/messages` or below it.
pub(crate) fn is_anthropics(path: &str) -> bool {
    let rest = path.strip_prefix("/v1/messages");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// An error in the shape of the API that the path belongs to.
pub(crate) fn error_response(error: &ApiError, path: &str) -> Response<Body> {
    let body = if is_anthropics(path) {
        error.anthropic()
    } else if path.starts_with("/api/") {
        error.ollama()
    } else {
        error.openai()
    };
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = empty(status);
    *response.body_mut() = Body::from(body.to_string());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if matches!(error.kind, ErrorKind::RateLimit | ErrorKind::Unavailable) {
        headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
    }
    if error.kind == ErrorKind::TooLate {
        // The official clients would else ask twice more, and all of it be computed three times.
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    if error.kind == ErrorKind::Timeout {
        // The rest of its body may still be coming.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// The request's origin, if its pages may read our answers.
fn allowed_origin(allowed: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    let text = origin.to_str().ok()?;
    let host = text.split_once("://")?.1;
    let is_local = is_loopback(name_of(host));
    let is_listed = allowed.iter().any(|entry| entry == "*" || entry == text);
    (is_local || is_listed).then(|| origin.clone())
}

/// Whether the request is to a name of this machine, or to that of a listed origin. Clients that name nobody are no
/// browsers.
fn is_called_here(request: &Request, allowed: &[String]) -> bool {
    let is_listed = |host: &str| {
        allowed.iter().any(|entry| {
            let origin = entry.split_once("://").map_or(entry.as_str(), |(_, host)| host);
            entry == "*" || name_of(origin).eq_ignore_ascii_case(name_of(host))
        })
    };
    host(request).is_none_or(|host| is_own_name(host) || is_listed(host))
}

/// Whether a page that is neither this machine's nor of a listed origin asks for work.
fn is_foreign_work(request: &Request, allowed: &[String]) -> bool {
    let Some(origin) = request.headers().get(ORIGIN) else {
        return false;
    };
    let asks_for_work = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let is_foreign = is_of_a_foreign_page(origin.to_str().unwrap_or_default(), host(request));
    asks_for_work && is_foreign && allowed_origin(allowed, request.headers()).is_none()
}

/// Whom the request is to, as its sender wrote it.
fn host(request: &Request) -> Option<&str> {
    let header = || request.headers().get(HOST)?.to_str().ok();
    request.uri().authority().map(Authority::as_str).or_else(header)
}

/// Lets pages of `origin` read the answer, and send what headers they ask for: the official clients send a dozen of their
/// own, and whom the origin lets in, no header makes more dangerous.
fn allow(headers: &mut HeaderMap, origin: HeaderValue, asked_headers: Option<HeaderValue>) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        VARY,
        HeaderValue::from_static("origin, access-control-request-headers"),
    );
    if let Some(asked) = asked_headers {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked);
    }
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, DELETE, OPTIONS"),
    );
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("x-request-id, request-id, retry-after, x-should-retry"),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
}

/// The route's name as a word that lives as long as the program: labels must not grow with what clients send.
fn known(route: &str) -> &'static str {
    crate::routes::ROUTES
        .iter()
        .find(|known| **known == route)
        .copied()
        .unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_keys_only_names_of_this_machine_are_answered() {
        let is_let_in = |host: &str, list: &[&str]| {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            let request = Request::builder().uri("/v1/models").header(HOST, host);
            is_called_here(&request.body(Body::empty()).unwrap(), &list)
        };
        assert!(is_let_in("localhost:8080", &[]));
        for host in ["evil.example", "evil.example:8080"] {
            assert!(!is_let_in(host, &[]), "{host}");
            assert!(!is_let_in(host, &["https://good.example"]), "{host}");
            assert!(is_let_in(host, &["*"]), "{host}");
        }
        assert!(is_let_in("good.example:8080", &["https://good.example"]));
        let nobody = Request::builder().uri("/v1/models").body(Body::empty()).unwrap();
        assert!(is_called_here(&nobody, &[]));
    }

    #[test]
    fn pages_elsewhere_may_not_ask_for_work() {
        let is_foreign = |method: &str, origin: &str, list: &[&str]| {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            let request = Request::builder().method(method).uri("/v1/chat/completions");
            let request = request.header(HOST, "box.local:8080").header(ORIGIN, origin);
            is_foreign_work(&request.body(Body::empty()).unwrap(), &list)
        };
        let evil = "https://evil.example";
        assert!(is_foreign("POST", evil, &[]));
        assert!(is_foreign("DELETE", evil, &["https://good.example"]));
        assert!(!is_foreign("GET", evil, &[]));
        assert!(!is_foreign("OPTIONS", evil, &[]));
        assert!(!is_foreign(
            "POST",
            "https://good.example",
            &["https://good.example"]
        ));
        assert!(!is_foreign("POST", evil, &["*"]));
        assert!(!is_foreign("POST", "http://box.local:3000", &[]));
        let own = Request::builder()
            .method("POST")
            .uri("http://box.local:8080/v1/chat/completions");
        let own = own.header(ORIGIN, "http://box.local:3000").body(Body::empty());
        assert!(!is_foreign_work(&own.unwrap(), &[]), "HTTP/2 has no `Host`");
        let client = Request::builder().method("POST").uri("/v1/chat/completions");
        assert!(!is_foreign_work(&client.body(Body::empty()).unwrap(), &[]));
    }

    #[test]
    fn pages_of_this_machine_and_listed_ones_may_read() {
        let allowed = |list: &[&str], origin: &str| {
            let list: Vec<String> = list.iter().map(ToString::to_string).collect();
            let mut headers = HeaderMap::new();
            headers.insert(ORIGIN, origin.parse().unwrap());
            allowed_origin(&list, &headers).is_some()
        };
        assert!(allowed(&[], "http://localhost:3000"));
        assert!(!allowed(&[], "https://evil.example"));
        assert!(!allowed(&[], "https://localhost.evil.example"));
        assert!(allowed(&["https://good.example"], "https://good.example"));
        assert!(allowed(&["*"], "https://any.example"));
    }
}
