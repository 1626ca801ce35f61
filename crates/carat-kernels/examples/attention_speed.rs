//! How fast a decode step's attention reads a cache, and how fast a chunk of a prompt attends to it, for each format:
//! the shape of a layer of Gemma 3 12B (8 key-value heads of 256 elements, 2 queries each) at some depth.
//!
//! `cargo run --release -p carat-kernels --example attention_speed -- [DEPTH]`

#![expect(clippy::print_stdout, reason = "what an example is for")]

use std::sync::Arc;
use std::time::Instant;

use carat_kernels::attention::{
    DecodeQuery, DecodeScratch, KvDType, KvPage, KvShape, KvView, PAGE, PrefillQuery, PrefillScratch, decode,
    pack_rows, prefill,
};
use carat_kernels::{Compute, Isa};

/// Caches that are read in turn, so that none is in the processor's cache.
const LAYERS: usize = 4;
const REPEATS: usize = 15;
/// Tokens of a prompt's chunk.
const CHUNK: usize = 512;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let depth: usize = std::env::args().nth(1).map_or(Ok(16_384), |n| n.parse())?;
    let compute = Compute::new(Isa::detect(), carat_kernels::physical_cores())?;
    let (n_kv_heads, group, head_dim) = (8, 2, 256);
    println!("depth {depth}, {LAYERS} layers: best of {REPEATS}");
    for dtype in KvDType::ALL {
        let shape = KvShape {
            dtype,
            n_kv_heads,
            head_dim,
        };
        let layers = (0..LAYERS)
            .map(|_| pages(&shape, depth))
            .collect::<Option<Vec<_>>>()
            .ok_or("no memory for the cache")?;
        let q: Vec<f32> = (0..group * n_kv_heads * head_dim).map(number).collect();
        let mut out = vec![0.0; q.len()];
        let mut scratch = DecodeScratch::default();
        let mut best = f64::INFINITY;
        for _ in 0..REPEATS {
            let started = Instant::now();
            for pages in &layers {
                let mut queries = [DecodeQuery {
                    q: &q,
                    kv: KvView { pages, shape },
                    pos: depth - 1,
                    out: &mut out,
                }];
                decode(&compute, &mut queries, None, 0.0625, &mut scratch);
            }
            best = best.min(started.elapsed().as_secs_f64());
        }
        let bytes = LAYERS * depth * n_kv_heads * 2 * dtype.bytes_for_row(head_dim);
        println!(
            "{dtype:5} {:8.1} MB {:8.2} ms {:6.1} GB/s",
            bytes as f64 / 1e6,
            best * 1e3,
            bytes as f64 / best / 1e9
        );
        let rows: Vec<f32> = (0..CHUNK * n_kv_heads * head_dim).map(number).collect();
        let q: Vec<f32> = (0..CHUNK * group * n_kv_heads * head_dim).map(number).collect();
        let mut out = vec![0.0; q.len()];
        let mut scratch = PrefillScratch::default();
        let mut best = f64::INFINITY;
        for _ in 0..3 {
            let started = Instant::now();
            let mut query = PrefillQuery {
                q: &q,
                k: &rows,
                v: &rows,
                kv: KvView {
                    pages: &layers[0],
                    shape,
                },
                pos: depth,
                spans: &[],
                out: &mut out,
            };
            prefill(&compute, &mut query, None, 0.0625, &mut scratch);
            best = best.min(started.elapsed().as_secs_f64());
        }
        let operations = 4 * CHUNK * (depth + CHUNK / 2) * group * n_kv_heads * head_dim;
        println!(
            "      {CHUNK} tokens of a prompt {:8.2} ms {:6.1} Gop/s",
            best * 1e3,
            operations as f64 / best / 1e9
        );
    }
    Ok(())
}

/// A table of pages with `depth` positions of some numbers.
fn pages(shape: &KvShape, depth: usize) -> Option<Vec<Arc<KvPage>>> {
    let row: Vec<f32> = (0..shape.n_kv_heads * shape.head_dim).map(number).collect();
    let mut packed = vec![0; shape.packed_len(row.len())];
    pack_rows(Isa::detect(), shape, &row, &mut packed);
    let mut pages = Vec::new();
    for _ in 0..depth.div_ceil(PAGE) {
        let mut page = KvPage::new(shape)?;
        for slot in 0..PAGE {
            page.write(shape, slot, &packed, &packed);
        }
        pages.push(Arc::new(page));
    }
    Some(pages)
}

/// Numbers between -1 and 1 without a pattern.
fn number(i: usize) -> f32 {
    (i.wrapping_mul(2_654_435_761) >> 8 & 0xffff) as f32 / 32_768.0 - 1.0
}
