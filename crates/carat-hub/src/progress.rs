//! What a pull tells its caller while it works.
//!
//! The library prints nothing. It calls [`Progress::event`] from the thread that called `pull`, at
//! most some ten times a second for byte counts; the caller draws a bar, writes a log, or ignores it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};

/// Receives the events of a pull.
pub trait Progress {
    /// Called for each event, in order, from the pulling thread.
    fn event(&mut self, event: Event<'_>);
}

/// Ignores everything.
impl Progress for () {
    fn event(&mut self, _: Event<'_>) {}
}

/// A step of a pull. Counts are bytes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Another process pulls the same model; this one waits for it.
    Waiting {
        /// The lock file that is held.
        lock: &'a Path,
    },
    /// A source is tried.
    Trying {
        /// The source as a person knows it.
        source: &'a str,
    },
    /// A source failed; the next one, if any, is tried.
    Failed {
        /// The source.
        source: &'a str,
        /// Why; one sentence.
        reason: &'a str,
    },
    /// A file (or a pip package) begins.
    File {
        /// Its name.
        name: &'a str,
        /// 1-based position among the files of this model.
        index: usize,
        /// How many files the model has.
        n_files: usize,
        /// Bytes that were there from an earlier, interrupted pull.
        resumed_bytes: u64,
        /// Its size, where known.
        total_bytes: Option<u64>,
    },
    /// Bytes of the present file that are on disk.
    Bytes {
        /// So far, with the resumed ones.
        done: u64,
        /// Of how many, where known.
        total: Option<u64>,
    },
    /// A connection failed and is tried again.
    Retrying {
        /// Why; one sentence.
        reason: &'a str,
        /// How long it waits first.
        wait: Duration,
    },
    /// The present file is read and its SHA-256 computed.
    Verifying {
        /// Bytes read so far.
        done: u64,
        /// Of how many.
        total: u64,
    },
    /// The parts of a split download are joined.
    Assembling {
        /// Bytes written so far.
        done: u64,
        /// Of how many.
        total: u64,
    },
    /// The model is in the store and may be used.
    Ready {
        /// The GGUF file, or the folder.
        path: &'a Path,
    },
}

/// The two things every long step needs: whom to tell, and whether to stop.
pub(crate) struct Watch<'a> {
    pub(crate) progress: &'a mut dyn Progress,
    pub(crate) cancel: &'a AtomicBool,
}

impl Watch<'_> {
    pub(crate) fn tell(&mut self, event: Event<'_>) {
        self.progress.event(event);
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Sleeps, unless the user stops it; steps are short so that Ctrl-C is felt at once.
    pub(crate) fn pause(&self, total: Duration) -> Result<()> {
        pause(total, || self.cancel.load(Ordering::Relaxed));
        self.check()
    }
}

/// Sleeps up to `total` and returns early when `stop` says so.
pub(crate) fn pause(total: Duration, stop: impl Fn() -> bool) {
    const STEP: Duration = Duration::from_millis(20);
    let mut left = total;
    while !left.is_zero() && !stop() {
        let step = left.min(STEP);
        std::thread::sleep(step);
        left -= step;
    }
}
