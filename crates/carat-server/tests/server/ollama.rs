//! Ollama's routes.

use carat_server::ServerOptions;
use serde_json::{Value, json};

use crate::common::{client, client_with};

#[tokio::test]
async fn chats_and_prompts_are_answered_in_lines() {
    let client = client("Hello");
    let chat = json!({"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "options": {"temperature": 0}});
    let told = client.post("/api/chat", chat.clone()).await;
    let lines: Vec<Value> = told
        .text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let text: String = lines
        .iter()
        .filter_map(|line| line["message"]["content"].as_str())
        .collect();
    assert_eq!(text, "Hello");
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["done"], &last["done_reason"]),
        (&json!(true), &json!("stop"))
    );
    assert!(last["eval_count"].as_u64().unwrap() > 0 && last["created_at"].as_str().unwrap().ends_with('Z'));

    let body = json!({"prompt": "Hi", "stream": false, "options": {"temperature": 0, "num_predict": 2}});
    let answer = client.post("/api/generate", body).await.json();
    assert_eq!(
        (&answer["response"], &answer["done_reason"]),
        (&json!("He"), &json!("length"))
    );
    let body = json!({"prompt": "Well?", "raw": true, "stream": false, "options": {"temperature": 0}});
    assert_eq!(
        client.post("/api/generate", body).await.json()["response"],
        "Hello"
    );
    let loaded = client
        .post("/api/generate", json!({"model": "fake"}))
        .await
        .json();
    assert_eq!(loaded["done_reason"], "load");
}

#[tokio::test]
async fn an_answer_that_has_begun_is_gone_on_with() {
    let client = client("Good morning");
    let said = async |last: Value| {
        let messages = json!([{"role": "user", "content": "Hi"}, last]);
        let options = json!({"temperature": 0});
        let body = json!({"messages": messages, "stream": false, "options": options});
        client.post("/api/chat", body).await.json()["message"]["content"].clone()
    };
    assert_eq!(
        said(json!({"role": "assistant", "content": "Good"})).await,
        " morning"
    );
    assert_eq!(
        said(json!({"role": "assistant", "content": ""})).await,
        "Good morning"
    );
}

#[tokio::test]
async fn a_call_that_was_cut_is_none() {
    let client = client(r#"{"name": "w", "parameters": {"n": "abcdef"}}"#);
    let schema = json!({"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]});
    let tools = json!([{"type": "function", "function": {"name": "w", "parameters": schema}}]);
    let ask = async |n: i32, stream: bool| {
        let body = json!({"messages": [{"role": "user", "content": "Hi"}], "tools": tools, "stream": stream,
            "options": {"temperature": 0, "num_predict": n}});
        client.post("/api/chat", body).await.text
    };
    for stream in [false, true] {
        assert!(ask(100, stream).await.contains(r#""arguments":{"n":"abcdef"}"#));
        let cut = ask(37, stream).await;
        assert!(
            !cut.contains("tool_calls") && cut.contains(r#""done_reason":"length""#),
            "{cut}"
        );
    }
}

#[tokio::test]
async fn ollamas_own_program_can_list_and_show() {
    let strict = ServerOptions {
        strict_model: true,
        ..ServerOptions::default()
    };
    let client = client_with("", strict);
    let listed = client.get("/api/tags").await.json()["models"][0].clone();
    let digest = listed["digest"].as_str().unwrap();
    assert!(
        digest.len() == 64 && digest.bytes().all(|c| c.is_ascii_hexdigit()),
        "{digest}"
    );
    let running = client.get("/api/ps").await.json()["models"][0].clone();
    assert_eq!(running["digest"], digest);
    for names in [
        json!({"model": "fake", "name": ""}),
        json!({"model": "", "name": "fake"}),
        json!({"name": "fake"}),
    ] {
        assert_eq!(
            client.post("/api/show", names.clone()).await.status,
            200,
            "{names}"
        );
    }
}

#[tokio::test]
async fn texts_become_vectors() {
    let client = client("");
    let embed = async |body: Value| client.post("/api/embed", body).await;
    let vectors = embed(json!({"input": "x"})).await.json();
    assert_eq!(vectors["embeddings"].as_array().unwrap().len(), 1);
    assert_eq!(vectors["embeddings"][0].as_array().unwrap().len(), 3);
    let shorter = embed(json!({"input": ["x", "y"], "dimensions": 1.0}))
        .await
        .json();
    assert_eq!(shorter["embeddings"], json!([[1.0], [1.0]]));
    assert_eq!(embed(json!({"input": "x", "dimensions": 4})).await.status, 400);
    // The context has 2000 tokens.
    let long = "x".repeat(3000);
    let cut = embed(json!({"input": long})).await.json();
    assert_eq!(cut["prompt_eval_count"], 1999, "{cut}");
    let refused = embed(json!({"input": long, "truncate": false})).await;
    assert!(
        refused.status == 400 && refused.text.contains("1999"),
        "{}",
        refused.text
    );
    let older = client
        .post("/api/embeddings", json!({"prompt": "x"}))
        .await
        .json();
    assert_eq!(older["embedding"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn fields_are_named_as_ollama_names_them() {
    let client = client("Hello");
    let ask = async |path: &str, change: Value| {
        let mut body = json!({"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]});
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let told = client.post(path, body).await;
        assert_eq!(told.status, 400, "{}", told.text);
        told.json()["error"].as_str().unwrap().to_string()
    };
    for path in ["/api/chat", "/api/generate"] {
        let error = ask(path, json!({"options": {"repeat_penalty": -1}})).await;
        assert!(error.contains("`options.repeat_penalty`"), "{error}");
        let error = ask(path, json!({"options": {"stop": [""]}})).await;
        assert!(error.contains("`options.stop`"), "{error}");
    }
    let tool = json!({"type": "function", "function": {"name": "w"}});
    let error = ask("/api/chat", json!({"tools": [tool], "format": "json"})).await;
    assert!(error.contains("`tools` and `format`"), "{error}");
}

#[tokio::test]
async fn models_are_told_of() {
    let client = client("");
    assert_eq!(client.get("/api/tags").await.json()["models"][0]["name"], "fake");
    assert!(client.post("/api/show", json!({"model": "fake"})).await.json()["details"].is_object());
    let about = client.post("/api/show", json!({"model": "fake"})).await.json();
    let info = about["model_info"].as_object().unwrap();
    assert!(
        info.keys().any(|key| key.ends_with(".embedding_length")),
        "{about}"
    );
    // Some clients speak to no older one; carat's own is another thing.
    let version = client.get("/api/version").await.json();
    assert_eq!(
        (&version["version"], &version["carat"]),
        (&json!("0.9.0"), &json!(env!("CARGO_PKG_VERSION")))
    );
    let told = client
        .post("/api/chat", json!({"messages": [{"role": "wizard"}]}))
        .await;
    assert!(told.status == 400 && told.json()["error"].is_string());
}
