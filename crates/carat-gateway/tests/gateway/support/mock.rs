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
//! | `half-utf8` | a character arrives in two pieces |
//! | `times=N` | the first N requests are treated so, later ones well |
//!
//! It is written over plain sockets, so that it costs little and can break every rule of HTTP.

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
        let command = Command::of(body);
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
        let command = if is_good { Command::default() } else { command };
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
async fn request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(usize, usize)> {
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

/// What a model's name orders.
#[derive(Default)]
struct Command {
    name: String,
    is_stream: bool,
    wants_usage: bool,
}

impl Command {
    fn of(body: &[u8]) -> Self {
        let has = |text: &str| memchr::memmem::find(body, text.as_bytes()).is_some();
        let name = memchr::memmem::find(body, b"\"model\":\"").map(|at| {
            let rest = &body[at + 9..];
            let end = memchr::memchr(b'"', rest).unwrap_or(rest.len());
            String::from_utf8_lossy(&rest[..end]).into_owned()
        });
        Self {
            name: name.unwrap_or_default(),
            is_stream: has("\"stream\":true"),
            wants_usage: has("\"include_usage\":true"),
        }
    }

    fn has(&self, part: &str) -> bool {
        self.name.split(';').any(|other| other == part)
    }

    fn number(&self, name: &str) -> Option<u64> {
        let value = self
            .name
            .split(';')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok())
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
    if command.has("html") {
        return whole(stream, "200 OK", "", "text/html", "<html>welcome</html>").await;
    }
    if command.is_stream {
        return events(stream, command).await;
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
