//! Accepting connections, serving them, and letting them end.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::held::{Held, Tally};
use crate::limits;
use crate::taken::Taken;
use crate::{Hands, Tls};

/// How long the end of connections is waited for without a word about it.
const SILENT: Duration = Duration::from_secs(1);

/// The order to end.
type Orders = watch::Receiver<bool>;

/// How connections come in.
#[derive(Debug, Clone, Default)]
pub struct Door {
    /// Under TLS with this certificate, else plain.
    pub tls: Option<Tls>,
    /// Most at the same time; more wait to be accepted.
    pub connections: usize,
    /// Who serves them; without threads the runtime that takes them.
    pub hands: Hands,
}

/// Connections that are open while no more are taken.
#[derive(Debug)]
pub struct Open {
    connections: JoinSet<()>,
    order: watch::Sender<bool>,
    /// They must last as long as the connections.
    _hands: Hands,
}

/// Takes connections until `stop` comes. `make` gives the service of a client's connection.
pub async fn open<S, B>(
    listener: TcpListener,
    door: Door,
    make: impl Fn(SocketAddr) -> S,
    stop: impl Future<Output = ()>,
) -> Open
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (order, orders) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            // Finished ones are forgotten as others come.
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < door.connections => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely no more files may be open; some will be closed soon.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Small events must not wait for an acknowledgement of the one before.
        let _slower_at_worst = stream.set_nodelay(true);
        let (service, orders, tls) = (make(peer), orders.clone(), door.tls.clone());
        let serve = async move |stream| match tls {
            None => serve_1(Taken::new(stream), service, orders).await,
            Some(tls) => Box::pin(serve_tls(stream, peer, tls, service, orders)).await,
        };
        let Some((runtime, load)) = door.hands.freest() else {
            connections.spawn(serve(stream));
            continue;
        };
        // It has to be known to the runtime that it is served on.
        match stream.into_std() {
            Ok(stream) => {
                let moved = async move {
                    let _load = load;
                    match TcpStream::from_std(stream) {
                        Ok(stream) => serve(stream).await,
                        Err(error) => tracing::warn!(%error, "a connection could not be served"),
                    }
                };
                connections.spawn_on(moved, runtime);
            }
            Err(error) => tracing::warn!(%error, "a connection could not be handed over"),
        }
    }
    Open {
        connections,
        order,
        _hands: door.hands,
    }
}

impl Open {
    /// Lets answers that are under way end, for `patience` at most, and cuts those that have not.
    pub async fn drain(mut self, patience: Duration) {
        // An error means that nobody is connected.
        let _told = self.order.send(true);
        // Connections on which nobody is answered end at once; whoever waits longer is told what for.
        let ended = async { while self.connections.join_next().await.is_some() {} };
        if tokio::time::timeout(patience.min(SILENT), ended).await.is_ok() {
            return;
        }
        let (n, patience_s) = (self.connections.len(), patience.as_secs());
        tracing::info!(n, patience_s, "waiting for answers under way to end");
        let patience = patience.saturating_sub(SILENT);
        let ended = async { while self.connections.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, ended).await.is_err() {
            tracing::warn!(
                n = self.connections.len(),
                "some answers had not ended; they are cut"
            );
            self.connections.shutdown().await;
        }
    }
}

/// A connection of HTTP/1.1.
async fn serve_1<I, S, B>(stream: I, service: S, mut orders: Orders)
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    // Pinned where it is made: what is moved is kept twice for as long as the connection lasts.
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HEAD_TIME)
            .max_header_size(limits::HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
    );
    let result = tokio::select! {
        result = connection.as_mut() => result,
        _ = orders.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// A connection under TLS, of either version.
async fn serve_tls<S, B>(stream: TcpStream, peer: SocketAddr, tls: Tls, service: S, orders: Orders)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let handshake = TlsAcceptor::from(tls.config).accept(Taken::new(stream));
    let stream = match tokio::time::timeout(limits::HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "a TLS handshake took too long"),
    };
    // On the heap, since one is much larger than the other.
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        Box::pin(serve_2(stream, service, orders)).await;
    } else {
        Box::pin(serve_1(stream, service, orders)).await;
    }
}

/// A connection of HTTP/2. Streams that are opened and reset in haste end it; that is hyper's affair.
async fn serve_2<I, S, B>(stream: I, service: S, mut orders: Orders)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let tally = Arc::new(Tally::default());
    let counted = counted(service, Arc::clone(&tally));
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(limits::HEAD_BYTES as u32)
        .max_concurrent_streams(limits::STREAMS)
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_send_buf_size(limits::SEND_BUFFER)
        .keep_alive_interval(limits::PING)
        .keep_alive_timeout(limits::PONG)
        .serve_connection(TokioIo::new(stream), counted);
    let mut connection = std::pin::pin!(connection);
    let mut ticks = tokio::time::interval(limits::HEAD_TIME);
    ticks.tick().await;
    let mut seen = 0;
    let is_ordered = loop {
        let result = tokio::select! {
            result = connection.as_mut() => result,
            _ = orders.changed() => break true,
            _ = ticks.tick() => {
                if tally.is_idle_since(&mut seen) {
                    break false;
                }
                continue;
            }
        };
        return told(result);
    };
    connection.as_mut().graceful_shutdown();
    if is_ordered {
        return told(connection.await);
    }
    // An idle client that does not say goodbye either is not waited for.
    if let Ok(result) = tokio::time::timeout(limits::PONG, connection).await {
        told(result);
    }
}

fn told(result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// The service, with its answers counted.
fn counted<S, B>(
    service: S,
    tally: Arc<Tally>,
) -> impl HttpService<Incoming, ResBody = Held<B>, Error = Infallible, Future: Send + 'static>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: Body + Unpin + Send + 'static,
{
    service_fn(move |request| {
        let turn = tally.begin();
        let answer = service.call(request);
        async move {
            let response = answer.await?;
            Ok::<_, Infallible>(response.map(|body| Held { body, _turn: turn }))
        }
    })
}
