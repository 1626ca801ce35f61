//! Clients that come under TLS, with either version of HTTP.

use std::sync::Arc;

use bytes::Bytes;
use carat_gateway::Config;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{chat, config, env, rig};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tls");

#[tokio::test]
async fn a_stream_comes_under_tls_in_both_versions() {
    let more = format!("tls = {{ cert = \"{FIXTURES}/cert.pem\", key = \"{FIXTURES}/key.pem\" }}");
    let rig = rig(&more).await;
    let chain = std::fs::read(format!("{FIXTURES}/cert.pem")).unwrap();
    for (protocol, version) in [(&b"h2"[..], Version::HTTP_2), (b"http/1.1", Version::HTTP_11)] {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&chain).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(rig.address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        let stream = connector
            .connect("localhost".try_into().unwrap(), stream)
            .await
            .unwrap();
        let request = Request::post("https://localhost/v1/chat/completions")
            .body(Full::<Bytes>::from(chat("m/events=20;gap=5", true)))
            .unwrap();
        let response = if version == Version::HTTP_2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        };
        assert_eq!((response.version(), response.status().as_u16()), (version, 200));
        let mut body = response.into_body();
        let (mut text, mut n_pieces) = (String::new(), 0);
        while let Some(frame) = body.frame().await {
            text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
            n_pieces += 1;
        }
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!(n_pieces > 5, "events come one by one, not together: {n_pieces}");
    }
    let plain = rig
        .client
        .get(format!("http://{}/health", rig.address).parse().unwrap())
        .await;
    assert!(plain.is_err());
}

#[test]
fn a_certificate_that_is_not_there_is_told() {
    let mock = ([127, 0, 0, 1], 1).into();
    let text = config(
        mock,
        "tls = { cert = \"/nowhere/cert.pem\", key = \"/nowhere/key.pem\" }",
    );
    let error = Config::parse(&text, &env()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        error.to_string().contains("`tls`") && source.contains("/nowhere/cert.pem"),
        "{error}: {source}"
    );
}
