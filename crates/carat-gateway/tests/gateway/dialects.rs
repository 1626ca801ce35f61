//! Clients of every dialect in front of providers of every dialect, whole and streamed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Rig, mock, rig};

/// Providers `m` (OpenAI's API) and one for every other API, all the mock.
pub(crate) async fn all() -> Rig {
    let rig = rig("").await;
    let mock = rig.mock_address;
    let account = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/gateway/service-account.json"
    );
    let account = std::fs::read_to_string(account).unwrap();
    let mut account: Value = serde_json::from_str(&account).unwrap();
    account["token_uri"] = Value::from(format!("http://{mock}/token"));
    let text = format!(
        "attempts = 2\n[providers.m]\nbase-url = \"http://{mock}/v1\"\n\
         [providers.anthropic]\nbase-url = \"http://{mock}\"\nkey = \"sk-ant\"\n\
         [providers.gemini]\nbase-url = \"http://{mock}/v1beta\"\nkey = \"AIza-key\"\n\
         [providers.ollama]\nbase-url = \"http://{mock}\"\n\
         [providers.bedrock]\nbase-url = \"http://{mock}\"\nvars = {{ region = \"eu-west-1\" }}\n\
         aws = {{ access-key-id = \"AKIDEXAMPLE\", secret-access-key = \"aws-secret\", session-token = \"aws-session\" }}\n\
         [providers.vertex]\nbase-url = \"http://{mock}/v1/projects/{{project}}/locations/{{location}}/publishers/google\"\n\
         key = '{account}'\n\
         [providers.vertex-anthropic]\nbase-url = \"http://{mock}/v1/publishers/anthropic\"\nkey = \"ya29.own\"\n\
         [providers.cohere]\nbase-url = \"http://{mock}\"\nkey = \"co-key\"\n\
         [providers.replicate]\nbase-url = \"http://{mock}/v1\"\nkey = \"r8_key\"\n\
         [providers.azure-deployments]\nbase-url = \"http://{mock}/openai\"\nkey = \"azure-key\"\n"
    );
    rig.gateway
        .replace(carat_gateway::Config::parse(&text, &crate::support::env()).unwrap());
    rig
}

const PROVIDERS: [&str; 9] = [
    "m",
    "anthropic",
    "gemini",
    "ollama",
    "bedrock",
    "vertex",
    "vertex-anthropic",
    "azure-deployments",
    "cohere",
];
const CLIENTS: [&str; 5] = ["openai", "anthropic", "gemini", "ollama", "responses"];

/// A question in a client's words: a path and a body.
pub(crate) fn asked(client: &str, model: &str, is_stream: bool) -> (String, Value) {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let function = json!({"name": "weather", "description": "d", "parameters": schema});
    match client {
        "openai" => {
            let messages =
                json!([{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]);
            let options = json!({"include_usage": true});
            let body = json!({"model": model, "messages": messages, "stream": is_stream, "stream_options": options,
                "tools": [{"type": "function", "function": function}], "max_tokens": 50});
            ("/v1/chat/completions".into(), body)
        }
        "anthropic" => {
            let tools = json!([{"name": "weather", "description": "d", "input_schema": schema}]);
            let body = json!({"model": model, "max_tokens": 50, "system": "Be kind", "stream": is_stream,
                "messages": [{"role": "user", "content": "Hi"}], "tools": tools});
            ("/v1/messages".into(), body)
        }
        "gemini" => {
            let verb = if is_stream {
                "streamGenerateContent?alt=sse"
            } else {
                "generateContent"
            };
            let body = json!({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
                "systemInstruction": {"parts": [{"text": "Be kind"}]}, "generationConfig": {"maxOutputTokens": 50},
                "tools": [{"functionDeclarations": [function]}]});
            (format!("/v1beta/models/{model}:{verb}"), body)
        }
        "responses" => {
            let tools =
                json!([{"type": "function", "name": "weather", "description": "d", "parameters": schema}]);
            let body = json!({"model": model, "input": "Hi", "instructions": "Be kind", "stream": is_stream,
                "max_output_tokens": 50, "tools": tools, "store": false});
            ("/v1/responses".into(), body)
        }
        _ => {
            let messages =
                json!([{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}]);
            let body = json!({"model": model, "messages": messages, "stream": is_stream,
                "tools": [{"type": "function", "function": function}], "options": {"num_predict": 50}});
            ("/api/chat".into(), body)
        }
    }
}

/// What a client understands of an answer.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Understood {
    pub(crate) text: String,
    pub(crate) thoughts: String,
    pub(crate) call: String,
    pub(crate) arguments: String,
    pub(crate) finish: String,
    pub(crate) input: u64,
    pub(crate) output: u64,
}

fn records(text: &str) -> Vec<Value> {
    let data = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| !data.starts_with('['));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

fn add(text: &mut String, value: &Value) {
    text.push_str(value.as_str().unwrap_or_default());
}

pub(crate) fn understood(client: &str, is_stream: bool, text: &str) -> Understood {
    let mut seen = Understood::default();
    let values = match (is_stream, client) {
        (false, _) => vec![serde_json::from_str(text).unwrap()],
        (true, "ollama") => text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
        (true, _) => records(text),
    };
    for value in &values {
        match client {
            "openai" => {
                let choice = &value["choices"][0];
                let said = if is_stream {
                    &choice["delta"]
                } else {
                    &choice["message"]
                };
                add(&mut seen.text, &said["content"]);
                add(&mut seen.thoughts, &said["reasoning_content"]);
                add(&mut seen.call, &said["tool_calls"][0]["function"]["name"]);
                add(
                    &mut seen.arguments,
                    &said["tool_calls"][0]["function"]["arguments"],
                );
                add(&mut seen.finish, &choice["finish_reason"]);
                seen.input += value["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
                seen.output += value["usage"]["completion_tokens"].as_u64().unwrap_or(0);
            }
            "anthropic" => understand_anthropic(value, &mut seen),
            "responses" => understand_response(value, is_stream, &mut seen),
            "gemini" => {
                let candidate = &value["candidates"][0];
                for part in candidate["content"]["parts"].as_array().unwrap() {
                    let is_thought = part["thought"] == true;
                    add(
                        if is_thought {
                            &mut seen.thoughts
                        } else {
                            &mut seen.text
                        },
                        &part["text"],
                    );
                    add(&mut seen.call, &part["functionCall"]["name"]);
                    let args = &part["functionCall"]["args"];
                    seen.arguments.push_str(
                        &Some(args)
                            .filter(|args| args.is_object())
                            .map_or(String::new(), Value::to_string),
                    );
                }
                add(&mut seen.finish, &candidate["finishReason"]);
                let usage = &value["usageMetadata"];
                if usage.is_object() {
                    let count = |name: &str| usage[name].as_u64().unwrap_or(0);
                    seen.input = count("promptTokenCount");
                    seen.output = count("candidatesTokenCount") + count("thoughtsTokenCount");
                }
            }
            _ => {
                add(&mut seen.text, &value["message"]["content"]);
                add(&mut seen.thoughts, &value["message"]["thinking"]);
                let call = &value["message"]["tool_calls"][0]["function"];
                add(&mut seen.call, &call["name"]);
                seen.arguments.push_str(
                    &Some(&call["arguments"])
                        .filter(|args| args.is_object())
                        .map_or(String::new(), Value::to_string),
                );
                add(&mut seen.finish, &value["done_reason"]);
                seen.input += value["prompt_eval_count"].as_u64().unwrap_or(0);
                seen.output += value["eval_count"].as_u64().unwrap_or(0);
            }
        }
    }
    seen
}

fn understand_response(value: &Value, is_stream: bool, seen: &mut Understood) {
    let whole = if is_stream { &value["response"] } else { value };
    match value["type"].as_str() {
        Some("response.output_text.delta") => add(&mut seen.text, &value["delta"]),
        Some("response.reasoning_summary_text.delta") => add(&mut seen.thoughts, &value["delta"]),
        Some("response.function_call_arguments.delta") => add(&mut seen.arguments, &value["delta"]),
        Some("response.output_item.added") => add(&mut seen.call, &value["item"]["name"]),
        _ => {}
    }
    if whole["usage"].is_object() {
        let mut last = Understood::default();
        for item in whole["output"].as_array().unwrap() {
            add(&mut last.text, &item["content"][0]["text"]);
            add(&mut last.thoughts, &item["summary"][0]["text"]);
            add(&mut last.call, &item["name"]);
            add(&mut last.arguments, &item["arguments"]);
        }
        add(&mut last.finish, &whole["status"]);
        last.input = whole["usage"]["input_tokens"].as_u64().unwrap();
        last.output = whole["usage"]["output_tokens"].as_u64().unwrap();
        if is_stream {
            assert_eq!((&last.text, &last.thoughts), (&seen.text, &seen.thoughts));
            assert_eq!((&last.call, &last.arguments), (&seen.call, &seen.arguments));
        }
        *seen = last;
    }
}

fn understand_anthropic(value: &Value, seen: &mut Understood) {
    let blocks = value["content"]
        .as_array()
        .cloned()
        .unwrap_or_else(|| vec![value["content_block"].clone()]);
    for block in &blocks {
        add(&mut seen.text, &block["text"]);
        add(&mut seen.thoughts, &block["thinking"]);
        add(&mut seen.call, &block["name"]);
        if block["input"].as_object().is_some_and(|input| !input.is_empty()) {
            seen.arguments.push_str(&block["input"].to_string());
        }
    }
    add(&mut seen.text, &value["delta"]["text"]);
    add(&mut seen.thoughts, &value["delta"]["thinking"]);
    add(&mut seen.arguments, &value["delta"]["partial_json"]);
    add(&mut seen.finish, &value["delta"]["stop_reason"]);
    add(&mut seen.finish, &value["stop_reason"]);
    let count = |name: &str| value["usage"][name].as_u64().unwrap_or(0);
    let input = count("input_tokens") + count("cache_read_input_tokens");
    // A provider that is passed on says its input only where it begins.
    let begun = &value["message"]["usage"];
    let first =
        begun["input_tokens"].as_u64().unwrap_or(0) + begun["cache_read_input_tokens"].as_u64().unwrap_or(0);
    seen.input = input.max(first).max(seen.input);
    seen.output = count("output_tokens").max(seen.output);
}

#[tokio::test]
async fn every_client_understands_every_provider() {
    let rig = all().await;
    for client in CLIENTS {
        for provider in PROVIDERS {
            for (is_stream, command) in [(false, "ok"), (true, "ok"), (false, "tool"), (true, "tool")] {
                let case = format!("{client} asks {provider}, {command}, stream {is_stream}");
                let (path, body) = asked(client, &format!("{provider}/{command}"), is_stream);
                let reply = rig.post(&path, &body.to_string()).await;
                assert_eq!(reply.status, 200, "{case}: {}", reply.text);
                let seen = understood(client, is_stream, &reply.text);
                let is_tool = command == "tool";
                let is_native = !matches!(provider, "m" | "azure-deployments");
                if is_tool {
                    assert_eq!(
                        (seen.call.as_str(), seen.text.as_str()),
                        ("weather", ""),
                        "{case}: {}",
                        reply.text
                    );
                    let arguments: Value = serde_json::from_str(&seen.arguments).unwrap();
                    assert_eq!(arguments, json!({"city": "K\u{f6}ln"}), "{case}");
                } else if is_native {
                    assert_eq!(seen.text, mock::NATIVE[1..].concat(), "{case}: {}", reply.text);
                }
                if is_native {
                    assert_eq!(seen.thoughts, mock::NATIVE[0], "{case}: {}", reply.text);
                }
                let finish = match (client, is_tool) {
                    ("openai", false) | ("ollama", _) => "stop",
                    ("openai", true) => "tool_calls",
                    ("responses", _) => "completed",
                    ("anthropic", false) => "end_turn",
                    ("anthropic", true) => "tool_use",
                    _ => "STOP",
                };
                assert_eq!(seen.finish, finish, "{case}: {}", reply.text);
                assert_eq!((seen.input, seen.output), (11, 4), "{case}: {}", reply.text);
                assert!(
                    !reply.headers.contains_key("x-carat-dropped"),
                    "{case}: {:?}",
                    reply.headers
                );
            }
        }
    }
}

#[tokio::test]
async fn providers_are_asked_in_their_own_words() {
    let rig = all().await;
    let last = || {
        let (head, body) = rig.mock.last.lock().unwrap().clone();
        (head.to_lowercase(), serde_json::from_str::<Value>(&body).unwrap())
    };
    let image = "data:image/png;base64,AAAA";
    let body = json!({"model": "anthropic/ok", "seed": 3, "logit_bias": {"1": 2}, "stop": "x", "temperature": 1.5, "user": "u",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "properties": {}}}},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": image}}]},
            {"role": "assistant", "content": null,
             "thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}],
             "tool_calls": [{"id": "call:1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"x\"}"},
                             "extra_content": {"google": {"thought_signature": "g"}}}]},
            {"role": "tool", "tool_call_id": "call:1", "content": "{\"c\":21}"},
            {"role": "user", "content": "and now?"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]});
    let reply = rig.post("/v1/chat/completions", &body.to_string()).await;
    assert_eq!(reply.headers["x-carat-dropped"], "logit_bias, seed");
    let (head, told) = last();
    assert!(
        head.contains("x-api-key: sk-ant") && head.contains("anthropic-version: 2023-06-01"),
        "{head}"
    );
    assert_eq!(told["max_tokens"], 4096);
    assert_eq!(told["temperature"], 1.0);
    assert_eq!(told["stop_sequences"], json!(["x"]));
    assert_eq!(told["output_config"]["format"]["type"], "json_schema");
    assert_eq!(
        told["messages"][0]["content"][1]["source"],
        json!({"type": "base64", "media_type": "image/png", "data": "AAAA"})
    );
    let thought = json!({"type": "thinking", "thinking": "t", "signature": "s"});
    let call = json!({"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "x"}});
    assert_eq!(told["messages"][1]["content"], json!([thought, call]));
    assert_eq!(told["messages"][2]["content"][0]["tool_use_id"], "call_1");
    assert_eq!(told["messages"][2]["content"][1]["text"], "and now?");
    assert_eq!(told["messages"].as_array().unwrap().len(), 3);

    let chat = body;
    let body = &chat;
    let gemini = body.to_string().replace("anthropic/ok", "gemini/ok");
    assert_eq!(
        rig.post("/v1/chat/completions", &gemini).await.headers["x-carat-dropped"],
        "logit_bias, user"
    );
    let (head, told) = last();
    assert!(
        head.starts_with("post /v1beta/models/ok:generatecontent ")
            && head.contains("x-goog-api-key: aiza-key"),
        "{head}"
    );
    assert_eq!(
        told["contents"][0]["parts"][1]["inlineData"],
        json!({"mimeType": "image/png", "data": "AAAA"})
    );
    assert_eq!(told["contents"][1]["parts"][0]["thoughtSignature"], "g");
    let response = json!({"functionResponse": {"name": "weather", "response": {"c": 21}}});
    assert_eq!(told["contents"][2]["parts"][0], response);
    assert_eq!(
        told["generationConfig"]["responseJsonSchema"],
        json!({"type": "object", "properties": {}})
    );

    let ollama = body.to_string().replace("anthropic/ok", "ollama/ok");
    rig.post("/v1/chat/completions", &ollama).await;
    let (_, told) = last();
    assert_eq!(told["messages"][0]["images"], json!(["AAAA"]));
    assert_eq!(
        told["messages"][2],
        json!({"role": "tool", "tool_name": "weather", "content": "{\"c\":21}"})
    );
    assert_eq!(
        (&told["options"]["seed"], &told["stream"]),
        (&json!(3), &json!(false))
    );

    let image_of_result =
        json!([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "BBBB"}}]);
    let body = json!({"model": "gemini/ok", "max_tokens": 9, "messages": [
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "screen", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": image_of_result}]}]});
    assert_eq!(rig.post("/v1/messages", &body.to_string()).await.status, 200);
    let inline = json!({"inlineData": {"mimeType": "image/png", "data": "BBBB"}});
    assert_eq!(
        last().1["contents"][2]["parts"][1],
        inline,
        "images in results are not lost"
    );

    let far = chat
        .to_string()
        .replace("anthropic/ok", "gemini/ok")
        .replace(image, "https://example.com/a.png");
    assert_eq!(
        rig.post("/v1/chat/completions", &far).await.status,
        400,
        "nothing is fetched on a client's word"
    );
}

#[tokio::test]
async fn bedrock_is_asked_in_its_own_words_and_every_request_is_signed() {
    let rig = all().await;
    let body = json!({"model": "bedrock/anthropic.claude-sonnet-4-5;ok:0", "max_tokens": 2000, "temperature": 0.5, "top_k": 5,
        "system": [{"type": "text", "text": "Be kind", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "thinking": {"type": "enabled", "budget_tokens": 1500}, "stop_sequences": ["x"],
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object", "properties": {}}}},
        "tools": [{"name": "a.b", "description": "d", "input_schema": {"type": "object"}}],
        "messages": [
            {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "AAAA"}},
                {"type": "document", "title": "a/b.pdf", "source": {"type": "base64", "media_type": "application/pdf", "data": "CCCC"}}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"},
                {"type": "redacted_thinking", "data": "UkVE"}, {"type": "tool_use", "id": "t:1", "name": "a.b", "input": {"x": 1}}]},
            {"role": "user", "content": [{"type": "text", "text": "so?"},
                {"type": "tool_result", "tool_use_id": "t:1", "content": "21", "is_error": true, "cache_control": {"type": "ephemeral"}}]}]});
    let reply = rig.post("/v1/messages", &body.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.headers["x-carat-dropped"], "temperature, top_k");
    let (head, told) = rig.mock.last.lock().unwrap().clone();
    let head = head.to_lowercase();
    assert!(
        head.starts_with("post /model/anthropic.claude-sonnet-4-5%3bok%3a0/converse http/1.1"),
        "{head}"
    );
    assert!(
        head.contains("credential=akidexample/") && head.contains("/eu-west-1/bedrock/aws4_request"),
        "{head}"
    );
    assert!(
        head.contains("signedheaders=content-type;host;x-amz-date;x-amz-security-token"),
        "{head}"
    );
    assert!(
        head.contains("x-amz-security-token: aws-session") && !head.contains("aws-secret"),
        "{head}"
    );
    let told: Value = serde_json::from_str(&told).unwrap();
    let point = json!({"cachePoint": {"type": "default", "ttl": "1h"}});
    assert_eq!(told["system"], json!([{"text": "Be kind"}, point]));
    assert_eq!(
        told["inferenceConfig"],
        json!({"maxTokens": 2000, "stopSequences": ["x"]})
    );
    let thinking = json!({"thinking": {"type": "enabled", "budget_tokens": 1500}});
    assert_eq!(told["additionalModelRequestFields"], thinking);
    assert_eq!(told["toolConfig"]["tools"][0]["toolSpec"]["name"], "a_b");
    assert_eq!(
        told["outputConfig"]["textFormat"]["structure"]["jsonSchema"]["schema"],
        json!({"type": "object", "properties": {}, "additionalProperties": false}).to_string()
    );
    let messages = &told["messages"];
    assert_eq!(
        messages[0]["content"][0],
        json!({"image": {"format": "jpeg", "source": {"bytes": "AAAA"}}})
    );
    assert_eq!(messages[0]["content"][1]["document"]["name"], "a-b-pdf");
    assert_eq!(
        messages[0]["content"][2],
        json!({"text": "."}),
        "a document may not be alone"
    );
    let thought = json!({"reasoningContent": {"reasoningText": {"text": "t", "signature": "s"}}});
    let call = json!({"toolUse": {"toolUseId": "t_1", "name": "a_b", "input": {"x": 1}}});
    let redacted = json!({"reasoningContent": {"redactedContent": "UkVE"}});
    assert_eq!(messages[1]["content"], json!([thought, redacted, call]));
    let result = json!({"toolResult": {"toolUseId": "t_1", "content": [{"text": "21"}], "status": "error"}});
    let point = json!({"cachePoint": {"type": "default"}});
    assert_eq!(messages[2]["content"], json!([result, point, {"text": "so?"}]));
}

#[tokio::test]
async fn damaged_and_broken_streams_of_frames_are_told_to_the_client() {
    let rig = all().await;
    for (command, expected) in [
        ("bad-crc", "damaged"),
        ("fail=6", "mock is tired"),
        ("cut=6", "cut off"),
    ] {
        let (path, body) = asked("anthropic", &format!("bedrock/{command}"), true);
        let reply = rig.post(&path, &body.to_string()).await;
        assert_eq!(reply.status, 200, "{command}");
        let last = reply
            .text
            .trim_end()
            .lines()
            .last()
            .unwrap()
            .trim_start_matches("data: ");
        let value: Value = serde_json::from_str(last).unwrap();
        assert_eq!(value["type"], "error", "{command}: {}", reply.text);
        assert!(last.contains(expected), "{command}: {last}");
        assert!(!reply.text.contains("message_stop"), "{command}");
    }
    let (path, body) = asked("openai", "bedrock/fail=1", true);
    let reply = rig.post(&path, &body.to_string()).await;
    assert_eq!(
        reply.status, 429,
        "nothing was said yet, so the error is the answer's own"
    );
}

#[tokio::test]
async fn tokens_of_google_are_fetched_once_and_used_for_all() {
    let rig = all().await;
    let (path, body) = asked("openai", "vertex/ok", false);
    let body = body.to_string();
    let four = tokio::join!(
        rig.post(&path, &body),
        rig.post(&path, &body),
        rig.post(&path, &body),
        rig.post(&path, &body)
    );
    let statuses = [four.0.status, four.1.status, four.2.status, four.3.status];
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    let (head, _) = rig.mock.last.lock().unwrap().clone();
    assert!(
        head.starts_with(
            "POST /v1/projects/test-project/locations/global/publishers/google/models/ok:generateContent "
        ),
        "{head}"
    );
    assert!(
        head.to_lowercase().contains("authorization: bearer ya29.mock-0"),
        "{head}"
    );
    assert_eq!(rig.mock.tokens.load(std::sync::atomic::Ordering::Relaxed), 1);
    let statement = rig.mock.statement.lock().unwrap().clone();
    assert!(
        statement
            .starts_with("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=ey"),
        "{statement}"
    );

    let (path, body) = asked("anthropic", "vertex-anthropic/ok", true);
    rig.post(&path, &body.to_string()).await;
    let (head, told) = rig.mock.last.lock().unwrap().clone();
    assert!(
        head.starts_with("POST /v1/publishers/anthropic/models/ok:streamRawPredict "),
        "{head}"
    );
    assert!(
        head.to_lowercase().contains("bearer ya29.own") && !head.contains("anthropic-version"),
        "{head}"
    );
    assert!(
        told.contains("\"anthropic_version\":\"vertex-2023-10-16\"") && !told.contains("\"model\""),
        "{told}"
    );
    let (path, body) = asked("openai", "azure-deployments/ok", false);
    rig.post(&path, &body.to_string()).await;
    let (head, _) = rig.mock.last.lock().unwrap().clone();
    assert!(
        head.starts_with("POST /openai/deployments/ok/chat/completions?api-version=2024-10-21 "),
        "{head}"
    );
    assert!(head.to_lowercase().contains("api-key: azure-key"), "{head}");
}

#[tokio::test]
async fn images_by_address_are_fetched_only_where_that_is_allowed() {
    let rig = all().await;
    let mock = rig.mock_address;
    let ask = |url: String| {
        let body = json!({"model": "gemini/ok", "messages": [{"role": "user", "content": [
            {"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]}]});
        let rig = &rig;
        async move { rig.post("/v1/chat/completions", &body.to_string()).await }
    };
    let here = format!("http://{mock}/picture.png");
    let allow = |how: &str| {
        let text =
            format!("media-urls = \"{how}\"\n[providers.gemini]\nbase-url = \"http://{mock}/v1beta\"\n");
        let config = carat_gateway::Config::parse(&text, &crate::support::env()).unwrap();
        rig.gateway.replace(config);
    };
    assert_eq!(
        ask(here.clone()).await.status,
        400,
        "nothing is fetched unless it is allowed"
    );
    allow("public");
    let reply = ask(here.clone()).await;
    assert_eq!(
        (reply.status, reply.text.contains("not a public one")),
        (400, true),
        "{}",
        reply.text
    );
    let before = rig.mock.requests.load(std::sync::atomic::Ordering::Relaxed);
    allow("any");
    let reply = ask(here).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(
        rig.mock.requests.load(std::sync::atomic::Ordering::Relaxed),
        before + 2
    );
    let told = rig.mock.last.lock().unwrap().1.clone();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        told["contents"][0]["parts"][1],
        serde_json::json!({"inlineData": {"data": "iVBORw==", "mimeType": "image/png"}})
    );
    let reply = ask(format!("http://{mock}/ok")).await;
    assert_eq!(
        (reply.status, reply.text.contains("neither an image")),
        (400, true),
        "{}",
        reply.text
    );
}

/// What is asked about a picture at an address, of a model.
fn about(model: &str, url: &str) -> String {
    let image = json!({"type": "image_url", "image_url": {"url": url}});
    let text = json!({"type": "text", "text": "What is it?"});
    json!({"model": model, "messages": [{"role": "user", "content": [text, image]}]}).to_string()
}

#[tokio::test]
async fn nobody_waits_for_a_place_while_pictures_of_others_are_fetched() {
    let rig = all().await;
    let mock = rig.mock_address;
    let (slow, asked) = slow_pictures().await;
    let text = format!(
        "media-urls = \"any\"\n[providers.gemini]\nbase-url = \"http://{mock}/v1beta\"\nmax-in-flight = 1\n\
         [providers.ollama]\nbase-url = \"http://{mock}\"\nmax-in-flight = 1\n\
         [routes.r]\ncandidates = [\"gemini/status=500\", \"ollama/ok\"]\n"
    );
    rig.gateway
        .replace(carat_gateway::Config::parse(&text, &crate::support::env()).unwrap());
    let (body, plain) = (
        about("gemini/ok", &slow),
        crate::support::chat("gemini/ok", false),
    );
    let chat = "/v1/chat/completions";
    let meanwhile = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        rig.post(chat, &plain).await
    };
    let (first, other) = tokio::join!(rig.post(chat, &body), meanwhile);
    assert_eq!((first.status, other.status), (200, 200), "{}", other.text);
    let limit = std::time::Duration::from_millis(400);
    assert!(other.took < limit, "{:?}", other.took);
    assert!(first.took > limit, "{:?}", first.took);
    // Two are asked, and the picture is fetched once for both.
    let before = asked.load(std::sync::atomic::Ordering::Relaxed);
    let reply = rig.post(chat, &about("r", &slow)).await;
    assert!(reply.route().starts_with("ollama/ok; "), "{}", reply.text);
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), before + 1);
}

/// A server whose pictures take half a second to come, and how many it was asked for.
async fn slow_pictures() -> (String, std::sync::Arc<std::sync::atomic::AtomicU64>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/a.png", listener.local_addr().unwrap());
    let asked = std::sync::Arc::<std::sync::atomic::AtomicU64>::default();
    let counted = std::sync::Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                let head = "HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 4\r\nconnection: close\r\n\r\n";
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(b"\x89PNG").await.unwrap();
            });
        }
    });
    (url, asked)
}

#[tokio::test]
async fn what_is_only_named_goes_to_who_can_be_told_so() {
    let rig = all().await;
    let mock = rig.mock_address;
    let text = format!(
        "attempts = 1\n[providers.m]\nbase-url = \"http://{mock}/v1\"\n\
         [providers.here]\nlike = \"vllm\"\nbase-url = \"http://{mock}/v1\"\n\
         [providers.gemini]\nbase-url = \"http://{mock}/v1beta\"\n\
         [routes.r]\ncandidates = [\"gemini/ok\", \"here/ok\", \"m/ok\"]\n\
         [routes.none]\ncandidates = [\"gemini/ok\", \"here/ok\"]\n\
         [routes.data]\ncandidates = [\"here/no-urls\", \"m/ok\"]\n[models.\"here/no-urls\"]\nimage-urls = false\n"
    );
    rig.gateway
        .replace(carat_gateway::Config::parse(&text, &crate::support::env()).unwrap());
    let ask = async |body: String| rig.post("/v1/chat/completions", &body).await;
    let far = "https://example.com/a.png";
    let reply = ask(about("r", far)).await;
    assert_eq!(
        reply.route(),
        "here/ok; route=r; policy=ordered; attempts=1; passed=gemini/ok:addresses"
    );
    assert!(ask(about("data", far)).await.route().starts_with("m/ok; "));
    let file = |model: &str| {
        let part = json!({"type": "file", "file": {"file_id": "file-1"}});
        json!({"model": model, "messages": [{"role": "user", "content": [part]}]}).to_string()
    };
    let reply = ask(file("r")).await;
    assert_eq!(
        reply.route(),
        "m/ok; route=r; policy=ordered; attempts=1; passed=gemini/ok:files,here/ok:files"
    );
    let reply = ask(file("none")).await;
    assert!(
        reply.status == 400 && reply.text.contains("send its data"),
        "{}",
        reply.text
    );
}

#[tokio::test]
async fn cohere_is_asked_in_its_own_words() {
    let rig = all().await;
    let body = json!({"model": "cohere/ok", "temperature": 0.5, "top_p": 1, "stop": "x", "user": "u", "frequency_penalty": -1,
        "seed": 3, "max_tokens": 9, "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "tools": [{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "b"}}],
        "tool_choice": {"type": "function", "function": {"name": "b"}},
        "messages": [{"role": "system", "content": "Be kind"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]},
            {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "b", "arguments": "{\"x\":1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "21"}]});
    let reply = rig.post("/v1/chat/completions", &body.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.headers["x-carat-dropped"], "frequency_penalty, user");
    let (head, told) = rig.mock.last.lock().unwrap().clone();
    assert!(
        head.starts_with("POST /v2/chat ") && head.to_lowercase().contains("bearer co-key"),
        "{head}"
    );
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["p"], &told["stop_sequences"], &told["tool_choice"]),
        (&json!(0.99), &json!(["x"]), &json!("REQUIRED"))
    );
    assert_eq!(
        told["tools"].as_array().unwrap().len(),
        1,
        "a certain tool is asked for by offering no other"
    );
    assert_eq!(
        told["response_format"],
        json!({"type": "json_object", "json_schema": {"type": "object"}})
    );
    assert_eq!(told["thinking"], json!({"type": "enabled", "token_budget": 1024}));
    assert_eq!(
        told["messages"][1]["content"][1]["image_url"]["url"],
        "https://x.example/a.png"
    );
    assert_eq!(
        told["messages"][2]["tool_calls"][0]["function"]["arguments"],
        "{\"x\":1}"
    );
    assert_eq!(
        told["messages"][3],
        json!({"role": "tool", "tool_call_id": "c1", "content": "21"})
    );

    let body = "{\"model\":\"cohere/ok\",\"query\":\"q\",\"documents\":[\"a\",\"b\"],\"top_n\":1}";
    let reply = rig.post("/v1/rerank", body).await;
    assert_eq!(
        (reply.status, reply.text.contains("relevance_score")),
        (200, true),
        "{}",
        reply.text
    );
    assert!(rig.mock.last.lock().unwrap().0.starts_with("POST /v2/rerank "));
}

#[tokio::test]
async fn predictions_are_waited_for_or_listened_to() {
    let rig = all().await;
    let words = mock::NATIVE[1..].concat();
    for (model, is_stream) in [("ok", false), ("ok", true), ("no-stream", true)] {
        let body = json!({"model": format!("replicate/mock/{model}"), "stream": is_stream, "max_tokens": 5,
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                         {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]});
        let reply = rig.post("/v1/chat/completions", &body.to_string()).await;
        assert_eq!(reply.status, 200, "{model} {is_stream}: {}", reply.text);
        let seen = understood("openai", is_stream, &reply.text);
        assert_eq!(
            (seen.text.as_str(), seen.finish.as_str()),
            (words.as_str(), "stop"),
            "{model}"
        );
        if !is_stream {
            assert_eq!((seen.input, seen.output), (11, 4));
        }
    }
    assert_eq!(
        rig.mock.of("ok"),
        2 + 3,
        "each was asked for, and then looked at once"
    );
    let body = json!({"model": "replicate/mock/ok", "messages": [{"role": "user", "content": "c"}],
                      "tools": [{"type": "function", "function": {"name": "a"}}]});
    let reply = rig.post("/v1/chat/completions", &body.to_string()).await;
    assert_eq!(
        (reply.status, reply.text.contains("no tools")),
        (400, true),
        "{}",
        reply.text
    );
    let (path, body) = asked("openai", "replicate/mock/status=402", false);
    let body = body.to_string().replace("\"tools\"", "\"x\"");
    assert_eq!(rig.post(&path, &body).await.status, 402);
}

#[tokio::test]
async fn what_one_provider_cannot_be_told_is_answered_by_one_that_can() {
    let rig = all().await;
    let mock = rig.mock_address;
    let text = format!(
        "[providers.replicate]\nbase-url = \"http://{mock}/v1\"\n[providers.m]\nbase-url = \"http://{mock}/v1\"\n\
         [routes.r]\ncandidates = [\"replicate/mock/ok\", \"m/tool\"]\n"
    );
    let config = carat_gateway::Config::parse(&text, &crate::support::env()).unwrap();
    rig.gateway.replace(config);
    let (path, body) = asked("openai", "r", false);
    let reply = rig.post(&path, &body.to_string()).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(reply.route().starts_with("m/tool;"), "{}", reply.route());
}

#[tokio::test]
async fn the_same_api_is_passed_on_untouched_and_broken_streams_are_told_in_it() {
    let rig = all().await;
    let (path, body) = asked("responses", "anthropic/cut=9", true);
    let broken = rig.post(&path, &body.to_string()).await.text;
    assert!(
        broken.contains("event: error\n") && !broken.contains("response.completed"),
        "{broken}"
    );
    for client in ["anthropic", "gemini", "ollama"] {
        let (path, body) = asked(client, &format!("{client}/ok"), true);
        let body = body.to_string().replacen('{', "{\"brand_new\":1,", 1);
        let reply = rig.post(&path, &body).await;
        assert_eq!(reply.status, 200);
        assert!(
            rig.mock.last.lock().unwrap().1.contains("\"brand_new\":1"),
            "{client}"
        );
        let (path, body) = asked(client, &format!("{client}/cut=3"), true);
        let direct = rig.post(&path, &body.to_string()).await.text;
        let (path, body) = asked(client, "anthropic/cut=9", true);
        let translated = rig.post(&path, &body.to_string()).await.text;
        for broken in [direct, translated] {
            let last = broken.trim_end().lines().last().unwrap();
            let value: Value = serde_json::from_str(last.trim_start_matches("data: ")).unwrap();
            match client {
                "anthropic" => assert_eq!(
                    (&value["type"], &value["error"]["type"]),
                    (&json!("error"), &json!("api_error"))
                ),
                "gemini" => assert_eq!(value["error"]["status"], "INTERNAL"),
                _ => assert!(value["error"].is_string(), "{value}"),
            }
        }
    }
    let (path, body) = asked("anthropic", "anthropic/status=529", false);
    let reply = rig.post(&path, &body.to_string()).await;
    assert_eq!(reply.status, 529);
    assert_eq!(
        serde_json::from_str::<Value>(&reply.text).unwrap()["error"]["type"],
        "overloaded_error"
    );
}

#[tokio::test]
async fn what_the_gateway_said_itself_is_not_passed_on() {
    let rig = all().await;
    let last = || serde_json::from_str::<Value>(&rig.mock.last.lock().unwrap().1).unwrap();
    let call = json!({"type": "tool_use", "id": "call_1", "name": "weather", "input": {}});
    let thought = json!({"type": "thinking", "thinking": "t", "signature": ""});
    let turns = |content: &Value| {
        let result = json!([{"type": "tool_result", "tool_use_id": "call_1", "content": "1"}]);
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}, {"role": "user", "content": result}])
    };
    let thinking = json!({"type": "enabled", "budget_tokens": 2000});
    for provider in ["anthropic", "vertex-anthropic"] {
        let body = json!({"model": format!("{provider}/ok"), "max_tokens": 4000, "thinking": thinking,
            "messages": turns(&json!([thought, call]))});
        let reply = rig.post("/v1/messages", &body.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        assert_eq!(reply.headers["x-carat-dropped"], "thinking", "{provider}");
        let told = last();
        assert_eq!(told["messages"], turns(&json!([call])), "{provider}");
        assert!(told["thinking"].is_null(), "{told}");
        let mut signed = body;
        let own = json!([{"type": "thinking", "thinking": "t", "signature": "Eq=="}, call]);
        signed["messages"] = turns(&own);
        let reply = rig.post("/v1/messages", &signed.to_string()).await;
        assert!(!reply.headers.contains_key("x-carat-dropped"), "{provider}");
        assert_eq!(
            (&last()["messages"], &last()["thinking"]),
            (&turns(&own), &thinking)
        );
    }
    let marked = json!({"role": "assistant", "content": "a", "reasoning_content": "t"});
    let chat = |provider: &str| json!({"model": format!("{provider}/ok"), "messages": [marked]}).to_string();
    rig.post("/v1/chat/completions", &chat("azure-deployments")).await;
    assert_eq!(last()["messages"], json!([{"role": "assistant", "content": "a"}]));
    rig.post("/v1/chat/completions", &chat("m")).await;
    assert_eq!(
        last()["messages"],
        json!([marked]),
        "nobody said that it refuses them"
    );
}

#[tokio::test]
async fn a_prediction_that_nobody_waits_for_is_cancelled() {
    let rig = all().await;
    let cancelled = || rig.mock.of("cancel");
    for (n, (name, is_stream)) in [
        ("endless", true),
        ("endless;no-stream", false),
        ("endless;no-stream;slow-made=300", false),
    ]
    .into_iter()
    .enumerate()
    {
        let (path, body) = asked("openai", &format!("replicate/mock/{name}"), is_stream);
        let body = body.to_string().replace("\"tools\"", "\"x\"");
        let asking = tokio::time::timeout(Duration::from_millis(150), rig.post(&path, &body));
        assert!(asking.await.is_err(), "{name} does not end");
        for _ in 0..100 {
            if cancelled() > n as u64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(cancelled(), n as u64 + 1, "{name}");
    }
    // One that has ended is left as it is.
    for is_stream in [false, true] {
        let (path, body) = asked("openai", "replicate/mock/ok", is_stream);
        let body = body.to_string().replace("\"tools\"", "\"x\"");
        assert_eq!(rig.post(&path, &body).await.status, 200);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(cancelled(), 3);
}

#[tokio::test]
async fn a_stream_is_over_with_its_last_word_though_its_connection_stays_open() {
    let rig = Arc::new(all().await);
    let pairs = [
        ("openai", "m"),
        ("openai", "anthropic"),
        ("openai", "bedrock"),
        ("openai", "cohere"),
        ("openai", "ollama"),
        ("anthropic", "anthropic"),
        ("anthropic", "m"),
        ("ollama", "ollama"),
        ("ollama", "m"),
        ("gemini", "m"),
        ("responses", "m"),
        ("gemini", "gemini"),
        ("openai", "gemini"),
        ("anthropic", "vertex"),
    ];
    let tasks = pairs.map(|(client, provider)| {
        let rig = Arc::clone(&rig);
        tokio::spawn(async move {
            let (path, body) = asked(client, &format!("{provider}/open"), true);
            let body = body.to_string();
            let ended = asked(client, &format!("{provider}/ok"), true);
            let asking = rig.post(&path, &body);
            let reply = tokio::time::timeout(Duration::from_secs(20), asking).await;
            let reply = reply.unwrap_or_else(|_| panic!("{client} waits for {provider}"));
            let other = rig.post(&ended.0, &ended.1.to_string()).await;
            assert_eq!(reply.status, 200, "{client} of {provider}: {}", reply.text);
            let n_lines = |text: &str| text.lines().count();
            assert_eq!(
                n_lines(&reply.text),
                n_lines(&other.text),
                "{client} of {provider}: it ends as others do: {}",
                reply.text
            );
        })
    });
    for task in tasks {
        task.await.unwrap();
    }
    let metrics = rig.get("/metrics").await.text;
    assert!(
        !metrics.contains("carat_target_failures_total{"),
        "nobody is blamed: {metrics}"
    );
}

#[tokio::test]
async fn a_model_that_cannot_think_is_asked_without_the_wish() {
    let rig = all().await;
    for is_stream in [false, true] {
        let (path, mut body) = asked("anthropic", "ollama/no-thoughts", is_stream);
        body["thinking"] = json!({"type": "enabled", "budget_tokens": 1500});
        let reply = rig.post(&path, &body.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        let dropped = reply.headers["x-carat-dropped"].to_str().unwrap();
        assert!(dropped.contains("reasoning_effort"), "{dropped}");
    }
    assert_eq!(rig.mock.of("no-thoughts"), 4);
}

#[tokio::test]
async fn what_the_gateway_wrote_itself_may_suit_another() {
    let rig = all().await;
    let text = format!(
        "[providers.m]\nbase-url = \"http://{0}/v1\"\n[providers.o]\nbase-url = \"http://{0}\"\nlike = \"ollama\"\n\
         [routes.told]\ncandidates = [\"o/status=400\", \"m/ok\"]\n[routes.passed]\ncandidates = [\"m/status=400\", \"m/ok\"]\n",
        rig.mock_address
    );
    rig.gateway
        .replace(carat_gateway::Config::parse(&text, &crate::support::env()).unwrap());
    let reply = rig.chat("told", false).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert!(
        reply.route().ends_with("failed=o/status=400:refused"),
        "{}",
        reply.route()
    );
    assert_eq!(rig.chat("passed", false).await.status, 400);
    assert_eq!(rig.chat("o/status=400", false).await.status, 400);
}
