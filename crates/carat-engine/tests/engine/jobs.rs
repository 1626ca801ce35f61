//! Jobs for a scheduler on a fake model, and what they were told.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use carat_engine::{Error, Finished, Job, Limits, Request, SamplingParams, Scheduler, Sink, Update};

use crate::fake::{BOS, FakeModel, tokenizer, word};

/// What one job was told.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: String,
    pub(crate) finished: Option<Finished>,
    pub(crate) vector: Option<Vec<f32>>,
    pub(crate) error: Option<Error>,
    pub(crate) n_ends: usize,
}

pub(crate) type Ear = Arc<Mutex<Heard>>;

pub(crate) fn job(request: Request) -> (Job, Ear) {
    let (sink, ear) = ear();
    (Job::new(request, sink), ear)
}

pub(crate) fn ear() -> (Sink, Ear) {
    let ear = Ear::default();
    let shared = Arc::clone(&ear);
    let sink = move |update| {
        let mut heard = shared.lock().unwrap();
        assert_eq!(heard.n_ends, 0, "nothing follows the end");
        match update {
            Update::Token { id, text, .. } => {
                heard.ids.push(id);
                heard.text.push_str(&text);
                return ControlFlow::Continue(());
            }
            Update::Embedded(vector) => heard.vector = Some(vector),
            Update::Finished(finished) => {
                heard.text.push_str(&finished.text);
                heard.finished = Some(*finished);
            }
            Update::Failed(error) => heard.error = Some(*error),
        }
        heard.n_ends += 1;
        ControlFlow::Continue(())
    };
    (Box::new(sink), ear)
}

pub(crate) fn limits() -> Limits {
    Limits {
        n_max: 1000,
        n_running: 8,
        n_waiting: 1000,
        cache_bytes: 1 << 30,
    }
}

pub(crate) fn scheduler(model: FakeModel, limits: Limits) -> Scheduler<FakeModel> {
    Scheduler::new(model, Arc::new(tokenizer()), limits)
}

/// `<bos>` and `n - 1` letters that depend on `seed`.
pub(crate) fn prompt(n: usize, seed: usize) -> Vec<u32> {
    let letters = ["a", "b", "c", "d", "e"];
    (0..n)
        .map(|i| {
            if i == 0 {
                BOS
            } else {
                word(letters[(i * 7 + i * i * seed) % 5])
            }
        })
        .collect()
}

pub(crate) fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        prompt,
        sampling: SamplingParams::greedy(),
        max_tokens: Some(max_tokens),
        ..Request::default()
    }
}

pub(crate) fn run(scheduler: &mut Scheduler<FakeModel>) {
    for _ in 0..100_000 {
        if scheduler.is_idle() {
            return;
        }
        scheduler.step();
    }
    assert!(scheduler.is_idle(), "the scheduler does not come to an end");
}
