//! Bodies of requests, which must come at a certain pace.
//!
//! A client that sends its body a byte at a time holds memory and a connection for as long as it likes. So a body may
//! keep its reader waiting for [`BODY_WAIT`] in all; what comes gives back the time that it takes at [`BODY_RATE`], but
//! never more than is gone. A large body over a slow line goes through, however long it takes; one that stalls, or
//! trickles, ends with [`TooSlow`]. Only waiting is counted, not what the reader does between two pieces.

use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::limits::{BODY_RATE, BODY_WAIT};

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

/// A body that must come at a certain pace.
#[derive(Debug)]
pub struct Paced<B> {
    body: B,
    /// How long it may keep its reader waiting from now on.
    patience: Duration,
    waiting_since: Option<Instant>,
    /// Made when somebody waits for the first time: most bodies come with their head.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<B> Paced<B> {
    /// The same body, timed from its first reading on.
    pub fn new(body: B) -> Self {
        Self {
            body,
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

impl<B> Body for Paced<B>
where
    B: Body + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Data = B::Data;
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let n_bytes = frame.data_ref().map_or(0, bytes::Buf::remaining);
                this.came(n_bytes as u64);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => Poll::Ready(end.map(|end| end.map_err(Into::into))),
            Poll::Pending if this.is_late(cx) => Poll::Ready(Some(Err(TooSlow.into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

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
