//! What is said at `/`: that somebody is here, and to a browser how he is asked.

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response};

use crate::reply::Body;

const TEXT: &str = "carat is running\n";
const PAGE: &str = include_str!("home.html");

/// A page for who takes one, else a line.
pub(crate) fn response(headers: &HeaderMap) -> Response<Body> {
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let (kind, text) = if accepted.is_some_and(|accepted| accepted.contains("text/html")) {
        ("text/html; charset=utf-8", PAGE)
    } else {
        ("text/plain; charset=utf-8", TEXT)
    };
    let mut response = Response::new(Body::whole(text));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
