//! Who is asked next.
//!
//! First everybody who has not been asked, in the order of the policy. Where all of them are full a request waits for a
//! place, if its route lets it. When all have failed, they are asked anew, each after the stated wait or a growing random
//! one. Those that rest are probed meanwhile, the one whose rest ends first before the others, since a refusal without
//! asking would make an outage total. A request goes on like this until somebody answers, as long as its attempts, its
//! deadline and `outage-ms` last; it is refused before only when nobody can be expected to be back by then.
//!
//! An outage is not made worse by it. Where a target is thought well, calls beyond a request's first one there are at
//! most one for five requests and ten a second ([`crate::budget`]); who finds none left waits for one, and when its time
//! to wait is over asks without one whoever has just answered others. Where it rests it is probed by one request at a
//! time, which [`crate::health`] paces.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::attempt::{Call, Means};
use crate::clock;
use crate::failure::{Class, Failure};
use crate::health::{Comes, Health, Permit, Readiness};
use crate::policy::{Ranked, Standing};
use crate::route::{Candidate, Role, Route};
use crate::waiting::Ticket;

/// How often one who waits in line looks whether somebody has ended a rest.
const LOOK: Duration = Duration::from_millis(250);
/// How often one who waits for somebody to recover looks at first and in the end, on average.
const GLANCES: (Duration, Duration) = (Duration::from_millis(80), Duration::from_millis(500));
/// First wait before a target is asked again that failed, and longest.
const BACKOFFS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));

/// A candidate, and a place at it.
pub(crate) type Place = (usize, Permit);

/// A candidate that failed.
#[derive(Debug)]
struct Failed {
    i: usize,
    class: Class,
    /// How often.
    n: u32,
    /// When it may be asked again.
    again: Instant,
}

/// Who is still to be asked.
pub(crate) struct Queue<'a> {
    means: &'a Means<'a>,
    route: &'a Route,
    call: &'a Call<'a>,
    ranked: Vec<Ranked>,
    /// Who may be asked, best first.
    order: Vec<usize>,
    failed: Vec<Failed>,
    /// Until when this request waits for a place.
    waits_until: Instant,
    /// Until when it waits for somebody to recover, once it does.
    hopes_until: Option<Instant>,
    n_looks: i32,
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
            waits_until: Instant::now() + route.ways.queue,
            hopes_until: None,
            n_looks: 0,
        }
    }

    /// Candidates in their order, with why some are not in front.
    pub(crate) fn ranked(&self) -> &[Ranked] {
        &self.ranked
    }

    fn candidate(&self, i: usize) -> &'a Candidate {
        &self.route.candidates[i]
    }

    /// How a candidate failed, if it did.
    fn failure(&self, i: usize) -> Option<&Failed> {
        self.failed.iter().find(|failed| failed.i == i)
    }

    fn untried(&self) -> Vec<usize> {
        let untried = self.order.iter().copied();
        untried.filter(|i| self.failure(*i).is_none()).collect()
    }

    /// Who would be asked first now of those who have not been.
    pub(crate) fn foremost(&self) -> Option<usize> {
        let now = clock::now();
        self.untried().into_iter().find(|&i| self.rest(i, now).is_none())
    }

    /// Takes note of a failure: whether somebody else may be asked.
    pub(crate) fn failed(&mut self, i: usize, failure: &Failure) -> bool {
        let n = self.failure(i).map_or(0, |failed| failed.n);
        let wait = backoff(n).max(failure.wait.unwrap_or_default());
        self.failed.retain(|failed| failed.i != i);
        self.failed.push(Failed {
            i,
            class: failure.class,
            n: n + 1,
            again: Instant::now() + wait,
        });
        match failure.class {
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
            .filter(|i| self.candidate(*i).role == role && self.failure(*i).is_none())
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
            // What is sent now would be worked on for nobody, and want its money.
            if Instant::now() >= self.call.deadline {
                return Err(self.hopeless());
            }
            let untried = self.untried();
            if let Some(place) = self.admitted(&untried, Comes::Newly) {
                return Ok(place);
            }
            if let Some(place) = self.waited(&untried).await {
                return Ok(place);
            }
            let again = self.due();
            if let Some(place) = self.again(&again) {
                return Ok(place);
            }
            if let Some(place) = self.probed([untried, again].concat()) {
                return Ok(place);
            }
            match self.hope() {
                Some(wake) => tokio::time::sleep_until(wake).await,
                None => return Err(self.hopeless()),
            }
        }
    }

    /// Nobody can do what is asked, whenever.
    fn unable(&self) -> Failure {
        let why = self.ranked.iter().find_map(|one| one.why);
        let why = why.map_or("none has a weight", |why| why.text());
        let message = format!("no candidate of `{}` can answer this: {why}", self.route.name);
        Failure::new(Class::BadRequest, 400, message)
    }

    /// Nobody can do it in time.
    fn hopeless(&self) -> Failure {
        let now = clock::now();
        let rests = self.order.iter().filter_map(|&i| self.rest(i, now));
        let shortest = rests.min().map(|until| until.saturating_duration_since(now));
        Failure {
            wait: shortest,
            ..nobody()
        }
    }

    /// Who has failed and may be asked again.
    fn due(&self) -> Vec<usize> {
        let now = Instant::now();
        let is_due = |i: &usize| {
            let failed = self.failure(*i);
            failed.is_some_and(|failed| failed.class.may_retry() && failed.again <= now)
        };
        self.order.iter().copied().filter(is_due).collect()
    }

    /// A place at one of those who have failed. Who is not thought ill is spared, but for the last call of a request where
    /// the target's latest was an answer: to refuse it because others were faster would be to refuse it for nothing.
    fn again(&self, among: &[usize]) -> Option<Place> {
        let now = clock::now();
        let is_last = self.hopes_until.is_some_and(|until| Instant::now() >= until);
        let is_left = self.means.retries.is_left(now);
        let (i, permit) = among.iter().find_map(|&i| {
            let (health, most) = self.health(i);
            let may = is_left || health.is_ill() || (is_last && health.is_well());
            let permit = may.then(|| health.admit(most, Comes::Newly, now).ok())??;
            Some((i, permit))
        })?;
        if !permit.is_probe() {
            // Somebody may have been faster; one more does no harm.
            let _is_spent = self.means.retries.spend(now);
        }
        Some((i, permit))
    }

    /// A place at one of those who rest, the shortest rest first. Who wants to be left alone is, as long as that ends in
    /// time for this request.
    fn probed(&mut self, among: Vec<usize>) -> Option<Place> {
        let now = clock::now();
        let until = self.hopes_until().into_std();
        let mut resting: Vec<_> = among
            .into_iter()
            .filter_map(|i| {
                let stated = self.health(i).0.stated_rest(now);
                let is_left_alone = stated.is_some_and(|stated| stated <= until);
                self.rest(i, now).filter(|_| !is_left_alone).map(|rest| (rest, i))
            })
            .collect();
        resting.sort();
        let order: Vec<usize> = resting.into_iter().map(|(_, i)| i).collect();
        self.admitted(&order, Comes::Forced)
    }

    /// Until when this request goes on though nobody can take it.
    fn hopes_until(&mut self) -> Instant {
        let timeouts = &self.means.config.timeouts;
        let is_alone = self.route.candidates.len() < 2;
        let now = clock::now();
        let mut among = self.order.iter();
        let is_stated = among.any(|&i| self.health(i).0.stated_rest(now).is_some());
        let outage = if is_alone && !is_stated {
            timeouts.lone_outage
        } else {
            timeouts.outage
        };
        let until = *self.hopes_until.get_or_insert_with(|| Instant::now() + outage);
        until.min(self.call.deadline)
    }

    /// When to look again, if somebody can be expected to take this request in time.
    fn hope(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let until = self.hopes_until();
        let expected = self.order.iter().filter_map(|&i| self.expected(i, now, until));
        let earliest = expected.min().filter(|_| now < until)?;
        let glance = GLANCES.0.mul_f64(1.2_f64.powi(self.n_looks)).min(GLANCES.1);
        self.n_looks = self.n_looks.saturating_add(1).min(32);
        let glance = glance.mul_f64(0.5 + fastrand::f64());
        // Not all at the moment when a rest ends.
        let wake = earliest.max(now) + glance;
        Some(wake.min(until))
    }

    /// From when on a candidate may take this request.
    fn expected(&self, i: usize, now: Instant, until: Instant) -> Option<Instant> {
        let (health, most) = self.health(i);
        let failed = self.failure(i);
        let from = match failed {
            Some(failed) if !failed.class.may_retry() => return None,
            Some(failed) => failed.again.max(now),
            None => now,
        };
        let moment = clock::now();
        let from = match health.stated_rest(moment) {
            // Whoever asks it now may find it well.
            Some(stated) if stated > until.into_std() && health.is_on_trial(moment) => from,
            Some(stated) => from.max(stated.into()),
            // Its route lets nobody wait any longer.
            None if failed.is_none() && health.readiness(most, moment) == Readiness::Full => return None,
            None => from,
        };
        (from <= until).then_some(from)
    }

    /// Waits in the lines of those who are full, for as long as the route lets it.
    async fn waited(&self, among: &[usize]) -> Option<Place> {
        let until = self.waits_until.min(self.call.deadline);
        if Instant::now() >= until || !self.is_somebody_full(among) {
            return None;
        }
        let priority = self.call.wish.priority.unwrap_or(self.route.ways.priority);
        let since = clock::now();
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
        let now = clock::now();
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
        let now = clock::now();
        among.iter().any(|&i| {
            let (health, most) = self.health(i);
            health.readiness(most, now) == Readiness::Full
        })
    }

    fn health(&self, i: usize) -> (Arc<Health>, usize) {
        let candidate = self.candidate(i);
        (
            self.means.book.of(&candidate.name),
            candidate.provider.max_in_flight,
        )
    }

    /// The first of `among` that takes the request.
    fn admitted(&self, among: &[usize], comes: Comes) -> Option<Place> {
        let now = clock::now();
        among.iter().find_map(|&i| {
            let (health, most) = self.health(i);
            health.admit(most, comes, now).ok().map(|permit| (i, permit))
        })
    }

    /// Until when a candidate rests.
    fn rest(&self, i: usize, now: std::time::Instant) -> Option<std::time::Instant> {
        let (health, most) = self.health(i);
        match health.readiness(most, now) {
            Readiness::Resting(until) => Some(until),
            Readiness::Ready | Readiness::Full => None,
        }
    }
}

/// Half a second after the first failure, doubling up to eight, less up to a quarter at random.
fn backoff(n_failures: u32) -> Duration {
    let backoff = BACKOFFS.0.saturating_mul(1 << n_failures.min(10)).min(BACKOFFS.1);
    backoff.mul_f64(1.0 - 0.25 * fastrand::f64())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::attempt::Wish;
    use crate::budget::CallBudget;
    use crate::config::{Config, Env};
    use crate::endpoint::Endpoint;
    use crate::fields::Fields;
    use crate::health::HealthBook;
    use crate::upstream::Upstream;
    use crate::variants::Variants;

    /// How a target behaves at a moment.
    #[derive(Clone, Copy, PartialEq)]
    enum Mood {
        Good,
        Fails(Class),
        /// A wait in milliseconds is stated with 429.
        Limits(u64),
        /// It says nothing for so many milliseconds.
        Stalls(u64),
    }

    /// A gateway whose targets are played.
    struct World {
        config: Config,
        book: HealthBook,
        retries: CallBudget,
        hedges: CallBudget,
        variants: Variants,
        upstream: Upstream,
        began: Instant,
        moods: Box<dyn Fn(usize, Duration) -> Mood + Send + Sync>,
        /// Every call: who was asked, when, and whether it went well.
        calls: Mutex<Vec<(usize, Duration, bool)>>,
    }

    impl World {
        fn new(more: &str, moods: impl Fn(usize, Duration) -> Mood + Send + Sync + 'static) -> Arc<Self> {
            let env: Env = Arc::new(|_| None);
            let providers: String = (0..6)
                .map(|i| format!("[providers.p{i}]\nbase-url = \"http://127.0.0.1:{}\"\n", i + 1))
                .collect();
            Arc::new(Self {
                config: Config::parse(&format!("{more}\n{providers}{}", routes()), &env).unwrap(),
                book: HealthBook::default(),
                retries: CallBudget::one_in_and_every(5, Duration::from_millis(100)),
                hedges: CallBudget::one_in(20),
                variants: Variants::default(),
                upstream: Upstream::new(Duration::from_secs(1), None).unwrap(),
                began: Instant::now(),
                moods: Box::new(moods),
                calls: Mutex::default(),
            })
        }

        /// Asks until somebody answers, or nobody does.
        async fn ask(self: Arc<Self>, route: &'static str, patience: Duration) -> Result<(), Failure> {
            let means = Means {
                upstream: &self.upstream,
                book: &self.book,
                retries: &self.retries,
                hedges: &self.hedges,
                variants: &self.variants,
                guard: None,
                config: &self.config,
            };
            let fields = Fields::read(b"{\"model\":\"r\"}").unwrap();
            let call = Call {
                endpoint: Endpoint::Chat,
                fields: &fields,
                body_bytes: 13,
                is_stream: false,
                max_tokens: None,
                forwarded: Vec::new(),
                deadline: Instant::now() + patience,
                ends: Instant::now() + LONG,
                wish: Wish::default(),
                continues: false,
                is_continued: false,
                files: crate::files::Files::default(),
                trace: None,
            };
            let route = &self.config.routes[route];
            means.retries.earn();
            let ranked = crate::policy::ranked(route, &call.asked(), &means.known());
            let mut queue = Queue::new(&means, route, &call, ranked);
            let mut last = None;
            for _ in 0..self.config.attempts {
                let (i, permit) = match queue.next(last.as_ref()).await {
                    Ok(place) => place,
                    Err(failure) => return Err(last.unwrap_or(failure)),
                };
                let name = &route.candidates[i].name;
                let target = name[1..2].parse().unwrap();
                let at = self.began.elapsed();
                let result = play((self.moods)(target, at), call.deadline).await;
                self.calls.lock().unwrap().push((target, at, result.is_ok()));
                match result {
                    Ok(()) => {
                        permit.began(13, 0);
                        return Ok(());
                    }
                    Err(failure) => {
                        permit.failed(&failure);
                        if !queue.failed(i, &failure) {
                            return Err(failure);
                        }
                        last = Some(failure);
                    }
                }
            }
            Err(last.unwrap())
        }

        /// Asks so often a second for so long: how many were refused, of how many.
        async fn load(
            self: &Arc<Self>,
            routes: &[&'static str],
            rate: u64,
            time: Duration,
        ) -> (usize, usize) {
            let mut asked = Vec::new();
            let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
            while self.began.elapsed() < time {
                ticks.tick().await;
                let route = routes[asked.len() % routes.len()];
                asked.push(tokio::spawn(Arc::clone(self).ask(route, Duration::from_secs(15))));
            }
            let n = asked.len();
            let mut n_refused = 0;
            for task in asked {
                n_refused += usize::from(task.await.unwrap().is_err());
            }
            (n_refused, n)
        }

        /// Calls that did not go well between two moments, in seconds.
        fn n_failed(&self, target: usize, from: u64, to: u64) -> usize {
            let calls = self.calls.lock().unwrap();
            let among = Duration::from_secs(from)..Duration::from_secs(to);
            let is_meant =
                |call: &&(usize, Duration, bool)| call.0 == target && among.contains(&call.1) && !call.2;
            calls.iter().filter(is_meant).count()
        }
    }

    async fn play(mood: Mood, deadline: Instant) -> Result<(), Failure> {
        let took = match mood {
            Mood::Stalls(ms) => Duration::from_millis(ms),
            _ => Duration::from_millis(8),
        };
        tokio::time::sleep_until(deadline.min(Instant::now() + took)).await;
        match mood {
            Mood::Good => Ok(()),
            Mood::Fails(class) => Err(Failure::new(class, 500, "x")),
            Mood::Stalls(_) => Err(Failure::new(Class::Slow, 504, "x")),
            Mood::Limits(ms) => Err(Failure {
                wait: Some(Duration::from_millis(ms)),
                ..Failure::new(Class::RateLimited, 429, "x")
            }),
        }
    }

    /// `one` has one candidate; `r0` to `r2` have three each, with neighbours in common.
    fn routes() -> String {
        let mut text = String::from("[routes.one]\ncandidates = [\"p0/x\"]\n");
        for (i, policy) in ["ordered", "weighted", "latency"].iter().enumerate() {
            let names: Vec<String> = (0..3).map(|k| format!("\"p{}/x\"", (2 * i + k) % 6)).collect();
            let names = names.join(", ");
            text.push_str(&format!(
                "[routes.r{i}]\npolicy = \"{policy}\"\ncandidates = [{names}]\n"
            ));
        }
        text
    }

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn an_outage_of_all_is_waited_out_and_not_made_worse() {
        let down = Duration::from_secs(2)..Duration::from_secs(9);
        let world = World::new("", move |_, at| {
            if down.contains(&at) {
                Mood::Fails(Class::Overloaded)
            } else {
                Mood::Good
            }
        });
        let (n_refused, n) = world.load(&["r0"], 100, Duration::from_secs(12)).await;
        assert_eq!(n_refused, 0, "of {n}");
        for target in 0..3 {
            let n = world.n_failed(target, 2, 9);
            // Until the breaker opens, and then ten probes a second at most.
            assert!((30..=7 * 10 + 10).contains(&n), "{n} calls while it was down");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_refused_at_once_when_nobody_can_be_back_in_time() {
        let cases = [
            (Mood::Limits(60_000), Class::RateLimited),
            (Mood::Fails(Class::BadKey), Class::BadKey),
            (Mood::Fails(Class::OutOfQuota), Class::OutOfQuota),
            (Mood::Fails(Class::BadRequest), Class::BadRequest),
        ];
        for (mood, class) in cases {
            let world = World::new("", move |_, _| mood);
            let failure = Arc::clone(&world).ask("one", LONG).await.unwrap_err();
            assert_eq!((failure.class, world.calls.lock().unwrap().len()), (class, 1));
            assert!(world.began.elapsed() < Duration::from_millis(20));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_with_its_patience_or_its_deadline() {
        for (more, patience, seconds) in [
            ("", LONG, 20),
            ("[timeouts]\noutage-ms = 3000", LONG, 3),
            ("", Duration::from_secs(5), 5),
        ] {
            let world = World::new(more, |_, _| Mood::Fails(Class::Network));
            let failure = Arc::clone(&world).ask("r0", patience).await.unwrap_err();
            let took = world.began.elapsed();
            let n_calls = world.calls.lock().unwrap().len();
            assert_eq!(failure.class, Class::Network);
            assert!(
                took <= Duration::from_secs(seconds) + Duration::from_millis(50),
                "{took:?}"
            );
            assert!((5..=12).contains(&n_calls), "{n_calls} calls in {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_after_the_deadline() {
        let world = World::new("", |_, _| Mood::Stalls(60_000));
        let patience = Duration::from_secs(2);
        let failure = Arc::clone(&world).ask("r0", patience).await.unwrap_err();
        assert_eq!(
            (failure.class, world.calls.lock().unwrap().len()),
            (Class::Slow, 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stated_wait_is_kept_and_then_the_same_target_answers() {
        let world = World::new("", |_, at| {
            if at < Duration::from_secs(7) {
                Mood::Limits(7000 - at.as_millis() as u64)
            } else {
                Mood::Good
            }
        });
        let others: Vec<_> = (0..20)
            .map(|_| tokio::spawn(Arc::clone(&world).ask("one", LONG)))
            .collect();
        for other in others {
            other.await.unwrap().unwrap();
        }
        assert!(world.began.elapsed() < Duration::from_secs(10));
        assert_eq!(
            world.n_failed(0, 0, 7),
            20,
            "all went at once, and none before the wait was over"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_stalls_starves_nobody() {
        // With the last four seeds one of them finds no call left in the budget until its time is over.
        for seed in [0, 1, 2, 3, 267, 302, 351, 391] {
            fastrand::seed(seed);
            // The first call after the outage is never answered; all others are.
            let stalled = Mutex::new(false);
            let world = World::new("", move |_, at| {
                if at < Duration::from_secs(2) {
                    return Mood::Fails(Class::Network);
                }
                let mut stalled = stalled.lock().unwrap();
                match std::mem::replace(&mut *stalled, true) {
                    false => Mood::Stalls(120_000),
                    true => Mood::Good,
                }
            });
            let asked: Vec<_> = (0..30)
                .map(|_| tokio::spawn(Arc::clone(&world).ask("one", LONG)))
                .collect();
            let mut n_answered = 0;
            for task in asked {
                let result = tokio::time::timeout(Duration::from_secs(15), task).await;
                n_answered += usize::from(matches!(result, Ok(Ok(Ok(())))));
            }
            assert_eq!(n_answered, 29, "with seed {seed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_failed_once_is_asked_again_though_no_retry_was_earned() {
        let world = World::new("", |_, at| {
            if at < Duration::from_millis(100) {
                Mood::Fails(Class::Network)
            } else {
                Mood::Good
            }
        });
        while world.retries.spend(clock::now()) {}
        // So many that the last one's turn and its pause are within the time of an outage.
        let asked: Vec<_> = (0..30)
            .map(|_| tokio::spawn(Arc::clone(&world).ask("one", LONG)))
            .collect();
        for task in asked {
            task.await.unwrap().unwrap();
        }
        let took = world.began.elapsed();
        assert!(took > Duration::from_secs(2), "ten a second: {took:?}");
    }

    /// Moods that change every 300 to 1,500 ms, a quarter of them bad, and one target at a time dead for long.
    fn chaos(seconds: u64) -> impl Fn(usize, Duration) -> Mood + Send + Sync {
        let moods = [
            Mood::Fails(Class::ServerFault),
            Mood::Fails(Class::Overloaded),
            Mood::Limits(300),
            Mood::Fails(Class::Network),
            Mood::Stalls(400),
        ];
        let lives: Vec<Vec<(u64, Mood)>> = (0..6)
            .map(|_| {
                let (mut life, mut at) = (Vec::new(), 0);
                while at < seconds * 1000 {
                    let is_bad = fastrand::f64() < 0.25;
                    let bad = moods[fastrand::usize(..moods.len())];
                    life.push((at, if is_bad { bad } else { Mood::Good }));
                    at += fastrand::u64(300..1500);
                }
                life
            })
            .collect();
        let dead = [1, 3].map(|quarter| {
            let from = Duration::from_secs(seconds) * quarter / 4;
            (
                fastrand::usize(..6),
                from..from + Duration::from_secs(seconds) / 6,
            )
        });
        move |i, at| {
            if dead
                .iter()
                .any(|(victim, when)| *victim == i && when.contains(&at))
            {
                return Mood::Fails(Class::Network);
            }
            let ms = at.as_millis() as u64;
            let next = lives[i].partition_point(|(from, _)| *from <= ms);
            lives[i][next.saturating_sub(1)].1
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_sees_six_targets_fail_in_turns() {
        for seed in 0..4 {
            fastrand::seed(seed);
            let more = "attempts = 16\n[timeouts]\nfirst-token-ms = 400\nwhole-ms = 400";
            let world = World::new(more, chaos(60));
            let (n_refused, n) = world
                .load(&["r0", "r1", "r2"], 300, Duration::from_secs(60))
                .await;
            assert!(
                n_refused * 1000 <= n,
                "seed {seed}: {n_refused} of {n} were refused"
            );
        }
    }
}
