//! Threads that serve connections, each with a runtime of its own.
//!
//! A connection stays on one thread, and so does all that is awaited for it: what wakes it is polled by the thread that
//! it wakes, and no other thread has to be roused for that, which takes longer than most answers. In exchange nothing
//! moves away from a thread that is busy. So this is for connections that compute little; a new one goes to the thread
//! with the fewest.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// The number of the thread that this is called on: from 1 on those of [`Hands`], 0 on all others. What belongs to a
/// thread's runtime is best used again on that thread.
pub fn hand() -> usize {
    NUMBER.get()
}

/// Threads that serve connections. They end when the last copy of this is dropped, and cut what they serve.
#[derive(Debug, Clone, Default)]
pub struct Hands {
    hands: Arc<[Hand]>,
}

#[derive(Debug)]
struct Hand {
    runtime: Handle,
    load: Arc<AtomicUsize>,
    /// Dropped to end the thread.
    _end: oneshot::Sender<()>,
}

/// Counts a connection as long as it lasts.
#[derive(Debug)]
pub(crate) struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hands {
    /// Starts so many threads.
    ///
    /// # Errors
    /// When the system has no more.
    pub fn start(n: usize) -> io::Result<Self> {
        let hands = (1..=n).map(Hand::start).collect::<io::Result<_>>()?;
        Ok(Self { hands })
    }

    /// The thread with the fewest connections, if there are threads.
    pub(crate) fn freest(&self) -> Option<(&Handle, Load)> {
        let hand = self
            .hands
            .iter()
            .min_by_key(|hand| hand.load.load(Ordering::Relaxed))?;
        hand.load.fetch_add(1, Ordering::Relaxed);
        Some((&hand.runtime, Load(Arc::clone(&hand.load))))
    }
}

impl Hand {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name(format!("carat-net-{number}"))
            .spawn(move || {
                NUMBER.set(number);
                // An error is what comes when the sender is dropped.
                let _ended = runtime.block_on(ended);
            })?;
        Ok(Self {
            runtime: handle,
            load: Arc::default(),
            _end: end,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn connections_are_shared_out_evenly_and_threads_end() {
        let hands = Hands::start(2).unwrap();
        let (first, load) = hands.freest().unwrap();
        let (second, other) = hands.freest().unwrap();
        let number = |runtime: &Handle| {
            let (tell, told) = std::sync::mpsc::channel();
            runtime.spawn(async move { tell.send(hand()).unwrap() });
            told.recv_timeout(Duration::from_secs(5)).unwrap()
        };
        assert_eq!((number(first), number(second), hand()), (1, 2, 0));
        drop(other);
        assert_eq!(number(hands.freest().unwrap().0), 2);
        drop(load);
        let (tell, told) = std::sync::mpsc::channel::<()>();
        first.spawn(async move {
            let _kept = tell;
            std::future::pending::<()>().await;
        });
        drop(hands);
        let ended = told.recv_timeout(Duration::from_secs(5));
        assert_eq!(ended, Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
    }
}
