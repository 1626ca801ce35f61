//! A provider that answers at once, and misbehaves on command.
//!
//! The model's name is the command: `ok`, or parts joined by `;`:
//!
//! | part | what happens |
//! |---|---|
//! | `status=N` | an error of this status; with `wait-ms=N` it asks to be left alone for so long |
//! | `reset` | the connection is closed without an answer |
//! | `slow=MS` | nothing for so long, then the answer |
//! | `html`, `bad-json` | 200 with a page, or with half a JSON text (in a stream: one event of it) |
//! | `events=N`, `gap=MS` | so many words in the stream (4), and the time between them (0) |
//! | `role-stall`, `stall=K`, `cut=K`, `end=K`, `fail=K` | after the role or K words: silence, a closed connection, an end without an end, an error event |
//! | `flood` | words without end, as fast as they are taken |
//! | `unfinished`, `blocked` | Gemini alone: an answer that it could not finish, a prompt that it refuses |
//! | `open` | the stream says its last word and is not ended |
//! | `half-utf8` | a character arrives in two pieces |
//! | `too-long`, `refused` | 400 because of the prompt's length, or its content |
//! | `no-thoughts` | 400 where Ollama's API is asked to think |
//! | `no-usage` | a whole answer that does not say what it took |
//! | `left=N`, `of=N` | says that so many requests of so many are left for ten minutes |
//! | `say=words_like_these` | these words, in a stream three letters an event |
//! | `times=N` | the first N requests are treated so, later ones well |
//!
//! | `tool` | a call of `weather` instead of words |
//! | `endless`, `slow-made=MS` | a prediction that does not end, or takes so long to be made |
//!
//! By its paths it speaks OpenAI's chat completions, Anthropic's Messages, Gemini's generateContent (both also as Vertex
//! has them), Ollama's `/api/chat`, Bedrock's Converse, Cohere's `/v2` and Replicate's predictions; the native ones know the words of [`NATIVE`], `tool`,
//! `status`, `cut` and `bad-crc`. At `/token` it gives out access tokens.
//!
//! It is written over plain sockets, so that it costs little and can break every rule of HTTP.

#[path = "clouds.rs"]
mod clouds;
#[path = "others.rs"]
mod others;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the mock has seen.
#[derive(Default)]
pub(crate) struct Seen {
    /// Requests in all.
    pub(crate) requests: AtomicU64,
    /// Connections that clients closed in the middle of an answer.
    pub(crate) left: AtomicU64,
    /// Requests by model.
    pub(crate) by_model: Mutex<HashMap<String, u64>>,
    /// The head and body of the latest request, where `remembers` is set.
    pub(crate) last: Mutex<(String, String)>,
    pub(crate) remembers: bool,
    /// Access tokens given out, and what the latest was given for.
    pub(crate) tokens: AtomicU64,
    pub(crate) statement: Mutex<String>,
}

impl Seen {
    pub(crate) fn of(&self, model: &str) -> u64 {
        self.by_model.lock().unwrap().get(model).copied().unwrap_or(0)
    }
}

/// Starts a mock on a free port, or the one given.
pub(crate) async fn start(port: u16, remembers: bool) -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen {
        remembers,
        ..Seen::default()
    });
    let shared = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _slower = stream.set_nodelay(true);
            tokio::spawn(connection(stream, Arc::clone(&shared)));
        }
    });
    (address, seen)
}

async fn connection(mut stream: TcpStream, seen: Arc<Seen>) {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let Some((head, length)) = request(&mut stream, &mut buffer).await else {
            return;
        };
        let body = &buffer[head..head + length];
        let command = Command::of(&buffer[..head], body);
        if command.dialect == Dialect::Token {
            let n = seen.tokens.fetch_add(1, Ordering::Relaxed);
            *seen.statement.lock().unwrap() = String::from_utf8_lossy(body).into_owned();
            buffer.drain(..head + length);
            let given = clouds::google_token(n);
            if whole(&mut stream, "200 OK", "", "application/json", &given)
                .await
                .is_none()
            {
                return;
            }
            continue;
        }
        seen.requests.fetch_add(1, Ordering::Relaxed);
        let mut n = 0;
        if command.name != "ok" || seen.remembers {
            let mut by_model = seen.by_model.lock().unwrap();
            let count = by_model.entry(command.name.clone()).or_default();
            *count += 1;
            n = *count;
        }
        if seen.remembers {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            *seen.last.lock().unwrap() = (text(&buffer[..head]), text(body));
        }
        let is_good = command.number("times").is_some_and(|times| n > times);
        let command = if is_good { command.good() } else { command };
        buffer.drain(..head + length);
        let is_stream = command.is_stream;
        if answer(&mut stream, &command, &seen).await.is_none() {
            if is_stream {
                seen.left.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
    }
}

/// Reads a request: the lengths of its head and its body.
pub(crate) async fn request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(usize, usize)> {
    loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = std::str::from_utf8(&buffer[..end]).ok()?;
            let length = head
                .lines()
                .find_map(|line| {
                    line.split_once(':')
                        .filter(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                })
                .map_or(Some(0), |(_, length)| length.trim().parse().ok())?;
            while buffer.len() < end + 4 + length {
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            return Some((end + 4, length));
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// What is spoken at a path.
#[derive(Clone, Copy, Default, PartialEq)]
enum Dialect {
    #[default]
    OpenAi,
    Anthropic,
    Gemini,
    Ollama,
    OllamaPrompt,
    Bedrock,
    Cohere,
    Replicate,
    /// A look at a prediction, or its stream.
    Look,
    Token,
}

/// What a model's name orders.
#[derive(Default)]
struct Command {
    name: String,
    dialect: Dialect,
    is_stream: bool,
    wants_usage: bool,
    wants_thoughts: bool,
    is_rerank: bool,
    host: String,
    is_picture: bool,
    /// An answer that is always the same.
    small: Option<&'static str>,
}

fn header(head: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(other, _)| other.eq_ignore_ascii_case(name))?;
    Some(value.trim().to_string())
}

impl Command {
    fn of(head: &[u8], body: &[u8]) -> Self {
        let path = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let path = String::from_utf8_lossy(path);
        let small = others::small(&path);
        let named = |name: &str, dialect, is_stream| Self {
            small,
            name: name.replace("%3D", "=").replace("%3B", ";"),
            dialect,
            is_stream,
            wants_usage: true,
            wants_thoughts: false,
            is_rerank: false,
            is_picture: false,
            host: header(head, "host").unwrap_or_default(),
        };
        if let Some(name) = path
            .split("/models/mock/")
            .nth(1)
            .and_then(|rest| rest.strip_suffix("/predictions"))
        {
            let is_stream = memchr::memmem::find(body, b"\"stream\":true").is_some();
            return named(name, Dialect::Replicate, is_stream);
        }
        let looked = ["/v1/look/", "/v1/stream/", "/v1/cancel/"];
        if let Some(name) = looked.iter().find_map(|begin| path.strip_prefix(begin)) {
            let is_cancelled = path.starts_with("/v1/cancel/");
            let name = match name {
                _ if is_cancelled => "cancel",
                "p1" => "ok",
                name => name,
            };
            return named(name, Dialect::Look, path.starts_with("/v1/stream/"));
        }
        if let Some(rest) = path.split("/models/").nth(1) {
            let (name, verb) = rest.split_once(':').unwrap();
            let dialect = if verb.ends_with("awPredict") {
                Dialect::Anthropic
            } else {
                Dialect::Gemini
            };
            return named(name, dialect, verb.starts_with("stream"));
        }
        if let Some(rest) = path.split("/model/").nth(1) {
            let (name, verb) = rest.split_once('/').unwrap();
            return named(name, Dialect::Bedrock, verb == "converse-stream");
        }
        let dialect = match path.as_ref() {
            "/api/chat" => Dialect::Ollama,
            "/api/generate" => Dialect::OllamaPrompt,
            "/token" => Dialect::Token,
            "/v2/chat" | "/v2/rerank" => Dialect::Cohere,
            path if path.ends_with("/messages") => Dialect::Anthropic,
            _ => Dialect::OpenAi,
        };
        let has = |text: &str| memchr::memmem::find(body, text.as_bytes()).is_some();
        let name = memchr::memmem::find(body, b"\"model\":\"").map(|at| {
            let rest = &body[at + 9..];
            let end = memchr::memchr(b'"', rest).unwrap_or(rest.len());
            String::from_utf8_lossy(&rest[..end]).into_owned()
        });
        Self {
            name: name.unwrap_or_default(),
            dialect,
            is_stream: has("\"stream\":true"),
            is_rerank: path == "/v2/rerank",
            is_picture: path == "/picture.png",
            small,
            host: String::new(),
            wants_usage: has("\"include_usage\":true"),
            wants_thoughts: has("\"think\":true"),
        }
    }

    /// The same without its misbehaviour.
    fn good(self) -> Self {
        Self {
            name: "ok".into(),
            ..self
        }
    }

    fn has(&self, part: &str) -> bool {
        self.name.split(';').any(|other| other == part)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.name
            .split(';')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name).and_then(|value| value.parse().ok())
    }
}

/// `None` when the connection is to be closed.
async fn answer(stream: &mut TcpStream, command: &Command, seen: &Seen) -> Option<()> {
    let _counted_by_caller = seen;
    if command.has("reset") {
        return None;
    }
    if let Some(ms) = command.number("slow") {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    if let Some(status) = command.number("status") {
        let body =
            format!("{{\"error\":{{\"message\":\"mock says {status}\",\"type\":\"mock\",\"code\":null}}}}");
        let wait = command
            .number("wait-ms")
            .map_or(String::new(), |ms| format!("retry-after-ms: {ms}\r\n"));
        return whole(
            stream,
            &format!("{status} Mock"),
            &wait,
            "application/json",
            &body,
        )
        .await;
    }
    let codes = [
        ("too-long", "context_length_exceeded"),
        ("refused", "content_filter"),
    ];
    if let Some((_, code)) = codes.iter().find(|(part, _)| command.has(part)) {
        let body = format!("{{\"error\":{{\"message\":\"mock says no\",\"code\":\"{code}\"}}}}");
        return whole(stream, "400 Mock", "", "application/json", &body).await;
    }
    if command.has("no-thoughts") && command.wants_thoughts {
        let body = "{\"error\":\"\\\"mock\\\" does not support thinking\"}";
        return whole(stream, "400 Mock", "", "application/json", body).await;
    }
    if command.has("no-usage") && !command.is_stream {
        let end = WHOLE.find(",\"usage\"").unwrap();
        let body = format!("{}}}", &WHOLE[..end]);
        return whole(stream, "200 OK", "", "application/json", &body).await;
    }
    if let (Some(left), Some(all)) = (command.number("left"), command.number("of")) {
        let told = format!(
            "x-ratelimit-remaining-requests: {left}\r\nx-ratelimit-limit-requests: {all}\r\nx-ratelimit-reset-requests: 10m0s\r\n"
        );
        return whole(stream, "200 OK", &told, "application/json", WHOLE).await;
    }
    if let Some(words) = command.text("say") {
        return say(stream, command, &words.replace('_', " ")).await;
    }
    if command.is_picture {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 4\r\n\r\n";
        return stream
            .write_all(&[head.as_bytes(), b"\x89PNG"].concat())
            .await
            .ok();
    }
    if let Some(body) = command.small {
        return whole(stream, "200 OK", "", "application/json", body).await;
    }
    if command.has("html") {
        return whole(stream, "200 OK", "", "text/html", "<html>welcome</html>").await;
    }
    if command.dialect != Dialect::OpenAi {
        return native(stream, command).await;
    }
    if command.is_stream {
        return events(stream, command).await;
    }
    if command.has("tool") {
        let call = "{\"id\":\"call_1\",\"type\":\"function\",\"function\":{\"name\":\"weather\",\"arguments\":\"{\\\"city\\\":\\\"K\u{f6}ln\\\"}\"}}";
        let body = format!(
            "{{\"id\":\"chatcmpl-1\",\"model\":\"mock-1\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{call}]}},\"finish_reason\":\"tool_calls\"}}],\"usage\":{{\"prompt_tokens\":11,\"completion_tokens\":4,\"prompt_tokens_details\":{{\"cached_tokens\":2}}}}}}"
        );
        return whole(stream, "200 OK", "", "application/json", &body).await;
    }
    if command.has("bad-json") {
        return whole(stream, "200 OK", "", "application/json", "{\"choices\":[").await;
    }
    whole(
        stream,
        "200 OK",
        "x-request-id: up-1\r\n",
        "application/json",
        WHOLE,
    )
    .await
}

/// Says certain words.
async fn say(stream: &mut TcpStream, command: &Command, words: &str) -> Option<()> {
    if !command.is_stream {
        let body = WHOLE.replace("one two three four", words);
        return whole(stream, "200 OK", "", "application/json", &body).await;
    }
    let mut out =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for piece in words.as_bytes().chunks(3) {
        let piece = String::from_utf8_lossy(piece);
        chunk(
            &mut out,
            event(&format!("{{\"content\":\"{piece}\"}}"), "null").as_bytes(),
        );
    }
    chunk(&mut out, event("{}", "\"stop\"").as_bytes());
    chunk(&mut out, usage(4).as_bytes());
    chunk(&mut out, b"data: [DONE]\n\n");
    out.extend_from_slice(b"0\r\n\r\n");
    stream.write_all(&out).await.ok()
}

/// A whole answer.
pub(crate) const WHOLE: &str = "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"mock-1\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"one two three four\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":4,\"total_tokens\":15,\"prompt_tokens_details\":{\"cached_tokens\":2}},\"service_tier\":\"default\",\"unknown\":{\"kept\":true}}";

async fn whole(stream: &mut TcpStream, status: &str, headers: &str, kind: &str, body: &str) -> Option<()> {
    let text = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await.ok()
}

fn chunk(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(format!("{:x}\r\n", text.len()).as_bytes());
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// An event that says `delta`.
pub(crate) fn event(delta: &str, finish: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"mock-1\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]}}\n\n"
    )
}

async fn events(stream: &mut TcpStream, command: &Command) -> Option<()> {
    let mut out =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let gap = Duration::from_millis(command.number("gap").unwrap_or(0));
    let n_words = command.number("events").unwrap_or(4);
    chunk(
        &mut out,
        event("{\"role\":\"assistant\",\"content\":\"\"}", "null").as_bytes(),
    );
    if command.has("role-stall") {
        return stall(stream, &out).await;
    }
    if command.has("tool") {
        for part in [
            "{\"tool_calls\":[{\"index\":0,\"id\":\"call_1\",\"type\":\"function\",\"function\":{\"name\":\"weather\",\"arguments\":\"\"}}]}",
            "{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"city\\\":\"}}]}",
            "{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"\\\"K\u{f6}ln\\\"}\"}}]}",
        ] {
            chunk(&mut out, event(part, "null").as_bytes());
        }
        chunk(&mut out, event("{}", "\"tool_calls\"").as_bytes());
        chunk(&mut out, usage(4).as_bytes());
        chunk(&mut out, b"data: [DONE]\n\n");
        out.extend_from_slice(b"0\r\n\r\n");
        return stream.write_all(&out).await.ok();
    }
    if command.has("flood") {
        stream.write_all(&out).await.ok()?;
        out.clear();
        let words = "word ".repeat(10_000);
        chunk(
            &mut out,
            event(&format!("{{\"content\":\"{words}\"}}"), "null").as_bytes(),
        );
        loop {
            stream.write_all(&out).await.ok()?;
        }
    }
    for i in 0..n_words {
        if command.number("stall") == Some(i) {
            return stall(stream, &out).await;
        }
        if command.number("cut") == Some(i) || command.number("end") == Some(i) {
            if command.number("end").is_some() {
                out.extend_from_slice(b"0\r\n\r\n");
            }
            stream.write_all(&out).await.ok()?;
            return None;
        }
        if command.number("fail") == Some(i) {
            chunk(
                &mut out,
                b"data: {\"error\":{\"message\":\"mock broke\",\"code\":529}}\n\n",
            );
            out.extend_from_slice(b"0\r\n\r\n");
            return stream.write_all(&out).await.ok();
        }
        if command.has("bad-json") && i == 1 {
            chunk(&mut out, b"data: {\"choices\": [\n\n");
        }
        let word = event(&format!("{{\"content\":\"w\u{e9}{i} \"}}"), "null");
        if command.has("half-utf8") {
            let middle = word.find('\u{e9}').unwrap() + 1;
            chunk(&mut out, &word.as_bytes()[..middle]);
            stream.write_all(&out).await.ok()?;
            out.clear();
            tokio::time::sleep(Duration::from_millis(5)).await;
            chunk(&mut out, &word.as_bytes()[middle..]);
        } else {
            chunk(&mut out, word.as_bytes());
        }
        if !gap.is_zero() {
            stream.write_all(&out).await.ok()?;
            out.clear();
            tokio::time::sleep(gap).await;
        }
    }
    chunk(&mut out, event("{}", "\"stop\"").as_bytes());
    if command.wants_usage {
        chunk(&mut out, usage(n_words).as_bytes());
    }
    chunk(&mut out, b"data: [DONE]\n\n");
    if command.has("open") {
        return stall(stream, &out).await;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    stream.write_all(&out).await.ok()
}

/// The event that tells what a stream of `n` words took.
pub(crate) fn usage(n: u64) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"mock-1\",\"choices\":[],\"usage\":{{\"prompt_tokens\":11,\"completion_tokens\":{n},\"total_tokens\":{}}}}}\n\n",
        11 + n
    )
}

/// Says no more, until the client leaves.
async fn stall(stream: &mut TcpStream, out: &[u8]) -> Option<()> {
    stream.write_all(out).await.ok()?;
    let mut byte = [0];
    let _left = stream.read(&mut byte).await;
    None
}

/// What the native dialects say: a thought, then words.
pub(crate) const NATIVE: [&str; 3] = ["hmm", "Gr\u{fc}\u{df}e ", "aus K\u{f6}ln"];

/// Anthropic, Gemini and Ollama: 11 tokens in, of which 2 cached (Ollama: none), 4 out.
async fn native(stream: &mut TcpStream, command: &Command) -> Option<()> {
    let is_tool = command.has("tool");
    if command.is_rerank {
        return whole(stream, "200 OK", "", "application/json", others::RERANK).await;
    }
    if command.dialect == Dialect::Replicate {
        if let Some(ms) = command.number("slow-made") {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let id = if command.has("endless") { "endless" } else { "p1" };
        let made = others::prediction(&command.host, id, "starting", !command.has("no-stream"));
        return whole(stream, "201 Created", "", "application/json", &made).await;
    }
    if command.dialect == Dialect::Look && command.is_stream && command.has("endless") {
        let head =
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut out = head.to_vec();
        chunk(&mut out, others::replicate_events()[0].as_bytes());
        return stall(stream, &out).await;
    }
    let bytes = |records: Vec<String>| records.into_iter().map(String::into_bytes).collect();
    let mut records: Vec<Vec<u8>> = match command.dialect {
        Dialect::Anthropic => bytes(anthropic_events(is_tool)),
        Dialect::Gemini if command.has("blocked") => bytes(vec![format!("data: {}\n\n", gemini_blocked())]),
        Dialect::Gemini => bytes(gemini_records(is_tool)),
        Dialect::Bedrock => clouds::bedrock_frames(is_tool),
        Dialect::Cohere => bytes(others::cohere_events(is_tool)),
        Dialect::Look => bytes(others::replicate_events()),
        Dialect::OllamaPrompt => bytes(others::generate_lines()),
        _ => bytes(ollama_lines(is_tool)),
    };
    if !command.is_stream {
        let body = match command.dialect {
            Dialect::Anthropic => anthropic_whole(is_tool),
            Dialect::Gemini if command.has("blocked") => gemini_blocked(),
            Dialect::Gemini if command.has("unfinished") => {
                gemini_whole(is_tool).replace("STOP", "MALFORMED_FUNCTION_CALL")
            }
            Dialect::Gemini => gemini_whole(is_tool),
            Dialect::Bedrock => clouds::bedrock_whole(is_tool),
            Dialect::Cohere => others::cohere_whole(is_tool),
            Dialect::OllamaPrompt => others::generate_whole(),
            Dialect::Look if command.has("endless") => {
                others::prediction(&command.host, "endless", "processing", false)
            }
            Dialect::Look => others::prediction(&command.host, "p1", "succeeded", false),
            _ => ollama_whole(is_tool),
        };
        return whole(stream, "200 OK", "", "application/json", &body).await;
    }
    let kind = match command.dialect {
        Dialect::Ollama | Dialect::OllamaPrompt => "application/x-ndjson",
        Dialect::Bedrock => "application/vnd.amazon.eventstream",
        _ => "text/event-stream",
    };
    if let Some(i) = command.number("fail") {
        records.truncate(i as usize);
        records.push(clouds::bedrock_exception());
    }
    if command.has("bad-crc") {
        let last = records.len() - 3;
        *records[last].last_mut().unwrap() ^= 1;
    }
    let mut out =
        format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes();
    let cut = command.number("cut").map_or(records.len(), |n| n as usize);
    for record in records.iter().take(cut) {
        // In two pieces, as networks cut.
        let (first, second) = record.split_at(record.len() / 2);
        chunk(&mut out, first);
        chunk(&mut out, second);
    }
    if cut < records.len() {
        stream.write_all(&out).await.ok()?;
        return None;
    }
    if command.has("open") {
        return stall(stream, &out).await;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    stream.write_all(&out).await.ok()
}

fn named(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn anthropic_events(is_tool: bool) -> Vec<String> {
    let [thought, first, second] = NATIVE;
    let mut events = vec![named(
        "message_start",
        "{\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"mock-1\",\"content\":[],\"usage\":{\"input_tokens\":9,\"cache_read_input_tokens\":2,\"output_tokens\":1}}}",
    )];
    let start = |i: u32, block: &str| {
        named(
            "content_block_start",
            &format!("{{\"type\":\"content_block_start\",\"index\":{i},\"content_block\":{block}}}"),
        )
    };
    let delta = |i: u32, delta: &str| {
        named(
            "content_block_delta",
            &format!("{{\"type\":\"content_block_delta\",\"index\":{i},\"delta\":{delta}}}"),
        )
    };
    let stop = |i: u32| {
        named(
            "content_block_stop",
            &format!("{{\"type\":\"content_block_stop\",\"index\":{i}}}"),
        )
    };
    events.push(start(
        0,
        "{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"}",
    ));
    events.push(delta(
        0,
        &format!("{{\"type\":\"thinking_delta\",\"thinking\":\"{thought}\"}}"),
    ));
    events.push(delta(0, "{\"type\":\"signature_delta\",\"signature\":\"c2ln\"}"));
    events.push(stop(0));
    if is_tool {
        events.push(start(
            1,
            "{\"type\":\"tool_use\",\"id\":\"toolu_1\",\"name\":\"weather\",\"input\":{}}",
        ));
        events.push(delta(
            1,
            "{\"type\":\"input_json_delta\",\"partial_json\":\"{\\\"city\\\":\"}",
        ));
        events.push(delta(
            1,
            "{\"type\":\"input_json_delta\",\"partial_json\":\"\\\"K\u{f6}ln\\\"}\"}",
        ));
    } else {
        events.push(start(1, "{\"type\":\"text\",\"text\":\"\"}"));
        events.push(named("ping", "{\"type\":\"ping\"}"));
        events.push(delta(
            1,
            &format!("{{\"type\":\"text_delta\",\"text\":\"{first}\"}}"),
        ));
        events.push(delta(
            1,
            &format!("{{\"type\":\"text_delta\",\"text\":\"{second}\"}}"),
        ));
    }
    events.push(stop(1));
    let reason = if is_tool { "tool_use" } else { "end_turn" };
    events.push(named(
        "message_delta",
        &format!("{{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"{reason}\"}},\"usage\":{{\"output_tokens\":4}}}}"),
    ));
    events.push(named("message_stop", "{\"type\":\"message_stop\"}"));
    events
}

fn anthropic_whole(is_tool: bool) -> String {
    let [thought, first, second] = NATIVE;
    let (block, reason) = if is_tool {
        ("{\"type\":\"tool_use\",\"id\":\"toolu_1\",\"name\":\"weather\",\"input\":{\"city\":\"K\u{f6}ln\"}}".to_string(), "tool_use")
    } else {
        (
            format!("{{\"type\":\"text\",\"text\":\"{first}{second}\"}}"),
            "end_turn",
        )
    };
    format!(
        "{{\"id\":\"msg_1\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"mock-1\",\"content\":[{{\"type\":\"thinking\",\"thinking\":\"{thought}\",\"signature\":\"c2ln\"}},{block}],\"stop_reason\":\"{reason}\",\"usage\":{{\"input_tokens\":9,\"cache_read_input_tokens\":2,\"output_tokens\":4}}}}"
    )
}

const GEMINI_USAGE: &str = "\"usageMetadata\":{\"promptTokenCount\":11,\"cachedContentTokenCount\":2,\"candidatesTokenCount\":3,\"thoughtsTokenCount\":1},\"modelVersion\":\"mock-1\",\"responseId\":\"r1\"";
const GEMINI_CALL: &str = "{\"functionCall\":{\"name\":\"weather\",\"args\":{\"city\":\"K\u{f6}ln\"}},\"thoughtSignature\":\"c2ln\"}";

fn gemini_record(parts: &str, finish: &str) -> String {
    format!(
        "{{\"candidates\":[{{\"content\":{{\"role\":\"model\",\"parts\":[{parts}]}},\"index\":0{finish}}}],{GEMINI_USAGE}}}"
    )
}

fn gemini_parts(is_tool: bool) -> Vec<String> {
    let [thought, first, second] = NATIVE;
    let mut parts = vec![format!("{{\"text\":\"{thought}\",\"thought\":true}}")];
    if is_tool {
        parts.push(GEMINI_CALL.into());
    } else {
        parts.extend([first, second].map(|text| format!("{{\"text\":\"{text}\"}}")));
    }
    parts
}

fn gemini_records(is_tool: bool) -> Vec<String> {
    let records = gemini_parts(is_tool)
        .into_iter()
        .map(|part| gemini_record(&part, ""));
    let last = gemini_record("", ",\"finishReason\":\"STOP\"");
    records
        .chain([last])
        .map(|record| format!("data: {record}\r\n\r\n"))
        .collect()
}

fn gemini_whole(is_tool: bool) -> String {
    gemini_record(&gemini_parts(is_tool).join(","), ",\"finishReason\":\"STOP\"")
}

fn gemini_blocked() -> String {
    format!("{{\"promptFeedback\":{{\"blockReason\":\"SAFETY\"}},{GEMINI_USAGE}}}")
}

fn ollama_line(message: &str, end: &str) -> String {
    format!(
        "{{\"model\":\"mock-1\",\"created_at\":\"2026-01-01T00:00:00.0Z\",\"message\":{{\"role\":\"assistant\",{message}}},{end}}}"
    )
}

const OLLAMA_END: &str = "\"done\":true,\"done_reason\":\"stop\",\"prompt_eval_count\":11,\"eval_count\":4";
const OLLAMA_CALL: &str = "\"content\":\"\",\"tool_calls\":[{\"function\":{\"name\":\"weather\",\"arguments\":{\"city\":\"K\u{f6}ln\"}}}]";

fn ollama_lines(is_tool: bool) -> Vec<String> {
    let [thought, first, second] = NATIVE;
    let mut lines = vec![ollama_line(
        &format!("\"content\":\"\",\"thinking\":\"{thought}\""),
        "\"done\":false",
    )];
    if is_tool {
        lines.push(ollama_line(OLLAMA_CALL, "\"done\":false"));
    } else {
        lines.extend(
            [first, second].map(|text| ollama_line(&format!("\"content\":\"{text}\""), "\"done\":false")),
        );
    }
    lines.push(ollama_line("\"content\":\"\"", OLLAMA_END));
    lines.into_iter().map(|line| format!("{line}\n")).collect()
}

fn ollama_whole(is_tool: bool) -> String {
    let [thought, first, second] = NATIVE;
    if is_tool {
        return ollama_line(&format!("{OLLAMA_CALL},\"thinking\":\"{thought}\""), OLLAMA_END);
    }
    ollama_line(
        &format!("\"content\":\"{first}{second}\",\"thinking\":\"{thought}\""),
        OLLAMA_END,
    )
}
