//! What a collector is told of requests.

#[path = "../../../carat-traces/tests/support/mod.rs"]
mod collector;

use carat_server::ServerOptions;
use serde_json::json;

use self::collector::{Collector, attribute};
use crate::common::client_with;

#[tokio::test]
async fn a_request_for_a_model_is_a_span() {
    let (collector, tracer) = Collector::start().await;
    let options = ServerOptions {
        tracer: Some(tracer.clone()),
        ..ServerOptions::default()
    };
    let client = client_with("Grüß", options);
    let parent = [(
        "traceparent",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )];
    for is_stream in [false, true] {
        let body = json!({
            "model": "fake", "temperature": 0, "max_tokens": 50, "stream": is_stream, "seed": 7,
            "messages": [{"role": "user", "content": "A secret"}],
        });
        let told = client
            .send("POST", "/v1/chat/completions", &body.to_string(), &parent)
            .await;
        assert_eq!(told.status, 200);
    }
    assert_eq!(client.get("/health").await.status, 200);
    assert_eq!(client.post("/v1/messages", json!({"model": 1})).await.status, 400);
    client
        .post("/v1/embeddings", json!({"model": "fake", "input": "x"}))
        .await;
    assert!(
        client
            .get("/metrics")
            .await
            .text
            .contains("carat_spans_total{result=\"dropped\"} 0")
    );
    let spans = collector.spans(&tracer).await;
    assert_eq!(spans.len(), 4, "{spans:?}");
    for (span, stream) in spans.iter().zip(["false", "true"]) {
        let said = |key: &str| attribute(span, key).unwrap_or_default();
        assert_eq!(
            (&span["name"], &span["parentSpanId"]),
            (&"chat fake".into(), &"00f067aa0ba902b7".into())
        );
        assert_eq!(
            (said("gen_ai.operation.name"), said("gen_ai.provider.name")),
            ("chat".into(), "carat".into())
        );
        assert_eq!(
            (said("gen_ai.request.stream"), said("gen_ai.request.seed")),
            (stream.into(), "7".into())
        );
        assert_eq!(
            (said("http.route"), said("http.response.status_code")),
            ("/v1/chat/completions".into(), "200".into())
        );
        assert!(said("gen_ai.usage.input_tokens").parse::<u64>().unwrap() > 0);
        assert_eq!(said("gen_ai.usage.output_tokens"), "7");
        assert!(said("gen_ai.response.finish_reasons").contains("stop"));
        assert!(said("gen_ai.server.time_to_first_token").parse::<f64>().unwrap() > 0.0);
        assert_eq!(span.get("status"), None);
        assert!(!span.to_string().contains("secret"));
    }
    assert_eq!(attribute(&spans[2], "error.type").as_deref(), Some("400"));
    assert_eq!(spans[3]["name"], "embeddings fake");
}
