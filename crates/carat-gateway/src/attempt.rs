//! A request's way to an answer: one target after another until one answers, or nothing more can help.
//!
//! Targets are asked in the order of the route's policy ([`crate::queue`]). A failure of the target leads to the next at
//! once, a failure of the request itself to the client, unless the route has somebody for exactly that. Where a route
//! hedges, a second target is asked when the first takes longer than usual; the first answer counts, the other call is
//! ended and paid for as far as is known.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use carat_ledger::Price;
use carat_traces::Trace;
use http::header::CONTENT_TYPE;
use http::response::Parts;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use tokio::time::Instant;

use crate::access::{Before, Bill, Entry};
use crate::account::{Account, Outcome};
use crate::budget::CallBudget;
use crate::clock;
use crate::config::Config;
use crate::effects;
use crate::endpoint::{Dialect, Endpoint};
use crate::failure::{Class, Failure};
use crate::fields::Fields;
use crate::files::Files;
use crate::guard::{Edited, Guard, Rewritten};
use crate::health::{HealthBook, Permit};
use crate::limits::ERROR_BYTES;
use crate::needs::Needs;
use crate::policy::{Asked, Known, Standing, ranked};
use crate::prepare::{self, Ask, Prepared};
use crate::queue::{Place, Queue, nobody};
use crate::relay::Relay;
use crate::route::{Candidate, Hedge, Policy, Route};
use crate::stream::{Forwarding, Transform, Whole};
use crate::trace::CallTrace;
use crate::translate::ollama;
use crate::upstream::{self, AnswerBody, Upstream};
use crate::usage::Usage;
use crate::variants::Variants;
use crate::waiting::Priority;

/// The part of its time that a target must have had to be thought slow. A little of the deadline has always passed
/// before it is asked.
const FAIR: f64 = 0.9;
/// Who says nothing for so long is thought ill if it has answered nobody lately, however much in a hurry its clients are:
/// else one that is dead would be asked first for ever by those who never wait for as long as the gateway would.
const LONG: Duration = Duration::from_secs(10);

/// What is asked, apart from whom.
pub(crate) struct Call<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) fields: &'a Fields<'a>,
    /// Bytes of its body, a picture for what it usually costs.
    pub(crate) body_bytes: usize,
    pub(crate) is_stream: bool,
    pub(crate) max_tokens: Option<u64>,
    pub(crate) forwarded: Vec<(HeaderName, HeaderValue)>,
    /// Until when its answer must be there, or a stream's first words.
    pub(crate) deadline: Instant,
    /// Until when a stream may last that has begun.
    pub(crate) ends: Instant,
    pub(crate) wish: Wish,
    /// Whether its stream is written so that another can go on with it.
    pub(crate) continues: bool,
    /// Its last turn is an answer's beginning, to be gone on with.
    pub(crate) is_continued: bool,
    /// What it names by its address, for those who are told no addresses.
    pub(crate) files: Files,
    /// The request's span, if somebody wants to have it.
    pub(crate) trace: Option<Trace>,
}

/// What decides about a call's way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish {
    pub(crate) needs: Needs,
    /// What it belongs to, where the policy keeps such together.
    pub(crate) key: Option<u64>,
    /// As the client states it; else the route's.
    pub(crate) priority: Option<Priority>,
}

impl Call<'_> {
    /// Whether who is asked this may do more than answer, so that it is asked again only where nothing was done.
    fn may_act(&self) -> bool {
        effects::may_act(self.endpoint, self.fields)
    }

    /// Whether its client has given up, before this gateway would have.
    fn is_given_up(&self) -> bool {
        self.deadline < self.ends && Instant::now() >= self.deadline
    }

    /// What policies may know of it.
    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked {
            endpoint: self.endpoint,
            needs: &self.wish.needs,
            prompt_bytes: self.body_bytes,
            key: self.wish.key,
        }
    }
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
    Whole { bytes: Bytes, usage: Usage },
    Stream(Box<Relay>),
}

/// Nobody answered.
pub(crate) struct Lost {
    pub(crate) trail: Trail,
    pub(crate) failure: Failure,
    /// Somebody may have done what was asked, and more than answer: it should not be asked again.
    pub(crate) may_be_done: bool,
}

/// Who was asked before, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    pub(crate) n_attempts: u32,
    pub(crate) failed: Vec<(String, Class)>,
    /// Who was not asked, or not in turn, and why.
    pub(crate) passed: Vec<(String, &'static str)>,
    /// Whose answer was no longer waited for.
    pub(crate) abandoned: Option<String>,
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

/// What all attempts share.
pub(crate) struct Means<'a> {
    pub(crate) upstream: &'a Upstream,
    pub(crate) book: &'a HealthBook,
    pub(crate) retries: &'a CallBudget,
    pub(crate) hedges: &'a CallBudget,
    pub(crate) variants: &'a Variants,
    /// Looks at answers.
    pub(crate) guard: Option<&'a Arc<Guard>>,
    pub(crate) config: &'a Config,
}

impl Means<'_> {
    /// What policies may know of the world.
    pub(crate) fn known(&self) -> Known<'_> {
        Known {
            book: self.book,
            prices: &self.config.prices,
            fetches: self.config.fetcher.is_some(),
            now: clock::now(),
        }
    }
}

/// Asks until somebody answers.
pub(crate) async fn answer(
    means: &Means<'_>,
    route: &Route,
    call: &Call<'_>,
    mut entry: Option<Entry>,
) -> Result<Won, Box<Lost>> {
    means.retries.earn();
    means.hedges.earn();
    let ranked = ranked(route, &call.asked(), &means.known());
    let mut queue = Queue::new(means, route, call, ranked);
    let mut trail = Trail {
        passed: passed(route, &queue),
        ..Trail::default()
    };
    let mut last: Option<Failure> = None;
    let mut may_be_done = false;
    while trail.n_attempts < means.config.attempts {
        let place = match place(means, route, call, &mut queue, &mut last).await {
            Ok(place) => place,
            Err(failure) => {
                last.get_or_insert(failure);
                break;
            }
        };
        if let Some(entry) = &mut entry {
            let candidate = &route.candidates[place.0];
            entry.asks(candidate, &means.config.prices, call.body_bytes, trail.text());
        }
        let raced = raced(means, route, call, &queue, place, &mut entry).await;
        trail.n_attempts += raced.n_calls;
        let mut is_final = false;
        let mut is_at_work = false;
        let mut given_up = Vec::new();
        for (i, mut failure) in raced.failed {
            if may_be_at_work(&failure) {
                is_at_work = true;
                // Who has said what it took is paid that.
                given_up.extend(failure.took.is_none().then_some(i));
            }
            let name = &route.candidates[i].name;
            tracing::debug!(target = name, class = failure.class.name(), "a target failed");
            if let (Some(entry), Some(usage)) = (&mut entry, failure.took.take()) {
                entry.took_before(Before::of(
                    &failure,
                    *usage,
                    &route.candidates[i],
                    &means.config.prices,
                ));
            }
            trail.failed.push((name.clone(), failure.class));
            if route.policy == Policy::Ab {
                let variant = means.variants.of(&route.name, name);
                variant.failures.fetch_add(1, Ordering::Relaxed);
            }
            may_be_done |= !failure.is_undone && call.may_act();
            is_final |= may_be_done || !queue.failed(i, &failure);
            last = Some(failure);
        }
        // Who states a short patience is billed as who closes the connection after it.
        let left = entry.take_if(|_| raced.won.is_none() && is_at_work && call.is_given_up());
        drop(left);
        if let Some(entry) = &mut entry {
            for i in given_up {
                entry.abandoned(&route.candidates[i], &means.config.prices, call.body_bytes);
            }
        }
        if let Some((i, begun)) = raced.won {
            if let Some(loser) = raced.abandoned {
                let loser = &route.candidates[loser];
                if let Some(entry) = &mut entry {
                    entry.abandoned(loser, &means.config.prices, call.body_bytes);
                }
                trail.abandoned = Some(loser.name.clone());
            }
            let candidate = &route.candidates[i];
            let mut begun = begun;
            if route.policy == Policy::Ab {
                let price = means.config.prices.of(candidate);
                let variant = means.variants.of(&route.name, &candidate.name);
                begun.account.count_for(variant, price);
            }
            let bill = entry.map(|entry| Bill::new(entry, &means.config.prices, candidate));
            return Ok(begun.finish(candidate, bill, trail));
        }
        if let Some(entry) = &mut entry {
            entry.failed();
        }
        if is_final {
            break;
        }
    }
    if let Some(entry) = entry {
        entry.fail();
    }
    let mut failure = last.unwrap_or_else(nobody);
    if may_be_done {
        failure
            .message
            .push_str("; the provider may have done what was asked, so nobody was asked again");
    }
    Err(Box::new(Lost {
        trail,
        failure,
        may_be_done,
    }))
}

/// The next to ask, with a place at it and all that it needs at hand: while files are fetched nobody else is kept from a
/// place. A failure to fetch them is the `last`, until somebody is asked who needs none.
pub(crate) async fn place(
    means: &Means<'_>,
    route: &Route,
    call: &Call<'_>,
    queue: &mut Queue<'_>,
    last: &mut Option<Failure>,
) -> Result<Place, Failure> {
    let (files, config) = (&call.files, means.config);
    let may_fetch = call.wish.needs.named.by_address && config.fetcher.is_some();
    loop {
        // Who is likely to be next, so that nobody who has waited for a place must give it back.
        if may_fetch
            && let Some(i) = queue.foremost()
            && let Err(failure) = files.fetch(call, &route.candidates[i], config).await
        {
            *last = Some(failure);
        }
        let place = queue.next(last.as_ref()).await?;
        let candidate = &route.candidates[place.0];
        if !files.are_missing(call, candidate, config) {
            return Ok(place);
        }
        drop(place);
        if let Err(failure) = files.fetch(call, candidate, config).await {
            *last = Some(failure);
        }
    }
}

/// Who is not asked in turn, for `x-carat-route`.
fn passed(route: &Route, queue: &Queue<'_>) -> Vec<(String, &'static str)> {
    let is_told = |standing: Standing| matches!(standing, Standing::Behind | Standing::Never);
    let passed = queue.ranked().iter().filter(|one| is_told(one.standing));
    passed
        .filter_map(|one| Some((route.candidates[one.i].name.clone(), one.why?.name())))
        .collect()
}

/// Whether who failed so may go on with what was asked, and want its money.
pub(crate) fn may_be_at_work(failure: &Failure) -> bool {
    failure.class == Class::Slow && !failure.is_undone
}

/// What became of one or two calls.
struct Raced {
    n_calls: u32,
    won: Option<(usize, Begun)>,
    failed: Vec<(usize, Failure)>,
    /// Who was asked too and has not answered.
    abandoned: Option<usize>,
}

/// Asks one target, and where the route hedges a second one if the first takes long.
async fn raced(
    means: &Means<'_>,
    route: &Route,
    call: &Call<'_>,
    queue: &Queue<'_>,
    (i, permit): Place,
    entry: &mut Option<Entry>,
) -> Raced {
    let after = hedged_after(means, route, call, permit.health().percentile_95());
    let mut first = Box::pin(attempt(means, route, (i, permit), call));
    let second = match after {
        None => None,
        Some(after) => match tokio::time::timeout(after, &mut first).await {
            Ok(result) => return Raced::one(i, result),
            Err(_) => {
                // Who would have to wait for files is of no help now.
                let is_ready = |place: &Place| {
                    let candidate = &route.candidates[place.0];
                    !call.files.are_missing(call, candidate, means.config)
                };
                let other = queue.another(i).filter(is_ready);
                other.filter(|_| means.hedges.spend(clock::now()))
            }
        },
    };
    let Some((j, permit)) = second else {
        return Raced::one(i, first.await);
    };
    if let Some(entry) = entry {
        entry.asks_too(&route.candidates[j], &means.config.prices, call.body_bytes);
    }
    let mut second = Box::pin(attempt(means, route, (j, permit), call));
    let (k, other, result) = tokio::select! {
        result = &mut first => (i, j, result),
        result = &mut second => (j, i, result),
    };
    match result {
        Ok(begun) => Raced {
            n_calls: 2,
            won: Some((k, begun)),
            failed: Vec::new(),
            abandoned: Some(other),
        },
        Err(failure) => {
            if let Some(entry) = entry.as_mut().filter(|_| !may_be_at_work(&failure)) {
                entry.lost(&route.candidates[k]);
            }
            let rest = if k == i { second.await } else { first.await };
            let mut raced = Raced::one(other, rest);
            raced.n_calls = 2;
            raced.failed.insert(0, (k, failure));
            raced
        }
    }
}

impl Raced {
    fn one(i: usize, result: Result<Begun, Failure>) -> Self {
        let (won, failed) = match result {
            Ok(begun) => (Some((i, begun)), Vec::new()),
            Err(failure) => (None, vec![(i, failure)]),
        };
        Self {
            n_calls: 1,
            won,
            failed,
            abandoned: None,
        }
    }
}

/// After how long a second target is asked. What may have effects beyond its answer is asked once.
fn hedged_after(
    means: &Means<'_>,
    route: &Route,
    call: &Call<'_>,
    percentile_95: Option<Duration>,
) -> Option<Duration> {
    let hedge = route.ways.hedge?;
    let stores = match call.endpoint {
        Endpoint::Responses => call.fields.get("store").unwrap_or(true),
        _ => call.fields.get("store").unwrap_or(false),
    };
    if call.wish.needs.tools || stores || means.config.attempts < 2 || call.may_act() {
        return None;
    }
    match hedge {
        Hedge::After(time) => Some(time),
        Hedge::Slowest => percentile_95,
    }
}

/// An answer that has begun and that nobody has promised to a client yet.
struct Begun {
    dropped: Vec<String>,
    upstream_id: Option<HeaderValue>,
    account: Account,
    what: Beginning,
}

enum Beginning {
    /// Made here; nobody was asked.
    Own(Bytes),
    Whole(Whole),
    Stream(Box<Relay>),
}

impl Begun {
    /// This is the answer that the client gets, and pays for.
    fn finish(self, candidate: &Candidate, bill: Option<Bill>, trail: Trail) -> Won {
        let mut account = self.account;
        let answer = match self.what {
            Beginning::Own(bytes) => {
                if let Some(Bill { entry, .. }) = bill {
                    let (name, free) = (candidate.name.clone(), Price::default());
                    entry.end(
                        name,
                        Some(&free),
                        &Outcome::Complete,
                        &Usage::default(),
                        true,
                        None,
                    );
                }
                let usage = Usage::default();
                Answer::Whole { bytes, usage }
            }
            Beginning::Whole(whole) => {
                let (bytes, usage) = (whole.bytes, whole.usage);
                account.began(bill, usage.output);
                account.settle(&Outcome::Complete, usage, whole.is_counted);
                Answer::Whole { bytes, usage }
            }
            Beginning::Stream(relay) => {
                account.began(bill, 0);
                Answer::Stream(relay.commit(account))
            }
        };
        Won {
            target: candidate.name.clone(),
            trail,
            dropped: self.dropped,
            upstream_id: self.upstream_id,
            answer,
        }
    }
}

/// What is to be done for a request. What goes wrong here, no provider has heard of.
fn prepared(candidate: &Candidate, call: &Call<'_>) -> Result<Prepared, Failure> {
    prepare::prepare(candidate, call).map_err(Failure::undone)
}

/// Asks one target once.
async fn attempt(
    means: &Means<'_>,
    route: &Route,
    (i, permit): Place,
    call: &Call<'_>,
) -> Result<Begun, Failure> {
    let candidate = &route.candidates[i];
    let Ask {
        mut request,
        mut dropped,
        mut forwarding,
    } = match prepared(candidate, call)? {
        Prepared::Ask(ask) => *ask,
        Prepared::Answer { bytes, dropped } => {
            return Ok(Begun {
                dropped,
                upstream_id: None,
                account: Account::new(permit, &candidate.name, call.body_bytes),
                what: Beginning::Own(bytes),
            });
        }
    };
    forwarding.keeps_refusals = !route.has_more_for_refused(i);
    let mut asking = Asking::new(means, candidate, permit, call);
    asking
        .account
        .trace(CallTrace::begin(call, candidate, &mut request));
    let may_be_plainer = forwarding.is_translated && forwarding.dialect == Dialect::Ollama;
    let spare = may_be_plainer.then(|| request.clone());
    let read = async {
        let (head, body) = match (asking.send(request, &forwarding).await, spare) {
            (Err(failure), Some(spare)) => {
                let again = plainer(spare, &failure, &mut dropped).ok_or(failure)?;
                asking.send(again, &forwarding).await?
            }
            (sent, _) => sent?,
        };
        asking.read(&head, body, forwarding).await
    };
    let read = read.await;
    match asking.ended(read) {
        (account, Ok((upstream_id, what))) => Ok(Begun {
            dropped,
            upstream_id,
            account,
            what,
        }),
        (_, Err(failure)) => Err(failure),
    }
}

/// The same request without a wish that this gateway told in its own words, and that the model turned down at once.
fn plainer(
    mut request: Request<Bytes>,
    failure: &Failure,
    dropped: &mut Vec<String>,
) -> Option<Request<Bytes>> {
    *request.body_mut() = Bytes::from(ollama::without_thinking(request.body(), failure)?);
    dropped.push("reasoning_effort".into());
    Some(request)
}

/// Asks one target to go on with a stream: it has begun to answer, and nothing of that has been read.
pub(crate) async fn opened(
    means: &Means<'_>,
    route: &Route,
    (i, permit): Place,
    call: &Call<'_>,
) -> Result<(AnswerBody, Forwarding, Account), Failure> {
    let candidate = &route.candidates[i];
    let Prepared::Ask(ask) = prepared(candidate, call)? else {
        return Err(nobody());
    };
    let forwarding = ask.forwarding;
    let asking = Asking::new(means, candidate, permit, call);
    let sent = asking.send(ask.request, &forwarding).await;
    let sent = sent.and_then(|(head, body)| {
        let is_stream = forwarding.is_stream(content_type(&head));
        is_stream.then_some(body).ok_or_else(no_stream)
    });
    let (account, body) = asking.ended(sent);
    Ok((body?, forwarding, account))
}

fn content_type(head: &Parts) -> &str {
    let kind = head.headers.get(CONTENT_TYPE);
    kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default()
}

fn no_stream() -> Failure {
    let message = "the provider answered with something that is no event stream";
    Failure::new(Class::ServerFault, 502, message)
}

fn too_slow() -> Failure {
    Failure::new(Class::Slow, 504, "the provider took too long to answer")
}

/// One call of a target.
struct Asking<'a> {
    means: &'a Means<'a>,
    candidate: &'a Candidate,
    call: &'a Call<'a>,
    /// When it was asked, and when the first words, or the whole answer, must be there.
    asked: Instant,
    until: Instant,
    /// How long it may take where nothing else is in a hurry.
    patience: Duration,
    account: Account,
}

impl<'a> Asking<'a> {
    fn new(means: &'a Means<'a>, candidate: &'a Candidate, permit: Permit, call: &'a Call<'a>) -> Self {
        permit.health().spend(call.wish.needs.room());
        let timeouts = &means.config.timeouts;
        let patience = if call.is_stream {
            timeouts.first_token
        } else {
            timeouts.whole
        };
        let patience = patience.min(timeouts.total);
        let asked = Instant::now();
        Self {
            means,
            candidate,
            call,
            asked,
            until: call.deadline.min(asked + patience),
            patience,
            account: Account::new(permit, &candidate.name, call.body_bytes),
        }
    }

    /// Sends it: an answer that says that it is one.
    async fn send(
        &self,
        request: Request<Bytes>,
        forwarding: &Forwarding,
    ) -> Result<(Parts, AnswerBody), Failure> {
        let upstream = self.means.upstream;
        let may_repeat = || !self.call.may_act();
        let sending = upstream.send(&self.candidate.provider, request, self.call.is_stream, may_repeat);
        let sent = tokio::time::timeout_at(self.until, sending).await;
        let (head, body) = sent.map_err(|_| too_slow())??.into_parts();
        self.account.learn(&head);
        if head.status != StatusCode::OK {
            let body = tokio::time::timeout_at(self.until, upstream::collect(body, ERROR_BYTES)).await;
            let body = body.ok().and_then(Result::ok).unwrap_or_default();
            if head.status.is_redirection() {
                return Err(Failure::of_redirect(head.status, &self.candidate.provider.name));
            }
            let secret = forwarding.secret.as_deref();
            let failure = Failure::of_answer(head.status, &head.headers, &body, secret);
            return Err(if forwarding.is_translated {
                failure.of_translation()
            } else {
                failure
            });
        }
        Ok((head, body))
    }

    async fn read(
        &self,
        head: &Parts,
        body: AnswerBody,
        forwarding: Forwarding,
    ) -> Result<(Option<HeaderValue>, Beginning), Failure> {
        let id = ["x-request-id", "request-id", "x-amzn-requestid"]
            .iter()
            .find_map(|name| head.headers.get(*name));
        let is_stream = forwarding.is_stream(content_type(head));
        let what = if self.call.is_stream && is_stream {
            self.stream(body, forwarding).await?
        } else {
            self.whole(body, &forwarding).await?
        };
        Ok((id.cloned(), what))
    }

    async fn stream(&self, body: AnswerBody, forwarding: Forwarding) -> Result<Beginning, Failure> {
        let framing = forwarding.framing();
        let guard = self.means.guard.map(Arc::clone);
        let transform: Box<dyn Transform> = match guard {
            Some(guard) if !forwarding.is_translated && !self.call.continues => {
                Box::new(Edited::new(forwarding, guard))
            }
            None if !self.call.continues => forwarding.transform(),
            guard => Box::new(Rewritten::new(forwarding, guard)),
        };
        let idle = self.means.config.timeouts.idle;
        let mut relay = Relay::new(body, framing, transform, idle, self.call.ends);
        relay.begin(self.until, &self.account).await?;
        Ok(Beginning::Stream(Box::new(relay)))
    }

    async fn whole(&self, body: AnswerBody, forwarding: &Forwarding) -> Result<Beginning, Failure> {
        let limit = self.means.config.body_bytes;
        let collected = tokio::time::timeout_at(self.until, upstream::collect(body, limit)).await;
        let bytes = collected.map_err(|_| too_slow())??;
        self.account.heard(&bytes);
        let whole = forwarding.whole(bytes)?;
        if self.call.is_stream {
            return Err(no_stream());
        }
        Ok(Beginning::Whole(whole))
    }

    /// What came of it, and what is written down about it.
    fn ended<T>(self, result: Result<T, Failure>) -> (Account, Result<T, Failure>) {
        if let Err(failure) = &result {
            // A client that was about to leave says nothing about who was asked last.
            let had = self.until.saturating_duration_since(self.asked);
            let is_known = || self.account.has_answered_lately();
            if failure.class != Class::Slow || is_enough(had, self.patience, is_known) {
                self.account.failed(failure);
            }
        }
        (self.account, result)
    }
}

/// Whether who has not answered in the time that it `had` is ill. `is_known`: it has answered others lately.
fn is_enough(had: Duration, patience: Duration, is_known: impl Fn() -> bool) -> bool {
    had >= patience.mul_f64(FAIR) || had >= LONG && !is_known()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_too_little_time_is_not_ill() {
        let patience = Duration::from_secs(120);
        let cases = [
            (120, true, true),
            (119, true, true),
            (30, true, false),
            (30, false, true),
            (9, false, false),
        ];
        for (had, is_known, expected) in cases {
            let is_ill = is_enough(Duration::from_secs(had), patience, || is_known);
            assert_eq!(is_ill, expected, "{had} s, known: {is_known}");
        }
    }
}
