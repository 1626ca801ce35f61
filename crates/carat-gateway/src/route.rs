//! A route: a name with candidates, and what is to become of requests for it.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::cache::Keeping;
use crate::guard::Guard;
use crate::provider::Provider;
use crate::rules::Rules;
use crate::waiting::Priority;

/// How candidates are ordered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Policy {
    /// As they are written.
    #[default]
    Ordered,
    /// At random, by weight.
    Weighted,
    /// Fewest requests under way first.
    LeastBusy,
    /// Shortest expected time first.
    Latency,
    /// Cheapest first.
    Cost,
    /// By cost, speed and reliability together.
    Joint,
    /// Who has most left of its provider's limits first.
    LimitAware,
    /// The same candidate for the same conversation.
    Sticky,
    /// Those on this machine first, as long as they are not busy, slow, or the prompt too long for them.
    LocalFirst,
    /// The same candidate for the same user, by weight, counted apart.
    Ab,
}

impl Policy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Weighted => "weighted",
            Self::LeastBusy => "least-busy",
            Self::Latency => "latency",
            Self::Cost => "cost",
            Self::Joint => "joint",
            Self::LimitAware => "limit-aware",
            Self::Sticky => "sticky",
            Self::LocalFirst => "local-first",
            Self::Ab => "ab",
        }
    }

    /// Whether requests that belong together go to the same candidate.
    pub(crate) fn keeps_together(self) -> bool {
        matches!(self, Self::Sticky | Self::Ab)
    }
}

/// When a candidate is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Role {
    #[default]
    Regular,
    /// Only after the prompt was too long for another.
    ForLongPrompts,
    /// Only after another refused for the content's sake.
    ForRefused,
}

/// What a model is known to be able to do. What is not known is taken to be possible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Abilities {
    /// Tokens of prompt and answer together.
    pub(crate) context: Option<u64>,
    pub(crate) images: Option<bool>,
    pub(crate) audio: Option<bool>,
    pub(crate) video: Option<bool>,
    pub(crate) tools: Option<bool>,
    pub(crate) json_schema: Option<bool>,
    /// Images and files by their address.
    pub(crate) image_urls: Option<bool>,
    /// Files by the id under which its provider keeps them.
    pub(crate) files: Option<bool>,
}

/// One model at one provider.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// `provider/model`.
    pub(crate) name: String,
    pub(crate) provider: Arc<Provider>,
    /// As the provider calls it.
    pub(crate) model: String,
    pub(crate) weight: u32,
    pub(crate) role: Role,
    pub(crate) abilities: Abilities,
}

impl Candidate {
    pub(crate) fn new(provider: Arc<Provider>, model: &str, weight: u32) -> Self {
        Self {
            name: format!("{}/{model}", provider.name),
            provider,
            model: model.to_string(),
            weight,
            role: Role::Regular,
            abilities: Abilities::default(),
        }
    }
}

/// How much each counts where they are weighed against each other.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Weights {
    pub(crate) cost: f64,
    pub(crate) speed: f64,
    pub(crate) reliability: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            cost: 1.0,
            speed: 1.0,
            reliability: 1.0,
        }
    }
}

/// What a candidate on this machine may have to do before others help.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Overflow {
    pub(crate) in_flight: Option<usize>,
    pub(crate) first_token_ms: Option<u64>,
    pub(crate) prompt_tokens: Option<u64>,
}

/// When a second candidate is asked though the first may still answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hedge {
    /// When the first takes longer than 95 of 100 lately did.
    Slowest,
    After(Duration),
}

/// What holds for all requests of a route.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ways {
    pub(crate) weights: Weights,
    /// Candidates that are slower are asked last.
    pub(crate) max_first_token: Option<Duration>,
    pub(crate) min_tokens_per_s: Option<f64>,
    pub(crate) overflow: Overflow,
    /// How long a request waits for a place where all are taken.
    pub(crate) queue: Duration,
    pub(crate) priority: Priority,
    pub(crate) hedge: Option<Hedge>,
    /// Whether another candidate goes on with a stream that breaks.
    pub(crate) continues: bool,
}

/// A name with candidates.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) name: String,
    pub(crate) policy: Policy,
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) ways: Ways,
    /// How its answers are kept, if they are.
    pub(crate) cache: Option<Keeping>,
    /// What is let in and out, if not everything.
    pub(crate) guard: Option<Arc<Guard>>,
    /// Nothing of it may go elsewhere.
    pub(crate) is_private: bool,
    /// For a route that sends requests to others; it has no candidates.
    pub(crate) rules: Option<Rules>,
}

impl Route {
    /// A route of one candidate that no configuration names.
    pub(crate) fn direct(candidate: Candidate) -> Self {
        Self {
            name: "direct".into(),
            policy: Policy::Ordered,
            candidates: vec![candidate],
            ways: Ways::default(),
            cache: None,
            guard: None,
            is_private: false,
            rules: None,
        }
    }

    /// Whether somebody may still be asked for what this candidate refuses for its content's sake.
    pub(crate) fn has_more_for_refused(&self, i: usize) -> bool {
        let is_one = |j: &usize| self.candidates[*j].role == Role::ForRefused;
        let from = if is_one(&i) { i + 1 } else { 0 };
        (from..self.candidates.len()).any(|j| is_one(&j))
    }

    /// Whether everybody who may be asked is on this machine.
    pub(crate) fn stays_here(&self) -> bool {
        self.rules.is_none()
            && self
                .candidates
                .iter()
                .all(|candidate| candidate.provider.is_local)
    }
}
