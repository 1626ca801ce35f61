//! Connections to providers, and requests as they go over them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;

use crate::endpoint::Dialect;
use crate::engine::{Doors, Engine};
use crate::failure::{Class, Failure};
use crate::link::LinkBody;
use crate::pool::{Pool, Unanswered};
use crate::predictions;
use crate::provider::Provider;
use crate::{Error, access};

/// Headers of a client that a provider may see. All others stay here: they name the client, or carry its key.
pub(crate) const FORWARDED: [&str; 6] = [
    "traceparent",
    "tracestate",
    "idempotency-key",
    "anthropic-beta",
    "anthropic-version",
    "openai-beta",
];

/// The body of an answer: as it comes, or at hand.
pub(crate) struct AnswerBody {
    body: Either<LinkBody, Full<Bytes>>,
    /// What must be done if it is left before its end.
    leaving: Option<Leaving>,
}

impl AnswerBody {
    /// A body that is at hand.
    pub(crate) fn whole(text: String) -> Self {
        Self {
            body: Either::Right(Full::from(text)),
            leaving: None,
        }
    }

    /// The same, with something to do if it is left before its end.
    pub(crate) fn or_leaving(self, leaving: Leaving) -> Self {
        Self {
            leaving: Some(leaving),
            ..self
        }
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none()
            && let Some(leaving) = &mut self.leaving
        {
            leaving.forget();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Longest that a last request may take.
const LEAVING: Duration = Duration::from_secs(10);

/// A request that is sent when nobody waits for an answer any more.
pub(crate) struct Leaving {
    upstream: Upstream,
    request: Option<Request<Bytes>>,
}

impl Leaving {
    pub(crate) fn new(upstream: &Upstream, request: Request<Bytes>) -> Self {
        Self {
            upstream: upstream.clone(),
            request: Some(request),
        }
    }

    /// It is not needed any more.
    pub(crate) fn forget(&mut self) {
        self.request = None;
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        // Without a runtime the process is ending.
        let runtime = tokio::runtime::Handle::try_current();
        if let (Some(request), Ok(runtime)) = (self.request.take(), runtime) {
            let upstream = self.upstream.clone();
            runtime.spawn(async move {
                let sent = tokio::time::timeout(LEAVING, upstream.plain(request)).await;
                tracing::debug!(
                    is_told = matches!(sent, Ok(Ok(_))),
                    "an answer was left before its end"
                );
            });
        }
    }
}

/// Providers, as far as they can be reached.
#[derive(Clone)]
pub(crate) struct Upstream {
    pool: Pool,
}

impl Upstream {
    /// Connections over the network, and to the engine of this process if there is one.
    pub(crate) fn new(connect: Duration, engine: Option<Engine>) -> Result<Self, Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        // Shared out among the addresses of a name; the pool bounds all of it, and what comes after.
        tcp.set_connect_timeout(Some(connect));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(carat_net::client_tls().map_err(Error::Tls)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Doors::new(tcp, engine));
        Ok(Self {
            pool: Pool::new(connector, connect),
        })
    }

    /// Sends a request to a provider, with what proves whose it is. The body of the answer is still to come.
    /// `may_repeat`: whether it does no harm if it is done twice.
    pub(crate) async fn send(
        &self,
        provider: &Arc<Provider>,
        mut request: Request<Bytes>,
        is_stream: bool,
        may_repeat: impl Fn() -> bool,
    ) -> Result<Response<AnswerBody>, Failure> {
        let proved = provider.proof.add(&mut request, self).await;
        proved.map_err(Failure::undone)?;
        if provider.dialect == Dialect::Replicate {
            return predictions::answer(self, provider, request, is_stream).await;
        }
        self.ask(request, may_repeat).await
    }

    /// Sends a request as it is. It does no harm if it is done twice.
    pub(crate) async fn plain(&self, request: Request<Bytes>) -> Result<Response<AnswerBody>, Failure> {
        self.ask(request, || true).await
    }

    async fn ask(
        &self,
        request: Request<Bytes>,
        may_repeat: impl Fn() -> bool,
    ) -> Result<Response<AnswerBody>, Failure> {
        let as_it_comes = |body| AnswerBody {
            body: Either::Left(body),
            leaving: None,
        };
        let asked = self.pool.ask(request, may_repeat).await;
        asked.map(|response| response.map(as_it_comes)).map_err(|why| {
            let failure = |message| Failure::new(Class::Network, 502, message);
            match why {
                Unanswered::Unreachable => failure("the provider cannot be reached").undone(),
                Unanswered::Closed => failure("the provider closed the connection before it answered"),
            }
        })
    }
}

/// A request to a provider.
pub(crate) fn request(
    provider: &Provider,
    uri: Uri,
    body: Vec<u8>,
    forwarded: &[(HeaderName, HeaderValue)],
) -> Request<Bytes> {
    let mut request = Request::new(Bytes::from(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.reserve(4 + forwarded.len() + provider.headers.len());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(
        ACCEPT,
        HeaderValue::from_static(match provider.dialect {
            Dialect::Bedrock => "application/json, application/vnd.amazon.eventstream",
            _ => "application/json, text/event-stream",
        }),
    );
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("carat/", env!("CARGO_PKG_VERSION"))),
    );
    // The configuration's headers win over the client's.
    for (name, value) in forwarded.iter().chain(&provider.headers) {
        headers.insert(name, value.clone());
    }
    request
}

/// A client's headers that go on to the provider.
pub(crate) fn forwarded(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let value = |name: &str| {
        let value = headers.get(name)?;
        match access::key_of(headers) {
            Some(key) if name == "idempotency-key" => own(key, value),
            _ => Some(value.clone()),
        }
    };
    FORWARDED
        .iter()
        .filter_map(|name| Some((HeaderName::from_static(name), value(name)?)))
        .collect()
}

/// An idempotency key that no other client's can equal: to the provider all are one account, and whoever guessed
/// another's would be given the answer to that one's request.
fn own(key: &str, value: &HeaderValue) -> Option<HeaderValue> {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    digest.update(&(key.len() as u64).to_be_bytes());
    digest.update(key.as_bytes());
    digest.update(value.as_bytes());
    let digits: String = digest
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    HeaderValue::try_from(digits).ok()
}

/// The whole of a body, if it is not larger than `limit`.
pub(crate) async fn collect(body: AnswerBody, limit: usize) -> Result<Bytes, Failure> {
    let collected = Limited::new(body, limit).collect().await.map_err(|error| {
        let message = if error.is::<http_body_util::LengthLimitError>() {
            "the provider's answer is larger than this gateway takes"
        } else {
            "the provider's answer was cut off"
        };
        Failure::new(Class::Network, 502, message)
    })?;
    Ok(collected.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_cannot_name_each_others_requests() {
        let sent = |key: &str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", key.parse().unwrap());
            headers.insert("idempotency-key", value.parse().unwrap());
            forwarded(&headers)[0].1.clone()
        };
        assert_eq!(
            sent("a", "1"),
            sent("a", "1"),
            "the same request is the same again"
        );
        assert_ne!(sent("a", "1"), sent("b", "1"));
        assert_ne!(sent("ab", "c"), sent("a", "bc"));
        assert!(!sent("secret", "1").to_str().unwrap().contains("secret"));
    }
}
