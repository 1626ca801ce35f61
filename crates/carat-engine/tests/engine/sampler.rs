//! The sampler against a plain twin that sorts everything and thinks in sets, and against statistics.

use std::collections::HashMap;

use carat_engine::{Error, Sampler, SamplingParams};
use proptest::prelude::*;

/// No filter, no penalty: the model's own distribution.
fn plain() -> SamplingParams {
    SamplingParams {
        top_k: 0,
        top_p: 1.0,
        ..SamplingParams::default()
    }
}

fn sampler(params: &SamplingParams, n: usize) -> Sampler {
    Sampler::new(params.clone(), n, n, &[]).unwrap()
}

/// Which ids may come out and with what probability, by the definitions, in f64.
fn twin(params: &SamplingParams, logits: &[f32], history: &[u32]) -> Vec<(u32, f64)> {
    let mut adjusted: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    for &(id, bias) in &params.logit_bias {
        adjusted[id as usize] += f64::from(bias);
    }
    let mut counts: HashMap<u32, u32> = HashMap::new();
    for &id in history.iter().rev().take(params.penalty_window) {
        *counts.entry(id).or_default() += 1;
    }
    for (id, count) in counts {
        let logit = &mut adjusted[id as usize];
        let penalty = f64::from(params.repetition_penalty);
        *logit = if *logit > 0.0 {
            *logit / penalty
        } else {
            *logit * penalty
        };
        *logit -= f64::from(count) * f64::from(params.frequency_penalty) + f64::from(params.presence_penalty);
    }
    let mut left: Vec<(u32, f64)> = adjusted
        .iter()
        .enumerate()
        .map(|(i, &l)| (i as u32, l / f64::from(params.temperature)))
        .collect();
    left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if params.top_k > 0 {
        left.truncate(params.top_k);
    }
    left = softmax(left);
    if params.typical_p < 1.0 {
        let entropy: f64 = left.iter().map(|(_, p)| -p * p.ln()).sum();
        left.sort_by(|a, b| {
            let distance = |p: f64| (-p.ln() - entropy).abs() as f32;
            distance(a.1).total_cmp(&distance(b.1)).then(a.0.cmp(&b.0))
        });
        left = normalize(prefix(left, params.typical_p));
    }
    left.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if params.top_p < 1.0 {
        left = normalize(prefix(left, params.top_p));
    }
    let bar = f64::from(params.min_p) * left[0].1;
    left.retain(|&(_, p)| p >= bar);
    left = normalize(left);
    left.sort_by_key(|&(id, _)| id);
    left
}

fn softmax(mut left: Vec<(u32, f64)>) -> Vec<(u32, f64)> {
    let max = left.iter().map(|&(_, l)| l).fold(f64::MIN, f64::max);
    left.iter_mut().for_each(|(_, l)| *l = (*l - max).exp());
    normalize(left)
}

fn normalize(mut left: Vec<(u32, f64)>) -> Vec<(u32, f64)> {
    let total: f64 = left.iter().map(|(_, p)| p).sum();
    left.iter_mut().for_each(|(_, p)| *p /= total);
    left
}

/// The shortest beginning that reaches `mass`, at least one.
fn prefix(left: Vec<(u32, f64)>, mass: f32) -> Vec<(u32, f64)> {
    let mut reached = 0.0;
    let mut kept = Vec::new();
    for (id, p) in left {
        kept.push((id, p));
        reached += p;
        if reached >= f64::from(mass) {
            break;
        }
    }
    kept
}

/// Whether the sampler's choices over many seeds are the twin's: no id outside the set, every likely id inside it,
/// and frequencies within five standard deviations.
fn assert_follows(params: &SamplingParams, logits: &[f32], history: &[u32]) {
    const N: u32 = 4000;
    let expected = twin(params, logits, history);
    let mut counts: HashMap<u32, u32> = HashMap::new();
    let mut sampler = sampler(params, logits.len());
    for _ in 0..N {
        *counts
            .entry(sampler.sample(logits, history).unwrap())
            .or_default() += 1;
    }
    let mut n_found = 0;
    for &(id, p) in &expected {
        let count = counts.get(&id).copied().unwrap_or(0);
        n_found += count;
        let deviation = (f64::from(N) * p * (1.0 - p)).sqrt();
        let difference = (f64::from(count) - f64::from(N) * p).abs();
        assert!(
            difference <= 5.0 * deviation + 5.0,
            "id {id}: {count} of {N}, expected p = {p} in {params:?}"
        );
    }
    assert_eq!(n_found, N, "ids outside {expected:?} were chosen: {counts:?}");
}

/// Logits far enough apart that rounding cannot move a border: multiples of 1/8, all different.
fn logits(n: usize) -> impl Strategy<Value = Vec<f32>> {
    Just(
        (0..n)
            .map(|i| (i as f32 - n as f32 / 2.0) / 8.0)
            .collect::<Vec<f32>>(),
    )
    .prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn top_k_follows_the_twin(l in logits(40), top_k in 1usize..50, temperature in 0.3f32..3.0) {
        assert_follows(&SamplingParams { top_k, temperature, ..plain() }, &l, &[]);
    }

    #[test]
    fn top_p_follows_the_twin(l in logits(40), top_p in 0.0f32..1.0, temperature in 0.3f32..3.0) {
        assert_follows(&SamplingParams { top_p, temperature, ..plain() }, &l, &[]);
    }

    #[test]
    fn min_p_follows_the_twin(l in logits(40), min_p in 0.0f32..1.0, temperature in 0.3f32..3.0) {
        assert_follows(&SamplingParams { min_p, temperature, ..plain() }, &l, &[]);
    }

    #[test]
    fn typical_follows_the_twin(l in logits(40), typical_p in 0.0f32..1.0, temperature in 0.3f32..3.0) {
        assert_follows(&SamplingParams { typical_p, temperature, ..plain() }, &l, &[]);
    }

    #[test]
    fn penalties_follow_the_twin(
        l in logits(20),
        history in prop::collection::vec(0u32..20, 0..30),
        penalty_window in 0usize..40,
        repetition_penalty in 0.5f32..2.0,
        frequency_penalty in -1.0f32..1.0,
        presence_penalty in -1.0f32..1.0,
    ) {
        let params = SamplingParams {
            penalty_window, repetition_penalty, frequency_penalty, presence_penalty, ..plain()
        };
        assert_follows(&params, &l, &history);
    }

    #[test]
    fn all_stages_together_follow_the_twin(
        l in logits(60),
        top_k in 5usize..70,
        (top_p, min_p, typical_p) in (0.5f32..1.0, 0.0f32..0.3, 0.5f32..1.0),
        bias in -3.0f32..3.0,
        history in prop::collection::vec(0u32..60, 0..10),
    ) {
        let params = SamplingParams {
            top_k, top_p, min_p, typical_p, presence_penalty: 0.3, logit_bias: vec![(3, bias)], ..plain()
        };
        assert_follows(&params, &l, &history);
    }

    #[test]
    fn no_input_makes_it_panic(
        l in prop::collection::vec(prop_oneof![any::<f32>(), Just(f32::NAN), -9f32..9.0], 1..300),
        history in prop::collection::vec(any::<u32>(), 0..20),
        (temperature, top_k) in (prop_oneof![Just(1e-30f32), 0f32..2.0], 0usize..400),
        (top_p, min_p, typical_p) in (0f32..=1.0, 0f32..=1.0, 0f32..=1.0),
    ) {
        let params = SamplingParams {
            temperature, top_k, top_p, min_p, typical_p,
            repetition_penalty: 1.3, frequency_penalty: 0.1, ..plain()
        };
        match sampler(&params, l.len()).sample(&l, &history) {
            Ok(id) => prop_assert!(l[id as usize].is_finite()),
            Err(error) => assert!(matches!(error, Error::NoCandidate { .. }), "{error}"),
        }
    }
}

#[test]
fn temperature_zero_takes_the_likeliest_and_the_lower_id_of_two() {
    let mut greedy = sampler(&SamplingParams::greedy(), 5);
    assert_eq!(greedy.sample(&[0.5, 2.0, f32::NAN, 2.0, 1.0], &[]).unwrap(), 1);
}

/// Counts are kept from token to token: the same choices as from a sampler that sees the history for the first time.
#[test]
fn penalties_of_a_history_that_grows_are_those_of_the_whole() {
    let logits: Vec<f32> = (0..50).map(|i| ((i * 37) % 50) as f32 / 20.0).collect();
    for penalty_window in [0, 1, 7, 64, usize::MAX] {
        let params = SamplingParams {
            penalty_window,
            repetition_penalty: 1.1,
            frequency_penalty: 0.2,
            presence_penalty: 0.1,
            ..SamplingParams::greedy()
        };
        let mut growing = sampler(&params, logits.len());
        let mut history = vec![3, 1_000_000, 3];
        for _ in 0..200 {
            let id = growing.sample(&logits, &history).unwrap();
            assert_eq!(
                id,
                sampler(&params, logits.len()).sample(&logits, &history).unwrap()
            );
            history.push(id);
        }
        assert!(penalty_window < 7 || history[3..].iter().any(|id| *id != history[3]));
    }
}

#[test]
fn penalties_apply_to_greedy_choices_too() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        ..SamplingParams::greedy()
    };
    assert_eq!(sampler(&params, 3).sample(&[1.0, 3.0, 2.0], &[1]).unwrap(), 2);
    let params = SamplingParams {
        logit_bias: vec![(1, f32::NEG_INFINITY)],
        ..SamplingParams::greedy()
    };
    assert_eq!(sampler(&params, 3).sample(&[1.0, 3.0, 2.0], &[]).unwrap(), 2);
}

#[test]
fn padding_rows_and_suppressed_ids_are_never_chosen() {
    let mut greedy = Sampler::new(SamplingParams::greedy(), 6, 4, &[3]).unwrap();
    assert_eq!(greedy.sample(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[]).unwrap(), 2);
    let mut random = Sampler::new(plain(), 6, 4, &[0, 3]).unwrap();
    for _ in 0..200 {
        let id = random.sample(&[9.0, 1.0, 2.0, 3.0, 4.0, 5.0], &[]).unwrap();
        assert!([1, 2].contains(&id));
    }
    let refused = Sampler::new(plain(), 6, 4, &[6]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "`suppressed` names token 6, but the vocabulary has 6 tokens"
    );
}

#[test]
fn nothing_to_choose_from_is_an_error() {
    for params in [plain(), SamplingParams::greedy(), SamplingParams::default()] {
        let error = sampler(&params, 3)
            .sample(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY], &[])
            .unwrap_err();
        assert!(matches!(error, Error::NoCandidate { n_allowed: 3 }));
    }
}

/// Pins the meaning of seeds: this list must never change.
#[test]
fn a_seed_means_the_same_tokens_for_ever() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32 / 100.0).collect();
    let choose = |params: SamplingParams| {
        let mut sampler = sampler(&params, logits.len());
        (0..8)
            .map(|_| sampler.sample(&logits, &[]).unwrap())
            .collect::<Vec<u32>>()
    };
    let seeded = |seed| {
        choose(SamplingParams {
            seed,
            ..SamplingParams::default()
        })
    };
    assert_eq!(seeded(42), seeded(42));
    assert_ne!(seeded(42), seeded(43));
    assert_eq!(seeded(42), PINNED_DEFAULT);
    assert_eq!(choose(SamplingParams { seed: 42, ..plain() }), PINNED_PLAIN);
}

const PINNED_DEFAULT: [u32; 8] = [840, 321, 988, 704, 803, 605, 136, 618];
const PINNED_PLAIN: [u32; 8] = [816, 321, 977, 704, 803, 593, 136, 605];

#[test]
fn choices_over_a_whole_vocabulary_follow_the_distribution() {
    // 2,000 tokens of two kinds: the first half e times as likely as the second.
    let logits: Vec<f32> = (0..2000).map(|i| if i < 1000 { 1.0 } else { 0.0 }).collect();
    let mut sampler = sampler(&plain(), logits.len());
    let n = 20_000;
    let first = (0..n)
        .filter(|_| sampler.sample(&logits, &[]).unwrap() < 1000)
        .count();
    let p = 1f64.exp() / (1f64.exp() + 1.0);
    let deviation = (f64::from(n) * p * (1.0 - p)).sqrt();
    assert!(
        (first as f64 - f64::from(n) * p).abs() < 5.0 * deviation,
        "{first} of {n}, expected p = {p}"
    );
}
