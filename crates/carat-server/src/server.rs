//! The server: its options, its state, its life from the first connection to the last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use carat_api::KeepAlive;
use carat_engine::Engine;
use carat_fetch::{Fetcher, MediaUrls};
use carat_net::{Door, Hands, Paced, Tls};
use carat_traces::Tracer;
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tower_service::Service;

use crate::access::Peer;
use crate::ids::{self, Ids};
use crate::limits;
use crate::lockout::Lockout;
use crate::metrics::Metrics;
use crate::model::ModelSetup;
use crate::pool::{Keeping, ModelPool, Names};
use crate::routes;
use crate::routes::ResponseStore;
use crate::store::{LoadedModel, ModelStore};

/// Why a server could not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Anybody in the network could use it.
    #[error(
        "the address {address} can be reached from other machines, but no API key is set; give --api-key, or serve \
         on 127.0.0.1"
    )]
    KeyNeeded {
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// The address cannot be had.
    #[error("cannot listen on {address}; {}", advice(source))]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A model cannot be had.
    #[error("{reason}")]
    Load {
        /// Why, in a sentence.
        reason: String,
    },
}

/// What can be done where an address cannot be had.
fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "ports below 1024 are not for everybody: choose another --port"
        }
        _ => "choose another --port, or stop the program that uses it",
    }
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Keys that are let in; none lets everybody in.
    pub api_keys: Vec<String>,
    /// Shares of those who bring these keys; 1 for all others.
    pub key_weights: Vec<(String, u32)>,
    /// Serve under TLS with this certificate.
    pub tls: Option<Tls>,
    /// Models that are served, the default first; `None` for all that the store lists.
    pub models: Option<Vec<String>>,
    /// Other names of models: the name, and the model.
    pub aliases: Vec<(String, String)>,
    /// Refuse names that are neither a model's nor an alias; else the default model answers to them.
    pub strict_model: bool,
    /// How long a model stays loaded that nobody uses; `None` for ever.
    pub keep_alive: Option<Duration>,
    /// Models that may be loaded at once, at least 1; fewer where memory has no room.
    pub max_loaded: usize,
    /// Largest body, in bytes.
    pub body_bytes: usize,
    /// Longest time from a request's arrival to its end.
    pub request_timeout: Option<Duration>,
    /// Origins that browsers may call from; `*` is any. Pages of this machine always may.
    pub cors_origins: Vec<String>,
    /// Which addresses are asked for images and sounds that requests name.
    pub media_urls: MediaUrls,
    /// How long answers may go on after the order to stop.
    pub drain: Duration,
    /// Is told of every request for a model.
    pub tracer: Option<Tracer>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            key_weights: Vec::new(),
            tls: None,
            models: None,
            aliases: Vec::new(),
            strict_model: false,
            keep_alive: None,
            max_loaded: 1,
            body_bytes: limits::BODY_BYTES,
            request_timeout: None,
            cors_origins: Vec::new(),
            media_urls: MediaUrls::default(),
            drain: Duration::from_secs(30),
            tracer: None,
        }
    }
}

/// What all requests share.
pub(crate) struct State {
    pub(crate) models: Arc<ModelPool>,
    pub(crate) options: ServerOptions,
    pub(crate) metrics: Metrics,
    pub(crate) ids: Ids,
    pub(crate) lockout: Lockout,
    pub(crate) fetcher: Fetcher,
    /// Places for those whose files are fetched and held.
    pub(crate) fetchings: Arc<Semaphore>,
    /// Places for those who encode images and sounds.
    pub(crate) encodings: Arc<Semaphore>,
    /// Seconds since 1970 at the start.
    pub(crate) created: u64,
    pub(crate) responses: ResponseStore,
    /// Whether answers that are under way have had their time to end.
    is_over: watch::Sender<bool>,
    is_stopping: AtomicBool,
}

impl State {
    /// Whether requests are answered.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_stopping.load(Ordering::Relaxed) && self.models.is_sound()
    }

    /// When a request that came then must have ended; `None` where it has all time, or more than a clock can tell.
    pub(crate) fn deadline(&self, arrived: Instant) -> Option<Instant> {
        arrived.checked_add(self.options.request_timeout?)
    }

    /// Ends when the server stops and answers have had their time, or never.
    pub(crate) fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut is_over = self.is_over.subscribe();
        async move {
            if is_over.wait_for(|is_over| *is_over).await.is_err() {
                // The server is no more, and nobody stops it.
                std::future::pending().await
            }
        }
    }
}

/// Models, ready to be served.
pub struct Server {
    state: Arc<State>,
}

impl Server {
    /// A server of one model that stays loaded, whatever the options say of models.
    pub fn new(setup: ModelSetup, engine: Engine, options: ServerOptions) -> Self {
        let names = Names {
            served: Some(vec![setup.id.clone()]),
            ..names(&options)
        };
        let loaded = LoadedModel {
            setup,
            engine,
            claim_bytes: 0,
        };
        Self::of(ModelPool::of_one(loaded, names), options)
    }

    /// A server that loads models when they are asked for.
    pub fn with_store(store: Arc<dyn ModelStore>, options: ServerOptions) -> Self {
        let keeping = Keeping {
            keep_alive: options.keep_alive,
            n_loaded: options.max_loaded,
        };
        Self::of(ModelPool::of_store(store, names(&options), keeping), options)
    }

    fn of(models: Arc<ModelPool>, options: ServerOptions) -> Self {
        Self {
            state: Arc::new(State {
                models,
                metrics: Metrics::default(),
                ids: Ids::new(),
                lockout: Lockout::default(),
                fetcher: Fetcher::new(options.media_urls),
                fetchings: Arc::new(Semaphore::new(limits::FETCHINGS)),
                encodings: Arc::new(Semaphore::new(limits::ENCODINGS)),
                created: ids::now().as_secs(),
                responses: ResponseStore::default(),
                is_over: watch::Sender::default(),
                options,
                is_stopping: AtomicBool::new(false),
            }),
        }
    }

    /// Loads a model before anybody asks for it, and tells the tokens that its requests may have.
    ///
    /// # Errors
    /// [`Error::Load`].
    pub async fn load(&self, id: &str) -> Result<usize, Error> {
        let lease = self.state.models.lease(id, None).await;
        lease.map(|lease| lease.context()).map_err(|error| Error::Load {
            reason: error.message,
        })
    }

    /// The routes, for serving by other means and for tests.
    pub fn router(&self) -> Router {
        routes::router(Arc::clone(&self.state))
    }

    /// Listens on an address. Port 0 takes a free one.
    ///
    /// # Errors
    /// [`Error::KeyNeeded`] beyond this machine without a key; [`Error::Listen`].
    pub async fn listen(&self, address: SocketAddr) -> Result<TcpListener, Error> {
        if !address.ip().is_loopback() && self.state.options.api_keys.is_empty() {
            return Err(Error::KeyNeeded { address });
        }
        TcpListener::bind(address)
            .await
            .map_err(|source| Error::Listen { address, source })
    }

    /// Serves connections that are made within this process, without end.
    pub async fn run_inside(self, connections: mpsc::Receiver<DuplexStream>) {
        // It ends with the process; an error would be that no connections come any more.
        let _ended = axum::serve(Inside { connections }, self.router()).await;
    }

    /// Serves until `stop` comes; then takes no more connections, lets answers end for as long as the options allow,
    /// and returns.
    pub async fn run(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let router = self.router();
        let make = |peer| {
            let router = router.clone();
            service_fn(move |request: Request<Incoming>| {
                let mut request = request.map(|body| Body::new(Paced::new(body)));
                request.extensions_mut().insert(Peer(peer));
                // A router is always ready.
                router.clone().call(request)
            })
        };
        let door = Door {
            tls: self.state.options.tls.clone(),
            connections: limits::CONNECTIONS,
            hands: Hands::default(),
        };
        let open = carat_net::open(listener, door, make, stop).await;
        self.state.is_stopping.store(true, Ordering::Relaxed);
        tracing::info!("stopping: no more connections are taken");
        let patience = self.state.options.drain;
        let farewell = async {
            tokio::time::sleep(patience).await;
            self.state.is_over.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = open.drain(patience.saturating_add(limits::FAREWELL)) => {}
            () = farewell => {}
        }
    }
}

/// Connections of this process.
struct Inside {
    connections: mpsc::Receiver<DuplexStream>,
}

impl axum::serve::Listener for Inside {
    type Io = DuplexStream;
    type Addr = ();

    async fn accept(&mut self) -> (DuplexStream, ()) {
        match self.connections.recv().await {
            Some(stream) => (stream, ()),
            // Nobody is left who could connect.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads how long models stay: a time as Ollama's clients write it, such as `5m`; `Some(None)` is for ever.
pub fn parse_keep_alive(text: &str) -> Option<Option<Duration>> {
    match carat_api::ollama::keep_alive(&text.into()).ok()?? {
        KeepAlive::For(time) => Some(Some(time)),
        KeepAlive::Forever => Some(None),
    }
}

fn names(options: &ServerOptions) -> Names {
    Names {
        served: options.models.clone(),
        aliases: options.aliases.clone(),
        is_strict: options.strict_model,
    }
}
