//! Connections from clients: accepting, serving and ending them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Config, Env};
use crate::limits::{CONNECTIONS, HEAD_BYTES, HEAD_TIME};
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
/// allows.
pub async fn run(gateway: Arc<Gateway>, listener: TcpListener, stop: impl Future<Output = ()>) {
    let (order, orders) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            // Finished ones are forgotten as others come.
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < CONNECTIONS => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(serve(Arc::clone(&gateway), stream, orders.clone()));
            }
            Err(error) => {
                // Most likely no more files may be open; some will be closed soon.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    gateway.is_stopping.store(true, Ordering::Relaxed);
    let _told = order.send(true);
    let drain = gateway.config().drain;
    let ended = tokio::time::timeout(drain, async { while connections.join_next().await.is_some() {} });
    if ended.await.is_err() {
        tracing::warn!(n = connections.len(), "some answers had not ended; they are cut");
        connections.shutdown().await;
    }
}

/// Serves one connection.
async fn serve(gateway: Arc<Gateway>, stream: TcpStream, mut orders: watch::Receiver<bool>) {
    // Small events must not wait for an acknowledgement of the one before.
    let _slower_at_worst = stream.set_nodelay(true);
    let service = service_fn(move |request| Arc::clone(&gateway).handle(request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_header_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        _ = orders.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
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

/// Reads the configuration file anew whenever it changes, until dropped.
pub async fn follow(gateway: Arc<Gateway>, source: Source) {
    let mut seen = stamp(&source.path);
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        let now = stamp(&source.path);
        if now.is_none() || now == seen {
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
