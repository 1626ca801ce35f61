//! Several models: loaded when asked for, unloaded for others or when nobody uses them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use carat_server::{ListedModel, LoadError, LoadedModel, ModelDetails, ModelStore, Server, ServerOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::{Client, Told, fake_model, serve};

const ROOM: u64 = 100;
/// Names and sizes. Each model says its own name.
const MODELS: [(&str, u64); 5] = [
    ("small", 40),
    ("middle", 60),
    ("other", 60),
    ("huge", 101),
    ("broken", 1),
];

/// A store with room for some of its models at a time.
#[derive(Default)]
struct Store {
    n_loads: Arc<AtomicUsize>,
    /// When set, each load waits for a word.
    gate: Option<Mutex<Receiver<()>>>,
}

impl ModelStore for Store {
    fn list(&self) -> Result<Vec<ListedModel>, LoadError> {
        let listed = |(id, size_bytes): (&str, u64)| ListedModel {
            id: id.to_string(),
            size_bytes,
            modified: None,
        };
        Ok(MODELS.into_iter().map(listed).collect())
    }

    fn details(&self, id: &str) -> Result<ModelDetails, LoadError> {
        if id == "broken" {
            return Err(LoadError::Failed("its file is damaged".to_string()));
        }
        Ok(ModelDetails::default())
    }

    fn check(&self, id: &str) -> Result<(), LoadError> {
        let (_, size) = MODELS.into_iter().find(|(other, _)| *other == id).unwrap();
        if size > ROOM {
            return Err(LoadError::TooLarge(format!("it needs {size}")));
        }
        self.details(id).map(|_| ())
    }

    fn load(&self, id: &str, claimed_bytes: u64) -> Result<LoadedModel, LoadError> {
        if let Some(gate) = &self.gate {
            gate.lock().unwrap().recv().unwrap();
        }
        let (_, size) = MODELS.into_iter().find(|(other, _)| *other == id).unwrap();
        let figures = format!("it needs {size}, but {ROOM} can be used");
        if size > ROOM {
            return Err(LoadError::TooLarge(figures));
        }
        if size + claimed_bytes > ROOM {
            return Err(LoadError::NoRoom(figures));
        }
        self.details(id)?;
        self.n_loads.fetch_add(1, Ordering::Relaxed);
        let (setup, engine) = fake_model(id, id, &Arc::default());
        Ok(LoadedModel {
            setup,
            engine,
            claim_bytes: size,
        })
    }
}

fn options() -> ServerOptions {
    ServerOptions {
        max_loaded: 3,
        ..ServerOptions::default()
    }
}

fn client_of(store: Store, options: &ServerOptions) -> Client {
    let server = Server::with_store(Arc::new(store), options.clone());
    Client::of(&server, options, Arc::default())
}

/// A client whose server's loads wait for words through the sender.
fn gated() -> (Client, Sender<()>, Arc<AtomicUsize>) {
    let (sender, receiver) = channel();
    let store = Store {
        gate: Some(Mutex::new(receiver)),
        ..Store::default()
    };
    let n_loads = Arc::clone(&store.n_loads);
    (client_of(store, &options()), sender, n_loads)
}

/// Whoever still waits for a model when a server stops is told so, each in the shape of its API.
#[tokio::test]
async fn requests_that_wait_for_a_model_are_told_when_the_server_has_stopped() {
    let (go, receiver) = channel();
    let store = Store {
        gate: Some(Mutex::new(receiver)),
        ..Store::default()
    };
    let options = ServerOptions {
        drain: Duration::ZERO,
        ..options()
    };
    let (address, stop) = serve(Server::with_store(Arc::new(store), options)).await;
    let mut waiting = Vec::new();
    for (path, shape) in [
        ("/v1/chat/completions", r#""type":"server_error""#),
        ("/v1/messages", r#""type":"overloaded_error""#),
        ("/api/chat", r#"{"error":"the answer"#),
    ] {
        let body = json!({
            "model": "small", "messages": [{"role": "user", "content": "x"}], "stream": true, "max_tokens": 5,
        });
        let body = body.to_string();
        let n = body.len();
        let request = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {n}\r\n\r\n{body}");
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        waiting.push((stream, shape));
    }
    // They are on their way when another is answered.
    let mut other = TcpStream::connect(address).await.unwrap();
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    other.write_all(request).await.unwrap();
    other.read_to_string(&mut String::new()).await.unwrap();
    drop(stop);
    for (mut stream, shape) in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(
            answer.contains("the server is stopping") && answer.contains(shape),
            "{answer}"
        );
    }
    go.send(()).unwrap();
}

async fn ask(client: &Client, model: &str) -> Told {
    let body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0});
    client.post("/v1/chat/completions", body).await
}

async fn said(client: &Client, model: &str) -> String {
    let told = ask(client, model).await.json();
    told["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_string()
}

async fn running(client: &Client) -> Vec<String> {
    let told = client.get("/api/ps").await.json();
    let models = told["models"].as_array().unwrap().iter();
    models.map(|m| m["name"].as_str().unwrap().to_string()).collect()
}

#[tokio::test]
async fn models_come_when_asked_for_and_the_one_used_longest_ago_goes() {
    let client = client_of(Store::default(), &options());
    assert!(running(&client).await.is_empty());
    assert_eq!(said(&client, "small").await, "small");
    assert_eq!(said(&client, "middle:latest").await, "middle");
    assert_eq!(running(&client).await, ["middle", "small"]);
    assert_eq!(said(&client, "small").await, "small");
    // `middle` was used longest ago, and without it there is room.
    assert_eq!(said(&client, "other").await, "other");
    assert_eq!(running(&client).await, ["other", "small"]);
    let listed = client.get("/v1/models").await.json();
    assert_eq!(listed["data"].as_array().unwrap().len(), MODELS.len());
    let tags = client.get("/api/tags").await.json();
    let names: Vec<&Value> = tags["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["name"])
        .collect();
    assert_eq!(
        names,
        ["small", "middle", "other", "huge"],
        "what cannot be read is left out"
    );
    let lines = [
        "carat_model_loaded{model=\"small\"} 1\n",
        "carat_model_loaded{model=\"middle\"} 0\n",
        "carat_answers_finished_total{model=\"middle\"} 1\n",
        "carat_answers_finished_total{model=\"small\"} 2\n",
    ];
    let mut metrics = String::new();
    for _ in 0..100 {
        // An answer is counted after its last word was sent.
        metrics = client.get("/metrics").await.text;
        if lines.iter().all(|line| metrics.contains(line)) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{lines:?} in {metrics}");
}

#[tokio::test]
async fn what_cannot_be_had_is_said_with_the_reason() {
    let client = client_of(Store::default(), &options());
    assert_eq!(said(&client, "small").await, "small");
    let told = ask(&client, "huge").await;
    let error = &told.json()["error"];
    assert_eq!(
        (told.status.as_u16(), &error["code"]),
        (400, &json!("model_does_not_fit"))
    );
    assert!(error["message"].as_str().unwrap().contains("needs 101, but 100"));
    assert_eq!(running(&client).await, ["small"], "nobody is sent away in vain");
    let told = ask(&client, "broken").await;
    assert_eq!(told.status, 500);
    assert!(told.text.contains("its file is damaged"), "{}", told.text);
    for name in ["nobody", ""] {
        let told = ask(&client, name).await;
        assert_eq!(
            (told.status.as_u16(), &told.json()["error"]["param"]),
            (404, &json!("model"))
        );
        assert!(told.text.contains("`small`, `middle`"), "{}", told.text);
    }
    assert_eq!(said(&client, "small").await, "small", "the server goes on");
}

#[tokio::test]
async fn nobody_goes_for_a_model_that_cannot_come() {
    let options = ServerOptions {
        max_loaded: 1,
        ..options()
    };
    let client = client_of(Store::default(), &options);
    assert_eq!(said(&client, "small").await, "small");
    assert_eq!(ask(&client, "huge").await.status, 400);
    assert_eq!(ask(&client, "broken").await.status, 500);
    assert_eq!(running(&client).await, ["small"]);
    assert_eq!(said(&client, "middle").await, "middle");
    assert_eq!(running(&client).await, ["middle"]);
}

#[tokio::test]
async fn named_models_answer_by_their_names_and_aliases_and_the_first_for_all_others() {
    let options = ServerOptions {
        models: Some(vec!["middle".to_string(), "small".to_string()]),
        aliases: vec![("tiny".to_string(), "small".to_string())],
        ..options()
    };
    let client = client_of(Store::default(), &options);
    assert_eq!(said(&client, "tiny").await, "small");
    assert_eq!(said(&client, "gpt-x").await, "middle");
    assert_eq!(said(&client, "").await, "middle");
    assert_eq!(
        said(&client, "other").await,
        "middle",
        "it is not among those served"
    );
    assert_eq!(client.get("/v1/models/other").await.status, 404);
    let listed = client.get("/v1/models").await.json();
    let ids: Vec<&Value> = listed["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(ids, ["small", "middle", "tiny"]);
    let listed = client.get("/api/tags").await.json()["models"].clone();
    let names: Vec<&Value> = listed.as_array().unwrap().iter().map(|m| &m["model"]).collect();
    assert_eq!(names, ["small", "tiny", "middle"]);
    assert_eq!(listed[0]["digest"], listed[1]["digest"]);
    let strict = ServerOptions {
        strict_model: true,
        ..options
    };
    let client = client_of(Store::default(), &strict);
    assert_eq!(ask(&client, "gpt-x").await.status, 404);
    assert_eq!(said(&client, "tiny").await, "small");
}

#[tokio::test]
async fn ollamas_requests_wait_no_longer_than_they_may() {
    let (_sender, receiver) = channel();
    let store = Store {
        gate: Some(Mutex::new(receiver)),
        ..Store::default()
    };
    let options = ServerOptions {
        request_timeout: Some(Duration::from_millis(20)),
        ..options()
    };
    let client = client_of(store, &options);
    for (path, body) in [
        ("/api/chat", json!({"model": "small"})),
        ("/api/generate", json!({"model": "small"})),
        ("/api/generate", json!({"model": "small", "prompt": "x"})),
        (
            "/api/generate",
            json!({"model": "small", "prompt": "x", "raw": true}),
        ),
        ("/api/embed", json!({"model": "small", "input": "x"})),
    ] {
        assert_eq!(client.post(path, body.clone()).await.status, 408, "{path} {body}");
    }
}

#[tokio::test]
async fn requests_during_a_load_wait_for_it_and_none_is_lost() {
    let (client, gate, n_loads) = gated();
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { said(&client, "small").await })
        })
        .collect();
    // One that leaves before the load ends stops nothing.
    asked[0].abort();
    gate.send(()).unwrap();
    for one in asked.into_iter().skip(1) {
        assert_eq!(one.await.unwrap(), "small");
    }
    assert_eq!(n_loads.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn all_who_wait_are_told_of_a_load_that_failed() {
    let (client, gate, _) = gated();
    let asked: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { ask(&client, "broken").await.status })
        })
        .collect();
    while client.get("/api/ps").await.status != 200 {}
    // More words than loads: who comes late tries again.
    (0..4).for_each(|_| gate.send(()).unwrap());
    for one in asked {
        assert_eq!(one.await.unwrap(), 500);
    }
}

#[tokio::test]
async fn a_model_in_use_is_waited_for() {
    let client = client_of(Store::default(), &options());
    let body = json!({"model": "middle", "prompt": "x?", "stream": true, "temperature": 0});
    let request = Request::builder().method("POST").uri("/v1/completions");
    let stream = client
        .open(request.body(Body::from(body.to_string())).unwrap())
        .await;
    let (other, again) = (client.clone(), client.clone());
    let mut other = tokio::spawn(async move { said(&other, "other").await });
    let waited = tokio::time::timeout(Duration::from_millis(100), &mut other).await;
    assert!(waited.is_err(), "there is no room as long as the stream is open");
    // One for the model that is to leave must wait for its turn, or the other would never get its own.
    let again = tokio::spawn(async move { said(&again, "middle").await });
    drop(stream);
    assert_eq!(other.await.unwrap(), "other");
    assert_eq!(again.await.unwrap(), "middle");
}

#[tokio::test]
async fn what_nobody_uses_is_unloaded_in_time() {
    let options = ServerOptions {
        keep_alive: Some(Duration::from_millis(20)),
        ..options()
    };
    let client = client_of(Store::default(), &options);
    assert_eq!(said(&client, "small").await, "small");
    while !running(&client).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A client's own wish goes before the server's.
    let chat = json!({"model": "small", "messages": [], "keep_alive": -1});
    assert_eq!(client.post("/api/chat", chat).await.json()["done_reason"], "load");
    tokio::time::sleep(Duration::from_millis(60)).await;
    let told = client.get("/api/ps").await.json();
    assert_eq!(told["models"][0]["expires_at"], "9999-12-31T23:59:59Z");
    let chat = json!({"model": "small", "keep_alive": "0s"});
    assert_eq!(
        client.post("/api/generate", chat).await.json()["done_reason"],
        "unload"
    );
    while !running(&client).await.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(said(&client, "small").await, "small");
}
