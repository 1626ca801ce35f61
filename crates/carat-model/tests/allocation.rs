//! A decode step allocates nothing but a page of the cache when one is full: all else was there after the first step.
//!
//! One thread does all the work here and counts its own allocations, so that nothing else in the process
//! (a test harness, a starting thread) is counted.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use carat_model::{KvCache, LanguageModel, LoadOptions, LogitRows, Model, Precision, Segment};
use carat_testkit::fixture;
use smallvec::SmallVec;

/// The system's allocator, counting.
struct Counting;

thread_local! {
    static N_ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    N_ALLOCATIONS.with(|n| n.set(n.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Alone, in company, and so far into a context that several parts of it are joined.
#[test]
fn a_decode_step_allocates_nothing() {
    let models = ["gemma3-text", "gemma4-unified", "gemma4-edge", "gemma4-moe"];
    let precisions = [Precision::F32, Precision::Int16, Precision::Int8];
    for (name, precision) in models.into_iter().flat_map(|name| precisions.map(|p| (name, p))) {
        let path = fixture(format!("{name}/config.json"));
        let options = LoadOptions {
            n_threads: 1,
            precision: Some(precision),
            ..LoadOptions::default()
        };
        let mut model = Model::load(path.parent().unwrap(), options).unwrap();
        // Steps begin with a page of the cache and do not fill it.
        for (n_sequences, depth) in [(1, 0), (8, 0), (1, 4160)] {
            for wanted in [LogitRows::Last, LogitRows::Top(64)] {
                let n = steps(&mut model, n_sequences, depth, wanted);
                assert_eq!(
                    n, 0,
                    "{name} {precision:?}: {wanted:?} of {n_sequences} sequences at {depth} tokens"
                );
            }
        }
    }
}

/// Allocations of 48 steps behind the first two.
fn steps(model: &mut Model, n_sequences: usize, depth: usize, wanted: LogitRows) -> usize {
    let mut caches: Vec<KvCache> = (0..n_sequences)
        .map(|_| model.new_cache(depth + 100).unwrap())
        .collect();
    let (prompt, mut logits) = (vec![3; depth], Vec::new());
    for cache in &mut caches {
        for tokens in prompt.chunks(model.max_batch_tokens()) {
            forward(model, [(tokens, &mut *cache)], LogitRows::None, &mut logits);
        }
    }
    let mut before = 0;
    for token in 0..50 {
        // The caller's logits and the model's own take turns.
        if token == 2 {
            before = N_ALLOCATIONS.get();
        }
        let tokens = [token];
        let sequences = caches.iter_mut().map(|cache| (&tokens[..], cache));
        forward(model, sequences, wanted, &mut logits);
    }
    N_ALLOCATIONS.get() - before
}

fn forward<'a>(
    model: &mut Model,
    sequences: impl IntoIterator<Item = (&'a [u32], &'a mut KvCache)>,
    logits: LogitRows,
    out: &mut Vec<f32>,
) {
    let segments = sequences.into_iter().map(|(tokens, cache)| Segment {
        tokens,
        media: &[],
        cache,
        logits,
    });
    let mut batch: SmallVec<[Segment<'_, KvCache>; 8]> = segments.collect();
    model.forward(&mut batch, out).unwrap();
}
