//! A gateway over mocks, and a client for it.

pub(crate) mod log;
pub(crate) mod mock;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use carat_gateway::{Config, Engine, Env, Gateway, Hands};
use carat_ledger::Admin;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::oneshot;

pub(crate) struct Rig {
    pub(crate) mock: Arc<mock::Seen>,
    pub(crate) mock_address: SocketAddr,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) address: SocketAddr,
    pub(crate) client: Client<HttpConnector, Full<Bytes>>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    /// The key that requests bring.
    pub(crate) secret: String,
    pub(crate) running: tokio::task::JoinHandle<()>,
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) took: Duration,
}

impl Reply {
    pub(crate) fn route(&self) -> &str {
        self.headers["x-carat-route"].to_str().unwrap()
    }
}

pub(crate) fn env() -> Env {
    Arc::new(|name| match name {
        "MOCK_KEY" => Some("sk-mock-secret".to_string()),
        "CARAT_ADMIN_KEY" => Some("admin-key-of-the-tests".to_string()),
        _ => None,
    })
}

/// The configuration of a gateway over one mock, `m`, with more lines behind.
pub(crate) fn config(mock: SocketAddr, more: &str) -> String {
    format!(
        "listen = \"127.0.0.1:0\"\n{}\n[providers.m]\nbase-url = \"http://{mock}/v1\"\nkey-env = \"MOCK_KEY\"\n{}",
        more.split("---").next().unwrap(),
        more.split("---").nth(1).unwrap_or_default()
    )
}

/// Starts both. `more`: top-level settings, then `---`, then what follows in `[providers.m]` and other tables.
pub(crate) async fn rig(more: &str) -> Rig {
    rig_with(more, "client-key").await
}

/// The same with a client's key.
pub(crate) async fn rig_with(more: &str, secret: &str) -> Rig {
    rig_of(more, secret, |gateway| gateway).await
}

/// The same with a gateway that is changed before it serves.
pub(crate) async fn rig_of(more: &str, secret: &str, change: impl FnOnce(Gateway) -> Gateway) -> Rig {
    let make = |config| change(Gateway::new(config).unwrap());
    rig_made(more, secret, Hands::start(2).unwrap(), make).await
}

/// The same on the test's own runtime, for tests whose clock is not the world's.
pub(crate) async fn rig_here(more: &str) -> Rig {
    let make = |config| Gateway::new(config).unwrap();
    rig_made(more, "client-key", Hands::default(), make).await
}

/// The same with an engine in the gateway's process.
pub(crate) async fn rig_around(more: &str, secret: &str, engine: Engine) -> Rig {
    let make = |config| Gateway::with_engine(config, engine).unwrap();
    rig_made(more, secret, Hands::start(2).unwrap(), make).await
}

async fn rig_made(more: &str, secret: &str, hands: Hands, make: impl FnOnce(Config) -> Gateway) -> Rig {
    let (mock_address, mock) = mock::start(0, true).await;
    let config = Config::parse(&config(mock_address, more), &env()).unwrap();
    let listener = carat_gateway::listen(config.listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = Arc::new(make(config));
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(carat_gateway::run(Arc::clone(&gateway), listener, hands, async {
        let _dropped_is_stopped_too = stopped.await;
    }));
    Rig {
        mock,
        mock_address,
        gateway,
        address,
        client: Client::builder(TokioExecutor::new()).build_http(),
        stop: Some(stop),
        secret: secret.to_string(),
        running,
    }
}

impl Rig {
    fn posted(&self, path: &str, body: &str) -> Request<Full<Bytes>> {
        Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.secret))
            .header("x-forwarded-for", "1.2.3.4")
            .header("traceparent", "00-1-2-01")
            .body(Full::from(body.to_string()))
            .unwrap()
    }

    pub(crate) async fn send(&self, path: &str, body: &str) -> http::Response<Incoming> {
        self.client.request(self.posted(path, body)).await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Reply {
        self.told(self.posted(path, body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        let request = Request::get(format!("http://{}{path}", self.address))
            .header("x-api-key", &self.secret)
            .body(Full::default())
            .unwrap();
        self.told(request).await
    }

    /// The whole reply to a request.
    pub(crate) async fn told(&self, request: Request<Full<Bytes>>) -> Reply {
        let started = Instant::now();
        let (head, body) = self.client.request(request).await.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Reply {
            status: head.status.as_u16(),
            headers: head.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
            took: started.elapsed(),
        }
    }

    /// A chat request for a model.
    pub(crate) async fn chat(&self, model: &str, is_stream: bool) -> Reply {
        self.post("/v1/chat/completions", &chat(model, is_stream)).await
    }
}

pub(crate) fn chat(model: &str, is_stream: bool) -> String {
    format!(
        "{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hi\"}}],\"stream\":{is_stream}}}"
    )
}

/// What the ledger says when the gateway has stopped.
pub(crate) async fn stopped(mut rig: Rig, folder: &tempfile::TempDir) -> Admin {
    rig.stop.take().unwrap().send(()).unwrap();
    drop(rig.client);
    rig.running.await.unwrap();
    drop(rig.gateway);
    Admin::open(&folder.path().join("l.db")).unwrap()
}
