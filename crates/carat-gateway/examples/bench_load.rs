//! A load generator that costs little beside what it measures, for `bench/gateway`.
//!
//!     bench_load ADDRESS closed CONNECTIONS REQUESTS BODY_FILE [KEY]
//!     bench_load ADDRESS open RATE SECONDS BODY_FILE [KEY]
//!
//! `closed`: every connection asks again as soon as it is answered. `open`: requests are due at a steady rate, and times
//! count from when they were due. It prints one line of JSON.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for the bench")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Sends a request and reads the whole answer: the time to its first byte, and whether it is a good one.
async fn ask(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> (Duration, bool) {
    let started = Instant::now();
    stream.write_all(request).await.unwrap();
    buffer.clear();
    let mut first = None;
    loop {
        assert!(
            stream.read_buf(buffer).await.unwrap() > 0,
            "the connection was closed: {}",
            String::from_utf8_lossy(buffer)
        );
        let first = *first.get_or_insert_with(|| started.elapsed());
        let Some(end) = memchr::memmem::find(buffer, b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
        let is_whole = match head.split("content-length: ").nth(1) {
            Some(rest) => {
                let length: usize = rest.split("\r\n").next().unwrap().trim().parse().unwrap();
                buffer.len() >= end + 4 + length
            }
            None => buffer.ends_with(b"0\r\n\r\n"),
        };
        if is_whole {
            return (first, head.starts_with("http/1.1 200"));
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize| args[i].parse::<u64>().unwrap();
    let body = std::fs::read_to_string(&args[5]).unwrap();
    let key = args
        .get(6)
        .map_or(String::new(), |key| format!("authorization: Bearer {key}\r\n"));
    // Lines of further headers, and another path than ours behind the address, as other gateways want them.
    let more: String = args.get(7).map_or(String::new(), |lines| {
        lines.lines().map(|line| format!("{line}\r\n")).collect()
    });
    let (address, path) = args[1].split_once('/').unwrap_or((&args[1], "v1"));
    let request = format!(
        "POST /{path}/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{key}{more}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let request = Arc::new(request.into_bytes());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let address = address.to_string();
    let run = runtime.block_on(async {
        match args[2].as_str() {
            "closed" => closed(&address, number(3), number(4), request).await,
            _ => open(&address, number(3), Duration::from_secs(number(4)), request).await,
        }
    });
    run.print();
}

/// Times of whole answers and of their first bytes, sorted.
struct Run {
    whole: Vec<Duration>,
    first: Vec<Duration>,
    n_bad: u64,
    took: Duration,
}

impl Run {
    fn print(mut self) {
        self.whole.sort_unstable();
        self.first.sort_unstable();
        let at = |times: &[Duration], part: f64| {
            let i = ((times.len() - 1) as f64 * part).round() as usize;
            times[i].as_secs_f64() * 1000.0
        };
        println!(
            "{{\"n\": {}, \"bad\": {}, \"per_s\": {:.0}, \"p50_ms\": {:.3}, \"p99_ms\": {:.3}, \"first_p50_ms\": {:.3}}}",
            self.whole.len(),
            self.n_bad,
            self.whole.len() as f64 / self.took.as_secs_f64(),
            at(&self.whole, 0.5),
            at(&self.whole, 0.99),
            at(&self.first, 0.5),
        );
    }
}

async fn collect(mut results: mpsc::UnboundedReceiver<(Duration, Duration, bool)>, started: Instant) -> Run {
    let mut run = Run {
        whole: Vec::new(),
        first: Vec::new(),
        n_bad: 0,
        took: Duration::ZERO,
    };
    while let Some((whole, first, is_good)) = results.recv().await {
        run.whole.push(whole);
        run.first.push(first);
        run.n_bad += u64::from(!is_good);
    }
    run.took = started.elapsed();
    run
}

async fn closed(address: &str, n_connections: u64, n_requests: u64, request: Arc<Vec<u8>>) -> Run {
    let (results, collected) = mpsc::unbounded_channel();
    let left = Arc::new(AtomicU64::new(n_requests));
    let started = Instant::now();
    for _ in 0..n_connections {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (request, results, left) = (Arc::clone(&request), results.clone(), Arc::clone(&left));
        tokio::spawn(async move {
            let mut buffer = Vec::with_capacity(16384);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok()
            {
                let begun = Instant::now();
                let (first, is_good) = ask(&mut stream, &request, &mut buffer).await;
                results.send((begun.elapsed(), first, is_good)).unwrap();
            }
        });
    }
    drop(results);
    collect(collected, started).await
}

async fn open(address: &str, rate: u64, time: Duration, request: Arc<Vec<u8>>) -> Run {
    let (results, collected) = mpsc::unbounded_channel();
    let (idle, mut free) = mpsc::unbounded_channel();
    let started = Instant::now();
    let address = address.to_string();
    let due = async move {
        let n_requests = (time.as_secs_f64() * rate as f64) as u64;
        for i in 0..n_requests {
            let due = started + Duration::from_secs_f64(i as f64 / rate as f64);
            tokio::time::sleep_until(due.into()).await;
            let mut stream = match free.try_recv() {
                Ok(stream) => stream,
                Err(_) => {
                    let stream = TcpStream::connect(&address).await.unwrap();
                    stream.set_nodelay(true).unwrap();
                    stream
                }
            };
            let (request, results, idle) = (Arc::clone(&request), results.clone(), idle.clone());
            tokio::spawn(async move {
                let mut buffer = Vec::with_capacity(16384);
                let (first, is_good) = ask(&mut stream, &request, &mut buffer).await;
                results.send((due.elapsed(), first, is_good)).unwrap();
                // Nobody may be left to use it.
                let _given_back = idle.send(stream);
            });
        }
        drop(results);
    };
    tokio::join!(due, collect(collected, started)).1
}
