//! Answers that are counted as long as they last.
//!
//! A connection of HTTP/2 has no head that it waits for, so nothing of hyper's ends one that asks for nothing. Here
//! requests under way are counted, from their head to the last byte of their answer; a connection without any is idle.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

/// Requests of a connection.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    under_way: AtomicU64,
    /// All that ever began.
    begun: AtomicU64,
}

impl Tally {
    /// Counts one in.
    pub(crate) fn begin(self: &Arc<Self>) -> Turn {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        Turn(Arc::clone(self))
    }

    /// Whether none is under way, and none has begun since `seen`, which is brought up to date.
    pub(crate) fn is_idle_since(&self, seen: &mut u64) -> bool {
        let begun = self.begun.load(Ordering::Relaxed);
        let is_same = std::mem::replace(seen, begun) == begun;
        is_same && self.under_way.load(Ordering::Relaxed) == 0
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Tally>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that ends its turn with itself.
#[derive(Debug)]
pub(crate) struct Held<B> {
    pub(crate) body: B,
    pub(crate) _turn: Turn,
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
