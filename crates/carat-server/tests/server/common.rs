//! A server on the fake model, and a client for it without a network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use carat_engine::{Engine, Limits, SamplingParams};
use carat_prompt::Senses;
use carat_server::{ModelSetup, Server, ServerOptions};
use carat_text::ChatTemplate;
use serde_json::Value;
use tokio::sync::oneshot;
use tower::ServiceExt;

use crate::fake::{Fake, tokenizer};

#[derive(Clone)]
pub(crate) struct Client {
    router: axum::Router,
    key: Option<String>,
    pub(crate) n_computed: Arc<AtomicUsize>,
}

/// An answer as it came over the wire.
pub(crate) struct Told {
    pub(crate) status: StatusCode,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) text: String,
}

impl Told {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| Value::String(self.text.clone()))
    }

    /// The data of each event.
    pub(crate) fn events(&self) -> Vec<Value> {
        let data = self.text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }
}

/// A client of a server whose model says `script`.
pub(crate) fn client(script: &str) -> Client {
    client_with(script, ServerOptions::default())
}

pub(crate) fn client_with(script: &str, options: ServerOptions) -> Client {
    let n_computed = Arc::new(AtomicUsize::new(0));
    let (setup, engine) = fake_model("fake", script, &n_computed);
    Client::of(&Server::new(setup, engine, options.clone()), &options, n_computed)
}

/// The script of a model that says anything.
pub(crate) const CHAOS: &str = "anything";

/// A client of a server whose model speaks as Gemma 4 does.
pub(crate) fn gemma4(script: &str) -> Client {
    let n_computed = Arc::new(AtomicUsize::new(0));
    let (mut setup, engine) = fake_model("fake", script, &n_computed);
    setup.template = ChatTemplate::gemma4(false);
    let options = ServerOptions::default();
    Client::of(&Server::new(setup, engine, options.clone()), &options, n_computed)
}

/// A client of a server whose model says `script` to four at once while `n_waiting` wait.
pub(crate) fn client_with_queue(script: &str, n_waiting: usize) -> Client {
    let options = ServerOptions::default();
    let n_computed = Arc::new(AtomicUsize::new(0));
    let limits = Limits { n_waiting, ..LIMITS };
    let (setup, engine) = fake_model_within(limits, "fake", script, &n_computed);
    Client::of(&Server::new(setup, engine, options.clone()), &options, n_computed)
}

/// The server on a port of its own; it runs until the sender is dropped.
pub(crate) async fn serve(server: Server) -> (SocketAddr, oneshot::Sender<()>) {
    let listener = server.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _dropped = stopped.await;
    };
    tokio::spawn(server.run(listener, stopped));
    (address, stop)
}

/// What a model may take.
const LIMITS: Limits = Limits {
    n_max: 2000,
    n_running: 4,
    n_waiting: 16,
    cache_bytes: 1 << 20,
};

/// A model called `id` that says `script`.
pub(crate) fn fake_model(id: &str, script: &str, n_computed: &Arc<AtomicUsize>) -> (ModelSetup, Engine) {
    fake_model_within(LIMITS, id, script, n_computed)
}

fn fake_model_within(
    limits: Limits,
    id: &str,
    script: &str,
    n_computed: &Arc<AtomicUsize>,
) -> (ModelSetup, Engine) {
    let model = Fake {
        script: script.to_string(),
        n_computed: Arc::clone(n_computed),
        hidden: Vec::new(),
        is_chaotic: script == CHAOS,
    };
    let tokenizer = Arc::new(tokenizer());
    let engine = Engine::start(model, Arc::clone(&tokenizer), limits).unwrap();
    let setup = ModelSetup {
        drafting: carat_engine::Drafting::Off,
        id: id.to_string(),
        tokenizer,
        template: ChatTemplate::gemma3(),
        senses: Senses::none(id),
        sampling: SamplingParams::default(),
        suppressed: Vec::new(),
        details: Default::default(),
    };
    (setup, engine)
}

impl Client {
    pub(crate) fn of(server: &Server, options: &ServerOptions, n_computed: Arc<AtomicUsize>) -> Self {
        Self {
            router: server.router(),
            key: options.api_keys.first().cloned(),
            n_computed,
        }
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Told {
        self.send("POST", path, &body.to_string(), &[]).await
    }

    pub(crate) async fn get(&self, path: &str) -> Told {
        self.send("GET", path, "", &[]).await
    }

    /// An answer whose body has not been read.
    pub(crate) async fn open(&self, request: Request<Body>) -> axum::http::Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: &str, headers: &[(&str, &str)]) -> Told {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let (Some(key), true) = (&self.key, headers.is_empty()) {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Body::from(body.to_string())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        Told {
            status,
            headers,
            text,
        }
    }
}
