//! What can be seen of a running gateway, without its ledger.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use crate::Gateway;
use crate::failure::Class;
use crate::health::{BOUNDS_MS, Health, Readiness};

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// The gateway as a whole.
pub(super) fn status(gateway: &Gateway) -> Value {
    let counts = &gateway.counts;
    let targets = gateway.book().all();
    let under_way: usize = targets.iter().map(|(_, health)| health.in_flight()).sum();
    let config = gateway.config();
    let mut routes: Vec<&String> = config.routes.keys().collect();
    routes.sort();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": gateway.began.elapsed().as_secs(),
        "now_ms": super::acts::now_ms(),
        "waiting": read(&counts.in_flight),
        "answers_under_way": under_way,
        "responses": {
            "2xx": read(&counts.by_status[2]),
            "3xx": read(&counts.by_status[3]),
            "4xx": read(&counts.by_status[4]),
            "5xx": read(&counts.by_status[5]),
        },
        "reloads": {"taken": read(&counts.reloads), "refused": read(&counts.refused_reloads)},
        "routes": routes,
    })
}

/// Every target that was asked since the start.
pub(super) fn targets(gateway: &Gateway) -> Value {
    let now = Instant::now();
    let targets: Vec<Value> = gateway
        .book()
        .all()
        .iter()
        .map(|(name, health)| target(name, health, now))
        .collect();
    json!({"targets": targets})
}

fn target(name: &str, health: &Health, now: Instant) -> Value {
    let counts = &health.counts;
    let resting_ms = match health.readiness(usize::MAX, now) {
        Readiness::Resting(until) => Some(until.saturating_duration_since(now).as_millis() as u64),
        _ => None,
    };
    let failures: serde_json::Map<String, Value> = Class::ALL
        .into_iter()
        .map(|class| (class.name().to_string(), read(&counts.failures[class as usize])))
        .filter(|(_, n)| *n > 0)
        .map(|(name, n)| (name, json!(n)))
        .collect();
    let first: Vec<u64> = counts.first_token.iter().map(read).collect();
    json!({
        "name": name,
        "in_flight": health.in_flight(),
        "resting_ms": resting_ms,
        "answers": read(&counts.answers),
        "failures": failures,
        "failing": health.failing(now),
        "clients_gone": read(&counts.cut_by_clients),
        "price_unknown": read(&counts.without_price),
        "input_tokens": read(&counts.input_tokens),
        "output_tokens": read(&counts.output_tokens),
        "first_token_ms": {"sum": read(&counts.first_token_ms), "bounds": BOUNDS_MS, "counts": first},
    })
}
