//! Connections to providers that wait for the next request.
//!
//! A request takes the connection that was used last, or opens one. A provider may have closed what waits here: such a
//! connection is found when it is looked at, and where it was closed just as a request went out over it, before a byte
//! of the answer came, the request goes once more over a new one: if it may be done twice, or not all of it went out.
//! Those that waited too long are closed by a task that ends with the pool.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri};
use hyper_rustls::HttpsConnector;
use tokio::time::Instant;
use tower_service::Service;

use crate::engine::Doors;
use crate::limits::{IDLE_CONNECTIONS, IDLE_TIME};
use crate::link::{Broken, Link, LinkBody};

/// A kept connection that is closed this soon after a request went out was closed before the request came. Later the
/// request may be why, and whether it is asked again is decided, and counted, as with every failure.
const STALE: Duration = Duration::from_secs(1);
/// How often connections that wait are looked at.
const SWEEP: Duration = Duration::from_secs(5);

/// Why nobody answered.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// No connection could be made.
    Unreachable,
    /// The connection was closed before an answer came.
    Closed,
}

/// Connections by where they lead.
#[derive(Clone)]
pub(crate) struct Pool {
    connector: HttpsConnector<Doors>,
    /// How long a connection may take to be made: its name looked up, both ends joined, and keys agreed on.
    patience: Duration,
    idle: Arc<Idle>,
}

/// With the thread on whose runtime they are.
type Place = (usize, Scheme, Authority);
/// With the time since when they wait; the one that was used last is at the end.
type Links = HashMap<Place, Vec<(Instant, Box<Link>)>>;

/// Connections that wait.
#[derive(Default)]
struct Idle {
    links: Mutex<Links>,
    is_swept: AtomicBool,
}

/// Where a connection goes when its answer is whole.
pub(crate) struct Home {
    idle: Weak<Idle>,
    place: Place,
}

impl Home {
    /// It waits for the next request.
    pub(crate) fn take_back(self, link: Box<Link>) {
        let Some(idle) = self.idle.upgrade() else {
            return;
        };
        let mut links = idle.links();
        let waiting = links.entry(self.place).or_default();
        if waiting.len() < IDLE_CONNECTIONS {
            waiting.push((Instant::now(), link));
        }
    }
}

impl Idle {
    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to a place that was used last and is still good.
    fn take(&self, place: &Place) -> Option<Box<Link>> {
        loop {
            let (since, mut link) = self.links().get_mut(place)?.pop()?;
            if since.elapsed() < IDLE_TIME && link.is_idle() {
                return Some(link);
            }
        }
    }

    /// Closes what waited too long, or was closed by the other side.
    fn sweep(&self) {
        self.links().retain(|_, waiting| {
            waiting.retain_mut(|(since, link)| since.elapsed() < IDLE_TIME && link.is_idle());
            !waiting.is_empty()
        });
    }

    /// From now on a task looks after it.
    fn keep_swept(self: &Arc<Self>) {
        if self.is_swept.swap(true, Ordering::Relaxed) {
            return;
        }
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(SWEEP);
            loop {
                ticks.tick().await;
                match weak.upgrade() {
                    Some(idle) => idle.sweep(),
                    None => return,
                }
            }
        });
    }
}

impl Pool {
    /// Connections that a connector makes.
    pub(crate) fn new(connector: HttpsConnector<Doors>, patience: Duration) -> Self {
        Self {
            connector,
            patience,
            idle: Arc::default(),
        }
    }

    /// Sends a request to where its address says, over a connection that is at hand or a new one. `may_repeat`: whether
    /// it does no harm if it is done twice.
    pub(crate) async fn ask(
        &self,
        request: Request<Bytes>,
        may_repeat: impl Fn() -> bool,
    ) -> Result<Response<LinkBody>, Unanswered> {
        let uri = request.uri().clone();
        let (request, place) = addressed(request).ok_or(Unanswered::Unreachable)?;
        self.idle.keep_swept();
        let home = Home {
            idle: Arc::downgrade(&self.idle),
            place,
        };
        if let Some(mut link) = self.idle.take(&home.place) {
            let asked = Instant::now();
            match link.ask(&request).await {
                Ok(response) => return Ok(response.map(|body| LinkBody::new(body, link, home))),
                // That a connection was closed after its last answer says nothing of the provider.
                Err(Broken::Unanswered { is_sent })
                    if asked.elapsed() < STALE && (!is_sent || may_repeat()) => {}
                Err(error) => return Err(unanswered(&error)),
            }
        }
        let mut link = Box::new(self.connect(uri).await?);
        let response = link.ask(&request).await.map_err(|error| unanswered(&error))?;
        Ok(response.map(|body| LinkBody::new(body, link, home)))
    }

    async fn connect(&self, uri: Uri) -> Result<Link, Unanswered> {
        let mut connector = self.connector.clone();
        let connected = async {
            std::future::poll_fn(|cx| connector.poll_ready(cx)).await?;
            connector.call(uri).await
        };
        let Ok(connected) = tokio::time::timeout(self.patience, connected).await else {
            tracing::debug!("a connection to a provider took longer than `timeouts.connect-ms`");
            return Err(Unanswered::Unreachable);
        };
        // What exactly went wrong names hosts, which are the operator's business alone.
        let io = connected.map_err(|error| {
            tracing::debug!(%error, source = ?error.source(), "a provider cannot be reached");
            Unanswered::Unreachable
        })?;
        Ok(Link::new(io))
    }
}

fn unanswered(error: &Broken) -> Unanswered {
    tracing::debug!(%error, "a connection gave no answer");
    Unanswered::Closed
}

/// The request as it goes over a connection: its address split into the place and the path, with a `Host`.
fn addressed<B>(mut request: Request<B>) -> Option<(Request<B>, Place)> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let (scheme, authority) = (parts.scheme.take()?, parts.authority.take()?);
    let path = parts
        .path_and_query
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    // The usual port is not said.
    let port = authority
        .port_u16()
        .filter(|port| *port != if scheme == Scheme::HTTPS { 443 } else { 80 });
    let host = match port {
        Some(port) => HeaderValue::try_from(format!("{}:{port}", authority.host())),
        None => HeaderValue::try_from(authority.host()),
    };
    request.headers_mut().entry(HOST).or_insert(host.ok()?);
    Some((request, (carat_net::hand(), scheme, authority)))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use http_body_util::BodyExt;
    use hyper_util::client::legacy::connect::HttpConnector;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Where a provider listens.
    async fn door() -> (TcpListener, Uri) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/x", listener.local_addr().unwrap());
        (listener, uri.parse().unwrap())
    }

    /// A provider that answers so many requests on a connection, and then closes it. It counts connections, and those
    /// that were closed on it.
    async fn provider(answers: usize, answer: &'static str) -> (Uri, Arc<[AtomicUsize; 2]>) {
        let (listener, uri) = door().await;
        let counts: Arc<[AtomicUsize; 2]> = Arc::default();
        let seen = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                seen[0].fetch_add(1, Ordering::Relaxed);
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    for _ in 0..answers {
                        if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                            break;
                        }
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                    if answers > 1 && stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                        seen[1].fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        (uri, counts)
    }

    fn pool() -> Pool {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let connector = HttpsConnector::from((Doors::new(tcp, None), tls));
        Pool::new(connector, Duration::from_millis(300))
    }

    #[tokio::test]
    async fn who_agrees_on_no_keys_cannot_be_reached() {
        let (listener, uri) = door().await;
        let silent = tokio::spawn(async move { listener.accept().await.unwrap() });
        let uri = uri.to_string().replace("http:", "https:");
        let request = Request::post(uri).body(Bytes::from_static(b"{}")).unwrap();
        let began = Instant::now();
        let pool = pool();
        let asking = tokio::time::timeout(Duration::from_secs(10), pool.ask(request, || true));
        let failed = asking.await.expect("it is not waited for for ever").err();
        assert!(matches!(failed, Some(Unanswered::Unreachable)), "{failed:?}");
        assert!(began.elapsed() >= Duration::from_millis(300));
        drop(silent.await.unwrap());
    }

    async fn ask(pool: &Pool, uri: &Uri) -> Response<LinkBody> {
        let request = Request::post(uri.clone())
            .body(Bytes::from_static(b"{}"))
            .unwrap();
        pool.ask(request, || true).await.unwrap()
    }

    const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    #[tokio::test]
    async fn a_connection_is_used_again_once_its_answer_is_whole() {
        let (uri, counts) = provider(100, WHOLE).await;
        let pool = pool();
        for _ in 0..5 {
            let body = ask(&pool, &uri).await.into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "ok");
        }
        assert_eq!(counts[0].load(Ordering::Relaxed), 1);
        // Two at once need two, and a third one after them none.
        let both = tokio::join!(ask(&pool, &uri), ask(&pool, &uri));
        assert_eq!(counts[0].load(Ordering::Relaxed), 2);
        drop(both);
        drop(ask(&pool, &uri).await);
        assert_eq!(counts[0].load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn bodies_end_as_their_heads_say_and_connections_stay_if_they_may() {
        let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let length = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n";
        // What comes in two writes, after which the provider says no more; what it says; whether it ends well; whether
        // it stays open for another request.
        let cases = [
            ([chunks, "2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"], "abc", true, true),
            ([chunks, "2\r\nab\r\n1\r\nc\r\n"], "abc", false, false),
            ([chunks, "3\r\nabc\r\nx"], "abc", false, false),
            ([chunks, "3\r\nabc\r\n0\r\n\r\nmore"], "abc", true, false),
            ([length, "abc"], "abc", true, true),
            ([length, "ab"], "ab", false, false),
            ([length, "abcd"], "abc", true, false),
            (["HTTP/1.1 204 OK\r\n", "\r\n"], "", true, true),
            (["HTTP/1.1 200 OK\r\n\r\na", "bc"], "abc", true, false),
            (
                [
                    "HTTP/1.1 103 OK\r\n\r\nHTTP/1.1 200",
                    " OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc",
                ],
                "abc",
                true,
                false,
            ),
        ];
        for (pieces, said, ends_well, stays) in cases {
            let (listener, uri) = door().await;
            let provider = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 4096];
                assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
                for piece in pieces {
                    stream.write_all(piece.as_bytes()).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                if stays {
                    stream.read(&mut buffer).await.unwrap()
                } else {
                    0
                }
            });
            let pool = pool();
            let mut body = ask(&pool, &uri).await.into_body();
            let mut heard = Vec::new();
            let mut is_well = true;
            while let Some(frame) = body.frame().await {
                match frame {
                    Ok(frame) => heard.extend_from_slice(&frame.into_data().unwrap()),
                    Err(_) => is_well = false,
                }
            }
            assert_eq!(
                (heard.as_slice(), is_well),
                (said.as_bytes(), ends_well),
                "{pieces:?}"
            );
            assert_eq!(!pool.idle.links().is_empty(), stays, "{pieces:?}");
            drop(pool);
            assert_eq!(provider.await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn a_refusal_is_heard_before_all_was_said() {
        let (listener, uri) = door().await;
        let provider = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
            let refusal = "HTTP/1.1 413 Large\r\ncontent-length: 2\r\n\r\nno";
            stream.write_all(refusal.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream
        });
        let pool = pool();
        let request = Request::post(uri)
            .body(Bytes::from(vec![b' '; 64 << 20]))
            .unwrap();
        let response = pool.ask(request, || true).await.unwrap();
        assert_eq!(response.status(), 413);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no");
        assert!(pool.idle.links().is_empty());
        drop(provider.await.unwrap());
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_meanwhile_is_replaced() {
        let (uri, counts) = provider(1, WHOLE).await;
        let pool = pool();
        for i in 1..=20 {
            let body = ask(&pool, &uri).await.into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "ok");
            assert_eq!(counts[0].load(Ordering::Relaxed), i);
            // Half of them are asked while the provider's goodbye may still be on its way.
            if i % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_closed_instead_of_an_answer_is_replaced_once() {
        let (listener, uri) = door().await;
        let provider = tokio::spawn(async move {
            // How many requests each connection takes, and what is said to the last one.
            let mut n_seen = Vec::new();
            for (n_requests, last) in [(2, ""), (1, WHOLE), (0, ""), (1, ""), (2, "HTTP/1.1 2")] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 4096];
                for i in 1..=n_requests {
                    assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
                    n_seen.push(i);
                    let said = if i < n_requests { WHOLE } else { last };
                    stream.write_all(said.as_bytes()).await.unwrap();
                }
            }
            n_seen
        });
        let pool = pool();
        for _ in 0..2 {
            let body = ask(&pool, &uri).await.into_body();
            assert_eq!(body.collect().await.unwrap().to_bytes(), "ok");
        }
        let refused = async || {
            let request = Request::post(uri.clone()).body(Bytes::from_static(b"{}"));
            let failed = pool.ask(request.unwrap(), || true).await.err();
            assert!(matches!(failed, Some(Unanswered::Closed)), "{failed:?}");
        };
        // Over a new connection a request goes once, and where an answer has begun, too.
        refused().await;
        refused().await;
        ask(&pool, &uri).await.into_body().collect().await.unwrap();
        refused().await;
        assert_eq!(provider.await.unwrap(), [1, 2, 1, 1, 1, 2]);
    }

    #[tokio::test]
    async fn what_may_act_is_sent_again_only_where_not_all_of_it_went_out() {
        for (n_bytes, is_repeated) in [(2, false), (64 << 20, true)] {
            let (listener, uri) = door().await;
            let provider = tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let (mut stream, _) = listener.accept().await.unwrap();
                assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
                stream.write_all(WHOLE.as_bytes()).await.unwrap();
                assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
                // The beginning of the second request is all that is taken of it.
                drop(stream);
                let (mut stream, _) = listener.accept().await.unwrap();
                assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
                let refusal = "HTTP/1.1 413 Large\r\ncontent-length: 2\r\n\r\nno";
                stream.write_all(refusal.as_bytes()).await.unwrap();
                stream
            });
            let pool = pool();
            ask(&pool, &uri).await.into_body().collect().await.unwrap();
            let request = Request::post(uri).body(Bytes::from(vec![b' '; n_bytes]));
            let asked = pool.ask(request.unwrap(), || false).await;
            if is_repeated {
                assert_eq!(asked.unwrap().status(), 413);
                drop(provider.await.unwrap());
            } else {
                let failed = asked.err();
                assert!(matches!(failed, Some(Unanswered::Closed)), "{failed:?}");
                assert!(!provider.is_finished(), "nobody comes again");
            }
        }
    }

    #[tokio::test]
    async fn who_leaves_in_the_middle_of_an_answer_closes_its_connection() {
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
        let (uri, counts) = provider(100, half).await;
        let pool = pool();
        let mut body = ask(&pool, &uri).await.into_body();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "half");
        drop(body);
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if counts[1].load(Ordering::Relaxed) == 1 {
                return;
            }
        }
        panic!("it is still open");
    }

    #[test]
    fn an_address_is_split_into_place_and_path() {
        let ask = |uri: &str| {
            let request = Request::builder().uri(uri).body(()).unwrap();
            let (request, place) = addressed(request)?;
            let host = request.headers()[HOST].to_str().unwrap().to_string();
            Some((request.uri().to_string(), host, place))
        };
        let (path, host, (_, scheme, _)) = ask("https://a.example:443/v1/x?y=1").unwrap();
        assert_eq!((path.as_str(), host.as_str()), ("/v1/x?y=1", "a.example"));
        assert_eq!(scheme, Scheme::HTTPS);
        let (path, host, _) = ask("http://[::1]:8080").unwrap();
        assert_eq!((path.as_str(), host.as_str()), ("/", "[::1]:8080"));
        assert!(ask("/v1/x").is_none());
    }
}
