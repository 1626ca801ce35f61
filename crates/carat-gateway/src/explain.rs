//! What would become of a request, told without asking anybody.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::attempt::Call;
use crate::health::Readiness;
use crate::policy::{self, Known, Ranked, Standing};
use crate::reply::{self, Body};
use crate::route::{Candidate, Route};

/// A route that was chosen, and how.
pub(crate) struct Chosen<'a> {
    /// What the client asked for.
    pub(crate) name: &'a str,
    pub(crate) route: &'a Route,
    /// The rule that chose it, counted from 1, of the route that was asked for.
    pub(crate) rule: Option<usize>,
}

/// Every candidate in the order in which it would be asked, with what decides about it.
pub(crate) fn response(chosen: &Chosen<'_>, call: &Call<'_>, known: &Known<'_>) -> Response<Body> {
    let asked = call.asked();
    let ranked = policy::ranked(chosen.route, &asked, known);
    let candidates: Vec<Value> = ranked
        .iter()
        .map(|one| candidate(one, &chosen.route.candidates[one.i], call, known))
        .collect();
    let needs = &call.wish.needs;
    let value = json!({
        "object": "route",
        "model": chosen.name,
        "route": chosen.route.name,
        "rule": chosen.rule,
        "policy": chosen.route.policy.name(),
        "needs": {
            "prompt_tokens": needs.prompt_tokens,
            "max_tokens": needs.max_tokens,
            "images": needs.images,
            "audio": needs.audio,
            "video": needs.video,
            "tools": needs.tools,
            "json_schema": needs.schema,
            "addresses": needs.named.by_address,
            "files": needs.named.by_id,
        },
        "would_ask": first(&ranked, chosen.route, known),
        "candidates": candidates,
    });
    reply::json(StatusCode::OK, &value)
}

/// Who would be asked first.
fn first(ranked: &[Ranked], route: &Route, known: &Known<'_>) -> Option<String> {
    let may = ranked.iter().filter(|one| one.standing <= Standing::Behind);
    let ready = may.clone().find(|one| {
        let candidate = &route.candidates[one.i];
        let health = known.book.of(&candidate.name);
        health.readiness(candidate.provider.max_in_flight, known.now) == Readiness::Ready
    });
    let chosen = ready.or_else(|| may.clone().next())?;
    Some(route.candidates[chosen.i].name.clone())
}

fn candidate(one: &Ranked, candidate: &Candidate, call: &Call<'_>, known: &Known<'_>) -> Value {
    let asked = call.asked();
    let health = known.book.of(&candidate.name);
    let (state, rests_ms) = match health.readiness(candidate.provider.max_in_flight, known.now) {
        Readiness::Ready => ("ready", None),
        Readiness::Full => ("full", None),
        Readiness::Resting(until) => {
            let left = until.saturating_duration_since(known.now).as_millis();
            ("resting", u64::try_from(left).ok())
        }
    };
    let (first, per_s) = health.speed(asked.prompt_bytes, known.now);
    json!({
        "target": candidate.name,
        "standing": match one.standing {
            Standing::Regular => "regular",
            Standing::Behind => "last",
            Standing::Reserve => "reserve",
            Standing::Never => "never",
        },
        "why": one.why.map(|why| why.text()),
        // JSON has no infinity: a price that is not known.
        "score": one.score.is_finite().then_some(one.score),
        "state": state,
        "rests_ms": rests_ms,
        "in_flight": health.in_flight(),
        "waiting": health.waiting.length(),
        "weight": candidate.weight,
        "local": candidate.provider.is_local,
        "context": candidate.abilities.context,
        "expected_cost_micros": policy::cost(candidate, &asked, known),
        "first_token_ms": first.map(|seconds| (seconds * 1000.0).round()),
        "tokens_per_s": per_s.map(|n| (n * 10.0).round() / 10.0),
        "expected_s": policy::seconds(&health, &asked, known),
        "failing": health.failing(known.now),
        "quota_left": health.quota_left(known.now),
    })
}
