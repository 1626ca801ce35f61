//! A decode step allocates nothing but a page of the cache when one is full: all else was there after the first step.
//!
//! One thread does all the work here and counts its own allocations, so that nothing else in the process
//! (a test harness, a starting thread) is counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use carat_model::{LanguageModel, LoadOptions, LogitRows, Model, Precision, Segment};
use carat_testkit::fixture;

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
        let mut cache = model.new_cache(100).unwrap();
        let mut logits = Vec::new();
        let mut step = |token: u32, cache: &mut _, logits: &mut _| {
            let mut batch = [Segment {
                tokens: &[token],
                media: &[],
                cache,
                logits: LogitRows::Last,
            }];
            model.forward(&mut batch, logits).unwrap();
        };
        // Two steps: the caller's logits and the model's own take turns.
        for token in 0..2 {
            step(token, &mut cache, &mut logits);
        }
        let before = N_ALLOCATIONS.get();
        for token in 2..50 {
            step(token, &mut cache, &mut logits);
        }
        assert_eq!(N_ALLOCATIONS.get() - before, 0, "{name} {precision:?}");
    }
}
