//! Images and sounds on every API, on tiny models with weights: what is answered is what the reference answers.

use std::path::Path;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Request;
use carat_engine::{Drafting, Engine, Limits, SamplingParams};
use carat_media::{MediaOptions, TokenBudget};
use carat_model::{Checkpoint, EncoderPrecision, LoadOptions, Model};
use carat_prompt::{Senses, SensesOptions};
use carat_server::{MediaUrls, ModelSetup, Server, ServerOptions};
use carat_testkit::ChatModel;
use carat_text::{ChatTemplate, Tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Client, client, client_with};

struct Talk {
    _folder: TempDir,
    chat: ChatModel,
    client: Client,
}

fn talk(name: &str, options: ServerOptions) -> Talk {
    let folder = TempDir::new().unwrap();
    let chat = ChatModel::new(name, folder.path());
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_sentencepiece(&read("tokenizer.model")).unwrap());
    let template = String::from_utf8(read("chat_template.jinja")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let load = LoadOptions {
        n_threads: 2,
        ..LoadOptions::reference()
    };
    let model = Model::from_checkpoint(&checkpoint, load).unwrap();
    let senses = SensesOptions {
        precision: EncoderPrecision::F32,
        media: MediaOptions {
            image_budget: TokenBudget::VIDEO_FRAME,
            ..MediaOptions::default()
        },
        ..SensesOptions::default()
    };
    let senses = Senses::of_model(name, &model, &checkpoint, senses).unwrap();
    let limits = Limits {
        n_max: 1024,
        n_running: 4,
        n_waiting: 16,
        cache_bytes: 64 << 20,
    };
    let engine = Engine::start(model, Arc::clone(&tokenizer), limits).unwrap();
    let setup = ModelSetup {
        id: name.to_string(),
        tokenizer,
        template: ChatTemplate::from_jinja(&template, "<bos>", "<eos>").unwrap(),
        senses,
        sampling: SamplingParams::greedy(),
        suppressed: Vec::new(),
        // Guesses must not change what is answered about an image.
        drafting: Drafting::Adaptive,
        details: Default::default(),
    };
    let server = Server::new(setup, engine, options.clone());
    Talk {
        client: Client::of(&server, &options, Arc::default()),
        _folder: folder,
        chat,
    }
}

fn base64(path: &Path) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in std::fs::read(path).unwrap().chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i) & 63) as usize] as char;
            text.push(if i <= three.len() { digit } else { '=' });
        }
    }
    text
}

/// The parts of OpenAI's message: images, sounds, text.
fn parts(chat: &ChatModel) -> Vec<Value> {
    let image = |path| json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{}", base64(path))}});
    let sound = |path| json!({"type": "input_audio", "input_audio": {"data": base64(path), "format": "wav"}});
    let mut parts: Vec<Value> = chat.images.iter().map(|path| image(path)).collect();
    parts.extend(chat.audio.iter().map(|path| sound(path)));
    parts.push(json!({"type": "text", "text": chat.text}));
    parts
}

fn said(answer: &Value) -> String {
    let text = answer["choices"][0]["message"]["content"].as_str();
    text.map_or_else(|| answer.to_string(), ToString::to_string)
}

#[tokio::test]
async fn openais_clients_show_images_and_play_sounds() {
    for name in ["gemma3-vision", "gemma4-unified", "gemma4-edge"] {
        let talk = talk(name, ServerOptions::default());
        let body = json!({"messages": [{"role": "user", "content": parts(&talk.chat)}], "max_tokens": 32});
        let told = talk
            .client
            .post("/v1/chat/completions", body.clone())
            .await
            .json();
        assert_eq!(said(&told), talk.chat.answer, "{name}");
        assert_eq!(told["usage"]["prompt_tokens"], talk.chat.ids.len(), "{name}");
        let again = talk.client.post("/v1/chat/completions", body).await.json();
        assert_eq!(said(&again), talk.chat.answer, "{name}");
        assert!(
            again["usage"]["prompt_tokens_details"]["cached_tokens"]
                .as_u64()
                .unwrap()
                > 16,
            "{again}"
        );
    }
}

#[tokio::test]
async fn other_apis_show_images_too() {
    let talk = talk("gemma3-vision", ServerOptions::default());
    let images: Vec<String> = talk.chat.images.iter().map(|path| base64(path)).collect();
    let text = &talk.chat.text;

    let mut blocks: Vec<Value> = images
        .iter()
        .map(|data| json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}))
        .collect();
    blocks.push(json!({"type": "text", "text": text}));
    let messages = json!([{"role": "user", "content": blocks}]);
    let told = talk
        .client
        .post("/v1/messages", json!({"max_tokens": 32, "messages": messages}))
        .await
        .json();
    assert_eq!(told["content"][0]["text"], talk.chat.answer, "{told}");
    let told = talk
        .client
        .post("/v1/messages/count_tokens", json!({"messages": messages}))
        .await
        .json();
    assert_eq!(told["input_tokens"], talk.chat.ids.len());

    let options = json!({"num_predict": 32});
    let message = json!({"role": "user", "content": text, "images": images});
    let body = json!({"messages": [message], "stream": false, "options": options});
    let told = talk.client.post("/api/chat", body).await.json();
    assert_eq!(told["message"]["content"], talk.chat.answer, "{told}");
    let body = json!({"prompt": text, "images": images, "stream": false, "options": options});
    let told = talk.client.post("/api/generate", body).await.json();
    assert_eq!(told["response"], talk.chat.answer, "{told}");

    let mut content: Vec<Value> = images
        .iter()
        .map(|data| json!({"type": "input_image", "image_url": format!("data:;base64,{data}")}))
        .collect();
    content.push(json!({"type": "input_text", "text": text}));
    let body = json!({"input": [{"role": "user", "content": content}], "max_output_tokens": 32});
    let told = talk.client.post("/v1/responses", body).await.json();
    assert_eq!(
        told["output"][0]["content"][0]["text"], talk.chat.answer,
        "{told}"
    );
}

/// Serves a file to whoever asks, forwarding the path `/moved` to itself.
async fn file_server(bytes: Vec<u8>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            let head = if request[..n].starts_with(b"GET /moved") {
                "HTTP/1.1 302 Found\r\nlocation: /image\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    .to_string()
            } else if request[..n].starts_with(b"GET /loop") {
                "HTTP/1.1 302 Found\r\nlocation: /loop\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    .to_string()
            } else if request[..n].starts_with(b"GET /huge") {
                "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\nconnection: close\r\n\r\n".to_string()
            } else {
                format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    bytes.len()
                )
            };
            // Whoever asks for a part only may leave.
            let _sent = stream.write_all(head.as_bytes()).await;
            let _sent = stream.write_all(&bytes).await;
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn images_are_fetched_by_address_where_that_is_allowed() {
    let options = ServerOptions {
        media_urls: MediaUrls::Any,
        ..ServerOptions::default()
    };
    let talk = talk("gemma3-vision", options);
    let host = file_server(std::fs::read(&talk.chat.images[0]).unwrap()).await;
    let ask = async |client: &Client, url: String| {
        let mut parts = parts(&talk.chat);
        parts[0] = json!({"type": "image_url", "image_url": {"url": url}});
        let body = json!({"messages": [{"role": "user", "content": parts}], "max_tokens": 32});
        client.post("/v1/chat/completions", body).await
    };
    for path in ["image", "moved"] {
        let told = ask(&talk.client, format!("{host}/{path}")).await.json();
        assert_eq!(said(&told), talk.chat.answer, "{path}");
    }
    for (path, reason) in [("loop", "redirected"), ("huge", "more than 20 MB")] {
        let told = ask(&talk.client, format!("{host}/{path}")).await;
        assert_eq!(told.status, 400);
        assert!(told.text.contains(reason), "{}", told.text);
    }
    let careful = self::talk("gemma3-vision", ServerOptions::default()).client;
    let told = ask(&careful, format!("{host}/image")).await;
    assert_eq!(told.status, 400);
    assert_eq!(told.json()["error"]["param"], "messages[0].content[0].image_url");
    assert!(told.text.contains("not a public one"), "{}", told.text);
}

#[tokio::test]
async fn nothing_is_fetched_for_a_model_without_eyes() {
    let options = ServerOptions {
        media_urls: MediaUrls::Any,
        ..ServerOptions::default()
    };
    let blind = client_with("x", options);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/image", listener.local_addr().unwrap());
    let asked = tokio::spawn(async move { listener.accept().await });
    let part = json!({"type": "image_url", "image_url": {"url": url}});
    let source = json!({"type": "image", "source": {"type": "url", "url": url}});
    for (path, part) in [
        ("/v1/chat/completions", part),
        ("/v1/messages/count_tokens", source),
    ] {
        let told = blind
            .post(path, json!({"messages": [{"role": "user", "content": [part]}]}))
            .await;
        assert_eq!(told.status, 400);
        assert!(told.text.contains("takes text only"), "{}", told.text);
    }
    assert!(!asked.is_finished());
}

#[tokio::test]
async fn files_of_one_request_have_a_limit_together() {
    let options = ServerOptions {
        media_urls: MediaUrls::Any,
        ..ServerOptions::default()
    };
    let talk = talk("gemma3-vision", options);
    let host = file_server(vec![0; 17 << 20]).await;
    let part = json!({"type": "image_url", "image_url": {"url": format!("{host}/image")}});
    let body = json!({"messages": [{"role": "user", "content": vec![part; 4]}]});
    let told = talk.client.post("/v1/chat/completions", body).await;
    let error = &told.json()["error"];
    assert_eq!(
        (told.status.as_u16(), &error["param"]),
        (400, &json!("messages[0].content[3].image_url"))
    );
    assert!(told.text.contains("at most 64 MB"), "{}", told.text);
}

#[tokio::test]
async fn what_cannot_be_seen_is_refused_by_name() {
    let ask = async |client: &Client, part: Value| {
        let body = json!({"messages": [{"role": "user", "content": [part]}], "max_tokens": 2});
        let told = client.post("/v1/chat/completions", body).await;
        let error = told.json()["error"].clone();
        (
            told.status.as_u16(),
            error["param"].clone(),
            error["message"].to_string(),
        )
    };
    let url = |data: &str| json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}});
    let blind = client("x");
    let (status, param, message) = ask(&blind, url("aGk=")).await;
    assert_eq!((status, param), (400, json!("messages[0].content[0].image_url")));
    assert!(message.contains("takes text only"), "{message}");
    let sees = talk("gemma3-vision", ServerOptions::default()).client;
    let (status, _, message) = ask(&sees, url("aGk=")).await;
    assert_eq!(status, 400, "{message}");
    let (status, param, _) = ask(&sees, url("*")).await;
    assert_eq!((status, param), (400, json!("messages[0].content[0].image_url")));
    let sound = json!({"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}});
    let (status, _, message) = ask(&sees, sound).await;
    assert_eq!(status, 400);
    assert!(message.contains("takes text and images"), "{message}");
    let (status, param, _) = ask(&sees, json!({"type": "image_url"})).await;
    assert_eq!((status, param), (400, json!("messages[0].content[0].image_url")));
}

/// A part with a file of the fixtures as a video.
fn video(name: &str) -> Value {
    let path = carat_testkit::fixture(format!("media/{name}"));
    json!({"type": "video_url", "video_url": {"url": format!("data:video/any;base64,{}", base64(&path))}})
}

#[tokio::test]
async fn videos_are_seen_frame_by_frame() {
    for name in ["gemma4-unified", "gemma4-edge"] {
        let talk = talk(name, ServerOptions::default());
        let ask = async |part: Value| {
            let content = json!([part, {"type": "text", "text": talk.chat.text}]);
            let body = json!({"messages": [{"role": "user", "content": content}], "max_tokens": 4});
            talk.client.post("/v1/chat/completions", body).await
        };
        let n_tokens = |told: &Value| told["usage"]["prompt_tokens"].as_u64().unwrap();
        let still = ask(video("palette.gif")).await.json();
        let told = ask(video("motion.gif")).await.json();
        // Twelve frames of 9 x 7 cells, each between two marks and behind its time.
        let of_frames = n_tokens(&told) - n_tokens(&still);
        assert!((11 * 63..12 * 80).contains(&of_frames), "{name}: {told}");
        let again = ask(video("motion.gif")).await.json();
        assert_eq!(said(&again), said(&told), "{name}");
        let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
        assert!(cached.unwrap() > 700, "{name}: {again}");

        // These servers have no ffmpeg.
        let told = ask(video("motion.mp4")).await;
        assert_eq!(told.status, 400);
        assert!(told.text.contains("needs ffmpeg"), "{}", told.text);
        let part = json!({"type": "video_url", "video_url": {"url": "file:///motion.mp4"}});
        let error = ask(part).await.json()["error"].clone();
        assert_eq!(error["param"], "messages[0].content[0].video_url");
    }
}

#[tokio::test]
async fn apis_without_videos_say_where_they_are_taken() {
    let sees = talk("gemma4-unified", ServerOptions::default()).client;
    let message = |part: Value| json!([{"role": "user", "content": [part]}]);
    let block =
        message(json!({"type": "video", "source": {"type": "url", "url": "https://a.example/b.mp4"}}));
    let item = message(json!({"type": "input_video", "video_url": "https://a.example/b.mp4"}));
    for (path, body) in [
        ("/v1/messages", json!({"messages": block, "max_tokens": 1})),
        ("/v1/responses", json!({"input": item})),
    ] {
        let told = sees.post(path, body).await;
        assert_eq!(told.status, 400, "{path}");
        assert!(
            told.text.contains("/v1/chat/completions takes videos")
                || told.text.contains("videos are taken by /v1/chat/completions"),
            "{path}: {}",
            told.text
        );
    }
    let mp4 = base64(&carat_testkit::fixture("media/motion.mp4"));
    let body = json!({"messages": [{"role": "user", "content": "x", "images": [mp4]}], "stream": false});
    let told = sees.post("/api/chat", body).await;
    assert_eq!(told.status, 400, "{}", told.text);
}

fn form(fields: &[(&str, &str)], file: Option<&[u8]>) -> Request<Body> {
    let mut body = Vec::new();
    for (name, value) in fields {
        body.extend_from_slice(
            format!("--edge\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
                .as_bytes(),
        );
    }
    if let Some(bytes) = file {
        body.extend_from_slice(
            b"--edge\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n",
        );
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--edge--\r\n");
    Request::builder()
        .method("POST")
        .uri("/v1/audio/transcriptions")
        .header("content-type", "multipart/form-data; boundary=edge")
        .body(Body::from(body))
        .unwrap()
}

#[tokio::test]
async fn speech_is_written_down() {
    let talk = talk("gemma4-unified", ServerOptions::default());
    let bytes = std::fs::read(talk.chat.audio.as_ref().unwrap()).unwrap();
    let send = async |request| {
        let response = talk.client.open(request).await;
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    };
    let (status, text) = send(form(&[("model", "x"), ("language", "en")], Some(&bytes))).await;
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status, 200, "{text}");
    assert!(
        told["text"].is_string() && told["usage"]["input_tokens"].as_u64().unwrap() > 25,
        "{told}"
    );
    let (status, plain) = send(form(
        &[("response_format", "text"), ("language", "en")],
        Some(&bytes),
    ))
    .await;
    assert_eq!(status, 200);
    assert_eq!(plain.trim_end_matches('\n'), told["text"].as_str().unwrap());
    for (fields, file, param) in [
        (&[("model", "x")][..], None, "file"),
        (&[("response_format", "srt")], Some(&bytes[..]), "response_format"),
        (&[("stream", "true")], Some(&bytes), "stream"),
        (&[("temperature", "hot")], Some(&bytes), "temperature"),
        (&[], Some(b"no sound"), "file"),
    ] {
        let (status, text) = send(form(fields, file)).await;
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &told["error"]["param"]), (400, &json!(param)), "{text}");
    }
}
