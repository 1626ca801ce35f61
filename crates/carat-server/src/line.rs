//! The log's line of a request, written when its answer has ended: a stream's head says nothing of how long it took.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Method, Response};
use hyper::body::{Frame, SizeHint};

/// What is said of a request.
pub(crate) struct Line {
    pub(crate) id: String,
    pub(crate) method: Method,
    pub(crate) route: &'static str,
    pub(crate) arrived: Instant,
}

/// An answer's body, which writes the line when it is dropped.
struct Told {
    body: Body,
    line: Line,
    status: u16,
    is_over: bool,
}

impl Line {
    /// The answer, with the line behind it.
    pub(crate) fn after(self, response: Response<Body>) -> Response<Body> {
        let status = response.status().as_u16();
        response.map(|body| {
            Body::new(Told {
                // Nobody reads what a HEAD request is not sent.
                is_over: self.method == Method::HEAD,
                body,
                line: self,
                status,
            })
        })
    }
}

impl HttpBody for Told {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.is_over |= matches!(frame, Poll::Ready(None));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // A body of known length is not asked again once it has come.
        let is_cut = !self.is_over && !self.body.is_end_stream();
        let Line {
            id,
            method,
            route,
            arrived,
        } = &self.line;
        let ms = u64::try_from(arrived.elapsed().as_millis()).unwrap_or(u64::MAX);
        let cut = is_cut.then_some("client gone");
        tracing::info!(%id, %method, route, status = self.status, cut, ms, "request");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_an_answer_and_its_end_are_those_of_what_it_carries() {
        let line = || Line {
            id: "req_1".into(),
            method: Method::GET,
            route: "/",
            arrived: Instant::now(),
        };
        let whole = line().after(Response::new(Body::from("four")));
        assert_eq!(whole.body().size_hint().exact(), Some(4));
        assert!(line().after(Response::new(Body::empty())).body().is_end_stream());
    }
}
