//! A collector as small as can be: it keeps what it is sent. Other crates' tests include this file.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carat_traces::{Settings, Tracer};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;

/// What came, and what is answered to the next requests; 200 to all others.
#[derive(Default)]
pub(crate) struct Collector {
    came: Mutex<Vec<(String, Value)>>,
    pub(crate) statuses: Mutex<VecDeque<u16>>,
}

impl Collector {
    /// A collector, and a tracer that sends to it.
    pub(crate) async fn start() -> (Arc<Self>, Tracer) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Arc::new(Self::default());
        let shared = Arc::clone(&collector);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { shared.serve(stream).await });
            }
        });
        (collector, tracer(&format!("http://{address}")))
    }

    async fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if stream.read_line(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.unwrap().parse().unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            let status = self.statuses.lock().unwrap().pop_front().unwrap_or(200);
            if status == 200 {
                let body = serde_json::from_slice(&body).unwrap();
                self.came.lock().unwrap().push((head, body));
            }
            let answer = format!("HTTP/1.1 {status} -\r\ncontent-length: 2\r\n\r\n{{}}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    /// Spans that came, once all that have ended are sent.
    pub(crate) async fn spans(&self, tracer: &Tracer) -> Vec<Value> {
        tracer.flush(Duration::from_secs(10)).await;
        let came = self.came.lock().unwrap();
        let spans = came
            .iter()
            .filter_map(|(_, body)| body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array());
        spans.flatten().cloned().collect()
    }

    /// The heads of the requests that came.
    #[allow(dead_code, reason = "not every crate that includes this file looks at them")]
    pub(crate) fn heads(&self) -> Vec<String> {
        self.came
            .lock()
            .unwrap()
            .iter()
            .map(|(head, _)| head.clone())
            .collect()
    }
}

pub(crate) fn tracer(address: &str) -> Tracer {
    let variables = |name: &str| (name == "OTEL_EXPORTER_OTLP_HEADERS").then(|| "x-key=k".to_string());
    let settings = Settings::resolve(Some(address), &variables, None, "test")
        .unwrap()
        .unwrap();
    Tracer::start(settings, &Handle::current()).unwrap()
}

/// What an attribute of a span says, whatever its type.
#[allow(dead_code, reason = "not every crate that includes this file looks at them")]
pub(crate) fn attribute(span: &Value, key: &str) -> Option<String> {
    let attributes = span["attributes"].as_array()?;
    let found = attributes.iter().find(|attribute| attribute["key"] == key)?;
    let value = found["value"].as_object()?.values().next()?;
    Some(match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}
