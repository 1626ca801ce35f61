//! A stream that ends when its time is over, though nobody asks for more of it.
//!
//! A relay's clocks are looked at when it is polled, and its client's connection polls it only while there is room for
//! what comes. A client that reads nothing, or opens no window of HTTP/2, would stop them, and hold for ever what the
//! stream holds: a place at its target, what it may cost, the connection to the provider. So a task beside it, not
//! between the two connections, waits for the deadline and gives these back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;
use tokio::time::sleep_until;

use crate::line::Answered;
use crate::relay::Relay;

/// How long after its deadline a stream is ended from here. One that is polled has ended by itself.
const GRACE: Duration = Duration::from_secs(1);

/// A stream under way, and who ends it.
pub(crate) struct Timed {
    relay: Arc<Mutex<Box<Relay>>>,
    watch: AbortHandle,
}

impl Timed {
    pub(crate) fn new(relay: Box<Relay>) -> Self {
        let until = relay.deadline() + GRACE;
        let relay = Arc::new(Mutex::new(relay));
        // The stream is gone when its client is, not when the task has noticed.
        let watched = Arc::downgrade(&relay);
        let watch = tokio::spawn(async move {
            sleep_until(until).await;
            if let Some(relay) = watched.upgrade() {
                relay.lock().unwrap_or_else(PoisonError::into_inner).expire();
            }
        });
        Self {
            relay,
            watch: watch.abort_handle(),
        }
    }

    /// The log's line, for when it has ended.
    pub(crate) fn tell(&self, line: Answered) {
        self.relay().tell(line);
    }

    pub(crate) fn poll_bytes(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        self.relay().poll_bytes(cx)
    }

    fn relay(&self) -> MutexGuard<'_, Box<Relay>> {
        self.relay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.watch.abort();
    }
}
