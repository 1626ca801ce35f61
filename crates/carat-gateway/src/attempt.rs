//! A request's way to an answer: one target after another until one answers, or nothing more can help.
//!
//! Targets are asked in the order of the route's policy; those that rest are passed over. A failure of the target leads
//! to the next at once, a failure of the request itself to the client. Only when all have failed is somebody asked
//! again, after the stated wait or a growing random one, as long as the retry budget allows it: at most one retry for
//! five requests, so that an outage is not made worse. When all rest, the one whose rest ends first is probed, since a
//! refusal without asking would make the outage total.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use tokio::time::Instant;

use crate::access::{Bill, Entry};
use crate::account::{Account, Outcome};
use crate::config::{Config, Timeouts};
use crate::endpoint::Endpoint;
use crate::failure::{Class, Failure};
use crate::fields::Fields;
use crate::health::{HealthBook, Permit, Readiness};
use crate::limits::{ERROR_BYTES, PATIENCE};
use crate::prepare::{self, Prepared};
use crate::relay::Relay;
use crate::route::{Asked, Candidate, Route};
use crate::stream::{Forwarding, estimated};
use crate::upstream::{self, AnswerBody, Upstream};
use crate::usage::Usage;

/// What is asked, apart from whom.
pub(crate) struct Call<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) fields: &'a Fields<'a>,
    pub(crate) body_bytes: usize,
    pub(crate) is_stream: bool,
    pub(crate) max_tokens: Option<u64>,
    pub(crate) forwarded: Vec<(HeaderName, HeaderValue)>,
    pub(crate) deadline: Instant,
}

/// An answer.
pub(crate) struct Won {
    pub(crate) target: String,
    pub(crate) trail: Trail,
    pub(crate) dropped: Vec<String>,
    /// The provider's own name of the request.
    pub(crate) upstream_id: Option<HeaderValue>,
    pub(crate) answer: Answer,
}

/// What a target answered.
pub(crate) enum Answer {
    Whole { bytes: Bytes },
    Stream(Box<Relay>),
}

/// Nobody answered.
pub(crate) struct Lost {
    pub(crate) trail: Trail,
    pub(crate) failure: Failure,
}

/// Who was asked before, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    pub(crate) n_attempts: u32,
    pub(crate) failed: Vec<(String, Class)>,
}

impl Trail {
    /// Who failed and how, such as `a/x:slow,b/y:network`.
    pub(crate) fn text(&self) -> String {
        let failed: Vec<_> = self
            .failed
            .iter()
            .map(|(name, class)| format!("{name}:{}", class.name()))
            .collect();
        failed.join(",")
    }
}

/// How many retries may be made: every request earns a fifth of one.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    fifths: AtomicI64,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            fifths: AtomicI64::new(Self::MOST),
        }
    }
}

impl RetryBudget {
    /// Fifths that may be saved: room for a burst of twenty.
    const MOST: i64 = 100;

    fn earn(&self) {
        if self.fifths.load(Ordering::Relaxed) < Self::MOST {
            self.fifths.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn spend(&self) -> bool {
        let enough = self.fifths.fetch_sub(5, Ordering::Relaxed) >= 5;
        if !enough {
            self.fifths.fetch_add(5, Ordering::Relaxed);
        }
        enough
    }
}

/// What all attempts share.
pub(crate) struct Means<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) book: &'a HealthBook,
    pub(crate) retries: &'a RetryBudget,
    pub(crate) config: &'a Config,
}

/// Asks until somebody answers.
pub(crate) async fn answer(
    means: &Means<'_>,
    route: &Route,
    call: &Call<'_>,
    mut entry: Option<Entry>,
) -> Result<Won, Box<Lost>> {
    means.retries.earn();
    let asked = Asked {
        prompt_bytes: call.body_bytes,
        max_tokens: call.max_tokens,
    };
    let mut queue = Queue::new(route.order(asked, means.book));
    let mut trail = Trail::default();
    let mut last: Option<Failure> = None;
    while trail.n_attempts < means.config.attempts {
        let (i, permit) = match queue.next(means, route, call, last.as_ref()).await {
            Ok(next) => next,
            Err(failure) => {
                last.get_or_insert(failure);
                break;
            }
        };
        trail.n_attempts += 1;
        let candidate = &route.candidates[i];
        if let Some(entry) = &mut entry {
            entry.asks(candidate, &means.config.prices, call.body_bytes, trail.text());
        }
        match attempt(means, candidate, permit, call, &mut entry).await {
            Ok(mut won) => {
                won.trail = trail;
                return Ok(won);
            }
            Err(failure) => {
                if let Some(entry) = &mut entry {
                    entry.failed();
                }
                tracing::debug!(
                    target = candidate.name,
                    class = failure.class.name(),
                    "a target failed"
                );
                trail.failed.push((candidate.name.clone(), failure.class));
                queue.failed(i, failure.class);
                let is_final = failure.class.is_final();
                last = Some(failure);
                if is_final {
                    break;
                }
            }
        }
    }
    if let Some(entry) = entry {
        entry.fail();
    }
    let failure = last.unwrap_or_else(nobody);
    Err(Box::new(Lost { trail, failure }))
}

fn nobody() -> Failure {
    Failure::new(
        Class::Overloaded,
        503,
        "no provider can take this request now; try again",
    )
}

/// Who is still to be asked.
struct Queue {
    order: Vec<usize>,
    /// Candidates that failed, and how.
    failed: Vec<(usize, Class)>,
    n_rounds: u32,
}

impl Queue {
    fn new(order: Vec<usize>) -> Self {
        Self {
            order,
            failed: Vec::new(),
            n_rounds: 0,
        }
    }

    fn failed(&mut self, i: usize, class: Class) {
        self.failed.retain(|(other, _)| *other != i);
        self.failed.push((i, class));
    }

    /// The next to ask, with a place at it.
    async fn next(
        &mut self,
        means: &Means<'_>,
        route: &Route,
        call: &Call<'_>,
        last: Option<&Failure>,
    ) -> Result<(usize, Permit), Failure> {
        let untried: Vec<usize> = self
            .order
            .iter()
            .copied()
            .filter(|i| !self.has_failed(*i))
            .collect();
        if let Some(found) = admitted(means, route, &untried, false) {
            return Ok(found);
        }
        let Some(last) = last else {
            // Nobody was asked yet: all rest or are full.
            let soonest = soonest(means, route, &untried);
            let forced = soonest.and_then(|(i, _)| admitted(means, route, &[i], true));
            return forced.ok_or_else(|| Failure {
                wait: soonest.map(|(_, wait)| wait),
                ..nobody()
            });
        };
        let again: Vec<usize> = self
            .order
            .iter()
            .copied()
            .filter(|i| {
                self.failed
                    .iter()
                    .any(|(other, class)| other == i && class.may_retry())
            })
            .collect();
        let wait = self.wait(last);
        let is_possible = !again.is_empty() && wait <= PATIENCE && Instant::now() + wait < call.deadline;
        if !is_possible || !means.retries.spend() {
            return Err(nobody());
        }
        tokio::time::sleep(wait).await;
        self.n_rounds += 1;
        // Once round again: then everybody who may be asked anew has been.
        self.failed.retain(|(_, class)| !class.may_retry());
        admitted(means, route, &again, false).ok_or_else(nobody)
    }

    fn has_failed(&self, i: usize) -> bool {
        self.failed.iter().any(|(other, _)| *other == i)
    }

    /// Half a second, doubling up to eight, less up to a quarter at random; the stated wait if that is longer.
    fn wait(&self, last: &Failure) -> Duration {
        let backoff = 0.5 * f64::from(1u32 << self.n_rounds.min(4));
        let backoff = Duration::from_secs_f64(backoff * (1.0 - 0.25 * fastrand::f64()));
        last.wait.unwrap_or(Duration::ZERO).max(backoff)
    }
}

/// The first of `among` that takes the request.
fn admitted(means: &Means<'_>, route: &Route, among: &[usize], is_forced: bool) -> Option<(usize, Permit)> {
    let now = std::time::Instant::now();
    among.iter().find_map(|&i| {
        let candidate = &route.candidates[i];
        let health = means.book.of(&candidate.name);
        let permit = health.admit(candidate.provider.max_in_flight, is_forced, now);
        permit.ok().map(|permit| (i, permit))
    })
}

/// Who of those that rest does so for the shortest time, and how long.
fn soonest(means: &Means<'_>, route: &Route, among: &[usize]) -> Option<(usize, Duration)> {
    let now = std::time::Instant::now();
    let resting = among.iter().filter_map(|&i| {
        let candidate = &route.candidates[i];
        match means
            .book
            .of(&candidate.name)
            .readiness(candidate.provider.max_in_flight, now)
        {
            Readiness::Resting(until) => Some((i, until.saturating_duration_since(now))),
            Readiness::Ready | Readiness::Full => None,
        }
    });
    resting.min_by_key(|(_, wait)| *wait)
}

/// Asks one target once.
async fn attempt(
    means: &Means<'_>,
    candidate: &Candidate,
    permit: Permit,
    call: &Call<'_>,
    entry: &mut Option<Entry>,
) -> Result<Won, Failure> {
    let Prepared {
        request,
        dropped,
        forwarding,
    } = prepare::prepare(candidate, call)?;
    let timeouts = &means.config.timeouts;
    let until = if call.is_stream {
        call.deadline.min(Instant::now() + timeouts.first_token)
    } else {
        call.deadline
    };
    let mut reading = Reading {
        means,
        candidate,
        entry,
        call,
        timeouts,
        until,
        body_limit: means.config.body_bytes,
        account: Some(Account::new(permit, &candidate.name, call.body_bytes)),
    };
    let read = async {
        let sent = tokio::time::timeout_at(
            until,
            means.upstream.send(&candidate.provider, request, call.is_stream),
        )
        .await;
        let response = sent.map_err(|_| too_slow())??;
        reading.read(response, forwarding).await
    };
    let result = read.await;
    match (result, reading.account) {
        (Ok((upstream_id, answer)), _) => Ok(Won {
            target: candidate.name.clone(),
            trail: Trail::default(),
            dropped,
            upstream_id,
            answer,
        }),
        (Err(failure), account) => {
            if let Some(account) = account {
                account.failed(&failure);
            }
            Err(failure)
        }
    }
}

fn too_slow() -> Failure {
    Failure::new(Class::Slow, 504, "the provider took too long to answer")
}

/// Reading what a target answers.
struct Reading<'a> {
    means: &'a Means<'a>,
    candidate: &'a Candidate,
    /// Taken by whoever answers.
    entry: &'a mut Option<Entry>,
    call: &'a Call<'a>,
    timeouts: &'a Timeouts,
    /// When the first words, or the whole answer, must be there.
    until: Instant,
    body_limit: usize,
    /// Taken when the answer has begun.
    account: Option<Account>,
}

impl Reading<'_> {
    async fn read(
        &mut self,
        response: Response<AnswerBody>,
        forwarding: Forwarding,
    ) -> Result<(Option<HeaderValue>, Answer), Failure> {
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            let body = tokio::time::timeout_at(self.until, upstream::collect(body, ERROR_BYTES)).await;
            let body = body.ok().and_then(Result::ok).unwrap_or_default();
            let secret = forwarding.secret.as_deref();
            return Err(Failure::of_answer(head.status, &head.headers, &body, secret));
        }
        let id = head
            .headers
            .get("x-request-id")
            .or_else(|| head.headers.get("request-id"))
            .or_else(|| head.headers.get("x-amzn-requestid"))
            .cloned();
        let kind = head
            .headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .unwrap_or_default();
        let is_stream = forwarding.is_stream(kind);
        let answer = if self.call.is_stream && is_stream {
            self.stream(body, forwarding).await?
        } else {
            self.whole(body, &forwarding).await?
        };
        Ok((id, answer))
    }

    fn bill(&mut self) -> Option<Bill> {
        let entry = self.entry.take()?;
        Some(Bill::new(entry, &self.means.config.prices, self.candidate))
    }

    async fn stream(&mut self, body: AnswerBody, forwarding: Forwarding) -> Result<Answer, Failure> {
        let framing = forwarding.framing();
        let transform = forwarding.transform();
        let mut relay = Relay::new(body, framing, transform, self.timeouts.idle, self.call.deadline);
        let Some(account) = &self.account else {
            return Err(nobody());
        };
        relay.begin(self.until, account).await?;
        let Some(mut account) = self.account.take() else {
            return Err(nobody());
        };
        account.began(self.bill());
        Ok(Answer::Stream(Box::new(relay.commit(account))))
    }

    async fn whole(&mut self, body: AnswerBody, forwarding: &Forwarding) -> Result<Answer, Failure> {
        let collected = tokio::time::timeout_at(self.until, upstream::collect(body, self.body_limit)).await;
        let bytes = collected.map_err(|_| too_slow())??;
        let (bytes, usage) = forwarding.whole(bytes)?;
        if self.call.is_stream {
            let message = "the provider answered with something that is no event stream";
            return Err(Failure::new(Class::ServerFault, 502, message));
        }
        if let Some(mut account) = self.account.take() {
            account.began(self.bill());
            // Who does not count is not free: four bytes a token, as for streams.
            let is_counted = usage != Usage::default();
            let usage = if is_counted {
                usage
            } else {
                estimated(bytes.len() as u64)
            };
            account.settle(&Outcome::Complete, usage, is_counted);
        }
        Ok(Answer::Whole { bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_fifth_of_requests() {
        let budget = RetryBudget::default();
        let burst = (0..50).filter(|_| budget.spend()).count();
        assert_eq!(burst, 20);
        (0..100).for_each(|_| budget.earn());
        assert_eq!((0..50).filter(|_| budget.spend()).count(), 20);
    }
}
