//! Routes as they are written in the configuration.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::Error;
use crate::cache::Keeping;
use crate::guard::{Guard, GuardText};
use crate::prices::Prices;
use crate::provider::Provider;
use crate::route::{Abilities, Candidate, Hedge, Overflow, Policy, Role, Route, Ways, Weights};
use crate::rules::{Rule, Rules};
use crate::waiting::Priority;

/// Longest time that a request may wait for a place.
const LONGEST_QUEUE_MS: u64 = 600_000;

/// A route.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RouteText {
    #[serde(default)]
    policy: Policy,
    #[serde(default)]
    candidates: Vec<CandidateText>,
    /// Asked when a prompt was too long for the others.
    #[serde(default)]
    long_fallbacks: Vec<CandidateText>,
    /// Asked when the others refuse for the content's sake.
    #[serde(default)]
    refused_fallbacks: Vec<CandidateText>,
    /// Only candidates on this machine are used, whatever the list says.
    #[serde(default)]
    never_leaves_this_machine: bool,
    #[serde(default)]
    weights: Weights,
    max_first_token_ms: Option<u64>,
    min_tokens_per_s: Option<f64>,
    #[serde(default)]
    overflow: Overflow,
    #[serde(default)]
    queue_ms: u64,
    #[serde(default)]
    priority: Priority,
    hedge: Option<HedgeText>,
    /// Another goes on with a stream that breaks.
    #[serde(default, rename = "continue")]
    continues: bool,
    cache: Option<Keeping>,
    guard: Option<GuardText>,
    /// Instead of candidates: other routes, by what the request is.
    #[serde(default)]
    rules: Vec<Rule>,
    otherwise: Option<String>,
}

/// `"provider/model"`, or a table that says more.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum CandidateText {
    Name(String),
    Table(CandidateTable),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CandidateTable {
    model: String,
    #[serde(default = "one")]
    weight: u32,
}

fn one() -> u32 {
    1
}

/// `true`, or after how many milliseconds.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum HedgeText {
    Is(bool),
    AfterMs(u64),
}

/// What candidates are made of.
pub(super) struct Parts<'a> {
    pub(super) providers: &'a HashMap<String, Arc<Provider>>,
    pub(super) abilities: &'a BTreeMap<String, Abilities>,
    pub(super) prices: &'a Prices,
}

impl Parts<'_> {
    /// A candidate with what is known of it.
    pub(super) fn candidate(&self, provider: &Arc<Provider>, model: &str, weight: u32) -> Candidate {
        let mut candidate = Candidate::new(Arc::clone(provider), model, weight);
        let stated = self.abilities.get(&candidate.name);
        candidate.abilities = stated.copied().unwrap_or_default();
        let listed = || self.prices.context(provider, model);
        candidate.abilities.context = candidate.abilities.context.or_else(listed);
        candidate
    }

    fn named(&self, field: &str, text: CandidateText, role: Role) -> Result<Candidate, Error> {
        let (target, weight) = match text {
            CandidateText::Name(target) => (target, 1),
            CandidateText::Table(table) => (table.model, table.weight),
        };
        let (provider, model) = target
            .split_once('/')
            .filter(|(_, model)| !model.is_empty())
            .ok_or_else(|| Error::config(field, format!("`{target}` is not of the form provider/model")))?;
        let provider = self.providers.get(provider).ok_or_else(|| {
            Error::config(
                field,
                format!("`{provider}` is not configured; add [providers.{provider}]"),
            )
        })?;
        let candidate = self.candidate(provider, model, weight);
        Ok(Candidate { role, ..candidate })
    }
}

impl RouteText {
    /// Checks a route.
    pub(super) fn checked(self, name: &str, parts: &Parts<'_>) -> Result<Route, Error> {
        let field = |what: &str| format!("routes.{name}.{what}");
        let ways = self.ways(&field)?;
        let is_private = self.never_leaves_this_machine;
        if let Some(rules) = self.rules(&field)? {
            return Ok(Route {
                name: name.to_string(),
                policy: self.policy,
                candidates: Vec::new(),
                ways,
                cache: None,
                guard: None,
                is_private,
                rules: Some(rules),
            });
        }
        let lists = [
            ("candidates", self.candidates, Role::Regular),
            ("long-fallbacks", self.long_fallbacks, Role::ForLongPrompts),
            ("refused-fallbacks", self.refused_fallbacks, Role::ForRefused),
        ];
        let mut candidates = Vec::new();
        for (list, texts, role) in lists {
            for text in texts {
                let candidate = parts.named(&field(list), text, role)?;
                if is_private && !candidate.provider.is_local {
                    let name = &candidate.name;
                    let message = format!("`{name}` is elsewhere, but the route never leaves this machine");
                    return Err(Error::config(field(list), message));
                }
                candidates.push(candidate);
            }
        }
        let mut regular = candidates
            .iter()
            .filter(|candidate| candidate.role == Role::Regular);
        if regular.clone().next().is_none() {
            let message = "name at least one, such as `openai/gpt-5-mini`";
            return Err(Error::config(field("candidates"), message));
        }
        if regular.all(|candidate| candidate.weight == 0) {
            let message = "all weights are 0; one at least must be more";
            return Err(Error::config(field("candidates"), message));
        }
        Ok(Route {
            name: name.to_string(),
            policy: self.policy,
            candidates,
            ways,
            cache: self.cache,
            guard: self.guard.map(|text| Arc::new(Guard::from(text))),
            is_private,
            rules: None,
        })
    }

    fn ways(&self, field: &dyn Fn(&str) -> String) -> Result<Ways, Error> {
        let weights = self.weights;
        let all = [weights.cost, weights.speed, weights.reliability];
        if all.iter().any(|weight| !(0.0..=100.0).contains(weight)) {
            return Err(Error::config(field("weights"), "must be between 0 and 100"));
        }
        if self.queue_ms > LONGEST_QUEUE_MS {
            let message = format!("must be at most {LONGEST_QUEUE_MS} (ten minutes)");
            return Err(Error::config(field("queue-ms"), message));
        }
        Ok(Ways {
            weights,
            max_first_token: self.max_first_token_ms.map(Duration::from_millis),
            min_tokens_per_s: self.min_tokens_per_s,
            overflow: self.overflow,
            queue: Duration::from_millis(self.queue_ms),
            priority: self.priority,
            hedge: match self.hedge {
                None | Some(HedgeText::Is(false)) => None,
                Some(HedgeText::Is(true)) => Some(Hedge::Slowest),
                Some(HedgeText::AfterMs(ms)) => Some(Hedge::After(Duration::from_millis(ms))),
            },
            continues: self.continues,
        })
    }

    fn rules(&self, field: &dyn Fn(&str) -> String) -> Result<Option<Rules>, Error> {
        if self.rules.is_empty() && self.otherwise.is_none() {
            return Ok(None);
        }
        if self.cache.is_some() || self.guard.is_some() {
            let message =
                "a route with rules keeps and guards nothing itself; the routes that it leads to do";
            return Err(Error::config(field("rules"), message));
        }
        let others = [&self.candidates, &self.long_fallbacks, &self.refused_fallbacks];
        if others.iter().any(|list| !list.is_empty()) {
            let message =
                "a route has either rules or candidates; put the candidates into routes of their own";
            return Err(Error::config(field("rules"), message));
        }
        let otherwise = self.otherwise.clone().ok_or_else(|| {
            let message = "say where requests go that fit no rule: otherwise = \"ROUTE\"";
            Error::config(field("otherwise"), message)
        })?;
        Ok(Some(Rules {
            rules: self.rules.clone(),
            otherwise,
        }))
    }
}

/// Rules lead to routes with candidates or to targets, never to rules again; so do guards to those that judge. Where
/// nothing may leave this machine they too must be on it. `target`: whether a target is on this machine, if it is one.
pub(super) fn check_rules(
    routes: &HashMap<String, Arc<Route>>,
    target_is_local: impl Fn(&str) -> Option<bool>,
) -> Result<(), Error> {
    for (name, route) in routes {
        let judge = route.guard.as_ref().and_then(|guard| guard.classifier.as_ref());
        let judge = judge.map(|classifier| classifier.route.as_str());
        for target in route.rules.iter().flat_map(Rules::targets).chain(judge) {
            let stays_here = match routes.get(target) {
                Some(other) => other.rules.is_none().then(|| other.stays_here()),
                None => target_is_local(target),
            };
            let message = match stays_here {
                None => Some("is no route with candidates and no provider/model"),
                Some(false) if route.is_private => {
                    Some("is elsewhere, but the route never leaves this machine")
                }
                Some(_) => None,
            };
            if let Some(message) = message {
                let message = format!("`{target}` {message}");
                let field = if route.rules.is_some() {
                    "rules"
                } else {
                    "guard.classifier"
                };
                return Err(Error::config(format!("routes.{name}.{field}"), message));
            }
        }
    }
    Ok(())
}
