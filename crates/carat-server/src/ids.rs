//! Ids of requests and answers, and the clock.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Makes ids that nobody else makes and nobody guesses.
pub(crate) struct Ids {
    /// Keyed by the system's random numbers.
    hasher: RandomState,
    next: AtomicU64,
}

impl Ids {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            next: AtomicU64::new(0),
        }
    }

    /// A number that looks random.
    pub(crate) fn number(&self) -> u64 {
        self.hasher.hash_one(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A new id, such as `chatcmpl-9f86d081884c7d65`.
    pub(crate) fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:016x}", self.number(), self.number())
    }

    /// The same number for the same text, within one run of the program.
    pub(crate) fn hash(&self, text: impl std::hash::Hash) -> u64 {
        self.hasher.hash_one(text)
    }
}

/// Time since 1970.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
