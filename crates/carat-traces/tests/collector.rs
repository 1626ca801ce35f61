//! Spans as a small collector gets them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod support;

use std::time::{Duration, Instant};

use carat_traces::{Context, Kind, Trace, genai};
use support::{Collector, attribute, tracer};
use tokio::net::TcpListener;

#[tokio::test]
async fn a_request_and_the_calls_it_makes_are_one_trace() {
    let (collector, tracer) = Collector::start().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = Trace::begin(&tracer, "chat", Some(parent));
    let held = trace.clone();
    let mut call = trace.child("chat x".to_string());
    call.fail("slow");
    let onward = Context::parse(&call.context().to_string()).unwrap();
    drop((trace, call));
    held.span().set(genai::INPUT_TOKENS, 5_u64);
    drop(held);
    let spans = collector.spans(&tracer).await;
    assert_eq!(spans.len(), 2);
    assert!(
        spans
            .iter()
            .all(|span| span["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736")
    );
    let (call, request) = (&spans[0], &spans[1]);
    assert_eq!((&request["kind"], &call["kind"]), (&2.into(), &3.into()));
    assert_eq!(request["parentSpanId"], "00f067aa0ba902b7");
    assert_eq!(call["parentSpanId"], request["spanId"]);
    assert!(onward.to_string().contains(call["spanId"].as_str().unwrap()));
    assert_eq!(call["status"]["code"], 2);
    assert_eq!(attribute(request, genai::INPUT_TOKENS).as_deref(), Some("5"));
    assert!(collector.heads()[0].contains("x-key: k\r\n"));
    assert_eq!((tracer.n_sent(), tracer.n_dropped()), (2, 0));
}

#[tokio::test]
async fn what_a_client_does_not_want_traced_is_not() {
    let (collector, tracer) = Collector::start().await;
    let unwanted = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let trace = Trace::begin(&tracer, "chat", Some(unwanted));
    let onward = trace.child("x".to_string()).context().to_string();
    assert!(onward.ends_with("-00"), "{onward}");
    drop(trace);
    assert!(collector.spans(&tracer).await.is_empty());
}

#[tokio::test]
async fn a_batch_is_sent_again_while_the_collector_is_busy() {
    let (collector, tracer) = Collector::start().await;
    collector.statuses.lock().unwrap().extend([503, 200, 400]);
    drop(tracer.span(Kind::Server, "a", None));
    assert_eq!(collector.spans(&tracer).await.len(), 1);
    assert_eq!(tracer.n_dropped(), 0);
    drop(tracer.span(Kind::Server, "b", None));
    assert_eq!(collector.spans(&tracer).await.len(), 1, "a refusal is final");
    assert_eq!(tracer.n_dropped(), 1);
}

#[tokio::test]
async fn a_silent_collector_costs_spans_and_no_time() {
    // It accepts, and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tracer = tracer(&format!("http://{}", listener.local_addr().unwrap()));
    let started = Instant::now();
    for _ in 0..10_000 {
        drop(tracer.span(Kind::Server, "a", None));
    }
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(
        tracer.n_dropped() >= 10_000 - 4096 - 512,
        "{}",
        tracer.n_dropped()
    );
    let started = Instant::now();
    tracer.flush(Duration::from_millis(100)).await;
    assert!(started.elapsed() < Duration::from_secs(2));
}
