//! A connection to a provider, driven by whoever asks over it.
//!
//! It has no task of its own: the request that it carries polls it, then the answer's body does, so that a byte from a
//! provider wakes nobody but the client's own connection, and everything that one read has brought is at hand without
//! another turn of the scheduler. Between requests nobody drives it; [`crate::pool`] looks at it before it is used again.

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest};
use hyper_rustls::MaybeHttpsStream;

use crate::engine::Door;
use crate::pool::Home;

/// What goes over it.
type Io = MaybeHttpsStream<Door>;
/// Turns that a connection is given at once before others get theirs.
const TURNS: usize = 4;

/// A connection.
pub(crate) struct Link {
    sender: SendRequest<Full<Bytes>>,
    /// None once it is closed.
    connection: Option<Connection<Io, Full<Bytes>>>,
    gate: Arc<Gate>,
}

impl Link {
    /// Over a stream that is open.
    pub(crate) async fn open(io: Io) -> hyper::Result<Self> {
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
        Ok(Self {
            sender,
            connection: Some(connection),
            gate: Arc::default(),
        })
    }

    /// Sends a request, up to the head of its answer. Dropped before that, the connection is of no more use.
    pub(crate) async fn ask(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let Self {
            sender,
            connection,
            gate,
        } = self;
        let mut sent = pin!(sender.send_request(request));
        std::future::poll_fn(|cx| {
            gate.poll(cx, |cx| {
                drive(connection, cx);
                sent.as_mut().poll(cx)
            })
        })
        .await
    }

    /// Whether another request may be sent, as far as can be known.
    pub(crate) fn is_idle(&mut self) -> bool {
        drive(&mut self.connection, &mut Context::from_waker(&self.gate.waker()));
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Nobody is to be woken for it any more.
    fn rest(&self) {
        *self.gate.client() = None;
    }
}

/// Lets a connection read and write what it can.
fn drive(connection: &mut Option<Connection<Io, Full<Bytes>>>, cx: &mut Context<'_>) {
    if let Some(open) = connection
        && let Poll::Ready(result) = Pin::new(open).poll(cx)
    {
        if let Err(error) = result {
            tracing::debug!(%error, "a connection to a provider ended early");
        }
        *connection = None;
    }
}

/// The body of an answer, with the connection that it comes over.
pub(crate) struct LinkBody {
    body: Incoming,
    /// Gone once the body is at its end.
    link: Option<(Box<Link>, Home)>,
}

impl LinkBody {
    pub(crate) fn new(body: Incoming, link: Box<Link>, home: Home) -> Self {
        let link = Some((link, home));
        Self { body, link }
    }
}

impl Body for LinkBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Self { body, link } = self.get_mut();
        let Some((open, _)) = link else {
            return Pin::new(body).poll_frame(cx);
        };
        let Link { connection, gate, .. } = open.as_mut();
        let polled = gate.poll(cx, |cx| {
            // What it has read before goes first: it hands out one piece at a time.
            if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
                return Poll::Ready(frame);
            }
            drive(connection, cx);
            Pin::new(&mut *body).poll_frame(cx)
        });
        match polled {
            Poll::Ready(None) => {
                if let Some((mut link, home)) = link.take()
                    && link.is_idle()
                {
                    link.rest();
                    home.take_back(link);
                }
            }
            Poll::Ready(Some(Err(_))) => *link = None,
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        // Its reader must come back once more, so that the connection is of use to others.
        self.link.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Stands between a connection and the task that drives it. The connection's parts wake each other while it is polled,
/// and each such wake would bring the task another turn in vain: here they only lead to another look at once.
#[derive(Debug, Default)]
struct Gate {
    client: Mutex<Option<Waker>>,
    /// [`POLLED`] and [`WOKEN`].
    state: AtomicU8,
}

/// Somebody is polling.
const POLLED: u8 = 1;
/// It was woken since that began.
const WOKEN: u8 = 2;

impl Gate {
    fn client(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    /// Polls until nothing moves any more.
    fn poll<T>(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        mut work: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        {
            let mut client = self.client();
            if !client.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
                *client = Some(cx.waker().clone());
            }
        }
        let waker = self.waker();
        for _ in 0..TURNS {
            self.state.store(POLLED, Ordering::Release);
            if let Poll::Ready(done) = work(&mut Context::from_waker(&waker)) {
                self.state.store(0, Ordering::Release);
                return Poll::Ready(done);
            }
            let left = self
                .state
                .compare_exchange(POLLED, 0, Ordering::AcqRel, Ordering::Acquire);
            if left.is_ok() {
                return Poll::Pending;
            }
        }
        self.state.store(0, Ordering::Release);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let state = self.state.fetch_or(WOKEN, Ordering::AcqRel);
        if state & POLLED == 0
            && let Some(client) = &*self.client()
        {
            client.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn wakes_from_within_lead_to_another_look_and_those_from_without_to_the_client() {
        let counter = Arc::new(Counter::default());
        let client = Waker::from(Arc::clone(&counter));
        let mut cx = Context::from_waker(&client);
        let gate = Arc::new(Gate::default());
        let mut n_looks = 0;
        let mut kept = None;
        let polled: Poll<()> = gate.poll(&mut cx, |cx| {
            n_looks += 1;
            if n_looks == 1 {
                cx.waker().wake_by_ref();
            }
            kept = Some(cx.waker().clone());
            Poll::Pending
        });
        assert!(polled.is_pending());
        assert_eq!((n_looks, counter.0.load(Ordering::Relaxed)), (2, 0));
        kept.unwrap().wake();
        assert_eq!(counter.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn who_always_wakes_itself_lets_others_have_their_turn() {
        let counter = Arc::new(Counter::default());
        let client = Waker::from(Arc::clone(&counter));
        let gate = Arc::new(Gate::default());
        let mut n_looks = 0;
        let polled: Poll<()> = gate.poll(&mut Context::from_waker(&client), |cx| {
            n_looks += 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        assert!(polled.is_pending());
        assert_eq!((n_looks, counter.0.load(Ordering::Relaxed)), (TURNS, 1));
    }
}
