//! Guessing ahead: never a trace of it in the answer, whatever is guessed, and fewer passes where guesses are right.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use carat_engine::{
    Drafting, Error, Event, FinishReason, Finished, Grammar, GrammarCompiler, Job, Limits, Request,
    SamplingParams, Scheduler, Session, TokenLogprobs, Update, generate, generate_batch,
};
use proptest::prelude::*;

use crate::fake::{BOS, EOS, FakeModel, N_PIECES, tokenizer, word};

const LETTERS: [&str; 4] = ["a", "b", "c", "d"];

/// A model that mostly goes through a cycle of letters and sometimes, by all that it has seen, does not.
fn wavering() -> FakeModel {
    let mut model = FakeModel::new(N_PIECES, |seen| {
        let hash = seen
            .iter()
            .fold(11u64, |h, &t| (h ^ u64::from(t)).wrapping_mul(0x100_0000_01b3));
        let position = LETTERS.iter().position(|l| seen.last() == Some(&word(l)));
        let next = (position.map_or(0, |p| p + 1) + usize::from(hash >> 32 & 7 == 0)) % LETTERS.len();
        let mut row = vec![-9.0; N_PIECES];
        for (i, letter) in LETTERS.iter().enumerate() {
            row[word(letter) as usize] = if i == next {
                3.0
            } else {
                (hash >> (8 * i) & 3) as f32 / 2.0
            };
        }
        row[EOS as usize] = if hash >> 40 & 63 == 0 { 4.0 } else { -1.0 };
        row
    });
    model.max_batch_tokens = 64;
    model
}

/// A drafter that guesses letters by dice.
fn guesser(mut state: u64) -> crate::fake::Drafter {
    Box::new(move |tokens, n| {
        let mut last = tokens[tokens.len() - 1];
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = LETTERS.iter().position(|l| last == word(l)).map_or(0, |p| p + 1);
                let step = usize::from(state >> 60 == 0);
                last = word(LETTERS[(at + step) % LETTERS.len()]);
                last
            })
            .collect()
    })
}

fn request(prompt: &[&str], drafting: Drafting, sampling: SamplingParams) -> Request {
    let mut ids = vec![BOS];
    ids.extend(prompt.iter().map(|w| word(w)));
    Request {
        prompt: ids,
        sampling,
        stop_ids: vec![EOS],
        max_tokens: Some(100),
        drafting,
        ..Request::default()
    }
}

/// Everything that is told of an answer's tokens.
type Told = Vec<(u32, String, Option<TokenLogprobs>)>;

/// What is told of an answer, and its end; cancelled after `n_wanted` tokens.
fn told(model: &mut FakeModel, n_max: usize, request: &Request, n_wanted: usize) -> (Told, Finished) {
    let mut told = Vec::new();
    let finished = generate(model, &tokenizer(), n_max, request, |event| {
        if let Event::Token { id, text, logprobs } = event {
            told.push((id, text.to_owned(), logprobs.cloned()));
        }
        if told.len() == n_wanted {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .unwrap();
    (told, finished)
}

/// The answer's ids and end.
fn answer(model: &mut FakeModel, n_max: usize, request: &Request) -> (Vec<u32>, Finished) {
    let (told, finished) = told(model, n_max, request, usize::MAX);
    (told.into_iter().map(|(id, ..)| id).collect(), finished)
}

/// Every stage of the sampler, each on or off.
fn samplings() -> impl Strategy<Value = SamplingParams> {
    let filters = (
        prop_oneof![Just(0), 1..6usize],
        prop_oneof![Just(1.0f32), 0.3..0.99f32],
        prop_oneof![Just(0.0f32), 0.01..0.5f32],
        prop_oneof![Just(1.0f32), 0.3..0.99f32],
    );
    let penalties = (
        prop_oneof![Just(1.0f32), 0.8..1.5f32],
        prop_oneof![Just(0.0f32), -0.5..0.5f32],
        prop_oneof![Just(0.0f32), -0.5..0.5f32],
        prop_oneof![Just(64usize), 0..8usize],
    );
    let bias = prop::collection::vec((0..4usize, -3.0..3.0f32), 0..3);
    let temperature = prop_oneof![Just(0.0f32), 0.2..2.0f32];
    (temperature, filters, penalties, bias, any::<u64>()).prop_map(
        |(temperature, (top_k, top_p, min_p, typical_p), penalties, bias, seed)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            repetition_penalty: penalties.0,
            frequency_penalty: penalties.1,
            presence_penalty: penalties.2,
            penalty_window: penalties.3,
            logit_bias: bias
                .into_iter()
                .map(|(i, bias)| (word(LETTERS[i]), bias))
                .collect(),
            seed,
        },
    )
}

fn modes() -> impl Strategy<Value = Drafting> {
    prop_oneof![Just(Drafting::Adaptive), (1..20usize).prop_map(Drafting::Fixed)]
}

proptest! {
    #[test]
    fn an_answer_does_not_depend_on_drafts(
        drafting in modes(),
        with_drafter in any::<bool>(),
        sampling in samplings(),
        max_tokens in 1..80usize,
        n_max in 12..90usize,
        letters in prop::collection::vec(0..4usize, 3..10),
        stop in prop::option::of(prop_oneof![Just("ca"), Just("dd")]),
        suppressed in prop::option::of(0..4usize),
        n_wanted in prop_oneof![Just(usize::MAX), 1..40usize],
    ) {
        let prompt: Vec<&str> = letters.iter().map(|i| LETTERS[*i]).collect();
        let seed = sampling.seed;
        let mut plain = request(&prompt, Drafting::Off, sampling);
        plain.max_tokens = Some(max_tokens);
        plain.stop_strings = stop.into_iter().map(str::to_owned).collect();
        plain.suppressed = suppressed.into_iter().map(|i| word(LETTERS[i])).collect();
        plain.logprobs = Some(2);
        let (want, end) = told(&mut wavering(), n_max, &plain, n_wanted);
        prop_assert_eq!(end.drafts.n_drafted(), 0);
        let mut model = wavering();
        model.drafter = with_drafter.then(|| guesser(seed));
        let (got, drafted_end) = told(&mut model, n_max, &Request { drafting, ..plain }, n_wanted);
        prop_assert_eq!(&got, &want);
        prop_assert_eq!(drafted_end.reason, end.reason);
        prop_assert_eq!(drafted_end.usage, end.usage);
        prop_assert_eq!(drafted_end.text, end.text);
        prop_assert!(drafted_end.drafts.n_accepted() <= drafted_end.usage.n_generated);
    }
}

#[test]
fn right_guesses_save_passes_and_are_counted_by_position() {
    // Says the prompt's sentence again and again.
    let sentence = ["a", "c", "b", "d", "hello", " the", "x", "y", "z"];
    let ids: Vec<u32> = sentence.iter().map(|w| word(w)).collect();
    let repeating = move || {
        let ids = ids.clone();
        let mut model = FakeModel::new(N_PIECES, move |seen| {
            let next = ids[(seen.len() - 1) % ids.len()];
            (0..N_PIECES)
                .map(|id| if id == next as usize { 9.0 } else { 0.0 })
                .collect()
        });
        model.max_batch_tokens = 64;
        model
    };
    let mut plain = repeating();
    let (want, _) = answer(
        &mut plain,
        200,
        &request(&sentence, Drafting::Off, SamplingParams::greedy()),
    );
    let mut model = repeating();
    let (got, end) = answer(
        &mut model,
        200,
        &request(&sentence, Drafting::Fixed(4), SamplingParams::greedy()),
    );
    assert_eq!(got, want);
    assert_eq!((want.len(), plain.calls.len()), (100, 100));
    assert!(model.calls.len() <= 32, "{:?}", model.calls);
    let drafts = end.drafts;
    assert!(drafts.n_accepted() >= 70, "{drafts:?}");
    assert_eq!(drafts.drafted.len(), 4);
    assert!(drafts.accepted.is_sorted_by(|a, b| a >= b));
}

#[test]
fn a_session_goes_on_after_drafts() {
    let sampling = SamplingParams::greedy();
    let say = |drafting| {
        let mut model = wavering();
        model.drafter = Some(guesser(5));
        let mut session = Session::new(&model, 300).unwrap();
        let mut said = Vec::new();
        let mut prompt = request(&["a", "b"], drafting, sampling.clone());
        for _ in 0..4 {
            prompt.max_tokens = Some(20);
            session
                .generate(&mut model, &tokenizer(), &prompt, |event| {
                    if let Event::Token { id, .. } = event {
                        said.push(id);
                    }
                    ControlFlow::Continue(())
                })
                .unwrap();
            prompt.prompt = [
                &request(&["a", "b"], drafting, sampling.clone()).prompt[..],
                &said,
                &[word("c")],
            ]
            .concat();
        }
        said
    };
    assert_eq!(say(Drafting::Fixed(7)), say(Drafting::Off));
}

/// Draws from a chain of Markov over six letters with drafts of a careless drafter, and compares what follows each
/// letter with the true distribution.
#[test]
fn the_distribution_of_answers_is_the_model_s() {
    const STATES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
    const N_SAMPLES: usize = 24_000;
    let weight = |from: usize, to: usize| ((from * 7 + to * 5) % 11 + 1) as f64;
    let total = |from| (0..6).map(|to| weight(from, to)).sum::<f64>();
    let state_of = |id: u32| STATES.iter().position(|s| word(s) == id);
    let chain = move |seen: &[u32]| {
        let from = seen.last().and_then(|id| state_of(*id)).unwrap_or(0);
        let mut row = vec![f32::NEG_INFINITY; N_PIECES];
        for (to, state) in STATES.iter().enumerate() {
            row[word(state) as usize] = weight(from, to).ln() as f32;
        }
        row
    };
    for with_drafter in [true, false] {
        let mut model = FakeModel::new(N_PIECES, chain);
        model.max_batch_tokens = 64;
        // Half of the time the likeliest letter, half of the time any.
        let mut state = 77u64;
        model.drafter = with_drafter.then(|| -> crate::fake::Drafter {
            Box::new(move |tokens, n| {
                let mut from = state_of(tokens[tokens.len() - 1]).unwrap_or(0);
                (0..n)
                    .map(|_| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let best = (0..6).max_by(|a, b| weight(from, *a).total_cmp(&weight(from, *b)));
                        from = if state >> 63 == 0 {
                            best.unwrap()
                        } else {
                            (state >> 33) as usize % 6
                        };
                        word(STATES[from])
                    })
                    .collect()
            })
        });
        let (mut counts, mut n_samples, mut n_accepted) = ([[0.0f64; 6]; 6], 0, 0);
        for seed in 0.. {
            let sampling = SamplingParams {
                temperature: 1.0,
                top_k: 0,
                top_p: 1.0,
                seed,
                ..SamplingParams::default()
            };
            let mut request = request(&["a", "b", "a", "b", "a"], Drafting::Fixed(3), sampling);
            request.max_tokens = Some(60);
            let (ids, end) = answer(&mut model, 100, &request);
            for pair in [&[word("a")], &ids[..]].concat().windows(2) {
                counts[state_of(pair[0]).unwrap()][state_of(pair[1]).unwrap()] += 1.0;
            }
            n_samples += ids.len();
            n_accepted += end.drafts.n_accepted();
            if n_samples >= N_SAMPLES {
                break;
            }
        }
        assert!(n_accepted > N_SAMPLES / 10, "{n_accepted} guesses were right");
        let mut chi_square = 0.0;
        for (from, row) in counts.iter().enumerate() {
            let n: f64 = row.iter().sum();
            for (to, count) in row.iter().enumerate() {
                let expected = n * weight(from, to) / total(from);
                chi_square += (count - expected).powi(2) / expected;
            }
        }
        // 30 degrees of freedom: 59.7 is exceeded once in a thousand times, 14.9 not reached in ten.
        assert!((10.0..59.7).contains(&chi_square), "{chi_square}");
    }
}

/// A drafter may take many steps to read a prompt, and says nothing meanwhile. What that takes is no price of guesses.
#[test]
fn a_drafter_that_reads_is_asked_again() {
    let n_asked = Arc::new(AtomicUsize::new(0));
    let asked = Arc::clone(&n_asked);
    let mut model = FakeModel::chaotic();
    model.max_batch_tokens = 64;
    model.drafter = Some(Box::new(move |_, _| {
        asked.fetch_add(1, Ordering::Relaxed);
        // Much longer than a pass of the fake.
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(1) {
            std::hint::spin_loop();
        }
        Vec::new()
    }));
    let request = Request {
        stop_ids: Vec::new(),
        suppressed: vec![0],
        ..request(&["a"; 40], Drafting::Adaptive, SamplingParams::greedy())
    };
    let (ids, _) = answer(&mut model, 200, &request);
    let n_asked = n_asked.load(Ordering::Relaxed);
    assert!(n_asked > ids.len() / 2, "asked {n_asked} times");
}

#[test]
fn guesses_that_a_grammar_forbids_are_not_computed() {
    let tokenizer = tokenizer();
    let compiler = GrammarCompiler::new(&tokenizer).unwrap();
    let run = |drafting| {
        let chaotic = FakeModel::chaotic().predict;
        let mut model = FakeModel::new(N_PIECES, move |seen| {
            assert!(
                !seen.contains(&word("x")),
                "a guess outside of the grammar is computed"
            );
            chaotic(seen)
        });
        model.max_batch_tokens = 64;
        // Only letters of the grammar, then others.
        model.drafter = Some(Box::new(|_, n| {
            (0..n).map(|i| word(["a", "b", "x"][i % 3])).collect()
        }));
        let limits = Limits {
            n_max: 400,
            n_running: 4,
            n_waiting: 10,
            cache_bytes: 1 << 30,
        };
        let mut scheduler = Scheduler::new(model, Arc::new(self::tokenizer()), limits);
        let heard = Arc::new(Mutex::new((Vec::new(), None)));
        let ear = Arc::clone(&heard);
        let request = Request {
            max_tokens: None,
            ..request(&["a", "b", "c"], drafting, SamplingParams::greedy())
        };
        let mut job = Job::new(
            request,
            Box::new(move |update| {
                match update {
                    Update::Token { id, .. } => ear.lock().unwrap().0.push(id),
                    Update::Finished(finished) => ear.lock().unwrap().1 = Some(*finished),
                    other => panic!("{other:?}"),
                }
                ControlFlow::Continue(())
            }),
        );
        job.constraint = Some(compiler.compile(&Grammar::Regex("[ab]{30}".into())).unwrap());
        scheduler.submit(job);
        let mut n_steps = 0;
        while !scheduler.is_idle() {
            scheduler.step();
            n_steps += 1;
        }
        let (ids, finished) = heard.lock().unwrap().clone();
        (ids, finished.unwrap(), n_steps)
    };
    let (want, end, n_plain) = run(Drafting::Off);
    assert_eq!((want.len(), end.reason), (30, FinishReason::Stop));
    let (got, end, n_drafted) = run(Drafting::Fixed(6));
    assert_eq!(got, want);
    assert!(end.drafts.n_accepted() > 0);
    assert!(n_drafted < n_plain, "{n_drafted} {n_plain}");
}

#[test]
fn a_batch_is_what_each_is_alone() {
    let requests: Vec<Request> = (0..6)
        .map(|i| {
            let sampling = SamplingParams {
                seed: i as u64,
                ..SamplingParams::default()
            };
            let drafting = [Drafting::Off, Drafting::Adaptive, Drafting::Fixed(i)][i % 3];
            request(&LETTERS[..1 + i % 4], drafting, sampling)
        })
        .collect();
    let mut ids = vec![Vec::new(); requests.len()];
    let mut model = wavering();
    model.drafter = Some(guesser(9));
    generate_batch(&mut model, &tokenizer(), 150, &requests, |i, event| {
        if let Event::Token { id, .. } = event {
            ids[i].push(id);
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    for (ids, request) in ids.iter().zip(requests) {
        let alone = answer(
            &mut wavering(),
            150,
            &Request {
                drafting: Drafting::Off,
                ..request
            },
        )
        .0;
        assert_eq!(*ids, alone);
    }
}

#[test]
fn a_cache_that_cannot_go_back_is_an_error_not_a_wrong_answer() {
    let mut model = wavering();
    model.window = 0;
    model.drafter = Some(Box::new(|_, n| vec![word("z"); n]));
    let request = request(&["a", "b"], Drafting::Fixed(3), SamplingParams::greedy());
    let result = generate(&mut model, &tokenizer(), 100, &request, |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(result, Err(Error::CacheLength { .. })), "{result:?}");
}

#[test]
fn a_prompt_gets_on_beside_streams_that_guess() {
    let ends = Arc::new(Mutex::new(Vec::new()));
    let job = |name: &'static str, request: Request| {
        let ends = Arc::clone(&ends);
        Job::new(
            request,
            Box::new(move |update| {
                if let Update::Finished(_) = update {
                    ends.lock().unwrap().push(name);
                }
                ControlFlow::Continue(())
            }),
        )
    };
    let mut model = wavering();
    model.drafter = Some(guesser(3));
    let limits = Limits {
        n_max: 900,
        n_running: 4,
        n_waiting: 10,
        cache_bytes: 1 << 30,
    };
    let mut scheduler = Scheduler::new(model, Arc::new(tokenizer()), limits);
    let stream = Request {
        stop_ids: vec![],
        max_tokens: Some(600),
        ..request(&["a", "b"], Drafting::Fixed(2), SamplingParams::greedy())
    };
    scheduler.submit(job("stream", stream));
    (0..20).for_each(|_| scheduler.step());
    let prompt = Request {
        max_tokens: Some(1),
        ..request(&["c"; 200], Drafting::Adaptive, SamplingParams::greedy())
    };
    scheduler.submit(job("prompt", prompt));
    while !scheduler.is_idle() {
        scheduler.step();
    }
    assert_eq!(*ends.lock().unwrap(), ["prompt", "stream"]);
}

/// A pass with more rows would be computed otherwise, and the guesses would show.
#[test]
fn no_pass_has_more_rows_than_are_computed_alike() {
    let requests: Vec<Request> = [Drafting::Fixed(9), Drafting::Fixed(3), Drafting::Adaptive]
        .map(|drafting| request(&["a", "b"], drafting, SamplingParams::greedy()))
        .to_vec();
    let run = |n_alike_rows| {
        let mut model = wavering();
        model.n_alike_rows = n_alike_rows;
        model.drafter = Some(guesser(9));
        generate_batch(&mut model, &tokenizer(), 150, &requests, |_, _| {
            ControlFlow::Continue(())
        })
        .unwrap();
        // Without the prompts.
        model.calls[1..].iter().copied().max().unwrap_or(0)
    };
    assert_eq!(run(8), 8);
    assert_eq!(run(2), 3, "no fewer than there are sequences");
    assert!(run(usize::MAX) > 12);
}

/// Common beginnings, places and memory for few, caches that go back only a little, jobs that are given up at any token.
#[test]
fn jobs_that_guess_say_what_they_say_alone() {
    let n_jobs = 14;
    let requests: Vec<Request> = (0..n_jobs)
        .map(|i| {
            let mut prompt = vec!["c"; 70];
            prompt.extend(&LETTERS[..1 + i % 4]);
            prompt.extend(vec!["a"; i % 3]);
            let sampling = SamplingParams {
                seed: i as u64,
                temperature: (i % 2) as f32,
                ..SamplingParams::default()
            };
            let drafting = [Drafting::Fixed(1 + i), Drafting::Adaptive, Drafting::Off][i % 3];
            request(&prompt, drafting, sampling)
        })
        .collect();
    let mut model = wavering();
    model.window = 20;
    model.n_alike_rows = 12;
    model.drafter = Some(guesser(21));
    let limits = Limits {
        n_max: 180,
        n_running: 5,
        n_waiting: n_jobs,
        cache_bytes: 500,
    };
    let mut scheduler = Scheduler::new(model, Arc::new(tokenizer()), limits);
    let said: Arc<Mutex<Vec<Vec<u32>>>> = Arc::new(Mutex::new(vec![Vec::new(); n_jobs]));
    // Every fourth is given up in the middle, mostly between two tokens of one pass.
    let wanted = |i: usize| if i % 4 == 3 { 2 * i + 1 } else { usize::MAX };
    for (i, request) in requests.iter().enumerate() {
        let said = Arc::clone(&said);
        scheduler.submit(Job::new(
            request.clone(),
            Box::new(move |update| {
                let said = &mut said.lock().unwrap()[i];
                if let Update::Token { id, .. } = update {
                    said.push(id);
                }
                if said.len() < wanted(i) {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            }),
        ));
    }
    while !scheduler.is_idle() {
        scheduler.step();
    }
    let counters = Arc::clone(scheduler.counters());
    assert!(counters.preempted.get() > 0 && counters.reused.get() > 0);
    let accepted: u64 = counters.accepted.iter().map(|n| n.get()).sum();
    assert!(accepted > 50, "{accepted} guesses were right");
    for (i, request) in requests.into_iter().enumerate() {
        let plain = Request {
            drafting: Drafting::Off,
            ..request
        };
        let mut want = answer(&mut wavering(), 180, &plain).0;
        want.truncate(wanted(i));
        assert_eq!(said.lock().unwrap()[i], want, "job {i}");
    }
}
