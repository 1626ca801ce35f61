//! Providers that fail in every way, and what clients see of it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{Reply, rig};

/// A route whose first candidate misbehaves, and whose second does not.
fn backed(bad: &str) -> String {
    format!(
        "attempts = 3\n---[timeouts]\nfirst-token-ms = 300\nidle-ms = 300\n[routes.r]\ncandidates = [\"m/{bad}\", \"m/ok\"]"
    )
}

#[tokio::test]
async fn somebody_else_answers_whole() {
    let cases = [
        ("status=429", "rate_limited"),
        ("status=402", "out_of_quota"),
        ("status=500", "server_fault"),
        ("status=529", "overloaded"),
        ("status=503", "overloaded"),
        ("status=421", "overloaded"),
        ("status=425", "overloaded"),
        ("status=204", "server_fault"),
        ("status=301", "moved"),
        ("status=307", "moved"),
        ("status=401", "bad_key"),
        ("status=404", "model_gone"),
        ("reset", "network"),
        ("html", "server_fault"),
        ("bad-json", "server_fault"),
    ];
    for (bad, class) in cases {
        let rig = rig(&backed(bad)).await;
        let reply = rig.chat("r", false).await;
        assert_eq!(
            (reply.status, reply.text.as_str()),
            (200, crate::support::mock::WHOLE),
            "{bad}"
        );
        let expected = format!("m/ok; route=r; policy=ordered; attempts=2; failed=m/{bad}:{class}");
        assert_eq!(reply.route(), expected);
        assert!(
            reply.took < Duration::from_millis(400),
            "nobody waits where another is free: {:?}",
            reply.took
        );
    }
}

#[tokio::test]
async fn what_is_no_fault_of_the_request_is_not_told_as_one() {
    for (status, expected) in [(301, 502), (308, 502), (204, 502), (421, 503), (425, 503)] {
        let rig = rig("attempts = 1").await;
        let reply = rig.chat(&format!("m/status={status}"), false).await;
        assert_eq!(reply.status, expected, "{status}: {}", reply.text);
        if (300..400).contains(&status) {
            assert!(reply.text.contains("[providers.m]"), "{}", reply.text);
            let address = rig.mock_address.to_string();
            assert!(
                !reply.text.contains(&address),
                "addresses are the operator's alone"
            );
            assert_eq!(
                reply.headers["x-should-retry"], "false",
                "the address stays wrong"
            );
            assert_eq!(rig.mock.of(&format!("status={status}")), 1);
        }
    }
    // Who was asked too early may be asked again.
    let rig = rig("attempts = 3").await;
    let reply = rig.chat("m/status=425;times=1", false).await;
    assert_eq!((reply.status, rig.mock.of("status=425;times=1")), (200, 2));
}

#[tokio::test]
async fn somebody_else_streams_as_long_as_nothing_was_said() {
    let cases = [
        "status=500",
        "html",
        "fail=0",
        "end=0",
        "cut=0",
        "role-stall",
        "slow=5000",
    ];
    for bad in cases {
        let rig = rig(&backed(bad)).await;
        let reply = rig.chat("r", true).await;
        assert!(reply.text.ends_with("data: [DONE]\n\n"), "{bad}: {}", reply.text);
        assert_eq!(
            reply.text.matches("\"role\"").count(),
            1,
            "{bad}: only one answer's beginning is seen"
        );
        assert!(
            reply
                .route()
                .starts_with("m/ok; route=r; policy=ordered; attempts=2"),
            "{}",
            reply.route()
        );
    }
}

#[tokio::test]
async fn a_broken_stream_says_that_it_is_broken() {
    for bad in ["stall=2", "cut=2", "end=2", "fail=2"] {
        let rig = rig(&backed(bad)).await;
        let reply = rig.chat("r", true).await;
        assert_eq!(reply.status, 200);
        assert!(
            reply.text.contains("w\u{e9}1") && !reply.text.contains("[DONE]"),
            "{bad}: {}",
            reply.text
        );
        let last = reply.text.trim_end().rsplit("\n\n").next().unwrap();
        let error: serde_json::Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        assert!(error["error"]["message"].is_string(), "{bad}: {last}");
        assert!(!reply.text.contains("127.0.0.1"), "no host is named");
        let metrics = rig.get("/metrics").await.text;
        let failures = metrics
            .lines()
            .find(|line| line.starts_with("carat_target_failures_total"))
            .unwrap();
        assert!(failures.contains(bad) && failures.ends_with(" 1"), "{failures}");
    }
}

#[tokio::test]
async fn an_event_of_nonsense_is_left_out_and_counted() {
    let rig = rig("").await;
    let reply = rig.chat("m/bad-json;events=3", true).await;
    assert!(reply.text.ends_with("data: [DONE]\n\n"));
    for event in reply
        .text
        .split("\n\n")
        .filter(|event| !event.is_empty() && !event.ends_with("[DONE]"))
    {
        serde_json::from_str::<serde_json::Value>(event.strip_prefix("data: ").unwrap()).unwrap();
    }
    assert!(
        rig.get("/metrics")
            .await
            .text
            .contains("carat_target_malformed_events_total{target=\"m/bad-json;events=3\"} 1")
    );
}

#[tokio::test]
async fn a_lone_target_is_asked_again_after_a_wait() {
    let rig = rig("").await;
    let reply = rig.chat("m/status=503;times=1", false).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(reply.took >= Duration::from_millis(375), "{:?}", reply.took);
    assert!(
        reply
            .route()
            .ends_with("attempts=2; failed=m/status=503;times=1:overloaded"),
        "{}",
        reply.route()
    );
    let reply = rig.chat("m/status=429;wait-ms=900;times=1", false).await;
    assert_eq!(reply.status, 200);
    assert!(reply.took >= Duration::from_millis(900), "{:?}", reply.took);
    let reply = rig.chat("m/status=429;wait-ms=60000", false).await;
    assert_eq!(
        (reply.status, reply.headers["retry-after"].to_str().unwrap()),
        (429, "60")
    );
    assert!(
        reply.took < Duration::from_millis(500),
        "a long wait is the client's to decide"
    );
}

#[tokio::test]
async fn a_bad_request_is_asked_once() {
    let rig = rig(&backed("status=422")).await;
    let reply = rig.chat("r", false).await;
    assert_eq!(
        (reply.status, rig.mock.requests.load(Ordering::Relaxed)),
        (422, 1)
    );
    assert_eq!(
        reply.route(),
        "none; route=r; policy=ordered; attempts=1; failed=m/status=422:bad_request"
    );
}

#[tokio::test]
async fn an_ill_target_is_left_alone() {
    let rig = rig(&backed("status=500")).await;
    for _ in 0..20 {
        assert_eq!(rig.chat("r", false).await.status, 200);
    }
    assert_eq!(
        rig.mock.of("status=500"),
        5,
        "five failures in a row, then a rest"
    );
    let metrics = rig.get("/metrics").await.text;
    assert!(
        metrics.contains("carat_target_resting{target=\"m/status=500\"} 1"),
        "{metrics}"
    );
    tokio::time::sleep(Duration::from_millis(2100)).await;
    rig.chat("r", false).await;
    rig.chat("r", false).await;
    assert_eq!(rig.mock.of("status=500"), 6, "one probe, then a longer rest");
}

#[tokio::test]
async fn an_outage_is_not_made_worse() {
    let rig = std::sync::Arc::new(rig("attempts = 5\n---[timeouts]\noutage-ms = 1500").await);
    // All at once, so that the breaker cannot stand in for the budget.
    let tasks: Vec<_> = (0..60)
        .map(|i| {
            let rig = rig.clone();
            tokio::spawn(async move { rig.chat(&format!("m/status=503;i={i}"), false).await })
        })
        .collect();
    let mut refused: Vec<Reply> = Vec::new();
    for task in tasks {
        refused.push(task.await.unwrap());
    }
    assert!(refused.iter().all(|reply| reply.status == 503));
    let asked = rig.mock.requests.load(Ordering::Relaxed);
    assert!(
        (60..=97).contains(&asked),
        "{asked} calls for 60 requests: twenty retries are saved up, and ten a second need not be"
    );
}

#[tokio::test]
async fn a_full_target_is_passed_over() {
    let rig = rig("---max-in-flight = 1").await;
    let slow = rig
        .send(
            "/v1/chat/completions",
            &crate::support::chat("m/events=50;gap=10", true),
        )
        .await;
    let reply = rig.chat("m/events=50;gap=10", true).await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    drop(slow);
}

#[tokio::test]
async fn what_may_have_been_done_is_asked_once() {
    let acting = "\"tools\":[{\"type\":\"mcp\",\"server_label\":\"x\",\"server_url\":\"http://x\"}]";
    let harmless = "\"tools\":[{\"type\":\"function\",\"name\":\"f\"}]";
    let failing = [
        ("status=500", false),
        ("reset", false),
        ("slow=5000", false),
        ("html", false),
        ("cut=0", true),
    ];
    for (bad, is_stream) in failing {
        let more = format!(
            "attempts = 3\n---responses = true\n[timeouts]\nfirst-token-ms = 300\nwhole-ms = 300\n\
             [routes.r]\ncandidates = [\"m/{bad}\", \"m/ok\"]"
        );
        let rig = rig(&more).await;
        let body =
            |tools: &str| format!("{{\"model\":\"r\",\"input\":\"Hi\",{tools},\"stream\":{is_stream}}}");
        let reply = rig.post("/v1/responses", &body(acting)).await;
        assert!(reply.status >= 500, "{bad}: {}", reply.text);
        assert_eq!(reply.headers["x-should-retry"], "false", "{bad}");
        assert!(
            reply.text.contains("nobody was asked again"),
            "{bad}: {}",
            reply.text
        );
        assert_eq!(rig.mock.requests.load(Ordering::Relaxed), 1, "{bad}");
        rig.post("/v1/responses", &body(harmless)).await;
        // Once or again: the mock's streams are none of this API's.
        assert!(
            rig.mock.of("ok") > 0,
            "{bad}: somebody else is asked what does nothing"
        );
    }
    // Who turns it away has done nothing.
    for bad in ["status=503", "status=429", "status=401"] {
        let more = format!("---responses = true\n[routes.r]\ncandidates = [\"m/{bad}\", \"m/ok\"]");
        let rig = rig(&more).await;
        let body = format!("{{\"model\":\"r\",\"input\":\"Hi\",{acting}}}");
        assert_eq!(rig.post("/v1/responses", &body).await.status, 200, "{bad}");
    }
}
