//! What a collector is told of requests, and what providers are.

#[path = "../../../carat-traces/tests/support/mod.rs"]
mod collector;

use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use self::collector::{Collector, attribute};
use crate::support::{Rig, chat, rig_of};

const ROUTE: &str = "attempts = 3\n---[routes.r]\ncandidates = [\"m/status=500\", \"m/ok\"]";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn ask(rig: &Rig, body: String) -> u16 {
    let request = Request::post(format!("http://{}/v1/chat/completions", rig.address))
        .header("traceparent", PARENT)
        .header("tracestate", "a=b")
        .body(Full::from(body))
        .unwrap();
    let response = rig.client.request(request).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

/// The spans of one request: its own, and those of its calls in order.
async fn traced(more: &str, body: String) -> (Value, Vec<Value>, String) {
    let (collector, tracer) = Collector::start().await;
    let rig = rig_of(more, "client-key", |gateway| gateway.with_tracer(tracer.clone())).await;
    ask(&rig, body).await;
    // The request's span ends when its connection has let go of the body, which may be a moment after its end.
    let mut spans = Vec::new();
    for _ in 0..100 {
        spans = collector.spans(&tracer).await;
        if spans.iter().any(|span| span["kind"] == 2) {
            break;
        }
    }
    let own = spans.iter().position(|span| span["kind"] == 2).unwrap();
    let own = spans.remove(own);
    let head = rig.mock.last.lock().unwrap().0.to_lowercase();
    (own, spans, head)
}

#[tokio::test]
async fn a_request_is_a_trace_with_a_span_for_each_attempt() {
    for is_stream in [false, true] {
        let body =
            chat("r", is_stream).replace("\"stream\"", "\"temperature\":0.5,\"max_tokens\":9,\"stream\"");
        let (own, calls, head) = traced(ROUTE, body).await;
        let said = |key: &str| attribute(&own, key).unwrap_or_default();
        assert_eq!(
            (&own["name"], &own["parentSpanId"]),
            (&"chat r".into(), &"00f067aa0ba902b7".into())
        );
        assert_eq!(
            (said("gen_ai.request.model"), said("carat.target")),
            ("r".into(), "m/ok".into())
        );
        assert_eq!(
            (
                said("gen_ai.request.temperature"),
                said("gen_ai.request.max_tokens")
            ),
            ("0.5".into(), "9".into())
        );
        assert_eq!(said("http.response.status_code"), "200");
        assert!(said("gen_ai.response.finish_reasons").contains("stop"), "{own}");
        assert!(said("gen_ai.usage.output_tokens").parse::<u64>().unwrap() > 0);
        assert!(said("gen_ai.server.time_to_first_token").parse::<f64>().unwrap() > 0.0);
        assert_eq!(own.get("status"), None, "another has answered: {own}");
        let [failed, good] = calls.as_slice() else {
            panic!("{calls:?}")
        };
        assert!(
            calls
                .iter()
                .all(|call| call["parentSpanId"] == own["spanId"] && call["kind"] == 3)
        );
        let of = |call: &Value, key: &str| attribute(call, key).unwrap_or_default();
        assert_eq!(
            (of(failed, "error.type"), of(failed, "http.response.status_code")),
            ("server_fault".into(), "500".into())
        );
        assert_eq!(failed["status"]["code"], 2);
        assert_eq!(
            (of(good, "carat.target"), of(good, "gen_ai.provider.name")),
            ("m/ok".into(), "m".into())
        );
        assert_eq!(
            of(good, "gen_ai.usage.output_tokens"),
            said("gen_ai.usage.output_tokens")
        );
        let onward = format!(
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01",
            good["spanId"].as_str().unwrap()
        );
        assert!(
            head.contains(&onward) && head.contains("tracestate: a=b"),
            "{head}"
        );
        assert!(
            !own.to_string().contains("Hi"),
            "what is said is nobody's business"
        );
    }
}

#[tokio::test]
async fn what_goes_wrong_is_told_by_its_kind() {
    let body = chat("m/cut=1", true);
    let (own, calls, _) = traced("attempts = 1\n---", body).await;
    assert_eq!(attribute(&own, "error.type").as_deref(), Some("network"));
    assert_eq!(attribute(&calls[0], "error.type").as_deref(), Some("network"));
    let (own, calls, _) = traced("attempts = 1\n---", chat("nobody/x", false)).await;
    assert_eq!(attribute(&own, "error.type").as_deref(), Some("404"));
    assert!(calls.is_empty());
}
