//! What a Prometheus server reads at `/metrics`.
//!
//! Labels are targets and failure classes: both come from the configuration or are bounded, and never hold a key or a
//! word of a prompt.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};

use crate::Gateway;
use crate::failure::Class;
use crate::health::{BOUNDS_MS, Health, Readiness};
use crate::reply::Body;
use crate::variants::Variant;

/// All metrics as text.
pub(crate) fn response(gateway: &Gateway) -> Response<Body> {
    let mut response = Response::new(Body::whole(text(gateway)));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

pub(crate) fn text(gateway: &Gateway) -> String {
    let mut out = Text(String::new());
    let counts = &gateway.counts;
    out.family("carat_gateway_requests_in_flight", "gauge", "Requests under way");
    out.line("carat_gateway_requests_in_flight", &[], read(&counts.in_flight));
    out.family(
        "carat_gateway_responses_total",
        "counter",
        "Answers by the hundreds of their status",
    );
    for (hundreds, count) in counts.by_status.iter().enumerate().skip(2) {
        let status = format!("{hundreds}xx");
        out.line(
            "carat_gateway_responses_total",
            &[("status", &status)],
            read(count),
        );
    }
    out.family(
        "carat_gateway_config_reloads_total",
        "counter",
        "Changes of the configuration",
    );
    out.line(
        "carat_gateway_config_reloads_total",
        &[("result", "taken")],
        read(&counts.reloads),
    );
    out.line(
        "carat_gateway_config_reloads_total",
        &[("result", "refused")],
        read(&counts.refused_reloads),
    );
    let cache = &gateway.cache;
    out.family(
        "carat_gateway_cache_lookups_total",
        "counter",
        "Requests that might be answered from the cache",
    );
    for (result, count) in [("hit", &cache.hits), ("miss", &cache.misses)] {
        out.line(
            "carat_gateway_cache_lookups_total",
            &[("result", result)],
            read(count),
        );
    }
    out.family(
        "carat_gateway_cache_bytes",
        "gauge",
        "Memory of answers that are kept",
    );
    out.line("carat_gateway_cache_bytes", &[], cache.n_bytes() as u64);
    out.family(
        "carat_gateway_guarded_total",
        "counter",
        "Requests and answers that a guard refused",
    );
    out.line("carat_gateway_guarded_total", &[], read(&counts.guarded));
    if let Some(tracer) = &gateway.tracer {
        out.family(
            "carat_gateway_spans_total",
            "counter",
            "Spans by what became of them",
        );
        for (result, n) in [("sent", tracer.n_sent()), ("dropped", tracer.n_dropped())] {
            out.line("carat_gateway_spans_total", &[("result", result)], n);
        }
    }
    let targets = gateway.book().all();
    for (name, kind, help, value) in TARGETS {
        out.family(name, kind, help);
        for (target, health) in &targets {
            out.line(name, &[("target", target)], value(health));
        }
    }
    out.family("carat_target_failures_total", "counter", "Failures by class");
    for (target, health) in &targets {
        for class in Class::ALL {
            let count = read(&health.counts.failures[class as usize]);
            if count > 0 {
                let labels = [("target", target.as_str()), ("class", class.name())];
                out.line("carat_target_failures_total", &labels, count);
            }
        }
    }
    out.first_tokens(&targets);
    out.variants(&gateway.variants.all());
    out.0
}

type Value = fn(&Health) -> u64;

/// One number for each target.
const TARGETS: [(&str, &str, &str, Value); 9] = [
    (
        "carat_target_answers_total",
        "counter",
        "Answers that began",
        |health| read(&health.counts.answers),
    ),
    (
        "carat_target_clients_gone_total",
        "counter",
        "Answers whose client left",
        |health| read(&health.counts.cut_by_clients),
    ),
    (
        "carat_target_malformed_events_total",
        "counter",
        "Events of streams that made no sense",
        |health| read(&health.counts.malformed),
    ),
    (
        "carat_target_price_unknown_total",
        "counter",
        "Answers for which no price is known",
        |health| read(&health.counts.without_price),
    ),
    (
        "carat_target_input_tokens_total",
        "counter",
        "Tokens of prompts",
        |health| read(&health.counts.input_tokens),
    ),
    (
        "carat_target_output_tokens_total",
        "counter",
        "Tokens of answers",
        |health| read(&health.counts.output_tokens),
    ),
    (
        "carat_target_requests_in_flight",
        "gauge",
        "Requests under way",
        |health| health.in_flight() as u64,
    ),
    (
        "carat_target_requests_waiting",
        "gauge",
        "Requests that wait for a place",
        |health| health.waiting.length() as u64,
    ),
    (
        "carat_target_resting",
        "gauge",
        "1 while it is not asked",
        |health| {
            u64::from(matches!(
                health.readiness(usize::MAX, Instant::now()),
                Readiness::Resting(_)
            ))
        },
    ),
];

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

type VariantValue = fn(&Variant) -> u64;

/// One number for each candidate of routes that compare theirs.
const VARIANTS: [(&str, &str, VariantValue); 7] = [
    (
        "carat_variant_answers_total",
        "Whole answers of a variant",
        |one| read(&one.answers),
    ),
    (
        "carat_variant_cut_total",
        "Answers of a variant that broke off",
        |one| read(&one.cut),
    ),
    (
        "carat_variant_failures_total",
        "Calls of a variant after which somebody else had to answer",
        |one| read(&one.failures),
    ),
    ("carat_variant_input_tokens_total", "Tokens of prompts", |one| {
        read(&one.input_tokens)
    }),
    ("carat_variant_output_tokens_total", "Tokens of answers", |one| {
        read(&one.output_tokens)
    }),
    (
        "carat_variant_cost_micros_total",
        "What the answers cost, in millionths of a dollar",
        |one| read(&one.cost_micros),
    ),
    (
        "carat_variant_first_token_ms_total",
        "Milliseconds to the first words, all answers together",
        |one| read(&one.first_token_ms),
    ),
];

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail, here and below.
        let _written = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        for (i, (label, text)) in labels.iter().enumerate() {
            self.0.push(if i == 0 { '{' } else { ',' });
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _written = write!(self.0, "{label}=\"{text}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _written = writeln!(self.0, "{end} {value}");
    }

    fn variants(&mut self, variants: &[((String, String), std::sync::Arc<Variant>)]) {
        for (name, help, value) in VARIANTS.iter().filter(|_| !variants.is_empty()) {
            self.family(name, "counter", help);
            for ((route, target), variant) in variants {
                self.line(name, &[("route", route), ("target", target)], value(variant));
            }
        }
    }

    fn first_tokens(&mut self, targets: &[(String, std::sync::Arc<Health>)]) {
        let name = "carat_target_first_token_ms";
        self.family(
            name,
            "histogram",
            "Milliseconds to the first words of a stream, or to a whole answer",
        );
        for (target, health) in targets {
            let mut total = 0;
            for (i, count) in health.counts.first_token.iter().enumerate() {
                total += read(count);
                let bound = BOUNDS_MS.get(i).map_or("+Inf".to_string(), ToString::to_string);
                self.line(
                    &format!("{name}_bucket"),
                    &[("target", target), ("le", &bound)],
                    total,
                );
            }
            self.line(
                &format!("{name}_sum"),
                &[("target", target)],
                read(&health.counts.first_token_ms),
            );
            self.line(&format!("{name}_count"), &[("target", target)], total);
        }
    }
}
