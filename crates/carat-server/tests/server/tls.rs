//! Connections over sockets: under TLS, with slow handshakes beside them, addresses that give wrong keys, names that are
//! somebody else's, and bodies that come too slowly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use carat_server::{Server, ServerOptions, Tls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

use crate::common::{fake_model, serve};

const CERT: &[u8] = include_bytes!("../../../../tests/fixtures/tls/cert.pem");
const KEY: &[u8] = include_bytes!("../../../../tests/fixtures/tls/key.pem");

/// A server on a port of its own; it runs until the sender is dropped.
async fn start(options: ServerOptions) -> (SocketAddr, oneshot::Sender<()>) {
    start_saying("Hello", options).await
}

async fn start_saying(script: &str, options: ServerOptions) -> (SocketAddr, oneshot::Sender<()>) {
    let (setup, engine) = fake_model("fake", script, &Arc::default());
    serve(Server::new(setup, engine, options)).await
}

async fn get(stream: impl AsyncRead + AsyncWrite + Unpin, path: &str, key: &str) -> String {
    get_at("localhost", stream, path, key).await
}

async fn get_at(
    host: &str,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &str,
    key: &str,
) -> String {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // A peer that closes without a TLS farewell has still answered.
    let _end = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn answers_that_had_their_time_end_with_an_error() {
    for (path, body) in [
        (
            "/v1/chat/completions",
            r#"{"messages": [{"role": "user", "content": "x"}], "n": 16, "stream": true, "temperature": 0}"#,
        ),
        (
            "/v1/chat/completions",
            r#"{"messages": [{"role": "user", "content": "x"}], "n": 16, "temperature": 0}"#,
        ),
    ] {
        let options = ServerOptions {
            drain: Duration::ZERO,
            ..ServerOptions::default()
        };
        // Minutes of work.
        let (address, stop) = start_saying(&"x".repeat(1900), options).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let n = body.len();
        let request = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {n}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        if body.contains("stream") {
            let mut first = [0; 16];
            stream.read_exact(&mut first).await.unwrap();
        } else {
            // It is on its way when another is answered.
            get(TcpStream::connect(address).await.unwrap(), "/health", "x").await;
        }
        drop(stop);
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("the server is stopping"), "{path} {answer}");
        assert!(!answer.contains("[DONE]"), "{path}");
    }
}

/// Vectors that wait for a place, and a request whose body has not come whole.
#[tokio::test]
async fn requests_that_wait_are_told_when_the_server_has_stopped() {
    let options = ServerOptions {
        drain: Duration::ZERO,
        ..ServerOptions::default()
    };
    let (address, stop) = start_saying(&"x".repeat(1900), options).await;
    let send = async |path: &str, n: usize, body: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {n}\r\n\r\n");
        stream.write_all((head + body).as_bytes()).await.unwrap();
        stream
    };
    let long =
        r#"{"messages": [{"role": "user", "content": "x"}], "n": 4, "stream": true, "temperature": 0}"#;
    let mut taken = send("/v1/chat/completions", long.len(), long).await;
    taken.read_exact(&mut [0; 16]).await.unwrap();
    let text = r#"{"input": "x"}"#;
    let mut waiting = [
        send("/v1/embeddings", text.len(), text).await,
        send("/api/embed", text.len(), text).await,
        send("/v1/messages", 1000, "{").await,
    ];
    // They are on their way when another is answered.
    get(TcpStream::connect(address).await.unwrap(), "/health", "x").await;
    drop(stop);
    for (stream, shape) in waiting.iter_mut().zip([
        r#"{"error":{"#,
        r#"{"error":"the answer"#,
        r#""type":"overloaded_error""#,
    ]) {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("the server is stopping"), "{answer}");
        assert!(answer.contains(shape), "{answer}");
    }
}

#[tokio::test]
async fn the_server_speaks_tls_and_slow_handshakes_hold_up_nobody() {
    let options = ServerOptions {
        tls: Some(Tls::from_pem(CERT, KEY).unwrap()),
        ..ServerOptions::default()
    };
    let (address, _running) = start(options).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERT).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let _silent = TcpStream::connect(address).await.unwrap();
    let plain = get(TcpStream::connect(address).await.unwrap(), "/health", "x").await;
    assert!(!plain.contains("200 OK"), "{plain}");
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    let answer = get(stream, "/health", "x").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"ok\""),
        "{answer}"
    );
}

#[test]
fn a_wrong_certificate_or_key_is_told() {
    let why = |chain, key| Tls::from_pem(chain, key).unwrap_err().to_string();
    assert!(why(b"", KEY).contains("no PEM certificate"));
    assert!(why(CERT, CERT).contains("no PEM private key"));
    assert!(Tls::from_pem(CERT, KEY).is_ok());
}

#[tokio::test]
async fn an_address_that_guesses_must_wait_and_shuts_nobody_out() {
    let options = ServerOptions {
        api_keys: vec!["right".to_string()],
        ..ServerOptions::default()
    };
    let (address, _running) = start(options).await;
    let ask = async |key| get(TcpStream::connect(address).await.unwrap(), "/v1/models", key).await;
    assert!(ask("right").await.starts_with("HTTP/1.1 200"));
    for _ in 0..20 {
        assert!(ask("wrong").await.starts_with("HTTP/1.1 401"));
    }
    let answer = ask("wrong").await;
    assert!(
        answer.starts_with("HTTP/1.1 429") && answer.contains("retry-after"),
        "{answer}"
    );
    // Somebody else behind the same proxy.
    assert!(ask("right").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn without_keys_a_page_cannot_point_its_own_name_here() {
    let ask = async |address, host| {
        get_at(
            host,
            TcpStream::connect(address).await.unwrap(),
            "/v1/models",
            "x",
        )
        .await
    };
    let (open, _running) = start(ServerOptions::default()).await;
    assert!(ask(open, "127.0.0.1:8080").await.starts_with("HTTP/1.1 200"));
    let refused = ask(open, "evil.example").await;
    assert!(
        refused.starts_with("HTTP/1.1 403") && refused.contains("localhost"),
        "{refused}"
    );
    let options = ServerOptions {
        api_keys: vec!["x".to_string()],
        ..ServerOptions::default()
    };
    let (closed, _running) = start(options).await;
    assert!(ask(closed, "models.example").await.starts_with("HTTP/1.1 200"));
}

/// What a client is told that sends a byte of its body every five seconds, and whether its connection is closed.
async fn trickled(address: SocketAddr, path: &str, kind: &str, begins: &str) -> (String, bool) {
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ncontent-length: 1000\r\n\r\n{begins}"
    );
    write.write_all(head.as_bytes()).await.unwrap();
    let trickling = tokio::spawn(async move {
        while write.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
    let mut answer = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut answer)).await;
    trickling.abort();
    (String::from_utf8(answer).unwrap(), end.is_ok())
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_in_is_not_waited_for() {
    let (address, _running) = start(ServerOptions::default()).await;
    let form = "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF";
    let cases = [
        ("/v1/chat/completions", "application/json", "{", r#"{"error":{"#),
        ("/v1/messages", "application/json", "{", r#""timeout_error""#),
        ("/api/chat", "application/json", "{", r#"{"error":""#),
        (
            "/v1/audio/transcriptions",
            "multipart/form-data; boundary=x",
            form,
            r#"{"error":{"#,
        ),
    ];
    for (path, kind, begins, shape) in cases {
        let (answer, is_closed) = trickled(address, path, kind, begins).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{path}: {answer}");
        assert!(
            answer.contains("too slowly") && answer.contains(shape),
            "{path}: {answer}"
        );
        assert!(
            is_closed && answer.contains("connection: close"),
            "{path}: {answer}"
        );
    }
}
