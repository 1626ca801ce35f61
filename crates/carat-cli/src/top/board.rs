//! What samples of a gateway say together: counts become rates.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Instant;

use serde::Deserialize;

/// Rates that are remembered for the curve.
const MAX_RATES: usize = 240;

/// `GET status`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) uptime_s: u64,
    now_ms: u64,
    pub(crate) answers_under_way: u64,
    pub(crate) responses: BTreeMap<String, u64>,
}

impl Status {
    /// Days since 1970, by the gateway's clock.
    pub(crate) fn day(&self) -> u64 {
        self.now_ms / 86_400_000
    }
}

/// `GET targets`.
#[derive(Debug, Deserialize)]
pub(crate) struct TargetList {
    pub(crate) targets: Vec<Target>,
}

/// A target's counts since the gateway's start.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) in_flight: u64,
    pub(crate) resting_ms: Option<u64>,
    pub(crate) answers: u64,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) output_tokens: u64,
    pub(crate) first_token_ms: Sum,
}

/// The sum of times.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Sum {
    pub(crate) sum: u64,
}

/// `GET spend`.
#[derive(Debug, Deserialize)]
pub(crate) struct SpendList {
    pub(crate) spend: Vec<Spend>,
}

/// What a model cost today.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Spend {
    pub(crate) name: String,
    pub(crate) micros: u64,
}

/// A gateway at a moment.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) status: Status,
    pub(crate) targets: Vec<Target>,
    pub(crate) spend: Vec<Spend>,
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) in_flight: u64,
    pub(crate) per_s: f64,
    pub(crate) tokens_per_s: f64,
    /// Mean time to the first words lately, or since the start if nothing came lately.
    pub(crate) first_ms: Option<f64>,
    pub(crate) failures: u64,
    /// Failures since the sample before.
    pub(crate) new_failures: u64,
    pub(crate) resting_s: Option<u64>,
    pub(crate) micros: u64,
}

/// What is shown.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pub(crate) status: Status,
    pub(crate) per_s: f64,
    pub(crate) refused_per_s: f64,
    pub(crate) failed_per_s: f64,
    pub(crate) micros: u64,
    pub(crate) lines: Vec<Line>,
    /// Requests a second, the latest last.
    pub(crate) rates: VecDeque<u64>,
    /// Why nothing new comes.
    pub(crate) trouble: Option<String>,
    before: Option<Sample>,
}

impl Board {
    /// Takes a sample.
    pub(crate) fn take(&mut self, sample: Sample) {
        let before = self.before.take();
        let seconds = before
            .as_ref()
            .map_or(f64::INFINITY, |before| {
                sample.at.duration_since(before.at).as_secs_f64()
            })
            .max(1e-3);
        // A gateway that was started anew counts from nothing.
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let of = |status: Option<&Status>, hundreds: &str| {
            status
                .and_then(|status| status.responses.get(hundreds).copied())
                .unwrap_or(0)
        };
        let old = before.as_ref().map(|before| &before.status);
        let by = |hundreds: &str| rate(of(Some(&sample.status), hundreds), of(old, hundreds));
        (self.refused_per_s, self.failed_per_s) = (by("4xx"), by("5xx"));
        self.per_s = by("2xx") + by("3xx") + self.refused_per_s + self.failed_per_s;
        if before.is_some() {
            self.rates.push_back(self.per_s.round() as u64);
            if self.rates.len() > MAX_RATES {
                self.rates.pop_front();
            }
        }
        let old: HashMap<&str, &Target> = before
            .iter()
            .flat_map(|before| &before.targets)
            .map(|target| (target.name.as_str(), target))
            .collect();
        let spend: HashMap<&str, u64> = sample
            .spend
            .iter()
            .map(|spend| (spend.name.as_str(), spend.micros))
            .collect();
        self.micros = spend.values().sum();
        self.lines = sample
            .targets
            .iter()
            .map(|target| {
                let none = Target::default();
                let old = old.get(target.name.as_str()).copied().unwrap_or(&none);
                let failures: u64 = target.failures.values().sum();
                let failed_before: u64 = old.failures.values().sum();
                Line {
                    name: target.name.clone(),
                    in_flight: target.in_flight,
                    per_s: rate(target.answers, old.answers),
                    tokens_per_s: rate(target.output_tokens, old.output_tokens),
                    first_ms: mean(target, old).or_else(|| mean(target, &none)),
                    failures,
                    new_failures: failures.saturating_sub(failed_before) * u64::from(seconds.is_finite()),
                    resting_s: target.resting_ms.map(|ms| ms.div_ceil(1000)),
                    micros: spend.get(target.name.as_str()).copied().unwrap_or(0),
                }
            })
            .collect();
        self.lines
            .sort_by(|a, b| b.per_s.total_cmp(&a.per_s).then_with(|| a.name.cmp(&b.name)));
        self.status = sample.status.clone();
        self.trouble = None;
        self.before = Some(sample);
    }

    /// Nothing new comes.
    pub(crate) fn lose(&mut self, why: String) {
        self.trouble = Some(why);
    }
}

/// The mean time to first words of the answers between two samples.
fn mean(now: &Target, before: &Target) -> Option<f64> {
    let n = now.answers.checked_sub(before.answers).filter(|n| *n > 0)?;
    Some(now.first_token_ms.sum.saturating_sub(before.first_token_ms.sum) as f64 / n as f64)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    pub(crate) fn sample(after_s: u64, answers: u64) -> Sample {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let responses = [("2xx".to_string(), answers), ("5xx".to_string(), answers / 10)];
        Sample {
            at: *START + Duration::from_secs(after_s),
            status: Status {
                version: "0.1".into(),
                uptime_s: 3661 + after_s,
                now_ms: 0,
                answers_under_way: 3,
                responses: responses.into(),
            },
            targets: vec![Target {
                name: "openai/gpt".into(),
                in_flight: 3,
                resting_ms: Some(1500),
                answers,
                failures: [("overloaded".to_string(), answers / 10)].into(),
                output_tokens: answers * 50,
                first_token_ms: Sum { sum: answers * 200 },
            }],
            spend: vec![Spend {
                name: "openai/gpt".into(),
                micros: 1_250_000,
            }],
        }
    }

    #[test]
    fn counts_become_rates() {
        let mut board = Board::default();
        board.take(sample(0, 1000));
        assert_eq!(
            (board.per_s, board.lines[0].per_s, board.lines[0].new_failures),
            (0.0, 0.0, 0)
        );
        board.take(sample(2, 1100));
        let line = &board.lines[0];
        assert_eq!(
            (board.per_s, board.failed_per_s, board.micros),
            (55.0, 5.0, 1_250_000)
        );
        assert_eq!(
            (line.per_s, line.tokens_per_s, line.first_ms),
            (50.0, 2500.0, Some(200.0))
        );
        assert_eq!(
            (line.failures, line.new_failures, line.resting_s),
            (110, 10, Some(2))
        );
        assert_eq!(board.rates, [55]);
        // Started anew.
        board.take(sample(3, 10));
        assert_eq!(board.per_s, 0.0);
    }
}
