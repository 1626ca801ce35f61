//! The server: its options, its state, its life from the first connection to the last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::serve::ListenerExt;
use carat_engine::Engine;
use tokio::net::TcpListener;

use crate::ids::{self, Ids};
use crate::limits;
use crate::metrics::Metrics;
use crate::model::{ModelSetup, ServedModel};
use crate::routes;
use crate::routes::ResponseStore;

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
    #[error("cannot listen on {address}; choose another --port, or stop the program that uses it")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Connections can no longer be taken.
    #[error("the server stopped: connections can no longer be taken")]
    Serve(#[source] std::io::Error),
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Keys that are let in; none lets everybody in.
    pub api_keys: Vec<String>,
    /// Other names of the model.
    pub aliases: Vec<String>,
    /// Refuse names that are neither the model's nor an alias; else any name is answered by the model.
    pub strict_model: bool,
    /// Largest body, in bytes.
    pub body_bytes: usize,
    /// Longest time from a request's arrival to its end.
    pub request_timeout: Option<Duration>,
    /// Origins that browsers may call from; `*` is any. Pages of this machine always may.
    pub cors_origins: Vec<String>,
    /// How long answers may go on after the order to stop.
    pub drain: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            aliases: Vec::new(),
            strict_model: false,
            body_bytes: limits::BODY_BYTES,
            request_timeout: None,
            cors_origins: Vec::new(),
            drain: Duration::from_secs(30),
        }
    }
}

/// What all requests share.
pub(crate) struct State {
    pub(crate) model: ServedModel,
    pub(crate) options: ServerOptions,
    pub(crate) metrics: Metrics,
    pub(crate) ids: Ids,
    /// Seconds since 1970 at the start.
    pub(crate) created: u64,
    pub(crate) responses: ResponseStore,
    is_stopping: AtomicBool,
}

impl State {
    /// Whether requests are answered.
    pub(crate) fn is_ready(&self) -> bool {
        !self.is_stopping.load(Ordering::Relaxed) && !self.model.engine.has_stopped()
    }
}

/// A model, ready to be served.
pub struct Server {
    state: Arc<State>,
}

impl Server {
    /// Joins a model's files and its engine.
    pub fn new(setup: ModelSetup, engine: Engine, options: ServerOptions) -> Self {
        Self {
            state: Arc::new(State {
                model: ServedModel::new(setup, engine),
                options,
                metrics: Metrics::default(),
                ids: Ids::new(),
                created: ids::now().as_secs(),
                responses: ResponseStore::default(),
                is_stopping: AtomicBool::new(false),
            }),
        }
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

    /// Serves until `stop` comes; then takes no more connections, lets answers end for as long as the options allow,
    /// and returns.
    ///
    /// # Errors
    /// [`Error::Serve`].
    pub async fn run(self, listener: TcpListener, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let app = self.router().into_make_service_with_connect_info::<SocketAddr>();
        // Small events must not wait for an acknowledgement of the one before.
        let listener = listener.tap_io(|stream| {
            let _slower_at_worst = stream.set_nodelay(true);
        });
        let (drained, draining) = tokio::sync::oneshot::channel::<()>();
        let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
            // An error means that the sender is gone: time to stop too.
            let _stop = draining.await;
        });
        let serving = async { serving.await.map_err(Error::Serve) };
        tokio::pin!(serving);
        tokio::select! {
            result = &mut serving => return result,
            () = stop => {}
        }
        self.state.is_stopping.store(true, Ordering::Relaxed);
        tracing::info!("stopping: no more connections are taken");
        let _told = drained.send(());
        let started = Instant::now();
        match tokio::time::timeout(self.state.options.drain, serving).await {
            Ok(result) => result,
            Err(_) => {
                let waited_s = started.elapsed().as_secs();
                tracing::warn!(waited_s, "some answers had not ended; they are cut");
                Ok(())
            }
        }
    }
}
