//! Load time, memory and speed of the Gemma 3 tokenizer.
//!
//! ```text
//! cargo run --release -p carat-text --example tokenizer_speed -- TEXT.gz
//! ```
//!
//! Prints the best of several repeats: loading from GGUF arrays and from a `tokenizer.json` made from them, with
//! the heap that stays and its peak; then megabytes (10^6 bytes) a second for prose, the same without a newline,
//! chat-size pieces of it, and megabytes of one thing.

#[path = "../tests/common/mod.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use carat_text::{Special, Tokenizer};
use common::Pieces;

/// Counts bytes in use, and the most there were.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; only counters are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(
    clippy::print_stdout,
    reason = "a report on the terminal is what this example is for"
)]
fn say(line: &str) {
    println!("{line}");
}

/// Seconds of the fastest of `n` runs.
fn best_of(n: usize, mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..n).map(time).fold(f64::INFINITY, f64::min)
}

/// Loads repeatedly; prints time, heap kept and peak.
fn report_load(name: &str, load: impl Fn() -> Tokenizer) -> Tokenizer {
    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let tokenizer = load();
    let mib = |bytes: usize| bytes.saturating_sub(before) as f64 / f64::from(1 << 20);
    let (kept, peak) = (
        mib(IN_USE.load(Ordering::Relaxed)),
        mib(PEAK.load(Ordering::Relaxed)),
    );
    let seconds = best_of(5, || drop(load()));
    say(&format!(
        "load {name:16} {:7.1} ms   heap {kept:5.1} MiB   peak {peak:5.1} MiB",
        seconds * 1e3
    ));
    tokenizer
}

fn report_speed(tokenizer: &Tokenizer, name: &str, texts: &[&str]) {
    let n_bytes: usize = texts.iter().map(|text| text.len()).sum();
    let mut ids = Vec::new();
    let seconds = best_of(5, || {
        ids.clear();
        for text in texts {
            tokenizer.encode_into(text, Special::Parse, &mut ids);
        }
    });
    let rate = n_bytes as f64 / seconds / 1e6;
    say(&format!(
        "encode {name:22} {rate:7.1} MB/s   {n_bytes:8} bytes   {:8} tokens",
        ids.len()
    ));
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or("usage: tokenizer_speed TEXT.gz")?;
    let mut prose = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path)?).read_to_string(&mut prose)?;
    let pieces = Pieces::gemma3();
    let json = pieces.tokenizer_json();
    let model = pieces.sentencepiece();
    let tokenizer = report_load("GGUF arrays", || pieces.tokenizer());
    report_load("tokenizer.model", || {
        Tokenizer::from_sentencepiece(&model).unwrap_or_else(|_| pieces.tokenizer())
    });
    let listed = report_load("tokenizer.json", || {
        Tokenizer::from_tokenizer_json(&json).unwrap_or_else(|_| pieces.tokenizer())
    });

    let one_line = prose.replace(['\r', '\n'], " ");
    let one_line = &one_line[..one_line.floor_char_boundary(1_000_000)];
    let chunks: Vec<&str> = prose.split_inclusive("\n\n").take(500).collect();
    report_speed(&tokenizer, "prose", &[&prose]);
    report_speed(&listed, "prose (listed merges)", &[&prose]);
    report_speed(&tokenizer, "prose, no newline", &[one_line]);
    report_speed(&tokenizer, "prose, 500 paragraphs", &chunks);
    for (name, unit) in [
        ("a", "a"),
        ("blank", " "),
        ("emoji", "\u{1f600}"),
        ("=", "="),
        ("newline", "\n"),
    ] {
        report_speed(
            &tokenizer,
            &format!("1 MB of {name}"),
            &[&unit.repeat(1_000_000 / unit.len())],
        );
    }
    let japanese = "\u{5f7c}\u{306f}\u{6628}\u{65e5}\u{3001}\u{53cb}\u{4eba}\u{3068}\u{6771}\u{4eac}\u{306e}\u{7f8e}\u{8853}\u{9928}\u{3078}\u{884c}\u{3063}\u{305f}\u{3002}";
    report_speed(
        &tokenizer,
        "1 MB of Japanese",
        &[&japanese.repeat(1_000_000 / japanese.len())],
    );
    let start = Instant::now();
    let ids = tokenizer.encode(&prose, Special::Parse);
    let text = tokenizer.decode(&ids, carat_text::ControlText::Show);
    let rate = prose.len() as f64 / start.elapsed().as_secs_f64() / 1e6;
    say(&format!(
        "encode and decode {rate:.1} MB/s, round trip exact: {}",
        text == prose
    ));
    Ok(())
}
