//! Bodies of requests, which must come at a certain pace.
//!
//! A client that sends its body a byte at a time holds memory and a connection for as long as it likes. So a body may
//! keep its reader waiting for [`BODY_WAIT`] in all; what comes gives back the time that it takes at [`BODY_RATE`], but
//! never more than is gone. A large body over a slow line goes through, however long it takes; one that stalls, or
//! trickles, ends with [`TooSlow`]. Only waiting is counted, not what the reader does between two pieces.
//!
//! A body that its reader gives up, since it is too large or its sender not known, is read on for a while and thrown
//! away. The connection would be closed otherwise while the client still writes, who would find it broken and never
//! see the answer that says why.

use std::error::Error as StdError;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::limits::{BODY_RATE, BODY_WAIT, UNWANTED_BYTES, UNWANTED_DELAY, UNWANTED_TIME};

/// A body did not come at the pace that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the body came too slowly; send it faster, or less of it")]
pub struct TooSlow;

impl TooSlow {
    /// Whether this is what an error, or one behind it, says.
    pub fn is_behind(error: &(dyn StdError + 'static)) -> bool {
        let mut next = Some(error);
        while let Some(error) = next {
            if error.is::<Self>() {
                return true;
            }
            next = error.source();
        }
        false
    }
}

/// What [`Paced`] takes: a body that can be read on by somebody else.
pub trait Lasting: Body<Data: Send> + Unpin + Send + 'static {}

impl<B: Body<Data: Send> + Unpin + Send + 'static> Lasting for B {}

/// A body that must come at a certain pace.
#[derive(Debug)]
pub struct Paced<B: Lasting> {
    /// Nothing once it has ended.
    body: Option<B>,
    /// How long it may keep its reader waiting from now on.
    patience: Duration,
    waiting_since: Option<Instant>,
    /// Made when somebody waits for the first time: most bodies come with their head.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<B: Lasting> Paced<B> {
    /// The same body, timed from its first reading on.
    pub fn new(body: B) -> Self {
        Self {
            body: Some(body),
            patience: BODY_WAIT,
            waiting_since: None,
            alarm: None,
        }
    }

    /// So many bytes have come.
    fn came(&mut self, n_bytes: u64) {
        let Some(since) = self.waiting_since.take() else {
            return;
        };
        let earned = Duration::from_nanos(n_bytes.saturating_mul(1_000_000_000) / BODY_RATE);
        let left = self.patience.saturating_sub(since.elapsed());
        self.patience = left.saturating_add(earned).min(BODY_WAIT);
    }

    /// Nothing has come yet: whether no more is waited for.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let is_new = self.waiting_since.is_none();
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let until = since + self.patience;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if is_new {
            alarm.as_mut().reset(until);
        }
        alarm.as_mut().poll(cx).is_ready()
    }
}

impl<B: Lasting> Body for Paced<B>
where
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Data = B::Data;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                let n_bytes = frame.data_ref().map_or(0, Buf::remaining);
                this.came(n_bytes as u64);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => {
                this.body = None;
                Poll::Ready(end.map(|end| end.map_err(Into::into)))
            }
            Poll::Pending if this.is_late(cx) => {
                this.body = None;
                Poll::Ready(Some(Err(TooSlow.into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Lasting> Drop for Paced<B> {
    fn drop(&mut self) {
        if let Some(body) = self.body.take()
            && !body.is_end_stream()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(throw_away(body));
        }
    }
}

/// Reads what a client still sends, within limits.
async fn throw_away(mut body: impl Lasting) {
    // A client that asked first whether to send its body shall see the answer, not that its body is read.
    tokio::time::sleep(UNWANTED_DELAY).await;
    let reading = async {
        let mut n_bytes = 0;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            n_bytes += frame.data_ref().map_or(0, Buf::remaining);
            if n_bytes > UNWANTED_BYTES {
                break;
            }
        }
    };
    // Whoever sends more, or slower, finds the connection closed.
    let _ = tokio::time::timeout(UNWANTED_TIME, reading).await;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http_body_util::BodyExt;

    use super::*;

    /// Comes in pieces of so many bytes, so far apart.
    struct Drip {
        piece: usize,
        n_left: usize,
        every: Duration,
        next: Pin<Box<Sleep>>,
    }

    impl Body for Drip {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            std::task::ready!(self.next.as_mut().poll(cx));
            if self.n_left == 0 {
                return Poll::Ready(None);
            }
            self.n_left -= 1;
            let next = Instant::now() + self.every;
            self.next.as_mut().reset(next);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; self.piece])))))
        }
    }

    /// Bytes that came, if they came in time, and the seconds that it took.
    async fn read(piece: usize, n: usize, every_ms: u64) -> (Option<usize>, u64) {
        let began = Instant::now();
        let every = Duration::from_millis(every_ms);
        let next = Box::pin(tokio::time::sleep(every));
        let drip = Drip {
            piece,
            n_left: n,
            every,
            next,
        };
        let read = Paced::new(drip).collect().await;
        let n_bytes = match read {
            Ok(body) => Some(body.to_bytes().len()),
            Err(error) => {
                assert!(TooSlow::is_behind(&*error));
                None
            }
        };
        (n_bytes, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn who_trickles_or_stalls_is_not_waited_for() {
        let wait = BODY_WAIT.as_secs();
        assert_eq!(read(1, 1000, 1000).await, (None, wait));
        assert_eq!(read(1, 1, 3_600_000).await, (None, wait));
        // What came fast before buys no time: it is read, and then the wait is as long as any.
        let (n_bytes, took) = read(16 << 20, 2, 19_000).await;
        assert_eq!((n_bytes, took), (Some(32 << 20), 57));
        assert_eq!(read(16 << 20, 2, 21_000).await.0, None);
    }

    /// A body with pieces for as long as anybody reads them, which counts them.
    struct Endless(Arc<AtomicUsize>);

    impl Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 1 << 20])))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_is_read_for_a_while() {
        let n_read = Arc::new(AtomicUsize::new(0));
        drop(Paced::new(Endless(Arc::clone(&n_read))));
        tokio::time::sleep(UNWANTED_DELAY / 2).await;
        assert_eq!(n_read.load(Ordering::Relaxed), 0, "the answer goes first");
        tokio::time::sleep(UNWANTED_TIME).await;
        assert_eq!(n_read.load(Ordering::Relaxed), (UNWANTED_BYTES >> 20) + 1);
        let next = Box::pin(tokio::time::sleep(Duration::ZERO));
        let every = Duration::from_secs(1);
        let mut ended = Paced::new(Drip {
            piece: 1,
            n_left: 1,
            every,
            next,
        });
        while ended.frame().await.is_some() {}
        assert!(ended.body.is_none(), "nothing is left to read");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_line_takes_the_time_that_it_needs() {
        let rate = usize::try_from(BODY_RATE).unwrap();
        let (n_bytes, took) = read(rate, 2000, 999).await;
        assert_eq!(n_bytes, Some(2000 * rate), "after {took} s");
        let (n_bytes, took) = read(rate, 2000, 1100).await;
        assert_eq!(n_bytes, None);
        assert!((190..=240).contains(&took), "a tenth too slow: {took} s");
    }
}
