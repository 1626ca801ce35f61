//! A reply as the body of a response: events or lines, sent as they come.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, Response};
use carat_api::{ApiError, Delta, Finish, Usage, anthropic, ollama, openai};
use futures_core::Stream;
use tokio::time::{Sleep, sleep};

use crate::ids;
use crate::limits::PING_EVERY;
use crate::reply::{Output, Reply};

/// Keeps an answer that has come to its end.
pub(crate) type Keep = Box<dyn FnOnce(&[Delta]) + Send>;

/// Which API writes the pieces.
pub(crate) enum Writer {
    Chat(openai::ChatEvents),
    Completion(openai::CompletionEvents),
    /// With what keeps the whole response at the end.
    Response(openai::ResponseEvents, Option<Keep>, Vec<Delta>),
    Message(anthropic::MessageEvents),
    Lines(ollama::Lines),
}

impl Writer {
    fn write(&mut self, output: Output, out: &mut Vec<u8>) {
        match output {
            Output::Delta(choice, delta) => self.delta(choice, delta, out),
            Output::Finish(choice, finish, times) => self.finish(choice, &finish, times, out),
            Output::Failed(error) => self.error(&error, out),
        }
    }

    fn delta(&mut self, choice: usize, delta: Delta, out: &mut Vec<u8>) {
        match self {
            Self::Chat(events) => events.delta(choice, &delta, out),
            Self::Completion(events) => events.delta(choice, &delta, out),
            Self::Response(events, keep, deltas) => {
                events.delta(&delta, out);
                if keep.is_some() {
                    deltas.push(delta);
                }
            }
            Self::Message(events) => events.delta(&delta, out),
            Self::Lines(lines) => lines.delta(&delta, ids::now(), out),
        }
    }

    fn finish(&mut self, choice: usize, finish: &Finish, times: [std::time::Duration; 2], out: &mut Vec<u8>) {
        match self {
            Self::Chat(events) => events.finish(choice, finish, out),
            Self::Completion(events) => events.finish(choice, finish, out),
            Self::Response(events, keep, deltas) => {
                // Kept before the client hears of the end: its next request may follow at once.
                if let Some(keep) = keep.take() {
                    keep(deltas);
                }
                events.finish(finish, out);
            }
            Self::Message(events) => events.finish(finish, out),
            Self::Lines(lines) => lines.finish(finish, ids::now(), times, out),
        }
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        match self {
            Self::Chat(events) => events.error(error, out),
            Self::Completion(events) => events.error(error, out),
            Self::Response(events, ..) => events.error(error, out),
            Self::Message(events) => events.error(error, out),
            Self::Lines(lines) => lines.error(error, out),
        }
    }

    fn end(&mut self, usage: &Usage, out: &mut Vec<u8>) {
        match self {
            Self::Chat(events) => events.end(out),
            Self::Completion(events) => events.end(usage, out),
            Self::Response(..) | Self::Message(_) | Self::Lines(_) => {}
        }
    }

    /// A sign of life; clients of events skip comments, those of lines know none.
    fn ping(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Message(events) => events.ping(out),
            Self::Lines(_) => {}
            Self::Chat(_) | Self::Completion(_) | Self::Response(..) => {
                out.extend_from_slice(b": waiting\n\n")
            }
        }
    }

    fn content_type(&self) -> &'static str {
        match self {
            Self::Lines(_) => "application/x-ndjson",
            _ => "text/event-stream; charset=utf-8",
        }
    }
}

struct EventBody {
    reply: Reply,
    writer: Writer,
    ping: Pin<Box<Sleep>>,
    outputs: Vec<Output>,
    has_failed: bool,
    has_ended: bool,
}

impl Stream for EventBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        let mut out = Vec::new();
        match this.reply.poll(cx, &mut this.outputs) {
            Poll::Ready(Some(())) => {
                for output in this.outputs.drain(..) {
                    this.has_failed |= matches!(output, Output::Failed(_));
                    this.writer.write(output, &mut out);
                }
            }
            Poll::Ready(None) => {
                this.has_ended = true;
                if !this.has_failed {
                    this.writer.end(this.reply.usage(), &mut out);
                }
                if out.is_empty() {
                    return Poll::Ready(None);
                }
            }
            Poll::Pending => {
                if this.ping.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.writer.ping(&mut out);
            }
        }
        this.ping.as_mut().reset(tokio::time::Instant::now() + PING_EVERY);
        // Registers the timer, so that silence from now on is noticed.
        let _pending = this.ping.as_mut().poll(cx);
        if out.is_empty() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Bytes::from(out))))
    }
}

/// The response that sends a reply as it comes.
pub(crate) fn respond(reply: Reply, writer: Writer) -> Response<Body> {
    let content_type = HeaderValue::from_static(writer.content_type());
    let body = EventBody {
        reply,
        writer,
        ping: Box::pin(sleep(PING_EVERY)),
        outputs: Vec::new(),
        has_failed: false,
        has_ended: false,
    };
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Reverse proxies would else gather events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
