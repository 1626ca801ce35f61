//! Who may ask, when a ledger is kept: keys, what a request may cost, and its row.

use std::sync::Arc;
use std::time::{Duration, Instant};

use carat_ledger::{Asked, Hold, Ledger, Micros, Outcome as Ended, Price, Refusal, Row};
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::account::Outcome;
use crate::attempt::Call;
use crate::config::{Config, UnknownPrice};
use crate::failure::{Class, Failure};
use crate::prices::Prices;
use crate::route::{Candidate, Route};
use crate::usage::Usage;

/// How long a request waits for others to settle when only what is held for them stands in its way.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request's line in the ledger, written when it is settled or dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    hold: Hold,
    arrived: Instant,
    tried: String,
}

/// The key that a request brings, in any of the ways in which clients send one.
fn key_of(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
    bearer
        .or_else(|| text("x-api-key"))
        .or_else(|| text("api-key"))
        .or_else(|| text("x-goog-api-key"))
}

/// Whether a request brings a key in force.
pub(crate) fn is_known(ledger: &Ledger, headers: &HeaderMap) -> bool {
    key_of(headers).is_some_and(|key| ledger.knows(key))
}

/// What is said to who brings none.
pub(crate) fn no_key() -> Failure {
    Failure::new(
        Class::BadKey,
        401,
        "send a key of this gateway, as `Authorization: Bearer KEY`",
    )
}

/// Where requests are let in.
pub(crate) struct Gate<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) config: &'a Config,
    pub(crate) route: &'a Route,
}

impl Gate<'_> {
    /// Lets a request in, or says why not.
    ///
    /// # Errors
    /// In the words of a [`Failure`] that is the client's own.
    pub(crate) async fn admit(
        &self,
        headers: &HeaderMap,
        id: [u8; 16],
        name: &str,
        call: &Call<'_>,
    ) -> Result<Entry, Failure> {
        let arrived = Instant::now();
        let key = key_of(headers).ok_or_else(no_key)?;
        let input = call.body_bytes.div_ceil(3) as u64;
        let output = call.max_tokens.unwrap_or(self.config.expected_output);
        let asked = Asked {
            id,
            route: name,
            tokens: input.saturating_add(output),
            cost: self.most(input, output),
        };
        loop {
            let settled = self.ledger.settled();
            match self.ledger.admit(key, &asked) {
                Ok(hold) => {
                    let tried = String::new();
                    return Ok(Entry { hold, arrived, tried });
                }
                Err(Refusal::Held) => {
                    let left = PATIENCE.saturating_sub(arrived.elapsed());
                    if tokio::time::timeout(left, settled).await.is_err() {
                        return Err(failure(&Refusal::Held));
                    }
                }
                Err(refusal) => return Err(failure(&refusal)),
            }
        }
    }

    /// The most that a request may cost, whoever answers. Nothing if it is not known of somebody.
    fn most(&self, input: u64, output: u64) -> Option<Micros> {
        let mut most = Micros(0);
        for candidate in &self.route.candidates {
            match self.config.prices.of(candidate) {
                Some(price) => most = most.max(price.most(input, output)),
                None if self.config.unknown_price == UnknownPrice::Allow => {}
                None => return None,
            }
        }
        Some(most)
    }
}

fn failure(refusal: &Refusal) -> Failure {
    let limited = |message: &str, wait: Option<Duration>| Failure {
        wait,
        ..Failure::new(Class::RateLimited, 429, message)
    };
    match refusal {
        Refusal::Key => Failure::new(
            Class::BadKey,
            401,
            "this key is not known here, or it was taken back or has expired",
        ),
        Refusal::Model => Failure {
            param: Some("model".into()),
            code: Some("model_not_allowed".into()),
            ..Failure::new(Class::BadRequest, 403, "this key may not ask for this model")
        },
        Refusal::Concurrency => limited(
            "this key has as many requests under way as it may",
            Some(Duration::from_secs(1)),
        ),
        Refusal::Requests { wait } => limited(
            "this key has made as many requests as it may in a minute",
            Some(*wait),
        ),
        Refusal::Tokens { wait } => limited(
            "this key has used as many tokens as it may in a minute",
            Some(*wait),
        ),
        Refusal::Budget { whose } => Failure::new(
            Class::OutOfQuota,
            402,
            format!("what is left of the {whose}'s budget is less than this may cost"),
        ),
        Refusal::Held => Failure {
            wait: Some(Duration::from_secs(1)),
            ..Failure::new(
                Class::RateLimited,
                402,
                "the rest of the budget is held for requests under way; try again",
            )
        },
        Refusal::Price => Failure {
            code: Some("price_unknown".into()),
            ..Failure::new(
                Class::BadRequest,
                403,
                "this key has a budget, but no price is known for the model; set one in [prices]",
            )
        },
        Refusal::Broken => Failure::new(
            Class::Overloaded,
            503,
            "the gateway cannot write its ledger; its log says more",
        ),
    }
}

impl Entry {
    /// Says who was asked before.
    pub(crate) fn tried(&mut self, tried: String) {
        self.tried = tried;
    }

    /// Nobody answered.
    pub(crate) fn fail(self) {
        let tokens = Usage::default();
        self.settle(String::new(), Ended::Failed, &tokens, true, Some(Micros(0)), None);
    }

    /// An answer has ended.
    pub(crate) fn end(
        self,
        target: String,
        price: Option<&Price>,
        outcome: &Outcome,
        usage: &Usage,
        is_counted: bool,
        began: Option<Instant>,
    ) {
        let ended = match outcome {
            Outcome::Complete => Ended::Complete,
            Outcome::Cut(_) => Ended::Cut,
            Outcome::ClientGone => Ended::ClientGone,
        };
        let cost = price.map(|price| price.cost(usage));
        self.settle(target, ended, usage, is_counted, cost, began);
    }

    fn settle(
        self,
        target: String,
        outcome: Ended,
        usage: &Usage,
        is_counted: bool,
        cost: Option<Micros>,
        began: Option<Instant>,
    ) {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.hold.settle(Row {
            target,
            tried: self.tried,
            outcome,
            input: usage.input,
            cache_read: usage.cache_read,
            cache_write: usage.cache_write.saturating_add(usage.cache_write_1h),
            output: usage.output,
            reasoning: usage.reasoning,
            is_counted,
            cost,
            duration_ms: ms(self.arrived.elapsed()),
            first_token_ms: began.map(|began| ms(began.saturating_duration_since(self.arrived))),
        });
    }
}

/// What an answer needs to be billed.
#[derive(Debug)]
pub(crate) struct Bill {
    pub(crate) entry: Entry,
    pub(crate) price: Option<Arc<Price>>,
}

impl Bill {
    pub(crate) fn new(entry: Entry, prices: &Prices, candidate: &Candidate) -> Self {
        Self {
            entry,
            price: prices.of(candidate),
        }
    }
}
