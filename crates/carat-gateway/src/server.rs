//! Serving clients, and following the configuration as it changes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carat_net::{Door, Hands, Hangups};
use hyper::service::service_fn;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::config::{Config, Env};
use crate::limits::CONNECTIONS;
use crate::{Error, Gateway};

/// How often the configuration file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Listens on an address. Port 0 takes a free one.
///
/// # Errors
/// [`Error::Listen`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })
}

/// Serves until `stop` comes; then takes no more connections, and lets answers end for as long as the configuration
/// allows. Connections are served by `hands`, or on the caller's runtime where there are none.
pub async fn run(gateway: Arc<Gateway>, listener: TcpListener, hands: Hands, stop: impl Future<Output = ()>) {
    let mut beside = JoinSet::new();
    let files = gateway.config().tls.clone();
    if let Some((tls, files)) = gateway.tls.clone().zip(files) {
        beside.spawn(carat_net::follow(tls, files));
    }
    let door = Door {
        tls: gateway.tls.clone(),
        connections: CONNECTIONS,
        hands,
    };
    let make = |_peer| {
        let gateway = Arc::clone(&gateway);
        // Boxed, so that it is gone once the answer's head is: a connection keeps room for what it is given as long as it lasts.
        service_fn(move |request| Box::pin(Arc::clone(&gateway).handle(request)))
    };
    let open = carat_net::open(listener, door, make, stop).await;
    gateway.is_stopping.store(true, Ordering::Relaxed);
    open.drain(gateway.config().drain).await;
}

/// Where the configuration comes from.
#[derive(Clone)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// The environment.
    pub env: Env,
}

impl Source {
    /// Reads the configuration anew. One that makes no sense is refused, and the one in force stays.
    ///
    /// # Errors
    /// What makes no sense.
    pub(crate) fn reload(&self, gateway: &Gateway) -> Result<(), Error> {
        match Config::open(&self.path, &self.env).and_then(|config| gateway.fit(config)) {
            Ok(config) => {
                for setting in gateway.config().only_at_start(&config) {
                    tracing::warn!(
                        setting,
                        "this changed too, and takes effect when the gateway is started again"
                    );
                }
                gateway.replace(config);
                gateway.counts.reloads.fetch_add(1, Ordering::Relaxed);
                tracing::info!(path = %self.path.display(), "serving by the changed configuration");
                Ok(())
            }
            Err(error) => {
                gateway.counts.refused_reloads.fetch_add(1, Ordering::Relaxed);
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, source, "the changed configuration is refused; the one before stays in force");
                Err(error)
            }
        }
    }
}

/// Reads the configuration file anew whenever it changes, and on SIGHUP, until dropped.
pub async fn follow(gateway: Arc<Gateway>, source: Source) {
    let mut seen = stamp(&source.path);
    let mut ticks = tokio::time::interval(LOOK);
    let mut hangups = Hangups::listen();
    loop {
        let is_ordered = tokio::select! {
            _ = ticks.tick() => false,
            () = hangups.next() => true,
        };
        let now = stamp(&source.path);
        if !is_ordered && (now.is_none() || now == seen) {
            continue;
        }
        seen = now;
        // What is wrong with it has been told.
        let _refused = source.reload(&gateway);
    }
}

/// What changes when a file does.
fn stamp(path: &std::path::Path) -> Option<(std::time::SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
