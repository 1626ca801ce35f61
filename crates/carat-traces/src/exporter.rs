//! The queue of spans that have ended, and the task that sends them.
//!
//! A batch goes out when it is full, or a second after its first span. What the collector refuses for a reason that may
//! pass is sent again a few times; meanwhile the queue fills, and what finds no place in it is dropped and counted. A
//! collector that fails is told of once, and once when it is back.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::context::Context;
use crate::span::{Kind, Span, SpanData};
use crate::{Error, Settings, wire};

/// Spans that wait to be sent; more are dropped.
const QUEUE: usize = 4096;
/// Spans of a batch.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// How often the queue is looked at meanwhile, so that not every span wakes the task.
const LOOK: Duration = Duration::from_millis(20);
/// Longest that a collector may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Waits before a batch is sent again.
const WAITS: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
];
/// Longest wait that a collector may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Most of a collector's answer that is read, in bytes.
const ANSWER_BYTES: usize = 64 << 10;
/// How long an idle connection to the collector is kept.
const IDLE: Duration = Duration::from_secs(30);

enum Message {
    Span(Box<SpanData>),
    /// Somebody waits until all before it is sent.
    Flush(oneshot::Sender<()>),
}

/// What became of spans.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

/// Makes spans and sees to it that they are sent.
#[derive(Clone)]
pub struct Tracer {
    sender: mpsc::Sender<Message>,
    counts: Arc<Counts>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tracer")
    }
}

impl Tracer {
    /// Starts the task that sends, on `runtime`. It ends when nobody makes spans any more.
    ///
    /// # Errors
    /// [`Error::Tls`].
    pub fn start(settings: Settings, runtime: &Handle) -> Result<Self, Error> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let exporter = Exporter {
            client: client()?,
            settings,
            counts: Arc::clone(&counts),
            is_failing: false,
        };
        runtime.spawn(exporter.run(receiver));
        Ok(Self { sender, counts })
    }

    /// Begins a span of its own.
    pub fn span(&self, kind: Kind, name: impl Into<Cow<'static, str>>, parent: Option<Context>) -> Span {
        Span::begin(self, kind, name.into(), parent)
    }

    /// Queues a span that has ended, if there is room.
    pub(crate) fn take(&self, span: Box<SpanData>) {
        if self.sender.try_send(Message::Span(span)).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything that has ended is sent or given up, for `patience` at most.
    pub async fn flush(&self, patience: Duration) {
        let (done, finished) = oneshot::channel();
        let flushed = async {
            if self.sender.send(Message::Flush(done)).await.is_ok() {
                // An error means that the task has ended.
                let _ended = finished.await;
            }
        };
        if timeout(patience, flushed).await.is_err() {
            tracing::warn!("some traces were not sent: the collector did not answer in time");
        }
    }

    /// Spans that a collector took.
    pub fn n_sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    /// Spans that nobody got: the queue was full, or the collector refused them.
    pub fn n_dropped(&self) -> u64 {
        self.counts.dropped.load(Ordering::Relaxed)
    }
}

type Connections = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

fn client() -> Result<Connections, Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(PATIENCE));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(carat_net::client_tls().map_err(Error::Tls)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_timer(TokioTimer::new())
        .build(connector))
}

/// The task's own.
struct Exporter {
    client: Connections,
    settings: Settings,
    counts: Arc<Counts>,
    /// The latest batch was not taken.
    is_failing: bool,
}

/// What a collector said to a batch.
enum Answer {
    /// But for so many spans.
    Taken(u64),
    /// It may take it later.
    Later(Option<Duration>, String),
    Refused(StatusCode),
}

impl Exporter {
    async fn run(mut self, mut receiver: mpsc::Receiver<Message>) {
        let mut messages = Vec::with_capacity(BATCH);
        let mut spans = Vec::with_capacity(BATCH);
        while receiver.recv_many(&mut messages, BATCH).await > 0 {
            let until = Instant::now() + DELAY;
            let mut waiting = Vec::new();
            loop {
                for message in messages.drain(..) {
                    match message {
                        Message::Span(span) => spans.push(span),
                        Message::Flush(done) => waiting.push(done),
                    }
                }
                let room = BATCH.saturating_sub(spans.len());
                if room == 0 || !waiting.is_empty() || Instant::now() >= until {
                    break;
                }
                sleep(LOOK).await;
                match timeout_at(until, receiver.recv_many(&mut messages, room)).await {
                    // Nobody makes spans any more; what is there is sent.
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            self.export(&spans).await;
            spans.clear();
            for done in waiting {
                // Whoever asked may have lost patience.
                let _told = done.send(());
            }
        }
    }

    /// Sends a batch, again if need be, or gives it up.
    async fn export(&mut self, spans: &[Box<SpanData>]) {
        let n = spans.len() as u64;
        if n == 0 {
            return;
        }
        let body = Bytes::from(wire::body(&self.settings.service, spans));
        let mut waits = WAITS.into_iter();
        let reason = loop {
            match self.post(body.clone()).await {
                Answer::Taken(rejected) => {
                    let rejected = rejected.min(n);
                    self.counts.sent.fetch_add(n - rejected, Ordering::Relaxed);
                    self.counts.dropped.fetch_add(rejected, Ordering::Relaxed);
                    if std::mem::take(&mut self.is_failing) {
                        tracing::info!("traces are taken again");
                    }
                    return;
                }
                Answer::Later(asked, reason) => match waits.next() {
                    Some(wait) => sleep(asked.unwrap_or(wait).min(LONGEST_WAIT)).await,
                    None => break reason,
                },
                Answer::Refused(status) => break format!("it answered {status}"),
            }
        };
        self.counts.dropped.fetch_add(n, Ordering::Relaxed);
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(reason, "traces are dropped: the collector does not take them");
        }
    }

    async fn post(&self, body: Bytes) -> Answer {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.settings.endpoint.clone();
        let headers = request.headers_mut();
        for (name, value) in &self.settings.headers {
            headers.append(name.clone(), value.clone());
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("carat/", env!("CARGO_PKG_VERSION"))),
        );
        match timeout(PATIENCE, self.answer(request)).await {
            Ok(answer) => answer,
            Err(_) => Answer::Later(None, "it takes too long".to_string()),
        }
    }

    async fn answer(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => return Answer::Later(None, error.to_string()),
        };
        let (head, body) = response.into_parts();
        // Read to its end, so that the connection can be used again.
        let body = Limited::new(body, ANSWER_BYTES).collect().await;
        match head.status {
            status if status.is_success() => {
                let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                Answer::Taken(wire::rejected(&body))
            }
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let wait = head.headers.get(RETRY_AFTER);
                let wait = wait.and_then(|wait| wait.to_str().ok()?.trim().parse().ok());
                Answer::Later(
                    wait.map(Duration::from_secs),
                    format!("it answered {}", head.status),
                )
            }
            status => Answer::Refused(status),
        }
    }
}
