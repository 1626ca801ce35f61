//! Requests and answers between clients and providers that speak the same API.

use std::time::Duration;

use crate::support::{chat, mock, rig, rig_here};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn what_nobody_here_knows_goes_through_both_ways() {
    let rig = rig("").await;
    let body = "{\"model\": \"m/ok\", \"messages\": [], \"brand_new\": {\"x\": [1, 2.0]}}";
    let reply = rig.post("/v1/chat/completions", body).await;
    assert_eq!((reply.status, reply.text.as_str()), (200, mock::WHOLE));
    assert_eq!(reply.route(), "m/ok; route=direct; policy=ordered; attempts=1");
    assert_eq!(reply.headers["x-carat-upstream-id"], "up-1");
    let (head, sent) = rig.mock.last.lock().unwrap().clone();
    assert_eq!(
        sent,
        "{\"model\":\"ok\",\"messages\":[],\"brand_new\":{\"x\": [1, 2.0]}}"
    );
    let head = head.to_lowercase();
    assert!(head.starts_with("post /v1/chat/completions http/1.1"), "{head}");
    assert!(head.contains("authorization: bearer sk-mock-secret") && head.contains("traceparent: 00-1-2-01"));
    assert!(
        !head.contains("client-key") && !head.contains("x-forwarded-for"),
        "{head}"
    );
}

#[tokio::test]
async fn every_endpoint_of_the_api_is_reached() {
    let rig = rig("--- responses = true").await;
    for path in [
        "chat/completions",
        "completions",
        "responses",
        "embeddings",
        "rerank",
        "moderations",
    ] {
        for prefix in ["/v1/", "/"] {
            let reply = rig.post(&format!("{prefix}{path}"), "{\"model\":\"m/ok\"}").await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.text);
            assert!(
                rig.mock
                    .last
                    .lock()
                    .unwrap()
                    .0
                    .starts_with(&format!("POST /v1/{path} "))
            );
        }
    }
    assert_eq!(rig.post("/v1/fine_tuning/jobs", "{}").await.status, 404);
    assert_eq!(rig.get("/health").await.status, 200);
    assert_eq!(rig.get("/health/ready").await.status, 200);
}

#[tokio::test]
async fn events_arrive_as_they_left() {
    let rig = rig("").await;
    let reply = rig.chat("m/events=2;half-utf8", true).await;
    let first = mock::event("{\"role\":\"assistant\",\"content\":\"\"}", "null");
    let words: String = (0..2)
        .map(|i| mock::event(&format!("{{\"content\":\"w\u{e9}{i} \"}}"), "null"))
        .collect();
    let last = mock::event("{}", "\"stop\"");
    let done = "data: [DONE]\n\n";
    assert_eq!(
        reply.text,
        format!("{first}{words}{last}{done}"),
        "usage was asked for by the gateway alone"
    );
    assert_eq!(reply.headers["content-type"], "text/event-stream");
    let asking = chat("m/events=2", true).replace("}],", "}],\"stream_options\":{\"include_usage\":true},");
    let reply = rig.post("/v1/chat/completions", &asking).await;
    assert_eq!(
        reply.text,
        format!("{first}{words}{last}{}{done}", mock::usage(2))
    );
    let metrics = rig.get("/metrics").await.text;
    assert!(
        metrics.contains("carat_target_output_tokens_total{target=\"m/events=2\"} 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains("carat_target_input_tokens_total{target=\"m/events=2;half-utf8\"} 11"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_stream_waits_for_no_acknowledgement() {
    let rig = rig("").await;
    rig.chat("m/events=64", true).await;
    // The best of several: other tests share the machine. A delayed acknowledgement would cost 40 ms every time.
    let mut best = Duration::MAX;
    for _ in 0..10 {
        best = best.min(rig.chat("m/events=64;gap=0", true).await.took);
    }
    assert!(best < Duration::from_millis(20), "{best:?}");
}

#[tokio::test]
async fn fields_that_a_provider_refuses_are_dropped_and_named() {
    let rig =
        rig("---drop = [\"user\", \"store\"]\nrename = { max_completion_tokens = \"max_tokens\" }").await;
    let body = "{\"model\":\"m/ok\",\"user\":\"u\",\"store\":true,\"max_completion_tokens\":9}";
    let reply = rig.post("/v1/chat/completions", body).await;
    assert_eq!(reply.headers["x-carat-dropped"], "user, store");
    assert_eq!(
        rig.mock.last.lock().unwrap().1,
        "{\"model\":\"ok\",\"max_tokens\":9}"
    );
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_in_the_clients_words() {
    let rig = rig("max-body-mb = 1\n---").await;
    let error = |reply: &crate::support::Reply| {
        serde_json::from_str::<serde_json::Value>(&reply.text).unwrap()["error"].clone()
    };
    let unknown = rig.chat("nobody", false).await;
    assert_eq!(
        (unknown.status, error(&unknown)["code"].as_str()),
        (404, Some("model_not_found"))
    );
    assert_eq!(unknown.headers["x-should-retry"], "false");
    let nameless = rig.post("/v1/chat/completions", "{}").await;
    assert_eq!(
        (nameless.status, error(&nameless)["param"].as_str()),
        (400, Some("model"))
    );
    let twice = rig
        .post("/v1/chat/completions", "{\"model\":\"m/ok\",\"model\":\"m/x\"}")
        .await;
    assert!(
        twice.status == 400 && twice.text.contains("twice"),
        "{}",
        twice.text
    );
    let large = format!("{{\"model\":\"m/ok\",\"x\":\"{}\"}}", "a".repeat(1_000_001));
    assert_eq!(rig.post("/v1/chat/completions", &large).await.status, 413);
    let bad = rig.chat("m/status=400", false).await;
    assert_eq!(
        (bad.status, error(&bad)["message"].as_str()),
        (400, Some("mock says 400"))
    );
    assert_eq!(
        rig.mock.requests.load(std::sync::atomic::Ordering::Relaxed),
        1,
        "only the last was asked"
    );
    let key = rig.chat("m/status=401", false).await;
    assert!(
        key.status == 502 && !key.text.contains("mock says"),
        "{}",
        key.text
    );
}

#[tokio::test]
async fn who_sends_too_much_gets_to_read_so() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let rig = rig("max-body-mb = 1\n---").await;
    let piece = vec![b' '; 1 << 20];
    let mut client = tokio::net::TcpStream::connect(rig.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
        8 * piece.len()
    );
    client.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..8 {
        // By then the refusal is on its way; a closed connection would break now.
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        client.write_all(&piece).await.unwrap();
    }
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_call() {
    let rig = rig("").await;
    let mut response = rig
        .send("/v1/chat/completions", &chat("m/events=100000;gap=5", true))
        .await;
    let frame = response.body_mut().frame().await.unwrap().unwrap();
    assert!(!frame.into_data().unwrap().is_empty());
    drop(response);
    for _ in 0..200 {
        if rig.mock.left.load(std::sync::atomic::Ordering::Relaxed) == 1 {
            let metrics = rig.get("/metrics").await.text;
            assert!(
                metrics.contains("carat_target_clients_gone_total{target=\"m/events=100000;gap=5\"} 1"),
                "{metrics}"
            );
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the provider was never told");
}

#[tokio::test]
async fn stopping_lets_answers_end() {
    let mut rig = rig("").await;
    let mut response = rig
        .send("/v1/chat/completions", &chat("m/events=20;gap=10", true))
        .await;
    response.body_mut().frame().await.unwrap().unwrap();
    rig.stop.take().unwrap().send(()).unwrap();
    let rest = response.into_body().collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"));
    rig.running.await.unwrap();
    assert!(tokio::net::TcpStream::connect(rig.address).await.is_err());
}

#[tokio::test]
async fn a_changed_file_is_taken_and_a_bad_one_refused() {
    let rig = rig("").await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.toml");
    let (other, seen) = mock::start(0, true).await;
    std::fs::write(&path, crate::support::config(other, "---")).unwrap();
    let following = tokio::spawn(carat_gateway::follow(
        rig.gateway.clone(),
        carat_gateway::Source {
            path: path.clone(),
            env: crate::support::env(),
        },
    ));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let metric = async |line: &str| {
        for _ in 0..100 {
            if rig.get("/metrics").await.text.contains(line) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    };
    let mut streaming = rig
        .send("/v1/chat/completions", &chat("m/events=200;gap=10", true))
        .await;
    streaming.body_mut().frame().await.unwrap().unwrap();
    let changed = format!(
        "{}\n[routes.new]\ncandidates = [\"m/ok\"]\n",
        crate::support::config(other, "---")
    );
    std::fs::write(&path, changed).unwrap();
    assert!(metric("carat_gateway_config_reloads_total{result=\"taken\"} 1").await);
    assert_eq!(rig.chat("new", false).await.status, 200);
    assert_eq!(seen.of("ok"), 1);
    std::fs::write(&path, "listen = \"nowhere\"").unwrap();
    assert!(metric("carat_gateway_config_reloads_total{result=\"refused\"} 1").await);
    assert_eq!(
        rig.chat("new", false).await.status,
        200,
        "the one before stays in force"
    );
    let rest = streaming.into_body().collect().await.unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"), "a reload cuts no stream");
    following.abort();
}

#[tokio::test]
async fn without_a_ledger_a_page_cannot_point_its_own_name_here() {
    let rig = rig_here("").await;
    let ask = async |host: &str| {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        let head = format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(ask("localhost:4100").await.starts_with("HTTP/1.1 200 "));
    let refused = ask("evil.example").await;
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
}

/// What a client is told that sends a byte of its body every five seconds, and whether its connection is closed.
async fn trickled(address: std::net::SocketAddr, path: &str) -> (String, bool) {
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{{");
    write.write_all(head.as_bytes()).await.unwrap();
    let trickling = tokio::spawn(async move {
        while write.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    });
    let mut answer = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut answer)).await;
    trickling.abort();
    (String::from_utf8(answer).unwrap(), end.is_ok())
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_in_is_not_waited_for() {
    let rig = rig_here("").await;
    let shapes = [
        ("/v1/chat/completions", "\"type\":\"timeout\""),
        ("/v1/messages", "\"timeout_error\""),
        ("/v1beta/models/m:generateContent", "\"DEADLINE_EXCEEDED\""),
        ("/api/chat", "{\"error\":\"the body"),
    ];
    for (path, shape) in shapes {
        let (answer, is_closed) = trickled(rig.address, path).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{path}: {answer}");
        assert!(answer.contains(shape), "{path}: {answer}");
        assert!(
            is_closed && answer.contains("connection: close"),
            "{path}: {answer}"
        );
    }
}
