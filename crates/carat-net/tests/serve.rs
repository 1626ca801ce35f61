//! Connections over sockets, in both versions of HTTP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use carat_net::{CertificateFiles, Door, Hands, Tls};
use http::{Request, Response, Version};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A certificate for `localhost` and its key.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// What is fed to it, as it is fed.
struct Fed(mpsc::UnboundedReceiver<Bytes>);

impl Body for Fed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(cx)
            .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A server that answers with bodies that the test feeds.
struct Rig {
    address: SocketAddr,
    answers: mpsc::UnboundedReceiver<mpsc::UnboundedSender<Bytes>>,
    /// Requests may be answered.
    gate: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<()>,
}

async fn start(tls: Option<Tls>) -> Rig {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (fed, answers) = mpsc::unbounded_channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let gate = Arc::new(Semaphore::new(1_000_000));
    let waiting = Arc::new(AtomicUsize::new(0));
    let (gates, waits) = (Arc::clone(&gate), Arc::clone(&waiting));
    let make = move |_peer| {
        let (fed, gate, waiting) = (fed.clone(), Arc::clone(&gates), Arc::clone(&waits));
        service_fn(move |_request: Request<Incoming>| {
            let (fed, gate, waiting) = (fed.clone(), Arc::clone(&gate), Arc::clone(&waiting));
            async move {
                waiting.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                let (feed, body) = mpsc::unbounded_channel();
                fed.send(feed).unwrap();
                Ok::<_, Infallible>(Response::new(Fed(body)))
            }
        })
    };
    let door = Door {
        tls,
        connections: 100,
        hands: Hands::default(),
    };
    let running = tokio::spawn(async move {
        let stopped = async {
            let _dropped = stopped.await;
        };
        let open = carat_net::open(listener, door, make, stopped).await;
        open.drain(Duration::from_secs(10)).await;
    });
    Rig {
        address,
        answers,
        gate,
        waiting,
        stop: Some(stop),
        running,
    }
}

/// Connects and trusts `chain` alone.
async fn connect(address: SocketAddr, chain: &str, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(chain.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config))
        .connect("localhost".try_into().unwrap(), stream)
        .await
}

type Sender = http2::SendRequest<Empty<Bytes>>;

async fn h1<S>(stream: S) -> http1::SendRequest<Empty<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn h2(stream: TlsStream<TcpStream>) -> Sender {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn request() -> Request<Empty<Bytes>> {
    Request::get("https://localhost/x").body(Empty::new()).unwrap()
}

/// The next piece; HTTP/2 may end with an empty one.
async fn next(response: &mut Response<Incoming>) -> Option<Bytes> {
    loop {
        let bytes = response.frame().await?.unwrap().into_data().unwrap();
        if !bytes.is_empty() {
            return Some(bytes);
        }
    }
}

#[tokio::test]
async fn events_come_as_they_are_made_in_both_versions() {
    let (chain, key) = certificate();
    let mut rig = start(Some(Tls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap())).await;
    for (protocol, version) in [(&b"h2"[..], Version::HTTP_2), (b"http/1.1", Version::HTTP_11)] {
        let stream = connect(rig.address, &chain, protocol).await.unwrap();
        let mut response = if version == Version::HTTP_2 {
            let mut sender = h2(stream).await;
            sender.send_request(request()).await.unwrap()
        } else {
            let mut sender = h1(stream).await;
            sender.send_request(request()).await.unwrap()
        };
        assert_eq!(response.version(), version);
        let feed = rig.answers.recv().await.unwrap();
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            feed.send(event.into()).unwrap();
            assert_eq!(next(&mut response).await.unwrap(), event);
        }
        drop(feed);
        assert_eq!(next(&mut response).await, None);
    }
}

#[tokio::test]
async fn answers_end_before_the_server_does() {
    let (chain, key) = certificate();
    let mut rig = start(Some(Tls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap())).await;
    let mut sender = h2(connect(rig.address, &chain, b"h2").await.unwrap()).await;
    let mut response = sender.send_request(request()).await.unwrap();
    let feed = rig.answers.recv().await.unwrap();
    drop(rig.stop.take());
    tokio::time::timeout(Duration::from_secs(5), async {
        while TcpStream::connect(rig.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    feed.send("still".into()).unwrap();
    assert_eq!(next(&mut response).await.unwrap(), "still");
    drop(feed);
    assert_eq!(next(&mut response).await, None);
    tokio::time::timeout(Duration::from_secs(5), rig.running)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn an_answer_that_its_client_does_not_take_is_let_go() {
    let (chain, key) = certificate();
    let tls = Tls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    for tls in [None, Some(tls)] {
        let is_tls = tls.is_some();
        let mut rig = start(tls).await;
        let mut sender = if is_tls {
            let stream = connect(rig.address, &chain, b"http/1.1").await.unwrap();
            h1(stream).await
        } else {
            h1(TcpStream::connect(rig.address).await.unwrap()).await
        };
        let mut response = sender.send_request(request()).await.unwrap();
        let feed = rig.answers.recv().await.unwrap();
        feed.send("taken".into()).unwrap();
        assert_eq!(next(&mut response).await.unwrap(), "taken");
        // More than there is room for between the two. From now on the clock jumps when nobody has anything to do.
        for _ in 0..1024 {
            feed.send(Bytes::from_static(&[b'x'; 64 << 10])).unwrap();
        }
        tokio::time::pause();
        let let_go = tokio::time::timeout(Duration::from_secs(3600), feed.closed());
        assert!(let_go.await.is_ok(), "TLS: {is_tls}");
        tokio::time::resume();
        drop(response);
    }
}

#[tokio::test]
async fn a_changed_certificate_is_shown_and_cuts_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let files = CertificateFiles {
        cert: folder.path().join("cert.pem"),
        key: folder.path().join("key.pem"),
    };
    let write = |(chain, key): &(String, String)| {
        std::fs::write(&files.cert, chain).unwrap();
        std::fs::write(&files.key, key).unwrap();
    };
    let (old, new) = (certificate(), certificate());
    write(&old);
    let tls = files.open().unwrap();
    let following = tokio::spawn(carat_net::follow(tls.clone(), files.clone()));
    let mut rig = start(Some(tls.clone())).await;
    let mut sender = h2(connect(rig.address, &old.0, b"h2").await.unwrap()).await;
    let mut response = sender.send_request(request()).await.unwrap();
    let feed = rig.answers.recv().await.unwrap();
    // A key that is not the certificate's is refused, and the pair before stays.
    std::fs::write(&files.key, &new.1).unwrap();
    assert!(files.reload(&tls).is_err());
    assert!(connect(rig.address, &old.0, b"h2").await.is_ok());
    write(&new);
    tokio::time::timeout(Duration::from_secs(20), async {
        while connect(rig.address, &new.0, b"h2").await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
    assert!(connect(rig.address, &old.0, b"h2").await.is_err());
    feed.send("on the old connection".into()).unwrap();
    assert_eq!(next(&mut response).await.unwrap(), "on the old connection");
    following.abort();
}

#[tokio::test]
async fn one_connection_has_so_many_requests_and_no_more() {
    let (chain, key) = certificate();
    let rig = start(Some(Tls::from_pem(chain.as_bytes(), key.as_bytes()).unwrap())).await;
    rig.gate.forget_permits(1_000_000);
    let mut sender = h2(connect(rig.address, &chain, b"h2").await.unwrap()).await;
    // The server's settings come with its first answer.
    rig.gate.add_permits(1);
    drop(sender.send_request(request()).await.unwrap());
    let asked: Vec<_> = (0..300)
        .map(|_| tokio::spawn(sender.send_request(request())))
        .collect();
    tokio::time::timeout(Duration::from_secs(10), async {
        while rig.waiting.load(Ordering::SeqCst) < 1 + 128 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rig.waiting.load(Ordering::SeqCst), 1 + 128);
    // Whoever opens requests and gives them up at once harms no other connection.
    asked.iter().for_each(JoinHandle::abort);
    for _ in 0..2_000 {
        let given_up = tokio::spawn(sender.send_request(request()));
        tokio::task::yield_now().await;
        given_up.abort();
    }
    rig.gate.add_permits(1_000);
    let mut other = h2(connect(rig.address, &chain, b"h2").await.unwrap()).await;
    assert_eq!(other.send_request(request()).await.unwrap().status(), 200);
}

#[tokio::test]
async fn large_heads_are_refused_and_plain_connections_know_one_version() {
    let rig = start(None).await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n", "x".repeat(100_000));
    // The server may have closed before all of it is there.
    let _cut = stream.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _cut = stream.read_to_end(&mut answer).await;
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
        "{answer:?}"
    );
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _cut = stream.read_to_end(&mut answer).await;
    assert!(
        !answer.starts_with(b"HTTP/1.1 200") && rig.waiting.load(Ordering::SeqCst) == 0,
        "{answer:?}"
    );
}
