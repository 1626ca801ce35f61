//! Anthropic's routes.

use serde_json::{Value, json};

use crate::common::client;

fn body(change: Value) -> Value {
    let mut body = json!({"model": "m", "max_tokens": 50, "temperature": 0,
        "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut()
        .unwrap()
        .extend(change.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_message_is_answered_whole_and_as_events() {
    let client = client("Hello you");
    let answer = client.post("/v1/messages", body(json!({}))).await.json();
    assert_eq!(answer["content"], json!([{"type": "text", "text": "Hello you"}]));
    assert_eq!(answer["stop_reason"], "end_turn");
    let answer = client
        .post("/v1/messages", body(json!({"stop_sequences": ["x", " y"]})))
        .await
        .json();
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("stop_sequence"), &json!(" y"))
    );
    let told = client.post("/v1/messages", body(json!({"stream": true}))).await;
    let events = told.events();
    assert_eq!(events[0]["type"], "message_start");
    assert!(events[0]["message"]["usage"]["input_tokens"].as_u64().unwrap() > 5);
    let text: String = events
        .iter()
        .filter_map(|event| event["delta"]["text"].as_str())
        .collect();
    assert_eq!(text, "Hello you");
    assert_eq!(events.last().unwrap()["type"], "message_stop");
}

#[tokio::test]
async fn an_answer_that_has_begun_is_gone_on_with() {
    let client = client("Good morning");
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good "}]);
    let begun = body(json!({"messages": messages}));
    let answer = client.post("/v1/messages", begun.clone()).await.json();
    assert_eq!(answer["content"], json!([{"type": "text", "text": " morning"}]));
    let counted = client
        .post("/v1/messages/count_tokens", begun.clone())
        .await
        .json();
    assert_eq!(counted["input_tokens"], answer["usage"]["input_tokens"]);

    let mut with_tools = begun;
    with_tools["tools"] = json!([{"name": "w", "input_schema": {"type": "object"}}]);
    let told = client.post("/v1/messages", with_tools).await;
    assert_eq!(told.status, 400);
    assert!(
        told.text.contains("a last message of the assistant"),
        "{}",
        told.text
    );
}

#[tokio::test]
async fn tools_are_used() {
    let client = client("no");
    let tools = json!([{"name": "w", "input_schema": {"type": "object", "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"]}}]);
    let answer = client
        .post(
            "/v1/messages",
            body(json!({"tools": tools, "tool_choice": {"type": "tool", "name": "w"}})),
        )
        .await
        .json();
    assert_eq!(answer["stop_reason"], "tool_use");
    assert!(
        [json!(1), json!(2)].contains(&answer["content"][0]["input"]["n"]),
        "{answer}"
    );
}

#[tokio::test]
async fn a_call_that_was_cut_is_none() {
    let client = client(r#"{"name": "w", "parameters": {"n": "abcdef"}}"#);
    let schema = json!({"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]});
    let tools = json!([{"name": "w", "input_schema": schema}]);
    let ask = async |change: Value| {
        let mut body = body(change);
        body["tools"] = tools.clone();
        client.post("/v1/messages", body).await.json()
    };
    assert_eq!(
        ask(json!({})).await["content"][0]["input"],
        json!({"n": "abcdef"})
    );
    for (cut, reason) in [
        (json!({"max_tokens": 37}), "max_tokens"),
        (json!({"stop_sequences": ["cd"]}), "stop_sequence"),
    ] {
        let answer = ask(cut).await;
        assert_eq!(
            (&answer["content"], &answer["stop_reason"]),
            (&json!([]), &json!(reason)),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_full_context_is_told_apart_from_the_limit() {
    let client = client(&"x".repeat(3000));
    for (max_tokens, reason) in [(20, "max_tokens"), (5000, "model_context_window_exceeded")] {
        let body = body(json!({"max_tokens": max_tokens}));
        let answer = client.post("/v1/messages", body).await.json();
        assert_eq!(answer["stop_reason"], reason);
    }
    // Others have one word for both.
    let question = json!([{"role": "user", "content": "Hi"}]);
    let chat = json!({"messages": question, "temperature": 0});
    let answer = client.post("/v1/chat/completions", chat).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let lines = json!({"messages": question, "stream": false, "options": {"temperature": 0}});
    let answer = client.post("/api/chat", lines).await.json();
    assert_eq!(answer["done_reason"], "length");
    let answer = client
        .post("/v1/responses", json!({"input": "Hi", "temperature": 0}))
        .await
        .json();
    assert_eq!(answer["status"], "incomplete");
}

#[tokio::test]
async fn prompts_that_do_not_fit_are_counted() {
    let client = client("x");
    let count = async |n: usize| {
        let messages = json!([{"role": "user", "content": "x".repeat(n)}]);
        let told = client.post("/v1/messages/count_tokens", body(json!({"messages": messages})));
        told.await.json()["input_tokens"].as_u64().unwrap()
    };
    assert_eq!(count(5000).await, count(5).await + 4995);
}

#[tokio::test]
async fn fields_are_named_as_anthropic_names_them() {
    let client = client("x");
    let ask = async |change: Value| client.post("/v1/messages", body(change)).await.json();
    let said = |answer: &Value| answer["error"]["message"].as_str().unwrap().to_string();
    let error = said(&ask(json!({"stop_sequences": [""]})).await);
    assert!(
        error.starts_with("stop_sequences: ") && error.contains("`stop_sequences`"),
        "{error}"
    );
    let wrong = json!({"type": "json_schema", "schema": {"type": "nothing"}});
    let error = said(&ask(json!({"output_config": {"format": wrong}})).await);
    assert!(error.starts_with("output_config.format.schema: "), "{error}");
    let result = json!({"type": "tool_result", "tool_use_id": "t", "content": "x"});
    let question = json!({"role": "user", "content": "x"});
    let answer = ask(json!({"system": "s", "messages": [question, {"role": "user", "content": [result]}]}));
    let error = said(&answer.await);
    assert!(error.starts_with("messages[1].content[0]: "), "{error}");
}

#[tokio::test]
async fn tokens_are_counted_and_errors_have_anthropics_shape() {
    let client = client("x");
    let counted = client
        .post("/v1/messages/count_tokens", body(json!({})))
        .await
        .json();
    let answer = client.post("/v1/messages", body(json!({}))).await.json();
    assert_eq!(counted["input_tokens"], answer["usage"]["input_tokens"]);
    let told = client.post("/v1/messages", json!({"messages": []})).await;
    let error = told.json();
    assert_eq!((told.status.as_u16(), &error["type"]), (400, &json!("error")));
    assert_eq!(error["error"]["type"], "invalid_request_error");
}
