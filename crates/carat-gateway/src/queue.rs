//! Who is asked next.
//!
//! First everybody who has not been asked, in the order of the policy. Where all of them are full a request waits for a
//! place, if its route lets it. Where they rest, the one whose rest ends first is probed, since a refusal without asking
//! would make an outage total; who finds others probing waits a few seconds for what they find. Only when all have failed
//! is somebody asked again, after the stated wait or a growing random one, as long as the retry budget allows it: at most
//! one retry for five requests, so that an outage is not made worse.

use std::time::Duration;

use tokio::time::Instant;

use crate::attempt::{Call, Means};
use crate::failure::{Class, Failure};
use crate::health::{Comes, Health, Permit, Readiness};
use crate::limits::PATIENCE;
use crate::policy::{Ranked, Standing};
use crate::route::{Candidate, Role, Route};
use crate::waiting::Ticket;

/// How often one who waits looks whether somebody has ended a rest.
const LOOK: Duration = Duration::from_millis(250);

/// How long a request waits for one of those to recover that others are probing.
const RECOVERY: Duration = Duration::from_secs(3);
/// How often it looks meanwhile, on average.
const GLANCE: Duration = Duration::from_millis(80);
/// Times that those are asked again who have all failed.
const MOST_ROUNDS: u32 = 5;

/// A candidate, and a place at it.
pub(crate) type Place = (usize, Permit);

/// Who is still to be asked.
pub(crate) struct Queue<'a> {
    means: &'a Means<'a>,
    route: &'a Route,
    call: &'a Call<'a>,
    ranked: Vec<Ranked>,
    /// Who may be asked, best first.
    order: Vec<usize>,
    /// Candidates that failed, and how.
    failed: Vec<(usize, Class)>,
    n_rounds: u32,
    /// Until when this request waits for a place.
    waits_until: Instant,
    /// Until when it waits for somebody to recover, once it does.
    looks_until: Option<Instant>,
}

/// What is said when nobody can be asked.
pub(crate) fn nobody() -> Failure {
    Failure::new(
        Class::Overloaded,
        503,
        "no provider can take this request now; try again",
    )
}

impl<'a> Queue<'a> {
    pub(crate) fn new(
        means: &'a Means<'a>,
        route: &'a Route,
        call: &'a Call<'a>,
        ranked: Vec<Ranked>,
    ) -> Self {
        let may_be_asked = |one: &&Ranked| one.standing <= Standing::Behind;
        Self {
            order: ranked.iter().filter(may_be_asked).map(|one| one.i).collect(),
            ranked,
            means,
            route,
            call,
            failed: Vec::new(),
            n_rounds: 0,
            waits_until: Instant::now() + route.ways.queue,
            looks_until: None,
        }
    }

    /// Candidates in their order, with why some are not in front.
    pub(crate) fn ranked(&self) -> &[Ranked] {
        &self.ranked
    }

    fn candidate(&self, i: usize) -> &'a Candidate {
        &self.route.candidates[i]
    }

    fn has_failed(&self, i: usize) -> bool {
        self.failed.iter().any(|(other, _)| *other == i)
    }

    fn untried(&self) -> Vec<usize> {
        let untried = self.order.iter().copied().filter(|i| !self.has_failed(*i));
        untried.collect()
    }

    /// Takes note of a failure: whether somebody else may be asked.
    pub(crate) fn failed(&mut self, i: usize, class: Class) -> bool {
        self.failed.retain(|(other, _)| *other != i);
        self.failed.push((i, class));
        match class {
            Class::ContextTooLong => self.keep_larger(i),
            Class::ContentPolicy => self.keep_role(Role::ForRefused),
            class => !class.is_final(),
        }
    }

    /// From now on only those are asked that take longer prompts.
    fn keep_larger(&mut self, than: usize) -> bool {
        let context = self.candidate(than).abilities.context;
        let is_larger = |i: &usize| {
            let other = self.candidate(*i).abilities.context;
            other.zip(context).is_some_and(|(other, context)| other > context)
        };
        let mut larger: Vec<usize> = self.untried().into_iter().filter(is_larger).collect();
        larger.extend(self.reserve(Role::ForLongPrompts));
        self.order = larger;
        !self.order.is_empty()
    }

    fn keep_role(&mut self, role: Role) -> bool {
        self.order = self.reserve(role);
        !self.order.is_empty()
    }

    fn reserve(&self, role: Role) -> Vec<usize> {
        let able = self.ranked.iter().filter(|one| one.standing != Standing::Never);
        able.map(|one| one.i)
            .filter(|i| self.candidate(*i).role == role && !self.has_failed(*i))
            .collect()
    }

    /// Somebody who can be asked at once, apart from those who were.
    pub(crate) fn another(&self, than: usize) -> Option<Place> {
        let others: Vec<usize> = self.untried().into_iter().filter(|i| *i != than).collect();
        self.admitted(&others, Comes::Newly)
    }

    /// The next to ask, with a place at it.
    pub(crate) async fn next(&mut self, last: Option<&Failure>) -> Result<Place, Failure> {
        if self.order.is_empty() && last.is_none() {
            return Err(self.unable());
        }
        loop {
            let untried = self.untried();
            if let Some(place) = self.admitted(&untried, Comes::Newly) {
                return Ok(place);
            }
            if let Some(place) = self.waited(&untried).await {
                return Ok(place);
            }
            let resting = self.resting(&untried);
            let order: Vec<usize> = resting.iter().map(|(i, _)| *i).collect();
            if let Some(place) = self.admitted(&order, Comes::Forced) {
                return Ok(place);
            }
            // Others are finding out whether somebody is well again: they will soon know.
            if !resting.is_empty() && self.may_look_again().await {
                continue;
            }
            match last {
                Some(last) => self.again(last).await?,
                None => {
                    return Err(Failure {
                        wait: resting.first().map(|(_, wait)| *wait),
                        ..nobody()
                    });
                }
            }
        }
    }

    /// Waits a moment, as long as there is patience for it.
    async fn may_look_again(&mut self) -> bool {
        let now = Instant::now();
        let until = *self.looks_until.get_or_insert(now + RECOVERY);
        let may = now < until.min(self.call.deadline);
        if may {
            tokio::time::sleep(GLANCE.mul_f64(0.5 + fastrand::f64())).await;
        }
        may
    }

    /// Nobody can do what is asked, whenever.
    fn unable(&self) -> Failure {
        let why = self.ranked.iter().find_map(|one| one.why);
        let why = why.map_or("none has a weight", |why| why.text());
        let message = format!("no candidate of `{}` can answer this: {why}", self.route.name);
        Failure::new(Class::BadRequest, 400, message)
    }

    /// Waits until those who failed may be asked again.
    async fn again(&mut self, last: &Failure) -> Result<(), Failure> {
        let may_be_asked = |i: &usize| {
            let failed = self.failed.iter().find(|(other, _)| other == i);
            failed.is_none_or(|(_, class)| class.may_retry())
        };
        let again: Vec<usize> = self.order.iter().copied().filter(may_be_asked).collect();
        let wait = self.wait(last);
        let is_possible = !again.is_empty()
            && self.n_rounds < MOST_ROUNDS
            && wait <= PATIENCE
            && Instant::now() + wait < self.call.deadline;
        // Those that rest are probed by one request at a time: nobody needs to be spared.
        let is_spared = || self.resting(&again).len() == again.len();
        if !is_possible || !(is_spared() || self.means.retries.spend()) {
            return Err(nobody());
        }
        tokio::time::sleep(wait).await;
        self.n_rounds += 1;
        // Once round again: then everybody who may be asked anew has been.
        self.failed.retain(|(_, class)| !class.may_retry());
        Ok(())
    }

    /// Half a second, doubling up to eight, less up to a quarter at random; the stated wait if that is longer.
    fn wait(&self, last: &Failure) -> Duration {
        let backoff = 0.5 * f64::from(1u32 << self.n_rounds.min(4));
        let backoff = Duration::from_secs_f64(backoff * (1.0 - 0.25 * fastrand::f64()));
        last.wait.unwrap_or(Duration::ZERO).max(backoff)
    }

    /// Waits in the lines of those who are full, for as long as the route lets it.
    async fn waited(&self, among: &[usize]) -> Option<Place> {
        let until = self.waits_until.min(self.call.deadline);
        if Instant::now() >= until || !self.is_somebody_full(among) {
            return None;
        }
        let priority = self.call.wish.priority.unwrap_or(self.route.ways.priority);
        let since = std::time::Instant::now();
        loop {
            let mut ticket = Ticket::new(priority, since);
            let mut has_joined = false;
            for &i in among {
                let (health, most) = self.health(i);
                has_joined |= most < usize::MAX && ticket.join(&health, most);
            }
            if !has_joined {
                return None;
            }
            // A place may have become free before this stood in line, or when a rest ended.
            if let Some(place) = self.taken(among, &mut ticket) {
                return Some(place);
            }
            let look = until.min(Instant::now() + LOOK);
            let _called_or_not = tokio::time::timeout_at(look, ticket.called()).await;
            if let Some(place) = self.taken(among, &mut ticket) {
                return Some(place);
            }
            if Instant::now() >= until {
                return None;
            }
        }
    }

    /// A place for one who has waited.
    fn taken(&self, among: &[usize], ticket: &mut Ticket) -> Option<Place> {
        let now = std::time::Instant::now();
        let (i, permit) = among.iter().find_map(|&i| {
            let (health, most) = self.health(i);
            let comes = if ticket.may_take(&health) {
                Comes::Called
            } else {
                Comes::Newly
            };
            health.admit(most, comes, now).ok().map(|permit| (i, permit))
        })?;
        ticket.leave(Some(permit.health()));
        Some((i, permit))
    }

    fn is_somebody_full(&self, among: &[usize]) -> bool {
        let now = std::time::Instant::now();
        among.iter().any(|&i| {
            let (health, most) = self.health(i);
            health.readiness(most, now) == Readiness::Full
        })
    }

    fn health(&self, i: usize) -> (std::sync::Arc<Health>, usize) {
        let candidate = self.candidate(i);
        (
            self.means.book.of(&candidate.name),
            candidate.provider.max_in_flight,
        )
    }

    /// The first of `among` that takes the request.
    fn admitted(&self, among: &[usize], comes: Comes) -> Option<Place> {
        let now = std::time::Instant::now();
        among.iter().find_map(|&i| {
            let (health, most) = self.health(i);
            health.admit(most, comes, now).ok().map(|permit| (i, permit))
        })
    }

    /// Who of these rests, and how long still; the shortest rest first.
    fn resting(&self, among: &[usize]) -> Vec<(usize, Duration)> {
        let now = std::time::Instant::now();
        let resting = among.iter().filter_map(|&i| {
            let (health, most) = self.health(i);
            match health.readiness(most, now) {
                Readiness::Resting(until) => Some((i, until.saturating_duration_since(now))),
                Readiness::Ready | Readiness::Full => None,
            }
        });
        let mut resting: Vec<_> = resting.collect();
        resting.sort_by_key(|(_, wait)| *wait);
        resting
    }
}
