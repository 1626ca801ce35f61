//! The scheduler on a fake model: random crowds, common beginnings, fairness, limits, the engine's thread.

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use carat_engine::{
    Cancel, Engine, Error, FinishReason, Job, Limits, Media, Request, SamplingParams, Scheduler, Update,
    generate,
};

use carat_model::SpanAttention;

use crate::fake::{BOS, EOS, FakeModel, byte, tokenizer, word};
use crate::jobs::{Ear, Heard, ear, greedy, job, limits, prompt, run, scheduler};

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// A request out of few kinds, so that beginnings are common.
fn random_request(dice: &mut Dice) -> Request {
    let mut ids = prompt(1 + dice.roll(120), dice.roll(3));
    ids.extend((0..dice.roll(10)).map(|_| word(["x", "y"][dice.roll(2)])));
    Request {
        prompt: ids,
        sampling: SamplingParams {
            temperature: if dice.roll(2) == 0 { 0.0 } else { 1.0 },
            seed: dice.roll(5) as u64,
            ..SamplingParams::default()
        },
        max_tokens: Some(1 + dice.roll(25)),
        stop_strings: if dice.roll(4) == 0 {
            vec!["a".to_string()]
        } else {
            Vec::new()
        },
        stop_ids: vec![EOS],
        ..Request::default()
    }
}

#[test]
fn a_random_crowd_says_what_each_would_alone() {
    let mut dice = Dice(7);
    for (n_running, cache_bytes, window) in [(5, 1 << 20, 20), (5, 300, 20), (1, 150, 5), (16, 2000, 200)] {
        let mut model = FakeModel::chaotic();
        (model.window, model.max_batch_tokens) = (window, 16);
        let limits = Limits {
            n_max: 200,
            n_running,
            n_waiting: 50,
            cache_bytes,
        };
        let mut scheduler = scheduler(model, limits);
        let mut jobs: Vec<(Request, Cancel, Ear)> = Vec::new();
        let mut n_refused = 0;
        for _ in 0..3000 {
            for _ in 0..dice.roll(3) * dice.roll(2) {
                let request = random_request(&mut dice);
                let (mut job, ear) = job(request.clone());
                (job.client, job.priority) = (dice.roll(4) as u64, dice.roll(2) as i32);
                let cancel = job.cancel.clone();
                scheduler.submit(job);
                if matches!(ear.lock().unwrap().error, Some(Error::QueueFull { .. })) {
                    n_refused += 1;
                    continue;
                }
                jobs.push((request, cancel, ear));
            }
            if dice.roll(10) == 0 && !jobs.is_empty() {
                jobs[dice.roll(jobs.len())].1.raise();
            }
            scheduler.step();
            let counters = scheduler.counters();
            assert!(counters.running.get() <= n_running as u64);
            assert!(counters.cache_bytes.get() <= cache_bytes as u64 || counters.running.get() <= 1);
        }
        run(&mut scheduler);
        check_crowd(&jobs);
        let counters = scheduler.counters();
        assert_eq!(
            counters.finished.get() + counters.cancelled.get(),
            jobs.len() as u64
        );
        assert_eq!(counters.failed.get(), n_refused);
        assert!(counters.reused.get() > 0);
        assert!(counters.preempted.get() > 0 || cache_bytes != 300);
    }
}

/// A request with images and sounds out of few kinds, in a text out of few.
fn random_media_request(dice: &mut Dice) -> Request {
    let mut request = random_request(dice);
    let mut ids = prompt(2 + dice.roll(40), dice.roll(2));
    for _ in 0..dice.roll(3) {
        let (n, attention) = if dice.roll(2) == 0 {
            ([3, 14, 40][dice.roll(3)], SpanAttention::Bidirectional)
        } else {
            (10 + dice.roll(2), SpanAttention::Causal)
        };
        let first = ids.len();
        ids.resize(first + n, BOS);
        request.media.push(Media {
            tokens: first..ids.len(),
            // An image's rows say how many they are.
            rows: vec![n as f32; n].into(),
            attention,
            content: n as u64 * 1000,
        });
        ids.extend(&prompt(1 + dice.roll(20), 1)[..]);
    }
    ids.extend((0..1 + dice.roll(4)).map(|_| word(["x", "y"][dice.roll(2)])));
    request.prompt = ids;
    request
}

/// Images larger than a pass, beginnings that part behind or before them, memory for few, jobs that are given up.
#[test]
fn a_random_crowd_with_images_says_what_each_would_alone() {
    let mut dice = Dice(11);
    for (cache_bytes, window, n_batch) in [(1 << 20, 20, 16), (350, 20, 16), (350, 3, 7), (900, 200, 64)] {
        let mut model = FakeModel::chaotic();
        (model.window, model.max_batch_tokens) = (window, n_batch);
        let limits = Limits {
            n_max: 200,
            n_running: 5,
            n_waiting: 50,
            cache_bytes,
        };
        let mut scheduler = scheduler(model, limits);
        let mut jobs: Vec<(Request, Cancel, Ear)> = Vec::new();
        for _ in 0..2000 {
            if dice.roll(5) == 0 && scheduler.counters().waiting.get() < 40 {
                let request = random_media_request(&mut dice);
                let (mut job, ear) = job(request.clone());
                job.client = dice.roll(3) as u64;
                jobs.push((request, job.cancel.clone(), ear));
                scheduler.submit(job);
            }
            if dice.roll(20) == 0 && !jobs.is_empty() {
                jobs[dice.roll(jobs.len())].1.raise();
            }
            scheduler.step();
        }
        run(&mut scheduler);
        check_crowd(&jobs);
        assert!(scheduler.counters().reused.get() > 0);
    }
}

#[test]
fn more_places_than_a_pass_has_rows_starve_nobody() {
    let mut model = FakeModel::chaotic();
    model.max_batch_tokens = 8;
    let limits = Limits {
        n_max: 200,
        n_running: 1000,
        n_waiting: 1000,
        cache_bytes: 1 << 20,
    };
    let mut scheduler = scheduler(model, limits);
    let mut dice = Dice(3);
    let jobs: Vec<_> = (0..120)
        .map(|_| {
            let request = random_request(&mut dice);
            let (job, ear) = job(request.clone());
            let cancel = job.cancel.clone();
            scheduler.submit(job);
            (request, cancel, ear)
        })
        .collect();
    for _ in 0..50 {
        scheduler.step();
        assert!(
            scheduler.counters().running.get() < 8,
            "a row is left for a prompt"
        );
    }
    run(&mut scheduler);
    check_crowd(&jobs);
}

/// Each job was told one end, and said what it says alone, or a beginning of that if it was cancelled.
fn check_crowd(jobs: &[(Request, Cancel, Ear)]) {
    assert!(jobs.len() > 100, "{}", jobs.len());
    for (request, cancel, ear) in jobs {
        let heard = ear.lock().unwrap();
        assert_eq!(heard.n_ends, 1);
        let finished = heard.finished.as_ref().unwrap();
        let mut ids = Vec::new();
        let alone = generate(&mut FakeModel::chaotic(), &tokenizer(), 200, request, |event| {
            if let carat_engine::Event::Token { id, .. } = event {
                ids.push(id);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        if finished.reason == FinishReason::Cancelled {
            assert!(cancel.is_raised() && ids.starts_with(&heard.ids));
        } else {
            assert_eq!((&heard.ids, finished.reason), (&ids, alone.reason));
            assert_eq!(finished.usage.n_generated, alone.usage.n_generated);
        }
    }
}

#[test]
fn those_who_decode_get_a_token_at_every_step_while_a_long_prompt_is_computed() {
    let mut model = FakeModel::chaotic();
    model.max_batch_tokens = 64;
    let mut scheduler = scheduler(model, limits());
    let ears: Vec<Ear> = (0..4)
        .map(|i| {
            let (job, ear) = job(greedy(prompt(3, i), 500));
            scheduler.submit(job);
            ear
        })
        .collect();
    scheduler.step();
    scheduler.step();
    let said = || {
        ears.iter()
            .map(|ear| ear.lock().unwrap().ids.len())
            .collect::<Vec<_>>()
    };
    let (long, ear) = job(greedy(prompt(900, 1), 1));
    scheduler.submit(long);
    let (mut before, mut n_steps) = (said(), 0);
    while ear.lock().unwrap().n_ends == 0 {
        scheduler.step();
        n_steps += 1;
        let after = said();
        assert!(
            before.iter().zip(&after).all(|(a, b)| a + 1 == *b),
            "{before:?} {after:?}"
        );
        before = after;
    }
    assert!((15..300).contains(&n_steps), "{n_steps}");
    run(&mut scheduler);
}

/// Prompts that do not fit together are computed one after another, not all at once and again and again.
#[test]
fn prompts_that_do_not_fit_together_are_computed_once() {
    let mut model = FakeModel::chaotic();
    (model.window, model.max_batch_tokens) = (5, 64);
    let limits = Limits {
        n_running: 6,
        cache_bytes: 400,
        ..limits()
    };
    let mut scheduler = scheduler(model, limits);
    let ears: Vec<Ear> = (0..6)
        .map(|i| {
            let mut ids = prompt(300, 0);
            // From the first letter on, so that they share nothing.
            ids[1] = word(["a", "b", "c", "d", "e", "f"][i]);
            let (job, ear) = job(greedy(ids, 60));
            scheduler.submit(job);
            ear
        })
        .collect();
    run(&mut scheduler);
    assert!(ears.iter().all(|ear| ear.lock().unwrap().finished.is_some()));
    let counters = scheduler.counters();
    assert_eq!((counters.prefilled.get(), counters.preempted.get()), (1800, 0));
}

/// An answer and two prompts fit together when they are let in. The answer grows while the first prompt is computed and the
/// second waits for its turn, until there is no room for all.
#[test]
fn who_has_computed_nothing_is_not_preempted() {
    let mut model = FakeModel::chaotic();
    (model.window, model.max_batch_tokens) = (5, 9);
    let limits = Limits {
        n_running: 3,
        cache_bytes: 600,
        ..limits()
    };
    let mut scheduler = scheduler(model, limits);
    let ears = [(100, 200, 13), (480, 1, 4), (5, 1, 0)].map(|(n_prompt, n_answer, n_steps)| {
        let mut ids = prompt(n_prompt, 0);
        ids[1] = word(["x", "y", "z"][n_prompt % 3]);
        let (job, ear) = job(greedy(ids, n_answer));
        scheduler.submit(job);
        (0..n_steps).for_each(|_| scheduler.step());
        ear
    });
    run(&mut scheduler);
    assert!(ears.iter().all(|ear| ear.lock().unwrap().finished.is_some()));
    assert_eq!(scheduler.counters().preempted.get(), 1);
}

fn n_reused(ear: &Ear) -> usize {
    ear.lock().unwrap().finished.as_ref().unwrap().usage.n_reused
}

#[test]
fn common_beginnings_are_computed_once() {
    let mut model = FakeModel::chaotic();
    (model.window, model.max_batch_tokens) = (10, 512);
    let mut scheduler = scheduler(model, limits());
    let mut ask = |ids: Vec<u32>| {
        let (job, ear) = job(greedy(ids, 30));
        scheduler.submit(job);
        run(&mut scheduler);
        n_reused(&ear)
    };
    let common = prompt(700, 1);
    let with = |n: usize, end: &str| [&common[..n], &vec![word(end); 100][..]].concat();
    assert_eq!(ask(with(700, "x")), 0);
    assert_eq!(
        ask(with(700, "x")),
        799,
        "all but the token whose logits are wanted"
    );
    assert_eq!(
        ask(with(700, "y")),
        512,
        "the window has gone on: the snapshot on the way serves"
    );
    assert_eq!(
        ask(with(700, "z")),
        700,
        "by now it is known that prompts part there"
    );
    assert_eq!(ask(with(600, "x")), 512);
    let answered = [&with(700, "z")[..], &[word("q")]].concat();
    assert_eq!(ask(answered), 800);
}

#[test]
fn prompts_that_come_together_wait_for_their_common_beginning() {
    let mut model = FakeModel::chaotic();
    (model.window, model.max_batch_tokens) = (10, 100);
    let mut scheduler = scheduler(model, limits());
    let ears: Vec<Ear> = (0..6)
        .map(|i| {
            let end = [word("x"), word("y"), word("z")][i % 3];
            let (job, ear) = job(greedy([&prompt(500, 1)[..], &[end; 20]].concat(), 5));
            scheduler.submit(job);
            ear
        })
        .collect();
    run(&mut scheduler);
    let n_computed = scheduler.counters().prefilled.get();
    assert!(n_computed < 500 + 6 * 25, "{n_computed}");
    let mut reused: Vec<usize> = ears.iter().map(n_reused).collect();
    reused.sort_unstable();
    assert_eq!(reused[0], 0);
    assert!(reused[1] >= 500, "{reused:?}");
}

/// The names of jobs in the order in which they ended.
#[derive(Default)]
struct Order(Arc<Mutex<Vec<usize>>>);

impl Order {
    fn job(&self, request: Request, name: usize) -> Job {
        let order = Arc::clone(&self.0);
        let sink = move |update| {
            if let Update::Finished(_) = update {
                order.lock().unwrap().push(name);
            }
            ControlFlow::Continue(())
        };
        Job::new(request, Box::new(sink))
    }

    fn names(&self) -> Vec<usize> {
        self.0.lock().unwrap().clone()
    }
}

#[test]
fn a_client_with_many_jobs_does_not_keep_others_waiting() {
    let limits = Limits {
        n_running: 1,
        ..limits()
    };
    let mut scheduler = scheduler(FakeModel::chaotic(), limits);
    let order = Order::default();
    let mut submit = |client: u64, priority: i32, name: usize| {
        let mut job = order.job(greedy(prompt(20, name), 10), name);
        (job.client, job.priority) = (client, priority);
        scheduler.submit(job);
    };
    (0..5).for_each(|i| submit(1, 0, i));
    (10..12).for_each(|i| submit(2, 0, i));
    submit(1, 5, 20);
    run(&mut scheduler);
    let order = order.names();
    assert_eq!(order[0], 20, "the higher priority comes first");
    assert_eq!(
        &order[1..4],
        [10, 11, 0],
        "then the client that was not served yet"
    );
}

#[test]
fn what_nobody_else_waited_for_is_not_held_against_a_client() {
    const OLD: u64 = 1;
    const NEW: u64 = 2;
    const STEADY: u64 = 3;
    // With and without a third client, who is there all the time and never waits.
    for n_steady in [0, 1] {
        let limits = Limits {
            n_running: 1 + n_steady,
            ..limits()
        };
        let mut scheduler = scheduler(FakeModel::chaotic(), limits);
        let order = Order::default();
        let submit = |scheduler: &mut Scheduler<FakeModel>, client: u64, n: usize, name: usize| {
            let mut job = order.job(greedy(prompt(5, name), n), name);
            job.client = client;
            scheduler.submit(job);
        };
        (0..n_steady).for_each(|_| submit(&mut scheduler, STEADY, 900, 1000));
        for i in 0..10 {
            submit(&mut scheduler, OLD, 50, i);
            (0..60).for_each(|_| scheduler.step());
        }
        (100..120).for_each(|i| submit(&mut scheduler, NEW, 10, i));
        scheduler.step();
        submit(&mut scheduler, OLD, 5, 20);
        run(&mut scheduler);
        let ended: Vec<usize> = order.names().into_iter().filter(|name| *name < 1000).collect();
        assert_eq!(&ended[10..13], [100, 20, 101], "{ended:?}");
    }
}

#[test]
fn a_client_that_comes_anew_meets_those_who_waited_as_an_equal() {
    let limits = Limits {
        n_running: 1,
        ..limits()
    };
    let mut scheduler = scheduler(FakeModel::chaotic(), limits);
    let order = Order::default();
    let submit = |scheduler: &mut Scheduler<FakeModel>, client: u64, name: usize| {
        let mut job = order.job(greedy(prompt(5, name), 10), name);
        job.client = client;
        scheduler.submit(job);
    };
    // Two wait for each other for long, until nobody is there.
    (0..40).for_each(|i| submit(&mut scheduler, 1 + i as u64 % 2, i));
    run(&mut scheduler);
    (100..120).for_each(|i| submit(&mut scheduler, 3, i));
    scheduler.step();
    submit(&mut scheduler, 1, 40);
    run(&mut scheduler);
    let ended = order.names();
    let at = ended[40..].iter().position(|name| *name == 40);
    assert!(at <= Some(2), "{:?}", &ended[40..]);
}

#[test]
fn what_is_unwanted_or_too_late_ends_where_it_is() {
    let limits = Limits {
        n_running: 1,
        n_waiting: 2,
        ..limits()
    };
    let most = limits.n_jobs();
    let mut scheduler = scheduler(FakeModel::chaotic(), limits);
    let (first, running) = job(greedy(prompt(5, 0), 900));
    let cancel = first.cancel.clone();
    scheduler.submit(first);
    scheduler.step();
    let (mut second, late) = job(greedy(prompt(5, 0), 900));
    second.deadline = Some(Instant::now());
    scheduler.submit(second);
    let (third, gone) = job(greedy(prompt(5, 0), 900));
    third.cancel.raise();
    scheduler.submit(third);
    let (fourth, refused) = job(greedy(prompt(5, 0), 900));
    scheduler.submit(fourth);
    assert!(matches!(
        refused.lock().unwrap().error,
        Some(Error::QueueFull { limit }) if limit == most
    ));
    scheduler.step();
    let reason = |ear: &Ear| ear.lock().unwrap().finished.as_ref().map(|f| f.reason);
    assert_eq!(reason(&late), Some(FinishReason::Deadline));
    assert_eq!(reason(&gone), Some(FinishReason::Cancelled));
    assert_eq!(reason(&running), None);
    cancel.raise();
    scheduler.step();
    assert_eq!(reason(&running), Some(FinishReason::Cancelled));
    assert!(scheduler.is_idle());
}

#[test]
fn jobs_that_make_no_sense_fail_without_harm_to_others() {
    let mut scheduler = scheduler(FakeModel::chaotic(), limits());
    let bad = [
        greedy(Vec::new(), 5),
        greedy(vec![BOS, 1_000_000], 5),
        greedy(prompt(1000, 0), 5),
        greedy(prompt(5, 0), 0),
    ];
    for request in bad {
        let (job, ear) = job(request);
        scheduler.submit(job);
        assert!(ear.lock().unwrap().error.is_some());
    }
    assert!(scheduler.is_idle());
}

#[test]
fn a_pass_that_fails_takes_only_the_guilty_with_it() {
    let mut model = FakeModel::chaotic();
    model.fails_at = Some(1);
    let mut scheduler = scheduler(model, limits());
    let ears: Vec<Ear> = (0..3)
        .map(|i| {
            let (job, ear) = job(greedy(prompt(2, i), 4));
            scheduler.submit(job);
            ear
        })
        .collect();
    run(&mut scheduler);
    // The second call fails once; each alone then succeeds.
    assert!(ears.iter().all(|ear| ear.lock().unwrap().finished.is_some()));

    let mut model = FakeModel::chaotic();
    model.fails_at = Some(0);
    let mut scheduler = self::scheduler(model, limits());
    let (job, ear) = job(greedy(prompt(2, 0), 4));
    scheduler.submit(job);
    run(&mut scheduler);
    let error = ear.lock().unwrap().error.take().unwrap();
    assert_eq!(
        error.to_string(),
        "the model could not go on: the fake failed as asked"
    );
}

/// A vector is the mean over all tokens, whatever the chunks and the company.
#[test]
fn vectors_are_computed_among_answers() {
    let mut model = FakeModel::chaotic();
    (model.window, model.max_batch_tokens) = (20, 16);
    let limits = Limits {
        n_max: 200,
        n_running: 6,
        cache_bytes: 300,
        ..limits()
    };
    let mut scheduler = scheduler(model, limits);
    let mut dice = Dice(3);
    let mut wanted = Vec::new();
    for i in 0..60 {
        let tokens = prompt(1 + dice.roll(150), dice.roll(3));
        let (sink, heard) = ear();
        scheduler.submit(Job::embedding(tokens.clone(), sink));
        wanted.push((tokens, heard));
        let (answer, _) = job(random_request(&mut dice));
        if i % 7 == 0 {
            let (sink, heard) = ear();
            let cancelled = Job::embedding(prompt(100, 1), sink);
            cancelled.cancel.raise();
            scheduler.submit(cancelled);
            scheduler.step();
            let reason = heard
                .lock()
                .unwrap()
                .finished
                .as_ref()
                .map(|finished| finished.reason);
            assert_eq!(reason, Some(FinishReason::Cancelled));
        }
        scheduler.submit(answer);
        (0..dice.roll(6)).for_each(|_| scheduler.step());
    }
    run(&mut scheduler);
    for (tokens, heard) in wanted {
        assert_mean(&heard.lock().unwrap(), &tokens);
    }
}

/// What was summed of one that gives up its place is not counted twice.
#[test]
fn a_vector_that_is_started_anew_is_the_same() {
    let mut model = FakeModel::chaotic();
    model.max_batch_tokens = 4;
    let limits = Limits {
        cache_bytes: 170,
        ..limits()
    };
    let mut scheduler = scheduler(model, limits);
    // The answer grows beyond the room that the vector leaves it, long before the vector is done, four tokens at a step.
    let (answer, ended) = job(greedy(prompt(60, 1), 100));
    scheduler.submit(answer);
    (0..20).for_each(|_| scheduler.step());
    // Its ends have different means, so that it shows which part was counted how often.
    let tokens: Vec<u32> = (0..85).map(|i| if i < 40 { BOS } else { word("e") }).collect();
    let (sink, heard) = ear();
    scheduler.submit(Job::embedding(tokens.clone(), sink));
    run(&mut scheduler);
    assert_eq!(scheduler.counters().preempted.get(), 1);
    assert_eq!(ended.lock().unwrap().ids.len(), 100);
    assert_mean(&heard.lock().unwrap(), &tokens);
}

/// Of the fake model's embedding: a token's own number, and 1.
fn assert_mean(heard: &Heard, tokens: &[u32]) {
    let (sum, n) = (
        tokens.iter().map(|&token| token as f32).sum::<f32>(),
        tokens.len() as f32,
    );
    let norm = (sum * sum + n * n).sqrt();
    let vector = heard.vector.as_ref().unwrap();
    assert!((vector[0] - sum / norm).abs() < 1e-5 && (vector[1] - n / norm).abs() < 1e-5);
}

fn listen(request: Request) -> (Job, Receiver<Update>) {
    let (sender, receiver) = channel();
    let job = Job::new(
        request,
        Box::new(move |update| match sender.send(update) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }),
    );
    (job, receiver)
}

#[test]
fn the_engine_answers_from_its_own_thread_and_notices_who_leaves() {
    let engine = Engine::start(FakeModel::chaotic(), Arc::new(tokenizer()), limits()).unwrap();
    let (job, receiver) = listen(greedy(prompt(5, 0), 10));
    engine.submit(job).unwrap();
    let updates: Vec<Update> = receiver.iter().collect();
    assert_eq!(updates.len(), 11);
    assert!(matches!(updates[10], Update::Finished(_)));

    let (job, receiver) = listen(greedy(prompt(5, 1), 900));
    engine.submit(job).unwrap();
    drop(receiver);
    let started = Instant::now();
    while engine.counters().cancelled.get() == 0 {
        assert!(started.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
}

#[test]
fn a_panic_in_the_model_stops_the_engine_and_tells_everybody() {
    let model = FakeModel::new(crate::fake::N_PIECES, |seen| {
        assert!(seen.len() < 8, "as the test wants it");
        vec![1.0; crate::fake::N_PIECES]
    });
    let engine = Engine::start(model, Arc::new(tokenizer()), limits()).unwrap();
    let (job, receiver) = listen(greedy(vec![BOS, byte(65)], 100));
    engine.submit(job).unwrap();
    let last = receiver.iter().last().unwrap();
    assert!(
        matches!(&last, Update::Failed(error) if matches!(**error, Error::Stopped)),
        "{last:?}"
    );
    let started = Instant::now();
    while !engine.has_stopped() {
        assert!(started.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    let (job, receiver) = listen(greedy(vec![BOS], 1));
    assert!(matches!(engine.submit(job), Err(Error::Stopped)));
    assert_eq!(
        receiver.iter().count(),
        0,
        "who was refused is told by the refusal"
    );
}

/// Also those are told that the thread had not taken yet when it ended.
#[test]
fn jobs_on_their_way_are_told_that_the_engine_has_stopped() {
    let ((inside, is_inside), (go, wait)) = (channel::<()>(), channel::<()>());
    let model = FakeModel::new(crate::fake::N_PIECES, move |_| {
        inside.send(()).unwrap();
        wait.recv().unwrap();
        panic!("as the test wants it");
    });
    let engine = Engine::start(model, Arc::new(tokenizer()), limits()).unwrap();
    let (first, heard_first) = listen(greedy(prompt(5, 0), 10));
    engine.submit(first).unwrap();
    is_inside.recv().unwrap();
    let others: Vec<Receiver<Update>> = (0..3)
        .map(|i| {
            let (job, heard) = listen(greedy(prompt(5, i), 10));
            engine.submit(job).unwrap();
            heard
        })
        .collect();
    go.send(()).unwrap();
    for heard in others.into_iter().chain([heard_first]) {
        let updates: Vec<Update> = heard.iter().collect();
        let is_stopped =
            |update: &Update| matches!(update, Update::Failed(error) if matches!(**error, Error::Stopped));
        assert!(updates.len() == 1 && is_stopped(&updates[0]), "{updates:?}");
    }
    assert_eq!(engine.counters().failed.get(), 4);
}

/// A model that computes nothing until the sender is dropped.
fn held() -> (FakeModel, Sender<()>) {
    let (go, wait) = channel::<()>();
    let model = FakeModel::new(crate::fake::N_PIECES, move |_| {
        let _until_it_is_dropped = wait.recv();
        vec![1.0; crate::fake::N_PIECES]
    });
    (model, go)
}

/// An engine that answers four at once while two wait.
fn six_places(model: FakeModel) -> Engine {
    let limits = Limits {
        n_running: 4,
        n_waiting: 2,
        ..limits()
    };
    Engine::start(model, Arc::new(tokenizer()), limits).unwrap()
}

fn group(n: usize) -> (Vec<Job>, Vec<Receiver<Update>>) {
    (0..n).map(|i| listen(greedy(prompt(5, i), 3))).unzip()
}

#[test]
fn as_many_are_taken_together_as_may_run_and_wait() {
    for n in [4, 6] {
        let (model, go) = held();
        let engine = six_places(model);
        let (jobs, heard) = group(n);
        engine.submit_all(jobs).unwrap();
        let (jobs, refused) = group(7 - n);
        assert!(matches!(
            engine.submit_all(jobs),
            Err(Error::QueueFull { limit: 6 })
        ));
        assert!(refused.iter().all(|heard| heard.iter().count() == 0));
        let (jobs, others) = group(6 - n);
        engine.submit_all(jobs).unwrap();
        drop(go);
        for heard in heard.into_iter().chain(others) {
            let last = heard.iter().last();
            assert!(matches!(last, Some(Update::Finished(_))), "{last:?}");
        }
        // Who has heard of all ends may come with as many at once.
        engine.submit_all(group(6).0).unwrap();
    }
}

#[test]
fn more_than_there_are_places_is_refused_for_good() {
    let engine = six_places(FakeModel::chaotic());
    let (jobs, refused) = group(7);
    assert!(matches!(
        engine.submit_all(jobs),
        Err(Error::TooManyTogether {
            n_wanted: 7,
            limit: 6
        })
    ));
    assert!(refused.iter().all(|heard| heard.iter().count() == 0));
    engine.submit_all(group(6).0).unwrap();
}

/// A pass has rows for no more than three, and so has the engine's own count.
#[test]
fn places_that_a_pass_has_no_rows_for_are_not_counted() {
    let (mut model, go) = held();
    model.max_batch_tokens = 4;
    let engine = six_places(model);
    assert_eq!(engine.limits().n_jobs(), 5);
    engine.submit_all(group(5).0).unwrap();
    assert!(matches!(
        engine.submit_all(group(1).0),
        Err(Error::QueueFull { limit: 5 })
    ));
    drop(go);
}

#[test]
fn two_who_come_at_once_do_not_exceed_the_limit_together() {
    for _ in 0..20 {
        let (model, go) = held();
        let engine = six_places(model);
        let taken = std::thread::scope(|scope| {
            let submit = || scope.spawn(|| engine.submit_all(group(4).0).is_ok());
            let both = [submit(), submit()];
            both.map(|thread| usize::from(thread.join().unwrap()))
                .iter()
                .sum::<usize>()
        });
        assert_eq!(taken, 1);
        drop(go);
    }
}

/// All places are taken by jobs that end in some way; then all must be free again.
#[test]
fn places_are_given_back_in_whatever_way_jobs_end() {
    type Change = fn(&mut Job);
    let ways: [(&str, Change); 6] = [
        ("to the end", |_| {}),
        ("cancelled", |job| job.cancel.raise()),
        ("too late", |job| job.deadline = Some(Instant::now())),
        ("refused", |job| job.request.prompt.clear()),
        ("a broken pass", |job| job.request.prompt = vec![BOS, word("x")]),
        ("nobody listens", |job| {
            job.sink = Box::new(|_| ControlFlow::Break(()));
        }),
    ];
    for (way, change) in ways {
        let mut model = FakeModel::chaotic();
        model.refuses = Some(word("x"));
        let engine = six_places(model);
        for _ in 0..3 {
            let (mut jobs, heard) = group(6);
            jobs.iter_mut().for_each(change);
            let n_before = n_ended(&engine);
            engine
                .submit_all(jobs)
                .unwrap_or_else(|error| panic!("{way}: {error}"));
            let started = Instant::now();
            while n_ended(&engine) < n_before + 6 {
                assert!(started.elapsed() < Duration::from_secs(20), "{way}");
                std::thread::yield_now();
            }
            drop(heard);
        }
    }
}

fn n_ended(engine: &Engine) -> u64 {
    let counters = engine.counters();
    counters.finished.get() + counters.cancelled.get() + counters.failed.get()
}

#[test]
fn places_of_an_engine_that_broke_down_are_not_said_to_be_taken() {
    let model = FakeModel::new(crate::fake::N_PIECES, |_| panic!("as the test wants it"));
    let engine = six_places(model);
    let (jobs, heard) = group(6);
    engine.submit_all(jobs).unwrap();
    for heard in heard {
        let last = heard.iter().last();
        assert!(
            matches!(&last, Some(Update::Failed(error)) if matches!(**error, Error::Stopped)),
            "{last:?}"
        );
    }
    let started = Instant::now();
    while !engine.has_stopped() {
        assert!(started.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    assert!(matches!(engine.submit_all(group(6).0), Err(Error::Stopped)));
}
