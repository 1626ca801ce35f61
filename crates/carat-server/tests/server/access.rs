//! Keys, origins, limits, and the routes of those who run the server.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::Request;
use carat_server::ServerOptions;
use serde_json::{Value, json};

use crate::common::{client, client_with};

#[tokio::test]
async fn without_the_key_only_health_is_told() {
    let options = ServerOptions {
        api_keys: vec!["secret".to_string()],
        ..ServerOptions::default()
    };
    let client = client_with("x", options);
    let status = async |path: &str, header: &[(&str, &str)]| {
        client.send("GET", path, "", header).await.status.as_u16()
    };
    let none = [("accept", "*/*")];
    assert_eq!(status("/v1/models", &none).await, 401);
    assert_eq!(status("/metrics", &none).await, 401);
    assert_eq!(status("/health", &none).await, 200);
    assert_eq!(status("/v1/models", &[("x-api-key", "secret")]).await, 200);
    assert_eq!(
        status("/v1/models", &[("authorization", "Bearer wrong")]).await,
        401
    );
    let told = client.send("POST", "/v1/messages", "{}", &none).await;
    assert_eq!(told.json()["error"]["type"], "authentication_error");
    let told = client.send("POST", "/v1/chat/completions", "{}", &none).await;
    assert_eq!(told.json()["error"]["code"], "invalid_api_key");
}

#[tokio::test]
async fn what_is_not_there_is_said_in_each_apis_shape() {
    let client = client("x");
    let told = client.get("/v1/nothing").await;
    assert!(told.status == 404 && told.json()["error"]["message"].is_string());
    assert!(client.get("/api/nothing").await.json()["error"].is_string());
    let told = client.get("/v1/chat/completions").await;
    assert!(told.status == 405 && told.json()["error"]["message"].is_string());
    let told = client.get("/v1/models/a/b:c").await;
    assert_eq!(
        (told.status.as_u16(), &told.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    assert_eq!(client.get("/v1/models/fake").await.status, 200);
    for path in ["/v1/models/%ff", "/v1/responses/%ff"] {
        let told = client.get(path).await;
        assert_eq!(
            (told.status.as_u16(), &told.json()["error"]["type"]),
            (404, &json!("invalid_request_error")),
            "{path}"
        );
    }
    let below = client.get("/v1/messages/batches").await.json();
    assert_eq!(below["type"], "error");
    let beside = client.get("/v1/messages2").await.json();
    assert_eq!(beside["error"]["code"], Value::Null);
    assert!(client.get("/openapi.json").await.json()["paths"]["/v1/chat/completions"].is_object());
}

#[tokio::test]
async fn other_models_are_answered_for_unless_told_otherwise() {
    let body = json!({"model": "gpt-x", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1});
    assert_eq!(
        client("x")
            .post("/v1/chat/completions", body.clone())
            .await
            .status,
        200
    );
    let strict = ServerOptions {
        strict_model: true,
        aliases: vec![("mine".to_string(), "fake".to_string())],
        ..ServerOptions::default()
    };
    let strict = client_with("x", strict);
    let told = strict.post("/v1/chat/completions", body.clone()).await;
    assert_eq!(
        (told.status.as_u16(), &told.json()["error"]["param"]),
        (404, &json!("model"))
    );
    let mut aliased = body;
    aliased["model"] = "mine".into();
    assert_eq!(strict.post("/v1/chat/completions", aliased).await.status, 200);
}

#[tokio::test]
async fn bodies_and_times_have_limits() {
    let options = ServerOptions {
        body_bytes: 1000,
        request_timeout: Some(Duration::ZERO),
        ..ServerOptions::default()
    };
    let client = client_with("x", options);
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(2000)}]});
    assert_eq!(client.post("/v1/chat/completions", long).await.status, 413);
    let short = json!({"messages": [{"role": "user", "content": "x"}]});
    let told = client.post("/v1/chat/completions", short).await;
    // The official clients ask again after any other 408.
    assert_eq!(
        (told.status.as_u16(), &told.headers["x-should-retry"]),
        (408, &"false".parse().unwrap())
    );
}

#[tokio::test]
async fn a_limit_beyond_all_clocks_is_none() {
    let options = ServerOptions {
        request_timeout: Some(Duration::MAX),
        ..ServerOptions::default()
    };
    let client = client_with("x", options);
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    assert_eq!(client.post("/v1/chat/completions", chat).await.status, 200);
    assert_eq!(
        client.post("/v1/embeddings", json!({"input": "x"})).await.status,
        200
    );
}

#[tokio::test]
async fn pages_of_this_machine_may_call() {
    let client = client("x");
    let told = client
        .send(
            "OPTIONS",
            "/v1/chat/completions",
            "",
            &[
                ("origin", "http://localhost:5173"),
                ("access-control-request-headers", "authorization, x-stainless-os"),
            ],
        )
        .await;
    assert_eq!(
        (told.status.as_u16(), &told.headers["access-control-allow-origin"]),
        (204, &"http://localhost:5173".parse().unwrap())
    );
    // OpenAI's and Anthropic's own clients always send headers about themselves.
    assert_eq!(
        told.headers["access-control-allow-headers"],
        "authorization, x-stainless-os"
    );
    let told = client
        .send("GET", "/health", "", &[("origin", "https://evil.example")])
        .await;
    assert!(!told.headers.contains_key("access-control-allow-origin"));
    assert!(told.headers.contains_key("x-request-id"));
    // Browsers send this without asking first.
    let plain = [("origin", "https://evil.example"), ("content-type", "text/plain")];
    let body = r#"{"messages": [{"role": "user", "content": "x"}]}"#;
    let told = client.send("POST", "/v1/chat/completions", body, &plain).await;
    assert_eq!(told.status, 403, "{}", told.text);
    assert!(told.text.contains("--cors"), "{}", told.text);
}

#[tokio::test]
async fn tokens_and_metrics_are_told() {
    let client = client("x");
    let told = client
        .post("/tokenize", json!({"content": "ab", "add_special": true}))
        .await
        .json();
    assert_eq!(told["count"], 3);
    let text = client
        .post("/detokenize", json!({"tokens": told["tokens"]}))
        .await
        .json();
    assert_eq!(text["content"], "<bos>ab");
    assert_eq!(
        client.post("/detokenize", json!({"tokens": [9999]})).await.status,
        400
    );
    assert_eq!(client.get("/ready").await.status, 200);
    let metrics = client.get("/metrics").await.text;
    assert!(
        metrics.contains("carat_http_requests_total{route=\"/tokenize\",status=\"200\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn tokens_of_a_long_text_are_sent_as_they_are_written() {
    let client = client("x");
    let content = "ab\"c".repeat(2000);
    let body = json!({"content": content, "with_pieces": true});
    let request = Request::builder().method("POST").uri("/tokenize");
    let request = request.body(Body::from(body.to_string())).unwrap();
    let response = client.open(request).await;
    // Whole in memory it would be some two hundred times its text.
    assert_eq!(response.body().size_hint().exact(), None);
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.unwrap();
    let told: Value = serde_json::from_slice(&bytes).unwrap();
    let tokens = told["tokens"].as_array().unwrap();
    assert_eq!((&told["count"], tokens.len()), (&json!(8000), 8000));
    let pieces: String = tokens
        .iter()
        .map(|token| token["piece"].as_str().unwrap())
        .collect();
    assert_eq!(pieces, content);
    let both = json!({"content": "ab", "prompt": "abc"});
    assert_eq!(client.post("/tokenize", both).await.json()["count"], 2);
    let told = client.post("/tokenize", json!({})).await.json();
    assert_eq!(told["error"]["param"], "content");
    let none = client.post("/tokenize", json!({"content": ""})).await.json();
    assert_eq!((&none["count"], &none["tokens"]), (&json!(0), &json!([])));
}

#[tokio::test]
async fn tokens_are_counted_no_longer_than_a_request_may_take() {
    let options = ServerOptions {
        request_timeout: Some(Duration::ZERO),
        ..ServerOptions::default()
    };
    let client = client_with("x", options);
    // Long enough for the clock to be looked at before they are read.
    const N: usize = 1 << 20;
    let long = "x".repeat(N);
    let status = async |path: &str, body: Value| client.post(path, body).await.status.as_u16();
    assert_eq!(status("/tokenize", json!({"content": long})).await, 408);
    assert_eq!(status("/detokenize", json!({"tokens": vec![7; N]})).await, 408);
    let messages = json!([{"role": "user", "content": long}]);
    assert_eq!(
        status("/v1/messages/count_tokens", json!({"messages": messages})).await,
        408
    );
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_work() {
    let client = client(&"a".repeat(1900));
    let before = client.n_computed.load(Ordering::Relaxed);
    let body = json!({"prompt": "x?", "max_tokens": 1900, "stream": true, "temperature": 0});
    let request = Request::builder().method("POST").uri("/v1/completions");
    let request = request.body(Body::from(body.to_string())).unwrap();
    drop(client.open(request).await);
    let told = client.get("/metrics").await;
    assert!(told.status == 200);
    // The next answer needs a place in the same batch; by its end the first one is gone.
    client
        .post(
            "/v1/completions",
            json!({"prompt": "y?", "max_tokens": 5, "temperature": 0}),
        )
        .await;
    let metrics = client.get("/metrics").await.text;
    assert!(
        metrics.contains("carat_answers_cancelled_total{model=\"fake\"} 1\n"),
        "{metrics}"
    );
    assert!(client.n_computed.load(Ordering::Relaxed) - before < 1900);
}
