//! OpenAI's routes.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::common::{Client, client, client_with_queue};

fn chat(change: Value) -> Value {
    let mut body =
        json!({"model": "fake", "temperature": 0, "messages": [{"role": "user", "content": "Hi"}]});
    body.as_object_mut()
        .unwrap()
        .extend(change.as_object().unwrap().clone());
    body
}

async fn ask(client: &Client, change: Value) -> Value {
    let told = client.post("/v1/chat/completions", chat(change)).await;
    assert_eq!(told.status, 200, "{}", told.text);
    told.json()
}

#[tokio::test]
async fn a_chat_is_answered_whole() {
    let client = client("Grüß Gott");
    let answer = ask(&client, json!({})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "Grüß Gott");
    assert_eq!(
        (&choice["finish_reason"], &answer["object"]),
        (&json!("stop"), &json!("chat.completion"))
    );
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let twice = ask(
        &client,
        json!({"n": 2, "messages": [{"role": "user", "content": "Another question"}]}),
    )
    .await;
    let cached = twice["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert!(
        cached + 1 < twice["usage"]["prompt_tokens"].as_u64().unwrap(),
        "the second answer's prompt was cached, but the first one's was computed"
    );
    let again = ask(&client, json!({})).await;
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .unwrap();
    assert_eq!(cached + 1, again["usage"]["prompt_tokens"].as_u64().unwrap());
}

#[tokio::test]
async fn an_answer_that_has_begun_is_gone_on_with() {
    let client = client("Good morning");
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good"}]);
    let begun = json!({"continue_final_message": true, "messages": messages});
    let answer = ask(&client, begun.clone()).await;
    assert_eq!(answer["choices"][0]["message"]["content"], " morning");
    let mut bound = begun;
    bound["response_format"] = json!({"type": "json_object"});
    let told = client.post("/v1/chat/completions", chat(bound)).await;
    assert_eq!(told.status, 400);
    assert_eq!(told.json()["error"]["param"], "messages");
}

#[tokio::test]
async fn calls_in_the_older_notation_are_understood() {
    let call = json!({"name": "w", "arguments": "{\"n\": 1}"});
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "function_call": call},
        {"role": "function", "name": "w", "content": "sunny"},
    ]);
    let answer = ask(&client("Sun"), json!({"messages": messages})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Sun");
}

#[tokio::test]
async fn a_call_that_a_stop_text_cut_is_none() {
    let client = client(r#"{"name": "w", "parameters": {"n": "abcdef"}}"#);
    let schema = json!({"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]});
    let function = json!({"name": "w", "parameters": schema});
    let tools = json!([{"type": "function", "function": function}]);
    let answer = ask(&client, json!({"tools": tools, "stop": "cd"})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert!(choice["message"]["tool_calls"].is_null(), "{choice}");
    // OpenAI gives what there is of it where the limit was reached, and says so.
    let answer = ask(&client, json!({"tools": tools, "max_tokens": 37})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"]["arguments"],
        r#"{"n": "ab"#
    );

    // What is remembered of a response has no such call either, so that it needs no result.
    let tools = json!([{"type": "function", "name": "w", "parameters": schema}]);
    let body = json!({"input": "Hi", "tools": tools, "max_output_tokens": 37, "temperature": 0});
    let cut = client.post("/v1/responses", body).await.json();
    assert_eq!(cut["output"][0]["status"], "incomplete", "{cut}");
    let result =
        json!([{"type": "function_call_output", "call_id": cut["output"][0]["call_id"], "output": "1"}]);
    let body = json!({"previous_response_id": cut["id"], "input": result, "max_output_tokens": 2});
    let told = client.post("/v1/responses", body).await;
    assert!(
        told.status == 400 && told.text.contains("no call"),
        "{}",
        told.text
    );
}

#[tokio::test]
async fn a_chat_is_streamed() {
    let client = client("Grüß");
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}, "n": 2}));
    let told = client.post("/v1/chat/completions", body).await;
    assert!(
        told.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/event-stream")
    );
    assert!(told.text.ends_with("data: [DONE]\n\n"));
    let events = told.events();
    for choice in 0..2 {
        let of = |event: &&Value| event["choices"][0]["index"] == choice;
        let own: Vec<&Value> = events.iter().filter(of).collect();
        assert_eq!(own[0]["choices"][0]["delta"]["role"], "assistant");
        let text: String = own
            .iter()
            .filter_map(|e| e["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(text, "Grüß");
        assert_eq!(own.last().unwrap()["choices"][0]["finish_reason"], "stop");
        assert!(own.iter().all(|event| event["usage"].is_null()));
    }
    let last = events.last().unwrap();
    assert_eq!(
        (&last["choices"], &last["usage"]["completion_tokens"]),
        (&json!([]), &json!(14))
    );
}

#[tokio::test]
async fn answers_end_where_they_were_told_to() {
    let client = client("one two three");
    let answer = ask(&client, json!({"stop": ["two", "three"]})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "one ");
    let answer = ask(&client, json!({"max_completion_tokens": 3})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "one");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn log_probabilities_come_with_each_token() {
    let client = client("ab");
    let answer = ask(&client, json!({"logprobs": true, "top_logprobs": 2})).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 2);
    assert_eq!(
        (&content[0]["token"], &content[0]["bytes"]),
        (&json!("a"), &json!([97]))
    );
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert!(content[0]["logprob"].as_f64().unwrap() > -0.01);
    let calls = json!({"logprobs": true, "tools": tools(), "tool_choice": "required"});
    let answer = ask(&client, calls).await;
    assert_eq!(answer["choices"][0]["logprobs"]["content"], json!([]), "{answer}");
}

/// Two may wait and four be answered at once.
#[tokio::test]
async fn as_many_answers_are_given_together_as_may_run_and_wait() {
    let client = client_with_queue("ab", 2);
    for n in [4, 6, 1, 6] {
        let answer = ask(&client, json!({"n": n})).await;
        assert_eq!(answer["choices"].as_array().map(Vec::len), Some(n), "{answer}");
    }
    let told = client.post("/v1/chat/completions", chat(json!({"n": 7}))).await;
    assert_eq!(told.status, 429, "{}", told.text);
    assert!(told.text.contains("at most 6"), "{}", told.text);
    let prompts = json!({"prompt": ["a?", "b?", "c?"], "n": 2});
    assert_eq!(client.post("/v1/completions", prompts.clone()).await.status, 200);
    let prompts = json!({"prompt": ["a?", "b?", "c?", "d?"], "n": 2});
    assert_eq!(client.post("/v1/completions", prompts).await.status, 429);
    // Texts are embedded by as many as there are places.
    let texts = json!({"input": vec!["a"; 40]});
    let vectors = client.post("/v1/embeddings", texts).await.json();
    assert_eq!(vectors["data"].as_array().map(Vec::len), Some(40), "{vectors}");
}

#[tokio::test]
async fn answers_of_several_requests_do_not_exceed_the_places_together() {
    let client = client_with_queue(&"a".repeat(1900), 2);
    let open = async |n: usize| {
        let body = chat(json!({"n": n, "stream": true, "max_tokens": 1900})).to_string();
        let request = Request::builder().method("POST").uri("/v1/chat/completions");
        client.open(request.body(Body::from(body)).unwrap()).await
    };
    let first = open(4).await;
    assert_eq!(first.status(), 200);
    let refused = open(4).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers().contains_key("retry-after"));
    let second = open(2).await;
    assert_eq!(second.status(), 200);
    assert_eq!(open(1).await.status(), 429);
    drop(first);
    // Those who left are seen at the next step.
    let started = Instant::now();
    while open(4).await.status() != 200 {
        assert!(started.elapsed() < Duration::from_secs(20));
        tokio::task::yield_now().await;
    }
    drop(second);
}

#[tokio::test]
async fn json_is_valid_whatever_the_model_says() {
    let client = client("no JSON at all");
    let schema = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
        "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "s", "strict": true, "schema": schema}});
    let answer = ask(&client, json!({"response_format": format})).await;
    let value: Value =
        serde_json::from_str(answer["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert!(value["city"] == "Rome" || value["city"] == "Oslo");
    let format = json!({"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "wrong"}}});
    let told = client
        .post("/v1/chat/completions", chat(json!({"response_format": format})))
        .await;
    assert_eq!(
        (told.status.as_u16(), &told.json()["error"]["param"]),
        (400, &json!("response_format.json_schema.schema"))
    );
    let answer = ask(&client, json!({"guided_choice": ["<yes>", "n.o"]})).await;
    let text = answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_string();
    assert!(text == "<yes>" || text == "n.o", "{text}");
    let answer = ask(&client, json!({"grammar": "root ::= [a-c] [x-z]"})).await;
    assert_eq!(
        answer["choices"][0]["message"]["content"].as_str().unwrap().len(),
        2
    );
}

#[tokio::test]
async fn every_answer_of_a_request_is_bound() {
    let client = client("neither");
    let is_bound = |text: &Value| {
        let text = text.as_str().unwrap();
        text.len() == 2 && ('a'..='c').contains(&text.chars().next().unwrap())
    };
    let answer = ask(&client, json!({"grammar": "root ::= [a-c] [x-z]", "n": 3})).await;
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    assert!(
        choices
            .iter()
            .all(|choice| is_bound(&choice["message"]["content"])),
        "{answer}"
    );
    let body = json!({"prompt": ["a?", "b?"], "n": 2, "grammar": "root ::= [a-c] [x-z]"});
    let answer = client.post("/v1/completions", body).await.json();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert!(choices.iter().all(|choice| is_bound(&choice["text"])), "{answer}");
}

fn tools() -> Value {
    let schema =
        json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]});
    json!([{"type": "function", "function": {"name": "weather", "description": "Now", "parameters": schema}}])
}

#[tokio::test]
async fn tools_are_called_with_valid_arguments() {
    let client = client("I would rather talk");
    let answer = ask(
        &client,
        json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false}),
    )
    .await;
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["message"]["content"]),
        (&json!("tool_calls"), &Value::Null)
    );
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "weather");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["city"] == "Rome" || arguments["city"] == "Oslo");
    let answer = ask(&client, json!({"tools": tools()})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "I would rather talk");

    let history = json!([
        {"role": "user", "content": "Weather?"}, choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}]);
    let answer = ask(&client, json!({"messages": history, "tools": tools()})).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_call_is_streamed_in_fragments() {
    let client = client("{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}");
    let told = client
        .post(
            "/v1/chat/completions",
            chat(json!({"tools": tools(), "stream": true})),
        )
        .await;
    let events = told.events();
    let calls: Vec<&Value> = events
        .iter()
        .map(|event| &event["choices"][0]["delta"]["tool_calls"][0])
        .filter(|call| !call.is_null())
        .collect();
    assert_eq!(calls[0]["function"]["name"], "weather");
    assert!(calls.iter().skip(1).all(|call| call["id"].is_null()));
    let arguments: String = calls
        .iter()
        .filter_map(|call| call["function"]["arguments"].as_str())
        .collect();
    assert_eq!(
        serde_json::from_str::<Value>(&arguments).unwrap(),
        json!({"city": "Oslo"})
    );
    assert_eq!(
        events.last().unwrap()["choices"][0]["finish_reason"],
        "tool_calls"
    );
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_name() {
    let client = client("x");
    let refused = async |change: Value| {
        let told = client.post("/v1/chat/completions", chat(change)).await;
        let error = told.json()["error"].clone();
        assert_eq!(
            (told.status.as_u16(), &error["type"]),
            (400, &json!("invalid_request_error"))
        );
        error
    };
    assert_eq!(refused(json!({"temperature": 101})).await["param"], "temperature");
    assert_eq!(
        refused(json!({"temperature": "hot"})).await["param"],
        "temperature"
    );
    assert_eq!(
        refused(json!({"logit_bias": {"99999": 1}})).await["param"],
        "logit_bias"
    );
    assert_eq!(refused(json!({"stop": [""]})).await["param"], "stop");
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]);
    assert_eq!(
        refused(json!({"messages": image})).await["param"],
        "messages[0].content[0].image_url"
    );
    let long = json!([{"role": "user", "content": "x".repeat(3000)}]);
    let error = refused(json!({"messages": long})).await;
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("the context holds 2000") && message.contains("the prompt has 30"),
        "{message}"
    );
}

#[tokio::test]
async fn fields_are_named_as_the_client_wrote_them() {
    let client = client("Hello");
    let param = async |path: &str, body: Value| {
        let told = client.post(path, body).await;
        assert_eq!(told.status, 400, "{}", told.text);
        let error = told.json()["error"].clone();
        (
            error["param"].as_str().unwrap_or_default().to_string(),
            error["message"].as_str().unwrap().to_string(),
        )
    };
    let of = async |path: &str, body: Value| param(path, body).await.0;
    let wrong = json!({"type": "nothing"});
    let format = json!({"type": "json_schema", "name": "x", "schema": wrong});
    let path = "/v1/chat/completions";
    let named = json!({"type": "json_schema", "json_schema": {"schema": wrong}});
    assert_eq!(
        of(path, chat(json!({"response_format": named}))).await,
        "response_format.json_schema.schema"
    );
    assert_eq!(of(path, chat(json!({"guided_json": wrong}))).await, "guided_json");
    let outputs = json!({"structured_outputs": {"regex": "("}});
    assert_eq!(of(path, chat(outputs)).await, "structured_outputs.regex");
    let path = "/v1/responses";
    let body = json!({"input": "x", "text": {"format": format}});
    assert_eq!(of(path, body).await, "text.format.schema");
    let long = "x".repeat(3000);
    assert_eq!(of(path, json!({"input": long})).await, "input");
    assert_eq!(of("/v1/completions", json!({"prompt": long})).await, "prompt");
    let output = json!({"type": "function_call_output", "call_id": "c", "output": "x"});
    let body = json!({"instructions": "s", "input": [{"role": "user", "content": "x"}, output]});
    assert_eq!(of(path, body).await, "input[1]");

    // A schema that names itself and nothing else.
    let circle =
        json!({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}});
    let (_, message) = param("/v1/chat/completions", chat(json!({"guided_json": circle}))).await;
    assert!(message.contains("`#/$defs/A` goes in a circle"), "{message}");
    let tool = json!({"type": "function", "function": {"name": "w", "parameters":
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": circle["$defs"]}}});
    let (field, message) = param("/v1/chat/completions", chat(json!({"tools": [tool]}))).await;
    assert_eq!(field, "tools");
    assert!(
        message.contains("`w`") && message.contains("goes in a circle"),
        "{message}"
    );
}

/// The compiler of schemas reads given numbers as floats.
#[tokio::test]
async fn large_numbers_are_given_exactly_or_not_at_all() {
    let client = client("no");
    let schema = |value: Value| {
        json!({"type": "object", "properties": {"id": value}, "required": ["id"],
               "additionalProperties": false})
    };
    let told = async |change: Value| client.post("/v1/chat/completions", chat(change)).await.json();
    let (small, large) = (9_007_199_254_740_992_i64, 9_007_199_254_740_993_i64);
    let answer = ask(&client, json!({"guided_json": schema(json!({"const": small}))})).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text, format!("{{\"id\": {small}}}"));
    for value in [
        json!({"const": large}),
        json!({"type": "integer", "enum": [1, large]}),
    ] {
        let answer = told(json!({"guided_json": schema(value.clone())})).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("`guided_json`") && message.contains(&large.to_string()),
            "{message}"
        );
        let tool = |strict: bool| {
            json!([{"type": "function", "function":
                {"name": "w", "parameters": schema(value.clone()), "strict": strict}}])
        };
        let answer = told(json!({"tools": tool(true), "tool_choice": "required"})).await;
        assert_eq!(answer["error"]["param"], "tools", "{answer}");
        let body = json!({"tools": tool(false), "tool_choice": "required", "max_tokens": 60});
        let answer = ask(&client, body).await;
        assert!(answer["choices"][0].is_object(), "{answer}");
    }
}

#[tokio::test]
async fn a_call_that_was_cut_may_be_sent_back() {
    let client = client("Hello");
    let function = json!({"name": "w", "arguments": "{\"city\": \"Ro"});
    let call = json!({"id": "c", "type": "function", "function": function});
    let messages = json!([
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "what?"},
    ]);
    let answer = ask(&client, json!({"messages": messages})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello", "{answer}");
}

/// The context is 2,000 tokens, and the longest token has 16 bytes.
#[tokio::test]
async fn prompts_far_too_long_are_refused_before_their_tokens_are_counted() {
    let client = client("ab");
    let refusal = async |path: &str, body: Value| {
        let told = client.post(path, body).await;
        let error = told.json()["error"].clone();
        assert_eq!(
            (told.status.as_u16(), &error["code"]),
            (400, &json!("context_length_exceeded")),
            "{}",
            told.text
        );
        error["message"].as_str().unwrap().to_string()
    };
    let chat = |text: &str| json!({"messages": [{"role": "user", "content": text}], "max_tokens": 1});
    let raw = |text: &str| json!({"prompt": text, "max_tokens": 1});
    let (near, far) = ("x".repeat(31_000), "x".repeat(40_000));
    for (path, body) in [
        ("/v1/completions", raw(&far)),
        ("/v1/chat/completions", chat(&far)),
    ] {
        let message = refusal(path, body).await;
        assert!(message.contains("has at least 25"), "{message}");
        assert!(message.contains("2000 tokens"), "{message}");
    }
    let message = refusal("/v1/completions", raw(&near)).await;
    assert!(message.contains("the prompt has 31001 and"), "{message}");
    let message = refusal("/v1/chat/completions", chat(&near)).await;
    assert!(message.contains("the prompt has 310"), "{message}");
    // A visible blank is one byte of a token, whatever it takes in a text.
    let message = refusal("/v1/completions", raw(&"\u{2581}".repeat(11_000))).await;
    assert!(message.contains("the prompt has 33001 and"), "{message}");
    // What the template does not write takes no room.
    let padded = format!("{}x{}", " ".repeat(30_000), "\n".repeat(30_000));
    assert_eq!(
        client.post("/v1/chat/completions", chat(&padded)).await.status,
        200
    );
    let message = refusal("/v1/embeddings", json!({"input": ["x", far]})).await;
    assert!(message.contains("has at least 2500 tokens"), "{message}");
    let cut = client
        .post("/api/embed", json!({"input": far, "truncate": true}))
        .await;
    assert_eq!(cut.json()["prompt_eval_count"], 1999, "{}", cut.text);
    let counted = json!({"messages": [{"role": "user", "content": far}]});
    let counted = client.post("/v1/messages/count_tokens", counted).await.json();
    assert!(counted["input_tokens"].as_u64() > Some(40_000), "{counted}");
}

#[tokio::test]
async fn raw_text_is_continued() {
    let client = client(" Paris");
    let body =
        json!({"prompt": "Capital?", "max_tokens": 20, "temperature": 0, "echo": true, "logprobs": null});
    let answer = client.post("/v1/completions", body).await.json();
    assert_eq!(answer["choices"][0]["text"], "Capital? Paris");
    let body = json!({"prompt": ["a?", "b?"], "max_tokens": 20, "temperature": 0, "n": 2, "logprobs": 1});
    let answer = client.post("/v1/completions", body).await.json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 4);
    assert_eq!(answer["usage"]["prompt_tokens"], 6);
    assert_eq!(answer["choices"][3]["logprobs"]["tokens"][1], "P");
    let body = json!({"prompt": "x?", "stream": true, "temperature": 0});
    let told = client.post("/v1/completions", body).await;
    let text: String = told
        .events()
        .iter()
        .filter_map(|e| e["choices"][0]["text"].as_str().map(String::from))
        .collect();
    assert_eq!(text, " Paris");
}

#[tokio::test]
async fn responses_go_on_from_each_other() {
    let client = client("Hello");
    let told = client
        .post(
            "/v1/responses",
            json!({"input": "Hi", "temperature": 0, "instructions": "Be brief."}),
        )
        .await;
    let first = told.json();
    assert_eq!(first["output"][0]["content"][0]["text"], "Hello");
    let id = first["id"].as_str().unwrap();
    assert_eq!(client.get(&format!("/v1/responses/{id}")).await.json()["id"], id);
    let body = json!({"input": "And?", "previous_response_id": id, "stream": true, "temperature": 0});
    let told = client.post("/v1/responses", body).await;
    let events = told.events();
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    let n_first = first["usage"]["input_tokens"].as_u64().unwrap();
    assert!(last["response"]["usage"]["input_tokens"].as_u64().unwrap() > n_first);
    let next = last["response"]["id"].as_str().unwrap().to_string();
    let body = json!({"input": "So?", "previous_response_id": next, "temperature": 0});
    assert_eq!(client.post("/v1/responses", body).await.status, 200);
    let deleted = client
        .send("DELETE", &format!("/v1/responses/{id}"), "", &[])
        .await;
    assert_eq!(deleted.json()["deleted"], true);
    let told = client
        .post("/v1/responses", json!({"input": "x", "previous_response_id": id}))
        .await;
    assert_eq!(
        (told.status.as_u16(), &told.json()["error"]["param"]),
        (400, &json!("previous_response_id"))
    );
}

#[tokio::test]
async fn texts_become_vectors() {
    let client = client("");
    let answer = client
        .post("/v1/embeddings", json!({"input": ["a", "b"], "dimensions": 1}))
        .await
        .json();
    assert_eq!(answer["data"][1]["embedding"], json!([1.0]));
    assert_eq!(answer["usage"]["prompt_tokens"], 4);
    let answer = client
        .post(
            "/v1/embeddings",
            json!({"input": "a", "encoding_format": "base64"}),
        )
        .await
        .json();
    assert!(answer["data"][0]["embedding"].is_string());
    let told = client
        .post("/v1/embeddings", json!({"input": "a", "dimensions": 9}))
        .await;
    assert_eq!(told.json()["error"]["param"], "dimensions");
}
