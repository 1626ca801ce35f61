//! A request's way through the ledger: what it asks, why it may be refused, and what is held for it.

use std::sync::Arc;
use std::time::Duration;

use crate::Micros;
use crate::ledger::Shared;
use crate::row::{Open, Outcome, Row};

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its id, unique for ever.
    pub id: [u8; 16],
    /// The route or model that it names.
    pub route: &'a str,
    /// Tokens that it may take.
    pub tokens: u64,
    /// What it may cost at most; nothing if no price is known.
    pub cost: Option<Micros>,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No such key, or one that was taken back or has expired.
    Key,
    /// The key may not ask for this model.
    Model,
    /// As many requests as may be are under way.
    Concurrency,
    /// Too many requests in a minute.
    Requests {
        /// How long to wait.
        wait: Duration,
    },
    /// Too many tokens in a minute.
    Tokens {
        /// How long to wait.
        wait: Duration,
    },
    /// The budget of the key, or of its team, is spent.
    Budget {
        /// Whose: `key` or `team`.
        whose: &'static str,
    },
    /// The budget would allow it if requests under way turned out cheaper than they might.
    Held,
    /// The key has a budget, but nobody knows what this would cost.
    Price,
    /// The ledger cannot be written.
    Broken,
}

/// What is held for a request under way. Dropped without a word, it ends as a client that left, for nothing.
#[derive(Debug)]
pub struct Hold {
    pub(crate) shared: Arc<Shared>,
    pub(crate) hash: [u8; 32],
    pub(crate) tokens: u64,
    /// Taken when it is settled.
    pub(crate) open: Option<Open>,
}

impl Hold {
    /// Puts what the request did cost in the place of what was held. When this returns, it is written down.
    pub fn settle(mut self, row: Row) {
        if let Some(open) = self.open.take() {
            self.shared.settle(&self.hash, self.tokens, open, row);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        let row = Row {
            target: String::new(),
            tried: String::new(),
            outcome: Outcome::ClientGone,
            input: 0,
            cache_read: 0,
            cache_write: 0,
            output: 0,
            reasoning: 0,
            is_counted: false,
            cost: Some(Micros(0)),
            duration_ms: crate::ledger::now_ms().saturating_sub(open.started_ms),
            first_token_ms: None,
        };
        self.shared.settle(&self.hash, self.tokens, open, row);
    }
}
