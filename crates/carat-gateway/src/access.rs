//! Who may ask, when a ledger is kept: keys, what a request may cost, and its row.

use std::sync::Arc;
use std::time::{Duration, Instant};

use carat_ledger::{Asked, Bearer, Hold, Ledger, Micros, Outcome as Ended, Price, Refusal, Row};
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::account::Outcome;
use crate::attempt::Call;
use crate::config::{Config, UnknownPrice};
use crate::failure::{Class, Failure};
use crate::fields::Fields;
use crate::gateway;
use crate::prices::Prices;
use crate::route::{Candidate, Route};
use crate::usage::Usage;

/// How long a request waits for others to settle when only what is held for them stands in its way.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tiers of service that cost what lists say, or less, at whoever has them.
const USUAL_TIERS: [&str; 7] = [
    "auto",
    "default",
    "standard",
    "standard_only",
    "on_demand",
    "flex",
    "batch",
];

/// Tokens a second that an answer is assumed to have had while nobody saw it, if its client left before it came whole.
const UNSEEN_TOKENS_PER_S: u64 = 50;

/// A request's line in the ledger, written when it is settled or dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Taken when it is settled.
    hold: Option<Hold>,
    arrived: Instant,
    tried: String,
    /// Tokens of the answer that were held.
    most_output: u64,
    /// Targets that are at work on it.
    asking: Vec<Asking>,
    /// What calls cost whose answers nobody waited for.
    extra: Micros,
    /// What others gave, or took, before.
    before: Option<Before>,
}

/// What an answer took that did not end well, before others were asked or nobody was.
#[derive(Debug)]
pub(crate) struct Before {
    pub(crate) target: String,
    /// How it was cut.
    pub(crate) class: Class,
    pub(crate) usage: Usage,
    pub(crate) is_counted: bool,
    pub(crate) cost: Option<Micros>,
    pub(crate) began: Option<Instant>,
}

impl Before {
    /// Of an answer that is of no use to who asked.
    pub(crate) fn of(failure: &Failure, usage: Usage, candidate: &Candidate, prices: &Prices) -> Self {
        Self {
            target: candidate.name.clone(),
            class: failure.class,
            usage,
            is_counted: true,
            cost: prices.of(candidate).map(|price| price.cost(&usage)),
            began: None,
        }
    }
}

/// A target that was asked and has not answered: it will want its money even if the client leaves.
#[derive(Debug)]
struct Asking {
    target: String,
    price: Option<Arc<Price>>,
    input: u64,
    since: Instant,
}

/// A request that was let in.
pub(crate) struct Admitted {
    pub(crate) entry: Entry,
    /// What answers in place of what was asked for.
    pub(crate) instead: Option<Arc<Route>>,
    /// What the client is told.
    pub(crate) headers: Vec<(&'static str, String)>,
}

/// The key that a request brings, in any of the ways in which clients send one.
pub(crate) fn key_of(headers: &HeaderMap) -> Option<&str> {
    // Who has none in one place may have it in another.
    let text = |name: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.filter(|key| !key.is_empty())
    };
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        })
        .filter(|key| !key.is_empty());
    bearer
        .or_else(|| text("x-api-key"))
        .or_else(|| text("api-key"))
        .or_else(|| text("x-goog-api-key"))
}

/// Who a request's key belongs to, if it is in force.
pub(crate) fn bearer(ledger: &Ledger, headers: &HeaderMap) -> Option<Bearer> {
    ledger.bearer(key_of(headers)?)
}

/// What is said to who brings none.
pub(crate) fn no_key() -> Failure {
    Failure::new(
        Class::BadKey,
        401,
        "send a key of this gateway, as `Authorization: Bearer KEY`",
    )
}

/// What is said, without a ledger, to who asks under a name that is not this machine's: a page may have made it so.
pub(crate) fn not_here() -> Failure {
    Failure::new(
        Class::BadRequest,
        403,
        "without `[ledger]` this gateway answers to the names of this machine only; ask `localhost`",
    )
}

/// What is said, without a ledger, to a page that is not this machine's.
pub(crate) fn not_from_there() -> Failure {
    Failure::new(
        Class::BadRequest,
        403,
        "without `[ledger]` this gateway answers to pages of this machine only",
    )
}

/// What is said to who asks for something that his key is not good for.
pub(crate) fn not_allowed() -> Failure {
    Failure {
        param: Some("model".into()),
        code: Some("model_not_allowed".into()),
        ..Failure::new(Class::BadRequest, 403, "this key may not ask for this model")
    }
}

/// Where requests are let in.
pub(crate) struct Gate<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) config: &'a Config,
    pub(crate) route: &'a Route,
}

impl Gate<'_> {
    /// Lets a request in, or says why not. Past a soft limit it may be let in for something else than it asked for.
    ///
    /// # Errors
    /// In the words of a [`Failure`] that is the client's own.
    pub(crate) async fn admit(
        &self,
        headers: &HeaderMap,
        id: [u8; 16],
        name: &str,
        call: &Call<'_>,
    ) -> Result<Admitted, Failure> {
        let arrived = Instant::now();
        let key = key_of(headers).ok_or_else(no_key)?;
        let input = call.wish.needs.most_tokens(call.body_bytes);
        let most_output = most_output(call, self.config.expected_output);
        let is_usual = self.config.unknown_price == UnknownPrice::Allow || has_usual_tier(call.fields);
        let mut asked = Asked {
            id,
            route: name,
            tokens: input.saturating_add(most_output),
            cost: self.most(self.route, input, most_output).filter(|_| is_usual),
            is_downgraded: false,
        };
        let mut instead: Option<(String, Option<Arc<Route>>)> = None;
        loop {
            let settled = self.ledger.settled();
            let refusal = match self.ledger.admit(key, &asked).await {
                Ok(hold) => {
                    let headers = told(&hold, name, instead.as_ref());
                    let entry = Entry {
                        hold: Some(hold),
                        arrived,
                        tried: String::new(),
                        most_output,
                        asking: Vec::new(),
                        extra: Micros(0),
                        before: None,
                    };
                    let instead = instead.and_then(|(_, route)| route);
                    return Ok(Admitted {
                        entry,
                        instead,
                        headers,
                    });
                }
                Err(refusal) => refusal,
            };
            match refusal {
                Refusal::Downgrade { to } => {
                    let is_fine = |route: &Arc<Route>| {
                        route.rules.is_none() && (!self.route.is_private || route.stays_here())
                    };
                    let route = gateway::find(self.config, &to).filter(is_fine);
                    if route.is_none() {
                        tracing::error!(
                            to,
                            "a soft limit's fallback is no route and no target, or is elsewhere where nothing may \
                             leave this machine; the model asked for answers"
                        );
                    }
                    asked.is_downgraded = true;
                    let most = self.most(route.as_deref().unwrap_or(self.route), input, most_output);
                    asked.cost = most.filter(|_| is_usual);
                    instead = Some((to, route));
                }
                Refusal::Held => {
                    let left = PATIENCE.saturating_sub(arrived.elapsed());
                    if left.is_zero() {
                        return Err(failure(&Refusal::Held));
                    }
                    // Whether it came or not, it is asked again.
                    let _settled = tokio::time::timeout(left.min(self.ledger.nap()), settled).await;
                }
                refusal => return Err(failure(&refusal)),
            }
        }
    }

    /// The most that a request may cost, whoever answers. Nothing if it is not known of somebody.
    fn most(&self, route: &Route, input: u64, output: u64) -> Option<Micros> {
        let mut most = Micros(0);
        for candidate in &route.candidates {
            match self.config.prices.of(candidate) {
                Some(price) => most = most.max(price.most(input, output)),
                None if self.config.unknown_price == UnknownPrice::Allow => {}
                None => return None,
            }
        }
        Some(most)
    }
}

/// Whether a request is to be served in a way that costs what lists say, or less. What one costs that goes before others
/// (OpenAI's `priority`), or is faster (Anthropic's `speed`), nobody here knows.
fn has_usual_tier(fields: &Fields<'_>) -> bool {
    let is_one_of = |name: &str, usual: &[&str]| {
        let asked = fields.raw(name).filter(|asked| *asked != "null");
        asked.is_none_or(|asked| usual.contains(&asked.trim_matches('"')))
    };
    is_one_of("service_tier", &USUAL_TIERS) && is_one_of("speed", &["standard"])
}

/// The most tokens that all answers to a request may have together.
fn most_output(call: &Call<'_>, expected: u64) -> u64 {
    let bound = call.max_tokens.unwrap_or(expected);
    bound.saturating_mul(call.fields.n_answers())
}

/// What a client is told about its limits.
fn told(
    hold: &Hold,
    name: &str,
    instead: Option<&(String, Option<Arc<Route>>)>,
) -> Vec<(&'static str, String)> {
    let mut headers = Vec::new();
    if !hold.warnings().is_empty() {
        let warnings: Vec<String> = hold.warnings().iter().map(ToString::to_string).collect();
        headers.push((
            "x-carat-budget",
            format!("soft limit passed: {}", warnings.join("; ")),
        ));
    }
    if let Some((to, Some(_))) = instead {
        headers.push(("x-carat-downgraded", format!("{name} -> {to}")));
    }
    headers
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
        Refusal::Model => not_allowed(),
        Refusal::Role => Failure {
            code: Some("viewer".into()),
            ..Failure::new(
                Class::BadRequest,
                403,
                "this key's user may look at things and ask no model",
            )
        },
        Refusal::Concurrency { whose } => limited(
            &format!("the limit of this {whose} is reached: it has as many requests under way as it may"),
            Some(Duration::from_secs(1)),
        ),
        Refusal::Requests { whose, wait } => limited(
            &format!(
                "the limit of this {whose} is reached: it has made as many requests as it may in a minute"
            ),
            Some(*wait),
        ),
        Refusal::Tokens { whose, wait } => limited(
            &format!(
                "the limit of this {whose} is reached: it has used as many tokens as it may in a minute"
            ),
            Some(*wait),
        ),
        Refusal::Budget { whose } => Failure::new(
            Class::OutOfQuota,
            402,
            format!("what is left of the {whose}'s budget is less than this may cost"),
        ),
        // Nobody is left to ask for: the caller has asked for the fallback already.
        Refusal::Held | Refusal::Downgrade { .. } => Failure {
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
                "this key has a budget, but no price is known for the model, which can be set in [prices], or for the \
                 tier in which it is to answer (`service_tier`, `speed`)",
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
    /// A target is asked; says who was before. If the client leaves before it answers, it is paid by estimate.
    pub(crate) fn asks(&mut self, candidate: &Candidate, prices: &Prices, body_bytes: usize, tried: String) {
        self.tried = tried;
        self.asks_too(candidate, prices, body_bytes);
    }

    /// Another target is asked.
    pub(crate) fn asks_too(&mut self, candidate: &Candidate, prices: &Prices, body_bytes: usize) {
        self.asking.push(Asking {
            target: candidate.name.clone(),
            price: prices.of(candidate),
            input: body_bytes.div_ceil(4) as u64,
            since: Instant::now(),
        });
    }

    /// Whoever was asked has failed, and wants no money.
    pub(crate) fn failed(&mut self) {
        self.asking.clear();
    }

    /// One of those that were asked has failed.
    pub(crate) fn lost(&mut self, candidate: &Candidate) {
        self.asking.retain(|asking| asking.target != candidate.name);
    }

    /// The answer was kept from an earlier request, of which `target` gave it. It costs nothing.
    pub(crate) fn cached(mut self, target: &str) {
        let usage = Usage::default();
        let began = Some(Instant::now());
        let target = format!("cache:{target}");
        self.settle(target, Ended::Complete, &usage, true, Some(Micros(0)), began);
    }

    /// Something else than the answer itself cost so much.
    pub(crate) fn also(&mut self, cost: Micros) {
        self.extra = Micros(self.extra.0.saturating_add(cost.0));
    }

    /// The answer ended after so much of it, and not well; somebody else may be asked.
    pub(crate) fn took_before(&mut self, before: Before) {
        self.also(before.cost.unwrap_or_default());
        if !self.tried.is_empty() {
            self.tried.push(',');
        }
        self.tried
            .push_str(&format!("{}:{}", before.target, before.class.name()));
        self.asking.clear();
        self.before = Some(match self.before.take() {
            None => before,
            Some(earlier) => Before {
                usage: earlier.usage.plus(&before.usage),
                is_counted: earlier.is_counted && before.is_counted,
                began: earlier.began.or(before.began),
                ..before
            },
        });
    }

    /// Nobody went on with it.
    pub(crate) fn cut(self) {
        self.end_as(Ended::Cut);
    }

    /// Nothing is owed but what was taken before.
    fn end_as(mut self, outcome: Ended) {
        let target = self.before.as_ref().map(|before| before.target.clone());
        let (target, tokens) = (target.unwrap_or_default(), Usage::default());
        self.settle(target, outcome, &tokens, true, Some(Micros(0)), None);
    }

    /// A target was asked and is no longer waited for, whether another answered or its time was over: it will want the
    /// prompt's price at least.
    pub(crate) fn abandoned(&mut self, loser: &Candidate, prices: &Prices, body_bytes: usize) {
        let prompt = Usage {
            input: body_bytes.div_ceil(4) as u64,
            ..Usage::default()
        };
        let cost = prices.of(loser).map(|price| price.cost(&prompt));
        self.also(cost.unwrap_or_default());
    }

    /// Tokens that an answer is assumed to have had in a time in which nothing of it was seen.
    pub(crate) fn unseen(&self, time: Duration) -> u64 {
        let n_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let n_tokens = n_ms.saturating_mul(UNSEEN_TOKENS_PER_S) / 1000;
        n_tokens.min(self.most_output)
    }

    /// What a target took that is at work, as far as can be told, and what that costs.
    fn guessed(&self, asking: &Asking) -> (Usage, Option<Micros>) {
        let usage = Usage {
            input: asking.input,
            output: self.unseen(asking.since.elapsed()),
            ..Usage::default()
        };
        (usage, asking.price.as_ref().map(|price| price.cost(&usage)))
    }

    /// Nobody answered.
    pub(crate) fn fail(self) {
        self.end_as(Ended::Failed);
    }

    /// An answer has ended.
    pub(crate) fn end(
        mut self,
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
        let cost = price.map_or(usage.stated, |price| Some(price.cost(usage)));
        self.settle(target, ended, usage, is_counted, cost, began);
    }

    fn settle(
        &mut self,
        target: String,
        outcome: Ended,
        usage: &Usage,
        is_counted: bool,
        cost: Option<Micros>,
        began: Option<Instant>,
    ) {
        let Some(hold) = self.hold.take() else { return };
        let cost = in_all(cost, self.extra);
        let before = self.before.take();
        let (usage, is_counted, began) = match &before {
            None => (*usage, is_counted, began),
            Some(before) => (
                usage.plus(&before.usage),
                is_counted && before.is_counted,
                before.began.or(began),
            ),
        };
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        hold.settle(Row {
            target,
            tried: std::mem::take(&mut self.tried),
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

/// What a request cost, with what others took. That is spent even where nobody knows the price of who answered.
fn in_all(cost: Option<Micros>, extra: Micros) -> Option<Micros> {
    match cost {
        Some(cost) => Some(Micros(cost.0.saturating_add(extra.0))),
        None => Some(extra).filter(|extra| *extra > Micros(0)),
    }
}

impl Drop for Entry {
    /// The client has left or given up, or something went very wrong. Where targets were at work nobody will say what they
    /// took; where none was, what others took before is owed all the same.
    fn drop(&mut self) {
        let mut asking = std::mem::take(&mut self.asking).into_iter();
        let Some(first) = asking.next() else {
            let before = self.before.as_ref().map(|before| before.target.clone());
            if before.is_some() || self.extra > Micros(0) {
                let (target, tokens) = (before.unwrap_or_default(), Usage::default());
                self.settle(target, Ended::ClientGone, &tokens, true, Some(Micros(0)), None);
            }
            return;
        };
        for other in asking {
            let (_, cost) = self.guessed(&other);
            self.also(cost.unwrap_or_default());
        }
        let (usage, cost) = self.guessed(&first);
        self.settle(first.target, Ended::ClientGone, &usage, false, cost, None);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_wherever_it_stands() {
        let found = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            key_of(&headers).map(ToString::to_string)
        };
        let key = Some("k".to_string());
        assert_eq!(found(&[("authorization", "bearer k")]), key);
        assert_eq!(found(&[("authorization", "Basic x"), ("api-key", "k")]), key);
        assert_eq!(found(&[("authorization", "Bearer "), ("x-api-key", "k")]), key);
        assert_eq!(found(&[("x-api-key", ""), ("x-goog-api-key", "k")]), key);
        assert_eq!(found(&[("authorization", "Bearer ")]), None);
    }

    #[test]
    fn what_others_took_is_billed_without_a_price_for_the_last() {
        assert_eq!(in_all(Some(Micros(2)), Micros(3)), Some(Micros(5)));
        assert_eq!(in_all(None, Micros(3)), Some(Micros(3)));
        assert_eq!(in_all(None, Micros(0)), None, "nobody knows");
        assert_eq!(in_all(Some(Micros(0)), Micros(0)), Some(Micros(0)), "nothing");
    }
}
