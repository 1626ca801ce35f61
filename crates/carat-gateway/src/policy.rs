//! In which order a route's candidates are asked, and why.
//!
//! Three steps: who cannot do what the request needs is out; who would be asked at a bad moment (its limits nearly used,
//! the prompt longer than its context, too slow for the route's target) goes behind the others, since these are estimates
//! and it may be all there is; the rest is ordered by the policy. Who rests or is full is seen later, when the request
//! gets there ([`crate::attempt`]).

use std::time::Instant;

use crate::endpoint::Endpoint;
use crate::health::{Health, HealthBook};
use crate::needs::Needs;
use crate::prices::Prices;
use crate::route::{Candidate, Policy, Role, Route};
use crate::sticky;
use crate::translate::images;
use crate::usage::Usage;

/// Part of the requests that a policy of measured values sends anywhere, so that it sees who has become better.
const EXPLORED: f64 = 0.03;
/// Tokens of an answer whose length nobody knows.
const TYPICAL_TOKENS: f64 = 300.0;

/// Why a candidate is not asked, or asked last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Images,
    Audio,
    Video,
    Tools,
    Schema,
    Files,
    Addresses,
    Context,
    Quota,
    Slow,
    Busy,
    Long,
    /// It is there for prompts that were too long elsewhere.
    ForLongPrompts,
    /// It is there for what was refused elsewhere.
    ForRefused,
    Weight,
}

impl Why {
    /// As `x-carat-route` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Tools => "tools",
            Self::Schema => "json-schema",
            Self::Files => "files",
            Self::Addresses => "addresses",
            Self::Context => "context",
            Self::Quota => "quota",
            Self::Slow => "slow",
            Self::Busy => "busy",
            Self::Long => "long",
            Self::ForLongPrompts => "for-long-prompts",
            Self::ForRefused => "for-refused",
            Self::Weight => "weight",
        }
    }

    /// In a sentence.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Images => "it does not see images",
            Self::Audio => "it does not hear",
            Self::Video => "it does not take videos",
            Self::Tools => "it does not call tools",
            Self::Schema => "it does not keep to a JSON schema",
            Self::Files => "it does not have the file that is named by an id; send its data",
            Self::Addresses => {
                "it takes images and files as data only; send data: URLs (or set `media-urls`)"
            }
            Self::Context => "prompt and answer are likely to be longer than its context; it is asked last",
            Self::Quota => "what its provider allows is nearly used; it is asked last",
            Self::Slow => "it is slower than the route wants; it is asked last",
            Self::Busy => "it has enough to do; it is asked last",
            Self::Long => "the prompt is longer than it is to have; it is asked last",
            Self::ForLongPrompts => "it is only asked when a prompt was too long elsewhere",
            Self::ForRefused => "it is only asked when a request was refused for its content elsewhere",
            Self::Weight => "its weight is 0",
        }
    }
}

/// When a candidate is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// By its rank.
    Regular,
    /// When nobody before it has answered.
    Behind,
    /// Only after certain failures of others.
    Reserve,
    Never,
}

/// A candidate's place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ranked {
    /// Its index in the route.
    pub(crate) i: usize,
    pub(crate) standing: Standing,
    /// By which the policy orders; the smallest is first.
    pub(crate) score: f64,
    pub(crate) why: Option<Why>,
}

/// What a policy may know of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) endpoint: Endpoint,
    pub(crate) needs: &'a Needs,
    pub(crate) prompt_bytes: usize,
    /// What the request belongs to, where the policy keeps such together.
    pub(crate) key: Option<u64>,
}

/// What a policy may know of the world.
#[derive(Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) book: &'a HealthBook,
    pub(crate) prices: &'a Prices,
    /// Whether the gateway fetches what is named by its address, for those who want data.
    pub(crate) fetches: bool,
    pub(crate) now: Instant,
}

/// Every candidate of a route, best first.
pub(crate) fn ranked(route: &Route, asked: &Asked<'_>, known: &Known<'_>) -> Vec<Ranked> {
    let scores = scores(route, asked, known);
    let mut ranked: Vec<Ranked> = route
        .candidates
        .iter()
        .zip(scores)
        .enumerate()
        .map(|(i, (candidate, score))| {
            let (standing, why) = standing(route, candidate, asked, known);
            Ranked {
                i,
                standing,
                score,
                why,
            }
        })
        .collect();
    if ranked.len() < 2 {
        return ranked;
    }
    ranked.sort_by(|a, b| a.standing.cmp(&b.standing).then(a.score.total_cmp(&b.score)));
    let n_regular = ranked
        .iter()
        .filter(|one| one.standing == Standing::Regular)
        .count();
    let explores = matches!(route.policy, Policy::Latency | Policy::Cost | Policy::Joint);
    if explores && n_regular > 1 && fastrand::f64() < EXPLORED {
        let lucky = fastrand::usize(..n_regular);
        ranked[..=lucky].rotate_right(1);
    }
    ranked
}

/// Whether a candidate can do it, and whether now.
fn standing(
    route: &Route,
    candidate: &Candidate,
    asked: &Asked<'_>,
    known: &Known<'_>,
) -> (Standing, Option<Why>) {
    if candidate.weight == 0 {
        return (Standing::Never, Some(Why::Weight));
    }
    if let Some(why) = unable(candidate, asked, known) {
        return (Standing::Never, Some(why));
    }
    match candidate.role {
        Role::Regular => {}
        Role::ForLongPrompts => return (Standing::Reserve, Some(Why::ForLongPrompts)),
        Role::ForRefused => return (Standing::Reserve, Some(Why::ForRefused)),
    }
    // With nobody to go before it, nothing needs to be asked of it.
    if route.candidates.len() < 2 {
        return (Standing::Regular, None);
    }
    match untimely(route, candidate, asked, known) {
        Some(why) => (Standing::Behind, Some(why)),
        None => (Standing::Regular, None),
    }
}

/// What a candidate cannot do, as far as that is known.
fn unable(candidate: &Candidate, asked: &Asked<'_>, known: &Known<'_>) -> Option<Why> {
    let (needs, able) = (asked.needs, &candidate.abilities);
    let provider = candidate.provider.as_ref();
    // In the words of another API there is no place for an id.
    let is_native = provider.has(asked.endpoint);
    let has_files = is_native && able.files.unwrap_or(provider.keeps_files);
    let takes_addresses = if is_native || !images::wants_data(provider.dialect) {
        able.image_urls
    } else {
        Some(known.fetches)
    };
    let cases = [
        (needs.images, able.images, Why::Images),
        (needs.audio, able.audio, Why::Audio),
        (needs.video, able.video, Why::Video),
        (needs.tools, able.tools, Why::Tools),
        (needs.schema, able.json_schema, Why::Schema),
        (needs.named.by_id, Some(has_files), Why::Files),
        (needs.named.by_address, takes_addresses, Why::Addresses),
    ];
    let found = cases
        .into_iter()
        .find(|(is_needed, is_able, _): &(bool, Option<bool>, Why)| *is_needed && *is_able == Some(false));
    found.map(|(_, _, why)| why)
}

/// Why a candidate is better not asked now.
fn untimely(route: &Route, candidate: &Candidate, asked: &Asked<'_>, known: &Known<'_>) -> Option<Why> {
    let needs = asked.needs;
    if candidate
        .abilities
        .context
        .is_some_and(|context| needs.room() > context)
    {
        return Some(Why::Context);
    }
    let ways = &route.ways;
    let health = known.book.of(&candidate.name);
    if route.policy == Policy::LocalFirst && candidate.provider.is_local {
        let overflow = &ways.overflow;
        if overflow
            .prompt_tokens
            .is_some_and(|most| needs.prompt_tokens > most)
        {
            return Some(Why::Long);
        }
        if overflow.in_flight.is_some_and(|most| health.in_flight() >= most) {
            return Some(Why::Busy);
        }
        let first = health.speed(asked.prompt_bytes, known.now).0;
        if let (Some(most), Some(first)) = (overflow.first_token_ms, first)
            && first * 1000.0 > most as f64
        {
            return Some(Why::Slow);
        }
    }
    if ways.max_first_token.is_some() || ways.min_tokens_per_s.is_some() {
        let (first, per_s) = health.speed(asked.prompt_bytes, known.now);
        let is_late = ways
            .max_first_token
            .zip(first)
            .is_some_and(|(most, first)| first > most.as_secs_f64());
        let is_slow = ways
            .min_tokens_per_s
            .zip(per_s)
            .is_some_and(|(least, per_s)| per_s < least);
        if is_late || is_slow {
            return Some(Why::Slow);
        }
    }
    // A conversation stays where its cache is until that fails.
    let is_dry = !route.policy.keeps_together() && health.is_dry_until(needs.room(), known.now).is_some();
    is_dry.then_some(Why::Quota)
}

/// What the policy says of each candidate; the smallest is best.
fn scores(route: &Route, asked: &Asked<'_>, known: &Known<'_>) -> Vec<f64> {
    let candidates = route.candidates.iter().enumerate();
    if route.candidates.len() < 2 {
        return candidates.map(|_| 0.0).collect();
    }
    let health = |candidate: &Candidate| known.book.of(&candidate.name);
    let noise = || 0.95 + 0.1 * fastrand::f64();
    candidates
        .map(|(i, candidate)| match route.policy {
            Policy::Ordered => i as f64,
            // Exponential times with the weights as rates come in exactly the wanted order.
            Policy::Weighted => -(1.0 - fastrand::f64()).ln() / f64::from(candidate.weight.max(1)),
            Policy::LeastBusy => health(candidate).in_flight() as f64 + fastrand::f64() * 0.5,
            // A little noise, so that equals share the load and nobody is overrun by all at once.
            Policy::Latency => seconds(&health(candidate), asked, known) * noise(),
            Policy::Cost => cost(candidate, asked, known).unwrap_or(f64::INFINITY) * (1.0 + 1e-9 * i as f64),
            Policy::Joint => joint(route, candidate, asked, known) + noise().ln(),
            Policy::LimitAware => 1.0 - health(candidate).quota_left(known.now) + 0.01 * fastrand::f64(),
            Policy::Sticky | Policy::Ab => {
                let key = asked.key.unwrap_or_else(|| fastrand::u64(..));
                sticky::draw(key, &candidate.name, candidate.weight)
            }
            Policy::LocalFirst => {
                let elsewhere = if candidate.provider.is_local { 0.0 } else { 1e6 };
                elsewhere + i as f64
            }
        })
        .collect()
}

/// Seconds that an answer is expected to take, longer where some fail.
pub(crate) fn seconds(health: &Health, asked: &Asked<'_>, known: &Known<'_>) -> f64 {
    let n_tokens = asked
        .needs
        .max_tokens
        .map_or(TYPICAL_TOKENS, |n| (n as f64).min(TYPICAL_TOKENS));
    health.expected_s(asked.prompt_bytes, n_tokens, known.now) * (1.0 + health.failing(known.now))
}

/// Millionths of a dollar that an answer is expected to cost, if its price is known.
pub(crate) fn cost(candidate: &Candidate, asked: &Asked<'_>, known: &Known<'_>) -> Option<f64> {
    let price = known.prices.of(candidate)?;
    let typical = known.book.of(&candidate.name).answer_tokens(known.now);
    let output = typical.unwrap_or(TYPICAL_TOKENS) as u64;
    let tokens = Usage {
        input: asked.needs.prompt_tokens,
        output: asked.needs.max_tokens.map_or(output, |most| most.min(output)),
        ..Usage::default()
    };
    Some(price.cost(&tokens).0 as f64)
}

/// Cost, time and failures multiplied, each to the power of its weight, so that no unit of one matters to another.
fn joint(route: &Route, candidate: &Candidate, asked: &Asked<'_>, known: &Known<'_>) -> f64 {
    let weights = &route.ways.weights;
    let health = known.book.of(&candidate.name);
    // One millionth more, since some cost nothing; who has no price is taken for dear.
    let cost = cost(candidate, asked, known).map_or(1e9, |cost| cost + 1.0);
    let n_tokens = TYPICAL_TOKENS.min(asked.needs.max_tokens.map_or(TYPICAL_TOKENS, |n| n as f64));
    let seconds = health
        .expected_s(asked.prompt_bytes, n_tokens, known.now)
        .max(1e-3);
    let answered = (1.0 - health.failing(known.now)).max(0.01);
    weights.cost * cost.ln() + weights.speed * seconds.ln() - weights.reliability * 3.0 * answered.ln()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, Env};
    use crate::failure::{Class, Failure};
    use crate::health::Comes;

    fn config(lines: &str) -> Config {
        let env: Env = Arc::new(|_| None);
        let text = format!(
            "[providers.a]\nbase-url = \"http://a\"\n[providers.l]\nbase-url = \"http://127.0.0.1:1\"\n{lines}"
        );
        Config::parse(&text, &env).unwrap()
    }

    /// The names of a route's candidates in order, with why they are not in front.
    fn names(config: &Config, book: &HealthBook, needs: Needs, key: Option<u64>) -> Vec<String> {
        let route = &config.routes["r"];
        let asked = Asked {
            endpoint: Endpoint::Chat,
            needs: &needs,
            prompt_bytes: 100,
            key,
        };
        let known = Known {
            book,
            prices: &config.prices,
            fetches: config.fetcher.is_some(),
            now: Instant::now(),
        };
        let name = |one: Ranked| {
            let why = one.why.map_or(String::new(), |why| format!(":{}", why.name()));
            format!("{}{why}", route.candidates[one.i].name)
        };
        ranked(route, &asked, &known).into_iter().map(name).collect()
    }

    fn route(policy: &str, more: &str) -> Config {
        config(&format!(
            "[routes.r]\npolicy = \"{policy}\"\n{more}\n[prices.\"a/x\"]\ninput = 3\noutput = 15\n\
             [prices.\"a/y\"]\ninput = 1\noutput = 2\n"
        ))
    }

    const THREE: &str = "candidates = [\"a/x\", \"a/y\", \"l/z\"]";

    /// Counts who comes first.
    fn firsts(config: &Config, book: &HealthBook, name: &str) -> usize {
        let first = |_| names(config, book, Needs::default(), None)[0].starts_with(name);
        (0..1000).filter(|i: &usize| first(*i)).count()
    }

    fn answers(book: &HealthBook, name: &str, after: Duration) {
        let then = Instant::now().checked_sub(after).unwrap();
        book.of(name).admit(9, Comes::Newly, then).unwrap().began(100, 0);
    }

    #[test]
    fn written_order_weights_and_load() {
        let book = HealthBook::default();
        assert_eq!(
            names(&route("ordered", THREE), &book, Needs::default(), None),
            ["a/x", "a/y", "l/z"]
        );
        let weighted = route(
            "weighted",
            "candidates = [{ model = \"a/x\", weight = 3 }, \"a/y\", { model = \"a/z\", weight = 0 }]",
        );
        let n = firsts(&weighted, &book, "a/x");
        assert!((690..810).contains(&n), "{n} of 1000 at weight 3 of 4");
        assert_eq!(names(&weighted, &book, Needs::default(), None)[2], "a/z:weight");
        let _busy = book.of("a/x").admit(9, Comes::Newly, Instant::now()).unwrap();
        assert_eq!(
            names(&route("least-busy", THREE), &book, Needs::default(), None)[2],
            "a/x"
        );
    }

    #[test]
    fn the_fastest_the_cheapest_and_the_best_together() {
        let book = HealthBook::default();
        answers(&book, "a/x", Duration::from_millis(100));
        answers(&book, "a/y", Duration::from_millis(900));
        answers(&book, "l/z", Duration::from_millis(5000));
        assert!(firsts(&route("latency", THREE), &book, "a/x") > 940);
        // What runs here costs nothing.
        assert!(firsts(&route("cost", THREE), &book, "l/z") > 940);
        let dear = "candidates = [\"a/x\", \"a/unpriced\", \"a/y\"]";
        let order = names(&route("cost", dear), &book, Needs::default(), None);
        assert_eq!(order.iter().filter(|name| *name == "a/unpriced").count(), 1);
        assert!(firsts(&route("cost", dear), &book, "a/y") > 940);
        let target = format!("{THREE}\nmax-first-token-ms = 1000");
        let cheap = names(&route("cost", &target), &book, Needs::default(), None);
        assert_eq!(cheap[2], "l/z:slow", "{cheap:?}");
        let weigh = |weights: &str| route("joint", &format!("{THREE}\nweights = {{ {weights} }}"));
        assert!(firsts(&weigh("cost = 1, speed = 0, reliability = 0"), &book, "l/z") > 900);
        assert!(firsts(&weigh("cost = 0, speed = 1, reliability = 0"), &book, "a/x") > 900);
        for _ in 0..4 {
            let permit = book.of("a/x").admit(9, Comes::Newly, Instant::now()).unwrap();
            permit.failed(&Failure::new(Class::ServerFault, 500, "x"));
        }
        assert!(firsts(&weigh("cost = 0, speed = 0, reliability = 1"), &book, "a/x") < 100);
    }

    #[test]
    fn who_cannot_is_never_asked_and_who_should_not_is_asked_last() {
        let book = HealthBook::default();
        let config = route(
            "ordered",
            &format!(
                "{THREE}\nlong-fallbacks = [\"a/big\"]\nrefused-fallbacks = [\"a/free\"]\n\
                 [models.\"a/x\"]\nimages = false\ncontext = 1000\n[models.\"a/y\"]\ntools = false"
            ),
        );
        let order = |needs: Needs| names(&config, &book, needs, None);
        let reserve = ["a/big:for-long-prompts", "a/free:for-refused"];
        assert_eq!(
            order(Needs::default()),
            [&["a/x", "a/y", "l/z"], &reserve[..]].concat()
        );
        let images = Needs {
            images: true,
            ..Needs::default()
        };
        assert_eq!(
            order(images),
            [&["a/y", "l/z"], &reserve[..], &["a/x:images"]].concat()
        );
        let tools = Needs {
            tools: true,
            ..images
        };
        assert_eq!(order(tools)[3..], ["a/x:images", "a/y:tools"]);
        let long = Needs {
            prompt_tokens: 900,
            max_tokens: Some(101),
            ..Needs::default()
        };
        assert_eq!(order(long)[..3], ["a/y", "l/z", "a/x:context"]);
    }

    #[test]
    fn a_target_that_runs_dry_goes_behind_and_the_fullest_before() {
        let book = HealthBook::default();
        let told = |name: &str, left: &str| {
            let headers = [
                ("x-ratelimit-remaining-requests", left),
                ("x-ratelimit-limit-requests", "100"),
            ];
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()));
            book.of(name).learn(&headers.collect(), Instant::now());
        };
        told("a/x", "1");
        told("a/y", "50");
        told("l/z", "90");
        assert_eq!(
            names(&route("ordered", THREE), &book, Needs::default(), None),
            ["a/y", "l/z", "a/x:quota"]
        );
        assert_eq!(
            names(&route("limit-aware", THREE), &book, Needs::default(), None),
            ["l/z", "a/y", "a/x:quota"]
        );
        assert_eq!(
            names(&route("sticky", THREE), &book, Needs::default(), Some(1)).len(),
            3,
            "a conversation stays"
        );
    }

    #[test]
    fn conversations_stay_together() {
        let book = HealthBook::default();
        let config = route("sticky", THREE);
        let order = |key| names(&config, &book, Needs::default(), Some(key));
        for key in 0..50 {
            assert_eq!(order(key), order(key));
        }
        let firsts: std::collections::HashSet<String> = (0..50).map(|key| order(key)[0].clone()).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn what_runs_here_is_first_until_it_has_enough() {
        let book = HealthBook::default();
        let more =
            format!("{THREE}\noverflow = {{ in-flight = 1, first-token-ms = 500, prompt-tokens = 50 }}");
        let config = route("local-first", &more);
        let order = |tokens: u64| {
            let needs = Needs {
                prompt_tokens: tokens,
                ..Needs::default()
            };
            names(&config, &book, needs, None)
        };
        assert_eq!(order(50), ["l/z", "a/x", "a/y"]);
        assert_eq!(order(51), ["a/x", "a/y", "l/z:long"]);
        let busy = book.of("l/z").admit(9, Comes::Newly, Instant::now()).unwrap();
        assert_eq!(order(1), ["a/x", "a/y", "l/z:busy"]);
        drop(busy);
        answers(&book, "l/z", Duration::from_secs(2));
        assert_eq!(order(1), ["a/x", "a/y", "l/z:slow"]);
    }
}
