//! The local engine behind a connection that never leaves the process.
//!
//! A provider whose address is [`HOST`] is not called over the network: the near end of a pipe in memory is used as the
//! connection, and the far end is handed to whoever brought the engine. Everything above it is as with any provider, so
//! that limits, rests and failures of the engine are those of a provider too.

use std::future::{Future, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tower_service::Service;

/// The name under which the engine of this process is addressed.
pub(crate) const HOST: &str = "carat.engine";
/// Bytes that may be on their way in one direction.
const PIPE_BYTES: usize = 64 << 10;

/// Serves HTTP/1.1 on a stream: it is called for every connection to the engine, and must not block.
pub type Engine = Arc<dyn Fn(DuplexStream) + Send + Sync>;

/// Where connections are made: to other machines, or to the engine.
#[derive(Clone)]
pub(crate) struct Doors {
    tcp: HttpConnector,
    engine: Option<Engine>,
}

impl Doors {
    pub(crate) fn new(tcp: HttpConnector, engine: Option<Engine>) -> Self {
        Self { tcp, engine }
    }
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Doors {
    type Response = Door;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<Door, Failed>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        if uri.host() != Some(HOST) {
            let connecting = self.tcp.call(uri);
            return Box::pin(async move { Ok(Door::Tcp(connecting.await?)) });
        }
        let Some(engine) = &self.engine else {
            return Box::pin(ready(Err("no engine runs in this process".into())));
        };
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        engine(far);
        Box::pin(ready(Ok(Door::Engine(TokioIo::new(near)))))
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) enum Door {
    Tcp(TokioIo<TcpStream>),
    Engine(TokioIo<DuplexStream>),
}

impl Connection for Door {
    fn connected(&self) -> Connected {
        match self {
            Self::Tcp(stream) => stream.connected(),
            Self::Engine(_) => Connected::new(),
        }
    }
}

impl Read for Door {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Engine(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl Write for Door {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Engine(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Engine(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Engine(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Engine(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Self::Engine(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }
}
