//! A route: a name with candidates, and the order in which they are asked.
//!
//! The order is made for every request; who is ill or resting is passed over later ([`crate::attempt`]), so that a
//! policy only says what is best, not what is possible.

use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;

use crate::health::HealthBook;
use crate::provider::Provider;

/// Part of the requests that a policy of measured times sends anywhere, so that it sees who has become better.
const EXPLORED: f64 = 0.03;
/// Tokens of an answer whose length nobody knows.
const TYPICAL_TOKENS: f64 = 300.0;

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
}

impl Policy {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Weighted => "weighted",
            Self::LeastBusy => "least-busy",
            Self::Latency => "latency",
        }
    }
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
}

impl Candidate {
    pub(crate) fn new(provider: Arc<Provider>, model: &str, weight: u32) -> Self {
        Self {
            name: format!("{}/{model}", provider.name),
            provider,
            model: model.to_string(),
            weight,
        }
    }
}

/// A name with candidates.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) name: String,
    pub(crate) policy: Policy,
    pub(crate) candidates: Vec<Candidate>,
}

/// What a policy may know of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) prompt_bytes: usize,
    pub(crate) max_tokens: Option<u64>,
}

impl Route {
    /// Indexes of candidates, best first. Those of weight 0 are never asked.
    pub(crate) fn order(&self, asked: Asked, book: &HealthBook) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.candidates.len())
            .filter(|&i| self.candidates[i].weight > 0)
            .collect();
        if order.len() < 2 {
            return order;
        }
        match self.policy {
            Policy::Ordered => {}
            // Exponential times with the weights as rates come in exactly the wanted order.
            Policy::Weighted => self.sort(&mut order, |candidate| {
                -(1.0 - fastrand::f64()).ln() / f64::from(candidate.weight)
            }),
            Policy::LeastBusy => self.sort(&mut order, |candidate| {
                book.of(&candidate.name).in_flight() as f64 + fastrand::f64() * 0.5
            }),
            Policy::Latency => {
                let now = Instant::now();
                let n_tokens = asked
                    .max_tokens
                    .map_or(TYPICAL_TOKENS, |n| (n as f64).min(TYPICAL_TOKENS));
                self.sort(&mut order, |candidate| {
                    let health = book.of(&candidate.name);
                    let expected = health.expected_s(asked.prompt_bytes, n_tokens, now);
                    // A little noise, so that equals share the load and nobody is overrun by all at once.
                    expected * (1.0 + health.failing(now)) * (0.95 + 0.1 * fastrand::f64())
                });
                if fastrand::f64() < EXPLORED {
                    let lucky = fastrand::usize(..order.len());
                    order[..=lucky].rotate_right(1);
                }
            }
        }
        order
    }

    fn sort(&self, order: &mut [usize], mut key: impl FnMut(&Candidate) -> f64) {
        let keys: Vec<f64> = self.candidates.iter().map(&mut key).collect();
        order.sort_by(|&a, &b| keys[a].total_cmp(&keys[b]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn route(policy: &str) -> Arc<Route> {
        let text = format!(
            "[providers.a]\nbase-url = \"http://a\"\n[routes.r]\npolicy = \"{policy}\"\n\
             candidates = [{{ model = \"a/x\", weight = 3 }}, \"a/y\", {{ model = \"a/z\", weight = 0 }}]"
        );
        let env: crate::config::Env = Arc::new(|_| None);
        Arc::clone(&Config::parse(&text, &env).unwrap().routes["r"])
    }

    const ASKED: Asked = Asked {
        prompt_bytes: 100,
        max_tokens: None,
    };

    #[test]
    fn weights_decide_how_often_one_is_first() {
        let (route, book) = (route("weighted"), HealthBook::default());
        fastrand::seed(7);
        let firsts = (0..4000).filter(|_| route.order(ASKED, &book)[0] == 0).count();
        assert!(
            (2850..3150).contains(&firsts),
            "{firsts} of 4000 at weight 3 of 4"
        );
        assert_eq!(route.order(ASKED, &book).len(), 2, "weight 0 is never asked");
    }

    #[test]
    fn the_fastest_and_the_least_busy_are_asked_first() {
        let book = HealthBook::default();
        let slow = book.of("a/x");
        let permit = slow.admit(9, false, Instant::now()).unwrap();
        assert_eq!(route("least-busy").order(ASKED, &book), [1, 0]);
        assert_eq!(route("ordered").order(ASKED, &book), [0, 1]);
        std::thread::sleep(std::time::Duration::from_millis(30));
        permit.began(100);
        book.of("a/y").admit(9, false, Instant::now()).unwrap().began(100);
        fastrand::seed(1);
        let firsts = (0..100)
            .filter(|_| route("latency").order(ASKED, &book)[0] == 1)
            .count();
        assert!(firsts > 90, "{firsts}");
    }
}
