//! A request's way through the ledger: what it asks, why it may be refused, and what is held for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::ledger::Keeper;
use crate::row::{Open, Outcome, Row};
use crate::{Budget, Micros, Period};

/// What a request asks for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its id, unique for ever. Its first 48 bits are the milliseconds since 1970, so that old rows are found.
    pub id: [u8; 16],
    /// The route or model that it names.
    pub route: &'a str,
    /// Tokens that it may take.
    pub tokens: u64,
    /// What it may cost at most; nothing if no price is known.
    pub cost: Option<Micros>,
    /// The ledger itself named the route ([`Refusal::Downgrade`]): it need not be among those allowed.
    pub is_downgraded: bool,
}

/// What is told when a soft limit is passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Whose: `key`, `user`, `project` or `team`.
    pub whose: &'static str,
    pub(crate) scope: Arc<str>,
    /// What was spent in the limit's period.
    pub spent: Micros,
    /// The limit.
    pub soft: Budget,
    /// Nobody was told in this period.
    pub is_first: bool,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            whose, spent, soft, ..
        } = self;
        let period = match soft.period {
            Period::Day => "a day",
            Period::Month => "a month",
            Period::Total => "in all",
        };
        write!(f, "{whose} spent {spent} of {} {period}", soft.limit)
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No such key, or one that was taken back or has expired.
    Key,
    /// The key may not ask for this model.
    Model,
    /// The key's user may look, not ask.
    Role,
    /// As many requests as may be are under way.
    Concurrency {
        /// Whose: `key`, `user`, `project` or `team`.
        whose: &'static str,
    },
    /// Too many requests in a minute.
    Requests {
        /// Whose.
        whose: &'static str,
        /// How long to wait.
        wait: Duration,
    },
    /// Too many tokens in a minute.
    Tokens {
        /// Whose.
        whose: &'static str,
        /// How long to wait.
        wait: Duration,
    },
    /// The budget, or what was paid in, is spent.
    Budget {
        /// Whose.
        whose: &'static str,
    },
    /// Something else is to answer, because of a soft limit; ask again for it with `is_downgraded`.
    Downgrade {
        /// The route or model.
        to: String,
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
    pub(crate) keeper: Arc<Keeper>,
    /// Taken when it is settled.
    pub(crate) open: Option<Open>,
    pub(crate) warnings: Vec<Warning>,
}

impl Hold {
    /// Soft limits that are passed.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Puts what the request did cost in the place of what was held. When this returns, it is written down.
    pub fn settle(mut self, row: Row) {
        if let Some(open) = self.open.take() {
            self.keeper.settle(open, row.bounded());
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(open) = self.open.take() else { return };
        let row = Row::nothing(crate::ledger::now_ms().saturating_sub(open.started_ms));
        self.keeper.settle(open, row);
    }
}

impl Row {
    /// Of a request that took and cost nothing.
    pub(crate) fn nothing(duration_ms: u64) -> Self {
        Self {
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
            duration_ms,
            first_token_ms: None,
        }
    }
}
