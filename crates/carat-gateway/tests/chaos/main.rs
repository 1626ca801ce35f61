//! Six providers that fail in turns and are killed at random, and a gateway before them that nobody sees fail.
//!
//! A program of its own, so that no other test runs beside it: the load is given, and what a starved machine cannot do in
//! time would count as a failure.

#![expect(clippy::unwrap_used, reason = "what goes wrong in the rig is a failed test")]

#[path = "../gateway/support/mod.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use carat_ledger::{Admin, NewKey, Outcome};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Rig, chat, mock, rig_with, stopped};

/// How a provider behaves for the moment.
const MOODS: [&str; 6] = ["good", "500", "529", "429", "reset", "stall"];
/// Part of the moments in which one is not good.
const BAD: f64 = 0.25;
/// Requests a second.
const RATE: u64 = 300;

/// A provider that has moods.
struct Moody {
    address: SocketAddr,
    mood: AtomicU8,
    is_dead: AtomicBool,
    /// Tokens of whole answers that were sent to the end, and of prompts on which it fell silent.
    tokens: AtomicU64,
    answers: AtomicU64,
}

impl Moody {
    async fn start() -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let moody = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            mood: AtomicU8::new(0),
            is_dead: AtomicBool::new(false),
            tokens: AtomicU64::new(0),
            answers: AtomicU64::new(0),
        });
        let shared = Arc::clone(&moody);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _slower = stream.set_nodelay(true);
                tokio::spawn(Arc::clone(&shared).connection(stream));
            }
        });
        moody
    }

    fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// Serves until the connection ends or the provider is dead.
    async fn connection(self: Arc<Self>, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        loop {
            let Some((head, length)) = mock::request(&mut stream, &mut buffer).await else {
                return;
            };
            let is_stream = memchr::memmem::find(&buffer[head..head + length], b"\"stream\":true").is_some();
            buffer.drain(..head + length);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(1..15))).await;
            let mood = MOODS[usize::from(self.mood.load(Ordering::Relaxed))];
            if self.is_dead() || self.answer(&mut stream, mood, is_stream).await.is_none() {
                return;
            }
        }
    }

    async fn answer(&self, stream: &mut TcpStream, mood: &str, is_stream: bool) -> Option<()> {
        match mood {
            "reset" => return None,
            "stall" => {
                // Who is given up may have begun, so its prompt is paid for by estimate.
                let prompt = chat("r0", is_stream).len().div_ceil(4) as u64;
                self.tokens.fetch_add(prompt, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(2)).await;
                return None;
            }
            "good" => {}
            status => {
                let body = "{\"error\":{\"message\":\"moody\"}}";
                let text = format!(
                    "HTTP/1.1 {status} Moody\r\nretry-after-ms: 300\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                return stream.write_all(text.as_bytes()).await.ok();
            }
        }
        let (input, output) = (fastrand::u64(1..500), fastrand::u64(1..200));
        let usage = format!(
            "{{\"prompt_tokens\":{input},\"completion_tokens\":{output},\"total_tokens\":{}}}",
            input + output
        );
        let text = if is_stream {
            let word = mock::event("{\"content\":\"word\"}", "null");
            let end = mock::event("{}", "\"stop\"");
            let events =
                format!("{word}{word}{end}data: {{\"choices\":[],\"usage\":{usage}}}\n\ndata: [DONE]\n\n");
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{events}",
                events.len()
            )
        } else {
            let body = format!(
                "{{\"choices\":[{{\"message\":{{\"content\":\"a\"}},\"finish_reason\":\"stop\"}}],\"usage\":{usage}}}"
            );
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        stream.write_all(text.as_bytes()).await.ok()?;
        self.tokens.fetch_add(input + output, Ordering::Relaxed);
        self.answers.fetch_add(1, Ordering::Relaxed);
        Some(())
    }
}

/// Changes moods, and kills two for a while, until told to stop.
async fn torment(moodies: Vec<Arc<Moody>>, time: Duration) {
    let until = Instant::now() + time;
    for (i, moody) in moodies.iter().enumerate() {
        let moody = Arc::clone(moody);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100 * i as u64)).await;
            while Instant::now() < until {
                let is_bad = fastrand::f64() < BAD;
                let mood = if is_bad {
                    fastrand::u8(1..MOODS.len() as u8)
                } else {
                    0
                };
                moody.mood.store(mood, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(fastrand::u64(300..1500))).await;
            }
            // Three that stayed ill would be an outage without an end for those who are still waiting.
            moody.mood.store(0, Ordering::Relaxed);
        });
    }
    for _ in 0..2 {
        tokio::time::sleep(time / 4).await;
        let victim = &moodies[fastrand::usize(..moodies.len())];
        victim.is_dead.store(true, Ordering::Relaxed);
        tokio::time::sleep(time / 6).await;
        victim.is_dead.store(false, Ordering::Relaxed);
    }
}

fn config(moodies: &[Arc<Moody>]) -> String {
    let mut text = String::from(
        "attempts = 16\n---[timeouts]\nfirst-token-ms = 400\nwhole-ms = 400\ntotal-ms = 15000\n",
    );
    for (i, moody) in moodies.iter().enumerate() {
        text.push_str(&format!(
            "[providers.p{i}]\nbase-url = \"http://{}/v1\"\n",
            moody.address
        ));
        text.push_str(&format!("[prices.\"p{i}/x\"]\ninput = 1\noutput = 1\n"));
    }
    let policies = ["ordered", "weighted", "latency"];
    for (i, policy) in policies.iter().enumerate() {
        let names: Vec<String> = (0..3)
            .map(|k| format!("\"p{}/x\"", (2 * i + k) % moodies.len()))
            .collect();
        text.push_str(&format!(
            "[routes.r{i}]\npolicy = \"{policy}\"\ncandidates = [{}]\n",
            names.join(", ")
        ));
    }
    text
}

/// Asks at a steady rate, whatever comes back: how many were asked, and what those saw that failed.
async fn load(rig: &Arc<Rig>, time: Duration) -> (u64, Vec<String>) {
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    let until = Instant::now() + time;
    let mut asked = Vec::new();
    while Instant::now() < until {
        ticks.tick().await;
        let rig = Arc::clone(rig);
        let n = asked.len();
        asked.push(tokio::spawn(async move {
            let is_stream = n % 2 == 0;
            let reply = rig.chat(&format!("r{}", n % 3), is_stream).await;
            let is_fine = reply.status == 200 && (!is_stream || reply.text.ends_with("data: [DONE]\n\n"));
            (!is_fine).then(|| {
                format!(
                    "{} {} {:?}",
                    reply.status,
                    reply.text,
                    reply.headers.get("x-carat-route")
                )
            })
        }));
    }
    let n = asked.len() as u64;
    let mut failed = Vec::new();
    for task in asked {
        failed.extend(task.await.unwrap());
    }
    (n, failed)
}

/// `one_in`: of how many requests one may fail at most.
async fn chaos(time: Duration, one_in: u64) {
    let mut moodies = Vec::new();
    for _ in 0..6 {
        moodies.push(Moody::start().await);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("l.db");
    let mut admin = Admin::open(&path).unwrap();
    let name = "k".to_string();
    let secret = admin
        .add_key(
            &NewKey {
                name,
                ..NewKey::default()
            },
            1,
        )
        .unwrap();
    let more = format!("{}[ledger]\npath = '{}'\n", config(&moodies), path.display());
    let rig = Arc::new(rig_with(&more, secret.text()).await);
    let tormenting = tokio::spawn(torment(moodies.clone(), time));
    let (n, failed) = load(&rig, time).await;
    tormenting.await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let metrics = rig.get("/metrics").await.text;
    for line in metrics.lines() {
        let is_idle = !line.starts_with("carat_target_requests_in_flight{")
            && !line.starts_with("carat_target_requests_waiting{");
        assert!(
            is_idle || line.ends_with(" 0"),
            "somebody still has a place: {line}"
        );
    }
    let rig = Arc::into_inner(rig).unwrap();
    let mut admin = stopped(rig, &folder).await;
    let complete = admin.requests(Some(Outcome::Complete)).unwrap();
    let in_vain = admin.requests(Some(Outcome::Failed)).unwrap();
    let sum = |count: fn(&Moody) -> &AtomicU64| -> u64 {
        moodies
            .iter()
            .map(|moody| count(moody).load(Ordering::Relaxed))
            .sum()
    };
    // A token costs a millionth.
    let (answers, tokens) = (sum(|moody| &moody.answers), sum(|moody| &moody.tokens));
    assert_eq!(
        (complete.requests, complete.spent.0 + in_vain.spent.0),
        (answers, tokens),
        "the ledger and the providers agree"
    );
    assert_eq!(admin.requests(None).unwrap().requests, 0, "nothing is left open");
    let most = n / one_in;
    assert!(
        failed.len() as u64 <= most.max(1),
        "{} of {n} failed, first: {:?}",
        failed.len(),
        &failed[..failed.len().min(3)]
    );
    assert_eq!(complete.requests + failed.len() as u64, n);
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_seconds_of_chaos() {
    chaos(Duration::from_secs(20), 1000).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes: cargo test -p carat-gateway --test chaos ten_minutes -- --ignored"]
async fn ten_minutes_of_chaos() {
    chaos(Duration::from_secs(600), 1000).await;
}
