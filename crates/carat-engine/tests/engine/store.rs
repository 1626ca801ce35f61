//! Beginnings that memory has no room for go to the store, and come back from it, also in another scheduler.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use carat_engine::{Finished, Job, Limits, PrefixStore, Request, SamplingParams, Scheduler, Update};
use carat_model::SequenceCache;

use crate::fake::{BOS, FakeCache, FakeModel, tokenizer, word};

type Kept = Vec<(Vec<u32>, FakeCache)>;

/// Caches by their tokens, and how often one was read.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Kept>>, Arc<AtomicUsize>);

impl Shelf {
    fn lengths(&self) -> Vec<usize> {
        let kept = self.0.lock().unwrap();
        let mut lengths: Vec<usize> = kept.iter().map(|(tokens, _)| tokens.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }
}

impl PrefixStore<FakeCache> for Shelf {
    fn n_common(&mut self, tokens: &[u32]) -> usize {
        let kept = self.0.lock().unwrap();
        let begins = kept.iter().filter(|(kept, _)| tokens.starts_with(kept));
        begins.map(|(kept, _)| kept.len()).max().unwrap_or(0)
    }

    fn load(&mut self, tokens: &[u32]) -> Option<FakeCache> {
        self.1.fetch_add(1, Ordering::Relaxed);
        let n = self.n_common(tokens);
        let kept = self.0.lock().unwrap();
        let (_, cache) = kept.iter().find(|(kept, _)| *kept == tokens[..n])?;
        cache.fork(n)
    }

    fn keep(&mut self, tokens: Vec<u32>, cache: FakeCache, _: bool) {
        assert_eq!(tokens.len(), cache.len());
        self.0.lock().unwrap().push((tokens, cache));
    }
}

fn scheduler(shelf: &Shelf, cache_bytes: usize) -> Scheduler<FakeModel> {
    let limits = Limits {
        n_max: 1000,
        n_running: 4,
        n_waiting: 100,
        cache_bytes,
    };
    let mut scheduler = Scheduler::new(FakeModel::chaotic(), Arc::new(tokenizer()), limits);
    scheduler.set_store(Box::new(shelf.clone()));
    scheduler
}

/// `<bos>` and letters that depend on `seed`.
fn prompt(n: usize, seed: usize) -> Vec<u32> {
    let letter = |i: usize| word(["a", "b", "c", "d", "e"][(i * 7 + i * i * seed) % 5]);
    std::iter::once(BOS).chain((1..n).map(letter)).collect()
}

/// Answers one prompt; its text and what is told at the end.
fn ask(scheduler: &mut Scheduler<FakeModel>, prompt: Vec<u32>) -> (String, Finished) {
    let heard: Arc<Mutex<(String, Option<Finished>)>> = Arc::default();
    let ear = Arc::clone(&heard);
    let sink = move |update| {
        let mut heard = ear.lock().unwrap();
        match update {
            Update::Token { text, .. } => heard.0.push_str(&text),
            Update::Finished(finished) => {
                heard.0.push_str(&finished.text);
                heard.1 = Some(*finished);
            }
            Update::Failed(error) => assert_eq!(error.to_string(), "", "no job fails here"),
            Update::Embedded(_) => {}
        }
        ControlFlow::Continue(())
    };
    let request = Request {
        prompt,
        sampling: SamplingParams::greedy(),
        max_tokens: Some(8),
        ..Request::default()
    };
    scheduler.submit(Job::new(request, Box::new(sink)));
    while !scheduler.is_idle() {
        scheduler.step();
    }
    let mut heard = heard.lock().unwrap();
    (std::mem::take(&mut heard.0), heard.1.take().unwrap())
}

#[test]
fn a_new_scheduler_goes_on_from_what_the_last_one_put_away() {
    let shelf = Shelf::default();
    let mut first = scheduler(&shelf, 1 << 30);
    let (text, finished) = ask(&mut first, prompt(600, 1));
    ask(&mut first, prompt(100, 2));
    assert_eq!(finished.usage.n_reused, 0);
    assert!(shelf.lengths().is_empty(), "memory has room");
    first.close();
    let lengths = shelf.lengths();
    assert!(lengths.contains(&600), "the prompt's end: {lengths:?}");
    assert!(!lengths.contains(&512), "on the way only: {lengths:?}");
    assert!(lengths.iter().all(|&n| n >= 256), "not worth it: {lengths:?}");

    let mut second = scheduler(&shelf, 1 << 30);
    let mut longer = prompt(600, 1);
    longer.extend(&prompt(40, 3)[1..]);
    let (_, finished) = ask(&mut second, longer);
    assert_eq!(finished.usage.n_reused, 600);
    assert_eq!(second.counters().restored.get(), 600);
    // What was restored is in memory now.
    let mut another = prompt(600, 1);
    another.extend(&prompt(30, 4)[1..]);
    assert_eq!(ask(&mut second, another).1.usage.n_reused, 600);
    assert_eq!(second.counters().restored.get(), 600);
    // The same prompt gives the same answer, whatever was read for it.
    assert_eq!(ask(&mut second, prompt(600, 1)).0, text);
}

#[test]
fn what_memory_has_no_room_for_is_put_away_while_it_runs() {
    let shelf = Shelf::default();
    let bytes = {
        use carat_model::LanguageModel;
        FakeModel::chaotic().cache_bytes(700)
    };
    let mut scheduler = scheduler(&shelf, 2 * bytes);
    let texts: Vec<String> = (1..6)
        .map(|seed| ask(&mut scheduler, prompt(600, seed)).0)
        .collect();
    assert!(shelf.lengths().contains(&600));
    for (seed, text) in (1..6).zip(texts) {
        let mut longer = prompt(600, seed);
        longer.push(word("a"));
        assert!(ask(&mut scheduler, longer).1.usage.n_reused >= 599, "{seed}");
        assert_eq!(ask(&mut scheduler, prompt(600, seed)).0, text, "{seed}");
    }
}

#[test]
fn a_job_that_waits_for_memory_reads_nothing_and_holds_nothing() {
    use carat_model::LanguageModel;

    let shelf = Shelf::default();
    let mut first = scheduler(&shelf, 1 << 30);
    ask(&mut first, prompt(600, 1));
    first.close();
    let mut longer = prompt(600, 1);
    longer.push(word("a"));
    let known = ask(&mut scheduler(&Shelf::default(), 1 << 30), longer.clone()).0;

    let bytes = FakeModel::chaotic().cache_bytes(900);
    let mut scheduler = scheduler(&shelf, bytes);
    let answer = |max_tokens, prompt| Request {
        prompt,
        sampling: SamplingParams::greedy(),
        max_tokens: Some(max_tokens),
        ..Request::default()
    };
    let silent = |_| ControlFlow::Continue(());
    scheduler.submit(Job::new(answer(200, prompt(600, 2)), Box::new(silent)));
    while scheduler.counters().prefilled.get() < 600 {
        scheduler.step();
    }
    scheduler.submit(Job::new(answer(8, longer.clone()), Box::new(silent)));
    (0..50).for_each(|_| {
        scheduler.step();
        assert!(scheduler.counters().cache_bytes.get() <= bytes as u64);
    });
    assert_eq!(scheduler.counters().waiting.get(), 1, "there is no room for both");
    assert_eq!(
        shelf.1.load(Ordering::Relaxed),
        0,
        "nothing is read for one that waits"
    );
    assert_eq!(scheduler.counters().restored.get(), 0);
    while !scheduler.is_idle() {
        scheduler.step();
    }
    assert_eq!(shelf.1.load(Ordering::Relaxed), 1);
    assert_eq!(ask(&mut scheduler, longer).0, known);
}

/// However much memory there is, 1024 snapshots are kept.
#[test]
fn what_is_too_many_for_memory_is_put_away_too() {
    let shelf = Shelf::default();
    let mut scheduler = scheduler(&shelf, 1 << 40);
    let numbered = |n: usize| {
        let digit = |i: u32| word(["a", "b", "c", "d", "e"][n / 5_usize.pow(i) % 5]);
        let mut prompt = prompt(300, 1);
        for i in 0..5_u32 {
            prompt[1 + i as usize] = digit(i);
        }
        prompt
    };
    let mut n = 0;
    while shelf.lengths().is_empty() {
        assert!(n < 1100, "memory keeps all");
        ask(&mut scheduler, numbered(n));
        n += 1;
    }
    assert_eq!(scheduler.counters().snapshots.get(), 1024);
    let kept = shelf.0.lock().unwrap();
    assert_eq!(kept[0].0[..300], numbered(0), "what was used longest ago");
}
