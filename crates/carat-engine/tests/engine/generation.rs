//! Whole generations on a fake model: ends, text, reuse, cancelling, batches.

use std::ops::ControlFlow;

use crate::fake::{BOS, EOS, FakeModel, N_PIECES, byte, tokenizer, word};
use carat_engine::{
    Error, Event, FinishReason, Finished, Media, Request, SamplingParams, Session, TokenLogprobs, generate,
    generate_batch,
};
use carat_model::SpanAttention;
use proptest::prelude::*;

/// Everything that a generation told.
#[derive(Debug, Default, PartialEq)]
struct Told {
    ids: Vec<u32>,
    text: String,
    prefill: Vec<usize>,
    logprobs: Vec<TokenLogprobs>,
    n_finished: usize,
}

impl Told {
    fn hear(&mut self, event: &Event<'_>) {
        assert_eq!(self.n_finished, 0, "nothing follows the end");
        match event {
            Event::Prefill { n_done, .. } => self.prefill.push(*n_done),
            Event::Token { id, text, logprobs } => {
                self.ids.push(*id);
                self.text.push_str(text);
                self.logprobs.extend(logprobs.cloned());
            }
            Event::Finished(finished) => {
                self.text.push_str(&finished.text);
                self.n_finished += 1;
            }
        }
    }
}

fn greedy(prompt: Vec<u32>) -> Request {
    Request {
        prompt,
        sampling: SamplingParams::greedy(),
        stop_ids: vec![EOS],
        ..Request::default()
    }
}

fn prompt(n: usize) -> Vec<u32> {
    (0..n)
        .map(|i| if i == 0 { BOS } else { word(["a", "b", "c"][i % 3]) })
        .collect()
}

fn run(model: &mut FakeModel, n_max: usize, request: &Request) -> (Finished, Told) {
    let mut told = Told::default();
    let finished = generate(model, &tokenizer(), n_max, request, |event| {
        told.hear(&event);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(told.n_finished, 1);
    (finished, told)
}

#[test]
fn a_stop_token_ends_the_answer_without_being_shown() {
    let mut model = FakeModel::scripted(3, vec![word("hello"), word(" the"), word("a")]);
    let (finished, told) = run(&mut model, 100, &greedy(prompt(3)));
    assert_eq!(finished.reason, FinishReason::Stop);
    assert_eq!(told.text, "hello thea");
    assert_eq!(told.ids, [word("hello"), word(" the"), word("a")]);
    assert_eq!((finished.usage.n_prompt, finished.usage.n_generated), (3, 4));
    assert_eq!((finished.timings.n_prefilled, finished.timings.n_decoded), (3, 3));
}

#[test]
fn a_stop_string_over_two_tokens_ends_the_text_before_it() {
    let mut model = FakeModel::scripted(1, vec![word("a"), word("ST"), word("OP"), word("b")]);
    let request = Request {
        stop_strings: vec!["STOP".into()],
        ..greedy(prompt(1))
    };
    let (finished, told) = run(&mut model, 100, &request);
    assert_eq!(
        (finished.reason, told.text.as_str()),
        (FinishReason::StopString, "a")
    );
    assert_eq!(finished.usage.n_generated, 3);

    let mut model = FakeModel::scripted(1, vec![word("a"), word("ST")]);
    let (finished, told) = run(&mut model, 100, &request);
    assert_eq!((finished.reason, told.text.as_str()), (FinishReason::Stop, "aST"));
    assert_eq!(finished.text, "ST");
}

#[test]
fn a_character_over_several_tokens_is_shown_once_it_is_whole() {
    let script: Vec<u32> = "😀".bytes().map(byte).chain([byte(0xE2), byte(0x82)]).collect();
    let mut model = FakeModel::scripted(1, script);
    let mut pieces = Vec::new();
    let finished = generate(&mut model, &tokenizer(), 100, &greedy(prompt(1)), |event| {
        if let Event::Token { text, .. } = event {
            pieces.push(text.to_string());
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(pieces, ["", "", "", "😀", "", ""]);
    assert_eq!(finished.text, "\u{FFFD}\u{FFFD}");
}

#[test]
fn limits_end_the_answer_with_their_own_reason() {
    let request = Request {
        max_tokens: Some(5),
        stop_ids: vec![],
        ..greedy(prompt(4))
    };
    let (finished, told) = run(&mut FakeModel::chaotic(), 100, &request);
    assert_eq!((finished.reason, told.ids.len()), (FinishReason::Length, 5));

    let request = Request {
        max_tokens: None,
        stop_ids: vec![],
        ..greedy(prompt(4))
    };
    let (finished, told) = run(&mut FakeModel::chaotic(), 12, &request);
    assert_eq!((finished.reason, told.ids.len()), (FinishReason::ContextFull, 8));
}

#[test]
fn a_prompt_that_leaves_no_room_is_refused_with_both_numbers() {
    let mut model = FakeModel::chaotic();
    let refuse = |model: &mut FakeModel, request: &Request| {
        generate(model, &tokenizer(), 10, request, |_| ControlFlow::Continue(())).unwrap_err()
    };
    let error = refuse(&mut model, &greedy(prompt(10)));
    assert!(
        matches!(
            error,
            Error::PromptTooLong {
                n_prompt: 10,
                n_max: 10
            }
        ),
        "{error:?}"
    );
    assert!(
        error
            .to_string()
            .contains("has 10 tokens, but the context holds 10"),
        "{error}"
    );
    assert!(matches!(refuse(&mut model, &greedy(vec![])), Error::EmptyPrompt));
    let nothing = Request {
        max_tokens: Some(0),
        ..greedy(prompt(2))
    };
    assert!(matches!(refuse(&mut model, &nothing), Error::NoTokensAllowed));
    assert!(model.calls.is_empty(), "nothing was computed");
}

#[test]
fn chunked_prefill_equals_a_single_one() {
    let request = Request {
        sampling: SamplingParams {
            seed: 5,
            ..SamplingParams::default()
        },
        max_tokens: Some(20),
        logprobs: Some(3),
        ..greedy(prompt(23))
    };
    let told = |max_batch_tokens| {
        let mut model = FakeModel {
            max_batch_tokens,
            ..FakeModel::chaotic()
        };
        let (_, told) = run(&mut model, 100, &request);
        (
            Told {
                prefill: vec![],
                ..told
            },
            model.calls,
        )
    };
    let (single, calls) = told(100);
    assert_eq!(calls[0], 23);
    for max_batch_tokens in [1, 2, 7, 22, 23] {
        let (chunked, calls) = told(max_batch_tokens);
        assert_eq!(chunked, single, "chunks of {max_batch_tokens}");
        assert!(calls.iter().all(|&n| n <= max_batch_tokens));
    }
}

#[test]
fn prefill_progress_is_told_and_can_be_cancelled() {
    let (_, told) = run(
        &mut FakeModel::chaotic(),
        100,
        &Request {
            max_tokens: Some(1),
            ..greedy(prompt(20))
        },
    );
    assert_eq!(told.prefill, [8, 16, 20]);

    let mut model = FakeModel::chaotic();
    let finished = generate(
        &mut model,
        &tokenizer(),
        100,
        &greedy(prompt(20)),
        |event| match event {
            Event::Prefill { n_done: 16, .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    )
    .unwrap();
    assert_eq!(
        (finished.reason, finished.usage.n_generated),
        (FinishReason::Cancelled, 0)
    );
    assert_eq!(finished.timings.n_prefilled, 16);
    assert_eq!(model.calls, [8, 8]);
}

#[test]
fn cancelling_an_answer_keeps_what_was_held_back() {
    let mut model = FakeModel::scripted(1, vec![word("a"), word("ST"), word("b")]);
    let request = Request {
        stop_strings: vec!["STOP".into()],
        ..greedy(prompt(1))
    };
    let mut n = 0;
    let finished = generate(&mut model, &tokenizer(), 100, &request, |event| {
        n += usize::from(matches!(event, Event::Token { .. }));
        if n == 2 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .unwrap();
    assert_eq!(
        (finished.reason, finished.text.as_str()),
        (FinishReason::Cancelled, "ST")
    );
}

#[test]
fn logprobs_describe_the_raw_logits() {
    let request = Request {
        sampling: SamplingParams {
            logit_bias: vec![(word("z"), 100.0)],
            ..SamplingParams::greedy()
        },
        max_tokens: Some(1),
        logprobs: Some(2),
        ..greedy(prompt(1))
    };
    let mut model = FakeModel::scripted(1, vec![word("a")]);
    let (_, told) = run(&mut model, 100, &request);
    let denominator = (5f64.exp() + (N_PIECES - 1) as f64).ln();
    assert_eq!(told.ids, [word("z")], "the bias decides");
    assert!(
        (f64::from(told.logprobs[0].logprob) + denominator).abs() < 1e-6,
        "the raw logit is 0"
    );
    assert_eq!(told.logprobs[0].top[0].0, word("a"));
    assert!((f64::from(told.logprobs[0].top[0].1) - (5.0 - denominator)).abs() < 1e-6);
}

/// Answers the prompts of a conversation one after another, with and without a session.
fn converse(window: usize, prompts: &[Vec<u32>]) -> Vec<usize> {
    let mut model = FakeModel {
        window,
        ..FakeModel::chaotic()
    };
    let mut session = Session::new(&model, 200).unwrap();
    let mut reused = Vec::new();
    for prompt in prompts {
        let request = Request {
            max_tokens: Some(6),
            stop_ids: vec![],
            ..greedy(prompt.clone())
        };
        let mut told = Told::default();
        let finished = session
            .generate(&mut model, &tokenizer(), &request, |event| {
                told.hear(&event);
                ControlFlow::Continue(())
            })
            .unwrap();
        let (_, fresh) = run(&mut FakeModel::chaotic(), 200, &request);
        assert_eq!(
            (&told.ids, &told.text),
            (&fresh.ids, &fresh.text),
            "reuse changed the answer"
        );
        assert_eq!(
            finished.usage.n_reused + finished.timings.n_prefilled,
            prompt.len()
        );
        reused.push(finished.usage.n_reused);
    }
    reused
}

#[test]
fn a_session_computes_only_what_is_new() {
    let first = prompt(10);
    let mut second = first.clone();
    second.extend([word("x"); 5]);
    let mut third = first[..6].to_vec();
    third.push(word("y"));
    let prompts = [first.clone(), first, second, third];
    // The same prompt again computes its last token again: its logits are wanted.
    assert_eq!(converse(usize::MAX / 2, &prompts), [0, 9, 10, 6]);
    // Going back from 15 cached tokens to 9 needs a window of 6; with 5 everything is computed again.
    assert_eq!(converse(6, &prompts[..2]), [0, 9]);
    assert_eq!(converse(5, &prompts[..2]), [0, 0]);
}

#[test]
fn the_answer_itself_is_reused_by_the_next_turn() {
    let mut model = FakeModel::chaotic();
    let mut session = Session::new(&model, 200).unwrap();
    let request = Request {
        max_tokens: Some(6),
        stop_ids: vec![],
        ..greedy(prompt(10))
    };
    let mut told = Told::default();
    session
        .generate(&mut model, &tokenizer(), &request, |event| {
            told.hear(&event);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        session.n_cached(),
        15,
        "the last token was chosen but not computed"
    );
    let mut next = request.prompt.clone();
    next.extend(&told.ids);
    next.push(word("q"));
    let request = Request {
        prompt: next,
        ..request
    };
    let finished = session
        .generate(&mut model, &tokenizer(), &request, |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(finished.usage.n_reused, 15);
}

#[test]
fn a_failed_model_is_reported_and_the_session_goes_on() {
    let mut model = FakeModel {
        fails_at: Some(1),
        ..FakeModel::chaotic()
    };
    let mut session = Session::new(&model, 200).unwrap();
    let request = Request {
        max_tokens: Some(4),
        ..greedy(prompt(20))
    };
    let error = session
        .generate(&mut model, &tokenizer(), &request, |_| ControlFlow::Continue(()))
        .unwrap_err();
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "the fake failed as asked");
    let finished = session
        .generate(&mut model, &tokenizer(), &request, |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(finished.usage.n_reused, 8);
    let (fresh, _) = run(&mut FakeModel::chaotic(), 200, &request);
    assert_eq!(finished.usage.n_generated, fresh.usage.n_generated);
}

#[test]
fn a_cache_that_cannot_be_had_is_the_models_error() {
    let error = Session::new(&FakeModel::chaotic(), 2000).unwrap_err();
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "no cache of 2000 tokens"
    );
}

#[test]
fn cancelling_one_of_a_batch_leaves_the_others_alone() {
    let requests: Vec<Request> = (1..4)
        .map(|n| Request {
            max_tokens: Some(9),
            stop_ids: vec![],
            ..greedy(prompt(n))
        })
        .collect();
    let mut model = FakeModel::chaotic();
    let finished = generate_batch(&mut model, &tokenizer(), 50, &requests, |i, event| match event {
        Event::Token { .. } if i == 1 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    })
    .unwrap();
    let reasons: Vec<_> = finished.iter().map(|f| (f.reason, f.usage.n_generated)).collect();
    assert_eq!(
        reasons,
        [
            (FinishReason::Length, 9),
            (FinishReason::Cancelled, 1),
            (FinishReason::Length, 9)
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_batch_says_the_same_as_each_request_alone(
        requests in prop::collection::vec((1usize..30, 1usize..20, 0u64..1000), 1..7),
        max_batch_tokens in 1usize..40,
    ) {
        let requests: Vec<Request> = requests
            .into_iter()
            .map(|(n_prompt, n, seed)| Request {
                sampling: SamplingParams { seed, ..SamplingParams::default() },
                max_tokens: Some(n),
                ..greedy(prompt(n_prompt))
            })
            .collect();
        let mut model = FakeModel { max_batch_tokens, ..FakeModel::chaotic() };
        let mut told: Vec<Told> = requests.iter().map(|_| Told::default()).collect();
        let finished = generate_batch(&mut model, &tokenizer(), 60, &requests, |i, event| {
            told[i].hear(&event);
            ControlFlow::Continue(())
        })
        .unwrap();
        for ((request, told), finished) in requests.iter().zip(&told).zip(finished) {
            let (alone, expected) = run(&mut FakeModel::chaotic(), 60, request);
            prop_assert_eq!(&told.ids, &expected.ids);
            prop_assert_eq!(&told.text, &expected.text);
            prop_assert_eq!(finished.reason, alone.reason);
            prop_assert_eq!(finished.usage, alone.usage);
        }
    }
}

/// A prompt of letters with an image of `n` rows and a sound of three after it.
fn with_media(n: usize, content: u64) -> Request {
    let mut ids = prompt(5);
    let image = ids.len()..ids.len() + n;
    ids.extend(vec![0; n]);
    ids.extend(prompt(4));
    let sound = ids.len()..ids.len() + 3;
    ids.extend([0; 3]);
    ids.extend(prompt(6));
    let media = |tokens: std::ops::Range<usize>, value: f32, attention| Media {
        rows: vec![value; tokens.len()].into(),
        tokens,
        attention,
        content,
    };
    Request {
        media: vec![
            media(image, n as f32, SpanAttention::Bidirectional),
            media(sound, content as f32, SpanAttention::Causal),
        ],
        max_tokens: Some(12),
        ..greedy(ids)
    }
}

#[test]
fn no_chunk_cuts_an_image_and_the_answer_is_the_same_for_all() {
    let request = with_media(20, 7);
    let answer = |max_batch_tokens| {
        let mut model = FakeModel {
            max_batch_tokens,
            ..FakeModel::chaotic()
        };
        let mut ids = Vec::new();
        generate(&mut model, &tokenizer(), 200, &request, |event| {
            if let Event::Token { id, .. } = event {
                ids.push(id);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        ids
    };
    let whole = answer(100);
    assert_eq!(whole.len(), 12);
    for max_batch_tokens in [1, 2, 7, 8, 24, 30] {
        assert_eq!(
            answer(max_batch_tokens),
            whole,
            "{max_batch_tokens} tokens a batch"
        );
    }
}

#[test]
fn another_image_is_another_prompt_to_the_cache() {
    let mut model = FakeModel::chaotic();
    let mut session = Session::new(&model, 200).unwrap();
    let mut reused = |request: &Request| {
        let finished = session.generate(&mut model, &tokenizer(), request, |_| ControlFlow::Continue(()));
        finished.unwrap().usage.n_reused
    };
    let request = with_media(20, 7);
    assert_eq!(reused(&request), 0);
    assert_eq!(reused(&request), request.prompt.len() - 1);
    // The letters before the image are the same.
    assert_eq!(reused(&with_media(20, 8)), 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A model that gives only the largest logits says what it says with whole rows, under all settings.
    #[test]
    fn the_largest_logits_alone_change_no_answer(
        temperature in prop::sample::select(vec![0.0f32, 0.7, 1.0, 3.0]),
        top_k in prop::sample::select(vec![0usize, 1, 5, 64, 1000, usize::MAX]),
        top_p in prop::sample::select(vec![0.3f32, 0.95, 1.0]),
        min_p in prop::sample::select(vec![0.0f32, 0.2]),
        typical_p in prop::sample::select(vec![0.5f32, 1.0]),
        presence_penalty in prop::sample::select(vec![0.0f32, 0.0, 2.0]),
        bias in prop::sample::select(vec![None, None, Some(4.0), Some(-3.0), Some(f32::NEG_INFINITY)]),
        logprobs in prop::sample::select(vec![None, None, Some(2)]),
        suppressed in prop::collection::vec(0..N_PIECES as u32, 0..40),
        seed: u64,
    ) {
        let request = Request {
            sampling: SamplingParams {
                temperature, top_k, top_p, min_p, typical_p, presence_penalty, seed,
                // Twice the same token, as a careless client may ask, and another.
                logit_bias: bias.map_or(vec![], |bias| ["q", "r", "q"].map(|text| (word(text), bias)).to_vec()),
                ..SamplingParams::default()
            },
            max_tokens: Some(12),
            logprobs,
            suppressed,
            ..greedy(prompt(11))
        };
        let mut whole = FakeModel { max_top: 0, ..FakeModel::chaotic() };
        let (_, expected) = run(&mut whole, 100, &request);
        let mut model = FakeModel::chaotic();
        let (_, told) = run(&mut model, 100, &request);
        prop_assert_eq!(told, expected);
        // What others may decide needs whole rows.
        let k = if temperature == 0.0 { 1 } else { top_k };
        let n_top = k.saturating_add(request.suppressed.len() + request.sampling.logit_bias.len());
        let others_decide =
            k == 0 || presence_penalty > 0.0 || bias.is_some_and(|bias| bias > 0.0) || logprobs.is_some();
        prop_assert_eq!(model.top.is_empty(), others_decide || n_top > model.max_top);
        prop_assert!(whole.top.is_empty());
    }
}
