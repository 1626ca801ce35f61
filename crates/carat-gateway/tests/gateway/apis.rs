//! What else clients ask for: responses, completions, vectors, counts.

use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};

use crate::dialects::{all, asked};
use crate::support::{Reply, Rig, mock, rig};

fn told(rig: &Rig) -> (String, Value) {
    let (head, body) = rig.mock.last.lock().unwrap().clone();
    (head, serde_json::from_str(&body).unwrap())
}

fn value(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text);
    serde_json::from_str(&reply.text).unwrap()
}

#[tokio::test]
async fn events_of_a_response_come_in_order_and_counted() {
    let rig = all().await;
    let (path, body) = asked("responses", "anthropic/ok", true);
    let reply = rig.post(&path, &body.to_string()).await;
    let kinds: Vec<&str> = reply
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(kinds, expected, "{}", reply.text);
    let data = reply.text.lines().filter_map(|line| line.strip_prefix("data: "));
    for (i, data) in data.enumerate() {
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            (&event["sequence_number"], &event["type"]),
            (&json!(i), &json!(expected[i]))
        );
    }
}

/// Thoughts and their signatures come back by the items of a response, and reach those who signed them.
#[tokio::test]
async fn a_loop_of_calls_works_by_responses() {
    let rig = all().await;
    for provider in ["anthropic", "gemini", "bedrock", "m"] {
        let (path, mut body) = asked("responses", &format!("{provider}/tool"), false);
        let answer = value(&rig.post(&path, &body.to_string()).await);
        let call = answer["output"]
            .as_array()
            .unwrap()
            .iter()
            .find(|item| item["type"] == "function_call")
            .unwrap();
        let mut input = vec![json!({"role": "user", "content": "Hi"})];
        input.extend(answer["output"].as_array().unwrap().iter().cloned());
        input.push(json!({"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}));
        body["input"] = Value::from(input);
        value(&rig.post(&path, &body.to_string()).await);
        let (_, told) = told(&rig);
        let said = told.to_string();
        match provider {
            "anthropic" => {
                let thought = json!({"type": "thinking", "thinking": mock::NATIVE[0], "signature": "c2ln"});
                assert_eq!(told["messages"][1]["content"][0], thought);
                assert_eq!(told["messages"][2]["content"][0]["tool_use_id"], "toolu_1");
            }
            "gemini" => {
                assert_eq!(
                    told["contents"][1]["parts"][0]["thoughtSignature"], "c2ln",
                    "{said}"
                );
                assert_eq!(
                    told["contents"][2]["parts"][0]["functionResponse"]["name"],
                    "weather"
                );
            }
            "bedrock" => {
                let thought = &told["messages"][1]["content"][0]["reasoningContent"]["reasoningText"];
                assert_eq!(thought["signature"], "c2ln", "{said}");
            }
            _ => {
                assert_eq!(told["messages"][2]["tool_calls"][0]["id"], "call_1");
                assert_eq!(
                    told["messages"][3],
                    json!({"role": "tool", "tool_call_id": "call_1", "content": "sunny"})
                );
            }
        }
    }
    let stateful = json!({"model": "gemini/ok", "input": "x", "previous_response_id": "resp_1"});
    let reply = rig.post("/v1/responses", &stateful.to_string()).await;
    assert_eq!(
        (reply.status, reply.text.contains("previous_response_not_found")),
        (404, true)
    );
}

#[tokio::test]
async fn prompts_are_answered_by_those_who_converse() {
    let rig = all().await;
    let words = mock::NATIVE[1..].concat();
    for provider in ["anthropic", "gemini", "ollama", "bedrock", "cohere"] {
        for is_stream in [false, true] {
            let case = format!("{provider} {is_stream}");
            let body = json!({"model": format!("{provider}/ok"), "prompt": "Hi", "stream": is_stream,
                "stream_options": {"include_usage": true}});
            let reply = rig.post("/v1/completions", &body.to_string()).await;
            assert_eq!(reply.status, 200, "{case}: {}", reply.text);
            let events: Vec<Value> = if is_stream {
                assert!(reply.text.ends_with("data: [DONE]\n\n"), "{case}");
                let data = reply.text.lines().filter_map(|line| line.strip_prefix("data: {"));
                data.map(|data| serde_json::from_str(&format!("{{{data}")).unwrap())
                    .collect()
            } else {
                vec![value(&reply)]
            };
            let said: String = events
                .iter()
                .filter_map(|event| event["choices"][0]["text"].as_str())
                .collect();
            assert_eq!(said, words, "{case}");
            let last = events.last().unwrap();
            assert_eq!(last["usage"]["completion_tokens"], 4, "{case}");
            assert!(
                events
                    .iter()
                    .any(|event| event["choices"][0]["finish_reason"] == "stop"),
                "{case}"
            );

            let body = json!({"model": format!("{provider}/ok"), "prompt": "Hi", "system": "s", "stream": is_stream,
                "options": {"num_predict": 7}});
            let reply = rig.post("/api/generate", &body.to_string()).await;
            assert_eq!(reply.status, 200, "{case}: {}", reply.text);
            let kind = reply.headers["content-type"].to_str().unwrap();
            assert_eq!(kind == "application/x-ndjson", is_stream, "{case}");
            let lines: Vec<Value> = reply
                .text
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            let of = |name: &str| {
                lines
                    .iter()
                    .filter_map(|line| line[name].as_str())
                    .collect::<String>()
            };
            assert_eq!(
                (of("response"), of("thinking")),
                (words.clone(), mock::NATIVE[0].into()),
                "{case}"
            );
            let last = lines.last().unwrap();
            assert_eq!(
                (&last["done"], &last["eval_count"], &last["done_reason"]),
                (&json!(true), &json!(4), &json!("stop"))
            );
        }
    }
    let told = |body: Value| {
        let rig = &rig;
        async move { rig.post("/v1/completions", &body.to_string()).await }
    };
    assert_eq!(
        told(json!({"model": "gemini/ok", "prompt": [1, 2]})).await.status,
        400
    );
    let echo = told(json!({"model": "gemini/ok", "prompt": "x", "echo": true})).await;
    assert_eq!(
        (echo.status, echo.text.contains("\"param\":\"echo\"")),
        (400, true),
        "{}",
        echo.text
    );
}

#[tokio::test]
async fn vectors_come_from_everybody_who_has_them() {
    let rig = all().await;
    let providers = [
        "m/e",
        "gemini/e",
        "vertex/e",
        "ollama/e",
        "cohere/e",
        "bedrock/amazon.titan-embed-text-v2",
    ];
    for provider in providers {
        let body = json!({"model": provider, "input": "a", "dimensions": 2, "encoding_format": "float"});
        let answer = value(&rig.post("/v1/embeddings", &body.to_string()).await);
        assert_eq!(answer["data"][0]["embedding"], json!([0.5, -1.25]), "{provider}");
        if provider != "gemini/e" {
            assert_eq!(answer["usage"]["prompt_tokens"], 3, "{provider}");
        }
        if provider != "m/e" {
            let body = json!({"model": provider, "input": ["a"], "encoding_format": "base64"});
            let answer = value(&rig.post("/v1/embeddings", &body.to_string()).await);
            assert_eq!(answer["data"][0]["embedding"], "AAAAPwAAoL8=", "{provider}");
        }
        let body = json!({"model": provider, "input": ["a"]});
        let answer = value(&rig.post("/api/embed", &body.to_string()).await);
        assert_eq!(answer["embeddings"], json!([[0.5, -1.25]]), "{provider}");
        let body = json!({"requests": [{"model": "x", "content": {"parts": [{"text": "a"}]}}]});
        let path = format!("/v1beta/models/{provider}:batchEmbedContents");
        let answer = value(&rig.post(&path, &body.to_string()).await);
        assert_eq!(
            answer["embeddings"][0]["values"],
            json!([0.5, -1.25]),
            "{provider}"
        );
    }
    let body = json!({"model": "cohere/e", "input": "a", "dimensions": 2, "user": "u"});
    let reply = rig.post("/v1/embeddings", &body.to_string()).await;
    assert_eq!(reply.headers["x-carat-dropped"], "user");
    let (head, asked) = told(&rig);
    assert!(head.starts_with("POST /v2/embed "), "{head}");
    assert_eq!(
        (&asked["input_type"], &asked["output_dimension"]),
        (&json!("search_document"), &json!(2))
    );
    let two = json!({"model": "bedrock/amazon.titan-embed-text-v2", "input": ["a", "b"]});
    let reply = rig.post("/v1/embeddings", &two.to_string()).await;
    assert_eq!(
        (reply.status, reply.text.contains("one text at a time")),
        (400, true)
    );
    let none = json!({"model": "anthropic/x", "input": "a"});
    assert_eq!(rig.post("/v1/embeddings", &none.to_string()).await.status, 400);
}

#[tokio::test]
async fn prompts_are_counted_or_the_estimate_is_called_one() {
    let rig = all().await;
    let count = |model: &str| {
        let body = json!({"model": model, "system": "Be kind", "messages": [{"role": "user", "content": "12345678"}],
            "max_tokens": 5});
        let rig = &rig;
        async move { rig.post("/v1/messages/count_tokens", &body.to_string()).await }
    };
    for provider in ["anthropic/x", "gemini/x", "vertex/x"] {
        let reply = count(provider).await;
        assert_eq!(value(&reply)["input_tokens"], 7, "{provider}");
        assert!(!reply.headers.contains_key("x-carat-dropped"), "{provider}");
    }
    let (head, asked) = told(&rig);
    assert!(
        head.contains("/publishers/google/models/x:countTokens "),
        "{head}"
    );
    assert!(asked["contents"].is_array(), "{asked}");
    let before = rig.mock.requests.load(std::sync::atomic::Ordering::Relaxed);
    for provider in ["m/x", "bedrock/x", "vertex-anthropic/x"] {
        let reply = count(provider).await;
        assert_eq!(value(&reply)["input_tokens"], 2 + 4 + 2, "{provider}");
        assert!(
            reply.headers["x-carat-dropped"]
                .to_str()
                .unwrap()
                .contains("estimate"),
            "{provider}"
        );
    }
    let after = rig.mock.requests.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(before, after, "nobody was asked");
    let body = json!({"contents": [{"parts": [{"text": "Hi"}]}]}).to_string();
    let reply = rig.post("/v1beta/models/anthropic%2Fx:countTokens", &body).await;
    assert_eq!(value(&reply)["totalTokens"], 7);
    let azure = json!({"messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let reply = rig
        .post(
            "/openai/deployments/m%2Fok/chat/completions?api-version=2024-10-21",
            &azure,
        )
        .await;
    assert_eq!(
        reply.status, 200,
        "Azure's own clients name the model in the path: {}",
        reply.text
    );
}

#[tokio::test]
async fn who_looks_at_the_address_itself_is_told_that_somebody_is_here() {
    let rig = rig("").await;
    let asked = |method: &str, accept: &str| {
        Request::builder()
            .method(method)
            .uri(format!("http://{}/", rig.address))
            .header("accept", accept)
            .body(Full::default())
            .unwrap()
    };
    let line = rig.told(asked("GET", "*/*")).await;
    assert_eq!((line.status, line.text.as_str()), (200, "carat is running\n"));
    // Ollama's client asks so before every command.
    assert_eq!(rig.told(asked("HEAD", "*/*")).await.status, 200);
    let page = rig.told(asked("GET", "text/html,*/*;q=0.8")).await;
    assert!(page.text.contains("<h1>carat gateway</h1>"), "{}", page.text);
    let version = rig.get("/api/version").await;
    assert!(version.text.contains("\"version\":\"0.9.0\""), "{}", version.text);
}
