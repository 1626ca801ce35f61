//! What is counted, in Prometheus' text form.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carat_engine::{Counters, MAX_DRAFT};
use carat_traces::Tracer;

/// Upper bounds of the histograms' buckets, in seconds.
const BOUNDS: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

/// Totals of each model: name and meaning.
const TOTALS: [(&str, &str); 10] = [
    ("carat_steps_total", "Forward passes."),
    (
        "carat_prompt_tokens_total",
        "Tokens of prompts that were computed.",
    ),
    (
        "carat_cached_tokens_total",
        "Tokens of prompts from the prefix cache.",
    ),
    (
        "carat_restored_tokens_total",
        "Of these, tokens whose cache was read from the disk.",
    ),
    ("carat_generated_tokens_total", "Tokens generated."),
    (
        "carat_answers_finished_total",
        "Answers that came to their own end.",
    ),
    (
        "carat_answers_cancelled_total",
        "Answers that were cancelled or too late.",
    ),
    ("carat_answers_failed_total", "Answers that failed."),
    ("carat_preemptions_total", "Sequences that gave up their cache."),
    ("carat_draft_failures_total", "Times that the drafter failed."),
];
/// Totals by position in the draft.
const DRAFTS: [(&str, &str); 2] = [
    ("carat_drafted_tokens_total", "Tokens guessed ahead and compared."),
    ("carat_accepted_tokens_total", "Tokens guessed ahead rightly."),
];
/// The present state of each model.
const GAUGES: [(&str, &str); 5] = [
    ("carat_model_loaded", "Whether the model is loaded."),
    ("carat_sequences_running", "Sequences in the batch."),
    ("carat_jobs_waiting", "Jobs that wait for a place."),
    ("carat_cache_bytes", "Bytes of all caches, at most."),
    ("carat_prefix_snapshots", "Beginnings in the prefix cache."),
];

/// A distribution of times.
#[derive(Default)]
pub(crate) struct Histogram {
    /// The last is for times beyond all bounds.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS
            .iter()
            .position(|bound| seconds <= *bound)
            .unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn write(&self, name: &str, help: &str, out: &mut String) {
        head(name, help, "histogram", out);
        let mut below = 0;
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            below += bucket.load(Ordering::Relaxed);
            let _infallible = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {below}");
        }
        below += self.buckets[BOUNDS.len()].load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a sum of times")]
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _infallible = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {below}");
        let _infallible = writeln!(out, "{name}_sum {sum}\n{name}_count {below}");
    }
}

/// An engine's totals, in the order of [`TOTALS`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    of_engine: [u64; TOTALS.len()],
    /// Guessed, and rightly guessed, by position in the draft.
    drafts: [[u64; 2]; MAX_DRAFT],
}

impl Totals {
    /// Adds what an engine has counted so far.
    pub(crate) fn add(&mut self, counters: &Counters) {
        let now = [
            &counters.steps,
            &counters.prefilled,
            &counters.reused,
            &counters.restored,
            &counters.generated,
            &counters.finished,
            &counters.cancelled,
            &counters.failed,
            &counters.preempted,
            &counters.draft_failures,
        ];
        for (total, counter) in self.of_engine.iter_mut().zip(now) {
            *total += counter.get();
        }
        let drafts = counters.drafted.iter().zip(&counters.accepted);
        for (totals, (drafted, accepted)) in self.drafts.iter_mut().zip(drafts) {
            totals[0] += drafted.get();
            totals[1] += accepted.get();
        }
    }
}

/// What a model's earlier engines have counted.
#[derive(Default)]
pub(crate) struct Past {
    of_ended: Totals,
    /// Of engines that were let go: an answer is counted after its last word was sent, so they may count on.
    of_ending: Vec<Arc<Counters>>,
}

impl Past {
    /// Takes the counters of an engine that is let go.
    pub(crate) fn let_go(&mut self, counters: &Arc<Counters>) {
        self.totals();
        self.of_ending.push(Arc::clone(counters));
    }

    /// All that was counted until now.
    pub(crate) fn totals(&mut self) -> Totals {
        self.of_ending.retain_mut(|counters| {
            let has_ended = Arc::get_mut(counters).is_some();
            if has_ended {
                self.of_ended.add(counters);
            }
            !has_ended
        });
        let mut totals = self.of_ended;
        self.of_ending.iter().for_each(|counters| totals.add(counters));
        totals
    }
}

/// What is told of one model.
#[derive(Debug, Clone)]
pub(crate) struct ModelFigures {
    pub(crate) id: String,
    totals: Totals,
    /// In the order of [`GAUGES`].
    gauges: [u64; GAUGES.len()],
}

impl ModelFigures {
    /// Of a model whose earlier engines counted `totals`.
    pub(crate) fn of_past(id: &str, totals: Totals) -> Self {
        Self {
            id: id.to_string(),
            totals,
            gauges: [0; GAUGES.len()],
        }
    }

    /// Adds the engine that runs now.
    pub(crate) fn add(&mut self, counters: &Counters) {
        self.totals.add(counters);
        self.gauges = [
            1,
            counters.running.get(),
            counters.waiting.get(),
            counters.cache_bytes.get(),
            counters.snapshots.get(),
        ];
    }

    fn labels(&self) -> String {
        let id = self
            .id
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', " ");
        format!("model=\"{id}\"")
    }
}

/// Everything that is counted here; the engine counts for itself.
#[derive(Default)]
pub(crate) struct Metrics {
    /// Requests by route and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// From a request's arrival to its answer's first token.
    pub(crate) first_token: Histogram,
    /// Between one token and the next.
    pub(crate) next_token: Histogram,
    /// From a request's arrival to its end.
    pub(crate) duration: Histogram,
}

impl Metrics {
    pub(crate) fn count(&self, route: &'static str, status: u16) {
        let mut requests = self
            .requests
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *requests.entry((route, status)).or_default() += 1;
    }

    /// All of it as text.
    pub(crate) fn text(&self, models: &[ModelFigures], version: &str) -> String {
        let mut out = String::new();
        head("carat_build_info", "The version.", "gauge", &mut out);
        let _infallible = writeln!(out, "carat_build_info{{version=\"{version}\"}} 1");
        head(
            "carat_http_requests_total",
            "Requests by route and status.",
            "counter",
            &mut out,
        );
        let requests = self
            .requests
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for ((route, status), n) in requests.iter() {
            let labels = format!("route=\"{route}\",status=\"{status}\"");
            let _infallible = writeln!(out, "carat_http_requests_total{{{labels}}} {n}");
        }
        drop(requests);
        for (i, (name, help)) in TOTALS.into_iter().enumerate() {
            head(name, help, "counter", &mut out);
            for model in models {
                let _infallible = writeln!(out, "{name}{{{}}} {}", model.labels(), model.totals.of_engine[i]);
            }
        }
        for (i, (name, help)) in DRAFTS.into_iter().enumerate() {
            head(name, help, "counter", &mut out);
            for model in models {
                for (position, counts) in (1..).zip(&model.totals.drafts) {
                    let (labels, n) = (model.labels(), counts[i]);
                    let _infallible = writeln!(out, "{name}{{{labels},position=\"{position}\"}} {n}");
                }
            }
        }
        for (i, (name, help)) in GAUGES.into_iter().enumerate() {
            head(name, help, "gauge", &mut out);
            for model in models {
                let _infallible = writeln!(out, "{name}{{{}}} {}", model.labels(), model.gauges[i]);
            }
        }
        self.first_token
            .write("carat_first_token_seconds", "Arrival to first token.", &mut out);
        self.next_token
            .write("carat_next_token_seconds", "One token to the next.", &mut out);
        self.duration
            .write("carat_request_seconds", "Arrival to end.", &mut out);
        out
    }
}

/// What became of spans.
pub(crate) fn spans(tracer: &Tracer) -> String {
    let (name, mut out) = ("carat_spans_total", String::new());
    head(name, "Spans by what became of them.", "counter", &mut out);
    for (result, n) in [("sent", tracer.n_sent()), ("dropped", tracer.n_dropped())] {
        let _infallible = writeln!(out, "{name}{{result=\"{result}\"}} {n}");
    }
    out
}

fn head(name: &str, help: &str, kind: &str, out: &mut String) {
    let _infallible = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_counted_by_itself_until_it_has_ended() {
        let mut past = Past::default();
        let engines: [Arc<Counters>; 3] = Default::default();
        engines.iter().for_each(|counters| past.let_go(counters));
        assert_eq!(past.of_ending.len(), 3);
        let first = engines.into_iter().next().unwrap();
        past.totals();
        assert_eq!(past.of_ending.len(), 1);
        assert!(Arc::ptr_eq(&first, &past.of_ending[0]));
    }

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        metrics.first_token.record(Duration::from_millis(30));
        metrics.first_token.record(Duration::from_secs(100));
        metrics.count("/v1/models", 200);
        let totals = Totals {
            of_engine: [3; TOTALS.len()],
            drafts: [[5, 4]; MAX_DRAFT],
        };
        let mut model = ModelFigures::of_past("a\"b", totals);
        model.add(&Counters::default());
        let text = metrics.text(&[model], "1");
        assert!(text.contains("carat_steps_total{model=\"a\\\"b\"} 3\n"), "{text}");
        assert!(
            text.contains("carat_accepted_tokens_total{model=\"a\\\"b\",position=\"2\"} 4\n"),
            "{text}"
        );
        assert!(text.contains("carat_model_loaded{model=\"a\\\"b\"} 1\n"));
        assert!(text.contains("carat_first_token_seconds_bucket{le=\"0.025\"} 0\n"));
        assert!(text.contains("carat_first_token_seconds_bucket{le=\"0.05\"} 1\n"));
        assert!(text.contains("carat_first_token_seconds_bucket{le=\"+Inf\"} 2\n"));
        assert!(text.contains("carat_http_requests_total{route=\"/v1/models\",status=\"200\"} 1\n"));
    }
}
